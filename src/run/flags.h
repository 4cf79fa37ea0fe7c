// What the three programs' mains share.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdio>

#include "src/run/error.h"
#include "src/rl/reward_mix.h"

namespace r1 {

/// Thrown where --dry-run has shown what it should, to end the program with status 0.
struct DryRunDone {};

/// Checks for options; CLI11's own PositiveNumber spells out the largest double in its message.
inline CLI::Validator number_from(double least, bool itself, const char* what) {
    return CLI::Validator(
        [=](std::string& text) {
            double value = 0;
            const bool ok =
                CLI::detail::lexical_cast(text, value) && (value > least || (itself && value == least));
            return ok ? std::string() : "\"" + text + "\" is not " + what;
        },
        "");
}
const inline CLI::Validator kPositive = number_from(0, false, "a positive number");
const inline CLI::Validator kNonNegative = number_from(0, true, "a number from 0 up");

inline void add_template_options(CLI::App& app, std::string& choice, bool& plain) {
    app.add_option(
        "--template", choice,
        "prompt template: a file, or r1-zero, r1-chat, boxed; else the model's prompt_template.txt, "
        "else r1-chat for a chat model, r1-zero for a base model");
    app.add_flag("--plain", plain,
                 "no chat format around the template, even if the model was trained on chats");
}

inline void add_device_options(CLI::App& app, std::string& device, std::string& dtype) {
    app.add_option("--device", device, "where to compute; auto: a GPU if there is one")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
    app.add_option("--dtype", dtype,
                   "that matrices are multiplied in; auto: bfloat16 on a GPU, float32 on the CPU")
        ->check(CLI::IsMember({"auto", "float32", "bfloat16"}));
}

/// The texts that end a response; each time that the flag is given adds one.
inline void add_stop_texts(CLI::App& app, std::vector<std::string>& texts) {
    app.add_option(
           "--stop-text", texts,
           "text that ends a response, e.g. \"</answer>\" for a base model that talks on; may be given "
           "several times; else the model's own (stop_strings of its generation_config.json)")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->allow_extra_args(false);
}

/// --script is not among them: other measures than the reward's use it, too.
inline void add_reward_options(CLI::App& app, RewardOptions& reward) {
    app.add_option("--reward", reward.parts,
                   "parts and weights: accuracy, format, language, repetition, overlong, length, program");
    app.add_option(
        "--reward-program", reward.program,
        "command behind the part program: reads JSON lines {problem, prompt, response}, answers numbers");
    app.add_option("--reward-seconds", reward.program_seconds, "time it may take for one batch of responses")
        ->check(kPositive);
    app.add_option(
           "--overlong-cache", reward.overlong_cache,
           "tokens before the longest response over which the overlong reward sinks to -1; 0: a fifth of it")
        ->check(kNonNegative);
}

/// What becomes of the run folder.
inline void add_run_options(CLI::App& app, bool& resume, bool& overwrite, bool& dry_run, int& keep) {
    auto* flag = app.add_flag("--resume", resume, "go on from the checkpoint in --out, if there is one");
    app.add_flag("--overwrite", overwrite, "replace the run that --out holds")->excludes(flag);
    app.add_flag("--dry-run", dry_run, "check all input, print the memory plan, and end");
    app.add_option("--keep", keep,
                   "checkpoints that stay when the run is done, the newest; while it goes on there is always one")
        ->check(kNonNegative);
}

inline void add_state_dtype(CLI::App& app, std::string& choice) {
    app.add_option(
           "--state-dtype", choice,
           "of master weights and AdamW's moments: float32 (16 bytes a parameter with its gradient, 18 with "
           "--dtype bfloat16), bfloat16 (10), or float8 (bfloat16 weights, 8-bit moments: 8)")
        ->check(CLI::IsMember({"float32", "bfloat16", "float8"}));
}

inline void add_save_dtype(CLI::App& app, std::string& choice) {
    app.add_option("--save-dtype", choice, "of the trained model's weights; auto: as the model came")
        ->check(CLI::IsMember({"auto", "float32", "bfloat16"}));
}

/// Parses the command line, runs the body and turns what goes wrong into one sentence and an exit status: 2
/// for bad input (a wrong flag among it), 1 for a fault of ours.
template <class Body>
int run_main(CLI::App& app, int argc, char** argv, Body body) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a pipe or a file shows each line when it is there
    auto complain = [&](const std::string& sentence, int status) {
        std::fflush(stdout);  // what went wrong comes after what came before it
        std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), sentence.c_str());
        return status;
    };
    try {
        app.parse(argc, argv);
        return body();
    } catch (const DryRunDone&) {
        return 0;
    } catch (const CLI::ParseError& e) {
        if (e.get_exit_code() == 0) return app.exit(e);  // --help
        // A misspelt flag is a better reason than the one that is then missing, which CLI11 finds first.
        for (const std::string& word : app.remaining())
            if (word.starts_with("--")) return complain("there is no flag " + word + "; see --help", 2);
        return complain(e.what() + std::string("; see --help"), 2);
    } catch (const Error& e) {
        return complain(e.what(), 2);
    } catch (const std::exception& e) {
        return complain(std::string("internal error: ") + e.what(), 1);
    }
}

}  // namespace r1
