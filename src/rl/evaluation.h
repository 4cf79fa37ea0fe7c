// What a model's samples say about it: pass@1, cons@k and pass@k, each with a 95% interval.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/rl/dataset.h"
#include "src/rl/response.h"

namespace r1 {

struct Interval {
    double mean = 0, low = 0, high = 0;
};
/// Of the mean of values between `least` and `most` that were drawn independently: mean +- 1.96
/// standard errors; where all are 0 or 1 and nothing else is possible, Wilson's interval (1927),
/// which does not collapse at the ends.
Interval confidence_interval(std::span<const double> values, double least = 0, double most = 1);

/// The answer that most of them agree on, as an index into `answers`; of equal votes the one given
/// first. Answers are compared in the way in which they are compared with `gold`: as mathematics,
/// as exact text, as choices; expressions of a countdown as text without blanks. An absent answer
/// has no vote; if there are none, the result is answers.size().
std::size_t majority(const std::vector<std::optional<std::string>>& answers, const Gold& gold);

/// Each problem's score, where its answer is known, of k graded responses to it.
/// pass@1: the mean accuracy over them (DeepSeek-R1, arXiv 2501.12948, section 3); cons@k: is the
/// majority's answer right; pass@k: is any.
struct Evaluation {
    std::vector<double> pass1, cons, pass_k;
    void add(std::span<const Response> responses_to_one);
};

}  // namespace r1
