// The whole recipe: the filter of its samples, its script from base to report, stopped and started again.
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/world/world.h"
#include "src/device/device.h"
#include "src/rl/generate.h"
#include "src/rl/judge.h"
#include "src/model/memory_plan.h"
#include "src/run/log.h"
#include "src/rl/measures.h"
#include "tests/programs.h"
#include "tokenizer/tokenizer.h"

using namespace r1;
using namespace r1::test;
using nlohmann::json;

namespace {

std::vector<json> lines_of(const std::string& file) {
    std::vector<json> lines;
    std::ifstream in(file);
    for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
    return lines;
}

}  // namespace

TEST_CASE("what of the samples is kept") {
    const Problem problem{"Q", TextGold{"3"}};
    Judge judge({.parts = ""});
    const auto response = [&](const std::string& text, int tokens = 10, bool stopped = true) {
        std::vector<Response> one(1);
        one[0].text = text;
        one[0].problem = &problem;
        one[0].tokens.resize(static_cast<std::size_t>(tokens));
        one[0].stopped = stopped;
        judge(one);
        return one[0];
    };
    const auto good = response("<think>one two</think><answer>3</answer>");
    CHECK(Keep("")(good));
    CHECK(Keep("correct,readable,length<11,language>=1,repetition<=0")(good));
    CHECK(Keep("correct,accuracy>0,reflective_words<1")(good));
    CHECK(!Keep("length<10")(good));
    CHECK(!Keep("length>10")(good));
    CHECK(!Keep("correct")(response("<think>one two</think><answer>4</answer>")));
    CHECK(!Keep("well-formed")(response("<answer>3</answer>")));
    CHECK(Keep("correct")(response("<answer>3</answer>")));
    CHECK(!Keep("readable")(response(good.text, 10, false)));
    CHECK(!Keep("readable")(response("<think>one 二 three</think><answer>3</answer>")));
    CHECK(!Keep("readable")(
        response("<think>a b c d a b c d a b c d a b c d</think><answer>3</answer>")));
    Judge chinese({.parts = "", .script = "han"});
    std::vector<Response> again{good};
    chinese(again);
    CHECK(!Keep("readable")(again[0]));
    for (const char* wrong : {"right", "length<", "length<x", "language>=1,,", "length<9 ",
                              "length=9", "length<>9", "program<1"})
        CHECK_THROWS_AS(Keep{wrong}, Error);
    CHECK(Keep("length<9").answers() == Answers::Optional);
    CHECK(Keep("readable,correct").answers() == Answers::Required);
    CHECK(reflective_words("不 等等 check 检查") == 3);
    CHECK(language_consistency("<answer>两</answer>", "han") == 1);  // tags are no words
}

TEST_CASE("infer --sample: distinct texts, filtered, and the same file whether it was stopped or not") {
    const TemporaryFolder f;
    world::Random random(5);
    std::ofstream problems(f / "problems.jsonl");
    for (const auto& q : world::questions(world::Kind::Countdown, 30, false, random)) problems << q.json() << "\n";
    problems.close();
    const std::string command = kBin + "infer --model " + kSource + "/data/world/base --sample " +
                                (f / "problems.jsonl") + " --samples 8 --slots 8 --temperature 1 --top-p 1 ";
    REQUIRE(shell(f, command + "--out " + (f / "all.jsonl")).status == 0);
    REQUIRE(
        shell(f, command + "--keep correct,well-formed --per-prompt 2 --out " + (f / "kept.jsonl")).status ==
        0);
    const auto all = lines_of(f / "all.jsonl"), kept = lines_of(f / "kept.jsonl");
    CHECK(all.size() > 60);
    std::set<std::pair<int, std::string>> texts;
    std::map<int, int> wanted, got;
    for (const json& line : all) {
        CHECK(texts.emplace(line["problem"], line["completion"]).second);
        if (line["accuracy"] == 1 && line["format"] == 1) ++wanted[line["problem"]];
    }
    for (const json& line : kept) {
        CHECK(line["accuracy"] == 1);
        CHECK(line["format"] == 1);
        CHECK(texts.contains({line["problem"].get<int>(), line["completion"]}));
        CHECK(line["kind"] == "countdown");
        ++got[line["problem"]];
    }
    for (auto& [problem, count] : wanted) CHECK(got[problem] == std::min(count, 2));

    // Killed in the middle of a line: what --resume makes of it is the same file.
    const std::string whole = read_file(f / "all.jsonl");
    std::ofstream(f / "parts.jsonl.partial", std::ios::binary) << whole.substr(0, whole.size() / 2);
    const std::string resume = command + "--resume --out " + (f / "parts.jsonl");
    CHECK(has(shell(f, resume).out, "does not say what run it is of"));
    std::filesystem::copy(f / "all.jsonl.run.json", f / "parts.jsonl.run.json");
    CHECK(has(shell(f, resume + " --temperature 0.9").out, "--resume: --temperature is 0.9, but the run began with 1"));
    CHECK(has(shell(f, resume + " --stop-text x").out, "--resume: the stop texts are not what the run began with"));
    const auto resumed = shell(f, resume + " --slots 9");
    CHECK(resumed.status == 0);
    CHECK(has(resumed.out, "note: --slots is 9, and was 8 when the run began"));
    CHECK(read_file(f / "parts.jsonl") == whole);
    const auto refused = shell(f, command + "--keep nice --out " + (f / "x.jsonl"));
    CHECK(refused.status == 2);
    CHECK(refused.out.find("--keep: \"nice\" is none of") != std::string::npos);
}

TEST_CASE(
    "the settings for Qwen2.5, and the README's table of cards, say how much of a GPU's memory they want") {
    const auto root = fixtures();
    if (!root) return;
    const TemporaryFolder f;
    std::string why_not;
    const auto gpu = open_backend("cuda-on-cpu", true, why_not);  // it plans as a GPU does
    REQUIRE(gpu);
    const Tokenizer tokenizer = Tokenizer::load(*root / "tokenizers/qwen2.5");
    int longest = 0;
    for (const char* part : {"train", "test"})
        for (const auto& p : load_problems(*root / "datasets/gsm8k" / (part + std::string(".jsonl")),
                                           PromptTemplate::load(f.path, "r1-zero", std::nullopt)))
            longest = std::max(longest, static_cast<int>(tokenizer.encode(p.prompt).size()));
    /// "30.6 GiB": what train_grpo plans on GSM8K with the flags.
    auto planned = [&](const std::string& model, const std::string& flags_text) {
        std::map<std::string, std::string> flags = {{"--prompts", "32"},
                                                    {"--group", "8"},
                                                    {"--max-new-tokens", "256"},
                                                    {"--slots", "256"},
                                                    {"--token-budget", "8192"},
                                                    {"--state-dtype", "float32"}};
        std::istringstream words(flags_text);
        for (std::string word, flag; words >> word;)
            if (word.starts_with("--"))
                flags[flag = word];
            else
                flags[flag] = word;
        auto number = [&](const char* flag) { return std::stoi(flags.at(flag)); };
        const Config config = Config::load(*root / "configs" / model);
        const bool bf16_states = flags.at("--state-dtype") == "bfloat16";
        const int slots = std::min(number("--slots"), number("--prompts") * number("--group"));
        const TransformerOptions options{.trainable = true,
                                         .bf16_matrices = true,
                                         .bf16_master = bf16_states,
                                         .reference = flags.contains("--beta")
                                                          ? ReferencePolicy::OnDevice
                                                          : ReferencePolicy::None,
                                         .recompute = flags.contains("--recompute"),
                                         .max_tokens = number("--token-budget"),
                                         .max_decode_rows = slots};
        double bytes = 0;
        for (const auto& row : training_memory(config, options, bf16_states, *gpu))
            bytes += static_cast<double>(row.bytes);
        bytes += static_cast<double>(
            Generator::bytes(config, slots, longest, number("--max-new-tokens"), *gpu));
        char text[32];
        std::snprintf(text, sizeof text, "%.1f GiB", bytes / (1 << 30));
        return std::string(text);
    };
    const auto settings = [&](const std::string& size, const std::string& card) {
        return shell(f, "cd " + kSource + "; GPU=" + card + " MODEL=Qwen2.5-" + size +
                            " bash -c '. data/r1/qwen2.5.sh; echo $GRPO'");
    };
    for (const std::string card : {"80", "24"})
        for (const std::string size : {"0.5B", "1.5B"}) {
            const Result flags = settings(size, card);
            REQUIRE(flags.status == 0);
            const std::string line = "#   " + size + " on " + card + " GB: " +
                                     planned("Qwen2.5-" + size + "-Instruct", flags.out) + "\n";
            INFO(line);
            CHECK(read_file(kSource + "/data/r1/qwen2.5.sh").find(line) != std::string::npos);
        }
    CHECK(has(settings("0.5B", "16").out, "GPU is 16; there are settings for 80 and for 24"));
    int rows = 0;
    std::istringstream readme(read_file(kSource + "/README.md"));
    for (std::string line; std::getline(readme, line);) {  // | 24 GB | MODEL | `FLAGS` | 12.3 GiB | ...
        std::vector<std::string> cells;
        std::istringstream row(line);
        for (std::string cell; std::getline(row, cell, '|');) cells.push_back(cell);
        if (cells.size() < 5 || !cells[1].ends_with(" GB ")) continue;
        ++rows;
        const std::string model(trim(cells[2])), flags(trim(cells[3])), memory(trim(cells[4]));
        REQUIRE((flags.size() > 2 && flags.front() == '`' && flags.back() == '`'));
        INFO(line);
        CHECK(planned(std::filesystem::exists(*root / "configs" / model) ? model : model + "-Instruct",
                      flags.substr(1, flags.size() - 2)) == memory);
    }
    CHECK(rows >= 4);
}

TEST_CASE("the script: every stage, from base to report; stopped, it goes on; done, it does nothing") {
    const TemporaryFolder f;
    // The world's own files, with few questions.
    REQUIRE(shell(f, kBin + "make_world --problems " + (f / "all") + " --general " + (f / "data/general.jsonl"))
                .status == 0);
    for (const char* name : {"train.jsonl", "train_all.jsonl", "test.jsonl"}) {
        const auto lines = lines_of(f / (std::string("all/") + name));
        std::ofstream out(f / (std::string("data/") + name));
        for (std::size_t i = 0; i < lines.size(); i += lines.size() / 12) out << lines[i].dump() << "\n";
    }
    std::filesystem::copy(kSource + "/data/world/base", f / "pupil");
    const std::string settings =
        "BIN=" + kBin + " OUT=" + (f / "run") + " DATA=" + (f / "data") + " STUDENTS=" + (f / "pupil") +
        " GRPO='--prompts 2 --group 4 --max-new-tokens 40 --save-every 3' SFT='--batch-tokens 512' "
        "SAMPLE='--samples 4 --temperature 1' "
        "KEEP=length\\<200 EVAL='--samples 2 --max-new-tokens 40' ZERO_STEPS=10 "
        "COLD_STEPS=2 DEV2_STEPS=2 DEV3_STEPS=2 "
        "R1_STEPS=2 CONTROL_STEPS=2 DISTILL='--steps 2' STUDENT_STEPS=2 THREADS=1 DEVICE=cpu ";
    const std::string script = kSource + "/data/r1/r1.sh";

    // A stage that fails ends it, with a word about where.
    const Stopwatch clock;
    const auto failed = shell(f, settings + "KEEP=nice " + script);
    CHECK(failed.status == 2);
    CHECK(failed.out.find("stopped in stage cold") != std::string::npos);
    CHECK(std::filesystem::exists(f / "run/zero/model.safetensors"));
    CHECK(!std::filesystem::exists(f / "run/cold.jsonl"));

    const auto whole = shell(f, settings + script);
    INFO(whole.out.substr(whole.out.size() > 500 ? whole.out.size() - 500 : 0));
    REQUIRE(whole.status == 0);
    const double seconds = clock.seconds();
    CHECK(whole.out.find("== zero") == std::string::npos);  // it was there
    CHECK(lines_of(f / "run/mixed.jsonl").size() == lines_of(f / "run/reasoning.jsonl").size() * 4 / 3);
    CHECK(read_file(f / "run/report.html").find("pupil-distilled") != std::string::npos);

    const auto again = shell(f, settings + script);
    CHECK(again.status == 0);
    CHECK(again.out.find("== eval") == std::string::npos);

    // A cold start from worked examples that are given, here Zero's, wants no Zero, and goes on as the other does.
    const auto worked = shell(f, settings + "WORKED=" + (f / "run/cold.jsonl") + " STUDENTS= OUT=" + (f / "worked") + " " + script);
    REQUIRE(worked.status == 0);
    CHECK(worked.out.find("== zero") == std::string::npos);
    CHECK(read_file(f / "worked/r1/model.safetensors") == read_file(f / "run/r1/model.safetensors"));

    // Killed again and again, wherever it is, until it comes to its end: the same models, samples and grades.
    int kills = 0;
    for (double patience = seconds / 12;; patience *= 1.2, ++kills) {
        const auto part = shell(f, "timeout -s KILL " + std::to_string(patience) + " env " + settings +
                                     "OUT=" + (f / "killed") + " " + script);
        if (part.status == 0) break;
        REQUIRE((part.status == 137 || part.status == -1));
        REQUIRE(kills < 60);
    }
    CHECK(kills > 0);
    for (const std::string file :
         {"zero/model.safetensors", "cold.jsonl", "dev1/model.safetensors", "dev2/model.safetensors",
          "mixed.jsonl", "dev3/model.safetensors", "r1/model.safetensors", "teacher.jsonl",
          "pupil-distilled/model.safetensors", "pupil-rl/model.safetensors", "eval/base.jsonl",
          "eval/r1.jsonl"}) {
        INFO(file);
        CHECK(read_file(f / ("run/" + file)) == read_file(f / ("killed/" + file)));
    }
}

TEST_CASE("the stories: every worked step is right and leads to the answer, and no problem comes twice") {
    const TemporaryFolder f;
    const std::string script = "python3 " + kSource + "/data/r1/make_stories.py " + (f / "data") + " --train 60 --test 20 --worked 40";
    if (shell(f, "python3 --version").status != 0) return skip("python3 is not installed");
    REQUIRE(shell(f, script).status == 0);
    std::set<std::string> questions;
    for (const auto& line : lines_of(f / "data/worked.jsonl")) {
        const std::string text = line["messages"][1]["content"];
        CAPTURE(text);
        std::istringstream in(text);
        std::vector<std::string> words{std::istream_iterator<std::string>(in), {}};
        long last = -1;
        for (std::size_t i = 3; i + 1 < words.size(); ++i) {
            if (words[i] != "=") continue;
            const long a = std::stol(words[i - 3]), b = std::stol(words[i - 1]);
            const char op = words[i - 2][0];
            last = std::stol(words[i + 1]);
            CHECK((op == '/' ? b * last == a : last == (op == '+' ? a + b : op == '-' ? a - b : a * b)));
        }
        CHECK(text.ends_with("<answer> " + std::to_string(last) + " </answer>"));
        const std::string prompt = line["messages"][0]["content"];
        CHECK(questions.insert(prompt.substr(0, prompt.find('\n'))).second);
    }
    for (const char* file : {"train", "test"})
        for (const auto& line : lines_of(f / (std::string("data/") + file + ".jsonl")))
            CHECK(questions.insert(line["question"]).second);
    CHECK(questions.size() == 120);
}
