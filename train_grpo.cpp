// GRPO, from a prompt to a weight update, in one file: R1-Zero (DeepSeek-R1, arXiv 2501.12948, section 2.2)
// with the algorithm of DeepSeekMath (arXiv 2402.03300, section 4.1). Each step:
//
//   rollout     sample G responses o_1..o_G to each of P questions from the policy pi_theta
//   reward      r_i by rules: is the answer right, is the format kept
//   advantage   A_i = (r_i - mean r) / std r over the G responses of a question
//   loss        -1/(PG) sum_i 1/|o_i| sum_t [ min(rho A_i, clip(rho, 1-eps, 1+eps) A_i) - beta KL(pi_theta, pi_ref) ]
//               with rho = pi_theta(o_it) / pi_old(o_it)
//   step        AdamW on the gradient of the loss
//
// The formulas themselves are in src/grpo.cpp, sampling in src/generate.cpp, rewards in src/rewards.cpp, the
// transformer in src/transformer.cpp.
#include <cstdio>
#include <numeric>

#include "data/dataset.h"
#include "src/checkpoint.h"
#include "src/comm.h"
#include "src/command_line.h"
#include "src/device.h"
#include "src/grpo.h"
#include "src/memory_plan.h"
#include "src/optimizer.h"
#include "src/parallel.h"
#include "src/rollout.h"
#include "src/run_log.h"

using namespace r1;

namespace {

struct Options {
    std::string model, train, eval, out = "runs/grpo", prompt_template, device = "auto", dtype = "auto";
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
    bool recompute = false, resume = false, plain = false;
    std::string save_dtype = "auto", state_dtype = "float32";
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

/// Cuts samples into micro-batches of at most token_budget tokens and calls body(samples of one, packed) for each.
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

/// What one step reports. Sums over this rank's responses and tokens: only doubles, so that ranks can add
/// them up.
struct StepSums {
    Grades grades;
    double reward = 0, reward_squares = 0, groups = 0, groups_without_spread = 0;
    double tokens = 0, loss = 0, kl = 0, entropy = 0, clip_low = 0, clip_high = 0;
    double gap = 0, gap_tokens = 0;  ///< |log-probability sampled - log-probability trained|
};
struct StepMaxima {
    double gap = 0, length = 0;
};
/// A struct of doubles as the numbers it holds.
template <class Struct>
std::span<double> doubles_of(Struct& s) {
    static_assert(std::is_trivially_copyable_v<Struct> && sizeof(Struct) % sizeof(double) == 0);
    return {reinterpret_cast<double*>(&s), sizeof(Struct) / sizeof(double)};
}

class Trainer {
  public:
    explicit Trainer(const Options& options);
    int run();

  private:
    struct Rollout {
        std::vector<Problem> problems;
        std::vector<Response> responses;  ///< G for each problem, in order
        std::vector<float> rewards, advantages;
        std::vector<Sample> samples;
    };
    Rollout rollout();
    void update(std::span<Sample> samples, double lr);
    void log_step(const Rollout& rollout, double rollout_seconds, double seconds, double lr);
    std::optional<Grades> evaluate();

    std::size_t longest_prompt() const;
    TransformerOptions planned_options();
    void save();
    /// The ranks must agree on the last step.
    bool stop_requested_anywhere() const {
        double stop = stop_requested();
        comm.all_reduce_max({&stop, 1});
        return stop != 0;
    }

    const Options o;
    const Comm comm;  ///< each rank rolls out and trains on its share of the questions
    const Config config;
    const Tokenizer tokenizer;
    const PromptTemplate prompt_template;
    const std::vector<Problem> train_problems, eval_problems;
    const int prompt_tokens, max_new_tokens, slots;
    const Device device;
    Backend& backend;
    std::size_t planned_memory = 0;  ///< bytes
    Transformer model;
    Optimizer optimizer;
    Generator generator;
    GenerateOptions sampling;
    Order order;
    LearningRate learning_rate;

    int step = 0;                  ///< steps done
    std::vector<float> reference;  ///< pi_ref's weights; empty if beta is 0
    StepSums sums;
    StepMaxima maxima;
    double grad_norm = 0;
    int updates = 0;                                   ///< in this step
    std::vector<double> accuracy_curve, length_curve;  ///< for the charts at the end
    std::optional<JsonLines> log, samples_log;         ///< on the root rank
};

/// One step's questions, responses, rewards and advantages.
Trainer::Rollout Trainer::rollout() {
    Rollout r;
    std::vector<std::uint32_t> ids;
    for (int p = comm.rank(); p < o.prompts; p += comm.size()) {
        ids.push_back(order.at(static_cast<std::uint64_t>(step) * o.prompts + p));
        r.problems.push_back(train_problems[ids.back()]);
    }
    sampling.step = static_cast<std::uint32_t>(step);
    r.responses = sample_responses(generator, tokenizer, r.problems, ids, sampling);

    for (const Response& response : r.responses)
        r.rewards.push_back(static_cast<float>(o.accuracy_weight * response.accuracy.value +
                                               o.format_weight * response.format.value));
    r.advantages = group_advantages(r.rewards, o.group,
                                    o.scale == "group" ? AdvantageScale::GroupStd : AdvantageScale::None);

    for (std::size_t i = 0; i < r.responses.size(); ++i) {
        const Completion& c = r.responses[i].completion;
        Sample s{tokenizer.encode(r.problems[c.prompt].prompt), 0, r.advantages[i], c.logp, {}, {}};
        s.prompt_length = s.tokens.size();  // tokens in, tokens out: the response is never encoded again
        s.tokens.insert(s.tokens.end(), c.tokens.begin(), c.tokens.end());
        r.samples.push_back(std::move(s));
    }
    return r;
}

/// One update of the policy: the gradient of the loss, micro-batch by micro-batch, then AdamW.
void Trainer::update(std::span<Sample> samples, double lr) {
    const ObjectiveOptions objective{o.clip_low, o.clip_high, o.beta};
    const LossAggregation aggregation = loss_aggregation(o.loss);
    const bool on_policy = updates == 0;  // the weights are still those that sampled
    UpdateSize size{static_cast<double>(samples.size()), 0};
    for (const Sample& s : samples) size.tokens += s.length();
    comm.all_reduce_sum(doubles_of(size));

    for_each_micro_batch(samples, o.token_budget, [&](std::span<Sample> micro, const PackedBatch& batch) {
        const auto scores = model.forward(batch, static_cast<float>(o.temperature));
        std::vector<float> dlogp(scores.logp.size());
        std::size_t m = 0;
        for (const Sample& s : micro) {
            const float weight = token_weight(s.length(), size, aggregation, o.max_new_tokens);
            for (int t = 0; t < s.length(); ++t, ++m) {
                // With a single update per rollout pi_old is pi_theta: the ratio is 1, its gradient that of log pi.
                const float logp = scores.logp[m], old = s.old_logp.empty() ? logp : s.old_logp[t];
                const float ref = s.ref_logp.empty() ? logp : s.ref_logp[t];
                const TokenObjective token = token_objective(logp, old, ref, s.advantage, objective);
                dlogp[m] = weight * token.dloss_dlogp;
                sums.loss += weight * token.loss;
                sums.kl += token.kl;
                sums.entropy += scores.entropy[m];
                sums.clip_low += token.clipped_low;
                sums.clip_high += token.clipped_high;
                if (on_policy) {
                    const double gap = std::abs(static_cast<double>(logp) - s.sampled_logp[t]);
                    maxima.gap = std::max(maxima.gap, gap);
                    sums.gap += gap;
                    ++sums.gap_tokens;
                }
            }
        }
        sums.tokens += static_cast<double>(dlogp.size());
        model.backward(dlogp);
    });
    comm.all_reduce_sum(backend, model.gradients());
    grad_norm += optimizer.step(lr, o.clip_norm, o.weight_decay);
    ++updates;
}

int Trainer::run() {
    std::optional<Grades> before;
    if (step == 0) before = evaluate();
    while (step < o.steps && !stop_requested_anywhere()) {
        const Stopwatch clock;
        Rollout r = rollout();
        const double rollout_seconds = clock.seconds();

        // Old and reference log-probabilities, where they differ from the policy's own.
        if (o.inner_epochs * o.mini_batches > 1)
            compute_log_probabilities(model, r.samples, o, &Sample::old_logp);
        if (o.beta > 0) {
            const auto policy = model.download_parameters();
            model.upload_parameters(reference);
            compute_log_probabilities(model, r.samples, o, &Sample::ref_logp);
            model.upload_parameters(policy);
        }

        sums = {}, maxima = {}, grad_norm = 0, updates = 0;
        const double lr = learning_rate.at(step + 1);
        for (int epoch = 0; epoch < o.inner_epochs; ++epoch)
            for (int part = 0; part < o.mini_batches; ++part) {  // whole groups
                const std::size_t begin = r.problems.size() * part / o.mini_batches * o.group;
                const std::size_t end = r.problems.size() * (part + 1) / o.mini_batches * o.group;
                update(std::span(r.samples).subspan(begin, end - begin), lr);
            }
        if (!std::isfinite(grad_norm))
            fail("step ", step + 1, ": the gradient is not finite; the last good checkpoint is in ", o.out,
                 "; lower --lr and go on with --resume");
        ++step;
        if (o.beta > 0 && o.reference_refresh > 0 && step % o.reference_refresh == 0)
            reference = model.download_parameters();
        log_step(r, rollout_seconds, clock.seconds(), lr);
        if (step % o.save_every == 0) save();
    }
    save();
    if (step < o.steps) {
        if (comm.is_root()) std::printf("stopped at step %d; go on with --resume\n", step);
        return 130;
    }
    const auto after = evaluate();
    if (!comm.is_root()) return 0;
    if (!accuracy_curve.empty()) {
        std::printf("accuracy         %s\n", sparkline(accuracy_curve, 80, 0, 1).c_str());
        std::printf("response length  %s\n",
                    sparkline(length_curve, 80, 0, *std::ranges::max_element(length_curve)).c_str());
    }
    if (before && after)
        std::printf(
            "held out: accuracy %.1f%% -> %.1f%%, format %.1f%% -> %.1f%%, response length %.1f -> %.1f\n",
            100 * before->accuracy, 100 * after->accuracy, 100 * before->format, 100 * after->format,
            before->response_length, after->response_length);
    save_model(model, o.model, o.model, o.out, saved_dtype(o.save_dtype, o.model));
    std::printf("memory: %s planned, %s at the peak\n",
                human_bytes(static_cast<double>(planned_memory)).c_str(),
                human_bytes(static_cast<double>(backend.peak_memory())).c_str());
    std::printf("model, log.jsonl and samples.jsonl are in %s\n", o.out.c_str());
    return 0;
}

/// Held-out problems, sampled at the training temperature with randomness of their own, the same every time.
std::optional<Grades> Trainer::evaluate() {
    if (eval_problems.empty()) return std::nullopt;
    std::vector<Problem> share;
    std::vector<std::uint32_t> ids;
    for (std::size_t i = comm.rank(); i < eval_problems.size(); i += comm.size()) {
        share.push_back(eval_problems[i]);
        ids.push_back(static_cast<std::uint32_t>(i));
    }
    GenerateOptions options = sampling;
    options.samples_per_prompt = o.eval_samples;
    options.step = 0x80000000u;
    const auto responses = sample_responses(generator, tokenizer, share, ids, options);
    Grades g(responses);
    comm.all_reduce_sum(doubles_of(g));
    g = g.means();
    if (!comm.is_root()) return g;
    log->write({{"eval",
                 {{"step", step},
                  {"accuracy", g.accuracy},
                  {"format", g.format},
                  {"response_length", g.response_length},
                  {"n", static_cast<std::int64_t>(g.responses)}}}});
    std::printf(
        "held out (%zu unseen problems, %d sampled responses each): accuracy %.1f%%, format %.1f%%, "
        "response length %.1f\n",
        eval_problems.size(), o.eval_samples, 100 * g.accuracy, 100 * g.format, g.response_length);
    std::printf("  for example  %s%s   [%s]\n", eval_problems[0].prompt.c_str(), responses[0].text.c_str(),
                responses[0].accuracy.reason.c_str());
    return g;
}

void Trainer::log_step(const Rollout& r, double rollout_seconds, double seconds, double lr) {
    sums.grades = Grades(r.responses);
    for (float reward : r.rewards) sums.reward += reward, sums.reward_squares += reward * reward;
    for (std::size_t g = 0; g < r.rewards.size(); g += o.group) {
        const std::span group(&r.rewards[g], o.group);
        sums.groups_without_spread +=
            std::ranges::all_of(group, [&](float reward) { return reward == group[0]; });
        ++sums.groups;
    }
    for (const Sample& s : r.samples)
        maxima.length = std::max(maxima.length, static_cast<double>(s.length()));
    comm.all_reduce_sum(doubles_of(sums));
    comm.all_reduce_max(doubles_of(maxima));
    if (!comm.is_root()) return;

    const Grades g = sums.grades.means();
    const double reward = sums.reward / g.responses, passes = o.inner_epochs;
    const double variance = std::max(0.0, sums.reward_squares / g.responses - reward * reward);
    log->write({{"step", step},
                {"reward", reward},
                {"reward_std", std::sqrt(variance)},
                {"accuracy", g.accuracy},
                {"format", g.format},
                {"response_length", g.response_length},
                {"response_length_max", maxima.length},
                {"truncated", g.truncated},
                {"groups_without_spread", sums.groups_without_spread / sums.groups},
                {"loss", sums.loss / updates},
                {"entropy", sums.entropy / sums.tokens},
                {"kl", sums.kl / sums.tokens},
                {"clip_low", sums.clip_low / sums.tokens},
                {"clip_high", sums.clip_high / sums.tokens},
                {"grad_norm", grad_norm / updates},
                {"lr", lr},
                {"logp_gap_max", maxima.gap},
                {"logp_gap_mean", sums.gap / sums.gap_tokens},
                {"tokens", sums.tokens / passes},
                {"memory", {{"planned", planned_memory}, {"peak", backend.peak_memory()}}},
                {"seconds",
                 {{"step", seconds}, {"rollout", rollout_seconds}, {"train", seconds - rollout_seconds}}}});
    accuracy_curve.push_back(g.accuracy);
    length_curve.push_back(g.response_length);
    if (step % 20 == 1)
        std::printf("   step  reward  accuracy  format  length  entropy  grad norm  logp gap  s/step\n");
    std::printf("%7d  %6.3f  %7.1f%%  %5.1f%%  %6.1f  %7.3f  %9.3f  %8.1e  %6.2f\n", step, reward,
                100 * g.accuracy, 100 * g.format, g.response_length, sums.entropy / sums.tokens,
                grad_norm / updates, maxima.gap, seconds);
    if (step % o.show_every == 0 || step == 1) {
        std::printf("  sample  %s%s   [%s]\n", r.problems[0].prompt.c_str(), r.responses[0].text.c_str(),
                    r.responses[0].accuracy.reason.c_str());
        for (int i = 0; i < o.group; ++i)
            samples_log->write({{"step", step},
                                {"prompt", r.problems[0].prompt},
                                {"response", r.responses[i].text},
                                {"accuracy", r.responses[i].accuracy.value},
                                {"reason", r.responses[i].accuracy.reason},
                                {"format", r.responses[i].format.value},
                                {"advantage", r.advantages[i]}});
    }
    std::fflush(stdout);
}

// ---- setting up ----

Trainer::Trainer(const Options& options)
    : o(options),
      config(Config::load(o.model)),
      tokenizer(Tokenizer::load(o.model)),
      prompt_template(load_prompt_template(o.model, config, tokenizer, o.prompt_template, o.plain)),
      train_problems(load_problems(o.train, prompt_template)),
      eval_problems(o.eval.empty() ? std::vector<Problem>{} : load_problems(o.eval, prompt_template)),
      prompt_tokens(static_cast<int>(longest_prompt())),
      max_new_tokens(std::min(o.max_new_tokens, config.max_position_embeddings - 1)),
      slots(std::min(o.prompts * o.group / comm.size(), 256)),
      device(make_device(o.device, o.dtype)),
      backend(*device.backend),
      model(backend, config, planned_options()),
      optimizer(model, static_cast<std::uint64_t>(o.seed)),
      generator(model, slots, prompt_tokens, max_new_tokens),
      order(train_problems.size(), static_cast<std::uint64_t>(o.seed)) {
    if (config.eos_token_ids.empty())
        fail(o.model, ": config.json has no eos_token_id, so no response can end");
    if (o.prompts % comm.size())
        fail("--prompts ", o.prompts, " cannot be shared among ", comm.size(), " ranks");
    if (o.mini_batches > o.prompts / comm.size())
        fail("--mini-batches ", o.mini_batches, " is more than the ", o.prompts / comm.size(),
             " questions of a rank");
    sampling = {.sample = {.temperature = static_cast<float>(o.temperature),
                           .seed = static_cast<std::uint64_t>(o.seed)},
                .samples_per_prompt = o.group,
                .max_new_tokens = max_new_tokens,
                .stop_tokens = config.eos_token_ids};
    learning_rate = {
        .lr = o.lr, .warmup_steps = o.warmup, .total_steps = o.steps, .cosine = o.schedule == "cosine"};
    if (o.resume && has_checkpoint(o.out)) {
        Checkpoint checkpoint = load_checkpoint(o.out, model, optimizer);
        step = std::stoi(checkpoint.numbers.at("step"));
        reference = std::move(checkpoint.reference);
    } else {
        model.load_weights(o.model);
        if (o.beta > 0) reference = model.download_parameters();
    }
    if (!comm.is_root()) return;
    const auto resumed = step > 0 ? std::optional<std::int64_t>(step) : std::nullopt;
    log.emplace(std::filesystem::path(o.out) / "log.jsonl", resumed);
    samples_log.emplace(std::filesystem::path(o.out) / "samples.jsonl", resumed);
    std::printf("%s parameters, %d threads, %d ranks, %zu training problems, %d x %d responses a step\n",
                human_count(static_cast<double>(model.layout().total)).c_str(), threads(), comm.size(),
                train_problems.size(), o.prompts, o.group);
}

std::size_t Trainer::longest_prompt() const {
    std::size_t longest = 1;
    for (const auto* problems : {&train_problems, &eval_problems})
        for (const auto& p : *problems) longest = std::max(longest, tokenizer.encode(p.prompt).size());
    if (longest >= static_cast<std::size_t>(config.max_position_embeddings))
        fail(o.train, ": the longest prompt has ", longest, " tokens, the model's context only ",
             config.max_position_embeddings);
    return longest;
}

/// Memory is planned, shown and checked before any of it is taken.
TransformerOptions Trainer::planned_options() {
    const DType state_dtype = o.state_dtype == "bfloat16" ? DType::BF16 : DType::F32;
    const TransformerOptions planned{
        .trainable = true,
        .recompute = o.recompute,
        .bf16_matrices = device.bf16_matrices || state_dtype == DType::BF16,
        .bf16_master = state_dtype == DType::BF16,
        .max_tokens = std::max<std::int64_t>(o.token_budget, prompt_tokens + max_new_tokens),
        .max_decode_rows = slots};
    const auto plan = Transformer::plan(config, planned, backend);
    const ParameterLayout layout(config);
    planned_memory = print_and_check_memory_plan(
        device,
        {{"parameters", plan.parameters},
         {"gradients", plan.gradients},
         {"optimizer state", Optimizer::bytes(layout, state_dtype)},
         {"activations (--token-budget, --recompute)", plan.activations},
         {"key/value cache (--prompts, --group, --max-new-tokens)",
          Generator::bytes(config, slots, prompt_tokens, max_new_tokens, backend)},
         {"reference policy (--beta 0 needs none)", o.beta > 0 ? 2 * layout.total * sizeof(float) : 0}});
    return planned;
}

void Trainer::save() {
    if (comm.is_root())
        save_checkpoint(o.out, model, optimizer, {{{"step", std::to_string(step)}}, reference});
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{std::string("GRPO with rule rewards: R1-Zero on a base model") +
                     (Comm::available() ? ". Under mpirun the ranks share the questions" : ""),
                 "train_grpo"};
    app.option_defaults()->always_capture_default();
    app.add_option("--model", o.model, "base model folder: config.json, model.safetensors, tokenizer.json")
        ->required();
    app.add_option("--train", o.train, "training problems, JSONL")->required();
    app.add_option("--eval", o.eval, "held-out problems, JSONL: evaluated before and after");
    app.add_option("--eval-samples", o.eval_samples, "responses to each held-out problem")->check(kPositive);
    app.add_option("--out", o.out, "run folder: log.jsonl, samples.jsonl, checkpoint and the trained model");
    add_template_options(app, o.prompt_template, o.plain);
    app.add_option("--steps", o.steps, "steps: rollouts and their updates")->check(kPositive);
    app.add_option("--prompts", o.prompts, "questions a step")->check(kPositive);
    app.add_option("--group", o.group, "responses to each question, G")->check(CLI::Range(2, 1024));
    app.add_option("--max-new-tokens", o.max_new_tokens, "longest response")->check(kPositive);
    app.add_option("--temperature", o.temperature, "of sampling, and of every log-probability")
        ->check(kPositive);
    app.add_option("--accuracy-weight", o.accuracy_weight, "of the accuracy reward");
    app.add_option("--format-weight", o.format_weight, "of the format reward");
    app.add_option("--loss", o.loss, "aggregation over tokens")
        ->check(CLI::IsMember({"grpo", "dapo", "dr_grpo"}));
    app.add_option("--advantage-scale", o.scale, "divide by the group's standard deviation, or not")
        ->check(CLI::IsMember({"group", "none"}));
    app.add_option("--clip-low", o.clip_low, "ratio clip: 1 - this")->check(kNonNegative);
    app.add_option("--clip-high", o.clip_high, "ratio clip: 1 + this")->check(kNonNegative);
    app.add_option("--beta", o.beta, "weight of the KL to the reference policy, 0: none")
        ->check(kNonNegative);
    app.add_option("--reference-refresh", o.reference_refresh,
                   "the policy becomes the reference every so many steps, 0: never")
        ->check(kNonNegative);
    app.add_option("--inner-epochs", o.inner_epochs, "passes over each rollout")->check(kPositive);
    app.add_option("--mini-batches", o.mini_batches, "updates per pass")->check(kPositive);
    app.add_option("--lr", o.lr, "learning rate")->check(kPositive);
    app.add_option("--schedule", o.schedule, "after the warm-up")
        ->check(CLI::IsMember({"constant", "cosine"}));
    app.add_option("--warmup", o.warmup, "warm-up steps")->check(kNonNegative);
    app.add_option("--weight-decay", o.weight_decay, "AdamW's, on matrices")->check(kNonNegative);
    app.add_option("--clip-norm", o.clip_norm, "largest gradient norm, 0: none")->check(kNonNegative);
    app.add_option("--token-budget", o.token_budget, "tokens a training pass (memory)")->check(kPositive);
    add_device_options(app, o.device, o.dtype);
    add_state_dtype(app, o.state_dtype);
    app.add_flag("--recompute", o.recompute,
                 "recompute activations in the backward pass: less memory, a third more work");
    app.add_option("--show-every", o.show_every, "steps between sampled traces")->check(kPositive);
    app.add_option("--save-every", o.save_every, "steps between checkpoints")->check(kPositive);
    add_save_dtype(app, o.save_dtype);
    app.add_option("--seed", o.seed, "of sampling and of the order of problems");
    app.add_option("--threads", o.threads, "0: one a core; the result is the same")->check(kNonNegative);
    app.add_flag("--resume", o.resume, "go on from the checkpoint in --out, if there is one");
    return run_main(app, argc, argv, [&] {
        install_stop_handler();
        set_threads(o.threads);
        return Trainer(o).run();
    });
}
