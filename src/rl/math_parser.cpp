// Reading answers: tokens, grammar, and where in a text the answer is.
#include <utf8proc.h>

#include <algorithm>
#include <map>
#include <set>

#include "src/rl/math_tree.h"

namespace r1 {
namespace {

using std::string;
using std::string_view;

constexpr std::size_t kLongestText = 4096, kLongestList = 64;
constexpr int kDeepestNesting = 40;

struct Unreadable {};  // thrown while reading, never out of it

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
/// By how much a bracket nests what stands behind it.
int opens(char c) {
    const auto place = string_view("([{)]}").find(c);
    return place == string_view::npos ? 0 : place < 3 ? 1 : -1;
}

// ---- words ----

/// Names in pieces of "key=value" or "key", which stands for itself; _ is a blank.
using Names = std::map<string, string, std::less<>>;
Names names(string_view list) {
    Names all;
    while (!list.empty()) {
        string piece(list.substr(0, list.find(' ')));
        list.remove_prefix(std::min(list.size(), piece.size() + 1));
        std::ranges::replace(piece, '_', ' ');
        const auto sign = piece.rfind('=');
        const bool pair = sign != piece.npos && sign > 0;
        all.emplace(piece.substr(0, pair ? sign : piece.npos), piece.substr(pair ? sign + 1 : 0));
    }
    return all;
}

/// Units by every name: two that differ are two quantities. Other nouns count things: "5 eggs".
const Names kUnits = names(
    "mm cm m km kg g mg lb lbs=lb oz ft yd ml l hr=hour hrs=hour h=hour min=minute mins=minute "
    "s=second sec=second secs=second ms mph kph in=inch inches=inch feet=ft foot=ft yard=yd "
    "meter=m metre=m centimeter=cm centimetre=cm millimeter=mm millimetre=mm kilometer=km "
    "kilometre=km gram=g kilogram=kg pound=lb ounce=oz liter=l litre=l hour minute second day week "
    "month year mile inch degree dollar cent usd=dollar eur=euro euro men women people pct=% "
    "percent=% percentage=% am pm th st=th nd=th rd=th");
const Names kMultiples = names(
    "hundred=100 thousand=1000 million=1000000 billion=1000000000 trillion=1000000000000 "
    "dozen=12");
/// They stand behind a number and make another answer of it.
const Names kNoUnits = names(
    "and or not no but nor if is are was to than then of from between except about more less least "
    "most minus plus over under by into divided multiplied added mod modulo half halve third "
    "quarter fourth fifth sixth seventh eighth ninth tenth hundredth thousandth millionth "
    "billionth squared cubed root factorial log one two three four five six seven eight "
    "nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty "
    "thirty forty fifty sixty seventy eighty ninety zero pi imaginary negative positive "
    "score gross pair couple double triple twice once infinity infinite wrong false incorrect");

/// What can stand between two expressions or behind one; every other macro begins one.
const Names kOperators = names(
    "le ge ne in approx equiv = < > cup cap setminus pm mp deg end rfloor rceil and or to "
    "Rightarrow implies pmod");
const Names kRelations = names("le=l ge=g ne=n in=i approx=~ equiv=~ = < >");
const Names kSetSigns = names("cup=u cap=n setminus=\\"), kTermSigns = names("+ - pm=p mp=m");
const Names kFunctions = names(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min gcd lcm");
const Names kTextMacros = names(
    "text mbox textbf textit textrm textnormal texttt textsf emph mathrm mathbf mathit mathsf "
    "operatorname hbox bm boldsymbol underline");
const Names kAccents = names("overline mathbb mathcal bar vec hat tilde dot ddot widehat");
const Names kIgnored = names(
    "bf rm it left right displaystyle textstyle limits quad qquad big Big bigg Bigg bigl bigr "
    "Bigl Bigr biggl biggr boxed fbox");
const Names kSpelling = names(
    "dfrac=frac tfrac=frac cfrac=frac rac=frac dbinom=binom tbinom=binom leq=le leqslant=le lt=< "
    "geq=ge geqslant=ge gt=> neq=ne cdot=* times=* div=/ colon=: lbrace={ rbrace=} lvert=| rvert=| "
    "vert=| mid=| langle=( rangle=) degree=deg lparen=( rparen=) land=and lor=or "
    "backslash=setminus sim=approx simeq=approx cong=approx varnothing=emptyset "
    "varepsilon=epsilon vartheta=theta varphi=phi");

/// Characters and pairs of them, as LaTeX spells them. \x01 stands between thousands, \x04 for **.
const Names kCharacters = names(
    "{,}=\x01 {,_}=\x01 ,\\!=\x01 ,_\\!=\x01 \f"
    "rac=frac ^\\circ=\\deg_ ^{\\circ}=\\deg_ ^_\\circ=\\deg_ °=\\deg_ \xc2\xa0=_ "
    "−=- –=- ×=* ·=* ⋅=* ÷=/ ²=^2_ ³=^3_ ∞=\\infty_ √=\\sqrt_ ≤=\\le_ <==\\le_ ≥=\\ge_ >==\\ge_ "
    "≠=\\ne_ !==\\ne_ ≈=\\approx_ ∪=\\cup_ ∩=\\cap_ ∈=\\in_ ±=\\pm_ ∅=\\emptyset_ ℝ=\\mathbb{R} "
    "£=_ €=_ ¥=_ ₹=_ a.m.=am_ p.m.=pm_ \\,=_ \\;=_ …=\\dots_ **=\x04 "
    "α=\\alpha_ β=\\beta_ γ=\\gamma_ δ=\\delta_ ε=\\epsilon_ ζ=\\zeta_ η=\\eta_ θ=\\theta_ "
    "ι=\\iota_ κ=\\kappa_ λ=\\lambda_ μ=\\mu_ ν=\\nu_ ξ=\\xi_ π=\\pi_ ρ=\\rho_ σ=\\sigma_ "
    "τ=\\tau_ υ=\\upsilon_ φ=\\phi_ χ=\\chi_ ψ=\\psi_ ω=\\omega_");

string tidy(string_view raw) {
    string text;
    const bool rows = raw.find("\\begin") != raw.npos;  // elsewhere \\ is an escape too many
    while (!raw.empty()) {
        const auto known = std::ranges::find_if(
            kCharacters, [&](const auto& c) { return raw.starts_with(c.first); });
        if (known == kCharacters.end()) {
            if (!rows && raw.starts_with("\\\\") && raw.size() > 2 && is_letter(raw[2]))
                raw.remove_prefix(1);
            text += raw[0];
            raw.remove_prefix(1);
            continue;
        }
        raw.remove_prefix(known->first.size());
        if (known->second == "\x01") {
            text.erase(text.find_last_not_of(' ') + 1);
            while (raw.starts_with(' ')) raw.remove_prefix(1);
        }
        text += known->second;
    }
    text.erase(text.find_last_not_of(" \t\n\v\f\r.,;:\x04") + 1);
    return text.substr(std::min(text.find_first_not_of(" \t\n\v\f\r\x04"), text.size()));
}

// ---- tokens ----

struct Token {
    enum Kind { End, Number, Letter, Name, Text, Sign } kind = End;
    string text{};  // Number: its digits; Letter: one; Name: of a macro or function; Text: a word
    mpq_class value{};
    bool space = false, quoted = false;  // stands behind a blank; is in \text{}
    bool is(char c) const { return kind == Sign && text[0] == c; }
};

class Tokenizer {
  public:
    explicit Tokenizer(const string& text) : text_(text) {
        int depth = 0;
        for (std::size_t i = 0; i + 1 < text.size(); ++i) {  // 27,54,108 are three numbers
            depth += opens(text[i]);
            if (depth > 0 || text[i] != ',' || !is_digit(text[i + 1])) continue;
            at_ = i + 1;
            thousands_ = thousands_ && digits_at(0, 3);
        }
        at_ = 0;
    }

    std::vector<Token> tokens() {
        while (at_ < text_.size()) next();
        tokens_.emplace_back();
        return std::move(tokens_);
    }

  private:
    char peek(std::size_t ahead = 0) const {
        return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
    }
    void push(Token::Kind kind, string text, mpq_class value = 0) {
        tokens_.push_back({kind, std::move(text), std::move(value), space_, quoted_ > 0});
        space_ = false;
    }
    string run(bool (*belongs)(char)) {
        const auto begin = at_;
        while (at_ < text_.size() && belongs(text_[at_])) ++at_;
        return text_.substr(begin, at_ - begin);
    }

    void next() {
        const char c = peek();
        if (is_space(c) || c == '$' || c == '~' ||
            (c == '.' && quoted_ > 0 && !is_digit(peek(1)))) {
            space_ = true;
            ++at_;
        } else if (is_digit(c) || (c == '.' && is_digit(peek(1)))) {
            numeral();
        } else if (c == '\\') {
            ++at_;
            is_letter(peek()) ? macro(run(is_letter)) : escaped(text_[at_++]);
        } else if (is_letter(c) || (c & 0x80)) {
            letters();
        } else {
            ++at_;
            const bool brace = c == '{' || c == '}';
            if (brace && quoted_ > 0) {
                quoted_ += c == '{' ? 1 : -1;
                return;
            }
            if (!brace) brackets_ += opens(c);
            push(Token::Sign, {c});
        }
    }
    void escaped(char c) {
        if (c == '{' || c == '}') {
            brackets_ += c == '{' ? 1 : -1;
            push(Token::Sign, {c == '{' ? '\x02' : '\x03'});
        } else if (c == '\\') {
            push(Token::Sign, "\x05");  // the end of a row
        } else if (c == '%' || c == '|') {
            push(Token::Sign, {c});
        } else {
            space_ = c != '!';  // "\,", "\(", "\$"
        }
    }
    void macro(const string& name) {
        if (kIgnored.contains(name)) {
            space_ = true;
        } else if (kTextMacros.contains(name)) {
            run(is_space);
            if (peek() != '{') return;
            ++at_;
            ++quoted_;
        } else {
            const auto known = kSpelling.find(name);
            const string spelled = known == kSpelling.end() ? name : known->second;
            if (spelled == "{" || spelled == "}") return escaped(spelled[0]);
            push(is_letter(spelled[0]) ? Token::Name : Token::Sign, spelled);
        }
    }
    /// A run of letters: a word, the name of a function, or variables.
    void letters() {
        const auto begin = at_;
        std::size_t count = 0;
        for (std::int32_t code = 0; at_ < text_.size(); ++count) {
            const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text_.data() + at_);
            const auto size = utf8proc_iterate(bytes, static_cast<long>(text_.size() - at_), &code);
            const auto category = size < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(code);
            const bool letter =
                category <= UTF8PROC_CATEGORY_ME && category != UTF8PROC_CATEGORY_CN;
            if (size < 0 || (!letter && code >= 0x80)) throw Unreadable{};  // not seen, for one
            if (!letter) break;
            at_ += static_cast<std::size_t>(size);
        }
        const string word = text_.substr(begin, at_ - begin), small = lower_case(word);
        const bool behind_word = !tokens_.empty() && tokens_.back().kind == Token::Text;
        if (quoted_ > 0 && (count > 1 || behind_word || (word != "e" && word != "i")))
            push(Token::Text, word);
        else if (kFunctions.contains(word) || word == "sqrt" || word == "pi" || word == "infty")
            push(Token::Name, word);
        else if (count == 1)
            push(Token::Letter, word);
        else if (count > 2 || word.size() > 2 || kUnits.contains(small) || small == "or")
            push(Token::Text, word);
        else
            for (char c : word) push(Token::Letter, {c});
    }

    bool digits_at(std::size_t ahead, std::size_t count) const {
        for (std::size_t k = 0; k < count; ++k)
            if (!is_digit(peek(ahead + k))) return false;
        return !is_digit(peek(ahead + count));
    }
    void numeral() {
        string digits = run(is_digit), fraction, repeated;
        const bool groups = !digits.empty() && digits.size() <= 3 && digits[0] != '0';
        while (groups &&
               (peek() == ' ' || peek() == '\x01' ||
                (peek() == ',' && brackets_ == 0 && thousands_)) &&
               digits_at(1, 3)) {
            ++at_;
            digits += run(is_digit);
        }
        if (peek() == '.' && is_digit(peek(1))) {
            ++at_;
            fraction = run(is_digit);
        } else if (peek() == '.' && !is_letter(peek(1))) {
            ++at_;
        }
        if (peek() == '\\')
            for (const string mark : {"\\overline{", "\\bar{", "\\dot{"})
                if (text_.compare(at_, mark.size(), mark) == 0 && is_digit(peek(mark.size()))) {
                    at_ += mark.size();
                    repeated = run(is_digit);
                    if (peek() != '}') throw Unreadable{};
                    ++at_;
                }
        mpq_class value(mpz_class("0" + digits + fraction, 10));
        if (!repeated.empty())
            value +=
                mpq_class(mpz_class(repeated, 10), mpz_class(string(repeated.size(), '9'), 10));
        int power = -static_cast<int>(fraction.size());
        const bool negative = peek(1) == '-', signed_power = negative || peek(1) == '+';
        std::size_t places = 0;
        while (is_digit(peek(1 + signed_power + places))) ++places;
        // "1.5e-4", "5e-05" and "2e3", where "2e-1" has Euler's number in it.
        if ((peek() == 'e' || peek() == 'E') && places > 0 && places < 5 && !quoted_ &&
            (!fraction.empty() || places > 1 || !signed_power || digits == "1")) {
            const int given = std::stoi(text_.substr(at_ + 1 + signed_power, places));
            power += negative ? -given : given;
            at_ += 1 + signed_power + places;
        }
        mpz_class ten;
        mpz_ui_pow_ui(ten.get_mpz_t(), 10, static_cast<unsigned>(std::abs(power)));
        value = power < 0 ? mpq_class(value / ten) : mpq_class(value * ten);
        value.canonicalize();
        push(Token::Number, fraction.empty() ? digits : digits + "." + fraction, value);
    }

    const string& text_;
    std::size_t at_ = 0;
    std::vector<Token> tokens_;
    int brackets_ = 0;       // inside them "1,234" are two numbers
    int quoted_ = 0;         // braces open since a \text{
    bool thousands_ = true;  // whether all commas between digits may group them
    bool space_ = false;
};

// ---- grammar ----
//
//   list      group (';' group)*                group: item ((',' | and | or) item)*
//   item      union ((= | < | <= | > | >= | != | ~ | in) union)*
//   union     sum ((cup | cap | setminus) sum)*
//   sum       [pm] product ((+ | - | pm | mp) product)*
//   product   factor ((* | / | :)? factor)* [% | unit]
//   factor    (- | +)* base ['^' argument | '!' | degree]...
//   base      numeral, variable, word, call, '(' list ')', '|' sum '|', frac, sqrt, matrix, ...

class Parser {
  public:
    explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

    Ptr answer() {
        take('=') || take_name("approx");
        if (peek().kind == Token::End) throw Unreadable{};
        if (const Ptr word = words()) return word;
        Ptr all = list();
        if (peek().kind != Token::End) throw Unreadable{};
        return all;
    }

  private:
    const Token& peek(std::size_t ahead = 0) const {
        return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
    }
    bool is_name(const char* name, std::size_t ahead = 0) const {
        return peek(ahead).kind == Token::Name && peek(ahead).text == name;
    }
    bool take(char c) { return peek().is(c) && (++at_, true); }
    bool take_name(const char* name) { return is_name(name) && (++at_, true); }
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
    static bool joins(const Token& t) {
        const string word = lower_case(t.text);
        return (t.kind == Token::Text || t.kind == Token::Name) && (word == "and" || word == "or");
    }

    /// An answer in words, "east" or "(C)"; letters alone, "VI" or "ab", may also be a product.
    Ptr words() {
        string text;
        bool word = false, letters = true;
        for (const Token& t : tokens_) {
            if (t.kind == Token::End) break;
            if (joins(t) && !t.quoted) return nullptr;
            word = word || t.kind == Token::Text;
            letters = letters &&
                      (t.kind == Token::Letter || (t.kind == Token::Text && !t.quoted)) &&
                      (!t.space || text.empty());
            const bool mark = t.is('(') || t.is(')') || t.is('.');
            const bool date = t.kind == Token::Number && t.quoted && word;
            if (!mark && !date && t.kind != Token::Text && t.kind != Token::Letter && !t.is('-') &&
                !t.is('\''))
                return nullptr;
            if (!mark) text += (t.space && !text.empty() ? " " : "") + t.text;
        }
        if (text.empty() || (!word && (!letters || tokens_.size() <= 2))) return nullptr;
        std::vector<Ptr> product;
        if (letters && is_letter(text[0]) && text.size() < kLongestList)
            for (char c : text) product.push_back(make("x", {c}, {}));
        if (product.size() > 1) product = {make("*", string(product.size(), ' '), product)};
        return make("word", lower_case(text), std::move(product));
    }

    Ptr list() {
        const Deeper deeper(depth_);
        std::vector<Ptr> groups;
        do {
            std::vector<Ptr> items;
            string marks;
            do {
                if (items.size() > kLongestList) throw Unreadable{};
                items.push_back(item());
                const bool comma = take(',') || take('\x01');
                if (comma) marks += peek().space ? ' ' : ',';
                const bool conjunction = joins(peek());
                if (!comma && !conjunction) break;
                if (conjunction) marks += lower_case(tokens_[at_++].text) == "and" ? '&' : '|';
            } while (true);
            groups.push_back(items.size() == 1 ? items[0] : make("list", marks, items));
        } while (groups.size() <= kLongestList && take(';'));
        if (groups.size() == 1) return groups[0];
        for (Ptr& group : groups)  // "p=5,q=2; p=7,q=2": two points
            if (group->is("list")) group = make("tuple", "()", group->children);
        return make("list", "", groups);
    }

    /// Operands with one of the signs between each and the next; one alone is itself.
    template <class Operand>
    Ptr infix(const char* op, const Names& signs, string begin, Operand operand) {
        std::vector<Ptr> parts{operand()};
        for (;; parts.push_back(operand())) {
            const Token& t = peek();
            const auto sign =
                t.kind == Token::Sign || t.kind == Token::Name ? signs.find(t.text) : signs.end();
            if (sign == signs.end()) break;
            begin += sign->second[0];
            ++at_;
        }
        return parts.size() == 1 && (begin.empty() || begin == "+") ? parts[0]
                                                                    : make(op, begin, parts);
    }
    /// "5 > x" is "x < 5".
    Ptr item() {
        const auto set = [&] { return infix("cup", kSetSigns, "", [&] { return sum(); }); };
        const Ptr read = infix("chain", kRelations, "", set);
        if (!read->is("chain") || (read->name[0] != '>' && read->name[0] != 'g')) return read;
        Node turned = *read;
        std::ranges::reverse(turned.children);
        std::ranges::reverse(turned.name);
        for (char& sign : turned.name)
            if (const auto at = string_view("<>lg").find(sign); at != string_view::npos)
                sign = "><gl"[at];
        return std::make_shared<Node>(std::move(turned));
    }
    Ptr sum() {
        const Deeper deeper(depth_);
        const char* begin = take_name("pm") ? "p" : take_name("mp") ? "m" : "+";
        return infix("+", kTermSigns, begin, [&] { return product(); });
    }

    bool starts_factor() const {
        const Token& t = peek();
        if (t.kind == Token::Sign)
            return t.is('(') || t.is('[') || t.is('{') || t.is('\x02') || (t.is('|') && !in_bars_);
        return t.kind == Token::Number || t.kind == Token::Letter ||
               (t.kind == Token::Text && spelled(at_)) ||
               (t.kind == Token::Name && !kOperators.contains(t.text));
    }

    Ptr product() {
        std::vector<Ptr> factors{factor()};
        string signs = "*";
        const auto so_far = [&] {
            return factors.size() == 1 ? factors[0] : make("*", signs, factors);
        };
        while (unit_at(0).empty()) {
            if (peek().is(':') && peek(1).text.size() == 2 && peek(1).text[0] == '0') {
                ++at_;  // a time: no one writes the ratio 1 : 3 as "1:03"
                factors.back() = make("call", "\\clock", {factors.back(), factor()});
                continue;
            }
            if (take('/') || take(':'))
                signs += '/';
            else if (take('*'))
                signs += '*';
            else if (!starts_factor())
                return so_far();
            else if (peek().kind != Token::Number || factors.back()->is("call") ||
                     tokens_[at_ - 1].is(')') || tokens_[at_ - 1].is('}') ||
                     (factors.back()->is("x") && peek(1).is('^')))
                signs += ' ';
            else
                throw Unreadable{};  // "2 3", "x2"
            factors.push_back(factor());
        }
        return measured(so_far());
    }

    /// What stands behind a quantity: "%", "\text{ cm}^2", "miles per hour", "million", "km/h".
    Ptr measured(Ptr quantity) {
        string name;
        while (true) {
            const bool slash = !name.empty() && peek().is('/') && !unit_at(1).empty();
            const string word = unit_at(slash);
            if (word.empty()) break;
            at_ += 1 + slash;
            if (const auto times = kMultiples.find(word); times != kMultiples.end())
                quantity = make("*", "* ", {quantity, make_number(mpq_class(times->second))});
            else
                name += (slash ? "/" : "") + word;
            if (!name.empty() && take('^')) {
                const bool braced = take('{');
                name += take('-') ? "^-" : "^";
                if (peek().kind != Token::Number) throw Unreadable{};
                name += tokens_[at_++].text;
                if (braced) expect('}');
            }
        }
        if (starts_factor() || peek().is('/') || peek().is('*')) throw Unreadable{};
        return name.empty() ? quantity : make(name == "%" ? "%" : "unit", name, {quantity});
    }
    /// The unit that a token is, by its first name; "" if it is none. Behind a slash a letter may
    /// be.
    string unit_at(std::size_t ahead) const {
        const Token& t = peek(ahead);
        if (t.is('%')) return "%";
        if (is_name("deg", ahead)) return "degree";
        string word = lower_case(t.text);
        const auto known = [&] { return kUnits.contains(word) || kMultiples.contains(word); };
        if (t.kind == Token::Letter) {  // "10 m/s", but not 5 m
            const bool speed = word == "m" && t.space && peek(1).is('/') && peek(2).text == "s";
            return (ahead > 0 || speed) && known() ? kUnits.at(word) : "";
        }
        if (t.kind != Token::Text || joins(t)) return "";
        const bool no_unit = kNoUnits.contains(word);
        if (word.size() > 2 && word.ends_with('s') && !known()) word.pop_back();
        if (known()) return kUnits.contains(word) ? kUnits.at(word) : word;
        if (no_unit || kNoUnits.contains(word)) {
            if (t.quoted) throw Unreadable{};  // "3 squared"
            return "";
        }
        const bool noun = word.size() > 2 && word.find_first_of("aeiou") != string::npos;
        const bool variable = word.size() == 1 && word == t.text;  // \text{F} would be farads
        return (t.quoted && !variable) || (t.space && noun) ? word : "";
    }

    static Ptr radians(const Ptr& degrees) {
        return make("*", "*/ ", {degrees, make_number(180), make("x", "pi", {})});
    }
    static Ptr negative(const Ptr& node) {
        if (!node->is("base")) return make("+", "-", {node});
        return make("base", "", {negative(node->children[0]), node->children[1]});
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
                const auto ordinal = kUnits.find(exponent->name);  // 12^{\text{th}}
                if (exponent->is("word") && ordinal != kUnits.end() && ordinal->second == "th")
                    result = make("unit", "th", {result});
                else
                    result = make("^", "", {result, exponent});
            } else if (take('!')) {
                result = make("call", "factorial", {result});
            } else if (in_angle_ && take_name("deg")) {
                result = radians(result);
            } else {
                return result;
            }
        }
    }

    /// What a macro or ^ takes: {list}, or one number, letter or name.
    Ptr argument() {
        const Deeper deeper(depth_);
        if (take('-')) return negative(argument());
        if (peek().is('{') || peek().is('(')) return bracketed();
        if (!starts_factor()) throw Unreadable{};
        return base();
    }
    /// The two arguments of \frac, which may share a number: \frac12 is one half.
    std::vector<Ptr> two_arguments() {
        const string digits = peek().kind == Token::Number ? peek().text : "";
        if (digits.size() == 2 && is_digit(digits[0])) {
            ++at_;
            return {make_number(digits[0] - '0', {digits[0]}),
                    make_number(digits[1] - '0', {digits[1]})};
        }
        const Ptr first = argument(), second = argument();
        return {first, second};
    }

    Ptr base() {
        const Token token = peek();
        if (token.kind == Token::Sign) return bracketed();
        ++at_;
        if (token.kind == Token::Number) return number(token);
        if (token.kind == Token::Letter) return symbol(token.text);
        if (token.kind == Token::Text) return text(token);
        if (token.kind == Token::Name) return named(token.text);
        throw Unreadable{};
    }

    /// A numeral, also with its base, 52_8, or with a fraction behind it: 1\frac12, 1 1/2.
    Ptr number(const Token& token) {
        const Ptr numeral = make_number(token.value, token.text);
        if (take('_')) {
            const Ptr radix = argument();
            return make("base", "", {numeral, radix});
        }
        if (token.value.get_den() != 1) return numeral;
        if (is_name("frac")) {
            const Ptr part = base();
            const bool mixed = part->children[0]->is("#") && part->children[1]->is("#");
            return mixed ? make("+", "##", {numeral, part}) : make("*", "* ", {numeral, part});
        }
        if (peek().kind == Token::Number && peek(1).is('/') && peek(2).kind == Token::Number) {
            const Ptr above = make_number(peek().value), below = make_number(peek(2).value);
            at_ += 3;
            return make("+", "##", {numeral, make("*", "*/", {above, below})});
        }
        return numeral;
    }

    /// Whether a run of letters outside of \text is a product of variables: "2xyz", "abc".
    bool spelled(std::size_t at) const {
        const Token& t = tokens_[at];
        return !t.quoted && !joins(t) && (t.text.size() == 3 || (at > 0 && !t.space));
    }
    /// Words that begin an expression: "Area = 5", \text{Area}.
    Ptr text(const Token& first) {
        string words = lower_case(first.text);
        if (spelled(at_ - 1) && !peek().is('=')) {
            std::vector<Token> letters;
            for (char c : first.text) letters.push_back({Token::Letter, {c}});
            const auto at = tokens_.begin() + static_cast<std::ptrdiff_t>(--at_);
            tokens_.insert(tokens_.erase(at), letters.begin(), letters.end());
            return base();
        }
        const bool assigned = (at_ > 1 && tokens_[at_ - 2].is('=')) || first.quoted;
        for (; peek().kind == Token::Text && !joins(peek()); ++at_)
            words += " " + lower_case(peek().text);
        if (!assigned && !peek().is('=')) throw Unreadable{};
        return make("word", words, {});
    }

    Ptr named(const string& name) {
        if (name == "frac") return make("*", "*/", two_arguments());
        if (name == "binom") return make("call", "binom", two_arguments());
        if (name == "sqrt") {
            const Ptr degree = peek().is('[') ? bracketed() : make_number(2);
            const Ptr radicand = argument();
            return make("^", "", {radicand, make("*", "*/", {make_number(1), degree})});
        }
        if (name == "begin") return matrix();
        if (name == "lfloor" || name == "lceil") {
            const Ptr inside = sum();
            if (!take_name(name == "lfloor" ? "rfloor" : "rceil")) throw Unreadable{};
            return make("call", name.substr(1), {inside});
        }
        if (kFunctions.contains(name)) return function(name);
        if (kAccents.contains(name)) {
            const bool braced = take('{');
            string letters;
            while ((peek().kind == Token::Letter || peek().kind == Token::Name) &&
                   (braced || letters.empty()))
                letters += tokens_[at_++].text;
            if (letters.empty() || (braced && !take('}'))) throw Unreadable{};
            const Ptr infinity = make("x", "infty", {});
            if (name == "mathbb" && letters == "R")
                return make("tuple", "()", {negative(infinity), infinity});
            return symbol(name + " " + letters);
        }
        if (name == "emptyset") return make("set", "", {});
        if (kOperators.contains(name) || peek().is('{')) throw Unreadable{};
        return symbol(name);
    }

    /// A variable with its subscript and strokes; f(0) and P(x) are calls, x(x - 1) is a product.
    Ptr symbol(string name) {
        if (take('_')) {
            int braces = 0;
            name += '_';
            do {
                const Token& t = tokens_[at_++];
                if (t.kind == Token::End) throw Unreadable{};
                braces += t.is('{') - t.is('}');
                if (!t.is('{') && !t.is('}')) name += t.text;
            } while (braces > 0);
        }
        while (take('\'')) name += "'";
        const bool named_function = string_view("fgFGhH").find(name[0]) != string_view::npos;
        if (!peek().is('(')) return make("x", name, {});
        std::size_t end = 2;
        if (peek(1).is('-')) ++end;
        const bool called = named_function || (peek(end).is(')') && is_plain(peek(end - 1))) ||
                            (peek(2).is(',') && is_plain(peek(1)));
        if (!called) return make("x", name, {});
        ++at_;
        const Ptr inside = list();
        expect(')');
        return make("call", "\\" + name, parts(inside));
    }
    static bool is_plain(const Token& t) {
        return t.kind == Token::Number || t.kind == Token::Letter || t.kind == Token::Name;
    }

    /// sin x, sin^2 2x, log_2 8: the argument ends at an operator or at the next function.
    Ptr function(string name) {
        Ptr exponent, log_base;
        for (int i = 0; i < 2; ++i) {
            if (take('^')) exponent = argument();
            if (take('_')) log_base = argument();
        }
        const bool angle = std::exchange(in_angle_, true);
        Ptr inside;
        if (peek().is('(') || peek().is('{')) {
            inside = bracketed();
            if (take_name("deg")) inside = radians(inside);
        } else {
            std::vector<Ptr> factors{factor()};
            while (starts_factor() && !peek().quoted &&
                   !(peek().kind == Token::Name && kFunctions.contains(peek().text)))
                factors.push_back(factor());
            inside =
                factors.size() == 1 ? factors[0] : make("*", string(factors.size(), ' '), factors);
        }
        in_angle_ = angle;
        const std::vector<Ptr> arguments =
            inside->is("list") || inside->is("tuple") ? inside->children : std::vector<Ptr>{inside};
        if (exponent && exponent->is("+") && exponent->name == "-" &&
            exponent->children[0]->value == 1 && !name.starts_with("log")) {  // tan^{-1}
            name = "arc" + name;
            exponent = nullptr;
        }
        Ptr result = make("call", name, arguments);
        if (log_base)
            result =
                make("*", "*/", {make("call", "ln", arguments), make("call", "ln", {log_base})});
        return exponent ? make("^", "", {result, exponent}) : result;
    }

    /// (a), [a], {a}; (a, b) and [a, b) are tuples, \{a, b\} is a set, |a| the modulus.
    Ptr bracketed() {
        const Deeper deeper(depth_);
        static const Names kClosing = names("(=)] [=)] {=} |=| \x02=\x03");
        const string open = tokens_[at_++].text;
        const auto closing = kClosing.find(open);
        const bool modulus = open == "|", set = open == "\x02";
        if (closing == kClosing.end() || (modulus && in_bars_)) throw Unreadable{};
        if (set && take('\x03')) return make("set", "", {});
        const bool bars = std::exchange(in_bars_, modulus);
        const Ptr inside = modulus ? sum() : list();
        in_bars_ = bars;
        const string close = peek().kind == Token::Sign ? tokens_[at_++].text : "";
        if (close.empty() || closing->second.find(close) == string::npos) throw Unreadable{};
        if (modulus) return make("call", "abs", {inside});
        if (set) return make("set", "", parts(inside));
        if (open != "{" && inside->is("list")) return make("tuple", open + close, inside->children);
        if ((open == "[") != (close == "]")) throw Unreadable{};
        return inside;
    }
    static std::vector<Ptr> parts(const Ptr& list) {
        return list->is("list") ? list->children : std::vector{list};
    }

    string environment() {
        string name;
        expect('{');
        for (; !take('}'); ++at_) {
            if (peek().kind == Token::End) throw Unreadable{};
            name += peek().text;
        }
        return name;
    }
    Ptr matrix() {
        static const Names kMatrices =
            names("matrix pmatrix bmatrix Bmatrix smallmatrix array");  // no determinant
        const string name = environment();
        if (!kMatrices.contains(name)) throw Unreadable{};
        if (peek().is('{')) environment();  // the columns of an array
        std::vector<Ptr> cells;
        std::size_t columns = 0, column = 0;
        while (!is_name("end")) {
            if (cells.size() >= kLongestList) throw Unreadable{};
            cells.push_back(sum());
            ++column;
            if (take('&')) continue;
            const bool row = take('\x05');
            if (columns == 0) columns = column;
            if (columns != column || (!row && !is_name("end"))) throw Unreadable{};
            column = 0;
        }
        ++at_;
        if (environment() != name || cells.empty() || column != 0) throw Unreadable{};
        return std::make_shared<Node>(Node{"matrix", "", std::move(cells), 0, columns});
    }

    std::vector<Token> tokens_;
    std::size_t at_ = 0;
    int depth_ = 0;
    bool in_bars_ = false, in_angle_ = false;
};

// ---- the answer in a text ----

struct Box {
    std::size_t begin, end;  ///< of \boxed{...} in the text
    string_view content;
};

/// The finished boxes that are in no other one. Nothing at all if the last one is not finished.
std::vector<Box> boxes_of(string_view text) {
    std::vector<Box> boxes, open;  // `open`: for every open brace, where its box begins, or its end
    std::size_t last = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        std::size_t macro = 0;
        for (const string_view name : {"\\boxed", "\\fbox"})
            if (text.substr(i).starts_with(name)) macro = name.size();
        if (macro) {
            const auto begin = i;
            for (i += macro; i < text.size() && is_space(text[i]);) ++i;
            last = begin;
            if (i < text.size() && text[i] == '{') {
                open.push_back({begin, i, {}});
            } else {  // \boxed 7
                const auto end = std::min(text.find_first_of(" \n$", i), text.size());
                if (end > i) boxes.push_back({begin, end, text.substr(i, end - i)});
                i = end - 1;
            }
        } else if (text[i] == '\\') {
            ++i;  // \{ is no brace
        } else if (text[i] == '{') {
            open.push_back({i, i, {}});
        } else if (text[i] == '}' && !open.empty()) {
            const auto [begin, brace, none] = open.back();
            open.pop_back();
            if (begin == brace) continue;
            while (!boxes.empty() && boxes.back().begin > begin) boxes.pop_back();
            boxes.push_back({begin, i + 1, text.substr(brace + 1, i - brace - 1)});
        }
    }
    if (boxes.empty() || last >= boxes.back().end) return {};
    return boxes;
}

/// Whether what stands between two boxes only joins them: blanks, commas, "and", "cats and",
/// \text{... and }, "and y =".
bool joins(string_view between) {
    int words = 0, tail = 0;
    bool joined = false;
    try {
        for (const Token& t : Tokenizer(tidy(between)).tokens()) {
            const string word = lower_case(t.text);
            if (t.kind == Token::End || t.is(',') || t.is(';') || t.is('*')) continue;
            if (word == "and" || word == "or" || (joined && t.is('='))) {
                joined = true;
                tail = 0;
            } else {
                if (t.kind == (joined ? Token::Text : Token::Number)) return false;
                words += !t.quoted && !joined;
                ++tail;
            }
        }
    } catch (const Unreadable&) {
        return false;
    }
    return tail == 0 && words < 3;
}

}  // namespace

string lower_case(string_view text) {
    string lower(text);
    for (char& c : lower)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return lower;
}

std::optional<MathAnswer> MathAnswer::parse(string_view text) {
    if (text.size() > kLongestText) return std::nullopt;
    try {
        MathAnswer answer;
        answer.root_ = Parser(Tokenizer(tidy(text)).tokens()).answer();
        return answer;
    } catch (const Unreadable&) {
        return std::nullopt;
    }
}

std::optional<string> last_boxed(string_view text) {
    const auto boxes = boxes_of(text);
    if (boxes.empty()) return std::nullopt;
    std::size_t first = boxes.size() - 1;
    while (first > 0 && boxes.back().end - boxes[first - 1].begin <= kLongestText &&
           joins(text.substr(boxes[first - 1].end, boxes[first].begin - boxes[first - 1].end)))
        --first;
    string answer;
    for (std::size_t i = first; i < boxes.size(); ++i)
        answer += (i > first ? ", " : "") + string(boxes[i].content);
    return answer;
}

}  // namespace r1
