// Stands in for CUDA's header of this name; see cuda_runtime.h.
#pragma once
#include "cuda_runtime.h"
#include "src/device/formulas.h"

struct __nv_bfloat16 {
    std::uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16(float x) { return {r1::to_bfloat16(x)}; }
