// What an ordinary C++ compiler cannot do: launch a kernel, give it shared memory, multiply on
// tensor cores (PTX ISA, "Matrix multiply-accumulate operation using mma instruction").
// tests/cuda_on_cpu has a header of this name that can.
#pragma once
#include <cstdint>

#include "cuda/check.cuh"

namespace r1::cuda {

/// Runs kernel(arguments...) on grid x block threads, with `shared` bytes of dynamic shared memory.
template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, dim3 grid, unsigned block, std::size_t shared,
            void (*kernel)(Parameters...), Arguments... arguments) {
    if (shared > 48 * 1024)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "shared memory");
    kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
    check(cudaGetLastError(), "a kernel could not be launched");
}

/// The dynamic shared memory of the block; the only kind the kernels use.
template <class T>
__device__ T* dynamic_shared() {
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    return reinterpret_cast<T*>(shared_bytes);
}

/// Begins to copy 16 bytes into shared memory, or zeros where there is nothing to copy; they are
/// there when this thread has waited, and for other threads after a barrier behind that.
__device__ inline void copy_async(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
/// What was begun since the last end_group() is a group, of which a thread may wait for all but the
/// latest few.
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Latest>
__device__ void wait_for_copies_but() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Latest) : "memory");
}

/// Adds 1 to what all blocks count in, and returns what it was. What this block wrote before a
/// barrier in front of this can be read behind it by the blocks that come later, behind a barrier
/// of theirs.
__device__ inline int arrive(int* count) {
    __threadfence();
    const int before = atomicAdd(count, 1);
    __threadfence();
    return before;
}

/// Two floats as the bfloat16 halves of a register, the first in the lower half.
__device__ inline std::uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&both);
}

/// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8, and gets from each
/// matrix row l / 4, columns 2(l%4), +1; if transposed, column l / 4, rows 2(l%4), +1.
template <bool Transposed>
__device__ void load_matrices(std::uint32_t (&r)[4], const bf16* row) {
    const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (Transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
}

/// c [16 x 8] += a [16 x 16] b [16 x 8], mma.sync.m16n8k16 on bfloat16 with float32 sums.
__device__ inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                           std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace r1::cuda
