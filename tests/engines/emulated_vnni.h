// AVX-VNNI emulated with AVX2, after Intel's manual, to test its code on other processors.
//
// Included before every source (`-include`) with -D__AVXVNNI__.
#pragma once
#include <immintrin.h>

// Add four products of unsigned and signed bytes to each 32-bit sum.
inline __m256i emulated_dpbusd(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
    int totals[8];
    unsigned char x[32];
    signed char y[32];
    _mm256_storeu_si256((__m256i*)totals, sums);
    _mm256_storeu_si256((__m256i*)x, unsigned_bytes);
    _mm256_storeu_si256((__m256i*)y, signed_bytes);
    for (int i = 0; i < 32; ++i) totals[i / 4] += int(x[i]) * int(y[i]);
    return _mm256_loadu_si256((__m256i*)totals);
}

#define _mm256_dpbusd_avx_epi32 emulated_dpbusd
