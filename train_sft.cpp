// Supervised fine-tuning: cross-entropy on given completions, prompts masked from the loss.
// Pretrains the tiny base from random weights; with a model folder it is the cold start, the SFT on
// rejection samples and the distillation of the R1 paper (arXiv 2501.12948, sections 2.3 and 2.4).
#include <cstdio>

#include "src/device/parallel.h"
#include "src/rl/sft_batches.h"
#include "src/rl/training_run.h"
#include "src/run/comm.h"
#include "src/run/record.h"
#include "src/run/stop.h"

using namespace r1;

namespace {

// clang-format off
struct Options : Flags {
    Options() : Flags("train_sft", "Supervised fine-tuning: cross-entropy on given completions or chats. Under mpirun the ranks share each batch") {
        let_differ({"steps"});
    }

    Group model_and_data = group("Model and data");
    const std::string& model = required("--model", "model folder; a config.json alone starts from random weights");
    const bool& from_scratch = flag("--from-scratch", false, "random weights, even if --model has some");
    const std::string& tokenizer = flag("--tokenizer", "", "folder with tokenizer.json, if not the model's");
    const std::string& data = required("--data", "JSONL: {\"prompt\": ..., \"completion\": ...}, or {\"messages\": [...]} for a chat model");
    const bool& escape_special = flag("--escape-special", false, kEscapeSpecial);
    const bool& no_shuffle = flag("--no-shuffle", false, "take the examples in the file's order, every epoch");

    Group optimisation = group("Optimisation");
    const std::int64_t& steps = flag("--steps", std::int64_t{1000}, "updates; 0 only initialises a new model", kNonNegative);
    const std::int64_t& batch_tokens = flag("--batch-tokens", std::int64_t{8192}, "tokens an update", kManyTokens);
    OptimizerFlags optimizer{*this, 1e-3, {"cosine", "constant"}, 50};
    const std::int64_t& seed = flag("--seed", std::int64_t{1}, "seed of the initial weights and of the order of examples");

    Group machine = group("Device");
    DeviceFlags device{*this};

    Group run_folder = group("Run");
    RunFlags run{*this, "runs/sft", "run folder: log.jsonl, checkpoint and the trained model", 500};
};
// clang-format on

/// Adds the gradient of the mean cross-entropy over the batch's learnt tokens, whatever the
/// micro-batches and the ranks, each of which takes its part of the batch. Returns the mean.
double accumulate_gradient(const Trainee& trainee, const Comm& comm,
                           const std::vector<Sequence>& sequences, std::int64_t token_budget) {
    Transformer& model = *trainee.model;
    std::int64_t learnt = 0;
    for (const Sequence& s : sequences) learnt += s.learnt();
    double loss = 0;
    PackedBatch batch;
    const auto flush = [&] {
        if (batch.size() == 0) return;
        const auto scores = model.forward(batch);
        for (float logp : scores.logp) loss -= logp / static_cast<double>(learnt);
        const float dlogp = -1.0f / static_cast<float>(learnt);
        model.backward(std::vector<float>(scores.logp.size(), dlogp));
        batch.clear();
    };
    const std::size_t n = sequences.size(), rank = comm.rank(), ranks = comm.size();
    for (std::size_t i = n * rank / ranks; i < n * (rank + 1) / ranks; ++i) {
        const Sequence& s = sequences[i];
        if (batch.size() + s.size() > token_budget) flush();
        batch.add(s.tokens, s.scored);
    }
    flush();
    trainee.device.backend->all_reduce_sum(model.parameters().gradients(), comm);
    comm.all_reduce_sum({&loss, 1});
    return loss;
}

/// What the trained model is made from. Throws Error where a folder has weights that cannot be
/// read: a model begins with random ones only where that is asked for.
struct Origin {
    explicit Origin(const Options& o)
        : from_scratch(o.from_scratch || std::filesystem::is_regular_file(o.model)),
          tokenizer_folder(choose_tokenizer_folder(o)),
          tokenizer(Tokenizer::load(tokenizer_folder, o.escape_special)),
          config(Config::load(o.model)),
          files(read_model_files(o.model, tokenizer_folder)),
          dtype(from_scratch ? SafeDtype::F32 : stored_dtype(o.model)) {
        if (!from_scratch) check_has_weights(o.model);
        if (config.eos_token_ids.empty())
            fail(o.model, ": config.json has no eos_token_id, so completions cannot end");
    }
    static std::filesystem::path choose_tokenizer_folder(const Options& o) {
        if (!o.tokenizer.empty()) return o.tokenizer;
        const std::filesystem::path model = o.model;
        return std::filesystem::is_regular_file(model) ? model.parent_path() : model;
    }

    bool from_scratch;
    std::filesystem::path tokenizer_folder;
    Tokenizer tokenizer;
    Config config;
    ModelFiles files;
    SafeDtype dtype;
};

/// Where the data holds chats, the end of a turn joins the model's end-of-sequence tokens, for it
/// is learnt as one.
void end_turns(const SftReader& reader, Origin& origin) {
    if (!reader.chat()) return;
    std::vector<int>& ends = origin.config.eos_token_ids;
    const auto end = end_of_turn(*reader.chat(), origin.tokenizer);
    if (!end)
        fail(origin.tokenizer_folder, ": the tokenizer has no token ", reader.chat()->end_of_turn(),
             ", which ends a turn in its chat template");
    if (std::ranges::count(ends, *end)) return;
    ends.push_back(*end);
    set_end_tokens(origin.files, ends);
}

/// A new run, or one that goes on from the checkpoint in --out. Returns the steps that are done.
std::int64_t begin(const Options& o, const Comm& comm, const Origin& origin, TrainingRun& run,
                   const Trainee& trainee, SftReader& reader) {
    describe_inputs(run.record(), trainee.device.backend->name(), comm.size(),
                    {{"model", o.model}, {"tokenizer", o.tokenizer}, {"data", o.data}});
    std::int64_t step = 0;
    const char* from = "the checkpoint";
    if (run.resuming()) {
        const auto checkpoint = run.restore(trainee);
        step = static_cast<std::int64_t>(checkpoint.count("step"));
        reader.seek(checkpoint.count("position"));
    } else if (origin.from_scratch) {
        from = "random weights";
        trainee.model->parameters().initialize(static_cast<std::uint64_t>(o.seed));
    } else {
        from = o.model.c_str();
        trainee.model->parameters().load(o.model);
    }
    comm.any(false);  // every rank has looked at the folder before one writes to it
    std::printf("from %s, %d ranks of %d threads; step %lld of %lld\n", from, comm.size(),
                threads(), static_cast<long long>(step), static_cast<long long>(o.steps));
    return step;
}

int train(const Options& o, const Comm& comm, TrainingRun& run) {
    Origin origin(o);
    const Config& config = origin.config;
    const std::int32_t eos = end_of_answer(origin.tokenizer_folder, config, origin.tokenizer);
    SftReader reader(o.data, std::nullopt, origin.tokenizer_folder, origin.tokenizer);
    const auto longest =
        std::min<std::int64_t>(config.max_position_embeddings, o.optimizer.token_budget);
    SftBatches batches(std::move(reader), origin.tokenizer, eos, longest);
    end_turns(batches.reader(), origin);
    if (!o.no_shuffle) batches.reader().shuffle(static_cast<std::uint64_t>(o.seed));
    const Trainee trainee(config, o.device, o.optimizer, o.run, o.seed);
    std::int64_t step = begin(o, comm, origin, run, trainee, batches.reader());
    std::optional<JsonLines> log;  // on the root rank
    if (comm.is_root()) log.emplace(run.open_log(step));
    const auto save = [&] {
        if (log) log->sync();
        run.save(trainee, step, {{"position", std::to_string(batches.reader().position())}});
    };

    const LearningRate learning_rate = o.optimizer.learning_rate(o.steps);
    const std::int64_t first_step = step;
    double tokens_seen = 0, loss = 0;
    const Stopwatch clock;
    const auto speed = [&] { return human_count(tokens_seen / clock.seconds()) + " tokens/s"; };
    Progress progress("step");
    while (step < o.steps && !comm.any(stop_requested())) {
        const auto sequences = batches.next(o.batch_tokens);
        double tokens = 0;
        for (const Sequence& s : sequences) tokens += static_cast<double>(s.size() - 1);
        tokens_seen += tokens;
        loss = accumulate_gradient(trainee, comm, sequences, o.optimizer.token_budget);
        const double lr = learning_rate.at(++step), norm = trainee.optimizer->step(lr, o.optimizer);
        if (!std::isfinite(loss) || !std::isfinite(norm))
            fail("step ", step, ": the loss or its gradient is not finite; lower --lr",
                 advice_to_resume(o.run.out));
        run.check_ranks(trainee, comm, step);
        if (log)
            log->write({{"step", step},
                        {"loss", loss},
                        {"grad_norm", norm},
                        {"lr", lr},
                        {"tokens", tokens},
                        {"seconds", clock.seconds()}});
        char more[100];
        std::snprintf(more, sizeof more, "  loss %.4f  grad norm %.2f  %s", loss, norm,
                      speed().c_str());
        progress.show(step, o.steps, more);
        if (step % o.run.save_every == 0) save();
    }
    progress.end();
    if (step > first_step) {
        save();
        std::printf("step %lld: loss %.4f, %s\n", static_cast<long long>(step), loss,
                    speed().c_str());
    }
    if (step < o.steps) return run.stopped(step);
    if (!comm.is_root()) return 0;
    save_model(*trainee.model, origin.files, run.out(),
               choose_dtype(o.run.save_dtype, origin.dtype));
    run.remove_checkpoints();
    std::printf("model written to %s\n", o.run.out.c_str());
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    return o.main(argc, argv, [&] {
        install_stop_handler();
        const Comm comm;
        set_threads(o.device.threads);
        TrainingRun run(o, o.run, o.model, argc, argv, comm.is_root());
        return train(o, comm, run);
    });
}
