#include "tests/fuzz/targets.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "src/rl/dataset.h"
#include "src/model/safetensors.h"
#include "src/model/transformer.h"
#include "tokenizer/tokenizer.h"

namespace r1::test {
namespace {

/// The input as a file that lives in memory.
struct MemoryFile {
    explicit MemoryFile(std::string_view bytes) : descriptor(memfd_create("fuzz", 0)) {
        if (descriptor < 0 ||
            ::write(descriptor, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
            std::abort();
        path = "/proc/self/fd/" + std::to_string(descriptor);
    }
    ~MemoryFile() { ::close(descriptor); }
    int descriptor;
    std::filesystem::path path;
};

void fuzz_safetensors(std::string_view input) {
    const MemoryFile file(input);
    const SafeTensors tensors(file.path);
    for (const auto& [name, view] : tensors.tensors()) {
        double sum = 0;
        tensors.read_f32(name, view.shape, [&](std::int64_t, std::span<const float> values) {
            for (float v : values) sum += v;
        });
    }
}

void fuzz_config(std::string_view input) {
    const MemoryFile file(input);
    const Config config = Config::load(file.path);
    config.rotary_frequencies();
    if (config.num_hidden_layers < 100 && ParameterLayout(config).entries.empty()) std::abort();
}

void fuzz_tokenizer(std::string_view input) {
    const MemoryFile file(input);
    const Tokenizer tokenizer = Tokenizer::load(file.path);
    for (std::string_view text : {"The answer is 42.\n\n  <think>I'm</think>", "\xc3\xa9\xe2\x82", ""}) try {
            const auto ids = tokenizer.encode(text);
            tokenizer.decode(ids);
            StreamDecoder stream(tokenizer);
            for (int id : ids) stream.push(id);
        } catch (const Error&) {  // an unk_token that is lacking
        }
}

void fuzz_jsonl(std::string_view input) {
    const MemoryFile file(input);
    for (Answers answers : {Answers::Required, Answers::Optional}) try {
            for (const Problem& p :
                 load_problems(file.path, PromptTemplate("{question} {numbers} {target}"), answers))
                check_answer("B", p.gold);
        } catch (const Error&) {
        }
    SftReader reader(file.path, 1);
    for (std::size_t i = 0; i < 2 * reader.size() && i < 1000; ++i) reader.next();
}

/// The first line is the gold answer, the rest a response.
void fuzz_answer(std::string_view input) {
    const auto line = std::min(input.find('\n'), input.size());
    const std::string_view response = input.substr(std::min(line + 1, input.size()));
    for (AnswerIn answer_in : {AnswerIn::Tags, AnswerIn::Boxed}) format_reward(response, answer_in);
    const auto gold = MathAnswer::parse(input.substr(0, line));
    if (!gold) return;
    for (AnswerIn answer_in : {AnswerIn::Tags, AnswerIn::Boxed})
        accuracy_reward(response, MathGold{*gold}, answer_in);
    check_answer(response, MathGold{*gold});
    if (!equal(*gold, *gold)) std::abort();
}

void fuzz_countdown(std::string_view input) {
    const Countdown gold{{3, 25, 4, 100}, 97};
    check_answer(input, gold);
    accuracy_reward(input, gold);
    const std::string_view wrong = "7//2";
    if (check_answer(wrong, Countdown{{7, 2}, 3}).value != 0) std::abort();
}

}  // namespace

const std::map<std::string, void (*)(std::string_view)> kFuzzTargets = {
    {"safetensors", fuzz_safetensors}, {"config", fuzz_config},
    {"tokenizer", fuzz_tokenizer},     {"jsonl", fuzz_jsonl},
    {"answer", fuzz_answer},           {"countdown", fuzz_countdown}};

}  // namespace r1::test
