#include "src/model/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "src/model/safetensors.h"
#include "src/run/json.h"
#include "src/run/record.h"

namespace r1 {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// What the metadata of a checkpoint says that it is.
constexpr const char* kFormat = "r1.cpp checkpoint 2";

/// What goes into the file straight from a backend's memory and back, part by part: there is no
/// room for a copy.
struct Part {
    std::string name;
    Tensor tensor;
    Backend& backend;
};
std::vector<Part> parts_of(const Transformer& model, const Optimizer& optimizer) {
    const Parameters& weights = model.parameters();
    std::vector<Part> parts{{"matrices", weights.matrices(), model.backend()},
                            {"vectors", weights.vectors(), model.backend()}};
    for (const auto& [name, tensor] : optimizer.state())
        parts.push_back({name, tensor, model.backend()});
    for (const auto& [name, tensor] : weights.reference())
        parts.push_back({name, tensor, weights.reference_home()});
    return parts;
}

/// What makes a model folder beside its weights and config.json. Those that are there are kept.
constexpr const char* kCompanions[] = {"tokenizer.json",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "vocab.json",
                                       "merges.txt",
                                       "chat_template.jinja",
                                       "generation_config.json",
                                       "prompt_template.txt",
                                       "prompt_template.plain.txt",
                                       "prompt_template.no-think.txt"};

/// The checkpoints in a folder by step, the newest first; with the suffix ".partial" those that
/// were never finished.
std::map<std::uint64_t, fs::path, std::greater<>> checkpoints(const fs::path& folder,
                                                              const char* suffix = "") {
    std::map<std::uint64_t, fs::path, std::greater<>> found;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(folder, none)) {
        unsigned long long step = 0;
        int length = 0;
        const std::string name = entry.path().filename();
        if (std::sscanf(name.c_str(), "checkpoint-%llu.safetensors%n", &step, &length) == 1 &&
            name.substr(length) == suffix)
            found[step] = entry.path();
    }
    return found;
}

/// The newest checkpoint that is whole; `note` says why it is not the newest of all.
SafeTensors newest(const fs::path& folder, std::string& note) {
    std::string reasons;
    for (const auto& [step, file] : checkpoints(folder)) {
        try {
            SafeTensors checkpoint(file);
            checkpoint.verify();
            if (!reasons.empty()) note = reasons + "going on from step " + std::to_string(step);
            return checkpoint;
        } catch (const Error& e) {
            reasons += std::string(e.what()) + "; ";
        }
    }
    fail(reasons, "begin a new run in another --out, or with --overwrite");
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

void save_checkpoint(const fs::path& folder, const Transformer& model, const Optimizer& optimizer,
                     const Checkpoint& checkpoint, int keep) {
    model.parameters().check_finite();
    remove_checkpoints(folder, std::max(keep, 2) - 1);  // there is room for two at a time
    std::vector<SafeTensorOut> out;
    for (const Part& part : parts_of(model, optimizer))
        out.push_back({part.name, {part.tensor.rows}, {}, [part](std::int64_t first, auto values) {
                           const auto count = static_cast<std::int64_t>(values.size());
                           download_floats(part.backend, part.tensor.slice(first, count), values);
                       }});
    auto values = checkpoint.values;
    values["format"] = kFormat;
    values["sha256"] = kNoChecksum;
    values["updates"] = std::to_string(optimizer.updates);
    write_safetensors(folder / ("checkpoint-" + values.at("step") + ".safetensors"), out,
                      SafeDtype::F32, values);
}

Checkpoint load_checkpoint(const fs::path& folder, Transformer& model, Optimizer& optimizer,
                           const std::function<void(const Checkpoint&)>& check) {
    Checkpoint checkpoint;
    const SafeTensors file = newest(folder, checkpoint.note);
    checkpoint.values = file.metadata();
    if (checkpoint.values["format"] != kFormat)
        fail(folder,
             ": its checkpoint is of another version of this program; choose another --out");
    if (check) check(checkpoint);
    for (const Part& part : parts_of(model, optimizer))
        file.read_f32(part.name, {part.tensor.rows}, [&](std::int64_t first, auto values) {
            const auto count = static_cast<std::int64_t>(values.size());
            upload_floats(part.backend, part.tensor.slice(first, count), values);
        });
    model.parameters().changed();
    optimizer.updates = static_cast<std::int64_t>(checkpoint.count("updates"));
    return checkpoint;
}

void remove_checkpoints(const fs::path& folder, int keep) {
    for (const auto& [step, file] : checkpoints(folder))
        if (--keep < 0) fs::remove(file);
    for (const auto& [step, file] : checkpoints(folder, ".partial")) fs::remove(file);
}

bool has_checkpoint(const fs::path& folder) { return !checkpoints(folder).empty(); }

std::string advice_to_resume(const fs::path& folder) {
    return has_checkpoint(folder)
               ? ", and go on from the last checkpoint in " + folder.string() + " with --resume"
               : ", and begin again with --overwrite; there is no checkpoint yet";
}

ModelFiles read_model_files(const fs::path& config_folder, const fs::path& tokenizer_folder) {
    ModelFiles files;
    const auto config =
        fs::is_directory(config_folder) ? config_folder / "config.json" : config_folder;
    files["config.json"] = read_input(config);
    for (const char* name : kCompanions)
        if (fs::exists(tokenizer_folder / name)) files[name] = read_input(tokenizer_folder / name);
    return files;
}

void set_end_tokens(ModelFiles& files, const std::vector<int>& ids) {
    for (const char* name : {"config.json", "generation_config.json"}) {
        if (!files.contains(name)) continue;
        auto settings = parse_json<ordered_json>(files[name], name);
        if (!settings.is_object()) fail(name, " beside the tokenizer is not a JSON object");
        settings["eos_token_id"] = ids;
        files[name] = settings.dump(2) + "\n";
    }
}

void save_model(const Transformer& model, ModelFiles files, const fs::path& folder,
                SafeDtype dtype) {
    model.parameters().check_finite();
    auto config = parse_json<ordered_json>(files.at("config.json"), "config.json");
    config[config.contains("dtype") ? "dtype" : "torch_dtype"] =
        dtype == SafeDtype::BF16 ? "bfloat16" : "float32";
    files["config.json"] = config.dump(2) + "\n";
    for (const auto& [name, text] : files) write_file(folder / name, text);
    model.parameters().save(folder, dtype);  // last: where weights are, the folder is complete
}

SafeDtype stored_dtype(const fs::path& model_folder) {
    if (!has_weights(model_folder)) return SafeDtype::F32;
    const SafeTensors weights(model_folder);
    return std::ranges::all_of(weights.tensors(),
                               [](const auto& t) { return t.second.dtype == SafeDtype::BF16; })
               ? SafeDtype::BF16
               : SafeDtype::F32;
}

SafeDtype choose_dtype(const std::string& choice, SafeDtype stored) {
    if (choice == "auto") return stored;
    return choice == "bfloat16" ? SafeDtype::BF16 : SafeDtype::F32;
}

bool has_weights(const fs::path& model_folder) {
    return fs::exists(model_folder / "model.safetensors") ||
           fs::exists(model_folder / "model.safetensors.index.json");
}

void check_has_weights(const fs::path& folder) {
    if (has_weights(folder)) return;
    if (!fs::is_directory(folder))
        fail(folder,
             ": there is no such folder; a model folder holds config.json, "
             "model.safetensors and tokenizer.json");
    if (has_checkpoint(folder)) {
        const std::string command =
            text_at(recorded_run(folder), "command", "train_grpo ... --out " + folder.string());
        const bool resumes = command.find(" --resume") != command.npos;
        fail(folder, ": a run that was stopped, and has no model yet; go on with `", command,
             resumes ? "" : " --resume", "`, or add --steps 1 to that, which ends it where it is");
    }
    std::string others;
    for (const auto& entry : fs::directory_iterator(folder))
        for (const char* end : {".bin", ".gguf", ".safetensors", ".pt", ".pth", ".h5", ".msgpack"})
            if (entry.path().extension() == end)
                others += (others.empty() ? "" : ", ") + entry.path().filename().string();
    fail(folder, ": has no model.safetensors",
         others.empty() ? "" : " and no index of several files, but " + others,
         "; a model folder holds config.json, model.safetensors and tokenizer.json");
}

}  // namespace r1
