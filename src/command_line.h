// What the three programs' mains share.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdio>

#include "src/error.h"

namespace r1 {

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
    try {
        app.parse(argc, argv);
        return body();
    } catch (const CLI::ParseError& e) {
        if (e.get_exit_code() == 0) return app.exit(e);  // --help
        std::fprintf(stderr, "%s: %s; see --help\n", app.get_name().c_str(), e.what());
        return 2;
    } catch (const Error& e) {
        std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), e.what());
        return 2;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "%s: internal error: %s\n", app.get_name().c_str(), e.what());
        return 1;
    }
}

}  // namespace r1
