// What a run was: the first line of its log.jsonl, kept in its checkpoint, and compared when it is resumed.
#pragma once
#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "src/model/transformer.h"

namespace r1 {

/// The SHA-256 of a file's bytes, in hexadecimal: what `sha256sum` prints, and Hugging Face shows beside a file.
std::string sha256_of_file(const std::filesystem::path& file);

/// {"program", "command", "flags": {every option: its value}, "sha256": {}, "commit", "date", "machine", "versions"}.
nlohmann::ordered_json describe_run(const CLI::App& app, int argc, char** argv);

/// Adds what only the loaded run knows: the device, the number of ranks, and a hash for each file under the role
/// that it plays ("train": data.jsonl). A role "model" is a folder, whose config, weights and tokenizer count.
void describe_inputs(nlohmann::ordered_json& record, const std::string& device, int ranks,
                     const std::vector<std::pair<std::string, std::filesystem::path>>& files);

/// What the first line of FOLDER/log.jsonl says of its run; an empty object where it says nothing.
nlohmann::ordered_json recorded_run(const std::filesystem::path& folder);

/// Compares a run with the one that it goes on from. Flags in `may_differ`, the device and the number of ranks are
/// returned, one sentence each; another program, other data, another prompt template or any other flag throws Error, and
/// names it.
std::vector<std::string> compare_runs(const nlohmann::ordered_json& before, const nlohmann::ordered_json& now,
                                      const std::set<std::string>& may_differ);

/// Throws Error where a run with a cosine schedule is to take more steps than it was begun with: its learning rates were
/// those of another length.
void check_schedule(const nlohmann::ordered_json& before, const std::string& schedule, std::int64_t steps,
                    std::int64_t step);

/// A log's first line, or the one that marks where a run was resumed.
nlohmann::ordered_json log_line(const nlohmann::ordered_json& record, bool resuming, std::int64_t step);

/// Whether --out may be used: throws Error where the folder holds a run, or a model, and neither --resume nor
/// --overwrite is given, and where it is the folder of the model itself. Returns whether a checkpoint is resumed.
bool check_run_folder(const std::filesystem::path& folder, const std::filesystem::path& model_folder,
                      bool resume, bool overwrite);

/// Removes the checkpoints and the model of an earlier run from the folder of a new one.
void clear_run_folder(const std::filesystem::path& folder);

/// The configuration of a folder that holds a model. Throws Error where there are no weights; where a run was stopped
/// before it wrote them, the message says what to type.
Config config_of_model(const std::filesystem::path& folder);

}  // namespace r1
