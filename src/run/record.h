// What a run was: the first line of its log.jsonl, kept in its checkpoint, and compared when it is
// resumed.
#pragma once
#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace r1 {

/// {"program", "command", "flags": {every option: its value}, "sha256": {}, "commit", "date",
/// "machine", "compiler"}.
nlohmann::ordered_json describe_run(const CLI::App& app, int argc, char** argv);

/// The flags of a described run as TOML, with which --config repeats it.
std::string config_of_run(const nlohmann::ordered_json& record);

/// Adds what only the loaded run knows: the device, the number of ranks, and a hash for each file
/// under the role that it plays ("train": data.jsonl). A role "model" is a folder, whose config,
/// weights and tokenizer count.
void describe_inputs(nlohmann::ordered_json& record, const std::string& device, int ranks,
                     const std::vector<std::pair<std::string, std::filesystem::path>>& files);

/// What the first line of FOLDER/log.jsonl says of its run; an empty object where it says nothing.
nlohmann::ordered_json recorded_run(const std::filesystem::path& folder);

/// The text behind a key of a recorded run, or another where there is none.
std::string text_at(const nlohmann::ordered_json& object, const char* key,
                    const std::string& otherwise = "");

/// Compares a run with the one that it goes on from. Flags in `may_differ`, the device and the
/// number of ranks are returned, one sentence each; another program, other data, another prompt
/// template or any other flag throws Error, and names it.
std::vector<std::string> compare_runs(const nlohmann::ordered_json& before,
                                      const nlohmann::ordered_json& now,
                                      const std::set<std::string>& may_differ);

/// Prints those sentences.
void print_notes(const std::vector<std::string>& notes);

/// Throws Error where a run with a cosine schedule is to take more steps than it was begun with:
/// its learning rates were those of another length.
void check_schedule(const nlohmann::ordered_json& before, const nlohmann::ordered_json& now,
                    std::int64_t step);

}  // namespace r1
