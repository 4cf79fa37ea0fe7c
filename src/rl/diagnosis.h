// Why a run cannot learn: what all responses of a step lack, in one sentence.
#pragma once
#include <string>
#include <vector>

#include "src/rl/rollout.h"

namespace r1 {

/// For graded responses of which each group has equal rewards, so that every advantage is 0. Names the part that is
/// missing, the flag or data that may help, and how many responses show it: they talk on behind their answer, are cut off
/// at `max_new_tokens`, lack the tags, are all wrong, or all right.
std::string why_nothing_is_learnt(const std::vector<Problem>& problems,
                                  const std::vector<Response>& responses, int max_new_tokens);

}  // namespace r1
