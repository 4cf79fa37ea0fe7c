// Reading problems and examples: what is understood, and that what is not is named with file and line.
#include <filesystem>
#include <set>

#include "data/dataset.h"
#include "src/error.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;
namespace fs = std::filesystem;

namespace {

struct File {
    TemporaryFolder folder;
    fs::path path = folder.path / "data.jsonl";
    explicit File(const std::string& text) { write_file(path, text); }
};

std::vector<Problem> load(const fs::path& file, const std::string& text = "{question}") {
    return load_problems(file, PromptTemplate(text));
}

/// The completion of a prompt and completion.
std::string completion(const SftExample& example) { return example.segments.at(1).text; }

}  // namespace

TEST_CASE("problems of every kind are read, and put into the template") {
    const File f(R"({"nums":[2,12,6],"target":70})"
                 "\n\n"
                 R"({"question":"How many?","answer":"2 * 36 = 72\n#### 72"})"
                 "\r\n"
                 R"({"problem":"Half of 1.5?","answer":"3/4"})"
                 "\n"
                 R"({"problem":"2^10?","solution":"Not \\boxed{1}, but \\boxed{2^{10}}.","level":"Level 1"})"
                 "\n"
                 R"({"problem":"How many?","answer":204})"
                 "\n"
                 R"({"question":"Which?","choices":["red","blue"],"answer":"B"})"
                 "\n"
                 R"({"question":"Which?","choices":["red","blue"],"answer":0})");
    const auto p = load(f.path, "Q: {question} A:");
    REQUIRE(p.size() == 7);
    CHECK(p[0].prompt.find("2, 12, 6") != std::string::npos);
    CHECK(p[0].prompt.find("equals 70") != std::string::npos);
    CHECK(std::get<Countdown>(p[0].gold).target == 70);
    CHECK(p[1].prompt == "Q: How many? A:");
    CHECK(check_answer("72.0", p[1].gold).value == 1);
    CHECK(check_answer("\\frac{3}{4}", p[2].gold).value == 1);
    CHECK(check_answer("1024", p[3].gold).value == 1);
    CHECK(check_answer("204", p[4].gold).value == 1);
    CHECK(check_answer("205", p[4].gold).value == 0);
    CHECK(p[5].prompt == "Q: Which?\nA) red\nB) blue A:");
    CHECK(check_answer("b", p[5].gold).value == 1);
    CHECK(check_answer("A", p[6].gold).value == 1);
    const File tiny(R"({"nums":[2,12,6],"target":70})");
    CHECK(load(tiny.path, "{numbers}={target}:")[0].prompt == "2,12,6=70:");
    const File asked(R"({"question":"Make 70 of 2, 12, 6!","nums":[2,12,6],"target":70})");
    CHECK(load(asked.path, "{question}:")[0].prompt == "Make 70 of 2, 12, 6!:");
}

TEST_CASE("a question that holds a placeholder is not filled in twice") {
    const File f(R"({"question":"What is {question} or {target}?","answer":"1"})");
    CHECK(load(f.path)[0].prompt == "What is {question} or {target}?");
}

TEST_CASE("errors name file and line") {
    auto message = [](const std::string& text,
                      const std::string& prompt_template = "{question}") -> std::string {
        const File f(text);
        try {
            load(f.path, prompt_template);
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
    line2(R"({"question":"q","answer":"\\frac{"})", "frac");
    line2(R"({"question":"q","solution":"it is 5"})", "boxed");
    line2(R"({"question":"q","answer":["1"]})", "answer");
    line2(R"({"nums":"2,3","target":5})", "");
    line2(R"({"nums":[],"target":5})", "nums");
    line2(R"({"nums":[1,2]})", "target");
    line2(R"({"nums":[1,2.5],"target":5})", "2.5");
    line2(R"({"nums":[1,2],"target":1e65})", "1e+65");
    line2(R"({"nums":[1,18446744073709551615],"target":5})", "18446744073709551615");
    line2(R"({"question":"q","choices":["a","b"],"answer":"C"})", "C");
    line2(R"({"question":"q","choices":["a","b"],"answer":7})", "2 choices");
    CHECK(message("\n\n").find("no problems") != std::string::npos);
    CHECK(message(good, "no hole").find("{question}") != std::string::npos);
    CHECK_ERROR(load("/nowhere/x.jsonl"), "/nowhere/x.jsonl");
}

TEST_CASE("the prompt template: the one asked for, the model's own, the built-in one") {
    const TemporaryFolder folder;
    auto text = [&](const std::string& choice) {
        return PromptTemplate::load(folder.path, choice, std::nullopt).text();
    };
    const std::string built_in = text("");
    for (const char* part : {"{question}", "<think>", "</think>", "<answer>", "</answer>"})
        CHECK(built_in.find(part) != std::string::npos);
    CHECK(text("r1-zero") == built_in);
    write_file(folder / "prompt_template.txt", "{numbers}={target}:\n");
    CHECK(text("") == "{numbers}={target}:");
    write_file(folder / "other.txt", "x {question}");
    CHECK(text(folder / "other.txt") == "x {question}");
    CHECK_THROWS_AS(text(folder / "none.txt"), Error);
    CHECK(PromptTemplate("a {question} b").fill("Q") == "a Q b");
    CHECK(PromptTemplate("{numbers}").fill("Q") == "Q");
    CHECK(PromptTemplate(text("r1-zero")).answer_in() == AnswerIn::Tags);
    CHECK(PromptTemplate(text("r1-chat")).answer_in() == AnswerIn::Tags);
    CHECK(PromptTemplate(text("boxed")).answer_in() == AnswerIn::Boxed);
}

TEST_CASE("a chat model gets the template as the user's message, and chats to learn from") {
    const File f(R"({"messages":[{"role":"user","content":"1+1?"},{"role":"assistant","content":"2"}]})"
                 "\n"
                 R"({"messages":[{"role":"user"}]})");
    write_file(f.folder / "tokenizer_config.json", R"({"chat_template": "<|im_start|>"})");
    const auto chat = ChatFormat::load(f.folder.path);
    REQUIRE(chat);
    const auto t = PromptTemplate::load(f.folder.path, "", chat);
    CHECK(t.text() == PromptTemplate::load(f.folder.path, "r1-chat", chat).text());
    CHECK(PromptTemplate("Q: {question}", chat).fill("1+1?") ==
          "<|im_start|>user\nQ: 1+1?<|im_end|>\n<|im_start|>assistant\n");
    SftReader reader(f.path, std::nullopt, f.folder.path);
    const SftExample example = reader.next();
    std::string all, trained;
    for (const auto& s : example.segments) all += s.text, trained += s.trained ? s.text : "";
    CHECK(trained == "2<|im_end|>");
    CHECK(all == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n");
    CHECK(!example.eos);
    CHECK_ERROR(reader.next(), ".jsonl:2: ");
    SftReader base(f.path, std::nullopt, "/nowhere");
    CHECK_ERROR(base.next(), "chat template");
}

TEST_CASE("SFT examples come in the file's order or shuffled, and go on exactly where they were") {
    std::string lines;
    for (int i = 0; i < 50; ++i)
        lines += "{\"prompt\":\"a\",\"completion\":\"" + std::to_string(i) + "\"}\n\n";
    const File f(lines);
    SftReader in_order(f.path, std::nullopt);
    CHECK(in_order.size() == 50);
    for (int i = 0; i < 120; ++i) CHECK(completion(in_order.next()) == std::to_string(i % 50));

    SftReader shuffled(f.path, 7), again(f.path, 7), other(f.path, 8);
    std::vector<std::string> a, b;
    for (int i = 0; i < 120; ++i)
        a.push_back(completion(shuffled.next())), b.push_back(completion(other.next()));
    CHECK(a != b);
    for (int epoch = 0; epoch < 2; ++epoch)  // each epoch has every example once, in another order
        CHECK(std::set(a.begin() + 50 * epoch, a.begin() + 50 * (epoch + 1)).size() == 50);
    CHECK(std::vector(a.begin(), a.begin() + 50) != std::vector(a.begin() + 50, a.begin() + 100));
    again.seek(73);
    for (int i = 73; i < 120; ++i) CHECK(completion(again.next()) == a[i]);
    CHECK(again.position() == 120);

    const File flags("{\"prompt\":\"c\",\"completion\":\"d\",\"eos\":false}\r\n");
    CHECK(!SftReader(flags.path, std::nullopt).next().eos);
    const File broken("{\"prompt\":\"a\",\"completion\":\"b\"}\n\n{\"prompt\":\"a\"}\n");
    SftReader reader(broken.path, std::nullopt);
    reader.next();
    CHECK_ERROR(reader.next(), ".jsonl:3: ");
    CHECK_ERROR(SftReader(File("\n").path, 1), "no examples");
}

TEST_CASE("every gold answer of GSM8K, MATH-500 and AIME is read") {
    const auto root = fixtures();
    if (!root) return;
    for (const auto& [file, problems] :
         {std::pair{"gsm8k/train", 7473}, {"gsm8k/test", 1319}, {"math500/test", 500}, {"aime24/test", 30}})
        CHECK(load(*root / "datasets" / (std::string(file) + ".jsonl")).size() == problems);
}
