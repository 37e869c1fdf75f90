// GEMMs of a linear layer in training: forward, gradient of the input, gradient of the weight.
//
//   out [m][n] = rows [m][k] times packed [k][n], which is stored as [n / PACK_WIDTH][k / GROUP][PACK_WIDTH][GROUP]
//
// With a weight W [N][K]: forward is rows [T][K] times W^T, the gradient of the rows is grad [T][N] times W, and the
// gradient of the weight is grad^T [N][T] times rows. Inputs are rounded to T; accumulation is in float32. The order of
// summation depends on k alone, so neither the number of threads nor other rows change a bit of the result.
//
// n is a multiple of 64. m and k are arbitrary, since blocks and panels are zero-padded; but m is a multiple of 16
// where rows are transposed, and k of 32 where the packed matrix is.
#include <algorithm>

#include "gemm.h"
#include "interface.h"
#include "pack_weights.h"
#include "scratch_arena.h"
#include "thread_pool.h"

namespace modernbert {
namespace {

constexpr int HEIGHT = 144;          // rows of a block of A
constexpr int BYTES_PER_ROW = 1536;  // of a block of A: with its accumulators it fits L2
constexpr int TILE = 48;             // rows that are stored while their accumulators are in L1
constexpr int PANELS_PER_STEP = 768 / PACK_WIDTH;

template <class T>
constexpr int DEPTH = BYTES_PER_ROW / sizeof(T);

// Depth of packed panels: a multiple of the tile depth, at least one tile.
int padded_depth(int k) { return round_up(std::max(k, 1), 32); }

// [k][n] -> packed panels.
template <class From, class T>
void pack(const From* matrix, T* packed, int n, int k, int num_threads) {
    constexpr int DEPTH_STEP = 128;
    const int padded = padded_depth(k), num_steps = (padded + DEPTH_STEP - 1) / DEPTH_STEP;
    parallel_for(num_threads, int64_t(n / PACK_WIDTH) * num_steps, [&](int64_t item) {
        const int64_t panel = item / num_steps;
        const int first = int(item % num_steps) * DEPTH_STEP;
        pack_rows<PACK_WIDTH>(matrix + int64_t(first) * n + panel * PACK_WIDTH, n, k - first,
                              std::min(DEPTH_STEP, padded - first), packed + (panel * padded + first) * PACK_WIDTH);
    });
}

// [n][k] -> packed panels of its transpose; k is a multiple of 32.
template <class From, class T>
void pack_transposed(const From* matrix, T* packed, int n, int k, int num_threads) {
    parallel_for(num_threads, n / PACK_WIDTH, [&](int64_t panel) {
        pack_rows_transposed<PACK_WIDTH>(matrix + panel * PACK_WIDTH * k, k, k, packed + panel * PACK_WIDTH * k);
    });
}

// Copy rows [first, last) and columns [from, to) of [m][k], zero-padded.
template <class T>
void copy_block(const T* rows, int k, int first, int last, int from, int to, T* block, int step) {
    const int padded = round_up(last - first, ROW_STEP), depth = round_up(to - from, 32);
    for (int row = first; row < last; ++row) {
        T* here = block + (row - first) * step;
        std::memcpy(here, rows + int64_t(row) * k + from, (to - from) * sizeof(T));
        std::memset(here + to - from, 0, (depth - (to - from)) * sizeof(T));
    }
    for (int row = last - first; row < padded; ++row) std::memset(block + row * step, 0, depth * sizeof(T));
}

template <class Out>
void store_tile(const float* tile, Out* out, int64_t step, int height, bool add) {
    for (int row = 0; row < height; ++row, out += step, tile += PACK_WIDTH)
        for (int i = 0; i < PACK_WIDTH; i += LANES)
            store(out + i, add ? load(out + i) + load(tile + i) : load(tile + i));
}

template <class T, class Out>
struct Product {
    const T* rows;
    bool transposed;  // rows are stored as [k][m]
    const T* packed;
    Out* out;
    int m, n, k;
    bool add;
};

// Multiply a block of rows with some panels, DEPTH values of k at a time.
template <class T, class Out>
void multiply_block(const Product<T, Out>& product, int first, int height, int first_panel, int last_panel,
                    ScratchArena& memory) {
    constexpr int STEP = DEPTH<T> + 64 / int(sizeof(T));
    memory.reset(HEIGHT * STEP * sizeof(T) + size_t(HEIGHT) * PANELS_PER_STEP * PACK_WIDTH * sizeof(float));
    T* block = memory.alloc<T>(HEIGHT * STEP);
    float* acc = memory.alloc<float>(HEIGHT * PANELS_PER_STEP * PACK_WIDTH);
    const int depth = padded_depth(product.k), m = product.m, n = product.n;
    for (int from = 0; from < depth; from += DEPTH<T>) {
        const int to = std::min(depth, from + DEPTH<T>), valid = std::min(product.k, to);
        if (product.transposed)
            transpose(product.rows + int64_t(from) * m + first, m, valid - from, to - from, height, block, STEP);
        else
            copy_block(product.rows, product.k, first, first + height, from, valid, block, STEP);
        for (int panel = first_panel; panel < last_panel; ++panel)
            for (int row = 0; row < height; row += TILE) {
                const int tile_rows = std::min(TILE, height - row);
                float* tile = acc + ((panel - first_panel) * HEIGHT + row) * PACK_WIDTH;
                const T* part = product.packed + (int64_t(panel) * depth + from) * PACK_WIDTH;
                multiply<PACK_WIDTH>(block + row * STEP, STEP, part, tile, PACK_WIDTH, round_up(tile_rows, ROW_STEP),
                                     PACK_WIDTH, to - from, from > 0);
                if (to == depth)
                    store_tile(tile, product.out + int64_t(first + row) * n + panel * PACK_WIDTH, n, tile_rows,
                               product.add);
            }
    }
}

template <class T, class Out>
void multiply_rows(const Product<T, Out>& product, int num_threads) {
    const int num_panels = product.n / PACK_WIDTH, num_parts = (num_panels + PANELS_PER_STEP - 1) / PANELS_PER_STEP;
    const int min_blocks = (product.m + HEIGHT - 1) / HEIGHT;
    // With few blocks, give each thread the same number.
    const int num_blocks = min_blocks < 4 * num_threads ? round_up(min_blocks, num_threads) : min_blocks;
    const int row_multiple = product.transposed ? 16 : ROW_STEP;  // transposition works on 16 x 16 tiles
    const int block_rows =
        num_blocks ? std::min(HEIGHT, round_up((product.m + num_blocks - 1) / num_blocks, row_multiple)) : HEIGHT;
    const int num_row_blocks = (product.m + block_rows - 1) / block_rows;
    parallel_for(num_threads, int64_t(num_parts) * num_row_blocks, [&](int64_t item) {
        Tiles tiles;
        static thread_local ScratchArena memory;
        const int part = int(item / num_row_blocks), first = int(item % num_row_blocks) * block_rows;
        multiply_block(product, first, std::min(product.m - first, block_rows), part * num_panels / num_parts,
                       (part + 1) * num_panels / num_parts, memory);
    });
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

// FROM is the storage dtype of the matrix, T the dtype of the GEMM.
#define FOR_TYPES(FROM, T)                                                                                           \
    EXPORT void pack_##FROM##_##T(const FROM* matrix, T* packed, int64_t n, int64_t k, int64_t num_threads) {        \
        pack(matrix, packed, int(n), int(k), int(num_threads));                                                      \
    }                                                                                                                \
    EXPORT void pack_transposed_##FROM##_##T(const FROM* matrix, T* packed, int64_t n, int64_t k,                    \
                                             int64_t num_threads) {                                                  \
        pack_transposed(matrix, packed, int(n), int(k), int(num_threads));                                           \
    }                                                                                                                \
    EXPORT void multiply_rows_##FROM##_##T(const T* rows, int64_t transposed, const T* packed, FROM* out, int64_t m, \
                                           int64_t n, int64_t k, int64_t add, int64_t num_threads) {                 \
        const Product<T, FROM> product = {rows, transposed != 0, packed, out, int(m), int(n), int(k), add != 0};     \
        multiply_rows(product, int(num_threads));                                                                    \
    }
FOR_TYPES(float32, float32)
FOR_TYPES(float32, bfloat16)
FOR_TYPES(bfloat16, bfloat16)
