// What stands between matrix products, in one pass over memory each: residual sum and norm, GeGLU, and their ways back.
//
// Rows are shared out in blocks of a fixed size, and what is summed over rows is summed per block first, so that the
// number of threads does not change a bit of the result.
#include <algorithm>
#include <vector>

#include "interface.h"
#include "rows.h"

namespace modernbert {
namespace {

template <class Do>
void for_blocks(int64_t num_rows, int num_threads, const Do& run) {
    const int64_t num_blocks = (num_rows + ROWS_AT_A_TIME - 1) / ROWS_AT_A_TIME;
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t block = 0; block < num_blocks; ++block)
        run(block, block * ROWS_AT_A_TIME, std::min(num_rows, (block + 1) * ROWS_AT_A_TIME));
}

// hidden [T][D], delta [T][D] -> total = hidden + what is kept of delta, normed = (total - mean) / deviation * scale.
// `moments` [T][2] keeps mean and 1 / deviation. D is a multiple of 16.
template <class Hidden, class Narrow>
void add_norm(const Hidden* hidden, const Narrow* delta, const float* scale, float eps, Hidden* total, Narrow* normed,
              float* moments, const Dropout& dropout, int64_t num_rows, int64_t width, int num_threads) {
    for_blocks(num_rows, num_threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            Hidden* here = total + row * width;
            for (int64_t i = 0, place = row * width; i < width; i += LANES, place += LANES) {
                Floats added = load(delta + place);
                if (dropout.share) added *= dropout.kept(place);
                store(here + i, load(hidden + place) + added);
            }
            const Moments found = norm_row(here, scale, eps, width, normed + row * width);
            moments[row * 2] = found.mean;
            moments[row * 2 + 1] = found.factor;
        }
    });
}

// The gradient of `total`: what comes along the residual stream, and what comes through the norm. What was kept of it,
// narrowed, is the gradient of `delta`. `scale_parts` [blocks][D] is summed by the caller.
template <class Hidden, class Narrow>
void add_norm_backward(const Hidden* total, const float* scale, const float* moments, const Hidden* grad_total,
                       const Narrow* grad_normed, Hidden* grad_hidden, Narrow* grad_delta, float* scale_parts,
                       const Dropout& dropout, int64_t num_rows, int64_t width, int num_threads) {
    for_blocks(num_rows, num_threads, [&](int64_t block, int64_t first, int64_t last) {
        float* scale_part = scale_parts + block * width;
        std::fill(scale_part, scale_part + width, 0.0f);
        for (int64_t row = first; row < last; ++row) {
            const Hidden* x = total + row * width;
            const Narrow* g = grad_normed + row * width;
            const float mean = moments[row * 2], factor = moments[row * 2 + 1];
            Floats along = {}, level = {};
            for (int64_t i = 0; i < width; i += LANES) {
                Floats unit = (load(x + i) - mean) * factor, slope = load(g + i);
                store(scale_part + i, load(scale_part + i) + slope * unit);
                slope *= load(scale + i);
                level += slope;
                along += slope * unit;
            }
            const float mean_slope = sum(level) / width, mean_along = sum(along) / width;
            for (int64_t i = 0; i < width; i += LANES) {
                Floats unit = (load(x + i) - mean) * factor;
                Floats grad = (load(g + i) * load(scale + i) - mean_slope - unit * mean_along) * factor;
                if (grad_total) grad += load(grad_total + row * width + i);
                store(grad_hidden + row * width + i, grad);
                if (dropout.share) grad *= dropout.kept(row * width + i);
                if (grad_delta) store(grad_delta + row * width + i, grad);
            }
        }
    });
}

// both [T][2 F]: what is activated, then the gate -> [T][F]
template <class T>
void geglu(const T* both, T* out, int64_t num_rows, int64_t width, int num_threads) {
    for_blocks(num_rows, num_threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            for (int64_t i = 0; i < width; i += LANES) {
                Floats x = load(both + row * 2 * width + i), gate = load(both + (row * 2 + 1) * width + i);
                store(out + row * width + i, gelu(x) * gate);
            }
    });
}

template <class T>
void geglu_backward(const T* both, const T* grad, T* grad_both, int64_t num_rows, int64_t width, int num_threads) {
    for_blocks(num_rows, num_threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            for (int64_t i = 0; i < width; i += LANES) {
                Floats x = load(both + row * 2 * width + i), gate = load(both + (row * 2 + 1) * width + i);
                Floats slope = load(grad + row * width + i), density = bell(x), share = normal_share(x, density);
                store(grad_both + row * 2 * width + i, slope * gate * (share + x * density * 0.39894228040143268f));
                store(grad_both + (row * 2 + 1) * width + i, slope * x * share);
            }
    });
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

// HIDDEN is the residual stream's type, NARROW that of matrix products.
#define FOR_TYPES(HIDDEN, NARROW)                                                                                      \
    EXPORT void add_norm_##HIDDEN##_##NARROW(const HIDDEN* hidden, const NARROW* delta, const float* scale, float eps, \
                                             HIDDEN* total, NARROW* normed, float* moments, float dropout,             \
                                             int64_t seed, int64_t num_rows, int64_t width, int64_t num_threads) {     \
        add_norm(hidden, delta, scale, eps, total, normed, moments, {dropout, uint32_t(seed)}, num_rows, width,        \
                 int(num_threads));                                                                                    \
    }                                                                                                                  \
    EXPORT void add_norm_backward_##HIDDEN##_##NARROW(                                                                 \
        const HIDDEN* total, const float* scale, const float* moments, const HIDDEN* grad_total,                       \
        const NARROW* grad_normed, HIDDEN* grad_hidden, NARROW* grad_delta, float* scale_parts, float dropout,         \
        int64_t seed, int64_t num_rows, int64_t width, int64_t num_threads) {                                          \
        add_norm_backward(total, scale, moments, grad_total, grad_normed, grad_hidden, grad_delta, scale_parts,        \
                          {dropout, uint32_t(seed)}, num_rows, width, int(num_threads));                               \
    }
FOR_TYPES(float32, float32)
FOR_TYPES(float32, bfloat16)
FOR_TYPES(bfloat16, bfloat16)

EXPORT int64_t rows_at_a_time() { return ROWS_AT_A_TIME; }

#define FOR_TYPE(T)                                                                                                    \
    EXPORT void geglu_##T(const T* both, T* out, int64_t num_rows, int64_t width, int64_t num_threads) {               \
        geglu(both, out, num_rows, width, int(num_threads));                                                           \
    }                                                                                                                  \
    EXPORT void geglu_backward_##T(const T* both, const T* grad, T* grad_both, int64_t num_rows, int64_t width,        \
                                   int64_t num_threads) {                                                              \
        geglu_backward(both, grad, grad_both, num_rows, width, int(num_threads));                                      \
    }
FOR_TYPE(float32)
FOR_TYPE(bfloat16)
