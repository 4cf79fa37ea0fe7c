// Examples for supervised fine-tuning as sequences of tokens, in batches.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "src/rl/dataset.h"

namespace r1 {

/// A training sequence and which of its tokens are learnt.
struct Sequence {
    std::vector<std::int32_t> tokens;
    std::vector<bool> scored;
    std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
    std::int64_t learnt() const;
};

class SftBatches {
  public:
    /// Reads all examples once: throws Error where one cannot be encoded, or none has something to
    /// learn and fits into `longest` tokens; says what is left out, and what the vocabulary lacks.
    /// `eos` ends a completion.
    SftBatches(SftReader reader, const Tokenizer& tokenizer, std::int32_t eos,
               std::int64_t longest);
    /// The next batch, of about so many tokens. Sequences with one prompt stand side by side: they
    /// share its rows (see PackedBatch).
    std::vector<Sequence> next(std::int64_t tokens);
    /// Where the next batch begins, and where it is to begin.
    SftReader& reader() { return reader_; }

  private:
    Sequence encode(const SftExample& example, std::string* lacking = nullptr) const;
    bool can_be_learnt(const Sequence& s) const { return s.size() <= longest_ && s.learnt() > 0; }
    SftReader reader_;
    const Tokenizer& tokenizer_;
    std::int32_t eos_;
    std::int64_t longest_;
};

}  // namespace r1
