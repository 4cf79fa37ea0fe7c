#include "src/rl/grpo.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/run/error.h"

namespace r1 {

AdvantageScale advantage_scale(const std::string& name) {
    if (name == "group") return AdvantageScale::Group;
    if (name == "none") return AdvantageScale::None;
    if (name == "batch") return AdvantageScale::Batch;
    fail("unknown advantage scale \"", name, "\"; choose group, none or batch");
}

std::vector<float> group_advantages(std::span<const float> rewards, std::size_t group_size,
                                    AdvantageScale scale, double batch_std) {
    if (group_size == 0 || rewards.size() % group_size)
        fail("rewards do not divide into groups of ", group_size);
    std::vector<float> advantages(rewards.size());
    for (std::size_t begin = 0; begin < rewards.size(); begin += group_size) {
        const auto group = rewards.subspan(begin, group_size);
        // Compared, not computed: E[r^2] - E[r]^2 of equal rewards may come out as a small number
        // instead of 0.
        if (std::ranges::all_of(group, [&](float r) { return r == group[0]; })) continue;
        const double mean =
            std::accumulate(group.begin(), group.end(), 0.0) / static_cast<double>(group_size);
        double squares = 0;
        for (float r : group) squares += (r - mean) * (r - mean);
        const double std = std::sqrt(squares / static_cast<double>(group_size - 1));
        const double divisor = scale == AdvantageScale::Group   ? std + 1e-4
                               : scale == AdvantageScale::Batch ? batch_std + 1e-4
                                                                : 1;
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

float token_weight(int length, const UpdateSize& update, LossAggregation aggregation,
                   int max_length) {
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

std::vector<TokenObjective> objective(const TokenLogProbabilities& logp, float advantage,
                                      const ObjectiveOptions& options) {
    constexpr double kLargestLogRatio = 60;
    const std::size_t length = logp.policy.size();
    auto difference = [](std::span<const float> a, std::span<const float> b, std::size_t t) {
        return static_cast<double>(a[t]) - b[t];
    };
    double mean_log_ratio = 0, mean_importance = 0;
    std::vector<double> importance(length, 1);  // of a token: pi_old / pi_sampled, truncated
    for (std::size_t t = 0; t < length; ++t) {
        mean_log_ratio += difference(logp.policy, logp.old, t) / static_cast<double>(length);
        if (options.importance_cap > 0)
            importance[t] = std::min<double>(
                options.importance_cap,
                std::exp(std::min(kLargestLogRatio, difference(logp.old, logp.sampled, t))));
        mean_importance += importance[t] / static_cast<double>(length);
    }

    std::vector<TokenObjective> terms(length);
    const double low = 1 - static_cast<double>(options.epsilon_low),
                 high = 1 + static_cast<double>(options.epsilon_high);
    for (std::size_t t = 0; t < length; ++t) {
        TokenObjective& term = terms[t];
        const double log_ratio =
            options.sequence_ratio ? mean_log_ratio : difference(logp.policy, logp.old, t);
        const double bounded = std::clamp(log_ratio, -kLargestLogRatio, kLargestLogRatio);
        term.ratio = std::exp(bounded);
        term.loss =
            -std::min(term.ratio * advantage, std::clamp(term.ratio, low, high) * advantage);
        term.clipped_low = advantage < 0 && term.ratio < low;
        term.clipped_high = advantage > 0 && term.ratio > high;
        term.loss *= importance[t];
        // d rho = rho d log rho. Of a sequence's ratio each token moves 1/length, and each of the
        // sequence's length terms moves with it, each with its own importance.
        if (!term.clipped_low && !term.clipped_high && bounded == log_ratio)
            term.dloss_dlogp = -term.ratio * advantage *
                               (options.sequence_ratio ? mean_importance : importance[t]);
        if (options.beta != 0) {
            const double from_reference = difference(logp.reference, logp.policy, t),
                         d = std::clamp(from_reference, -kLargestLogRatio, kLargestLogRatio);
            term.kl = std::exp(d) - d - 1;
            term.loss += options.beta * term.kl;
            if (d == from_reference) term.dloss_dlogp += options.beta * (1 - std::exp(d));
        }
    }
    return terms;
}

double overlong_penalty(int length, int max_length, int cache) {
    const int free = max_length - cache;
    if (length <= free || cache <= 0) return 0;
    return std::max(-1.0, static_cast<double>(free - length) / cache);
}

}  // namespace r1
