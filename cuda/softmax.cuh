// Log softmax of a row of logits: one function for what draws a token and for what scores it, so
// that both give it the same log-probability.
#pragma once
#include <cfloat>

#include "cuda/common.cuh"

namespace r1::cuda {

/// A block takes a row.
constexpr int kSoftmaxThreads = 512;

/// 1 / T, of the lowest temperatures too.
__device__ inline float inverse_of(float temperature) { return fminf(1 / temperature, FLT_MAX); }

/// log softmax(z / T), and its entropy. The largest is subtracted before anything is divided by T,
/// so that a low temperature costs no precision.
struct LogSoftmax {
    float inverse, largest, log_sum, entropy;
    __device__ float operator()(float z) const { return fmaf(z - largest, inverse, -log_sum); }
};

/// Of a thread's share of the logits z: the largest, s = sum exp(x) and w = sum exp(x) x, where x =
/// (z - largest) / T. Then log softmax is x - log s, and its entropy log s - w / s.
struct RowSums {
    float inverse, largest = -INFINITY, s = 0, w = 0;
    template <int W>
    __device__ void add(const Pack<float, W>& z) {
        float top = largest, sum = 0, weighted = 0;
        for (int i = 0; i < W; ++i) top = fmaxf(top, z.v[i]);
        rebase(top);
        for (int i = 0; i < W; ++i) {
            const float x = (z.v[i] - top) * inverse, e = expf(x);
            sum += e;
            weighted += e * x;
        }
        s += sum;
        w += weighted;
    }
    /// Relative to `base`, which is not smaller. exp(-128) is 0: of what came before nothing is
    /// left where it was that much smaller, and there was nothing where `largest` is still
    /// infinite.
    __device__ void rebase(float base) {
        const float shift = fmaxf((largest - base) * inverse, -128.0f), shrink = expf(shift);
        w = shrink * (w + s * shift);
        s *= shrink;
        largest = base;
    }
};

/// Of a row of V logits, in every thread of the block; reads them once. It is not inlined: in two
/// kernels a compiler might fuse other pairs of its multiplications and additions. shared: 32
/// floats.
template <int W>
__device__ __attribute__((noinline)) LogSoftmax log_softmax(const float* row, float inverse, int V,
                                                            float* shared) {
    RowSums sums{inverse};
    for (int v = threadIdx.x * W; v < V; v += blockDim.x * W) sums.add(load<W>(row + v));
    sums.rebase(block_reduce(sums.largest, -INFINITY, shared, Max()));
    const float s = block_sum(sums.s, shared), w = block_sum(sums.w, shared), log_s = logf(s);
    return {inverse, sums.largest, log_s, log_s - w / s};
}

}  // namespace r1::cuda
