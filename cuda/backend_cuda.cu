// Memory, recording, and matrix products (cuBLAS) of the CUDA backend.
#include <dlfcn.h>

#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

constexpr std::size_t kCublasWorkspace = std::size_t{32} << 20;  // as NVIDIA recommends for Hopper
constexpr std::size_t kReserve = std::size_t{256} << 20;  // cuBLAS itself, scratch, fragmentation

/// A version of CUDA as its documents write it: 12040 is 12.4.
std::string dotted(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}
/// The newest CUDA that the driver supports; 0 without a driver.
int driver_version() {
    int version = 0;
    cudaDriverGetVersion(&version);
    return version;
}

/// The functions of cuBLAS that are used here. CUDA 12 and CUDA 13 have the same ones in libraries
/// of different names; so the library is opened at run time instead of linked, and either serves.
struct Cublas {
    using Gemm = cublasStatus_t(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                const void*, const void*, cudaDataType, int, const void*,
                                cudaDataType, int, const void*, void*, cudaDataType, int,
                                cublasComputeType_t, cublasGemmAlgo_t);
    decltype(&cublasCreate) create = nullptr;
    decltype(&cublasDestroy) destroy = nullptr;
    decltype(&cublasSetStream) set_stream = nullptr;
    decltype(&cublasSetWorkspace) set_workspace = nullptr;
    decltype(&cublasGetStatusString) status_string = nullptr;
    Gemm* gemm = nullptr;
    std::string missing;  ///< why it cannot be used; empty where it can

    Cublas() {
        void* library = nullptr;
        for (int version : {13, 12}) {
            if (library || version > driver_version() / 1000) continue;
            library = dlopen(("libcublas.so." + std::to_string(version)).c_str(), RTLD_NOW);
            if (!library) missing += (missing.empty() ? "" : "; ") + std::string(dlerror());
        }
        if (!library) {
            missing =
                "no cuBLAS: " + missing + "; name its folder in LD_LIBRARY_PATH, or install it";
            return;
        }
        missing.clear();
        auto find = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
            if (!function) missing = std::string("the cuBLAS that was found has no ") + name;
        };
        find(create, "cublasCreate_v2");
        find(destroy, "cublasDestroy_v2");
        find(set_stream, "cublasSetStream_v2");
        find(set_workspace, "cublasSetWorkspace_v2");
        find(status_string, "cublasGetStatusString");
        find(gemm, "cublasGemmEx");
    }
};
const Cublas& cublas() {
    static const Cublas opened;  // never closed: its functions live in it
    return opened;
}

void check(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) fail("cuBLAS: ", cublas().status_string(status));
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
    check(cublas().create(&cublas_));
    check(cublas().set_stream(cublas_, stream_));
    outgrown_.emplace_back(
        *this,
        kCublasWorkspace);  // one fixed workspace: the same algorithms, the same bits
    check(cublas().set_workspace(cublas_, outgrown_[0].data(), kCublasWorkspace));
}

CudaBackend::~CudaBackend() {
    cublas().destroy(cublas_);
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
    cuda::check(cudaMemcpyAsync(to.data, host, to.bytes(), cudaMemcpyHostToDevice, stream_),
                "upload");
    if (to.bytes() > 64 * 1024)  // smaller ones are copied aside before the call returns
        cuda::check(cudaStreamSynchronize(stream_), "upload");
}
void CudaBackend::download(void* host, Tensor from) {
    if (!from.size()) return;
    cuda::check(cudaMemcpyAsync(host, from.data, from.bytes(), cudaMemcpyDeviceToHost, stream_),
                "download");
    cuda::check(cudaStreamSynchronize(stream_), "download");
}
void CudaBackend::zero(Tensor t) {
    if (t.size()) cuda::check(cudaMemsetAsync(t.data, 0, t.bytes(), stream_), "zero");
}

/// The first run is an ordinary one, in which cuBLAS makes its choices and scratch memory grows;
/// the second records a CUDA graph; from then on the graph is replayed.
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
        const Tensor to{scratch(slot, static_cast<std::size_t>(m.rows * m.cols) * 2), DType::BF16,
                        m.rows, m.cols};
        to_bfloat16(to, {m.data, m.dtype, m.rows, m.cols});
        m = to;
    };
    if (a.dtype != b.dtype)
        a.dtype == DType::F32 ? round(a, Slot::RoundedA) : round(b, Slot::RoundedB);

    // Row-major C = A B is column-major C^T = B^T A^T: the factors change places, and nothing is
    // moved.
    const std::int64_t k = transposed == Transposed::Left ? a.rows : a.cols;
    auto type = [](DType t) { return t == DType::BF16 ? CUDA_R_16BF : CUDA_R_32F; };
    const float one = 1, beta = accumulate ? 1 : 0;
    check(cublas().gemm(cublas_, transposed == Transposed::Right ? CUBLAS_OP_T : CUBLAS_OP_N,
                        transposed == Transposed::Left ? CUBLAS_OP_T : CUBLAS_OP_N,
                        static_cast<int>(c.cols), static_cast<int>(c.rows), static_cast<int>(k),
                        &one, b.data, type(b.dtype), static_cast<int>(b.stride), a.data,
                        type(a.dtype), static_cast<int>(a.stride), &beta, c.data, type(c.dtype),
                        static_cast<int>(c.stride), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void CudaBackend::linear_forward(Tensor y, Tensor x, Tensor weight, Tensor bias) {
    if (!y.size()) return;
    gemm(y, x, weight, Transposed::Right, false);
    if (!bias) return;
    choose(y.dtype == DType::BF16, [&](auto is_bf16) {
        using T = std::conditional_t<is_bf16, bf16, float>;
        launch(stream_, grid_of(std::min<std::int64_t>(ceil_div(y.size(), 256), 4096)), 256, 0,
               add_bias<T>, y.as<T>(), bias.as<float>(), y.size(), static_cast<int>(y.cols));
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
        launch(stream_, dim3(grid_of(ceil_div(dy.cols, 128)), grid_of(parts)), 128, 0,
               bias_backward<T>, partial, dy.as<T>(), dy.rows, static_cast<int>(dy.cols));
    });
    add_column_sums(dbias, partial, parts, dy.cols);
}

namespace {

std::string why_not() {
    const int driver = driver_version();
    if (!driver) return "there is no NVIDIA driver";
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status == cudaErrorInsufficientDriver)
        return "the driver supports CUDA " + dotted(driver) + ", but this was built with CUDA " +
               dotted(CUDART_VERSION) + "; install a newer driver, or build with an older CUDA";
    if (status != cudaSuccess) return cudaGetErrorString(status);
    if (devices == 0) return "there is a driver, but no GPU";
    cudaDeviceProp properties;
    cuda::check(cudaGetDeviceProperties(&properties, 0), "properties");
    if (properties.major < 8)
        return std::string(properties.name) + " has compute capability " +
               std::to_string(properties.major) + "." + std::to_string(properties.minor) +
               ", but the kernels need 8.0 (Ampere) or newer";
    return cublas().missing;
}

}  // namespace
}  // namespace r1::cuda

extern "C" int r1_backend_version() { return r1::kBackendVersion; }
extern "C" r1::Backend* r1_open_backend(bool bfloat16, const char** why_not) {
    static std::string why;
    why = r1::cuda::why_not();
    *why_not = why.c_str();
    return why.empty() ? new r1::cuda::CudaBackend(bfloat16 ? r1::DType::BF16 : r1::DType::F32)
                       : nullptr;
}
