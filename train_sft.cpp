// Supervised fine-tuning: cross-entropy on given completions, prompts masked from the loss.
// Pretrains the tiny base from random weights; with a model folder it is the cold start, the SFT on
// rejection samples and the distillation of the R1 paper (arXiv 2501.12948, sections 2.3 and 2.4).
#include <cstdio>

#include "src/device/parallel.h"
#include "src/rl/dataset.h"
#include "src/rl/training_run.h"
#include "src/run/record.h"

using namespace r1;

namespace {

// clang-format off
struct Options : Flags {
    Options() : Flags("train_sft", "Supervised fine-tuning: cross-entropy on given completions or chats") {
        let_differ({"steps"});
    }

    Group model_and_data = group("Model and data");
    const std::string& model = required("--model", "model folder; one with config.json but no weights starts from random weights");
    const std::string& tokenizer = flag("--tokenizer", "", "folder with tokenizer.json, if not the model's");
    const std::string& data = required("--data", "JSONL: {\"prompt\": ..., \"completion\": ...}, or {\"messages\": [...]} for a chat model");
    const bool& no_shuffle = flag("--no-shuffle", false, "take the examples in the file's order, every epoch");

    Group optimisation = group("Optimisation");
    const std::int64_t& steps = flag("--steps", std::int64_t{1000}, "updates; 0 only initialises a new model", kNonNegative);
    const std::int64_t& batch_tokens = flag("--batch-tokens", std::int64_t{8192}, "tokens an update", kPositive);
    OptimizerFlags optimizer{*this, 1e-3, {"cosine", "constant"}, 50};
    const std::int64_t& seed = flag("--seed", std::int64_t{1}, "seed of the initial weights and of the order of examples");

    Group machine = group("Device");
    DeviceFlags device{*this};

    Group run_folder = group("Run");
    RunFlags run{*this, "runs/sft", "run folder: log.jsonl, checkpoint and the trained model", 500};
};
// clang-format on

/// A training sequence and which of its tokens are learnt.
struct Sequence {
    std::vector<std::int32_t> tokens;
    std::vector<bool> scored;
    std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
    std::int64_t learnt() const { return std::ranges::count(scored, true); }
};

/// Segments are encoded one by one: a trained one begins where a prompt ends when the model is
/// used. `lacking`, if given, is told of a character that the vocabulary lacks.
Sequence encode(const SftExample& example, const Tokenizer& tokenizer, std::int32_t eos,
                std::string* lacking = nullptr) {
    Sequence s;
    for (const Segment& segment : example.segments) {
        const bool prompt = !example.chat && !segment.trained;
        std::string unknown;
        const auto tokens =
            tokenizer.encode(prompt ? tokenizer.framed(segment.text) : segment.text, &unknown);
        if (lacking && lacking->empty()) *lacking = unknown;
        s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
        s.scored.resize(s.tokens.size(), segment.trained);
    }
    if (example.eos) {
        s.tokens.push_back(eos);
        s.scored.push_back(true);
    }
    if (!s.scored.empty()) s.scored[0] = false;  // nothing predicts the first token
    return s;
}

/// Reads examples as sequences, those that can be trained on.
struct Examples {
    const Options& o;
    const Config& config;
    const Tokenizer& tokenizer;
    const std::int32_t eos;
    SftReader reader;
    std::int64_t skipped = 0;

    /// A batch of about --batch-tokens tokens.
    std::vector<Sequence> next_batch() {
        std::vector<Sequence> batch;
        std::int64_t fed = 0;
        const std::int64_t longest =
            std::min<std::int64_t>(config.max_position_embeddings, o.optimizer.token_budget);
        for (std::size_t useless = 0; fed < o.batch_tokens;) {
            Sequence s = encode(reader.next(), tokenizer, eos);
            if (s.size() > longest || s.learnt() == 0) {
                ++skipped;
                if (++useless == reader.size())
                    fail(
                        o.data,
                        ": holds no example that has something to learn and fits --token-budget and the "
                        "model's context of ",
                        config.max_position_embeddings, " tokens");
                continue;
            }
            useless = 0;
            fed += s.size() - 1;
            batch.push_back(std::move(s));
        }
        return batch;
    }
};

/// Adds the gradient of the mean cross-entropy over the batch's learnt tokens, whatever the
/// micro-batches. Returns the mean.
double accumulate_gradient(Transformer& model, const std::vector<Sequence>& sequences,
                           std::int64_t token_budget) {
    std::int64_t learnt = 0;
    for (const Sequence& s : sequences) learnt += s.learnt();
    double loss = 0;
    PackedBatch batch;
    const auto flush = [&] {
        const auto scores = model.forward(batch);
        for (float logp : scores.logp) loss -= logp / static_cast<double>(learnt);
        const float dlogp = -1.0f / static_cast<float>(learnt);
        model.backward(std::vector<float>(scores.logp.size(), dlogp));
        batch.clear();
    };
    for (const Sequence& s : sequences) {
        if (batch.size() + s.size() > token_budget) flush();
        batch.add(s.tokens, s.scored);
    }
    flush();
    return loss;
}

Config checked_config(const Options& o, const Tokenizer& tokenizer) {
    const Config config = Config::load(o.model);
    if (tokenizer.vocab_size() > config.vocab_size)
        fail(o.model, ": the tokenizer has ", tokenizer.vocab_size(), " tokens, the model only ",
             config.vocab_size);
    if (config.eos_token_ids.empty())
        fail(o.model, ": config.json has no eos_token_id, so completions cannot end");
    return config;
}

/// Reads all of --data before the run. Where it holds chats, the end of a turn joins the model's
/// end-of-sequence tokens, for it is learnt as one.
void check_data(const Options& o, const std::filesystem::path& tokenizer_folder,
                const Tokenizer& tokenizer, Config& config) {
    SftReader reader(o.data, std::nullopt, tokenizer_folder);
    LackingNote note;
    for (std::size_t i = 0; i < reader.size(); ++i) {
        const SftExample example = reader.next();
        std::string lacking;
        try {
            encode(example, tokenizer, config.eos_token_ids[0], &lacking);
        } catch (const Error& e) {
            fail(example.place, ": ", e.what());
        }
        note.add(example.place, lacking);
    }
    note.print();
    if (!reader.chat()) return;
    const auto end = end_of_turn(*reader.chat(), tokenizer);
    if (!end)
        fail(tokenizer_folder.string(), ": the tokenizer has no token ",
             reader.chat()->end_of_turn(), ", which ends a turn in its chat template");
    if (!std::ranges::count(config.eos_token_ids, *end)) config.eos_token_ids.push_back(*end);
}

/// The trained model, with the tokenizer and the prompt template that it was trained with.
void write_model(const Options& o, const Transformer& model,
                 const std::filesystem::path& tokenizer_folder) {
    if (PromptTemplate::exists_in(tokenizer_folder))
        PromptTemplate::load(tokenizer_folder, "", ChatFormat::load(tokenizer_folder))
            .save(o.run.out);
    save_model(model, o.model, tokenizer_folder, o.run.out, saved_dtype(o.run.save_dtype, o.model),
               model.config().stop_texts);
}

/// A new run, or one that goes on from the checkpoint in --out. Returns the steps that are done.
std::int64_t begin(const Options& o, TrainingRun& run, const Trainee& trainee, SftReader& reader) {
    describe_inputs(run.record(), trainee.device.backend->name(), 1,
                    {{"model", o.model}, {"tokenizer", o.tokenizer}, {"data", o.data}});
    std::int64_t step = 0;
    const char* from = "the checkpoint";
    if (run.resuming()) {
        const auto checkpoint = run.restore(trainee);
        step = static_cast<std::int64_t>(checkpoint.count("step"));
        reader.seek(checkpoint.count("position"));
    } else if (has_weights(o.model)) {
        from = o.model.c_str();
        trainee.model->parameters().load(o.model);
    } else {
        from = "random weights";
        trainee.model->parameters().initialize(static_cast<std::uint64_t>(o.seed));
    }
    std::printf("from %s, %d threads; step %lld of %lld\n", from, threads(),
                static_cast<long long>(step), static_cast<long long>(o.steps));
    return step;
}

int train(const Options& o, TrainingRun& run) {
    const std::filesystem::path tokenizer_folder = o.tokenizer.empty() ? o.model : o.tokenizer;
    const Tokenizer tokenizer = Tokenizer::load(tokenizer_folder);
    Config config = checked_config(o, tokenizer);
    const std::int32_t eos = end_of_answer(tokenizer_folder, config, tokenizer);
    check_data(o, tokenizer_folder, tokenizer, config);
    const Trainee trainee(config, o.device, o.optimizer, o.run, o.seed);
    const auto seed = static_cast<std::uint64_t>(o.seed);
    const auto shuffle = o.no_shuffle ? std::nullopt : std::optional(seed);
    Examples examples{o, config, tokenizer, eos, SftReader(o.data, shuffle, tokenizer_folder)};
    std::int64_t step = begin(o, run, trainee, examples.reader);
    JsonLines log = run.open_log(step);
    const auto save = [&] {
        run.save(trainee, step, {{"position", std::to_string(examples.reader.position())}});
    };

    const LearningRate learning_rate = o.optimizer.learning_rate(o.steps);
    const std::int64_t first_step = step;
    double tokens_seen = 0, loss = 0;
    const Stopwatch clock;
    const auto speed = [&] { return human_count(tokens_seen / clock.seconds()) + " tokens/s"; };
    Progress progress("step");
    while (step < o.steps && !stop_requested()) {
        const auto sequences = examples.next_batch();
        double tokens = 0;
        for (const Sequence& s : sequences) tokens += static_cast<double>(s.size() - 1);
        tokens_seen += tokens;
        loss = accumulate_gradient(*trainee.model, sequences, o.optimizer.token_budget);
        const double lr = learning_rate.at(++step), norm = trainee.optimizer->step(lr, o.optimizer);
        if (!std::isfinite(loss) || !std::isfinite(norm))
            fail("step ", step,
                 ": the loss or its gradient is not finite; the last good checkpoint is in ",
                 o.run.out, "; lower --lr and start again with --resume");
        log.write({{"step", step},
                   {"loss", loss},
                   {"grad_norm", norm},
                   {"lr", lr},
                   {"tokens", tokens},
                   {"seconds", clock.seconds()}});
        if (step % 20 == 0) {
            char more[100];
            std::snprintf(more, sizeof more, "  loss %.4f  grad norm %.2f  %s", loss, norm,
                          speed().c_str());
            progress.show(step, o.steps, more);
        }
        if (step % o.run.save_every == 0) save();
    }
    progress.end();
    if (step > first_step) {
        save();
        std::printf("step %lld: loss %.4f, %s\n", static_cast<long long>(step), loss,
                    speed().c_str());
    }
    if (examples.skipped)
        std::printf("%lld examples were too long or empty and left out\n",
                    static_cast<long long>(examples.skipped));
    if (step < o.steps) return run.stopped(step);
    write_model(o, *trainee.model, tokenizer_folder);
    run.remove_checkpoints();
    std::printf("model written to %s\n", o.run.out.c_str());
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    return o.main(argc, argv, [&] {
        install_stop_handler();
        set_threads(o.device.threads);
        TrainingRun run(o, o.run, o.model, argc, argv);
        return train(o, run);
    });
}
