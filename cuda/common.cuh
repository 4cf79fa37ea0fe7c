// What the kernels share: types, vector loads, sums over a warp and a block.
//
// Kernels are named after their primitive in src/device/backend.h, whose formula they implement.
// Each says how many bytes it moves; where that number is the kernel's cost, it is all there is to
// know about its speed.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cuda/hardware.cuh"

namespace r1::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

constexpr std::int64_t ceil_div(std::int64_t count, std::int64_t size) {
    return (count + size - 1) / size;
}
inline unsigned grid_of(std::int64_t blocks) { return static_cast<unsigned>(blocks); }

/// Threads for a block that goes over `count` items: whole warps, at most 256.
inline unsigned threads_for(std::int64_t count) {
    return static_cast<unsigned>(count >= 256 ? 256 : count < 32 ? 32 : ceil_div(count, 32) * 32);
}

/// body(std::true_type) if the condition holds, else body(std::false_type): a template argument
/// from a value.
template <class Body>
void choose(bool condition, Body body) {
    condition ? body(std::true_type()) : body(std::false_type());
}

/// Vectors of eight elements where shapes and addresses allow it, else single elements.
template <class... Pointers>
bool eightfold(std::int64_t cols, Pointers... pointers) {
    return cols % 8 == 0 && ((reinterpret_cast<std::uintptr_t>(pointers) % 32 == 0) && ...);
}

// ---- device ----

/// Which of all warps of a launch this thread is in.
__device__ inline std::int64_t warp_index() {
    return blockIdx.x * std::int64_t{blockDim.x / 32} + threadIdx.x / 32;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ T from_float(float x) {
    if constexpr (std::is_same_v<T, bf16>)
        return __float2bfloat16(x);
    else
        return x;
}

/// W neighbouring elements, moved as one.
template <class T, int W>
struct alignas(sizeof(T) * W) Pack {
    T v[W];
};
/// Loads W elements as float32.
template <int W, class T>
__device__ Pack<float, W> load(const T* from) {
    const auto raw = *reinterpret_cast<const Pack<T, W>*>(from);
    Pack<float, W> wide;
    for (int i = 0; i < W; ++i) wide.v[i] = to_float(raw.v[i]);
    return wide;
}
template <int W, class T>
__device__ void store(T* to, const Pack<float, W>& wide) {
    Pack<T, W> raw;
    for (int i = 0; i < W; ++i) raw.v[i] = from_float<T>(wide.v[i]);
    *reinterpret_cast<Pack<T, W>*>(to) = raw;
}

struct Add {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Max {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return a > b ? a : b;
    }
};

/// The same result in every lane, always summed in the same order.
template <class T, class Operation>
__device__ T warp_reduce(T value, Operation operation) {
    for (int offset = 16; offset > 0; offset /= 2)
        value = operation(value, __shfl_xor_sync(kAllLanes, value, offset));
    return value;
}
/// The same result in every thread. shared: 32 elements, free for anything afterwards.
template <class T, class Operation>
__device__ T block_reduce(T value, T identity, T* shared, Operation operation) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_reduce(value, operation);
    if (lane == 0) shared[warp] = value;
    __syncthreads();
    value = warp_reduce(lane < warps ? shared[lane] : identity, operation);
    __syncthreads();
    return value;
}
__device__ inline float block_sum(float value, float* shared) {
    return block_reduce(value, 0.0f, shared, Add());
}

}  // namespace r1::cuda
