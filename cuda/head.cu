// The head: log-probability, entropy and their gradient, from logits that exist for a chunk of rows
// at a time.
#include "cuda/backend_cuda.h"
#include "cuda/softmax.cuh"

namespace r1::cuda {
namespace {

/// A block takes a row. Reads V logits once.
template <int W>
__global__ void softmax_forward_kernel(float* logp, float* entropy, const float* logits,
                                       const std::int32_t* targets, float temperature, int V) {
    const float* row = logits + blockIdx.x * std::int64_t{V};
    const auto log_p = log_softmax<W>(row, inverse_of(temperature), V, dynamic_shared<float>());
    if (threadIdx.x != 0) return;
    logp[blockIdx.x] = log_p(row[targets[blockIdx.x]]);
    entropy[blockIdx.x] = log_p.entropy;
}

/// The row of logits becomes its gradient, in place, as T: a bfloat16 row fills the first half of
/// its float32 row. Reads V logits and writes V gradients.
template <class T, int W>
__global__ void softmax_backward_kernel(float* logits, const float* dlogp, const float* dentropy,
                                        const float* logp, const float* entropy,
                                        const std::int32_t* targets, float temperature, int V) {
    constexpr int kPacks = 2;  // of a thread at a time
    const std::int64_t m = blockIdx.x;
    float* row = logits + m * V;
    T* gradient = reinterpret_cast<T*>(row);
    const int target = targets[m];
    const float inverse = inverse_of(temperature), d = dlogp[m] * inverse,
                h = dentropy ? dentropy[m] * inverse : 0;
    // Not relative to the largest logit but to the target's, whose log-probability is known.
    const LogSoftmax log_p{inverse, row[target], -logp[m], entropy[m]};
    for (int base = 0; base < V; base += kPacks * W * blockDim.x) {
        Pack<float, W> z[kPacks];
        auto for_each = [&](auto body) {
            for (int k = 0; k < kPacks; ++k)
                if (const int v = base + (k * blockDim.x + threadIdx.x) * W; v < V) body(z[k], v);
        };
        for_each([&](auto& pack, int v) { pack = load<W>(row + v); });
        __syncthreads();  // what is written next may lie where another thread has just read
        for_each([&](auto& pack, int v) {
            for (int i = 0; i < W; ++i) {
                const float x = log_p(pack.v[i]);
                pack.v[i] = (v + i == target ? d : 0) - expf(x) * (d + h * (x + log_p.entropy));
            }
            store<W>(gradient + v, pack);
        });
    }
}

}  // namespace

void CudaBackend::softmax_forward(Tensor logp, Tensor entropy, Tensor logits, Tensor targets,
                                  float temperature) {
    if (!logits.size()) return;
    choose(eightfold(logits.cols, logits.data), [&](auto wide) {
        constexpr int W = wide ? 8 : 1;
        launch(stream_, grid_of(logits.rows), kSoftmaxThreads, 32 * sizeof(float),
               softmax_forward_kernel<W>, logp.as<float>(), entropy.as<float>(), logits.as<float>(),
               targets.as<std::int32_t>(), temperature, static_cast<int>(logits.cols));
    });
}

void CudaBackend::softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor logp,
                                   Tensor entropy, Tensor targets, float temperature) {
    softmax_backward<float>(logits, dlogp, dentropy, logp, entropy, targets, temperature);
}

template <class T>
void CudaBackend::softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor logp,
                                   Tensor entropy, Tensor targets, float temperature) {
    if (!logits.size()) return;
    choose(eightfold(logits.cols, logits.data), [&](auto wide) {
        constexpr int W = wide ? 8 : 1;
        launch(stream_, grid_of(logits.rows), kSoftmaxThreads, 0, softmax_backward_kernel<T, W>,
               logits.as<float>(), dlogp.as<float>(), dentropy ? dentropy.as<float>() : nullptr,
               logp.as<float>(), entropy.as<float>(), targets.as<std::int32_t>(), temperature,
               static_cast<int>(logits.cols));
    });
}

/// With a matrix in bfloat16 the gradient of the logits is rounded once, where it arises, and not
/// before each product.
void CudaBackend::head_backward(Tensor dhidden, Tensor dweight, Tensor dlogp, Tensor dentropy,
                                Tensor logp, Tensor entropy, Tensor hidden, Tensor weight,
                                Tensor targets, float temperature, Tensor logits) {
    if (weight.dtype != DType::BF16)
        return Backend::head_backward(dhidden, dweight, dlogp, dentropy, logp, entropy, hidden,
                                      weight, targets, temperature, logits);
    for (std::int64_t m = 0; m < hidden.rows; m += logits.rows) {
        const std::int64_t rows = std::min(logits.rows, hidden.rows - m), V = weight.rows;
        const Tensor chunk = logits.slice(0, rows);
        if (rows < hidden.rows) linear_forward(chunk, hidden.slice(m, rows), weight, {});
        softmax_backward<bf16>(chunk, dlogp.slice(m, rows),
                               dentropy ? dentropy.slice(m, rows) : Tensor{}, logp.slice(m, rows),
                               entropy.slice(m, rows), targets.slice(m, rows), temperature);
        const Matrix gradient(chunk.data, DType::BF16, rows, V, 2 * V);
        gemm(dhidden.slice(m, rows), gradient, weight, Transposed::None, false);
        gemm(dweight, gradient, hidden.slice(m, rows), Transposed::Left, true);
    }
}

}  // namespace r1::cuda
