// AMX tiles emulated in plain C++, after Intel's manual, to test the tile code on other processors.
//
// Included before every source (`-include`) with -D__AMX_BF16__; it replaces the intrinsics.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated {

struct State {
    bool configured = false;
    uint8_t rows[8];
    uint16_t bytes[8];
    uint8_t tile[8][16][64];
};
inline thread_local State state;

inline void require(bool condition) {
    if (!condition) std::abort();  // a processor would raise #UD or #GP
}

inline void configure(const void* shape) {
    const uint8_t* config = (const uint8_t*)shape;
    require(config[0] == 1 && config[1] == 0);
    for (int i = 2; i < 16; ++i) require(config[i] == 0);
    for (int t = 0; t < 8; ++t) {
        std::memcpy(&state.bytes[t], config + 16 + 2 * t, 2);
        state.rows[t] = config[48 + t];
        require(state.rows[t] <= 16 && state.bytes[t] <= 64);
    }
    for (int i = 32; i < 48; ++i) require(config[i] == 0);
    for (int i = 56; i < 64; ++i) require(config[i] == 0);
    state.configured = true;
    std::memset(state.tile, 0, sizeof state.tile);
}

inline void load(int t, const void* base, int64_t stride) {
    require(state.configured);
    for (int r = 0; r < state.rows[t]; ++r) std::memcpy(state.tile[t][r], (const char*)base + r * stride, state.bytes[t]);
}

inline void store(int t, void* base, int64_t stride) {
    require(state.configured);
    for (int r = 0; r < state.rows[t]; ++r) std::memcpy((char*)base + r * stride, state.tile[t][r], state.bytes[t]);
}

inline void zero(int t) {
    require(state.configured);
    std::memset(state.tile[t], 0, sizeof state.tile[t]);
}

inline float widened(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

// c[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]
inline void multiply(int c, int a, int b) {
    require(state.configured && c != a && a != b && c != b);
    require(state.rows[c] == state.rows[a] && state.bytes[a] == state.rows[b] * 4 && state.bytes[c] == state.bytes[b]);
    for (int m = 0; m < state.rows[c]; ++m)
        for (int n = 0; n < state.bytes[c] / 4; ++n) {
            float total;
            std::memcpy(&total, state.tile[c][m] + 4 * n, 4);
            for (int k = 0; k < state.rows[b]; ++k)
                for (int half = 0; half < 2; ++half) {
                    uint16_t x, y;
                    std::memcpy(&x, state.tile[a][m] + 4 * k + 2 * half, 2);
                    std::memcpy(&y, state.tile[b][k] + 4 * n + 2 * half, 2);
                    total += widened(x) * widened(y);
                }
            std::memcpy(state.tile[c][m] + 4 * n, &total, 4);
        }
}

// c[m][n] += a[m][4k + i] b[k][4n + i], unsigned times signed bytes
inline void multiply_bytes(int c, int a, int b) {
    require(state.configured && c != a && a != b && c != b);
    require(state.rows[c] == state.rows[a] && state.bytes[a] == state.rows[b] * 4 && state.bytes[c] == state.bytes[b]);
    for (int m = 0; m < state.rows[c]; ++m)
        for (int n = 0; n < state.bytes[c] / 4; ++n) {
            int32_t total;
            std::memcpy(&total, state.tile[c][m] + 4 * n, 4);
            for (int k = 0; k < state.rows[b]; ++k)
                for (int i = 0; i < 4; ++i)
                    total += int32_t(state.tile[a][m][4 * k + i]) * int32_t(int8_t(state.tile[b][k][4 * n + i]));
            std::memcpy(state.tile[c][m] + 4 * n, &total, 4);
        }
}

inline void release() { state.configured = false; }

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadd(tile, base, stride) emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated::store(tile, base, stride)
#define _tile_zero(tile) emulated::zero(tile)
#define _tile_dpbf16ps(c, a, b) emulated::multiply(c, a, b)
#define _tile_dpbusd(c, a, b) emulated::multiply_bytes(c, a, b)
#define _tile_loadconfig(shape) emulated::configure(shape)
#define _tile_release() emulated::release()
#define syscall(...) 0
