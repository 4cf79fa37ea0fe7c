#include "src/rl/prompt_template.h"

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

}  // namespace

PromptTemplate::PromptTemplate(std::string text, std::optional<ChatFormat> chat)
    : text_(std::move(text)), chat_(std::move(chat)) {}

PromptTemplate PromptTemplate::load(const std::filesystem::path& model_folder,
                                    const std::string& choice, std::optional<ChatFormat> chat,
                                    bool plain) {
    const auto of_model = model_folder / kTemplateFile,
               plain_of_model = model_folder / kPlainTemplateFile;
    const bool is_plain =
        chat && (plain || (choice.empty() && std::filesystem::exists(plain_of_model)));
    if (is_plain) chat.reset();
    std::string text;
    if (const auto built_in = kTemplates.find(choice); built_in != kTemplates.end())
        text = built_in->second;
    else if (!choice.empty())
        text = read_input(choice);
    else if (std::filesystem::exists(plain_of_model))
        text = read_input(plain_of_model);
    else if (std::filesystem::exists(of_model))
        text = read_input(of_model);
    else
        text = kTemplates.at(chat ? "r1-chat" : "r1-zero");
    if (text.ends_with("\n")) text.pop_back();
    PromptTemplate loaded(std::move(text), std::move(chat));
    loaded.plain_ = is_plain;
    return loaded;
}

bool PromptTemplate::exists_in(const std::filesystem::path& model_folder) {
    return std::filesystem::exists(model_folder / kTemplateFile) ||
           std::filesystem::exists(model_folder / kPlainTemplateFile);
}

std::string PromptTemplate::finish(const std::string& user) const {
    return chat_ ? chat_->render({{"user", user}}) : user;
}

bool PromptTemplate::has_question() const { return holds(text_, "{question}"); }

AnswerIn PromptTemplate::answer_in() const {
    return holds(text_, "\\boxed") && !holds(text_, "<answer>") ? AnswerIn::Boxed : AnswerIn::Tags;
}

std::string PromptTemplate::fill(const std::string& question) const {
    return finish(has_question() ? replace(text_, {{"{question}", question}}) : question);
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
