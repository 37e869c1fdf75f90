// Attention over packed documents, forward and backward; RoPE is applied inside.
//
//   qkv             [T][3][H][K]  queries, keys, values of the projection, before RoPE
//   attn_out           [T][H][K]
//   lse             [T][H]        base-2 logarithm of the sum of a query's weights, kept for the backward pass
//   cosines, sines  [T][K / 2]
//
// A token attends to its whole document, or to the tokens at most `left` before and `right` after it. A task is one
// head of (a part of) one document and writes its own rows, so the number of threads changes no bit of the result.
// Inside a task, blocks of queries are multiplied with panels of 64 keys that are in the core's cache. Source of the
// loop order: Dao 2023 (FlashAttention-2).
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "interface.h"
#include "rotate_quantize.h"
#include "scratch_arena.h"
#include "thread_pool.h"

namespace modernbert {
namespace {

constexpr int K = 64;  // width of a head, in every published model
constexpr int KEYS_PER_STEP = 512;
constexpr float LOG2_E = 1.44269504088896341f;
constexpr float MASKED = -1e30f;  // a finite score of weight 0: inf - inf is NaN
static_assert(K == PANEL, "values need no repacking into panels");

struct Heads {
    int number;
    const float *cosines, *sines;
    int left, right;  // -1: no window

    bool is_local() const { return left >= 0; }
    // Queries per block, forward and backward: fewer in local layers, where each query sees another window.
    int block() const { return is_local() ? 32 : 96; }
    int block_back() const { return is_local() ? 32 : 64; }
};

struct Span {
    int first, last;  // last is exclusive
};

struct Task {
    int start, length;  // of the document in the packed stream
    Span queries;       // relative to the document
    int head;
};

// One head of one document: its rows in a tensor [T][...][K].
template <class T>
struct Rows {
    T* first;
    int64_t stride;
    T* operator[](int64_t row) const { return first + row * stride; }
};

// `part` is 0 for queries, 1 for keys, 2 for values.
template <class T>
Rows<T> qkv_rows(T* qkv, const Heads& heads, const Task& task, int part) {
    const int64_t stride = int64_t(3) * heads.number * K;
    return {qkv + task.start * stride + (int64_t(part) * heads.number + task.head) * K, stride};
}

template <class T>
Rows<T> attn_out_rows(T* attn_out, const Heads& heads, const Task& task) {
    const int64_t stride = int64_t(heads.number) * K;
    return {attn_out + task.start * stride + int64_t(task.head) * K, stride};
}

// Keys that at least one of these queries sees.
Span visible_keys(const Heads& heads, int length, Span queries) {
    if (!heads.is_local()) return {0, length};
    return {std::max(0, queries.first - heads.left), std::min(length, queries.last + heads.right)};
}

// Apply RoPE to a row; sign -1 applies the inverse.
template <class From, class To>
void rotate(const From* row, To* to, const Heads& heads, int64_t token, float sign) {
    const float *cosines = heads.cosines + token * (K / 2), *sines = heads.sines + token * (K / 2);
    for (int k = 0; k < K / 2; k += LANES) {
        vfloat cosine = load(cosines + k), sine = load(sines + k) * sign;
        vfloat first = load(row + k), second = load(row + k + K / 2);
        store(to + k, first * cosine - second * sine);
        store(to + k + K / 2, second * cosine + first * sine);
    }
}

template <class T>
void rotate_rows(Rows<const T> rows, T* to, Span span, int padded, const Heads& heads, int start) {
    for (int row = span.first; row < span.last; ++row, to += K) rotate(rows[row], to, heads, start + row, 1.0f);
    std::memset(to, 0, (padded - (span.last - span.first)) * K * sizeof(T));
}

template <class T>
void copy_rows(Rows<const T> rows, T* to, Span span, int padded) {
    for (int row = span.first; row < span.last; ++row, to += K) std::memcpy(to, rows[row], K * sizeof(T));
    std::memset(to, 0, (padded - (span.last - span.first)) * K * sizeof(T));
}

// Scores [num_rows][64] in the dtype of the GEMMs: packed as a panel, and row-major.
const float* scores_as_panel(const float* scores, float*, int, int) { return scores; }
const float* scores_as_rows(const float* scores, float*, int, int) { return scores; }

const bfloat16* scores_as_panel(const float* scores, bfloat16* scratch, int num_rows, int width) {
    for (int row = 0; row < num_rows; row += 2)
        for (int j = 0; j < width; j += LANES) {
            const vu32 pairs = load_row_group(scores + row * PANEL + j, PANEL, 2, scratch);
            std::memcpy(scratch + row * PANEL + j * 2, &pairs, sizeof pairs);
        }
    return scratch;
}

const bfloat16* scores_as_rows(const float* scores, bfloat16* scratch, int num_rows, int width) {
    for (int row = 0; row < num_rows; ++row)
        for (int j = 0; j < width; j += LANES) store(scratch + row * PANEL + j, load(scores + row * PANEL + j));
    return scratch;
}

// One step of online softmax for a row: write the weights of the visible columns, and rescale the running total.
// `scale` turns a score into the base-2 logarithm of its weight; `m_i` and `l_i` are the running maximum (in base 2)
// and sum. Widths are multiples of 32.
template <class T>
void online_softmax_row(float* scores, T* weights, int width, Span seen, float scale, float* total, float& m_i,
                        float& l_i) {
    constexpr int STEP = 2 * LANES;
    const int first = seen.first / STEP * STEP, last = round_up(seen.last, STEP);
    for (int j = first; j < seen.first; ++j) scores[j] = MASKED;
    for (int j = seen.last; j < last; ++j) scores[j] = MASKED;
    vfloat maxima[2] = {broadcast(MASKED), broadcast(MASKED)};
    for (int j = first; j < last; j += STEP)
        for (int i = 0; i < 2; ++i) maxima[i] = max(load(scores + j + i * LANES), maxima[i]);
    const float before = m_i;
    m_i = std::max(m_i, hmax(max(maxima[0], maxima[1])) * scale);
    std::memset(weights, 0, first * sizeof(T));
    vfloat added[2] = {};
    for (int j = first; j < last; j += STEP) {
        vfloat weight[2];
        for (int i = 0; i < 2; ++i) {
            weight[i] = vexp2<T>(load(scores + j + i * LANES) * scale - m_i);
            added[i] += weight[i];
        }
        store(weights + j, weight[0], weight[1]);
    }
    std::memset(weights + last, 0, (width - last) * sizeof(T));
    if (m_i > before && before > -INFINITY) {
        const float rescale = std::exp2(before - m_i);
        l_i *= rescale;
        for (int i = 0; i < K; i += LANES) store(total + i, load(total + i) * rescale);
    }
    l_i += hsum(added[0] + added[1]);
}

// Queries and keys as the operands of their product: in the dtype of qkv, or rotated and quantized.
template <class T>
void queries_as_rows(Rows<const T> rows, T* to, Span span, int padded, const Heads& heads, int start, float*) {
    rotate_rows(rows, to, span, padded, heads, start);
}
template <class T>
void queries_as_rows(Rows<const T> rows, int8* to, Span span, int padded, const Heads& heads, int start, float* wide) {
    for (int row = span.first; row < span.first + padded; ++row, to += operand_stride<int8>(K)) {
        if (row < span.last)
            rotate(rows[row], wide, heads, start + row, 1.0f);
        else
            std::memset(wide, 0, K * sizeof(float));
        quantize_row(wide, K, to);
    }
}
template <class T>
void keys_as_panel(Rows<const T> rows, T* panel, Span span, const Heads& heads, int start, T* scratch, float*) {
    rotate_rows(rows, scratch, span, PANEL, heads, start);
    pack_rows_transposed<PANEL>(scratch, K, K, panel);
}
template <class T>
void keys_as_panel(Rows<const T> rows, int8* panel, Span span, const Heads& heads, int start, T* scratch, float* wide) {
    for (int row = span.first; row < span.last; ++row)
        rotate(rows[row], wide + (row - span.first) * K, heads, start + row, 1.0f);
    std::memset(wide + (span.last - span.first) * K, 0, (PANEL - (span.last - span.first)) * K * sizeof(float));
    quantize_panel(wide, K, panel, (int8*)scratch);
}

// T is the dtype of qkv and of the weights, S that of the queries and keys in their product.
template <class S, class T>
void attention_task(const T* qkv, T* attn_out, float* lse, const Heads& heads, const Task& task, ScratchArena& memory) {
    const int block = heads.block();
    const Span keys = visible_keys(heads, task.length, task.queries);
    const size_t num_keys = round_up(keys.last - keys.first, PANEL);
    constexpr int KEY_ROWS = packed_rows<S>(K), STRIDE = operand_stride<S>(K);
    memory.reset(num_keys * (KEY_ROWS * sizeof(S) + K * sizeof(T)) + (2 * K + 2 * KEYS_PER_STEP + 2) * size_t(block) * 4 +
                 2 * PANEL * K * 4 + 1024);
    S* key_panels = memory.alloc<S>(num_keys * KEY_ROWS);  // [num_keys / 64][K / GROUP][64][GROUP]
    T* values = memory.alloc<T>(num_keys * K);      // [num_keys / GROUP][K][GROUP]
    T* scratch = memory.alloc<T>(PANEL * K);
    float* wide = memory.alloc<float>(PANEL * K);
    S* queries = memory.alloc<S>(block * STRIDE);
    T* weights = memory.alloc<T>(block * KEYS_PER_STEP);
    float* scores = memory.alloc<float>(block * KEYS_PER_STEP);
    float* totals = memory.alloc<float>(block * K);
    float *row_max = memory.alloc<float>(block), *row_sum = memory.alloc<float>(block);

    const auto q = qkv_rows(qkv, heads, task, 0), k = qkv_rows(qkv, heads, task, 1), v = qkv_rows(qkv, heads, task, 2);
    const auto out = attn_out_rows(attn_out, heads, task);
    for (size_t at = 0; at < num_keys; at += PANEL) {
        const int first = keys.first + int(at);
        const Span span = {first, std::min(keys.last, first + PANEL)};
        keys_as_panel(k, key_panels + at * KEY_ROWS, span, heads, task.start, scratch, wide);
        copy_rows(v, scratch, span, PANEL);
        pack_rows<PANEL>(scratch, K, PANEL, PANEL, values + at * K);
    }
    const float scale = LOG2_E / std::sqrt(float(K));
    for (int begin = task.queries.first; begin < task.queries.last; begin += block) {
        const int end = std::min(task.queries.last, begin + block), num_queries = end - begin;
        const int padded = round_up(num_queries, ROW_STEP);
        queries_as_rows(q, queries, {begin, end}, padded, heads, task.start, wide);
        std::memset(totals, 0, padded * K * sizeof(float));
        std::fill(row_max, row_max + padded, -INFINITY);
        std::fill(row_sum, row_sum + padded, 0.0f);
        const Span seen = visible_keys(heads, task.length, {begin, end});
        const int low = (seen.first - keys.first) / 32 * 32, high = round_up(seen.last - keys.first, 32);
        for (int at = low; at < high; at += KEYS_PER_STEP) {
            const int width = std::min(KEYS_PER_STEP, high - at);
            for (int j = 0, n; j < width; j += n) {
                const int column = (at + j) % PANEL;
                n = std::min(PANEL - column, width - j);
                const S* panel = key_panels + size_t(at + j - column) * KEY_ROWS + column * GROUP<S>;
                multiply(queries, STRIDE, panel, scores + j, KEYS_PER_STEP, padded, n, K, false);
            }
            for (int r = 0; r < padded; ++r) {
                const Span row_keys = visible_keys(heads, task.length, {begin + r, begin + r + 1});
                const Span visible = {std::max(0, row_keys.first - keys.first - at),
                                      std::min(width, row_keys.last - keys.first - at)};
                T* row = weights + r * KEYS_PER_STEP;
                if (r < num_queries && visible.first < visible.last)
                    online_softmax_row(scores + r * KEYS_PER_STEP, row, width, visible, scale, totals + r * K,
                                       row_max[r], row_sum[r]);
                else
                    std::memset(row, 0, width * sizeof(T));
            }
            multiply(weights, KEYS_PER_STEP, values + size_t(at) * K, totals, K, padded, K, width, true);
        }
        for (int r = 0; r < num_queries; ++r) {
            for (int i = 0; i < K; i += LANES) store(out[begin + r] + i, load(totals + r * K + i) / row_sum[r]);
            if (lse)
                lse[int64_t(task.start + begin + r) * heads.number + task.head] = row_max[r] + std::log2(row_sum[r]);
        }
    }
}

// Overwrite scores with weights, and grad_out @ V^T with the gradient of the scores. `delta` is sum(out * grad_out).
template <class T>
void softmax_backward_row(float* scores, float* grad_scores, int width, Span seen, float scale, float lse,
                          float delta) {
    const int first = seen.first / LANES * LANES, last = round_up(seen.last, LANES);
    for (int j = first; j < last; j += LANES) {
        vfloat weight = vexp2<T>(load(scores + j) * (scale * LOG2_E) - lse);
        store(scores + j, weight);
        store(grad_scores + j, weight * (load(grad_scores + j) - delta) * scale);
    }
    for (float* row : {scores, grad_scores}) {
        std::memset(row, 0, seen.first * sizeof(float));
        std::memset(row + seen.last, 0, (width - seen.last) * sizeof(float));
    }
}

template <class T>
void attention_backward_task(const T* qkv, const T* attn_out, const float* lse, const T* grad, T* grad_qkv,
                             const Heads& heads, const Task& task, ScratchArena& memory) {
    const int block = heads.block_back();
    const size_t num_keys = round_up(task.length, PANEL), panels = num_keys * K;
    memory.reset(3 * panels * sizeof(T) + 2 * panels * 4 + 12 * size_t(64) * 64 * 4 + 4096);
    T* key_panels = memory.alloc<T>(panels);    // K^T, for scores
    T* value_panels = memory.alloc<T>(panels);  // V^T, for grad_scores
    T* keys = memory.alloc<T>(panels);          // K, for the gradient of queries
    T* scratch = memory.alloc<T>(PANEL * K);
    T *queries = memory.alloc<T>(block * K), *queries_t = memory.alloc<T>(block * K);
    T *grad_out = memory.alloc<T>(block * K), *grad_out_t = memory.alloc<T>(block * K);
    T *weight_scratch = memory.alloc<T>(block * PANEL), *grad_score_scratch = memory.alloc<T>(block * PANEL);
    T* grad_score_row_scratch = memory.alloc<T>(block * PANEL);
    float* grad_keys = memory.alloc<float>(panels);    // [num_keys / 64][K][64]: transposed
    float* grad_values = memory.alloc<float>(panels);  // the same
    float *scores = memory.alloc<float>(block * PANEL), *grad_scores = memory.alloc<float>(block * PANEL);
    float *grad_queries = memory.alloc<float>(block * K), *untransposed = memory.alloc<float>(PANEL * K);

    const auto q = qkv_rows(qkv, heads, task, 0), k = qkv_rows(qkv, heads, task, 1), v = qkv_rows(qkv, heads, task, 2);
    const auto o = attn_out_rows(attn_out, heads, task), g = attn_out_rows(grad, heads, task);
    const auto grad_q = qkv_rows(grad_qkv, heads, task, 0), grad_k = qkv_rows(grad_qkv, heads, task, 1);
    const auto grad_v = qkv_rows(grad_qkv, heads, task, 2);
    std::memset(grad_keys, 0, panels * sizeof(float));
    std::memset(grad_values, 0, panels * sizeof(float));
    for (size_t at = 0; at < num_keys; at += PANEL) {
        const Span span = {int(at), std::min(task.length, int(at) + PANEL)};
        rotate_rows(k, scratch, span, PANEL, heads, task.start);
        pack_rows_transposed<PANEL>(scratch, K, K, key_panels + at * K);
        pack_rows<PANEL>(scratch, K, PANEL, PANEL, keys + at * K);
        copy_rows(v, scratch, span, PANEL);
        pack_rows_transposed<PANEL>(scratch, K, K, value_panels + at * K);
    }
    const float scale = 1.0f / std::sqrt(float(K));
    for (int begin = 0; begin < task.length; begin += block) {
        const int end = std::min(task.length, begin + block), num_queries = end - begin;
        const int padded = round_up(num_queries, 32);  // GEMMs sum over queries, too
        rotate_rows(q, queries, {begin, end}, padded, heads, task.start);
        copy_rows(g, grad_out, {begin, end}, padded);
        transpose(queries, K, padded, padded, K, queries_t, padded);
        transpose(grad_out, K, padded, padded, K, grad_out_t, padded);
        float delta_i[64] = {}, lse_i[64] = {};
        for (int r = 0; r < num_queries; ++r) {
            vfloat dot = {};
            for (int i = 0; i < K; i += LANES) dot += load(o[begin + r] + i) * load(g[begin + r] + i);
            delta_i[r] = hsum(dot);
            lse_i[r] = lse[int64_t(task.start + begin + r) * heads.number + task.head];
        }
        std::memset(grad_queries, 0, padded * K * sizeof(float));
        const Span seen = visible_keys(heads, task.length, {begin, end});
        const int low = seen.first / 32 * 32, high = round_up(seen.last, 32);
        for (int at = low, n; at < high; at += n) {
            const int column = at % PANEL;
            n = std::min(PANEL - column, high - at);
            const size_t panel = size_t(at - column) * K;
            multiply(queries, K, key_panels + panel + column * GROUP<T>, scores, PANEL, padded, n, K, false);
            multiply(grad_out, K, value_panels + panel + column * GROUP<T>, grad_scores, PANEL, padded, n, K, false);
            for (int r = 0; r < padded; ++r) {
                const Span row_keys = visible_keys(heads, task.length, {begin + r, begin + r + 1});
                Span visible = {std::max(0, row_keys.first - at), std::min(n, row_keys.last - at)};
                if (r >= num_queries || visible.first >= visible.last) visible = {0, 0};
                softmax_backward_row<T>(scores + r * PANEL, grad_scores + r * PANEL, n, visible, scale, lse_i[r],
                                        delta_i[r]);
            }
            const T* weight_panel = scores_as_panel(scores, weight_scratch, padded, n);
            const T* grad_score_panel = scores_as_panel(grad_scores, grad_score_scratch, padded, n);
            const T* grad_score_rows = scores_as_rows(grad_scores, grad_score_row_scratch, padded, n);
            multiply(grad_out_t, padded, weight_panel, grad_values + panel + column, PANEL, K, n, padded, true);
            multiply(queries_t, padded, grad_score_panel, grad_keys + panel + column, PANEL, K, n, padded, true);
            multiply(grad_score_rows, PANEL, keys + size_t(at) * K, grad_queries, K, padded, K, n, true);
        }
        for (int r = 0; r < num_queries; ++r)
            rotate(grad_queries + r * K, grad_q[begin + r], heads, task.start + begin + r, -1.0f);
    }
    for (size_t at = 0; at < num_keys; at += PANEL) {
        const int last = std::min(task.length, int(at) + PANEL);
        transpose(grad_keys + at * K, PANEL, K, K, PANEL, untransposed, K);
        for (int row = int(at); row < last; ++row)
            rotate(untransposed + (row - at) * K, grad_k[row], heads, task.start + row, -1.0f);
        transpose(grad_values + at * K, PANEL, K, K, PANEL, untransposed, K);
        for (int row = int(at); row < last; ++row)
            for (int i = 0; i < K; i += LANES) store(grad_v[row] + i, load(untransposed + (row - at) * K + i));
    }
}

// Queries per task. Each task rotates and packs its own keys, so in a global layer with few documents tasks are as
// large as possible while each thread still gets several.
int queries_per_task(const Heads& heads, int num_tokens, int num_threads) {
    constexpr int MIN_QUERIES = 512;
    if (heads.is_local()) return MIN_QUERIES;
    return std::max(MIN_QUERIES, round_up(int(int64_t(num_tokens) * heads.number / (8 * num_threads)), 96));
}

// Split documents into tasks of at most `max_queries` queries, longest first, so the last ones to run are short.
std::vector<Task> split_tasks(const int32_t* offsets, int num_docs, const Heads& heads, int max_queries) {
    std::vector<Task> tasks;
    for (int document = 0; document < num_docs; ++document) {
        const int start = offsets[document], length = offsets[document + 1] - start;
        for (int first = 0; first < length; first += max_queries)
            for (int head = 0; head < heads.number; ++head)
                tasks.push_back({start, length, {first, std::min(length, first + max_queries)}, head});
    }
    auto work = [&](const Task& task) {
        const Span keys = visible_keys(heads, task.length, task.queries);
        return int64_t(task.queries.last - task.queries.first) * (keys.last - keys.first);
    };
    std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) { return work(a) > work(b); });
    return tasks;
}

template <class Do>
void run_tasks(const std::vector<Task>& tasks, int num_threads, const Do& run) {
    parallel_for(num_threads, int64_t(tasks.size()), [&](int64_t i) {
        Tiles tiles;
        static thread_local ScratchArena memory;
        run(tasks[i], memory);
    });
}

template <class S, class T>
void attend(const T* qkv, T* attn_out, float* lse, const Heads& heads, const int32_t* offsets, int num_docs,
            int num_threads) {
    const auto tasks = split_tasks(offsets, num_docs, heads, queries_per_task(heads, offsets[num_docs], num_threads));
    run_tasks(tasks, num_threads,
              [&](const Task& task, ScratchArena& memory) { attention_task<S>(qkv, attn_out, lse, heads, task, memory); });
}

template <class T>
void attend_backward(const T* qkv, const T* attn_out, const float* lse, const T* grad, T* grad_qkv, const Heads& heads,
                     const int32_t* offsets, int num_docs, int num_threads) {
    const auto tasks = split_tasks(offsets, num_docs, heads, INT32_MAX / 2);
    run_tasks(tasks, num_threads, [&](const Task& task, ScratchArena& memory) {
        attention_backward_task(qkv, attn_out, lse, grad, grad_qkv, heads, task, memory);
    });
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

EXPORT int64_t init_kernels() { return request_tiles(); }

// W is the dtype of queries and keys in their product.
#define FOR_TYPES(T, W)                                                                                               \
    EXPORT void attend_##T##_##W(const T* qkv, T* attn_out, float* lse, const float* cosines, const float* sines,     \
                                 const int32_t* offsets, int64_t num_docs, int64_t num_heads, int64_t left,           \
                                 int64_t right, int64_t num_threads) {                                                \
        const Heads heads = {int(num_heads), cosines, sines, int(left), int(right)};                                  \
        attend<W>(qkv, attn_out, lse, heads, offsets, int(num_docs), int(num_threads));                               \
    }
FOR_TYPES(float32, float32)
FOR_TYPES(bfloat16, bfloat16)
FOR_TYPES(float32, int8)
FOR_TYPES(bfloat16, int8)

#define FOR_TYPE(T)                                                                                                   \
    EXPORT void attend_backward_##T(const T* qkv, const T* attn_out, const float* lse, const T* grad, T* grad_qkv,    \
                                    const float* cosines, const float* sines, const int32_t* offsets,                 \
                                    int64_t num_docs, int64_t num_heads, int64_t left, int64_t right,                 \
                                    int64_t num_threads) {                                                            \
        const Heads heads = {int(num_heads), cosines, sines, int(left), int(right)};                                  \
        attend_backward(qkv, attn_out, lse, grad, grad_qkv, heads, offsets, int(num_docs), int(num_threads));         \
    }
FOR_TYPE(float32)
FOR_TYPE(bfloat16)
