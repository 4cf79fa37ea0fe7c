// The mathematics of GRPO as pure functions on floats: advantages, the clipped objective with its KL term,
// its derivative, and how tokens are averaged. DeepSeekMath, arXiv 2402.03300, section 4.1; DeepSeek-R1,
// arXiv 2501.12948, eq. 1-3.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace r1 {

/// How a group's rewards become advantages: A_i = (r_i - mean) / (std + 1e-4) with the n - 1 standard
/// deviation, or without the division (Dr. GRPO, arXiv 2503.20783).
enum class AdvantageScale { GroupStd, None };

/// rewards: groups of `group_size`, one after the other. A group whose rewards are all equal gets exactly 0.
std::vector<float> group_advantages(std::span<const float> rewards, std::size_t group_size,
                                    AdvantageScale scale = AdvantageScale::GroupStd);

/// How token terms are averaged into the loss. Grpo: mean over sequences of each one's mean over tokens.
/// Dapo: mean over all tokens of the update (arXiv 2503.14476, eq. 8). DrGrpo: sum over tokens / (sequences x
/// max_length).
enum class LossAggregation { Grpo, Dapo, DrGrpo };
LossAggregation loss_aggregation(const std::string& name);

/// What the *whole* update holds: over all micro-batches and all ranks, so that loss and gradient do not
/// depend on how it is split.
struct UpdateSize {
    double sequences = 0, tokens = 0;
};
/// The weight in the loss of each token of a sequence with `length` response tokens.
float token_weight(int length, const UpdateSize& update, LossAggregation aggregation, int max_length);

struct ObjectiveOptions {
    float clip_low = 0.2f, clip_high = 0.2f;  ///< the ratio is clipped to [1 - clip_low, 1 + clip_high]
    float beta = 0;                           ///< weight of the KL to the reference policy
};

/// One token's term. `loss` is what is minimised: -(min(rho A, clip(rho) A) - beta kl).
struct TokenObjective {
    float loss = 0;
    float dloss_dlogp =
        0;            ///< derivative with respect to the token's log-probability under the trained policy
    float ratio = 1;  ///< rho = pi_theta / pi_old
    float kl = 0;     ///< k3 estimate: pi_ref/pi_theta - log(pi_ref/pi_theta) - 1 >= 0
    bool clipped_low = false, clipped_high = false;  ///< the clip is in force: the ratio term has no gradient
};
/// Log-ratios are clamped to +-20 before exp, so that a runaway policy gives large numbers, not infinities.
TokenObjective token_objective(float logp, float old_logp, float ref_logp, float advantage,
                               const ObjectiveOptions& options);

}  // namespace r1
