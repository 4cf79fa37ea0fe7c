// The head: log-probability, entropy and their gradient, from logits that exist for a chunk of rows
// at a time.
#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

/// Of one row of logits z at temperature T: the largest, s = sum exp(x) and w = sum exp(x) x, where
/// x = (z - largest) / T. Then log softmax is x - log s, and its entropy log s - w / s. The largest
/// is subtracted before anything is divided by T, so that a low temperature costs no precision.
struct RowSums {
    float inverse;  ///< 1 / T
    float largest = -INFINITY, s = 0, w = 0;
    __device__ void add(float z) {
        if (z > largest) rebase(z);
        const float x = (z - largest) * inverse, e = expf(x);
        s += e;
        w += e * x;
    }
    __device__ void rebase(float base) {
        if (largest == base || s == 0) {
            largest = base;
            return;
        }
        const float shift = (largest - base) * inverse, shrink = expf(shift);  // base is larger
        w = shrink * (w + s * shift);
        s *= shrink;
        largest = base;
    }
    __device__ float log_p(float z) const { return (z - largest) * inverse - logf(s); }
    __device__ float entropy() const { return logf(s) - w / s; }
};

/// The sums of a row of logits, in every thread of the block.
__device__ RowSums row_sums(const float* row, float inverse, int V, float* shared) {
    RowSums sums{inverse};
    for (int v = threadIdx.x; v < V; v += blockDim.x) sums.add(row[v]);
    const float largest = block_reduce(sums.largest, -INFINITY, shared, Max());
    sums.rebase(largest);
    sums.s = block_sum(sums.s, shared);
    sums.w = block_sum(sums.w, shared);
    return sums;
}

/// A block takes a row. Reads V logits once.
__global__ void softmax_forward_kernel(float* logp, float* entropy, const float* logits,
                                       const std::int32_t* targets, float inverse, int V) {
    const float* row = logits + blockIdx.x * std::int64_t{V};
    const RowSums sums = row_sums(row, inverse, V, dynamic_shared<float>());
    if (threadIdx.x != 0) return;
    logp[blockIdx.x] = sums.log_p(row[targets[blockIdx.x]]);
    entropy[blockIdx.x] = sums.entropy();
}

/// The row of logits becomes its gradient, in place, as T: a bfloat16 row fills the first half of
/// its float32 row. Reads V logits twice and writes V gradients.
template <class T>
__global__ void softmax_backward_kernel(float* logits, const float* dlogp, const float* dentropy,
                                        const std::int32_t* targets, float inverse, int V) {
    float* row = logits + blockIdx.x * std::int64_t{V};
    T* gradient = reinterpret_cast<T*>(row);
    const RowSums sums = row_sums(row, inverse, V, dynamic_shared<float>());
    const float log_sum = logf(sums.s), entropy = sums.entropy(), d = dlogp[blockIdx.x] * inverse,
                h = dentropy ? dentropy[blockIdx.x] * inverse : 0;
    const int target = targets[blockIdx.x];
    for (int base = 0; base < V; base += blockDim.x) {
        const int v = base + threadIdx.x;
        const float log_p = v < V ? (row[v] - sums.largest) * inverse - log_sum : 0;
        __syncthreads();  // what is written next may lie where another thread has just read
        if (v < V)
            gradient[v] =
                from_float<T>((v == target ? d : 0) - expf(log_p) * (d + h * (log_p + entropy)));
    }
}

constexpr unsigned kThreads = 512;

}  // namespace

void CudaBackend::softmax_forward(Tensor logp, Tensor entropy, Tensor logits, Tensor targets,
                                  float temperature) {
    if (logits.size())
        launch(stream_, grid_of(logits.rows), kThreads, 32 * sizeof(float), softmax_forward_kernel,
               logp.as<float>(), entropy.as<float>(), logits.as<float>(),
               targets.as<std::int32_t>(), 1 / temperature, static_cast<int>(logits.cols));
}

void CudaBackend::softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor targets,
                                   float temperature) {
    softmax_backward<float>(logits, dlogp, dentropy, targets, temperature);
}

template <class T>
void CudaBackend::softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor targets,
                                   float temperature) {
    if (logits.size())
        launch(stream_, grid_of(logits.rows), kThreads, 32 * sizeof(float),
               softmax_backward_kernel<T>, logits.as<float>(), dlogp.as<float>(),
               dentropy ? dentropy.as<float>() : nullptr, targets.as<std::int32_t>(),
               1 / temperature, static_cast<int>(logits.cols));
}

/// With a matrix in bfloat16 the gradient of the logits is rounded once, where it arises, and not
/// before each product.
void CudaBackend::head_backward(Tensor dhidden, Tensor dweight, Tensor dlogp, Tensor dentropy,
                                Tensor hidden, Tensor weight, Tensor targets, float temperature,
                                Tensor logits) {
    if (weight.dtype != DType::BF16)
        return Backend::head_backward(dhidden, dweight, dlogp, dentropy, hidden, weight, targets,
                                      temperature, logits);
    for (std::int64_t m = 0; m < hidden.rows; m += logits.rows) {
        const std::int64_t rows = std::min(logits.rows, hidden.rows - m), V = weight.rows;
        const Tensor chunk = logits.slice(0, rows);
        if (rows < hidden.rows) linear_forward(chunk, hidden.slice(m, rows), weight, {});
        softmax_backward<bf16>(chunk, dlogp.slice(m, rows),
                               dentropy ? dentropy.slice(m, rows) : Tensor{},
                               targets.slice(m, rows), temperature);
        const Matrix gradient(chunk.data, DType::BF16, rows, V, 2 * V);
        gemm(dhidden.slice(m, rows), gradient, weight, Transposed::None, false);
        gemm(dweight, gradient, hidden.slice(m, rows), Transposed::Left, true);
    }
}

}  // namespace r1::cuda
