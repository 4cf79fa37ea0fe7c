#include "src/rl/sft_batches.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "src/model/transformer.h"

namespace r1 {

std::int64_t Sequence::learnt() const { return std::ranges::count(scored, true); }

SftBatches::SftBatches(SftReader reader, const Tokenizer& tokenizer, std::int32_t eos,
                       std::int64_t longest)
    : reader_(std::move(reader)), tokenizer_(tokenizer), eos_(eos), longest_(longest) {
    LackingNote note;
    std::size_t left_out = 0;
    for (std::size_t i = 0; i < reader_.size(); ++i) {
        const SftExample example = reader_.next();
        std::string lacking;
        try {
            left_out += !can_be_learnt(encode(example, &lacking));
        } catch (const Error& e) {
            fail(example.place, ": ", e.what());
        }
        note.add(example.place, lacking);
    }
    note.print();
    if (left_out == reader_.size())
        fail(reader_.name(),
             ": holds no example that has something to learn and fits --token-budget "
             "and the model's context, ",
             longest, " tokens");
    if (left_out)
        std::printf(
            "%zu of %zu examples are left out: they have nothing to learn, or more than %lld tokens\n",
            left_out, reader_.size(), static_cast<long long>(longest));
    reader_.seek(0);
}

/// Segments are encoded one by one: a trained one begins where a prompt ends when the model is
/// used. `lacking`, if given, is told of a character that the vocabulary lacks.
Sequence SftBatches::encode(const SftExample& example, std::string* lacking) const {
    Sequence s;
    for (const Segment& segment : example.segments) {
        const bool prompt = !example.chat && !segment.trained;
        std::string unknown;
        const auto tokens =
            tokenizer_.encode(prompt ? tokenizer_.framed(segment.text) : segment.text, &unknown);
        if (lacking && lacking->empty()) *lacking = unknown;
        s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
        s.scored.resize(s.tokens.size(), segment.trained);
    }
    if (example.eos) {
        s.tokens.push_back(eos_);
        s.scored.push_back(true);
    }
    if (!s.scored.empty()) s.scored[0] = false;  // nothing predicts the first token
    return s;
}

std::vector<Sequence> SftBatches::next(std::int64_t tokens) {
    std::map<std::vector<std::int32_t>, std::size_t> first;  // where a prompt came up first
    std::vector<std::pair<std::size_t, Sequence>> placed;
    for (std::int64_t fed = 0; fed < tokens;) {
        Sequence s = encode(reader_.next());
        if (!can_be_learnt(s)) continue;
        fed += s.size() - 1;
        const auto prompt = std::ranges::find(s.scored, true) - s.scored.begin();
        std::size_t place = placed.size();
        if (prompt >= static_cast<std::ptrdiff_t>(PackedBatch::kShortestShared))
            place = first.try_emplace({s.tokens.begin(), s.tokens.begin() + prompt}, place)
                        .first->second;
        placed.emplace_back(place, std::move(s));
    }
    std::ranges::stable_sort(placed, {}, [](const auto& p) { return p.first; });
    std::vector<Sequence> batch;
    for (auto& [place, s] : placed) batch.push_back(std::move(s));
    return batch;
}

}  // namespace r1
