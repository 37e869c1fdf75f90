// Inference of all encoder layers in one call: embeddings in, hidden states out.
//
// Only attention mixes tokens. From its output to the next layer's queries, keys and values (Wo, residual, norm, Wi,
// GeGLU, Wo, residual, norm, Wqkv) rows are independent, so a thread takes a chunk of rows through all of these while
// they are in its cache. With too few rows for that, as in one short text, all threads share the same rows and split
// the weights, since reading the weights from memory is then the bottleneck.
//
//   weights   packed, [N / PACK_WIDTH][k / GROUP][PACK_WIDTH][GROUP]
//   hidden    [T][D]     the residual stream, float32 throughout
//   qkv       [T][3][H][K],  attn_out [T][H][K]
//
// T is rounded up to ROW_STEP rows in memory, at most 16; D and F are multiples of 64.
#include <omp.h>
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "interface.h"
#include "row_ops.h"

namespace modernbert {
namespace {

constexpr int CHUNK = 128;           // rows of a chunk
constexpr int ROWS_PER_THREAD = 64;  // with fewer, threads share rows

// In the order of `PackedLayers` in Python.
template <class T>
struct Layer {
    const T *qkv, *out, *activated, *gate, *down;
    const float *attn_norm, *mlp_norm;
    int64_t is_global;
};

template <class T>
struct Encoder {
    const Layer<T>* layers;
    int num_layers;
    const float* final_norm;
    int width, feed;
    float eps;
};

template <class T>
struct Stream {
    float* hidden;
    T *qkv, *attn_out, *out;
    int num_tokens;
};

// Threads that work on the same rows.
struct Team {
    int rank, size;
    void share(int number, int& first, int& last) const {
        const int part = (number + size - 1) / size;
        first = std::min(number, rank * part), last = std::min(number, first + part);
    }
    void wait() const {
        if (size > 1) {
#pragma omp barrier
        }
    }
};

// Rows of the residual stream, and scratch buffers for their intermediate values.
template <class T>
struct Chunk {
    int first, height, padded;
    T *normed, *gated;
};

// Multiply rows with panels of 64 outputs, and call `use(panel, row, height, piece)` on each result [height][64].
template <class T, class Use>
void for_panels(const Team& team, const T* rows, int height, int depth, const T* weights, int num_panels,
                const Use& use) {
    alignas(64) static thread_local float piece[CHUNK * PANEL];
    int first, last;
    team.share(num_panels, first, last);
    for (int panel = first; panel < last; ++panel)
        for (int row = 0; row < height; row += CHUNK) {
            const int num_rows = std::min(CHUNK, height - row);
            multiply<PACK_WIDTH>(rows + int64_t(row) * depth, depth, weights + int64_t(panel) * depth * PANEL, piece,
                                 PANEL, num_rows, PANEL, depth, false);
            use(panel, row, num_rows, piece);
        }
}

// hidden += rows @ weights
template <class T>
void add_product(const Team& team, const Encoder<T>& encoder, Stream<T>& stream, const Chunk<T>& chunk, const T* rows,
                 int depth, const T* weights) {
    for_panels(team, rows, chunk.padded, depth, weights, encoder.width / PANEL,
               [&](int panel, int row, int height, const float* piece) {
                   for (int r = 0; r < height; ++r) {
                       float* to = stream.hidden + int64_t(chunk.first + row + r) * encoder.width + panel * PANEL;
                       for (int i = 0; i < PANEL; i += LANES) store(to + i, load(to + i) + load(piece + r * PANEL + i));
                   }
               });
    team.wait();
}

template <class T>
void norm_rows(const Team& team, const Encoder<T>& encoder, Stream<T>& stream, const Chunk<T>& chunk,
               const float* scale, T* to, int height) {
    int first, last;
    team.share(height, first, last);
    for (int row = first; row < last; ++row)
        norm_row(stream.hidden + int64_t(chunk.first + row) * encoder.width, scale, encoder.eps, encoder.width,
                 to + int64_t(row) * encoder.width);
    team.wait();
}

template <class T>
void project(const Team& team, const Encoder<T>& encoder, Stream<T>& stream, const Chunk<T>& chunk, const T* weights) {
    const int width = 3 * encoder.width;
    for_panels(team, chunk.normed, chunk.padded, encoder.width, weights, width / PANEL,
               [&](int panel, int row, int height, const float* piece) {
                   for (int r = 0; r < height; ++r) {
                       T* to = stream.qkv + int64_t(chunk.first + row + r) * width + panel * PANEL;
                       for (int i = 0; i < PANEL; i += LANES) store(to + i, load(piece + r * PANEL + i));
                   }
               });
}

// gated = gelu(normed @ activated) * (normed @ gate)
template <class T>
void gate(const Team& team, const Encoder<T>& encoder, const Chunk<T>& chunk, const Layer<T>& layer) {
    alignas(64) static thread_local float gates[CHUNK * PANEL];
    for_panels(team, chunk.normed, chunk.padded, encoder.width, layer.activated, encoder.feed / PANEL,
               [&](int panel, int row, int height, const float* piece) {
                   multiply<PACK_WIDTH>(chunk.normed + int64_t(row) * encoder.width, encoder.width,
                                        layer.gate + int64_t(panel) * encoder.width * PANEL, gates, PANEL, height,
                                        PANEL, encoder.width, false);
                   for (int r = 0; r < height; ++r) {
                       T* to = chunk.gated + int64_t(row + r) * encoder.feed + panel * PANEL;
                       for (int i = r * PANEL; i < (r + 1) * PANEL; i += LANES, to += LANES)
                           store(to, gelu(load(piece + i)) * load(gates + i));
                   }
               });
    team.wait();
}

// From the embeddings to the first layer's queries, keys and values.
template <class T>
void start_layers(const Team& team, const Encoder<T>& encoder, Stream<T>& stream, const Chunk<T>& chunk,
                  const T* embedded) {
    int first, last;
    team.share(chunk.padded, first, last);
    for (int row = first; row < last; ++row)
        for (int i = 0; i < encoder.width; i += LANES) {
            const int64_t at = int64_t(chunk.first + row) * encoder.width + i;
            const vfloat x = row < chunk.height ? load(embedded + at) : vfloat{};
            store(stream.hidden + at, x);
            if (row >= chunk.height) store(stream.attn_out + at, vfloat{});  // no attention writes there
            store(chunk.normed + int64_t(row) * encoder.width + i, x);
        }
    team.wait();
    project(team, encoder, stream, chunk, encoder.layers[0].qkv);
}

// From a layer's attention output to the next layer's queries, keys and values, or to the final norm.
template <class T>
void finish_layer(const Team& team, const Encoder<T>& encoder, Stream<T>& stream, const Chunk<T>& chunk, int number) {
    const Layer<T>& layer = encoder.layers[number];
    const T* attn_out = stream.attn_out + int64_t(chunk.first) * encoder.width;
    add_product(team, encoder, stream, chunk, attn_out, encoder.width, layer.out);
    norm_rows(team, encoder, stream, chunk, layer.mlp_norm, chunk.normed, chunk.padded);
    gate(team, encoder, chunk, layer);
    add_product(team, encoder, stream, chunk, chunk.gated, encoder.feed, layer.down);
    if (number + 1 == encoder.num_layers) {
        norm_rows(team, encoder, stream, chunk, encoder.final_norm, stream.out + int64_t(chunk.first) * encoder.width,
                  chunk.height);
        return;
    }
    norm_rows(team, encoder, stream, chunk, encoder.layers[number + 1].attn_norm, chunk.normed, chunk.padded);
    project(team, encoder, stream, chunk, encoder.layers[number + 1].qkv);
}

template <class T, class Do>
void for_chunks(const Encoder<T>& encoder, int num_tokens, int num_threads, const Do& run) {
    const bool is_shared = num_tokens < ROWS_PER_THREAD * num_threads;
    const int min_chunks = (num_tokens + CHUNK - 1) / CHUNK;
    const int num_chunks = is_shared ? 1 : (min_chunks + num_threads - 1) / num_threads * num_threads;
    const int height = round_up((num_tokens + num_chunks - 1) / num_chunks, ROW_STEP);
    const int64_t scratch_size = int64_t(height) * (encoder.width + encoder.feed);
    static thread_local std::vector<T> shared_scratch;
    if (is_shared) shared_scratch.resize(scratch_size);
    T* const shared_data = shared_scratch.data();
#pragma omp parallel num_threads(num_threads)
    {
        Tiles tiles;
        static thread_local std::vector<T> private_scratch;
        if (!is_shared) private_scratch.resize(scratch_size);
        const auto chunk_at = [&](int first, T* memory) {
            const int num_rows = std::min(height, num_tokens - first);
            return Chunk<T>{first, num_rows, round_up(num_rows, ROW_STEP), memory,
                            memory + int64_t(height) * encoder.width};
        };
        if (is_shared) {
            run(Team{omp_get_thread_num(), omp_get_num_threads()}, chunk_at(0, shared_data));
        } else {
#pragma omp for schedule(dynamic)
            for (int first = 0; first < num_tokens; first += height)
                run(Team{0, 1}, chunk_at(first, private_scratch.data()));
        }
    }
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

EXPORT int64_t packed_width() { return PACK_WIDTH; }

// cosines and sines are [T][K / 2]; `left` and `right` are the window of local layers.
#define FOR_TYPE(T)                                                                                                    \
    EXPORT void attend_##T(const T*, T*, float*, const float*, const float*, const int32_t*, int64_t, int64_t,         \
                           int64_t, int64_t, int64_t);                                                                 \
    EXPORT void encode_##T(const T* embedded, T* out, float* hidden, T* qkv, T* attn_out, const Layer<T>* layers,      \
                           const float* final_norm, const float* global_cosines, const float* global_sines,            \
                           const float* local_cosines, const float* local_sines, const int32_t* offsets,               \
                           int64_t num_docs, int64_t num_tokens, int64_t num_layers, int64_t width, int64_t feed,      \
                           int64_t num_heads, int64_t left, int64_t right, float eps, int64_t num_threads) {           \
        const Encoder<T> encoder = {layers, int(num_layers), final_norm, int(width), int(feed), eps};                  \
        Stream<T> stream = {hidden, qkv, attn_out, out, int(num_tokens)};                                              \
        for_chunks(encoder, stream.num_tokens, int(num_threads), [&](const Team& team, const Chunk<T>& chunk) {        \
            start_layers(team, encoder, stream, chunk, embedded);                                                      \
        });                                                                                                            \
        for (int number = 0; number < num_layers; ++number) {                                                          \
            const bool all = layers[number].is_global;                                                                 \
            attend_##T(qkv, attn_out, nullptr, all ? global_cosines : local_cosines, all ? global_sines : local_sines, \
                       offsets, num_docs, num_heads, all ? -1 : left, all ? -1 : right, num_threads);                  \
            for_chunks(encoder, stream.num_tokens, int(num_threads), [&](const Team& team, const Chunk<T>& chunk) {    \
                finish_layer(team, encoder, stream, chunk, number);                                                    \
            });                                                                                                        \
        }                                                                                                              \
    }
FOR_TYPE(float32)
FOR_TYPE(bfloat16)
