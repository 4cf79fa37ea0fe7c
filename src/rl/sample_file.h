// What rejection sampling writes (`infer --sample`). OUT appears when it is complete. Until then
// OUT.partial holds what a later run goes on from, and OUT.run.json says how the samples were made:
// only such a run may go on with them.
#pragma once
#include <filesystem>
#include <optional>
#include <set>
#include <string>

#include "src/run/comm.h"
#include "src/run/log.h"

namespace r1 {

class SampleFile {
  public:
    /// `resume`: goes on with OUT.partial, if there is one; throws Error where another command has
    /// begun it, or where it is no file of samples. The ranks call it together; the root writes.
    SampleFile(const std::string& out, const nlohmann::ordered_json& record,
               const std::set<std::string>& may_differ, bool resume, const Comm& comm);

    /// Problems that are done, and the samples of them that were kept.
    std::size_t problems() const { return problems_; }
    std::size_t samples() const { return samples_; }
    /// A sample is an object with its "problem", which comes in order.
    void write(const nlohmann::ordered_json& sample) {
        if (lines_) lines_->write(sample);
        ++samples_;
    }
    /// All problems are done.
    void finish();

  private:
    std::string out_;
    std::size_t problems_ = 0, samples_ = 0;
    std::optional<JsonLines> lines_;
};

}  // namespace r1
