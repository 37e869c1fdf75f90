// Residual sum with LayerNorm, and GeGLU, forward and backward, each in one pass over memory.
//
// Blocks of rows have a fixed size, and sums over rows are made per block first, so the number of threads changes no
// bit of the result.
#include <algorithm>
#include <vector>

#include "interface.h"
#include "row_ops.h"
#include "thread_pool.h"

namespace modernbert {
namespace {

template <class Do>
void for_blocks(int64_t num_rows, int num_threads, const Do& run) {
    const int64_t num_blocks = (num_rows + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK;
    parallel_for(num_threads, num_blocks, [&](int64_t block) {
        run(block, block * ROWS_PER_BLOCK, std::min(num_rows, (block + 1) * ROWS_PER_BLOCK));
    });
}

// residual [T][D], x [T][D] -> total = residual + dropout(x), normed = LayerNorm(total).
// `moments` [T][2] stores mean and 1 / standard deviation. D is a multiple of 16.
template <class Hidden, class Narrow>
void residual_layer_norm(const Hidden* residual, const Narrow* x, const float* scale, float eps, Hidden* total,
                         Narrow* normed, float* moments, const Dropout& dropout, int64_t num_rows, int64_t width,
                         int num_threads) {
    for_blocks(num_rows, num_threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            Hidden* row_total = total + row * width;
            for (int64_t i = 0, at = row * width; i < width; i += LANES, at += LANES) {
                vfloat added = load(x + at);
                if (dropout.p) added *= dropout.mask(at);
                store(row_total + i, load(residual + at) + added);
            }
            const Moments found = norm_row(row_total, scale, eps, width, normed + row * width);
            moments[row * 2] = found.mean;
            moments[row * 2 + 1] = found.rstd;
        }
    });
}

// The gradient of `total` is the sum of the gradients of the residual stream and of the norm; after the dropout mask,
// in the narrow dtype, it is the gradient of `x`. `scale_parts` [blocks][D] is summed by the caller.
template <class Hidden, class Narrow>
void residual_layer_norm_backward(const Hidden* total, const float* scale, const float* moments,
                                  const Hidden* grad_total, const Narrow* grad_normed, Hidden* grad_residual,
                                  Narrow* grad_x, float* scale_parts, const Dropout& dropout, int64_t num_rows,
                                  int64_t width, int num_threads) {
    for_blocks(num_rows, num_threads, [&](int64_t block, int64_t first, int64_t last) {
        float* scale_part = scale_parts + block * width;
        std::fill(scale_part, scale_part + width, 0.0f);
        for (int64_t row = first; row < last; ++row) {
            const Hidden* row_total = total + row * width;
            const Narrow* g = grad_normed + row * width;
            const float mean = moments[row * 2], rstd = moments[row * 2 + 1];
            vfloat grad_dot_x_hat = {}, grad_sum = {};
            for (int64_t i = 0; i < width; i += LANES) {
                vfloat x_hat = (load(row_total + i) - mean) * rstd, grad_x_hat = load(g + i);
                store(scale_part + i, load(scale_part + i) + grad_x_hat * x_hat);
                grad_x_hat *= load(scale + i);
                grad_sum += grad_x_hat;
                grad_dot_x_hat += grad_x_hat * x_hat;
            }
            const float mean_grad = hsum(grad_sum) / width, mean_dot = hsum(grad_dot_x_hat) / width;
            for (int64_t i = 0; i < width; i += LANES) {
                vfloat x_hat = (load(row_total + i) - mean) * rstd;
                vfloat grad = (load(g + i) * load(scale + i) - mean_grad - x_hat * mean_dot) * rstd;
                if (grad_total) grad += load(grad_total + row * width + i);
                store(grad_residual + row * width + i, grad);
                if (dropout.p) grad *= dropout.mask(row * width + i);
                if (grad_x) store(grad_x + row * width + i, grad);
            }
        }
    });
}

// both [T][2 F]: the activated half, then the gate -> [T][F]
template <class T>
void geglu(const T* both, T* out, int64_t num_rows, int64_t width, int num_threads) {
    for_blocks(num_rows, num_threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            for (int64_t i = 0; i < width; i += LANES) {
                vfloat x = load(both + row * 2 * width + i), gate = load(both + (row * 2 + 1) * width + i);
                store(out + row * width + i, gelu(x) * gate);
            }
    });
}

template <class T>
void geglu_backward(const T* both, const T* grad, T* grad_both, int64_t num_rows, int64_t width, int num_threads) {
    for_blocks(num_rows, num_threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            for (int64_t i = 0; i < width; i += LANES) {
                vfloat x = load(both + row * 2 * width + i), gate = load(both + (row * 2 + 1) * width + i);
                vfloat upstream = load(grad + row * width + i), density = gaussian(x), cdf = normal_cdf(x, density);
                store(grad_both + row * 2 * width + i, upstream * gate * (cdf + x * density * 0.39894228040143268f));
                store(grad_both + (row * 2 + 1) * width + i, upstream * x * cdf);
            }
    });
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

// HIDDEN is the dtype of the residual stream, NARROW that of GEMMs.
#define FOR_TYPES(HIDDEN, NARROW)                                                                                 \
    EXPORT void residual_layer_norm_##HIDDEN##_##NARROW(                                                          \
        const HIDDEN* residual, const NARROW* x, const float* scale, float eps, HIDDEN* total, NARROW* normed,    \
        float* moments, float dropout, int64_t seed, int64_t num_rows, int64_t width, int64_t num_threads) {      \
        residual_layer_norm(residual, x, scale, eps, total, normed, moments, {dropout, uint32_t(seed)}, num_rows, \
                            width, int(num_threads));                                                             \
    }                                                                                                             \
    EXPORT void residual_layer_norm_backward_##HIDDEN##_##NARROW(                                                 \
        const HIDDEN* total, const float* scale, const float* moments, const HIDDEN* grad_total,                  \
        const NARROW* grad_normed, HIDDEN* grad_residual, NARROW* grad_x, float* scale_parts, float dropout,      \
        int64_t seed, int64_t num_rows, int64_t width, int64_t num_threads) {                                     \
        residual_layer_norm_backward(total, scale, moments, grad_total, grad_normed, grad_residual, grad_x,       \
                                     scale_parts, {dropout, uint32_t(seed)}, num_rows, width, int(num_threads));  \
    }
FOR_TYPES(float32, float32)
FOR_TYPES(float32, bfloat16)
FOR_TYPES(bfloat16, bfloat16)

EXPORT int64_t rows_per_block() { return ROWS_PER_BLOCK; }

#define FOR_TYPE(T)                                                                                             \
    EXPORT void geglu_##T(const T* both, T* out, int64_t num_rows, int64_t width, int64_t num_threads) {        \
        geglu(both, out, num_rows, width, int(num_threads));                                                    \
    }                                                                                                           \
    EXPORT void geglu_backward_##T(const T* both, const T* grad, T* grad_both, int64_t num_rows, int64_t width, \
                                   int64_t num_threads) {                                                       \
        geglu_backward(both, grad, grad_both, num_rows, width, int(num_threads));                               \
    }
FOR_TYPE(float32)
FOR_TYPE(bfloat16)
