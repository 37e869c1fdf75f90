// Matrices as products read them: turned over, or in strips of columns with their groups of rows side by side.
#pragma once
#include "products.h"

namespace modernbert {

// A vector of numbers in memory, in groups of T: words of one float32 or of two bfloat16.
inline Words words_of(const float* from, const float*) { return (Words)load(from); }
inline Words words_of(const bfloat16* from, const bfloat16*) {
    Words words;
    std::memcpy(&words, from, sizeof words);
    return words;
}
inline Words words_of(const float* from, const bfloat16*) {
    const Halves halves[2] = {round_to_halves(load(from)), round_to_halves(load(from + LANES))};
    Words words;
    std::memcpy(&words, halves, sizeof words);
    return words;
}

inline Halves halves_of(const float* from) { return round_to_halves(load(from)); }
inline Halves halves_of(const bfloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return halves;
}

// Of `left` rows in steps of `step`, the first group, side by side; what is missing is zero.
template <class From>
inline Words group_of_rows(const From* rows, int64_t, int left, const float*) {
    return left > 0 ? (Words)load(rows) : Words{};
}
template <class From>
inline Words group_of_rows(const From* rows, int64_t step, int left, const bfloat16*) {
    const Halves even = left > 0 ? halves_of(rows) : Halves{}, odd = left > 1 ? halves_of(rows + step) : Halves{};
    return __builtin_convertvector(even, Words) | (__builtin_convertvector(odd, Words) << 16);
}

// W columns of `num_rows` rows -> a strip, filled up with zeros to `padded` rows.
template <int W, class From, class T>
void strip_of_rows(const From* rows, int64_t step, int num_rows, int padded, T* strip) {
    for (int row = 0; row < padded; row += GROUP<T>)
        for (int j = 0; j < W; j += LANES) {
            const Words group = group_of_rows(rows + row * step + j, step, num_rows - row, strip);
            std::memcpy(strip + row * W + j * GROUP<T>, &group, sizeof group);
        }
}

// W rows of `depth` numbers -> the strip of their transpose.
template <int W, class From, class T>
void strip_of_transpose(const From* rows, int64_t step, int depth, T* strip) {
    for (int j = 0; j < W; j += LANES)
        for (int k = 0; k < depth; k += LANES * GROUP<T>) {
            Words square[LANES];
            for (int r = 0; r < LANES; ++r) square[r] = words_of(rows + (j + r) * step + k, strip);
            transpose_square(square);
            for (int r = 0; r < LANES; ++r)
                std::memcpy(strip + (k + r * GROUP<T>) * W + j * GROUP<T>, &square[r], sizeof(Words));
        }
}

// `num_rows` rows of `width` numbers -> rows of their transpose, filled up with zeros to `padded` columns.
template <class T>
void transpose(const T* rows, int64_t step, int num_rows, int padded, int width, T* to, int64_t to_step) {
    for (int row = 0; row < padded; row += LANES * GROUP<T>)
        for (int j = 0; j < width; j += LANES) {
            Words square[LANES];
            for (int r = 0; r < LANES; ++r) {
                const int here = row + r * GROUP<T>;
                square[r] = group_of_rows(rows + here * step + j, step, num_rows - here, to);
            }
            transpose_square(square);
            for (int r = 0; r < LANES; ++r) std::memcpy(to + (j + r) * to_step + row, &square[r], sizeof(Words));
        }
}

}  // namespace modernbert
