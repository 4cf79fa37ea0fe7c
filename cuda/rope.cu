// Rotary position embedding, and with it the way into the key/value cache.
#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

/// A block rotates the query and key heads of one token; with a cache, it also stores the token's
/// keys and values. Reads and writes N (H + K) D elements; angles are formed in float64, once a
/// token. What is rotated for the cache and for training has the same bits: additions are fused
/// where it says so.
template <class T, int W>
__global__ void rope_kernel(T* qkv, const std::int32_t* positions, const float* inv_freq,
                            AttentionShape shape, bool inverse, T* k_pool, T* v_pool,
                            const std::int32_t* rows) {
    const int D = shape.head_dim, half = D / 2, packs = half / W;
    float *cosine = dynamic_shared<float>(), *sine = cosine + half;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        double s, c;
        sincos(static_cast<double>(positions[blockIdx.x]) * inv_freq[i], &s, &c);
        cosine[i] = static_cast<float>(c);
        sine[i] = static_cast<float>(inverse ? -s : s);
    }
    __syncthreads();
    T* token = qkv + blockIdx.x * static_cast<std::int64_t>(shape.qkv_cols());
    const std::int64_t row = rows ? rows[blockIdx.x] : -1;
    for (int item = threadIdx.x; item < (shape.heads + shape.kv_heads) * packs;
         item += blockDim.x) {
        const int h = item / packs, i = item % packs * W;
        T* x = token + h * D + i;
        const auto c = load<W>(cosine + i), s = load<W>(sine + i);
        auto a = load<W>(x), b = load<W>(x + half);
        for (int j = 0; j < W; ++j) {
            const float first = a.v[j], second = b.v[j];
            a.v[j] = fmaf(first, c.v[j], -second * s.v[j]);
            b.v[j] = fmaf(second, c.v[j], first * s.v[j]);
        }
        store<W>(x, a);
        store<W>(x + half, b);
        if (row >= 0 && h >= shape.heads) {
            T* key = k_pool + row * shape.kv_cols() + (h - shape.heads) * D + i;
            store<W>(key, a);
            store<W>(key + half, b);
        }
    }
    if (row >= 0)
        for (int c = threadIdx.x * W; c < shape.kv_cols(); c += blockDim.x * W)
            store<W>(v_pool + row * shape.kv_cols() + c,
                     load<W>(token + shape.q_cols() + shape.kv_cols() + c));
}

}  // namespace

void CudaBackend::rope(Tensor qkv, Tensor positions, Tensor inv_freq, AttentionShape shape,
                       bool inverse) {
    rope({}, {}, qkv, {}, positions, inv_freq, shape, inverse);
}

void CudaBackend::rope_append(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows,
                              Tensor positions, Tensor inv_freq, AttentionShape shape) {
    rope(k_pool, v_pool, qkv, rows, positions, inv_freq, shape, false);
}

void CudaBackend::rope(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows, Tensor positions,
                       Tensor inv_freq, AttentionShape shape, bool inverse) {
    if (!qkv.size()) return;
    choose(qkv.dtype == DType::BF16, [&](auto is_bf16) {
        choose(eightfold(shape.head_dim / 2, qkv.data, k_pool.data, v_pool.data), [&](auto wide) {
            constexpr int W = wide ? 8 : 1;
            using T = std::conditional_t<is_bf16, bf16, float>;
            launch(stream_, grid_of(qkv.rows), 128, shape.head_dim * sizeof(float),
                   rope_kernel<T, W>, qkv.as<T>(), positions.as<std::int32_t>(),
                   inv_freq.as<float>(), shape, inverse, static_cast<T*>(k_pool.data),
                   static_cast<T*>(v_pool.data), static_cast<std::int32_t*>(rows.data));
        });
    });
}

}  // namespace r1::cuda
