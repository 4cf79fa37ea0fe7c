#include "src/rl/model_folder.h"

#include <algorithm>

#include "src/model/checkpoint.h"
#include "src/run/error.h"

namespace r1 {
namespace {

bool ends_turn(const std::optional<ChatFormat>& chat, const Config& config,
               const Tokenizer& tokenizer) {
    const auto end = chat ? end_of_turn(*chat, tokenizer) : std::nullopt;
    return end && std::ranges::count(config.eos_token_ids, *end);
}

PromptTemplate load_template(const std::filesystem::path& path, const Config& config,
                             const Tokenizer& tokenizer, const std::string& choice,
                             const std::string& form) {
    auto chat = ChatFormat::load(path);
    if (!ends_turn(chat, config, tokenizer)) chat.reset();
    return PromptTemplate::load(path, choice, std::move(chat), form, tokenizer);
}

}  // namespace

std::optional<int> end_of_turn(const ChatFormat& chat, const Tokenizer& tokenizer) {
    const auto ids = tokenizer.encode(chat.end_of_turn());
    const bool one = ids.size() == 1 && tokenizer.decode(ids) == chat.end_of_turn();
    return one ? std::optional(ids[0]) : std::nullopt;
}

int end_of_answer(const std::filesystem::path& tokenizer_folder, const Config& config,
                  const Tokenizer& tokenizer) {
    std::optional<ChatFormat> chat;
    try {
        chat = ChatFormat::load(tokenizer_folder);
    } catch (const Error&) {  // a template of another family, which completions do not need
    }
    return ends_turn(chat, config, tokenizer) ? *end_of_turn(*chat, tokenizer)
                                              : config.eos_token_ids.at(0);
}

ModelFolder::ModelFolder(const std::filesystem::path& path, const std::string& choice,
                         const std::string& form, const std::vector<std::string>& stop_texts)
    : path(path),
      config(config_of_model(path)),
      tokenizer(Tokenizer::load(path)),
      prompt_template(load_template(path, config, tokenizer, choice, form)),
      stop_texts(stop_texts.empty() ? config.stop_texts : stop_texts) {}

void ModelFolder::save(const Transformer& model, const std::filesystem::path& to,
                       const std::string& dtype) const {
    std::filesystem::create_directories(to);
    prompt_template.save(to);
    save_model(model, path, path, to, saved_dtype(dtype, path), stop_texts);
}

void ModelFolder::describe(nlohmann::ordered_json& record) const {
    record["template"] = {{"text", prompt_template.text()},
                          {"chat_format", prompt_template.chat().has_value()}};
    record["stop_texts"] = stop_texts;
}

}  // namespace r1
