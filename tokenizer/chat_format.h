// Conversations as text, in the format a model was trained on. Hugging Face's folders describe it
// by a Jinja template; here the formats of the families are built in, and the template only says
// which one it is.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace r1 {

struct Message {
    std::string role;  ///< "system", "user" or "assistant"
    std::string content;
    std::optional<std::string> thought{};  ///< "reasoning_content", where it is given apart
};

/// A part of a text that is learnt (trained) or only read.
struct Segment {
    std::string text;
    bool trained;
};

/// ChatML (Qwen2, Qwen2.5, Qwen3, SmolLM2), Llama 3 or DeepSeek-R1.
class ChatFormat {
  public:
    /// The format of a model folder: from chat_template.jinja, else tokenizer_config.json. Nothing
    /// if it has no template. Throws Error for a template of another family.
    static std::optional<ChatFormat> load(const std::filesystem::path& model_folder);

    /// The conversation as the family's template writes it, and the opening of the assistant's next
    /// turn. Families that think leave the thoughts of earlier turns out.
    std::string render(const std::vector<Message>& messages) const;

    /// The conversation to be learnt from: the assistant's turns are trained, each with its end of
    /// turn. In a family that thinks that is the last turn alone, thought included: the others have
    /// lost theirs.
    std::vector<Segment> segments(const std::vector<Message>& messages) const;

    /// The format with the model's thoughts switched off, as Qwen3 knows it ("enable_thinking"):
    /// each answer begins behind an empty thought. Nothing if the template has no such switch.
    std::optional<ChatFormat> without_thoughts() const;

    /// The token that ends a turn: "<|im_end|>".
    const std::string& end_of_turn() const { return end_of_turn_; }

  private:
    enum class Family { ChatMl, Llama3, DeepSeekR1 };
    std::vector<Segment> build(const std::vector<Message>& messages, bool to_learn) const;

    Family family_ = Family::ChatMl;
    std::string bos_, end_of_turn_;
    std::string default_system_;  ///< what a conversation without a system message begins with
    std::string generation_;  ///< opens the assistant's turn, and the thought if the template does
    bool thinks_ = false;     ///< the thoughts of earlier turns are left out
    bool thoughts_apart_ = false;  ///< the template writes "reasoning_content" by itself
    bool can_skip_thoughts_ = false;
};

}  // namespace r1
