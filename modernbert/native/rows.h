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

// Dropout by the place of a number and a seed, so that the way back finds the same without keeping it.
struct Dropout {
    float share;
    uint32_t seed;

    // 0 for what is dropped, else what keeps the mean. A hash of 32 bits with little bias: C. Wellons, hash prospector,
    // "lowbias32". The kernels for GPUs drop the same.
    Floats kept(int64_t place) const {
        Words x;
        for (int lane = 0; lane < LANES; ++lane) x[lane] = uint32_t(place) + lane;
        x = (x ^ seed) * 0x9E3779B1u + seed;
        x = (x ^ (x >> 16)) * 0x7FEB352Du;
        x = (x ^ (x >> 15)) * 0x846CA68Bu;
        x = x ^ (x >> 16);
        const Floats drawn = __builtin_convertvector((Ints)(x >> 8), Floats) * (1.0f / 16777216.0f);
        return drawn >= share ? spread(1.0f / (1.0f - share)) : Floats{};
    }
};

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
