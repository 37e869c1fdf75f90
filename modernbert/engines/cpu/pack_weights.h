// Pack matrices for GEMM: transposed, or in panels of columns with the rows of a group adjacent.
#pragma once
#include "gemm.h"

namespace modernbert {

// Load LANES groups of T: 32-bit words that hold one float32, two bfloat16 or four int8.
inline vu32 load_groups(const float* from, const float*) { return (vu32)load(from); }
inline vu32 load_groups(const int8* from, const int8*) {
    vu32 words;
    std::memcpy(&words, from, sizeof words);
    return words;
}
inline vu32 load_groups(const bfloat16* from, const bfloat16*) {
    vu32 words;
    std::memcpy(&words, from, sizeof words);
    return words;
}
inline vu32 load_groups(const float* from, const bfloat16*) {
    const vu16 halves[2] = {round_to_bf16(load(from)), round_to_bf16(load(from + LANES))};
    vu32 words;
    std::memcpy(&words, halves, sizeof words);
    return words;
}

inline vu16 load_bf16(const float* from) { return round_to_bf16(load(from)); }
inline vu16 load_bf16(const bfloat16* from) {
    vu16 halves;
    std::memcpy(&halves, from, sizeof halves);
    return halves;
}

// Interleave the first group of `left` rows with stride `step`; missing rows are zero.
template <class From>
inline vu32 load_row_group(const From* rows, int64_t, int left, const float*) {
    return left > 0 ? (vu32)load(rows) : vu32{};
}
template <class From>
inline vu32 load_row_group(const From* rows, int64_t step, int left, const bfloat16*) {
    const vu16 even = left > 0 ? load_bf16(rows) : vu16{}, odd = left > 1 ? load_bf16(rows + step) : vu16{};
    return __builtin_convertvector(even, vu32) | (__builtin_convertvector(odd, vu32) << 16);
}

// W columns of `num_rows` rows -> a panel, zero-padded to `padded` rows.
template <int W, class From, class T>
void pack_rows(const From* rows, int64_t step, int num_rows, int padded, T* panel) {
    for (int row = 0; row < padded; row += GROUP<T>)
        for (int j = 0; j < W; j += LANES) {
            const vu32 group = load_row_group(rows + row * step + j, step, num_rows - row, panel);
            std::memcpy(panel + row * W + j * GROUP<T>, &group, sizeof group);
        }
}

// W rows of `depth` values -> the panel of their transpose.
template <int W, class From, class T>
void pack_rows_transposed(const From* rows, int64_t step, int depth, T* panel) {
    for (int j = 0; j < W; j += LANES)
        for (int k = 0; k < depth; k += LANES * GROUP<T>) {
            vu32 tile[LANES];
            for (int r = 0; r < LANES; ++r) tile[r] = load_groups(rows + (j + r) * step + k, panel);
            transpose_tile(tile);
            for (int r = 0; r < LANES; ++r)
                std::memcpy(panel + (k + r * GROUP<T>)*W + j * GROUP<T>, &tile[r], sizeof(vu32));
        }
}

// `num_rows` rows of `width` values -> rows of their transpose, zero-padded to `padded` columns.
template <class T>
void transpose(const T* rows, int64_t step, int num_rows, int padded, int width, T* to, int64_t to_step) {
    for (int row = 0; row < padded; row += LANES * GROUP<T>)
        for (int j = 0; j < width; j += LANES) {
            vu32 tile[LANES];
            for (int r = 0; r < LANES; ++r) {
                const int here = row + r * GROUP<T>;
                tile[r] = load_row_group(rows + here * step + j, step, num_rows - here, to);
            }
            transpose_tile(tile);
            for (int r = 0; r < LANES; ++r) std::memcpy(to + (j + r) * to_step + row, &tile[r], sizeof(vu32));
        }
}

}  // namespace modernbert
