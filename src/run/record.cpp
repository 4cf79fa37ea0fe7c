#include "src/run/record.h"

#include <openssl/evp.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <dnnl.hpp>
#include <fstream>

#include "src/model/checkpoint.h"
#include "src/run/error.h"
#include "src/run/mapped_file.h"

namespace r1 {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kCommit =
#include "commit.inc"  // written by the build
    ;

#ifdef __clang__
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "g++ " __VERSION__;
#endif

/// A word as a shell needs it.
std::string quoted(const std::string& word) {
    if (!word.empty() && word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                "0123456789_-+=./,:@%") == word.npos)
        return word;
    std::string text = "'";
    for (char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

/// A flag's text as a JSON number or truth value where it is one, so that 1e-3 and 0.001 are the same.
ordered_json typed(const std::string& text) {
    const auto value = ordered_json::parse(text, nullptr, false);
    return value.is_number() || value.is_boolean() ? value : ordered_json(text);
}

ordered_json value_of(const CLI::Option& option) {
    if (option.get_items_expected_max() == 0) return option.count() > 0;  // a flag without a value
    if (option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll) return option.results();
    return typed(option.count() ? option.results().back() : option.get_default_str());
}

/// The value behind `key` in a file of "key : value" lines such as /proc/cpuinfo.
std::string field(const char* file, const std::string& key) {
    std::ifstream in(file);
    for (std::string line; std::getline(in, line);)
        if (line.starts_with(key)) {
            const auto begin = line.find_first_not_of(" \t", line.find(':') + 1);
            return begin == line.npos ? "" : line.substr(begin);
        }
    return "";
}

}  // namespace

std::string sha256_of_file(const fs::path& file) {
    const MappedFile mapped(file);
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (!EVP_Digest(mapped.bytes().data(), mapped.bytes().size(), digest, &size, EVP_sha256(), nullptr))
        fail(file.string(), ": its SHA-256 could not be computed");
    std::string hex;
    for (unsigned i = 0; i < size; ++i) {
        char two[3];
        std::snprintf(two, sizeof two, "%02x", digest[i]);
        hex += two;
    }
    return hex;
}

ordered_json describe_run(const CLI::App& app, int argc, char** argv) {
    ordered_json flags;
    for (const CLI::Option* option : app.get_options())
        if (const std::string name = option->get_lnames().at(0); name != "help")
            flags[name] = value_of(*option);
    std::string command;
    for (int i = 0; i < argc; ++i) command += (i ? " " : "") + quoted(argv[i]);

    char date[32];
    const std::time_t now = std::time(nullptr);
    std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
    utsname system{};
    uname(&system);
    const auto* onednn = dnnl_version();
    char onednn_version[32];
    std::snprintf(onednn_version, sizeof onednn_version, "%d.%d.%d", onednn->major, onednn->minor,
                  onednn->patch);
    return {{"program", app.get_name()},
            {"command", command},
            {"flags", flags},
            {"sha256", ordered_json::object()},
            {"commit", kCommit},
            {"date", date},
            {"machine",
             {{"host", system.nodename},
              {"system", std::string(system.sysname) + " " + system.release},
              {"cpu", field("/proc/cpuinfo", "model name")},
              {"cores", sysconf(_SC_NPROCESSORS_ONLN)},
              {"memory", field("/proc/meminfo", "MemTotal")}}},
            {"versions", {{"compiler", kCompiler}, {"oneDNN", onednn_version}}}};
}

void describe_inputs(ordered_json& record, const std::string& device, int ranks,
                     const std::vector<std::pair<std::string, fs::path>>& files) {
    record["device"] = device;
    record["ranks"] = ranks;
    for (const auto& [role, path] : files) {
        if (path.empty()) continue;
        if (!fs::is_directory(path)) {
            record["sha256"][role] = sha256_of_file(path);
            continue;
        }
        std::vector<fs::path> parts;
        for (const auto& entry : fs::directory_iterator(path))
            if (const auto name = entry.path().filename();
                name == "config.json" || name == "generation_config.json" || name == "tokenizer.json" ||
                (name.extension() == ".safetensors" && name.string().starts_with("model")))
                parts.push_back(name);
        std::ranges::sort(parts);
        for (const auto& name : parts)
            record["sha256"][role + "/" + name.string()] = sha256_of_file(path / name);
    }
}

ordered_json recorded_run(const fs::path& folder) {
    std::ifstream in(folder / "log.jsonl");
    std::string line;
    if (!std::getline(in, line)) return ordered_json::object();
    const auto parsed = ordered_json::parse(line, nullptr, false);
    const auto run = parsed.is_object() ? parsed.value("run", ordered_json()) : ordered_json();
    return run.is_object() ? run : ordered_json::object();
}

std::vector<std::string> compare_runs(const ordered_json& before, const ordered_json& now,
                                      const std::set<std::string>& may_differ) {
    for (const char* key : {"program", "flags", "sha256"})
        if (!before.is_object() || !before.contains(key) || before[key].type() != now[key].type())
            fail("--resume: the checkpoint does not say what run it is of; begin a new one in another --out");
    if (before["program"] != now["program"])
        fail("--resume: the checkpoint is one of ", before["program"].get<std::string>(), ", not of ",
             now["program"].get<std::string>(), "; choose another --out");
    for (const auto& [file, hash] : before["sha256"].items())
        if (now["sha256"].contains(file) && now["sha256"][file] != hash)
            fail("--resume: ", file, " is not the file that the run began with (its SHA-256 was ",
                 hash.get<std::string>().substr(0, 12),
                 "...); give that one, or begin a new run in another --out");
    for (const auto& [key, name] :
         {std::pair("template", "the prompt template is"), std::pair("stop_texts", "the stop texts are")})
        if (before.value(key, ordered_json()) != now.value(key, ordered_json()))
            fail("--resume: ", name,
                 " not what the run began with; give --template, --plain and --stop-text as then, or begin a "
                 "new run in another --out");
    std::vector<std::string> notes;
    // What names a file is compared by its content; the others say what to do, not what the run is.
    const std::set<std::string> not_compared = {"model",     "tokenizer", "train",    "eval",
                                                "data",      "out",       "template", "resume",
                                                "overwrite", "dry-run",   "explain",  "preset"};
    for (const auto& [flag, value] : now["flags"].items()) {
        const auto old = before["flags"].find(flag);
        if (not_compared.contains(flag) || old == before["flags"].end() || *old == value) continue;
        if (!may_differ.contains(flag))
            fail("--resume: --", flag, " is ", value.dump(), ", but the run began with ", old->dump(),
                 "; give that, or begin a new run in another --out");
        notes.push_back("--" + flag + " is " + value.dump() + ", and was " + old->dump());
    }
    for (const auto& [key, name] :
         {std::pair("device", "the device"), std::pair("ranks", "the number of ranks")})
        if (const ordered_json old = before.value(key, ordered_json()); old != now[key])
            notes.push_back(std::string(name) + " is " + now[key].dump() + ", and was " + old.dump());
    return notes;
}

void check_schedule(const ordered_json& before, const std::string& schedule, std::int64_t steps,
                    std::int64_t step) {
    const auto& planned = before["flags"]["steps"];
    if (schedule == "cosine" && steps > step && planned != steps)
        fail(
            "--resume: --steps is ", steps, ", but the run began with ", planned.dump(),
            ", which shapes the learning rate of --schedule cosine; give that, or begin a new run in another "
            "--out");
}

ordered_json log_line(const ordered_json& record, bool resuming, std::int64_t step) {
    if (!resuming) return {{"run", record}};
    return {{"resumed", {{"step", step}, {"command", record["command"]}, {"date", record["date"]}}}};
}

bool check_run_folder(const fs::path& folder, const fs::path& model_folder, bool resume, bool overwrite) {
    std::error_code ignored;
    if (fs::exists(folder, ignored) && !fs::is_directory(folder, ignored))
        fail(folder.string(), ": is a file; --out wants a folder");
    if (fs::equivalent(folder, model_folder, ignored))
        fail("--out ", folder.string(), " is the folder of --model; choose another");
    const bool has_model = has_weights(folder), has_log = fs::exists(folder / "log.jsonl", ignored);
    if (resume && has_checkpoint(folder)) return true;
    if (resume && has_model)
        fail(folder.string(),
             ": the run in it is finished and its checkpoint is gone; to train its model "
             "further, give it as --model and choose another --out");
    if (!resume && !overwrite && (has_model || has_log || has_checkpoint(folder)))
        fail(folder.string(), ": holds a ", has_log || has_checkpoint(folder) ? "run" : "model",
             " already; go on with it by --resume, replace it by --overwrite, or choose another --out");
    return false;
}

void clear_run_folder(const fs::path& folder) {
    if (!fs::is_directory(folder)) return;
    std::vector<fs::path> old;
    for (const auto& entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename();
        if (name == "log.jsonl" || name == "samples.jsonl" || name == "best" ||
            name == "model.safetensors.index.json" ||
            (name.ends_with(".safetensors") && (name.starts_with("checkpoint") || name.starts_with("model"))))
            old.push_back(entry.path());
    }
    for (const auto& path : old) fs::remove_all(path);
}

Config config_of_model(const fs::path& folder) {
    if (has_weights(folder)) return Config::load(folder);
    if (!has_checkpoint(folder))
        fail(folder.string(), ": ",
             fs::is_directory(folder) ? "has no model.safetensors" : "there is no such folder",
             "; a model folder holds config.json, model.safetensors and tokenizer.json");
    const std::string command =
        recorded_run(folder).value("command", "train_grpo ... --out " + folder.string());
    const bool resumes = command.find(" --resume") != command.npos;
    fail(folder.string(), ": a run that was stopped, and has no model yet; go on with `", command,
         resumes ? "" : " --resume", "`, or add --steps 1 to that, which ends it where it is");
}

}  // namespace r1
