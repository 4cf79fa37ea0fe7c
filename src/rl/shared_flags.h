// Flags that several programs share.
#pragma once
#include <string>
#include <vector>

#include "src/device/device.h"
#include "src/model/optimizer.h"
#include "src/rl/judge.h"
#include "src/rl/model_folder.h"
#include "src/run/error.h"
#include "src/run/flags.h"

namespace r1 {

/// What stays far from where products of such numbers overflow.
constexpr Bounds kManyTokens{1, 1 << 24}, kManyResponses{1, 1 << 16};
/// Temperatures between which logits divided by them are neither infinite nor all the same.
constexpr double kColdest = 0.001, kHottest = 1000;

// clang-format off

constexpr const char* kEscapeSpecial = "spell special tokens that a question or an example writes out, such as <|im_end|>, as plain text; else they become these tokens, as in transformers";

struct PromptFlags {
    explicit PromptFlags(Flags& f)
        : choice(f.flag("--template", "", "prompt template: a file, or r1-zero, r1-chat, boxed; else the model's own, else r1-chat for a chat model, r1-zero for a base model")),
          plain(f.flag("--plain", false, "omit the chat format around the template, even if the model was trained on chats")),
          no_think(f.flag("--no-think", false, "switch the thoughts of a chat model off, as Qwen3 allows")),
          escape_special(f.flag("--escape-special", false, kEscapeSpecial)),
          stop_texts(f.list("--stop-text", "text that ends a response, such as \"</answer>\" for a base model that talks on; may be given several times; else the model's own (stop_strings of its generation_config.json)")) {}
    std::string form() const {
        if (plain && no_think) fail("--no-think is a matter of the chat format, which --plain omits");
        if (plain) return "plain";
        return no_think ? "no-think" : "";
    }
    const std::string& choice;
    const bool &plain, &no_think, &escape_special;
    const std::vector<std::string>& stop_texts;
};

struct RewardFlags {
    RewardFlags(Flags& f, const char* parts)
        : parts(f.flag("--reward", parts, "measures and their weights; a negative weight punishes: " + measures())),
          script(f.flag("--script", "latin", "script that language is measured by: latin, cyrillic, han, ...")),
          program(f.flag("--reward-program", "", "command behind the part program: reads JSON lines {problem, prompt, response}, answers each with a number")),
          seconds(f.flag("--reward-seconds", 30.0, "time it may take for one batch of responses", {0, 1e6, true})),
          overlong_cache(f.flag("--overlong-cache", 0, "tokens before the longest response over which overlong sinks to -1; 0: a fifth of it", kNonNegative)),
          skip_unreadable(f.flag("--skip-unreadable", false, "leave out problems whose answers cannot be read, and count them")) {
        f.only_with({"--reward-program"}, {"--reward-seconds"});
    }
    /// soft_overlong: with DAPO's soft punishment of long responses.
    RewardOptions options(int max_new_tokens, bool soft_overlong = false) const {
        return {parts + (soft_overlong ? ",overlong=1" : ""), script, max_new_tokens, overlong_cache, program, seconds};
    }
    static std::string measures() {
        std::string list;
        for (const Measure& m : kMeasures) list += std::string(m.name) + " (" + m.meaning + "), ";
        return list + "program";
    }
    const std::string &parts, &script, &program;
    const double& seconds;
    const int& overlong_cache;
    const bool& skip_unreadable;
};

struct DeviceFlags {
    explicit DeviceFlags(Flags& f)
        : device(f.flag("--device", "auto", "where to compute: auto (on a GPU if there is one), cpu, reference (plain loops), or the NAME of a libr1_NAME.so beside the program; cuda:1 is the second GPU")),
          dtype(f.choice("--dtype", {"auto", "float32", "bfloat16"}, "type for matrix products; auto: bfloat16 on a GPU, float32 on the CPU")),
          threads(f.flag("--threads", 0, "CPU threads, 0: one a core; the result is the same", {0, 1024})) {
        f.let_differ({"device", "threads"});
    }
    const std::string &device, &dtype;
    const int& threads;
};

/// AdamW, and the memory that a training step takes.
struct OptimizerFlags {
    OptimizerFlags(Flags& f, double lr, const std::vector<std::string>& schedules, int warmup)
        : lr(f.flag("--lr", lr, "learning rate", kPositive)),
          schedule(f.choice("--schedule", schedules, "learning rate after the warm-up")),
          warmup(f.flag("--warmup", warmup, "steps over which the learning rate rises", kNonNegative)),
          weight_decay(f.flag("--weight-decay", 0.0, "AdamW's weight decay, on matrices", kNonNegative)),
          clip_norm(f.flag("--clip-norm", 1.0, "largest norm of the gradient, 0: any", kNonNegative)),
          token_budget(f.flag("--token-budget", std::int64_t{8192}, "tokens of a forward pass (memory)", kManyTokens)),
          recompute(f.flag("--recompute", false, "recompute activations in the backward pass: less memory, a third more work")),
          state_dtype(f.choice("--state-dtype", {"float32", "bfloat16"}, "type of master weights and AdamW's moments: float32 takes 16 bytes a parameter with its gradient (18 with --dtype bfloat16), bfloat16 10")) {
        f.let_differ({"lr", "warmup", "weight-decay", "clip-norm", "recompute"});
    }
    operator OptimizerOptions() const { return {clip_norm, weight_decay}; }
    LearningRate learning_rate(std::int64_t steps) const {
        return {.lr = lr, .warmup_steps = warmup, .total_steps = steps, .cosine = schedule == "cosine"};
    }
    const double& lr;
    const std::string& schedule;
    const int& warmup;
    const double &weight_decay, &clip_norm;
    const std::int64_t& token_budget;
    const bool& recompute;
    const std::string& state_dtype;
};

/// What becomes of the run folder.
struct RunFlags {
    RunFlags(Flags& f, const char* out, const char* contents, int save_every)
        : out(f.flag("--out", out, contents)),
          resume(f.flag("--resume", false, "go on from the checkpoint in --out, if there is one")),
          overwrite(f.flag("--overwrite", false, "replace the run that --out holds")),
          dry_run(f.flag("--dry-run", false, "check all input, print the memory plan, and end")),
          save_every(f.flag("--save-every", save_every, "steps between checkpoints", kPositive)),
          keep(f.flag("--keep", 0, "checkpoints that stay when the run is done, the newest; while it goes on there is always one", kNonNegative)),
          save_dtype(f.choice("--save-dtype", {"auto", "float32", "bfloat16"}, "type of the trained model's weights; auto: as the model came")) {
        f["--resume"].excludes(&f["--overwrite"]);
        f.let_differ({"save-every", "keep", "save-dtype"});
    }
    const std::string& out;
    const bool &resume, &overwrite, &dry_run;
    const int &save_every, &keep;
    const std::string& save_dtype;
};

// clang-format on

}  // namespace r1
