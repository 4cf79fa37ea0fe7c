// Rounding to bfloat16, SwiGLU, sums of squares, AdamW: one thread an element or eight.
#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

/// Blocks of 256 threads that stride over `items`, enough to fill the largest GPU.
unsigned blocks_for(std::int64_t items) {
    return grid_of(std::min<std::int64_t>(ceil_div(items, 256), 8192));
}
__device__ std::int64_t thread_index() {
    return blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
}
__device__ std::int64_t all_threads() { return std::int64_t{gridDim.x} * blockDim.x; }

/// Reads and writes `packs` x W elements.
template <int W>
__global__ void to_bfloat16_kernel(bf16* to, const float* from, std::int64_t packs) {
    for (std::int64_t i = thread_index(); i < packs; i += all_threads())
        store<W>(to + i * W, load<W>(from + i * W));
}

/// out = silu(gate) up. Reads 2 N F elements, writes N F.
template <class T, int W>
__global__ void swiglu_forward_kernel(T* out, const T* gate_up, std::int64_t rows, int F) {
    const int packs = F / W;
    for (std::int64_t i = thread_index(); i < rows * packs; i += all_threads()) {
        const std::int64_t n = i / packs;
        const int f = static_cast<int>(i % packs) * W;
        auto gate = load<W>(gate_up + n * 2 * F + f);
        const auto up = load<W>(gate_up + n * 2 * F + F + f);
        for (int j = 0; j < W; ++j) gate.v[j] = gate.v[j] / (1 + expf(-gate.v[j])) * up.v[j];
        store<W>(out + n * F + f, gate);
    }
}

/// With s = 1 / (1 + exp(-gate)): dup = d gate s, dgate = d up s (1 + gate (1 - s)). Reads 3 N F,
/// writes 2 N F.
template <class T, int W>
__global__ void swiglu_backward_kernel(T* dgate_up, const T* dout, const T* gate_up,
                                       std::int64_t rows, int F) {
    const int packs = F / W;
    for (std::int64_t i = thread_index(); i < rows * packs; i += all_threads()) {
        const std::int64_t n = i / packs;
        const int f = static_cast<int>(i % packs) * W;
        auto gate = load<W>(gate_up + n * 2 * F + f), up = load<W>(gate_up + n * 2 * F + F + f);
        const auto d = load<W>(dout + n * F + f);
        for (int j = 0; j < W; ++j) {
            const float g = gate.v[j], s = 1 / (1 + expf(-g));
            gate.v[j] = d.v[j] * up.v[j] * s * (1 + g * (1 - s));
            up.v[j] = d.v[j] * g * s;
        }
        store<W>(dgate_up + n * 2 * F + f, gate);
        store<W>(dgate_up + n * 2 * F + F + f, up);
    }
}

/// partial[block] = the block's share of sum x^2, in float64.
__global__ void sum_of_squares_kernel(double* partial, const float* x, std::int64_t size) {
    double sum = 0;
    for (std::int64_t i = thread_index(); i < size; i += all_threads())
        sum += static_cast<double>(x[i]) * x[i];
    sum = block_reduce(sum, 0.0, dynamic_shared<double>(), Add());
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void sum_kernel(double* sum, const double* partial, int count) {
    double mine = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) mine += partial[i];
    mine = block_reduce(mine, 0.0, dynamic_shared<double>(), Add());
    if (threadIdx.x == 0) *sum = mine;
}

/// out[c] += sum_r partial[r, c]. A block sums 32 columns with eight threads each.
__global__ void column_sums_kernel(float* out, const float* partial, std::int64_t rows,
                                   std::int64_t stride, int cols) {
    float* shared = dynamic_shared<float>();  // [8][32]
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    float sum = 0;
    if (c < cols)
        for (std::int64_t r = part; r < rows; r += 8) sum += partial[r * stride + c];
    shared[part * 32 + lane] = sum;
    __syncthreads();
    if (part != 0 || c >= cols) return;
    for (int p = 1; p < 8; ++p) sum += shared[p * 32 + lane];
    out[c] += sum;
}

/// Stores in float32, or in bfloat16 rounded by 16 random bits.
__device__ void store_rounded(float* to, float value, std::uint64_t) { *to = value; }
__device__ void store_rounded(bf16* to, float value, std::uint64_t random) {
    const std::uint32_t bits = r1_round_stochastically(__float_as_uint(value), random);
    *to = __float2bfloat16(__uint_as_float(bits << 16));  // exact
}

/// Reads and writes the gradient, the parameter and each state: 32 bytes a parameter in float32, 20
/// in bfloat16, and 2 for a copy.
template <class Param, class State>
__global__ void adamw_kernel(Param* param, bf16* copy, float* grad, State* m, State* v,
                             std::int64_t size, AdamWOptions o, float correction1,
                             float correction2) {
    for (std::int64_t i = thread_index(); i < size; i += all_threads()) {
        const float g = o.grad_scale * grad[i], p = to_float(param[i]);
        const float m_i = o.beta1 * to_float(m[i]) + (1 - o.beta1) * g,
                    v_i = o.beta2 * to_float(v[i]) + (1 - o.beta2) * g * g;
        const std::uint64_t random =
            std::is_same_v<State, bf16> ? r1_rounding_bits(o.seed, o.step, i) : 0;
        const float p_i = p - o.lr * (m_i * correction1 / (sqrtf(v_i * correction2) + o.eps) +
                                      o.weight_decay * p);
        store_rounded(param + i, p_i, random);
        if (copy) copy[i] = __float2bfloat16(p_i);
        grad[i] = 0;
        store_rounded(m + i, m_i, random >> 16);
        store_rounded(v + i, v_i, random >> 32);
    }
}

}  // namespace

void CudaBackend::to_bfloat16(Tensor to, Tensor from) {
    const std::int64_t size = to.size();
    if (!size) return;
    choose(eightfold(size, to.data, from.data), [&](auto wide) {
        constexpr int W = wide ? 8 : 1;
        launch(stream_, blocks_for(size / W), 256, 0, to_bfloat16_kernel<W>, to.as<bf16>(),
               from.as<float>(), size / W);
    });
}

void CudaBackend::swiglu_forward(Tensor out, Tensor gate_up) {
    if (!out.size()) return;
    choose(out.dtype == DType::BF16, [&](auto is_bf16) {
        choose(eightfold(out.cols, out.data, gate_up.data), [&](auto wide) {
            using T = std::conditional_t<is_bf16, bf16, float>;
            constexpr int W = wide ? 8 : 1;
            launch(stream_, blocks_for(out.size() / W), 256, 0, swiglu_forward_kernel<T, W>,
                   out.as<T>(), gate_up.as<T>(), out.rows, static_cast<int>(out.cols));
        });
    });
}

void CudaBackend::swiglu_backward(Tensor dgate_up, Tensor dout, Tensor gate_up) {
    if (!dout.size()) return;
    choose(dout.dtype == DType::BF16, [&](auto is_bf16) {
        choose(eightfold(dout.cols, dgate_up.data, dout.data, gate_up.data), [&](auto wide) {
            using T = std::conditional_t<is_bf16, bf16, float>;
            constexpr int W = wide ? 8 : 1;
            launch(stream_, blocks_for(dout.size() / W), 256, 0, swiglu_backward_kernel<T, W>,
                   dgate_up.as<T>(), dout.as<T>(), gate_up.as<T>(), dout.rows,
                   static_cast<int>(dout.cols));
        });
    });
}

double CudaBackend::sum_of_squares(Tensor t) {
    const int blocks =
        static_cast<int>(std::clamp<std::int64_t>(ceil_div(t.size(), 1024), 1, 1024));
    auto* partial = scratch<double>(Slot::Partial, blocks + 1);
    launch(stream_, blocks, 256, 32 * sizeof(double), sum_of_squares_kernel, partial, t.as<float>(),
           t.size());
    launch(stream_, 1, 256, 32 * sizeof(double), sum_kernel, partial + blocks, partial, blocks);
    double sum = 0;
    download(&sum, {partial + blocks, DType::F64, 1, 1});
    return sum;
}

void CudaBackend::add_column_sums(Tensor out, const float* partial, std::int64_t rows,
                                  std::int64_t stride) {
    launch(stream_, grid_of(ceil_div(out.size(), 32)), 256, 256 * sizeof(float), column_sums_kernel,
           out.as<float>(), partial, rows, stride, static_cast<int>(out.size()));
}

void CudaBackend::adamw(Tensor param, Tensor copy, Tensor grad, Tensor m, Tensor v,
                        const AdamWOptions& o) {
    if (!param.size()) return;
    auto correction = [&](double beta) {
        return static_cast<float>(1 / (1 - std::pow(beta, o.step)));
    };
    auto run = [&](auto* p, auto* state_m, auto* state_v) {
        using Param = std::remove_pointer_t<decltype(p)>;
        using State = std::remove_pointer_t<decltype(state_m)>;
        launch(stream_, blocks_for(param.size()), 256, 0, adamw_kernel<Param, State>, p,
               copy ? copy.as<bf16>() : nullptr, grad.as<float>(), state_m, state_v, param.size(),
               o, correction(o.beta1), correction(o.beta2));
    };
    if (param.dtype == DType::BF16)
        run(param.as<bf16>(), m.as<bf16>(), v.as<bf16>());
    else if (m.dtype == DType::BF16)
        run(param.as<float>(), m.as<bf16>(), v.as<bf16>());
    else
        run(param.as<float>(), m.as<float>(), v.as<float>());
}

}  // namespace r1::cuda
