// What is computed row by row, or number by number, between matrix products.
#pragma once
#include "vectors.h"

namespace modernbert {

struct Moments {
    float mean, factor;  // factor is 1 / deviation
};

// (row - mean) / deviation * scale; the width is a multiple of LANES.
template <class From, class To>
inline Moments norm_row(const From* row, const float* scale, float eps, int64_t width, To* to) {
    Floats sums = {}, squares = {};
    for (int64_t i = 0; i < width; i += LANES) sums += load(row + i);
    const float mean = sum(sums) / width;
    for (int64_t i = 0; i < width; i += LANES) {
        Floats apart = load(row + i) - mean;
        squares += apart * apart;
    }
    const float factor = 1.0f / std::sqrt(sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES) store(to + i, (load(row + i) - mean) * factor * load(scale + i));
    return {mean, factor};
}

// The normal distribution's function. Abramowitz & Stegun 7.1.26, within 1.5e-7.
inline Floats normal_share(Floats x, Floats density) {
    Floats size = (x < 0 ? -x : x) * 0.70710678118654752f;
    Floats t = 1.0f / (size * 0.3275911f + 1.0f);
    Floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = (p * t + 0.254829592f) * t * density * 0.5f;
    return x < 0 ? p : 1.0f - p;
}

// e^(-x^2 / 2)
inline Floats bell(Floats x) { return exponential(x * x * -0.5f); }

inline Floats gelu(Floats x) { return x * normal_share(x, bell(x)); }

}  // namespace modernbert
