// Training kernels: cross entropy over the vocabulary, and the optimizer step.
//
// Blocks have a fixed size and sums are made per block first, so the number of threads changes no bit of the result.
#include <algorithm>
#include <vector>

#include "interface.h"
#include "thread_pool.h"
#include "vectors.h"

namespace modernbert {
namespace {

constexpr int64_t VALUES_PER_BLOCK = 1 << 15;

// Load a vector at the end of a row; lanes past the end are `filling`.
template <class T>
vfloat load_up_to(const T* row, int64_t i, int64_t width, float filling) {
    if (i + LANES <= width) return load(row + i);
    T some[LANES];
    std::memcpy(some, row + i, (width - i) * sizeof(T));
    vfloat x = load(some);
    for (int lane = int(width - i); lane < LANES; ++lane) x[lane] = filling;
    return x;
}

template <class T>
void store_up_to(T* row, int64_t i, int64_t width, vfloat x) {
    if (i + LANES <= width) return store(row + i, x);
    T some[LANES];
    store(some, x);
    std::memcpy(row + i, some, (width - i) * sizeof(T));
}

// Overwrite logits [rows][V], given without bias, with the gradient of the summed cross entropy; return that sum.
// `bias_parts` [blocks][V] is summed by the caller; null for no gradient, which leaves the logits unchanged.
template <class T>
double cross_entropy(T* logits, const float* bias, const int64_t* labels, float* bias_parts, int64_t num_rows,
                     int64_t width, int num_threads) {
    const int64_t num_blocks = (num_rows + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK;
    std::vector<double> losses(num_blocks);
    parallel_for(num_threads, num_blocks, [&](int64_t block) {
        float* bias_part = bias_parts ? bias_parts + block * width : nullptr;
        if (bias_part) std::fill(bias_part, bias_part + width, 0.0f);
        const int64_t last = std::min(num_rows, (block + 1) * ROWS_PER_BLOCK);
        for (int64_t row = block * ROWS_PER_BLOCK; row < last; ++row) {
            T* logit = logits + row * width;
            const int64_t label = labels[row];
            vfloat maxima = broadcast(-INFINITY), sum_exp = {};
            for (int64_t i = 0; i < width; i += LANES)
                maxima = max(load_up_to(logit, i, width, -INFINITY) + load_up_to(bias, i, width, 0), maxima);
            const float m = hmax(maxima), target = to_float(logit[label]) + bias[label];
            for (int64_t i = 0; i < width; i += LANES)
                sum_exp += vexp(load_up_to(logit, i, width, -INFINITY) + load_up_to(bias, i, width, 0) - m);
            const float total = hsum(sum_exp);
            losses[block] += double(std::log(total)) + m - target;
            if (!bias_part) continue;
            const float lse = m + std::log(total);
            for (int64_t i = 0; i < width; i += LANES) {
                vfloat probability = vexp(load_up_to(logit, i, width, -INFINITY) + load_up_to(bias, i, width, 0) - lse);
                store_up_to(bias_part, i, width, load_up_to(bias_part, i, width, 0) + probability);
                store_up_to(logit, i, width, probability);
            }
            bias_part[label] -= 1.0f;
            T rounded[LANES];
            store(rounded, broadcast(std::exp(target - lse) - 1.0f));
            logit[label] = rounded[0];
        }
    });
    double total = 0;
    for (double loss : losses) total += loss;
    return total;
}

// one_minus_beta1 and one_minus_beta2 are 1 - beta, computed in float64: 1 - 0.999 in float32 is not 0.001.
struct Adam {
    float one_minus_beta1, beta2, one_minus_beta2, eps;
};

// Update the moments of one tensor; return the sum of (gradient / root of the second moment)^2.
double update(const float* grad, float* mean, float* square, int64_t number, const Adam& adam, int num_threads) {
    const int64_t num_blocks = (number + VALUES_PER_BLOCK - 1) / VALUES_PER_BLOCK;
    std::vector<double> partial_sums(num_blocks);
    parallel_for(num_threads, num_blocks, [&](int64_t block) {
        const int64_t last = std::min(number, (block + 1) * VALUES_PER_BLOCK);
        vfloat squares = {};
        for (int64_t i = block * VALUES_PER_BLOCK; i < last; i += LANES) {
            vfloat g = load_up_to(grad, i, last, 0), m = load_up_to(mean, i, last, 0);
            vfloat v = load_up_to(square, i, last, 0) * adam.beta2 + g * g * adam.one_minus_beta2;
            store_up_to(mean, i, last, m + (g - m) * adam.one_minus_beta1);
            store_up_to(square, i, last, v);
            vfloat ratio = g / max(vsqrt(v), broadcast(adam.eps));
            squares += ratio * ratio;
        }
        partial_sums[block] = hsum(squares);
    });
    double total = 0;
    for (double part : partial_sums) total += part;
    return total;
}

void apply(float* weight, const float* mean, const float* square, int64_t number, float lr, float decay, float eps,
           int num_threads) {
    const int64_t num_blocks = (number + VALUES_PER_BLOCK - 1) / VALUES_PER_BLOCK;
    parallel_for(num_threads, num_blocks, [&](int64_t block) {
        const int64_t last = std::min(number, (block + 1) * VALUES_PER_BLOCK);
        for (int64_t i = block * VALUES_PER_BLOCK; i < last; i += LANES) {
            vfloat step = load_up_to(mean, i, last, 0) / (vsqrt(load_up_to(square, i, last, 0)) + eps);
            store_up_to(weight, i, last, load_up_to(weight, i, last, 0) * decay - step * lr);
        }
    });
}

}  // namespace
}  // namespace modernbert

using namespace modernbert;

#define FOR_TYPE(T)                                                                                         \
    EXPORT double cross_entropy_##T(T* logits, const float* bias, const int64_t* labels, float* bias_parts, \
                                    int64_t num_rows, int64_t width, int64_t num_threads) {                 \
        return cross_entropy(logits, bias, labels, bias_parts, num_rows, width, int(num_threads));          \
    }
FOR_TYPE(float32)
FOR_TYPE(bfloat16)

EXPORT double update_moments(const float* grad, float* mean, float* square, int64_t number, float one_minus_beta1,
                             float beta2, float one_minus_beta2, float eps, int64_t num_threads) {
    return update(grad, mean, square, number, {one_minus_beta1, beta2, one_minus_beta2, eps}, int(num_threads));
}

EXPORT void apply_moments(float* weight, const float* mean, const float* square, int64_t number, float lr, float decay,
                          float eps, int64_t num_threads) {
    apply(weight, mean, square, number, lr, decay, eps, int(num_threads));
}
