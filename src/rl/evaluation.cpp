#include "src/rl/evaluation.h"

#include <algorithm>
#include <cmath>

namespace r1 {

Interval confidence_interval(std::span<const double> values, double least, double most) {
    constexpr double z = 1.959964;
    const auto n = static_cast<double>(values.size());
    if (n == 0) return {};
    double mean = 0, squares = 0;
    for (double v : values) mean += v / n;
    for (double v : values) squares += (v - mean) * (v - mean);
    if (least == 0 && most == 1 &&
        std::ranges::all_of(values, [](double v) { return v == 0 || v == 1; })) {
        const double scale = 1 + z * z / n, middle = (mean + z * z / (2 * n)) / scale,
                     half = z * std::sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / scale;
        return {mean, middle - half, middle + half};
    }
    const double half = z * std::sqrt(squares / (n - 1) / n);
    return {mean, std::max(least, mean - half), std::min(most, mean + half)};
}

namespace {

/// What an answer votes for, as a text: equal texts are one candidate.
std::string vote(const std::string& answer, const Gold& gold) {
    if (std::holds_alternative<TextGold>(gold)) return std::string(trim(answer));
    if (const auto* g = std::get_if<ChoiceGold>(&gold))
        if (const auto choice = choice_of(answer, g->choices))
            return "choice " + std::to_string(*choice);
    std::string text;
    for (unsigned char c : answer)
        if (!std::isspace(c)) text += static_cast<char>(std::tolower(c));
    return text;
}

}  // namespace

std::size_t majority(const std::vector<std::optional<std::string>>& answers, const Gold& gold) {
    struct Candidate {
        std::size_t first, votes;
        std::string text;
        std::optional<MathAnswer> value;
    };
    std::vector<Candidate> candidates;
    for (std::size_t i = 0; i < answers.size(); ++i) {
        if (!answers[i]) continue;
        std::string text = vote(*answers[i], gold);
        auto value = std::holds_alternative<MathGold>(gold) && text.size() < kLongestAnswer
                         ? MathAnswer::parse(*answers[i])
                         : std::nullopt;
        const auto same = std::ranges::find_if(candidates, [&](const Candidate& c) {
            return c.text == text || (c.value && value && equal(*value, *c.value));
        });
        if (same == candidates.end())
            candidates.push_back({i, 1, std::move(text), std::move(value)});
        else
            ++same->votes;
    }
    const auto best = std::ranges::max_element(candidates, {}, &Candidate::votes);
    return best == candidates.end() ? answers.size() : best->first;
}

void Evaluation::add(std::span<const Response> responses_to_one) {
    const Problem& problem = *responses_to_one[0].problem;
    if (std::holds_alternative<NoGold>(problem.gold)) return;
    std::vector<std::optional<std::string>> answers;
    double right = 0;
    for (const Response& r : responses_to_one) {
        answers.emplace_back(extract_answer(r.text, problem.answer_in));
        right += r.accuracy.value;
    }
    const std::size_t chosen = majority(answers, problem.gold);
    pass1.push_back(right / static_cast<double>(answers.size()));
    cons.push_back(chosen < answers.size() ? responses_to_one[chosen].accuracy.value : 0);
    pass_k.push_back(right > 0);
}

}  // namespace r1
