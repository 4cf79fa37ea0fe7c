#include "src/rl/training_run.h"

#include <cstdio>

#include "src/run/files.h"
#include "src/run/record.h"

namespace r1 {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// Removes the checkpoints and the model of an earlier run.
void clear_run_folder(const fs::path& folder) {
    if (!fs::is_directory(folder)) return;
    std::vector<fs::path> old;
    for (const auto& entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename();
        if (name == "log.jsonl" || name == "samples.jsonl" || name == "run.toml" ||
            name == "best" || name == "model.safetensors.index.json" ||
            (name.find(".safetensors") != name.npos &&
             (name.starts_with("checkpoint") || name.starts_with("model"))))
            old.push_back(entry.path());
    }
    for (const auto& path : old) fs::remove_all(path);
    sync_folder(folder);  // a checkpoint of the old run must not come back
}

/// Returns whether there is a checkpoint to resume.
bool check_run_folder(const fs::path& folder, const fs::path& model_folder, bool resume,
                      bool overwrite) {
    std::error_code ignored;
    if (fs::exists(folder, ignored) && !fs::is_directory(folder, ignored))
        fail(folder, ": is a file; --out wants a folder");
    if (fs::equivalent(folder, model_folder, ignored))
        fail("--out ", folder, " is the folder of --model; choose another");
    const bool has_model = has_weights(folder), has_log = fs::exists(folder / "log.jsonl", ignored);
    if (resume && has_checkpoint(folder)) return true;
    if (resume && has_model)
        fail(folder.string(),
             ": the run in it is finished and its checkpoint is gone; to train its model "
             "further, give it as --model and choose another --out");
    if (!resume && !overwrite && (has_model || has_log || has_checkpoint(folder)))
        fail(
            folder, ": holds a ", has_log || has_checkpoint(folder) ? "run" : "model",
            " already; go on with it by --resume, replace it by --overwrite, or choose another --out");
    return false;
}

}  // namespace

TrainingRun::TrainingRun(const Flags& flags, const RunFlags& run, const std::string& model,
                         int argc, char** argv, bool is_root)
    : flags_(flags), run_(run), record_(describe_run(flags.app(), argc, argv)), is_root_(is_root) {
    if (run.dry_run) return;
    if (run.out.empty()) fail("--out is empty; a folder is wanted");
    std::error_code unknown;
    if (is_root && !fs::exists(run.out, unknown)) fs::create_directories(run.out);
    if (is_root && fs::is_directory(run.out, unknown)) lock_ = lock_folder(run.out);
    resuming_ = check_run_folder(run.out, model, run.resume, run.overwrite);
}

TrainingRun::~TrainingRun() {
    std::error_code ignored;
    if (lock_.number() >= 0 && fs::is_empty(run_.out, ignored)) fs::remove(run_.out, ignored);
}

Checkpoint TrainingRun::restore(const Trainee& trainee) const {
    std::vector<std::string> notes;
    const auto check = [&](const Checkpoint& checkpoint) {
        const auto run = checkpoint.values.find("run");
        const std::string text = run == checkpoint.values.end() ? "" : run->second;
        const auto before = ordered_json::parse(text, nullptr, false);
        notes = compare_runs(before, record_, flags_.may_differ());
        check_schedule(before, record_, static_cast<std::int64_t>(checkpoint.count("step")));
    };
    Checkpoint checkpoint = load_checkpoint(out(), *trainee.model, *trainee.optimizer, check);
    if (!checkpoint.note.empty()) std::printf("note: %s\n", checkpoint.note.c_str());
    print_notes(notes);
    std::printf("resumed at step %s\n", checkpoint.values.at("step").c_str());
    return checkpoint;
}

JsonLines TrainingRun::open_lines(const char* file, std::int64_t step) const {
    return JsonLines(out() / file, resuming_ ? kept_lines(out() / file, step).bytes : 0);
}

JsonLines TrainingRun::open_log(std::int64_t step) const {
    if (!resuming_) clear_run_folder(out());
    const KeptLines kept = resuming_ ? kept_lines(out() / "log.jsonl", step) : KeptLines{};
    if (resuming_ && kept.last_step < step)
        std::printf(
            "note: log.jsonl ends at step %lld; the steps from there to the checkpoint's "
            "are lost from it\n",
            static_cast<long long>(kept.last_step));
    JsonLines log(out() / "log.jsonl", kept.bytes);
    if (resuming_)
        log.write({{"resumed",
                    {{"step", step}, {"command", record_["command"]}, {"date", record_["date"]}}}});
    else
        log.write({{"run", record_}});
    if (run_.resume && !resuming_)
        std::printf("%s holds no checkpoint: a new run\n", run_.out.c_str());
    write_file(out() / "run.toml", config_of_run(record_));
    return log;
}

void TrainingRun::save(const Trainee& trainee, std::int64_t step,
                       std::map<std::string, std::string> values) const {
    if (!is_root_) return;
    values["step"] = std::to_string(step);
    values["run"] = record_.dump();
    save_checkpoint(run_.out, *trainee.model, *trainee.optimizer, {values}, run_.keep);
}

void TrainingRun::check_ranks(const Trainee& trainee, const Comm& comm, std::int64_t step) const {
    if (comm.size() > 1 && !comm.same(trainee.model->parameters().fingerprint()))
        fail("step ", step, ": the ranks' weights differ", advice_to_resume(out()));
}

int TrainingRun::stopped(std::int64_t step) const {
    std::printf("stopped at step %lld; go on with --resume\n", static_cast<long long>(step));
    return 130;
}

void TrainingRun::finish(const ModelFolder& folder, const Trainee& trainee) const {
    print_summary(out() / "log.jsonl");
    folder.save(*trainee.model, out(), run_.save_dtype);
    remove_checkpoints();
    trainee.print_memory();
    const bool has_best = fs::exists(out() / "best");
    std::printf("model, log.jsonl and samples.jsonl are in %s%s\n", run_.out.c_str(),
                has_best ? ", the best model by evaluation in best/ there" : "");
}

}  // namespace r1
