#include "src/rl/rewards.h"

#include <algorithm>
#include <cctype>
#include <cmath>

namespace r1 {
namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

/// The place of `tag` if it occurs exactly once.
std::optional<std::size_t> only(std::string_view text, std::string_view tag) {
    const auto at = text.find(tag);
    if (at == text.npos || text.find(tag, at + 1) != text.npos) return std::nullopt;
    return at;
}

Verdict check(std::string_view answer, const Countdown& gold) {
    const auto parsed = MathAnswer::parse(answer);
    const auto calculation = parsed ? calculate(*parsed) : std::nullopt;
    if (!calculation) return {0, "no calculation with + - * / and parentheses"};
    std::vector<std::string> used = calculation->integers, given;
    for (std::int64_t n : gold.numbers) given.push_back(std::to_string(n));
    std::ranges::sort(used);
    std::ranges::sort(given);
    if (used != given) {
        for (const std::string& n : used)
            if (std::ranges::count(used, n) > std::ranges::count(given, n))
                return {0, n + " is not given, or not that often"};
        return {0, "not every number is used"};
    }
    if (calculation->value == std::to_string(gold.target)) return {1, "right"};
    return {0, "gives " + calculation->value};
}

Verdict check(std::string_view answer, const MathGold& gold) {
    const auto value = MathAnswer::parse(answer);
    if (!value) return {0, "cannot be read as mathematics"};
    return equal(*value, gold.answer) ? Verdict{1, "right"} : Verdict{0, "not equal"};
}

Verdict check(std::string_view answer, const TextGold& gold) {
    return answer == trim(gold.text) ? Verdict{1, "right"} : Verdict{0, "another text"};
}

Verdict check(std::string_view answer, const ChoiceGold& gold) {
    const auto choice = choice_of(answer, gold.choices);
    if (!choice) return {0, "none of the choices"};
    return *choice == gold.right ? Verdict{1, "right"} : Verdict{0, "another choice"};
}

Verdict check(std::string_view, const NoGold&) { return {std::nan(""), "no answer is known"}; }

/// Without \\boxed{}, \\text{} and the like, dollars and ** around it.
std::string_view undressed(std::string_view text) {
    for (std::size_t before = 0; before != text.size();) {
        before = text.size();
        text = trim(text);
        for (std::string_view around : {"**", "$"})
            if (text.size() > 2 * around.size() && text.starts_with(around) &&
                text.ends_with(around))
                text = text.substr(around.size(), text.size() - 2 * around.size());
        for (std::string_view macro :
             {"\\boxed{", "\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{"})
            if (text.starts_with(macro) && text.find('}') == text.size() - 1 - text.ends_with("}}"))
                text = text.substr(macro.size(), text.size() - macro.size() - 1);
    }
    return text;
}

/// A label, in lower case, and what stands behind it: "(B)", "b) red", "B: red", "B. red", "B".
std::pair<char, std::string_view> label_of(std::string_view text) {
    const bool bracket = text.starts_with("(");
    text = undressed(text.substr(bracket));
    if (text.empty()) return {};
    const char label = lower_case(text)[0];
    text = text.substr(1);
    if (bracket && !text.starts_with(")")) return {};
    if (!text.empty() && std::string_view(").:").find(text[0]) == text.npos) return {};
    return {label, trim(text.substr(std::min<std::size_t>(text.size(), 1)))};
}

}  // namespace

Verdict format_reward(std::string_view response, AnswerIn answer_in) {
    if (answer_in == AnswerIn::Boxed) {
        const auto answer = extract_answer(response, answer_in);
        if (!answer) return {0, "no \\boxed{} behind a finished thought"};
        return trim(*answer).empty() ? Verdict{0, "an empty answer"} : Verdict{1, "right"};
    }
    constexpr std::string_view tags[] = {"<think>", "</think>", "<answer>", "</answer>"};
    std::size_t begin[4], end = 0;
    for (int i = 0; i < 4; ++i) {
        const auto at = only(response, tags[i]);
        if (!at)
            return {0, std::string(tags[i]) + (response.find(tags[i]) == response.npos
                                                   ? " is missing"
                                                   : " occurs more than once")};
        if (*at < end) return {0, "the tags are out of order"};
        begin[i] = *at, end = *at + tags[i].size();
    }
    auto between = [&](std::size_t from, std::size_t to) {
        return trim(response.substr(from, to - from));
    };
    if (!between(0, begin[0]).empty() || !between(begin[1] + tags[1].size(), begin[2]).empty() ||
        !between(end, response.size()).empty())
        return {0, "text outside the tags"};
    if (between(begin[0] + tags[0].size(), begin[1]).empty()) return {0, "an empty thought"};
    if (between(begin[2] + tags[2].size(), begin[3]).empty()) return {0, "an empty answer"};
    return {1, "right"};
}

std::optional<std::string> extract_answer(std::string_view response, AnswerIn answer_in) {
    std::size_t thought_end = 0;
    if (response.find("<think>") != response.npos || response.find("</think>") != response.npos) {
        const auto think = only(response, "<think>"), done = only(response, "</think>");
        if (!think || !done || *done < *think) return std::nullopt;
        thought_end = *done;
    }
    if (answer_in == AnswerIn::Boxed) return last_boxed(response.substr(thought_end));
    constexpr std::string_view open = "<answer>", close = "</answer>";
    const auto begin = only(response, open), end = only(response, close);
    if (!begin || !end || *begin < thought_end || *end < *begin + open.size() ||
        !trim(response.substr(*end + close.size())).empty())
        return std::nullopt;
    return std::string(response.substr(*begin + open.size(), *end - *begin - open.size()));
}

Verdict check_answer(std::string_view answer, const Gold& gold) {
    if (answer.size() > kLongestAnswer) return {0, "the answer is too long"};
    return std::visit([&](const auto& g) { return check(trim(answer), g); }, gold);
}

Verdict accuracy_reward(std::string_view response, const Gold& gold, AnswerIn answer_in) {
    if (const auto* unknown = std::get_if<NoGold>(&gold)) return check({}, *unknown);
    const auto answer = extract_answer(response, answer_in);
    return answer ? check_answer(*answer, gold) : Verdict{0, "no answer"};
}

std::optional<std::size_t> choice_of(std::string_view text,
                                     const std::vector<std::string>& choices) {
    text = undressed(text);
    const auto [label, rest] = label_of(text);
    if (label >= 'a' && label < 'a' + static_cast<int>(choices.size()) &&
        (rest.empty() || lower_case(undressed(rest)) == lower_case(trim(choices[label - 'a']))))
        return label - 'a';
    for (const bool any_case : {false, true}) {
        const auto normal = [&](std::string_view s) {
            return any_case ? lower_case(trim(s)) : std::string(trim(s));
        };
        const auto named = [&](const std::string& choice) {
            return normal(choice) == normal(text);
        };
        const auto count = std::ranges::count_if(choices, named);
        if (count == 1) return std::ranges::find_if(choices, named) - choices.begin();
        if (count > 1) return std::nullopt;
    }
    return std::nullopt;
}

std::string_view trim(std::string_view text) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    return text;
}

}  // namespace r1
