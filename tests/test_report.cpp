// The report's page (data/r1), as a browser shows it: its numbers are computed here once more from
// the runs' files.
#include <sys/wait.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tests/support.h"

using namespace r1;
using namespace r1::test;
using nlohmann::json;

namespace {

int report(const TemporaryFolder& folder, const std::string& arguments) {
    const int code =
        std::system(("cd '" + folder.path.string() + "' && " R1_SOURCE_DIR "/data/r1/report.sh " +
                     arguments + " >out 2>&1 </dev/null")
                        .c_str());
    return WIFEXITED(code) ? WEXITSTATUS(code) : -1;
}

/// What a browser makes of page.html: the elements in front of the data. `script` acts as its
/// reader.
std::string shown(const TemporaryFolder& folder, const std::string& script = "") {
    std::ofstream(folder / "page.html", std::ios::app)
        << "<script>addEventListener('DOMContentLoaded', () => {" << script << "});</script>";
    const std::string browser = "timeout 60 chromium --headless --no-sandbox --disable-gpu "
                                "--disable-dev-shm-usage --window-size=1200,2000 --user-data-dir=";
    CHECK(std::system((browser + (folder / "profile") + " --dump-dom file://" +
                       (folder / "page.html") + " >" + (folder / "dom") + " 2>/dev/null")
                          .c_str()) == 0);
    const std::string dom = read_file(folder / "dom");
    const auto begin = dom.find("<body>");
    REQUIRE(begin != dom.npos);
    return dom.substr(begin, dom.find("<script type=\"application/json\"") - begin);
}

bool no_browser() {
    if (std::system("command -v chromium >/dev/null") == 0) return false;
    skip("there is no chromium");
    return true;
}

#define CHECK_SHOWN(page, text)                  \
    do {                                         \
        const std::string expected = text;       \
        INFO(expected, " is not shown");         \
        CHECK(page.find(expected) != page.npos); \
    } while (false)

/// Of each of four problems, the mean over its responses.
using ByProblem = std::vector<double>;

/// A file of infer --eval with two responses to each problem, whose accuracies have these means;
/// the reflective words of a response are its problem's number.
void write_evaluation(const std::string& file, const ByProblem& accuracy) {
    std::filesystem::create_directories(std::filesystem::path(file).parent_path());
    std::ofstream out(file);
    for (std::size_t p = 0; p < accuracy.size(); ++p)
        for (int sample = 0; sample < 2; ++sample)
            out << json({{"accuracy", 2 * accuracy[p] > sample ? 1.0 : 0.0},
                         {"format", 1.0},
                         {"language", 0.25 * static_cast<double>(p)},
                         {"length", 10 * (sample + 1)},
                         {"reflective_words", p},
                         {"kind", p < 2 ? "countdown" : "general"},
                         {"problem", p},
                         {"prompt", "a \"quoted\" {prompt}"},
                         {"response", "\\\",\"accuracy\":7,"},  // looks like a measure, and is none
                         {"reason", "a, b"}})
                << "\n";
    out << json({{"summary",
                  {{"pass@1",
                    {{"mean", 0.5}, {"low", 0.123}, {"high", 0.877}, {"by_problem", accuracy}}}}}})
        << "\n";
}

double mean_of(const ByProblem& values) {
    double sum = 0;
    for (double v : values) sum += v;
    return sum / static_cast<double>(values.size());
}
/// Half the width of the 95% interval of a mean.
double half_width(const ByProblem& values) {
    double squares = 0;
    for (double v : values) squares += (v - mean_of(values)) * (v - mean_of(values));
    const double n = static_cast<double>(values.size());
    return 1.959964 * std::sqrt(squares / (n - 1) / n);
}
std::string text(const char* format, auto... values) {
    char buffer[200];
    std::snprintf(buffer, sizeof buffer, format, values...);
    return buffer;
}

}  // namespace

TEST_CASE("the report of a training run: one cut off in the middle of a line, with hostile text") {
    const TemporaryFolder f;
    const std::string hostile = "</script><img src=x onerror=alert(1)><!-- <script>";
    std::filesystem::create_directories(f / "a \"<b>");
    std::ofstream log(f / "a \"<b>/log.jsonl");
    log << json({{"run", {{"command", "train_grpo --loss \"<i>\""}, {"commit", "c0ffee"}}}})
        << "\n";
    const std::pair<int, double> steps[] = {{1, 0.25}, {2, 0.5},  {3, 0.875},
                                            {4, 0.0},  {2, 0.75}, {3, 1.0}};
    for (const auto& [step, accuracy] : steps) {
        if (step == 2 && accuracy == 0.75) log << json({{"resumed", {{"step", 1}}}}) << "\n";
        log << json({{"step", step},
                     {"accuracy", accuracy},
                     {"kl", 0},
                     {"novelty", 3},
                     {"entropy", nullptr},
                     {"seconds", {{"step", 2.5}}}})
            << "\n";
    }
    log << json({{"eval", {{"step", 3}, {"accuracy", 0.6}}}})
        << "\nnonsense\n{\"step\":4,\"accuracy\":0.1";
    log.close();
    std::ofstream samples(f / "a \"<b>/samples.jsonl");
    for (int step : {0, 3})
        samples << json({{"step", step},
                         {"held_out", 7},
                         {"prompt", "1+1="},
                         {"accuracy", 1},
                         {"response", "wait " + hostile + std::to_string(step)},
                         {"reason", "right"}})
                << "\n";
    samples << "{\"step\":4,\"prom";
    samples.close();

    REQUIRE(report(f, "--out page.html 'a \"<b>/'") == 0);
    CHECK(read_file(f / "page.html").find("</script><img") == std::string::npos);
    const std::string page = read_file(R1_SOURCE_DIR "/data/r1/report.html");
    for (auto at = page.find("http"); at != page.npos; at = page.find("http", at + 1))
        CHECK(page.compare(at, 18, "http://www.w3.org/") == 0);  // a name, which nothing loads

    CHECK(report(f, "--out nowhere.html none") == 2);
    CHECK(read_file(f / "out") ==
          "none: holds neither log.jsonl nor eval/*.jsonl; name a run folder\n");
    CHECK(report(f, "") == 2);
    CHECK(!std::filesystem::exists(f / "nowhere.html"));
    if (no_browser()) return;

    const std::string body = shown(f, R"(
        const accuracy = document.querySelector('svg[aria-label=accuracy]');
        for (let i = 0; i < 9; ++i)
            accuracy.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
        document.querySelector('details').open = true;
    )");
    CHECK_SHOWN(body, "<h1>Training runs</h1>");
    CHECK_SHOWN(body, "a \"&lt;b&gt;</button>");
    CHECK_SHOWN(body, "Always 0: kl.");
    CHECK_SHOWN(body, "<figcaption>novelty</figcaption>");
    CHECK_SHOWN(body, "<figcaption>seconds.step</figcaption>");
    CHECK(body.find("<figcaption>entropy") == body.npos);
    CHECK_SHOWN(body, "--loss \\\"&lt;i&gt;");
    CHECK_SHOWN(body, "step 3<div>");  // Step 4 came after the checkpoint, and then broken off.
    CHECK_SHOWN(body, "<b>100% (mean 66.7%); held out 60%</b>");  // (0.25 + 0.75 + 1) / 3
    CHECK_SHOWN(body, "held out: 1+1=</option>");
    CHECK_SHOWN(
        body,
        "wait &lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&lt;!-- &lt;script&gt;3</span>");
    CHECK_SHOWN(body, "right, after taking something back");
    CHECK(body.find("<img") == body.npos);
}

TEST_CASE(
    "the report of the recipe: intervals as stated for one seed, computed from the problems for "
    "two") {
    const TemporaryFolder f;
    const ByProblem base[] = {{0, 0.5, 0, 0}, {0, 0, 0.5, 0}},
                    zero[] = {{1, 1, 0.5, 1}, {0.5, 1, 1, 1}};
    for (int seed = 0; seed < 2; ++seed) {
        const std::string folder = f / ("seed" + std::to_string(seed));
        write_evaluation(folder + "/eval/base.jsonl", base[seed]);
        write_evaluation(folder + "/eval/zero.jsonl", zero[seed]);
        std::ofstream(folder + "/stages.tsv") << "cold\t9\t0\tinfer --keep \"length<200\"\n";
    }
    if (no_browser()) return;

    REQUIRE(report(f, "--out page.html seed0") == 0);
    const std::string one = shown(f);
    CHECK_SHOWN(one, "4 held-out problems, 2 times each");
    CHECK_SHOWN(one, "50.0%<small>[12.3, 87.7]</small>");  // pass@1, as infer --eval stated it
    CHECK_SHOWN(one, "<td>15.00<small>[15.00, 15.00]</small>");  // length
    CHECK_SHOWN(one, "<td>37.5%<small>[5.9, 69.1]</small>");     // language: 0, 0.25, 0.5, 0.75
    CHECK_SHOWN(one, "infer --keep \"length&lt;200\"</td>");
    CHECK_SHOWN(one, "no data yet");  // claims about R1

    REQUIRE(report(f, "--out page.html seed0 seed1") == 0);
    const std::string two = shown(f);
    ByProblem zeros(4), differences(4), first(4);
    for (std::size_t p = 0; p < 4; ++p) {
        zeros[p] = (zero[0][p] + zero[1][p]) / 2;
        differences[p] = zeros[p] - (base[0][p] + base[1][p]) / 2;
        first[p] = zero[0][p] - base[0][p];
    }
    const double m = 100 * mean_of(zeros), h = 100 * half_width(zeros);
    CHECK_SHOWN(two, text("<td>%.1f%%<small>[%.1f, %.1f]</small><p>%.1f · %.1f</p></td>", m, m - h,
                          std::min(100.0, m + h), 100 * mean_of(zero[0]), 100 * mean_of(zero[1])));
    const double d = 100 * mean_of(differences), dh = 100 * half_width(differences);
    CHECK_SHOWN(two, text("<td>%+.1f points<small>[%+.1f, %+.1f]</small></td>", d, d - dh, d + dh));
    const double d0 = 100 * mean_of(first), dh0 = 100 * half_width(first);
    CHECK_SHOWN(two, text("<td>%+.1f<small>[%+.1f, %+.1f]</small>", d0, d0 - dh0, d0 + dh0));
    CHECK_SHOWN(two,
                "<td>R1-Zero is more accurate than its base</td><td><b class=\"yes\">holds</b>");
    CHECK_SHOWN(two, "in 2 of 2 seeds alone");
    CHECK_SHOWN(two,
                "<td>R1-Zero reflects more than its base</td><td><b class=\"no\">not shown</b>");
}

TEST_CASE("the report of a recipe whose cold start learns from worked examples: nothing is said of R1-Zero") {
    const TemporaryFolder f;
    write_evaluation(f / "run/eval/dev1.jsonl", {0, 0.5, 0, 0});
    write_evaluation(f / "run/eval/r1.jsonl", {1, 1, 0.5, 1});
    for (const char* stage : {"dev1", "dev2"}) {
        std::filesystem::create_directories(f / ("run/" + std::string(stage)));
        std::ofstream(f / ("run/" + std::string(stage) + "/log.jsonl")) << R"({"run":{}}
{"step":1,"accuracy":0.5}
)";
    }
    std::ofstream samples(f / "run/dev2/samples.jsonl");
    for (const std::string question : {"1+1", "12-7"})
        samples << json({{"step", 1},
                         {"held_out", question.size()},
                         {"prompt", "Solve: " + question + " at once, please."},
                         {"accuracy", 1},
                         {"response", "2"}})
                << "\n";
    samples.close();
    if (no_browser()) return;

    REQUIRE(report(f, "--out page.html run") == 0);
    const std::string body = shown(f);
    CHECK(body.find("R1-Zero") == body.npos);
    CHECK_SHOWN(body, "<td>R1 is more accurate than after its cold start</td><td><b class=\"yes\">holds</b>");
    const auto is_drawn = [&](const std::string& name) {
        const auto button = body.rfind("aria-pressed=", body.find(name + "</button>"));
        return body.compare(button, 19, "aria-pressed=\"true\"") == 0;
    };
    CHECK(!is_drawn("run/dev1"));
    CHECK(is_drawn("run/dev2"));
    CHECK_SHOWN(body, "held out: 1+1</option>");
    CHECK_SHOWN(body, "held out: 12-7</option>");
}
