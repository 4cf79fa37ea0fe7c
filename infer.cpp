// Runs a model: completes a prompt, chats, or grades itself on a JSONL file of problems.
#include <cstdio>
#include <iostream>
#include <numeric>

#include "src/command_line.h"
#include "src/device.h"
#include "src/evaluation.h"
#include "src/memory_plan.h"
#include "src/parallel.h"
#include "src/rollout.h"
#include "src/run_log.h"

using namespace r1;

namespace {

struct Options {
    std::string model, prompt, eval, out, prompt_template, device = "auto", dtype = "auto";
    bool chat = false, raw = false, plain = false;
    int samples = 1, max_new_tokens = 256, threads = 0, slots = 256, context = 4096;
    float temperature = 0.6f, top_p = 0.95f;
    int top_k = 0;
    std::int64_t seed = 1;
};

int infer(const Options& o) {
    set_threads(o.threads);
    const Device device = make_device(o.device, o.dtype);
    Backend& backend = *device.backend;
    const Config config = Config::load(o.model);
    const Tokenizer tokenizer = Tokenizer::load(o.model);
    PromptTemplate prompt_template =
        o.raw ? PromptTemplate("")
              : load_prompt_template(o.model, config, tokenizer, o.prompt_template, o.plain);
    if (prompt_template.chat() && o.prompt_template.empty() && o.eval.empty())  // just talking
        prompt_template = PromptTemplate("{question}", prompt_template.chat());
    const auto problems = o.eval.empty() ? std::vector<Problem>{} : load_problems(o.eval, prompt_template);

    std::size_t longest_prompt =
        o.chat ? static_cast<std::size_t>(std::min(o.context, config.max_position_embeddings)) : 1;
    const std::string filled = prompt_template.fill(o.prompt);
    if (!o.prompt.empty()) longest_prompt = tokenizer.encode(filled).size();
    for (const auto& p : problems)
        longest_prompt = std::max(longest_prompt, tokenizer.encode(p.prompt).size());
    if (!o.chat && longest_prompt >= static_cast<std::size_t>(config.max_position_embeddings))
        fail("the prompt has ", longest_prompt, " tokens, which leaves no room in the model's context of ",
             config.max_position_embeddings);

    const int slots =
        o.eval.empty() ? o.samples : std::min<int>(o.slots, static_cast<int>(problems.size()) * o.samples);
    const int max_new_tokens = std::min(o.max_new_tokens, config.max_position_embeddings - 1);
    const TransformerOptions options{
        .trainable = false,
        .bf16_matrices = device.bf16_matrices,
        .max_tokens = std::max<std::int64_t>(static_cast<std::int64_t>(longest_prompt), 1024),
        .max_decode_rows = slots};
    const auto plan = Transformer::plan(config, options, backend);
    if (!o.eval.empty())
        print_and_check_memory_plan(
            device,
            {{"parameters", plan.parameters},
             {"activations", plan.activations},
             {"key/value cache (--slots, --max-new-tokens)",
              Generator::bytes(config, slots, static_cast<int>(longest_prompt), max_new_tokens, backend)}});
    Transformer model(backend, config, options);
    model.load_weights(o.model);
    Generator generator(model, slots, static_cast<int>(longest_prompt), max_new_tokens);
    GenerateOptions sampling{.sample = {.temperature = o.temperature,
                                        .top_k = o.top_k,
                                        .top_p = o.top_p,
                                        .seed = static_cast<std::uint64_t>(o.seed)},
                             .samples_per_prompt = o.samples,
                             .max_new_tokens = max_new_tokens,
                             .stop_tokens = config.eos_token_ids};

    if (!o.eval.empty()) {
        std::vector<std::uint32_t> ids(problems.size());
        std::iota(ids.begin(), ids.end(), 0u);
        const Stopwatch clock;
        auto responses = sample_responses(generator, tokenizer, problems, ids, sampling);
        grade(problems, responses);
        Grades sums;
        sums.add(responses);
        const Grades g = sums.means();
        if (!o.out.empty()) {
            JsonLines lines(o.out, std::nullopt);
            for (const auto& r : responses)
                lines.write({{"problem", r.completion.prompt},
                             {"prompt", problems[r.completion.prompt].prompt},
                             {"response", r.text},
                             {"accuracy", r.accuracy.value},
                             {"reason", r.accuracy.reason},
                             {"format", r.format.value},
                             {"tokens", r.completion.tokens.size()},
                             {"stopped", r.completion.stopped}});
        }
        double tokens = 0;
        for (const auto& r : responses) tokens += static_cast<double>(r.completion.tokens.size());
        std::printf("%zu problems x %d samples, temperature %g, top-p %g; 95%% intervals over problems\n",
                    problems.size(), o.samples, o.temperature, o.top_p);
        const Evaluation evaluation(problems, responses);
        auto print = [&](const std::string& name, const Interval& i) {
            std::printf("%-8s %5.1f%%  [%.1f, %.1f]\n", name.c_str(), 100 * i.mean, 100 * i.low,
                        100 * i.high);
        };
        print("pass@1", evaluation.pass1);
        if (o.samples > 1) {
            print("cons@" + std::to_string(o.samples), evaluation.cons);
            print("pass@" + std::to_string(o.samples), evaluation.pass_k);
        }
        std::printf("format %.1f%%, response length %.1f, cut off %.1f%%, %s tokens/s\n", 100 * g.format,
                    g.response_length, 100 * g.truncated, human_count(tokens / clock.seconds()).c_str());
        return 0;
    }

    // Tokens are printed as they come, whole characters only; several samples one after the other. Returns the
    // first one's text.
    auto complete = [&](const std::string& text, std::uint32_t turn) {
        StreamDecoder stream(tokenizer);
        auto is_stop = [&](int token) {
            return std::ranges::find(config.eos_token_ids, token) != config.eos_token_ids.end();
        };
        auto print = [&](std::size_t, std::int32_t token) {
            if (o.samples == 1 && !is_stop(token)) std::cout << stream.push(token) << std::flush;
        };
        sampling.step = turn;
        std::vector<std::string> texts;
        for (const auto& c : generator.generate({{turn, tokenizer.encode(text)}}, sampling, print))
            texts.push_back(tokenizer.decode(std::span(c.tokens).first(c.tokens.size() - c.stopped)));
        std::cout << stream.flush() << "\n";
        for (std::size_t i = 0; o.samples > 1 && i < texts.size(); ++i) std::cout << texts[i] << "\n";
        return texts.at(0);
    };
    if (!o.chat) {
        complete(filled, 0);
        return 0;
    }
    // A chat model is shown the whole conversation; for another, every question stands alone.
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

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{"Complete a prompt, chat, or evaluate a model on problems", "infer"};
    app.option_defaults()->always_capture_default();
    app.add_option("--model", o.model, "model folder: config.json, model.safetensors, tokenizer.json")
        ->required();
    auto* mode = app.add_option_group("what to do");
    mode->add_option("--prompt", o.prompt,
                     "complete this (put into the template's {question}, if it has one)");
    mode->add_flag("--chat", o.chat, "read questions from the terminal");
    mode->add_option("--eval", o.eval,
                     "problems, JSONL: print pass@1, and of several samples cons@k and pass@k");
    mode->require_option(1);
    app.add_option("--out", o.out, "with --eval: every response and its grade, JSONL");
    add_template_options(app, o.prompt_template, o.plain);
    app.add_flag("--raw", o.raw, "no template: the prompt as it is")->excludes("--eval");
    app.add_option("--samples", o.samples, "responses to each prompt")->check(kPositive);
    app.add_option("--temperature", o.temperature, "0: greedy")->check(kNonNegative);
    app.add_option("--top-p", o.top_p, "nucleus sampling, 1: off")->check(CLI::Range(0.0, 1.0));
    app.add_option("--top-k", o.top_k, "0: off")->check(kNonNegative);
    app.add_option("--max-new-tokens", o.max_new_tokens, "longest response")->check(kPositive);
    app.add_option("--context", o.context, "with --chat: longest conversation, in tokens (memory)")
        ->check(kPositive);
    app.add_option("--slots", o.slots, "with --eval: responses in flight at a time (memory)")
        ->check(kPositive);
    add_device_options(app, o.device, o.dtype);
    app.add_option("--seed", o.seed, "of sampling");
    app.add_option("--threads", o.threads, "0: one a core")->check(kNonNegative);
    return run_main(app, argc, argv, [&] { return infer(o); });
}
