// Responses cut into what fits a forward pass.
#pragma once
#include <algorithm>
#include <span>
#include <vector>

#include "src/model/transformer.h"
#include "src/rl/dataset.h"
#include "src/rl/grpo.h"
#include "src/run/comm.h"

namespace r1 {

/// Part update % parts of a step's groups, those that this rank has: the same groups on any number
/// of ranks. `responses` come in the order of their groups, `groups` is how many the step has.
inline std::span<Response> mini_batch(std::span<Response> responses, std::int64_t groups,
                                      int update, int parts) {
    const auto begins = [&](int part) {
        return std::ranges::lower_bound(responses, groups * part / parts, {}, &Response::group);
    };
    return {begins(update % parts), begins(update % parts + 1)};
}

/// Cuts responses, but for those that are masked, into micro-batches of fewer than token_budget
/// rows and calls body(responses of one, packed) for each. Where responses share their prompt's
/// rows, a group is cut only if it must be. Tokens in, tokens out: no text is encoded again.
template <class Body>
void for_each_micro_batch(std::span<Response> responses, std::int64_t token_budget, Body body) {
    std::vector<Response*> micro;
    PackedBatch batch;
    const auto flush = [&] {
        if (!micro.empty()) body(std::span<Response* const>(micro), batch);
        micro.clear();
        batch.clear();
    };
    for (auto r = responses.begin(); r != responses.end();) {
        const Problem& problem = *r->problem;
        const auto end = std::find_if(
            r, responses.end(), [&](const Response& other) { return other.problem != &problem; });
        const std::size_t prompt = problem.tokens.size();
        if (prompt >= PackedBatch::kShortestShared) {
            auto rows = static_cast<std::int64_t>(prompt);
            for (const Response& one : std::span(r, end)) rows += one.masked ? 0 : one.length() - 1;
            if (batch.size() + rows >= token_budget) flush();
        }
        for (; r != end; ++r) {
            if (r->masked) continue;
            std::vector<std::int32_t> tokens = problem.tokens;
            tokens.insert(tokens.end(), r->tokens.begin(), r->tokens.end());
            if (batch.size() + batch.rows_of(tokens, prompt) >= token_budget) flush();
            batch.add(tokens, prompt);
            micro.push_back(&*r);
        }
    }
    flush();
}

/// for_each_micro_batch(), and then the gradients are added up over the ranks. With `in_order`, of
/// so many questions, these come one after the other, each on the rank that has it, which goes on
/// with the sum so far: it has the same bits on any number of ranks, and no two work at a time.
template <class Body>
void accumulate_over_ranks(Transformer& model, const Comm& comm, std::span<Response> responses,
                           std::int64_t token_budget, int in_order, Body body) {
    Backend& backend = model.backend();
    const Tensor gradients = model.parameters().gradients();
    for (int q = 0; q < std::max(in_order, 1); ++q) {
        const auto part = in_order ? mini_batch(responses, in_order, q, in_order) : responses;
        if (in_order && !comm.any(!part.empty())) continue;  // no question of this update
        if (in_order && part.empty()) backend.zero(gradients);
        for_each_micro_batch(part, token_budget, body);
        backend.all_reduce_sum(gradients, comm);
    }
}

/// What an update on these responses, and on those of the other ranks, averages over.
inline UpdateSize update_size(const Comm& comm, std::span<const Response> responses) {
    double size[] = {static_cast<double>(responses.size()), 0};
    for (const Response& r : responses) size[1] += r.masked ? 0 : r.length();
    comm.all_reduce_sum(size);
    return {size[0], size[1]};
}

struct ScoreOptions {
    double temperature = 1;
    std::int64_t token_budget = 8192;  ///< of a forward pass
};

/// Log-probabilities of every response token under the model's present weights, into a field of
/// each response. Returns the sum of each one's entropies.
inline std::vector<double> score(Transformer& model, std::span<Response> responses,
                                 const ScoreOptions& o, std::vector<float> Response::*logp) {
    std::vector<double> entropies(responses.size());
    for_each_micro_batch(responses, o.token_budget, [&](auto micro, const PackedBatch& batch) {
        const auto scores = model.forward(batch, static_cast<float>(o.temperature));
        std::size_t begin = 0;
        for (Response* r : micro) {
            const std::size_t end = begin + r->length();
            (r->*logp).assign(&scores.logp[begin], &scores.logp[0] + end);
            double& entropy = entropies[r - responses.data()];
            for (; begin < end; ++begin) entropy += scores.entropy[begin];
        }
    });
    return entropies;
}

}  // namespace r1
