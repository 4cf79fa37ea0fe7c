#include "src/rl/training_log.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace r1 {
namespace {

void print_sample(const char* what, const Response& r) {
    std::printf("  %s  %s%s   [%s]\n", what, folded(r.problem->prompt).c_str(),
                folded(r.text).c_str(), r.accuracy.reason.c_str());
}

/// A dash for what was not measured, such as the entropy where every response is masked.
std::string number(const char* format, double value) {
    char text[32] = "-";
    if (!std::isnan(value)) std::snprintf(text, sizeof text, format, value);
    return text;
}

}  // namespace

void TrainingLog::step(int step, const Metrics& m) {
    nlohmann::ordered_json line = {{"step", step}};
    line.update(m.json());
    line["tokens_per_second"] = {{"rollout", m["sampled_tokens"] / m["seconds/rollout"]},
                                 {"train", m["tokens"] / m["seconds/train"]}};
    steps_.write(line);
    if (step % 20 == 1)
        std::printf(
            "   step  reward  accuracy  format  length  no spread  entropy  grad norm  logp gap  s/step\n");
    std::printf("%7d  %6s  %8s  %6s  %6s  %9s  %7s  %9s  %8s  %6s\n", step,
                number("%.3f", m["reward"]).c_str(), percent(m["accuracy"]).c_str(),
                percent(m["format"]).c_str(), number("%.1f", m["length"]).c_str(),
                percent(m["groups_without_spread"]).c_str(), number("%.3f", m["entropy"]).c_str(),
                number("%.3f", m["grad_norm"]).c_str(), number("%.1e", m["logp_gap_max"]).c_str(),
                number("%.2f", m["seconds/step"]).c_str());
}

void TrainingLog::samples(int step, const Judge& judge, std::span<const Response> group) {
    if (group.empty()) return;  // another rank's
    print_sample("sample", group[0]);
    for (const Response& r : group) {
        nlohmann::ordered_json line = {
            {"step", step}, {"prompt", r.problem->prompt}, {"response", r.text}};
        line.update(judge.json(r));
        line["advantage"] = r.advantage;
        samples_.write(line);
    }
}

void TrainingLog::evaluation(int step, const Judge& judge, const Metrics& m,
                             std::span<const Response> responses, int samples_each) {
    nlohmann::ordered_json line = {{"step", step}};
    line.update(m.json());
    steps_.write({{"eval", line}});
    std::printf(
        "held out (%.0f unseen problems, %d sampled responses each): reward %.3f, accuracy %s, format %s, "
        "length %.1f\n",
        m["n"] / samples_each, samples_each, m["reward"], percent(m["accuracy"]).c_str(),
        percent(m["format"]).c_str(), m["length"]);
    const std::size_t problems = responses.size() / samples_each;
    const std::size_t shown = std::min<std::size_t>(problems, 24);
    for (std::size_t n = 0; n < shown; ++n) {
        // A file may have its kinds of questions one after the other.
        const Response& r = responses[n * problems / shown * samples_each];
        nlohmann::ordered_json sample = {{"step", step},
                                         {"held_out", r.problem->id},
                                         {"prompt", r.problem->prompt},
                                         {"response", r.text}};
        sample.update(judge.json(r));
        samples_.write(sample);
    }
    print_sample("for example", responses[0]);
}

PastEvaluations past_evaluations(const std::filesystem::path& folder, int step) {
    PastEvaluations past;
    for (const auto& line : read_json_lines(folder / "log.jsonl")) {
        const auto eval = line.value("eval", nlohmann::json());
        const double at = number_at(eval, "step");
        if (at >= 0 && at <= step) past.add(static_cast<int>(at), number_at(eval, "reward"));
    }
    return past;
}

void record_measures(const Judge& judge, std::span<const Response> responses, Metrics& metrics) {
    for (const auto& name : judge.names()) metrics.mean(name, 0, 0);
    for (const Response& r : responses)
        for (std::size_t m = 0; m < r.measures.size(); ++m) {
            const bool known = !std::isnan(r.measures[m]);
            metrics.mean(judge.names()[m], known ? r.measures[m] : 0, known);
        }
}

void record_evaluation(const Judge& judge, std::span<const Response> responses, Metrics& metrics) {
    metrics.mean("reward", 0, 0);  // a rank that has no problem has the same names as the others
    for (const Response& r : responses) metrics.mean("reward", r.reward);
    record_measures(judge, responses, metrics);
    metrics.sum("n", static_cast<double>(responses.size()));
}

}  // namespace r1
