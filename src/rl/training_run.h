// A training run: its folder, what it is, its checkpoints and its end.
#pragma once
#include <map>
#include <optional>
#include <string>

#include "src/model/checkpoint.h"
#include "src/rl/shared_flags.h"
#include "src/rl/trainee.h"
#include "src/run/comm.h"
#include "src/run/log.h"

namespace r1 {

class TrainingRun {
  public:
    /// Takes --out for this process alone, on the root rank. Throws Error where another has it,
    /// where it holds a run, or a model, and neither --resume nor --overwrite is given, and where
    /// it is the folder of the model itself.
    TrainingRun(const Flags& flags, const RunFlags& run, const std::string& model, int argc,
                char** argv, bool is_root = true);
    /// A folder in which nothing has been written goes again.
    ~TrainingRun();

    /// Adds to what is recorded of the run.
    nlohmann::ordered_json& record() { return record_; }
    bool resuming() const { return resuming_; }
    /// Restores the run that was stopped. Where the present one differs from it in a flag that may
    /// differ, that is printed; anything else throws Error, as does a --schedule cosine that was
    /// shaped for another number of steps.
    Checkpoint restore(const Trainee& trainee) const;
    /// FILE in --out, of a run that begins, or of one that was restored at `step`.
    JsonLines open_lines(const char* file, std::int64_t step) const;
    /// The log. A run that begins removes the files of an earlier one from the folder, and writes
    /// its flags to OUT/run.toml.
    JsonLines open_log(std::int64_t step) const;

    /// Writes a checkpoint. Data order and sampling are functions of seed and step, so that
    /// `values` are all that it needs beside model and optimizer. What was logged until then must
    /// be on the disk.
    void save(const Trainee& trainee, std::int64_t step,
              std::map<std::string, std::string> values) const;
    /// Throws Error where the ranks' weights have come apart.
    void check_ranks(const Trainee& trainee, const Comm& comm, std::int64_t step) const;
    /// What a run that a signal has stopped says. Returns the exit status.
    int stopped(std::int64_t step) const;
    /// Charts of the run, the trained model, and what it took.
    void finish(const ModelFolder& folder, const Trainee& trainee) const;
    /// A run that is done needs its checkpoints no longer, but for --keep.
    void remove_checkpoints() const { r1::remove_checkpoints(run_.out, run_.keep); }
    std::filesystem::path out() const { return run_.out; }

  private:
    const Flags& flags_;
    const RunFlags& run_;
    nlohmann::ordered_json record_;
    bool is_root_, resuming_ = false;
    FileDescriptor lock_{-1};
};

}  // namespace r1
