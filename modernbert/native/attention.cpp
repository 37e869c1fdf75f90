// Attention over documents laid end to end, from the fused projection to the mixed values, and back.
//
//   qkv             [T][3][H][K]  queries, keys, values as they leave the projection: rotary positions come in here
//   mixed           [T][H][K]
//   lse             [T][H]        logarithm to base 2 of the sum of a query's weights: all that the way back needs kept
//   cosines, sines  [T][K / 2]
//
// A token sees all of its document, or the tokens at most `left` before and `right` after it. The work is cut into
// tasks of one head of (a part of) one document, and each task writes rows of its own, so that the number of threads
// does not change a bit of the result. Inside a task, blocks of queries meet panels of 64 keys in the core's cache.
// Source: Dao 2023 (FlashAttention-2), for the order of the work.
#include <algorithm>
#include <vector>

#include "interface.h"
#include "products.h"
#include "room.h"
#include "strips.h"

namespace modernbert {
namespace {

constexpr int K = 64;  // width of a head, in every published model
constexpr int KEYS_AT_A_TIME = 512;
constexpr float LOG2_E = 1.44269504088896341f;
constexpr float UNSEEN = -1e30f;  // a score whose weight is 0, and finite: the difference of two infinities is no number
static_assert(K == PANEL, "values of keys are panels as they are");

struct Heads {
    int number;
    const float *cosines, *sines;
    int left, right;  // -1: no window

    bool is_local() const { return left >= 0; }
    // Queries that meet their keys at a time, on the way there and back: few where each of them sees another window.
    int block() const { return is_local() ? 32 : 96; }
    int block_back() const { return is_local() ? 32 : 64; }
};

struct Span {
    int first, last;  // last is the first one outside
};

struct Task {
    int start, length;  // of the document in the stream
    Span queries;       // of the document
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
Rows<T> rows_of(T* qkv, const Heads& heads, const Task& task, int part) {
    const int64_t stride = int64_t(3) * heads.number * K;
    return {qkv + task.start * stride + (int64_t(part) * heads.number + task.head) * K, stride};
}

template <class T>
Rows<T> mixed_rows_of(T* mixed, const Heads& heads, const Task& task) {
    const int64_t stride = int64_t(heads.number) * K;
    return {mixed + task.start * stride + int64_t(task.head) * K, stride};
}

// Keys that some of these queries see.
Span keys_of(const Heads& heads, int length, Span queries) {
    if (!heads.is_local()) return {0, length};
    return {std::max(0, queries.first - heads.left), std::min(length, queries.last + heads.right)};
}

// Turn a row by the angle of its position; against it with sign -1.
template <class From, class To>
void rotate(const From* row, To* to, const Heads& heads, int64_t token, float sign) {
    const float *cosines = heads.cosines + token * (K / 2), *sines = heads.sines + token * (K / 2);
    for (int k = 0; k < K / 2; k += LANES) {
        Floats cosine = load(cosines + k), sine = load(sines + k) * sign;
        Floats first = load(row + k), second = load(row + k + K / 2);
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

// Scores [num_rows][64] in the precision of the products: as a panel, and row after row.
const float* scores_as_panel(const float* scores, float*, int, int) { return scores; }
const float* scores_as_rows(const float* scores, float*, int, int) { return scores; }

const bfloat16* scores_as_panel(const float* scores, bfloat16* room, int num_rows, int width) {
    for (int row = 0; row < num_rows; row += 2)
        for (int j = 0; j < width; j += LANES) {
            const Words pairs = group_of_rows(scores + row * PANEL + j, PANEL, 2, room);
            std::memcpy(room + row * PANEL + j * 2, &pairs, sizeof pairs);
        }
    return room;
}

const bfloat16* scores_as_rows(const float* scores, bfloat16* room, int num_rows, int width) {
    for (int row = 0; row < num_rows; ++row)
        for (int j = 0; j < width; j += LANES) store(room + row * PANEL + j, load(scores + row * PANEL + j));
    return room;
}

// Weigh the columns of a row of scores that a query sees, and bring its running sums along. `scale` makes a score the
// logarithm of its weight to base 2, and `peak` is such a logarithm. Widths are multiples of 32.
template <class T>
void weigh(float* scores, T* weights, int width, Span seen, float scale, float* total, float& peak, float& mass) {
    constexpr int STEP = 2 * LANES;
    const int first = seen.first / STEP * STEP, last = up_to(seen.last, STEP);
    for (int j = first; j < seen.first; ++j) scores[j] = UNSEEN;
    for (int j = seen.last; j < last; ++j) scores[j] = UNSEEN;
    Floats most[2] = {spread(UNSEEN), spread(UNSEEN)};
    for (int j = first; j < last; j += STEP)
        for (int i = 0; i < 2; ++i) most[i] = larger(load(scores + j + i * LANES), most[i]);
    const float before = peak;
    peak = std::max(peak, largest(larger(most[0], most[1])) * scale);
    std::memset(weights, 0, first * sizeof(T));
    Floats added[2] = {};
    for (int j = first; j < last; j += STEP) {
        Floats weight[2];
        for (int i = 0; i < 2; ++i) {
            weight[i] = power_of_two<T>(load(scores + j + i * LANES) * scale - peak);
            added[i] += weight[i];
        }
        store(weights + j, weight[0], weight[1]);
    }
    std::memset(weights + last, 0, (width - last) * sizeof(T));
    if (peak > before && before > -INFINITY) {
        const float shrink = std::exp2(before - peak);
        mass *= shrink;
        for (int i = 0; i < K; i += LANES) store(total + i, load(total + i) * shrink);
    }
    mass += sum(added[0] + added[1]);
}

template <class T>
void attend_task(const T* qkv, T* mixed, float* lse, const Heads& heads, const Task& task, Room& memory) {
    const int block = heads.block();
    const Span keys = keys_of(heads, task.length, task.queries);
    const size_t num_keys = up_to(keys.last - keys.first, PANEL);
    memory.begin(2 * num_keys * K * sizeof(T) + (2 * K + 2 * KEYS_AT_A_TIME + 2) * size_t(block) * 4 + PANEL * K * 4 +
                 1024);
    T* key_panels = memory.cut<T>(num_keys * K);  // [num_keys / 64][K / GROUP][64][GROUP]
    T* values = memory.cut<T>(num_keys * K);      // [num_keys / GROUP][K][GROUP]
    T* room = memory.cut<T>(PANEL * K);
    T* queries = memory.cut<T>(block * K);
    T* weights = memory.cut<T>(block * KEYS_AT_A_TIME);
    float* scores = memory.cut<float>(block * KEYS_AT_A_TIME);
    float* totals = memory.cut<float>(block * K);
    float *peaks = memory.cut<float>(block), *masses = memory.cut<float>(block);

    const auto q = rows_of(qkv, heads, task, 0), k = rows_of(qkv, heads, task, 1), v = rows_of(qkv, heads, task, 2);
    const auto out = mixed_rows_of(mixed, heads, task);
    for (size_t at = 0; at < num_keys; at += PANEL) {
        const int first = keys.first + int(at);
        const Span span = {first, std::min(keys.last, first + PANEL)};
        rotate_rows(k, room, span, PANEL, heads, task.start);
        strip_of_transpose<PANEL>(room, K, K, key_panels + at * K);
        copy_rows(v, room, span, PANEL);
        strip_of_rows<PANEL>(room, K, PANEL, PANEL, values + at * K);
    }
    const float scale = LOG2_E / std::sqrt(float(K));
    for (int begin = task.queries.first; begin < task.queries.last; begin += block) {
        const int end = std::min(task.queries.last, begin + block), num_queries = end - begin;
        const int padded = up_to(num_queries, ROW_STEP);
        rotate_rows(q, queries, {begin, end}, padded, heads, task.start);
        std::memset(totals, 0, padded * K * sizeof(float));
        std::fill(peaks, peaks + padded, -INFINITY);
        std::fill(masses, masses + padded, 0.0f);
        const Span seen = keys_of(heads, task.length, {begin, end});
        const int low = (seen.first - keys.first) / 32 * 32, high = up_to(seen.last - keys.first, 32);
        for (int at = low; at < high; at += KEYS_AT_A_TIME) {
            const int width = std::min(KEYS_AT_A_TIME, high - at);
            for (int j = 0, n; j < width; j += n) {
                const int column = (at + j) % PANEL;
                n = std::min(PANEL - column, width - j);
                const T* panel = key_panels + size_t(at + j - column) * K + column * GROUP<T>;
                multiply(queries, K, panel, scores + j, KEYS_AT_A_TIME, padded, n, K, false);
            }
            for (int r = 0; r < padded; ++r) {
                const Span mine = keys_of(heads, task.length, {begin + r, begin + r + 1});
                const Span here = {std::max(0, mine.first - keys.first - at), std::min(width, mine.last - keys.first - at)};
                T* row = weights + r * KEYS_AT_A_TIME;
                if (r < num_queries && here.first < here.last)
                    weigh(scores + r * KEYS_AT_A_TIME, row, width, here, scale, totals + r * K, peaks[r], masses[r]);
                else
                    std::memset(row, 0, width * sizeof(T));
            }
            multiply(weights, KEYS_AT_A_TIME, values + size_t(at) * K, totals, K, padded, K, width, true);
        }
        for (int r = 0; r < num_queries; ++r) {
            for (int i = 0; i < K; i += LANES) store(out[begin + r] + i, load(totals + r * K + i) / masses[r]);
            if (lse) lse[int64_t(task.start + begin + r) * heads.number + task.head] = peaks[r] + std::log2(masses[r]);
        }
    }
}

// Turn scores into weights, and products of gradients and values into the gradient of the scores.
template <class T>
void return_row(float* scores, float* slopes, int width, Span seen, float scale, float lse, float offset) {
    const int first = seen.first / LANES * LANES, last = up_to(seen.last, LANES);
    for (int j = first; j < last; j += LANES) {
        Floats weight = power_of_two<T>(load(scores + j) * (scale * LOG2_E) - lse);
        store(scores + j, weight);
        store(slopes + j, weight * (load(slopes + j) - offset) * scale);
    }
    for (float* row : {scores, slopes}) {
        std::memset(row, 0, seen.first * sizeof(float));
        std::memset(row + seen.last, 0, (width - seen.last) * sizeof(float));
    }
}

template <class T>
void return_task(const T* qkv, const T* mixed, const float* lse, const T* grad, T* grad_qkv, const Heads& heads,
                 const Task& task, Room& memory) {
    const int block = heads.block_back();
    const size_t num_keys = up_to(task.length, PANEL), panels = num_keys * K;
    memory.begin(3 * panels * sizeof(T) + 2 * panels * 4 + 12 * size_t(64) * 64 * 4 + 4096);
    T* key_panels = memory.cut<T>(panels);    // of the transpose, for scores
    T* value_panels = memory.cut<T>(panels);  // of the transpose, for slopes
    T* keys = memory.cut<T>(panels);          // for the gradient of queries
    T* room = memory.cut<T>(PANEL * K);
    T *queries = memory.cut<T>(block * K), *queries_turned = memory.cut<T>(block * K);
    T *grads = memory.cut<T>(block * K), *grads_turned = memory.cut<T>(block * K);
    T *weight_room = memory.cut<T>(block * PANEL), *slope_room = memory.cut<T>(block * PANEL);
    T* slope_row_room = memory.cut<T>(block * PANEL);
    float* grad_keys = memory.cut<float>(panels);    // [num_keys / 64][K][64]: lying on their side
    float* grad_values = memory.cut<float>(panels);  // the same
    float *scores = memory.cut<float>(block * PANEL), *slopes = memory.cut<float>(block * PANEL);
    float *grad_queries = memory.cut<float>(block * K), *upright = memory.cut<float>(PANEL * K);

    const auto q = rows_of(qkv, heads, task, 0), k = rows_of(qkv, heads, task, 1), v = rows_of(qkv, heads, task, 2);
    const auto o = mixed_rows_of(mixed, heads, task), g = mixed_rows_of(grad, heads, task);
    const auto grad_q = rows_of(grad_qkv, heads, task, 0), grad_k = rows_of(grad_qkv, heads, task, 1);
    const auto grad_v = rows_of(grad_qkv, heads, task, 2);
    std::memset(grad_keys, 0, panels * sizeof(float));
    std::memset(grad_values, 0, panels * sizeof(float));
    for (size_t at = 0; at < num_keys; at += PANEL) {
        const Span span = {int(at), std::min(task.length, int(at) + PANEL)};
        rotate_rows(k, room, span, PANEL, heads, task.start);
        strip_of_transpose<PANEL>(room, K, K, key_panels + at * K);
        strip_of_rows<PANEL>(room, K, PANEL, PANEL, keys + at * K);
        copy_rows(v, room, span, PANEL);
        strip_of_transpose<PANEL>(room, K, K, value_panels + at * K);
    }
    const float scale = 1.0f / std::sqrt(float(K));
    for (int begin = 0; begin < task.length; begin += block) {
        const int end = std::min(task.length, begin + block), num_queries = end - begin;
        const int padded = up_to(num_queries, 32);  // products sum over queries, too
        rotate_rows(q, queries, {begin, end}, padded, heads, task.start);
        copy_rows(g, grads, {begin, end}, padded);
        transpose(queries, K, padded, padded, K, queries_turned, padded);
        transpose(grads, K, padded, padded, K, grads_turned, padded);
        float offsets[64] = {}, levels[64] = {};
        for (int r = 0; r < num_queries; ++r) {
            Floats dot = {};
            for (int i = 0; i < K; i += LANES) dot += load(o[begin + r] + i) * load(g[begin + r] + i);
            offsets[r] = sum(dot);
            levels[r] = lse[int64_t(task.start + begin + r) * heads.number + task.head];
        }
        std::memset(grad_queries, 0, padded * K * sizeof(float));
        const Span seen = keys_of(heads, task.length, {begin, end});
        const int low = seen.first / 32 * 32, high = up_to(seen.last, 32);
        for (int at = low, n; at < high; at += n) {
            const int column = at % PANEL;
            n = std::min(PANEL - column, high - at);
            const size_t panel = size_t(at - column) * K;
            multiply(queries, K, key_panels + panel + column * GROUP<T>, scores, PANEL, padded, n, K, false);
            multiply(grads, K, value_panels + panel + column * GROUP<T>, slopes, PANEL, padded, n, K, false);
            for (int r = 0; r < padded; ++r) {
                const Span mine = keys_of(heads, task.length, {begin + r, begin + r + 1});
                Span here = {std::max(0, mine.first - at), std::min(n, mine.last - at)};
                if (r >= num_queries || here.first >= here.last) here = {0, 0};
                return_row<T>(scores + r * PANEL, slopes + r * PANEL, n, here, scale, levels[r], offsets[r]);
            }
            const T* weight_panel = scores_as_panel(scores, weight_room, padded, n);
            const T* slope_panel = scores_as_panel(slopes, slope_room, padded, n);
            const T* slope_rows = scores_as_rows(slopes, slope_row_room, padded, n);
            multiply(grads_turned, padded, weight_panel, grad_values + panel + column, PANEL, K, n, padded, true);
            multiply(queries_turned, padded, slope_panel, grad_keys + panel + column, PANEL, K, n, padded, true);
            multiply(slope_rows, PANEL, keys + size_t(at) * K, grad_queries, K, padded, K, n, true);
        }
        for (int r = 0; r < num_queries; ++r)
            rotate(grad_queries + r * K, grad_q[begin + r], heads, task.start + begin + r, -1.0f);
    }
    for (size_t at = 0; at < num_keys; at += PANEL) {
        const int last = std::min(task.length, int(at) + PANEL);
        transpose(grad_keys + at * K, PANEL, K, K, PANEL, upright, K);
        for (int row = int(at); row < last; ++row)
            rotate(upright + (row - at) * K, grad_k[row], heads, task.start + row, -1.0f);
        transpose(grad_values + at * K, PANEL, K, K, PANEL, upright, K);
        for (int row = int(at); row < last; ++row)
            for (int i = 0; i < K; i += LANES) store(grad_v[row] + i, load(upright + (row - at) * K + i));
    }
}

// Queries of a task. Each task turns and lays the keys of its own, so that in a global layer of few documents tasks are
// as large as leaves each thread some.
int queries_of_task(const Heads& heads, int num_tokens, int num_threads) {
    constexpr int LEAST = 512;
    if (heads.is_local()) return LEAST;
    return std::max(LEAST, up_to(int(int64_t(num_tokens) * heads.number / (8 * num_threads)), 96));
}

// Cut documents into tasks of at most so many queries, the longest first: what is left for the end is short.
std::vector<Task> tasks_of(const int32_t* offsets, int num_docs, const Heads& heads, int most_queries) {
    std::vector<Task> tasks;
    for (int document = 0; document < num_docs; ++document) {
        const int start = offsets[document], length = offsets[document + 1] - start;
        for (int first = 0; first < length; first += most_queries)
            for (int head = 0; head < heads.number; ++head)
                tasks.push_back({start, length, {first, std::min(length, first + most_queries)}, head});
    }
    auto work = [&](const Task& task) {
        const Span keys = keys_of(heads, task.length, task.queries);
        return int64_t(task.queries.last - task.queries.first) * (keys.last - keys.first);
    };
    std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) { return work(a) > work(b); });
    return tasks;
}

template <class Do>
void share_out(const std::vector<Task>& tasks, int num_threads, const Do& run) {
#pragma omp parallel num_threads(num_threads)
    {
        Tiles tiles;
        thread_local Room memory;
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tasks.size(); ++i) run(tasks[i], memory);
    }
}

template <class T>
void attend(const T* qkv, T* mixed, float* lse, const Heads& heads, const int32_t* offsets, int num_docs,
            int num_threads) {
    const auto tasks = tasks_of(offsets, num_docs, heads, queries_of_task(heads, offsets[num_docs], num_threads));
    share_out(tasks, num_threads,
              [&](const Task& task, Room& memory) { attend_task(qkv, mixed, lse, heads, task, memory); });
}

template <class T>
void attend_backward(const T* qkv, const T* mixed, const float* lse, const T* grad, T* grad_qkv, const Heads& heads,
                     const int32_t* offsets, int num_docs, int num_threads) {
    const auto tasks = tasks_of(offsets, num_docs, heads, INT32_MAX / 2);
    share_out(tasks, num_threads, [&](const Task& task, Room& memory) {
        return_task(qkv, mixed, lse, grad, grad_qkv, heads, task, memory);
    });
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

EXPORT int64_t begin() { return ask_for_tiles(); }

#define FOR_TYPE(T)                                                                                                    \
    EXPORT void attend_##T(const T* qkv, T* mixed, float* lse, const float* cosines, const float* sines,               \
                           const int32_t* offsets, int64_t num_docs, int64_t num_heads, int64_t left, int64_t right,   \
                           int64_t num_threads) {                                                                      \
        const Heads heads = {int(num_heads), cosines, sines, int(left), int(right)};                                   \
        attend(qkv, mixed, lse, heads, offsets, int(num_docs), int(num_threads));                                      \
    }                                                                                                                  \
    EXPORT void attend_backward_##T(const T* qkv, const T* mixed, const float* lse, const T* grad, T* grad_qkv,        \
                                    const float* cosines, const float* sines, const int32_t* offsets,                  \
                                    int64_t num_docs, int64_t num_heads, int64_t left, int64_t right,                  \
                                    int64_t num_threads) {                                                             \
        const Heads heads = {int(num_heads), cosines, sines, int(left), int(right)};                                   \
        attend_backward(qkv, mixed, lse, grad, grad_qkv, heads, offsets, int(num_docs), int(num_threads));             \
    }
FOR_TYPE(float32)
FOR_TYPE(bfloat16)
