#include "src/rl/judge.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "src/run/error.h"

namespace r1 {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(separator, begin), text.size());
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

std::optional<double> number(const std::string& text) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    return whole && std::isfinite(value) ? std::optional(value) : std::nullopt;
}

std::string listed(const std::vector<std::string>& names) {
    std::string list;
    for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
    return list;
}

std::vector<std::string> measure_names() {
    std::vector<std::string> names;
    for (const Measure& m : kMeasures) names.push_back(m.name);
    return names;
}

}  // namespace

Judge::Judge(const RewardOptions& options) : options_(options), names_(measure_names()) {
    int& cache = options_.overlong_cache;
    if (cache == 0) cache = std::max(1, options_.max_new_tokens / 5);
    check_script(options_.script);
    names_.push_back("program");
    for (const std::string& part : split(options_.parts, ',')) {
        if (options_.parts.empty()) break;
        const auto equals = part.find('=');
        const std::string name = part.substr(0, equals);
        const auto weight = number(equals == part.npos ? "1" : part.substr(equals + 1));
        if (!weight) fail("--reward: \"", part, "\" is not NAME=WEIGHT");
        const auto found = std::ranges::find(names_, name);
        if (found == names_.end()) fail("--reward: \"", name, "\" is none of ", listed(names_));
        const auto index = static_cast<std::size_t>(found - names_.begin());
        if (std::ranges::count(parts_, index, &Part::index))
            fail("--reward: ", name, " is there twice");
        parts_.push_back({index, *weight});
    }
    const bool wants_program = std::ranges::count(parts_, kMeasures.size(), &Part::index) > 0;
    if (wants_program && options_.program.empty())
        fail("--reward: program wants a command, --reward-program");
    if (!wants_program && !options_.program.empty())
        fail("--reward-program is given, but --reward has no part \"program\"");
    if (wants_program)
        program_.emplace(options_.program, options_.program_seconds);
    else
        names_.pop_back();
}

void Judge::operator()(std::span<Response> responses) {
    for (Response& r : responses) {
        r.accuracy = accuracy_reward(r.text, r.problem->gold, r.problem->answer_in);
        r.format = format_reward(r.text, r.problem->answer_in);
        r.measures.clear();
        for (const Measure& m : kMeasures) r.measures.push_back(m.of(r, options_));
    }
    if (program_) {
        const auto rewards = program_->grade(responses);
        for (std::size_t i = 0; i < responses.size(); ++i)
            responses[i].measures.push_back(rewards[i]);
    }
    for (Response& r : responses) {
        r.reward = 0;
        for (const Part& part : parts_) r.reward += part.weight * r.measures[part.index];
    }
}

nlohmann::ordered_json Judge::json(const Response& r) const {
    nlohmann::ordered_json line;
    for (std::size_t m = 0; m < names_.size(); ++m) line[names_[m]] = r.measures[m];
    line["reason"] = r.accuracy.reason;
    if (!parts_.empty()) line["reward"] = r.reward;
    return line;
}

Answers Judge::answers() const {
    const bool asks = std::ranges::any_of(
        parts_, [&](const Part& part) { return names_[part.index] == "accuracy"; });
    return asks || parts_.empty() ? Answers::Required : Answers::Optional;
}

Keep::Keep(const std::string& conditions) {
    const auto names = measure_names();
    for (std::string condition : split(conditions, ',')) {
        if (conditions.empty()) break;
        if (condition == "correct") condition = "accuracy>=1";
        if (condition == "well-formed") condition = "format>=1";
        std::vector<std::string> all = {condition};
        if (condition == "readable")
            all = {"format>=1", "truncated<=0", "language>=0.95", "repetition<=0.2"};
        for (const std::string& one : all) {
            const auto begin = std::min(one.find_first_of("<>"), one.size());
            const auto end = std::min(one.find_first_not_of("<>=", begin), one.size());
            const auto name = std::ranges::find(names, one.substr(0, begin));
            const std::string comparison = one.substr(begin, end - begin);
            const auto bound = number(one.substr(end));
            if (name == names.end() || !bound ||
                (comparison != "<" && comparison != "<=" && comparison != ">" &&
                 comparison != ">="))
                fail("--keep: \"", condition, "\" is none of correct, well-formed, readable and ",
                     "NAME>=X, NAME<=X, NAME>X, NAME<X, where NAME is one of ", listed(names));
            conditions_.push_back(
                {static_cast<std::size_t>(name - names.begin()), comparison, *bound});
        }
    }
}

Answers Keep::answers() const {
    const bool asks = std::ranges::any_of(conditions_, [](const Condition& c) {
        return kMeasures[c.index].name == std::string("accuracy");
    });
    return asks ? Answers::Required : Answers::Optional;
}

bool Keep::operator()(const Response& response) const {
    return std::ranges::all_of(conditions_, [&](const Condition& c) {
        const double value = response.measures[c.index];
        if (c.comparison == "<") return value < c.bound;
        if (c.comparison == "<=") return value <= c.bound;
        if (c.comparison == ">") return value > c.bound;
        return value >= c.bound;
    });
}

}  // namespace r1
