// The model that a program trains, on the device that it trains on, with the memory that this
// takes.
#pragma once
#include <memory>

#include "src/model/memory_plan.h"
#include "src/rl/generate.h"
#include "src/rl/shared_flags.h"

namespace r1 {

/// What sampling needs of a trainee; slots 0: it does not sample.
struct RolloutPlan {
    int slots = 0, prompt_tokens = 0, max_new_tokens = 0;
    std::int64_t responses = 0;  ///< of a step, all of which are kept until it ends
    bool reference = false;      ///< a reference policy is kept
};

struct Trainee {
    /// Plans memory, prints the plan and checks it before any of it is taken; --dry-run ends there.
    Trainee(const Config& config, const DeviceFlags& device, const OptimizerFlags& optimizer,
            const RunFlags& run, std::int64_t seed, const RolloutPlan& rollout = {},
            bool exact = false);

    /// What was planned, and what it took.
    void print_memory() const;

    Device device;
    std::size_t planned_memory = 0;  ///< bytes
    std::unique_ptr<Transformer> model;
    std::unique_ptr<Optimizer> optimizer;
    std::unique_ptr<Generator> generator;
};

}  // namespace r1
