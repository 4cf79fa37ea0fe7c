// Problems to be rewarded on, and examples to be imitated: JSON lines. Errors name file and line.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "src/rl/prompt_template.h"
#include "src/rl/rewards.h"
#include "tokenizer/chat_format.h"
#include "tokenizer/tokenizer.h"

namespace r1 {

struct Problem {
    std::string prompt;  ///< the template, filled in
    Gold gold;
    AnswerIn answer_in = AnswerIn::Tags;
    std::string source{};  ///< the line of the file
    std::uint32_t id = 0;  ///< its place in the data set; names it in the random counter
    std::string place{};   ///< "FILE:LINE"
    std::vector<std::int32_t> tokens{};  ///< the prompt, by encode_prompts()
};

enum class Answers { Required, Optional };

/// One object a line:
///   {"nums": [2, 12, 6], "target": 70}                           countdown; with a "question" in
///   words of its own
///   {"question": ..., "answer": "... #### 72"}                   GSM8K: what stands behind the
///   last ####
///   {"problem": ..., "solution": "... \\boxed{\\frac34} ..."}    MATH: what stands in the last
///   \boxed{}
///   {"problem": ..., "answer": "\\frac34" or 204}                MATH-500, AIME: mathematics
///   {"question": ..., "answer": "3, 1, 2", "match": "text"}      this very text; "match": "math"
///   is the default
///   {"question": ..., "choices": [...], "answer": "B" or 1}      a choice, by label, by index from
///   0 or by its text
///   {"question": ...}                                            where answers are optional
/// Other keys are allowed, and blank lines skipped. A gold answer that cannot be read is an error
/// here, not a reward later; with skip_unreadable such problems are left out, and a note on stderr
/// counts them.
std::vector<Problem> load_problems(const std::filesystem::path& file,
                                   const PromptTemplate& prompt_template,
                                   Answers answers = Answers::Required,
                                   bool skip_unreadable = false);

/// At most `limit` of the problems, 0: all. They are evenly spaced, since a file may have its kinds
/// of questions one after the other.
std::vector<Problem> limited(std::vector<Problem> problems, int limit);

/// A note on texts that hold characters which the vocabulary lacks, so that the model does not see
/// what was written.
struct LackingNote {
    /// place: "FILE:LINE"; character: as Tokenizer::encode() names it, or nothing.
    void add(const std::string& place, const std::string& character);
    /// Prints one line, if there was any such text.
    void print() const;
    std::string first{};
    std::size_t count = 0;
};

/// Fills in every problem's tokens, and returns the length of the longest prompt. Throws Error for
/// a prompt that has no token, or leaves no room in the model's context.
int encode_prompts(std::vector<Problem>& problems, const Tokenizer& tokenizer, int context);

/// Lines of a permutation: index i of an endless sequence that visits each of `count` items once an
/// epoch, in an order that depends on seed and epoch alone.
class Order {
  public:
    Order(std::size_t count, std::uint64_t seed) : order_(count), seed_(seed) {}
    std::uint32_t at(std::uint64_t i);

  private:
    std::vector<std::uint32_t> order_;
    std::uint64_t seed_;
    std::uint32_t epoch_ = ~0u;
};

/// A text to be learnt from: the loss is on its trained segments only.
struct SftExample {
    std::vector<Segment> segments;
    bool eos = true;      ///< an end-of-sequence token follows, and is trained
    bool chat = false;    ///< messages, in the model's chat format
    std::string place{};  ///< "FILE:LINE"
};

/// {"prompt": ..., "completion": ..., "eos": false} or {"messages": [{"role": ..., "content": ...},
/// ...]}, where a thought may stand apart in "reasoning_content", in an endless sequence of epochs.
/// Lines are parsed when their turn comes.
class SftReader {
  public:
    /// seed: shuffles every epoch anew; nothing: in the file's order. Messages are rendered in the
    /// chat format of the model folder. Texts are escaped, where the tokenizer does that.
    SftReader(const std::filesystem::path& file, std::optional<std::uint64_t> seed,
              std::filesystem::path model_folder = {}, std::optional<Tokenizer> tokenizer = {});
    void shuffle(std::uint64_t seed) { order_.emplace(lines_.size(), seed); }
    SftExample next();
    /// The chat format, once messages have been read.
    const std::optional<ChatFormat>& chat() const { return chat_; }
    const std::string& name() const { return name_; }
    /// Examples in the file.
    std::size_t size() const { return lines_.size(); }
    /// Examples read so far: with the same file and seed, all that a resumed run needs.
    std::uint64_t position() const { return position_; }
    void seek(std::uint64_t position) { position_ = position; }

  private:
    struct Line {
        std::size_t begin, length, number;
    };
    std::string name_;
    std::string text_;
    std::vector<Line> lines_;
    std::optional<Order> order_;
    std::filesystem::path model_folder_;
    std::optional<Tokenizer> tokenizer_;
    std::optional<ChatFormat> chat_;  ///< loaded at the first messages
    std::uint64_t position_ = 0;
};

}  // namespace r1
