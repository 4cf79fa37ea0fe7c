// How a question becomes a prompt.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "src/rl/rewards.h"
#include "tokenizer/chat_format.h"

namespace r1 {

/// The template of a model folder; the second one, where a model that chats is to be asked without
/// its chat format.
constexpr const char* kTemplateFile = "prompt_template.txt";
constexpr const char* kPlainTemplateFile = "prompt_template.plain.txt";

/// How a question becomes a prompt: a text with {question} in it (or, for countdown, {numbers} and
/// {target}), and for a model that was trained on chats, its chat format around that text as the
/// user's message.
class PromptTemplate {
  public:
    /// `choice` is a file, or "r1-zero", "r1-chat", "boxed" (data/templates); if empty, the model's
    /// own, else r1-chat for a model that chats and r1-zero for one that does
    /// not. One newline at the end of a file is dropped. `plain` omits the chat format.
    static PromptTemplate load(const std::filesystem::path& model_folder, const std::string& choice,
                               std::optional<ChatFormat> chat, bool plain = false);
    /// Whether the folder has a template of its own.
    static bool exists_in(const std::filesystem::path& model_folder);
    /// The file in a model folder from which load() gives this template again.
    const char* file_name() const { return plain_ ? kPlainTemplateFile : kTemplateFile; }
    explicit PromptTemplate(std::string text, std::optional<ChatFormat> chat = std::nullopt);

    /// A template without {question} leaves the question as it is.
    std::string fill(const std::string& question) const;
    /// Throws Error if the template has neither {question} nor {numbers} and {target}.
    std::string fill(const Countdown& problem) const;
    bool has_question() const;
    /// Where the template asks for the answer: in <answer> tags, or in \boxed{}.
    AnswerIn answer_in() const;
    const std::optional<ChatFormat>& chat() const { return chat_; }
    const std::string& text() const { return text_; }

  private:
    std::string finish(const std::string& user) const;
    std::string text_;
    std::optional<ChatFormat> chat_;
    bool plain_ = false;  ///< the model has a chat format, which is left out
};

}  // namespace r1
