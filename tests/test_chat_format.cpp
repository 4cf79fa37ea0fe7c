// Chat formats against the texts that Hugging Face's templates make (tests/golden/chat_formats.py), and against
// the published formats where no template is at hand.
#include <nlohmann/json.hpp>
#include <sstream>

#include "src/rl/model_folder.h"
#include "tests/programs.h"
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

/// The shipped base as a model of chats: with this template, and its last row for the token that ends a turn.
void make_chat_model(const std::filesystem::path& folder, const std::string& jinja, const json& ends,
                     const json& changes = json::object()) {
    std::filesystem::create_directories(folder);
    for (const char* file : {"model.safetensors", "prompt_template.txt"})
        std::filesystem::copy_file(kBase + "/" + file, folder / file);
    json config = json::parse(read_file(kBase + "/config.json")),
         tokenizer = json::parse(read_file(kBase + "/tokenizer.json"));
    config["eos_token_id"] = ends;
    const bool llama = jinja == kLlama3;
    tokenizer["added_tokens"].push_back({{"id", 231}, {"content", llama ? "<|eot_id|>" : "<|im_end|>"}});
    tokenizer.merge_patch(changes);
    write_file(folder / "config.json", config.dump());
    write_file(folder / "tokenizer.json", tokenizer.dump());
    write_file(folder / "tokenizer_config.json", json{{"chat_template", jinja}}.dump());
}

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

TEST_CASE("chat formats: a configuration is checked before it is used") {
    const TemporaryFolder f;
    const auto refused = [&](const std::string& config, const char* why) {
        write_file(f / "tokenizer_config.json", config);
        CHECK_ERROR(ChatFormat::load(f.path), why);
    };
    refused(R"({"bos_token": "a", "bos_token": "b"})", "\"bos_token\" is there twice");
    refused(std::string(100000, '['), "nested deeper than");
    refused("{", "tokenizer_config.json: not valid JSON");
    std::filesystem::create_directory(f / "chat_template.jinja");
    refused("{}", "chat_template.jinja: is a folder");
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
    CHECK(joined(r1.segments({{"user", "a"}, {"assistant", "b", "t"}, {"user", "c"}, {"assistant", "d", "u"}}),
                 false) == "<｜User｜>a<｜Assistant｜>b<｜end▁of▁sentence｜><｜User｜>c<｜Assistant｜>"
                           "<think>\nu\n</think>\n\nd<｜end▁of▁sentence｜>");
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

TEST_CASE("chats: a base model that learns to end its turns ends its responses there") {
    const TemporaryFolder f;
    make_chat_model(f / "base", "<|im_start|>", 230);
    write_file(f / "base/generation_config.json", R"({"eos_token_id": 230, "top_k": 5})");
    write_file(f / "chats.jsonl", R"({"messages":[{"role":"user","content":"1+1:"},{"role":"assistant","content":"2"}]})");
    const auto trained = shell(f, kBin + "train_sft --steps 40 --batch-tokens 8 --warmup 0 --lr 1e-3 --model " +
                                      (f / "base") + " --data " + (f / "chats.jsonl") + " --out " + (f / "chat"));
    REQUIRE_MESSAGE(trained.status == 0, trained.out);
    CHECK(has(trained.out, "chats.jsonl:1: the vocabulary lacks U+003C '<'"));  // <|im_start|>
    CHECK(json::parse(read_file(f / "chat/config.json"))["eos_token_id"] == json({230, 231}));
    const json generation = json::parse(read_file(f / "chat/generation_config.json"));
    CHECK(generation == json({{"eos_token_id", {230, 231}}, {"top_k", 5}}));
    const auto answer = shell(f, kBin + "infer --temperature 0 --prompt 1+1: --model " + (f / "chat"));
    CHECK_MESSAGE(answer.out.ends_with("\n2\n"), answer.out);

    // Without a token for it there is nothing that could end a response.
    make_chat_model(f / "none", kLlama32, 230, {{"model", {{"vocab", {{"5", nullptr}, {"<", 5}}}}}});
    const auto refused = shell(f, kBin + "train_sft --model " + (f / "none") + " --data " + (f / "chats.jsonl") +
                                      " --out " + (f / "x"));
    CHECK(refused.status == 2);
    CHECK(has(refused.out, "the tokenizer has no token <|eot_id|>, which ends a turn"));
}

TEST_CASE("chats: a completion ends as the model's turns end, if it was trained on chats") {
    const TemporaryFolder f;
    const auto end = [&](const char* name, const char* jinja, const json& ends) {
        make_chat_model(f / name, jinja, ends);
        return end_of_answer(f / name, Config::load(f / name), Tokenizer::load(f / name));
    };
    CHECK(end("instruct", kLlama3, {230, 231}) == 231);
    CHECK(end("base", kLlama3, {230}) == 230);
    CHECK(end("other", "[INST]", {230, 231}) == 230);
}

TEST_CASE("a plain prompt begins as the tokenizer's post_processor has it, once") {
    const TemporaryFolder f;
    const json special = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
               text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
    const json changes = {
        {"post_processor",
         {{"type", "TemplateProcessing"},
          {"single", {special, text}},
          {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {230}}, {"tokens", {"<|endoftext|>"}}}}}}}}};
    make_chat_model(f / "model", "<|im_start|>", json({230, 231}), changes);
    const auto prompt = [&](const std::string& choice, const std::string& form) {
        return ModelFolder(f.path / "model", choice, form, {}).prompt_template.fill("1+1");
    };
    CHECK(prompt("", "plain") == "<|endoftext|>1+1:");
    write_file(f / "mine.txt", "<|endoftext|>Q: {question}");
    CHECK(prompt(f / "mine.txt", "plain") == "<|endoftext|>Q: 1+1");
    CHECK(prompt("", "") == "<|im_start|>user\n1+1:<|im_end|>\n<|im_start|>assistant\n");
    CHECK(prompt("r1-zero", "plain").ends_with("\nUser: 1+1\nAssistant:"));

    const auto tokens = [&](const std::string& data) {
        write_file(f / "data.jsonl", data);
        REQUIRE(shell(f, kBin + "train_sft --steps 1 --batch-tokens 1 --model " + (f / "model") + " --data " +
                           (f / "data.jsonl") + " --overwrite --out " + (f / "run"))
                    .status == 0);
        return read_json_lines(f / "run/log.jsonl").at(1).at("tokens").get<int>();
    };
    const int bare = tokens(R"({"prompt":"<|endoftext|>1+1:","completion":"2"})");
    CHECK(tokens(R"({"prompt":"1+1:","completion":"2"})") == bare);
    CHECK(bare == 6);  // of seven tokens, with the end, all but the first are predicted
}

TEST_CASE("data is checked before a run: what cannot be encoded is named with file and line") {
    const TemporaryFolder f;
    make_chat_model(f / "model", "<|im_start|>", json({230, 231}), {{"model", {{"unk_token", "<none>"}}}});
    write_file(f / "sft.jsonl", "{\"prompt\":\"1+1:\",\"completion\":\"2\"}\n\n{\"prompt\":\"\",\"completion\":\"é\"}\n");
    write_file(f / "grpo.jsonl", "{\"question\":\"1+1\",\"answer\":\"2\"}\n{\"question\":\"é\",\"answer\":\"2\"}\n");
    const std::string model = " --model " + (f / "model");
    const auto sft = shell(f, kBin + "train_sft --steps 1 --batch-tokens 1 --no-shuffle --data " + (f / "sft.jsonl") +
                                  model + " --out " + (f / "run"));
    CHECK(sft.status == 2);
    CHECK(has(sft.out, "sft.jsonl:3: "));
    CHECK(has(sft.out, "has neither U+00E9 'é' nor the unk_token \"<none>\""));
    const auto grpo = shell(f, kBin + "train_grpo --plain --train " + (f / "grpo.jsonl") + model + " --out " + (f / "run"));
    CHECK(grpo.status == 2);
    CHECK(has(grpo.out, "grpo.jsonl:2: "));
    CHECK(!std::filesystem::exists(f / "run/log.jsonl"));
    write_file(f / "empty.jsonl", "{\"question\":\"€\",\"answer\":\"2\"}\n");
    write_file(f / "bare.txt", "{question}");
    const auto empty = shell(f, kBin + "infer --template " + (f / "bare.txt") + " --eval " + (f / "empty.jsonl") +
                                    " --model " + kBase);
    CHECK(empty.status == 2);
    CHECK(has(empty.out, "empty.jsonl:1: the prompt has no token: it is empty, or the vocabulary lacks all of it"));
}
