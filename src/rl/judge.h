// The judgement on a response: its verdicts and measures, and the reward that is their weighted
// sum; and which samples are worth learning from.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/rl/dataset.h"
#include "src/rl/measures.h"
#include "src/rl/reward_program.h"

namespace r1 {

class Judge {
  public:
    /// Starts the reward program, if one is asked for. Throws Error for parts that cannot be read.
    explicit Judge(const RewardOptions& options);

    /// Grades responses: fills in accuracy, format, measures and reward.
    void operator()(std::span<Response> responses);

    /// Those of kMeasures, and "program" where there is one.
    const std::vector<std::string>& names() const { return names_; }
    /// The reward is the sum of weight x measures[index], in the order in which the parts were
    /// given.
    struct Part {
        std::size_t index;
        double weight;
    };
    const std::vector<Part>& parts() const { return parts_; }
    /// What was found, by name: the measures, why the answer is right or wrong, and the reward, if
    /// there is one. For files.
    nlohmann::ordered_json json(const Response& response) const;
    /// Only a reward for accuracy needs to know the answers.
    Answers answers() const;

  private:
    RewardOptions options_;
    std::vector<std::string> names_;
    std::vector<Part> parts_;
    std::optional<RewardProgram> program_;
};

/// Rejection sampling's filter (DeepSeek-R1, arXiv 2501.12948, sections 2.3.1 and 2.3.3: right,
/// readable, in one language, not too long). Conditions on measures, "accuracy>=1,length<200", all
/// of which must hold; `correct`, `well-formed` and `readable` are short for some of them.
class Keep {
  public:
    /// Throws Error for a condition that it does not know.
    explicit Keep(const std::string& conditions);
    /// Whether it asks for right answers, which takes problems that have them.
    Answers answers() const;
    /// Of a graded response.
    bool operator()(const Response& response) const;

  private:
    struct Condition {
        std::size_t index;  ///< into kMeasures
        std::string comparison;
        double bound;
    };
    std::vector<Condition> conditions_;
};

}  // namespace r1
