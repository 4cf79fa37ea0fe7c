// The tiny world of the demo and of the whole recipe: four kinds of questions, two languages to
// think in, and a synthetic corpus of pieces of reasoning from which the base model learns.
//
// Two things are in it for the paper's stages. A thought may be written in English words, in
// Chinese ones or in a mixture, because none of R1-Zero's rewards asks for one of them. And an
// attempt is judged at a glance ("12*6-2=70 yes"), which is often wrong, whereas "check" works it
// out again step by step, which seldom is: reflection costs tokens and pays.
#pragma once
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace r1::world {

using Numbers = std::array<int, 3>;

/// Countdown: combine the three numbers, each of 1..12 and used once, by + - * into the target,
/// with every result within 0..99.
struct Task {
    Numbers numbers;
    int target;  ///< 1..99
};

struct Step {
    int left;
    char op;
    int right, result;

    std::string text() const;  ///< "12*6=72"
};

/// One way to combine all three numbers, e.g. 12*6=72 and then 72-2=70.
struct Attempt {
    Step first, second;
    bool first_on_right;  ///< the first result is the second step's right operand, not its left one

    std::string expression() const;  ///< "12*6-2", with parentheses where they are needed
};

/// Every attempt whose results stay within 0..99.
std::vector<Attempt> all_attempts(const Numbers& numbers);

enum class Kind { Countdown, Arithmetic, Choice, General };
inline constexpr const char* kKindNames[] = {"countdown", "arithmetic", "choice", "general"};

struct Question {
    Kind kind;
    /// In the order of the kinds: "2,12,6=70", "34+8-5+12", "7*8+5", "color of grass".
    std::string text;
    Task task{};                 ///< countdown
    std::vector<Step> steps{};   ///< arithmetic and choice, from left to right
    std::vector<int> choices{};  ///< choice
    std::string answer{};        ///< "49", "B", "green"; empty for countdown

    /// A line for load_problems(), which also says the kind.
    std::string json() const;
    /// What a model is asked, as load_problems() and the base model's template render it.
    std::string prompt() const;
};

/// About one question in ten never occurs in the corpus or in any training; a hash of its text
/// decides (for countdown, of its sorted numbers and its target). Of the general questions it is
/// one in four, so that a known fact is asked for in other words.
bool held_out(const Question& question);

/// What a document of the corpus is.
enum class Form {
    DirectGuess,
    UntaggedGuess,
    OneAttempt,
    ShortSearch,
    LongSearch,
    Malformed,
    Drill,
    SumPage,  ///< equations without a question
    Short
};
struct DocumentKind {
    Form form;
    Kind question;
    int percent;  ///< of the corpus's documents
};
inline constexpr DocumentKind kDocumentKinds[] = {
    {Form::DirectGuess, Kind::Countdown, 8}, {Form::UntaggedGuess, Kind::Countdown, 4},
    {Form::OneAttempt, Kind::Countdown, 5},  {Form::ShortSearch, Kind::Countdown, 15},
    {Form::LongSearch, Kind::Countdown, 9},  {Form::Malformed, Kind::Countdown, 7},
    {Form::Drill, Kind::Countdown, 11},      {Form::SumPage, Kind::Arithmetic, 9},
    {Form::Short, Kind::Arithmetic, 9},      {Form::Short, Kind::Choice, 15},
    {Form::Short, Kind::General, 8}};

struct Document {
    Form form;
    Kind question;
    std::string prompt, completion;
    bool eos = true;  ///< false: cut off in the middle
};

/// Where everything is drawn from. The same seed gives the same everywhere, because none of the
/// library's distributions is used.
using Random = std::mt19937_64;

/// Up to `count` questions in random order; of the kinds whose questions can all be listed,
/// countdown and general, there may be fewer.
std::vector<Question> questions(Kind kind, int count, bool held_out, Random& random);
/// The next document of the pretraining corpus, which is endless and mostly useless.
Document document(Random& random);
/// A general question with a short right answer in the wanted form: the paper's non-reasoning
/// samples (arXiv 2501.12948, section 2.3.3).
Document general_sample(Random& random);

/// The tokenizer's vocabulary without its tags: a token for each number, sign and word; words carry
/// their blanks.
std::vector<std::string> vocabulary();

}  // namespace r1::world
