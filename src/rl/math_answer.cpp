// Comparing answers: values at points, then what equality means for each kind.
#include "src/rl/math_answer.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "src/rl/math_tree.h"

namespace r1 {

using std::string;

namespace {

/// The same for the same trees only.
string text_of(const Node& n) {
    string text = n.op + '{' + n.name + ' ' + n.value.get_str(16) + ' ' + std::to_string(n.columns);
    for (const Ptr& child : n.children) text += text_of(*child);
    return text + '}';
}

constexpr int kRounds = 12;

std::uint64_t hash_of(const string& text, std::uint64_t seed) {
    std::uint64_t hash = 1469598103934665603ull + seed * 0x9e3779b97f4a7c15ull;  // FNV-1a
    for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    return (hash ^ (hash >> 31)) * 0x9e3779b97f4a7c15ull >> 16;
}

/// The pseudo-random value of a variable in one round: a fraction below 3, one up to 2^24, or a
/// small integer for factorials; each of either sign but the last.
Number value_of(const string& name, int round) {
    const std::uint64_t hash = hash_of(name, static_cast<std::uint64_t>(round));
    const long sign = hash & 1 ? 1 : -1, digits = static_cast<long>(hash >> 4);
    switch (round % 3) {
        case 0:
            return mpq_class(sign * (digits % 3000 + 1), 1009);
        case 1:
            return mpq_class(2 + digits % 30);
        default:
            return mpq_class(sign * ((digits % (1l << 32)) >> (digits >> 33) % 20), 257);
    }
}

/// Rows x columns numbers; a single number has no columns.
struct Value {
    std::vector<Number> cells;
    std::size_t columns = 0;
    Value(Number n) : cells{std::move(n)} {}
    Value(std::vector<Number> all, std::size_t width) : cells(std::move(all)), columns(width) {}
};

Value sum(const Value& a, const Value& b) {
    if (a.columns != b.columns || a.cells.size() != b.cells.size()) throw Undefined{};
    std::vector<Number> cells;
    for (std::size_t i = 0; i < a.cells.size(); ++i) cells.push_back(a.cells[i] + b.cells[i]);
    return {std::move(cells), a.columns};
}

Value product(const Value& a, const Value& b) {
    if (a.columns != 0 && b.columns == 0) return product(b, a);
    std::vector<Number> cells;
    if (a.columns == 0) {
        for (const Number& cell : b.cells) cells.push_back(a.cells[0] * cell);
    } else {
        const std::size_t rows = a.cells.size() / a.columns, inner = a.columns;
        if (b.cells.size() != inner * b.columns) throw Undefined{};
        for (std::size_t r = 0; r < rows; ++r)
            for (std::size_t c = 0; c < b.columns; ++c) {
                Number sum;
                for (std::size_t k = 0; k < inner; ++k)
                    sum = sum + a.cells[r * inner + k] * b.cells[k * b.columns + c];
                cells.push_back(sum);
            }
    }
    return {std::move(cells), b.columns};
}

bool is_constant(const string& name) {
    return name == "pi" || name == "e" || name == "i" || name == "infty";
}
/// A variable, or a function that is not known.
bool is_unknown(const Node& n) {
    return (n.is("x") && !is_constant(n.name)) || (n.is("call") && n.name[0] == '\\');
}
bool has_variable(const Node& n) {
    return is_unknown(n) ||
           std::ranges::any_of(n.children, [](const Ptr& c) { return has_variable(*c); });
}

/// An expression with its plus-minus signs, if it has some, taken as plus or as minus.
bool has_sign(const Node& n) {
    return (n.is("+") && n.name.find_first_of("pm") != string::npos) ||
           std::ranges::any_of(n.children, [](const Ptr& c) { return has_sign(*c); });
}
Ptr with_sign(const Ptr& node, bool plus) {
    if (!has_sign(*node)) return node;
    Node copy = *node;
    for (Ptr& child : copy.children) child = with_sign(child, plus);
    if (copy.is("+"))
        for (char& sign : copy.name)
            if (sign == 'p' || sign == 'm') sign = (sign == 'p') == plus ? '+' : '-';
    return std::make_shared<Node>(std::move(copy));
}

/// Whether an expression is made of integers and + - * / alone, and the integers in it.
bool is_calculation(const Node& n, std::vector<string>& integers) {
    const bool plain = !n.name.empty() && n.name.find_first_not_of("0123456789") == string::npos;
    if (n.is("#") && plain && n.value == mpz_class(n.name, 10)) {
        integers.push_back(n.value.get_str());
        return true;
    }
    if (n.is("+") && n.name == "-" && n.children[0]->is("#")) {
        if (!is_calculation(*n.children[0], integers)) return false;
        integers.back() = "-" + integers.back();
        return true;
    }
    const char* signs = n.is("+") ? "+-" : "*/";
    return (n.is("+") || n.is("*")) && n.name[0] == signs[0] &&
           n.name.find_first_not_of(signs) == string::npos &&
           std::ranges::all_of(n.children,
                               [&](const Ptr& c) { return is_calculation(*c, integers); });
}

class Comparison {
  public:
    bool equal(const Ptr& a, const Ptr& b) {
        if (text_of(*a) == text_of(*b)) return true;
        const bool same_kind = a->op == b->op;
        if (same_kind && (a->is("unit") || a->is("%")))
            return a->name == b->name && equal(a->children[0], b->children[0]);
        if (a->is("unit")) return equal(a->children[0], b);
        if (b->is("unit") || b->is("%")) return equal(b, a);
        if (a->is("%"))
            return equal(a->children[0], b) ||
                   equal(make("*", "*/", {a->children[0], make_number(100)}), b);
        if (is_list(*a) || is_list(*b) || has_sign(*a) || has_sign(*b))
            return equal_lists(a, b) || same_reals(*a, *b);
        if (is_relation(*a) || is_relation(*b)) return equal_relations(a, b);
        if (same_kind && a->is("word")) return a->name == b->name;
        if (same_kind && a->is("base")) return equal_in_order(*a, *b);
        if (b->is("word") || b->is("base")) return equal(b, a);
        if (a->is("word"))
            return a->name == letters(*b) || (!a->children.empty() && equal(a->children[0], b));
        if (a->is("base")) return equal(a->children[0], b);
        if (a->is("tuple") || b->is("tuple"))
            return same_kind && a->name == b->name && equal_in_order(*a, *b);
        return equal_values(*a, *b);
    }

    Number number(const Node& n) {
        if (n.is("#")) return n.value;
        if (!free_.empty() && is_unknown(n) && text_of(n) == free_) return at_;
        if (n.is("x")) {
            if (n.name == "i") return Number::i();
            if (n.name == "pi") return Number::pi();
            if (n.name == "e") return elementary("exp", 1);
            if (n.name == "infty" || n.name.starts_with("mathbb")) throw Undefined{};
            return value_of(n.name, round_);
        }
        if (n.is("unit") || (n.is("word") && !n.children.empty())) return number(*n.children[0]);
        if (n.is("%")) return number(*n.children[0]) / 100;
        if (n.is("^")) {
            const Number base = number(*n.children[0]), exponent = number(*n.children[1]);
            const bool whole = exponent.rational() && exponent.rational()->get_den() == 1;
            spend(whole ? 100 : 500);
            return power(base, exponent);
        }
        if (n.is("call")) return call(n);
        if (!n.is("+") && !n.is("*")) throw Undefined{};
        Value single = value(n);
        if (single.columns != 0) throw Undefined{};
        return single.cells[0];
    }

  private:
    static bool is_list(const Node& n) { return n.is("list") || n.is("set"); }
    static bool is_relation(const Node& n) { return n.is("chain") || n.is("cup"); }
    /// What may describe a set of real numbers.
    static bool is_region(const Node& n) {
        return is_relation(n) || n.is("tuple") ||
               (is_list(n) &&
                std::ranges::all_of(n.children, [](const Ptr& c) { return is_relation(*c); }));
    }
    /// A product of variables as a word in lower case: "AB", "C".
    static string letters(const Node& n) {
        if (n.is("x")) return lower_case(n.name);
        string word;
        if (n.is("*") && n.name.find('/') == string::npos)
            for (const Ptr& c : n.children) word += c->is("x") ? letters(*c) : "?";
        return word;
    }

    bool equal_in_order(const Node& a, const Node& b) {
        return std::ranges::equal(a.children, b.children,
                                  [&](const Ptr& x, const Ptr& y) { return equal(x, y); });
    }

    // ---- lists ----

    static std::vector<Ptr> elements(const Ptr& node) {
        std::vector<Ptr> all;
        for (const Ptr& child : is_list(*node) ? node->children : std::vector<Ptr>{node}) {
            all.push_back(with_sign(child, true));
            if (has_sign(*child)) all.push_back(with_sign(child, false));
        }
        return all;
    }
    bool equal_lists(const Ptr& a, const Ptr& b) {
        for (const auto& [list, other] : {std::pair(a, b), std::pair(b, a)}) {
            if (!is_list(*list)) continue;
            if (const auto x = assignment(*other);
                x && (is_list(*x->second) || x->second->is("tuple")))
                return equal(list, x->second);  // x \\in \\{1, 2\\}
            if (other->is("tuple") && other->name == "()" && !list->children.empty())
                return equal_in_order(*list, *other);  // {1,3} for (1,3)
            if (list->name == "," && list->children.size() == 2 && other->is("#") &&
                list->children[1]->name.size() > 1)  // 1,25 for 1.25
                return list->children[0]->name + "." + list->children[1]->name == other->name;
            if (is_list(*other) && names_differ(list->children) &&
                std::ranges::none_of(other->children, [](const Ptr& c) { return c->is("chain"); }))
                return equal_in_order(*list, *other);  // x = 1, y = 2 for 1, 2
        }
        const auto left = elements(a), right = elements(b);
        const auto contained = [&](const std::vector<Ptr>& inner, const std::vector<Ptr>& outer) {
            return std::ranges::all_of(inner, [&](const Ptr& x) {
                return std::ranges::any_of(outer, [&](const Ptr& y) { return equal(x, y); });
            });
        };
        return left.empty() == right.empty() && contained(left, right) && contained(right, left);
    }
    static bool names_differ(const std::vector<Ptr>& list) {
        for (std::size_t i = 0; i < list.size(); ++i) {
            const auto assigned = assignment(*list[i]);
            if (!assigned) return false;
            for (std::size_t k = 0; k < i; ++k)
                if (text_of(*assignment(*list[k])->first) == text_of(*assigned->first))
                    return false;
        }
        return list.size() > 1;
    }

    // ---- values ----

    void spend(int cost) {
        if ((budget_ -= cost) < 0) throw Undefined{};
    }

    /// Of a matrix, or what sums and products make of some.
    Value value(const Node& n) {
        spend(1);
        if (n.is("matrix")) {
            std::vector<Number> cells;
            for (const Ptr& child : n.children) cells.push_back(number(*child));
            return {std::move(cells), n.columns};
        }
        if (!n.is("+") && !n.is("*")) return number(n);
        Value result(n.is("*"));
        for (std::size_t i = 0; i < n.children.size(); ++i) {
            Value next = value(*n.children[i]);
            if (n.name[i] == '/' && next.columns != 0) throw Undefined{};
            if (n.name[i] == '/') next = Value(1 / next.cells[0]);
            if (n.name[i] == '-') next = product(Number(-1), next);
            spend(static_cast<int>(next.cells.size() * std::max<std::size_t>(1, result.columns)) *
                  result.cells[0].cost());
            if (i > 0) next = n.is("*") ? product(result, next) : sum(result, next);
            result = std::move(next);
        }
        return result;
    }

    Number call(const Node& n) {
        const string& name = n.name;
        std::vector<Number> x;
        for (const Ptr& child : n.children) x.push_back(number(*child));
        if (name[0] == '\\') {  // of an unknown function: the same for the same arguments
            string arguments = name;
            for (const Number& argument : x) arguments += "," + argument.digits();
            return value_of(arguments, 3 * round_);
        }
        if (name == "abs") return x[0].modulus();
        if (name == "floor") return x[0].floor();
        if (name == "ceil") return -1 * (-1 * x[0]).floor();
        if (name == "factorial" || name == "binom") {
            const mpq_class* k = x.back().rational();
            if (!k || k->get_den() != 1 || *k < 0 || *k > 3000) throw Undefined{};
            Number result = 1;
            for (unsigned long i = k->get_num().get_ui(); i > 0; --i) {
                result = result * (name == "binom" ? (x[0] - mpq_class(i - 1)) / mpq_class(i)
                                                   : Number(mpq_class(i)));
                spend(result.cost());
            }
            return result;
        }
        if (name == "max" || name == "min") {
            for (const Number& other : x)
                if ((other - x[0]).sign() * (name == "max" ? 1 : -1) > 0) x[0] = other;
            return x[0];
        }
        spend(500);
        if (x.size() != 1) throw Undefined{};
        return elementary(name, x[0]);
    }

    bool equal_values(const Node& a, const Node& b) {
        const bool variable = has_variable(a) || has_variable(b);
        int agreed = 0;
        for (round_ = 0; round_ < (variable ? kRounds : 1); ++round_) try {
                const Value x = value(a), y = value(b);
                if (x.columns != y.columns || x.cells.size() != y.cells.size()) return false;
                for (std::size_t i = 0; i < x.cells.size(); ++i)
                    if (!(x.cells[i] == y.cells[i])) return rounded(a, b) || rounded(b, a);
                ++agreed;
            } catch (const Undefined&) {
            }
        return agreed >= (variable ? 3 : 1);
    }

    /// The numeral that a node is, also behind a minus.
    static const Node* numeral(const Node& n) {
        return n.is("#") ? &n : n.is("+") && n.name == "-" ? numeral(*n.children[0]) : nullptr;
    }
    /// Whether a numeral of four decimal places and digits or more is what `exact` rounds to.
    bool rounded(const Node& decimal, const Node& exact) {
        const Node* written = numeral(decimal);
        if (!written || numeral(exact) || has_variable(exact)) return false;
        string figures = written->name;
        const auto dot = figures.find('.'), first = figures.find_first_not_of("0.");
        if (dot == string::npos || first == string::npos) return false;
        if (figures.size() - dot < 5 || figures.size() - first < 4) return false;
        figures.erase(dot, 1);
        const Number off = (number(exact) - number(decimal)).modulus();
        const mpq_class half = abs(written->value) / (2 * mpz_class(figures, 10));
        return (off - half).sign() <= 0;
    }

    // ---- equations, inequalities, intervals ----

    /// What may stand on the left of "x =" in an answer: x, f(x), |AB|, (p, q), A/B, "Area".
    static bool is_name(const Node& n) {
        if (n.is("x") || n.is("word") || (n.is("call") && n.name[0] == '\\')) return true;
        return (n.is("*") || n.is("call") || n.is("tuple")) &&
               std::ranges::all_of(n.children, [](const Ptr& c) { return is_name(*c); });
    }
    /// Name and value of "x = 1 + 1 = 2", "5 = x", "x ~ 3" and "x in {1, 2}".
    static std::optional<std::pair<Ptr, Ptr>> assignment(const Node& n) {
        if (!n.is("chain") || n.name.find_first_not_of("=~i") != string::npos) return std::nullopt;
        if (!is_name(*n.children[0])) {
            if (n.name.find('i') == string::npos && !has_variable(*n.children.back()) &&
                (n.name.size() > 1 || !has_variable(*n.children[0])))
                return std::pair(n.children[0], n.children.back());  // 2 + 3 = 5, 1 = a = x = 0
            if (n.name != "=" || !is_name(*n.children[1])) return std::nullopt;
            return std::pair(n.children[1], n.children[0]);
        }
        const auto approximate = n.name.find('~', 1);
        return std::pair(n.children[0], n.children[std::min(approximate, n.children.size() - 1)]);
    }

    bool equal_relations(const Ptr& a, const Ptr& b) {
        const auto x = assignment(*a), y = assignment(*b);
        if (x && y && text_of(*x->first) == text_of(*y->first) && equal(x->second, y->second))
            return true;
        if (a->is("chain") && b->is("chain") && a->name.size() == 1 && b->name.size() == 1 &&
            proportional(*a, *b))
            return true;
        if (x && !b->is("chain")) return equal(x->second, b);
        if (y && !a->is("chain")) return equal(a, y->second);
        return same_reals(*a, *b);
    }

    /// "l1 < r1" and "l2 < r2": the differences are multiples of each other, positive ones where it
    /// matters.
    bool proportional(const Node& a, const Node& b) {
        if (a.name != b.name || a.name == "i" || !has_variable(a) || !has_variable(b)) return false;
        const auto difference = [&](const Node& n) {
            return number(*n.children[0]) - number(*n.children[1]);
        };
        const bool ordered = a.name == "<" || a.name == "l";
        std::optional<Number> ratio;
        int agreed = 0;
        for (round_ = 0; round_ < kRounds; ++round_) try {
                const Number d1 = difference(a), d2 = difference(b);
                if (d1.is(0) != d2.is(0)) return false;
                if (d1.is(0)) continue;
                if (!ratio) ratio = d1 / d2;
                if (!(d1 / d2 == *ratio) || (ordered && ratio->sign() < 0)) return false;
                ++agreed;
            } catch (const Undefined&) {
            }
        return agreed >= 3;
    }

    static void collect(const Node& n, std::set<string>& variables) {
        if (is_unknown(n)) {
            variables.insert(text_of(n));
            return;
        }
        for (const Ptr& c : n.children) collect(*c, variables);
    }

    /// Adds the numbers that are written somewhere: 2 may be all that |x - 2| <= 0 holds for.
    static void numerals(const Node& n, std::vector<Number>& found) {
        if (n.is("#")) found.push_back(n.value);
        for (const Ptr& child : n.children) numerals(*child, found);
    }
    /// Adds the numbers at which a set of real numbers begins and ends. False if some are not
    /// known, which is so behind an inequality that is not linear.
    bool boundaries(const Node& set, std::vector<Number>& ends) {
        bool known = true;
        if (is_list(set) || set.is("cup")) {
            for (const Ptr& part : set.children) known = boundaries(*part, ends) && known;
        } else if (set.is("tuple")) {
            for (const Ptr& end : set.children)
                if (!infinite(*end)) ends.push_back(number(*end));
        } else if (!set.is("chain")) {
            ends.push_back(number(set));
        }
        for (std::size_t i = 0; set.is("chain") && i < set.name.size(); ++i) {
            const Node &left = *set.children[i], &right = *set.children[i + 1];
            if (set.name[i] == 'i') {
                if (text_of(left) != free_) throw Undefined{};
                known = boundaries(right, ends) && known;
            } else if (!infinite(left) && !infinite(right)) {
                const auto difference = [&](const Number& x) {
                    at_ = x;
                    return number(left) - number(right);
                };
                const Number start = difference(0), slope = difference(1) - start;
                bool linear = true;
                for (const Number& x : {Number(-7), Number(mpq_class(22, 3))})
                    linear = linear && difference(x) == start + slope * x;
                if (!linear && (set.name[i] == '=' || set.name[i] == 'n')) throw Undefined{};
                if (linear && !slope.is(0)) ends.push_back(-1 * start / slope);
                if (!linear) numerals(set, ends);
                known = known && linear;
            }
        }
        return known;
    }

    /// Two descriptions of a set of real numbers, of which one states all of its boundaries. They
    /// are compared at the boundaries and at their opposites, beside them, between and beyond.
    bool same_reals(const Node& a, const Node& b) {
        std::set<string> variables;
        collect(a, variables);
        collect(b, variables);
        if (!is_region(a) || !is_region(b) || variables.size() > 1) return false;
        if (!variables.empty()) free_ = *variables.begin();
        bool same = false;
        try {
            std::vector<Number> ends, points;
            const bool known_a = boundaries(a, ends), known_b = boundaries(b, ends);
            Number far = 10;
            for (const Number& end : ends) far = far + 3 * end.modulus();
            ends.insert(ends.end(), {0, far, far * mpq_class(mpz_class(1) << 64)});
            for (const Number& end : std::vector<Number>(ends)) ends.push_back(-1 * end);
            std::ranges::sort(ends,
                              [](const Number& x, const Number& y) { return (x - y).sign() < 0; });
            const mpq_class beside(1, mpz_class(1) << 40);
            for (std::size_t i = 0; i < ends.size(); ++i) {
                const Number middle = (ends[i] + ends[std::min(i + 1, ends.size() - 1)]) / 2;
                points.insert(points.end(), {ends[i], ends[i] - beside, ends[i] + beside, middle});
            }
            same = (known_a || known_b) && std::ranges::all_of(points, [&](const Number& x) {
                       at_ = x;
                       return contains(a, x) == contains(b, x);
                   });
        } catch (const Undefined&) {
        }
        free_.clear();
        return same;
    }

    static int infinite(const Node& n) {
        if (n.is("x") && n.name == "infty") return 1;
        return n.is("+") && n.name == "-" ? -infinite(*n.children[0]) : 0;
    }
    int order(const Node& n, const Number& x) {
        const int sign = infinite(n);
        return sign ? sign : (number(n) - x).sign();
    }

    bool contains(const Node& set, const Number& x) {
        const auto in = [&](const Ptr& part) { return contains(*part, x); };
        if (is_list(set) && set.name.find('&') != string::npos)
            return std::ranges::all_of(set.children, in);
        if (is_list(set)) return std::ranges::any_of(set.children, in);
        if (set.is("cup")) {
            bool inside = in(set.children[0]);
            for (std::size_t i = 1; i < set.children.size(); ++i) {
                const bool other = in(set.children[i]);
                const char sign = set.name[i - 1];
                inside = sign == 'u' ? inside || other : inside && other == (sign == 'n');
            }
            return inside;
        }
        if (set.is("tuple") && set.children.size() == 2) {
            const int low = order(*set.children[0], x), high = order(*set.children[1], x);
            if ((infinite(*set.children[0]) && set.name[0] == '[') ||
                (infinite(*set.children[1]) && set.name[1] == ']'))
                throw Undefined{};
            return (low < 0 || (low == 0 && set.name[0] == '[')) &&
                   (high > 0 || (high == 0 && set.name[1] == ']'));
        }
        if (!set.is("chain")) return order(set, x) == 0;
        for (std::size_t i = 0; i < set.name.size(); ++i) {
            const Node &left = *set.children[i], &right = *set.children[i + 1];
            if (set.name[i] == 'i') {
                if (!contains(right, number(left))) return false;
                continue;
            }
            const int sign = infinite(right) ? -infinite(right) : order(left, number(right));
            static const std::map<char, std::array<bool, 3>> kHolds = {
                {'<', {true, false, false}}, {'l', {true, true, false}},
                {'>', {false, false, true}}, {'g', {false, true, true}},
                {'n', {true, false, true}},  {'=', {false, true, false}},
                {'~', {false, true, false}}};
            if (!kHolds.at(set.name[i])[sign < 0 ? 0 : sign == 0 ? 1 : 2]) return false;
        }
        return true;
    }

    int budget_ = 200'000;
    int round_ = 0;
    string free_;  ///< the variable that takes the value at_
    Number at_;
};

}  // namespace

std::optional<Calculation> calculate(const MathAnswer& answer) {
    Calculation result;
    const Node& root = *answer.root_;
    const bool stated = root.is("chain") && root.name == "=" && root.children.size() == 2;
    const Node& left = stated ? *root.children[0] : root;
    if (!is_calculation(left, result.integers)) return std::nullopt;
    std::vector<string> others;
    if (stated && (!is_calculation(*root.children[1], others) ||
                   !Comparison().equal(root.children[0], root.children[1])))
        return std::nullopt;
    try {
        result.value = Comparison().number(left).digits();
    } catch (const Undefined&) {
    }
    return result;
}

bool equal(const MathAnswer& a, const MathAnswer& b) {
    return Comparison().equal(a.root_, b.root_);
}

}  // namespace r1
