// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), for every backend (nvcc compiles constexpr functions for the device too).
#pragma once
#include <cstdint>

namespace r1 {

/// 64 random bits; key = seed.
constexpr std::uint64_t philox_bits(std::uint64_t seed, const std::uint32_t counter[4]) {
    std::uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0, p1 = std::uint64_t{0xCD9E8D57u} * c2;
        const std::uint32_t high0 = static_cast<std::uint32_t>(p0 >> 32),
                            high1 = static_cast<std::uint32_t>(p1 >> 32);
        c0 = high1 ^ c1 ^ k0, c1 = static_cast<std::uint32_t>(p1);
        c2 = high0 ^ c3 ^ k1, c3 = static_cast<std::uint32_t>(p0);
    }
    return std::uint64_t{c0} << 32 | c1;
}

/// Uniform in (0, 1), with 53 bits: what Backend::sample() draws.
constexpr double philox_uniform(std::uint64_t seed, const std::uint32_t counter[4]) {
    return (static_cast<double>(philox_bits(seed, counter) >> 11) + 0.5) * 0x1p-53;
}

/// What Backend::adamw() rounds element `index` with: 16 bits for param, the next 16 for m, and for v.
constexpr std::uint64_t rounding_bits(std::uint64_t seed, std::int64_t step, std::int64_t index) {
    const std::uint32_t counter[4] = {static_cast<std::uint32_t>(index),
                                      static_cast<std::uint32_t>(index >> 32),
                                      static_cast<std::uint32_t>(step), 0x726f756e};
    return philox_bits(seed, counter);
}
/// The upper half of a float's bits: the float rounded to bfloat16 by 16 random bits. Infinities and NaN stay.
constexpr std::uint16_t round_stochastically(std::uint32_t float_bits, std::uint64_t random) {
    const bool finite = (float_bits & 0x7f800000u) != 0x7f800000u;
    return static_cast<std::uint16_t>((float_bits + (finite ? random & 0xffff : 0)) >> 16);
}

}  // namespace r1
