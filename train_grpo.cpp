// GRPO, from a prompt to a weight update, in one file: R1-Zero (DeepSeek-R1, arXiv 2501.12948,
// section 2.2) with the algorithm of DeepSeekMath (arXiv 2402.03300, section 4.1) and its variants.
// Each step:
//
//   rollout     sample G responses o_1..o_G to each of P questions from the policy pi
//   reward      r_i by rules: is the answer right, is the format kept
//   advantage   A_i = (r_i - mean r) / std r over the G responses to a question
//   loss        -1/(PG) sum_i 1/|o_i| sum_t [min(rho A_i, clip(rho, 1-eps, 1+eps) A_i) - beta KL]
//               with rho = pi(o_it) / pi_old(o_it) and KL(pi, pi_ref)
//   step        AdamW on the gradient of the loss
//
// The formulas are in src/rl/grpo.cpp, sampling in src/rl/generate.cpp, rewards in
// src/rl/rewards.cpp and src/rl/judge.cpp, the transformer in src/model/transformer.cpp.
#include <cstdio>

#include "src/device/parallel.h"
#include "src/rl/diagnosis.h"
#include "src/rl/explain.h"
#include "src/rl/micro_batch.h"
#include "src/rl/rollout.h"
#include "src/rl/trainee.h"
#include "src/rl/training_log.h"
#include "src/run/record.h"
#include "src/run/stop.h"

using namespace r1;

namespace {
// clang-format off
struct Options : Flags {
    Options() : Flags("train_grpo", "GRPO with rule rewards: R1-Zero on a base model. Under mpirun the ranks share the questions") {
        // What is shown and kept, how memory is cut, and what one turns when a run goes wrong.
        let_differ({"steps", "eval-every", "eval-samples", "eval-limit", "eval-first", "show-every", "keep-best", "token-budget", "slots",
                    "min-entropy", "entropy-bonus", "reward-program", "reward-seconds"});
        only_with({"--eval"}, {"--eval-every", "--eval-samples", "--eval-limit", "--eval-first", "--keep-best"});
    }

    Group model_and_data = group("Model and data");
    const std::string& model = required("--model", "base model folder: config.json, model.safetensors, tokenizer.json");
    const std::string& train = required("--train", "training problems, JSONL");
    const std::string& eval = flag("--eval", "", "held-out problems, JSONL: evaluated before and after");
    const int& eval_every = flag("--eval-every", 0, "steps between evaluations, 0: only before and after", kNonNegative);
    const int& eval_samples = flag("--eval-samples", 1, "responses to each held-out problem", kManyResponses);
    const int& eval_limit = flag("--eval-limit", 0, "held-out problems to evaluate, 0: all", kNonNegative);
    const std::string& eval_first = choice("--eval-first", {"on", "off"}, "evaluation before the first step");
    PromptFlags prompt{*this};

    Group sampling = group("Sampling");
    const int& steps = flag("--steps", 200, "rollouts, each followed by its updates", kPositive);
    const int& prompts = flag("--prompts", 32, "questions a step, P", kManyResponses);
    const int& group_size = flag("--group", 8, "responses to each question, G", {2, 1024});
    const int& max_new_tokens = flag("--max-new-tokens", 256, "longest response", kPositive);
    const int& slots = flag("--slots", 256, "responses in flight at a time, at most (memory)", kManyResponses);
    const double& temperature = flag("--temperature", 1.0, "temperature of sampling, and of every log-probability", {kColdest, kHottest});
    const int& dynamic_sampling = flag("--dynamic-sampling", 0, "rounds a step in which groups without spread are replaced by other questions', 0: none", kNonNegative);
    const std::int64_t& seed = flag("--seed", std::int64_t{1}, "seed of sampling and of the order of problems");

    Group rewards = group("Reward");
    RewardFlags reward{*this, "accuracy=1,format=0.2"};
    const std::string& overlong = choice("--overlong", {"keep", "mask", "soft"}, "responses that are cut off: keep, mask (out of the loss), or soft (the reward overlong=1)");

    Group objective = group("Objective");
    const std::string& preset = flag("--preset", "", "hyperparameters of a paper, which flags given beside it replace: " + preset_names());
    const std::string& loss = choice("--loss", {"grpo", "dapo", "dr_grpo"}, "mean over tokens: of each response, of all of them, or over the longest length");
    const std::string& scale = choice("--advantage-scale", {"group", "batch", "none"}, "divide by the standard deviation of the group, of the batch, or not");
    const std::string& ratio = choice("--ratio", {"token", "sequence"}, "pi / pi_old of a token, or of its sequence (GSPO)");
    const float& epsilon_low = flag("--clip-low", 0.2f, "clip the ratio to at least 1 - this", kNonNegative);
    const float& epsilon_high = flag("--clip-high", 0.2f, "clip the ratio to at most 1 + this", kNonNegative);
    const float& beta = flag("--beta", 0.0f, "weight of the KL to the reference policy, 0: none", kNonNegative);
    const int& reference_refresh = flag("--reference-refresh", 0, "steps after which the policy becomes the reference, 0: never", kNonNegative);
    const float& importance_cap = flag("--importance-cap", 0.0f, "truncated importance sampling: weight tokens by pi_old / pi_sampled, at most this; 0: no weights", kNonNegative);
    const double& entropy_bonus = flag("--entropy-bonus", 0.0, "weight of the mean entropy of a token", kNonNegative);
    const double& min_entropy = flag("--min-entropy", 1e-4, "stop after 10 steps with a mean entropy below this", kNonNegative);

    Group optimisation = group("Optimisation");
    const int& inner_epochs = flag("--inner-epochs", 1, "passes over each rollout", {1, 1024});
    const int& mini_batches = flag("--mini-batches", 1, "updates a pass", kManyResponses);
    OptimizerFlags optimizer{*this, 1e-6, {"constant", "cosine"}, 5};

    Group machine = group("Device");
    DeviceFlags device{*this};
    const bool& exact = flag("--exact", false, "on the CPU and on CUDA: sampling and training give a token the same log-probability to the last bit, at any size of model, and any number of ranks the same weights; it takes longer");

    Group run_folder = group("Run");
    RunFlags run{*this, "runs/grpo", "run folder: log.jsonl, samples.jsonl, checkpoint and the trained model", 50};
    const bool& keep_best = flag("--keep-best", false, "write the model with the highest reward in an evaluation after step 0 to OUT/best");
    const int& show_every = flag("--show-every", 20, "steps between sampled traces", kPositive);
    const bool& explain = flag("--explain", false, "print one step on one question, number by number, and end");

    int longest_response(const Config& c) const { return std::min(max_new_tokens, c.max_position_embeddings - 1); }
    ScoreOptions scoring() const { return {temperature, optimizer.token_budget}; }
    ObjectiveOptions objective_options() const { return {epsilon_low, epsilon_high, beta, ratio == "sequence", importance_cap}; }
};
// clang-format on

/// Everything that a run is made of. Its constructor checks all input and plans memory.
struct Setup {
    Setup(const Options& o, const Comm& comm);
    const Comm& comm;  ///< each rank rolls out and trains on its share of the questions
    ModelFolder folder;
    Judge judge;
    std::vector<Problem> train, held_out;
    Order order;  ///< of the training problems
    GenerateOptions sampling;
    std::unique_ptr<Trainee> trainee;
    Transformer& model() { return *trainee->model; }
    std::vector<Problem> read(const Options& o, const std::string& file) const {
        return load_problems(file, folder.prompt_template, judge.answers(),
                             o.reward.skip_unreadable);
    }
};

/// What changes as the run goes on.
struct State {
    int step = 0;                 ///< steps done
    std::uint64_t questions = 0;  ///< drawn so far, by all ranks
    PastEvaluations evaluations;
    std::optional<TrainingLog> log;  ///< on the root rank
};

State begin(Setup&, const Options&, TrainingRun&);
std::vector<Response> rollout(Setup&, State&, const Options&, Metrics&);
void set_advantages(std::span<Response>, const Setup&, const Options&, Metrics&);
void score_reference(Setup&, const Options&, std::span<Response>);
void accumulate_gradient(Setup&, const Options&, std::span<Response>, UpdateSize, Metrics&);
void evaluate(Setup&, State&, const Options&);

int train(const Options& o, const Comm& comm, TrainingRun& run) {
    Setup s(o, comm);
    State state = begin(s, o, run);
    const auto save = [&] {
        if (state.log) state.log->sync();
        const auto questions = std::pair("questions", std::to_string(state.questions));
        run.save(*s.trainee, state.step, {questions});
    };
    const LearningRate learning_rate = o.optimizer.learning_rate(o.steps);
    Watch watch;
    if (o.eval_first == "on" && state.step == 0 && state.evaluations.last < 0)
        evaluate(s, state, o);
    while (state.step < o.steps && !s.comm.any(stop_requested())) {
        Metrics metrics;
        std::vector<Response> responses = rollout(s, state, o, metrics);
        set_advantages(responses, s, o, metrics);
        share_by_length(responses, s.train, o.prompts, o.mini_batches, s.comm);
        // pi_old and pi_ref, where they are not the policy itself.
        const int updates = o.inner_epochs * o.mini_batches;
        if (updates > 1) score(s.model(), responses, o.scoring(), &Response::old_logp);
        if (o.beta > 0) score_reference(s, o, responses);
        metrics.lap("seconds/reference");
        const double lr = learning_rate.at(state.step + 1);
        for (int update = 0; update < updates; ++update) {
            const auto batch = mini_batch(responses, o.prompts, update, o.mini_batches);
            accumulate_gradient(s, o, batch, update_size(s.comm, batch), metrics);
            // Sick: it grows by orders of magnitude, and the policy's changes with it. Lower --lr.
            metrics.mean("grad_norm", s.trainee->optimizer->step(lr, o.optimizer));
        }
        run.check_ranks(*s.trainee, s.comm, state.step + 1);
        metrics.lap("seconds/train");
        metrics.local("lr", lr);
        metrics.local("seconds/step", metrics.age());
        metrics.local("memory/peak", static_cast<double>(s.trainee->device.backend->peak_memory()));
        metrics.all_reduce(s.comm);
        watch.check(++state.step, metrics, o.min_entropy, o.run.out);
        if (o.reference_refresh > 0 && state.step % o.reference_refresh == 0 && o.beta > 0)
            s.model().parameters().keep_as_reference();
        if (state.log) {
            state.log->step(state.step, metrics);
            watch.say_if_nothing_is_learnt(metrics, responses, s.sampling.max_new_tokens);
            if (state.step % o.show_every == 0 || state.step == 1)
                state.log->samples(state.step, s.judge,
                                   mini_batch(responses, o.prompts, 0, o.prompts));
        }
        const bool ends = state.step == o.steps;
        if (ends || (o.eval_every > 0 && state.step % o.eval_every == 0)) evaluate(s, state, o);
        if (ends || state.step % o.run.save_every == 0) save();
    }
    if (state.step < o.steps) return save(), run.stopped(state.step);
    if (state.evaluations.last < state.step) evaluate(s, state, o);
    if (s.comm.is_root()) run.finish(s.folder, *s.trainee);
    return 0;
}

// ---- one step ----

/// G graded responses to each question of this rank, a group after the other. Dynamic sampling
/// (DAPO, arXiv 2503.14476, section 3.2) replaces groups whose rewards are all equal, which teach
/// nothing, by those of further questions, in at most so many rounds.
std::vector<Response> rollout(Setup& s, State& state, const Options& o, Metrics& metrics) {
    const std::size_t G = o.group_size;
    ChosenGroups groups(o.prompts, o.group_size);
    s.sampling.step = static_cast<std::uint32_t>(state.step);
    for (int round = 1;; ++round) {
        std::vector<const Problem*> problems;
        for (int p = s.comm.rank(); p < o.prompts; p += s.comm.size())
            problems.push_back(&s.train[s.order.at(state.questions + p)]);
        state.questions += o.prompts;
        std::vector<double> teaches(o.prompts, 0.0);
        auto sampled = sample_responses(*s.trainee->generator, s.folder, problems, s.sampling);
        metrics.lap("seconds/rollout");
        s.judge(sampled);
        metrics.lap("seconds/reward");
        // Sick: format falls, more responses are truncated, length grows while accuracy does not.
        record_measures(s.judge, sampled, metrics);
        for (std::size_t g = 0; g < problems.size(); ++g) {
            const auto group = std::span(sampled).subspan(g * G, G);
            const bool spread = std::ranges::any_of(
                group, [&](const Response& r) { return r.reward != group[0].reward; });
            // Sick: near 1. The questions are too hard, or all solved.
            metrics.mean("groups_without_spread", !spread);
            metrics.sum("groups_sampled", 1);
            for (const Response& r : group) metrics.sum("sampled_tokens", r.length());
            teaches[s.comm.rank() + g * s.comm.size()] = spread || o.dynamic_sampling == 0;
        }
        s.comm.all_reduce_sum(teaches);
        groups.add(sampled, teaches, s.comm);
        if (groups.teaching() == o.prompts || round >= o.dynamic_sampling) return groups.take();
        std::printf("step %d: %d of %d groups have spread after %d rounds of sampling\n",
                    state.step + 1, groups.teaching(), o.prompts, round);
    }
}

/// A_i = (r_i - mean r) / std r over each group of G.
void set_advantages(std::span<Response> responses, const Setup& s, const Options& o,
                    Metrics& metrics) {
    std::vector<float> rewards;
    // A rank that has no group records the same names as the others.
    metrics.expect_means({"reward"});
    metrics.max("length_max", 0);
    double all[3] = {};  // over all ranks: count, sum and squares of the rewards
    for (const Response& r : responses) {
        const double reward = rewards.emplace_back(static_cast<float>(r.reward));
        all[0] += 1;
        all[1] += reward;
        all[2] += reward * reward;
        // Sick: rises while accuracy does not. The reward is being hacked.
        metrics.mean("reward", reward);
        metrics.max("length_max", r.length());
    }
    s.comm.all_reduce_sum(all);
    const double mean = all[1] / all[0];
    metrics.local("reward_std", std::sqrt(std::max(0.0, all[2] / all[0] - mean * mean)));
    const double variance = (all[2] - all[1] * all[1] / all[0]) / (all[0] - 1);
    const auto advantages = group_advantages(rewards, o.group_size, advantage_scale(o.scale),
                                             std::sqrt(std::max(0.0, variance)));
    for (std::size_t i = 0; i < responses.size(); ++i) {
        responses[i].advantage = advantages[i];
        responses[i].masked = o.overlong == "mask" && !responses[i].stopped;
    }
}

/// Log-probabilities under pi_ref, whose weights take the policy's place for a while.
void score_reference(Setup& s, const Options& o, std::span<Response> responses) {
    s.model().parameters().use_reference(true);
    score(s.model(), responses, o.scoring(), &Response::ref_logp);
    s.model().parameters().use_reference(false);
}

/// Adds the gradient of the loss on these responses to the model's gradients. There is no autograd:
/// the derivative of the loss by each token's log-probability is all that backward() needs.
void accumulate_gradient(Setup& s, const Options& o, std::span<Response> responses, UpdateSize size,
                         Metrics& metrics) {
    // A rank whose responses are all masked records the same names as the others.
    metrics.expect_means({"kl", "entropy", "clipped_low", "clipped_high"});
    metrics.expect_means({"logp_gap_mean", "logp_gap_kl"});
    metrics.max("logp_gap_max", 0);
    const LossAggregation aggregation = loss_aggregation(o.loss);
    double loss = 0, tokens = 0;
    const auto backward = [&](auto micro, const auto& batch) {
        const auto scores = s.model().forward(batch, static_cast<float>(o.temperature));
        std::vector<float> dlogp, dentropy;
        for (const Response* r : micro) {
            const std::size_t begin = dlogp.size();
            const auto policy = std::span(scores.logp).subspan(begin, r->length());
            // With one update a rollout pi_old is pi_theta, and the ratio is 1.
            const std::span<const float> old = r->old_logp.empty() ? policy : r->old_logp;
            const auto terms = objective({policy, old, r->ref_logp, r->sampled_logp}, r->advantage,
                                         o.objective_options());
            const double weight =
                token_weight(r->length(), size, aggregation, s.sampling.max_new_tokens);
            for (int t = 0; t < r->length(); ++t) {
                const TokenObjective& term = terms[t];
                const double entropy = scores.entropy[begin + t];
                const double gap = static_cast<double>(old[t]) - r->sampled_logp[t];
                dlogp.push_back(static_cast<float>(weight * term.dloss_dlogp));
                dentropy.push_back(static_cast<float>(-o.entropy_bonus / size.tokens));
                loss += weight * term.loss - o.entropy_bonus / size.tokens * entropy;
                metrics.mean("kl", term.kl);       // Sick: jumps. Lower --lr, or raise --beta.
                metrics.mean("entropy", entropy);  // Sick: falls to 0, or rises without end.
                // Sick: tens of percent. Most of each update is thrown away.
                metrics.mean("clipped_low", term.clipped_low);
                metrics.mean("clipped_high", term.clipped_high);
                // Sick: a KL (of k3) above 0.01. What is trained is not what sampled.
                metrics.max("logp_gap_max", std::abs(gap));
                metrics.mean("logp_gap_mean", std::abs(gap));
                metrics.mean("logp_gap_kl", std::expm1(gap) - gap);
            }
        }
        tokens += static_cast<double>(dlogp.size());
        if (o.entropy_bonus == 0) dentropy.clear();
        s.model().backward(dlogp, dentropy);
    };
    accumulate_over_ranks(s.model(), s.comm, responses, o.optimizer.token_budget,
                          o.exact ? o.prompts : 0, backward);
    // Each rank's loss is its part of the whole. It hovers around 0 and is no measure of progress.
    metrics.mean("loss", loss, 1.0 / s.comm.size());
    metrics.sum("tokens", tokens);
}

// ---- what is evaluated and kept ----

/// Held-out problems, sampled as in training, with randomness of their own, the same each time.
void evaluate(Setup& s, State& state, const Options& o) {
    if (s.held_out.empty()) return;
    GenerateOptions options = s.sampling;
    options.samples_per_prompt = o.eval_samples;
    options.step = 0x80000000u;
    std::vector<Response> responses;
    const auto add = [&](std::vector<Response>& some) {
        std::ranges::move(some, std::back_inserter(responses));
        return true;
    };
    for_each_chunk(*s.trainee->generator, s.folder, s.judge, s.comm, s.held_out, options,
                   "evaluation", add);
    Metrics metrics;
    record_evaluation(s.judge, responses, metrics);
    const bool is_best = state.evaluations.add(state.step, metrics["reward"]);
    if (!state.log) return;
    state.log->evaluation(state.step, s.judge, metrics, responses, o.eval_samples);
    if (is_best && o.keep_best)
        s.folder.save(s.model(), std::filesystem::path(o.run.out) / "best", o.run.save_dtype);
}

// ---- setting up ----

Setup::Setup(const Options& o, const Comm& comm)
    : comm(comm),
      folder(o.model, o.prompt.choice, o.prompt.form(), o.prompt.stop_texts,
             o.prompt.escape_special),
      judge(o.reward.options(o.longest_response(folder.config), o.overlong == "soft")),
      train(read(o, o.train)),
      order(train.size(), static_cast<std::uint64_t>(o.seed)) {
    const Config& config = folder.config;
    if (!o.eval.empty()) held_out = limited(read(o, o.eval), o.eval_limit);
    if (config.eos_token_ids.empty() && folder.stop_texts.empty())
        fail(o.model, ": config.json has no eos_token_id; give --stop-text, which ends a response");
    const int context = config.max_position_embeddings;
    if (o.prompts < comm.size())
        fail("--prompts ", o.prompts, " cannot be shared among ", comm.size(), " ranks");
    if (o.mini_batches > o.prompts) fail("--mini-batches: more than the ", o.prompts, " questions");
    sampling = {.sample = {.temperature = static_cast<float>(o.temperature),
                           .seed = static_cast<std::uint64_t>(o.seed)},
                .samples_per_prompt = o.group_size,
                .max_new_tokens = o.longest_response(config),
                .stop_tokens = config.eos_token_ids};
    const int longest_prompt = std::max(encode_prompts(train, folder.tokenizer, context),
                                        encode_prompts(held_out, folder.tokenizer, context));
    const int own_responses = (o.prompts + comm.size() - 1) / comm.size() * o.group_size;
    const RolloutPlan plan{std::min(own_responses, o.slots), longest_prompt,
                           sampling.max_new_tokens,
                           own_responses * (o.dynamic_sampling > 0 ? 2 : 1), o.beta > 0};
    trainee =
        std::make_unique<Trainee>(config, o.device, o.optimizer, o.run, o.seed, plan, o.exact);
}

/// A new run, or one that goes on from the checkpoint in --out.
State begin(Setup& s, const Options& o, TrainingRun& run) {
    auto& record = run.record();
    describe_inputs(record, s.trainee->device.backend->name(), s.comm.size(),
                    {{"model", o.model}, {"train", o.train}, {"eval", o.eval}});
    s.folder.describe(record);
    State state;
    if (run.resuming()) {
        const Checkpoint checkpoint = run.restore(*s.trainee);
        state.step = static_cast<int>(checkpoint.count("step"));
        state.questions = checkpoint.count("questions");
        state.evaluations = past_evaluations(run.out(), state.step);
    } else {
        s.model().parameters().load(o.model);
        if (o.beta > 0) s.model().parameters().keep_as_reference();
    }
    s.comm.any(false);  // every rank has looked at the folder before one writes to it
    if (!s.comm.is_root()) return state;
    state.log.emplace(run, state.step);
    std::printf("%zu training problems, %d x %d responses a step, %d ranks of %d threads\n",
                s.train.size(), o.prompts, o.group_size, s.comm.size(), threads());
    return state;
}

/// One step on one question, printed so that a pocket calculator can check it. Nothing is saved.
int explain(Options& o, const Comm& comm) {
    for (const char* flag : {"--prompts", "--inner-epochs", "--mini-batches"}) o.set(flag, "1");
    o.set("--dynamic-sampling", "0");
    Setup s(o, comm);
    Metrics metrics;
    State state;
    s.model().parameters().load(o.model);
    if (o.beta > 0) s.model().parameters().keep_as_reference();
    std::vector<Response> responses = rollout(s, state, o, metrics);
    set_advantages(responses, s, o, metrics);
    const LossAggregation loss = loss_aggregation(o.loss);
    ExplainedStep step{s.judge,     s.folder.tokenizer,        responses,
                       o.scoring(), advantage_scale(o.scale),  o.objective_options(),
                       loss,        s.sampling.max_new_tokens, o.entropy_bonus};
    if (step.teaches()) {
        if (o.beta > 0) score_reference(s, o, responses);
        const UpdateSize size = update_size(s.comm, responses);
        explain_update(step, *s.trainee, o.optimizer, [&](std::span<Response> some) {
            Metrics part;
            accumulate_gradient(s, o, some, size, part);
            return part["loss"];
        });
    }
    print(step, o.optimizer);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    return o.main(argc, argv, [&] {
        install_stop_handler();
        const Comm comm;
        set_threads(o.device.threads);
        if (o.explain) return explain(o, comm);
        TrainingRun run(o, o.run, o.model, argc, argv, comm.is_root());
        return train(o, comm, run);
    });
}
