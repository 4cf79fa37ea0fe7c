#include "src/rl/generate.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace r1 {
namespace {

using std::int32_t;
using std::int64_t;

/// A backend may decode up to this many tokens between two looks of the host.
constexpr int kMostTokensAtOnce = 16;

int round_up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }
int round_to_block(int rows) { return round_up(rows, kKvBlock); }
/// Rows of the cache for a response and what is decoded behind its end.
int own_rows(int max_new_tokens) { return round_to_block(max_new_tokens + kMostTokensAtOnce - 1); }

/// A response in flight.
struct Slot {
    std::size_t response;  ///< index into the result
    int place;             ///< which own region of the cache
};

/// A prompt whose keys and values are in the cache.
struct SharedPrompt {
    int place = -1;  ///< which prompt region of the cache; -1: not prefilled
    int open = 0;    ///< samples not finished yet
};

}  // namespace

int64_t Generator::cache_rows(int slots, int prompt_rows, int own_rows) {
    // Each slot may be at work on another prompt.
    const int64_t rows = static_cast<int64_t>(slots) * (prompt_rows + own_rows);
    if (rows > std::numeric_limits<int32_t>::max())
        fail("the key/value cache of ", slots, " responses in flight would have ", rows,
             " rows, which is beyond what can be numbered; lower --slots or --max-new-tokens");
    return rows;
}

std::size_t Generator::bytes(const Config& config, int slots, int max_prompt_tokens,
                             int max_new_tokens, const Backend& backend) {
    return KvCache::bytes(
        config, cache_rows(slots, round_to_block(max_prompt_tokens), own_rows(max_new_tokens)),
        backend);
}

Generator::Generator(Transformer& model, int slots, int max_prompt_tokens, int max_new_tokens)
    : model_(model),
      slots_(slots),
      prompt_rows_(round_to_block(max_prompt_tokens)),
      own_rows_(own_rows(max_new_tokens)),
      cache_(model.backend(), model.config(), cache_rows(slots, prompt_rows_, own_rows_)),
      arena_(model.backend(),
             static_cast<std::size_t>(slots) * (kMostTokensAtOnce * 12 + 16) + 256) {
    tokens_ = arena_.take(DType::I32, slots * kMostTokensAtOnce);
    logp_ = arena_.take(model.backend().real(), slots * kMostTokensAtOnce);
    counters_ = arena_.take(DType::I32, slots, 4);
}

std::vector<Response> Generator::generate(
    const std::vector<Prompt>& prompts, const GenerateOptions& options,
    const std::function<void(std::size_t, int32_t)>& on_token) {
    Backend& backend = model_.backend();
    const int G = options.samples_per_prompt, context = model_.config().max_position_embeddings;
    auto new_token_limit = [&](const Prompt& p) {
        return std::min(options.max_new_tokens, context - static_cast<int>(p.tokens.size()));
    };
    for (const auto& p : prompts) {
        const int length = static_cast<int>(p.tokens.size());
        if (length == 0) fail("an empty prompt cannot be continued");
        if (length >= context)
            fail("a prompt of ", length, " tokens leaves no room in the model's context of ",
                 context);
        if (length > prompt_rows_ || new_token_limit(p) > own_rows_)
            fail("a prompt of ", length, " tokens and ", new_token_limit(p),
                 " new ones do not fit the planned cache of ", prompt_rows_, " and ", own_rows_);
    }

    std::vector<Response> result(prompts.size() * G);
    std::vector<SharedPrompt> shared(prompts.size());
    std::vector<int> free_own(slots_), free_prompt(slots_);  // places in the cache
    for (int i = 0; i < slots_; ++i) free_own[i] = free_prompt[i] = slots_ - 1 - i;
    const int64_t own_base = static_cast<int64_t>(slots_) * prompt_rows_;

    std::vector<Slot> active;
    std::size_t next = 0;  // the next response to start
    PackedBatch prefill_batch;
    std::vector<int32_t> prefill_rows;
    auto flush_prefill = [&] {
        if (prefill_batch.size()) model_.prefill(prefill_batch, prefill_rows, cache_);
        prefill_batch.clear();
        prefill_rows.clear();
    };

    while (true) {
        // Refill: every free slot starts the next sample; a prompt met for the first time is
        // prefilled, all but its last token, which is the first input of each of its samples.
        while (next < result.size() && static_cast<int>(active.size()) < slots_) {
            const std::size_t prompt = next / G;
            if (shared[prompt].place < 0) {
                shared[prompt] = {free_prompt.back(), G};
                free_prompt.pop_back();
                const auto& tokens = prompts[prompt].tokens;
                if (prefill_batch.size() + static_cast<int64_t>(tokens.size()) >
                    model_.max_tokens())
                    flush_prefill();
                if (tokens.size() > 1) prefill_batch.add(tokens, tokens.size());
                for (std::size_t t = 0; t + 1 < tokens.size(); ++t)
                    prefill_rows.push_back(shared[prompt].place * prompt_rows_ +
                                           static_cast<int32_t>(t));
            }
            active.push_back({next++, free_own.back()});
            free_own.pop_back();
        }
        flush_prefill();
        if (active.empty()) return result;

        // A few tokens for every response in flight. Rows beyond those are free slots.
        const int steps = backend.preferences().decode_tokens,
                  multiple = backend.preferences().decode_rows;
        const int running = static_cast<int>(active.size());
        const int rounded = running < multiple
                                ? static_cast<int>(std::bit_ceil(static_cast<unsigned>(running)))
                                : round_up(running, multiple);
        const auto B = static_cast<std::size_t>(std::min(rounded, slots_));
        std::vector<int32_t> tokens(B), positions(B), rows(B, -1), spans(B * 4), drawn(B * steps);
        std::vector<std::uint32_t> counters(B * 4);
        std::vector<float> logp(B * steps);
        for (std::size_t b = 0; b < active.size(); ++b) {
            const Response& r = result[active[b].response];
            const std::size_t prompt = active[b].response / G;
            const Prompt& p = prompts[prompt];
            const int prefix = static_cast<int>(p.tokens.size()) - 1,
                      done = static_cast<int>(r.tokens.size());
            const auto own =
                static_cast<int32_t>(own_base + static_cast<int64_t>(active[b].place) * own_rows_);
            tokens[b] = done ? r.tokens.back() : p.tokens.back();
            positions[b] = prefix + done;
            rows[b] = own + done;
            const int32_t span[4] = {shared[prompt].place * prompt_rows_, prefix, own, done + 1};
            std::copy(span, span + 4, &spans[b * 4]);
            const std::uint32_t counter[4] = {options.step, p.id,
                                              static_cast<std::uint32_t>(active[b].response % G),
                                              static_cast<std::uint32_t>(positions[b])};
            std::copy(counter, counter + 4, &counters[b * 4]);
        }
        decode(model_.upload_decode_input(tokens, positions, rows, spans), counters, steps,
               options.sample, drawn, logp);

        std::vector<Slot> still;
        for (std::size_t b = 0; b < active.size(); ++b) {
            Response& r = result[active[b].response];
            const std::size_t prompt = active[b].response / G;
            const int limit = new_token_limit(prompts[prompt]);
            for (std::size_t at = b;
                 at < drawn.size() && !r.stopped && static_cast<int>(r.tokens.size()) < limit;
                 at += B) {
                r.tokens.push_back(drawn[at]);
                r.sampled_logp.push_back(logp[at]);
                if (on_token) on_token(active[b].response, drawn[at]);
                r.stop_token =
                    std::ranges::find(options.stop_tokens, drawn[at]) != options.stop_tokens.end();
                r.stopped = r.stop_token || (options.stop && options.stop(r.tokens));
            }
            if (!r.stopped && static_cast<int>(r.tokens.size()) < limit) {
                still.push_back(active[b]);
                continue;
            }
            free_own.push_back(active[b].place);
            if (--shared[prompt].open == 0) free_prompt.push_back(shared[prompt].place);
        }
        active = std::move(still);
    }
}

/// Decodes and draws `steps` tokens for each of B rows, into drawn and logp [steps, B]. What is
/// drawn is the next step's input; the host sees none of it before the last.
void Generator::decode(Transformer::DecodeInput in, const std::vector<std::uint32_t>& counters,
                       int steps, const SampleOptions& options, std::vector<int32_t>& drawn,
                       std::vector<float>& logp) {
    Backend& backend = model_.backend();
    const int64_t B = in.tokens.rows;
    const Tensor counter = counters_.slice(0, B);
    backend.upload(counter, counters.data());
    backend.replay(recordings_[{options, B}], [&] {
        for (int step = 0; step < steps; ++step) {
            const Tensor tokens = tokens_.slice(step * B, B);
            backend.sample(tokens, logp_.slice(step * B, B), model_.decode(in, cache_), counter,
                           options);
            in.tokens = tokens;
            if (step + 1 < steps) backend.advance(in.positions, in.cache_rows, in.spans, counter);
        }
    });
    backend.download(drawn.data(), tokens_.slice(0, steps * B));
    backend.download(logp.data(), logp_.slice(0, steps * B));
}

}  // namespace r1
