#include "src/rl/model_folder.h"

#include <algorithm>

#include "src/model/checkpoint.h"

namespace r1 {
namespace {

PromptTemplate load_template(const std::filesystem::path& path, const Config& config,
                             const Tokenizer& tokenizer, const std::string& choice, bool plain) {
    auto chat = ChatFormat::load(path);
    const auto ends_turn = [&](int id) { return tokenizer.decode({&id, 1}) == chat->end_of_turn(); };
    if (chat && std::ranges::none_of(config.eos_token_ids, ends_turn)) chat.reset();
    return PromptTemplate::load(path, choice, std::move(chat), plain);
}

}  // namespace

ModelFolder::ModelFolder(const std::filesystem::path& path, const std::string& choice, bool plain,
                         const std::vector<std::string>& stop_texts)
    : path(path),
      config(config_of_model(path)),
      tokenizer(Tokenizer::load(path)),
      prompt_template(load_template(path, config, tokenizer, choice, plain)),
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
