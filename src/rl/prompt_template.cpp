#include "src/rl/prompt_template.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "src/run/error.h"
#include "src/run/files.h"

namespace r1 {
namespace {

/// The built-in templates, from data/templates. r1-zero has the structure of R1-Zero's
/// (DeepSeek-R1, table 1) in our own words; boxed is what DeepSeek-R1's and Qwen2.5's model cards
/// recommend for mathematics.
const std::map<std::string, std::string> kTemplates = {
#include "prompt_templates.inc"
};

/// In a model folder: the template that its model is asked with.
std::string file_of(const std::string& form) {
    return "prompt_template" + (form.empty() ? "" : "." + form) + ".txt";
}
constexpr const char* kForms[] = {"plain", "no-think", ""};

std::string joined(const std::vector<std::int64_t>& numbers, const char* separator) {
    std::string text;
    for (auto n : numbers) text += (text.empty() ? "" : separator) + std::to_string(n);
    return text;
}

/// Replaces every {name} by its value; braces around anything else stay.
std::string replace(const std::string& text,
                    const std::vector<std::pair<std::string, std::string>>& values) {
    std::string filled;
    for (std::size_t at = 0; at < text.size();) {
        bool replaced = false;
        for (const auto& [name, value] : values)
            if (text.compare(at, name.size(), name) == 0) {
                filled += value, at += name.size(), replaced = true;
                break;
            }
        if (!replaced) filled += text[at++];
    }
    return filled;
}

bool holds(const std::string& text, const char* part) { return text.find(part) != text.npos; }

std::string read_text(const std::filesystem::path& file) {
    std::string text = read_input(file);
    if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
    std::erase(text, '\r');
    return text;
}

}  // namespace

PromptTemplate::PromptTemplate(std::string text, std::optional<ChatFormat> chat,
                               std::optional<Tokenizer> tokenizer)
    : text_(std::move(text)), chat_(std::move(chat)), tokenizer_(std::move(tokenizer)) {}

PromptTemplate PromptTemplate::load(const std::filesystem::path& model_folder,
                                    const std::string& choice, std::optional<ChatFormat> chat,
                                    std::string form, std::optional<Tokenizer> tokenizer) {
    const auto of_model = std::ranges::find_if(
        kForms, [&](auto form) { return std::filesystem::exists(model_folder / file_of(form)); });
    const bool has_own = of_model != std::end(kForms);
    if (form.empty() && choice.empty() && has_own) form = *of_model;
    if (form == "no-think") {
        if (chat) chat = chat->without_thoughts();
        if (!chat)
            fail(model_folder.string(),
                 ": --no-think: its chat template has no switch for thoughts (enable_thinking)");
    }
    if (!chat) form.clear();
    if (form == "plain") chat.reset();
    std::string text;
    if (const auto built_in = kTemplates.find(choice); built_in != kTemplates.end())
        text = built_in->second;
    else if (!choice.empty() || has_own)
        text = read_text(choice.empty() ? model_folder / file_of(*of_model)
                                        : std::filesystem::path(choice));
    else
        text = kTemplates.at(chat ? "r1-chat" : "r1-zero");
    if (text.ends_with("\n")) text.pop_back();
    PromptTemplate loaded(std::move(text), std::move(chat), std::move(tokenizer));
    loaded.form_ = std::move(form);
    return loaded;
}

bool PromptTemplate::exists_in(const std::filesystem::path& model_folder) {
    return std::ranges::any_of(
        kForms, [&](auto form) { return std::filesystem::exists(model_folder / file_of(form)); });
}

std::string PromptTemplate::file_name() const { return file_of(form_); }

std::string PromptTemplate::finish(const std::string& user) const {
    if (chat_) return chat_->render({{"user", user}});
    return tokenizer_ ? tokenizer_->framed(user) : user;
}

bool PromptTemplate::has_question() const { return holds(text_, "{question}"); }

AnswerIn PromptTemplate::answer_in() const {
    return holds(text_, "\\boxed") && !holds(text_, "<answer>") ? AnswerIn::Boxed : AnswerIn::Tags;
}

std::string PromptTemplate::fill(const std::string& question) const {
    const std::string user = tokenizer_ ? tokenizer_->escaped(question) : question;
    return finish(has_question() ? replace(text_, {{"{question}", user}}) : user);
}

std::string PromptTemplate::fill(const Countdown& problem) const {
    if (!has_question() && !(holds(text_, "{numbers}") && holds(text_, "{target}")))
        fail("the prompt template has neither {question} nor {numbers} and {target}");
    const std::string target = std::to_string(problem.target);
    const std::string question =
        "Using each of the numbers " + joined(problem.numbers, ", ") +
        " exactly once, with + - * / and parentheses, write an expression that equals " + target +
        ".";
    return finish(replace(text_, {{"{question}", question},
                                  {"{numbers}", joined(problem.numbers, ",")},
                                  {"{target}", target}}));
}

}  // namespace r1
