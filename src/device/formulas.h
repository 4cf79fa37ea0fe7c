// The formulas that every device computes bit by bit alike: rounding to bfloat16, and random bits.
// The first part is the common subset of C, C++, CUDA, OpenCL C and Metal, so that each of them
// includes this very file; a float goes in and out as its bits, because each language spells that
// cast differently. What namespace r1 holds at the end is C++ alone.
#ifndef R1_DEVICE_FORMULAS_H
#define R1_DEVICE_FORMULAS_H

#if defined(__OPENCL_VERSION__)
typedef ushort r1_u16;
typedef uint r1_u32;
typedef ulong r1_u64;
#define R1_FORMULA static inline
#elif defined(__METAL_VERSION__)
typedef ushort r1_u16;
typedef uint r1_u32;
typedef ulong r1_u64;
#define R1_FORMULA inline
#else
#include <stdint.h>
typedef uint16_t r1_u16;
typedef uint32_t r1_u32;
typedef uint64_t r1_u64;
#if defined(__CUDACC__)
#define R1_FORMULA __host__ __device__ inline
#elif defined(__cplusplus)
#define R1_FORMULA inline
#else
#define R1_FORMULA static inline
#endif
#endif

/// The bfloat16 nearest to the float with these bits, of two the one with an even last bit. A NaN
/// stays a NaN.
R1_FORMULA r1_u16 r1_round_to_bfloat16(r1_u32 bits) {
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (r1_u16)(bits >> 16 | 0x40u);
    return (r1_u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
/// The bfloat16 below or above that float (towards zero or away from it), with probabilities that
/// make the mean exact, by the lower 16 of the random bits. Infinities and NaN stay.
R1_FORMULA r1_u16 r1_round_stochastically(r1_u32 bits, r1_u64 random) {
    if ((bits & 0x7f800000u) == 0x7f800000u) return r1_round_to_bfloat16(bits);
    return (r1_u16)((bits + (r1_u32)(random & 0xffffu)) >> 16);
}

/// 64 random bits by Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
/// SC 2011): the key is the seed, the counter c0..c3; the first word of the result is the upper
/// half.
R1_FORMULA r1_u64 r1_philox(r1_u64 seed, r1_u32 c0, r1_u32 c1, r1_u32 c2, r1_u32 c3) {
    r1_u32 k0 = (r1_u32)seed;
    r1_u32 k1 = (r1_u32)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const r1_u64 p0 = (r1_u64)0xD2511F53u * c0;
        const r1_u64 p1 = (r1_u64)0xCD9E8D57u * c2;
        c0 = (r1_u32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (r1_u32)p1;
        c2 = (r1_u32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (r1_u32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (r1_u64)c0 << 32 | c1;
}
/// What Backend::adamw() rounds element `index` of a call with: bits 0 to 15 are for the parameter,
/// 16 to 31 for m, 32 to 47 for v.
R1_FORMULA r1_u64 r1_rounding_bits(r1_u64 seed, r1_u64 step, r1_u64 index) {
    return r1_philox(seed, (r1_u32)index, (r1_u32)(index >> 32), (r1_u32)step, 0x726f756eu);
}

#if defined(__cplusplus) && !defined(__METAL_VERSION__)
#include <bit>

namespace r1 {

/// bfloat16 is a storage format: the upper half of a float.
inline float from_bfloat16(std::uint16_t half) { return std::bit_cast<float>(r1_u32{half} << 16); }
inline std::uint16_t to_bfloat16(float x) { return r1_round_to_bfloat16(std::bit_cast<r1_u32>(x)); }

/// Uniform in (0, 1), from the upper 53 of Philox' bits: what Backend::sample() draws. CUDA's
/// kernels call it too.
R1_FORMULA double philox_uniform(std::uint64_t seed, const std::uint32_t counter[4]) {
    const r1_u64 bits = r1_philox(seed, counter[0], counter[1], counter[2], counter[3]);
    return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
}

}  // namespace r1
#endif

#endif
