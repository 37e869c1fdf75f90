// The products of a linear layer in training: its rows times its weights, and both ways back.
//
//   out [m][n] = rows [m][k] times a matrix [k][n], which lies in strips, [n / STRIP][k / GROUP][STRIP][GROUP]
//
// With weights W [N][K] of N outputs: rows [T][K] times W turned over, gradients [T][N] times W as it lies, and
// gradients turned over, [N][T], times rows as they lie. What multiplies is rounded to T; sums are float32 to the end.
// The order in which a number is summed depends on nothing but k, so that neither threads nor other rows change a bit
// of it.
//
// n is a multiple of 64. m and k are any, since blocks and strips are filled up with zeros; but where rows are turned
// over, m is a multiple of 16, and where a matrix is, k is one of 32.
#include <algorithm>

#include "interface.h"
#include "products.h"
#include "room.h"
#include "strips.h"

namespace modernbert {
namespace {

constexpr int HEIGHT = 144;         // rows of a block
constexpr int BYTES_OF_ROW = 1536;  // and how deep it is: with its sums it lies in the second cache
constexpr int TILE = 48;            // rows whose sums are handed on while they are in the first
constexpr int STRIPS_AT_A_TIME = 768 / STRIP;

template <class T>
constexpr int DEPTH = BYTES_OF_ROW / sizeof(T);

// Rows of strips: as many as tiles want, and some even where nothing is summed.
int depth_of(int k) { return up_to(std::max(k, 1), 32); }

// [k][n] -> strips.
template <class From, class T>
void lay(const From* matrix, T* strips, int n, int k, int num_threads) {
    const int padded = depth_of(k);
#pragma omp parallel for collapse(2) num_threads(num_threads) schedule(static)
    for (int strip = 0; strip < n / STRIP; ++strip)
        for (int first = 0; first < padded; first += 128)
            strip_of_rows<STRIP>(matrix + int64_t(first) * n + strip * STRIP, n, k - first,
                                 std::min(128, padded - first), strips + (int64_t(strip) * padded + first) * STRIP);
}

// [n][k] -> the strips of its transpose; k is a multiple of 32.
template <class From, class T>
void lay_turned(const From* matrix, T* strips, int n, int k, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int strip = 0; strip < n / STRIP; ++strip)
        strip_of_transpose<STRIP>(matrix + int64_t(strip) * STRIP * k, k, k, strips + int64_t(strip) * STRIP * k);
}

// Rows [first, last) and columns [from, to) of [m][k], with rows of zeros below.
template <class T>
void take(const T* rows, int k, int first, int last, int from, int to, T* block, int step) {
    const int padded = up_to(last - first, ROW_STEP), depth = up_to(to - from, 32);
    for (int row = first; row < last; ++row) {
        T* here = block + (row - first) * step;
        std::memcpy(here, rows + int64_t(row) * k + from, (to - from) * sizeof(T));
        std::memset(here + to - from, 0, (depth - (to - from)) * sizeof(T));
    }
    for (int row = last - first; row < padded; ++row) std::memset(block + row * step, 0, depth * sizeof(T));
}

template <class Out>
void hand_on(const float* tile, Out* out, int64_t step, int height, bool add) {
    for (int row = 0; row < height; ++row, out += step, tile += STRIP)
        for (int i = 0; i < STRIP; i += LANES) store(out + i, add ? load(out + i) + load(tile + i) : load(tile + i));
}

template <class T, class Out>
struct Product {
    const T* rows;
    bool is_turned;  // rows are given by their transpose
    const T* strips;
    Out* out;
    int m, n, k;
    bool add;
};

// Some rows times some strips, a depth at a time.
template <class T, class Out>
void multiply_block(const Product<T, Out>& product, int first, int height, int first_strip, int last_strip,
                    Room& memory) {
    constexpr int STEP = DEPTH<T> + 64 / int(sizeof(T));
    memory.begin(HEIGHT * STEP * sizeof(T) + size_t(HEIGHT) * STRIPS_AT_A_TIME * STRIP * sizeof(float));
    T* block = memory.cut<T>(HEIGHT * STEP);
    float* sums = memory.cut<float>(HEIGHT * STRIPS_AT_A_TIME * STRIP);
    const int depth = depth_of(product.k), m = product.m, n = product.n;
    for (int from = 0; from < depth; from += DEPTH<T>) {
        const int to = std::min(depth, from + DEPTH<T>), real = std::min(product.k, to);
        if (product.is_turned)
            transpose(product.rows + int64_t(from) * m + first, m, real - from, to - from, height, block, STEP);
        else
            take(product.rows, product.k, first, first + height, from, real, block, STEP);
        for (int strip = first_strip; strip < last_strip; ++strip)
            for (int row = 0; row < height; row += TILE) {
                const int some = std::min(TILE, height - row);
                float* tile = sums + ((strip - first_strip) * HEIGHT + row) * STRIP;
                const T* part = product.strips + (int64_t(strip) * depth + from) * STRIP;
                multiply<STRIP>(block + row * STEP, STEP, part, tile, STRIP, up_to(some, ROW_STEP), STRIP, to - from,
                                from > 0);
                if (to == depth)
                    hand_on(tile, product.out + int64_t(first + row) * n + strip * STRIP, n, some, product.add);
            }
    }
}

template <class T, class Out>
void multiply_rows(const Product<T, Out>& product, int num_threads) {
    const int num_strips = product.n / STRIP, num_parts = (num_strips + STRIPS_AT_A_TIME - 1) / STRIPS_AT_A_TIME;
    const int least = (product.m + HEIGHT - 1) / HEIGHT;
    // Of a few blocks each thread gets as many.
    const int even = least < 4 * num_threads ? up_to(least, num_threads) : least;
    const int unit = product.is_turned ? 16 : ROW_STEP;  // what is turned over comes in squares
    const int most = even ? std::min(HEIGHT, up_to((product.m + even - 1) / even, unit)) : HEIGHT;
#pragma omp parallel num_threads(num_threads)
    {
        Tiles tiles;
        static thread_local Room memory;
#pragma omp for collapse(2) schedule(dynamic)
        for (int part = 0; part < num_parts; ++part)
            for (int first = 0; first < product.m; first += most)
                multiply_block(product, first, std::min(product.m - first, most), part * num_strips / num_parts,
                               (part + 1) * num_strips / num_parts, memory);
    }
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

// FROM is what a matrix is kept in, T what multiplies.
#define FOR_TYPES(FROM, T)                                                                                            \
    EXPORT void lay_##FROM##_##T(const FROM* matrix, T* strips, int64_t n, int64_t k, int64_t num_threads) {          \
        lay(matrix, strips, int(n), int(k), int(num_threads));                                                        \
    }                                                                                                                 \
    EXPORT void lay_turned_##FROM##_##T(const FROM* matrix, T* strips, int64_t n, int64_t k, int64_t num_threads) {   \
        lay_turned(matrix, strips, int(n), int(k), int(num_threads));                                                 \
    }                                                                                                                 \
    EXPORT void multiply_rows_##FROM##_##T(const T* rows, int64_t is_turned, const T* strips, FROM* out, int64_t m,   \
                                           int64_t n, int64_t k, int64_t add, int64_t num_threads) {                  \
        const Product<T, FROM> product = {rows, is_turned != 0, strips, out, int(m), int(n), int(k), add != 0};       \
        multiply_rows(product, int(num_threads));                                                                     \
    }
FOR_TYPES(float32, float32)
FOR_TYPES(float32, bfloat16)
FOR_TYPES(bfloat16, bfloat16)
