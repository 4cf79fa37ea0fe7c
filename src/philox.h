// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), for every backend (nvcc compiles constexpr functions for the device too).
#pragma once
#include <cstdint>

namespace r1 {

/// Uniform in (0, 1), with 53 bits; key = seed. What Backend::sample() draws.
constexpr double philox_uniform(std::uint64_t seed, const std::uint32_t counter[4]) {
    std::uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0, p1 = std::uint64_t{0xCD9E8D57u} * c2;
        const std::uint32_t high0 = static_cast<std::uint32_t>(p0 >> 32),
                            high1 = static_cast<std::uint32_t>(p1 >> 32);
        c0 = high1 ^ c1 ^ k0, c1 = static_cast<std::uint32_t>(p1);
        c2 = high0 ^ c3 ^ k1, c3 = static_cast<std::uint32_t>(p0);
    }
    const std::uint64_t bits = (std::uint64_t{c0} << 21) ^ (c1 >> 11);
    return (static_cast<double>(bits) + 0.5) * 0x1p-53;
}

}  // namespace r1
