// GEMM of matrices that fit a core's caches: C = A B, or C += A B, accumulated in float32.
//
//   A  [m][lda]                      row-major
//   B  [n / W][k / GROUP][W][GROUP]  packed in panels of W columns: bfloat16 in pairs of adjacent rows, as AVX-512 BF16
//                                    and AMX read it, float32 row-major
//   C  [m][ldc]                      float32
//
// m is a multiple of ROW_STEP, n is 64, 32 or PACK_WIDTH, k a multiple of 32: the AMX tile shape. Callers pad smaller
// matrices.
#pragma once
#include <algorithm>
#include <climits>

#include "vectors.h"
#if defined(__linux__) && defined(__AMX_BF16__) && !defined(MODERNBERT_NO_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#define MODERNBERT_AMX 1
#endif

namespace modernbert {

constexpr int PANEL = 64;

inline int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

template <class T>
constexpr int GROUP = 4 / sizeof(T);

// Accumulate one group along k: one float32 product, or two bfloat16 products.
inline vfloat multiply_add(vfloat total, vfloat a, vfloat b, const float*) { return total + a * b; }
inline vfloat multiply_add(vfloat total, vfloat a, vfloat b, const bfloat16*) {
#if defined(__AVX512BF16__)
    return (vfloat)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
    vu32 x = (vu32)a, y = (vu32)b;
    total += (vfloat)(x << 16) * (vfloat)(y << 16);
    return total + (vfloat)(x & 0xffff0000u) * (vfloat)(y & 0xffff0000u);
#endif
}

// A tile of C fits the registers, and a panel of B is as wide as a tile, so a tile reads B contiguously. All rows use
// one block of a panel while it is in L1, and prefetch the next block meanwhile. With AVX-512, panels are wide enough
// for the hardware prefetcher.
#if defined(__AVX512F__)
constexpr int ROWS = 6, COLUMNS = 4;  // 24 accumulators, 4 vectors of B and one of A in 32 registers
constexpr int BYTES_PER_BLOCK = 1 << 30, UNROLL = 1;
constexpr bool PREFETCH = false;
#else
constexpr int ROWS = 6, COLUMNS = 2;  // 12, 2 and one in 16 registers
constexpr int BYTES_PER_BLOCK = 1 << 14, UNROLL = 4;
constexpr bool PREFETCH = true;
#endif
#if defined(MODERNBERT_AMX)
constexpr int PACK_WIDTH = PANEL, ROW_STEP = 16;
#else
constexpr int PACK_WIDTH = COLUMNS * LANES, ROW_STEP = 4;
#endif

// Not inlined, so that the compiler has all registers for the loop over k. Each iteration prefetches `step` more bytes
// of `ahead`.
template <int W, int M, int N, class T>
__attribute__((noinline)) void gemm_tile(const T* a, int lda, const T* b, float* c, int ldc, int k, bool add,
                                         const T* ahead, int step) {
    constexpr int G = GROUP<T>;
    vfloat total[M][N] = {};
#pragma GCC unroll UNROLL
    for (int kk = 0; kk < k / G; ++kk) {
        if (PREFETCH && W == PACK_WIDTH) __builtin_prefetch((const char*)ahead + kk * step);
        vfloat column[N];
        for (int j = 0; j < N; ++j) std::memcpy(&column[j], b + (kk * W + j * LANES) * G, sizeof(vfloat));
        for (int i = 0; i < M; ++i) {
            float group;
            std::memcpy(&group, a + i * lda + kk * G, 4);
            vfloat row = broadcast(group);
            for (int j = 0; j < N; ++j) total[i][j] = multiply_add(total[i][j], row, column[j], a);
        }
    }
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) {
            float* to = c + i * ldc + j * LANES;
            store(to, add ? load(to) + total[i][j] : total[i][j]);
        }
}

template <int W, int N, class T>
inline void gemm_columns(const T* a, int lda, const T* b, float* c, int ldc, int m, int k, bool add) {
    const int step = W * 4 * ROWS / m;  // each tile prefetches its share of the next block
    for (int i = 0, left; (left = m - i) > 0;) {
        const T* ahead = b + k * W + k * W * i / m;
        // A tile of 2 rows cannot hide the latency of FMA, so 8 rows are split 4 + 4, not 6 + 2.
        if (left >= ROWS && left != 8) {
            gemm_tile<W, ROWS, N>(a + i * lda, lda, b, c + i * ldc, ldc, k, add, ahead, step);
            i += ROWS;
        } else {
            gemm_tile<W, 4, N>(a + i * lda, lda, b, c + i * ldc, ldc, k, add, ahead, step);
            i += 4;
        }
    }
}

template <int W, class T>
inline void gemm_vectors(const T* a, int lda, const T* b, float* c, int ldc, int m, int n, int k, bool add) {
    constexpr int PART = BYTES_PER_BLOCK / (W * sizeof(T));
    for (int j = 0, width; j < n; j += width) {
        width = std::min(COLUMNS * LANES, n - j);
        const T* panel = b + j / W * k * W + j % W * GROUP<T>;
        for (int kk = 0; kk < k; kk += PART) {
            const int part = std::min(PART, k - kk);
            if (width == COLUMNS * LANES)
                gemm_columns<W, COLUMNS>(a + kk, lda, panel + kk * W, c + j, ldc, m, part, add || kk > 0);
            else
                gemm_columns<W, 2>(a + kk, lda, panel + kk * W, c + j, ldc, m, part, add || kk > 0);
        }
    }
}

#if defined(MODERNBERT_AMX)
// Tiles 0 to 3 hold a 32 x 32 block of C, 4 and 5 rows of A, 6 and 7 columns of B; each is 16 rows of 64 bytes.
struct Tiles {
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, unused[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; ++i) shape.bytes[i] = 64, shape.rows[i] = 16;
        asm volatile("" ::"r"(&shape) : "memory");  // GCC assumes that the instruction reads 8 of the 64 bytes
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
};

// Linux enables AMX tile state for a process on request.
inline bool request_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

inline void gemm_amx(const bfloat16* a, int lda, const bfloat16* b, float* c, int ldc, int m, int n, int k, bool add) {
    const int step_a = lda * 2, step_b = PANEL * 4, step_c = ldc * 4;
    asm volatile("" ::: "memory");  // GCC does not model that a tile load reads memory
    for (int j = 0; j < n; j += 32) {
        int i = 0;
        for (; i < m; i += 32) {
            const bool two = m - i > 16;  // else 16 rows are left
            float* block = c + i * ldc + j;
            if (add) {
                _tile_loadd(0, block, step_c);
                _tile_loadd(1, block + 16, step_c);
                if (two) {
                    _tile_loadd(2, block + 16 * ldc, step_c);
                    _tile_loadd(3, block + 16 * ldc + 16, step_c);
                }
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int kk = 0; kk < k; kk += 32) {
                const bfloat16* panel = b + kk * PANEL + j * 2;
                _tile_loadd(6, panel, step_b);
                _tile_loadd(7, panel + 32, step_b);
                _tile_loadd(4, a + i * lda + kk, step_a);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if (two) {
                    _tile_loadd(5, a + (i + 16) * lda + kk, step_a);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(0, block, step_c);
            _tile_stored(1, block + 16, step_c);
            if (two) {
                _tile_stored(2, block + 16 * ldc, step_c);
                _tile_stored(3, block + 16 * ldc + 16, step_c);
            }
        }
    }
}
#else
struct Tiles {
    Tiles() {}
    ~Tiles() {}
};
inline bool request_tiles() { return true; }
#endif

template <int W = PANEL>
inline void multiply(const float* a, int lda, const float* b, float* c, int ldc, int m, int n, int k, bool add) {
    gemm_vectors<W>(a, lda, b, c, ldc, m, n, k, add);
}

template <int W = PANEL>
inline void multiply(const bfloat16* a, int lda, const bfloat16* b, float* c, int ldc, int m, int n, int k, bool add) {
#if defined(MODERNBERT_AMX)
    static_assert(W == PANEL, "AMX tiles read panels of 64 columns");
    gemm_amx(a, lda, b, c, ldc, m, n, k, add);
#else
    gemm_vectors<W>(a, lda, b, c, ldc, m, n, k, add);
#endif
}

}  // namespace modernbert
