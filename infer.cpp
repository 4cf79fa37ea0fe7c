// Runs a model: completes a prompt, chats, grades itself on problems, or writes samples of itself
// to be learnt from.
#include <cstdio>
#include <iostream>
#include <memory>
#include <set>

#include "src/device/parallel.h"
#include "src/model/memory_plan.h"
#include "src/rl/evaluation.h"
#include "src/rl/rollout.h"
#include "src/rl/sample_file.h"
#include "src/rl/shared_flags.h"
#include "src/rl/training_log.h"
#include "src/run/record.h"
#include "src/run/stop.h"

using namespace r1;

namespace {

// clang-format off
struct Options : Flags {
    Options() : Flags("infer", "Complete a prompt, chat, evaluate a model on problems, or sample from it. Under mpirun the ranks share the problems") {
        only_with({"--sample"}, {"--keep", "--per-prompt", "--resume"});
        only_with({"--eval", "--sample"}, {"--out", "--limit", "--skip-unreadable", "--reward", "--script", "--overlong-cache"});
        only_with({"--chat"}, {"--context"});
        (*this)["--sample"].needs(&(*this)["--out"]);
        for (const char* flag : {"--eval", "--sample", "--template", "--plain", "--no-think"}) (*this)["--raw"].excludes(&(*this)[flag]);
        let_differ({"slots"});
    }

    Group what = group("What to do: one of these");
    const std::string& prompt = flag("--prompt", "", "complete this (put into the template's {question}, if it has one)");
    const bool& chat = flag("--chat", false, "read questions from the terminal");
    const std::string& eval = flag("--eval", "", "problems, JSONL: print pass@1, and of several samples cons@k and pass@k");
    const std::string& sample = flag("--sample", "", "problems, JSONL: write --samples responses to each into --out, for train_sft");

    Group model_and_files = group("Model and files");
    const std::string& model = required("--model", "model folder: config.json, model.safetensors, tokenizer.json");
    PromptFlags prompts{*this};
    const bool& raw = flag("--raw", false, "no template: the prompt as it is");
    const std::string& out = flag("--out", "", "with --eval: every response and its grade; with --sample: what is kept");
    const std::string& keep = flag("--keep", "", "with --sample: conditions, all of which must hold, such as correct,readable,length<800: correct, well-formed, readable, or a measure of --reward compared with a number");
    const int& per_prompt = flag("--per-prompt", 0, "with --sample: responses kept of a problem, 0: all", kNonNegative);
    const bool& resume = flag("--resume", false, "with --sample: go on where it was stopped");

    Group rewards = group("Reward, with --eval; if none is given, the one that the model was trained with");
    RewardFlags reward{*this, ""};

    Group sampling = group("Sampling");
    const int& limit = flag("--limit", 0, "problems of --eval or --sample to take, evenly spaced, 0: all", kNonNegative);
    const int& samples = flag("--samples", 1, "responses to each prompt", kManyResponses);
    const float& temperature = flag("--temperature", 0.6f, "temperature, 0: greedy", {0, kHottest});
    const float& top_p = flag("--top-p", 0.95f, "nucleus sampling, 1: off", {0, 1});
    const int& top_k = flag("--top-k", 0, "likeliest tokens to choose from, 0: all", kNonNegative);
    const int& max_new_tokens = flag("--max-new-tokens", 256, "longest response", kPositive);
    const int& context = flag("--context", 4096, "with --chat: longest conversation, in tokens (memory)", kPositive);
    const int& slots = flag("--slots", 256, "responses in flight at a time (memory)", kManyResponses);
    const std::int64_t& seed = flag("--seed", std::int64_t{1}, "seed of sampling");

    Group machine = group("Device");
    DeviceFlags device{*this};

    /// The problems of --eval or --sample.
    const std::string& problems() const { return eval.empty() ? sample : eval; }
};
// clang-format on

/// Everything that is loaded before the first token.
struct Setup {
    Setup(const Options& o, const Comm& comm);
    const Comm& comm;  ///< the ranks share the problems
    ModelFolder folder;
    Judge judge;
    std::vector<Problem> problems;
    Device device;
    std::unique_ptr<Transformer> model;
    std::unique_ptr<Generator> generator;
    GenerateOptions sampling;
};

int evaluate(Setup& s, const Options& o);
int sample(Setup& s, const Options& o, nlohmann::ordered_json record);
int chat(Setup& s, const Options& o);
std::string complete(Setup& s, const Options& o, const std::string& text, std::uint32_t turn);

int infer(const Options& o, const Comm& comm, const nlohmann::ordered_json& record) {
    const int modes = !o.prompt.empty() + o.chat + !o.eval.empty() + !o.sample.empty();
    if (modes != 1) fail("one of --prompt, --chat, --eval and --sample must be given; see --help");
    if (comm.size() > 1 && o.problems().empty())
        fail("several ranks can share --eval or --sample; start --prompt and --chat by themselves");
    if (!o.out.empty()) check_output(o.out);
    std::error_code none;
    if (std::filesystem::equivalent(o.out, o.problems(), none))
        fail("--out ", o.out, " is the file that the problems are in; choose another");
    Setup s(o, comm);
    if (!o.eval.empty()) return evaluate(s, o);
    if (!o.sample.empty()) return sample(s, o, record);
    if (o.chat) return chat(s, o);
    complete(s, o, s.folder.prompt_template.fill(o.prompt), 0);
    return 0;
}

/// What is known of a response, for a file.
nlohmann::ordered_json known(const Setup& s, const Response& r) {
    auto line = s.judge.json(r);
    line["stopped"] = r.stopped;
    const auto source = nlohmann::json::parse(r.problem->source);
    if (const auto kind = source.find("kind"); kind != source.end()) line["kind"] = *kind;
    line["problem"] = r.problem->id;
    return line;
}

/// Prints the scores of all problems, and returns them.
nlohmann::ordered_json print_scores(const Setup& s, const Options& o, const Evaluation& evaluation,
                                    const std::vector<double>& rewards) {
    std::printf(
        "%zu problems x %d samples, temperature %g, top-p %g; 95%% intervals over problems\n",
        s.problems.size(), o.samples, o.temperature, o.top_p);
    nlohmann::ordered_json summary;
    const auto report = [&](const std::string& name, const std::vector<double>& by_problem,
                            const char* format, double scale, Interval i) {
        std::printf(format, name.c_str(), scale * i.mean, scale * i.low, scale * i.high);
        summary[name] = {
            {"mean", i.mean}, {"low", i.low}, {"high", i.high}, {"by_problem", by_problem}};
    };
    const std::string k = std::to_string(o.samples);
    std::vector<std::pair<std::string, std::vector<double>>> scores = {
        {"pass@1", evaluation.pass1}};
    if (o.samples > 1) scores.emplace_back("cons@" + k, evaluation.cons);
    if (o.samples > 1) scores.emplace_back("pass@" + k, evaluation.pass_k);
    for (const auto& [name, values] : scores) {
        if (values.empty()) continue;  // no problem has a known answer
        report(name, values, "%-8s %5.1f%%  [%.1f, %.1f]\n", 100, confidence_interval(values));
    }
    if (!s.judge.parts().empty())
        report("reward", rewards, "%-8s %6.3f  [%.3f, %.3f]\n", 1,
               confidence_interval(rewards, -INFINITY, INFINITY));
    return summary;
}

int evaluate(Setup& s, const Options& o) {
    std::optional<JsonLines> lines;
    if (!o.out.empty() && s.comm.is_root()) lines.emplace(partial_of(o.out));
    Evaluation evaluation;
    std::vector<double> rewards;
    Metrics means;
    const Stopwatch clock;
    const auto body = [&](std::span<const Response> responses) {
        for (; !responses.empty(); responses = responses.subspan(o.samples)) {
            const auto to_one = responses.first(o.samples);
            evaluation.add(to_one);
            record_measures(s.judge, to_one, means);
            double& reward = rewards.emplace_back();
            for (const Response& r : to_one) {
                reward += r.reward / o.samples;
                if (!lines) continue;
                auto line = known(s, r);
                line["prompt"] = r.problem->prompt;
                line["response"] = r.text;
                lines->write(line);
            }
        }
        return !stop_requested();
    };
    for_each_chunk(*s.generator, s.folder, s.judge, s.comm, s.problems, s.sampling, "problems",
                   body);
    if (s.comm.any(stop_requested())) return 130;
    const auto summary = print_scores(s, o, evaluation, rewards);
    const double tokens = means["length"] * static_cast<double>(rewards.size()) * o.samples;
    std::printf("format %s, length %.1f, truncated %s, %s tokens/s\n",
                percent(means["format"]).c_str(), means["length"],
                percent(means["truncated"]).c_str(), human_count(tokens / clock.seconds()).c_str());
    if (lines) {
        lines->write({{"summary", summary}});
        lines->sync();
        put_in_place(o.out);
    }
    return 0;
}

/// Whether the tokenizer can read what the model wrote: a small vocabulary may not be able to spell
/// it.
bool can_be_encoded(const Tokenizer& tokenizer, const std::string& text) {
    std::string lacking;
    tokenizer.encode(text, &lacking);
    return lacking.empty();
}

/// Rejection sampling: the responses that pass --keep, each text once a problem, as examples for
/// train_sft.
int sample(Setup& s, const Options& o, nlohmann::ordered_json record) {
    const Keep keep(o.keep);
    describe_inputs(record, s.device.backend->name(), s.comm.size(),
                    {{"model", o.model}, {"sample", o.sample}});
    s.folder.describe(record);
    SampleFile file(o.out, record, o.may_differ(), o.resume, s.comm);
    if (file.problems() >= s.problems.size())
        fail(partial_of(o.out), ": holds samples of problem ", file.problems(),
             ", and --sample has only ", s.problems.size(), "; remove the file");
    const auto write_kept = [&](std::span<const Response> of_problem) {
        std::set<std::string> texts;
        for (const Response& r : of_problem) {
            if (o.per_prompt && static_cast<int>(texts.size()) == o.per_prompt) return;
            if (!keep(r) || !can_be_encoded(s.folder.tokenizer, r.text)) continue;
            if (!texts.insert(r.text).second) continue;
            const std::string& prompt = r.problem->prompt;
            nlohmann::ordered_json line = {
                {"prompt", prompt}, {"completion", r.text.substr(opened_thought(prompt).size())}};
            if (!r.stopped) line["eos"] = false;
            line.update(known(s, r));
            file.write(line);
        }
    };
    const auto problems = std::span(s.problems).subspan(file.problems());
    const auto body = [&](std::span<const Response> all) {
        for (; !all.empty(); all = all.subspan(o.samples)) write_kept(all.first(o.samples));
        return !stop_requested();
    };
    for_each_chunk(*s.generator, s.folder, s.judge, s.comm, problems, s.sampling, "problems", body);
    if (s.comm.any(stop_requested())) {
        std::printf("stopped; go on with --resume\n");
        return 130;
    }
    file.finish();
    std::printf("%zu of %zu samples kept, in %s\n", file.samples(), s.problems.size() * o.samples,
                o.out.c_str());
    return 0;
}

/// Tokens are printed as they come, whole characters only; several samples one after the other.
/// Returns the first one's text.
std::string complete(Setup& s, const Options& o, const std::string& text, std::uint32_t turn) {
    StreamDecoder stream(s.folder.tokenizer);
    const auto& stop_texts = s.folder.stop_texts;
    s.sampling.stop = stop_at(s.folder.tokenizer, stop_texts);
    s.sampling.step = turn;
    std::string so_far;
    const auto print = [&](std::size_t, std::int32_t token) {
        if (o.samples > 1 || std::ranges::count(s.sampling.stop_tokens, token)) return;
        const std::size_t shown = so_far.size();
        so_far = cut_behind_stop(so_far + stream.push(token), stop_texts);
        std::cout << so_far.substr(std::min(shown, so_far.size())) << std::flush;
    };
    const auto tokens = s.folder.tokenizer.encode(text);
    if (o.chat && std::ssize(tokens) > o.context)
        fail("the conversation has ", tokens.size(), " tokens, more than --context ", o.context,
             "; begin anew, or give it room for more");
    std::vector<std::string> texts;
    for (const Response& r : s.generator->generate({{turn, tokens}}, s.sampling, print))
        texts.push_back(text_of(r, s.folder));
    std::cout << stream.flush() << "\n";
    for (std::size_t i = 0; o.samples > 1 && i < texts.size(); ++i) std::cout << texts[i] << "\n";
    return texts.at(0);
}

/// A chat model is shown the whole conversation; for another, every question stands alone.
int chat(Setup& s, const Options& o) {
    const PromptTemplate& prompt_template = s.folder.prompt_template;
    std::vector<Message> conversation;
    std::string line;
    for (std::uint32_t turn = 0; std::cout << "> " << std::flush, std::getline(std::cin, line);
         ++turn) {
        if (line.empty()) continue;
        const auto before = conversation;
        try {
            if (const auto& format = prompt_template.chat()) {
                const std::string question =
                    PromptTemplate(prompt_template.text()).fill(s.folder.tokenizer.escaped(line));
                conversation.push_back({"user", question});
                const std::string answer = complete(s, o, format->render(conversation), turn);
                conversation.push_back({"assistant", answer});
            } else {
                complete(s, o, prompt_template.fill(line), turn);
            }
        } catch (const Error& e) {  // a question that cannot be asked ends the turn, not the chat
            std::cout << e.what() << "\n";
            conversation = before;
        }
    }
    std::cout << "\n";
    return 0;
}

// ---- setting up ----

/// A chat model that was not trained by us is asked without a template that wants thoughts.
PromptTemplate choose_template(const ModelFolder& folder, const Options& o) {
    if (o.raw) return PromptTemplate("", std::nullopt, folder.tokenizer);
    const bool just_talking = folder.prompt_template.chat() && o.prompts.choice.empty() &&
                              o.problems().empty() && !PromptTemplate::exists_in(o.model);
    if (just_talking)
        return PromptTemplate("{question}", folder.prompt_template.chat(), folder.tokenizer);
    return folder.prompt_template;
}

/// The reward of --reward, else the one that the folder's run was trained with. A program is run
/// only where --reward-program names it: a model folder from elsewhere shall not choose what runs.
RewardOptions choose_reward(const Options& o) {
    RewardOptions options = o.reward.options(o.max_new_tokens);
    if (o.eval.empty() || !options.parts.empty()) return options;
    const auto flags = recorded_run(o.model).value("flags", nlohmann::ordered_json());
    options.parts = text_at(flags, "reward");
    options.script = text_at(flags, "script", options.script);
    if (options.program.empty() && options.parts.find("program") != std::string::npos) {
        std::printf(
            "reward: not computed; the model was trained with %s, so --reward-program is wanted\n",
            options.parts.c_str());
        options.parts.clear();
    }
    return options;
}

Setup::Setup(const Options& o, const Comm& comm)
    : comm(comm),
      folder(o.model, o.prompts.choice, o.prompts.form(), o.prompts.stop_texts,
             o.prompts.escape_special),
      judge(choose_reward(o)),
      device(make_device(o.device.device, o.device.dtype)) {
    folder.prompt_template = choose_template(folder, o);
    const Config& config = folder.config;
    const int context = config.max_position_embeddings;
    int prompt_tokens = std::min(o.context, context);
    if (!o.prompt.empty()) {
        std::vector<Problem> only = {{folder.prompt_template.fill(o.prompt), NoGold{}}};
        prompt_tokens = encode_prompts(only, folder.tokenizer, context);
    } else if (!o.chat) {
        const Answers answers = o.sample.empty() ? judge.answers() : Keep(o.keep).answers();
        problems = limited(
            load_problems(o.problems(), folder.prompt_template, answers, o.reward.skip_unreadable),
            o.limit);
        prompt_tokens = encode_prompts(problems, folder.tokenizer, context);
    }
    const int max_new_tokens = std::min(o.max_new_tokens, context - 1);
    const auto in_flight = std::max<std::int64_t>(problems.size(), 1) * o.samples;
    const int slots = static_cast<int>(std::min<std::int64_t>(o.slots, in_flight));
    Backend& backend = *device.backend;
    const TransformerOptions options{.trainable = false,
                                     .bf16_matrices = device.bf16_matrices,
                                     .max_tokens = std::max<std::int64_t>(prompt_tokens, 1024),
                                     .max_decode_rows = slots};
    print_and_check(
        {{"parameters", Parameters::bytes(config, options, backend).parameters},
         {"activations (--slots)", Transformer::workspace_bytes(config, options, backend)},
         {"key/value cache (--slots, --max-new-tokens, --context)",
          Generator::bytes(config, slots, prompt_tokens, max_new_tokens, backend)}},
        device, problems.empty());
    model = std::make_unique<Transformer>(backend, config, options);
    generator = std::make_unique<Generator>(*model, slots, prompt_tokens, max_new_tokens);
    model->parameters().load(o.model);
    sampling = {.sample = {.temperature = o.temperature,
                           .top_k = o.top_k,
                           .top_p = o.top_p,
                           .seed = static_cast<std::uint64_t>(o.seed)},
                .samples_per_prompt = o.samples,
                .max_new_tokens = max_new_tokens,
                .stop_tokens = config.eos_token_ids};
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    return o.main(argc, argv, [&] {
        if (!o.problems().empty()) install_stop_handler();
        const Comm comm;
        set_threads(o.device.threads);
        return infer(o, comm, describe_run(o.app(), argc, argv));
    });
}
