// How a question becomes a prompt.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "src/rl/rewards.h"
#include "tokenizer/chat_format.h"
#include "tokenizer/tokenizer.h"

namespace r1 {

/// How a question becomes a prompt: a text with {question} in it (or, for countdown, {numbers} and
/// {target}), and for a model that was trained on chats, its chat format around that text as the
/// user's message.
class PromptTemplate {
  public:
    /// `choice` is a file, or "r1-zero", "r1-chat", "boxed" (data/templates); if empty, the model's
    /// own, else r1-chat for a model that chats and r1-zero for one that does not. A byte order
    /// mark, carriage returns and one newline at the end of a file are dropped. `form` is "plain",
    /// which omits the chat format, or "no-think", which switches the model's thoughts off; if
    /// empty, that of the model's own template. `tokenizer` says what a prompt without a chat
    /// format begins with. Throws Error where thoughts cannot be switched off.
    static PromptTemplate load(const std::filesystem::path& model_folder, const std::string& choice,
                               std::optional<ChatFormat> chat, std::string form = "",
                               std::optional<Tokenizer> tokenizer = std::nullopt);
    /// Whether the folder has a template of its own.
    static bool exists_in(const std::filesystem::path& model_folder);
    /// The file in a model folder from which load() gives this template again:
    /// prompt_template.txt, or prompt_template.FORM.txt.
    std::string file_name() const;
    explicit PromptTemplate(std::string text, std::optional<ChatFormat> chat = std::nullopt,
                            std::optional<Tokenizer> tokenizer = std::nullopt);

    /// A template without {question} leaves the question as it is. The question is escaped, where
    /// the tokenizer does that.
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
    std::optional<Tokenizer> tokenizer_;
    std::string form_;
};

}  // namespace r1
