// Vectors as wide as the processor's, and numbers in memory as float or bfloat16.
//
// The vector types of GCC and Clang keep this free of any one instruction set. Only what they have no word for names
// an instruction, where there is one.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace modernbert {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

typedef float float32;
struct bfloat16 {
    uint16_t bits;
};

// Less zero, which GCC knows to be x; plus zero would be an addition, since it makes 0 of -0.
inline Floats spread(float x) { return x - Floats{}; }

inline Floats load(const float* p) {
    Floats x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline Floats load(const bfloat16* p) {
    Halves half;
    std::memcpy(&half, p, sizeof half);
    return (Floats)(__builtin_convertvector(half, Words) << 16);
}

inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }

// Round to the nearest bfloat16, ties to even; what is not a number stays so.
inline Halves round_to_halves(Floats x) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
    Words bits = (Words)x;
    Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
    Words safe = (x == x) ? rounded : (bits | 0x400000);
    return __builtin_convertvector(safe >> 16, Halves);
#endif
}

inline void store(bfloat16* p, Floats x) {
    Halves half = round_to_halves(x);
    std::memcpy(p, &half, sizeof half);
}

// Two vectors, one behind the other.
inline void store(float* p, Floats x, Floats y) { store(p, x), store(p + LANES, y); }
inline void store(bfloat16* p, Floats x, Floats y) {
#if defined(__AVX512BF16__)
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
    std::memcpy(p, &both, sizeof both);
#else
    store(p, x), store(p + LANES, y);
#endif
}

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Where `a` is not a number, `b`.
inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#endif
}

inline Floats square_root(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_sqrt_ps((__m512)x);
#else
    return (Floats)_mm256_sqrt_ps((__m256)x);
#endif
}

inline float sum(Floats x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return two[0] + two[1];
#endif
}

inline float largest(Floats x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return two[0] > two[1] ? two[0] : two[1];
#endif
}

// e^x within two units of the last place; 0 below -87, which is where float32 ends. Cephes' expf, Moshier 1989.
inline Floats exponential(Floats x) {
    const Floats shift = spread(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    Floats bounded = x < -87.0f ? spread(-87.0f) : x;
    bounded = bounded > 88.0f ? spread(88.0f) : bounded;
    Floats turns = bounded * 1.44269504088896341f + shift;
    Ints exponent = ((Ints)turns - (Ints)shift) << 23;
    Floats whole = turns - shift;
    Floats r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    Floats scaled = (Floats)((Ints)p + exponent);
    // The comparison is written so that what is not a number passes on.
    return x < -87.0f ? Floats{} : (x == x ? scaled : x);
}

// 2^x of finite x up to 0, as near as T asks: within 7.5e-8 of it for float32, within 7.5e-5 for bfloat16, whose own
// rounding is 2e-3. 0 far below -126, where float32 ends; what is not a number passes on. The polynomials are minimax on
// half a turn.
template <class T>
inline Floats power_of_two(Floats x) {
#if defined(__AVX512F__)
    const Floats whole = (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    // Adding 1.5 * 2^23 rounds to a whole number; with 127, its last bits are the exponent of its power, 0 at -127.
    const Floats shift = spread(12582912.0f + 127.0f);
    x = larger(spread(-127.0f), x);
    const Floats turns = x + shift, whole = turns - shift;
#endif
    const Floats r = x - whole;
    Floats p;
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
    return (Floats)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return p * (Floats)((Ints)turns << 23);
#endif
}

// Turn a square of LANES by LANES words over: interleave rows i and i + LANES / 2, as often as it takes.
inline void transpose_square(Words rows[LANES]) {
#if defined(__AVX512F__)
    const Words low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
#else
    const Words low = {0, 8, 1, 9, 2, 10, 3, 11}, high = low + 4;
#endif
    for (int width = LANES; width > 1; width /= 2) {
        Words next[LANES];
        for (int i = 0; i < LANES / 2; ++i) {
            next[2 * i] = __builtin_shuffle(rows[i], rows[i + LANES / 2], low);
            next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + LANES / 2], high);
        }
        std::memcpy(rows, next, sizeof next);
    }
}

}  // namespace modernbert
