// Stands in for cuda/hardware.cuh; see cuda_runtime.h.
#pragma once
#include "cuda/check.cuh"

namespace r1::cuda {

template <class... Parameters, class... Arguments>
void launch(cudaStream_t, dim3 grid, unsigned block, std::size_t shared,
            void (*kernel)(Parameters...), Arguments... arguments) {
    cuda_on_cpu::submit([=] {
        cuda_on_cpu::launch(grid, block, shared,
                            [=] { kernel(static_cast<Parameters>(arguments)...); });
    });
}

template <class T>
T* dynamic_shared() {
    return static_cast<T*>(cuda_on_cpu::shared_memory());
}

inline void copy_async(void* to, const void* from, bool there) {
    cuda_on_cpu::copy_async(to, from, there ? 16 : 0);
}
inline void wait_for_copies() { cuda_on_cpu::wait_for_copies(0, true); }
inline void end_group() { cuda_on_cpu::end_group(); }
template <int Latest>
void wait_for_copies_but() {
    cuda_on_cpu::wait_for_copies(Latest, false);
}

/// Blocks run one after the other.
inline int arrive(int* count) { return (*count)++; }

inline std::uint32_t pack_bf16(float low, float high) {
    return __float2bfloat16(low).bits | static_cast<std::uint32_t>(__float2bfloat16(high).bits)
                                            << 16;
}

template <bool Transposed>
void load_matrices(std::uint32_t (&r)[4], const bf16* row) {
    struct Lane {
        const bf16* row;
        std::uint32_t r[4];
    } mine{row, {}};
    cuda_on_cpu::warp_collective(&mine, [](void* const all[32]) {
        for (int l = 0; l < 32; ++l)
            for (int m = 0; m < 4; ++m) {
                auto at = [&](int i, int j) {
                    return static_cast<Lane*>(all[8 * m + i])->row[j].bits;
                };
                const int i = l / 4, j = 2 * (l % 4);
                static_cast<Lane*>(all[l])->r[m] =
                    Transposed ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
            }
    });
    std::copy(mine.r, mine.r + 4, r);
}

inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    struct Lane {
        float* c;
        const std::uint32_t* a;
        std::uint32_t b[2];
    } mine{c, a, {b0, b1}};
    cuda_on_cpu::warp_collective(&mine, [](void* const all[32]) {
        auto half = [](std::uint32_t pair, int which) {
            return __uint_as_float((pair >> 16 * which) << 16);
        };
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
                    static_cast<Lane*>(all[l])->c[i] +=
                        a[l / 4 + 8 * (i / 2)][k] * b[k][2 * (l % 4) + i % 2];
    });
}

}  // namespace r1::cuda
