// Whether two answers are equal as mathematics: what GSM8K, MATH and AIME write, in LaTeX or in
// plain text.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace r1 {

/// An answer that has been read: a number, an expression in any variables, an equation or
/// inequality, an interval or a union of some, a tuple, set, list or matrix of these, or a word.
/// Cheap to copy.
///
/// Signs of currency are ignored, and units where only one answer has them: 10 km/h equals 10. As
/// in Math-Verify, 50% equals 50 and 0.5. "1,234" is one number, "1, 234" are two.
class MathAnswer {
  public:
    /// Nothing if the text cannot be read, is longer than 4096 bytes, or nested deeper than 40.
    static std::optional<MathAnswer> parse(std::string_view text);

    struct Node;

  private:
    friend bool equal(const MathAnswer& a, const MathAnswer& b);
    friend std::optional<struct Calculation> calculate(const MathAnswer& answer);
    std::shared_ptr<const Node> root_;
};

/// Equal as mathematics. Expressions are compared at rational points of both signs and many sizes
/// (Schwartz 1980; Zippel 1979), where they are exact as long as they stay rational, and known to
/// 2048 bits beyond that. Lists without brackets and sets have no order; an equation "x = 5"
/// equals "5", and "2x = y + 1" its multiples; an inequality equals the interval it describes; a
/// decimal of four places and digits or more equals what it is rounded from. The work is bounded,
/// whatever the answers are: what would take more is not equal.
bool equal(const MathAnswer& a, const MathAnswer& b);

/// Integers joined by + - * / and parentheses, each with its sign, in the order in which they
/// stand, and what they come to: "7", "-3/5", or nothing for a division by zero.
struct Calculation {
    std::vector<std::string> integers;
    std::string value;
};
/// Of "(8 - 3) * -2" and "(8 - 3) * -2 = -10"; nothing for whatever else an answer may hold.
std::optional<Calculation> calculate(const MathAnswer& answer);

/// The content of the last \boxed{...}; of several, "1, 2", where only commas, "and" and the like
/// stand between them. Nothing if the last one is not finished.
std::optional<std::string> last_boxed(std::string_view text);

/// ASCII alone.
std::string lower_case(std::string_view text);

}  // namespace r1
