// Row-wise and element-wise operations between GEMMs: LayerNorm, dropout, GELU.
#pragma once
#include "vectors.h"

namespace modernbert {

struct Moments {
    float mean, rstd;  // rstd is 1 / standard deviation
};

// LayerNorm of one row, without bias; the width is a multiple of LANES.
template <class From, class To>
inline Moments norm_row(const From* row, const float* scale, float eps, int64_t width, To* to) {
    vfloat sum = {}, squares = {};
    for (int64_t i = 0; i < width; i += LANES) sum += load(row + i);
    const float mean = hsum(sum) / width;
    for (int64_t i = 0; i < width; i += LANES) {
        vfloat centered = load(row + i) - mean;
        squares += centered * centered;
    }
    const float rstd = 1.0f / std::sqrt(hsum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES) store(to + i, (load(row + i) - mean) * rstd * load(scale + i));
    return {mean, rstd};
}

// Counter-based dropout: the mask is hash(index, seed), recomputed in the backward pass instead of stored.
struct Dropout {
    float p;
    uint32_t seed;

    // The mask, scaled by 1 / (1 - p). Source of the hash: "lowbias32", C. Wellons, hash prospector. The GPU
    // kernels use the same hash and drop the same values.
    vfloat mask(int64_t index) const {
        vu32 x;
        for (int lane = 0; lane < LANES; ++lane) x[lane] = uint32_t(index) + lane;
        x = (x ^ seed) * 0x9E3779B1u + seed;
        x = (x ^ (x >> 16)) * 0x7FEB352Du;
        x = (x ^ (x >> 15)) * 0x846CA68Bu;
        x = x ^ (x >> 16);
        const vfloat drawn = __builtin_convertvector((vint)(x >> 8), vfloat) * (1.0f / 16777216.0f);
        return drawn >= p ? broadcast(1.0f / (1.0f - p)) : vfloat{};
    }
};

// Normal cumulative distribution. Source: Abramowitz & Stegun 7.1.26, absolute error 1.5e-7.
inline vfloat normal_cdf(vfloat x, vfloat density) {
    vfloat size = (x < 0 ? -x : x) * 0.70710678118654752f;
    vfloat t = 1.0f / (size * 0.3275911f + 1.0f);
    vfloat p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = (p * t + 0.254829592f) * t * density * 0.5f;
    return x < 0 ? p : 1.0f - p;
}

// e^(-x^2 / 2)
inline vfloat gaussian(vfloat x) { return vexp(x * x * -0.5f); }

inline vfloat gelu(vfloat x) { return x * normal_cdf(x, gaussian(x)); }

// GELU with an absolute error of 1e-4, for results that are rounded to 8 bits: the normal cumulative distribution is
// 1/2 + x P(x^2) between -4.25 and 4.25, where it is 0 and 1. Least-squares fit, weighted for the largest error.
inline vfloat approximate_gelu(vfloat x) {
    const vfloat end = broadcast(4.25f), bounded = max(-end, min(end, x)), square = bounded * bounded;
    vfloat p = square * -8.460223845e-10f + 7.570699886e-8f;
    p = p * square - 2.938763892e-6f;
    p = p * square + 6.552651468e-5f;
    p = p * square - 9.404428461e-4f;
    p = p * square + 9.257802463e-3f;
    p = p * square - 6.545345704e-2f;
    p = p * square + 3.984200133e-1f;
    return x * (p * bounded + 0.5f);
}

}  // namespace modernbert
