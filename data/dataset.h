// Problems to be rewarded on, and examples to be imitated: JSON lines. Errors name file and line.
#pragma once
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "src/rewards.h"

namespace r1 {

struct Problem {
    std::string prompt;  ///< the template, filled in
    Gold gold;
};

/// One object a line:
///   {"nums": [2, 12, 6], "target": 70}                             countdown
///   {"question": ..., "answer": "... #### 72"}                     a number (GSM8K: what stands behind the
///   last ####)
///   {"problem": ..., "answer": "3/4"}                              a number
///   {"question": ..., "choices": [...], "answer": "B" or 1}        a choice, by label or by index from 0
/// Blank lines are skipped. A gold answer that cannot be read is an error here, not a reward later.
std::vector<Problem> load_problems(const std::filesystem::path& file, const std::string& prompt_template);

/// Puts `question` into the template's {question}; a template without one leaves it as it is.
std::string fill_question(const std::string& prompt_template, const std::string& question);

/// The file given, else MODEL_FOLDER/prompt_template.txt, else the built-in R1-Zero prompt. It holds
/// {question}, or for countdown {numbers} and {target}. One newline at its end is dropped.
std::string load_prompt_template(const std::filesystem::path& model_folder, const std::string& template_file);

/// A completion to be learnt; the prompt is not.
struct SftExample {
    std::string prompt, completion;
    bool eos = true;  ///< false: cut off, no end-of-sequence token follows
};

/// {"prompt": ..., "completion": ..., "eos": false}, one at a time: the file is never in memory.
class SftReader {
  public:
    explicit SftReader(const std::filesystem::path& file);
    /// Nothing at the end of the file.
    std::optional<SftExample> next();
    /// Where the next example begins: byte and line, for a resumed run.
    std::string position() const;
    void seek(const std::string& position);
    void rewind() { seek("0 0"); }

  private:
    std::string name_;
    std::ifstream in_;
    std::int64_t byte_ = 0, line_ = 0;
};

}  // namespace r1
