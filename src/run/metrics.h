// What a step measures, by name. Ranks add their parts up, and the log takes all of it.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/run/comm.h"
#include "src/run/log.h"

namespace r1 {

class Metrics {
  public:
    /// Adds to a mean: `count` values whose sum is `value`.
    void mean(const std::string& name, double value, double count = 1);
    /// Makes sure that these means are there, so that every rank has them in the same order.
    void expect_means(std::initializer_list<const char*> names) {
        for (const char* name : names) mean(name, 0, 0);
    }
    void sum(const std::string& name, double value);
    void max(const std::string& name, double value);
    /// A number of this process alone, such as a time. "seconds/rollout" is `rollout` in an object
    /// `seconds` of the log.
    void local(const std::string& name, double value);

    /// Adds the seconds since the last lap, or since this began.
    void lap(const std::string& name);
    /// Seconds since this began.
    double age() const { return clock_.seconds(); }

    /// The mean, sum, maximum or number so far; NaN for a mean of nothing and for an unknown name.
    double operator[](const std::string& name) const;
    /// Over all ranks, which must have recorded the same names in the same order.
    void all_reduce(const Comm& comm);
    /// Every name and its value, in the order in which they were first recorded.
    nlohmann::ordered_json json() const;

  private:
    enum class Kind { Mean, Sum, Max, Local };
    struct Entry {
        std::string name;
        Kind kind;
        double value, count;
        double result() const { return kind == Kind::Mean ? value / count : value; }
    };
    Entry& entry(const std::string& name, Kind kind, double initial);
    std::vector<Entry> entries_;
    Stopwatch clock_;
    double last_lap_ = 0;
};

}  // namespace r1
