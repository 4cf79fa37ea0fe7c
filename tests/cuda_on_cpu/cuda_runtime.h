// Stands in for CUDA's header of this name when cuda/*.cu is compiled by an ordinary C++ compiler,
// so that every kernel runs, and can be tested, without a GPU. Every CUDA thread is a fiber; see
// shim.cpp. What it shows: wrong results, missing barriers, memory out of bounds (under
// AddressSanitizer) or never written (it is filled with NaN), memory of the host's that is reused
// before it was read (nothing is done before someone waits). What it cannot show: races between
// blocks, speed.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

/// Runs a grid: block after block, the threads of each as fibers that change at barriers and warp
/// operations. Shared memory is `shared_bytes` of fresh NaN.
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread);
void* shared_memory();
/// The last of a warp's lanes to arrive runs operation(the arguments of all 32) for all of them.
void warp_collective(void* argument, void (*operation)(void* const arguments[32]));
/// Copies 16 bytes, of which all but `bytes` are zero, now or when the thread waits: by chance.
void copy_async(void* to, const void* from, int bytes);
void end_group();
/// For those in all groups but the latest few, and in none yet.
void wait_for_copies(int latest, bool ungrouped);
/// Queues work for when someone waits. While a stream is captured it is kept instead.
void submit(std::function<void()> work);

template <class T>
struct Shuffle {
    T value, result;
    int source;
};
template <class T>
T shuffle(T value, int source) {
    Shuffle<T> mine{value, value, source};
    warp_collective(&mine, [](void* const all[32]) {
        for (int lane = 0; lane < 32; ++lane) {
            auto* to = static_cast<Shuffle<T>*>(all[lane]);
            to->result = static_cast<Shuffle<T>*>(all[to->source & 31])->value;
        }
    });
    return mine.result;
}

}  // namespace cuda_on_cpu

inline dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the running fiber

void __syncthreads();
inline void __syncwarp() {
    cuda_on_cpu::warp_collective(nullptr, [](void* const*) {});
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return cuda_on_cpu::shuffle(value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return cuda_on_cpu::shuffle(value, static_cast<int>(threadIdx.x % 32) ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    return cuda_on_cpu::shuffle(value, lane < delta ? lane : lane - delta);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
    struct Vote {
        bool yes;
        unsigned result;
    } mine{vote, 0};
    cuda_on_cpu::warp_collective(&mine, [](void* const all[32]) {
        unsigned bits = 0;
        for (int lane = 0; lane < 32; ++lane)
            bits |= static_cast<unsigned>(static_cast<Vote*>(all[lane])->yes) << lane;
        for (int lane = 0; lane < 32; ++lane) static_cast<Vote*>(all[lane])->result = bits;
    });
    return mine.result;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
using std::max;
using std::min;

// ---- the runtime's functions, as far as cuda/ calls them ----

#define CUDART_VERSION 13000
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
using cudaStream_t = void*;
using cudaEvent_t = std::size_t*;  ///< how much work was queued before it
constexpr unsigned cudaEventDisableTiming = 2;
using cudaGraph_t = std::vector<std::function<void()>>*;
using cudaGraphExec_t = cudaGraph_t;
struct cudaDeviceProp {
    char name[256] = "a CPU that runs CUDA kernels";
    int major = 9, minor = 0;
    struct {
        char bytes[16];
    } uuid = {};
};

const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMalloc(void** data, std::size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMallocHost(void** data, std::size_t bytes);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t);
cudaError_t cudaStreamCreate(cudaStream_t*);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
