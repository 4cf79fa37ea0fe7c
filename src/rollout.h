// From problems to graded responses: what training and evaluation have in common.
#pragma once
#include <string>
#include <vector>

#include "data/dataset.h"
#include "src/generate.h"
#include "src/rewards.h"
#include "tokenizer/tokenizer.h"

namespace r1 {

struct Response {
    Completion completion;  ///< completion.prompt is the index of the problem within the call
    std::string text;       ///< decoded, without the stop token: what the rewards read
    Verdict accuracy, format;
};

/// `ids[i]` names problem i in the random counter: its place in the data set.
inline std::vector<Response> sample_responses(Generator& generator, const Tokenizer& tokenizer,
                                              const std::vector<Problem>& problems,
                                              const std::vector<std::uint32_t>& ids,
                                              const GenerateOptions& options) {
    std::vector<Prompt> prompts;
    for (std::size_t i = 0; i < problems.size(); ++i)
        prompts.push_back({ids[i], tokenizer.encode(problems[i].prompt)});
    std::vector<Response> responses;
    for (auto& c : generator.generate(prompts, options)) {
        const std::span<const std::int32_t> tokens(c.tokens);
        std::string text = tokenizer.decode(tokens.first(tokens.size() - c.stopped));
        const Gold& gold = problems[c.prompt].gold;
        responses.push_back({std::move(c), text, accuracy_reward(text, gold), format_reward(text)});
    }
    return responses;
}

/// Sums over responses; divide by `responses`. Only doubles, so that ranks can add them up.
struct Grades {
    double responses = 0, accuracy = 0, format = 0, response_length = 0, truncated = 0;
    Grades() = default;
    explicit Grades(const std::vector<Response>& all) : responses(static_cast<double>(all.size())) {
        for (const auto& r : all) {
            accuracy += r.accuracy.value;
            format += r.format.value;
            response_length += static_cast<double>(r.completion.tokens.size());
            truncated += r.completion.stopped ? 0 : 1;
        }
    }
    Grades means() const {
        Grades g = *this;
        for (double* sum : {&g.accuracy, &g.format, &g.response_length, &g.truncated}) *sum /= responses;
        return g;
    }
};

}  // namespace r1
