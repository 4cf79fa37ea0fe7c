#include "src/run/record.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>

#include "src/run/error.h"
#include "src/run/files.h"

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

/// Flags that say how a run is begun, and not what it is.
const std::set<std::string> kNotOfTheRun = {"config",    "preset",  "resume",
                                            "overwrite", "dry-run", "explain"};

/// A word as a shell needs it.
std::string quoted(const std::string& word) {
    if (!word.empty() &&
        word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                               "0123456789_-+=./,:@%") == word.npos)
        return word;
    std::string text = "'";
    for (char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

/// A flag's text as a JSON number or truth value where it is one, so that 1e-3 and 0.001 are the
/// same.
ordered_json typed(const std::string& text) {
    const auto value = ordered_json::parse(text, nullptr, false);
    return value.is_number() || value.is_boolean() ? value : ordered_json(text);
}

ordered_json value_of(const CLI::Option& option) {
    if (option.get_items_expected_max() == 0) return option.count() > 0;  // a flag without a value
    if (option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll)
        return option.results();
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
            {"compiler", kCompiler}};
}

std::string config_of_run(const ordered_json& record) {
    std::string toml = "# " + record["command"].get<std::string>() + "\n";
    for (const auto& [flag, value] : record["flags"].items()) {
        if (kNotOfTheRun.contains(flag) || value == "" || value.empty()) continue;
        std::string text = value.dump();
        // CLI11 before 2.4 knows no escapes; a literal string of TOML needs none.
        if (value.is_string() && text.find('\\') != text.npos)
            text = "'" + value.get<std::string>() + "'";
        toml += flag + " = " + text + "\n";
    }
    return toml;
}

void describe_inputs(ordered_json& record, const std::string& device, int ranks,
                     const std::vector<std::pair<std::string, fs::path>>& files) {
    record["device"] = device;
    record["ranks"] = ranks;
    for (const auto& [role, path] : files) {
        if (path.empty()) continue;
        if (!fs::is_directory(path)) {
            record["sha256"][role] = sha256_of(path);
            continue;
        }
        std::vector<fs::path> parts;
        for (const auto& entry : fs::directory_iterator(path))
            if (const auto name = entry.path().filename();
                name == "config.json" || name == "generation_config.json" ||
                name == "tokenizer.json" ||
                (name.extension() == ".safetensors" && name.string().starts_with("model")))
                parts.push_back(name);
        std::ranges::sort(parts);
        for (const auto& name : parts)
            record["sha256"][role + "/" + name.string()] = sha256_of(path / name);
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

std::string text_at(const ordered_json& object, const char* key, const std::string& otherwise) {
    const auto value = object.is_object() ? object.value(key, ordered_json()) : ordered_json();
    return value.is_string() ? value.get<std::string>() : otherwise;
}

std::vector<std::string> compare_runs(const ordered_json& before, const ordered_json& now,
                                      const std::set<std::string>& may_differ) {
    for (const char* key : {"program", "flags", "sha256"})
        if (!before.is_object() || !before.contains(key) || before[key].type() != now[key].type())
            fail(
                "--resume: what --out holds does not say what run it is of; begin a new one in another --out");
    if (before["program"] != now["program"])
        fail("--resume: --out holds a run of ", before["program"].get<std::string>(), ", not of ",
             now["program"].get<std::string>(), "; choose another --out");
    for (const auto& [file, hash] : before["sha256"].items())
        if (now["sha256"].contains(file) && now["sha256"][file] != hash)
            fail("--resume: ", file, " is not the file that the run began with (its SHA-256 was ",
                 text_at(before["sha256"], file.c_str()).substr(0, 12),
                 "...); give that one, or begin a new run in another --out");
    for (const auto& [key, name] : {std::pair("template", "the prompt template is"),
                                    std::pair("stop_texts", "the stop texts are")})
        if (before.value(key, ordered_json()) != now.value(key, ordered_json()))
            fail(
                "--resume: ", name,
                " not what the run began with; give --template, --plain and --stop-text as then, or begin a "
                "new run in another --out");
    std::vector<std::string> notes;
    // What names a file is compared by its content.
    const std::set<std::string> files = {"model", "tokenizer", "train", "eval",
                                         "data",  "sample",    "out",   "template"};
    for (const auto& [flag, value] : now["flags"].items()) {
        const auto old = before["flags"].find(flag);
        if (kNotOfTheRun.contains(flag) || files.contains(flag) || old == before["flags"].end() ||
            *old == value)
            continue;
        if (!may_differ.contains(flag))
            fail("--resume: --", flag, " is ", value.dump(), ", but the run began with ",
                 old->dump(), "; give that, or begin a new run in another --out");
        notes.push_back("--" + flag + " is " + value.dump() + ", and was " + old->dump());
    }
    for (const auto& [key, name] :
         {std::pair("device", "the device"), std::pair("ranks", "the number of ranks")})
        if (const ordered_json old = before.value(key, ordered_json()); old != now[key])
            notes.push_back(std::string(name) + " is " + now[key].dump() + ", and was " +
                            old.dump());
    return notes;
}

void print_notes(const std::vector<std::string>& notes) {
    for (const auto& note : notes) std::printf("note: %s when the run began\n", note.c_str());
}

void check_schedule(const ordered_json& before, const ordered_json& now, std::int64_t step) {
    const auto planned = before["flags"].value("steps", ordered_json());
    const auto& steps = now["flags"]["steps"];
    if (now["flags"]["schedule"] == "cosine" && steps > step && planned != steps)
        fail(
            "--resume: --steps is ", steps.dump(), ", but the run began with ", planned.dump(),
            ", which shapes the learning rate of --schedule cosine; give that, or begin a new run in another "
            "--out");
}

}  // namespace r1
