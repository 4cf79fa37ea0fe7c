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
#include <ranges>
#include <set>

#include "src/run/flags.h"
#include "src/rl/evaluation.h"
#include "src/model/transformer.h"
#include "src/run/whole_file.h"

using namespace r1;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

// ---- reading ----

template <class Body>
void for_each_line(const fs::path& file, Body body) {
    std::ifstream in(file);
    if (!in) fail(file.string(), ": cannot be read");
    std::string line;
    for (int number = 1; std::getline(in, line); ++number) {
        const json object = json::parse(line, nullptr, false);
        if (!object.is_object()) fail(file.string(), ":", number, ": is not a JSON object");
        body(object);
    }
}

/// An "aha", by rule: the answer is right, and on its way the response has taken something back ("wait", in either
/// language).
bool is_aha(const json& response) {
    const std::string& text = response.at("response").get_ref<const std::string&>();
    return response.at("accuracy") == 1 && (text.find("wait") != text.npos || text.find("等等") != text.npos);
}

/// One model's graded answers to the held-out questions: infer --eval's file.
struct Graded {
    std::map<std::string, std::vector<double>>
        measures;                   ///< by name: of each question, the mean over its samples
    std::vector<std::string> kind;  ///< of each question; empty if the data has none
    std::size_t responses = 0, ahas = 0;
    json aha;  ///< the shortest, since it is the easiest to read

    explicit Graded(const fs::path& file) {
        constexpr const char* names[] = {"accuracy", "format", "language", "tokens", "reflective_words"};
        json summary;
        for_each_line(file, [&](const json& line) {
            if (line.contains("summary")) {
                summary = line["summary"];
                return;
            }
            const std::size_t problem = line.at("problem");
            kind.resize(std::max(kind.size(), problem + 1));
            kind[problem] = line.value("kind", "");
            for (const char* name : names) {
                measures[name].resize(kind.size());
                measures[name][problem] += line.at(name).get<double>();
            }
            ++responses;
            if (!is_aha(line)) return;
            ++ahas;
            if (aha.is_null() || line["tokens"] < aha["tokens"]) aha = line;
        });
        if (summary.is_null()) fail(file.string(), ": is not the whole output of infer --eval");
        for (auto& [name, values] : measures)
            for (double& v : values) v /= samples();
        for (const auto& [name, value] : summary.items())
            if (name.starts_with("cons@"))
                measures["cons"] = value.at("by_problem").get<std::vector<double>>();
    }
    double samples() const { return static_cast<double>(responses) / static_cast<double>(kind.size()); }
    std::set<std::string> kinds() const {
        std::set<std::string> names(kind.begin(), kind.end());
        names.erase("");
        return names;
    }
};

/// A training run's log: steps, and evaluations between them.
struct Run {
    std::string name;
    std::vector<json> steps, evals;
    Run(const fs::path& folder, std::string run_name) : name(std::move(run_name)) {
        for_each_line(folder / "log.jsonl", [&](const json& line) {
            if (line.contains("eval"))
                evals.push_back(line["eval"]);
            else if (line.contains("step"))
                steps.push_back(line);
        });
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

std::string escaped(const std::string& text) {
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
    svg = replaced(svg.substr(begin), "<title>Gnuplot</title>", "<title>" + escaped(title) + "</title>");
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
    return "<li>" + what +
           (last > first   ? " rises"
            : last < first ? " falls"
                           : " stays") +
           text(" from %.3g (mean of the first tenth of the steps) to %.3g (the last tenth): %+.3g", first,
                last, last - first) +
           (first > 0 ? text(", a factor of %.2f", last / first) : "") +
           text("; %+.3g in 100 steps by least squares, correlation with the step %+.2f.</li>\n",
                100 * xy / xx, r);
}

std::string trends(const std::vector<Run>& runs) {
    std::string html;
    for (const Run& run : runs) {
        const std::string of = runs.size() > 1 ? " (" + escaped(run.name) + ")" : "";
        html += trend("Response length" + of, run.values("response_length"));
        html += trend("The count of reflective words" + of, run.values("reflective_words"));
    }
    return "<ul>\n" + html + "</ul>\n";
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

/// A model's name in the run folder, and what it is.
using Models = std::vector<std::pair<std::string, std::string>>;
const Models kStages = {{"base", "the base model"},
                        {"zero", "R1-Zero: GRPO on the base, accuracy and format rewarded"},
                        {"zero-language", "a control: GRPO on Zero, language rewarded, no cold start"},
                        {"dev1", "cold start: SFT of the base on Zero's right and readable samples"},
                        {"dev2", "GRPO, language consistency rewarded too"},
                        {"dev3", "SFT of the base on Dev2's samples and general ones"},
                        {"r1", "GRPO on questions of every kind"}};

/// A finished run of data/recipe/r1.sh.
struct Recipe {
    fs::path folder;
    std::map<std::string, Graded> graded;
    std::vector<std::string> students;
    explicit Recipe(fs::path f) : folder(std::move(f)) {
        for (const auto& file : fs::directory_iterator(folder / "eval"))
            if (file.path().extension() == ".jsonl") graded.try_emplace(file.path().stem(), file.path());
        for (const auto& [name, what] : kStages)
            if (!graded.contains(name) && name != "zero-language")
                fail(folder.string(), ": eval/", name, ".jsonl is missing");
        for (const auto& [name, g] : graded)
            if (graded.contains(name + "-distilled") && graded.contains(name + "-rl"))
                students.push_back(name);
        std::ranges::sort(students, std::greater<>(), [&](const auto& s) { return parameters(s + "-rl"); });
    }
    Run run(const std::string& stage) const { return Run(folder / stage, stage); }
    double parameters(const std::string& model) const {
        return static_cast<double>(ParameterLayout(Config::load(folder / model)).total);
    }
};

/// The mean over recipes (seeds) of each question's value: what intervals are made of. Of one kind of question, if given.
std::vector<double> over_seeds(std::span<const Recipe> recipes, const std::string& model,
                               const std::string& measure, const std::string& kind = "") {
    std::vector<double> means;
    const Graded& first = recipes[0].graded.at(model);
    for (std::size_t q = 0; q < first.kind.size(); ++q) {
        if (!kind.empty() && first.kind[q] != kind) continue;
        double sum = 0;
        for (const Recipe& r : recipes) sum += r.graded.at(model).measures.at(measure).at(q);
        means.push_back(sum / static_cast<double>(recipes.size()));
    }
    return means;
}

/// Of a mean of numbers of any size: +- 1.96 standard errors.
Interval normal_interval(const std::vector<double>& values) {
    const double n = static_cast<double>(values.size()), middle = mean(values);
    double squares = 0;
    for (double v : values) squares += (v - middle) * (v - middle);
    const double half = 1.96 * std::sqrt(squares / std::max(1.0, n - 1) / n);
    return {middle, middle - half, middle + half};
}

std::string models_table(const std::vector<Recipe>& recipes, const Models& models) {
    const auto kinds = recipes[0].graded.at(models[0].first).kinds();
    Rows rows{{"model", "pass@1", "cons@k", "format", "language", "length", "reflective words"}};
    rows[0].insert(rows[0].end(), kinds.begin(), kinds.end());
    for (const auto& [name, what] : models) {
        if (!recipes[0].graded.contains(name)) continue;
        rows.push_back({"<b>" + escaped(name) + "</b><p>" + what});
        auto share = [&](const char* measure, const std::string& kind = "") {
            const Interval i = confidence_interval(over_seeds(recipes, name, measure, kind));
            rows.back().push_back(percent(i.mean) +
                                  text(" <small>[%.1f, %.1f]</small>", 100 * i.low, 100 * i.high));
        };
        auto count = [&](const char* measure, const char* format) {
            const Interval i = normal_interval(over_seeds(recipes, name, measure));
            rows.back().push_back(text(format, i.mean, i.low, i.high));
        };
        share("accuracy");
        if (recipes[0].graded.at(name).measures.contains("cons"))
            share("cons");
        else
            rows.back().push_back("");  // one sample a question
        share("format");
        share("language");
        count("tokens", "%.1f <small>[%.1f, %.1f]</small>");
        count("reflective_words", "%.2f <small>[%.2f, %.2f]</small>");
        for (const auto& kind : kinds) share("accuracy", kind);
    }
    return table(rows);
}

struct Claim {
    std::string says, better, worse, measure, kind = "";
    bool at_least = false;  ///< "not worse" is enough
};

/// What the paper finds, asked of these runs: the difference of two models on the same questions, with its interval; and
/// in how many of the seeds it holds by itself.
std::string claims(const std::vector<Recipe>& recipes, const std::vector<Claim>& all) {
    const bool several = recipes.size() > 1;
    Rows rows{{"claim", "outcome", "difference", several ? "seed by seed" : ""}};
    for (const Claim& c : all) {
        const Graded& first = recipes[0].graded.at(c.worse);
        if (!recipes[0].graded.contains(c.better) || (!c.kind.empty() && !first.kinds().contains(c.kind)))
            continue;
        auto difference = [&](std::span<const Recipe> of) {
            auto a = over_seeds(of, c.better, c.measure, c.kind);
            const auto b = over_seeds(of, c.worse, c.measure, c.kind);
            std::ranges::transform(a, b, a.begin(), std::minus<>());
            return normal_interval(a);
        };
        auto holds = [&](const Interval& i) { return c.at_least ? i.high >= 0 : i.low > 0; };
        const bool share = c.measure != "tokens" && c.measure != "reflective_words";
        auto written = [&](const Interval& i, const char* unit) {
            const double scale = share ? 100 : 1;
            const char* format = c.measure == "reflective_words" ? "%+.2f%s <small>[%+.2f, %+.2f]</small>"
                                                                 : "%+.1f%s <small>[%+.1f, %+.1f]</small>";
            return text(format, scale * i.mean, unit, scale * i.low, scale * i.high);
        };
        const Interval all_seeds = difference(recipes);
        std::string seeds;
        int held = 0;
        for (const Recipe& r : recipes) {
            const Interval one = difference({&r, 1});
            held += holds(one);
            if (several) seeds += "<div class=line>" + written(one, "") + "</div>";
        }
        const std::string outcome =
            !holds(all_seeds)   ? all_seeds.high < 0 ? "<b class=no>fails</b>" : "<b class=no>not shown</b>"
            : all_seeds.low > 0 ? "<b class=yes>holds</b>"
                                : "<b class=yes>holds</b> (no difference shown)";
        rows.push_back(
            {c.says, outcome + (several ? text("<p>in %d of %zu seeds by itself", held, recipes.size()) : ""),
             written(all_seeds, share ? " points" : ""), seeds});
    }
    return table(rows);
}

const std::vector<Claim> kClaims = {
    {"R1-Zero is more accurate than its base", "zero", "base", "accuracy"},
    {"R1-Zero's responses are longer than its base's", "zero", "base", "tokens"},
    {"R1-Zero reflects more than its base", "zero", "base", "reflective_words"},
    {"RL with language consistency (Dev2) keeps to one language more than R1-Zero", "dev2", "zero",
     "language"},
    {"The language reward alone, without a cold start, makes R1-Zero keep to one language more",
     "zero-language", "zero", "language"},
    {"That costs R1-Zero no accuracy", "zero-language", "zero", "accuracy", "", true},
    {"R1 is at least as accurate as R1-Zero", "r1", "zero", "accuracy", "", true},
    {"R1 keeps the format more than R1-Zero", "r1", "zero", "format"},
    {"R1 keeps to one language more than R1-Zero", "r1", "zero", "language"},
    {"R1 answers general questions better than R1-Zero", "r1", "zero", "accuracy", "general"}};

/// Floating-point operations that made a student: for each parameter and token 2 forward and 4 backward; of a token that
/// is sampled, 2 more; of one with a reference policy, another 2.
std::string compute(const std::vector<Recipe>& recipes, const std::string& student) {
    double sft = 0, grpo = 0;
    for (const Recipe& r : recipes) {
        const Run rl = r.run(student + "-rl");
        sft += 6 * r.parameters(student + "-distilled") * r.run(student + "-distilled").sum("tokens");
        grpo += (rl.sum("kl") > 0 ? 10 : 8) * r.parameters(student + "-rl") * rl.sum("tokens");
    }
    const auto n = static_cast<double>(recipes.size());
    return text(
        "<p>%s has %.0f parameters, R1 %.0f. SFT on R1's samples took %.2g FLOPs, GRPO %.2g: %.2f times as "
        "much.</p>\n",
        escaped(student).c_str(), recipes[0].parameters(student + "-rl"), recipes[0].parameters("r1"), sft / n,
        grpo / n, grpo / sft);
}

std::string distillation(const std::vector<Recipe>& recipes) {
    const auto& students = recipes[0].students;
    if (students.empty()) return "";
    Models models;
    std::vector<Claim> all;
    std::vector<Run> runs;
    std::string costs;
    for (const std::string& s : students) {
        runs.push_back(recipes[0].run(s + "-rl"));
        models.insert(models.end(), {{s, "the student's base"},
                                     {s + "-rl", "GRPO on the student, rewarded as R1"},
                                     {s + "-distilled", "SFT of the student on R1's samples"}});
        all.push_back({"Distillation makes a better " + escaped(s) + " than RL on it", s + "-distilled",
                       s + "-rl", "accuracy"});
        costs += compute(recipes, s);
    }
    models.emplace_back("r1", "R1, the teacher");
    return "<h2>Distillation</h2>\n" + models_table(recipes, models) + costs + claims(recipes, all) +
           curves(runs);
}

/// What the run did and how long it took, parts that were interrupted added up.
std::string commands(const Recipe& recipe) {
    std::vector<std::pair<std::string, std::pair<int, std::string>>> stages;
    std::ifstream in(recipe.folder / "stages.tsv");
    int total = 0;
    for (std::string name, seconds, status, command;
         std::getline(in, name, '\t') && std::getline(in, seconds, '\t') && std::getline(in, status, '\t') &&
         std::getline(in, command);) {
        auto at = std::ranges::find(stages, name, [](const auto& s) { return s.first; });
        if (at == stages.end()) at = stages.insert(at, {name, {}});
        at->second.first += std::atoi(seconds.c_str()), at->second.second = command;
        total += std::atoi(seconds.c_str());
    }
    if (stages.empty()) return "";
    Rows rows{{"stage", "seconds", "command"}};
    for (const auto& [name, s] : stages)
        rows.push_back({escaped(name), std::to_string(s.first), "<code>" + escaped(s.second) + "</code>"});
    return text("<h2>The commands</h2>\n<details><summary>%zu stages, %.1f minutes (%s)</summary>\n",
                stages.size(), total / 60.0, escaped(recipe.folder.filename()).c_str()) +
           table(rows) + "</details>\n";
}

std::string trace(const std::string& heading, const json& response) {
    return "<p class=trace><b>" + heading + "</b> " + escaped(response.at("prompt")) + "<span>" +
           escaped(response.at("response")) + "</span> [" + escaped(response.at("reason")) + "]</p>\n";
}

/// The same held-out questions at several steps of a run: the one whose responses hold the most ahas, then those in the
/// middle and at the end of what was logged, which may be of other kinds.
std::string traces(const fs::path& folder) {
    std::map<std::size_t, std::vector<json>> by_question;
    if (!fs::exists(folder / "samples.jsonl")) return "";
    for_each_line(folder / "samples.jsonl", [&](const json& s) {
        if (s.contains("held_out")) by_question[s["held_out"]].push_back(s);
    });
    if (by_question.empty()) return "";
    std::vector<const std::vector<json>*> questions;
    for (const auto& [id, responses] : by_question) questions.push_back(&responses);
    const auto most = std::ranges::max_element(
        questions, {}, [](const auto* responses) { return std::ranges::count_if(*responses, is_aha); });
    std::vector chosen{*most};
    for (const auto* other : {questions[questions.size() / 2], questions.back()})
        if (std::ranges::find(chosen, other) == chosen.end()) chosen.push_back(other);
    std::string html = "<h3>The same questions, at several steps</h3>\n";
    for (const auto* responses : chosen)
        for (const json& s : *responses)
            html += trace("step " + s["step"].dump() + (is_aha(s) ? ", an aha" : ""), s);
    return html;
}

std::string aha(const Graded& graded) {
    if (graded.aha.is_null()) return "<p>No right response takes anything back (contains “wait”).</p>\n";
    return text(
               "<p>%zu of %zu responses are right and have taken something back (“wait”, in either language) "
               "on "
               "their way. The shortest:</p>\n",
               graded.ahas, graded.responses) +
           trace("aha", graded.aha);
}

std::string recipe_page(const std::vector<Recipe>& recipes) {
    const Recipe& first = recipes[0];
    std::string html = "<h1>The recipe of DeepSeek-R1, stage by stage</h1>\n";
    html += text(
        "<p>%zu seed%s; every model answered the same %zu held-out questions, %zu samples each. Intervals "
        "are 95%%, "
        "over questions%s.</p>\n",
        recipes.size(), recipes.size() > 1 ? "s" : "", first.graded.at("base").kind.size(),
        static_cast<std::size_t>(first.graded.at("base").samples()),
        recipes.size() > 1 ? ", of the mean over seeds" : "");
    html += "<h2>The stages</h2>\n" + models_table(recipes, kStages);
    html += "<h2>What the paper claims, and what happened here</h2>\n" + claims(recipes, kClaims);

    std::vector<Run> zeros;
    for (const Recipe& r : recipes) zeros.emplace_back(r.folder / "zero", r.folder.filename().string());
    html += "<h2>R1-Zero over training</h2>\n" + trends(zeros) + curves(zeros);
    html += "<h2>The other stages of reinforcement learning</h2>\n";
    std::vector<Run> others;
    for (const char* stage : {"zero-language", "dev2", "r1"})
        if (first.graded.contains(stage)) others.push_back(first.run(stage));
    html += curves(others) + distillation(recipes);
    html += "<h2>Traces</h2>\n" + traces(first.folder / "zero") + "<h3>An “aha” of R1-Zero</h3>\n" +
            aha(first.graded.at("zero"));
    html += "<h3>An “aha” of R1</h3>\n" + aha(first.graded.at("r1"));
    return html + commands(first);
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
        rows.push_back({escaped(r.name), std::to_string(r.steps.size()),
                        r.evals.empty() ? "" : percent(r.evals.front().at("accuracy")),
                        r.evals.empty() ? "" : percent(r.evals.back().at("accuracy")),
                        text("%.1f", mean({length.begin(), length.begin() + tenth})),
                        text("%.1f", mean({length.end() - tenth, length.end()}))});
    }
    html += table(rows) + trends(runs) + curves(runs);
    for (const auto& folder : folders) html += traces(folder);
    return html;
}

constexpr const char* kHead = R"(<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><title>r1.cpp report</title>
<style>
:root { color-scheme: light dark; --fg: #1d2330; --bg: #fff; --line: #d6dae2; --soft: #f3f5f8; --yes: #13795b; --no: #b3261e }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e7ee; --bg: #14171d; --line: #343a46; --soft: #1d222b; --yes: #5fd0a5; --no: #ff8a80 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 1260px; margin: 0 auto; padding: 1rem }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem } small { opacity: .75; white-space: nowrap }
.line { white-space: nowrap } td p { margin: 0; font-size: .8rem; opacity: .75 } td:first-child p { min-width: 11rem }
@media (max-width: 40rem) { table td, table th { padding: .3rem .4rem } }
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
        for (const Recipe& r : recipes)
            if (!std::ranges::equal(std::views::keys(r.graded), std::views::keys(recipes[0].graded)) ||
                r.graded.at("base").kind != recipes[0].graded.at("base").kind)
                fail(r.folder.string(), ": has other models or other held-out questions than ",
                     recipes[0].folder.string(), "; only seeds of one recipe go on one page");
        const std::string html = kHead + (recipes.empty() ? runs_page(runs) : recipe_page(recipes));
        WholeFile file(out);
        file << html;
        file.done();
        std::printf("%s\n", out.c_str());
        return 0;
    });
}
