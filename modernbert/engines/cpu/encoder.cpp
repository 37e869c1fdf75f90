// Inference of all encoder layers in one call: embeddings in, hidden states out.
//
// Only attention mixes tokens. From its output to the next layer's queries, keys and values (Wo, residual, norm, Wi,
// GeGLU, Wo, residual, norm, Wqkv) rows are independent, so a thread takes a chunk of rows through all of these while
// they are in its cache. With too few rows for that, as in one short text, all threads share the same rows and claim
// panels of the weights, since reading the weights from memory is then the bottleneck.
//
//   weights   packed, [N / PACK_WIDTH][k / GROUP][PACK_WIDTH][GROUP], for int8 with the scales of gemm.h
//   hidden    [T][D]     the residual stream, float32 throughout
//   qkv       [T][3][H][K],  attn_out [T][H][K]
//
// T is the dtype between GEMMs, W that of their operands: T, or int8. A row becomes an int8 operand by itself, so
// the other rows of a batch change no bit of it.
//
// T is rounded up to ROW_STEP rows in memory, at most 16; D and F are multiples of 64.
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "interface.h"
#include "rotate_quantize.h"
#include "row_ops.h"
#include "scratch_arena.h"
#include "thread_pool.h"

namespace modernbert {
namespace {

constexpr int CHUNK = 128;           // rows of a chunk
constexpr int ROWS_PER_THREAD = 64;  // with fewer, threads share rows
constexpr int ROWS_PER_CLAIM = 4;    // by threads that share rows

// In the order of `PackedLayers` in Python.
template <class W>
struct Layer {
    const W *qkv, *out, *activated, *gate, *down;
    const float *attn_norm, *mlp_norm;
    int64_t is_global;
};

template <class W>
struct Encoder {
    const Layer<W>* layers;
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

// Rows of the residual stream, scratch buffers for intermediate values, and the number of threads that share them.
template <class T, class W>
struct Chunk {
    int first, height, padded, num_threads;
    W *normed, *gated;  // operands of GEMMs
    T* products;        // of GeGLU; `gated` itself if W is T
};

template <class Do>
void for_rows(int num_threads, int height, const Do& run) {
    parallel_for(num_threads, (height + ROWS_PER_CLAIM - 1) / ROWS_PER_CLAIM, [&](int64_t claim) {
        const int first = int(claim) * ROWS_PER_CLAIM, last = std::min(height, first + ROWS_PER_CLAIM);
        for (int row = first; row < last; ++row) run(row);
    });
}

// A row's values between a norm and its quantization.
inline float* row_scratch(int width) {
    static thread_local std::vector<float> scratch;
    scratch.resize(width);
    return scratch.data();
}

// Write rows of T as operands of a GEMM; each has a scale.
template <class T>
void quantize_rows(int num_threads, const T* rows, int height, int width, int8* to) {
    for_rows(num_threads, height, [&](int row) {
        float* scratch = row_scratch(width);
        for (int i = 0; i < width; i += LANES) store(scratch + i, load(rows + int64_t(row) * width + i));
        quantize_row(scratch, width, to + int64_t(row) * operand_stride<int8>(width));
    });
}

// Multiply rows with panels of 64 outputs, and call `use(panel, row, height, piece)` on each result [height][64].
template <class W, class Use>
void for_panels(int num_threads, const W* rows, int height, int depth, const W* weights, int num_panels,
                const Use& use) {
    const int stride = operand_stride<W>(depth);
    parallel_for(num_threads, num_panels, [&](int64_t panel) {
        Tiles tiles;
        alignas(64) static thread_local float piece[CHUNK * PANEL];
        for (int row = 0; row < height; row += CHUNK) {
            const int num_rows = std::min(CHUNK, height - row);
            multiply<PACK_WIDTH>(rows + int64_t(row) * stride, stride, weights + panel * packed_rows<W>(depth) * PANEL,
                                 piece, PANEL, num_rows, PANEL, depth, false);
            use(int(panel), row, num_rows, piece);
        }
    });
}

// hidden += rows @ weights
template <class T, class W>
void add_product(const Encoder<W>& encoder, Stream<T>& stream, const Chunk<T, W>& chunk, const W* rows, int depth,
                 const W* weights) {
    for_panels(chunk.num_threads, rows, chunk.padded, depth, weights, encoder.width / PANEL,
               [&](int panel, int row, int height, const float* piece) {
                   for (int r = 0; r < height; ++r) {
                       float* to = stream.hidden + int64_t(chunk.first + row + r) * encoder.width + panel * PANEL;
                       for (int i = 0; i < PANEL; i += LANES) store(to + i, load(to + i) + load(piece + r * PANEL + i));
                   }
               });
}

template <class T, class W, class To>
void norm_rows(const Encoder<W>& encoder, Stream<T>& stream, const Chunk<T, W>& chunk, const float* scale, To* to,
               int height) {
    const int width = encoder.width;
    for_rows(chunk.num_threads, height, [&](int row) {
        const float* from = stream.hidden + int64_t(chunk.first + row) * width;
        if constexpr (IS_INT8<To>) {
            float* scratch = row_scratch(width);
            norm_row(from, scale, encoder.eps, width, scratch);
            quantize_row(scratch, width, to + int64_t(row) * operand_stride<To>(width));
        } else {
            norm_row(from, scale, encoder.eps, width, to + int64_t(row) * width);
        }
    });
}

template <class T, class W>
void project(const Encoder<W>& encoder, Stream<T>& stream, const Chunk<T, W>& chunk, const W* weights) {
    const int width = 3 * encoder.width;
    for_panels(chunk.num_threads, chunk.normed, chunk.padded, encoder.width, weights, width / PANEL,
               [&](int panel, int row, int height, const float* piece) {
                   for (int r = 0; r < height; ++r) {
                       T* to = stream.qkv + int64_t(chunk.first + row + r) * width + panel * PANEL;
                       for (int i = 0; i < PANEL; i += LANES) store(to + i, load(piece + r * PANEL + i));
                   }
               });
}

// gated = gelu(normed @ activated) * (normed @ gate)
template <class T, class W>
void gate(const Encoder<W>& encoder, const Chunk<T, W>& chunk, const Layer<W>& layer) {
    const int stride = operand_stride<W>(encoder.width);
    for_panels(chunk.num_threads, chunk.normed, chunk.padded, encoder.width, layer.activated, encoder.feed / PANEL,
               [&](int panel, int row, int height, const float* piece) {
                   alignas(64) static thread_local float gates[CHUNK * PANEL];
                   multiply<PACK_WIDTH>(chunk.normed + int64_t(row) * stride, stride,
                                        layer.gate + int64_t(panel) * packed_rows<W>(encoder.width) * PANEL, gates,
                                        PANEL, height, PANEL, encoder.width, false);
                   for (int r = 0; r < height; ++r) {
                       T* to = chunk.products + int64_t(row + r) * encoder.feed + panel * PANEL;
                       for (int i = r * PANEL; i < (r + 1) * PANEL; i += LANES, to += LANES) {
                           const vfloat x = load(piece + i);
                           store(to, (IS_INT8<W> ? approximate_gelu(x) : gelu(x)) * load(gates + i));
                       }
                   }
               });
    if constexpr (IS_INT8<W>) quantize_rows(chunk.num_threads, chunk.products, chunk.padded, encoder.feed, chunk.gated);
}

// From the embeddings to the first layer's queries, keys and values.
template <class T, class W>
void start_layers(const Encoder<W>& encoder, Stream<T>& stream, const Chunk<T, W>& chunk, const T* embedded) {
    for_rows(chunk.num_threads, chunk.padded, [&](int row) {
        for (int i = 0; i < encoder.width; i += LANES) {
            const int64_t at = int64_t(chunk.first + row) * encoder.width + i;
            const vfloat x = row < chunk.height ? load(embedded + at) : vfloat{};
            store(stream.hidden + at, x);
            if (row >= chunk.height) store(stream.attn_out + at, vfloat{});  // no attention writes there
            if constexpr (!IS_INT8<W>) store(chunk.normed + int64_t(row) * encoder.width + i, x);
        }
    });
    if constexpr (IS_INT8<W>)
        quantize_rows(chunk.num_threads, stream.hidden + int64_t(chunk.first) * encoder.width, chunk.padded,
                      encoder.width, chunk.normed);
    project(encoder, stream, chunk, encoder.layers[0].qkv);
}

// From a layer's attention output to the next layer's queries, keys and values, or to the final norm.
template <class T, class W>
void finish_layer(const Encoder<W>& encoder, Stream<T>& stream, const Chunk<T, W>& chunk, int number) {
    const Layer<W>& layer = encoder.layers[number];
    const T* attn_out = stream.attn_out + int64_t(chunk.first) * encoder.width;
    if constexpr (IS_INT8<W>) {
        quantize_rows(chunk.num_threads, attn_out, chunk.padded, encoder.width, chunk.normed);
        add_product(encoder, stream, chunk, chunk.normed, encoder.width, layer.out);
    } else {
        add_product(encoder, stream, chunk, attn_out, encoder.width, layer.out);
    }
    norm_rows(encoder, stream, chunk, layer.mlp_norm, chunk.normed, chunk.padded);
    gate(encoder, chunk, layer);
    add_product(encoder, stream, chunk, chunk.gated, encoder.feed, layer.down);
    if (number + 1 == encoder.num_layers) {
        norm_rows(encoder, stream, chunk, encoder.final_norm, stream.out + int64_t(chunk.first) * encoder.width,
                  chunk.height);
        return;
    }
    norm_rows(encoder, stream, chunk, encoder.layers[number + 1].attn_norm, chunk.normed, chunk.padded);
    project(encoder, stream, chunk, encoder.layers[number + 1].qkv);
}

template <class T, class W, class Do>
void for_chunks(const Encoder<W>& encoder, int num_tokens, int num_threads, const Do& run) {
    const bool is_shared = num_tokens < ROWS_PER_THREAD * num_threads;
    const int min_chunks = (num_tokens + CHUNK - 1) / CHUNK;
    const int num_chunks = is_shared ? 1 : (min_chunks + num_threads - 1) / num_threads * num_threads;
    const int height = round_up((num_tokens + num_chunks - 1) / num_chunks, ROW_STEP);
    const auto run_rows = [&](int first, int threads) {
        static thread_local ScratchArena memory;
        const int64_t normed_size = int64_t(height) * operand_stride<W>(encoder.width);
        const int64_t gated_size = int64_t(height) * operand_stride<W>(encoder.feed);
        const int64_t products_size = IS_INT8<W> ? int64_t(height) * encoder.feed : 0;
        memory.reset((normed_size + gated_size) * sizeof(W) + products_size * sizeof(T) + 128);
        const int num_rows = std::min(height, num_tokens - first);
        Chunk<T, W> chunk = {first, num_rows, round_up(num_rows, ROW_STEP), threads, memory.alloc<W>(normed_size),
                             memory.alloc<W>(gated_size), nullptr};
        if constexpr (IS_INT8<W>)
            chunk.products = memory.alloc<T>(products_size);
        else
            chunk.products = chunk.gated;
        run(chunk);
    };
    if (is_shared) return run_rows(0, num_threads);
    parallel_for(num_threads, (num_tokens + height - 1) / height, [&](int64_t i) { run_rows(int(i) * height, 1); });
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

EXPORT int64_t packed_width() { return PACK_WIDTH; }
EXPORT int64_t int8_zero() { return INT8_ZERO; }

// cosines and sines are [T][K / 2]; `left` and `right` are the window of local layers.
#define DECLARE_ATTEND(T, W)                                                                                         \
    EXPORT void attend_##T##_##W(const T*, T*, float*, const float*, const float*, const int32_t*, int64_t, int64_t, \
                                 int64_t, int64_t, int64_t);
DECLARE_ATTEND(float32, float32)
DECLARE_ATTEND(bfloat16, bfloat16)
DECLARE_ATTEND(float32, int8)
DECLARE_ATTEND(bfloat16, int8)

#define FOR_TYPES(T, W)                                                                                                \
    EXPORT void encode_##T##_##W(                                                                                      \
        const T* embedded, T* out, float* hidden, T* qkv, T* attn_out, const Layer<W>* layers,                         \
        const float* final_norm, const float* global_cosines, const float* global_sines, const float* local_cosines,   \
        const float* local_sines, const int32_t* offsets, int64_t num_docs, int64_t num_tokens, int64_t num_layers,    \
        int64_t width, int64_t feed, int64_t num_heads, int64_t left, int64_t right, float eps, int64_t num_threads) { \
        typedef Chunk<T, W> Rows;                                                                                      \
        const Encoder<W> encoder = {layers, int(num_layers), final_norm, int(width), int(feed), eps};                  \
        Stream<T> stream = {hidden, qkv, attn_out, out, int(num_tokens)};                                              \
        for_chunks<T>(encoder, stream.num_tokens, int(num_threads), [&](const Rows& chunk) {                           \
            start_layers(encoder, stream, chunk, embedded);                                                            \
        });                                                                                                            \
        for (int number = 0; number < num_layers; ++number) {                                                          \
            const bool all = layers[number].is_global;                                                                 \
            attend_##T##_##W(qkv, attn_out, nullptr, all ? global_cosines : local_cosines, all ? global_sines : local_sines, \
                       offsets, num_docs, num_heads, all ? -1 : left, all ? -1 : right, num_threads);                  \
            for_chunks<T>(encoder, stream.num_tokens, int(num_threads), [&](const Rows& chunk) {                       \
                finish_layer(encoder, stream, chunk, number);                                                          \
            });                                                                                                        \
        }                                                                                                              \
    }
FOR_TYPES(float32, float32)
FOR_TYPES(bfloat16, bfloat16)
FOR_TYPES(float32, int8)
FOR_TYPES(bfloat16, int8)
