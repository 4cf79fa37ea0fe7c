// Reading problems and examples: what is understood, and that what is not is named with file and line.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "src/rl/dataset.h"
#include "src/run/error.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;
using nlohmann::json;
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

std::string joined(const SftExample& example) {
    std::string text;
    for (const auto& segment : example.segments) text += segment.text;
    return text;
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

TEST_CASE("text answers, and choices by their text") {
    const File f(R"({"question":"Sort!","answer":"a, C","match":"text"})"
                 "\n"
                 R"({"question":"Double it!","answer":21,"match":"text","source":"mine"})"
                 "\n"
                 R"({"question":"Which?","answer":"as it is asked:\n#### The Sea ","match":"text"})"
                 "\n"
                 R"({"question":"Which?","answer":"1/2","match":"math"})"
                 "\n"
                 R"({"question":"Which?","choices":["red","green"],"answer":"green"})"
                 "\n"
                 R"({"question":"Which?","choices":["3","2","1"],"answer":2})"
                 "\n"
                 R"({"question":"Which?","choices":["3","2","1"],"answer":"2"})"
                 "\n"
                 R"({"question":"Which?","choices":["B","A"],"answer":"B"})"
                 "\n"
                 R"({"question":"Which?","choices":["AA","Aa","aa","no","no"],"answer":"Aa"})");
    const auto p = load(f.path);
    auto right = [&](std::size_t i, const char* answer) {
        return check_answer(answer, p.at(i).gold).value == 1;
    };
    CHECK(right(0, "a, C"));
    CHECK(!right(0, "C, a"));
    CHECK(right(1, "21"));
    CHECK(!right(1, "21.0"));
    CHECK(right(2, "The Sea"));
    CHECK(right(3, "0.5"));
    CHECK(right(4, "B"));
    CHECK(right(4, "green"));
    CHECK(right(5, "C"));  // an integer is an index, a text a text
    CHECK(right(5, "1"));
    CHECK(right(6, "B"));
    CHECK(right(7, "B"));  // a label before a text
    CHECK(!right(7, "A"));
    CHECK(right(8, "Aa"));
    CHECK(!right(8, "aa"));
}

TEST_CASE("problems without an answer, where answers are optional") {
    const File f(R"({"question":"Rhyme!","topic":"spring"})"
                 "\n"
                 R"({"question":"Which?","choices":["red","green"]})"
                 "\n"
                 R"({"question":"How many?","answer":"72"})");
    const auto p = load_problems(f.path, PromptTemplate("{question}"), Answers::Optional);
    REQUIRE(p.size() == 3);
    CHECK(std::holds_alternative<NoGold>(p[0].gold));
    CHECK(p[0].source.find("spring") != std::string::npos);
    CHECK(p[1].prompt == "Which?\nA) red\nB) green");
    CHECK(check_answer("72", p[2].gold).value == 1);
    CHECK_ERROR(load(f.path),
                R"(.jsonl:1: there is no "answer"; give one, or leave accuracy out of --reward)");
    const File wrong(R"({"question":"How many?","answer":"\\frac{"})");  // one that is there is still checked
    CHECK_THROWS_AS(load_problems(wrong.path, PromptTemplate("{question}"), Answers::Optional), Error);
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
    line2(R"({"question":"q","answer":1)", "the line ends within a JSON object");
    line2(R"({"question":"q","answer":x})", "the line: not valid JSON: parse error at line 1, column 26");
    line2("[1]", R"(must be one JSON object, {...}, but this one begins with "[1]")");
    line2("question,answer", R"(begins with "question,answer")");
    line2(R"({"question":"q"})", R"(there is no "answer"; give one)");
    line2(R"({"question":"q","anwser":"1"})", R"((the keys of this line: "anwser", "question"))");
    line2(
        R"({"prompt":"q","answer":"1"})",
        R"(must have a "question", a "problem", or "nums" and "target" (the keys of this line: "answer", "prompt"))");
    line2(R"({})", "(the keys of this line: none)");
    line2(R"({"question":5,"answer":"1"})", R"("question" is 5, but must be a text)");
    line2(R"({"question":"q","answer":null})", R"("answer" is null, but must be a text or a number)");
    line2(R"({"question":"q","answer":["a","b"],"match":"text"})", R"(write a list as one text)");
    line2(R"({"question":"q","solution":7})", R"("solution" is 7, but must be a text)");
    line2(R"({"question":"q","answer":" ","match":"text"})", "empty");
    line2(R"({"question":"q","match":"text","answer":")" + std::string(1025, 'x') + R"("})", "1024 bytes");
    line2(R"({"question":"q","answer":"1","match":"exact"})",
          R"("math" (which it is without this key) or "text")");
    line2(R"({"question":"q","answer":"\\frac{"})", "frac");
    line2(R"({"question":"q","solution":"it is 5"})", "boxed");
    line2(R"({"question":"q","answer":["1"]})", "answer");
    line2(R"({"nums":"2,3","target":5})", R"("nums" is "2,3", but must be a list of integers)");
    line2(R"({"nums":[1,"2"],"target":5})", R"(not of "2")");
    line2(R"({"nums":[],"target":5})", "nums");
    line2(R"({"nums":[1,2]})", "target");
    line2(R"({"nums":[1,2.5],"target":5})", "2.5");
    line2(R"({"nums":[1,2],"target":1e65})", "1e+65");
    line2(R"({"nums":[1,18446744073709551615],"target":5})", "18446744073709551615");
    line2(R"({"question":"q","choices":["a","b"],"answer":"C"})", "C");
    line2(R"({"question":"q","choices":["a","b"],"answer":7})", "2 choices");
    line2(R"({"question":"q","choices":["a","b"],"answer":-1})", "2 choices");
    line2(R"({"question":"q","choices":["x","X"],"answer":"blue"})", "2 choices");
    line2(R"({"question":"q","choices":["x","y","x "],"answer":0})", "is there twice");
    line2(R"({"question":"q","choices":["x","y","x"],"answer":"x"})", "choices");
    line2(R"({"question":"q","choices":["x","y"],"answer":null})", R"("answer" is null)");
    line2(R"({"question":"q","choices":["x","y"]})", R"(there is no "answer")");
    line2(R"({"question":"q","choices":{"text":["x"]},"answer":"A"})", "must be a list of texts");
    line2(R"({"question":"q","choices":[],"answer":"A"})", "holds 0 texts");
    CHECK(message("").find("no problems; one a line is wanted, such as {\"question\"") != std::string::npos);
    CHECK(message("\n\n").find("no problems") != std::string::npos);
    CHECK(message(" \n[\n  " + good + "]")
              .find(".jsonl: is one JSON array; one object a line is wanted (jq -c '.[]' ") !=
          std::string::npos);
    CHECK(message("{\n  \"question\": \"q\"\n}").find(".jsonl:1: the line ends within a JSON object") !=
          std::string::npos);
    CHECK(message("\xef\xbb\xbf" + good) == "no error");  // the mark that some editors put first
    CHECK_ERROR(load(fs::temp_directory_path()), "is a folder; a file with one JSON object");
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

TEST_CASE("the prompt template: marks and line ends of other editors are dropped") {
    const TemporaryFolder f;
    write_file(f / "windows.txt", "\xef\xbb\xbf{question}\r\nA:\r\n");
    CHECK(PromptTemplate::load(f.path, f / "windows.txt", std::nullopt).text() == "{question}\nA:");
    CHECK(PromptTemplate::load(f.path, "r1-zero", std::nullopt).text().ends_with("\nAssistant:"));
}

TEST_CASE("the prompt template: a model's thoughts are switched off, now and when it is loaded again") {
    const TemporaryFolder f;
    write_file(f / "tokenizer_config.json",
               R"({"chat_template": "<|im_start|> enable_thinking '<think>\\n\\n</think>\\n\\n'"})");
    const auto chat = ChatFormat::load(f.path);
    const auto quiet = PromptTemplate::load(f.path, "boxed", chat, "no-think");
    CHECK(quiet.fill("1+1?").ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
    write_file(f.path / quiet.file_name(), quiet.text() + "\n");
    CHECK(PromptTemplate::load(f.path, "", chat).fill("1+1?") == quiet.fill("1+1?"));
    CHECK(PromptTemplate::load(f.path, "boxed", chat).fill("1+1?").ends_with("assistant\n"));
    const auto plain = PromptTemplate::load(f.path, "", chat, "plain");
    fs::remove(f.path / quiet.file_name());
    write_file(f.path / plain.file_name(), plain.text() + "\n");
    CHECK(PromptTemplate::load(f.path, "", chat).fill("1+1?").starts_with("1+1?"));
    CHECK_ERROR(PromptTemplate::load(f.path, "", std::nullopt, "no-think"), "--no-think");
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
    CHECK_ERROR(reader.next(), R"(.jsonl:2: a message must be {"role": ..., "content": ...}, not)");
    const File wrong(R"({"messages":[]})"
                     "\n"
                     R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})");
    SftReader lists(wrong.path, std::nullopt, f.folder.path);
    CHECK_ERROR(lists.next(), R"("messages" is [], but must be a list)");
    CHECK_ERROR(lists.next(), R"("content" is [{"type":"text"}], but must be a text)");
    const auto refused = [&](const std::string& keys) {
        const File bad(R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b")" +
                       keys + "}");
        SftReader one(bad.path, std::nullopt, f.folder.path);
        try {
            return joined(one.next());
        } catch (const Error& e) {
            return std::string(e.what());
        }
    };
    CHECK(refused(R"(,"reasoning_content":"t"}])").find("<think>\nt\n</think>\n\nb") != std::string::npos);
    CHECK(refused(R"(,"tool_calls":null,"reasoning_content":null}])").ends_with("\nb<|im_end|>\n"));
    CHECK(refused(R"(,"tool_calls":[{}]}])").find(R"(the key "tool_calls" of a message of the assistant)") !=
          std::string::npos);
    CHECK(refused(R"(},{"role":"user","content":"c","reasoning_content":"t"}])").find("of the user is not") !=
          std::string::npos);
    CHECK(refused(R"(,"reasoning_content":5}])").find("must be a text") != std::string::npos);
    CHECK(refused(R"(}],"tools":[{"name":"f"}])").find(R"("tools" beside "messages")") != std::string::npos);
    SftReader base(f.path, std::nullopt, "/nowhere");
    CHECK_ERROR(base.next(), "chat template");
}

TEST_CASE("special tokens that a user writes out are plain text where that is asked for") {
    const TemporaryFolder f;
    json file = json::parse(read_file(R1_SOURCE_DIR "/data/world/base/tokenizer.json"));
    for (const auto& [id, token] : {std::pair(231, "<|im_start|>"), std::pair(232, "<|im_end|>")})
        file["added_tokens"].push_back({{"id", id}, {"content", token}, {"special", true}});
    write_file(f / "tokenizer.json", file.dump());
    write_file(f / "tokenizer_config.json", R"({"chat_template": "<|im_start|>"})");
    write_file(f / "problems.jsonl", R"({"question":"1<|im_end|>2 \u003c|im_start|>","answer":"3"})");
    write_file(f / "sft.jsonl",
               R"({"messages":[{"role":"user","content":"1<|im_end|>"},{"role":"assistant","content":"2<|im_end|>"}]})"
               "\n"
               R"({"prompt":"1<|endoftext|>","completion":"2<|im_end|>"})");
    const auto ends = [](const Tokenizer& tokenizer, const std::string& text) {
        const auto ids = tokenizer.encode(text);
        return std::ranges::count(ids, 232) + std::ranges::count(ids, 230);
    };
    for (const bool escaping : {false, true}) {
        CAPTURE(escaping);
        const auto tokenizer = Tokenizer::load(f.path, escaping);
        const PromptTemplate chat("{question}", ChatFormat::load(f.path), tokenizer);
        auto problems = load_problems(f / "problems.jsonl", chat);
        encode_prompts(problems, tokenizer, 1000);
        CHECK(std::ranges::count(problems[0].tokens, 232) == (escaping ? 1 : 2));
        CHECK(std::ranges::count(problems[0].tokens, 231) == (escaping ? 2 : 3));
        CHECK(problems[0].prompt ==  // as it is shown and graded
              "<|im_start|>user\n1<|im_end|>2 <|im_start|><|im_end|>\n<|im_start|>assistant\n");
        SftReader reader(f / "sft.jsonl", std::nullopt, f.path, tokenizer);
        CHECK(ends(tokenizer, joined(reader.next())) == (escaping ? 2 : 4));
        CHECK(ends(tokenizer, joined(reader.next())) == (escaping ? 0 : 2));
    }
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
    CHECK_ERROR(SftReader(File("[\n{}]").path, 1), "is one JSON array");
    for (
        const auto& [line, part] :
        {std::pair{
             R"({"question":"q","answer":"1"})",
             R"(:1: an example must have a "prompt" and a "completion", or "messages" (the keys of this line: "answer", "question"))"},
         {R"({"prompt":"a","completion":null})", R"("completion" is null, but must be a text)"},
         {R"({"prompt":"a","completion":"b","eos":1})", R"("eos" is 1, but must be true or false)"},
         {"a,b", R"(begins with "a,b")"}}) {
        const File one(line);
        SftReader only(one.path, std::nullopt);
        CHECK_ERROR(only.next(), part);
    }
}

TEST_CASE("answers that cannot be read are an error, or left out and counted") {
    const File f("{\"question\": \"a\", \"answer\": \"1\"}\n{\"question\": \"b\", \"answer\": \"\\\\frac{1}{\"}\n"
            "{\"problem\": \"c\", \"solution\": \"so it is 3\"}\n{\"question\": \"d\", \"answer\": \"0.00005\"}\n");
    const PromptTemplate shape("{question}");
    CHECK_THROWS_AS(load_problems(f.path, shape), Error);
    const auto some = load_problems(f.path, shape, Answers::Required, true);
    REQUIRE(some.size() == 2);
    CHECK(some[1].prompt == "d");
    CHECK(some[1].id == 1);
    CHECK(check_answer("5 \\cdot 10^{-5}", some[1].gold).value == 1);
    const File wrong("{\"question\": \"b\", \"answer\": 5}\n{\"question\": \"b\", \"answer\": []}\n");
    CHECK_THROWS_AS(load_problems(wrong.path, shape, Answers::Required, true), Error);
}

TEST_CASE("every gold answer of GSM8K, MATH-500 and AIME is read") {
    const auto root = fixtures();
    if (!root) return;
    for (const auto& [file, problems] :
         {std::pair{"gsm8k/train", 7473}, {"gsm8k/test", 1319}, {"math500/test", 500}, {"aime24/test", 30}})
        CHECK(load(*root / "datasets" / (std::string(file) + ".jsonl")).size() == problems);
}
