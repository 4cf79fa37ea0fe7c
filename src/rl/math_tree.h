// The tree between reading an answer (math_parser.cpp) and comparing it (math_answer.cpp).
#pragma once
#include <utility>
#include <vector>

#include "src/rl/math_answer.h"
#include "src/rl/math_number.h"

namespace r1 {

/// What an answer is read into. `op` says what it is:
///   "#"        numeral: value, and in name how it is written, "0.50"
///   "x"        variable or constant: name, with its subscript
///   "word"     text: name in lower case; a child, if it may also be read as a product of variables
///   "+" "*"    sum, product: name[i] stands in front of child i: + - p (plus-minus) m
///   (minus-plus),
///              * / and a blank for a product without a sign; # joins the parts of a mixed number
///   "^"        power: base and exponent
///   "call"     function, by name, of the children
///   "base"     digits and the base that they are written in
///   "unit" "%" quantity: child, name
///   "tuple"    children in the brackets of name, "()" or "[)": a point or an interval
///   "list"     children without brackets, in name how they are separated
///   "set"      children in braces
///   "cup"      sets, joined by name[i]: u union, n intersection, \ difference
///   "matrix"   rows x columns children
///   "chain"    relations: name[i] stands between i and i + 1: = ~ < l > g n (unequal) i (in)
struct MathAnswer::Node {
    std::string op, name{};
    std::vector<std::shared_ptr<const Node>> children{};
    mpq_class value{};
    std::size_t columns = 0;

    bool is(const char* kind) const { return op == kind; }
};

using Node = MathAnswer::Node;
using Ptr = std::shared_ptr<const Node>;

inline Ptr make(const char* op, std::string name, std::vector<Ptr> children) {
    return std::make_shared<Node>(Node{op, std::move(name), std::move(children)});
}
inline Ptr make_number(mpq_class value, std::string written = "") {
    return std::make_shared<Node>(Node{"#", std::move(written), {}, std::move(value)});
}

}  // namespace r1
