// Rule rewards: is the format kept, is the answer right. No device, no eval, bounded work on any
// input. DeepSeek-R1, arXiv 2501.12948, section 2.2.2.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "src/rl/math_answer.h"

namespace r1 {

/// An expression is right that uses each number exactly once and reaches the target.
struct Countdown {
    std::vector<std::int64_t> numbers;
    std::int64_t target = 0;
};
/// Whatever equals this as mathematics is right.
struct MathGold {
    MathAnswer answer;
};
/// Only this very text is right: order, case and blanks count, but not the white space around it.
struct TextGold {
    std::string text;
};
/// What names the right choice is right, see choice_of().
struct ChoiceGold {
    std::vector<std::string> choices;
    std::size_t right = 0;
};
/// No answer is known, so none is right or wrong: for rewards that look at something else.
struct NoGold {};
using Gold = std::variant<Countdown, MathGold, TextGold, ChoiceGold, NoGold>;

/// Where a response states its answer: in R1-Zero's <answer> tags, or in the last \\boxed{} behind
/// the thought.
enum class AnswerIn { Tags, Boxed };

struct Verdict {
    double value = 0;    ///< 0 or 1; NaN where no answer is known
    std::string reason;  ///< short, for logs
};

/// Tags: 1 for exactly <think>..</think><answer>..</answer>: each tag once, in order, neither part
/// blank, nothing but white space before, between and after. Boxed: 1 for a \\boxed{} that is not
/// blank, behind <think>..</think> if there is a thought.
Verdict format_reward(std::string_view response, AnswerIn answer_in = AnswerIn::Tags);

/// 1 if the response states a right answer, and states it where it is asked to.
Verdict accuracy_reward(std::string_view response, const Gold& gold,
                        AnswerIn answer_in = AnswerIn::Tags);

/// The answer's text. Nothing if it is missing, unfinished or inside the thought; for tags also if
/// they are doubled or followed by text.
std::optional<std::string> extract_answer(std::string_view response,
                                          AnswerIn answer_in = AnswerIn::Tags);
/// In bytes; a longer answer is wrong.
constexpr std::size_t kLongestAnswer = 1024;
/// The verdict on an answer already extracted.
Verdict check_answer(std::string_view answer, const Gold& gold);

/// The choice that a text names: by its label ("B", "(B)", " b) ", "B: " and its own text), else by
/// its own text, in which white space at both ends does not matter, nor case where only one choice
/// is meant then; either may stand in \\boxed{}, \\text{} and ** **. Nothing if it names none or
/// several.
std::optional<std::size_t> choice_of(std::string_view text,
                                     const std::vector<std::string>& choices);

/// Without the white space at both ends.
std::string_view trim(std::string_view text);

}  // namespace r1
