// What both headers named cuda/hardware.cuh begin with, that of a GPU and that of its stand-in.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "src/run/error.h"

namespace r1::cuda {

using bf16 = __nv_bfloat16;

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) fail("CUDA: ", what, ": ", cudaGetErrorString(status));
}

}  // namespace r1::cuda
