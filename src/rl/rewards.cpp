#include "src/rl/rewards.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <numeric>

namespace r1 {
namespace {

using std::int64_t;
constexpr int kDeepestNesting = 32;

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string lower_case(std::string_view text) {
    std::string lower(text);
    std::ranges::transform(lower, lower.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return lower;
}

/// The place of `tag` if it occurs exactly once.
std::optional<std::size_t> only(std::string_view text, std::string_view tag) {
    const auto at = text.find(tag);
    if (at == text.npos || text.find(tag, at + 1) != text.npos) return std::nullopt;
    return at;
}

/// numerator / denominator in lowest terms, if both fit.
std::optional<Rational> rational(__int128 numerator, __int128 denominator) {
    if (denominator == 0) return std::nullopt;
    if (denominator < 0) numerator = -numerator, denominator = -denominator;
    __int128 a = numerator < 0 ? -numerator : numerator, b = denominator;
    while (b != 0) std::swap(a %= b, b);
    if (a > 1) numerator /= a, denominator /= a;
    constexpr auto top = std::numeric_limits<int64_t>::max();
    if (numerator > top || numerator < -top || denominator > top) return std::nullopt;
    return Rational{static_cast<int64_t>(numerator), static_cast<int64_t>(denominator)};
}

/// A recursive-descent parser and calculator for + - * / and parentheses over non-negative
/// integers, exact. Anything else
/// (**, //, a decimal point, an exponent, a sign, a name) is an error, which ends it at once.
class Expression {
  public:
    explicit Expression(std::string_view text) : text_(text) {}

    /// sum = product (('+' | '-') product)*
    Rational sum() {
        Rational left = product();
        while (!failed()) {
            const char op = peek();
            if (op != '+' && op != '-') break;
            ++at_;
            left = combine(left, op, product());
        }
        return left;
    }
    /// After sum(): nothing must follow but an optional "= value".
    void finish(const Rational& value) {
        if (!failed() && peek() == '=') {
            ++at_;
            if (sum() != value) fail("what stands behind = is not the expression's value");
        }
        if (!failed() && at_ < text_.size())
            fail("unexpected \"" + std::string(1, text_[at_]) + "\"");
    }
    bool failed() const { return !error_.empty(); }
    const std::string& error() const { return error_; }
    const std::vector<int64_t>& numbers() const { return numbers_; }
    /// Numbers read so far, to tell the expression's from those behind "=".
    std::size_t count() const { return numbers_.size(); }

  private:
    /// product = factor (('*' | '/') factor)*
    Rational product() {
        Rational left = factor();
        while (!failed()) {
            const char op = peek();
            if (op != '*' && op != '/') break;
            ++at_;
            left = combine(left, op, factor());
        }
        return left;
    }
    /// factor = integer | '(' sum ')'
    Rational factor() {
        if (failed()) return {};
        if (peek() == '(') {
            ++at_;
            if (++depth_ > kDeepestNesting) return fail("nested too deeply");
            const Rational inner = sum();
            --depth_;
            if (failed()) return {};
            if (peek() != ')') return fail("a parenthesis is not closed");
            ++at_;
            return inner;
        }
        if (!is_digit(peek()))
            return fail(at_ < text_.size() ? "unexpected \"" + std::string(1, text_[at_]) + "\""
                                           : "a number is missing");
        int64_t value = 0;
        for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
            value = value * 10 + (text_[at_] - '0');
            if (value > 1'000'000'000'000) return fail("a number is too large");
        }
        numbers_.push_back(value);
        return {value, 1};
    }
    Rational combine(const Rational& a, char op, const Rational& b) {
        if (failed()) return {};
        using wide = __int128;
        if (op == '/' && b.numerator == 0) return fail("division by zero");
        const auto result =
            op == '*'
                ? rational(wide{a.numerator} * b.numerator, wide{a.denominator} * b.denominator)
            : op == '/'
                ? rational(wide{a.numerator} * b.denominator, wide{a.denominator} * b.numerator)
                : rational(wide{a.numerator} * b.denominator +
                               (op == '+' ? 1 : -1) * wide{b.numerator} * a.denominator,
                           wide{a.denominator} * b.denominator);
        return result ? *result : fail("a result is too large");
    }
    char peek() {
        while (at_ < text_.size() && is_space(text_[at_])) ++at_;
        return at_ < text_.size() ? text_[at_] : '\0';
    }
    Rational fail(std::string why) {
        if (error_.empty()) error_ = std::move(why);
        return {};
    }

    std::string_view text_;
    std::size_t at_ = 0;
    int depth_ = 0;
    std::vector<int64_t> numbers_;
    std::string error_;
};

Verdict check(std::string_view answer, const Countdown& gold) {
    Expression e(answer);
    const Rational value = e.sum();
    std::vector<int64_t> used(e.numbers()), given(gold.numbers);
    e.finish(value);
    if (e.failed()) return {0, e.error()};
    std::ranges::sort(used);
    std::ranges::sort(given);
    if (used != given) {
        for (int64_t n : used)
            if (std::ranges::count(used, n) > std::ranges::count(given, n))
                return {0, std::to_string(n) + " is not given, or not that often"};
        return {0, "not every number is used"};
    }
    if (value == Rational{gold.target, 1}) return {1, "right"};
    return {0, "gives " + std::to_string(value.numerator) +
                   (value.denominator == 1 ? "" : "/" + std::to_string(value.denominator))};
}

Verdict check(std::string_view answer, const MathGold& gold) {
    const auto value = MathAnswer::parse(answer);
    if (!value) return {0, "cannot be read as mathematics"};
    return equal(*value, gold.answer) ? Verdict{1, "right"} : Verdict{0, "not equal"};
}

Verdict check(std::string_view answer, const TextGold& gold) {
    return answer == trim(gold.text) ? Verdict{1, "right"} : Verdict{0, "another text"};
}

Verdict check(std::string_view answer, const ChoiceGold& gold) {
    const auto choice = choice_of(answer, gold.choices);
    if (!choice) return {0, "none of the choices"};
    return *choice == gold.right ? Verdict{1, "right"} : Verdict{0, "another choice"};
}

Verdict check(std::string_view, const NoGold&) { return {std::nan(""), "no answer is known"}; }

/// A label without the bracket, stop and white space around it, in lower case.
std::string normalize_label(std::string_view text) {
    text = trim(text);
    if (text.size() > 1 && text.ends_with(".")) text = trim(text.substr(0, text.size() - 1));
    if (text.size() > 1 && text.ends_with(")") && (text.starts_with("(") || text.size() == 2))
        text = trim(text.substr(text.starts_with("(") ? 1 : 0,
                                text.size() - (text.starts_with("(") ? 2 : 1)));
    return lower_case(text);
}

}  // namespace

Verdict format_reward(std::string_view response, AnswerIn answer_in) {
    if (answer_in == AnswerIn::Boxed) {
        const auto answer = extract_answer(response, answer_in);
        if (!answer) return {0, "no \\boxed{} behind a finished thought"};
        return trim(*answer).empty() ? Verdict{0, "an empty answer"} : Verdict{1, "right"};
    }
    constexpr std::string_view tags[] = {"<think>", "</think>", "<answer>", "</answer>"};
    std::size_t begin[4], end = 0;
    for (int i = 0; i < 4; ++i) {
        const auto at = only(response, tags[i]);
        if (!at)
            return {0, std::string(tags[i]) + (response.find(tags[i]) == response.npos
                                                   ? " is missing"
                                                   : " occurs more than once")};
        if (*at < end) return {0, "the tags are out of order"};
        begin[i] = *at, end = *at + tags[i].size();
    }
    auto between = [&](std::size_t from, std::size_t to) {
        return trim(response.substr(from, to - from));
    };
    if (!between(0, begin[0]).empty() || !between(begin[1] + tags[1].size(), begin[2]).empty() ||
        !between(end, response.size()).empty())
        return {0, "text outside the tags"};
    if (between(begin[0] + tags[0].size(), begin[1]).empty()) return {0, "an empty thought"};
    if (between(begin[2] + tags[2].size(), begin[3]).empty()) return {0, "an empty answer"};
    return {1, "right"};
}

std::optional<std::string_view> extract_answer(std::string_view response, AnswerIn answer_in) {
    std::size_t thought_end = 0;
    if (response.find("<think>") != response.npos || response.find("</think>") != response.npos) {
        const auto think = only(response, "<think>"), done = only(response, "</think>");
        if (!think || !done || *done < *think) return std::nullopt;
        thought_end = *done;
    }
    if (answer_in == AnswerIn::Boxed) return last_boxed(response.substr(thought_end));
    constexpr std::string_view open = "<answer>", close = "</answer>";
    const auto begin = only(response, open), end = only(response, close);
    if (!begin || !end || *begin < thought_end || *end < *begin + open.size() ||
        !trim(response.substr(*end + close.size())).empty())
        return std::nullopt;
    return response.substr(*begin + open.size(), *end - *begin - open.size());
}

Verdict check_answer(std::string_view answer, const Gold& gold) {
    if (answer.size() > kLongestAnswer) return {0, "the answer is too long"};
    return std::visit([&](const auto& g) { return check(trim(answer), g); }, gold);
}

Verdict accuracy_reward(std::string_view response, const Gold& gold, AnswerIn answer_in) {
    if (const auto* unknown = std::get_if<NoGold>(&gold)) return check({}, *unknown);
    const auto answer = extract_answer(response, answer_in);
    return answer ? check_answer(*answer, gold) : Verdict{0, "no answer"};
}

std::optional<std::size_t> choice_of(std::string_view text,
                                     const std::vector<std::string>& choices) {
    const std::string label = normalize_label(text);
    if (label.size() == 1 && label[0] >= 'a' && label[0] < 'a' + static_cast<int>(choices.size()))
        return label[0] - 'a';
    for (const bool any_case : {false, true}) {
        const auto normal = [&](std::string_view s) {
            return any_case ? lower_case(trim(s)) : std::string(trim(s));
        };
        const auto named = [&](const std::string& choice) {
            return normal(choice) == normal(text);
        };
        const auto count = std::ranges::count_if(choices, named);
        if (count == 1) return std::ranges::find_if(choices, named) - choices.begin();
        if (count > 1) return std::nullopt;
    }
    return std::nullopt;
}

std::string_view trim(std::string_view text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    return text;
}

}  // namespace r1
