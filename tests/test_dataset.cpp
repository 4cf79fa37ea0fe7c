// Reading problems and examples: what is understood, and that what is not is named with file and line.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "data/dataset.h"
#include "src/error.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;
namespace fs = std::filesystem;

namespace {
struct File {
    fs::path path = fs::temp_directory_path() / ("r1_dataset_" + std::to_string(getpid()) + ".jsonl");
    explicit File(const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
    ~File() { fs::remove(path); }
};
}  // namespace

TEST_CASE("problems of every kind are read, and put into the template") {
    const File f(R"({"nums":[2,12,6],"target":70})"
                 "\n\n"
                 R"({"question":"How many?","answer":"2 * 36 = 72\n#### 72"})"
                 "\r\n"
                 R"({"problem":"Half of 1.5?","answer":"3/4"})"
                 "\n"
                 R"({"question":"Which?","choices":["red","blue"],"answer":"B"})"
                 "\n"
                 R"({"question":"Which?","choices":["red","blue"],"answer":0})");
    const auto p = load_problems(f.path, "Q: {question} A:");
    REQUIRE(p.size() == 5);
    CHECK(p[0].prompt.find("2, 12, 6") != std::string::npos);
    CHECK(p[0].prompt.find("equals 70") != std::string::npos);
    CHECK(std::get<Countdown>(p[0].gold).target == 70);
    CHECK(p[1].prompt == "Q: How many? A:");
    CHECK(std::get<NumberGold>(p[1].gold).value == Rational{72, 1});
    CHECK(std::get<NumberGold>(p[2].gold).value == Rational{3, 4});
    CHECK(p[3].prompt == "Q: Which?\nA) red\nB) blue A:");
    CHECK(check_answer("b", p[3].gold).value == 1);
    CHECK(check_answer("A", p[4].gold).value == 1);
    const File tiny(R"({"nums":[2,12,6],"target":70})");
    CHECK(load_problems(tiny.path, "{numbers}={target}:")[0].prompt == "2,12,6=70:");
}

TEST_CASE("a question that holds a placeholder is not filled in twice") {
    const File f(R"({"question":"What is {question} or {target}?","answer":"1"})");
    CHECK(load_problems(f.path, "{question}")[0].prompt == "What is {question} or {target}?");
}

TEST_CASE("errors name file and line") {
    auto message = [](const std::string& text,
                      const std::string& prompt_template = "{question}") -> std::string {
        const File f(text);
        try {
            load_problems(f.path, prompt_template);
        } catch (const Error& e) {
            return e.what();
        }
        return "no error";
    };
    const std::string good = R"({"question":"q","answer":"1"})"
                             "\n";
    auto line2 = [&](const std::string& bad, const std::string& part) {
        const std::string m = message(good + bad);
        CHECK_MESSAGE(m.find(".jsonl:2: ") != m.npos, m);
        CHECK_MESSAGE(m.find(part) != m.npos, m);
    };
    line2("{\"question\":", "JSON");
    line2("[1]", "");
    line2(R"({"question":"q"})", "answer");
    line2(R"({"question":"q","answer":"many"})", "many");
    line2(R"({"question":"q","answer":["1"]})", "answer");
    line2(R"({"nums":"2,3","target":5})", "");
    line2(R"({"nums":[],"target":5})", "nums");
    line2(R"({"nums":[1,2]})", "target");
    line2(R"({"question":"q","choices":["a","b"],"answer":"C"})", "C");
    line2(R"({"question":"q","choices":["a","b"],"answer":7})", "2 choices");
    CHECK(message("\n\n").find("no problems") != std::string::npos);
    CHECK(message(good, "no hole").find("{question}") != std::string::npos);
    CHECK_THROWS_WITH_AS(load_problems("/nowhere/x.jsonl", "{question}"),
                         doctest::Contains("/nowhere/x.jsonl"), Error);
}

TEST_CASE("the prompt template: the file given, the model's own, the built-in one") {
    const auto folder = fs::temp_directory_path() / ("r1_template_" + std::to_string(getpid()));
    fs::create_directories(folder);
    const std::string built_in = load_prompt_template(folder, "");
    for (const char* part : {"{question}", "<think>", "</think>", "<answer>", "</answer>"})
        CHECK(built_in.find(part) != std::string::npos);
    std::ofstream(folder / "prompt_template.txt") << "{numbers}={target}:\n";
    CHECK(load_prompt_template(folder, "") == "{numbers}={target}:");
    std::ofstream(folder / "other.txt") << "x {question}";
    CHECK(load_prompt_template(folder, (folder / "other.txt").string()) == "x {question}");
    CHECK_THROWS_AS(load_prompt_template(folder, (folder / "none.txt").string()), Error);
    CHECK(fill_question("a {question} b", "Q") == "a Q b");
    CHECK(fill_question("{numbers}", "Q") == "Q");
    fs::remove_all(folder);
}

TEST_CASE("SFT examples stream, resume where they were, and errors name the line even after a resume") {
    const File f(
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n\n{\"prompt\":\"c\",\"completion\":\"d\",\"eos\":false}\n{"
        "\"prompt\":\"e\",\"completion\":\"f\"}");
    SftReader reader(f.path);
    CHECK(reader.next()->prompt == "a");
    const auto here = reader.position();
    const auto second = reader.next();
    CHECK(second->completion == "d");
    CHECK(!second->eos);
    CHECK(reader.next()->completion == "f");
    CHECK(!reader.next());
    reader.seek(here);
    CHECK(reader.next()->completion == "d");
    reader.rewind();
    CHECK(reader.next()->prompt == "a");
    const File broken("{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a\"}\n");
    SftReader again(broken.path);
    again.next();
    const auto position = again.position();
    CHECK_THROWS_WITH_AS(again.next(), doctest::Contains(".jsonl:2: "), Error);
    again.seek(position);
    CHECK_THROWS_WITH_AS(again.next(), doctest::Contains(".jsonl:2: "), Error);
}

TEST_CASE("every gold answer of GSM8K is read") {
    const auto root = fixtures();
    if (!root) return;
    CHECK(load_problems(*root / "datasets/gsm8k/train.jsonl", "{question}").size() == 7473);
    CHECK(load_problems(*root / "datasets/gsm8k/test.jsonl", "{question}").size() == 1319);
}
