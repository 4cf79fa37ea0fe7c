// Rows of a table by index, the embedding's among them, and the gradient of that.
#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

/// out[m, :] = in[index[m], :]. A block copies a row; reads and writes M C elements.
template <class To, class From, int W>
__global__ void gather_kernel(To* out, const From* in, const std::int32_t* index, int C) {
    To* to = out + blockIdx.x * std::int64_t{C};
    const From* from = in + index[blockIdx.x] * std::int64_t{C};
    for (int c = threadIdx.x * W; c < C; c += blockDim.x * W) store<W>(to + c, load<W>(from + c));
}

/// out[index[m], :] += in[m, :] in order of m, without atomics: the block of an index's first
/// occurrence adds up all of them. Each block reads all M indices (they stay in the L2 cache),
/// together they read M C elements of in.
__global__ void add_rows_kernel(float* out, const std::int32_t* index, const float* in, int M,
                                int C) {
    int* found =
        dynamic_shared<int>();  // [warps] matches in each warp, then [blockDim] their rows in order
    int* match = found + 32;
    const int row = index[blockIdx.x], lane = threadIdx.x % 32, warp = threadIdx.x / 32,
              warps = blockDim.x / 32;
    const int columns = (C + blockDim.x - 1) / blockDim.x;
    for (int base = 0; base < M; base += blockDim.x) {
        const int m = base + threadIdx.x;
        const bool same = m < M && index[m] == row;
        const unsigned votes = __ballot_sync(kAllLanes, same);
        if (lane == 0) found[warp] = __popc(votes);
        __syncthreads();
        int before = 0, count = 0;
        for (int w = 0; w < warps; ++w) {
            before += w < warp ? found[w] : 0;
            count += found[w];
        }
        if (same) match[before + __popc(votes & ((1u << lane) - 1))] = m;
        __syncthreads();
        if (count > 0 && match[0] < static_cast<int>(blockIdx.x))
            return;  // not the first occurrence
        for (int k = 0; k < columns; ++k) {
            const int c = k * blockDim.x + threadIdx.x;
            if (c >= C || count == 0) break;
            float sum = out[row * std::int64_t{C} + c];
            for (int i = 0; i < count; ++i) sum += in[match[i] * std::int64_t{C} + c];
            out[row * std::int64_t{C} + c] = sum;
        }
        __syncthreads();
    }
}

}  // namespace

void CudaBackend::gather_rows(Tensor out, Tensor in, Tensor index) {
    if (!out.size()) return;
    auto run = [&](auto* to, const auto* from) {
        using To = std::remove_pointer_t<decltype(to)>;
        using From = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
        choose(eightfold(out.cols, to, from), [&](auto wide) {
            constexpr int W = wide ? 8 : 1;
            launch(stream_, grid_of(out.rows), threads_for(out.cols / W), 0,
                   gather_kernel<To, From, W>, to, from, index.as<std::int32_t>(),
                   static_cast<int>(out.cols));
        });
    };
    if (in.dtype == DType::F32)
        run(out.as<float>(), in.as<float>());
    else if (out.dtype == DType::F32)
        run(out.as<float>(), in.as<bf16>());
    else
        run(out.as<bf16>(), in.as<bf16>());
}

void CudaBackend::add_rows(Tensor out, Tensor in, Tensor index) {
    if (in.size())
        launch(stream_, grid_of(in.rows), 256, (32 + 256) * sizeof(int), add_rows_kernel,
               out.as<float>(), index.as<std::int32_t>(), in.as<float>(), static_cast<int>(in.rows),
               static_cast<int>(in.cols));
}

}  // namespace r1::cuda
