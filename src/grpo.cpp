#include "src/grpo.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/error.h"

namespace r1 {

std::vector<float> group_advantages(std::span<const float> rewards, std::size_t group_size,
                                    AdvantageScale scale) {
    if (group_size == 0 || rewards.size() % group_size)
        fail("rewards do not divide into groups of ", group_size);
    std::vector<float> advantages(rewards.size());
    for (std::size_t begin = 0; begin < rewards.size(); begin += group_size) {
        const auto group = rewards.subspan(begin, group_size);
        // Compared, not computed: E[r^2] - E[r]^2 of equal rewards may come out as a small number instead of
        // 0.
        if (std::ranges::all_of(group, [&](float r) { return r == group[0]; })) continue;
        const double mean =
            std::accumulate(group.begin(), group.end(), 0.0) / static_cast<double>(group_size);
        double squares = 0;
        for (float r : group) squares += (r - mean) * (r - mean);
        const double std = std::sqrt(squares / static_cast<double>(group_size - 1));
        const double divisor = scale == AdvantageScale::GroupStd ? std + 1e-4 : 1;
        for (std::size_t i = 0; i < group_size; ++i)
            advantages[begin + i] = static_cast<float>((group[i] - mean) / divisor);
    }
    return advantages;
}

LossAggregation loss_aggregation(const std::string& name) {
    if (name == "grpo") return LossAggregation::Grpo;
    if (name == "dapo") return LossAggregation::Dapo;
    if (name == "dr_grpo") return LossAggregation::DrGrpo;
    fail("unknown loss aggregation \"", name, "\"; choose grpo, dapo or dr_grpo");
}

float token_weight(int length, const UpdateSize& update, LossAggregation aggregation, int max_length) {
    switch (aggregation) {
        case LossAggregation::Grpo:
            return static_cast<float>(1 / (update.sequences * length));
        case LossAggregation::Dapo:
            return static_cast<float>(1 / update.tokens);
        case LossAggregation::DrGrpo:
            return static_cast<float>(1 / (update.sequences * max_length));
    }
    return 0;
}

TokenObjective token_objective(float logp, float old_logp, float ref_logp, float advantage,
                               const ObjectiveOptions& options) {
    constexpr float kLargestLogRatio = 20;
    TokenObjective t;
    const float log_ratio = logp - old_logp,
                bounded = std::clamp(log_ratio, -kLargestLogRatio, kLargestLogRatio);
    t.ratio = std::exp(bounded);
    const float clipped = std::clamp(t.ratio, 1 - options.clip_low, 1 + options.clip_high);
    const float surrogate = std::min(t.ratio * advantage, clipped * advantage);
    t.clipped_low = advantage < 0 && t.ratio < 1 - options.clip_low;
    t.clipped_high = advantage > 0 && t.ratio > 1 + options.clip_high;
    t.loss = -surrogate;
    if (!t.clipped_low && !t.clipped_high && bounded == log_ratio)
        t.dloss_dlogp = -t.ratio * advantage;  // d rho = rho d logp

    if (options.beta != 0) {
        const float difference = ref_logp - logp,
                    d = std::clamp(difference, -kLargestLogRatio, kLargestLogRatio);
        t.kl = std::exp(d) - d - 1;
        t.loss += options.beta * t.kl;
        if (d == difference) t.dloss_dlogp += options.beta * (1 - std::exp(d));
    }
    return t;
}

}  // namespace r1
