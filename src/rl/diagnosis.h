// Whether a run still learns, and why not.
#pragma once
#include <span>
#include <string>

#include "src/rl/response.h"
#include "src/run/metrics.h"

namespace r1 {

/// For graded responses of which each group has equal rewards, so that every advantage is 0. Names
/// the part that is missing, the flag or data that may help, and how many responses show it: they
/// talk on behind their answer, are cut off at `max_new_tokens`, lack the tags, are all wrong, or
/// all right.
std::string why_nothing_is_learnt(std::span<const Response> responses, int max_new_tokens);

/// Looks at each step's metrics, which are the same on every rank.
class Watch {
  public:
    /// Throws Error where going on would only spend time: the gradient is not finite, or the
    /// entropy has been below the least for ten steps. The last checkpoint in `out` stays.
    void check(int step, const Metrics& metrics, double min_entropy, const std::string& out);
    /// After three steps in which no group had any spread, and every twenty from then on, prints
    /// why.
    void say_if_nothing_is_learnt(const Metrics& metrics, std::span<const Response> responses,
                                  int max_new_tokens);

  private:
    int collapsed_steps_ = 0, steps_without_spread_ = 0;  ///< in a row
};

}  // namespace r1
