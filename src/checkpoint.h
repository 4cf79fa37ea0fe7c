// Everything a run needs to go on exactly where it stopped, in one safetensors file.
#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "src/optimizer.h"
#include "src/transformer.h"

namespace r1 {

/// Parameters, both moments, the number of updates, and what else the run says: `numbers` (step, data
/// position, seed) and the reference policy's parameters (empty if there is none). Data order and sampling
/// are functions of seed and step, so nothing else is needed.
struct Checkpoint {
    std::map<std::string, std::string> numbers;
    std::vector<float> reference;
};

/// Writes FOLDER/checkpoint.safetensors, whole or not at all.
void save_checkpoint(const std::filesystem::path& folder, const Transformer& model,
                     const Optimizer& optimizer, const Checkpoint& checkpoint);
/// Restores model and optimizer. Throws Error if the file does not fit the model.
Checkpoint load_checkpoint(const std::filesystem::path& folder, Transformer& model, Optimizer& optimizer);
/// Writes a model folder that Hugging Face's transformers reads: the weights; config.json as it came, but for
/// the dtype; and the tokenizer, chat template and generation settings of the folder they came from.
/// config_folder may be a config.json itself.
void save_model(const Transformer& model, const std::filesystem::path& config_folder,
                const std::filesystem::path& tokenizer_folder, const std::filesystem::path& folder,
                SafeDtype dtype);
/// "float32", "bfloat16", or "auto": as the model in the folder came, float32 where there is none.
SafeDtype saved_dtype(const std::string& choice, const std::filesystem::path& model_folder);
/// Whether the folder holds a model, not only its config.json.
bool has_weights(const std::filesystem::path& model_folder);
bool has_checkpoint(const std::filesystem::path& folder);

}  // namespace r1
