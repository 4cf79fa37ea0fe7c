// Rewards from a program of the user's.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "src/rl/response.h"

namespace r1 {

/// A program that grades responses: it reads a line of JSON for each, {"problem": {the line of the
/// data set}, "prompt": ..., "response": ...}, and answers each with a line, a number or {"reward":
/// number}. It is started once, through /bin/sh, and lives as long as this object.
class RewardProgram {
  public:
    RewardProgram(std::string command, double seconds);
    ~RewardProgram();
    RewardProgram(const RewardProgram&) = delete;
    /// One number for each response. Throws Error if the program ends, answers something else, or
    /// needs longer than `seconds` for all of them.
    std::vector<double> grade(std::span<const Response> responses);

  private:
    [[noreturn]] void fail_ended(std::size_t answers, std::size_t wanted) const;

    std::string command_;
    double seconds_;
    int process_ = -1, to_ = -1, from_ = -1;
};

}  // namespace r1
