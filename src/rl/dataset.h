// Problems to be rewarded on, and examples to be imitated: JSON lines. Errors name file and line.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "src/run/mapped_file.h"
#include "src/rl/rewards.h"
#include "tokenizer/chat_format.h"

namespace r1 {

/// How a question becomes a prompt: a text with {question} in it (or, for countdown, {numbers} and {target}),
/// and for a model that was trained on chats, its chat format around that text as the user's message.
class PromptTemplate {
  public:
    /// `choice` is a file, or "r1-zero", "r1-chat", "boxed" (data/templates); if empty, the model's own, as save()
    /// left it, else r1-chat for a model that chats and r1-zero for one that does not. One newline at the end of a
    /// file is dropped. `plain` leaves the chat format out.
    static PromptTemplate load(const std::filesystem::path& model_folder, const std::string& choice,
                               std::optional<ChatFormat> chat, bool plain = false);
    /// Whether the folder has a template of its own.
    static bool exists_in(const std::filesystem::path& model_folder);
    /// Writes FOLDER/prompt_template.txt, or prompt_template.plain.txt where a model that chats is to be asked without
    /// its chat format: with either, load() gives this template again.
    void save(const std::filesystem::path& folder) const;
    explicit PromptTemplate(std::string text, std::optional<ChatFormat> chat = std::nullopt);

    /// A template without {question} leaves the question as it is.
    std::string fill(const std::string& question) const;
    /// Throws Error if the template has neither {question} nor {numbers} and {target}.
    std::string fill(const Countdown& problem) const;
    bool has_question() const;
    /// Where the template asks for the answer: in <answer> tags, or in \boxed{}.
    AnswerIn answer_in() const;
    const std::optional<ChatFormat>& chat() const { return chat_; }
    const std::string& text() const { return text_; }

  private:
    std::string finish(const std::string& user) const;
    std::string text_;
    std::optional<ChatFormat> chat_;
    bool plain_ = false;  ///< the model has a chat format, which is left out
};

struct Problem {
    std::string prompt;  ///< the template, filled in
    Gold gold;
    AnswerIn answer_in = AnswerIn::Tags;
    std::string source{};  ///< the line of the file
};

enum class Answers { Required, Optional };

/// One object a line:
///   {"nums": [2, 12, 6], "target": 70}                           countdown; with a "question" in words of its own
///   {"question": ..., "answer": "... #### 72"}                   GSM8K: what stands behind the last ####
///   {"problem": ..., "solution": "... \\boxed{\\frac34} ..."}    MATH: what stands in the last \boxed{}
///   {"problem": ..., "answer": "\\frac34" or 204}                MATH-500, AIME: mathematics
///   {"question": ..., "answer": "3, 1, 2", "match": "text"}      this very text; "match": "math" is the default
///   {"question": ..., "choices": [...], "answer": "B" or 1}      a choice, by label, by index from 0 or by its text
///   {"question": ...}                                            where answers are optional
/// Other keys are allowed, and blank lines skipped. A gold answer that cannot be read is an error here, not a reward
/// later.
std::vector<Problem> load_problems(const std::filesystem::path& file, const PromptTemplate& prompt_template,
                                   Answers answers = Answers::Required);

/// Lines of a permutation: index i of an endless sequence that visits each of `count` items once an epoch, in
/// an order that depends on seed and epoch alone.
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
    bool eos = true;  ///< an end-of-sequence token follows, and is trained
};

/// {"prompt": ..., "completion": ..., "eos": false} or {"messages": [{"role": ..., "content": ...}, ...]}, in
/// an endless sequence of epochs. The file is mapped, not loaded: only the places of its lines are in memory.
class SftReader {
  public:
    /// seed: shuffles every epoch anew; nothing: in the file's order. Messages are rendered in the chat format
    /// of the model folder.
    SftReader(const std::filesystem::path& file, std::optional<std::uint64_t> seed,
              std::filesystem::path model_folder = {});
    SftExample next();
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
    MappedFile file_;
    std::vector<Line> lines_;
    std::optional<Order> order_;
    std::filesystem::path model_folder_;
    std::optional<ChatFormat> chat_;  ///< loaded at the first messages
    std::uint64_t position_ = 0;
};

}  // namespace r1
