// What `train_grpo --explain` prints: one step on one question, from rewards to the clipped
// gradient, so that a reader with a pocket calculator finds each number in those above it.
// tests/explain.py is that reader.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "src/rl/grpo.h"

namespace r1 {

/// A response, and what the model said of it before and after the update.
struct ExplainedResponse {
    std::string text, verdict;  ///< verdict: the reasons for accuracy and format
    std::vector<double> parts;  ///< of the reward, unweighted
    double reward = 0;
    float advantage = 0;
    int length = 0;       ///< in tokens
    bool stopped = true;  ///< false: cut off at the length limit
    bool masked = false;  ///< it has no part in the loss, and the fields below stay empty
    std::vector<std::string> tokens{};
    std::vector<float> sampled{}, old{},
        updated{};                   ///< log-probabilities; old: just before the update
    std::vector<float> reference{};  ///< empty without a reference policy
    double entropy_before = 0, entropy_after = 0;  ///< summed over the tokens
    double gradient_product = 0;  ///< of this response's own gradient and the whole one
};

struct ExplainedStep {
    std::string question;
    double temperature = 1;
    std::vector<std::pair<std::string, double>> reward;  ///< each part's name and weight
    AdvantageScale scale = AdvantageScale::Group;
    ObjectiveOptions objective{};
    LossAggregation aggregation = LossAggregation::Grpo;
    int max_new_tokens = 0;
    double entropy_bonus = 0, lr = 0, clip_norm = 0;
    double loss = 0, gradient_norm = 0;  ///< as training itself computed them
    std::vector<ExplainedResponse> responses{};

    /// Whether an update follows. It does not where all rewards are equal or all responses masked,
    /// and then nothing has to be known of it.
    bool teaches() const;
};

void print(const ExplainedStep& step);

}  // namespace r1
