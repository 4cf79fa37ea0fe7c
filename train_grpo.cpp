// GRPO, from a prompt to a weight update, in one file: R1-Zero (DeepSeek-R1, arXiv 2501.12948, section 2.2)
// with the algorithm of DeepSeekMath (arXiv 2402.03300, section 4.1) and its variants. Each step:
//
//   rollout     sample G responses o_1..o_G to each of P questions from the policy pi_theta
//   reward      r_i by rules: is the answer right, is the format kept
//   advantage   A_i = (r_i - mean r) / std r over the G responses of a question
//   loss        -1/(PG) sum_i 1/|o_i| sum_t [ min(rho A_i, clip(rho, 1-eps, 1+eps) A_i) - beta KL(pi_theta, pi_ref) ]
//               with rho = pi_theta(o_it) / pi_old(o_it)
//   step        AdamW on the gradient of the loss
//
// The formulas themselves are in src/rl/grpo.cpp, sampling in src/rl/generate.cpp, rewards in src/rl/rewards.cpp and
// src/rl/reward_mix.cpp, the transformer in src/model/transformer.cpp.
#include <cstdio>
#include <numeric>
#include <set>

#include "src/rl/dataset.h"
#include "src/model/checkpoint.h"
#include "src/run/comm.h"
#include "src/run/flags.h"
#include "src/device/device.h"
#include "src/rl/diagnosis.h"
#include "src/rl/explain.h"
#include "src/rl/grpo.h"
#include "src/device/memory_plan.h"
#include "src/model/optimizer.h"
#include "src/device/parallel.h"
#include "src/rl/reward_mix.h"
#include "src/rl/rollout.h"
#include "src/run/log.h"
#include "src/run/record.h"
#include "src/rl/text_measures.h"

using namespace r1;

namespace {

struct Options {
    std::string model, train, eval, out = "runs/grpo", prompt_template, device = "auto", dtype = "auto";
    int steps = 200, prompts = 32, group = 8, max_new_tokens = 256, threads = 0;
    double temperature = 1;
    RewardOptions reward;
    std::string loss = "grpo", scale = "group", ratio = "token", overlong = "keep";
    float clip_low = 0.2f, clip_high = 0.2f, beta = 0, importance_cap = 0;
    double entropy_bonus = 0, min_entropy = 1e-4;
    int inner_epochs = 1, mini_batches = 1, reference_refresh = 0, dynamic_sampling = 0;
    double lr = 1e-6, weight_decay = 0, clip_norm = 1;
    std::string schedule = "constant";
    int warmup = 5;
    std::int64_t token_budget = 8192, seed = 1;
    int show_every = 20, save_every = 50, keep = 0, eval_samples = 1, eval_every = 0, eval_limit = 0;
    bool recompute = false, resume = false, overwrite = false, dry_run = false, plain = false,
         explain = false, exact = false, keep_best = false;
    std::string save_dtype = "auto", state_dtype = "float32", eval_first = "on";
    std::vector<std::string> stop_texts;
    nlohmann::ordered_json record;  ///< what this run is, for its log and its checkpoint
};

/// Flags that may change when a run is resumed, and are then noted: what is shown, kept and evaluated, where it is
/// computed and how it is cut, and what one turns when a run goes wrong. Every other flag makes another run.
const std::set<std::string> kMayDiffer = {"steps",          "eval-every",    "eval-samples", "eval-limit",
                                          "eval-first",     "show-every",    "save-every",   "keep",
                                          "keep-best",      "save-dtype",    "threads",      "device",
                                          "recompute",      "token-budget",  "lr",           "warmup",
                                          "weight-decay",   "clip-norm",     "min-entropy",  "entropy-bonus",
                                          "reward-program", "reward-seconds"};

/// What a preset sets, as flags. A flag that is given beside it wins.
struct Preset {
    const char *name, *source;
    std::vector<std::pair<const char*, const char*>> flags;
};
const Preset kPresets[] = {
    {"r1-zero",
     "DeepSeek-R1, arXiv 2501.12948 v2: 16 samples a question, 16 mini-batches a rollout, KL 0.001, "
     "reference every 400",
     {{"--group", "16"}, {"--mini-batches", "16"}, {"--beta", "0.001"}, {"--reference-refresh", "400"}}},
    {"grpo",
     "DeepSeekMath, arXiv 2402.03300, section 4.2: one update a rollout, KL 0.04",
     {{"--beta", "0.04"}}},
    {"dapo",
     "DAPO, arXiv 2503.14476, section 3: clip higher, dynamic sampling, token-level loss, soft overlong "
     "punishment",
     {{"--loss", "dapo"}, {"--clip-high", "0.28"}, {"--dynamic-sampling", "8"}, {"--overlong", "soft"}}},
    {"dr-grpo",
     "Dr. GRPO, arXiv 2503.20783, section 3.2: no division by length, none by the standard deviation",
     {{"--loss", "dr_grpo"}, {"--advantage-scale", "none"}}},
    {"gspo",
     "GSPO, arXiv 2507.18071, section 5.1: one ratio a sequence, clipped to a thousandth of GRPO's range, 4 "
     "mini-batches",
     {{"--ratio", "sequence"}, {"--clip-low", "3e-4"}, {"--clip-high", "4e-4"}, {"--mini-batches", "4"}}},
};

/// One response as the update sees it.
struct Sample {
    std::vector<std::int32_t> tokens;  ///< prompt and response
    std::size_t prompt_length;
    float advantage;
    bool masked;                            ///< cut off, and --overlong mask: it has no part in the loss
    std::vector<float> sampled_logp;        ///< [response] recorded while sampling
    std::vector<float> old_logp, ref_logp;  ///< [response] pi_old and pi_ref; empty where not needed
    int length() const { return static_cast<int>(sampled_logp.size()); }
};

/// Cuts samples into micro-batches of at most token_budget tokens and calls body(samples of one, packed) for each.
template <class Body>
void for_each_micro_batch(std::span<Sample> samples, std::int64_t token_budget, Body body) {
    std::vector<Sample*> micro;
    PackedBatch batch;
    auto flush = [&] {
        if (!micro.empty()) body(micro, batch);
        micro.clear(), batch.clear();
    };
    for (Sample& s : samples) {
        if (s.masked) continue;
        if (batch.size() + static_cast<std::int64_t>(s.tokens.size()) > token_budget) flush();
        batch.add(s.tokens, s.prompt_length);
        micro.push_back(&s);
    }
    flush();
}

/// Log-probabilities of every response token under the model's present weights, into `field` of each sample.
void compute_log_probabilities(Transformer& model, std::span<Sample> samples, const Options& o,
                               std::vector<float> Sample::*field) {
    for_each_micro_batch(samples, o.token_budget, [&](std::span<Sample*> micro, const PackedBatch& batch) {
        const auto logp = model.forward(batch, static_cast<float>(o.temperature)).logp;
        auto at = logp.begin();
        for (Sample* s : micro) {
            (s->*field).assign(at, at + s->length());
            at += s->length();
        }
    });
}

/// What one step reports. Sums over this rank's responses and tokens: only doubles, so that ranks can add
/// them up.
struct StepSums {
    Grades grades;  ///< of all that was sampled
    double reflective_words = 0, sampled_groups = 0, groups_without_spread = 0;
    double parts[7] = {};                             ///< of the reward
    double kept = 0, reward = 0, reward_squares = 0;  ///< what the update is made of
    double tokens = 0, loss = 0, kl = 0, entropy = 0, clip_low = 0, clip_high = 0;
    /// Log-probabilities sampled and trained: |difference|, and the KL divergence it amounts to (k3).
    double gap = 0, gap_kl = 0, gap_tokens = 0;
};
struct StepMaxima {
    double gap = 0, length = 0;
};
/// Where a step's time goes.
struct StepSeconds {
    double rollout = 0, reward = 0, reference = 0, train = 0;
};
/// A struct of doubles as the numbers it holds.
template <class Struct>
std::span<double> doubles_of(Struct& s) {
    static_assert(std::is_trivially_copyable_v<Struct> && sizeof(Struct) % sizeof(double) == 0);
    return {reinterpret_cast<double*>(&s), sizeof(Struct) / sizeof(double)};
}
/// Adds the time that body() takes to `seconds`.
template <class Body>
auto timed(double& seconds, Body body) {
    struct Timer {
        double& seconds;
        Stopwatch clock{};
        ~Timer() { seconds += clock.seconds(); }
    } timer{seconds};
    return body();
}

/// At most `limit` of the problems, 0: all. Evenly spaced: a file may have its kinds of questions one after the other.
std::vector<Problem> limited(std::vector<Problem> problems, int limit) {
    const auto n = static_cast<std::size_t>(limit);
    if (n == 0 || problems.size() <= n) return problems;
    std::vector<Problem> some;
    for (std::size_t i = 0; i < n; ++i) some.push_back(problems[i * problems.size() / n]);
    return some;
}

/// "12.5%", or "-" for what is not known.
std::string percent(double share) {
    if (std::isnan(share)) return "-";
    char text[32];
    std::snprintf(text, sizeof text, "%.1f%%", 100 * share);
    return text;
}

class Trainer {
  public:
    explicit Trainer(const Options& options);
    int run();
    int explain();

  private:
    struct Rollout {
        std::vector<Problem> problems;
        std::vector<Response> responses;  ///< G for each problem, in order
        std::vector<float> rewards, advantages;
        std::vector<Sample> samples;
    };
    Rollout rollout();
    void compute_old_and_reference(std::span<Sample> samples);
    UpdateSize update_size(std::span<const Sample> samples) const;
    void accumulate_gradient(std::span<Sample> samples, const UpdateSize& size);
    void update(std::span<Sample> samples, double lr);
    void explain_update(std::span<Sample> samples, ExplainedStep& explained);
    void check_health();
    void log_step(const Rollout& rollout, double step_seconds, double lr);
    void evaluate();
    void show_summary() const;
    std::filesystem::path log_file() const { return std::filesystem::path(o.out) / "log.jsonl"; }
    void describe();
    void resume();
    void begin_log();

    ObjectiveOptions objective_options() const {
        return {o.clip_low, o.clip_high, o.beta, o.ratio == "sequence", o.importance_cap};
    }
    std::size_t longest_prompt() const;
    TransformerOptions planned_options();
    void save();
    void write_model(const std::filesystem::path& folder) const;
    /// The ranks must agree on the last step.
    bool stop_requested_anywhere() const {
        double stop = stop_requested();
        comm.all_reduce_max({&stop, 1});
        return stop != 0;
    }

    const Options o;
    const Comm comm;      ///< each rank rolls out and trains on its share of the questions
    const bool resuming;  ///< a checkpoint
    RewardMix reward_mix;
    const Config config;
    const Tokenizer tokenizer;
    const PromptTemplate prompt_template;
    const std::vector<std::string> stop_texts;
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
    std::uint64_t questions = 0;   ///< drawn so far, by all ranks
    std::vector<float> reference;  ///< pi_ref's weights; empty if beta is 0
    StepSums sums;
    StepMaxima maxima;
    StepSeconds seconds;
    double grad_norm = 0;
    int updates = 0;                            ///< in this step
    int collapsed_steps = 0;                    ///< in a row, with entropy below the least allowed
    int steps_without_spread = 0;               ///< in a row, with equal rewards in every group
    int evaluated_at = -1;                      ///< the step of the last evaluation
    double best_eval = -1e300;                  ///< the highest mean reward on held-out problems after step 0
    nlohmann::ordered_json record;              ///< what this run is
    std::optional<JsonLines> log, samples_log;  ///< on the root rank
};

/// One step's questions, responses, rewards and advantages. With dynamic sampling (DAPO, arXiv 2503.14476, section
/// 3.2), groups whose rewards are all equal, which teach nothing, are replaced by those of further questions, in at most
/// so many rounds.
Trainer::Rollout Trainer::rollout() {
    Rollout r;
    const std::size_t share = o.prompts / comm.size(), G = o.group;
    std::vector<std::pair<Problem, std::vector<Response>>> spare;  // groups without spread, to fill up with
    sampling.step = static_cast<std::uint32_t>(step);
    for (int round = 1;; ++round) {
        std::vector<Problem> problems;
        std::vector<std::uint32_t> ids;
        for (int p = comm.rank(); p < o.prompts; p += comm.size()) {
            ids.push_back(order.at(questions + p));
            problems.push_back(train_problems[ids.back()]);
        }
        questions += o.prompts;
        auto responses = timed(seconds.rollout, [&] {
            return sample_responses(generator, tokenizer, problems, ids, sampling, stop_texts);
        });
        timed(seconds.reward, [&] {
            grade(problems, responses);
            reward_mix.apply(problems, responses);
        });
        sums.grades.add(responses);
        for (const Response& response : responses) {
            sums.reflective_words += reflective_words(response.text);
            for (std::size_t p = 0; p < response.parts.size(); ++p) sums.parts[p] += response.parts[p];
        }
        for (std::size_t g = 0; g < problems.size(); ++g) {
            const std::span group(responses.data() + g * G, G);
            const bool spread =
                std::ranges::any_of(group, [&](const Response& x) { return x.reward != group[0].reward; });
            ++sums.sampled_groups;
            sums.groups_without_spread += !spread;
            if (spread || !o.dynamic_sampling) {
                if (r.problems.size() == share) continue;
                r.problems.push_back(problems[g]);
                std::ranges::move(group, std::back_inserter(r.responses));
            } else {
                spare.emplace_back(problems[g], std::vector(group.begin(), group.end()));
            }
        }
        double missing = static_cast<double>(share - r.problems.size());
        comm.all_reduce_max({&missing, 1});
        if (missing == 0 || round >= o.dynamic_sampling) break;
        if (comm.is_root())
            std::printf("step %d: %zu of %zu groups have spread after %d rounds of sampling\n", step + 1,
                        r.problems.size(), share, round);
    }
    for (auto s = spare.begin(); r.problems.size() < share; ++s) {
        r.problems.push_back(s->first);
        std::ranges::move(s->second, std::back_inserter(r.responses));
    }

    for (const Response& response : r.responses) r.rewards.push_back(static_cast<float>(response.reward));
    double all[3] = {};  // of all ranks: count, sum and squares of the rewards
    for (float reward : r.rewards) ++all[0], all[1] += reward, all[2] += static_cast<double>(reward) * reward;
    sums.kept = all[0], sums.reward = all[1], sums.reward_squares = all[2];
    comm.all_reduce_sum(all);
    const double batch_std = std::sqrt(std::max(0.0, (all[2] - all[1] * all[1] / all[0]) / (all[0] - 1)));
    r.advantages = group_advantages(r.rewards, G, advantage_scale(o.scale), batch_std);

    for (std::size_t i = 0; i < r.responses.size(); ++i) {
        const Completion& c = r.responses[i].completion;
        Sample s{tokenizer.encode(r.problems[i / G].prompt), 0, r.advantages[i], false, c.logp, {}, {}};
        s.masked = o.overlong == "mask" && !c.stopped;
        s.prompt_length = s.tokens.size();  // tokens in, tokens out: the response is never encoded again
        s.tokens.insert(s.tokens.end(), c.tokens.begin(), c.tokens.end());
        maxima.length = std::max(maxima.length, static_cast<double>(s.length()));
        r.samples.push_back(std::move(s));
    }
    return r;
}

/// Log-probabilities under pi_old and pi_ref, where they differ from the policy's own.
void Trainer::compute_old_and_reference(std::span<Sample> samples) {
    if (o.inner_epochs * o.mini_batches > 1) compute_log_probabilities(model, samples, o, &Sample::old_logp);
    if (o.beta > 0) {
        const auto policy = model.download_parameters();
        model.upload_parameters(reference);
        compute_log_probabilities(model, samples, o, &Sample::ref_logp);
        model.upload_parameters(policy);
    }
}

/// What an update on these samples, and on those of the other ranks, averages over.
UpdateSize Trainer::update_size(std::span<const Sample> samples) const {
    UpdateSize size{static_cast<double>(samples.size()), 0};
    for (const Sample& s : samples) size.tokens += s.masked ? 0 : s.length();
    comm.all_reduce_sum(doubles_of(size));
    return size;
}

/// Adds the samples' part of the gradient of the loss to the model's gradients, micro-batch by micro-batch.
void Trainer::accumulate_gradient(std::span<Sample> samples, const UpdateSize& size) {
    const LossAggregation aggregation = loss_aggregation(o.loss);
    const bool on_policy = updates == 0;  // the weights are still those that sampled
    for_each_micro_batch(samples, o.token_budget, [&](std::span<Sample*> micro, const PackedBatch& batch) {
        const auto scores = model.forward(batch, static_cast<float>(o.temperature));
        std::vector<float> dlogp, dentropy;
        for (const Sample* s : micro) {
            const std::size_t begin = dlogp.size();
            const std::span<const float> policy(scores.logp.data() + begin, s->length());
            // With a single update per rollout pi_old is pi_theta: the ratio is 1, its gradient that of log pi.
            const auto terms = objective({.policy = policy,
                                          .old = s->old_logp.empty() ? policy : s->old_logp,
                                          .reference = s->ref_logp,
                                          .sampled = s->sampled_logp},
                                         s->advantage, objective_options());
            const double weight = token_weight(s->length(), size, aggregation, o.max_new_tokens);
            for (int t = 0; t < s->length(); ++t) {
                const TokenObjective& term = terms[t];
                const double entropy = scores.entropy[begin + t];
                dlogp.push_back(static_cast<float>(weight * term.dloss_dlogp));
                dentropy.push_back(static_cast<float>(-o.entropy_bonus / size.tokens));
                sums.loss += weight * term.loss - o.entropy_bonus / size.tokens * entropy;
                sums.kl += term.kl;
                sums.entropy += entropy;
                sums.clip_low += term.clipped_low;
                sums.clip_high += term.clipped_high;
                if (on_policy) {
                    const double difference = static_cast<double>(policy[t]) - s->sampled_logp[t];
                    maxima.gap = std::max(maxima.gap, std::abs(difference));
                    sums.gap += std::abs(difference);
                    sums.gap_kl += std::expm1(difference) - difference;
                    ++sums.gap_tokens;
                }
            }
        }
        sums.tokens += static_cast<double>(dlogp.size());
        if (o.entropy_bonus == 0) dentropy.clear();
        model.backward(dlogp, dentropy);
    });
}

/// One update of the policy: the gradient of the loss, then AdamW.
void Trainer::update(std::span<Sample> samples, double lr) {
    accumulate_gradient(samples, update_size(samples));
    comm.all_reduce_sum(backend, model.gradients());
    grad_norm += optimizer.step(lr, o.clip_norm, o.weight_decay);
    ++updates;
}

/// Ends the run where going on would only spend time; the last checkpoint stays.
void Trainer::check_health() {
    if (!std::isfinite(grad_norm))
        fail("step ", step + 1, ": the gradient is not finite; the last good checkpoint is in ", o.out,
             "; lower --lr and go on with --resume");
    double entropy[2] = {sums.entropy, sums.tokens};
    comm.all_reduce_sum(entropy);
    collapsed_steps = entropy[0] < o.min_entropy * entropy[1] ? collapsed_steps + 1 : 0;
    if (collapsed_steps == 10)
        fail("step ", step + 1, ": the entropy has been below ", o.min_entropy,
             " for 10 steps: every response is the same, and nothing more can be learnt; the last checkpoint "
             "is in ",
             o.out, "; lower --lr or raise --entropy-bonus (--min-entropy 0 goes on regardless)");
}

int Trainer::run() {
    while (true) {
        const bool due = step == 0        ? o.eval_first == "on"
                         : step < o.steps ? o.eval_every > 0 && step % o.eval_every == 0
                                          : true;
        if (due && evaluated_at < step) evaluate();
        if (step >= o.steps || stop_requested_anywhere()) break;

        const Stopwatch clock;
        sums = {}, maxima = {}, seconds = {}, grad_norm = 0, updates = 0;
        Rollout r = rollout();
        timed(seconds.reference, [&] { compute_old_and_reference(r.samples); });

        const double lr = learning_rate.at(step + 1);
        timed(seconds.train, [&] {
            for (int epoch = 0; epoch < o.inner_epochs; ++epoch)
                for (int part = 0; part < o.mini_batches; ++part) {  // whole groups
                    const std::size_t begin = r.problems.size() * part / o.mini_batches * o.group;
                    const std::size_t end = r.problems.size() * (part + 1) / o.mini_batches * o.group;
                    update(std::span(r.samples).subspan(begin, end - begin), lr);
                }
        });
        check_health();
        ++step;
        if (o.beta > 0 && o.reference_refresh > 0 && step % o.reference_refresh == 0)
            reference = model.download_parameters();
        log_step(r, clock.seconds(), lr);
        if (step % o.save_every == 0 || step == o.steps) save();
    }
    if (step < o.steps) {
        save();
        if (comm.is_root()) std::printf("stopped at step %d; go on with --resume\n", step);
        return 130;
    }
    if (!comm.is_root()) return 0;
    show_summary();
    write_model(o.out);
    if (o.keep == 0) remove_checkpoints(o.out);
    std::printf("memory: %s planned, %s at the peak\n",
                human_bytes(static_cast<double>(planned_memory)).c_str(),
                human_bytes(static_cast<double>(backend.peak_memory())).c_str());
    std::printf("model, log.jsonl and samples.jsonl are in %s%s\n", o.out.c_str(),
                o.keep_best ? (", the best model by evaluation in " + o.out + "/best").c_str() : "");
    return 0;
}

/// Charts of the whole run, and the held-out problems before and after: from the log, which a resumed run continues.
void Trainer::show_summary() const {
    std::vector<double> rewards, lengths;
    std::vector<nlohmann::json> evaluations;
    for (const auto& line : read_json_lines(log_file())) {
        if (line.contains("eval")) evaluations.push_back(line["eval"]);
        if (!line.contains("step") || !line["reward"].is_number()) continue;
        rewards.push_back(line["reward"]);
        lengths.push_back(line["response_length"]);
    }
    if (!rewards.empty()) {
        const auto [low, high] = std::ranges::minmax(rewards);
        std::printf("reward %7.3f to %6.3f  %s\n", low, high, sparkline(rewards, 80, low, high).c_str());
        const double longest = std::ranges::max(lengths);
        std::printf("length %7.1f to %6.1f  %s\n", 0.0, longest, sparkline(lengths, 80, 0, longest).c_str());
    }
    if (evaluations.size() < 2) return;
    const auto &before = evaluations.front(), &after = evaluations.back();
    auto change = [&](const char* key, auto written) {
        return written(before, key) + " -> " + written(after, key);
    };
    auto share = [](const nlohmann::json& e, const char* key) {  // null: no answer is known
        return percent(e.at(key).is_number() ? e.at(key).get<double>() : std::nan(""));
    };
    auto number = [](const nlohmann::json& e, const char* key) {
        char text[32];
        std::snprintf(text, sizeof text, "%.4g", e.at(key).get<double>());
        return std::string(text);
    };
    std::printf("held out: reward %s, accuracy %s, format %s, response length %s\n",
                change("reward", number).c_str(), change("accuracy", share).c_str(),
                change("format", share).c_str(), change("response_length", number).c_str());
}

/// One step on one question, printed so that it can be checked with a pocket calculator. The step is taken, so that old
/// and new log-probabilities differ; nothing is saved.
int Trainer::explain() {
    Rollout r = rollout();
    ExplainedStep explained{.question = r.problems[0].prompt,
                            .temperature = o.temperature,
                            .reward = {},
                            .scale = advantage_scale(o.scale),
                            .objective = objective_options(),
                            .aggregation = loss_aggregation(o.loss),
                            .max_new_tokens = o.max_new_tokens,
                            .entropy_bonus = o.entropy_bonus,
                            .lr = o.lr,
                            .clip_norm = o.clip_norm};
    for (std::size_t p = 0; p < reward_mix.parts().size(); ++p)
        explained.reward.emplace_back(reward_mix.parts()[p], reward_mix.weights()[p]);
    for (std::size_t i = 0; i < r.samples.size(); ++i) {
        const Response& response = r.responses[i];
        const Sample& s = r.samples[i];
        ExplainedResponse e{
            .text = response.text,
            .verdict = "answer: " + response.accuracy.reason + "; format: " + response.format.reason,
            .parts = response.parts,
            .reward = response.reward,
            .advantage = s.advantage,
            .length = s.length(),
            .stopped = response.completion.stopped,
            .masked = s.masked,
            .sampled = s.sampled_logp};
        for (const std::int32_t id : response.completion.tokens)
            e.tokens.push_back(tokenizer.decode(std::span(&id, 1)));
        explained.responses.push_back(std::move(e));
    }
    if (explained.teaches()) explain_update(r.samples, explained);
    print(explained);
    return 0;
}

/// Takes the step, and asks the model what it says of each token before and after it, and what each response adds to
/// the gradient.
void Trainer::explain_update(std::span<Sample> samples, ExplainedStep& explained) {
    auto gradient_of = [&](std::span<Sample> some) {
        accumulate_gradient(some, update_size(samples));
        std::vector<float> gradient(model.layout().total);
        backend.download(gradient.data(), model.gradients());
        backend.zero(model.gradients());
        return gradient;
    };
    auto score = [&](std::vector<float> ExplainedResponse::*logp, double ExplainedResponse::*entropy) {
        for_each_micro_batch(
            samples, o.token_budget, [&](std::span<Sample*> micro, const PackedBatch& batch) {
                const auto scores = model.forward(batch, static_cast<float>(o.temperature));
                std::size_t begin = 0;
                for (const Sample* s : micro) {
                    ExplainedResponse& e = explained.responses[s - samples.data()];
                    const std::size_t end = begin + s->length();
                    (e.*logp).assign(scores.logp.begin() + begin, scores.logp.begin() + end);
                    e.*entropy =
                        std::accumulate(scores.entropy.begin() + begin, scores.entropy.begin() + end, 0.0);
                    begin = end;
                }
            });
    };
    compute_old_and_reference(samples);
    const std::vector<float> whole = gradient_of(samples);
    for (std::size_t i = 0; i < samples.size(); ++i) {
        const std::vector<float> part = gradient_of(samples.subspan(i, 1));
        explained.responses[i].gradient_product =
            std::inner_product(part.begin(), part.end(), whole.begin(), 0.0);
        explained.responses[i].reference = samples[i].ref_logp;
    }
    score(&ExplainedResponse::old, &ExplainedResponse::entropy_before);
    sums = {};
    update(samples, o.lr);
    explained.loss = sums.loss, explained.gradient_norm = grad_norm;
    score(&ExplainedResponse::updated, &ExplainedResponse::entropy_after);
}

/// Held-out problems, sampled at the training temperature with randomness of their own, the same every time.
void Trainer::evaluate() {
    if (eval_problems.empty()) return;
    std::vector<Problem> share;
    std::vector<std::uint32_t> ids;
    for (std::size_t i = comm.rank(); i < eval_problems.size(); i += comm.size()) {
        share.push_back(eval_problems[i]);
        ids.push_back(static_cast<std::uint32_t>(i));
    }
    GenerateOptions options = sampling;
    options.samples_per_prompt = o.eval_samples;
    options.step = 0x80000000u;
    std::vector<Response> responses;
    Progress progress("evaluation");
    const auto chunk = static_cast<std::size_t>(std::max(1, 2 * slots / o.eval_samples));
    for (std::size_t begin = 0; begin < share.size(); begin += chunk) {
        if (comm.is_root()) progress.show(begin, share.size());
        const std::size_t end = std::min(begin + chunk, share.size());
        const std::vector<Problem> some(share.begin() + begin, share.begin() + end);
        auto part = sample_responses(generator, tokenizer, some, {ids.begin() + begin, ids.begin() + end},
                                     options, stop_texts);
        grade(some, part);
        reward_mix.apply(some, part);
        std::ranges::move(part, std::back_inserter(responses));
    }
    progress.end();
    Grades g;
    g.add(responses);
    comm.all_reduce_sum(doubles_of(g));
    g = g.means();
    evaluated_at = step;
    const bool is_best = step > 0 && g.reward > best_eval;
    if (is_best) best_eval = g.reward;
    if (!comm.is_root()) return;
    if (is_best && o.keep_best) write_model(std::filesystem::path(o.out) / "best");
    log->write({{"eval",
                 {{"step", step},
                  {"accuracy", g.accuracy},
                  {"format", g.format},
                  {"response_length", g.response_length},
                  {"reward", g.reward},
                  {"n", static_cast<std::int64_t>(g.responses)}}}});
    std::printf(
        "held out (%zu unseen problems, %d sampled responses each): reward %.3f, accuracy %s, format %s, "
        "response length %.1f\n",
        eval_problems.size(), o.eval_samples, g.reward, percent(g.accuracy).c_str(),
        percent(g.format).c_str(), g.response_length);
    const std::size_t shown = std::min<std::size_t>(share.size(), 24);  // the same questions every time
    for (std::size_t n = 0; n < shown; ++n) {
        const std::size_t i =
            n * share.size() / shown;  // a file may have its kinds of questions one after the other
        const Response& r = responses[i * o.eval_samples];
        samples_log->write({{"step", step},
                            {"held_out", ids[i]},
                            {"prompt", share[i].prompt},
                            {"response", r.text},
                            {"accuracy", r.accuracy.value},
                            {"reason", r.accuracy.reason}});
    }
    std::printf("  for example  %s%s   [%s]\n", eval_problems[0].prompt.c_str(), responses[0].text.c_str(),
                responses[0].accuracy.reason.c_str());
}

void Trainer::log_step(const Rollout& r, double step_seconds, double lr) {
    comm.all_reduce_sum(doubles_of(sums));
    comm.all_reduce_max(doubles_of(maxima));
    if (!comm.is_root()) return;

    const Grades g = sums.grades.means();
    const double reward = sums.reward / sums.kept, passes = o.inner_epochs;
    const double variance = std::max(0.0, sums.reward_squares / sums.kept - reward * reward);
    const double other = step_seconds - seconds.rollout - seconds.reward - seconds.reference - seconds.train;
    nlohmann::ordered_json parts;
    for (std::size_t p = 0; p < reward_mix.parts().size(); ++p)
        parts[reward_mix.parts()[p]] = sums.parts[p] / sums.grades.responses;
    log->write({{"step", step},
                {"reward", reward},
                {"reward_std", std::sqrt(variance)},
                {"reward_parts", parts},
                {"accuracy", g.accuracy},
                {"format", g.format},
                {"response_length", g.response_length},
                {"response_length_max", maxima.length},
                {"truncated", g.truncated},
                {"reflective_words", sums.reflective_words / sums.grades.responses},
                {"groups_without_spread", sums.groups_without_spread / sums.sampled_groups},
                {"groups_sampled", sums.sampled_groups},
                {"loss", sums.loss / updates},
                {"entropy", sums.entropy / sums.tokens},
                {"kl", sums.kl / sums.tokens},
                {"clip_low", sums.clip_low / sums.tokens},
                {"clip_high", sums.clip_high / sums.tokens},
                {"grad_norm", grad_norm / updates},
                {"lr", lr},
                {"logp_gap_max", maxima.gap},
                {"logp_gap_mean", sums.gap / sums.gap_tokens},
                {"logp_gap_kl", sums.gap_kl / sums.gap_tokens},
                {"tokens", sums.tokens / passes},
                {"tokens_per_second",
                 {{"rollout", sums.grades.response_length / seconds.rollout},
                  {"train", sums.tokens / seconds.train}}},
                {"memory", {{"planned", planned_memory}, {"peak", backend.peak_memory()}}},
                {"seconds",
                 {{"step", step_seconds},
                  {"rollout", seconds.rollout},
                  {"reward", seconds.reward},
                  {"reference", seconds.reference},
                  {"train", seconds.train},
                  {"other", other}}}});
    const double without_spread = sums.groups_without_spread / sums.sampled_groups;
    if (step % 20 == 1)
        std::printf(
            "   step  reward  accuracy  format  length  no spread  entropy  grad norm  logp gap  s/step\n");
    std::printf("%7d  %6.3f  %8s  %6s  %6.1f  %9s  %7.3f  %9.3f  %8.1e  %6.2f\n", step, reward,
                percent(g.accuracy).c_str(), percent(g.format).c_str(), g.response_length,
                percent(without_spread).c_str(), sums.entropy / sums.tokens, grad_norm / updates, maxima.gap,
                step_seconds);
    steps_without_spread = without_spread == 1 ? steps_without_spread + 1 : 0;
    if (steps_without_spread % 20 == 3)
        std::printf(
            "nothing is learnt: for %d steps the responses of each group had equal rewards; %s. For "
            "example:\n"
            "  %s%s   [%s; %s]\n",
            steps_without_spread, why_nothing_is_learnt(r.problems, r.responses, max_new_tokens).c_str(),
            r.problems[0].prompt.c_str(), r.responses[0].text.c_str(), r.responses[0].accuracy.reason.c_str(),
            r.responses[0].format.reason.c_str());
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
                                {"reward", r.rewards[i]},
                                {"advantage", r.advantages[i]}});
    }
    std::fflush(stdout);
}

// ---- setting up ----

Trainer::Trainer(const Options& options)
    : o(options),
      resuming(!o.explain && !o.dry_run && check_run_folder(o.out, o.model, o.resume, o.overwrite)),
      reward_mix(o.reward),
      config(config_of_model(o.model)),
      tokenizer(Tokenizer::load(o.model)),
      prompt_template(load_prompt_template(o.model, config, tokenizer, o.prompt_template, o.plain)),
      stop_texts(o.stop_texts.empty() ? config.stop_texts : o.stop_texts),
      train_problems(load_problems(o.train, prompt_template, reward_mix.answers())),
      eval_problems(o.eval.empty() ? std::vector<Problem>{}
                                   : limited(load_problems(o.eval, prompt_template, reward_mix.answers()),
                                             o.eval_limit)),
      prompt_tokens(static_cast<int>(longest_prompt())),
      max_new_tokens(std::min(o.max_new_tokens, config.max_position_embeddings - 1)),
      slots(std::min(o.prompts * o.group / comm.size(), 256)),
      device(make_device(o.device, o.dtype, o.exact)),
      backend(*device.backend),
      model(backend, config, planned_options()),
      optimizer(model, state_type(o.state_dtype), static_cast<std::uint64_t>(o.seed)),
      generator(model, slots, prompt_tokens, max_new_tokens),
      order(train_problems.size(), static_cast<std::uint64_t>(o.seed)) {
    if (config.eos_token_ids.empty() && stop_texts.empty())
        fail(o.model,
             ": config.json has no eos_token_id, so no response can end; name a text that ends one with "
             "--stop-text");
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
    if (!o.explain) describe();
    if (resuming) {
        resume();
    } else {
        model.load_weights(o.model);
        if (o.beta > 0) reference = model.download_parameters();
    }
    stop_requested_anywhere();  // every rank has looked at the folder before one writes to it
    if (comm.is_root() && !o.explain) begin_log();
}

/// What the run is, with what only the loaded run knows. It reads every file of the model once more, for its hash.
void Trainer::describe() {
    record = o.record;
    describe_inputs(record, backend.name(), comm.size(),
                    {{"model", o.model}, {"train", o.train}, {"eval", o.eval}});
    record["template"] = {{"text", prompt_template.text()},
                          {"chat_format", prompt_template.chat().has_value()}};
    record["stop_texts"] = stop_texts;
}

/// Goes on from the checkpoint in --out. The gaps between what that run was and what this one is are noted or refused.
void Trainer::resume() {
    const auto before =
        nlohmann::ordered_json::parse(read_checkpoint_values(o.out).values["run"], nullptr, false);
    const auto notes = compare_runs(before, record, kMayDiffer);
    Checkpoint checkpoint = load_checkpoint(o.out, model, optimizer);
    step = static_cast<int>(checkpoint.count("step"));
    questions = checkpoint.count("questions");
    reference = std::move(checkpoint.reference);
    check_schedule(before, o.schedule, o.steps, step);
    for (const auto& line : read_json_lines(log_file()))
        if (const auto eval = line.find("eval"); eval != line.end() && eval->at("step") <= step) {
            evaluated_at = eval->at("step");
            if (evaluated_at > 0) best_eval = std::max(best_eval, eval->at("reward").get<double>());
        }
    if (!comm.is_root()) return;
    for (const auto& note : notes) std::printf("note: %s when the run began\n", note.c_str());
    std::printf("resumed at step %d\n", step);
}

void Trainer::begin_log() {
    const std::filesystem::path folder = o.out;
    if (!resuming) clear_run_folder(folder);
    const auto resumed = resuming ? std::optional<std::int64_t>(step) : std::nullopt;
    log.emplace(log_file(), resumed);
    samples_log.emplace(folder / "samples.jsonl", resumed);
    log->write(log_line(record, resuming, step));
    if (o.resume && !resuming) std::printf("%s holds no checkpoint: a new run\n", o.out.c_str());
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
    const StateType states = state_type(o.state_dtype);
    const TransformerOptions planned{
        .trainable = true,
        .recompute = o.recompute,
        .bf16_matrices = device.bf16_matrices || states != StateType::Float32,
        .bf16_master = states != StateType::Float32,
        .max_tokens = std::max<std::int64_t>(o.token_budget, prompt_tokens + max_new_tokens),
        .max_decode_rows = slots};
    const auto plan = Transformer::plan(config, planned, backend);
    const ParameterLayout layout(config);
    planned_memory = print_and_check_memory_plan(
        device, {{"parameters", plan.parameters},
                 {"gradients", plan.gradients},
                 {"optimizer state", Optimizer::bytes(layout, backend, states)},
                 {"activations (--token-budget, --recompute)", plan.activations},
                 {"key/value cache (--prompts, --group, --max-new-tokens)",
                  Generator::bytes(config, slots, prompt_tokens, max_new_tokens, backend)},
                 {"reference policy (--beta 0 needs none)",
                  o.beta > 0 && backend.on_host() ? 2 * layout.total * sizeof(float) : 0}});
    if (o.dry_run) throw DryRunDone{};
    return planned;
}

void Trainer::save() {
    if (comm.is_root())
        save_checkpoint(o.out, model, optimizer,
                        {{{"step", std::to_string(step)},
                          {"questions", std::to_string(questions)},
                          {"run", record.dump()}},
                         reference},
                        o.keep);
}

void Trainer::write_model(const std::filesystem::path& folder) const {
    std::filesystem::create_directories(folder);
    prompt_template.save(folder);
    save_model(model, o.model, o.model, folder, saved_dtype(o.save_dtype, o.model), stop_texts);
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{std::string("GRPO with rule rewards: R1-Zero on a base model") +
                     (Comm::available() ? ". Under mpirun the ranks share the questions" : ""),
                 "train_grpo"};
    app.option_defaults()->always_capture_default()->take_last();  // of a flag given twice
    app.add_option("--model", o.model, "base model folder: config.json, model.safetensors, tokenizer.json")
        ->required();
    app.add_option("--train", o.train, "training problems, JSONL")->required();
    app.add_option("--eval", o.eval, "held-out problems, JSONL: evaluated before and after");
    app.add_option("--eval-every", o.eval_every, "and every so many steps between, 0: not")
        ->check(kNonNegative);
    app.add_option("--eval-samples", o.eval_samples, "responses to each held-out problem")->check(kPositive);
    app.add_option("--eval-limit", o.eval_limit, "evaluate only so many of the held-out problems, 0: all")
        ->check(kNonNegative);
    app.add_option("--eval-first", o.eval_first, "evaluation before the first step")
        ->check(CLI::IsMember({"on", "off"}));
    app.add_option("--out", o.out, "run folder: log.jsonl, samples.jsonl, checkpoint and the trained model");
    add_template_options(app, o.prompt_template, o.plain);
    add_stop_texts(app, o.stop_texts);
    app.add_option("--steps", o.steps, "steps: rollouts and their updates")->check(kPositive);
    app.add_option("--prompts", o.prompts, "questions a step")->check(kPositive);
    app.add_option("--group", o.group, "responses to each question, G")->check(CLI::Range(2, 1024));
    app.add_option("--max-new-tokens", o.max_new_tokens, "longest response")->check(kPositive);
    app.add_option("--temperature", o.temperature, "of sampling, and of every log-probability")
        ->check(kPositive);
    add_reward_options(app, o.reward);
    app.add_option("--script", o.reward.script,
                   "that the language reward asks for: latin, cyrillic, han, ...");
    std::string preset, presets = "hyperparameters of a paper:";
    for (const Preset& p : kPresets) presets += std::string(presets.ends_with(":") ? " " : ", ") + p.name;
    app.add_option("--preset", preset, presets + "; flags given beside it win")
        ->check([&](const std::string& name) {
            return std::ranges::any_of(kPresets, [&](const Preset& p) { return name == p.name; })
                       ? std::string()
                       : "there is no preset \"" + name + "\"";
        });
    app.add_option("--loss", o.loss, "aggregation over tokens")
        ->check(CLI::IsMember({"grpo", "dapo", "dr_grpo"}));
    app.add_option("--advantage-scale", o.scale,
                   "divide by the standard deviation of the group, of the batch, or not")
        ->check(CLI::IsMember({"group", "batch", "none"}));
    app.add_option("--ratio", o.ratio, "pi / pi_old of a token, or of its sequence (GSPO)")
        ->check(CLI::IsMember({"token", "sequence"}));
    app.add_option("--clip-low", o.clip_low, "ratio clip: 1 - this")->check(kNonNegative);
    app.add_option("--clip-high", o.clip_high, "ratio clip: 1 + this")->check(kNonNegative);
    app.add_option("--beta", o.beta, "weight of the KL to the reference policy, 0: none")
        ->check(kNonNegative);
    app.add_option(
           "--importance-cap", o.importance_cap,
           "truncated importance sampling: weight tokens by pi_old / pi_sampled, at most this; 0: no weights")
        ->check(kNonNegative);
    app.add_option("--entropy-bonus", o.entropy_bonus, "weight of the mean entropy of a token")
        ->check(kNonNegative);
    app.add_option("--min-entropy", o.min_entropy, "below it for 10 steps, the run ends")
        ->check(kNonNegative);
    app.add_option(
           "--overlong", o.overlong,
           "responses that are cut off: keep, mask (out of the loss), or soft (the reward overlong=1)")
        ->check(CLI::IsMember({"keep", "mask", "soft"}));
    app.add_option("--dynamic-sampling", o.dynamic_sampling,
                   "replace groups without spread by other questions', in at most so many rounds a step; 0: "
                   "keep them")
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
    app.add_flag("--exact", o.exact,
                 "on the CPU: sampling and training give a token the same log-probability to the last bit, "
                 "at any size "
                 "of model, and take longer");
    add_state_dtype(app, o.state_dtype);
    app.add_flag("--recompute", o.recompute,
                 "recompute activations in the backward pass: less memory, a third more work");
    app.add_option("--show-every", o.show_every, "steps between sampled traces")->check(kPositive);
    app.add_option("--save-every", o.save_every, "steps between checkpoints")->check(kPositive);
    app.add_flag("--keep-best", o.keep_best,
                 "write the model with the highest reward in an evaluation after step 0 to OUT/best");
    add_save_dtype(app, o.save_dtype);
    app.add_option("--seed", o.seed, "of sampling and of the order of problems");
    app.add_option("--threads", o.threads, "0: one a core; the result is the same")->check(kNonNegative);
    add_run_options(app, o.resume, o.overwrite, o.dry_run, o.keep);
    app.add_flag("--explain", o.explain, "print one step on one question, number by number, and end");
    return run_main(app, argc, argv, [&] {
        for (const Preset& p : kPresets)
            if (preset == p.name) {
                std::printf("preset %s: %s\n", p.name, p.source);
                for (const auto& [flag, value] : p.flags)
                    if (CLI::Option* option = app.get_option(flag); option->count() == 0) {
                        option->add_result(value);
                        option->run_callback();
                        std::printf("    %s %s\n", flag, value);
                    }
            }
        if (o.overlong == "soft") o.reward.parts += ",overlong=1";
        if (o.explain) o.prompts = 1, o.inner_epochs = 1, o.mini_batches = 1, o.dynamic_sampling = 0;
        if (o.keep_best && o.eval.empty()) fail("--keep-best wants --eval: problems to be best at");
        o.reward.max_new_tokens = o.max_new_tokens;
        o.record = describe_run(app, argc, argv);
        install_stop_handler();
        set_threads(o.threads);
        Trainer trainer(o);
        return o.explain ? trainer.explain() : trainer.run();
    });
}
