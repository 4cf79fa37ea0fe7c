// Rule rewards: is the format kept, is the answer right. No device, no eval, bounded work on any input.
// DeepSeek-R1, arXiv 2501.12948, section 2.2.2.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace r1 {

/// An exact fraction, denominator > 0, in lowest terms.
struct Rational {
    std::int64_t numerator = 0, denominator = 1;
    bool operator==(const Rational&) const = default;
};

/// What a right answer is: an expression that uses each number exactly once and reaches the target; a number;
/// a label.
struct Countdown {
    std::vector<std::int64_t> numbers;
    std::int64_t target = 0;
};
struct NumberGold {
    Rational value;
};
struct ChoiceGold {
    std::string label;
};
using Gold = std::variant<Countdown, NumberGold, ChoiceGold>;

struct Verdict {
    double value = 0;    ///< 0 or 1
    std::string reason;  ///< short, for logs
};

/// 1 for exactly <think>..</think><answer>..</answer>: each tag once, in order, neither part blank, nothing
/// but white space before, between and after.
Verdict format_reward(std::string_view response);

/// 1 if the response ends in one <answer>..</answer> block (behind </think>, where there is a thought) with a
/// right answer.
Verdict accuracy_reward(std::string_view response, const Gold& gold);

/// The text of that block; nothing if it is missing, unfinished, inside the thought, doubled, or followed by
/// text.
std::optional<std::string_view> extract_answer(std::string_view response);
/// The verdict on an answer already extracted.
Verdict check_answer(std::string_view answer, const Gold& gold);

/// "1,234", "-0.5", "3/4", "$12.00", "\boxed{7}", "50%" (= 50), "10 ." Nothing for anything else: no
/// exponents, no words.
std::optional<Rational> parse_number(std::string_view text);
/// "B", "(B)", "B.", " b) " and class labels: letters in lower case, without brackets, stop and blanks
/// around.
std::string normalize_label(std::string_view text);

}  // namespace r1
