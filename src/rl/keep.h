// Which samples are worth learning from: rejection sampling's filter (DeepSeek-R1, arXiv 2501.12948, sections 2.3.1 and
// 2.3.3: right, readable, in one language, not too long).
#pragma once
#include <limits>
#include <string>

#include "src/rl/rollout.h"

namespace r1 {

/// "correct,readable,longest<200": conditions, all of which must hold. `correct`; `well-formed`: the format is kept;
/// `readable`: well-formed, ended by itself, at least 95% of its words in the script, at most a fifth of it repetition;
/// `longest<N`: fewer tokens than N; `language>=X`, `repetition<=X`: the measures of src/rl/text_measures.h.
class Keep {
  public:
    /// Throws Error for a condition that it does not know.
    Keep(const std::string& conditions, std::string script);
    /// Whether it asks for correct responses, which takes problems with an answer.
    bool correct() const { return correct_; }
    /// Of a graded response.
    bool operator()(const Response& response) const;

  private:
    std::string script_;
    bool correct_ = false, well_formed_ = false, stopped_ = false;
    double longest_ = std::numeric_limits<double>::infinity(), language_ = 0, repetition_ = 2;
};

}  // namespace r1
