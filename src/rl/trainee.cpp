#include "src/rl/trainee.h"

#include <algorithm>

namespace r1 {

Trainee::Trainee(const Config& config, const DeviceFlags& device_flags, const OptimizerFlags& flags,
                 const RunFlags& run, std::int64_t seed, const RolloutPlan& rollout, bool exact)
    : device(make_device(device_flags.device, device_flags.dtype, exact)) {
    Backend& backend = *device.backend;
    const bool bf16_states = flags.state_dtype == "bfloat16";
    const std::int64_t longest = rollout.prompt_tokens + rollout.max_new_tokens;
    TransformerOptions options{
        .trainable = true,
        .bf16_matrices = device.bf16_matrices || bf16_states,
        .bf16_master = bf16_states,
        .reference = rollout.reference ? ReferencePolicy::OnDevice : ReferencePolicy::None,
        .recompute = flags.recompute,
        .max_tokens = std::max(flags.token_budget, longest),
        .max_decode_rows = rollout.slots};
    const auto plan = [&] {
        auto memory = training_memory(config, options, bf16_states, backend);
        if (rollout.slots)
            memory.push_back({"key/value cache (--slots, --max-new-tokens)",
                              Generator::bytes(config, rollout.slots, rollout.prompt_tokens,
                                               rollout.max_new_tokens, backend)});
        // A token of a response has an id, three log-probabilities and a text.
        const std::size_t response = sizeof(Response) + 20 * std::size_t(rollout.max_new_tokens);
        if (rollout.slots && backend.on_host())
            memory.push_back({"responses (--prompts, --group, --max-new-tokens)",
                              static_cast<std::size_t>(rollout.responses) * response});
        return memory;
    };
    // Logits are kept where they fit with room to spare; those of a small vocabulary cost less to
    // compute again than to fetch.
    options.keep_logits = config.vocab_size > 4096;
    if (total_of(plan()) > backend.available_memory() / 4 * 3) options.keep_logits = false;
    if (rollout.reference && !backend.on_host() && total_of(plan()) > backend.available_memory())
        options.reference = ReferencePolicy::OnHost;
    planned_memory = print_and_check(plan(), device);
    if (run.dry_run) throw DryRunDone{};

    model = std::make_unique<Transformer>(backend, config, options);
    optimizer = std::make_unique<Optimizer>(*model, bf16_states, static_cast<std::uint64_t>(seed));
    if (rollout.slots)
        generator = std::make_unique<Generator>(*model, rollout.slots, rollout.prompt_tokens,
                                                rollout.max_new_tokens);
}

void Trainee::print_memory() const {
    std::printf("memory: %s planned, %s at the peak\n",
                human_bytes(static_cast<double>(planned_memory)).c_str(),
                human_bytes(static_cast<double>(device.backend->peak_memory())).c_str());
}

}  // namespace r1
