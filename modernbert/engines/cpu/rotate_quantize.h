// Rows as int8 operands of a GEMM: rotated by Hadamard matrices, and scaled by their largest number.
//
// The rotation spreads an outlier over its block, so that it does not take the range of all other numbers. Weights are
// rotated once, which cancels it: (x H) (H W) = x W times the size of a block. Source: Ashkboos et al. 2024 (QuaRot).
#pragma once
#include "pack_weights.h"

namespace modernbert {

// Numbers per rotated block: 128, or 64 where the width is no multiple of it.
inline int rotation_block(int width) { return width % 128 ? 64 : 128; }

// Stride of a row of `width` values as the left operand of a GEMM: for int8, its scale is behind the values.
template <class T>
constexpr int operand_stride(int width) {
    return IS_INT8<T> ? width + 64 : width;
}

// Add and subtract lanes whose numbers differ in one bit.
template <int BIT>
inline vfloat butterfly(vfloat x) {
    vint partner;
    vfloat sign;
    for (int lane = 0; lane < LANES; ++lane) partner[lane] = lane ^ BIT, sign[lane] = lane & BIT ? -1.0f : 1.0f;
    return x * sign + __builtin_shuffle(x, partner);
}

// x H, for the Hadamard matrix H of N x N, without the factor that keeps lengths. In place.
template <int N>
inline void rotate_block(float* values) {
    constexpr int NUMBER = N / LANES;
    vfloat x[NUMBER];
    for (int i = 0; i < NUMBER; ++i) {
        x[i] = butterfly<4>(butterfly<2>(butterfly<1>(load(values + i * LANES))));
        if constexpr (LANES > 8) x[i] = butterfly<8>(x[i]);
    }
#pragma GCC unroll 4
    for (int step = 1; step < NUMBER; step *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < NUMBER; ++i)
            if (!(i & step)) {
                const vfloat first = x[i], second = x[i + step];
                x[i] = first + second, x[i + step] = first - second;
            }
    for (int i = 0; i < NUMBER; ++i) store(values + i * LANES, x[i]);
}

// Rotate a row of float32 in place, write it as int8 values up to `most_value` with `zero` added, and return their scale. A
// number that is not finite makes the scale NaN.
inline float quantize_values(float* row, int width, int8* to, int most_value, int zero) {
    vfloat most = {}, not_finite = {};
    const int block = rotation_block(width);
    for (int at = 0; at < width; at += block) {
        if (block == 128)
            rotate_block<128>(row + at);
        else
            rotate_block<64>(row + at);
        not_finite += load(row + at) - load(row + at);
        for (int i = at; i < at + block; i += LANES) {
            const vfloat x = load(row + i);
            most = max(max(x, -x), most);
        }
    }
    const float largest = hmax(most), inverse = largest > 1e-30f ? most_value / largest : 0.0f;
    // Adding 1.5 * 2^23 rounds to an integer, in the low bits.
    const vfloat shift = broadcast(12582912.0f + zero);
    for (int i = 0; i < width; i += LANES) store_low_bytes(to + i, (vint)(load(row + i) * inverse + shift));
    return largest / most_value + hsum(not_finite);
}

// Write a row of float32, which is overwritten, as the left operand of a GEMM.
inline void quantize_row(float* row, int width, int8* to) {
    const float scale = quantize_values(row, width, to, INT8_MOST, INT8_ZERO);
    std::memcpy(to + width, &scale, sizeof scale);
}

// Write PANEL rows of `depth` values, which are overwritten, as the packed panel of their transpose.
inline void quantize_panel(float* rows, int depth, int8* panel, int8* scratch) {
    float* scales = (float*)(panel + depth * PANEL);
    int32_t* offsets = (int32_t*)scales + PANEL;
    for (int row = 0; row < PANEL; ++row) {
        int8* values = scratch + row * depth;
        scales[row] = quantize_values(rows + row * depth, depth, values, 127, 0) / rotation_block(depth);
        int sum = 0;
        for (int i = 0; i < depth; ++i) sum += values[i];
        offsets[row] = -INT8_ZERO * sum;
    }
    pack_rows_transposed<PANEL>(scratch, depth, depth, panel);
}

}  // namespace modernbert
