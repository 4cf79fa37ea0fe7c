// Memory, recording, and matrix products (cuBLAS) of the CUDA backend.
#include <glob.h>

#include <cstdlib>
#include <cstring>
#include <optional>

#include "cuda/backend_cuda.h"

namespace r1::cuda {
namespace {

constexpr std::size_t kCublasWorkspace = std::size_t{32} << 20;  // as NVIDIA recommends for Hopper
/// What a plan leaves free: libraries and kernels that load when they are first used, recorded
/// graphs, scratch memory. The last two grow with the model, and so with the card: see
/// available_memory().
constexpr std::size_t kReserve = std::size_t{256} << 20;
constexpr std::size_t kNcclBuffers = std::size_t{1} << 30;
constexpr std::size_t kPieceBytes = std::size_t{256} << 10;

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

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

/// This process's number among those that an MPI launcher started on this machine: Open MPI's,
/// MPICH's and Intel's, Slurm's; none without a launcher.
std::optional<int> local_rank() {
    for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"})
        if (const char* rank = std::getenv(name)) return std::max(0, std::atoi(rank));
    return std::nullopt;
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
    decltype(&cublasSetMathMode) set_math_mode = nullptr;
    decltype(&cublasGetStatusString) status_string = nullptr;
    Gemm* gemm = nullptr;
    std::string missing;  ///< why it cannot be used; empty where it can

    Cublas() {
        void* library = nullptr;
        for (int version : {13, 12})  // one that is newer than the driver does not start
            if (const auto name = ".so." + std::to_string(version);
                !library && version <= driver_version() / 1000)
                library =
                    open_library("libcublas" + name, "{cu" + std::to_string(version) + ",cublas}",
                                 "libcublasLt" + name, missing);
        if (!library) {
            missing =
                "no cuBLAS: " + missing + "; name its folder in LD_LIBRARY_PATH, or install it";
            return;
        }
        missing.clear();
        const auto find = [&](auto& function, const char* name) {
            find_function(function, library, name, missing);
        };
        find(create, "cublasCreate_v2");
        find(destroy, "cublasDestroy_v2");
        find(set_stream, "cublasSetStream_v2");
        find(set_workspace, "cublasSetWorkspace_v2");
        find(set_math_mode, "cublasSetMathMode");
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

void* open_library(const std::string& file, const std::string& wheel, const std::string& needs,
                   std::string& missing) {
    void* library = dlopen(file.c_str(), RTLD_NOW);
    if (library) return library;
    missing += (missing.empty() ? "" : "; ") + std::string(dlerror());
    const std::string pattern = "{/usr/local/cuda*/lib64," + environment("CONDA_PREFIX") +
                                "/lib,{" + environment("VIRTUAL_ENV") + "," +
                                environment("CONDA_PREFIX") + "," + environment("HOME") +
                                "/.local,/usr/local,/usr,/opt/conda}/lib/python3*/"
                                "{site,dist}-packages/nvidia/" +
                                wheel + "/lib}/" + file;
    glob_t found{};
    glob(pattern.c_str(), GLOB_BRACE, nullptr, &found);
    for (std::size_t i = 0; i < found.gl_pathc && !library; ++i) {
        const std::string path = found.gl_pathv[i];
        if (!needs.empty())
            dlopen((path.substr(0, path.size() - file.size()) + needs).c_str(), RTLD_NOW);
        library = dlopen(path.c_str(), RTLD_NOW);
    }
    globfree(&found);
    return library;
}

CudaBackend::CudaBackend(int device, DType activation) : activation_(activation), device_(device) {
    cuda::check(cudaSetDevice(device), "no device");
    cudaDeviceProp properties;
    cuda::check(cudaGetDeviceProperties(&properties, device), "properties");
    name_ = "cuda:" + std::to_string(device) + ", " + properties.name;
    cuda::check(cudaStreamCreate(&stream_), "stream");
    for (Piece& piece : ring_) {
        cuda::check(cudaMallocHost(&piece.data, kPieceBytes), "pinned memory");
        cuda::check(cudaEventCreateWithFlags(&piece.copied, cudaEventDisableTiming), "event");
    }
    check(cublas().create(&cublas_));
    check(cublas().set_stream(cublas_, stream_));
    // Sums are in float32 also where a product is split and its result is bfloat16.
    check(cublas().set_math_mode(cublas_, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
    // One fixed workspace: the same algorithms, the same bits.
    outgrown_.emplace_back(*this, kCublasWorkspace);
    check(cublas().set_workspace(cublas_, outgrown_[0].data(), kCublasWorkspace));
    arrived_ = Buffer(*this, kSplitBlocks * sizeof(int));
    cuda::check(cudaMemsetAsync(arrived_.data(), 0, arrived_.bytes(), stream_), "zero");
}

CudaBackend::~CudaBackend() {
    nccl_.reset();
    cublas().destroy(cublas_);
    cudaStreamSynchronize(stream_);
    for (const Piece& piece : ring_) {
        cudaEventDestroy(piece.copied);
        cudaFreeHost(piece.data);
    }
    cudaStreamDestroy(stream_);
}

std::size_t CudaBackend::available_memory() const {
    std::size_t free = 0, total = 0;
    cuda::check(cudaMemGetInfo(&free, &total), "memory");
    const std::size_t reserve = kReserve + total / 100 + (local_rank() ? kNcclBuffers : 0);
    return free > reserve ? free - reserve : 0;
}

/// All that is in use on the GPU, the context and the libraries among it. What other processes hold
/// is counted too: the runtime cannot tell it apart, and a plan has to do without it anyway.
std::size_t CudaBackend::used_memory() const {
    std::size_t free = 0, total = 0;
    cuda::check(cudaMemGetInfo(&free, &total), "memory");
    return total - free;
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

/// By way of pinned memory: when this returns, the host's bytes have been read, whatever the device
/// is at.
void CudaBackend::upload(Tensor to, const void* host) {
    for (std::size_t done = 0; done < to.bytes(); done += kPieceBytes) {
        const std::size_t bytes = std::min(kPieceBytes, to.bytes() - done);
        const Piece& piece = ring_[next_piece_++ % ring_.size()];
        cuda::check(cudaEventSynchronize(piece.copied), "upload");
        std::memcpy(piece.data, static_cast<const std::byte*>(host) + done, bytes);
        cuda::check(cudaMemcpyAsync(static_cast<std::byte*>(to.data) + done, piece.data, bytes,
                                    cudaMemcpyHostToDevice, stream_),
                    "upload");
        cuda::check(cudaEventRecord(piece.copied, stream_), "upload");
    }
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

CudaBackend::Matrix CudaBackend::rounded(Matrix m, Slot slot) {
    const Tensor to{scratch<bf16>(slot, m.rows * m.cols), DType::BF16, m.rows, m.cols};
    to_bfloat16(to, {m.data, m.dtype, m.rows, m.cols});
    return to;
}

void CudaBackend::gemm(Matrix c, Matrix a, Matrix b, Transposed transposed, bool accumulate) {
    if (a.dtype != b.dtype) {
        Matrix& wide = a.dtype == DType::F32 ? a : b;
        wide = rounded(wide, Slot::Rounded);
    }
    if (exact_) return exact_gemm(c, a, b, transposed, accumulate);

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

void CudaBackend::linear_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor x,
                                  Tensor weight) {
    if (!dy.size()) return;
    const bool rounds = dy.dtype == DType::F32 && weight.dtype == DType::BF16;
    const Matrix d =
        rounds ? rounded(dy, Slot::RoundedGradient) : Matrix(dy);  // once for both products
    gemm(dx, d, weight, Transposed::None, false);
    gemm(dweight, d, x, Transposed::Left, true);
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

/// Why the GPU cannot be used; empty where it can. device: its number, in place of -1 that of this
/// process among the GPUs that it sees.
std::string why_not(int& device) {
    const int driver = driver_version();
    if (!driver) return "there is no NVIDIA driver";
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status == cudaErrorInsufficientDriver)
        return "the driver supports CUDA " + dotted(driver) + ", but this was built with CUDA " +
               dotted(CUDART_VERSION) + "; install a newer driver, or build with an older CUDA";
    if (status != cudaSuccess) return cudaGetErrorString(status);
    if (devices == 0) return "there is a driver, but no GPU";
    if (device >= devices)
        return "there is no GPU of this number; the last one is " + std::to_string(devices - 1);
    if (device < 0) device = local_rank().value_or(0) % devices;
    cudaDeviceProp properties;
    cuda::check(cudaGetDeviceProperties(&properties, device), "properties");
    if (properties.major < 8)
        return std::string(properties.name) + " has compute capability " +
               std::to_string(properties.major) + "." + std::to_string(properties.minor) +
               ", but the kernels need 8.0 (Ampere) or newer";
    return cublas().missing;
}

}  // namespace
}  // namespace r1::cuda

extern "C" int r1_backend_version() { return r1::kBackendVersion; }
extern "C" r1::Backend* r1_open_backend(int device, bool bfloat16, const char** why_not) {
    static std::string why;
    try {
        why = r1::cuda::why_not(device);
        if (why.empty())
            return new r1::cuda::CudaBackend(device, bfloat16 ? r1::DType::BF16 : r1::DType::F32);
    } catch (const r1::Error& e) {  // a GPU that is there, and does not start
        why = e.what();
    }
    *why_not = why.c_str();
    return nullptr;
}
