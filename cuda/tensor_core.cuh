// Products of small matrices on tensor cores, of mma() and load_matrices() in cuda/hardware.cuh.
//
// A warp holds matrices in pieces ("fragments"). Of a 16 x 8 result c, lane l holds c[0..1] = row
// l/4, columns 2(l%4), +1, and c[2..3] = the same of row l/4 + 8. Two neighbouring results of a row
// block make the left factor (16 x 16) of a next product without moving anything between lanes;
// attention rests on that.
//
// Matrices in shared memory have rows of D + 8 elements: the 16 extra bytes make eight rows fall
// into different banks.
#pragma once
#include "cuda/common.cuh"

namespace r1::cuda {

template <int D>
constexpr int kStride = D + 8;

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
            load_matrices<false>(
                right, b + (t * 8 + matrix / 2 * 8 + row) * kStride<D> + k + matrix % 2 * 8);
            mma(c[t], left, right[0], right[1]);
            mma(c[t + 1], left, right[2], right[3]);
        }
    }
}

/// c [16 x D] += P B: P [16 x 8 Tiles] is the result of an earlier product, rounded here; B is 8
/// Tiles rows of D elements in shared memory.
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
            load_matrices<true>(
                right, b + (t * 8 + matrix % 2 * 8 + row) * kStride<D> + d * 8 + matrix / 2 * 8);
            mma(c[d], left, right[0], right[1]);
            mma(c[d + 1], left, right[2], right[3]);
        }
    }
}

/// Begins to copy rows [0, rows) of D elements, `stride` apart in global memory, into shared
/// memory; rows up to `capacity` become zero. `threads` threads, this one the `thread`th, take 16
/// bytes each.
template <int D>
__device__ void load_rows(bf16* to, const bf16* from, std::int64_t stride, int rows, int capacity,
                          int thread, int threads) {
#pragma unroll 2  // and no more: addresses would take the registers of sums
    for (int i = thread; i < capacity * (D / 8); i += threads) {
        const int row = i / (D / 8), d = i % (D / 8) * 8;
        copy_async(to + row * kStride<D> + d, from + (row < rows ? row * stride + d : 0),
                   row < rows);
    }
}

}  // namespace r1::cuda
