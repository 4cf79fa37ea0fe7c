// Eight-bit floats for AdamW's moments: a sign, four bits of exponent, three of mantissa, relative to the largest of a block of
// 256 (block-wise as in 8-bit optimizers, arXiv 2110.02861; the format is our own E4M3 without NaN). Values from 2^-17
// of the largest up; rounded stochastically, so that small updates are not lost on average.
#pragma once
#include <cstdint>

namespace r1 {

constexpr int kFloat8Block = 256;

/// The code of sign x magnitude, where magnitude_bits are the bits of a float of 0 to 256 (256 stands for the block's
/// largest) and `random` gives 20 bits.
constexpr std::uint8_t encode_float8(bool negative, std::uint32_t magnitude_bits, float magnitude,
                                     std::uint64_t random) {
    const auto bits20 = static_cast<std::uint32_t>(random & 0xfffff);
    std::uint32_t code = 0;
    if (magnitude_bits >= 121u << 23)  // 2^-6 and above: cut the mantissa to three bits
        code = ((magnitude_bits + bits20) >> 20) - (120u << 3);
    else  // below, steps of 2^-9
        code = static_cast<std::uint32_t>(magnitude * 512.0f + static_cast<float>(bits20) * 0x1p-20f);
    return static_cast<std::uint8_t>((code > 127 ? 127 : code) | (negative ? 128u : 0u));
}

/// -480 to 480.
constexpr float decode_float8(std::uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const float magnitude = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                                          : static_cast<float>((8 + mantissa) << exponent) * 0x1p-10f;
    return code & 128 ? -magnitude : magnitude;
}

}  // namespace r1
