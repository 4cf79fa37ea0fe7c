// The tree between reading an answer (math_parser.cpp) and comparing it (math_answer.cpp).
#pragma once
#include <cctype>
#include <charconv>
#include <cstdint>
#include <utility>
#include <vector>

#include "src/rl/math_answer.h"

namespace r1 {

constexpr std::size_t kLongestList = 64;
constexpr int kDeepestNesting = 40;

/// Integers modulo the prime 2^61 - 1.
using Wide = unsigned __int128;
constexpr std::uint64_t kPrime = (1ull << 61) - 1;

inline std::uint64_t mod_add(std::uint64_t a, std::uint64_t b) { return (a + b) % kPrime; }
inline std::uint64_t mod_sub(std::uint64_t a, std::uint64_t b) { return (a + kPrime - b) % kPrime; }
inline std::uint64_t mod_mul(std::uint64_t a, std::uint64_t b) {
    return static_cast<std::uint64_t>(Wide{a} * b % kPrime);
}
inline std::uint64_t mod_power(std::uint64_t base, std::uint64_t exponent) {
    std::uint64_t result = 1;
    for (; exponent; exponent >>= 1, base = mod_mul(base, base))
        if (exponent & 1) result = mod_mul(result, base);
    return result;
}

/// A decimal numeral: digits / 10^places.
struct Decimal {
    std::uint64_t digits_mod = 0;
    double value = 0;
    std::int64_t integer = -1;  ///< if it is a whole number below 2^53
    int places = 0;
};

inline Decimal decimal(const std::string& digits, int places) {
    Decimal d;
    for (char c : digits)
        d.digits_mod = mod_add(mod_mul(d.digits_mod, 10), static_cast<std::uint64_t>(c - '0'));
    const std::string text = digits + "e-" + std::to_string(places);
    std::from_chars(text.data(), text.data() + text.size(), d.value);
    d.places = places;
    if (places == 0 && d.value < 0x1p53) d.integer = static_cast<std::int64_t>(d.value);
    return d;
}

/// What an answer is read into.
struct MathAnswer::Node {
    enum Kind {
        Number,     // number
        Symbol,     // name: a variable, with its subscript
        Word,       // name: a text answer
        Sum,        // children
        Product,    // children
        Quotient,   // 2 children
        Power,      // 2 children
        Function,   // name; arguments
        Plusminus,  // 2 children: a or nothing, b
        Based,      // 2 children: digits and the base
        Pair,       // 2 children in the brackets of name: a point or an interval
        Tuple,      // 3 or more children in brackets
        List,       // children without order, a set among them
        Union,      // of intervals
        Matrix,     // rows x columns children
        Chain  // relations between children: name[i] stands between i and i + 1, one of = ~ < l > g
               // n i
    } kind;
    std::string name{};
    std::vector<std::shared_ptr<const Node>> children{};
    Decimal number{};
    std::size_t columns = 0;
};

using Node = MathAnswer::Node;
using Ptr = std::shared_ptr<const Node>;

/// A word or label as it is compared: lower case, without blanks, brackets and stops.
inline std::string label(const std::string& text) {
    std::string plain;
    for (const unsigned char c : text)
        if (!std::isspace(c) && c != '(' && c != ')' && c != '.')
            plain += static_cast<char>(std::tolower(c));
    return plain;
}

inline Ptr make(Node::Kind kind, std::vector<Ptr> children, std::string name = "") {
    return std::make_shared<Node>(Node{kind, std::move(name), std::move(children), {}, 0});
}
inline Ptr make_integer(int value) {
    return std::make_shared<Node>(Node{Node::Number, "", {}, decimal(std::to_string(value), 0), 0});
}
inline Ptr negative(Ptr node) {
    return make(Node::Product, {make(Node::Sum, {}, "-1"), std::move(node)});
}

}  // namespace r1
