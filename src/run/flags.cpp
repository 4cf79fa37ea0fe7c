#include "src/run/flags.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <iomanip>
#include <set>
#include <sstream>

#include "src/run/comm.h"

namespace r1 {
namespace {

/// data/presets lies beside the programs in a bundle, and beside the build folder otherwise.
std::filesystem::path preset_folder() {
    const auto programs = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    for (const auto& root : {programs, programs.parent_path()})
        if (std::filesystem::is_directory(root / "data/presets")) return root / "data/presets";
    return "data/presets";
}

/// Makes sure that the numbers of the standard streams are no file of ours. Returns whether there
/// is an output.
bool open_standard_streams() {
    const bool has_output = ::fcntl(STDOUT_FILENO, F_GETFD) != -1;
    for (int number = ::open("/dev/null", O_RDWR); number >= 0; number = ::dup(number))
        if (number > STDERR_FILENO) {
            ::close(number);
            break;
        }
    return has_output;
}

bool is_given(const std::string& flag, const std::vector<std::string>& words) {
    return std::ranges::any_of(words, [&](const std::string& word) {
        return word == flag || word.starts_with(flag + "=");
    });
}

/// The value of a flag among the words of a command line, before it is parsed.
std::string value_among(const std::string& flag, const std::vector<std::string>& words) {
    std::string value;
    for (std::size_t i = 0; i < words.size(); ++i) {
        if (words[i] == flag && i + 1 < words.size()) value = words[i + 1];
        if (words[i].starts_with(flag + "=")) value = words[i].substr(flag.size() + 1);
    }
    return value;
}

}  // namespace

std::string preset_names() {
    std::set<std::string> names;
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(preset_folder(), none))
        if (entry.path().extension() == ".toml") names.insert(entry.path().stem());
    std::string list;
    for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
    return list;
}

Flags::Flags(const std::string& program, const std::string& purpose) : app_(purpose, program) {
    app_.option_defaults()->always_capture_default()->take_last();
    flag("--config", "", "TOML file of flags, such as a run's run.toml; flags given beside it win");
}

const std::string& Flags::required(const char* name, const std::string& meaning) {
    const std::string& value = flag(name, "", meaning);
    app_.get_option(name)->required();
    return value;
}

const std::string& Flags::choice(const char* name, const std::vector<std::string>& words,
                                 const std::string& meaning) {
    const std::string& value = flag(name, words.at(0), meaning);
    app_.get_option(name)->check(CLI::IsMember(words));
    return value;
}

std::string Flags::described(Bounds bounds, bool whole) {
    const double first = bounds.least + (whole && bounds.open ? 1 : 0);
    std::ostringstream text;
    text << std::setprecision(whole ? 20 : 6) << (whole ? "a whole number" : "a number")
         << (bounds.open && !whole ? " above " : " from ") << first << " to " << bounds.most;
    return text.str();
}

const std::vector<std::string>& Flags::list(const char* name, const std::string& meaning) {
    const auto& values = flag(name, std::vector<std::string>{}, meaning);
    app_.get_option(name)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->allow_extra_args(false);
    return values;
}

void Flags::set(const std::string& name, const std::string& value) {
    CLI::Option& option = (*this)[name];
    option.clear();
    option.add_result(value);
    option.run_callback();
}

std::vector<std::string> Flags::words_of(const std::filesystem::path& file,
                                         const std::vector<std::string>& given) const {
    if (!std::filesystem::is_regular_file(file)) fail(file.string(), ": there is no such file");
    std::vector<CLI::ConfigItem> items;
    try {
        items = CLI::ConfigTOML().from_file(file.string());
    } catch (const CLI::Error& e) {
        fail(file.string(), ": is not TOML: ", e.what());
    }
    std::vector<std::string> words;
    for (const CLI::ConfigItem& item : items) {
        const std::string flag = "--" + item.fullname();
        if (!app_.get_option_no_throw(flag))
            fail(file.string(), ": there is no flag ", flag, "; see --help");
        if (is_given(flag, given)) continue;
        for (const std::string& value : item.inputs) words.push_back(flag + "=" + value);
    }
    return words;
}

void Flags::parse(int argc, char** argv) {
    const std::vector<std::string> given(argv + 1, argv + argc);
    std::vector<std::string> words;
    const std::string config = value_among("--config", given);
    if (!config.empty()) words = words_of(config, given);
    const bool has_presets = app_.get_option_no_throw("--preset") != nullptr;
    const std::string preset = has_presets ? value_among("--preset", given) : "";
    if (!preset.empty()) {
        const auto file = preset_folder() / (preset + ".toml");
        if (!std::filesystem::is_regular_file(file))
            fail("--preset: there is no preset \"", preset, "\"; choose one of ", preset_names());
        std::vector<std::string> stronger = given;
        stronger.insert(stronger.end(), words.begin(), words.end());
        const auto of_preset = words_of(file, stronger);
        std::printf("preset %s:", preset.c_str());
        for (const auto& word : of_preset) std::printf(" %s", word.c_str());
        std::printf("\n");
        words.insert(words.begin(), of_preset.begin(), of_preset.end());
    }
    words.insert(words.end(), given.begin(), given.end());
    std::ranges::reverse(words);  // as CLI11 wants them
    app_.parse(std::move(words));
    refuse_ignored();
}

void Flags::refuse_ignored() const {
    const auto is_set = [&](const std::string& name) {
        const CLI::Option& option = *app_.get_option(name);
        if (option.count() == 0) return false;
        const std::string& value = option.results().back();
        return value != option.get_default_str() && value != "false";  // a switch has no default
    };
    for (const auto& [others, names] : only_with_) {
        if (std::ranges::any_of(others, is_set)) continue;
        const auto ignored = std::ranges::find_if(names, is_set);
        if (ignored == names.end()) continue;
        std::string list = others.front();
        for (std::size_t i = 1; i < others.size(); ++i) list += " or " + others[i];
        fail(*ignored, " would be ignored: it goes with ", list);
    }
}

int Flags::main(int argc, char** argv, const std::function<int()>& body) {
    return end_ranks(run(argc, argv, body));
}

int Flags::run(int argc, char** argv, const std::function<int()>& body) {
    const bool has_output = open_standard_streams();
    std::signal(SIGPIPE, SIG_IGN);             // who no longer listens does not end a run
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a pipe or a file shows each line when it is there
    const auto complain = [&](const std::string& sentence, int status) {
        std::fflush(stdout);  // what went wrong comes after what came before it
        std::fprintf(stderr, "%s: %s\n", app_.get_name().c_str(), sentence.c_str());
        return status;
    };
    try {
        if (!has_output) fail("standard output is closed; send it somewhere, such as to /dev/null");
        parse(argc, argv);
        const int status = body();
        if (std::fflush(stdout) != 0 || std::ferror(stdout))
            return complain("standard output could not be written to the end", 2);
        return status;
    } catch (const DryRunDone&) {
        return 0;
    } catch (const CLI::ParseError& e) {
        if (e.get_exit_code() == 0) return app_.exit(e);  // --help
        // A misspelt flag is a better reason than the one that is then missing, which CLI11 finds
        // first.
        for (const std::string& word : app_.remaining())
            if (word.starts_with("--"))
                return complain("there is no flag " + word + "; see --help", 2);
        return complain(e.what() + std::string("; see --help"), 2);
    } catch (const Error& e) {
        return complain(e.what(), 2);
    } catch (const std::filesystem::filesystem_error& e) {
        return complain(e.path1().string() + ": " + e.code().message(), 2);
    } catch (const std::system_error& e) {
        return complain(std::string("the system refused a request: ") + e.what(), 2);
    } catch (const std::bad_alloc&) {
        return complain("out of memory; give it more, or smaller input", 2);
    } catch (const std::exception& e) {
        return complain(std::string("internal error: ") + e.what(), 1);
    }
}

}  // namespace r1
