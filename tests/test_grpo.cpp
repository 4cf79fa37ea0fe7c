// GRPO's mathematics against the formulas written out again in float64, and against finite differences.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "src/run/error.h"
#include "src/rl/grpo.h"
#include "src/rl/rollout.h"

using namespace r1;

namespace {

TokenObjective token_objective(float logp, float old, float reference, float advantage,
                               const ObjectiveOptions& options) {
    return objective({{&logp, 1}, {&old, 1}, {&reference, 1}, {}}, advantage, options)[0];
}

}  // namespace

TEST_CASE("every variant's loss, gradient, KL and advantages are those of Hugging Face's TRL") {
    std::ifstream in(R1_SOURCE_DIR "/tests/golden/grpo.jsonl");
    int cases = 0;
    for (std::string line; std::getline(in, line); ++cases) {
        const auto golden = nlohmann::json::parse(line);
        CAPTURE(cases);
        const auto group = golden.at("group").get<std::size_t>();
        const auto rewards = golden.at("rewards").get<std::vector<float>>();
        double mean = 0, squares = 0;
        for (float r : rewards) mean += r / static_cast<double>(rewards.size());
        for (float r : rewards) squares += (r - mean) * (r - mean);
        const double batch_std = std::sqrt(squares / static_cast<double>(rewards.size() - 1));
        for (const char* scale : {"group", "none", "batch"}) {
            const auto expected = golden.at("advantages").at(scale).get<std::vector<double>>();
            const auto actual = group_advantages(rewards, group, advantage_scale(scale), batch_std);
            for (std::size_t i = 0; i < rewards.size(); ++i) CHECK(std::abs(actual[i] - expected[i]) < 1e-6);
        }

        const ObjectiveOptions options{golden.at("clip_low"), golden.at("clip_high"), golden.at("beta"),
                                       golden.at("sequence_ratio"), golden.at("importance_cap")};
        const LossAggregation aggregation = loss_aggregation(golden.at("loss_type"));
        auto rows = [&](const char* name) { return golden.at(name).get<std::vector<std::vector<float>>>(); };
        const auto policy = rows("policy"), old = rows("old"), reference = rows("reference"),
                   sampled = rows("sampled");
        const auto gradient = golden.at("gradient").get<std::vector<std::vector<double>>>();
        const auto advantages = group_advantages(rewards, group);
        UpdateSize size{static_cast<double>(policy.size()), 0};
        for (const auto& row : policy) size.tokens += static_cast<double>(row.size());
        double loss = 0, kl = 0;
        for (std::size_t i = 0; i < policy.size(); ++i) {
            const int length = static_cast<int>(policy[i].size());
            const auto terms =
                objective({policy[i], old[i], reference[i], sampled[i]}, advantages[i], options);
            for (int t = 0; t < length; ++t) {
                const double weight = token_weight(length, size, aggregation, golden.at("max_length"));
                loss += weight * terms[t].loss;
                kl += terms[t].kl / size.tokens;
                const double expected = gradient[i][t];
                CHECK(std::abs(weight * terms[t].dloss_dlogp - expected) <=
                      1e-6 * std::max(1.0, std::abs(expected)));
            }
        }
        const double expected_loss = golden.at("loss"), expected_kl = golden.at("kl");
        CHECK(std::abs(loss - expected_loss) <= 1e-6 * std::max(1.0, std::abs(expected_loss)));
        CHECK(std::abs(kl - expected_kl) <= 1e-6 * std::max(1.0, std::abs(expected_kl)));
    }
    CHECK(cases == 54);
}

TEST_CASE("DAPO's soft overlong punishment") {
    CHECK(overlong_penalty(80, 100, 20) == 0);
    CHECK(overlong_penalty(90, 100, 20) == doctest::Approx(-0.5));
    CHECK(overlong_penalty(100, 100, 20) == -1);
    CHECK(overlong_penalty(100, 100, 0) == 0);
}

TEST_CASE("advantages: (r - mean) / (std + 1e-4) within each group, by place and not by value") {
    const std::vector<float> rewards = {1, 0, 0, 1, 0.2f, 1.2f, 0.2f, 0};
    const auto a = group_advantages(rewards, 4);
    for (int g = 0; g < 2; ++g) {
        double mean = 0, square = 0;
        for (int i = 0; i < 4; ++i) mean += rewards[4 * g + i] / 4.0;
        for (int i = 0; i < 4; ++i) square += std::pow(rewards[4 * g + i] - mean, 2);
        for (int i = 0; i < 4; ++i)
            CHECK(
                a[4 * g + i] ==
                doctest::Approx((rewards[4 * g + i] - mean) / (std::sqrt(square / 3) + 1e-4)).epsilon(1e-6));
    }
    const auto plain = group_advantages(rewards, 4, AdvantageScale::None);
    CHECK(plain[0] == doctest::Approx(0.5));
    CHECK_THROWS_AS(group_advantages(rewards, 3), Error);
}

TEST_CASE(
    "a group whose rewards are all equal has advantages of exactly zero, whatever the rewards' rounding") {
    for (float r : {0.1f, 1e-3f, 1.2f, 7.7e7f}) {
        for (float a : group_advantages(std::vector<float>(7, r), 7)) CHECK(a == 0.0f);
    }
}

TEST_CASE("token weights: what each aggregation averages over") {
    const UpdateSize update{3, 10};  // three responses of 3, 1 and 6 tokens
    CHECK(token_weight(3, update, LossAggregation::Grpo, 10) == doctest::Approx(1.0 / 9));
    CHECK(token_weight(6, update, LossAggregation::Grpo, 10) == doctest::Approx(1.0 / 18));
    for (int length : {3, 1, 6}) {
        CHECK(token_weight(length, update, LossAggregation::Dapo, 10) == doctest::Approx(0.1));
        CHECK(token_weight(length, update, LossAggregation::DrGrpo, 10) == doctest::Approx(1.0 / 30));
    }
    CHECK_THROWS_AS(loss_aggregation("mean"), Error);
}

TEST_CASE("the clipped objective and its derivative, against the formula and central differences") {
    std::mt19937 random(3);
    std::normal_distribution<double> normal(0, 0.4);
    int low = 0, high = 0;
    for (int i = 0; i < 2000; ++i) {
        const ObjectiveOptions o{0.2f, i % 2 ? 0.2f : 0.28f, i % 3 ? 0.0f : 0.04f};
        const auto logp = static_cast<float>(-2 + normal(random)),
                   old = static_cast<float>(-2 + normal(random)),
                   ref = static_cast<float>(-2 + normal(random)),
                   advantage = static_cast<float>(3 * normal(random));
        auto loss = [&](double lp) {
            const double rho = std::exp(lp - old),
                         clipped = std::min(std::max(rho, 1.0 - o.epsilon_low), 1.0 + o.epsilon_high);
            const double kl = std::exp(ref - lp) - (ref - lp) - 1;
            return -(std::min(rho * advantage, clipped * advantage) - o.beta * kl);
        };
        const auto t = token_objective(logp, old, ref, advantage, o);
        CHECK(t.loss == doctest::Approx(loss(logp)).epsilon(1e-5));
        CHECK(t.ratio == doctest::Approx(std::exp(static_cast<double>(logp) - old)).epsilon(1e-5));
        CHECK(t.kl >= 0);
        const double rho = t.ratio;
        if (std::abs(rho - 1 + o.epsilon_low) < 1e-3 || std::abs(rho - 1 - o.epsilon_high) < 1e-3)
            continue;  // at the kink
        const double h = 1e-6, numeric = (loss(logp + h) - loss(logp - h)) / (2 * h);
        CHECK(std::abs(t.dloss_dlogp - numeric) < 2e-5);
        low += t.clipped_low, high += t.clipped_high;
        if (t.clipped_low || t.clipped_high) CHECK(std::abs(t.dloss_dlogp) <= o.beta * (1 + std::exp(2.5)));
    }
    CHECK(low > 50);
    CHECK(high > 50);
}

TEST_CASE("on-policy: ratio 1, loss -A, gradient -A") {
    const auto t = token_objective(-3.25f, -3.25f, -3.25f, 0.75f, {0.2f, 0.2f, 0.04f});
    CHECK(t.ratio == 1.0f);
    CHECK(t.kl == 0.0f);
    CHECK(t.loss == -0.75f);
    CHECK(t.dloss_dlogp == -0.75f);
}

TEST_CASE("log-ratios of +-50 and beyond give finite numbers") {
    for (float difference : {50.0f, -50.0f, 1e4f, -1e4f})
        for (float advantage : {1.0f, -1.0f}) {
            const auto t =
                token_objective(-1, -1 - difference, -1 + difference, advantage, {0.2f, 0.2f, 0.04f});
            CHECK(std::isfinite(t.loss));
            CHECK(std::isfinite(t.dloss_dlogp));
            CHECK(std::isfinite(t.kl));
        }
}

TEST_CASE("a forgotten temperature would show: the ratio of a token sampled and scored at the same T is 1") {
    // p ~ softmax(l / T). Scored at T = 1 instead, the ratio drifts from 1: the sampler's and trainer's
    // temperatures must agree.
    const double l[2] = {1.0, -0.5};
    auto logp = [&](double T) {
        return static_cast<float>(l[0] / T - std::log(std::exp(l[0] / T) + std::exp(l[1] / T)));
    };
    CHECK(token_objective(logp(0.6), logp(0.6), 0, 1, {}).ratio == 1.0f);
    CHECK(std::abs(token_objective(logp(1.0), logp(0.6), 0, 1, {}).ratio - 1) > 0.05);
}

TEST_CASE("the gradient of a sequence's ratio under truncated importance sampling is that of its own loss") {
    const std::vector<float> policy = {-1.0f, -1.0f, -0.7f}, old = {-1.0f, -1.1f, -0.9f}, sampled = {-1.0f, -1.5f, -3.0f};
    const ObjectiveOptions options{.epsilon_low = 10, .epsilon_high = 10, .sequence_ratio = true, .importance_cap = 2};
    const auto loss = [&](std::vector<float> p) {
        double sum = 0;
        for (const auto& term : objective({p, old, {}, sampled}, 0.5f, options)) sum += term.loss;
        return sum;
    };
    const auto terms = objective({policy, old, {}, sampled}, 0.5f, options);
    for (std::size_t t = 0; t < policy.size(); ++t) {
        auto up = policy, down = policy;
        up[t] += 0x1p-10f;
        down[t] -= 0x1p-10f;
        CHECK(terms[t].dloss_dlogp == doctest::Approx((loss(up) - loss(down)) / 0x1p-9).epsilon(1e-4));
    }
}

TEST_CASE("groups are dealt by length: each once, and the busiest rank has less to do than if they were dealt in turn") {
    std::mt19937 random(1);
    std::lognormal_distribution<double> length(6, 1);
    for (const int ranks : {1, 2, 3, 8})
        for (const int updates : {1, 2, 5}) {
            double busiest = 0, busiest_in_turn = 0;
            for (int trial = 0; trial < 50; ++trial) {
                INFO(ranks, " ranks, ", updates, " updates, trial ", trial);
                std::vector<double> tokens(32);
                for (double& t : tokens) t = std::floor(length(random));
                const auto rank_of = deal_by_length(tokens, updates, ranks);
                REQUIRE(rank_of.size() == tokens.size());
                CHECK(rank_of[0] == 0);
                for (int u = 0; u < updates; ++u) {
                    std::vector<double> load(ranks), in_turn(ranks);
                    double all = 0, longest = 0;
                    for (int g = 32 * u / updates; g < 32 * (u + 1) / updates; ++g) {
                        REQUIRE((rank_of[g] >= 0 && rank_of[g] < ranks));
                        load[rank_of[g]] += tokens[g];
                        in_turn[g % ranks] += tokens[g];
                        all += tokens[g];
                        longest = std::max(longest, tokens[g]);
                    }
                    CHECK(std::ranges::max(load) <= all / ranks + longest);
                    if (updates == 1) CHECK(std::ranges::max(load) <= std::ranges::max(in_turn));  // of many groups
                    busiest += std::ranges::max(load);
                    busiest_in_turn += std::ranges::max(in_turn);
                }
            }
            CAPTURE(busiest / busiest_in_turn);
            CHECK(busiest <= (ranks > 1 && 32 / updates >= 2 * ranks ? 0.9 : 1) * busiest_in_turn);
        }
    // Equal groups go round; masked ones, of no tokens, change nothing.
    CHECK(deal_by_length(std::vector<double>{4, 4, 4, 4, 0}, 1, 2) == std::vector<int>{0, 1, 0, 1, 0});
}
