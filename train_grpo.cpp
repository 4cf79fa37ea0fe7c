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
// The formulas themselves are in src/grpo.cpp, sampling in src/generate.cpp, rewards in src/rewards.cpp and
// src/reward_mix.cpp, the transformer in src/transformer.cpp.
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
#include "src/reward_mix.h"
#include "src/rollout.h"
#include "src/run_log.h"
#include "src/text_measures.h"

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
    int show_every = 20, save_every = 50, eval_samples = 1, eval_every = 0;
    bool recompute = false, resume = false, plain = false, explain = false, exact = false;
    std::string save_dtype = "auto", state_dtype = "float32";
};

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
    void update(std::span<Sample> samples, double lr);
    void check_health();
    void log_step(const Rollout& rollout, double step_seconds, double lr);
    std::optional<Grades> evaluate();

    ObjectiveOptions objective_options() const {
        return {o.clip_low, o.clip_high, o.beta, o.ratio == "sequence", o.importance_cap};
    }
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
    RewardMix reward_mix;
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
    std::uint64_t questions = 0;   ///< drawn so far, by all ranks
    std::vector<float> reference;  ///< pi_ref's weights; empty if beta is 0
    StepSums sums;
    StepMaxima maxima;
    StepSeconds seconds;
    double grad_norm = 0;
    int updates = 0;                                   ///< in this step
    int collapsed_steps = 0;                           ///< in a row, with entropy below the least allowed
    std::vector<double> accuracy_curve, length_curve;  ///< for the charts at the end
    std::optional<JsonLines> log, samples_log;         ///< on the root rank
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
        auto responses = timed(
            seconds.rollout, [&] { return sample_responses(generator, tokenizer, problems, ids, sampling); });
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
    if (o.inner_epochs * o.mini_batches > 1 || o.explain)
        compute_log_probabilities(model, samples, o, &Sample::old_logp);
    if (o.beta > 0) {
        const auto policy = model.download_parameters();
        model.upload_parameters(reference);
        compute_log_probabilities(model, samples, o, &Sample::ref_logp);
        model.upload_parameters(policy);
    }
}

/// One update of the policy: the gradient of the loss, micro-batch by micro-batch, then AdamW.
void Trainer::update(std::span<Sample> samples, double lr) {
    const LossAggregation aggregation = loss_aggregation(o.loss);
    const bool on_policy = updates == 0;  // the weights are still those that sampled
    UpdateSize size{static_cast<double>(samples.size()), 0};
    for (const Sample& s : samples) size.tokens += s.masked ? 0 : s.length();
    comm.all_reduce_sum(doubles_of(size));

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
    std::optional<Grades> before, after;
    if (step == 0) before = evaluate();
    while (step < o.steps && !stop_requested_anywhere()) {
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
        if (step % o.save_every == 0) save();
        if (o.eval_every > 0 && step % o.eval_every == 0 && step < o.steps) evaluate();
    }
    save();
    if (step < o.steps) {
        if (comm.is_root()) std::printf("stopped at step %d; go on with --resume\n", step);
        return 130;
    }
    after = evaluate();
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

/// One step on one question, printed so that it can be checked with a pocket calculator. The step is taken, so that old
/// and new log-probabilities differ; nothing is saved.
int Trainer::explain() {
    Rollout r = rollout();
    std::printf("\nThe question, as the model sees it:\n%s\n", r.problems[0].prompt.c_str());
    double mean = 0, squares = 0;
    for (float reward : r.rewards) mean += reward / o.group;
    for (float reward : r.rewards) squares += (reward - mean) * (reward - mean);
    std::printf("\n%d responses, sampled at temperature %g; reward = ", o.group, o.temperature);
    std::printf("%s\n", o.reward.parts.c_str());
    for (int i = 0; i < o.group; ++i) {
        const Response& response = r.responses[i];
        std::printf("%3d  %s\n     ", i + 1, response.text.c_str());
        for (std::size_t p = 0; p < response.parts.size(); ++p)
            std::printf("%s %g, ", reward_mix.parts()[p].c_str(), response.parts[p]);
        std::printf("reward %g; answer: %s; format: %s; %d tokens%s\n", response.reward,
                    response.accuracy.reason.c_str(), response.format.reason.c_str(), r.samples[i].length(),
                    response.completion.stopped ? "" : ", cut off");
    }
    const double std = std::sqrt(squares / (o.group - 1));
    std::printf("\nmean reward %.4f, standard deviation %.4f (with n - 1 = %d)\n", mean, std, o.group - 1);
    std::printf("advantage = (reward - mean)%s\n", o.scale == "none" ? ""
                                                   : o.scale == "group"
                                                       ? " / (standard deviation + 0.0001)"
                                                       : " / (standard deviation of all rewards + 0.0001)");
    for (int i = 0; i < o.group; ++i)
        std::printf("%3d  (%.4f - %.4f)%s = %+.4f\n", i + 1, r.rewards[i], mean,
                    o.scale == "none" ? "" : (" / " + std::to_string(std + 1e-4)).c_str(), r.advantages[i]);
    if (std == 0) {
        std::printf(
            "All rewards are equal: there is nothing to learn from this group. Try another --seed.\n");
        return 0;
    }

    compute_old_and_reference(r.samples);
    update(r.samples, o.lr);
    std::vector<Sample> after = r.samples;
    compute_log_probabilities(model, after, o, &Sample::old_logp);
    UpdateSize size{static_cast<double>(r.samples.size()), 0};
    for (const Sample& s : r.samples) size.tokens += s.masked ? 0 : s.length();
    std::printf("\nAfter one update (learning rate %g, gradient norm %.4f), token by token:\n", o.lr,
                grad_norm);
    std::printf(
        "ratio = exp(new - old), clipped to [%g, %g]; loss = -min(ratio A, clipped A)%s;\n"
        "coefficient = weight x d loss / d new, and the gradient of the loss is the sum of coefficient x "
        "grad "
        "log pi\n",
        1 - o.clip_low, 1 + o.clip_high, o.beta > 0 ? " + beta KL" : "");
    const auto best = std::ranges::max_element(r.advantages), worst = std::ranges::min_element(r.advantages);
    for (const auto chosen : {best, worst}) {
        const std::size_t i = chosen - r.advantages.begin();
        const Sample &s = r.samples[i], &now = after[i];
        if (s.masked) continue;
        const double weight = token_weight(s.length(), size, loss_aggregation(o.loss), o.max_new_tokens);
        const auto terms = objective(
            {.policy = now.old_logp, .old = s.old_logp, .reference = s.ref_logp, .sampled = s.sampled_logp},
            s.advantage, objective_options());
        std::printf("\nresponse %zu, advantage A = %+.4f, weight of a token %.3g\n", i + 1, s.advantage,
                    weight);
        std::printf("%-14s %9s %9s %9s %9s %8s %-5s %8s %9s %11s\n", "token", "sampled", "old", "new",
                    "reference", "ratio", "clip", "KL", "loss", "coefficient");
        for (int t = 0; t < std::min(s.length(), 12); ++t) {
            const std::int32_t id = s.tokens[s.prompt_length + t];
            const auto text = nlohmann::json(tokenizer.decode(std::span(&id, 1)))
                                  .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
            std::printf("%-14s %9.4f %9.4f %9.4f %9.4f %8.4f %-5s %8.5f %+9.4f %+11.3e\n", text.c_str(),
                        s.sampled_logp[t], s.old_logp[t], now.old_logp[t],
                        s.ref_logp.empty() ? std::nan("") : s.ref_logp[t], terms[t].ratio,
                        terms[t].clipped_low    ? "low"
                        : terms[t].clipped_high ? "high"
                                                : "-",
                        terms[t].kl, terms[t].loss, weight * terms[t].dloss_dlogp);
        }
        if (s.length() > 12) std::printf("... and %d more\n", s.length() - 12);
    }
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
    auto responses = sample_responses(generator, tokenizer, share, ids, options);
    grade(share, responses);
    Grades g;
    g.add(responses);
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
    return g;
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
    accuracy_curve.push_back(g.accuracy);
    length_curve.push_back(g.response_length);
    if (step % 20 == 1)
        std::printf("   step  reward  accuracy  format  length  entropy  grad norm  logp gap  s/step\n");
    std::printf("%7d  %6.3f  %7.1f%%  %5.1f%%  %6.1f  %7.3f  %9.3f  %8.1e  %6.2f\n", step, reward,
                100 * g.accuracy, 100 * g.format, g.response_length, sums.entropy / sums.tokens,
                grad_norm / updates, maxima.gap, step_seconds);
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
      reward_mix(o.reward),
      config(Config::load(o.model)),
      tokenizer(Tokenizer::load(o.model)),
      prompt_template(load_prompt_template(o.model, config, tokenizer, o.prompt_template, o.plain)),
      train_problems(load_problems(o.train, prompt_template, reward_mix.answers())),
      eval_problems(o.eval.empty() ? std::vector<Problem>{}
                                   : load_problems(o.eval, prompt_template, reward_mix.answers())),
      prompt_tokens(static_cast<int>(longest_prompt())),
      max_new_tokens(std::min(o.max_new_tokens, config.max_position_embeddings - 1)),
      slots(std::min(o.prompts * o.group / comm.size(), 256)),
      device(make_device(o.device, o.dtype, o.exact)),
      backend(*device.backend),
      model(backend, config, planned_options()),
      optimizer(model, state_type(o.state_dtype), static_cast<std::uint64_t>(o.seed)),
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
        questions = std::stoull(checkpoint.numbers.at("questions"));
        reference = std::move(checkpoint.reference);
    } else {
        model.load_weights(o.model);
        if (o.beta > 0) reference = model.download_parameters();
    }
    if (!comm.is_root() || o.explain) return;
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
        device,
        {{"parameters", plan.parameters},
         {"gradients", plan.gradients},
         {"optimizer state", Optimizer::bytes(layout, backend, states)},
         {"activations (--token-budget, --recompute)", plan.activations},
         {"key/value cache (--prompts, --group, --max-new-tokens)",
          Generator::bytes(config, slots, prompt_tokens, max_new_tokens, backend)},
         {"reference policy (--beta 0 needs none)",
          o.beta > 0 && backend.on_host() ? 2 * layout.total * sizeof(float) : 0}});
    return planned;
}

void Trainer::save() {
    if (comm.is_root())
        save_checkpoint(
            o.out, model, optimizer,
            {{{"step", std::to_string(step)}, {"questions", std::to_string(questions)}}, reference});
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
    app.add_option("--out", o.out, "run folder: log.jsonl, samples.jsonl, checkpoint and the trained model");
    add_template_options(app, o.prompt_template, o.plain);
    app.add_option("--steps", o.steps, "steps: rollouts and their updates")->check(kPositive);
    app.add_option("--prompts", o.prompts, "questions a step")->check(kPositive);
    app.add_option("--group", o.group, "responses to each question, G")->check(CLI::Range(2, 1024));
    app.add_option("--max-new-tokens", o.max_new_tokens, "longest response")->check(kPositive);
    app.add_option("--temperature", o.temperature, "of sampling, and of every log-probability")
        ->check(kPositive);
    app.add_option("--reward", o.reward.parts,
                   "parts and weights: accuracy, format, language, repetition, overlong, length, program");
    app.add_option("--script", o.reward.script,
                   "that the language reward asks for: latin, cyrillic, han, ...");
    app.add_option(
        "--reward-program", o.reward.program,
        "command behind the part program: reads JSON lines {problem, prompt, response}, answers numbers");
    app.add_option("--reward-seconds", o.reward.program_seconds, "that it may take for a step's responses")
        ->check(kPositive);
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
    app.add_option(
           "--overlong-cache", o.reward.overlong_cache,
           "tokens before the longest response over which the overlong reward sinks to -1; 0: a fifth of it")
        ->check(kNonNegative);
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
    add_save_dtype(app, o.save_dtype);
    app.add_option("--seed", o.seed, "of sampling and of the order of problems");
    app.add_option("--threads", o.threads, "0: one a core; the result is the same")->check(kNonNegative);
    app.add_flag("--resume", o.resume, "go on from the checkpoint in --out, if there is one");
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
        if (o.explain) o.prompts = 1, o.mini_batches = 1, o.dynamic_sampling = 0;
        o.reward.max_new_tokens = o.max_new_tokens;
        install_stop_handler();
        set_threads(o.threads);
        Trainer trainer(o);
        return o.explain ? trainer.explain() : trainer.run();
    });
}
