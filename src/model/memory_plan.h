// Memory is planned before the first step: a table, and a sentence instead of a crash if it does
// not fit.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

#include "src/device/device.h"
#include "src/model/optimizer.h"
#include "src/run/log.h"

namespace r1 {

/// What memory is for, with the flags that change it, and how many bytes that takes.
struct PlannedMemory {
    std::string what;
    std::size_t bytes;
};

/// What it takes to train a model.
inline std::vector<PlannedMemory> training_memory(const Config& config,
                                                  const TransformerOptions& options,
                                                  bool bf16_moments, const Backend& backend) {
    const auto weights = Parameters::bytes(config, options, backend);
    const auto count = human_count(static_cast<double>(ParameterLayout(config).total));
    std::vector<PlannedMemory> plan{
        {"parameters (" + count + ")", weights.parameters},
        {"gradients", weights.gradients},
        {"optimizer state", Optimizer::bytes(ParameterLayout(config), backend, bf16_moments)},
        {"activations (--token-budget, --recompute)",
         Transformer::workspace_bytes(config, options, backend)}};
    if (options.reference == ReferencePolicy::OnDevice)
        plan.push_back({"reference policy (--beta 0 needs none)", weights.reference});
    if (options.reference == ReferencePolicy::OnHost)
        plan.push_back(
            {"reference policy: no room for it, so it comes from the host at each step", 0});
    return plan;
}

inline std::size_t total_of(const std::vector<PlannedMemory>& plan) {
    std::size_t total = 0;
    for (const auto& part : plan) total += part.bytes;
    return total;
}

/// Prints the plan and what the process holds already; if it is `quiet`, only where that does not
/// fit, which throws Error. Returns the total.
inline std::size_t print_and_check(std::vector<PlannedMemory> plan, const Device& device,
                                   bool quiet = false) {
    const Backend& backend = *device.backend;
    const std::size_t present = backend.used_memory(), available = backend.available_memory();
    plan.push_back({"in use already: program, libraries, data", present});
    const std::size_t total = total_of(plan);
    const bool fits = total - present <= available;
    if (fits && quiet) return total;
    std::printf("memory plan (%s%s)\n", backend.name(), device.note.c_str());
    for (const auto& [what, bytes] : plan)
        std::printf("  %12s  %s\n", human_bytes(static_cast<double>(bytes)).c_str(), what.c_str());
    std::printf("  %12s  in all\n", human_bytes(static_cast<double>(total)).c_str());
    if (!fits)
        fail("the plan needs ", human_bytes(static_cast<double>(total)), ", ",
             human_bytes(static_cast<double>(total - present - available)),
             " more than is free; lower the largest rows with the flags named beside them");
    return total;
}

}  // namespace r1
