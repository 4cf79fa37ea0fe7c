#include "src/rl/rollout.h"

#include "src/run/log.h"

namespace r1 {

std::function<bool(std::span<const std::int32_t>)> stop_at(const Tokenizer& tokenizer,
                                                           const std::vector<std::string>& texts) {
    if (texts.empty()) return {};
    const std::size_t longest = std::ranges::max(texts, {}, &std::string::size).size();
    return [=](std::span<const std::int32_t> tokens) {
        // A token has at least one byte.
        const std::string end = tokenizer.decode(tokens.last(std::min(tokens.size(), longest)));
        return std::ranges::any_of(texts, [&](const auto& t) { return end.find(t) != end.npos; });
    };
}

std::string cut_behind_stop(std::string text, const std::vector<std::string>& stop_texts) {
    std::size_t end = text.size();
    for (const auto& stop : stop_texts)
        if (const auto at = text.find(stop); at != text.npos) end = std::min(end, at + stop.size());
    return text.substr(0, end);
}

std::string text_of(const Response& response, const ModelFolder& model) {
    return cut_behind_stop(model.tokenizer.decode(response.text_tokens()), model.stop_texts);
}

std::string opened_thought(std::string_view prompt) {
    const auto end = prompt.find_last_not_of(" \n");
    const bool opened = end != prompt.npos && prompt.substr(0, end + 1).ends_with("<think>");
    return opened ? "<think>" : "";
}

std::vector<Response> sample_responses(Generator& generator, const ModelFolder& model,
                                       const std::vector<const Problem*>& problems,
                                       GenerateOptions options) {
    std::vector<Prompt> prompts;
    for (const Problem* p : problems) prompts.push_back({p->id, p->tokens});
    options.stop = stop_at(model.tokenizer, model.stop_texts);
    auto responses = generator.generate(prompts, options);
    for (std::size_t i = 0; i < responses.size(); ++i) {
        Response& r = responses[i];
        r.problem = problems[i / options.samples_per_prompt];
        r.text = opened_thought(r.problem->prompt) + text_of(r, model);
    }
    return responses;
}

namespace {

/// What a rank tells the others of its responses, and what they make of it; first: its first
/// problem.
std::string packed(std::span<const Response> responses) {
    auto all = nlohmann::json::array();
    for (const Response& r : responses)
        all.push_back({r.tokens, r.stopped, r.stop_token, r.text, r.accuracy.value,
                       r.accuracy.reason, r.format.value, r.format.reason, r.measures, r.reward});
    std::string bytes;
    nlohmann::json::to_cbor(all, bytes);
    return bytes;
}
void unpack(const std::string& bytes, const Problem* first, int samples_each,
            std::vector<Response>& responses) {
    int count = 0;
    for (const auto& one : nlohmann::json::from_cbor(bytes)) {
        Response& r = responses.emplace_back();
        one[0].get_to(r.tokens);
        one[1].get_to(r.stopped);
        one[2].get_to(r.stop_token);
        one[3].get_to(r.text);
        r.accuracy = {one[4], one[5]};
        r.format = {one[6], one[7]};
        one[8].get_to(r.measures);
        r.reward = one[9];
        r.problem = first + count++ / samples_each;
    }
}

}  // namespace

void for_each_chunk(Generator& generator, const ModelFolder& model, Judge& judge, const Comm& comm,
                    std::span<const Problem> problems, const GenerateOptions& options,
                    const std::string& progress,
                    const std::function<bool(std::vector<Response>&)>& body) {
    Progress shown(progress);
    const int each = options.samples_per_prompt, ranks = comm.size();
    const std::size_t at_a_time = std::max(1, 2 * generator.slots() / each) * ranks;
    for (std::size_t begin = 0; begin < problems.size(); begin += at_a_time) {
        if (!progress.empty()) shown.show(begin, problems.size());
        const std::size_t count = std::min(at_a_time, problems.size() - begin);
        const auto first_of = [&](int rank) { return &problems[begin] + count * rank / ranks; };
        std::vector<const Problem*> own;
        for (auto p = first_of(comm.rank()); p < first_of(comm.rank() + 1); ++p) own.push_back(p);
        auto responses = sample_responses(generator, model, own, options);
        judge(responses);
        if (ranks > 1) {
            const auto parts = comm.all_gather(packed(responses));
            responses.clear();
            for (int r = 0; r < ranks; ++r) unpack(parts[r], first_of(r), each, responses);
        }
        if (comm.any(!body(responses))) break;
    }
    shown.end();
}

void ChosenGroups::add(std::vector<Response>& sampled, const std::vector<double>& teaches,
                       const Comm& comm) {
    for (std::size_t p = 0; p < teaches.size(); ++p) {
        if (teaching_ + (teaches[p] ? 0 : spare_) >= wanted_) continue;
        const int number = teaches[p] ? teaching_++ : wanted_ + spare_++;
        if (static_cast<int>(p) % comm.size() != comm.rank()) continue;
        for (Response& r : std::span(sampled).subspan(p / comm.size() * group_size_, group_size_)) {
            r.group = number;
            own_.push_back(std::move(r));
        }
    }
}
std::vector<Response> ChosenGroups::take() {
    const int missing = wanted_ - teaching_;
    std::erase_if(own_, [&](const Response& r) { return r.group >= wanted_ + missing; });
    std::ranges::stable_sort(own_, {}, &Response::group);
    for (Response& r : own_)
        if (r.group >= wanted_) r.group -= missing;
    return std::move(own_);
}

}  // namespace r1
