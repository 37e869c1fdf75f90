// SIMD vectors of the processor's width; values in memory are float32, bfloat16 or int8.
//
// Arithmetic uses the vector extensions of GCC; other operations use intrinsics.
#pragma once
#include <immintrin.h>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace modernbert {

#if defined(__AVX512F__)
constexpr int LANES = 16;
typedef __m512 native;
typedef __m512i integers;
#define INTRINSIC(name) _mm512_##name
#else
constexpr int LANES = 8;
typedef __m256 native;
typedef __m256i integers;
#define INTRINSIC(name) _mm256_##name
#endif
typedef float vfloat __attribute__((vector_size(LANES * 4)));
typedef int32_t vint __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu32 __attribute__((vector_size(LANES * 4)));
typedef uint16_t vu16 __attribute__((vector_size(LANES * 2)));

typedef float float32;
typedef int8_t int8;
struct bfloat16 {
    uint16_t bits;
};

// Subtract zero: GCC folds this to x. It cannot fold x + 0, since -0 + 0 is 0.
inline vfloat broadcast(float x) { return x - vfloat{}; }

inline vfloat load(const float* p) {
    vfloat x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline vfloat load(const bfloat16* p) {
    vu16 half;
    std::memcpy(&half, p, sizeof half);
    return (vfloat)(__builtin_convertvector(half, vu32) << 16);
}

inline void store(float* p, vfloat x) { std::memcpy(p, &x, sizeof x); }

// Round to the nearest bfloat16, ties to even; NaN stays NaN.
inline vu16 round_to_bf16(vfloat x) {
#if defined(__AVX512BF16__)
    return (vu16)_mm512_cvtneps_pbh((__m512)x);
#else
    vu32 bits = (vu32)x;
    vu32 rounded = bits + 0x7fff + ((bits >> 16) & 1);
    vu32 safe = (x == x) ? rounded : (bits | 0x400000);
    return __builtin_convertvector(safe >> 16, vu16);
#endif
}

inline void store(bfloat16* p, vfloat x) {
    vu16 half = round_to_bf16(x);
    std::memcpy(p, &half, sizeof half);
}

// Store the low byte of each lane.
inline void store_low_bytes(int8* p, vint x) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm512_cvtepi32_epi8((__m512i)x);
    std::memcpy(p, &bytes, LANES);
#else
    const __m128i first_bytes = _mm_set1_epi32(0x0c080400);
    const __m256i four = _mm256_shuffle_epi8((__m256i)x, _mm256_broadcastsi128_si256(first_bytes));
    const __m128i bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    std::memcpy(p, &bytes, LANES);
#endif
}

// Store two adjacent vectors.
inline void store(float* p, vfloat x, vfloat y) { store(p, x), store(p + LANES, y); }
inline void store(bfloat16* p, vfloat x, vfloat y) {
#if defined(__AVX512BF16__)
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
    std::memcpy(p, &both, sizeof both);
#else
    store(p, x), store(p + LANES, y);
#endif
}

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Where `a` is NaN, `b`.
inline vfloat max(vfloat a, vfloat b) { return (vfloat)INTRINSIC(max_ps)((native)a, (native)b); }
inline vfloat min(vfloat a, vfloat b) { return (vfloat)INTRINSIC(min_ps)((native)a, (native)b); }

inline vfloat vsqrt(vfloat x) { return (vfloat)INTRINSIC(sqrt_ps)((native)x); }

inline float hsum(vfloat x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return two[0] + two[1];
#endif
}

inline float hmax(vfloat x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return two[0] > two[1] ? two[0] : two[1];
#endif
}

// e^x within 2 ulp; 0 below -87, where float32 underflows. Source: expf of Cephes, Moshier 1989.
inline vfloat vexp(vfloat x) {
    const vfloat shift = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vfloat bounded = x < -87.0f ? broadcast(-87.0f) : x;
    bounded = bounded > 88.0f ? broadcast(88.0f) : bounded;
    vfloat scaled_x = bounded * 1.44269504088896341f + shift;
    vint exponent = ((vint)scaled_x - (vint)shift) << 23;
    vfloat whole = scaled_x - shift;
    vfloat r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
    vfloat p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    vfloat scaled = (vfloat)((vint)p + exponent);
    // NaN compares unequal to itself and is passed through.
    return x < -87.0f ? vfloat{} : (x == x ? scaled : x);
}

// 2^x for x <= 0, to the precision of T: relative error 7.5e-8 for float32, 7.5e-5 for bfloat16 (whose own rounding is
// 2e-3). 0 far below -126, where float32 underflows; NaN is passed through. Minimax polynomials on [-1/2, 1/2].
template <class T>
inline vfloat vexp2(vfloat x) {
#if defined(__AVX512F__)
    const vfloat whole = (vfloat)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    // Adding 1.5 * 2^23 rounds to an integer; with 127 added, the low bits are the biased exponent of 2^x, 0 at -127.
    const vfloat shift = broadcast(12582912.0f + 127.0f);
    x = max(broadcast(-127.0f), x);
    const vfloat scaled_x = x + shift, whole = scaled_x - shift;
#endif
    const vfloat r = x - whole;
    vfloat p;
    if (sizeof(T) == 4) {
        p = r * 1.327645999e-3f + 9.675541091e-3f;
        p = p * r + 5.550713309e-2f;
        p = p * r + 2.402211973e-1f;
        p = p * r + 6.931469671e-1f;
        p = p * r + 1.000000072f;
    } else {
        p = r * 5.517168415e-2f + 2.426111216e-1f;
        p = p * r + 6.932609822e-1f;
        p = p * r + 9.999280735e-1f;
    }
#if defined(__AVX512F__)
    return (vfloat)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return p * (vfloat)((vint)scaled_x << 23);
#endif
}

// Transpose a LANES x LANES tile of 32-bit words: interleave rows i and i + LANES / 2, log2(LANES) times.
inline void transpose_tile(vu32 rows[LANES]) {
#if defined(__AVX512F__)
    const vu32 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
#else
    const vu32 low = {0, 8, 1, 9, 2, 10, 3, 11}, high = low + 4;
#endif
    for (int width = LANES; width > 1; width /= 2) {
        vu32 next[LANES];
        for (int i = 0; i < LANES / 2; ++i) {
            next[2 * i] = __builtin_shuffle(rows[i], rows[i + LANES / 2], low);
            next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + LANES / 2], high);
        }
        std::memcpy(rows, next, sizeof next);
    }
}

}  // namespace modernbert
