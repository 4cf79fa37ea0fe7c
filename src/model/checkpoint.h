// Everything a run needs to go on exactly where it stopped, in one safetensors file.
#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "src/model/optimizer.h"
#include "src/model/transformer.h"

namespace r1 {

/// Parameters, both moments, the number of updates, and what else the run says: `values` (step,
/// data position, what the run is) and the reference policy's parameters (empty if there is none).
/// Data order and sampling are functions of seed and step, so nothing else is needed.
struct Checkpoint {
    std::map<std::string, std::string> values;
    std::vector<float> reference;

    /// The value as a count. Throws Error if it is missing or none.
    std::uint64_t count(const std::string& name) const;
};

/// Writes FOLDER/checkpoint.safetensors, whole or not at all. Of the last `keep` checkpoints those
/// before it stay as checkpoint-STEP.safetensors; to resume from one of them, give it the other's
/// name.
void save_checkpoint(const std::filesystem::path& folder, const Transformer& model,
                     const Optimizer& optimizer, const Checkpoint& checkpoint, int keep);
/// What the checkpoint says about its run, without its tensors.
Checkpoint read_checkpoint_values(const std::filesystem::path& folder);
/// Restores model and optimizer. Throws Error if the file does not fit the model.
Checkpoint load_checkpoint(const std::filesystem::path& folder, Transformer& model,
                           Optimizer& optimizer);
/// Removes every checkpoint of a run that is done.
void remove_checkpoints(const std::filesystem::path& folder);
/// Writes a model folder that Hugging Face's transformers reads: the weights; config.json as it
/// came, but for the dtype; and the tokenizer, chat template and generation settings of the folder
/// they came from, with the texts that end a response as its `stop_strings`. config_folder may be a
/// config.json itself.
void save_model(const Transformer& model, const std::filesystem::path& config_folder,
                const std::filesystem::path& tokenizer_folder, const std::filesystem::path& folder,
                SafeDtype dtype, const std::vector<std::string>& stop_texts = {});
/// "float32", "bfloat16", or "auto": as the model in the folder came, float32 where there is none.
SafeDtype saved_dtype(const std::string& choice, const std::filesystem::path& model_folder);
/// Whether the folder holds a model, not only its config.json.
bool has_weights(const std::filesystem::path& model_folder);
bool has_checkpoint(const std::filesystem::path& folder);
/// The configuration of a folder that holds a model. Throws Error where there are no weights; where
/// a run was stopped before it wrote them, the message says what to type.
Config config_of_model(const std::filesystem::path& folder);

}  // namespace r1
