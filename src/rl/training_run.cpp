#include "src/rl/training_run.h"

#include <cstdio>

#include "src/run/record.h"
#include "src/run/whole_file.h"

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
            (name.ends_with(".safetensors") &&
             (name.starts_with("checkpoint") || name.starts_with("model"))))
            old.push_back(entry.path());
    }
    for (const auto& path : old) fs::remove_all(path);
}

/// Returns whether there is a checkpoint to resume.
bool check_run_folder(const fs::path& folder, const fs::path& model_folder, bool resume,
                      bool overwrite) {
    std::error_code ignored;
    if (fs::exists(folder, ignored) && !fs::is_directory(folder, ignored))
        fail(folder.string(), ": is a file; --out wants a folder");
    if (fs::equivalent(folder, model_folder, ignored))
        fail("--out ", folder.string(), " is the folder of --model; choose another");
    const bool has_model = has_weights(folder), has_log = fs::exists(folder / "log.jsonl", ignored);
    if (resume && has_checkpoint(folder)) return true;
    if (resume && has_model)
        fail(folder.string(),
             ": the run in it is finished and its checkpoint is gone; to train its model "
             "further, give it as --model and choose another --out");
    if (!resume && !overwrite && (has_model || has_log || has_checkpoint(folder)))
        fail(
            folder.string(), ": holds a ", has_log || has_checkpoint(folder) ? "run" : "model",
            " already; go on with it by --resume, replace it by --overwrite, or choose another --out");
    return false;
}

}  // namespace

TrainingRun::TrainingRun(const Flags& flags, const RunFlags& run, const std::string& model,
                         int argc, char** argv, bool is_root)
    : flags_(flags),
      run_(run),
      record_(describe_run(flags.app(), argc, argv)),
      resuming_(!run.dry_run && check_run_folder(run.out, model, run.resume, run.overwrite)),
      is_root_(is_root) {}

Checkpoint TrainingRun::restore(const Trainee& trainee) const {
    const auto values = read_checkpoint_values(run_.out).values;
    const auto run = values.find("run");
    const auto before = ordered_json::parse(run == values.end() ? "" : run->second, nullptr, false);
    const auto notes = compare_runs(before, record_, flags_.may_differ());
    Checkpoint checkpoint = load_checkpoint(run_.out, *trainee.model, *trainee.optimizer);
    const auto step = static_cast<std::int64_t>(checkpoint.count("step"));
    check_schedule(before, record_, step);
    if (!is_root_) return checkpoint;
    print_notes(notes);
    std::printf("resumed at step %lld\n", static_cast<long long>(step));
    return checkpoint;
}

JsonLines TrainingRun::open_log(std::int64_t step) const {
    const fs::path log_file = out() / "log.jsonl";
    if (!resuming_) clear_run_folder(out());
    JsonLines log(log_file, resuming_ ? std::optional(step) : std::nullopt);
    if (resuming_)
        log.write({{"resumed",
                    {{"step", step}, {"command", record_["command"]}, {"date", record_["date"]}}}});
    else
        log.write({{"run", record_}});
    if (run_.resume && !resuming_)
        std::printf("%s holds no checkpoint: a new run\n", run_.out.c_str());
    WholeFile flags(out() / "run.toml");
    flags << config_of_run(record_);
    flags.done();
    return log;
}

void TrainingRun::save(const Trainee& trainee, std::int64_t step,
                       std::map<std::string, std::string> values,
                       const std::vector<float>& reference) const {
    if (!is_root_) return;
    values["step"] = std::to_string(step);
    values["run"] = record_.dump();
    save_checkpoint(run_.out, *trainee.model, *trainee.optimizer, {values, reference}, run_.keep);
}

int TrainingRun::stopped(std::int64_t step) const {
    if (is_root_)
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

void TrainingRun::remove_checkpoints() const {
    if (run_.keep == 0) r1::remove_checkpoints(run_.out);
}

}  // namespace r1
