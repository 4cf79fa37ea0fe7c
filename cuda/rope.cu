// Rotary position embedding, and with it the way into the key/value cache.
#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

/// A block rotates the query and key heads of one token; with a cache, it also stores the token's
/// keys and values. Reads and writes N (H + K) D elements; angles are formed in float64, once a
/// token.
template <class T>
__global__ void rope_kernel(T* qkv, const std::int32_t* positions, const float* inv_freq,
                            AttentionShape shape, bool inverse, T* k_pool, T* v_pool,
                            const std::int32_t* rows) {
    const int D = shape.head_dim, half = D / 2, heads = shape.heads + shape.kv_heads;
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
    for (int item = threadIdx.x; item < heads * half; item += blockDim.x) {
        const int h = item / half, i = item % half;
        const float a = to_float(token[h * D + i]), b = to_float(token[h * D + half + i]);
        const T first = from_float<T>(a * cosine[i] - b * sine[i]),
                second = from_float<T>(b * cosine[i] + a * sine[i]);
        token[h * D + i] = first;
        token[h * D + half + i] = second;
        if (row >= 0 && h >= shape.heads) {
            T* key = k_pool + row * shape.kv_cols() + (h - shape.heads) * D;
            key[i] = first;
            key[half + i] = second;
        }
    }
    if (row >= 0)
        for (int c = threadIdx.x; c < shape.kv_cols(); c += blockDim.x)
            v_pool[row * shape.kv_cols() + c] = token[shape.q_cols() + shape.kv_cols() + c];
}

}  // namespace

void CudaBackend::rope(Tensor qkv, Tensor positions, Tensor inv_freq, AttentionShape shape,
                       bool inverse) {
    if (!qkv.size()) return;
    choose(qkv.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, grid_of(qkv.rows), 128, shape.head_dim * sizeof(float), rope_kernel<T>,
               qkv.as<T>(), positions.as<std::int32_t>(), inv_freq.as<float>(), shape, inverse,
               nullptr, nullptr, nullptr);
    });
}

void CudaBackend::rope_append(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows,
                              Tensor positions, Tensor inv_freq, AttentionShape shape) {
    if (!qkv.size()) return;
    choose(qkv.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, grid_of(qkv.rows), 128, shape.head_dim * sizeof(float), rope_kernel<T>,
               qkv.as<T>(), positions.as<std::int32_t>(), inv_freq.as<float>(), shape, false,
               k_pool.as<T>(), v_pool.as<T>(), rows.as<std::int32_t>());
    });
}

}  // namespace r1::cuda
