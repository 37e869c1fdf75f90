// GEMM of matrices that fit a core's caches: C = A B, or C += A B, accumulated in float32, or for int8 in int32.
//
//   A  [m][lda]                      row-major
//   B  [n / W][k / GROUP][W][GROUP]  packed in panels of W columns: bfloat16 in pairs of adjacent rows, as AVX-512 BF16
//                                    and AMX read it, int8 in fours, as VNNI reads it, float32 row-major
//   C  [m][ldc]                      float32
//
// m is a multiple of ROW_STEP, n is 64, 32 or PACK_WIDTH, k a multiple of 32, for int8 of 64: the AMX tile shape.
// Callers pad smaller matrices.
//
// Values of int8 have scales. Behind the k values of a row of A is its scale, and behind a panel of B are the scales of
// its columns, then INT8_ZERO times their sums, negated: the instructions multiply unsigned by signed numbers, so A is
// stored with INT8_ZERO added. A column has 4 bytes in each group, among the scales and among the sums.
#pragma once
#include <algorithm>
#include <climits>
#include <type_traits>

#include "vectors.h"
#if defined(__linux__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && !defined(MODERNBERT_NO_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#define MODERNBERT_AMX 1
#endif

namespace modernbert {

constexpr int PANEL = 64;

inline int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

template <class T>
constexpr int GROUP = 4 / sizeof(T);

template <class T>
constexpr bool IS_INT8 = std::is_same_v<T, int8>;

// Rows of a packed panel: for int8, the scales and offsets of the columns follow.
template <class T>
constexpr int packed_rows(int k) {
    return IS_INT8<T> ? k + 8 : k;
}

// The sum of products: float32, or int32.
template <class T>
using Sum = std::conditional_t<IS_INT8<T>, vint, vfloat>;

// Accumulate one group along k: one float32 product, two bfloat16 products, or four int8 products.
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

// Where the instruction adds two products in 16 bits, as AVX2's does, A has 7 bits, so that no sum overflows.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr int INT8_MOST = 127;
#else
constexpr int INT8_MOST = 63;
#endif
constexpr int INT8_ZERO = INT8_MOST + 1;

inline vint multiply_add(vint total, vfloat a, vfloat b, const int8*) {
#if defined(__AVX512VNNI__)
    return (vint)_mm512_dpbusd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
    return (vint)_mm256_dpbusd_avx_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#else
    const integers pairs = INTRINSIC(maddubs_epi16)((integers)a, (integers)b);
    return total + (vint)INTRINSIC(madd_epi16)(pairs, INTRINSIC(set1_epi16)(1));
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
    Sum<T> total[M][N] = {};
    if constexpr (IS_INT8<T>)
        for (int j = 0; j < N; ++j) {
            std::memcpy(&total[0][j], b + (k + 4) * W + j * LANES * 4, sizeof(vint));
            for (int i = 1; i < M; ++i) total[i][j] = total[0][j];
        }
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
            if constexpr (IS_INT8<T>) {
                const vfloat scale = load((const float*)(b + k * W) + j * LANES) * *(const float*)(a + i * lda + k);
                store(to, __builtin_convertvector(total[i][j], vfloat) * scale);
            } else {
                store(to, add ? load(to) + total[i][j] : total[i][j]);
            }
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
    constexpr int PART = IS_INT8<T> ? INT_MAX : BYTES_PER_BLOCK / (W * sizeof(T));
    for (int j = 0, width; j < n; j += width) {
        width = std::min(COLUMNS * LANES, n - j);
        const T* panel = b + j / W * packed_rows<T>(k) * W + j % W * GROUP<T>;
        for (int kk = 0, part; kk < k; kk += part) {
            part = std::min(PART, k - kk);
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

#define MULTIPLY_TILES(T, c, a, b) \
    if constexpr (IS_INT8<T>) _tile_dpbusd(c, a, b); else _tile_dpbf16ps(c, a, b)

// Sums of int8 products in C -> float32.
inline void scale_sums(const int8* a, int lda, const int8* b, float* c, int ldc, int m, int n, int k) {
    const float* scales = (const float*)(b + k * PANEL);
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; j += LANES) {
            vint sum, offset;
            std::memcpy(&sum, c + i * ldc + j, sizeof sum);
            std::memcpy(&offset, scales + PANEL + j, sizeof offset);
            store(c + i * ldc + j, __builtin_convertvector(sum + offset, vfloat) *
                                       (load(scales + j) * *(const float*)(a + i * lda + k)));
        }
}

template <class T>
inline void gemm_amx(const T* a, int lda, const T* b, float* c, int ldc, int m, int n, int k, bool add) {
    constexpr int DEPTH = 64 / sizeof(T);
    const int step_a = lda * sizeof(T), step_b = PANEL * 4, step_c = ldc * 4;
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
            for (int kk = 0; kk < k; kk += DEPTH) {
                const T* panel = b + kk * PANEL + j * GROUP<T>;
                _tile_loadd(6, panel, step_b);
                _tile_loadd(7, panel + 16 * GROUP<T>, step_b);
                _tile_loadd(4, a + i * lda + kk, step_a);
                MULTIPLY_TILES(T, 0, 4, 6);
                MULTIPLY_TILES(T, 1, 4, 7);
                if (two) {
                    _tile_loadd(5, a + (i + 16) * lda + kk, step_a);
                    MULTIPLY_TILES(T, 2, 5, 6);
                    MULTIPLY_TILES(T, 3, 5, 7);
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
    asm volatile("" ::: "memory");
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

// C = A B; `add` is not supported. n is at most 64.
template <int W = PANEL>
inline void multiply(const int8* a, int lda, const int8* b, float* c, int ldc, int m, int n, int k, bool) {
#if defined(MODERNBERT_AMX)
    static_assert(W == PANEL, "AMX tiles read panels of 64 columns");
    gemm_amx(a, lda, b, c, ldc, m, n, k, false);
    scale_sums(a, lda, b, c, ldc, m, n, k);
#else
    gemm_vectors<W>(a, lda, b, c, ldc, m, n, k, false);
#endif
}

}  // namespace modernbert
