// Batched sampling with a key/value cache. A free slot takes the next sample at once (continuous
// batching), the prompt of a group is prefilled once and shared by its samples, and a sample
// depends on (seed, step, prompt, sample, position) alone, not on the batch it happened to be in,
// but for the rounding of a device whose sums over a row depend on how many rows there are.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "src/model/transformer.h"
#include "src/rl/response.h"

namespace r1 {

struct Prompt {
    std::uint32_t id = 0;              ///< names the prompt in the random counter
    std::vector<std::int32_t> tokens;  ///< at least one
};

struct GenerateOptions {
    SampleOptions sample{};
    std::uint32_t step = 0;          ///< enters the random counter
    int samples_per_prompt = 1;      ///< G, the group size
    int max_new_tokens = 256;        ///< also limited by the model's context
    std::vector<int> stop_tokens{};  ///< any of them ends a response
    /// So does this, asked after every other token: it is given the tokens so far.
    std::function<bool(std::span<const std::int32_t>)> stop{};
};

class Generator {
  public:
    /// Plans the cache for `slots` responses at a time. The model must have been built with
    /// max_decode_rows
    /// >= slots.
    Generator(Transformer& model, int slots, int max_prompt_tokens, int max_new_tokens);
    static std::size_t bytes(const Config& config, int slots, int max_prompt_tokens,
                             int max_new_tokens, const Backend& backend);

    /// Responses at a time.
    int slots() const { return slots_; }

    /// prompts.size() * samples_per_prompt responses, with their tokens alone, those of one prompt
    /// together and in order. on_token(response index, token), if given, is called as tokens
    /// appear.
    std::vector<Response> generate(
        const std::vector<Prompt>& prompts, const GenerateOptions& options,
        const std::function<void(std::size_t, std::int32_t)>& on_token = {});

  private:
    void decode(Transformer::DecodeInput in, const std::vector<std::uint32_t>& counters, int steps,
                const SampleOptions& options, std::vector<std::int32_t>& drawn,
                std::vector<float>& logp);
    static std::int64_t cache_rows(int slots, int prompt_rows, int own_rows);
    Transformer& model_;
    int slots_, prompt_rows_, own_rows_;  ///< rows a prompt and a response get in the cache
    KvCache cache_;
    Arena arena_;
    Tensor tokens_, logp_,
        counters_;  ///< drawn [tokens at a time, B], and their random counters [B, 4]
    std::map<std::pair<SampleOptions, std::int64_t>, std::shared_ptr<void>>
        recordings_;  ///< by batch size B
};

}  // namespace r1
