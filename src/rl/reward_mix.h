// A response's reward as a weighted sum of parts, and rewards from a program of the user's.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "src/rl/rollout.h"

namespace r1 {

/// A program that grades responses: it reads a line of JSON for each, {"problem": {the line of the data set}, "prompt":
/// ..., "response": ...}, and answers each with a line, a number or {"reward": number}. It is started once, through
/// /bin/sh, and lives as long as this object.
class RewardProgram {
  public:
    RewardProgram(std::string command, double seconds);
    ~RewardProgram();
    RewardProgram(const RewardProgram&) = delete;
    /// One number for each response. Throws Error if the program ends, answers something else, or needs longer than
    /// `seconds` for all of them.
    std::vector<double> grade(const std::vector<Problem>& problems, const std::vector<Response>& responses);

  private:
    [[noreturn]] void fail_ended(std::size_t answers, std::size_t wanted) const;

    std::string command_;
    double seconds_;
    int process_ = -1, to_ = -1, from_ = -1;
};

struct RewardOptions {
    std::string parts = "accuracy=1,format=0.2";
    std::string script = "latin";  ///< of language_consistency()
    std::string program{};         ///< the command behind "program"
    double program_seconds = 30;
    int max_new_tokens = 256,
        overlong_cache = 0;  ///< of overlong_penalty(); cache 0: a fifth of max_new_tokens
};

/// "accuracy=1,format=0.2": parts and their weights. accuracy and format as in rewards.h; language: 0 to 1; repetition:
/// 0 to -1; overlong: 0 to -1, DAPO's; length: the share of max_new_tokens that is used; program.
class RewardMix {
  public:
    explicit RewardMix(const RewardOptions& options);
    /// Names, in order.
    const std::vector<std::string>& parts() const { return names_; }
    const std::vector<double>& weights() const { return weights_; }
    /// Only a reward for accuracy needs to know the answers.
    Answers answers() const;
    /// Every response's parts, unweighted, and its reward, their weighted sum, into `responses`.
    void apply(const std::vector<Problem>& problems, std::vector<Response>& responses);

  private:
    RewardOptions options_;
    std::vector<std::string> names_;
    std::vector<double> weights_;
    std::optional<RewardProgram> program_;
};

}  // namespace r1
