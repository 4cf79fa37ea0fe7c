// Writes the files of the tiny world: problems, tokenizer, corpus, general samples.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/world/world.h"
#include "src/run/files.h"
#include "src/run/flags.h"

using namespace r1;
using namespace r1::world;
using nlohmann::ordered_json;

namespace {

constexpr int kCountdownProblems = 3000;  ///< to train on

/// train.jsonl: the kinds that can be reasoned about; train_all.jsonl: general questions too;
/// test.jsonl: questions of every kind that occur in no training.
void write_problems(const std::filesystem::path& folder, Random& random) {
    std::string reasoning, all, test;
    for (const Kind kind : {Kind::Countdown, Kind::Arithmetic, Kind::Choice, Kind::General}) {
        const int wanted = kind == Kind::Countdown ? kCountdownProblems : 1000;
        const auto train = questions(kind, wanted, false, random);
        const auto held = questions(kind, 200, true, random);
        // There are few general questions: each is asked five times.
        const int times = kind == Kind::General ? 5 : 1;
        for (const Question& q : train) {
            if (kind != Kind::General) reasoning += q.json() + "\n";
            for (int i = 0; i < times; ++i) all += q.json() + "\n";
        }
        for (const Question& q : held) test += q.json() + "\n";
        std::printf("%-10s  %4zu for training, %3zu held out\n", kKindNames[static_cast<int>(kind)],
                    train.size(), held.size());
    }
    write_file(folder / "train.jsonl", reasoning);
    write_file(folder / "train_all.jsonl", all);
    write_file(folder / "test.jsonl", test);
}

/// countdown_train.jsonl and countdown_test.jsonl, which holds every held-out problem.
void write_countdown(const std::filesystem::path& folder, Random random, bool in_words) {
    for (const bool held_out : {false, true}) {
        const auto problems = questions(Kind::Countdown, kCountdownProblems, held_out, random);
        std::string lines;
        for (const Question& q : problems) {
            const ordered_json bare = {{"nums", q.task.numbers}, {"target", q.task.target}};
            lines += (in_words ? bare.dump() : q.json()) + "\n";
        }
        write_file(folder / (held_out ? "countdown_test.jsonl" : "countdown_train.jsonl"), lines);
        std::printf("%zu countdown problems %s\n", problems.size(),
                    held_out ? "held out" : "for training");
    }
}

/// How byte-level BPE spells bytes: visible ones as themselves, the others as the characters from
/// U+0100 on (GPT-2).
std::string spelled(const std::string& text) {
    auto visible = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b != 173); };
    std::string escaped;
    for (const unsigned char byte : text) {
        int code = visible(byte) ? byte : 256;
        for (int b = 0; b < byte && !visible(byte); ++b) code += !visible(b);
        char unit[16];
        std::snprintf(unit, sizeof unit, "\\u%04x", code);
        escaped += unit;
    }
    return ordered_json::parse("\"" + escaped + "\"");
}

/// Every piece that the pattern splits off is a token by itself, without merges.
constexpr const char* kTokenizer = R"json({
"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
  {"type": "Split", "pattern": {"Regex": "\\d{1,2}| ?\\p{L}+ ?|[^\\d\\p{L}]"},
   "behavior": "Isolated", "invert": false},
  {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
"post_processor": null,
"decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": false},
"model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
          "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
          "ignore_merges": true, "vocab": {}, "merges": []}})json";

/// tokenizer.json, whose last tag ends a sequence, and the base model's prompt template.
void write_tokenizer(const std::filesystem::path& folder) {
    ordered_json all = ordered_json::parse(kTokenizer);
    ordered_json &vocab = all["model"]["vocab"], &added = all["added_tokens"];
    for (const std::string& token : vocabulary()) vocab.emplace(spelled(token), vocab.size());
    for (const char* tag : {"<think>", "</think>", "<answer>", "</answer>", "<|endoftext|>"}) {
        ordered_json entry = {{"id", vocab.size() + added.size()}, {"content", tag}};
        for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized", "special"})
            entry[flag] = false;
        added.push_back(entry);
    }
    added.back()["special"] = true;
    write_file(folder / "tokenizer.json", all.dump(1) + "\n");
    write_file(folder / "prompt_template.txt", "{question}:\n");
    std::printf("%zu tokens\n", vocab.size() + added.size());
}

/// Examples for train_sft.
void write_documents(const std::filesystem::path& file, std::int64_t count,
                     Document (*draw)(Random&), Random& random) {
    OutputFile out(file);
    for (std::int64_t i = 0; i < count; ++i) {
        const Document d = draw(random);
        ordered_json line = {{"prompt", d.prompt}, {"completion", d.completion}};
        if (!d.eos) line["eos"] = false;
        out->write(line.dump() + "\n");
    }
    out.done();
}

// clang-format off
struct Options : Flags {
    Options() : Flags("make_world", "The tiny world: problems of four kinds, a tokenizer, a corpus in two languages") {}
    const std::string& problems = flag("--problems", "", "folder for train.jsonl, train_all.jsonl and test.jsonl, with all four kinds");
    const std::string& countdown = flag("--countdown", "", "folder for countdown_train.jsonl and countdown_test.jsonl");
    const bool& in_words = flag("--in-words", false, "countdown problems without a question, which a prompt template puts in words");
    const std::string& tokenizer = flag("--tokenizer", "", "folder for tokenizer.json and prompt_template.txt");
    const std::string& corpus = flag("--corpus", "", "file for a corpus to pretrain on, in which no held-out problem occurs");
    const std::int64_t& documents = flag("--documents", std::int64_t{100000}, "documents of the corpus", kPositive);
    const std::string& general = flag("--general", "", "file for general questions with good answers, for train_sft");
    const std::int64_t& samples = flag("--samples", std::int64_t{1000}, "number of those", kPositive);
    const std::uint64_t& seed = flag("--seed", std::uint64_t{1}, "seed of problems, corpus and samples");
};
// clang-format on

}  // namespace

int main(int argc, char** argv) {
    Options o;
    return o.main(argc, argv, [&] {
        const std::string all = o.problems + o.countdown + o.tokenizer + o.corpus + o.general;
        if (all.empty()) fail("nothing to do; see --help");
        Random random(o.seed);
        if (!o.tokenizer.empty()) write_tokenizer(o.tokenizer);
        if (!o.countdown.empty()) write_countdown(o.countdown, random, o.in_words);
        if (!o.problems.empty()) write_problems(o.problems, random);
        if (!o.corpus.empty()) write_documents(o.corpus, o.documents, document, random);
        if (!o.general.empty()) write_documents(o.general, o.samples, general_sample, random);
        return 0;
    });
}
