// Whether two answers are equal as mathematics: what GSM8K, MATH and AIME write, in LaTeX or in
// plain text.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace r1 {

/// An answer that has been read: a number, an expression in any variables, an equation or
/// inequality, an interval or a union of some, a tuple, set, list or matrix of these, or a word.
/// Cheap to copy.
///
/// What does not change a value is ignored: dollars, percent signs, degrees and units behind a
/// number. "1,234" is one number, "1, 234" are two.
class MathAnswer {
  public:
    /// Nothing if the text cannot be read, is longer than 4096 bytes, or nested deeper than 40.
    static std::optional<MathAnswer> parse(std::string_view text);

    struct Node;
    const Node& root() const { return *root_; }
    /// The text without what only changes how it looks.
    const std::string& plain() const { return plain_; }

  private:
    std::shared_ptr<const Node> root_;
    std::string plain_;
};

/// Equal as mathematics. Rational expressions are compared exactly: they are evaluated in the
/// finite field of (2^61 - 1)^2 elements at fixed random points (Schwartz 1980; Zippel 1979: two
/// that differ agree there with a chance of about 2^-60). What is irrational is compared in complex
/// float64 to a relative 1e-9. Lists without brackets and sets have no order; an equation "x = 5"
/// equals "5", and "2x = y + 1" its multiples; an inequality equals the interval it describes; a
/// decimal of four places or more equals what it is rounded from. The work is bounded, whatever the
/// answers are.
bool equal(const MathAnswer& a, const MathAnswer& b);

/// The content of the last \boxed{...}, its braces balanced.
std::optional<std::string_view> last_boxed(std::string_view text);

/// The final answer within free text: the last \boxed{} (several, if only "and" and the like stand
/// between them), else the last formula or number behind "answer is" or "answer:", else in all of
/// the text.
std::string find_answer(std::string_view text);

}  // namespace r1
