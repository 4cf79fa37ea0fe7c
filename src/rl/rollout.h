// From problems to graded responses: what training and evaluation have in common.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "src/rl/dataset.h"
#include "src/rl/generate.h"
#include "src/rl/rewards.h"
#include "tokenizer/tokenizer.h"

namespace r1 {

/// The template asked for (see PromptTemplate::load), inside the model's chat format if the model was trained
/// on chats: if one of its end-of-sequence tokens ends a turn. `plain`, or a template of the folder's own that was used
/// without it: never.
inline PromptTemplate load_prompt_template(const std::filesystem::path& model_folder, const Config& config,
                                           const Tokenizer& tokenizer, const std::string& choice,
                                           bool plain) {
    auto chat = ChatFormat::load(model_folder);
    if (chat && std::ranges::none_of(config.eos_token_ids,
                                     [&](int id) { return tokenizer.token_text(id) == chat->end_of_turn(); }))
        chat.reset();
    return PromptTemplate::load(model_folder, choice, std::move(chat), plain);
}

/// Whether a response's text holds one of the texts, which its last token may have completed.
inline std::function<bool(std::span<const std::int32_t>)> stop_at(const Tokenizer& tokenizer,
                                                                  const std::vector<std::string>& texts) {
    if (texts.empty()) return {};
    const std::size_t longest = std::ranges::max(texts, {}, &std::string::size).size();
    return [=](std::span<const std::int32_t> tokens) {  // a token has at least one byte
        const std::string end = tokenizer.decode(tokens.last(std::min(tokens.size(), longest)));
        return std::ranges::any_of(texts, [&](const auto& text) { return end.find(text) != end.npos; });
    };
}

/// The text up to the end of the first stop text: the last token may hold more.
inline std::string cut_behind_stop(std::string text, const std::vector<std::string>& stop_texts) {
    std::size_t end = text.size();
    for (const auto& stop : stop_texts)
        if (const auto at = text.find(stop); at != text.npos) end = std::min(end, at + stop.size());
    return text.substr(0, end);
}
inline std::string text_of(const Completion& c, const Tokenizer& tokenizer,
                           const std::vector<std::string>& stop_texts) {
    return cut_behind_stop(tokenizer.decode(c.text_tokens()), stop_texts);
}

struct Response {
    Completion completion;  ///< completion.prompt is the index of the problem within the call
    std::string text;       ///< decoded, without the stop token: what the rewards read. Where the prompt
                            ///< itself opens the thought, it begins with that <think>
    Verdict accuracy, format;
    std::vector<double> parts{};  ///< of the reward, unweighted, by RewardMix
    double reward = 0;
};

/// "<think>" for a prompt that ends in it, else nothing.
inline std::string opened_thought(std::string_view prompt) {
    const auto end = prompt.find_last_not_of(" \n");
    return end != prompt.npos && prompt.substr(0, end + 1).ends_with("<think>") ? "<think>" : "";
}

/// Responses, ungraded. `ids[i]` names problem i in the random counter: its place in the data set.
inline std::vector<Response> sample_responses(Generator& generator, const Tokenizer& tokenizer,
                                              const std::vector<Problem>& problems,
                                              const std::vector<std::uint32_t>& ids, GenerateOptions options,
                                              const std::vector<std::string>& stop_texts) {
    std::vector<Prompt> prompts;
    for (std::size_t i = 0; i < problems.size(); ++i)
        prompts.push_back({ids[i], tokenizer.encode(problems[i].prompt)});
    options.stop = stop_at(tokenizer, stop_texts);
    std::vector<Response> responses;
    for (auto& c : generator.generate(prompts, options)) {
        const std::string text =
            opened_thought(problems[c.prompt].prompt) + text_of(c, tokenizer, stop_texts);
        responses.push_back({std::move(c), text, {}, {}});
    }
    return responses;
}

inline void grade(const std::vector<Problem>& problems, std::vector<Response>& responses) {
    for (Response& r : responses) {
        const Problem& problem = problems[r.completion.prompt];
        r.accuracy = accuracy_reward(r.text, problem.gold, problem.answer_in);
        r.format = format_reward(r.text, problem.answer_in);
    }
}

/// Sums over responses. Only doubles, so that ranks can add them up.
struct Grades {
    double responses = 0, reward = 0, format = 0, response_length = 0, truncated = 0;
    double accuracy = 0,
           answers_known = 0;  ///< accuracy is a mean over the responses whose answer is known, or NaN
    void add(const std::vector<Response>& all) {
        responses += static_cast<double>(all.size());
        for (const auto& r : all) {
            reward += r.reward;
            if (!std::isnan(r.accuracy.value)) {
                accuracy += r.accuracy.value;
                ++answers_known;
            }
            format += r.format.value;
            response_length += static_cast<double>(r.completion.tokens.size());
            truncated += r.completion.stopped ? 0 : 1;
        }
    }
    Grades means() const {
        Grades g = *this;
        for (double* sum : {&g.reward, &g.format, &g.response_length, &g.truncated}) *sum /= responses;
        g.accuracy /= answers_known;
        return g;
    }
};

}  // namespace r1
