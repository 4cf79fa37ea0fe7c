// GRPO, from a prompt to a weight update, in one file: R1-Zero (DeepSeek-R1, arXiv 2501.12948, section 2.2)
// with the algorithm of DeepSeekMath (arXiv 2402.03300, section 4.1). Each step:
//
//   rollout     sample G responses o_1..o_G to each of P questions from the policy pi_theta
//   reward      r_i by rules: is the answer right, is the format kept
//   advantage   A_i = (r_i - mean r) / std r over the G responses of a question
//   loss        -1/(PG) sum_i 1/|o_i| sum_t [ min(rho A_i, clip(rho, 1-eps, 1+eps) A_i) - beta KL(pi_theta ||
//   pi_ref) ]
//               with rho = pi_theta(o_it) / pi_old(o_it)
//   step        AdamW on the gradient of the loss
//
// The formulas themselves are in src/grpo.cpp, sampling in src/generate.cpp, rewards in src/rewards.cpp, the
// transformer in src/transformer.cpp.
#include <cstdio>
#include <numeric>

#include "data/dataset.h"
#include "src/checkpoint.h"
#include "src/command_line.h"
#include "src/grpo.h"
#include "src/memory_plan.h"
#include "src/optimizer.h"
#include "src/parallel.h"
#include "src/rollout.h"
#include "src/run_log.h"

using namespace r1;

namespace {

struct Options {
    std::string model, train, eval, out = "runs/grpo", prompt_template, dtype = "float32";
    int steps = 200, prompts = 32, group = 8, max_new_tokens = 256, threads = 0;
    double temperature = 1, accuracy_weight = 1, format_weight = 0.2;
    std::string loss = "grpo", scale = "group";
    float clip_low = 0.2f, clip_high = 0.2f, beta = 0;
    int inner_epochs = 1, mini_batches = 1, reference_refresh = 0;
    double lr = 1e-6, weight_decay = 0, clip_norm = 1;
    std::string schedule = "constant";
    int warmup = 5;
    std::int64_t token_budget = 8192, seed = 1;
    int show_every = 20, save_every = 50, eval_samples = 1;
    bool recompute = false, resume = false;
};

/// One response as the update sees it.
struct Sample {
    std::vector<std::int32_t> tokens;  ///< prompt and response
    std::size_t prompt_length;
    float advantage;
    std::vector<float> sampled_logp;        ///< [response] recorded while sampling
    std::vector<float> old_logp, ref_logp;  ///< [response] pi_old and pi_ref; empty where not needed
    int length() const { return static_cast<int>(sampled_logp.size()); }
};

/// Cuts samples into micro-batches of at most token_budget tokens and calls body(samples of one, packed) for
/// each.
template <class Body>
void for_each_micro_batch(std::span<Sample> samples, std::int64_t token_budget, Body body) {
    for (std::size_t begin = 0, end = 0; begin < samples.size(); begin = end) {
        PackedBatch batch;
        while (end < samples.size() &&
               (end == begin ||
                batch.size() + static_cast<std::int64_t>(samples[end].tokens.size()) <= token_budget)) {
            batch.add(samples[end].tokens, samples[end].prompt_length);
            ++end;
        }
        body(samples.subspan(begin, end - begin), batch);
    }
}

/// Log-probabilities of every response token under the model's present weights, into `field` of each sample.
void compute_log_probabilities(Transformer& model, std::span<Sample> samples, const Options& o,
                               std::vector<float> Sample::*field) {
    for_each_micro_batch(samples, o.token_budget, [&](std::span<Sample> micro, const PackedBatch& batch) {
        const auto logp = model.forward(batch, static_cast<float>(o.temperature)).logp;
        auto at = logp.begin();
        for (Sample& s : micro) {
            (s.*field).assign(at, at + s.length());
            at += s.length();
        }
    });
}

/// Sums over the tokens of one step, for the log.
struct Statistics {
    double loss = 0, kl = 0, entropy = 0, clip_low = 0, clip_high = 0, tokens = 0, grad_norm = 0, updates = 0;
    double gap_max = 0, gap_sum = 0, gap_tokens = 0;  ///< |log-probability sampled - log-probability trained|
};

/// One update of the policy on `samples`: the gradient of the loss, micro-batch by micro-batch, then AdamW.
void update_policy(Transformer& model, Optimizer& optimizer, std::span<Sample> samples, const Options& o,
                   double lr, Statistics& stats) {
    const ObjectiveOptions objective{o.clip_low, o.clip_high, o.beta};
    const bool on_policy = stats.updates == 0;  // the weights are still those that sampled
    std::vector<int> lengths;
    for (const Sample& s : samples) lengths.push_back(s.length());
    const auto weights = token_weights(lengths, loss_aggregation(o.loss), o.max_new_tokens);

    std::size_t index = 0;
    for_each_micro_batch(samples, o.token_budget, [&](std::span<Sample> micro, const PackedBatch& batch) {
        const auto scores = model.forward(batch, static_cast<float>(o.temperature));
        std::vector<float> dlogp(scores.logp.size());
        std::size_t m = 0;
        for (const Sample& s : micro) {
            const float weight = weights[index++];
            for (int t = 0; t < s.length(); ++t, ++m) {
                // With a single update per rollout pi_old is pi_theta: the ratio is 1, its gradient that of
                // log pi.
                const float logp = scores.logp[m], old = s.old_logp.empty() ? logp : s.old_logp[t];
                const float ref = s.ref_logp.empty() ? logp : s.ref_logp[t];
                const TokenObjective token = token_objective(logp, old, ref, s.advantage, objective);
                dlogp[m] = weight * token.dloss_dlogp;
                stats.loss += weight * token.loss;
                stats.kl += token.kl;
                stats.clip_low += token.clipped_low;
                stats.clip_high += token.clipped_high;
                if (on_policy) {
                    const double gap = std::abs(static_cast<double>(logp) - s.sampled_logp[t]);
                    stats.gap_max = std::max(stats.gap_max, gap);
                    stats.gap_sum += gap;
                    ++stats.gap_tokens;
                }
            }
        }
        stats.entropy = std::accumulate(scores.entropy.begin(), scores.entropy.end(), stats.entropy);
        stats.tokens += static_cast<double>(dlogp.size());
        model.backward(dlogp);
    });
    stats.grad_norm += optimizer.step(lr, o.clip_norm, o.weight_decay);
    ++stats.updates;
}

/// The i-th question ever asked: every epoch visits each once, in an order that depends on seed and epoch
/// alone.
class Order {
  public:
    Order(std::size_t count, std::uint64_t seed) : order_(count), seed_(seed) {}
    std::uint32_t at(std::size_t i) {
        if (const auto epoch = static_cast<std::uint32_t>(i / order_.size()); epoch != epoch_) {
            epoch_ = epoch;
            std::iota(order_.begin(), order_.end(), 0u);
            for (std::uint32_t k = static_cast<std::uint32_t>(order_.size()); k > 1; --k) {  // Fisher-Yates
                const std::uint32_t counter[4] = {epoch, k, 0, 0x6f726465};
                std::swap(order_[k - 1],
                          order_[static_cast<std::size_t>(philox_uniform(seed_, counter) * k)]);
            }
        }
        return order_[i % order_.size()];
    }

  private:
    std::vector<std::uint32_t> order_;
    std::uint64_t seed_;
    std::uint32_t epoch_ = ~0u;
};

int train(const Options& o) {
    install_stop_handler();
    set_threads(o.threads);
    const auto backend = make_cpu_backend();
    const Config config = Config::load(o.model);
    const Tokenizer tokenizer = Tokenizer::load(o.model);
    const std::string prompt_template = load_prompt_template(o.model, o.prompt_template);
    const auto train_problems = load_problems(o.train, prompt_template);
    const auto eval_problems =
        o.eval.empty() ? std::vector<Problem>{} : load_problems(o.eval, prompt_template);
    if (config.eos_token_ids.empty())
        fail(o.model, ": config.json has no eos_token_id, so no response can end");

    std::size_t longest_prompt = 1;
    for (const auto* problems : {&train_problems, &eval_problems})
        for (const auto& p : *problems)
            longest_prompt = std::max(longest_prompt, tokenizer.encode(p.prompt).size());
    if (longest_prompt >= static_cast<std::size_t>(config.max_position_embeddings))
        fail(o.train, ": the longest prompt has ", longest_prompt, " tokens, the model's context only ",
             config.max_position_embeddings);
    const int max_new_tokens = std::min(o.max_new_tokens, config.max_position_embeddings - 1);
    const int slots = std::min(o.prompts * o.group, 256);
    const std::int64_t token_budget =
        std::max<std::int64_t>(o.token_budget, static_cast<std::int64_t>(longest_prompt) + max_new_tokens);

    const TransformerOptions model_options{.trainable = true,
                                           .recompute = o.recompute,
                                           .bf16_matrices = o.dtype == "bfloat16",
                                           .max_tokens = token_budget,
                                           .max_decode_rows = slots};
    const auto plan = Transformer::plan(config, model_options, backend->real());
    print_and_check_memory_plan(
        *backend,
        {{"parameters", plan.parameters},
         {"gradients", plan.gradients},
         {"optimizer state", Optimizer::bytes(ParameterLayout(config), backend->real())},
         {"activations (--token-budget, --recompute)", plan.activations},
         {"key/value cache (--prompts, --group, --max-new-tokens)",
          Generator::bytes(config, slots, static_cast<int>(longest_prompt), max_new_tokens, backend->real())},
         {"reference policy (--beta 0 needs none)",
          o.beta > 0 ? 2 * ParameterLayout(config).total * sizeof(float) : 0}});
    Transformer model(*backend, config, model_options);
    Optimizer optimizer(model);
    Generator generator(model, slots, static_cast<int>(longest_prompt), max_new_tokens);

    int step = 0;
    std::vector<float> reference;  // pi_ref's weights; empty if beta is 0
    if (o.resume && has_checkpoint(o.out)) {
        Checkpoint checkpoint = load_checkpoint(o.out, model, optimizer);
        step = std::stoi(checkpoint.numbers.at("step"));
        reference = std::move(checkpoint.reference);
    } else {
        model.load_weights(o.model);
        if (o.beta > 0) reference = model.download_parameters();
    }
    const bool resumed = step > 0;
    JsonLines log(std::filesystem::path(o.out) / "log.jsonl",
                  resumed ? std::optional<std::int64_t>(step) : std::nullopt);
    JsonLines samples_log(std::filesystem::path(o.out) / "samples.jsonl",
                          resumed ? std::optional<std::int64_t>(step) : std::nullopt);
    auto save = [&] {
        save_checkpoint(o.out, model, optimizer, {{{"step", std::to_string(step)}}, reference});
    };

    GenerateOptions sampling{.sample = {.temperature = static_cast<float>(o.temperature),
                                        .seed = static_cast<std::uint64_t>(o.seed)},
                             .samples_per_prompt = o.group,
                             .max_new_tokens = max_new_tokens,
                             .stop_tokens = config.eos_token_ids};
    std::printf("%s parameters, %d threads, %zu training problems, %d x %d responses a step\n",
                human_count(static_cast<double>(model.layout().total)).c_str(), threads(),
                train_problems.size(), o.prompts, o.group);

    // Held-out problems, sampled at the training temperature.
    auto evaluate = [&]() -> std::optional<Grades> {
        if (eval_problems.empty()) return std::nullopt;
        std::vector<std::uint32_t> ids(eval_problems.size());
        std::iota(ids.begin(), ids.end(), 0u);
        GenerateOptions options = sampling;
        options.samples_per_prompt = o.eval_samples;
        options.step = 0x80000000u;  // its own randomness, the same before and after
        const auto responses = sample_responses(generator, tokenizer, eval_problems, ids, options);
        const Grades g(responses);
        log.write({{"eval",
                    {{"step", step},
                     {"accuracy", g.accuracy},
                     {"format", g.format},
                     {"response_length", g.response_length},
                     {"n", responses.size()}}}});
        std::printf(
            "held out (%zu responses to %zu unseen problems): accuracy %.1f%%, format %.1f%%, response "
            "length %.1f\n",
            responses.size(), eval_problems.size(), 100 * g.accuracy, 100 * g.format, g.response_length);
        std::printf("  for example  %s%s   [%s]\n", eval_problems[0].prompt.c_str(),
                    responses[0].text.c_str(), responses[0].accuracy.reason.c_str());
        return g;
    };
    std::optional<Grades> before;
    if (!resumed) before = evaluate();

    Order order(train_problems.size(), static_cast<std::uint64_t>(o.seed));
    const LearningRate learning_rate{
        .lr = o.lr, .warmup_steps = o.warmup, .total_steps = o.steps, .cosine = o.schedule == "cosine"};
    std::vector<double> accuracies, lengths;  // for the charts at the end
    while (step < o.steps && !stop_requested()) {
        const Stopwatch whole;

        // rollout and reward
        std::vector<Problem> problems;
        std::vector<std::uint32_t> ids;
        for (int p = 0; p < o.prompts; ++p) {
            ids.push_back(order.at(static_cast<std::size_t>(step) * o.prompts + p));
            problems.push_back(train_problems[ids.back()]);
        }
        sampling.step = static_cast<std::uint32_t>(step);
        const auto responses = sample_responses(generator, tokenizer, problems, ids, sampling);
        const double rollout_seconds = whole.seconds();
        std::vector<float> rewards;
        for (const auto& r : responses)
            rewards.push_back(
                static_cast<float>(o.accuracy_weight * r.accuracy.value + o.format_weight * r.format.value));

        // advantage
        const auto advantages = group_advantages(
            rewards, o.group, o.scale == "group" ? AdvantageScale::GroupStd : AdvantageScale::None);
        std::vector<Sample> samples;
        for (std::size_t i = 0; i < responses.size(); ++i) {
            Sample s{tokenizer.encode(problems[responses[i].completion.prompt].prompt),
                     0,
                     advantages[i],
                     responses[i].completion.logp,
                     {},
                     {}};
            s.prompt_length = s.tokens.size();  // tokens in, tokens out: the response is never encoded again
            s.tokens.insert(s.tokens.end(), responses[i].completion.tokens.begin(),
                            responses[i].completion.tokens.end());
            samples.push_back(std::move(s));
        }

        // old and reference log-probabilities, where they differ from those of the policy itself
        if (o.inner_epochs * o.mini_batches > 1)
            compute_log_probabilities(model, samples, o, &Sample::old_logp);
        if (o.beta > 0) {
            const auto policy = model.download_parameters();
            model.upload_parameters(reference);
            compute_log_probabilities(model, samples, o, &Sample::ref_logp);
            model.upload_parameters(policy);
        }

        // loss and step, once per mini-batch of whole groups
        Statistics stats;
        const double lr = learning_rate.at(step + 1);
        for (int epoch = 0; epoch < o.inner_epochs; ++epoch)
            for (int part = 0; part < o.mini_batches; ++part) {
                const std::size_t begin =
                    static_cast<std::size_t>(o.prompts) * part / o.mini_batches * o.group;
                const std::size_t end =
                    static_cast<std::size_t>(o.prompts) * (part + 1) / o.mini_batches * o.group;
                update_policy(model, optimizer, std::span(samples).subspan(begin, end - begin), o, lr, stats);
            }
        if (!std::isfinite(stats.loss) || !std::isfinite(stats.grad_norm))
            fail("step ", step + 1,
                 ": the loss or its gradient is not finite; the last good checkpoint is in ", o.out,
                 "; lower --lr and go on with --resume");
        ++step;
        if (o.beta > 0 && o.reference_refresh > 0 && step % o.reference_refresh == 0)
            reference = model.download_parameters();

        // log
        const Grades grades(responses);
        double mean = 0, variance = 0, longest = 0;
        int without_spread = 0;
        for (float r : rewards) mean += r / static_cast<double>(rewards.size());
        for (float r : rewards) variance += (r - mean) * (r - mean) / static_cast<double>(rewards.size());
        for (std::size_t g = 0; g < rewards.size(); g += o.group)
            without_spread +=
                std::all_of(&rewards[g], &rewards[g] + o.group, [&](float r) { return r == rewards[g]; });
        for (const auto& s : samples) longest = std::max(longest, static_cast<double>(s.length()));
        const double seconds = whole.seconds();
        log.write(
            {{"step", step},
             {"reward", mean},
             {"reward_std", std::sqrt(variance)},
             {"accuracy", grades.accuracy},
             {"format", grades.format},
             {"response_length", grades.response_length},
             {"response_length_max", longest},
             {"truncated", grades.truncated},
             {"groups_without_spread", static_cast<double>(without_spread) / o.prompts},
             {"loss", stats.loss / stats.updates},
             {"entropy", stats.entropy / stats.tokens},
             {"kl", stats.kl / stats.tokens},
             {"clip_low", stats.clip_low / stats.tokens},
             {"clip_high", stats.clip_high / stats.tokens},
             {"grad_norm", stats.grad_norm / stats.updates},
             {"lr", lr},
             {"logp_gap_max", stats.gap_max},
             {"logp_gap_mean", stats.gap_sum / stats.gap_tokens},
             {"tokens", stats.tokens},
             {"seconds",
              {{"step", seconds}, {"rollout", rollout_seconds}, {"train", seconds - rollout_seconds}}}});
        accuracies.push_back(grades.accuracy);
        lengths.push_back(grades.response_length);
        if (step % 20 == 1 || o.show_every == 1)
            std::printf("   step  reward  accuracy  format  length  entropy  grad norm  logp gap  s/step\n");
        std::printf("%7d  %6.3f  %7.1f%%  %5.1f%%  %6.1f  %7.3f  %9.3f  %8.1e  %6.2f\n", step, mean,
                    100 * grades.accuracy, 100 * grades.format, grades.response_length,
                    stats.entropy / stats.tokens, stats.grad_norm / stats.updates, stats.gap_max, seconds);
        if (step % o.show_every == 0 || step == 1) {
            const auto& r = responses[0];
            std::printf("  sample  %s%s   [%s]\n", problems[0].prompt.c_str(), r.text.c_str(),
                        r.accuracy.reason.c_str());
            for (std::size_t i = 0; i < static_cast<std::size_t>(o.group); ++i)
                samples_log.write({{"step", step},
                                   {"prompt", problems[0].prompt},
                                   {"response", responses[i].text},
                                   {"accuracy", responses[i].accuracy.value},
                                   {"reason", responses[i].accuracy.reason},
                                   {"format", responses[i].format.value},
                                   {"advantage", advantages[i]}});
        }
        std::fflush(stdout);
        if (step % o.save_every == 0) save();
    }
    save();
    if (step < o.steps) {
        std::printf("stopped at step %d; go on with --resume\n", step);
        return 130;
    }
    const auto after = evaluate();
    if (!accuracies.empty()) {
        std::printf("accuracy         %s\n", sparkline(accuracies, 80, 0, 1).c_str());
        std::printf("response length  %s\n",
                    sparkline(lengths, 80, 0, *std::max_element(lengths.begin(), lengths.end())).c_str());
    }
    if (before && after)
        std::printf(
            "held out: accuracy %.1f%% -> %.1f%%, format %.1f%% -> %.1f%%, response length %.1f -> %.1f\n",
            100 * before->accuracy, 100 * after->accuracy, 100 * before->format, 100 * after->format,
            before->response_length, after->response_length);
    model.save(o.out);
    for (const char* file : {"tokenizer.json", "prompt_template.txt"})
        if (const auto from = std::filesystem::path(o.model) / file; std::filesystem::exists(from))
            std::filesystem::copy_file(from, std::filesystem::path(o.out) / file,
                                       std::filesystem::copy_options::overwrite_existing);
    std::printf("model, log.jsonl and samples.jsonl are in %s\n", o.out.c_str());
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{"GRPO with rule rewards: R1-Zero on a base model", "train_grpo"};
    app.option_defaults()->always_capture_default();
    app.add_option("--model", o.model, "base model folder: config.json, model.safetensors, tokenizer.json")
        ->required();
    app.add_option("--train", o.train, "training problems, JSONL")->required();
    app.add_option("--eval", o.eval, "held-out problems, JSONL: evaluated before and after");
    app.add_option("--eval-samples", o.eval_samples, "responses to each held-out problem")
        ->check(CLI::PositiveNumber);
    app.add_option("--out", o.out, "run folder: log.jsonl, samples.jsonl, checkpoint and the trained model");
    app.add_option("--template", o.prompt_template,
                   "prompt template file, if not the model's prompt_template.txt");
    app.add_option("--steps", o.steps, "steps: rollouts and their updates")->check(CLI::PositiveNumber);
    app.add_option("--prompts", o.prompts, "questions a step")->check(CLI::PositiveNumber);
    app.add_option("--group", o.group, "responses to each question, G")->check(CLI::Range(2, 1024));
    app.add_option("--max-new-tokens", o.max_new_tokens, "longest response")->check(CLI::PositiveNumber);
    app.add_option("--temperature", o.temperature, "of sampling, and of every log-probability")
        ->check(CLI::PositiveNumber);
    app.add_option("--accuracy-weight", o.accuracy_weight, "of the accuracy reward");
    app.add_option("--format-weight", o.format_weight, "of the format reward");
    app.add_option("--loss", o.loss, "aggregation over tokens")
        ->check(CLI::IsMember({"grpo", "dapo", "dr_grpo"}));
    app.add_option("--advantage-scale", o.scale, "divide by the group's standard deviation, or not")
        ->check(CLI::IsMember({"group", "none"}));
    app.add_option("--clip-low", o.clip_low, "ratio clip: 1 - this")->check(CLI::NonNegativeNumber);
    app.add_option("--clip-high", o.clip_high, "ratio clip: 1 + this")->check(CLI::NonNegativeNumber);
    app.add_option("--beta", o.beta, "weight of the KL to the reference policy, 0: none")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--reference-refresh", o.reference_refresh,
                   "the policy becomes the reference every so many steps, 0: never")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--inner-epochs", o.inner_epochs, "passes over each rollout")->check(CLI::PositiveNumber);
    app.add_option("--mini-batches", o.mini_batches, "updates per pass")->check(CLI::PositiveNumber);
    app.add_option("--lr", o.lr, "learning rate")->check(CLI::PositiveNumber);
    app.add_option("--schedule", o.schedule, "after the warm-up")
        ->check(CLI::IsMember({"constant", "cosine"}));
    app.add_option("--warmup", o.warmup, "warm-up steps")->check(CLI::NonNegativeNumber);
    app.add_option("--weight-decay", o.weight_decay, "AdamW's, on matrices")->check(CLI::NonNegativeNumber);
    app.add_option("--clip-norm", o.clip_norm, "largest gradient norm, 0: none")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--token-budget", o.token_budget, "tokens a training pass (memory)")
        ->check(CLI::PositiveNumber);
    app.add_option("--dtype", o.dtype, "matrices in the forward pass")
        ->check(CLI::IsMember({"float32", "bfloat16"}));
    app.add_flag("--recompute", o.recompute,
                 "recompute activations in the backward pass: less memory, a third more work");
    app.add_option("--show-every", o.show_every, "steps between sampled traces")->check(CLI::PositiveNumber);
    app.add_option("--save-every", o.save_every, "steps between checkpoints")->check(CLI::PositiveNumber);
    app.add_option("--seed", o.seed, "of sampling and of the order of problems");
    app.add_option("--threads", o.threads, "0: one a core; the result is the same")
        ->check(CLI::NonNegativeNumber);
    app.add_flag("--resume", o.resume, "go on from the checkpoint in --out, if there is one");
    return run_main(app, argc, argv, [&] {
        if (o.mini_batches > o.prompts)
            fail("--mini-batches ", o.mini_batches, " is more than --prompts ", o.prompts);
        return train(o);
    });
}
