#include "src/rl/model_folder.h"

#include <algorithm>

namespace r1 {
namespace {

PromptTemplate load_template(const std::filesystem::path& path, const Config& config,
                             const Tokenizer& tokenizer, const std::string& choice, bool plain) {
    auto chat = ChatFormat::load(path);
    const auto ends_turn = [&](int id) { return tokenizer.token_text(id) == chat->end_of_turn(); };
    if (chat && std::ranges::none_of(config.eos_token_ids, ends_turn)) chat.reset();
    return PromptTemplate::load(path, choice, std::move(chat), plain);
}

}  // namespace

ModelFolder::ModelFolder(const std::filesystem::path& path, const std::string& choice, bool plain,
                         const std::vector<std::string>& stop_texts)
    : path((check_has_weights(path), path)),
      files(read_model_files(path, path)),
      config(Config::load(path)),
      tokenizer(Tokenizer::load(path)),
      prompt_template(load_template(path, config, tokenizer, choice, plain)),
      stop_texts(stop_texts.empty() ? config.stop_texts : stop_texts),
      dtype(stored_dtype(path)) {}

void ModelFolder::save(const Transformer& model, const std::filesystem::path& to,
                       const std::string& dtype_choice) const {
    ModelFiles all = files;
    for (const char* name : {kTemplateFile, kPlainTemplateFile}) all.erase(name);
    all[prompt_template.file_name()] = prompt_template.text() + "\n";
    if (!stop_texts.empty()) {  // as transformers' generate() knows them
        auto& text = all["generation_config.json"];
        auto generation = nlohmann::ordered_json::object({{"eos_token_id", config.eos_token_ids}});
        if (!text.empty()) generation = nlohmann::ordered_json::parse(text);
        generation["stop_strings"] = stop_texts;
        text = generation.dump(2) + "\n";
    }
    save_model(model, all, to, choose_dtype(dtype_choice, dtype));
}

void ModelFolder::describe(nlohmann::ordered_json& record) const {
    record["template"] = {{"text", prompt_template.text()},
                          {"chat_format", prompt_template.chat().has_value()}};
    record["stop_texts"] = stop_texts;
}

}  // namespace r1
