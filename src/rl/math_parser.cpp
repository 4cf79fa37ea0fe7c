// Reading answers: tokens, grammar, and where in a text the answer is.
#include <algorithm>
#include <cctype>
#include <set>

#include "src/rl/math_tree.h"

namespace r1 {
namespace {

using std::string;
using std::string_view;

constexpr std::size_t kLongestText = 4096;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

string lower(string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
}

string replace_all(string text, string_view from, string_view to) {
    for (auto at = text.find(from); at != string::npos; at = text.find(from, at + to.size()))
        text.replace(at, from.size(), to);
    return text;
}

// ---- tokens ----

struct Token {
    enum Kind { End, Number, Letter, Name, Text, Sign } kind = End;
    string text{};  // Letter: one; Name: of a macro or function; Text: a word; Sign: one character
    Decimal number{};
    bool space = false;  // stands in front of it
};

/// Unicode and LaTeX spellings of one thing, and what only changes the look.
string tidy(string_view raw) {
    string text(raw);
    if (text.find("\\begin") == string::npos)  // doubled escapes; in a matrix \\ ends a row
        for (std::size_t at = 0; (at = text.find("\\\\", at)) != string::npos; ++at)
            if (at + 2 < text.size() && is_letter(text[at + 2])) text.erase(at, 1);
    text = replace_all(std::move(text), "\\\\", "\x05");  // the end of a row
    static const std::pair<const char*, std::vector<string_view>> kSpellings[] = {
        {"\\frac",
         {"\\\x0crac", "\\dfrac", "\\tfrac", "\\cfrac"}},  // \x0c: "\frac" escaped once too few
        {"\x01", {"{,}", "{, }", ",\\!"}},                 // between thousands
        {"", {"\\!"}},
        {" ",
         {"\\$",
          "\\(",
          "\\)",
          "\\[",
          "\\]",
          "$",
          "\\,",
          "\\;",
          "\\:",
          "\\ ",
          "~",
          "\xc2\xa0",
          "\\quad",
          "\\qquad",
          "\\left",
          "\\right",
          "\\displaystyle",
          "\\limits",
          "\\boxed",
          "\\fbox"}},
        {" ", {"\\%", "%", "^\\circ", "^{\\circ}", "\\degree", "°"}},
        {"\x02", {"\\{", "\\lbrace"}},
        {"\x03", {"\\}", "\\rbrace"}},
        {"\x04", {"**"}},
        {"|", {"\\lvert", "\\rvert", "\\vert"}},
        {"-", {"−", "–"}},
        {"*", {"×", "·"}},
        {"/", {"÷"}},
        {"^2", {"²"}},
        {"^3", {"³"}},
        {"\\pi ", {"π"}},
        {"\\infty ", {"∞"}},
        {"\\sqrt ", {"√"}},
        {"\\le ", {"≤", "<="}},
        {"\\ge ", {"≥", ">="}},
        {"\\ne ", {"≠", "!="}},
        {"\\cup ", {"∪"}},
        {"\\in ", {"∈"}},
        {"\\pm ", {"±"}}};
    // \left and \right, but not \leftarrow; \quad even where a name touches it ("\quadx").
    for (const auto& [to, spellings] : kSpellings)
        for (const string_view from : spellings)
            for (auto at = text.find(from); at != string::npos; at = text.find(from, at)) {
                const std::size_t end = at + from.size();
                const bool whole = from[0] != '\\' || !is_letter(from[1]) || end >= text.size() ||
                                   !is_letter(text[end]) || from.ends_with("quad");
                if (whole) text.replace(at, from.size(), to);
                at = whole ? at + string_view(to).size() : end;
            }
    while (!text.empty() && (is_space(text.back()) || text.back() == '.' || text.back() == ','))
        text.pop_back();
    return text;
}

constexpr const char* kFunctions[] = {
    "sin",  "cos", "tan", "cot", "sec", "csc",  "arcsin", "arccos", "arctan", "sinh", "cosh",
    "tanh", "log", "ln",  "lg",  "exp", "sqrt", "max",    "min",    "gcd",    "lcm",  "binom"};
bool is_function(const string& name) {
    return std::ranges::any_of(kFunctions, [&](const char* f) { return name == f; });
}

constexpr const char* kTextMacros[] = {"text",   "mbox",         "textbf", "textit",
                                       "textrm", "textnormal",   "mathrm", "mathbf",
                                       "mathit", "operatorname", "hbox"};

std::vector<Token> tokenize(const string& text) {
    std::vector<Token> tokens;
    int brackets = 0;  // inside them "1,234" are two numbers
    bool space = false;
    auto push = [&](Token::Kind kind, string name) {
        tokens.push_back({kind, std::move(name), {}, space});
        space = false;
    };
    auto digits_at = [&](std::size_t at, std::size_t count) {
        for (std::size_t k = 0; k < count; ++k)
            if (at + k >= text.size() || !is_digit(text[at + k])) return false;
        return at + count >= text.size() || !is_digit(text[at + count]);
    };
    for (std::size_t i = 0; i < text.size();) {
        const char c = text[i];
        if (is_space(c)) {
            space = true, ++i;
        } else if (is_digit(c) || (c == '.' && i + 1 < text.size() && is_digit(text[i + 1]))) {
            string digits;
            int places = 0;
            while (i < text.size() && is_digit(text[i])) digits += text[i++];
            while (digits.size() <= 3 || places == 0) {  // thousands: 1,234  1{,}234  1 234
                std::size_t next = i;
                if (next < text.size() && text[next] == ' ' && next + 1 < text.size() &&
                    text[next + 1] == '\x01')
                    ++next;
                const char mark = next < text.size() ? text[next] : '\0';
                if (mark != '\x01' && mark != ' ' && (mark != ',' || brackets > 0)) break;
                ++next;
                while (mark == '\x01' && next < text.size() && text[next] == ' ') ++next;
                if (digits.empty() || !digits_at(next, 3)) break;
                digits += text.substr(next, 3);
                i = next + 3;
            }
            if (i < text.size() && text[i] == '.' && i + 1 < text.size() && is_digit(text[i + 1]))
                for (++i; i < text.size() && is_digit(text[i]); ++places) digits += text[i++];
            else if (i < text.size() && text[i] == '.' &&
                     (i + 1 >= text.size() || !is_letter(text[i + 1])))
                ++i;  // "10."
            push(Token::Number, "");
            tokens.back().number = decimal(digits, places);
        } else if (c == '\\' && i + 1 < text.size() && is_letter(text[i + 1])) {
            std::size_t end = i + 1;
            while (end < text.size() && is_letter(text[end])) ++end;
            const string name = text.substr(i + 1, end - i - 1);
            i = end;
            if (std::ranges::any_of(kTextMacros, [&](const char* m) { return name == m; })) {
                while (i < text.size() && is_space(text[i])) ++i;
                const std::size_t close =
                    i < text.size() && text[i] == '{' ? text.find('}', i) : string::npos;
                if (close == string::npos) continue;
                push(Token::Text, text.substr(i + 1, close - i - 1));
                i = close + 1;
            } else {
                push(Token::Name, name);
            }
        } else if (is_letter(c) || static_cast<unsigned char>(c) >= 0x80) {
            std::size_t end = i;
            while (end < text.size() &&
                   (is_letter(text[end]) || static_cast<unsigned char>(text[end]) >= 0x80))
                ++end;
            const string run = text.substr(i, end - i), word = lower(run);
            if (is_function(run) || run == "pi" || run == "infty")
                push(Token::Name, run), i = end;
            else if (word == "and" || word == "or" || end - i >= 3 || word == "cm" ||
                     word == "mm" || word == "km" || word == "ft" || word == "kg" ||
                     static_cast<unsigned char>(c) >= 0x80)
                push(Token::Text, run), i = end;
            else
                push(Token::Letter, string(1, c)), ++i;
        } else {
            brackets += c == '(' || c == '[' || c == '\x02';
            brackets -= c == ')' || c == ']' || c == '\x03';
            push(Token::Sign, string(1, c)), ++i;
        }
    }
    tokens.emplace_back();
    return tokens;
}

// ---- grammar ----
//
//   list      group (';' group)*                group: item ((',' | and | or) item)*
//   item      union ((= | < | <= | > | >= | != | ~ | in) union)*
//   union     sum (cup sum)*
//   sum       [+ | - | pm] product ((+ | - | pm) product)*
//   product   factor ((* | / | : | cdot | times | div)? factor)*       units may follow
//   factor    base ['^' argument] ['!']...
//   base      number, letter with subscript, '(' list ')', '|' sum '|', {list}, frac, sqrt,
//   function, matrix

struct Unreadable {};  // thrown inside the parser, never out of it

class Parser {
  public:
    explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

    Ptr answer() {
        if (peek().kind == Token::End) throw Unreadable{};
        if (std::ranges::all_of(tokens_, [](const Token& t) {  // words, and a label like (C)
                return t.kind == Token::Text || t.kind == Token::End || t.text == "(" ||
                       t.text == ")" || t.text == "-";
            })) {
            string words;
            for (const Token& t : tokens_) words += t.text;
            return make(Node::Word, {}, words);
        }
        Ptr all = list();
        if (peek().kind != Token::End) throw Unreadable{};
        return all;
    }

  private:
    const Token& peek(std::size_t ahead = 0) const {
        return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
    }
    bool is_sign(char c) const { return peek().kind == Token::Sign && peek().text[0] == c; }
    bool is_name(const char* name) const {
        return peek().kind == Token::Name && peek().text == name;
    }
    bool take(char c) { return is_sign(c) && (++at_, true); }
    bool take(const char* name) { return is_name(name) && (++at_, true); }
    void expect(char c) {
        if (!take(c)) throw Unreadable{};
    }
    struct Deeper {  // counts nesting
        explicit Deeper(int& depth) : depth_(depth) {
            if (++depth_ > kDeepestNesting) throw Unreadable{};
        }
        ~Deeper() { --depth_; }
        int& depth_;
    };

    /// "and", "or", also with more around them: \text{ for part (a) and }.
    bool take_conjunction() {
        if (peek().kind != Token::Text) return false;
        const string word = lower(peek().text);
        auto ends_in = [&](string_view conjunction) {
            string_view rest = word;
            while (!rest.empty() && is_space(rest.back())) rest.remove_suffix(1);
            return rest.ends_with(conjunction) &&
                   (rest.size() == conjunction.size() ||
                    is_space(rest[rest.size() - conjunction.size() - 1]));
        };
        return (ends_in("and") || ends_in("or")) && (++at_, true);
    }

    Ptr list() {
        const Deeper deeper(depth_);
        std::vector<Ptr> groups;
        do {
            std::vector<Ptr> items;
            do {
                if (items.size() > kLongestList) throw Unreadable{};
                items.push_back(item());
                if (take(',') || take('\x01'))
                    take_conjunction();
                else if (!take_conjunction())
                    break;
            } while (true);
            groups.push_back(items.size() == 1 ? items[0] : make(Node::List, items));
        } while (groups.size() <= kLongestList && take(';'));
        if (groups.size() == 1) return groups[0];
        for (Ptr& group : groups)  // "p=5,q=2; p=7,q=2": two points
            if (group->kind == Node::List)
                group = make(group->children.size() == 2 ? Node::Pair : Node::Tuple,
                             group->children, "()");
        return make(Node::List, groups);
    }

    Ptr item() {
        std::vector<Ptr> operands{set_union()};
        string relations;
        for (;;) {
            static constexpr std::pair<const char*, char> kNames[] = {
                {"le", 'l'},       {"leq", 'l'},    {"leqslant", 'l'}, {"ge", 'g'}, {"geq", 'g'},
                {"geqslant", 'g'}, {"lt", '<'},     {"gt", '>'},       {"ne", 'n'}, {"neq", 'n'},
                {"in", 'i'},       {"approx", '~'}, {"equiv", '='}};
            char relation = 0;
            for (char sign : {'=', '<', '>'})
                if (is_sign(sign)) relation = sign;
            for (const auto& [name, kind] : kNames)
                if (is_name(name)) relation = kind;
            if (!relation) break;
            ++at_;
            relations += relation;
            operands.push_back(set_union());
        }
        return operands.size() == 1 ? operands[0] : make(Node::Chain, operands, relations);
    }

    Ptr set_union() {
        std::vector<Ptr> parts{sum()};
        while (take("cup")) parts.push_back(sum());
        return parts.size() == 1 ? parts[0] : make(Node::Union, parts);
    }

    Ptr sum() {
        const Deeper deeper(depth_);
        std::vector<Ptr> terms;
        for (bool first = true;; first = false) {
            if (take("pm") || take("mp")) {
                std::vector<Ptr> operands;
                if (!terms.empty()) operands.push_back(make(Node::Sum, terms));
                operands.push_back(product());
                terms.assign(1, make(Node::Plusminus, operands));
            } else if (take('-')) {
                terms.push_back(negative(product()));
            } else if (take('+') || first) {
                terms.push_back(product());
            } else {
                break;
            }
        }
        return terms.size() == 1 ? terms[0] : make(Node::Sum, terms);
    }

    bool starts_factor() const {
        const Token& t = peek();
        if (t.kind == Token::Number || t.kind == Token::Letter) return true;
        if (t.kind == Token::Sign)
            return t.text == "(" || t.text == "[" || t.text == "{" || t.text == "\x02" ||
                   (t.text == "|" && !in_bars_);
        return t.kind == Token::Name &&
               (is_function(t.text) || t.text == "frac" || t.text == "pi" || t.text == "infty" ||
                t.text == "begin" || t.text == "binom" || is_greek(t.text));
    }
    static bool is_greek(const string& name) {
        static const std::set<string> kGreek = {
            "alpha", "beta",  "gamma", "delta",    "epsilon",    "varepsilon", "zeta",
            "eta",   "theta", "iota",  "kappa",    "lambda",     "mu",         "nu",
            "xi",    "rho",   "sigma", "tau",      "phi",        "varphi",     "chi",
            "psi",   "omega", "Gamma", "Delta",    "Theta",      "Lambda",     "Sigma",
            "Phi",   "Psi",   "Omega", "emptyset", "varnothing", "mathbb",     "ell"};
        return kGreek.contains(name);
    }

    Ptr product() {
        std::vector<Ptr> factors{factor()};
        for (;;) {
            if (take('/') || take(':') || take("div")) {
                // What may throw stands before a list in braces, never in it: g++ 11 does not
                // release the elements that are there already (https://gcc.gnu.org/PR66139).
                const Ptr divisor = factor();
                factors.back() = make(Node::Quotient, {factors.back(), divisor});
                if (factors.size() > 1) {  // a b / c = (a b) / c
                    const Ptr quotient = factors.back();
                    factors.back() = quotient->children[0];
                    factors = {make(Node::Quotient,
                                    {make(Node::Product, factors), quotient->children[1]})};
                }
            } else if (take('*') || take("cdot") || take("times")) {
                factors.push_back(factor());
            } else if (starts_factor()) {
                const Ptr left = factors.back();
                const bool number_next = peek().kind == Token::Number,
                           fraction_next = is_name("frac");
                if (left->kind == Node::Number && number_next) {  // "1 1/2", and not "2 3"
                    const Ptr whole = left, part = factor();
                    if (factors.size() > 1 || whole->number.integer < 0 || !take('/'))
                        throw Unreadable{};
                    const Ptr divisor = factor();
                    factors = {make(Node::Sum, {whole, make(Node::Quotient, {part, divisor})})};
                } else if (left->kind == Node::Number && fraction_next && factors.size() == 1 &&
                           left->number.integer >= 0) {
                    const Ptr part = factor();
                    const bool mixed = part->kind == Node::Quotient &&
                                       part->children[0]->kind == Node::Number &&
                                       part->children[1]->kind == Node::Number;
                    factors = {make(mixed ? Node::Sum : Node::Product, {left, part})};
                } else {
                    if (number_next && left->kind != Node::Function)
                        throw Unreadable{};  // "x2", "(3)4"
                    factors.push_back(factor());
                }
            } else {
                break;
            }
            if (factors.size() >= 2 && factors.back()->kind == Node::Matrix &&
                factors[factors.size() - 2]->kind == Node::Matrix) {
                const Ptr right = factors.back();
                factors.pop_back();
                factors.back() = matrix_product(*factors.back(), *right);
            }
        }
        skip_units();
        return factors.size() == 1 ? factors[0] : make(Node::Product, factors);
    }

    /// "\text{ cm}^2", "miles per hour".
    void skip_units() {
        while (peek().kind == Token::Text) {
            const std::size_t before = at_;
            if (take_conjunction()) {
                at_ = before;
                return;
            }
            ++at_;
            if (take('^')) argument();
        }
    }

    static Ptr matrix_product(const Node& a, const Node& b) {
        const std::size_t inner = a.columns, rows = a.children.size() / inner, columns = b.columns;
        if (b.children.size() != inner * columns || rows * columns * inner > 512)
            throw Unreadable{};
        Node product{Node::Matrix, "", {}, {}, columns};
        for (std::size_t r = 0; r < rows; ++r)
            for (std::size_t c = 0; c < columns; ++c) {
                std::vector<Ptr> terms;
                for (std::size_t k = 0; k < inner; ++k)
                    terms.push_back(make(Node::Product,
                                         {a.children[r * inner + k], b.children[k * columns + c]}));
                product.children.push_back(make(Node::Sum, terms));
            }
        return std::make_shared<Node>(std::move(product));
    }

    Ptr factor() {
        const Deeper deeper(depth_);
        if (take('-')) return negative(factor());
        if (take('+')) return factor();
        Ptr result = base();
        for (int count = 0;; ++count) {
            if (count > 8) throw Unreadable{};
            if (take('^') || take('\x04')) {
                const Ptr exponent = argument();
                result = make(Node::Power, {result, exponent});
            } else if (take('!')) {
                result = make(Node::Function, {result}, "factorial");
            } else {
                return result;
            }
        }
    }

    /// What a macro or ^ takes: {list}, or one digit, letter or name.
    Ptr argument() {
        const Deeper deeper(depth_);
        if (take('{')) {
            Ptr inside = list();
            expect('}');
            return inside;
        }
        if (take('-')) return negative(argument());
        if (take('(')) {
            Ptr inside = list();
            expect(')');
            return inside;
        }
        if (peek().kind == Token::Number) {
            const Decimal number = tokens_[at_++].number;
            return std::make_shared<Node>(Node{Node::Number, "", {}, number, 0});
        }
        if (!starts_factor()) throw Unreadable{};
        return base();
    }

    /// The two arguments of \frac, which may share a number: \frac12 is one half.
    std::pair<Ptr, Ptr> two_arguments() {
        if (peek().kind == Token::Number && peek().number.integer >= 10 &&
            peek().number.integer < 100) {
            const int both = static_cast<int>(tokens_[at_++].number.integer);
            return {make_integer(both / 10), make_integer(both % 10)};
        }
        const Ptr first = argument(), second = argument();
        return {first, second};
    }

    Ptr base() {
        const Token token = peek();
        if (token.kind == Token::End || token.kind == Token::Text) throw Unreadable{};
        ++at_;
        if (token.kind == Token::Number) {
            auto number = std::make_shared<Node>(Node{Node::Number, "", {}, token.number, 0});
            if (!take('_')) return number;
            const Ptr radix = argument();
            return make(Node::Based, {number, radix});
        }
        if (token.kind == Token::Letter) return symbol(token.text);
        if (token.kind == Token::Sign) return bracketed(token.text[0]);
        if (token.text == "frac") {
            const auto [numerator, denominator] = two_arguments();
            return make(Node::Quotient, {numerator, denominator});
        }
        if (token.text == "binom") {
            const auto [n, k] = two_arguments();
            return make(Node::Function, {n, k}, "binom");
        }
        if (token.text == "sqrt") {
            Ptr degree = make_integer(2);
            if (take('[')) {
                degree = sum();
                expect(']');
            }
            const Ptr radicand = argument();
            return make(Node::Function, {radicand, degree}, "root");
        }
        if (token.text == "begin") return matrix();
        if (is_function(token.text)) return function(token.text);
        if (token.text == "mathbb" && take('{')) {
            const string name = peek().text;
            ++at_;
            expect('}');
            return symbol("mathbb " + name);
        }
        if (token.text == "pi" || token.text == "infty" || is_greek(token.text))
            return symbol(token.text);
        throw Unreadable{};
    }

    Ptr symbol(string name) {
        if (take('_')) {
            int braces = 0;
            do {
                const Token& t = peek();
                if (t.kind == Token::End) throw Unreadable{};
                braces += is_sign('{') - is_sign('}');
                if (!is_sign('{') && !is_sign('}'))
                    name +=
                        "_" + (t.kind == Token::Number ? std::to_string(t.number.integer) : t.text);
                ++at_;
            } while (braces > 0);
        }
        while (take('\'')) name += "'";
        return make(Node::Symbol, {}, name);
    }

    /// sin x, sin^2 2x, log_2 8: the argument ends at an operator or at the next function.
    Ptr function(const string& name) {
        Ptr exponent, log_base;
        for (int i = 0; i < 2; ++i) {
            if (take('^')) exponent = argument();
            if (take('_')) log_base = argument();
        }
        Ptr inside;
        if (is_sign('(') || is_sign('{')) {
            inside = base();
        } else {
            std::vector<Ptr> factors{factor()};
            while (starts_factor() && !(peek().kind == Token::Name && is_function(peek().text)))
                factors.push_back(factor());
            inside = factors.size() == 1 ? factors[0] : make(Node::Product, factors);
        }
        std::vector<Ptr> arguments = inside->kind == Node::List || inside->kind == Node::Pair
                                         ? inside->children
                                         : std::vector{inside};
        Ptr result = make(Node::Function, arguments, name);
        if (log_base)
            result = make(Node::Quotient, {make(Node::Function, arguments, "ln"),
                                           make(Node::Function, {log_base}, "ln")});
        return exponent ? make(Node::Power, {result, exponent}) : result;
    }

    Ptr bracketed(char open) {
        if (open == '|') {
            if (in_bars_) throw Unreadable{};
            in_bars_ = true;
            Ptr inside = sum();
            in_bars_ = false;
            expect('|');
            return make(Node::Function, {inside}, "abs");
        }
        if (open != '(' && open != '[' && open != '{' && open != '\x02') throw Unreadable{};
        const bool bars = std::exchange(in_bars_, false);
        if ((open == '\x02' && take('\x03')) || (open == '{' && take('}'))) {
            in_bars_ = bars;
            return make(Node::List, {});
        }
        Ptr inside = list();
        in_bars_ = bars;
        const Token closing = peek();
        ++at_;
        if (closing.kind != Token::Sign) throw Unreadable{};
        const char close = closing.text[0];
        if (open == '{' || open == '\x02') {
            if (close != (open == '{' ? '}' : '\x03')) throw Unreadable{};
            return open == '\x02' && inside->kind != Node::List ? make(Node::List, {inside})
                                                                : inside;
        }
        if (close != ')' && close != ']') throw Unreadable{};
        if (inside->kind != Node::List) {
            if ((open == '(') != (close == ')')) throw Unreadable{};
            return inside;
        }
        const bool pair = inside->children.size() == 2;
        return make(pair ? Node::Pair : Node::Tuple, inside->children, string{open, close});
    }

    Ptr matrix() {
        expect('{');
        while (!take('}')) {  // the environment's name
            if (peek().kind == Token::End) throw Unreadable{};
            environment_ = peek().text;
            ++at_;
        }
        if (environment_.starts_with("vmatrix") || environment_.starts_with("Vmatrix"))
            throw Unreadable{};        // a determinant
        if (is_sign('{')) argument();  // the columns of an array
        Node node{Node::Matrix, "", {}, {}, 0};
        for (std::size_t column = 0; !is_name("end");) {
            node.children.push_back(sum());
            ++column;
            if (node.children.size() > kLongestList) throw Unreadable{};
            if (take('&')) continue;
            const bool next_row = take('\x05');
            if (!next_row && !is_name("end")) throw Unreadable{};
            if (node.columns == 0) node.columns = column;
            if (node.columns != column) throw Unreadable{};
            column = 0;
            if (next_row && is_name("end")) break;
        }
        ++at_;  // \end{...}
        expect('{');
        while (!take('}')) {
            if (peek().kind == Token::End) throw Unreadable{};
            ++at_;
        }
        if (node.children.empty()) throw Unreadable{};
        return std::make_shared<Node>(std::move(node));
    }

    std::vector<Token> tokens_;
    std::size_t at_ = 0;
    int depth_ = 0;
    bool in_bars_ = false;
    string environment_;
};

/// The text without spaces and grouping braces: two that agree here are the same answer.
string plain_text(const string& tidied) {
    string plain;
    for (char c : tidied)
        if (!is_space(c) && c != '{' && c != '}') plain += c;
    for (const char* macro : kTextMacros) plain = replace_all(plain, string("\\") + macro, "");
    return plain;
}
// ---- the answer in a text ----

/// The end of the braces that begin at `open`.
std::size_t closing_brace(string_view text, std::size_t open) {
    int depth = 0;
    for (std::size_t i = open; i < text.size(); ++i) {
        if (text[i] == '\\')
            ++i;  // \{ is no brace
        else if (text[i] == '{')
            ++depth;
        else if (text[i] == '}' && --depth == 0)
            return i;
    }
    return string_view::npos;
}

struct Box {
    std::size_t begin, end;  ///< of \boxed{...} in the text
    string_view content;
};

std::vector<Box> boxes_of(string_view text) {
    std::vector<Box> boxes;
    for (string_view macro : {"\\boxed", "\\fbox"})
        for (auto at = text.find(macro); at != text.npos; at = text.find(macro, at + 1)) {
            auto open = at + macro.size();
            while (open < text.size() && is_space(text[open])) ++open;
            const auto close =
                open < text.size() && text[open] == '{' ? closing_brace(text, open) : text.npos;
            if (close != text.npos && boxes.size() < kLongestList)
                boxes.push_back({at, close + 1, text.substr(open + 1, close - open - 1)});
        }
    std::ranges::sort(boxes, {}, &Box::begin);
    return boxes;
}

/// Whether what stands between two boxes only joins them: white space, "and", commas, formula
/// marks.
bool joins(string_view between) {
    const string text = tidy(string(between) + " x");
    for (const Token& t : tokenize(text)) {
        const string word = lower(t.text);
        const bool joined =
            t.kind == Token::End || word == "x" || word == "," || word == ";" || word == "." ||
            word == "*" ||
            (t.kind == Token::Text &&
             (word.ends_with("and ") || word.ends_with("and") || word.ends_with("or")));
        if (!joined) return false;
    }
    return true;
}

/// The last formula or number in a text, whichever comes last.
string_view last_formula(string_view text) {
    std::size_t begin = 0, end = 0;
    for (const auto& [open, close] : {std::pair<string_view, string_view>{"$$", "$$"},
                                      {"\\(", "\\)"},
                                      {"\\[", "\\]"},
                                      {"$", "$"}})
        for (std::size_t at = text.find(open); at != text.npos;) {
            const auto from = at + open.size(), to = text.find(close, from);
            if (to == text.npos) break;
            if (to > end && to > from) begin = from, end = to;
            at = text.find(open, to + close.size());
        }
    for (std::size_t i = text.size(); i > end; --i) {
        if (!is_digit(text[i - 1])) continue;
        std::size_t from = i;
        while (from > end && (is_digit(text[from - 1]) || text[from - 1] == ',' ||
                              text[from - 1] == '.' || text[from - 1] == '/'))
            --from;
        while (from < i && (text[from] == ',' || text[from] == '/')) ++from;
        if (from > 0 && is_letter(text[from - 1])) {  // part of a word
            i = from + 1;
            continue;
        }
        if (from > end && text[from - 1] == '-') --from;
        return text.substr(from, i - from);
    }
    return text.substr(begin, end - begin);
}

}  // namespace

std::optional<MathAnswer> MathAnswer::parse(string_view text) {
    if (text.size() > kLongestText) return std::nullopt;
    MathAnswer answer;
    const string tidied = tidy(text);
    answer.plain_ = plain_text(tidied);
    try {
        answer.root_ = Parser(tokenize(tidied)).answer();
    } catch (const Unreadable&) {
        return std::nullopt;
    }
    return answer;
}

std::optional<string_view> last_boxed(string_view text) {
    const auto boxes = boxes_of(text);
    if (boxes.empty()) return std::nullopt;
    return boxes.back().content;
}

string find_answer(string_view text) {
    const auto boxes = boxes_of(text);
    const string small = lower(string(text));
    std::size_t behind = 0;
    for (string_view mark : {"answer is", "answer:", "answer:**"})
        if (const auto at = small.rfind(mark); at != string::npos)
            behind = std::max(behind, at + mark.size());
    if (!boxes.empty() && behind < boxes.back().end) {
        std::size_t first = boxes.size() - 1;
        while (first > 0 && boxes[first - 1].end <= boxes[first].begin &&
               joins(text.substr(boxes[first - 1].end, boxes[first].begin - boxes[first - 1].end)))
            --first;
        string answer;
        for (std::size_t i = first; i < boxes.size(); ++i)
            answer += (i > first ? ", " : "") + string(boxes[i].content);
        return answer;
    }
    string_view sentence = text.substr(behind);
    if (behind > 0) sentence = sentence.substr(0, sentence.find(". "));
    string_view found = last_formula(sentence);
    if (found.empty()) found = last_formula(text);
    return string(found.empty() ? text : found);
}

}  // namespace r1
