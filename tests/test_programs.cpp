// The programs themselves, run as a user runs them: same seed same bits, exact resumption, one sentence for
// bad input.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "src/run/comm.h"
#include "tests/programs.h"

using namespace r1::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {


/// Lines of a log about steps and evaluations, without their timings.
std::vector<json> log_of(const fs::path& run_folder) {
    std::vector<json> lines;
    std::ifstream in(run_folder / "log.jsonl");
    for (std::string line; std::getline(in, line);) {
        json parsed = json::parse(line);
        if (parsed.contains("run") || parsed.contains("resumed")) continue;
        lines.push_back(std::move(parsed));
        for (const char* key : {"seconds", "memory", "tokens_per_second"}) lines.back().erase(key);
    }
    return lines;
}

/// A small data set: the first `count` held-out problems.
std::string problems(const TemporaryFolder& folder, int count) {
    std::ifstream in(kTest);
    std::ofstream out(folder / "problems.jsonl");
    std::string line;
    for (int i = 0; i < count && std::getline(in, line); ++i) out << line << "\n";
    return folder / "problems.jsonl";
}

const std::string kSmall = "train_grpo --model " + kBase + " --train " + kTrain +
                           " --prompts 3 --group 4 --max-new-tokens 48 --lr 1e-3 --keep 1 ";

}  // namespace

TEST_CASE(
    "twenty GRPO steps: same seed, same log and weights, with one thread and with two; another seed "
    "differs") {
    const TemporaryFolder f;
    const std::string eval = " --eval " + problems(f, 10);
    REQUIRE(run(f, kSmall + eval + " --steps 20 --threads 1 --out " + (f / "a")).status == 0);
    REQUIRE(run(f, kSmall + eval + " --steps 20 --threads 2 --out " + (f / "b")).status == 0);
    REQUIRE(run(f, kSmall + eval + " --steps 20 --threads 2 --out " + (f / "c")).status == 0);
    REQUIRE(run(f, kSmall + eval + " --steps 20 --seed 2 --out " + (f / "d")).status == 0);
    const auto log = log_of(f / "a");
    REQUIRE(log.size() == 22);  // 20 steps, an evaluation before and one after
    CHECK(log == log_of(f / "b"));
    CHECK(log == log_of(f / "c"));
    CHECK(log != log_of(f / "d"));
    CHECK(read_file(f / "a/model.safetensors") == read_file(f / "b/model.safetensors"));
    CHECK(read_file(f / "b/model.safetensors") == read_file(f / "c/model.safetensors"));
    CHECK(read_file(f / "a/samples.jsonl") == read_file(f / "b/samples.jsonl"));
    for (const auto& line : log) {
        if (line.contains("eval")) {
            for (const char* key : {"step", "accuracy", "format", "length", "n"})
                CHECK(line["eval"].contains(key));
        } else {
            CHECK(line["logp_gap_max"].get<double>() < 1e-5);
            for (const char* key : {"step", "reward", "accuracy", "format", "length"})
                CHECK(line.contains(key));
        }
    }
}

TEST_CASE(
    "a run that was stopped goes on exactly: by --steps, and by SIGTERM; with reference, inner epochs and "
    "mini-batches") {
    const TemporaryFolder f;
    const std::string flags =
        kSmall + "--beta 0.05 --reference-refresh 3 --inner-epochs 2 --mini-batches 3 --threads 1 ";
    REQUIRE(run(f, flags + "--steps 8 --out " + (f / "whole")).status == 0);
    REQUIRE(run(f, flags + "--steps 4 --out " + (f / "parts")).status == 0);
    REQUIRE(run(f, flags + "--steps 8 --resume --out " + (f / "parts")).status == 0);
    CHECK(log_of(f / "whole") == log_of(f / "parts"));
    CHECK(read_file(f / "whole/model.safetensors") == read_file(f / "parts/model.safetensors"));
    double kl = 0, clipped = 0;  // the parts that a single update does not have
    for (const auto& line : log_of(f / "whole"))
        kl += line["kl"].get<double>(),
            clipped += line["clipped_low"].get<double>() + line["clipped_high"].get<double>();
    CHECK(kl > 0);
    CHECK(clipped > 0);

    const pid_t child = fork();
    if (child == 0) {
        const std::string command = "exec " + kBin + flags + "--steps 8 --save-every 100 --out " +
                                    (f / "killed") + " >/dev/null 2>&1";
        execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
        _exit(127);
    }
    for (int i = 0;
         i < 6000 && (!fs::exists(f / "killed/log.jsonl") || read_file(f / "killed/log.jsonl").empty()); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    kill(child, SIGTERM);
    int code = 0;
    waitpid(child, &code, 0);
    const bool finished = WIFEXITED(code) && WEXITSTATUS(code) == 0;  // it was faster than the signal
    CHECK((finished || (WIFEXITED(code) && WEXITSTATUS(code) == 130)));
    const std::string partial = f / "killed/checkpoint-3.safetensors.partial";  // that a kill might leave
    r1::write_file(partial, "");
    if (!finished) REQUIRE(run(f, flags + "--steps 8 --resume --out " + (f / "killed")).status == 0);
    CHECK(fs::exists(partial) == finished);
    CHECK(log_of(f / "whole") == log_of(f / "killed"));
    CHECK(read_file(f / "whole/model.safetensors") == read_file(f / "killed/model.safetensors"));
}

TEST_CASE("every preset, and what it sets, trains and resumes exactly; so do states in bfloat16") {
    const TemporaryFolder f;
    int number = 0;
    for (const std::string flags :
         {"--preset r1-zero --mini-batches 3", "--preset grpo", "--preset dapo --overlong-cache 30",
          "--preset dr-grpo --advantage-scale batch", "--preset gspo --mini-batches 3",
          "--overlong mask --entropy-bonus 0.01 --importance-cap 2", "--state-dtype bfloat16",
          "--reward accuracy=1,language=0.1,repetition=-0.1,length=0.002 --exact"}) {
        CAPTURE(flags);
        const std::string whole = f / ("whole" + std::to_string(number)),
                          parts = f / ("parts" + std::to_string(number));
        ++number;
        const auto first = run(f, kSmall + flags + " --steps 4 --out " + whole);
        REQUIRE_MESSAGE(first.status == 0, first.err);
        REQUIRE(run(f, kSmall + flags + " --steps 2 --out " + parts).status == 0);
        REQUIRE(run(f, kSmall + flags + " --steps 4 --resume --out " + parts).status == 0);
        CHECK(log_of(whole) == log_of(parts));
        CHECK(read_file(whole + "/model.safetensors") == read_file(parts + "/model.safetensors"));
        for (const auto& line : log_of(whole)) {
            CHECK(line["grad_norm"].get<double>() < 100);
            if (flags.find("--state-dtype") == std::string::npos)
                CHECK(line["logp_gap_max"].get<double>() == 0);
            if (flags.find("dapo") != std::string::npos) CHECK(line["groups_sampled"].get<double>() >= 3);
        }
    }
}

TEST_CASE("the plain loops sample and reward as the fast CPU backend does") {
    const TemporaryFolder f;
    for (const std::string device : {"cpu", "reference"})
        REQUIRE(run(f, kSmall + " --steps 3 --show-every 1 --device " + device + " --out " +
                           (f / device))
                    .status == 0);
    CHECK(read_file(f / "cpu/samples.jsonl") == read_file(f / "reference/samples.jsonl"));
    const auto cpu = log_of(f / "cpu"), reference = log_of(f / "reference");
    REQUIRE(cpu.size() == 3);
    for (std::size_t i = 0; i < 3; ++i)
        for (const char* key : {"reward", "accuracy", "format", "length", "length_max"})
            CHECK(cpu[i][key] == reference[i][key]);
}

TEST_CASE("--explain prints one step; a collapsed entropy ends a run and keeps its checkpoint") {
    const TemporaryFolder f;
    const auto explained = run(f, kSmall + "--explain --out " + (f / "none"));
    CHECK(explained.status == 0);
    for (const char* part : {"advantage = (reward - mean)", "ratio = exp(new - old)", "coefficient"})
        CHECK(explained.out.find(part) != std::string::npos);
    CHECK(!fs::exists(f / "none"));
    const auto collapsed =
        run(f, kSmall + "--min-entropy 100 --steps 20 --save-every 5 --out " + (f / "collapsed"));
    CHECK(collapsed.status == 2);
    CHECK(collapsed.err.find("step 10: the entropy has been below 100") != std::string::npos);
    CHECK(!last_checkpoint(f / "collapsed").empty());
    CHECK(!fs::exists(f / "collapsed/model.safetensors"));
}

namespace {

/// A command that launches so many ranks; empty, and the test case skipped, where there is no MPI.
std::string launch(int ranks) {
    if (std::system("command -v mpirun >/dev/null") != 0 || !r1::Comm::available()) {
        skip("built without MPI (libopenmpi-dev, openmpi-bin)");
        return "";
    }
    return "env ASAN_OPTIONS=detect_leaks=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
           "timeout -s KILL 60 mpirun --oversubscribe -n " +
           std::to_string(ranks) + " ";
}

/// Runs train_grpo in f / out, each rank of which writes down its process id in f / its number, and, once it is at
/// work, a shell command beside it.
Result run_beside(const TemporaryFolder& f, const std::string& mpirun, const std::string& flags, const std::string& out,
                  const std::string& command) {
    const std::string wait = "while [ ! -s " + (f / (out + "/log.jsonl")) + " ]; do sleep 0.05; done; ";
    std::thread other([&] { CHECK(std::system((wait + command).c_str()) == 0); });
    const auto result = shell(f, mpirun + "sh -c 'echo $$ >" + (f / "$OMPI_COMM_WORLD_RANK") + "; exec " + kBin +
                                     flags + "--out " + (f / out) + "'");
    other.join();
    return result;
}

}  // namespace

TEST_CASE("any number of ranks samples the same tokens and trains the same weights, within rounding") {
    const TemporaryFolder f;
    if (launch(1).empty()) return;
    const std::string flags = "train_grpo --model " + kBase + " --train " + kTrain +
                              " --prompts 7 --group 4 --max-new-tokens 48 --lr 1e-3 --mini-batches 2 --loss dapo "
                              "--dynamic-sampling 2 --steps 2 --threads 1 --eval " +
                              problems(f, 9);
    REQUIRE(run(f, flags + " --out " + (f / "1")).status == 0);
    const auto one = log_of(f / "1");
    for (int ranks : {2, 3, 4}) {
        CAPTURE(ranks);
        const std::string out = f / std::to_string(ranks);
        REQUIRE(run(f, flags + " --out " + out, launch(ranks)).status == 0);
        const auto many = log_of(out);
        REQUIRE(many.size() == one.size());
        for (std::size_t i = 0; i < one.size(); ++i)
            for (const auto& [key, value] : one[i].items()) {
                CAPTURE(key);
                if (value.is_number())
                    CHECK(many[i][key].get<double>() ==
                          doctest::Approx(value.get<double>()).epsilon(1e-4));
                else
                    CHECK(many[i][key]["length"] == value["length"]);
            }
    }
}

TEST_CASE("--exact: what samples is what trains, and any number of ranks trains the same weights, to the last bit") {
    for (const std::string device : {"cpu --steps 3 --max-new-tokens 32", "cuda-on-cpu --dtype bfloat16 --steps 1 --max-new-tokens 10"}) {
        CAPTURE(device);
        const TemporaryFolder f;
        const std::string flags = "train_grpo --exact --model " + kBase + " --train " + kTrain +
                                  " --prompts 5 --group 4 --lr 1e-3 --mini-batches 2 --inner-epochs 2 --beta 0.04 --importance-cap 2 "
                                  "--threads 1 --token-budget 400 --device " + device + " ";
        REQUIRE(run(f, flags + "--out " + (f / "1")).status == 0);
        for (const auto& line : log_of(f / "1")) CHECK(line["logp_gap_max"].get<double>() == 0);
        if (launch(1).empty()) continue;
        for (const std::string ranks : {"2", "3"}) {
            REQUIRE(run(f, flags + "--out " + (f / ranks), launch(std::stoi(ranks))).status == 0);
            CHECK(read_file(f / ("1/model.safetensors")) == read_file(f / (ranks + "/model.safetensors")));
        }
    }
}

TEST_CASE("ranks that have come apart end the run") {
    const TemporaryFolder f;
    if (launch(1).empty()) return;
    const std::string flags = " --train " + kTrain + " --prompts 4 --group 4 --max-new-tokens 32 --lr 1e-2 --threads 1 ";
    REQUIRE(run(f, "train_grpo --model " + kBase + flags + "--steps 2 --out " + (f / "other")).status == 0);
    const std::string model = "$([ $OMPI_COMM_WORLD_RANK = 1 ] && echo " + (f / "other") + " || echo " + kBase + ")";
    const auto r = shell(f, launch(2) + "sh -c 'exec " + kBin + "train_grpo --model " + model + flags +
                                "--steps 2 --out " + (f / "out") + "'");
    CHECK(r.status == 2);
    CHECK(has(r.out, "step 1: the ranks' weights differ"));
}

TEST_CASE("a run goes on with another number of ranks, and so does train_sft") {
    const TemporaryFolder f;
    if (launch(1).empty()) return;
    std::ofstream(f / "data.jsonl") << R"({"prompt": "2,12,6=70:", "completion": "12*6-2"})" "\n"
                                       R"({"prompt": "1,2,3=6:", "completion": "1+2+3"})" "\n"
                                       R"({"prompt": "1,2,4=7:", "completion": "1+2+4"})" "\n";
    const std::string common = " --model " + kBase + " --lr 1e-3 --schedule constant --threads 1 --save-every 2 ";
    for (const std::string& program :
         {"train_grpo" + common + "--train " + kTrain + " --prompts 4 --group 2 --max-new-tokens 16 ",
          "train_sft" + common + "--data " + (f / "data.jsonl") + " --batch-tokens 30 "}) {
        const std::string one = f / (program.substr(0, 9) + "_1"), many = f / (program.substr(0, 9) + "_n");
        REQUIRE(run(f, program + "--steps 4 --out " + one).status == 0);
        REQUIRE(run(f, program + "--steps 2 --keep 1 --out " + many, launch(2)).status == 0);
        fs::remove(many + "/model.safetensors");
        const auto more = run(f, program + "--steps 4 --resume --out " + many, launch(3));
        REQUIRE(more.status == 0);
        CHECK(has(more.out, "note: the number of ranks is 3, and was 2 when the run began"));
        const auto expected = log_of(one), log = log_of(many);
        REQUIRE(log.size() == expected.size());
        CHECK(log.back()["loss"].get<double>() ==
              doctest::Approx(expected.back()["loss"].get<double>()).epsilon(1e-4));
        CHECK(log.back()["grad_norm"].get<double>() ==
              doctest::Approx(expected.back()["grad_norm"].get<double>()).epsilon(1e-4));
    }
}

TEST_CASE("evaluations and samples are the same bytes on any number of ranks, also when another goes on") {
    const TemporaryFolder f;
    if (launch(1).empty()) return;
    const std::string infer = "infer --model " + kBase + " --samples 2 --slots 8 --threads 1 ",
                      eval = infer + "--eval " + problems(f, 25), sample = infer + "--sample " + problems(f, 25);
    REQUIRE(run(f, eval + " --out " + (f / "eval_1")).status == 0);
    REQUIRE(run(f, sample + " --out " + (f / "sample")).status == 0);
    const std::string samples = read_file(f / "sample");
    const auto many = run(f, eval + " --out " + (f / "eval_3"), launch(3));
    REQUIRE(many.status == 0);
    CHECK(read_file(f / "eval_3") == read_file(f / "eval_1"));
    CHECK(has(many.out, "pass@1"));
    CHECK(many.out.find("pass@1") == many.out.rfind("pass@1"));  // one rank is heard
    // Killed in the middle of a line of the tenth problem or so; two ranks go on.
    fs::remove(f / "sample");
    std::ofstream(f / "sample.partial") << samples.substr(0, samples.size() * 2 / 5);
    REQUIRE(run(f, sample + " --resume --out " + (f / "sample"), launch(2)).status == 0);
    CHECK(read_file(f / "sample") == samples);
    CHECK(run(f, infer + "--prompt 1,2,3=6:", launch(2)).status == 2);
}

TEST_CASE("GPUs add up by NCCL, where each rank has one; else through the host: to the same weights") {
    const TemporaryFolder f;
    if (launch(1).empty()) return;
    const std::string flags = "train_grpo --device cuda-on-cpu --dtype float32 --model " + kBase + " --train " +
                              kTrain + " --prompts 4 --group 2 --max-new-tokens 12 --lr 1e-3 --steps 1 --threads 1 ";
    std::vector<std::string> weights;
    for (const auto& [gpus, by] : {std::pair("4", "gradients are added up by NCCL"),
                                   std::pair("2", "through the host (ranks share a GPU)")}) {
        setenv("R1_STAND_IN_GPUS", gpus, true);
        const auto r = run(f, flags + "--out " + (f / gpus), launch(3));
        unsetenv("R1_STAND_IN_GPUS");
        REQUIRE(r.status == 0);
        CHECK(has(r.out, by));
        weights.push_back(read_file(f / (std::string(gpus) + "/model.safetensors")));
    }
    CHECK(weights[0] == weights[1]);
}

TEST_CASE("an error on one rank ends them all with its sentence, as does the death of one") {
    const TemporaryFolder f;
    const std::string mpirun = launch(4);
    if (mpirun.empty()) return;
    const std::string flags = "train_grpo --model " + kBase + " --train " + kTrain +
                              " --prompts 4 --group 2 --max-new-tokens 16 --threads 1 --steps 100000 ";
    // The one rank answers with what is no reward; the others, with good ones, would wait for it.
    const std::string program =
        "--reward program=1 --reward-program 'while read x; do if [ \"$OMPI_COMM_WORLD_RANK\" = 2 ]; then "
        "echo no; else echo 1; fi; done' ";
    const r1::Stopwatch clock;
    const auto failed = run(f, flags + program + "--out " + (f / "a"), mpirun);
    CHECK(failed.status == 2);
    CHECK(failed.err.find("answered \"no\" in line 1") != std::string::npos);
    CHECK(clock.seconds() < 30);

    // What all of them refuse, and what only the first can see: another run is going on in --out.
    CHECK(run(f, flags + "--prompts 3 --out " + (f / "b"), mpirun).status == 2);
    CHECK(!fs::exists(f / "b"));
    fs::create_directories(f / "locked");
    const auto lock = r1::lock_folder(f / "locked");
    const auto locked = run(f, flags + "--out " + (f / "locked"), mpirun);
    CHECK(locked.status == 2);
    CHECK(locked.err.find("another run is going on in it") != std::string::npos);
    CHECK(run(f, flags + "--dry-run", mpirun).status == 0);

    CHECK(run_beside(f, mpirun, flags, "c", "kill -9 $(cat " + (f / "2") + ")").status > 0);
    CHECK(clock.seconds() < 60);
}

TEST_CASE("a rank that hangs ends the run, which names it and can be resumed; one that is suspended as a whole goes on") {
    const TemporaryFolder f;
    std::string mpirun = launch(3);
    if (mpirun.empty()) return;
    mpirun.insert(0, "env R1_RANK_TIMEOUT=5 ");
    const std::string flags = "train_grpo --model " + kBase + " --train " + kTrain +
                              " --prompts 4 --group 2 --max-new-tokens 16 --threads 1 --save-every 1 ";
    for (const std::string rank : {"0", "2"}) {
        const r1::Stopwatch clock;
        const auto hung = run_beside(f, mpirun, flags + "--steps 100000 ", "hung_" + rank,
                                     "sleep 1; kill -STOP $(cat " + (f / rank) + ")");
        CHECK(hung.status > 0);
        CHECK(has(hung.out, "rank " + rank + " (host "));
        CHECK(has(hung.out, "has not been heard from for 5 s"));
        CHECK(clock.seconds() < 30);
        const auto resumed = run(f, flags + "--steps 1 --resume --out " + (f / ("hung_" + rank)));
        CHECK(resumed.status == 0);
        CHECK(has(resumed.out, "resumed at step"));
    }
    const std::string all = " $(cat " + (f / "[012]") + ")";
    CHECK(run_beside(f, mpirun, flags + "--steps 60 ", "suspended", "kill -STOP" + all + "; sleep 8; kill -CONT" + all)
              .status == 0);
    CHECK(log_of(f / "suspended").size() == 60);
    const auto wrong = run(f, flags + "--out " + (f / "wrong"), "env R1_RANK_TIMEOUT=soon " + launch(2));
    CHECK(wrong.status == 2);
    CHECK(has(wrong.err, "R1_RANK_TIMEOUT=soon: must be a number of seconds from 1 on, or inf"));
}

TEST_CASE("what does not fit is said before it is taken: memory and threads") {
    const TemporaryFolder f;
    const auto refused = [&](const std::string& command, const std::string& part, const std::string& before = "") {
        const auto r = run(f, command, before);
        INFO(command, "\n", r.out, r.err);
        CHECK(r.status == 2);
        CHECK(std::ranges::count(r.err, '\n') == 1);
        CHECK(r.err.find(part) != std::string::npos);
        CHECK(!fs::exists(f / "out"));
    };
    fs::copy(kBase, f / "long");
    auto config = json::parse(read_file(kBase + "/config.json"));
    config["max_position_embeddings"] = 1 << 24;
    r1::write_file(f / "long/config.json", config.dump());
    const std::string huge = " --max-new-tokens 100000000 --samples ";
    for (const std::string& what :
         {std::string("--chat --context 100000000"), std::string("--prompt 1"), "--eval " + kTest, "--sample " + kTest + " --out " + (f / "out")}) {
        refused("infer --model " + (f / "long") + " " + what + huge + "60 --slots 60", "the plan needs");
        refused("infer --model " + (f / "long") + " " + what + huge + "200 --slots 200", "rows, which is beyond what can be numbered");
    }
    const std::string prompt = "infer --model " + kBase + " --max-new-tokens 4 --prompt 1,2=3: ";
    CHECK(run(f, prompt).out.find("memory plan") == std::string::npos);  // the answer alone
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    // About a gigabyte of addresses for the stacks of 400 threads.
    refused(prompt + "--threads 400", "--threads 400: the system gives this process only", "ulimit -v 1000000; ");
#endif
}

TEST_CASE("a flag that would be ignored is refused, and the flag that it goes with is named") {
    const TemporaryFolder f;
    const std::string prompt = "infer --model " + kBase + " --max-new-tokens 4 --prompt 1,2=3: ",
                      grpo = "train_grpo --dry-run --model " + kBase + " --train " + kTrain + " --out " + (f / "out") + " ";
    const auto refused = [&](const std::string& command, const std::string& part) {
        const auto r = run(f, command);
        INFO(command, "\n", r.out, r.err);
        CHECK(r.status == 2);
        CHECK(std::ranges::count(r.err, '\n') == 1);
        CHECK(has(r.err, part));
    };
    for (const std::string flag : {"--out x", "--limit 3", "--skip-unreadable", "--reward accuracy=1", "--script han", "--overlong-cache 2"})
        refused(prompt + flag, flag.substr(0, flag.find(' ')) + " would be ignored: it goes with --eval or --sample");
    refused(prompt + "--context 50", "--context would be ignored: it goes with --chat");
    refused(prompt + "--reward-seconds 5", "--reward-seconds would be ignored: it goes with --reward-program");
    refused("infer --model " + kBase + " --eval " + kTest + " --keep correct", "--keep would be ignored: it goes with --sample");
    refused(prompt + "--raw --plain", "--raw");
    refused(prompt + "--raw --template boxed", "--raw");
    for (const std::string flag : {"--eval-every 5", "--eval-samples 2", "--eval-limit 4", "--eval-first off", "--keep-best"})
        refused(grpo + flag, flag.substr(0, flag.find(' ')) + " would be ignored: it goes with --eval");
    CHECK(run(f, prompt + "--context 4096 --limit 0").status == 0);  // what a run.toml says of every flag
    CHECK(run(f, grpo + "--eval-every 0 --eval-first on").status == 0);
}

TEST_CASE("numbers that a flag cannot take are refused by its name before anything is written") {
    const TemporaryFolder f;
    r1::write_file(f / "sft.jsonl", R"({"prompt":"1","completion":"2"})");
    const std::string out = " --out " + (f / "out"), grpo = "train_grpo --model " + kBase + " --train " + kTrain + out,
                      sft = "train_sft --model " + kBase + " --data " + (f / "sft.jsonl") + out,
                      infer = "infer --model " + kBase + " --sample " + kTest + out;
    const auto refused = [&](const std::string& command, const std::string& flag, const std::string& value) {
        const auto r = run(f, command + " " + flag + "=" + value);
        INFO(command, " ", flag, "=", value, "\n", r.err);
        CHECK(r.status == 2);
        CHECK(r.err.find(flag) != std::string::npos);
        CHECK(std::ranges::count(r.err, '\n') == 1);
        CHECK(std::distance(fs::directory_iterator(f.path), {}) == 3);  // sft.jsonl, stdout, stderr
    };
    int flags = 0;
    for (const std::string& command : {grpo, sft, infer}) {
        std::istringstream help(run(f, command.substr(0, command.find(' ')) + " --help").out);
        for (std::string line, flag, type; std::getline(help, line);) {
            std::istringstream words(line);
            if (!(words >> flag >> type) || !flag.starts_with("--")) continue;
            if (!type.starts_with("INT") && !type.starts_with("FLOAT") && !type.starts_with("UINT")) continue;
            ++flags;
            for (const char* value : {"nan", "inf", "-inf", "1e400", "99999999999999999999", "1x", "''"})
                refused(command, flag, value);
            if (flag != "--seed") refused(command, flag, "-1");
            if (type.starts_with("INT")) refused(command, flag, "1.5");
        }
    }
    CHECK(flags > 40);
    for (const auto& [flag, value] : std::vector<std::pair<std::string, std::string>>{
             {"--threads", "100000"}, {"--group", "1"}, {"--group", "1025"}, {"--prompts", "2000000000"},
             {"--eval-samples", "2147483647"}, {"--inner-epochs", "0"}, {"--token-budget", "2147483647"},
             {"--lr", "0"}, {"--lr", "1e300"}, {"--temperature", "1e39"}, {"--temperature", "1e-9"},
             {"--reward-seconds", "1e300"}, {"--steps", "0"}, {"--save-every", "0"}})
        refused(grpo, flag, value);
    for (const auto& [flag, value] : std::vector<std::pair<std::string, std::string>>{
             {"--samples", "2147483647"}, {"--samples", "0"}, {"--top-p", "1.01"}, {"--slots", "0"},
             {"--temperature", "-1e-9"}, {"--max-new-tokens", "0"}})
        refused(infer, flag, value);
}

TEST_CASE(
    "the update does not depend on the token budget: loss, reward and gradient norm of the first step") {
    const TemporaryFolder f;
    REQUIRE(run(f, kSmall + "--steps 1 --token-budget 100 --out " + (f / "small")).status == 0);
    REQUIRE(run(f, kSmall + "--steps 1 --token-budget 8192 --out " + (f / "large")).status == 0);
    const auto a = log_of(f / "small").at(0), b = log_of(f / "large").at(0);
    for (const char* key : {"reward", "accuracy", "format", "length", "tokens"})
        CHECK(a[key] == b[key]);
    CHECK(a["loss"].get<double>() == doctest::Approx(b["loss"].get<double>()).epsilon(1e-5));
    CHECK(a["grad_norm"].get<double>() == doctest::Approx(b["grad_norm"].get<double>()).epsilon(1e-4));
}

TEST_CASE("train_sft lowers its loss, resumes exactly, and writes a model that infer answers with") {
    const TemporaryFolder f;
    {
        std::ofstream out(f / "data.jsonl");
        for (int i = 0; i < 40; ++i)
            out << R"({"prompt":"1,2,3=)" << i % 5 + 5
                << R"(:","completion":"<think>1+2=3</think><answer>1+2+3</answer>"})"
                << "\n";
    }
    const std::string flags = "train_sft --model " + kBase + " --data " + (f / "data.jsonl") +
                              " --batch-tokens 200 --lr 3e-3 --schedule constant --warmup 2 --keep 1 ";
    REQUIRE(run(f, flags + "--steps 80 --out " + (f / "whole")).status == 0);
    REQUIRE(run(f, flags + "--steps 33 --out " + (f / "parts")).status == 0);
    REQUIRE(run(f, flags + "--steps 80 --resume --out " + (f / "parts")).status == 0);
    const auto log = log_of(f / "whole");
    CHECK(log == log_of(f / "parts"));
    CHECK(read_file(f / "whole/model.safetensors") == read_file(f / "parts/model.safetensors"));
    CHECK(log.back()["loss"].get<double>() < 0.3 * log.front()["loss"].get<double>());
    const auto answer = run(f, "infer --model " + (f / "whole") + " --prompt 1,2,3=6 --temperature 0");
    CHECK(answer.status == 0);
    CHECK(answer.out == "<think>1+2=3</think><answer>1+2+3</answer>\n");
    const auto graded = run(f, "infer --model " + (f / "whole") + " --eval " + problems(f, 15) +
                                   " --limit 7 --samples 2 --out " + (f / "graded.jsonl"));
    CHECK(graded.status == 0);
    for (const char* part : {"7 problems x 2 samples", "pass@1", "cons@2", "pass@2"})
        CHECK(graded.out.find(part) != std::string::npos);
    const std::string lines = read_file(f / "graded.jsonl");
    CHECK(std::count(lines.begin(), lines.end(), '\n') == 15);  // and a summary
    CHECK(lines.find("{\"summary\":{\"pass@1\":{\"mean\":") != lines.npos);
}

TEST_CASE("a task of one's own: the shipped example, its reward program, and problems without answers") {
    const TemporaryFolder f;
    const std::string examples = R1_SOURCE_DIR "/data/examples/",
                      flags = "train_grpo --model " + kBase + " --template " + examples +
                              "question.txt --prompts 4 --group 4 --max-new-tokens 48 --steps 2 ";
    const auto by_rules = run(f, flags + "--train " + examples + "largest.jsonl --eval " + examples +
                                     "largest_test.jsonl --out " + (f / "rules"));
    REQUIRE_MESSAGE(by_rules.status == 0, by_rules.err);
    CHECK(by_rules.out.find("330 training problems") != std::string::npos);
    CHECK(by_rules.out.find("110 unseen problems") != std::string::npos);

    std::ofstream(f / "questions.jsonl") << R"({"question":"1,2,3"})"
                                         << "\n"
                                         << R"({"question":"6,5,4"})"
                                         << "\n";
    const auto refused = run(f, flags + "--train " + (f / "questions.jsonl") + " --out " + (f / "none"));
    CHECK(refused.status == 2);
    CHECK(refused.err.find("questions.jsonl:1: there is no \"answer\"; give one, or leave accuracy out") !=
          std::string::npos);
    const std::string sample = "infer --model " + kBase + " --template " + examples +
                               "question.txt --sample " + (f / "questions.jsonl") +
                               " --max-new-tokens 8 --out " + (f / "samples.jsonl");
    CHECK(run(f, sample + " --keep correct").status == 2);
    CHECK(run(f, sample).status == 0);
    if (std::system("command -v python3 >/dev/null") != 0) {
        skip("no python3, which runs the example's reward program");
        return;
    }
    const auto by_program =
        run(f, flags + "--train " + (f / "questions.jsonl") + " --out " + (f / "program") +
                   " --reward program=1,format=0.2 --reward-program 'python3 " + examples + "reward.py'");
    REQUIRE_MESSAGE(by_program.status == 0, by_program.err);
    CHECK(log_of(f / "program").at(0)["program"].get<double>() > 0);
    REQUIRE(std::system(("cd " + f.path.string() + " && python3 " + examples + "make_largest.py").c_str()) ==
            0);
    for (const char* file : {"largest.jsonl", "largest_test.jsonl"})
        CHECK(read_file(f / file) == read_file(examples + file));
}

TEST_CASE("bad input: one clear sentence, exit status 2, nothing half-written") {
    const TemporaryFolder f;
    auto refused = [&](const std::string& command, const std::string& part) {
        const auto r = run(f, command);
        INFO(command, "\n", r.err);
        CHECK(r.status == 2);
        CHECK(r.err.find(part) != std::string::npos);
        CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
        CHECK(!fs::exists(f / "out"));
    };
    const std::string out = " --out " + (f / "out"), train = " --train " + kTrain;
    refused("train_grpo --model " + (f / "nowhere") + train + out, "nowhere");
    refused("train_grpo --model " + kBase + train + out + " --colour blue", "--colour");
    refused("train_grpo --model " + kBase + out + " --trian " + kTrain, "no flag --trian");
    refused("train_grpo --model " + kBase + train + out + " --group 1", "--group");
    refused("train_grpo --model " R1_SOURCE_DIR "/data/world" + train + out, "has no model.safetensors");
    refused("infer --model " + kBase + "/config.json --prompt 1", "a model folder holds config.json");
    refused("infer --model " + kBase + " --eval " + kTest + " --out " + f.path.string(),
            "is a folder; a file is wanted");
    fs::copy(kTest, f / "own.jsonl");
    for (const char* mode : {" --eval ", " --sample "})
        refused("infer --model " + kBase + mode + (f / "own.jsonl") + " --out " + (f / "own.jsonl"),
                "is the file that the problems are in");
    CHECK(read_file(f / "own.jsonl") == read_file(kTest));
    refused("train_grpo --model " + kBase + train + out + " --steps many",
            "--steps: \"many\" is not a whole number from 1 to 1000000000");
    refused("train_grpo --model " + kBase + train + out + " --lr -1", "--lr");
    refused("train_grpo --model " + kBase + train + out + " --prompts 2 --mini-batches 3", "--mini-batches");
    refused("train_grpo --model " + kBase + " --train " + (f / "none.jsonl") + out, "none.jsonl");
    refused("infer --model " + kBase + " --prompt", "--prompt");

    std::ofstream(f / "broken.jsonl") << R"({"nums":[1,2,3],"target":6})"
                                      << "\n"
                                      << R"({"nums":[1,2,)"
                                      << "\n";
    refused("train_grpo --model " + kBase + " --train " + (f / "broken.jsonl") + out, "broken.jsonl:2");
    std::ofstream(f / "broken_sft.jsonl") << R"({"prompt":"1","completion":"2"})"
                                          << "\n"
                                          << R"({"prompt":"1"})"
                                          << "\n";
    refused("train_sft --model " + kBase + " --data " + (f / "broken_sft.jsonl") +
                " --batch-tokens 8 --steps 5 --out " + (f / "sft"),
            "broken_sft.jsonl:2");

    fs::create_directories(f / "wrong");
    for (const char* name : {"model.safetensors", "tokenizer.json", "prompt_template.txt"})
        fs::copy_file(kBase + "/" + name, f / ("wrong/" + std::string(name)));
    auto config = json::parse(read_file(kBase + "/config.json"));
    config["intermediate_size"] = 200;
    std::ofstream(f / "wrong/config.json") << config;
    refused("train_grpo --model " + (f / "wrong") + train + out, "model.layers.0.mlp.gate_proj.weight");
    config["intermediate_size"] = "many";
    std::ofstream(f / "wrong/config.json") << config;
    refused("train_grpo --model " + (f / "wrong") + train + out, "config.json");

    std::string digits = "1";
    for (int i = 0; i < 400; ++i) digits += ",1";
    refused("infer --model " + kBase + " --raw --prompt " + digits, "context");
    const auto chat = shell(f, "(echo 1,2,3=6 | " + kBin + "infer --chat --context 4 --model " + kBase + ")");
    CHECK(chat.status == 0);
    CHECK(has(chat.out, "tokens, more than --context 4; begin anew"));
}
