#include "src/model/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/model/safetensors.h"
#include "src/run/record.h"

namespace r1 {
namespace {

std::filesystem::path file_in(const std::filesystem::path& folder) {
    return folder / "checkpoint.safetensors";
}

/// What goes into the file straight from the backend and back, bit by bit: there is no room for a
/// copy.
std::vector<std::pair<std::string, Tensor>> tensors_of(const Transformer& model,
                                                       const Optimizer& optimizer) {
    auto tensors = optimizer.state();
    tensors.insert(tensors.begin(), {{"matrices", model.parameters().matrices()},
                                     {"vectors", model.parameters().vectors()}});
    return tensors;
}

/// What makes a model folder beside its weights. Those that it has are copied.
constexpr const char* kCompanions[] = {"tokenizer.json",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "vocab.json",
                                       "merges.txt",
                                       "chat_template.jinja",
                                       "generation_config.json"};

Checkpoint values_of(const SafeTensors& file, const std::filesystem::path& name) {
    Checkpoint checkpoint{file.metadata(), {}};
    if (!checkpoint.values.contains("updates"))
        fail(name.string(),
             ": not a checkpoint of this program; remove it or choose another --out");
    return checkpoint;
}

/// Checkpoints of earlier steps, by step.
std::map<std::uint64_t, std::filesystem::path> earlier_checkpoints(
    const std::filesystem::path& folder) {
    std::map<std::uint64_t, std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        unsigned long long step = 0;
        int length = 0;
        const std::string name = entry.path().filename();
        if (std::sscanf(name.c_str(), "checkpoint-%llu.safetensors%n", &step, &length) == 1 &&
            length == static_cast<int>(name.size()))
            found[step] = entry.path();
    }
    return found;
}

}  // namespace

std::uint64_t Checkpoint::count(const std::string& name) const {
    std::uint64_t value = 0;
    const auto found = values.find(name);
    const std::string text = found == values.end() ? "" : found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size())
        fail("the checkpoint's ", name, " is \"", text,
             "\", which is not a count; choose another --out");
    return value;
}

void save_checkpoint(const std::filesystem::path& folder, const Transformer& model,
                     const Optimizer& optimizer, const Checkpoint& checkpoint, int keep) {
    std::filesystem::create_directories(folder);
    const std::int64_t total = model.parameters().layout().total;
    std::vector<SafeTensorOut> out;
    for (const auto& [name, tensor] : tensors_of(model, optimizer))
        out.push_back(
            {name,
             {tensor.rows},
             {},
             [&backend = model.backend(), tensor = tensor](std::int64_t first, auto part) {
                 download_floats(backend,
                                 tensor.slice(first, static_cast<std::int64_t>(part.size())), part);
             }});
    if (!checkpoint.reference.empty()) out.push_back({"reference", {total}, checkpoint.reference});
    auto values = checkpoint.values;
    values["updates"] = std::to_string(optimizer.updates);
    write_safetensors(file_in(folder), out, SafeDtype::F32, values);
    if (keep < 2) return;
    // A second name for the same bytes: the next checkpoint takes the first name from them, and not
    // the second.
    const auto named = folder / ("checkpoint-" + values.at("step") + ".safetensors");
    std::filesystem::remove(named);
    std::filesystem::create_hard_link(file_in(folder), named);
    auto all = earlier_checkpoints(folder);
    for (; all.size() > static_cast<std::size_t>(keep); all.erase(all.begin()))
        std::filesystem::remove(all.begin()->second);
}

void remove_checkpoints(const std::filesystem::path& folder) {
    for (const auto& [step, file] : earlier_checkpoints(folder)) std::filesystem::remove(file);
    std::filesystem::remove(file_in(folder));
}

Checkpoint read_checkpoint_values(const std::filesystem::path& folder) {
    return values_of(SafeTensors(file_in(folder)), file_in(folder));
}

Checkpoint load_checkpoint(const std::filesystem::path& folder, Transformer& model,
                           Optimizer& optimizer) {
    const SafeTensors file(file_in(folder));
    const std::int64_t total = model.parameters().layout().total;
    Checkpoint checkpoint = values_of(file, file_in(folder));
    for (const auto& [name, tensor] : tensors_of(model, optimizer))
        file.read_f32(name, {tensor.rows}, [&, tensor = tensor](std::int64_t first, auto part) {
            upload_floats(model.backend(),
                          tensor.slice(first, static_cast<std::int64_t>(part.size())), part);
        });
    model.parameters().changed();
    optimizer.updates = static_cast<std::int64_t>(checkpoint.count("updates"));
    if (file.tensors().contains("reference")) {
        checkpoint.reference.resize(total);
        file.read_f32("reference", {total}, checkpoint.reference);
    }
    return checkpoint;
}

void save_model(const Transformer& model, const std::filesystem::path& config_folder,
                const std::filesystem::path& tokenizer_folder, const std::filesystem::path& folder,
                SafeDtype dtype, const std::vector<std::string>& stop_texts) {
    std::filesystem::create_directories(folder);
    const auto config_file = std::filesystem::is_directory(config_folder)
                                 ? config_folder / "config.json"
                                 : config_folder;
    auto config = nlohmann::ordered_json::parse(std::ifstream(config_file));
    config[config.contains("dtype") ? "dtype" : "torch_dtype"] =
        dtype == SafeDtype::BF16 ? "bfloat16" : "float32";
    // A run may have taught the model another token that ends a response.
    const auto& ends = model.config().eos_token_ids;
    const bool new_ends = ends != Config::load(config_file).eos_token_ids;
    if (new_ends) config["eos_token_id"] = ends;
    std::ofstream(folder / "config.json") << config.dump(2) << "\n";
    for (const char* file : kCompanions)
        if (const auto from = tokenizer_folder / file;
            std::filesystem::exists(from) && !std::filesystem::equivalent(tokenizer_folder, folder))
            std::filesystem::copy_file(from, folder / file,
                                       std::filesystem::copy_options::overwrite_existing);
    const auto file = folder / "generation_config.json";
    const bool exists = std::filesystem::exists(file);
    if (!stop_texts.empty() || (exists && new_ends)) {  // as transformers' generate() knows them
        auto generation = nlohmann::ordered_json::object();
        if (exists) generation = nlohmann::ordered_json::parse(std::ifstream(file));
        if (!exists || new_ends) generation["eos_token_id"] = ends;
        if (!stop_texts.empty()) generation["stop_strings"] = stop_texts;
        std::ofstream(file) << generation.dump(2) << "\n";
    }
    model.parameters().save(folder, dtype);  // last: where weights are, the folder is complete
}

SafeDtype saved_dtype(const std::string& choice, const std::filesystem::path& model_folder) {
    if (choice == "bfloat16") return SafeDtype::BF16;
    if (choice == "float32" || !has_weights(model_folder)) return SafeDtype::F32;
    const SafeTensors weights(model_folder);
    return std::ranges::all_of(weights.tensors(),
                               [](const auto& t) { return t.second.dtype == SafeDtype::BF16; })
               ? SafeDtype::BF16
               : SafeDtype::F32;
}

bool has_weights(const std::filesystem::path& model_folder) {
    return std::filesystem::exists(model_folder / "model.safetensors") ||
           std::filesystem::exists(model_folder / "model.safetensors.index.json");
}

bool has_checkpoint(const std::filesystem::path& folder) {
    return std::filesystem::exists(file_in(folder));
}

Config config_of_model(const std::filesystem::path& folder) {
    if (has_weights(folder)) return Config::load(folder);
    if (!has_checkpoint(folder))
        fail(folder.string(), ": ",
             std::filesystem::is_directory(folder) ? "has no model.safetensors"
                                                   : "there is no such folder",
             "; a model folder holds config.json, model.safetensors and tokenizer.json");
    const std::string command =
        recorded_run(folder).value("command", "train_grpo ... --out " + folder.string());
    const bool resumes = command.find(" --resume") != command.npos;
    fail(folder.string(), ": a run that was stopped, and has no model yet; go on with `", command,
         resumes ? "" : " --resume", "`, or add --steps 1 to that, which ends it where it is");
}

}  // namespace r1
