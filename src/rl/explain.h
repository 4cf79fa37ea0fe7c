// What `train_grpo --explain` prints: one step on one question, from rewards to the clipped
// gradient, so that a reader with a pocket calculator finds each number in those above it.
// tests/explain.py is that reader.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "src/rl/grpo.h"
#include "src/rl/judge.h"
#include "src/rl/micro_batch.h"
#include "src/rl/trainee.h"

namespace r1 {

struct ExplainedStep {
    const Judge& judge;
    const Tokenizer& tokenizer;
    /// Graded, with advantages; where the step teaches, old_logp is what the model says just before
    /// the update, and ref_logp what the reference policy says, if there is one.
    std::vector<Response>& responses;
    ScoreOptions scoring{};
    AdvantageScale scale = AdvantageScale::Group;
    ObjectiveOptions objective{};
    LossAggregation aggregation = LossAggregation::Grpo;
    int max_new_tokens = 0;
    double entropy_bonus = 0;

    // Of the update, which is only made where the step teaches:
    double loss = 0, gradient_norm = 0;       ///< as training itself computed them
    std::vector<double> gradient_products{};  ///< of each response's own gradient and the whole one
    std::vector<Response> updated{};  ///< whose old_logp is what the model says after the update
    std::vector<double> entropy_before{},
        entropy_after{};  ///< of each response, summed over its tokens

    /// Whether an update follows. It does not where all rewards are equal or all responses masked.
    bool teaches() const;
};

/// Takes the step, and asks the model what it says of each token before and after it, and what each
/// response adds to the gradient. accumulate_gradient(responses) adds their part of it to the
/// model's gradients, and returns their part of the loss.
void explain_update(ExplainedStep& step, const Trainee& trainee, const OptimizerFlags& flags,
                    const std::function<double(std::span<Response>)>& accumulate_gradient);

void print(const ExplainedStep& step, const OptimizerFlags& flags);

}  // namespace r1
