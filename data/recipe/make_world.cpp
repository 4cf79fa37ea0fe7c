// Writes the files of the recipe's world: problems, tokenizer, corpus, general samples.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/recipe/world.h"
#include "data/tokenizer_file.h"
#include "src/run/flags.h"
#include "src/run/whole_file.h"

using namespace r1;
using namespace r1::recipe;

namespace {

/// train.jsonl: the kinds that can be reasoned about, a third each; train_all.jsonl: general questions too;
/// test.jsonl: questions of every kind that occur in no training.
void write_problems(const std::filesystem::path& folder, World& world) {
    WholeFile reasoning(folder / "train.jsonl"), all(folder / "train_all.jsonl"), test(folder / "test.jsonl");
    for (int k = 0; k < kKinds; ++k) {
        const Kind kind = static_cast<Kind>(k);
        const auto train = world.questions(kind, kind == Kind::Countdown ? 3000 : 1000, false),
                   held = world.questions(kind, 200, true);
        for (const Question& q : train) {
            if (kind != Kind::General) reasoning << q.json() << "\n";
            all << q.json() << "\n";
            // There are few general questions: they are asked more often.
            for (int again = kind == Kind::General ? 4 : 0; again > 0; --again) all << q.json() << "\n";
        }
        for (const Question& q : held) test << q.json() << "\n";
        std::printf("%-10s  %4zu for training, %3zu held out\n", name_of(kind), train.size(), held.size());
    }
    for (WholeFile* file : {&reasoning, &all, &test}) file->done();
}

/// One token a number, sign, word or tag; words carry their blanks.
void write_tokenizer(const std::filesystem::path& folder) {
    TokenizerFile file{.tokens = {}, .merges = {}, .pattern = "\\d{1,2}| ?\\p{L}+ ?|[^\\d\\p{L}]"};
    for (int i = 0; i <= 99; ++i) file.tokens.push_back(std::to_string(i));
    for (const char* sign : {"+", "-", "*", "/", "=", ",", ":", "(", ")", " ", "\n"})
        file.tokens.push_back(sign);
    for (const auto& word : words()) file.tokens.push_back(word);
    file.write(folder / "tokenizer.json");
    WholeFile shape(folder / "prompt_template.txt");
    shape << "{question}:\n";
    shape.done();
    std::printf("%zu tokens\n", file.size());
}

void write(std::ostream& out, const World::Document& d) {
    nlohmann::ordered_json line = {{"prompt", d.prompt}, {"completion", d.completion}};
    if (!d.eos) line["eos"] = false;
    out << line.dump() << "\n";
}

void write_corpus(const std::filesystem::path& file, std::int64_t documents, World& world) {
    WholeFile out(file);
    double count[kDocumentKinds] = {}, characters[kDocumentKinds] = {}, right[kDocumentKinds] = {};
    for (std::int64_t i = 0; i < documents; ++i) {
        const auto d = world.document();
        write(out, d);
        ++count[d.kind], characters[d.kind] += static_cast<double>(d.completion.size()),
            right[d.kind] += d.right;
    }
    out.done();
    std::printf("%-26s %9s  %10s  %6s\n", "document", "share", "characters", "right");
    for (int k = 0; k < kDocumentKinds; ++k)
        std::printf("%-26s %8.1f%%  %10.1f  %5.1f%%\n", document_name(k),
                    100 * count[k] / static_cast<double>(documents), characters[k] / std::max(1.0, count[k]),
                    100 * right[k] / std::max(1.0, count[k]));
}

}  // namespace

int main(int argc, char** argv) {
    std::string problems, tokenizer, corpus, general;
    std::int64_t documents = 100000, samples = 1000;
    std::uint64_t seed = 1;
    CLI::App app{"The recipe's world: problems of four kinds, a tokenizer, and a corpus in two languages",
                 "make_world"};
    app.option_defaults()->always_capture_default();
    app.add_option("--problems", problems,
                   "write train.jsonl, train_all.jsonl and test.jsonl into this folder");
    app.add_option("--tokenizer", tokenizer, "write tokenizer.json and prompt_template.txt into this folder");
    app.add_option("--corpus", corpus, "write a corpus to this file; held-out problems never occur in it");
    app.add_option("--documents", documents, "of the corpus")->check(kPositive);
    app.add_option("--general", general,
                   "write general questions with good answers to this file, for train_sft");
    app.add_option("--samples", samples, "of those")->check(kPositive);
    app.add_option("--seed", seed, "of problems, corpus and samples");
    return run_main(app, argc, argv, [&] {
        if (problems.empty() && tokenizer.empty() && corpus.empty() && general.empty())
            fail("nothing to do; see --help");
        World world(seed);
        if (!tokenizer.empty()) write_tokenizer(tokenizer);
        if (!problems.empty()) write_problems(problems, world);
        if (!corpus.empty()) write_corpus(corpus, documents, world);
        if (!general.empty()) {
            WholeFile out(general);
            for (std::int64_t i = 0; i < samples; ++i) write(out, world.general_sample());
            out.done();
        }
        return 0;
    });
}
