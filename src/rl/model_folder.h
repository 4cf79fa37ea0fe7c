// What a model folder says beside its weights.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/model/checkpoint.h"
#include "src/rl/prompt_template.h"
#include "tokenizer/tokenizer.h"

namespace r1 {

struct ModelFolder {
    std::filesystem::path path;
    ModelFiles files;  ///< as they were when this was made
    Config config;
    Tokenizer tokenizer;
    PromptTemplate prompt_template;
    std::vector<std::string> stop_texts;  ///< that end a response
    SafeDtype dtype;                      ///< of the weights

    /// `choice` and `form`: see PromptTemplate::load(). A model is asked in its chat format if it
    /// was trained on chats, that is, if one of its end-of-sequence tokens ends a turn.
    /// `stop_texts`, if there are any, replace the folder's own. `escape_special`: the tokenizer is
    /// an escaping one, and so questions are plain text. Throws Error where there is no model.
    ModelFolder(const std::filesystem::path& path, const std::string& choice,
                const std::string& form, const std::vector<std::string>& stop_texts,
                bool escape_special = false);
    /// Writes a model that was trained from this one, with what belongs to it, into another folder.
    /// dtype_choice: float32, bfloat16, or auto: as this one's.
    void save(const Transformer& model, const std::filesystem::path& to,
              const std::string& dtype_choice) const;
    /// Adds template and stop texts to what is recorded of a run.
    void describe(nlohmann::ordered_json& record) const;
};

/// The token that ends a turn in a chat format; nothing where the tokenizer has none.
std::optional<int> end_of_turn(const ChatFormat& chat, const Tokenizer& tokenizer);
/// The token that ends an answer: of a model that was trained on chats the end of a turn, else the
/// first of its end-of-sequence tokens, of which there must be one.
int end_of_answer(const std::filesystem::path& tokenizer_folder, const Config& config,
                  const Tokenizer& tokenizer);

}  // namespace r1
