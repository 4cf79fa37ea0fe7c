// Runs a model: completes a prompt, chats, grades itself on problems, or writes samples of itself to be learnt from.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <numeric>
#include <set>

#include "src/run/flags.h"
#include "src/device/device.h"
#include "src/rl/evaluation.h"
#include "src/rl/keep.h"
#include "src/device/memory_plan.h"
#include "src/device/parallel.h"
#include "src/rl/rollout.h"
#include "src/run/log.h"
#include "src/run/record.h"
#include "src/rl/text_measures.h"

using namespace r1;

namespace {

struct Options {
    std::string model, prompt, eval, sample, out, keep, prompt_template, device = "auto", dtype = "auto";
    RewardOptions reward{.parts =
                             ""};  ///< no parts: those that the model was trained with, if its folder says
    std::vector<std::string> stop_texts;
    bool chat = false, raw = false, plain = false, resume = false;
    int samples = 1, per_prompt = 0, max_new_tokens = 256, threads = 0, slots = 256, context = 4096;
    float temperature = 0.6f, top_p = 0.95f;
    int top_k = 0;
    std::int64_t seed = 1;
};

class Program {
  public:
    explicit Program(const Options& options);
    int run();

  private:
    PromptTemplate choose_template() const;
    std::optional<RewardMix> choose_reward() const;
    Answers answers() const;
    std::size_t longest_prompt() const;
    TransformerOptions planned_options() const;
    int evaluate();
    int sample();
    template <class Body>
    bool for_each_chunk(std::size_t first, Body body);
    std::string complete(const std::string& text, std::uint32_t turn);
    int chat();

    const Options o;
    const std::string problems_file;  ///< of --eval or --sample
    const Device device;
    Backend& backend;
    const Config config;
    const Tokenizer tokenizer;
    const PromptTemplate prompt_template;
    const std::vector<std::string> stop_texts;
    std::optional<RewardMix> reward;  ///< with --eval
    const std::vector<Problem> problems;
    const int prompt_tokens, max_new_tokens, slots;
    Transformer model;
    Generator generator;
    GenerateOptions sampling;
};

Program::Program(const Options& options)
    : o(options),
      problems_file(o.eval + o.sample),
      device(make_device(o.device, o.dtype)),
      backend(*device.backend),
      config(config_of_model(o.model)),
      tokenizer(Tokenizer::load(o.model)),
      prompt_template(choose_template()),
      stop_texts(o.stop_texts.empty() ? config.stop_texts : o.stop_texts),
      reward(choose_reward()),
      problems(problems_file.empty() ? std::vector<Problem>{}
                                     : load_problems(problems_file, prompt_template, answers())),
      prompt_tokens(static_cast<int>(longest_prompt())),
      max_new_tokens(std::min(o.max_new_tokens, config.max_position_embeddings - 1)),
      slots(problems.empty() ? o.samples
                             : std::min<int>(o.slots, static_cast<int>(problems.size()) * o.samples)),
      model(backend, config, planned_options()),
      generator(model, slots, prompt_tokens, max_new_tokens) {
    model.load_weights(o.model);
    sampling = {.sample = {.temperature = o.temperature,
                           .top_k = o.top_k,
                           .top_p = o.top_p,
                           .seed = static_cast<std::uint64_t>(o.seed)},
                .samples_per_prompt = o.samples,
                .max_new_tokens = max_new_tokens,
                .stop_tokens = config.eos_token_ids};
}

PromptTemplate Program::choose_template() const {
    if (o.raw) return PromptTemplate("");
    auto chosen = load_prompt_template(o.model, config, tokenizer, o.prompt_template, o.plain);
    const bool just_talking = chosen.chat() && o.prompt_template.empty() && problems_file.empty() &&
                              !PromptTemplate::exists_in(o.model);
    return just_talking ? PromptTemplate("{question}", chosen.chat()) : chosen;
}

/// The reward of --reward, else the one that the folder's run was trained with. A program is run only where --reward-program
/// names it: a model folder from elsewhere shall not choose what runs here.
std::optional<RewardMix> Program::choose_reward() const {
    RewardOptions options = o.reward;
    options.max_new_tokens = o.max_new_tokens;
    if (o.eval.empty()) return std::nullopt;
    if (options.parts.empty()) {
        const auto flags = recorded_run(o.model).value("flags", nlohmann::ordered_json());
        if (!flags.is_object() || !flags.contains("reward")) return std::nullopt;
        options.parts = flags.value("reward", "");
        options.script = flags.value("script", options.script);
        if (options.program.empty() && options.parts.find("program") != std::string::npos) {
            std::printf(
                "reward: not computed; the model was trained with %s, so --reward-program is wanted\n",
                options.parts.c_str());
            return std::nullopt;
        }
    }
    return std::optional<RewardMix>(std::in_place, options);
}

/// Whether the problems must say what is right: not for a reward that does not ask, nor for samples that are kept anyway.
Answers Program::answers() const {
    if (!o.sample.empty())
        return Keep(o.keep, o.reward.script).correct() ? Answers::Required : Answers::Optional;
    return reward ? reward->answers() : Answers::Required;
}

std::size_t Program::longest_prompt() const {
    if (o.chat) return static_cast<std::size_t>(std::min(o.context, config.max_position_embeddings));
    std::size_t longest = o.prompt.empty() ? 1 : tokenizer.encode(prompt_template.fill(o.prompt)).size();
    for (const auto& p : problems) longest = std::max(longest, tokenizer.encode(p.prompt).size());
    if (longest >= static_cast<std::size_t>(config.max_position_embeddings))
        fail("the prompt has ", longest, " tokens, which leaves no room in the model's context of ",
             config.max_position_embeddings);
    return longest;
}

TransformerOptions Program::planned_options() const {
    const TransformerOptions planned{.trainable = false,
                                     .bf16_matrices = device.bf16_matrices,
                                     .max_tokens = std::max<std::int64_t>(prompt_tokens, 1024),
                                     .max_decode_rows = slots};
    const auto plan = Transformer::plan(config, planned, backend);
    if (!problems.empty())
        print_and_check_memory_plan(
            device, {{"parameters", plan.parameters},
                     {"activations", plan.activations},
                     {"key/value cache (--slots, --max-new-tokens)",
                      Generator::bytes(config, slots, prompt_tokens, max_new_tokens, backend)}});
    return planned;
}

/// Samples and grades the problems from `first` on, some at a time, and calls body(problems, their responses, index behind
/// the last) for each chunk. False: stopped by a signal.
template <class Body>
bool Program::for_each_chunk(std::size_t first, Body body) {
    const std::size_t chunk = std::max<std::size_t>(1, 4 * static_cast<std::size_t>(slots) / o.samples);
    Progress progress("problems");
    for (std::size_t begin = first; begin < problems.size() && !stop_requested(); begin += chunk) {
        const std::size_t end = std::min(begin + chunk, problems.size());
        const std::vector<Problem> some(problems.begin() + begin, problems.begin() + end);
        std::vector<std::uint32_t> ids(some.size());
        std::iota(ids.begin(), ids.end(), static_cast<std::uint32_t>(begin));
        progress.show(begin, problems.size());
        auto responses = sample_responses(generator, tokenizer, some, ids, sampling, stop_texts);
        grade(some, responses);
        if (reward) reward->apply(some, responses);
        body(some, responses, end);
    }
    progress.end();
    return !stop_requested();
}

/// What is known of a response, for a file.
nlohmann::ordered_json measured(const Problem& problem, const Response& r, const std::string& script) {
    nlohmann::ordered_json line = {{"accuracy", r.accuracy.value},
                                   {"reason", r.accuracy.reason},
                                   {"format", r.format.value},
                                   {"language", language_consistency(r.text, script)},
                                   {"reflective_words", reflective_words(r.text)},
                                   {"tokens", r.completion.tokens.size()},
                                   {"stopped", r.completion.stopped}};
    const auto source = nlohmann::json::parse(problem.source);
    if (const auto kind = source.find("kind"); kind != source.end()) line["kind"] = *kind;
    return line;
}

int Program::evaluate() {
    std::optional<JsonLines> lines;
    if (!o.out.empty()) lines.emplace(o.out + ".partial", std::nullopt);
    std::vector<Response> all;
    const Stopwatch clock;
    const bool done = for_each_chunk(0, [&](const auto& some, auto& responses, std::size_t end) {
        for (Response& r : responses) {
            const Problem& problem = some[r.completion.prompt];
            r.completion.prompt += end - some.size();
            if (lines) {
                auto line = measured(problem, r, o.reward.script);
                if (reward) line["reward"] = r.reward;
                line["problem"] = r.completion.prompt, line["prompt"] = problem.prompt,
                line["response"] = r.text;
                lines->write(line);
            }
            all.push_back(std::move(r));
        }
    });
    if (!done) return 130;
    Grades sums;
    sums.add(all);
    const Grades g = sums.means();
    std::printf("%zu problems x %d samples, temperature %g, top-p %g; 95%% intervals over problems\n",
                problems.size(), o.samples, o.temperature, o.top_p);
    const Evaluation evaluation(problems, all);
    nlohmann::ordered_json summary;
    auto report = [&](const std::string& name, const std::vector<double>& by_problem) {
        const Interval i = confidence_interval(by_problem);
        std::printf("%-8s %5.1f%%  [%.1f, %.1f]\n", name.c_str(), 100 * i.mean, 100 * i.low, 100 * i.high);
        summary[name] = {{"mean", i.mean}, {"low", i.low}, {"high", i.high}, {"by_problem", by_problem}};
    };
    const bool graded = !evaluation.pass1.empty();
    if (graded) report("pass@1", evaluation.pass1);
    if (graded && o.samples > 1) {
        report("cons@" + std::to_string(o.samples), evaluation.cons);
        report("pass@" + std::to_string(o.samples), evaluation.pass_k);
    }
    if (reward) {
        std::vector<double> by_problem(problems.size());
        for (const Response& r : all) by_problem[r.completion.prompt] += r.reward / o.samples;
        const Interval i = confidence_interval(by_problem, -INFINITY, INFINITY);
        std::printf("%-8s %6.3f  [%.3f, %.3f]\n", "reward", i.mean, i.low, i.high);
        summary["reward"] = {{"mean", i.mean}, {"low", i.low}, {"high", i.high}, {"by_problem", by_problem}};
    }
    const double length = g.response_length * g.responses;
    std::printf("format %.1f%%, response length %.1f, cut off %.1f%%, %s tokens/s\n", 100 * g.format,
                g.response_length, 100 * g.truncated, human_count(length / clock.seconds()).c_str());
    if (lines) {
        lines->write({{"summary", summary}});
        std::filesystem::rename(o.out + ".partial", o.out);
    }
    return 0;
}

/// Whether the tokenizer can read what the model wrote: a small vocabulary may not be able to spell it any more.
bool can_be_encoded(const Tokenizer& tokenizer, const std::string& text) {
    try {
        tokenizer.encode(text);
        return true;
    } catch (const Error&) {
        return false;
    }
}

/// Rejection sampling: the responses that pass --keep, each text once a problem, as examples for train_sft. OUT appears
/// when it is complete; until then OUT.partial holds what --resume goes on from: problems before its last are done.
int Program::sample() {
    const Keep keep(o.keep, o.reward.script);
    const std::filesystem::path partial = o.out + ".partial";
    std::size_t first = 0, kept = 0;
    if (std::ifstream in(partial, std::ios::binary); o.resume && in) {
        std::size_t bytes = 0, at = 0, count = 0;
        for (std::string line; std::getline(in, line) && !in.eof(); at += line.size() + 1, ++count)
            if (const auto p = nlohmann::json::parse(line).at("problem").get<std::size_t>(); p != first)
                first = p, bytes = at, kept = count;
        std::filesystem::resize_file(partial, bytes);
    }
    JsonLines lines(partial, first ? std::optional<std::int64_t>(0) : std::nullopt);
    const bool done = for_each_chunk(first, [&](const auto& some, const auto& responses, std::size_t end) {
        std::set<std::string> texts;
        int of_problem = 0;
        for (std::size_t i = 0; i < responses.size(); ++i) {
            const Response& r = responses[i];
            if (i % o.samples == 0) texts.clear(), of_problem = 0;
            if ((o.per_prompt && of_problem == o.per_prompt) || !keep(r) ||
                !can_be_encoded(tokenizer, r.text) || !texts.insert(r.text).second)
                continue;
            const Problem& problem = some[r.completion.prompt];
            nlohmann::ordered_json line = {
                {"prompt", problem.prompt},
                {"completion", r.text.substr(opened_thought(problem.prompt).size())}};
            if (!r.completion.stopped) line["eos"] = false;
            line["problem"] = end - some.size() + r.completion.prompt;
            line.update(measured(problem, r, o.reward.script));
            lines.write(line);
            ++of_problem, ++kept;
        }
    });
    if (!done) {
        std::printf("stopped; go on with --resume\n");
        return 130;
    }
    std::filesystem::rename(partial, o.out);
    std::printf("%zu of %zu samples kept, in %s\n", kept, problems.size() * o.samples, o.out.c_str());
    return 0;
}

/// Tokens are printed as they come, whole characters only; several samples one after the other. Returns the first one's
/// text.
std::string Program::complete(const std::string& text, std::uint32_t turn) {
    StreamDecoder stream(tokenizer);
    sampling.stop = stop_at(tokenizer, stop_texts);
    auto is_stop = [&](int token) {
        return std::ranges::find(config.eos_token_ids, token) != config.eos_token_ids.end();
    };
    std::string text_so_far;
    auto print = [&](std::size_t, std::int32_t token) {
        if (o.samples > 1 || is_stop(token)) return;
        const std::size_t shown = text_so_far.size();
        text_so_far = cut_behind_stop(text_so_far + stream.push(token), stop_texts);
        std::cout << text_so_far.substr(std::min(shown, text_so_far.size())) << std::flush;
    };
    sampling.step = turn;
    std::vector<std::string> texts;
    for (const auto& c : generator.generate({{turn, tokenizer.encode(text)}}, sampling, print))
        texts.push_back(text_of(c, tokenizer, stop_texts));
    std::cout << stream.flush() << "\n";
    for (std::size_t i = 0; o.samples > 1 && i < texts.size(); ++i) std::cout << texts[i] << "\n";
    return texts.at(0);
}

/// A chat model is shown the whole conversation; for another, every question stands alone.
int Program::chat() {
    std::vector<Message> conversation;
    std::string line;
    for (std::uint32_t turn = 0; std::cout << "> " << std::flush, std::getline(std::cin, line); ++turn) {
        if (line.empty()) continue;
        const auto before = conversation;
        try {
            if (const auto& chat = prompt_template.chat()) {
                conversation.push_back({"user", PromptTemplate(prompt_template.text()).fill(line)});
                conversation.push_back({"assistant", complete(chat->render(conversation), turn)});
            } else {
                complete(prompt_template.fill(line), turn);
            }
        } catch (const Error& e) {  // a question that cannot be asked ends the turn, not the chat
            std::cout << e.what() << "\n";
            conversation = before;
        }
    }
    std::cout << "\n";
    return 0;
}

int Program::run() {
    if (!o.eval.empty()) return evaluate();
    if (!o.sample.empty()) return sample();
    if (o.chat) return chat();
    complete(prompt_template.fill(o.prompt), 0);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{"Complete a prompt, chat, evaluate a model on problems, or sample from it", "infer"};
    app.option_defaults()->always_capture_default()->take_last();  // of a flag given twice
    app.add_option("--model", o.model, "model folder: config.json, model.safetensors, tokenizer.json")
        ->required();
    auto* mode = app.add_option_group("what to do");
    mode->add_option("--prompt", o.prompt,
                     "complete this (put into the template's {question}, if it has one)");
    mode->add_flag("--chat", o.chat, "read questions from the terminal");
    mode->add_option("--eval", o.eval,
                     "problems, JSONL: print pass@1, and of several samples cons@k and pass@k");
    auto* sample = mode->add_option(
        "--sample", o.sample, "problems, JSONL: write --samples responses to each into --out, for train_sft");
    mode->require_option(1);
    auto* out = app.add_option("--out", o.out,
                               "with --eval: every response and its grade; with --sample: what is kept");
    sample->needs(out);
    app.add_option("--keep", o.keep,
                   "with --sample: only what is correct, well-formed, readable, longest<N, language>=X, "
                   "repetition<=X; "
                   "all conditions, separated by commas")
        ->needs(sample);
    app.add_option("--per-prompt", o.per_prompt, "with --sample: at most so many of a problem, 0: all")
        ->check(kNonNegative)
        ->needs(sample);
    app.add_flag("--resume", o.resume, "with --sample: go on where it was stopped")->needs(sample);
    add_reward_options(app, o.reward);
    app.add_option("--script", o.reward.script, "that language is measured by: latin, cyrillic, han, ...");
    add_template_options(app, o.prompt_template, o.plain);
    add_stop_texts(app, o.stop_texts);
    app.add_flag("--raw", o.raw, "no template: the prompt as it is")->excludes("--eval")->excludes(sample);
    app.add_option("--samples", o.samples, "responses to each prompt")->check(kPositive);
    app.add_option("--temperature", o.temperature, "0: greedy")->check(kNonNegative);
    app.add_option("--top-p", o.top_p, "nucleus sampling, 1: off")->check(CLI::Range(0.0, 1.0));
    app.add_option("--top-k", o.top_k, "0: off")->check(kNonNegative);
    app.add_option("--max-new-tokens", o.max_new_tokens, "longest response")->check(kPositive);
    app.add_option("--context", o.context, "with --chat: longest conversation, in tokens (memory)")
        ->check(kPositive);
    app.add_option("--slots", o.slots, "with --eval and --sample: responses in flight at a time (memory)")
        ->check(kPositive);
    add_device_options(app, o.device, o.dtype);
    app.add_option("--seed", o.seed, "of sampling");
    app.add_option("--threads", o.threads, "0: one a core")->check(kNonNegative);
    return run_main(app, argc, argv, [&] {
        if (!o.eval.empty() || !o.sample.empty()) install_stop_handler();
        if (std::filesystem::is_directory(o.out)) fail(o.out, ": is a folder; --out wants a file");
        set_threads(o.threads);
        return Program(o).run();
    });
}
