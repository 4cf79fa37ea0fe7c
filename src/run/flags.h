// The flags of a program. Each is declared once, on the line that holds its name, its default and
// its meaning, and is read through the reference that the declaration gives:
//
//     struct Options : Flags {
//         Options() : Flags("program", "what it does") {}
//         Group data = group("Data");
//         const std::string& train = required("--train", "training problems, JSONL");
//         const int& steps = flag("--steps", 200, "rollouts and their updates", kPositive);
//     };
#pragma once
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "src/run/error.h"

namespace r1 {

/// Thrown where --dry-run has shown what it should, to end the program with status 0.
struct DryRunDone {};

/// The numbers that a flag takes, of those that its type has: from `least`, which `open` leaves
/// out, to `most`. Infinities and NaN are never among them.
struct Bounds {
    double least = -std::numeric_limits<double>::infinity();
    double most = std::numeric_limits<double>::infinity();
    bool open = false;
};
constexpr Bounds kPositive{0, 1e9, true}, kNonNegative{0, 1e9};

class Flags {
  public:
    Flags(const std::string& program, const std::string& purpose);
    Flags(const Flags&) = delete;

    struct Group {};
    /// What is declared after this stands under a heading of its own in --help.
    Group group(const char* heading) {
        heading_ = heading;
        return {};
    }
    /// A flag with a value; of type bool, a switch. Given twice, the last counts.
    template <class T>
    const T& flag(const char* name, T value, const std::string& meaning, Bounds bounds = {}) {
        auto kept = std::make_shared<T>(std::move(value));
        values_.push_back(kept);
        CLI::Option* option;
        if constexpr (std::is_same_v<T, bool>)
            option = app_.add_flag(name, *kept, meaning);
        else
            option = app_.add_option(name, *kept, meaning);
        if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>)
            option->check(number<T>(bounds));
        option->group(heading_);
        return *kept;
    }
    const std::string& flag(const char* name, const char* value, const std::string& meaning) {
        return flag(name, std::string(value), meaning);
    }
    const std::string& required(const char* name, const std::string& meaning);
    /// One of several words; the first is the default.
    const std::string& choice(const char* name, const std::vector<std::string>& words,
                              const std::string& meaning);
    /// A flag that may be given several times.
    const std::vector<std::string>& list(const char* name, const std::string& meaning);

    /// Names of flags that may change when a run is resumed, and are then noted. Every other flag
    /// makes another run.
    void let_differ(std::initializer_list<const char*> names) {
        may_differ_.insert(names.begin(), names.end());
    }
    const std::set<std::string>& may_differ() const { return may_differ_; }
    /// Flags that would be ignored unless one of `others` is given: by themselves they are refused.
    void only_with(const std::vector<std::string>& others, const std::vector<std::string>& names) {
        only_with_.emplace_back(others, names);
    }

    CLI::Option& operator[](const std::string& name) { return *app_.get_option(name); }
    const CLI::App& app() const { return app_; }
    /// Gives a flag another value than the command line did.
    void set(const std::string& name, const std::string& value);

    /// Parses the command line, runs the body and turns what goes wrong into one sentence and an
    /// exit status: 2 for bad input, a wrong flag among it, and 1 for a fault of ours.
    ///
    /// `--config FILE` reads flags from a TOML file, `steps = 200` for `--steps 200`, and `--preset
    /// NAME` from data/presets/NAME.toml. What the command line says wins over --config, and that
    /// over
    /// --preset.
    int main(int argc, char** argv, const std::function<int()>& body);

  private:
    /// Checks every number of every flag.
    template <class T>
    static CLI::Validator number(Bounds bounds) {
        bounds.least = std::max<double>(bounds.least, std::numeric_limits<T>::lowest());
        bounds.most = std::min<double>(bounds.most, std::numeric_limits<T>::max());
        const auto check = [=](std::string& text) {
            T value{};
            const char* end = text.data() + text.size();
            const bool is_number = std::from_chars(text.data(), end, value) ==
                                   std::from_chars_result{end, std::errc()};
            const bool fits = bounds.open ? value > bounds.least : value >= bounds.least;
            if (is_number && fits && value <= bounds.most) return std::string();
            return "\"" + text + "\" is not " + described(bounds, std::is_integral_v<T>);
        };
        return CLI::Validator(check, "");
    }
    /// "a whole number from 1 to 1024".
    static std::string described(Bounds bounds, bool whole);
    /// The words of a command line that says what the file says, but for flags that are `given`.
    std::vector<std::string> words_of(const std::filesystem::path& file,
                                      const std::vector<std::string>& given) const;
    void parse(int argc, char** argv);
    /// Throws Error where a flag has another value than its default and would be ignored.
    void refuse_ignored() const;
    int run(int argc, char** argv, const std::function<int()>& body);

    CLI::App app_;
    std::string heading_ = "Options";
    std::vector<std::shared_ptr<void>> values_;
    std::set<std::string> may_differ_;
    std::vector<std::pair<std::vector<std::string>, std::vector<std::string>>> only_with_;
};

/// "dapo, grpo": the names of the files in data/presets.
std::string preset_names();

}  // namespace r1
