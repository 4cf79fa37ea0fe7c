// A model's answer to a problem: the one struct that goes from sampling through rewards to the
// gradient.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/rl/rewards.h"

namespace r1 {

struct Problem;

struct Response {
    // The generator fills in:
    std::vector<std::int32_t> tokens;  ///< the stop token included
    std::vector<float> sampled_logp;   ///< of each token, under the distribution it was drawn from
    bool stopped = false;              ///< it ended by itself; false: cut off at the length limit
    bool stop_token = false;  ///< its last token is a stop token, which is no part of its text

    // sample_responses():
    const Problem* problem = nullptr;
    std::string text{};  ///< decoded, without the stop token; where the prompt itself opens the
                         ///< thought, it begins with that <think>

    // Judge:
    Verdict accuracy{}, format{};
    std::vector<double> measures{};  ///< one for each of Judge::names()
    double reward = 0;

    // Training:
    int group = 0;  ///< of its question among those of the step, whichever rank has them
    float advantage = 0;
    bool masked = false;                        ///< it has no part in the loss
    std::vector<float> old_logp{}, ref_logp{};  ///< of each token under pi_old and pi_ref; empty
                                                ///< where they are not needed

    int length() const { return static_cast<int>(tokens.size()); }
    std::span<const std::int32_t> text_tokens() const {
        return std::span(tokens).first(tokens.size() - stop_token);
    }
};

}  // namespace r1
