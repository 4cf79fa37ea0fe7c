// Everything a run needs to go on exactly where it stopped, in one safetensors file; and the folder
// of a model.
#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "src/model/optimizer.h"
#include "src/model/transformer.h"

namespace r1 {

/// Beside parameters, those of a reference policy too, moments and the number of updates, what a
/// run says: step, data position, what the run is. Data order and sampling are functions of seed
/// and step, so nothing else is needed.
struct Checkpoint {
    std::map<std::string, std::string> values;
    std::string note{};  ///< why an older checkpoint than the newest was loaded, if that is so

    /// The value as a count. Throws Error if it is missing or none.
    std::uint64_t count(const std::string& name) const;
};

/// Writes FOLDER/checkpoint-STEP.safetensors with a checksum, whole or not at all. The one before
/// it stays, for the case that this one is damaged, and as many more as make `keep`.
void save_checkpoint(const std::filesystem::path& folder, const Transformer& model,
                     const Optimizer& optimizer, const Checkpoint& checkpoint, int keep);
/// Restores model and optimizer from the newest checkpoint that is whole, after `check` has seen
/// its values. Throws Error if none is, or the file does not fit the model.
Checkpoint load_checkpoint(const std::filesystem::path& folder, Transformer& model,
                           Optimizer& optimizer,
                           const std::function<void(const Checkpoint&)>& check = {});
/// Removes the checkpoints of a run that is done, but for the newest `keep`.
void remove_checkpoints(const std::filesystem::path& folder, int keep = 0);
bool has_checkpoint(const std::filesystem::path& folder);
/// The end of a sentence about a run that must be changed: how to go on, or begin again.
std::string advice_to_resume(const std::filesystem::path& folder);

/// The files of a model folder beside its weights, by name, as they were when the run began: what
/// is exported is what was loaded.
using ModelFiles = std::map<std::string, std::string>;
/// config.json of one folder (or that file itself), and the tokenizer, templates and generation
/// settings of another.
ModelFiles read_model_files(const std::filesystem::path& config_folder,
                            const std::filesystem::path& tokenizer_folder);
/// For a run that teaches the model another token that ends a response.
void set_end_tokens(ModelFiles& files, const std::vector<int>& ids);
/// Writes a model folder that Hugging Face's transformers reads: the files as they are, but for the
/// dtype in config.json, and then the weights.
void save_model(const Transformer& model, ModelFiles files, const std::filesystem::path& folder,
                SafeDtype dtype);
/// The type of a model's weights, BF16 or F32; F32 where there are none.
SafeDtype stored_dtype(const std::filesystem::path& model_folder);
/// `choice` is "float32", "bfloat16", or "auto": as stored.
SafeDtype choose_dtype(const std::string& choice, SafeDtype stored);
/// Whether the folder holds a model, not only its config.json.
bool has_weights(const std::filesystem::path& model_folder);
/// Throws Error where a folder holds no weights that can be read. Where a run was stopped before it
/// wrote them, the message says what to type; where there are some of another kind, it names them.
void check_has_weights(const std::filesystem::path& folder);

}  // namespace r1
