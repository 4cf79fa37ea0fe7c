// Products of small matrices on tensor cores: mma.sync.m16n8k16 on bfloat16 with float32 accumulation, and the loads
// from shared memory that go with it (PTX ISA, "Matrix multiply-accumulate operation using mma instruction").
//
// A warp holds matrices in pieces ("fragments"). Of a 16 x 8 result c, lane l holds c[0..1] = row l/4, columns
// 2(l%4), +1, and c[2..3] = the same of row l/4 + 8. Two neighbouring results of a row block make the left factor
// (16 x 16) of a next product without moving anything between lanes; attention rests on that.
//
// Matrices in shared memory have rows of D + 8 elements: the 16 extra bytes make eight rows fall into different banks.
#pragma once
#include "cuda/common.cuh"

namespace r1::cuda {

template <int D>
constexpr int kStride = D + 8;

/// Two floats as the bfloat16 halves of a register, the first in the lower half.
__device__ inline std::uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&both);
#else
    return __float2bfloat16(low).bits | static_cast<std::uint32_t>(__float2bfloat16(high).bits) << 16;
#endif
}

/// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8, and gets from each matrix row l / 4,
/// columns 2(l%4), +1; if transposed, column l / 4, rows 2(l%4), +1.
template <bool Transposed>
__device__ void load_matrices(std::uint32_t (&r)[4], const bf16* row) {
#ifdef __CUDACC__
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
#else
    struct Lane {
        const bf16* row;
        std::uint32_t r[4];
    } mine{row, {}};
    cuda_on_cpu::warp_collective(&mine, [](void* const all[32]) {
        for (int l = 0; l < 32; ++l)
            for (int m = 0; m < 4; ++m) {
                auto at = [&](int i, int j) { return static_cast<Lane*>(all[8 * m + i])->row[j].bits; };
                const int i = l / 4, j = 2 * (l % 4);
                static_cast<Lane*>(all[l])->r[m] =
                    Transposed ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
            }
    });
    std::copy(mine.r, mine.r + 4, r);
#endif
}

/// c [16 x 8] += a [16 x 16] b [16 x 8].
__device__ inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
#ifdef __CUDACC__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    struct Lane {
        float* c;
        const std::uint32_t* a;
        std::uint32_t b[2];
    } mine{c, a, {b0, b1}};
    cuda_on_cpu::warp_collective(&mine, [](void* const all[32]) {
        auto half = [](std::uint32_t pair, int which) { return __uint_as_float((pair >> 16 * which) << 16); };
        float a[16][16], b[16][8];
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 2; ++i) {
                const auto* lane = static_cast<const Lane*>(all[l]);
                for (int k = 0; k < 4; ++k)
                    a[l / 4 + 8 * (k % 2)][2 * (l % 4) + i + 8 * (k / 2)] = half(lane->a[k], i);
                for (int k = 0; k < 2; ++k) b[2 * (l % 4) + i + 8 * k][l / 4] = half(lane->b[k], i);
            }
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 4; ++i)
                for (int k = 0; k < 16; ++k)
                    static_cast<Lane*>(all[l])->c[i] += a[l / 4 + 8 * (i / 2)][k] * b[k][2 * (l % 4) + i % 2];
    });
#endif
}

/// c [16 x 8 Tiles] += A B^T over D: A is 16 rows, B 8 Tiles rows of D elements in shared memory.
template <int D, int Tiles>
__device__ void multiply_transposed(float (&c)[Tiles][4], const bf16* a, const bf16* b) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    for (int k = 0; k < D; k += 16) {
        std::uint32_t left[4];
        load_matrices<false>(left, a + (matrix % 2 * 8 + row) * kStride<D> + k + matrix / 2 * 8);
#pragma unroll
        for (int t = 0; t < Tiles; t += 2) {
            std::uint32_t right[4];
            load_matrices<false>(right, b + (t * 8 + matrix / 2 * 8 + row) * kStride<D> + k + matrix % 2 * 8);
            mma(c[t], left, right[0], right[1]);
            mma(c[t + 1], left, right[2], right[3]);
        }
    }
}

/// c [16 x D] += P B: P [16 x 8 Tiles] is the result of an earlier product, rounded here; B is 8 Tiles rows of D
/// elements in shared memory.
template <int D, int Tiles>
__device__ void multiply(float (&c)[D / 8][4], const float (&p)[Tiles][4], const bf16* b) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
#pragma unroll
    for (int t = 0; t < Tiles; t += 2) {
        const std::uint32_t left[4] = {pack_bf16(p[t][0], p[t][1]), pack_bf16(p[t][2], p[t][3]),
                                       pack_bf16(p[t + 1][0], p[t + 1][1]),
                                       pack_bf16(p[t + 1][2], p[t + 1][3])};
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            std::uint32_t right[4];
            load_matrices<true>(right,
                                b + (t * 8 + matrix % 2 * 8 + row) * kStride<D> + d * 8 + matrix / 2 * 8);
            mma(c[d], left, right[0], right[1]);
            mma(c[d + 1], left, right[2], right[3]);
        }
    }
}

/// Rows [0, rows) of D elements, `stride` apart in global memory, into shared memory; rows up to `capacity` are zero.
/// `threads` threads, this one the `thread`th, take 16 bytes each.
template <int D>
__device__ void load_rows(bf16* to, const bf16* from, std::int64_t stride, int rows, int capacity, int thread,
                          int threads) {
    using Chunk = Pack<bf16, 8>;
    for (int i = thread; i < capacity * (D / 8); i += threads) {
        const int row = i / (D / 8), d = i % (D / 8) * 8;
        auto* chunk = reinterpret_cast<Chunk*>(to + row * kStride<D> + d);
        *chunk = row < rows ? *reinterpret_cast<const Chunk*>(from + row * stride + d) : Chunk{};
    }
}

}  // namespace r1::cuda
