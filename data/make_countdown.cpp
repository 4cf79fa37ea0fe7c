// Writes the tiny world's files: problems, tokenizer, pretraining corpus.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/countdown.h"
#include "data/tokenizer_file.h"
#include "src/run/flags.h"
#include "src/run/whole_file.h"

using namespace r1;
using nlohmann::ordered_json;

namespace {

void write_problems(const std::filesystem::path& folder) {
    auto tasks = countdown::all_tasks();
    std::mt19937_64 random(1);
    auto shuffle = [&](auto& values) {
        for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random() % i]);
    };
    shuffle(tasks);
    WholeFile train(folder / "train.jsonl"), test(folder / "test.jsonl");
    int counts[2] = {};
    for (auto& task : tasks) {
        shuffle(task.numbers);
        const bool held_out = countdown::held_out(task);
        (held_out ? test : train) << ordered_json{{"nums", task.numbers}, {"target", task.target}}.dump()
                                  << "\n";
        ++counts[held_out];
    }
    train.done(), test.done();
    std::printf("%d training problems, %d held out\n", counts[0], counts[1]);
}

/// One token a number, operator, word or tag; words carry their spaces.
void write_tokenizer(const std::filesystem::path& folder) {
    // Up to two digits; a word with the blanks around it; or one other character.
    TokenizerFile file{.tokens = {}, .merges = {}, .pattern = "\\d{1,2}| ?[a-z]+ ?|[^\\da-z]"};
    auto add = [&](const std::string& token) {
        if (std::ranges::find(file.tokens, token) == file.tokens.end()) file.tokens.push_back(token);
    };
    auto merge = [&](const std::string& a, const std::string& b) {
        file.merges.emplace_back(a, b);
        add(a + b);
    };
    for (char c = '0'; c <= '9'; ++c) add({c});
    for (int tens = 1; tens <= 9; ++tens)
        for (int ones = 0; ones <= 9; ++ones) merge(std::to_string(tens), std::to_string(ones));
    for (const char* symbol : {"+", "-", "*", "/", "=", ",", ":", "(", ")"}) add(symbol);
    for (const char* letter : {"a", "c", "e", "h", "i", "k", "n", "o", "s", "t", "w", "y"}) add(letter);
    add(" ");
    merge("n", "o"), merge(" ", "no"), merge(" no", " ");                      // " no "
    merge("y", "e"), merge("ye", "s"), merge(" ", "yes"), merge(" yes", " ");  // " yes "
    merge("c", "h"), merge("ch", "e"), merge("che", "c"), merge("chec", "k"),
        merge("check", " ");                                                   // "check "
    merge("w", "a"), merge("wa", "i"), merge("wai", "t"), merge("wait", " ");  // "wait "
    file.write(folder / "tokenizer.json");
    WholeFile shape(folder / "prompt_template.txt");
    shape << "{numbers}={target}:\n";
    shape.done();
    std::printf("%zu tokens\n", file.size());
}

void write_corpus(const std::filesystem::path& file, std::int64_t documents, std::uint64_t seed) {
    std::vector<countdown::Task> tasks;
    for (const auto& task : countdown::all_tasks())
        if (!countdown::held_out(task)) tasks.push_back(task);
    countdown::Corpus corpus(tasks, seed);
    WholeFile out(file);
    struct Row {
        std::int64_t documents = 0, characters = 0, right = 0;
    };
    Row rows[countdown::kKinds];
    for (std::int64_t i = 0; i < documents; ++i) {
        const auto d = corpus.next();
        ordered_json line = {{"prompt", d.prompt}, {"completion", d.completion}};
        if (!d.eos) line["eos"] = false;
        out << line.dump() << "\n";
        Row& row = rows[static_cast<int>(d.kind)];
        ++row.documents, row.characters += static_cast<std::int64_t>(d.completion.size()),
            row.right += d.right;
    }
    out.done();
    std::printf("%-22s %9s  %6s  %10s  %6s\n", "kind", "documents", "share", "characters", "right");
    for (int k = 0; k < countdown::kKinds; ++k) {
        const double n = static_cast<double>(std::max<std::int64_t>(1, rows[k].documents));
        std::printf("%-22s %9lld  %5.1f%%  %10.1f  %5.1f%%\n", name_of(static_cast<countdown::Kind>(k)),
                    static_cast<long long>(rows[k].documents),
                    100.0 * static_cast<double>(rows[k].documents) / static_cast<double>(documents),
                    static_cast<double>(rows[k].characters) / n,
                    100 * static_cast<double>(rows[k].right) / n);
    }
}

}  // namespace

int main(int argc, char** argv) {
    std::string problems, tokenizer, corpus;
    std::int64_t documents = 100000;
    std::uint64_t seed = 1;
    CLI::App app{"The tiny world: countdown problems, a tokenizer for them, and a corpus to pretrain on",
                 "make_countdown"};
    app.option_defaults()->always_capture_default();
    app.add_option("--problems", problems, "write train.jsonl and test.jsonl into this folder");
    app.add_option("--tokenizer", tokenizer, "write tokenizer.json and prompt_template.txt into this folder");
    app.add_option("--corpus", corpus, "write a corpus to this file; held-out problems never occur in it");
    app.add_option("--documents", documents, "of the corpus")->check(CLI::PositiveNumber);
    app.add_option("--seed", seed, "of the corpus");
    return run_main(app, argc, argv, [&] {
        if (problems.empty() && tokenizer.empty() && corpus.empty()) fail("nothing to do; see --help");
        if (!problems.empty()) write_problems(problems);
        if (!tokenizer.empty()) write_tokenizer(tokenizer);
        if (!corpus.empty()) write_corpus(corpus, documents, seed);
        return 0;
    });
}
