#include "tokenizer/chat_format.h"

#include <nlohmann/json.hpp>

#include "src/run/error.h"
#include "src/run/files.h"
#include "src/run/json.h"

namespace r1 {
namespace {

using nlohmann::json;
using std::string;

bool holds(const string& text, const char* part) { return text.find(part) != string::npos; }

string strip(string text, const char* what, bool front, bool back) {
    if (back) text.erase(text.find_last_not_of(what) + 1);
    if (front) text.erase(0, text.find_first_not_of(what));
    return text;
}

string behind_last(const string& text, const char* mark) {
    const auto at = text.rfind(mark);
    return at == string::npos ? text : text.substr(at + string(mark).size());
}

/// "bos_token": "<s>", or {"content": "<s>", ...}.
string token_of(const json& config, const char* key) {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null()) return "";
    return found->is_object() ? found->at("content").get<string>() : found->get<string>();
}

/// "chat_template": a text, or several by name.
string template_of(const json& config) {
    const auto found = config.find("chat_template");
    if (found == config.end() || found->is_null()) return "";
    if (!found->is_array()) return found->get<string>();
    for (const json& entry : *found)
        if (entry.at("name") == "default") return entry.at("template");
    return "";
}

/// The system message that a ChatML template writes where a conversation has none: a string literal
/// of its own, with Jinja's escapes.
string default_system_of(const string& jinja) {
    const string begin = "<|im_start|>system", end = "<|im_end|>";
    for (auto at = jinja.find(begin); at != string::npos; at = jinja.find(begin, at + 1)) {
        const auto from = at + begin.size(), to = jinja.find(end, from);
        if (to == string::npos) break;
        string text;
        bool literal = true;
        for (auto i = from; i < to && literal; ++i) {
            const char next = i + 1 < to ? jinja[i + 1] : '\0';
            if (jinja[i] == '\\' && next != '\0')
                text += next == 'n' ? '\n' : next, ++i;
            else if (jinja[i] == '\'' || jinja[i] == '"')
                literal = false;  // It ends before its turn does, and goes on with a message.
            else
                text += jinja[i];
        }
        if (literal && text.size() > 1 && text[0] == '\n') return text.substr(1);
    }
    return "";
}

/// What stands before and behind </think>, as Qwen3's template takes it apart.
struct Thought {
    explicit Thought(const Message& message)
        : thought(message.thought.value_or("")), answer(message.content) {
        if (!message.thought && holds(answer, "</think>")) {
            thought = behind_last(answer.substr(0, answer.find("</think>")), "<think>");
            thought = strip(thought, "\n", true, true);
            answer = strip(behind_last(answer, "</think>"), "\n", true, false);
        }
    }
    string thought, answer;
};

/// A thought that is given apart goes before the answer, where the template does not know it.
string with_thought(const Message& m) {
    return m.thought ? "<think>\n" + *m.thought + "\n</think>\n\n" + m.content : m.content;
}

/// Whether a text is in a template, with its line ends as they are or as Jinja's \n.
bool writes(const string& jinja, const string& text) {
    string escaped;
    for (const char c : text) escaped += c == '\n' ? "\\n" : string(1, c);
    return holds(jinja, text.c_str()) || holds(jinja, escaped.c_str());
}

/// What Qwen3's template puts in place of a thought.
constexpr const char* kNoThought = "<think>\n\n</think>\n\n";

}  // namespace

std::optional<ChatFormat> ChatFormat::load(const std::filesystem::path& model_folder) {
    const auto config_file = model_folder / "tokenizer_config.json",
               jinja_file = model_folder / "chat_template.jinja";
    ChatFormat format;
    string jinja;
    try {
        if (std::filesystem::exists(config_file)) {
            const json config = parse_json(read_input(config_file), config_file.string());
            jinja = template_of(config);
            format.bos_ = token_of(config, "bos_token");
        }
    } catch (const json::exception& e) {
        fail(config_file.string(), ": not a tokenizer configuration: ", e.what());
    }
    if (std::filesystem::exists(jinja_file)) jinja = read_input(jinja_file);
    std::erase(jinja, '\r');
    if (jinja.empty()) return std::nullopt;

    format.thinks_ = holds(jinja, "</think>");
    format.thoughts_apart_ = holds(jinja, "reasoning_content");
    format.can_skip_thoughts_ = holds(jinja, "enable_thinking") && writes(jinja, kNoThought);
    if (!holds(jinja, "bos_token")) format.bos_.clear();
    if (holds(jinja, "<｜User｜>")) {
        format.family_ = Family::DeepSeekR1;
        format.end_of_turn_ = "<｜end▁of▁sentence｜>";
        format.generation_ = "<｜Assistant｜>";
    } else if (holds(jinja, "<|start_header_id|>")) {
        format.family_ = Family::Llama3;
        format.end_of_turn_ = "<|eot_id|>";
        format.generation_ = "<|start_header_id|>assistant<|end_header_id|>\n\n";
        // Llama 3.1 and later. The date is the template's own.
        if (holds(jinja, "Cutting Knowledge Date"))
            format.default_system_ =
                "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    } else if (holds(jinja, "<|im_start|>")) {
        format.end_of_turn_ = "<|im_end|>";
        format.generation_ = "<|im_start|>assistant\n";
        format.default_system_ = default_system_of(jinja);
    } else {
        fail(
            model_folder.string(),
            ": its chat template is none of ChatML, Llama 3 and DeepSeek-R1; write the whole prompt into a "
            "file and give it with --template and --plain");
    }
    if (writes(jinja, format.generation_ + "<think>") || writes(jinja, "'<think>\n' }}"))
        format.generation_ += "<think>\n";
    return format;
}

std::vector<Segment> ChatFormat::build(const std::vector<Message>& messages, bool to_learn) const {
    std::vector<Segment> parts{{bos_, false}};
    auto read = [&](const string& text) { parts.push_back({text, false}); };
    const bool system_first = !messages.empty() && messages[0].role == "system";
    if (family_ == Family::DeepSeekR1) {  // one system message, without a header
        string system;
        for (const auto& m : messages)
            if (m.role == "system") system = m.content;
        read(system);
    } else if (family_ == Family::Llama3 && !default_system_.empty()) {
        // It stands before the user's own.
        read("<|start_header_id|>system<|end_header_id|>\n\n" + default_system_ +
             (system_first ? strip(messages[0].content, " \t\n\r", true, true) : "") +
             end_of_turn_);
    } else if (!system_first && !default_system_.empty()) {
        read("<|im_start|>system\n" + default_system_ + end_of_turn_ + "\n");
    }

    std::size_t last_question = messages.size();  // thoughts behind it are kept
    for (std::size_t i = 0; i < messages.size(); ++i)
        if (messages[i].role == "user") last_question = i;
    for (std::size_t i = 0; i < messages.size(); ++i) {
        const Message& m = messages[i];
        const string& role = m.role;
        const bool assistant = role == "assistant", last = i + 1 == messages.size();
        if (role != "system" && role != "user" && !assistant)
            fail("the role \"", role, "\" is not supported; system, user and assistant are");
        const bool trained = assistant && (last || !thinks_);
        const bool whole = !assistant || !thinks_ || (to_learn && last);
        string body = whole ? with_thought(m) : behind_last(m.content, "</think>");
        switch (family_) {
            case Family::DeepSeekR1:
                if (role == "user") read("<｜User｜>" + body);
                if (!assistant) break;
                read("<｜Assistant｜>");
                parts.push_back({body + end_of_turn_, trained});
                break;
            case Family::Llama3:
                if (i == 0 && system_first && !default_system_.empty()) break;
                read("<|start_header_id|>" + role + "<|end_header_id|>\n\n");
                parts.push_back({strip(body, " \t\n\r", true, true) + end_of_turn_, trained});
                break;
            case Family::ChatMl: {
                if (assistant && thoughts_apart_) {
                    const Thought split(m);
                    const bool shown = i > last_question && (last || !split.thought.empty());
                    body = shown ? "<think>\n" + strip(split.thought, "\n", true, true) +
                                       "\n</think>\n\n" + strip(split.answer, "\n", true, false)
                                 : split.answer;
                } else if (!whole) {
                    body = strip(body, "\n", true, false);
                }
                read("<|im_start|>" + role + "\n");
                parts.push_back({body + end_of_turn_, trained});
                read("\n");
            }
        }
    }
    return parts;
}

std::optional<ChatFormat> ChatFormat::without_thoughts() const {
    if (!can_skip_thoughts_) return std::nullopt;
    ChatFormat format = *this;
    format.generation_ =
        format.generation_.substr(0, format.generation_.find("<think>")) + kNoThought;
    return format;
}

std::string ChatFormat::render(const std::vector<Message>& messages) const {
    string text;
    for (const auto& part : build(messages, false)) text += part.text;
    return text + generation_;
}

std::vector<Segment> ChatFormat::segments(const std::vector<Message>& messages) const {
    std::vector<Segment> parts;
    for (auto& part : build(messages, true))
        if (!parts.empty() && parts.back().trained == part.trained)
            parts.back().text += part.text;
        else
            parts.push_back(std::move(part));
    return parts;
}

}  // namespace r1
