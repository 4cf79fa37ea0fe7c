// What a run leaves behind and how it is gone on with, as a user sees it: its record, its folder, its checkpoints, the
// model that it writes, and what it says when it cannot learn.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "src/rl/diagnosis.h"
#include "src/run/log.h"
#include "src/run/record.h"
#include "src/rl/dataset.h"
#include "tests/programs.h"

using namespace r1;
using namespace r1::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const std::string kGrpo = "train_grpo --model " + kBase + " --train " + kTrain +
                          " --prompts 2 --group 4 --max-new-tokens 32 --lr 1e-3 --threads 1 ";

/// Starts the command, and sends it the signal once it has logged its first step. Returns its exit status.
/// Where it is to ignore the signal, it is given ten more lines of log, and then killed.
int interrupted(const TemporaryFolder& folder, const std::string& command, const std::string& out, int signal,
                bool ignored = false) {
    const pid_t child = fork();
    if (child == 0) {
        ::signal(signal, ignored ? SIG_IGN : SIG_DFL);  // whatever these tests were started under
        execl("/bin/sh", "sh", "-c",
              ("exec " + kBin + command + " --out " + out + " >" + (folder / "printed") + " 2>&1").c_str(),
              nullptr);
        _exit(127);
    }
    auto wait_for_steps = [&](std::ptrdiff_t count) {
        for (int i = 0; i < 6000; ++i) {
            const auto lines = read_json_lines(out + "/log.jsonl");
            if (std::ranges::count_if(lines, [](const json& line) { return line.contains("step"); }) >= count)
                return;
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
    };
    wait_for_steps(1);
    kill(child, signal);
    if (ignored) {
        wait_for_steps(10);
        kill(child, SIGKILL);
    }
    int code = 0;
    waitpid(child, &code, 0);
    return WIFEXITED(code) ? WEXITSTATUS(code) : -WTERMSIG(code);
}

Response response(const std::string& text, bool stopped, double accuracy, double format) {
    Response r{.tokens = {1, 2}, .sampled_logp = {}, .stopped = stopped, .text = text};
    r.accuracy = {accuracy, accuracy == 1 ? "right" : "gives 7"};
    r.format = {format, format == 1 ? "right" : "<think> is missing"};
    return r;
}

}  // namespace

TEST_CASE(
    "a run records itself: command, flags, hashes, seed, commit, machine, device, date, template") {
    const TemporaryFolder f;
    REQUIRE(shell(f, kBin + kGrpo + "--steps 1 --preset dapo --eval " + kTest +
                       " --eval-limit 3 --seed 7 --out '" + (f / "a run") + "'")
                .status == 0);
    const json record = read_json_lines(f / "a run/log.jsonl").at(0).at("run");
    CHECK(record["program"] == "train_grpo");
    CHECK(has(record["command"], "--out '" + (f / "a run") + "'"));  // to be pasted into a shell
    for (const auto& [flag, value] :
         std::vector<std::pair<std::string, json>>{{"seed", 7},
                                                   {"group", 4},
                                                   {"lr", 0.001},
                                                   {"loss", "dapo"},  // the preset's
                                                   {"clip-high", 0.28},
                                                   {"clip-low", 0.2},  // its default
                                                   {"plain", false},
                                                   {"reward", "accuracy=1,format=0.2"}}) {
        CAPTURE(flag);
        CHECK(record["flags"][flag] == value);
    }
    const std::string help = shell(f, kBin + "train_grpo --help").out;
    std::istringstream words(help);
    for (std::string word; words >> word;)  // no flag is left out
        if (word.starts_with("--") && word != "--help" && word.find_first_of(";:,.)") == word.npos &&
            help.find("\n  " + word + " ") != help.npos)
            CHECK_MESSAGE(record["flags"].contains(word.substr(2)), word);
    for (const auto& [role, file] : {std::pair<std::string, std::string>{"train", kTrain},
                                     {"eval", kTest},
                                     {"model/model.safetensors", kBase + "/model.safetensors"},
                                     {"model/tokenizer.json", kBase + "/tokenizer.json"}}) {
        REQUIRE(std::system(("sha256sum " + file + " >" + (f / "sum")).c_str()) == 0);
        CHECK(record["sha256"][role] == read_file(f / "sum").substr(0, 64));
    }
    for (const char* key : {"commit", "date", "machine", "compiler", "device", "ranks", "template"})
        CHECK(record.contains(key));
    CHECK(record["template"]["text"] == "{question}:");
    CHECK(record["machine"]["cores"].get<int>() > 0);
    CHECK(!record["commit"].get<std::string>().empty());
}

TEST_CASE(
    "a folder that holds a run is neither overwritten nor mixed with another; --overwrite leaves nothing of "
    "it") {
    const TemporaryFolder f;
    const std::string out = f / "run";
    REQUIRE(shell(f, kBin + kGrpo + "--steps 3 --save-every 1 --keep 3 --out " + out).status == 0);
    for (const char* file :
         {"checkpoint-1.safetensors", "checkpoint-2.safetensors", "checkpoint-3.safetensors"})
        CHECK(fs::exists(out + "/" + file));
    const std::string before = read_file(out + "/log.jsonl");
    const auto refused = shell(f, kBin + kGrpo + "--steps 2 --out " + out);
    CHECK(refused.status == 2);
    CHECK(has(refused.out,
              out + ": holds a run already; go on with it by --resume, replace it by --overwrite"));
    CHECK(read_file(out + "/log.jsonl") == before);
    CHECK(shell(f, kBin + kGrpo + "--steps 2 --resume --overwrite --out " + out).status == 2);
    CHECK(shell(f, kBin + "train_sft --model " + kBase + " --data " + kTrain + " --out " + out).status == 2);
    CHECK(read_file(out + "/log.jsonl") == before);

    REQUIRE(shell(f, kBin + kGrpo + "--steps 2 --overwrite --out " + out).status == 0);
    CHECK(read_json_lines(out + "/log.jsonl").size() == 3);
    for (const auto& entry : fs::directory_iterator(out))  // its own checkpoint is gone, too: the run is done
        CHECK(!has(entry.path().filename(), "checkpoint"));
    const auto finished = shell(f, kBin + kGrpo + "--steps 4 --resume --out " + out);
    CHECK(finished.status == 2);
    CHECK(has(finished.out, "finished and its checkpoint is gone"));

    fs::copy(kBase, f / "model");
    const auto own = shell(f, kBin + "train_grpo --model " + (f / "model") + " --train " + kTrain +
                                " --overwrite --out " + (f / "model/"));
    CHECK(own.status == 2);
    CHECK(has(own.out, "is the folder of --model"));
    CHECK(read_file(f / "model/model.safetensors") == read_file(kBase + "/model.safetensors"));
    const auto model = shell(f, kBin + kGrpo + "--out " + (f / "model"));
    CHECK(model.status == 2);
    CHECK(has(model.out, "holds a model already"));
    write_file(f / "file", "");
    CHECK(has(shell(f, kBin + kGrpo + "--out " + (f / "file")).out, "is a file; --out wants a folder"));
}

TEST_CASE("a run is resumed as what it was: what may differ is noted, what may not is refused and named") {
    const TemporaryFolder f;
    const std::string out = " --out " + (f / "run");
    const auto data = [&](int line) {
        std::ostringstream lines;
        for (int i = 0; i < 4; ++i) lines << R"({"question":"1,2,3=6","nums":[1,2,3],"target":)" << 5 + (i == line) << "}\n";
        write_file(f / "train.jsonl", lines.str());
    };
    data(0);
    write_file(f / "other.txt", "{question}:<think>");
    const std::string base = "train_grpo --model " + kBase + " --train " + (f / "train.jsonl") +
                             " --prompts 2 --group 4 --max-new-tokens 16 --threads 1 --lr 1e-3 --keep 1" +
                             out;
    REQUIRE(shell(f, kBin + base + " --steps 2").status == 0);
    const std::string log = read_file(f / "run/log.jsonl"), model = read_file(f / "run/model.safetensors"),
                      checkpoint = read_file(last_checkpoint(f / "run"));
    std::istringstream flags(
        "--seed 2|--group 8|--prompts 4|--max-new-tokens 20|--temperature 0.9|--reward accuracy=1|--beta 0.1|"
        "--loss dapo|--clip-high 0.3|--clip-low 0.1|--ratio sequence|--mini-batches 2|--inner-epochs 2|"
        "--advantage-scale none|--overlong mask|--overlong-cache 3|--dynamic-sampling 2|--importance-cap 2|"
        "--reference-refresh 5|--schedule cosine|--script han|--state-dtype bfloat16|--dtype "
        "bfloat16|--exact|"
        "--stop-text x|--preset gspo --mini-batches 1|--template " +
        (f / "other.txt"));
    for (std::string flag; std::getline(flags, flag, '|');) {
        const auto refused = shell(f, kBin + base + " --steps 4 --resume " + flag);
        INFO(flag, "\n", refused.out);
        CHECK(refused.status == 2);
        CHECK(has(refused.out, "--resume: "));
        CHECK(has(refused.out, flag.starts_with("--template")    ? "the prompt template"
                               : flag.starts_with("--stop-text") ? "--stop-text"
                               : flag.starts_with("--preset")    ? "--clip-"
                                                                 : flag.substr(0, flag.find(' '))));
        CHECK(read_file(f / "run/log.jsonl") == log);
        CHECK(read_file(f / "run/model.safetensors") == model);
        CHECK(read_file(last_checkpoint(f / "run")) == checkpoint);
    }
    data(1);
    CHECK(has(shell(f, kBin + base + " --steps 4 --resume").out,
              "--resume: train is not the file that the run began with"));
    data(0);
    write_file(f / "sft.jsonl", R"({"prompt":"1","completion":"2"})");
    CHECK(has(shell(f, kBin + "train_sft --resume --model " + kBase + " --data " + (f / "sft.jsonl") + out).out,
              "--resume: --out holds a run of train_grpo, not of train_sft"));

    fs::rename(f / "train.jsonl", f / "moved.jsonl");  // the same data under another name
    const auto resumed = shell(f, kBin + base + " --train " + (f / "moved.jsonl") +
                                    " --steps 4 --resume --lr 2e-3 --token-budget 4096 --show-every 1");
    CHECK(resumed.status == 0);
    for (const char* note :
         {"note: --lr is 0.002, and was 0.001 when the run began", "note: --steps is 4, and was 2 when",
          "note: --token-budget is 4096", "resumed at step 2"})
        CHECK_MESSAGE(has(resumed.out, note), note);
    CHECK(!has(resumed.out, "note: --train"));
    const auto lines = read_json_lines(f / "run/log.jsonl");
    REQUIRE(lines.size() == 6);  // the run, two steps, where it was resumed, two more
    CHECK(lines[3]["resumed"]["step"] == 2);

    const auto fresh =
        shell(f, kBin + base + " --train " + (f / "moved.jsonl") + " --steps 1 --resume --out " + (f / "new"));
    CHECK(fresh.status == 0);
    CHECK(has(fresh.out, "holds no checkpoint: a new run"));
}

TEST_CASE("flags from a file: run.toml repeats a run, what is given beside it wins, errors are named") {
    const TemporaryFolder f;
    REQUIRE(shell(f, kBin + kGrpo + "--preset gspo --mini-batches 2 --steps 2 --stop-text '</answer>' --out " +
                         (f / "first"))
                .status == 0);
    const std::string config = "train_grpo --config " + (f / "first/run.toml");
    REQUIRE(shell(f, kBin + config + " --out " + (f / "again")).status == 0);
    CHECK(read_file(f / "first/model.safetensors") == read_file(f / "again/model.safetensors"));
    const auto flags = [&](const char* run) {
        return recorded_run(f / run)["flags"];
    };
    CHECK(flags("again")["ratio"] == "sequence");
    CHECK(flags("again")["mini-batches"] == 2);  // not the preset's 4
    CHECK(flags("again")["stop-text"] == json({"</answer>"}));
    REQUIRE(shell(f, kBin + config + " --ratio token --out " + (f / "other")).status == 0);
    CHECK(flags("other")["ratio"] == "token");

    const auto refused = [&](const std::string& toml, const std::string& sentence) {
        write_file(f / "flags.toml", toml);
        const auto r = run(f, "train_grpo --config " + (f / "flags.toml"));
        CHECK(r.status == 2);
        CHECK_MESSAGE(has(r.err, sentence), r.err);
    };
    refused("colour = \"blue\"\n", "flags.toml: there is no flag --colour");
    refused("group = 1\n", "--group");
    refused("steps = 3\n", "--model is required");
    CHECK(has(run(f, kGrpo + "--preset nice").err, "there is no preset \"nice\"; choose one of dapo"));
    CHECK(has(run(f, "train_grpo --config " + (f / "none.toml")).err, "there is no such file"));
}

TEST_CASE("a cosine schedule is not stretched by --resume") {
    const TemporaryFolder f;
    write_file(f / "data.jsonl", R"({"prompt":"1,2,3=6:","completion":"<answer>1+2+3</answer>"})"
                                 "\n");
    const std::string sft = "train_sft --model " + kBase + " --data " + (f / "data.jsonl") +
                            " --batch-tokens 20 --keep 1 --out " + (f / "run");
    REQUIRE(shell(f, kBin + sft + " --steps 3").status == 0);
    const auto longer = shell(f, kBin + sft + " --steps 6 --resume");
    CHECK(longer.status == 2);
    CHECK(has(longer.out, "--steps is 6, but the run began with 3"));
    CHECK(shell(f, kBin + sft + " --steps 2 --resume").status == 0);  // which ends it
    CHECK(has(shell(f, kBin + sft + " --steps 3 --resume --lr 1e-4").out, "note: --lr is 0.0001"));
    CHECK(shell(f, kBin + sft + " --steps 3 --resume --batch-tokens 40").status == 2);
}

TEST_CASE(
    "SIGHUP leaves a checkpoint as SIGINT does, unless it is ignored; infer says how a stopped run goes on") {
    const TemporaryFolder f;
    const std::string out = f / "run";
    CHECK(interrupted(f, kGrpo + "--steps 100000", out, SIGHUP) == 130);
    CHECK(has(read_file(f / "printed"), "go on with --resume"));
    CHECK(!fs::exists(out + "/model.safetensors"));
    const auto infer = shell(f, kBin + "infer --prompt 1,2,3=6 --model " + out);
    CHECK(infer.status == 2);
    CHECK(std::ranges::count(infer.out, '\n') == 1);
    // What it says can be typed, and then there is a model.
    const auto from = infer.out.find('`'), to = infer.out.find('`', from + 1);
    REQUIRE(to != infer.out.npos);
    const std::string command = infer.out.substr(from + 1, to - from - 1) + " --steps 1";
    CHECK(has(command, " --resume"));
    REQUIRE(std::system((command + " >/dev/null 2>&1").c_str()) == 0);
    CHECK(shell(f, kBin + "infer --prompt 1,2,3=6 --model " + out).status == 0);

    // nohup: the signal does nothing, and the run ends by SIGKILL here. Each line was written when it was there.
    const int status = interrupted(f, kGrpo + "--steps 100000", f / "nohup", SIGHUP, true);
    CHECK(status == -SIGKILL);
    CHECK(has(read_file(f / "printed"), "\n      2 "));
}

TEST_CASE("errors come after what was printed before them") {
    const TemporaryFolder f;
    const auto r = shell(f, kBin + kGrpo + "--steps 20 --min-entropy 100 --out " + (f / "run"));
    CHECK(r.status == 2);
    const auto line = r.out.rfind("\ntrain_grpo: step 10: ");
    REQUIRE(line != r.out.npos);
    CHECK(r.out.find('\n', line + 1) == r.out.size() - 1);
}

TEST_CASE("--dry-run shows the memory plan and touches nothing") {
    const TemporaryFolder f;
    write_file(f / "sft.jsonl", R"({"prompt":"1","completion":"2"})");
    for (const std::string& command : {kGrpo, "train_sft --model " + kBase + " --data " + (f / "sft.jsonl") + " "}) {
        const auto r = shell(f, kBin + command + "--dry-run --out " + (f / "run"));
        CHECK(r.status == 0);
        CHECK(has(r.out, "memory plan (cpu"));
        CHECK(has(r.out, "in all"));
        CHECK(!fs::exists(f / "run"));
    }
}

TEST_CASE(
    "evaluation: limited, without a first one, its reward logged; the best model is kept and survives a "
    "resume") {
    const TemporaryFolder f;
    const std::string flags = kGrpo + "--eval " + kTest +
                              " --eval-limit 20 --eval-every 2 --eval-first off " +
                              "--keep-best --save-every 2 --reward accuracy=1,format=0.5 ";
    REQUIRE(shell(f, kBin + flags + "--steps 6 --out " + (f / "whole")).status == 0);
    std::vector<json> evaluations;
    for (const auto& line : read_json_lines(f / "whole/log.jsonl"))
        if (line.contains("eval")) evaluations.push_back(line["eval"]);
    REQUIRE(evaluations.size() == 3);
    double best = 0;
    for (const auto& e : evaluations) {
        CHECK(e["n"] == 20);
        CHECK(e["reward"].get<double>() ==
              doctest::Approx(e["accuracy"].get<double>() + 0.5 * e["format"].get<double>()));
        best = std::max(best, e["reward"].get<double>());
    }
    const auto at = std::ranges::find_if(evaluations, [&](const json& e) { return e["reward"] == best; });
    const int best_step = at->at("step");
    REQUIRE(shell(f, kBin + flags + "--steps " + std::to_string(best_step) + " --out " + (f / "short")).status == 0);
    CHECK(read_file(f / "whole/best/model.safetensors") == read_file(f / "short/model.safetensors"));
    CHECK(shell(f, kBin + "infer --prompt 1,2,3=6 --model " + (f / "whole/best")).status == 0);

    REQUIRE(shell(f, kBin + flags + "--steps 4 --keep 1 --out " + (f / "parts")).status == 0);
    REQUIRE(shell(f, kBin + flags + "--steps 6 --keep 0 --resume --out " + (f / "parts")).status == 0);
    CHECK(read_file(f / "whole/best/model.safetensors") == read_file(f / "parts/best/model.safetensors"));
    CHECK(read_file(f / "whole/model.safetensors") == read_file(f / "parts/model.safetensors"));
    CHECK(shell(f, kBin + kGrpo + "--keep-best --out " + (f / "none")).status == 2);

    // infer --eval shows the reward that was trained; a number a response, whose mean is printed.
    const auto graded = shell(f, kBin + "infer --eval " + kTest + " --samples 2 --model " + (f / "whole") +
                                   " --out " + (f / "graded"));
    CHECK(graded.status == 0);
    double sum = 0;
    json summary;
    for (const auto& line : read_json_lines(f / "graded")) {
        if (line.contains("summary")) {
            summary = line["summary"];
            continue;
        }
        CHECK(line["reward"].get<double>() ==
              doctest::Approx(line["accuracy"].get<double>() + 0.5 * line["format"].get<double>()));
        sum += line["reward"].get<double>();
    }
    CHECK(summary["reward"]["mean"].get<double>() == doctest::Approx(sum / (2 * 428)));
    char mean[20];
    std::snprintf(mean, sizeof mean, "reward   %6.3f  [", sum / (2 * 428));
    CHECK(has(graded.out, mean));
    CHECK(!has(shell(f, kBin + "infer --eval " + kTest + " --model " + kBase).out,
               "reward"));  // nothing is known of one
}

TEST_CASE("a log, samples and settings that are not as a program writes them end in a sentence, or are not used") {
    const TemporaryFolder f;
    fs::copy(kBase, f / "model");
    const std::string eval = kBin + "infer --max-new-tokens 2 --eval " + kTest + " --model " + (f / "model");
    for (const char* run : {R"([])", R"({"flags":[]})", R"({"flags":{"reward":["accuracy"]}})",
                            R"({"flags":{"reward":{},"script":5}})", R"({"command":7,"flags":"x"})"}) {
        write_file(f / "model/log.jsonl", "{\"run\":" + std::string(run) + "}\n");
        CHECK_MESSAGE(shell(f, eval).status == 0, run);
    }
    fs::remove(f / "model/model.safetensors");
    write_file(f / "model/checkpoint-1.safetensors", "");
    CHECK(has(shell(f, eval).out, "a run that was stopped, and has no model yet; go on with `train_grpo"));

    // Lines of a log that is resumed.
    const std::string grpo = kBin + kGrpo + "--eval " + kTest + " --eval-limit 2 --keep-best --out " + (f / "run");
    REQUIRE(shell(f, grpo + " --steps 1 --keep 1").status == 0);
    const std::string log = read_file(f / "run/log.jsonl");
    write_file(f / "run/log.jsonl", log + R"([1]
{"eval":{"step":"0","reward":"1"}}
{"eval":{"step":1,"reward":null}}
{"eval":5,"step":[]}
{"step":1,"reward":2,"length":"long"}
)");
    CHECK(shell(f, grpo + " --steps 2 --keep 1 --resume").status == 0);

    // Samples that are gone on with.
    const std::string sample = kBin + "infer --max-new-tokens 2 --resume --model " + kBase + " --sample " + kTest + " --out " + (f / "s");
    REQUIRE(shell(f, sample).status == 0);
    for (const char* line : {"[]", "{}", R"({"problem":"1"})", R"({"problem":-1})", R"({"problem":1e300})", R"({"problem":428})"}) {
        write_file(f / "s.partial", std::string(line) + "\n");
        const auto refused = shell(f, sample);
        CHECK_MESSAGE(refused.status == 2, line, refused.out);
        CHECK(has(refused.out, "remove the file"));
    }
    write_file(f / "s.run.json", R"({"program":"infer","flags":{},"sha256":{"sample":[]}})");
    CHECK(has(shell(f, sample).out, "--resume: sample is not the file that the run began with"));

    // Settings beside another tokenizer, which a chat's end of turn is added to.
    fs::copy(kBase, f / "tokenizer");
    auto file = json::parse(read_file(kBase + "/tokenizer.json"));
    file["added_tokens"].push_back({{"id", 231}, {"content", "<|im_end|>"}, {"special", true}});
    write_file(f / "tokenizer/tokenizer.json", file.dump());
    write_file(f / "tokenizer/tokenizer_config.json", R"({"chat_template": "<|im_start|>"})");
    write_file(f / "tokenizer/generation_config.json", "[]");
    write_file(f / "chat.jsonl", R"({"messages":[{"role":"user","content":"1"},{"role":"assistant","content":"2"}]})");
    CHECK(has(shell(f, kBin + "train_sft --steps 1 --model " + kBase + " --tokenizer " + (f / "tokenizer") + " --data " +
                           (f / "chat.jsonl") + " --out " + (f / "sft")).out,
              "generation_config.json beside the tokenizer is not a JSON object"));
}

TEST_CASE("runs that are killed, signalled, filled up and misled: a short form of make torture") {
    const TemporaryFolder f;
    if (std::system("command -v python3 >/dev/null && command -v cc >/dev/null") != 0) {
        skip("python3 or cc is not installed");
        return;
    }
    const auto r = shell(f, "python3 " + kSource + "/tests/torture.py --n 10 --build " + kBin);
    CHECK_MESSAGE(r.status == 0, r.out);
    CHECK(has(r.out, "| kills at random instants | 10 | 0 | 0 | 0 |"));
}

TEST_CASE("infer never runs the reward program that a model folder names") {
    const TemporaryFolder f;
    fs::copy(kBase, f / "model");
    json run_line;
    run_line["run"]["flags"] = {{"reward", "program=1"},
                                {"reward-program", "touch " + (f / "ran") + "; yes 1"}};
    write_file(f / "model/log.jsonl", run_line.dump() + "\n");
    const std::string eval = "infer --max-new-tokens 2 --eval " + kTest + " --model " + (f / "model");
    const auto silent = shell(f, kBin + eval);
    CHECK(silent.status == 0);
    CHECK(has(silent.out, "--reward-program is wanted"));
    CHECK(!fs::exists(f / "ran"));
    const auto asked = shell(f, kBin + eval + " --reward-program 'while read x; do echo 0.25; done'");
    CHECK(asked.status == 0);
    CHECK(has(asked.out, "reward    0.250  ["));
}

TEST_CASE("the template in use and the stop texts are saved with the model, and used without a flag") {
    const TemporaryFolder f;
    write_file(f / "mine.txt", "{question}:<think>\n");
    REQUIRE(shell(f, kBin + kGrpo + "--steps 1 --template " + (f / "mine.txt") +
                       " --stop-text '</think>' --stop-text no --out " + (f / "run"))
                .status == 0);
    CHECK(read_file(f / "run/prompt_template.txt") == "{question}:<think>\n");
    const json generation = json::parse(read_file(f / "run/generation_config.json"));
    CHECK(generation["stop_strings"] == json({"</think>", "no"}));
    CHECK(generation["eos_token_id"].is_array());
    const std::string sample =
        "infer --samples 4 --temperature 1 --top-p 1 --sample " + kTest + " --out " + (f / "s");
    int ended = 0;
    for (const std::string& flags :
         {"--model " + (f / "run"), "--model " + kBase + " --template " + (f / "mine.txt") +
                                        " --stop-text '</think>' --stop-text no"}) {
        REQUIRE(shell(f, kBin + sample + " " + flags).status == 0);
        for (const auto& line : read_json_lines(f / "s")) {
            CHECK(line["prompt"].get<std::string>().ends_with(":<think>"));
            const std::string text = line["completion"];
            for (const std::string stop : {"</think>", "no"}) {
                const auto at = text.find(stop);
                if (at == text.npos) continue;
                CHECK(at + stop.size() == text.size());  // nothing follows it
                CHECK(line["stopped"] == true);
                CHECK(!line.contains("eos"));  // who learns from it learns to end there
                ++ended;
            }
        }
    }
    CHECK(ended > 500);
    const auto answer =
        shell(f, kBin + "infer --model " + (f / "run") + " --temperature 0 --raw --prompt '1,2,3=6:<think>'");
    CHECK((answer.out.ends_with("</think>\n") || answer.out.ends_with("no\n")));
    // A model made of that one, by examples, keeps both.
    write_file(f / "sft.jsonl", R"({"prompt":"1,2,3=6:<think>","completion":"1+2=3 </think>"})"
                                "\n");
    REQUIRE(shell(f, kBin + "train_sft --steps 1 --batch-tokens 10 --model " + (f / "run") + " --data " +
                       (f / "sft.jsonl") + " --out " + (f / "tuned"))
                .status == 0);
    for (const char* file : {"prompt_template.txt", "generation_config.json"})
        CHECK(read_file((f / "tuned/") + file) == read_file((f / "run/") + file));
}

TEST_CASE("a run that cannot learn names the part that is missing") {
    const Problem tags{"Q", Countdown{{1, 2}, 3}}, boxed{"Q", Countdown{{1, 2}, 3}, AnswerIn::Boxed};
    auto why = [](const Problem& problem, std::vector<Response> responses) {
        for (Response& r : responses) r.problem = &problem;
        return why_nothing_is_learnt(responses, 64);
    };
    const std::string good = "<think>a</think><answer>1</answer>";
    CHECK(
        has(why(tags, {response(good, true, 1, 1), response(good, true, 1, 1)}), "every response is right"));
    CHECK(has(
        why(tags, {response(good + " User: 2+2?", false, 0, 0), response(good + "x", true, 0, 0)}),
        "2 of 2 responses state an answer and then talk on: end them there with --stop-text \"</answer>\""));
    CHECK(has(why(tags, {response("<think>a", false, 0, 0), response("<think>b", false, 0, 0)}),
              "2 of 2 responses are cut off at --max-new-tokens 64 before they answer"));
    CHECK(has(why(tags, {response("7", true, 0, 0), response("8", true, 0, 0)}),
              "2 of 2 responses do not keep the format (most often: <think> is missing)"));
    CHECK(has(why(tags, {response(good, true, 0, 1), response(good, true, 0, 1)}),
              "no response is right (most often: gives 7)"));
    CHECK(has(why(tags, {response(good, true, 1, 1), response(good, true, 0, 1)}),
              "does not tell the responses to a question apart"));
    CHECK(has(why(boxed, {response("so $\\boxed{3}$.", true, 1, 1)}), "every response is right"));
    CHECK(
        has(why(boxed, {response("\\boxed{4} Next: 2+2", false, 0, 1)}), "talk on: the model does not stop"));

    const TemporaryFolder f;
    const auto r = shell(f, kBin + kGrpo + "--max-new-tokens 3 --steps 5 --out " + (f / "run"));
    CHECK(r.status == 0);
    CHECK(
        has(r.out,
            "nothing is learnt: for 3 steps the responses of each group had equal rewards; 8 of 8 responses "
            "are cut off at --max-new-tokens 3"));
    CHECK(r.out.find("nothing is learnt") == r.out.rfind("nothing is learnt"));  // once, not at every step
    CHECK(has(r.out, "   100.0%  "));                                            // groups without spread
}
