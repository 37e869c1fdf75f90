// Products of matrices that lie in a core's caches: C = A B, or C += A B, in float32.
//
//   A  [m][lda]                      row after row
//   B  [n / W][k / GROUP][W][GROUP]  strips of W columns; bfloat16 in pairs of neighbouring rows, as the processor's
//                                    pair products (AVX-512 BF16, AMX) read it, float32 row after row
//   C  [m][ldc]                      float32
//
// m is a multiple of ROW_STEP, n is 64, 32 or a STRIP, k a multiple of 32: what the tiles of AMX hold. Smaller ones are
// padded.
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

inline int up_to(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

template <class T>
constexpr int GROUP = 4 / sizeof(T);

// Sum over a group of neighbouring k: one product of float32, two of bfloat16.
inline Floats multiply_add(Floats total, Floats a, Floats b, const float*) { return total + a * b; }
inline Floats multiply_add(Floats total, Floats a, Floats b, const bfloat16*) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
    Words x = (Words)a, y = (Words)b;
    total += (Floats)(x << 16) * (Floats)(y << 16);
    return total + (Floats)(x & 0xffff0000u) * (Floats)(y & 0xffff0000u);
#endif
}

// A corner of C is what the registers hold, and a strip of weights is as wide: what a corner reads lies end to end. All
// rows pass over a part of a strip while it is in the first cache, and meanwhile the next part is fetched. With AVX-512
// strips are wide enough to stream as they are.
#if defined(__AVX512F__)
constexpr int ROWS = 6, COLUMNS = 4;  // 24 accumulators, 4 vectors of B and one of A in 32 registers
constexpr int BYTES_OF_PART = 1 << 30, UNROLL = 1;
constexpr bool FETCHES = false;
#else
constexpr int ROWS = 6, COLUMNS = 2;  // 12, 2 and one in 16 registers
constexpr int BYTES_OF_PART = 1 << 14, UNROLL = 4;
constexpr bool FETCHES = true;
#endif
#if defined(MODERNBERT_AMX)
constexpr int STRIP = PANEL, ROW_STEP = 16;
#else
constexpr int STRIP = COLUMNS * LANES, ROW_STEP = 4;
#endif

// A function of its own, so that the compiler has all registers for the loop over k. Every step of it fetches `step`
// bytes more of what is `ahead`.
template <int W, int M, int N, class T>
__attribute__((noinline)) void multiply_corner(const T* a, int lda, const T* b, float* c, int ldc, int k, bool add,
                                               const T* ahead, int step) {
    constexpr int G = GROUP<T>;
    Floats total[M][N] = {};
#pragma GCC unroll UNROLL
    for (int kk = 0; kk < k / G; ++kk) {
        if (FETCHES && W == STRIP) __builtin_prefetch((const char*)ahead + kk * step);
        Floats column[N];
        for (int j = 0; j < N; ++j) std::memcpy(&column[j], b + (kk * W + j * LANES) * G, sizeof(Floats));
        for (int i = 0; i < M; ++i) {
            float group;
            std::memcpy(&group, a + i * lda + kk * G, 4);
            Floats row = spread(group);
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
inline void multiply_columns(const T* a, int lda, const T* b, float* c, int ldc, int m, int k, bool add) {
    const int step = W * 4 * ROWS / m;  // every corner fetches its share of the next part
    for (int i = 0, left; (left = m - i) > 0;) {
        const T* ahead = b + k * W + k * W * i / m;
        // Two rows are too few for the adders to be busy all the time, so that 8 are 4 and 4.
        if (left >= ROWS && left != 8) {
            multiply_corner<W, ROWS, N>(a + i * lda, lda, b, c + i * ldc, ldc, k, add, ahead, step);
            i += ROWS;
        } else {
            multiply_corner<W, 4, N>(a + i * lda, lda, b, c + i * ldc, ldc, k, add, ahead, step);
            i += 4;
        }
    }
}

template <int W, class T>
inline void multiply_in_vectors(const T* a, int lda, const T* b, float* c, int ldc, int m, int n, int k, bool add) {
    constexpr int PART = BYTES_OF_PART / (W * sizeof(T));
    for (int j = 0, width; j < n; j += width) {
        width = std::min(COLUMNS * LANES, n - j);
        const T* strip = b + j / W * k * W + j % W * GROUP<T>;
        for (int kk = 0; kk < k; kk += PART) {
            const int part = std::min(PART, k - kk);
            if (width == COLUMNS * LANES)
                multiply_columns<W, COLUMNS>(a + kk, lda, strip + kk * W, c + j, ldc, m, part, add || kk > 0);
            else
                multiply_columns<W, 2>(a + kk, lda, strip + kk * W, c + j, ldc, m, part, add || kk > 0);
        }
    }
}

#if defined(MODERNBERT_AMX)
// Tiles 0 to 3 hold a 32 by 32 corner of C, 4 and 5 rows of A, 6 and 7 columns of B; each 16 rows of 64 bytes.
struct Tiles {
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, unused[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; ++i) shape.bytes[i] = 64, shape.rows[i] = 16;
        asm volatile("" ::"r"(&shape) : "memory");  // GCC thinks the instruction reads 8 bytes of the 64
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
};

// Linux gives the tiles' room to a process that asks for it.
inline bool ask_for_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

inline void multiply_in_tiles(const bfloat16* a, int lda, const bfloat16* b, float* c, int ldc, int m, int n, int k,
                              bool add) {
    const int step_a = lda * 2, step_b = PANEL * 4, step_c = ldc * 4;
    asm volatile("" ::: "memory");  // GCC does not know that loading a tile reads memory
    for (int j = 0; j < n; j += 32) {
        int i = 0;
        for (; i < m; i += 32) {
            const bool two = m - i > 16;  // else 16 rows are left
            float* corner = c + i * ldc + j;
            if (add) {
                _tile_loadd(0, corner, step_c);
                _tile_loadd(1, corner + 16, step_c);
                if (two) {
                    _tile_loadd(2, corner + 16 * ldc, step_c);
                    _tile_loadd(3, corner + 16 * ldc + 16, step_c);
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
            _tile_stored(0, corner, step_c);
            _tile_stored(1, corner + 16, step_c);
            if (two) {
                _tile_stored(2, corner + 16 * ldc, step_c);
                _tile_stored(3, corner + 16 * ldc + 16, step_c);
            }
        }
    }
}
#else
struct Tiles {
    Tiles() {}
    ~Tiles() {}
};
inline bool ask_for_tiles() { return true; }
#endif

template <int W = PANEL>
inline void multiply(const float* a, int lda, const float* b, float* c, int ldc, int m, int n, int k, bool add) {
    multiply_in_vectors<W>(a, lda, b, c, ldc, m, n, k, add);
}

template <int W = PANEL>
inline void multiply(const bfloat16* a, int lda, const bfloat16* b, float* c, int ldc, int m, int n, int k, bool add) {
#if defined(MODERNBERT_AMX)
    static_assert(W == PANEL, "tiles read panels");
    multiply_in_tiles(a, lda, b, c, ldc, m, n, k, add);
#else
    multiply_in_vectors<W>(a, lda, b, c, ldc, m, n, k, add);
#endif
}

}  // namespace modernbert
