// Supervised fine-tuning: cross-entropy on given completions, prompts masked from the loss. Pretrains the
// tiny base from random weights; with a model folder it is the cold start, the SFT on rejection samples and
// the distillation of the R1 paper (arXiv 2501.12948, sections 2.3 and 2.4).
#include <cstdio>
#include <set>

#include "src/rl/dataset.h"
#include "src/model/checkpoint.h"
#include "src/run/flags.h"
#include "src/device/device.h"
#include "src/device/memory_plan.h"
#include "src/model/optimizer.h"
#include "src/device/parallel.h"
#include "src/run/log.h"
#include "src/run/record.h"
#include "src/model/transformer.h"
#include "tokenizer/tokenizer.h"

using namespace r1;

namespace {

struct Options {
    std::string model, tokenizer, data, out = "runs/sft", device = "auto", dtype = "auto";
    std::int64_t steps = 1000, batch_tokens = 8192, token_budget = 8192, save_every = 500, warmup = 50,
                 seed = 1;
    double lr = 1e-3, weight_decay = 0, clip = 1;
    std::string schedule = "cosine", save_dtype = "auto", state_dtype = "float32";
    int threads = 0, keep = 0;
    bool resume = false, overwrite = false, dry_run = false, recompute = false, no_shuffle = false;
    nlohmann::ordered_json record;  ///< what this run is, for its log and its checkpoint
};

/// Flags that may change when a run is resumed, and are then noted. Every other flag makes another run.
const std::set<std::string> kMayDiffer = {"steps",   "save-every",   "keep",      "save-dtype",
                                          "threads", "device",       "recompute", "lr",
                                          "warmup",  "weight-decay", "clip"};

/// A training sequence and which of its tokens are learnt.
struct Sequence {
    std::vector<std::int32_t> tokens;
    std::vector<bool> scored;
    std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
};

/// Segments are encoded one by one: a trained one begins where a prompt ends when the model is used.
Sequence encode(const SftExample& example, const Tokenizer& tokenizer, std::int32_t eos) {
    Sequence s;
    for (const Segment& segment : example.segments) {
        const auto tokens = tokenizer.encode(segment.text);
        s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
        s.scored.resize(s.tokens.size(), segment.trained);
    }
    if (example.eos) s.tokens.push_back(eos), s.scored.push_back(true);
    if (!s.scored.empty()) s.scored[0] = false;  // nothing predicts the first token
    return s;
}

int train(const Options& o) {
    install_stop_handler();
    set_threads(o.threads);
    const std::filesystem::path tokenizer_folder = o.tokenizer.empty() ? o.model : o.tokenizer;
    const bool resuming = !o.dry_run && check_run_folder(o.out, o.model, o.resume, o.overwrite);
    const bool from_scratch = !has_weights(o.model);
    const Config config = Config::load(o.model);
    const Tokenizer tokenizer = Tokenizer::load(tokenizer_folder);
    if (tokenizer.vocab_size() > config.vocab_size)
        fail(o.model, ": the tokenizer has ", tokenizer.vocab_size(), " tokens, the model only ",
             config.vocab_size);
    if (config.eos_token_ids.empty())
        fail(o.model, ": config.json has no eos_token_id, so completions cannot end");

    const Device device = make_device(o.device, o.dtype);
    Backend& backend = *device.backend;
    const StateType states = state_type(o.state_dtype);
    const TransformerOptions model_options{
        .trainable = true,
        .recompute = o.recompute,
        .bf16_matrices = device.bf16_matrices || states != StateType::Float32,
        .bf16_master = states != StateType::Float32,
        .max_tokens = o.token_budget};
    const auto plan = Transformer::plan(config, model_options, backend);
    print_and_check_memory_plan(
        device, {{"parameters", plan.parameters},
                 {"gradients", plan.gradients},
                 {"optimizer state", Optimizer::bytes(ParameterLayout(config), backend, states)},
                 {"activations (--token-budget, --recompute)", plan.activations}});
    if (o.dry_run) throw DryRunDone{};
    Transformer model(backend, config, model_options);
    Optimizer optimizer(model, states, static_cast<std::uint64_t>(o.seed));
    SftReader reader(o.data, o.no_shuffle ? std::nullopt : std::optional(static_cast<std::uint64_t>(o.seed)),
                     tokenizer_folder);
    auto record = o.record;
    describe_inputs(record, backend.name(), 1,
                    {{"model", o.model}, {"tokenizer", o.tokenizer}, {"data", o.data}});
    std::int64_t step = 0;
    if (resuming) {
        const auto before =
            nlohmann::ordered_json::parse(read_checkpoint_values(o.out).values["run"], nullptr, false);
        const auto notes = compare_runs(before, record, kMayDiffer);
        const Checkpoint checkpoint = load_checkpoint(o.out, model, optimizer);
        step = static_cast<std::int64_t>(checkpoint.count("step"));
        reader.seek(checkpoint.count("position"));
        check_schedule(before, o.schedule, o.steps, step);
        for (const auto& note : notes) std::printf("note: %s when the run began\n", note.c_str());
        std::printf("resumed at step %lld\n", static_cast<long long>(step));
    } else if (from_scratch) {
        model.initialize(static_cast<std::uint64_t>(o.seed));
    } else {
        model.load_weights(o.model);
    }
    std::printf("%s parameters, %s, %s weights, %d threads; from step %lld of %lld\n",
                human_count(static_cast<double>(model.layout().total)).c_str(),
                from_scratch ? "from scratch" : o.model.c_str(),
                device.bf16_matrices ? "bfloat16" : "float32", threads(), static_cast<long long>(step),
                static_cast<long long>(o.steps));

    if (!resuming) clear_run_folder(o.out);
    JsonLines log(std::filesystem::path(o.out) / "log.jsonl", resuming ? std::optional(step) : std::nullopt);
    log.write(log_line(record, resuming, step));
    if (o.resume && !resuming) std::printf("%s holds no checkpoint: a new run\n", o.out.c_str());
    const LearningRate schedule{
        .lr = o.lr, .warmup_steps = o.warmup, .total_steps = o.steps, .cosine = o.schedule == "cosine"};
    auto save = [&] {
        save_checkpoint(o.out, model, optimizer,
                        {{{"step", std::to_string(step)},
                          {"position", std::to_string(reader.position())},
                          {"run", record.dump()}},
                         {}},
                        o.keep);
    };

    std::int64_t skipped = 0;
    double tokens_seen = 0, last_loss = 0;
    const Stopwatch clock;
    Progress progress("step");
    const std::int64_t first_step = step;
    while (step < o.steps && !stop_requested()) {
        // A batch of about batch_tokens tokens. The normaliser is its count of scored tokens, whatever the
        // micro-batches.
        std::vector<Sequence> sequences;
        std::int64_t fed = 0, scored = 0;
        for (std::size_t useless = 0; fed < o.batch_tokens;) {
            Sequence s = encode(reader.next(), tokenizer, config.eos_token_ids[0]);
            const auto learnt = std::ranges::count(s.scored, true);
            if (s.size() > config.max_position_embeddings || s.size() > o.token_budget || learnt == 0) {
                ++skipped;
                if (++useless == reader.size())
                    fail(o.data,
                         ": holds no example that has something to learn and fits --token-budget and ",
                         "the model's context of ", config.max_position_embeddings, " tokens");
                continue;
            }
            useless = 0;
            fed += s.size() - 1;
            scored += learnt;
            sequences.push_back(std::move(s));
        }

        double loss = 0;
        PackedBatch batch;
        auto flush = [&] {
            const auto scores = model.forward(batch);
            for (float logp : scores.logp) loss -= logp / static_cast<double>(scored);
            model.backward(std::vector<float>(scores.logp.size(), -1.0f / static_cast<float>(scored)));
            batch.clear();
        };
        for (const auto& s : sequences) {
            if (batch.size() + s.size() > o.token_budget) flush();
            batch.add(s.tokens, s.scored);
        }
        flush();
        ++step;
        tokens_seen += static_cast<double>(fed);
        const double lr = schedule.at(step), norm = optimizer.step(lr, o.clip, o.weight_decay);
        if (!std::isfinite(loss) || !std::isfinite(norm)) {
            fail("step ", step, ": the loss or its gradient is not finite; the last good checkpoint is in ",
                 o.out, "; lower --lr and start again with --resume");
        }
        last_loss = loss;
        log.write({{"step", step},
                   {"loss", loss},
                   {"grad_norm", norm},
                   {"lr", lr},
                   {"tokens", fed},
                   {"seconds", clock.seconds()}});
        if (step % 20 == 0) {
            char more[100];
            std::snprintf(more, sizeof more, "  loss %.4f  grad norm %.2f  %s tokens/s", loss, norm,
                          human_count(tokens_seen / clock.seconds()).c_str());
            progress.show(step, o.steps, more);
        }
        if (step % o.save_every == 0) save();
    }
    progress.end();
    if (step > first_step) {
        save();
        std::printf("step %lld: loss %.4f, %s tokens/s\n", static_cast<long long>(step), last_loss,
                    human_count(tokens_seen / clock.seconds()).c_str());
    }
    if (skipped)
        std::printf("%lld examples were too long or empty and left out\n", static_cast<long long>(skipped));
    if (step < o.steps) {
        std::printf("stopped at step %lld; go on with --resume\n", static_cast<long long>(step));
        return 130;
    }
    if (PromptTemplate::exists_in(tokenizer_folder))
        PromptTemplate::load(tokenizer_folder, "", ChatFormat::load(tokenizer_folder)).save(o.out);
    save_model(model, o.model, tokenizer_folder, o.out,
               saved_dtype(o.save_dtype, from_scratch ? "" : o.model), config.stop_texts);
    if (o.keep == 0) remove_checkpoints(o.out);
    std::printf("model written to %s\n", o.out.c_str());
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{"Supervised fine-tuning: cross-entropy on given completions or chats", "train_sft"};
    app.option_defaults()->always_capture_default()->take_last();  // of a flag given twice
    app.add_option("--model", o.model,
                   "model folder; one with config.json but no weights starts from random weights")
        ->required();
    app.add_option("--tokenizer", o.tokenizer, "folder with tokenizer.json, if not the model's");
    app.add_option("--data", o.data,
                   "JSONL: {\"prompt\": ..., \"completion\": ...}, or {\"messages\": [...]} for a chat model")
        ->required();
    app.add_flag("--no-shuffle", o.no_shuffle, "take the examples in the file's order, every epoch");
    app.add_option("--out", o.out, "run folder: log.jsonl, checkpoint and the trained model");
    app.add_option("--steps", o.steps, "updates; 0 only initialises a new model")->check(kNonNegative);
    app.add_option("--batch-tokens", o.batch_tokens, "tokens an update")->check(kPositive);
    app.add_option("--token-budget", o.token_budget, "tokens a forward pass (memory)")->check(kPositive);
    app.add_option("--lr", o.lr, "learning rate")->check(kPositive);
    app.add_option("--schedule", o.schedule, "after the warm-up")
        ->check(CLI::IsMember({"constant", "cosine"}));
    app.add_option("--warmup", o.warmup, "warm-up steps")->check(kNonNegative);
    app.add_option("--weight-decay", o.weight_decay, "AdamW's, on matrices")->check(kNonNegative);
    app.add_option("--clip", o.clip, "largest gradient norm, 0: none")->check(kNonNegative);
    add_device_options(app, o.device, o.dtype);
    add_state_dtype(app, o.state_dtype);
    app.add_flag("--recompute", o.recompute,
                 "recompute activations in the backward pass: less memory, a third more work");
    app.add_option("--save-every", o.save_every, "steps between checkpoints")->check(kPositive);
    add_save_dtype(app, o.save_dtype);
    app.add_option("--seed", o.seed, "of the initial weights and of the order of examples");
    app.add_option("--threads", o.threads, "0: one a core")->check(kNonNegative);
    add_run_options(app, o.resume, o.overwrite, o.dry_run, o.keep);
    return run_main(app, argc, argv, [&] {
        o.record = describe_run(app, argc, argv);
        return train(o);
    });
}
