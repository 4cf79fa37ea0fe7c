// One self-contained HTML page about runs: the curves of training, and for a run of the whole recipe (data/recipe/r1.sh)
// the table of its stages, what of the paper's claims holds, distillation, and traces. Every number comes from the run's
// files. Plots are gnuplot's.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "src/command_line.h"
#include "src/evaluation.h"
#include "src/transformer.h"

using namespace r1;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

// ---- reading ----

std::vector<json> read_lines(const fs::path& file) {
    std::ifstream in(file);
    if (!in) fail(file.string(), ": cannot be read");
    std::vector<json> lines;
    std::string line;
    for (int number = 1; std::getline(in, line); ++number) {
        lines.push_back(json::parse(line, nullptr, false));
        if (!lines.back().is_object()) fail(file.string(), ":", number, ": is not a JSON object");
    }
    return lines;
}

/// One model's graded answers to the held-out questions: infer --eval's file.
struct Graded {
    std::vector<json> responses;
    json summary;
    explicit Graded(const fs::path& file) : responses(read_lines(file)) {
        if (responses.empty() || !responses.back().contains("summary"))
            fail(file.string(), ": is not the whole output of infer --eval");
        summary = responses.back()["summary"];
        responses.pop_back();
    }
    /// The mean of a measure over the samples of each question; of one kind of question, if given.
    std::vector<double> by_problem(const std::string& measure, const std::string& kind = "") const {
        std::map<std::size_t, std::pair<double, int>> sums;
        for (const json& r : responses)
            if (kind.empty() || r.value("kind", "") == kind) {
                auto& [sum, count] = sums[r.at("problem")];
                sum += r.at(measure).get<double>(), ++count;
            }
        std::vector<double> means;
        for (const auto& [problem, s] : sums) means.push_back(s.first / s.second);
        return means;
    }
    std::set<std::string> kinds() const {
        std::set<std::string> names;
        for (const json& r : responses)
            if (r.contains("kind")) names.insert(r["kind"]);
        return names;
    }
};

/// A training run's log: steps, and evaluations between them.
struct Run {
    std::string name;
    std::vector<json> steps, evals;
    Run(const fs::path& folder, std::string run_name) : name(std::move(run_name)) {
        for (json& line : read_lines(folder / "log.jsonl"))
            (line.contains("eval") ? evals : steps).push_back(line.contains("eval") ? line["eval"] : line);
    }
    std::vector<double> values(const std::string& measure) const {
        std::vector<double> all;
        for (const json& s : steps) {
            const json& at = measure == "language" && s.contains("reward_parts") ? s["reward_parts"] : s;
            const auto found = at.find(measure);
            all.push_back(found != at.end() && found->is_number() ? found->get<double>() : std::nan(""));
        }
        return all;
    }
    bool has(const std::string& measure) const {
        const auto all = values(measure);
        return std::ranges::any_of(all, [](double v) { return !std::isnan(v); });
    }
    double sum(const std::string& measure) const {
        const auto all = values(measure);
        return std::accumulate(all.begin(), all.end(), 0.0);
    }
};

double mean(const std::vector<double>& v) {
    return v.empty() ? std::nan("")
                     : std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(v.size());
}

// ---- writing ----

std::string escape(const std::string& text) {
    std::string out;
    for (char c : text)
        if (c == '<')
            out += "&lt;";
        else if (c == '>')
            out += "&gt;";
        else if (c == '&')
            out += "&amp;";
        else
            out += c;
    return out;
}

std::string text(const char* format, auto... values) {
    char buffer[512];
    std::snprintf(buffer, sizeof buffer, format, values...);
    return buffer;
}
std::string percent(double share) { return std::isnan(share) ? "" : text("%.1f%%", 100 * share); }

struct Series {
    std::string name;
    std::vector<std::pair<double, double>> points;
    bool dots = false;
};

std::string replaced(std::string all, const std::string& from, const std::string& to) {
    for (std::size_t at = 0; (at = all.find(from, at)) != all.npos; at += to.size())
        all.replace(at, from.size(), to);
    return all;
}

/// An SVG that takes its text colour from the page.
std::string plot(const std::string& title, const std::vector<Series>& series, bool share = false) {
    constexpr const char* colors[] = {"#3b82d0", "#e0703a", "#2fa37a", "#b05cc8", "#c99a2e", "#8a8f98"};
    const fs::path script = fs::temp_directory_path() / ("r1-report-" + std::to_string(getpid()) + ".gp");
    std::ofstream out(script);
    out << "set terminal svg size 460,270 dynamic font 'sans-serif,13'\n"
        << "set title '" << replaced(title, "'", "''")
        << "'\nset border 3\nset tics nomirror\nset grid ytics lw 0.3\n"
        << "set xlabel 'step' offset 0,0.6\nset key "
        << (series.size() > 1 ? "below horizontal samplen 1" : "off") << "\n"
        << (share ? "set yrange [0:1]\nset format y '%.1f'\n" : "set yrange [*:*]\n") << "plot ";
    for (std::size_t i = 0; i < series.size(); ++i)
        out << (i ? ", " : "") << "'-' with " << (series[i].dots ? "linespoints pt 7 ps 0.5" : "lines")
            << " lw 1.6 lc rgb '" << colors[i % std::size(colors)] << "' title '"
            << replaced(series[i].name, "'", "''") << "' noenhanced";
    out << "\n";
    for (const Series& s : series) {
        for (const auto& [x, y] : s.points)
            out << x << " " << (std::isnan(y) ? "NaN" : text("%g", y)) << "\n";
        out << "e\n";
    }
    out.close();
    std::string svg;
    FILE* gnuplot = popen(("gnuplot " + script.string()).c_str(), "r");
    char buffer[4096];
    for (std::size_t n; gnuplot && (n = fread(buffer, 1, sizeof buffer, gnuplot)) > 0;) svg.append(buffer, n);
    const bool failed = !gnuplot || pclose(gnuplot) != 0;
    fs::remove(script);
    const auto begin = svg.find("<svg");
    if (failed || begin == svg.npos)
        fail("gnuplot has drawn nothing; is it installed? (apt-get install gnuplot-nox)");
    svg = replaced(svg.substr(begin), "<title>Gnuplot</title>", "<title>" + escape(title) + "</title>");
    for (const char* black : {"fill=\"black\"", "stroke='black'", "stroke=\"black\""})
        svg = replaced(svg, black, std::string(black, std::strchr(black, '=')) + "=\"currentColor\"");
    return replaced(svg, "color=\"black\"", "");
}

/// At most 80 points, each the mean of neighbours.
Series curve(const std::string& name, const std::vector<double>& values) {
    Series s{name, {}};
    const std::size_t n = values.size(), points = std::min<std::size_t>(n, 80);
    for (std::size_t p = 0; p < points; ++p) {
        const std::size_t begin = p * n / points, end = (p + 1) * n / points;
        const double sum = std::accumulate(values.begin() + begin, values.begin() + end, 0.0);
        s.points.emplace_back(static_cast<double>(begin + end + 1) / 2,
                              sum / static_cast<double>(end - begin));
    }
    return s;
}

/// "rises from 27.1 to 90.3 ...": means of the first and the last tenth of the steps, and Pearson's correlation with time.
std::string trend(const std::string& what, const std::vector<double>& v) {
    const std::size_t n = v.size(), tenth = std::max<std::size_t>(1, n / 10);
    if (n < 10) return "";
    const double first = mean({v.begin(), v.begin() + tenth}), last = mean({v.end() - tenth, v.end()});
    const double middle = mean(v), centre = static_cast<double>(n - 1) / 2;
    double xy = 0, xx = 0, yy = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const double x = static_cast<double>(i) - centre, y = v[i] - middle;
        xy += x * y, xx += x * x, yy += y * y;
    }
    const double r = yy > 0 ? xy / std::sqrt(xx * yy) : 0;
    return "<li>" + what + (last > first ? " rises" : " falls") +
           text(" from %.3g (mean of the first tenth of the steps) to %.3g (the last tenth): %+.3g", first,
                last, last - first) +
           (first > 0 ? text(", a factor of %.2f", last / first) : "") +
           text("; %+.3g in 100 steps by least squares, correlation with the step %+.2f.</li>\n",
                100 * xy / xx, r);
}

struct Measure {
    const char *name, *title;
    bool share;
};
constexpr Measure kMeasures[] = {{"accuracy", "accuracy on training questions", true},
                                 {"response_length", "response length, tokens", false},
                                 {"reflective_words", "words of reflection a response", false},
                                 {"format", "format kept", true},
                                 {"language", "language consistency", true},
                                 {"reward", "reward", false},
                                 {"entropy", "entropy of a token, nats", false},
                                 {"kl", "KL to the reference", false},
                                 {"truncated", "cut off at the length limit", true},
                                 {"grad_norm", "gradient norm", false}};

/// All measures of some runs, a plot each, a line a run.
std::string curves(const std::vector<Run>& runs) {
    std::string html = "<div class=plots>\n";
    std::vector<Series> held_out;
    for (const Run& run : runs) {
        Series s{run.name, {}, true};
        for (const json& e : run.evals)
            s.points.emplace_back(e.at("step").get<double>(), e.at("accuracy").get<double>());
        if (!s.points.empty()) held_out.push_back(std::move(s));
    }
    if (!held_out.empty()) html += plot("accuracy on held-out questions", held_out, true);
    for (const Measure& m : kMeasures) {
        std::vector<Series> series;
        for (const Run& run : runs)
            if (run.has(m.name)) series.push_back(curve(run.name, run.values(m.name)));
        const bool flat = std::ranges::all_of(series, [](const Series& s) {
            return std::ranges::all_of(s.points, [](const auto& p) { return p.second == 0; });
        });
        if (!series.empty() && !flat) html += plot(m.title, series, m.share);
    }
    return html + "</div>\n";
}

using Rows = std::vector<std::vector<std::string>>;
std::string table(const Rows& rows) {
    std::string html = "<div class=scroll><table>\n";
    for (std::size_t i = 0; i < rows.size(); ++i) {
        html += "<tr>";
        for (const auto& cell : rows[i]) html += (i ? "<td>" : "<th>") + cell + (i ? "</td>" : "</th>");
        html += "</tr>\n";
    }
    return html + "</table></div>\n";
}

// ---- the recipe ----

const std::vector<std::pair<const char*, const char*>> kStages = {
    {"base", "the base model"},
    {"zero", "R1-Zero: GRPO on the base, accuracy and format rewarded"},
    {"dev1", "cold start: SFT of the base on Zero's right and readable samples"},
    {"dev2", "GRPO, language consistency rewarded too"},
    {"dev3", "SFT of the base on Dev2's samples and general ones"},
    {"r1", "GRPO on questions of every kind"}};
const std::vector<std::pair<const char*, const char*>> kStudents = {
    {"student", "the student's base"},
    {"student-rl", "GRPO on the student"},
    {"distilled", "SFT of the student on R1's samples"},
    {"r1", "R1, the teacher"}};

/// A finished run of data/recipe/r1.sh.
struct Recipe {
    fs::path folder;
    std::map<std::string, Graded> graded;
    explicit Recipe(fs::path f) : folder(std::move(f)) {
        for (const auto* list : {&kStages, &kStudents})
            for (const auto& [name, what] : *list)
                if (const auto file = folder / "eval" / (std::string(name) + ".jsonl"); fs::exists(file))
                    graded.try_emplace(name, file);
    }
    Run run(const std::string& stage) const { return Run(folder / stage, stage); }
};

/// The mean over recipes (seeds) of each question's value: what intervals are made of.
std::vector<double> over_seeds(const std::vector<Recipe>& recipes, const std::string& model,
                               const std::string& measure, const std::string& kind = "") {
    std::vector<double> sum;
    for (const Recipe& r : recipes) {
        const auto values = r.graded.at(model).by_problem(measure, kind);
        sum.resize(std::max(sum.size(), values.size()));
        for (std::size_t i = 0; i < values.size(); ++i)
            sum[i] += values[i] / static_cast<double>(recipes.size());
    }
    return sum;
}

std::string with_interval(const Interval& i) {
    return percent(i.mean) + text(" <small>[%.1f, %.1f]</small>", 100 * i.low, 100 * i.high);
}

/// A summary's interval; over several seeds the mean of means with the smallest low and the largest high.
std::string summary_cell(const std::vector<Recipe>& recipes, const std::string& model,
                         const std::string& prefix) {
    Interval all{0, 1, 0};
    for (const Recipe& r : recipes)
        for (const auto& [name, i] : r.graded.at(model).summary.items())
            if (name.starts_with(prefix)) {
                all.mean += i.at("mean").get<double>() / static_cast<double>(recipes.size());
                all.low = std::min(all.low, i.at("low").get<double>());
                all.high = std::max(all.high, i.at("high").get<double>());
            }
    return with_interval(all);
}

std::string models_table(const std::vector<Recipe>& recipes,
                         const std::vector<std::pair<const char*, const char*>>& models) {
    const auto kinds = recipes[0].graded.at(models[0].first).kinds();
    Rows rows{{"model", "", "pass@1", "cons@k", "format", "language", "length", "reflective words"}};
    rows[0].insert(rows[0].end(), kinds.begin(), kinds.end());
    for (const auto& [name, what] : models) {
        if (!recipes[0].graded.contains(name)) continue;
        rows.push_back({name, what, with_interval(confidence_interval(over_seeds(recipes, name, "accuracy"))),
                        summary_cell(recipes, name, "cons@"),
                        percent(mean(over_seeds(recipes, name, "format"))),
                        percent(mean(over_seeds(recipes, name, "language"))),
                        text("%.1f", mean(over_seeds(recipes, name, "tokens"))),
                        text("%.2f", mean(over_seeds(recipes, name, "reflective_words")))});
        for (const auto& kind : kinds)
            rows.back().push_back(percent(mean(over_seeds(recipes, name, "accuracy", kind))));
    }
    return table(rows);
}

/// What the paper finds, asked of this run: the difference of two models on the same questions, with its interval.
std::string claims(const std::vector<Recipe>& recipes) {
    struct Claim {
        const char *says, *better, *worse, *measure, *kind;
        bool at_least;  ///< "not worse" is enough
    };
    const Claim all[] = {
        {"R1-Zero is more accurate than its base", "zero", "base", "accuracy", "", false},
        {"R1-Zero's responses are longer than its base's", "zero", "base", "tokens", "", false},
        {"R1-Zero reflects more than its base", "zero", "base", "reflective_words", "", false},
        {"RL with language consistency keeps to one language more than R1-Zero", "dev2", "zero", "language",
         "", false},
        {"R1 is at least as accurate as R1-Zero", "r1", "zero", "accuracy", "", true},
        {"R1 keeps the format more than R1-Zero", "r1", "zero", "format", "", false},
        {"R1 keeps to one language more than R1-Zero", "r1", "zero", "language", "", false},
        {"R1 answers general questions better than R1-Zero", "r1", "zero", "accuracy", "general", false},
        {"Distillation makes a better student than RL on it", "distilled", "student-rl", "accuracy", "",
         false}};
    Rows rows{{"claim", "difference", recipes.size() > 1 ? "by seed" : "", "outcome"}};
    for (const Claim& c : all) {
        if (!recipes[0].graded.contains(c.better) || !recipes[0].graded.contains(c.worse)) continue;
        auto a = over_seeds(recipes, c.better, c.measure, c.kind);
        const auto b = over_seeds(recipes, c.worse, c.measure, c.kind);
        if (a.empty() || a.size() != b.size()) continue;
        std::ranges::transform(a, b, a.begin(), std::minus<>());
        double squares = 0;
        for (double d : a) squares += (d - mean(a)) * (d - mean(a));
        const double n = static_cast<double>(a.size()),
                     half = 1.96 * std::sqrt(squares / std::max(1.0, n - 1) / n);
        const double low = mean(a) - half, high = mean(a) + half;
        const bool share = std::string(c.measure) != "tokens" && std::string(c.measure) != "reflective_words";
        const double scale = share ? 100 : 1;
        std::string seeds;
        if (recipes.size() > 1)
            for (const Recipe& r : recipes)
                seeds += text("%+.1f ", scale * (mean(r.graded.at(c.better).by_problem(c.measure, c.kind)) -
                                                 mean(r.graded.at(c.worse).by_problem(c.measure, c.kind))));
        const char* outcome = low > 0      ? "<b class=yes>holds</b>"
                              : high < 0   ? "<b class=no>fails</b>"
                              : c.at_least ? "<b class=yes>holds</b> (no difference shown)"
                                           : "<b class=no>not shown</b>";
        rows.push_back({c.says,
                        text("%+.1f%s <small>[%+.1f, %+.1f]</small>", scale * mean(a), share ? " points" : "",
                             scale * low, scale * high),
                        seeds, outcome});
    }
    return table(rows);
}

/// Floating-point operations that made a student: 2 for each parameter and token forward, 4 backward.
std::string compute(const Recipe& recipe) {
    std::string html;
    auto parameters = [&](const std::string& model) {
        return static_cast<double>(ParameterLayout(Config::load(recipe.folder / model)).total);
    };
    std::map<std::string, double> seconds;
    if (std::ifstream in(recipe.folder / "stages.tsv"); in)
        for (std::string line; std::getline(in, line);)
            if (const auto tab = line.find('\t'); tab != line.npos)
                seconds[line.substr(0, tab)] += std::atof(line.c_str() + tab + 1);
    if (fs::exists(recipe.folder / "distilled" / "log.jsonl")) {
        const double tokens = recipe.run("distilled").sum("tokens");
        html += text(
            "<li>Distillation: SFT on %.3g tokens, %.3g FLOPs for a student of %.0f parameters; %.0f s, and "
            "%.0f s "
            "to sample the teacher.</li>\n",
            tokens, 6 * parameters("distilled") * tokens, parameters("distilled"), seconds["distilled"],
            seconds["teacher"]);
    }
    if (fs::exists(recipe.folder / "student-rl" / "log.jsonl")) {
        const double tokens = recipe.run("student-rl").sum("tokens");
        html +=
            text("<li>GRPO on the student: %.3g tokens sampled and trained on, %.3g FLOPs; %.0f s.</li>\n",
                 tokens, 8 * parameters("student-rl") * tokens, seconds["student-rl"]);
    }
    return "<ul>" + html + "</ul>\n";
}

std::string trace(const std::string& heading, const std::string& prompt, const std::string& response,
                  const std::string& reason) {
    return "<p class=trace><b>" + escape(heading) + "</b> " + escape(prompt) + "<span>" + escape(response) +
           "</span> [" + escape(reason) + "]</p>\n";
}

/// The same held-out questions at several steps of a run.
std::string traces(const fs::path& folder) {
    std::map<std::size_t, std::string> by_question;
    if (!fs::exists(folder / "samples.jsonl")) return "";
    for (const json& s : read_lines(folder / "samples.jsonl"))
        if (s.contains("held_out") && s["held_out"] < 3)
            by_question[s["held_out"]] +=
                trace("step " + s["step"].dump(), s["prompt"], s["response"], s["reason"]);
    std::string html;
    for (const auto& [question, all] : by_question) html += all;
    return html.empty() ? "" : "<h3>The same questions, at several steps</h3>\n" + html;
}

/// By rule: the answer is right, and before it the response has taken something back ("wait", in either language). The
/// shortest such response, since it is the easiest to read.
std::string aha(const Graded& graded) {
    const json* best = nullptr;
    std::size_t count = 0;
    for (const json& r : graded.responses) {
        const std::string response = r.at("response");
        const bool taken_back =
            response.find("wait") != response.npos || response.find("等等") != response.npos;
        if (r.at("accuracy") != 1 || !taken_back) continue;
        ++count;
        if (!best || response.size() < best->at("response").get<std::string>().size()) best = &r;
    }
    if (!best) return "<p>No right response takes anything back (contains “wait”).</p>\n";
    return text(
               "<p>%zu of %zu responses are right and have taken something back (“wait”, in either language) "
               "on their way. "
               "The shortest:</p>\n",
               count, graded.responses.size()) +
           trace("aha", best->at("prompt"), best->at("response"), best->at("reason"));
}

std::string recipe_page(const std::vector<Recipe>& recipes) {
    const Recipe& first = recipes[0];
    std::string html = "<h1>The recipe of DeepSeek-R1, stage by stage</h1>\n";
    html += text(
        "<p>%zu seed%s; every model answered the same %zu held-out questions, %zu samples each. Intervals "
        "are 95%%, "
        "over questions%s.</p>\n",
        recipes.size(), recipes.size() > 1 ? "s" : "", first.graded.at("base").by_problem("accuracy").size(),
        first.graded.at("base").responses.size() / first.graded.at("base").by_problem("accuracy").size(),
        recipes.size() > 1 ? ", of the mean over seeds (cons@k: the widest of the seeds')" : "");
    html += "<h2>The stages</h2>\n" + models_table(recipes, kStages);
    html += "<h2>What the paper claims, and what happened here</h2>\n" + claims(recipes);

    html += "<h2>R1-Zero over training</h2>\n<ul>\n";
    std::vector<Run> zeros;
    for (const Recipe& r : recipes) zeros.emplace_back(r.folder / "zero", r.folder.filename().string());
    for (const Run& z : zeros) {
        const std::string of = recipes.size() > 1 ? " (" + z.name + ")" : "";
        html += trend("Response length" + of, z.values("response_length"));
        html += trend("The count of reflective words" + of, z.values("reflective_words"));
    }
    html += "</ul>\n" + curves(zeros);
    html += "<h2>The other stages of reinforcement learning</h2>\n";
    std::vector<Run> others;
    for (const char* stage : {"dev2", "r1", "student-rl"})
        if (fs::exists(first.folder / stage / "log.jsonl")) others.push_back(first.run(stage));
    html += curves(others);
    if (first.graded.contains("distilled"))
        html += "<h2>Distillation</h2>\n" + models_table(recipes, kStudents) + compute(first);
    html += "<h2>Traces</h2>\n" + traces(first.folder / "zero") + "<h3>An “aha” of R1-Zero</h3>\n" +
            aha(first.graded.at("zero"));
    html += "<h3>An “aha” of R1</h3>\n" + aha(first.graded.at("r1"));
    return html;
}

std::string runs_page(const std::vector<fs::path>& folders) {
    std::vector<Run> runs;
    for (const auto& folder : folders) runs.emplace_back(folder, folder.filename().string());
    std::string html = "<h1>" + std::string(runs.size() > 1 ? "Training runs" : "A training run") + "</h1>\n";
    Rows rows{
        {"run", "steps", "held-out accuracy: first", "last", "response length: first tenth", "last tenth"}};
    for (const Run& r : runs) {
        const auto length = r.values("response_length");
        const std::size_t tenth = std::max<std::size_t>(1, length.size() / 10);
        if (length.empty()) fail(r.name, ": its log has no steps");
        rows.push_back({escape(r.name), std::to_string(r.steps.size()),
                        r.evals.empty() ? "" : percent(r.evals.front().at("accuracy")),
                        r.evals.empty() ? "" : percent(r.evals.back().at("accuracy")),
                        text("%.1f", mean({length.begin(), length.begin() + tenth})),
                        text("%.1f", mean({length.end() - tenth, length.end()}))});
    }
    html += table(rows) + curves(runs);
    for (const auto& folder : folders) html += traces(folder);
    return html;
}

constexpr const char* kHead = R"(<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><title>r1.cpp report</title>
<style>
:root { color-scheme: light dark; --fg: #1d2330; --bg: #fff; --line: #d6dae2; --soft: #f3f5f8; --yes: #13795b; --no: #b3261e }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e7ee; --bg: #14171d; --line: #343a46; --soft: #1d222b; --yes: #5fd0a5; --no: #ff8a80 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 1180px; margin: 0 auto; padding: 1rem }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem } small { opacity: .75; white-space: nowrap }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: .5rem }
.plots svg { width: 100%; height: auto; color: var(--fg) }
.trace { background: var(--soft); padding: .5rem .8rem; border-radius: 6px; overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, monospace }
.trace span { color: var(--yes) } .yes { color: var(--yes) } .no { color: var(--no) }
</style>
)";

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> folders;
    std::string out = "report.html";
    CLI::App app{"A page about training runs, or about runs of the whole recipe (several: its seeds)",
                 "report"};
    app.option_defaults()->always_capture_default();
    app.add_option("folders", folders, "run folders of train_grpo, or of data/recipe/r1.sh")->required();
    app.add_option("--out", out, "the page");
    return run_main(app, argc, argv, [&] {
        std::vector<fs::path> runs;
        std::vector<Recipe> recipes;
        for (fs::path folder : folders) {
            if (!folder.has_filename()) folder = folder.parent_path();  // a slash at the end
            if (fs::exists(folder / "eval" / "base.jsonl"))
                recipes.emplace_back(folder);
            else if (fs::exists(folder / "log.jsonl"))
                runs.push_back(folder);
            else
                fail(folder.string(), ": holds neither log.jsonl nor eval/base.jsonl");
        }
        if (!runs.empty() && !recipes.empty()) fail("training runs and runs of the recipe want a page each");
        const std::string html = kHead + (recipes.empty() ? runs_page(runs) : recipe_page(recipes));
        std::ofstream file(out, std::ios::binary);
        file << html;
        if (!file.flush()) fail(out, ": cannot be written");
        std::printf("%s\n", out.c_str());
        return 0;
    });
}
