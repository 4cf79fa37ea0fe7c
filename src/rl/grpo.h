// The mathematics of GRPO and its variants as pure functions on floats: advantages, the clipped
// objective with its KL term, its derivative, and how tokens are averaged. DeepSeekMath, arXiv
// 2402.03300, section 4.1; DeepSeek-R1, arXiv 2501.12948, eq. 1-3. tests/golden/grpo.py holds each
// to the functions of Hugging Face's TRL.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace r1 {

/// What rewards are divided by, after the mean of their group was subtracted: the group's standard
/// deviation (with n - 1) + 1e-4; nothing (Dr. GRPO, arXiv 2503.20783, section 3.1); the standard
/// deviation of all rewards of the step + 1e-4.
enum class AdvantageScale { Group, None, Batch };
AdvantageScale advantage_scale(const std::string& name);

/// rewards: groups of `group_size`, one after the other. A group whose rewards are all equal gets
/// exactly 0. batch_std is for AdvantageScale::Batch, as the step may be spread over several ranks.
std::vector<float> group_advantages(std::span<const float> rewards, std::size_t group_size,
                                    AdvantageScale scale = AdvantageScale::Group,
                                    double batch_std = 0);

/// How token terms are averaged into the loss. Grpo: mean over sequences of each one's mean over
/// tokens. Dapo: mean over all tokens of the update (arXiv 2503.14476, eq. 8). DrGrpo: sum over
/// tokens / (sequences x max_length).
enum class LossAggregation { Grpo, Dapo, DrGrpo };
LossAggregation loss_aggregation(const std::string& name);

/// What the *whole* update holds: over all micro-batches and all ranks, so that loss and gradient
/// do not depend on how it is split. A sequence that is masked counts among the sequences, not
/// among the tokens.
struct UpdateSize {
    double sequences = 0, tokens = 0;
};
/// The weight in the loss of each token of a sequence with `length` response tokens.
float token_weight(int length, const UpdateSize& update, LossAggregation aggregation,
                   int max_length);

struct ObjectiveOptions {
    float epsilon_low = 0.2f, epsilon_high = 0.2f;  ///< the ratio is clipped to [1 - low, 1 + high]
    float beta = 0;                                 ///< weight of the KL to the reference policy
    bool sequence_ratio =
        false;  ///< GSPO (arXiv 2507.18071, eq. 7): one ratio a sequence, exp of the mean log-ratio
    float importance_cap = 0;  ///< above 0: tokens are weighted by min(pi_old / pi_sampled, cap)
};

/// One response as the objective sees it: log-probabilities of its tokens under the policy that is
/// trained, the one at the beginning of the step, the reference (read if beta is not 0), and as
/// recorded while sampling (read if importance_cap is not 0: a correction for a sampler whose
/// arithmetic differs from the trainer's).
struct TokenLogProbabilities {
    std::span<const float> policy, old, reference, sampled;
};

/// One token's term. `loss` is what is minimised: -(min(rho A, clip(rho) A) - beta kl).
struct TokenObjective {
    double loss = 0;
    double dloss_dlogp = 0;  ///< derivative with respect to the token's log-probability under the
                             ///< trained policy, where all tokens of a sequence have one weight
    double ratio = 1;        ///< rho = pi_theta / pi_old
    double kl = 0;           ///< k3 estimate: pi_ref/pi_theta - log(pi_ref/pi_theta) - 1 >= 0
    bool clipped_low = false,
         clipped_high = false;  ///< the clip is in force: the ratio term has no gradient
};
/// The terms of a response's tokens. Log-ratios are clamped to +-60 before exp, so that a runaway
/// policy gives large numbers, not infinities.
std::vector<TokenObjective> objective(const TokenLogProbabilities& logp, float advantage,
                                      const ObjectiveOptions& options);

/// DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to max_length - cache tokens,
/// then down in a line to -1 at max_length.
double overlong_penalty(int length, int max_length, int cache);

}  // namespace r1
