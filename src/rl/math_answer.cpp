// Comparing answers: exact and approximate evaluation, then what equality means for each kind.
#include "src/rl/math_answer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <limits>
#include <map>
#include <numbers>
#include <set>

#include "src/rl/math_tree.h"

namespace r1 {
namespace {

using std::string;

/// What an expression may be evaluated in. Each has of(decimal), + - *, inverse() and is_zero().
struct Exact {
    std::uint64_t re = 0, im = 0;
    Exact operator+(const Exact& o) const { return {mod_add(re, o.re), mod_add(im, o.im)}; }
    Exact operator-(const Exact& o) const { return {mod_sub(re, o.re), mod_sub(im, o.im)}; }
    Exact operator*(const Exact& o) const {
        return {mod_sub(mod_mul(re, o.re), mod_mul(im, o.im)),
                mod_add(mod_mul(re, o.im), mod_mul(im, o.re))};
    }
    Exact inverse() const {
        const std::uint64_t n = mod_power(mod_add(mod_mul(re, re), mod_mul(im, im)), kPrime - 2);
        return {mod_mul(re, n), mod_mul(mod_sub(0, im), n)};
    }
    bool is_zero() const { return re == 0 && im == 0; }
};
using Approximate = std::complex<double>;

// ---- evaluation ----

/// How much a comparison may cost, in operations.
struct Budget {
    int left = 2'000'000;
    bool spend(int cost) { return (left -= cost) > 0; }
};

/// The value that the variable `name` takes in round k: pseudo-random, in (1/4, 5/4).
double value_of(const string& name, int round) {
    std::uint64_t hash =
        1469598103934665603ull + static_cast<std::uint64_t>(round) * 0x9e3779b97f4a7c15ull;
    for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    hash ^= hash >> 31;
    return 0.25 + static_cast<double>((hash * 0x9e3779b97f4a7c15ull) >> 11) * 0x1p-53;
}

/// Evaluates an expression in one of the two number systems; nothing where it has no value there.
/// Plusminus takes `sign`, and the variable `free`, if any, the value `at`.
template <class Value>
struct Evaluator {
    static constexpr bool kExact = std::is_same_v<Value, Exact>;
    Budget& budget;
    int round = 0;
    int sign = 1;
    const string* free = nullptr;
    double at = 0;

    std::optional<Value> operator()(const Node& node) const {
        if (!budget.spend(1)) return std::nullopt;
        const auto child = [&](std::size_t i) { return (*this)(*node.children[i]); };
        switch (node.kind) {
            case Node::Number:
                if constexpr (kExact)
                    return Exact{mod_mul(node.number.digits_mod,
                                         mod_power(mod_power(10, kPrime - 2), node.number.places)),
                                 0};
                else
                    return node.number.value;
            case Node::Symbol:
                return symbol(node.name);
            case Node::Based:
                return child(0);
            case Node::Sum:
            case Node::Product: {
                if (node.name == "-1") return whole(-1);
                Value result = whole(node.kind == Node::Product);
                for (std::size_t i = 0; i < node.children.size(); ++i) {
                    const auto term = child(i);
                    if (!term) return std::nullopt;
                    result = node.kind == Node::Sum ? result + *term : result * *term;
                }
                return result;
            }
            case Node::Quotient: {
                const auto a = child(0), b = child(1);
                if (!a || !b || is_zero(*b)) return std::nullopt;
                return *a * inverse(*b);
            }
            case Node::Plusminus: {
                const auto last = child(node.children.size() - 1);
                const auto first =
                    node.children.size() == 2 ? child(0) : std::optional<Value>(whole(0));
                if (!first || !last) return std::nullopt;
                return *first + whole(sign) * *last;
            }
            case Node::Power:
                return power(node);
            case Node::Function:
                return function(node);
            default:
                return std::nullopt;
        }
    }

    static Value whole(std::int64_t n) {
        if constexpr (kExact)
            return n >= 0 ? Exact{static_cast<std::uint64_t>(n) % kPrime, 0}
                          : Exact{mod_sub(0, static_cast<std::uint64_t>(-n) % kPrime), 0};
        else
            return static_cast<double>(n);
    }
    static bool is_zero(const Value& v) {
        if constexpr (kExact)
            return v.is_zero();
        else
            return v == 0.0;
    }
    static Value inverse(const Value& v) {
        if constexpr (kExact)
            return v.inverse();
        else
            return 1.0 / v;
    }

    std::optional<Value> symbol(const string& name) const {
        if (name == "infty" || name.starts_with("mathbb")) return std::nullopt;
        if constexpr (kExact) {  // pi and e are as good as variables: they solve no equation
            if (name == "i") return Exact{0, 1};
            return Exact{static_cast<std::uint64_t>(value_of(name, round) * 0x1p60), 0};
        } else {
            if (name == "i") return Approximate(0, 1);
            if (name == "pi") return std::numbers::pi;
            if (name == "e") return std::numbers::e;
            return free && name == *free ? at : value_of(name, round);
        }
    }

    /// The whole number that a node is, if it is a small one.
    std::optional<std::int64_t> small_integer(const Node& node) const {
        const auto value = Evaluator<Approximate>{budget}(node);
        if (!value || value->imag() != 0 || std::abs(value->real()) > 1e6 ||
            value->real() != std::floor(value->real()))
            return std::nullopt;
        return static_cast<std::int64_t>(value->real());
    }
    static bool is_constant(const Node& node) {
        return node.kind != Node::Symbol &&
               std::ranges::all_of(node.children, [](const Ptr& c) { return is_constant(*c); });
    }

    std::optional<Value> power(const Node& node) const {
        auto base = (*this)(*node.children[0]);
        if (!base) return std::nullopt;
        const Node& exponent = *node.children[1];
        if (is_constant(exponent)) {
            if (const auto n = small_integer(exponent)) {
                if (*n < 0 && is_zero(*base)) return std::nullopt;
                if (*n < 0) base = inverse(*base);
                Value result = whole(1);
                for (std::int64_t k = std::abs(*n); k; k >>= 1, base = *base * *base)
                    if (k & 1) result = result * *base;
                return result;
            }
        }
        if constexpr (kExact)
            return std::nullopt;
        else {
            const auto n = (*this)(exponent);
            if (!n) return std::nullopt;
            if (exponent.kind == Node::Quotient && base->imag() == 0 &&
                base->real() < 0)  // (-8)^(1/3) = -2
                if (const auto degree = small_integer(*exponent.children[1]);
                    degree && *degree % 2 != 0)
                    if (const auto k = small_integer(*exponent.children[0]))
                        return std::pow(
                            -std::pow(-base->real(), 1.0 / static_cast<double>(*degree)),
                            static_cast<double>(*k));
            return std::pow(*base, *n);
        }
    }

    std::optional<Value> function(const Node& node) const {
        const string& name = node.name;
        if (name == "factorial" || name == "binom") {
            const auto n = small_integer(*node.children[0]);
            const auto k = name == "binom" ? small_integer(*node.children[1]) : n;
            if (!n || !k || *n < 0 || *k < 0 || *k > *n || *n > 1000 ||
                !budget.spend(static_cast<int>(*n)))
                return std::nullopt;
            Value result = whole(1);
            for (std::int64_t i = 1; i <= *k; ++i) {
                result = result * whole(*n - *k + i);
                if (name == "binom") result = result * inverse(whole(i));
            }
            return result;
        }
        if constexpr (kExact) {
            return std::nullopt;
        } else {
            std::array<Approximate, 2> x;
            if (node.children.empty() || node.children.size() > 2) return std::nullopt;
            for (std::size_t i = 0; i < node.children.size(); ++i) {
                const auto value = (*this)(*node.children[i]);
                if (!value) return std::nullopt;
                x[i] = *value;
            }
            const bool real = x[0].imag() == 0 && x[1].imag() == 0;
            if (name == "root") {
                if (real && x[0].real() < 0 && std::fmod(x[1].real(), 2) == 1)
                    return -std::pow(-x[0], 1.0 / x[1]);
                return x[1] == 2.0 ? std::sqrt(x[0]) : std::pow(x[0], 1.0 / x[1]);
            }
            if (node.children.size() == 2) {
                if (!real) return std::nullopt;
                if (name == "max") return std::max(x[0].real(), x[1].real());
                if (name == "min") return std::min(x[0].real(), x[1].real());
                return std::nullopt;
            }
            using Complex = const Approximate&;
            static const std::map<string, Approximate (*)(Complex)> kValues = {
                {"abs", [](Complex z) -> Approximate { return std::abs(z); }},
                {"sqrt", [](Complex z) { return std::sqrt(z); }},
                {"exp", [](Complex z) { return std::exp(z); }},
                {"ln", [](Complex z) { return std::log(z); }},
                {"log", [](Complex z) { return std::log10(z); }},
                {"lg", [](Complex z) { return std::log10(z); }},
                {"sin", [](Complex z) { return std::sin(z); }},
                {"cos", [](Complex z) { return std::cos(z); }},
                {"tan", [](Complex z) { return std::tan(z); }},
                {"cot", [](Complex z) { return 1.0 / std::tan(z); }},
                {"sec", [](Complex z) { return 1.0 / std::cos(z); }},
                {"csc", [](Complex z) { return 1.0 / std::sin(z); }},
                {"arcsin", [](Complex z) { return std::asin(z); }},
                {"arccos", [](Complex z) { return std::acos(z); }},
                {"arctan", [](Complex z) { return std::atan(z); }},
                {"sinh", [](Complex z) { return std::sinh(z); }},
                {"cosh", [](Complex z) { return std::cosh(z); }},
                {"tanh", [](Complex z) { return std::tanh(z); }}};
            if (const auto found = kValues.find(name); found != kValues.end())
                return found->second(x[0]);
            return std::nullopt;
        }
    }
};

bool finite(const Approximate& v) { return std::isfinite(v.real()) && std::isfinite(v.imag()); }
bool close(const Approximate& a, const Approximate& b) {
    return std::abs(a - b) <= 1e-9 * std::max(std::abs(a), std::abs(b)) || (a == b);
}

// ---- comparison ----

class Comparison {
  public:
    bool equal(const Ptr& a, const Ptr& b, int depth = 0) {
        if (depth > kDeepestNesting || !budget_.spend(1)) return false;
        if (a->kind == Node::Chain || b->kind == Node::Chain || a->kind == Node::Union ||
            b->kind == Node::Union)
            return equal_relations(a, b, depth);
        const auto left = alternatives(a), right = alternatives(b);
        const bool many = left.size() != 1 || right.size() != 1 || is_list(*a) || is_list(*b);
        if (!many) return equal_single(*a, *b, depth);
        if (is_list(*a) != is_list(*b) && a->kind != Node::Plusminus &&
            b->kind != Node::Plusminus) {
            const Node &list = is_list(*a) ? *a : *b, &other = is_list(*a) ? *b : *a;
            if (other.kind == Node::Pair || other.kind == Node::Tuple)
                return equal_in_order(list, other, depth);  // {1,3} for (1,3)
        }
        auto contained = [&](const std::vector<Item>& inner, const std::vector<Item>& outer) {
            return std::ranges::all_of(inner, [&](const Item& x) {
                return std::ranges::any_of(
                    outer, [&](const Item& y) { return equal_items(x, y, depth + 1); });
            });
        };
        return left.empty() == right.empty() && contained(left, right) && contained(right, left);
    }

  private:
    /// An element of a list, with the sign that its plus-minus has.
    struct Item {
        Ptr node;
        int sign;
    };

    static bool is_list(const Node& n) { return n.kind == Node::List; }
    static bool has_plusminus(const Node& n) {
        return n.kind == Node::Plusminus ||
               std::ranges::any_of(n.children, [](const Ptr& c) { return has_plusminus(*c); });
    }
    static bool is_bracketed(const Node& n) {
        return n.kind == Node::Pair || n.kind == Node::Tuple || n.kind == Node::Matrix ||
               n.kind == Node::List;
    }

    /// The elements of a list; an expression with a plus-minus is two.
    static std::vector<Item> alternatives(const Ptr& node) {
        std::vector<Item> items;
        for (const Ptr& child : is_list(*node) ? node->children : std::vector{node}) {
            items.push_back({child, 1});
            if (!is_bracketed(*child) && has_plusminus(*child)) items.push_back({child, -1});
        }
        return items;
    }
    bool equal_items(const Item& a, const Item& b, int depth) {
        if (is_bracketed(*a.node) || is_bracketed(*b.node) || a.node->kind == Node::Chain ||
            b.node->kind == Node::Chain)
            return equal(a.node, b.node, depth);
        return equal_values(*a.node, *b.node, a.sign, b.sign);
    }

    bool equal_in_order(const Node& a, const Node& b, int depth) {
        if (a.children.size() != b.children.size() || a.columns != b.columns) return false;
        for (std::size_t i = 0; i < a.children.size(); ++i)
            if (!equal(a.children[i], b.children[i], depth + 1)) return false;
        return true;
    }

    bool equal_single(const Node& a, const Node& b, int depth) {
        if (a.kind == Node::Word || b.kind == Node::Word)
            return word_of(a) == word_of(b) && !word_of(a).empty();
        if (a.kind == Node::Based && b.kind == Node::Based)
            return equal_values(*a.children[0], *b.children[0], 1, 1) &&
                   equal_values(*a.children[1], *b.children[1], 1, 1);
        if (is_bracketed(a) || is_bracketed(b))
            return a.kind == b.kind && (a.name == b.name || a.name.empty() || b.name.empty()) &&
                   equal_in_order(a, b, depth);
        return equal_values(a, b, 1, 1);
    }

    /// A word, or letters that the grammar takes for a product: "(C)", "east", "AB".
    static string word_of(const Node& n) {
        if (n.kind == Node::Word || n.kind == Node::Symbol) return label(n.name);
        string word;
        if (n.kind != Node::Product) return word;
        for (const Ptr& c : n.children) {
            if (c->kind != Node::Symbol) return "";
            word += label(c->name);
        }
        return word;
    }

    bool equal_values(const Node& a, const Node& b, int sign_a, int sign_b) {
        if (a.kind == Node::Symbol && b.kind == Node::Symbol) return a.name == b.name;
        bool exact = true;
        for (int round = 0; round < 2 && exact; ++round) {
            const auto x = Evaluator<Exact>{budget_, round, sign_a}(a),
                       y = Evaluator<Exact>{budget_, round, sign_b}(b);
            exact = x && y;
            if (exact && !(*x - *y).is_zero())
                return rounded(a, b, sign_b) || rounded(b, a, sign_a);
        }
        if (exact) return true;
        int agreed = 0;
        for (int round = 0; round < 6; ++round) {
            const auto x = Evaluator<Approximate>{budget_, round, sign_a}(a),
                       y = Evaluator<Approximate>{budget_, round, sign_b}(b);
            if (!x || !y || !finite(*x) || !finite(*y)) continue;
            if (!close(*x, *y)) return rounded(a, b, sign_b) || rounded(b, a, sign_a);
            ++agreed;
        }
        return agreed >= 3;
    }

    /// Whether `numeral` is a decimal of four places or more that `value`, which is none, rounds
    /// to.
    bool rounded(const Node& numeral, const Node& value, int sign) {
        const Node* n = &numeral;
        double factor = 1;
        if (n->kind == Node::Product && n->children.size() == 2 && n->children[0]->name == "-1")
            n = n->children[1].get(), factor = -1;
        if (n->kind != Node::Number || n->number.places < 4 || value.kind == Node::Number)
            return false;
        const auto v = Evaluator<Approximate>{budget_, 0, sign}(value);
        return v && has_no_symbol(value) &&
               std::abs(*v - factor * n->number.value) <=
                   0.500001 * std::pow(10.0, -n->number.places);
    }
    static bool has_no_symbol(const Node& n) {
        return (n.kind != Node::Symbol || n.name == "pi" || n.name == "e") &&
               std::ranges::all_of(n.children, [](const Ptr& c) { return has_no_symbol(*c); });
    }

    // ---- equations, inequalities, intervals ----

    /// What may stand on the left of "x =" in an answer: x, f(x), |AB|, (p, q), A/B.
    static bool is_name(const Node& n) {
        if (n.kind == Node::Symbol) return true;
        if (n.kind != Node::Product && n.kind != Node::Quotient && n.kind != Node::Function &&
            n.kind != Node::Pair && n.kind != Node::Tuple)
            return false;
        return !n.children.empty() &&
               std::ranges::all_of(n.children, [](const Ptr& c) { return is_name(*c); });
    }
    /// The value of "x = 1 + 1 = 2", of "5 = x" and of "x ~ 3"; nothing for another relation.
    static Ptr assigned(const Node& n) {
        if (n.kind != Node::Chain || n.name.find_first_not_of("=~") != string::npos) return nullptr;
        if (!is_name(*n.children[0]))
            return n.children.size() == 2 && is_name(*n.children[1]) ? n.children[0] : nullptr;
        const auto approximate = n.name.find('~');
        return n.children[approximate == string::npos || approximate == 0 ? n.children.size() - 1
                                                                          : approximate];
    }
    static bool is_equation(const Node& n) { return n.kind == Node::Chain && n.name == "="; }

    bool equal_relations(const Ptr& a, const Ptr& b, int depth) {
        if (is_equation(*a) && is_equation(*b)) {
            const Ptr x = assigned(*a), y = assigned(*b);
            return (x && y && equal(x, y, depth + 1)) || proportional(*a, *b, false);
        }
        const Ptr x = assigned(*a), y = assigned(*b);
        if (x || y) return equal(x ? x : a, y ? y : b, depth + 1);
        if (a->kind == Node::List || b->kind == Node::List) {
            const auto list = [](const Ptr& p) {
                return p->kind == Node::List ? p : make(Node::List, {p});
            };
            return a->kind != b->kind && equal(list(a), list(b), depth + 1);
        }
        if (a->kind == Node::Chain && b->kind == Node::Chain && a->name.size() == 1 &&
            b->name.size() == 1 && proportional(*a, *b, true))
            return true;
        return same_reals(*a, *b);
    }

    /// "l1 < r1" and "l2 < r2": the differences are multiples of each other, positive ones where it
    /// matters.
    bool proportional(const Node& a, const Node& b, bool inequality) {
        auto orientation = [](char c) { return c == '>' || c == 'g' ? -1 : 1; };
        auto kind = [](char c) { return c == '>' ? '<' : c == 'g' ? 'l' : c; };
        if (kind(a.name[0]) != kind(b.name[0]) || a.name[0] == 'i') return false;
        std::optional<Approximate> ratio;
        int agreed = 0;
        for (int round = 0; round < 6; ++round) {
            const Evaluator<Approximate> value{budget_, round};
            const auto l1 = value(*a.children[0]), r1 = value(*a.children[1]),
                       l2 = value(*b.children[0]), r2 = value(*b.children[1]);
            if (!l1 || !r1 || !l2 || !r2) return false;
            const Approximate d1 = *l1 - *r1, d2 = *l2 - *r2;
            if (std::abs(d1) < 1e-9 || std::abs(d2) < 1e-9 || !finite(d1) || !finite(d2)) continue;
            const Approximate r = d1 / d2;
            if (ratio && std::abs(r - *ratio) > 1e-7 * std::abs(r)) return false;
            ratio = r;
            ++agreed;
        }
        if (agreed < 4) return false;
        return !inequality || a.name[0] == 'n' ||
               ratio->real() * orientation(a.name[0]) * orientation(b.name[0]) > 0;
    }

    static void collect(const Node& n, std::set<string>& symbols, std::vector<Ptr>& constants) {
        if (n.kind == Node::Symbol && n.name != "pi" && n.name != "e" && n.name != "infty")
            symbols.insert(n.name);
        for (const Ptr& c : n.children) {
            if (has_no_symbol(*c)) constants.push_back(c);
            collect(*c, symbols, constants);
        }
    }

    /// Two descriptions of a set of real numbers, compared at the numbers that occur in them,
    /// between them, and at their square roots.
    bool same_reals(const Node& a, const Node& b) {
        std::set<string> symbols_a, symbols_b;
        std::vector<Ptr> constants;
        collect(a, symbols_a, constants);
        collect(b, symbols_b, constants);
        if (symbols_a.size() > 1 || symbols_b.size() > 1 || constants.size() > 200) return false;
        std::vector<double> points = {0};
        for (const Ptr& c : constants)
            if (const auto v = Evaluator<Approximate>{budget_}(*c);
                v && finite(*v) && v->imag() == 0)
                for (double x : {v->real(), std::sqrt(std::abs(v->real()))})
                    points.insert(points.end(), {x, -x});
        std::ranges::sort(points);
        const std::size_t count = points.size();
        for (std::size_t i = 0; i + 1 < count; ++i)
            points.push_back((points[i] + points[i + 1]) / 2);
        points.insert(points.end(), {points[0] - 1, points[count - 1] + 1, 3 * points[0] - 10,
                                     3 * points[count - 1] + 10});
        for (double x : points) {
            const auto in_a = contains(a, symbols_a, x), in_b = contains(b, symbols_b, x);
            if (!in_a || !in_b || *in_a != *in_b) return false;
        }
        return true;
    }

    std::optional<double> real_value(const Node& n, const std::set<string>& symbols, double at) {
        if (n.kind == Node::Symbol && n.name == "infty")
            return std::numeric_limits<double>::infinity();
        if (n.kind == Node::Product && n.children.size() == 2 && n.children[0]->name == "-1")
            if (const auto v = real_value(*n.children[1], symbols, at)) return -*v;
        const auto v = Evaluator<Approximate>{budget_, 0, 1,
                                              symbols.empty() ? nullptr : &*symbols.begin(), at}(n);
        return v && std::abs(v->imag()) < 1e-12 ? std::optional(v->real()) : std::nullopt;
    }

    std::optional<bool> contains(const Node& set, const std::set<string>& symbols, double x) {
        auto less = [](double a, double b) {
            if (std::isinf(a) || std::isinf(b)) return a < b;
            return b - a > 1e-9 * std::max(std::abs(a), std::abs(b));
        };
        if (set.kind == Node::Union) {
            bool any = false;
            for (const Ptr& part : set.children) {
                const auto in = contains(*part, symbols, x);
                if (!in) return std::nullopt;
                any = any || *in;
            }
            return any;
        }
        if (set.kind == Node::Pair && set.name.size() == 2) {
            const auto low = real_value(*set.children[0], symbols, x),
                       high = real_value(*set.children[1], symbols, x);
            if (!low || !high) return std::nullopt;
            return (less(*low, x) || (set.name[0] == '[' && !less(x, *low))) &&
                   (less(x, *high) || (set.name[1] == ']' && !less(*high, x)));
        }
        if (set.kind != Node::Chain) return std::nullopt;
        for (std::size_t i = 0; i < set.name.size(); ++i) {
            const auto l = real_value(*set.children[i], symbols, x);
            if (!l) return std::nullopt;
            if (set.name[i] == 'i') {
                const auto in = contains(*set.children[i + 1], symbols, *l);
                if (!in) return std::nullopt;
                if (!*in) return false;
                continue;
            }
            const auto r = real_value(*set.children[i + 1], symbols, x);
            if (!r) return std::nullopt;
            const bool below = less(*l, *r), above = less(*r, *l);
            const char relation = set.name[i];
            const bool holds = relation == '<'   ? below
                               : relation == '>' ? above
                               : relation == 'l' ? !above
                               : relation == 'g' ? !below
                               : relation == 'n' ? below || above
                                                 : !below && !above;
            if (!holds) return false;
        }
        return true;
    }

    Budget budget_;
};

}  // namespace

bool equal(const MathAnswer& a, const MathAnswer& b) {
    if (a.plain() == b.plain()) return true;
    return Comparison().equal(std::make_shared<Node>(a.root()), std::make_shared<Node>(b.root()));
}

}  // namespace r1
