// What is read and written, and by whom: hostile files, places that are no files, signals.
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "src/device/device.h"
#include "src/model/checkpoint.h"
#include "src/rl/model_folder.h"
#include "src/run/json.h"
#include "src/run/record.h"
#include "src/run/stop.h"
#include "tests/programs.h"

using namespace r1;
using namespace r1::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const std::string kStep = "train_grpo --model " + kBase +
                          " --prompts 2 --group 4 --max-new-tokens 16 --lr 1e-3 --threads 1 --steps 1 ";
const std::string kSft = "train_sft --steps 1 --batch-tokens 64 --threads 1 ";

/// A copy of the base model, to be broken.
struct BrokenModel : TemporaryFolder {
    BrokenModel() { fs::copy(kBase, path, fs::copy_options::recursive); }
    void patch(const char* file, const json& patch) const {
        auto object = json::parse(read_file(path / file));
        object.update(patch);
        write_file(path / file, object.dump());
    }
    /// Writes the weights anew, after `change` has seen them by name.
    template <class Change>
    void change_weights(Change change) const {
        std::map<std::string, std::pair<std::vector<std::int64_t>, std::vector<float>>> all;
        {
            const SafeTensors weights(path / "model.safetensors");
            for (const auto& [name, view] : weights.tensors()) {
                auto& [shape, values] = all[name];
                shape = view.shape;
                values.resize(view.bytes / (view.dtype == SafeDtype::F32 ? 4 : 2));
                weights.read_f32(name, view.shape, values);
            }
        }
        change(all);
        std::vector<SafeTensorOut> out;
        for (const auto& [name, tensor] : all) out.push_back({name, tensor.first, tensor.second});
        write_safetensors(path / "model.safetensors", out, SafeDtype::F32);
    }
    Result ask() const { return run(*this, "infer --prompt 2,12,6=70 --max-new-tokens 4 --model " + path.string()); }
};

}  // namespace

TEST_CASE("JSON: what is nested too deeply, has a key twice or is none is refused, in linear time") {
    CHECK(parse_json(R"({"a": [1, {"b": null}], "c": {"a": 2}})", "f")["c"]["a"] == 2);
    CHECK_ERROR(parse_json(R"({"a": 1, "b": {"c": 1, "c": 2}})", "f"), "f: the key \"c\" is there twice");
    CHECK_ERROR(parse_json(std::string(80'000, '['), "f"), "f: is nested deeper than 64 levels");
    CHECK_ERROR(parse_json(std::string(80'000, '[') + std::string(80'000, ']'), "f"), "deeper");
    CHECK_ERROR(parse_json("{\"a\": 1e999}", "f"), "f: not valid JSON");
    CHECK_ERROR(parse_json("", "f"), "f: not valid JSON");
    const TemporaryFolder f;
    write_file(f / "deep.jsonl", R"({"question": "q", "answer": "1", "x": )" + std::string(80'000, '[') +
                                     std::string(80'000, ']') + "}\n");
    CHECK(has(run(f, kStep + "--train " + (f / "deep.jsonl") + " --out " + (f / "out")).err,
              "deep.jsonl:1: the line: is nested deeper"));
    write_file(f / "twice.jsonl", R"({"question": "q", "answer": "1", "answer": "2"})");
    CHECK(has(run(f, kStep + "--train " + (f / "twice.jsonl") + " --out " + (f / "out")).err,
              "twice.jsonl:1: the line: the key \"answer\" is there twice"));
}

TEST_CASE("files: pipes are read where they make sense, places that are no files are neither read nor replaced") {
    const TemporaryFolder f;
    const auto piped = shell(f, "{ cat " + kTrain + " | " + kBin + kStep + "--train /dev/stdin --out " + (f / "piped") + "; }");
    CHECK(piped.status == 0);
    CHECK(recorded_run(f / "piped")["sha256"]["train"] == sha256_of(kTrain));
    REQUIRE(std::system(("mkfifo " + (f / "fifo")).c_str()) == 0);
    for (const auto& [what, says] : {std::pair<std::string, const char*>{f / "fifo", "is neither a regular file"},
                                     {"/dev/zero", "is neither a regular file"},
                                     {f / "absent", "there is no such file"},
                                     {f.path.string(), "is a folder"}}) {
        const auto refused = run(f, kStep + "--train " + what + " --out " + (f / "out"));
        CHECK(refused.status == 2);
        CHECK_MESSAGE(has(refused.err, says), refused.err);
        CHECK(!fs::exists(f / "out"));
    }
    for (const std::string& place : {std::string("/dev/null"), f / "fifo", f.path.string(), f / "fifo/x"}) {
        const auto eval = run(f, "infer --model " + kBase + " --eval " + kTest + " --out " + place);
        CHECK(eval.status == 2);
        CHECK(std::count(eval.err.begin(), eval.err.end(), '\n') == 1);
    }
    for (const std::string& place : {std::string("/dev/null"), f / "fifo", f / "fifo/x"}) {
        const auto training = run(f, kStep + "--train " + kTrain + " --out " + place + "/run");
        CHECK(training.status == 2);
        CHECK_MESSAGE(has(training.err, place), training.err);
    }
    CHECK(fs::is_character_file("/dev/null"));
    CHECK(run(f, kStep + "--train " + kTrain + " --out ''").status == 2);

    write_file(f / "real", "old");
    fs::create_symlink(f / "real", f / "link");
    write_file(f / "link", "new");
    CHECK(fs::is_symlink(f / "link"));
    CHECK(read_file(f / "real") == "new");
}

TEST_CASE("files: an output that nobody takes is an error, and no file of ours becomes it") {
    const TemporaryFolder f;
    const std::string ask = kBin + "infer --prompt 2,12,6=70 --max-new-tokens 4 --model " + kBase;
    const auto status = [](const std::string& command) { return WEXITSTATUS(std::system(command.c_str())); };
    CHECK(status(ask + " >/dev/full 2>" + (f / "err")) == 2);
    CHECK(has(read_file(f / "err"), "standard output could not be written"));
    CHECK(status(ask + " >&- 2>" + (f / "err")) == 2);
    CHECK(has(read_file(f / "err"), "standard output is closed"));
    const std::string step = kBin + kStep + "--train " + kTrain + " --out " + (f / "run");
    CHECK(status(step + " >" + (f / "out") + " 2>&- <&-") == 0);
    for (const auto& line : read_json_lines(f / "run/log.jsonl"))
        CHECK((line.contains("run") || line.contains("step")));
}

TEST_CASE("a folder belongs to one run, a file to one writer") {
    const TemporaryFolder f;
    fs::create_directory(f / "run");
    const FileDescriptor mine = lock_folder(f / "run");
    const auto second = run(f, kStep + "--train " + kTrain + " --out " + (f / "run"));
    CHECK(second.status == 2);
    CHECK(has(second.err, "another run is going on in it"));
    const AppendedFile writer(f / "graded.jsonl.partial");
    const auto eval = run(f, "infer --model " + kBase + " --eval " + kTest + " --out " + (f / "graded.jsonl"));
    CHECK(eval.status == 2);
    CHECK(has(eval.err, "another process is writing it"));
}

TEST_CASE("a damaged checkpoint gives way to the one before it, with the same end") {
    const TemporaryFolder f;
    const std::string base = kBin + "train_grpo --model " + kBase + " --train " + kTrain +
                             " --prompts 2 --group 4 --max-new-tokens 16 --lr 1e-3 --threads 1 --save-every 1";
    REQUIRE(shell(f, base + " --steps 4 --keep 2 --out " + (f / "whole")).status == 0);
    REQUIRE(shell(f, base + " --steps 3 --keep 2 --out " + (f / "run")).status == 0);
    const auto newest = last_checkpoint(f / "run");
    std::string bytes = read_file(newest);
    bytes[bytes.size() / 2] ^= 4;
    write_file(newest, bytes);
    const auto resumed = shell(f, base + " --steps 4 --resume --keep 2 --out " + (f / "run"));
    CHECK(resumed.status == 0);
    CHECK_MESSAGE(has(resumed.out, "checkpoint-3.safetensors: is damaged"), resumed.out);
    CHECK(has(resumed.out, "going on from step 2"));
    CHECK(read_file(f / "run/model.safetensors") == read_file(f / "whole/model.safetensors"));
    CHECK(read_file(f / "run/samples.jsonl") == read_file(f / "whole/samples.jsonl"));
    for (const auto& entry : fs::directory_iterator(f / "run"))
        if (has(entry.path().filename(), "checkpoint-")) fs::resize_file(entry.path(), 100);
    const auto lost = shell(f, base + " --steps 5 --resume --out " + (f / "run"));
    CHECK(lost.status == 2);
    CHECK(has(lost.out, "begin a new run in another --out"));
}

TEST_CASE("what is exported is what was loaded") {
    const TemporaryFolder f;
    const auto source = std::make_unique<BrokenModel>();
    const ModelFolder folder(source->path, "", "", {"</answer>"});
    const Device device = make_device("cpu", "float32");
    Transformer model(*device.backend, folder.config, {.trainable = false});
    model.parameters().load(source->path);
    fs::remove_all(source->path);
    folder.save(model, f / "saved", "auto");
    for (const char* file : {"model.safetensors", "tokenizer.json", "prompt_template.txt"})
        CHECK(read_file(f / "saved/" + file) == read_file(kBase + "/" + file));
    CHECK(Config::load(f / "saved").stop_texts == std::vector<std::string>{"</answer>"});
    fs::create_directory(source->path);
}

TEST_CASE("a model that is not what its folder says is refused, with the tensor or the field") {
    const auto says = [](const BrokenModel& model, const char* part) {
        const auto answer = model.ask();
        CHECK(answer.status == 2);
        CHECK_MESSAGE(has(answer.err, part), answer.err);
    };
    BrokenModel eos;
    eos.patch("config.json", {{"eos_token_id", 999}});
    says(eos, "eos_token_id 999 is beyond the vocab_size of 232");
    BrokenModel added;  // a token without a row of the embedding
    auto tokenizer = json::parse(read_file(added.path / "tokenizer.json"));
    tokenizer["added_tokens"].push_back(tokenizer["added_tokens"].back());
    tokenizer["added_tokens"].back().update({{"id", 232}, {"content", "<pad>"}});
    write_file(added.path / "tokenizer.json", tokenizer.dump());
    CHECK(has(run(added, "infer --raw --prompt '1<pad>' --model " + added.path.string()).err,
              "token id 232 is outside the model's vocabulary of 232"));
    BrokenModel nan;
    nan.change_weights([](auto& all) { all["model.norm.weight"].second[3] = std::nanf(""); });
    says(nan, "model.norm.weight holds nan");
    BrokenModel more;
    more.change_weights([](auto& all) {
        all["model.layers.0.self_attn.o_proj.bias"] = {{64}, std::vector<float>(64)};
    });
    says(more, "the tensor model.layers.0.self_attn.o_proj.bias has no place");
    BrokenModel no_bias;  // Qwen2's code has the biases whatever the configuration says
    no_bias.patch("config.json", {{"attention_bias", false}});
    BrokenModel head;
    head.change_weights([](auto& all) {
        all["lm_head.weight"] = std::move(all["model.embed_tokens.weight"]);
        all.erase("model.embed_tokens.weight");
        all["model.layers.0.self_attn.rotary_emb.inv_freq"] = {{1}, {1.0f}};
    });
    const BrokenModel whole;
    const std::string answer = whole.ask().out;
    CHECK(no_bias.ask().out == answer);
    CHECK(has(head.ask().out, "not used: model.layers.0.self_attn.rotary_emb.inv_freq"));
    CHECK(head.ask().out.ends_with(answer));

    BrokenModel torch;
    write_file(torch / "data.jsonl", R"({"prompt": "1", "completion": "2"})");
    fs::rename(torch / "model.safetensors", torch / "pytorch_model.bin");
    const std::string sft = kSft + "--data " + (torch / "data.jsonl") + " --out " + (torch / "out") + " --model ";
    const auto refused = run(torch, sft + torch.path.string());
    CHECK(refused.status == 2);
    CHECK(has(refused.err, "has no model.safetensors and no index of several files, but pytorch_model.bin"));
    CHECK(!fs::exists(torch / "out"));
    CHECK(run(torch, sft + torch.path.string() + " --from-scratch").status == 0);
    fs::remove_all(torch / "out");
    CHECK(run(torch, sft + (torch / "config.json")).status == 0);
}

namespace {
std::atomic<int> alarms_here{0}, alarms_elsewhere{0};
pthread_t computing;
void on_alarm(int) { ++(pthread_equal(pthread_self(), computing) ? alarms_here : alarms_elsewhere); }
}  // namespace

TEST_CASE("no signal interrupts what computes, however many come") {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        computing = pthread_self();
        ::signal(SIGALRM, on_alarm);
        install_stop_handler();
        const itimerval often{{0, 1000}, {0, 1000}};
        ::setitimer(ITIMER_REAL, &often, nullptr);
        std::thread other([] {
            for (int i = 0; i < 200; ++i) ::usleep(1000);
        });
        for (int i = 0; i < 1000 && alarms_elsewhere < 50; ++i) ::usleep(1000);
        other.join();
        ::_exit(alarms_here == 0 && alarms_elsewhere >= 50 && !stop_requested() ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}
