// What train_grpo shows and writes of its steps and evaluations: the terminal, log.jsonl,
// samples.jsonl.
#pragma once
#include <filesystem>
#include <optional>
#include <span>

#include "src/rl/judge.h"
#include "src/rl/training_run.h"
#include "src/run/log.h"
#include "src/run/metrics.h"

namespace r1 {

class TrainingLog {
  public:
    TrainingLog(const TrainingRun& run, int step)
        : steps_(run.open_log(step)), samples_(run.open_lines("samples.jsonl", step)) {}

    void step(int step, const Metrics& metrics);
    /// A group of responses of a step.
    void samples(int step, const Judge& judge, std::span<const Response> group);
    /// `samples_each` responses to each problem, in order; some go into samples.jsonl, from the
    /// same problems every time.
    void evaluation(int step, const Judge& judge, const Metrics& metrics,
                    std::span<const Response> responses, int samples_each);

    /// Returns when everything is on the disk.
    void sync() {
        samples_.sync();
        steps_.sync();
    }

  private:
    JsonLines steps_, samples_;
};

/// The last evaluation in a run's log that is not after `step`, and the highest reward in those
/// after step 0.
struct PastEvaluations {
    int last = -1;
    double best_reward = -1e300;

    /// Returns whether the reward is the highest.
    bool add(int step, double reward) {
        last = step;
        if (step == 0 || !(reward > best_reward)) return false;
        best_reward = reward;
        return true;
    }
};
PastEvaluations past_evaluations(const std::filesystem::path& folder, int step);

/// Adds what was measured of each response, where it is known: the accuracy of a problem without an
/// answer is not.
void record_measures(const Judge& judge, std::span<const Response> responses, Metrics& metrics);
/// With the mean reward and the number of responses.
void record_evaluation(const Judge& judge, std::span<const Response> responses, Metrics& metrics);

}  // namespace r1
