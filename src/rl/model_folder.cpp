#include "src/rl/model_folder.h"

#include <algorithm>

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
                         const std::string& form, const std::vector<std::string>& stop_texts,
                         bool escape_special)
    : path((check_has_weights(path), path)),
      files(read_model_files(path, path)),
      config(Config::load(path)),
      tokenizer(Tokenizer::load(path, escape_special)),
      prompt_template(load_template(path, config, tokenizer, choice, form)),
      stop_texts(stop_texts.empty() ? config.stop_texts : stop_texts),
      dtype(stored_dtype(path)) {}

void ModelFolder::save(const Transformer& model, const std::filesystem::path& to,
                       const std::string& dtype_choice) const {
    ModelFiles all = files;
    std::erase_if(all, [](const auto& file) { return file.first.starts_with("prompt_template."); });
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
