// The matrix product of exact arithmetic, in cuBLAS' place: each element is summed in order of k,
// however many others there are.
#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;          // rows and columns of a block
constexpr int kDepth = 16;         // of k at a time
constexpr int kPitch = kTile + 4;  // floats from row to row of a tile

/// Where element (i, k) of a factor lies, whichever way it is stored: data[i * row + k * depth].
template <class T>
struct Factor {
    const T* data;
    std::int64_t row, depth;
    /// tile[k][i] of kTile rows from `first` on, of `rows`, and of k from `from` on, up to `end`;
    /// beyond those 0. Neighbouring threads read neighbouring elements.
    __device__ void load(float* tile, std::int64_t first, std::int64_t rows, int from, int end) {
        for (int e = threadIdx.x; e < kTile * kDepth; e += kThreads) {
            const int i = depth == 1 ? e / kDepth : e % kTile,
                      k = depth == 1 ? e % kDepth : e / kTile;
            const bool inside = first + i < rows && from + k < end;
            tile[k * kPitch + i] =
                inside ? to_float(data[(first + i) * row + (from + k) * depth]) : 0;
        }
    }
};

/// c = a b or c += a b, one multiply-add after the other, the first onto 0, or onto c as if what is
/// in it came first. A block computes 64 x 64 elements, a thread 4 x 4. 2 M N K
/// FLOPs without tensor cores; reads a once for every 64 columns, and b for every 64 rows.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads, 2)
    exact_gemm_kernel(Out* c, std::int64_t stride, Factor<In> a, Factor<In> b, std::int64_t M,
                      std::int64_t N, int K, bool accumulate) {
    float *a_tile = dynamic_shared<float>(), *b_tile = a_tile + kDepth * kPitch;
    const std::int64_t first_row = blockIdx.x * std::int64_t{kTile},
                       first_col = blockIdx.y * std::int64_t{kTile};
    const int i = threadIdx.x / 16 * 4, j = threadIdx.x % 16 * 4;
    auto for_each = [&](auto body) {  // of this thread's elements
        for (int y = 0; y < 4; ++y)
            for (int x = 0; x < 4; ++x)
                if (const std::int64_t m = first_row + i + y, n = first_col + j + x; m < M && n < N)
                    body(y, x, c + m * stride + n);
    };
    float sum[4][4] = {};
    if (accumulate) for_each([&](int y, int x, const Out* at) { sum[y][x] = to_float(*at); });
    for (int k = 0; k < K; k += kDepth) {
        __syncthreads();
        a.load(a_tile, first_row, M, k, K);
        b.load(b_tile, first_col, N, k, K);
        __syncthreads();
        for (int d = 0; d < kDepth; ++d) {
            const auto left = load<4>(a_tile + d * kPitch + i),
                       right = load<4>(b_tile + d * kPitch + j);
            for (int y = 0; y < 4; ++y)
                for (int x = 0; x < 4; ++x) sum[y][x] = fmaf(left.v[y], right.v[x], sum[y][x]);
        }
    }
    for_each([&](int y, int x, Out* at) { *at = from_float<Out>(sum[y][x]); });
}

}  // namespace

void CudaBackend::exact_gemm(Matrix c, Matrix a, Matrix b, Transposed transposed, bool accumulate) {
    const bool left = transposed == Transposed::Left, right = transposed == Transposed::Right;
    choose(a.dtype == DType::BF16, [&](auto bf16_in) {
        choose(c.dtype == DType::BF16, [&](auto bf16_out) {
            using In = std::conditional_t<bf16_in, bf16, float>;
            using Out = std::conditional_t<bf16_out, bf16, float>;
            const Factor<In> rows{static_cast<In*>(a.data), left ? 1 : a.stride,
                                  left ? a.stride : 1},
                cols{static_cast<In*>(b.data), right ? b.stride : 1, right ? 1 : b.stride};
            launch(stream_,
                   dim3(grid_of(ceil_div(c.rows, kTile)), grid_of(ceil_div(c.cols, kTile))),
                   kThreads, 2 * kDepth * kPitch * sizeof(float), exact_gemm_kernel<In, Out>,
                   static_cast<Out*>(c.data), c.stride, rows, cols, c.rows, c.cols,
                   static_cast<int>(left ? a.rows : a.cols), accumulate);
        });
    });
}

}  // namespace r1::cuda
