// Memory, recording, and matrix products (cuBLAS) of the CUDA backend.
#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

constexpr std::size_t kCublasWorkspace = std::size_t{32} << 20;  // as NVIDIA recommends for Hopper
constexpr std::size_t kReserve = std::size_t{256} << 20;         // cuBLAS itself, scratch, fragmentation

void check(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) fail("cuBLAS: ", cublasGetStatusString(status));
}

/// A recorded sequence of launches.
struct Recording {
    cudaGraphExec_t executable = nullptr;
    bool warm = false;
    ~Recording() {
        if (executable) cudaGraphExecDestroy(executable);
    }
};

/// y[n, :] += bias. Moves 2 N O elements.
template <class T>
__global__ void add_bias(T* y, const float* bias, std::int64_t size, int cols) {
    for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < size;
         i += std::int64_t{gridDim.x} * blockDim.x)
        y[i] = from_float<T>(to_float(y[i]) + bias[i % cols]);
}

/// partial[p, :] = sum of rows p, p + P, p + 2P, ... of dy. Reads N O elements.
template <class T>
__global__ void bias_backward(float* partial, const T* dy, std::int64_t rows, int cols) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float sum = 0;
    for (std::int64_t n = blockIdx.y; n < rows; n += gridDim.y) sum += to_float(dy[n * cols + c]);
    partial[blockIdx.y * std::int64_t{cols} + c] = sum;
}

}  // namespace

CudaBackend::CudaBackend(DType activation) : activation_(activation) {
    cuda::check(cudaSetDevice(0), "no device");
    cudaDeviceProp properties;
    cuda::check(cudaGetDeviceProperties(&properties, 0), "properties");
    name_ = std::string("cuda, ") + properties.name;
    std::size_t total = 0;
    cuda::check(cudaMemGetInfo(&free_before_, &total), "memory");
    cuda::check(cudaStreamCreate(&stream_), "stream");
    check(cublasCreate(&cublas_));
    check(cublasSetStream(cublas_, stream_));
    outgrown_.emplace_back(*this,
                           kCublasWorkspace);  // one fixed workspace: the same algorithms, the same bits
    check(cublasSetWorkspace(cublas_, outgrown_[0].data(), kCublasWorkspace));
}

CudaBackend::~CudaBackend() {
    cublasDestroy(cublas_);
    cudaStreamDestroy(stream_);
}

std::size_t CudaBackend::available_memory() const {
    std::size_t free = 0, total = 0;
    cuda::check(cudaMemGetInfo(&free, &total), "memory");
    return free > kReserve ? free - kReserve : 0;
}

std::size_t CudaBackend::used_memory() const {
    std::size_t free = 0, total = 0;
    cuda::check(cudaMemGetInfo(&free, &total), "memory");
    return free_before_ > free ? free_before_ - free : 0;
}

void* CudaBackend::allocate(std::size_t bytes) {
    void* data = nullptr;
    if (cudaMalloc(&data, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError();  // it stays otherwise, and the next launch would report it
        fail("the GPU has no room for another ", bytes, " bytes");
    }
    return data;
}
void CudaBackend::release(void* data) { cudaFree(data); }

void CudaBackend::upload(Tensor to, const void* host) {
    if (!to.size()) return;
    cuda::check(cudaMemcpyAsync(to.data, host, to.bytes(), cudaMemcpyHostToDevice, stream_), "upload");
    if (to.bytes() > 64 * 1024)  // smaller ones are copied aside before the call returns
        cuda::check(cudaStreamSynchronize(stream_), "upload");
}
void CudaBackend::download(void* host, Tensor from) {
    if (!from.size()) return;
    cuda::check(cudaMemcpyAsync(host, from.data, from.bytes(), cudaMemcpyDeviceToHost, stream_), "download");
    cuda::check(cudaStreamSynchronize(stream_), "download");
}
void CudaBackend::zero(Tensor t) {
    if (t.size()) cuda::check(cudaMemsetAsync(t.data, 0, t.bytes(), stream_), "zero");
}

/// The first run is an ordinary one, in which cuBLAS makes its choices and scratch memory grows; the second records a
/// CUDA graph; from then on the graph is replayed.
void CudaBackend::replay(std::shared_ptr<void>& recording, const std::function<void()>& body) {
    if (!recording) recording = std::make_shared<Recording>();
    auto& r = *static_cast<Recording*>(recording.get());
    if (!r.warm) {
        body();
        r.warm = true;
        return;
    }
    if (!r.executable) {
        cudaGraph_t graph = nullptr;
        cuda::check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording");
        body();
        cuda::check(cudaStreamEndCapture(stream_, &graph), "recording");
        cuda::check(cudaGraphInstantiate(&r.executable, graph, 0), "recording");
        cudaGraphDestroy(graph);
    }
    cuda::check(cudaGraphLaunch(r.executable, stream_), "replay");
}

void* CudaBackend::scratch(Slot slot, std::size_t bytes) {
    Buffer& buffer = scratch_[slot];
    if (buffer.bytes() < bytes) {
        std::size_t size = std::size_t{1} << 20;
        while (size < bytes) size *= 2;
        if (buffer.data()) outgrown_.push_back(std::move(buffer));
        buffer = Buffer(*this, size);
    }
    return buffer.data();
}

// ---- matrix products ----

void CudaBackend::gemm(Matrix c, Matrix a, Matrix b, Transposed transposed, bool accumulate) {
    auto round = [&](Matrix& m, Slot slot) {
        const Tensor to{scratch(slot, static_cast<std::size_t>(m.rows * m.cols) * 2), DType::BF16, m.rows,
                        m.cols};
        copy(to, {m.data, m.dtype, m.rows, m.cols});
        m = to;
    };
    if (a.dtype != b.dtype) a.dtype == DType::F32 ? round(a, Slot::RoundedA) : round(b, Slot::RoundedB);

    // Row-major C = A B is column-major C^T = B^T A^T: the factors change places, and nothing is moved.
    const std::int64_t k = transposed == Transposed::Left ? a.rows : a.cols;
    auto type = [](DType t) { return t == DType::BF16 ? CUDA_R_16BF : CUDA_R_32F; };
    const float one = 1, beta = accumulate ? 1 : 0;
    check(cublasGemmEx(cublas_, transposed == Transposed::Right ? CUBLAS_OP_T : CUBLAS_OP_N,
                       transposed == Transposed::Left ? CUBLAS_OP_T : CUBLAS_OP_N, static_cast<int>(c.cols),
                       static_cast<int>(c.rows), static_cast<int>(k), &one, b.data, type(b.dtype),
                       static_cast<int>(b.stride), a.data, type(a.dtype), static_cast<int>(a.stride), &beta,
                       c.data, type(c.dtype), static_cast<int>(c.stride), CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT));
}

void CudaBackend::linear_forward(Tensor y, Tensor x, Tensor weight, Tensor bias) {
    if (!y.size()) return;
    gemm(y, x, weight, Transposed::Right, false);
    if (!bias) return;
    choose(y.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, grid_of(std::min<std::int64_t>(ceil_div(y.size(), 256), 4096)), 256, 0, add_bias<T>,
               y.as<T>(), bias.as<float>(), y.size(), static_cast<int>(y.cols));
    });
}

void CudaBackend::linear_backward_input(Tensor dx, Tensor dy, Tensor weight) {
    if (dx.size()) gemm(dx, dy, weight, Transposed::None, false);
}

void CudaBackend::linear_backward_weight(Tensor dweight, Tensor dbias, Tensor dy, Tensor x) {
    if (!dy.size()) return;
    gemm(dweight, dy, x, Transposed::Left, true);
    if (!dbias) return;
    const std::int64_t parts = std::min<std::int64_t>(dy.rows, 256);
    auto* partial = scratch<float>(Slot::Partial, parts * dy.cols);
    choose(dy.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, dim3(grid_of(ceil_div(dy.cols, 128)), grid_of(parts)), 128, 0, bias_backward<T>,
               partial, dy.as<T>(), dy.rows, static_cast<int>(dy.cols));
    });
    add_column_sums(dbias, partial, parts, dy.cols);
}

}  // namespace r1::cuda

/// What the programs look up in the separately loaded library.
extern "C" r1::Backend* r1_make_cuda_backend(bool bfloat16) {
    return new r1::cuda::CudaBackend(bfloat16 ? r1::DType::BF16 : r1::DType::F32);
}
/// 0 where there is a driver and a device; else CUDA's error, as a sentence.
extern "C" const char* r1_cuda_missing() {
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    return status != cudaSuccess ? cudaGetErrorString(status) : devices == 0 ? "no device" : nullptr;
}
