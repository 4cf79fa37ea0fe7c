// Chat formats against the texts that Hugging Face's templates make (tests/golden/chat_formats.py), and against
// the published formats where no template is at hand.
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support.h"
#include "tokenizer/chat_format.h"

using namespace r1;
using namespace r1::test;
using nlohmann::json;

namespace {

std::vector<Message> messages_of(const json& list) {
    std::vector<Message> messages;
    for (const json& m : list) {
        messages.push_back({m.at("role"), m.at("content")});
        if (m.contains("reasoning_content") && !m["reasoning_content"].is_null())
            messages.back().thought = m["reasoning_content"];
    }
    return messages;
}

/// The format of a folder with this chat template.
ChatFormat format_of(const std::string& jinja, const std::string& bos = "") {
    const TemporaryFolder folder;
    write_file(folder / "tokenizer_config.json", json{{"chat_template", jinja}, {"bos_token", bos}}.dump());
    return ChatFormat::load(folder.path).value();
}

std::string joined(const std::vector<Segment>& segments, bool trained_only) {
    std::string text;
    for (const auto& s : segments)
        if (s.trained || !trained_only) text += s.text;
    return text;
}

const std::vector<Message> kTurn = {{"user", " 1+1? "}, {"assistant", "2"}},
                           kWithSystem = {{"system", "Be brief."}, {"user", "1+1?"}};

// Only what the program looks for in them.
constexpr const char* kSmolLm2 = R"({{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{{'<|im_start|>' + message['role'] }})";
constexpr const char* kQwenMath =
    R"({{- '<|im_start|>system\n' }}{{ m }}<|im_end|>{{ '<|im_start|>system\nPut it within \\boxed{}.<|im_end|>\n' }})";
constexpr const char* kLlama32 = "{{- bos_token }} <|start_header_id|> Cutting Knowledge Date";
constexpr const char* kLlama3 = "{{- bos_token }} <|start_header_id|>";

}  // namespace

TEST_CASE("chat formats: the texts of Hugging Face's own templates") {
    const auto root = fixtures();
    if (!root) return;
    std::istringstream lines(read_file(R1_SOURCE_DIR "/tests/golden/chat_formats.jsonl"));
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
        const json golden = json::parse(line);
        CAPTURE(line);
        const TemporaryFolder folder;
        std::string config =
            read_file(*root / "configs" / golden.at("model") / "tokenizer_config.json");
        if (golden.at("variant") == "opens") {
            const std::string opening = R"('<|im_start|>assistant\\n)";
            config.insert(config.find(opening) + opening.size(), R"(<think>\\n)");
        }
        write_file(folder / "tokenizer_config.json", config);
        auto format = ChatFormat::load(folder.path);
        if (format && !golden.at("think").get<bool>()) format = format->without_thoughts();
        REQUIRE(format);
        CHECK(format->render(messages_of(golden.at("messages"))) == golden.at("text").get<std::string>());
    }
    CHECK(count == 50);
    CHECK_THROWS_AS(ChatFormat::load(*root / "weights/arithmetic_sequence"), Error);  // a family of its own
}

TEST_CASE("chat formats: SmolLM2 and Qwen2.5-Math, with the system message their templates hold") {
    CHECK(
        format_of(kSmolLm2).render(kTurn) ==
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n 1+1? <|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>assistant\n");
    CHECK(
        format_of(kSmolLm2).render(kWithSystem) ==
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n");
    CHECK(format_of(kQwenMath).render({}) ==
          "<|im_start|>system\nPut it within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("chat formats: Llama 3 and 3.1") {
    const std::string system =
        "<BOS><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n";
    const std::string opening = "<|start_header_id|>assistant<|end_header_id|>\n\n";
    const std::string user = "<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>";
    CHECK(format_of(kLlama32, "<BOS>").render(kTurn) ==
          system + "<|eot_id|>" + user + opening + "2<|eot_id|>" + opening);
    CHECK(format_of(kLlama32, "<BOS>").render(kWithSystem) ==
          system + "Be brief.<|eot_id|>" + user + opening);
    CHECK(format_of(kLlama3, "<BOS>").render(kWithSystem) ==
          "<BOS><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>" + user + opening);
    CHECK(format_of(kLlama3, "<BOS>").end_of_turn() == "<|eot_id|>");
}

TEST_CASE("chat formats: what is learnt are the assistant's turns, and of a model that thinks the last one") {
    const std::vector<Message> chat = {{"user", "a"},
                                       {"assistant", "<think>\nt\n</think>\n\nb"},
                                       {"user", "c"},
                                       {"assistant", "<think>\nu\n</think>\n\nd"}};
    for (const char* jinja : {kSmolLm2, kLlama32}) {
        const auto format = format_of(jinja, "<BOS>");
        const auto segments = format.segments(chat);
        CHECK(joined(segments, true) ==
              chat[1].content + format.end_of_turn() + chat[3].content + format.end_of_turn());
        const std::string all = joined(segments, false), rendered = format.render(chat);
        CHECK(rendered.starts_with(all));
    }
    const auto qwen3 = format_of("<|im_start|> </think>"),
               r1 = format_of("<｜User｜> </think> <｜Assistant｜><think>");
    CHECK(joined(qwen3.segments(chat), true) == chat[3].content + "<|im_end|>");
    CHECK(joined(r1.segments(chat), true) == chat[3].content + "<｜end▁of▁sentence｜>");
    CHECK(joined(r1.segments(chat), false) ==
          "<｜User｜>a<｜Assistant｜>\n\nb<｜end▁of▁sentence｜><｜User｜>c<｜Assistant｜>" + chat[3].content +
              "<｜end▁of▁sentence｜>");
    CHECK(joined(qwen3.segments({{"user", "a"}}), true).empty());
}

TEST_CASE("chat formats: a thought that is given apart is kept in every family") {
    const std::vector<Message> chat = {{"user", "a"}, {"assistant", "b", "t"}};
    for (const char* jinja : {kSmolLm2, kLlama32, "<｜User｜> </think>", "<|im_start|> </think>",
                              "<|im_start|> </think> reasoning_content"}) {
        const auto format = format_of(jinja);
        CHECK(joined(format.segments(chat), true) ==
              "<think>\nt\n</think>\n\nb" + format.end_of_turn());
    }
    // QwQ's template knows no thought apart, and leaves out those of earlier turns only.
    const auto qwq = format_of(R"({{ '<|im_start|>assistant\n<think>\n' }} </think>)");
    CHECK(joined(qwq.segments({{"user", "a"}, {"assistant", "b"}}), true) == "b<|im_end|>");
    CHECK(qwq.render({{"user", "a"}, {"assistant", "t</think>\n\nb"}, {"user", "c"}}) ==
          "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
          "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n");
}

TEST_CASE("chat formats: the thought is opened, or switched off, where the template can do so") {
    const std::string turn = "<|im_start|>assistant\n", none = "<think>\n\n</think>\n\n";
    CHECK(format_of("{{ '<|im_start|>assistant\r\n<think>\r\n' }}").render({}) == turn + "<think>\n");
    CHECK(!format_of("{{ '<|im_start|>assistant\n<think>\n' }}").without_thoughts());
    const auto both = format_of(R"({{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %})"
                                R"({{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }})");
    CHECK(both.render({}) == turn + "<think>\n");
    CHECK(both.without_thoughts()->render({}) == turn + none);
}

TEST_CASE("chat formats: what cannot be used is said") {
    const TemporaryFolder folder;
    CHECK(!ChatFormat::load(folder.path));
    CHECK_ERROR(format_of("[INST]"), "--template");
    CHECK_ERROR(format_of(kSmolLm2).render({{"tool", "x"}}), "\"tool\"");
    for (const char* broken : {"{", "[]", "{\"chat_template\": 1}", "{\"chat_template\": [1]}"}) {
        write_file(folder / "tokenizer_config.json", broken);
        CAPTURE(broken);
        if (broken == std::string("[]"))
            CHECK(!ChatFormat::load(folder.path));
        else
            CHECK_ERROR(ChatFormat::load(folder.path), "tokenizer_config.json");
    }
    write_file(folder / "tokenizer_config.json", "{\"chat_template\": null}");
    CHECK(!ChatFormat::load(folder.path));
    write_file(folder / "chat_template.jinja", kSmolLm2);
    CHECK(ChatFormat::load(folder.path)->end_of_turn() == "<|im_end|>");
}
