// RMSNorm with the residual add, and RMSNorm of every query and key head.
#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

/// sum = x + delta; rstd = 1 / sqrt(mean sum^2 + eps); y = sum rstd weight. A block normalises a
/// row. Moves 4 + 4 bytes an element for the residual stream and, in bfloat16, 2 + 2 for delta and
/// y.
template <class T, int W>
__global__ void rmsnorm_forward_kernel(T* y, float* rstd, float* sum, const float* x,
                                       const T* delta, const float* weight, int C, float eps) {
    const std::int64_t row = blockIdx.x * std::int64_t{C};
    float squares = 0;
    for (int c = threadIdx.x * W; c < C; c += blockDim.x * W) {
        auto s = load<W>(x + row + c);
        if (delta) {
            const auto d = load<W>(delta + row + c);
            for (int i = 0; i < W; ++i) s.v[i] += d.v[i];
            store<W>(sum + row + c, s);
        }
        for (int i = 0; i < W; ++i) squares += s.v[i] * s.v[i];
    }
    squares = block_sum(squares, dynamic_shared<float>());
    const float r = 1 / sqrtf(squares / C + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
    for (int c = threadIdx.x * W; c < C;
         c += blockDim.x * W) {  // what this thread wrote, from the cache
        auto s = load<W>(sum + row + c);
        const auto w = load<W>(weight + c);
        for (int i = 0; i < W; ++i) s.v[i] *= r * w.v[i];
        store<W>(y + row + c, s);
    }
}

/// dx += rstd (w dy - x rstd^2 mean(w dy x)); partial[block, :] = the block's share of sum_n dy x
/// rstd. A warp takes a row at a time, and adds to dweight in shared memory of its own. Moves 4 + 4
/// + 4 bytes an element for dx and x, and 2 for dy.
template <class T, int W>
__global__ void rmsnorm_backward_kernel(float* dx, float* partial, const T* dy, const float* x,
                                        const float* rstd, const float* weight, int N, int C) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    float *shared = dynamic_shared<float>(),
          *dweight = shared + threadIdx.x / 32 * C;  // [warps, C]
    for (int c = lane * W; c < C; c += 32 * W) store<W>(dweight + c, Pack<float, W>{});
    for (std::int64_t n = warp_index(); n < N; n += gridDim.x * warps) {
        const std::int64_t row = n * C;
        float dot = 0;
        for (int c = lane * W; c < C; c += 32 * W) {
            const auto d = load<W>(dy + row + c), in = load<W>(x + row + c),
                       w = load<W>(weight + c);
            for (int i = 0; i < W; ++i) dot += w.v[i] * d.v[i] * in.v[i];
        }
        dot = warp_reduce(dot, Add());
        const float r = rstd[n], scale = r * r * dot / C;
        for (int c = lane * W; c < C; c += 32 * W) {  // dy, x and weight from the cache
            const auto d = load<W>(dy + row + c), in = load<W>(x + row + c),
                       w = load<W>(weight + c);
            auto out = load<W>(dx + row + c), dw = load<W>(dweight + c);
            for (int i = 0; i < W; ++i) {
                out.v[i] += r * (w.v[i] * d.v[i] - in.v[i] * scale);
                dw.v[i] += d.v[i] * in.v[i] * r;
            }
            store<W>(dx + row + c, out);
            store<W>(dweight + c, dw);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x * W; c < C; c += blockDim.x * W) {
        auto sum = load<W>(shared + c);
        for (int w = 1; w < warps; ++w) {
            const auto other = load<W>(shared + w * C + c);
            for (int i = 0; i < W; ++i) sum.v[i] += other.v[i];
        }
        store<W>(partial + blockIdx.x * std::int64_t{C} + c, sum);
    }
}

/// A warp takes one head of one row. Reads and writes N (H + 2K) D elements.
template <class T>
__global__ void head_norm_forward_kernel(T* out, float* rstd, const T* in, const float* q_weight,
                                         const float* k_weight, AttentionShape shape, float eps,
                                         std::int64_t rows) {
    const int lane = threadIdx.x % 32, D = shape.head_dim, normed = shape.heads + shape.kv_heads,
              all = normed + shape.kv_heads;
    const std::int64_t item = warp_index();
    if (item >= rows * all) return;
    const std::int64_t n = item / all;
    const int h = static_cast<int>(item % all);
    const T* from = in + item * D;
    T* to = out + item * D;
    if (h >= normed) {
        for (int d = lane; d < D; d += 32) to[d] = from[d];
        return;
    }
    float squares = 0;
    for (int d = lane; d < D; d += 32) squares += to_float(from[d]) * to_float(from[d]);
    const float r = 1 / sqrtf(warp_reduce(squares, Add()) / D + eps);
    if (lane == 0) rstd[n * normed + h] = r;
    const float* weight = h < shape.heads ? q_weight : k_weight;
    for (int d = lane; d < D; d += 32) to[d] = from_float<T>(to_float(from[d]) * r * weight[d]);
}

/// d becomes the gradient of `in`; partial[warp, 0..D) is the warp's share of dq_weight, [D, 2D)
/// that of dk_weight.
template <class T>
__global__ void head_norm_backward_kernel(T* d_out, float* partial, const T* in, const float* rstd,
                                          const float* q_weight, const float* k_weight,
                                          AttentionShape shape, std::int64_t rows) {
    const int lane = threadIdx.x % 32, D = shape.head_dim, normed = shape.heads + shape.kv_heads,
              all = normed + shape.kv_heads;
    const std::int64_t warp = warp_index(), warps = std::int64_t{gridDim.x} * (blockDim.x / 32);
    float* dweight = partial + warp * 2 * D;  // each lane its own columns
    for (int d = lane; d < 2 * D; d += 32) dweight[d] = 0;
    __syncwarp();
    for (std::int64_t item = warp; item < rows * normed; item += warps) {
        const std::int64_t n = item / normed;
        const int h = static_cast<int>(item % normed);
        const float* weight = h < shape.heads ? q_weight : k_weight;
        float* dw = dweight + (h < shape.heads ? 0 : D);
        const T* x = in + (n * all + h) * D;
        T* dx = d_out + (n * all + h) * D;
        float dot = 0;
        for (int d = lane; d < D; d += 32) dot += weight[d] * to_float(dx[d]) * to_float(x[d]);
        const float r = rstd[item], scale = r * r * warp_reduce(dot, Add()) / D;
        for (int d = lane; d < D; d += 32) {
            const float dy = to_float(dx[d]), value = to_float(x[d]);
            dw[d] += dy * value * r;
            dx[d] = from_float<T>(r * (weight[d] * dy - value * scale));
        }
        __syncwarp();  // column d of dq_weight and of dk_weight may belong to different lanes
    }
}

}  // namespace

void CudaBackend::rmsnorm_forward(Tensor y, Tensor rstd, Tensor sum, Tensor x, Tensor delta,
                                  Tensor weight, float eps) {
    if (!y.size()) return;
    choose(y.dtype == DType::BF16, [&](auto is_bf16) {
        choose(eightfold(y.cols, y.data, sum.data, x.data, delta.data, weight.data),
               [&](auto wide) {
                   using T = std::conditional_t<is_bf16, bf16, float>;
                   constexpr int W = wide ? 8 : 1;
                   launch(stream_, grid_of(y.rows), threads_for(y.cols / W), 32 * sizeof(float),
                          rmsnorm_forward_kernel<T, W>, y.as<T>(), rstd.as<float>(),
                          sum.as<float>(), x.as<float>(), static_cast<T*>(delta.data),
                          weight.as<float>(), static_cast<int>(y.cols), eps);
               });
    });
}

void CudaBackend::rmsnorm_backward(Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor rstd,
                                   Tensor weight) {
    if (!dy.size()) return;
    // Four blocks of eight warps fill a multiprocessor, where their rows of dweight leave room.
    std::size_t warps = 8, row_bytes = dy.cols * sizeof(float);
    while (warps > 1 && warps * row_bytes > 64 * 1024) warps /= 2;
    const std::int64_t blocks = std::min<std::int64_t>(ceil_div(dy.rows, warps), 512);
    auto* partial = scratch<float>(Slot::Partial, blocks * dy.cols);
    choose(dy.dtype == DType::BF16, [&](auto is_bf16) {
        choose(eightfold(dy.cols, dx.data, dy.data, x.data, weight.data), [&](auto wide) {
            using T = std::conditional_t<is_bf16, bf16, float>;
            constexpr int W = wide ? 8 : 1;
            launch(stream_, grid_of(blocks), static_cast<unsigned>(warps * 32), warps * row_bytes,
                   rmsnorm_backward_kernel<T, W>, dx.as<float>(), partial, dy.as<T>(),
                   x.as<float>(), rstd.as<float>(), weight.as<float>(), static_cast<int>(dy.rows),
                   static_cast<int>(dy.cols));
        });
    });
    add_column_sums(dweight, partial, blocks, dy.cols);
}

void CudaBackend::head_norm_forward(Tensor out, Tensor rstd, Tensor in, Tensor q_weight,
                                    Tensor k_weight, AttentionShape shape, float eps) {
    if (!out.size()) return;
    choose(out.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        const std::int64_t items = out.rows * (shape.heads + 2 * shape.kv_heads);
        launch(stream_, grid_of(ceil_div(items, 8)), 256, 0, head_norm_forward_kernel<T>,
               out.as<T>(), rstd.as<float>(), in.as<T>(), q_weight.as<float>(),
               k_weight.as<float>(), shape, eps, out.rows);
    });
}

void CudaBackend::head_norm_backward(Tensor d, Tensor dq_weight, Tensor dk_weight, Tensor in,
                                     Tensor rstd, Tensor q_weight, Tensor k_weight,
                                     AttentionShape shape) {
    if (!d.size()) return;
    const std::int64_t D = shape.head_dim,
                       blocks = std::min<std::int64_t>(
                           ceil_div(d.rows * (shape.heads + shape.kv_heads), 8), 512);
    auto* partial = scratch<float>(Slot::Partial, blocks * 8 * 2 * D);
    choose(d.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, grid_of(blocks), 256, 0, head_norm_backward_kernel<T>, d.as<T>(), partial,
               in.as<T>(), rstd.as<float>(), q_weight.as<float>(), k_weight.as<float>(), shape,
               d.rows);
    });
    add_column_sums(dq_weight, partial, blocks * 8, 2 * D);
    add_column_sums(dk_weight, partial + D, blocks * 8, 2 * D);
}

}  // namespace r1::cuda
