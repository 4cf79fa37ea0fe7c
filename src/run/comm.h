// Collectives among the ranks of a data-parallel run: one process each, launched by mpirun. Only
// rank 0, the root, is heard on stdout. A process that was not launched so is rank 0 of 1, and
// every call does nothing.
//
// A rank that hangs, or whose machine is gone, ends them all: each has a thread that hears ten
// times a second from the same thread of the rank before it, and after 20 seconds of silence says
// so and aborts. What the main thread computes or waits for does not matter to it, so it does not
// notice a main thread that hangs alone. The environment variable R1_RANK_TIMEOUT sets other
// seconds, or `inf`, with which a rank can be halted in a debugger. A run that is suspended as a
// whole goes on.
#pragma once
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace r1 {

class Comm {
  public:
    Comm();
    Comm(const Comm&) = delete;

    /// Whether this build has MPI.
    static bool available();
    int rank() const { return rank_; }
    int size() const { return size_; }
    bool is_root() const { return rank_ == 0; }

    /// Whether it is so on any rank.
    bool any(bool here) const {
        double value = here;
        all_reduce_max({&value, 1});
        return value != 0;
    }
    /// Whether it is the same number on every rank.
    bool same(double here) const {
        if (here != here) here = std::numeric_limits<double>::infinity();  // NaN
        double most_and_least[] = {here, -here};
        all_reduce_max(most_and_least);
        return most_and_least[0] == -most_and_least[1];
    }
    /// What each rank has, in the order of the ranks, on all of them.
    std::vector<std::string> all_gather(const std::string& own) const;
    /// The root's bytes, on every rank.
    void broadcast(std::span<char> bytes) const;
    /// values = sum (or maximum) over ranks, in place, with the same bits on every rank.
    void all_reduce_sum(std::span<double> values) const;
    void all_reduce_max(std::span<double> values) const;
    void all_reduce_sum(std::span<float> values) const;

  private:
    int rank_ = 0, size_ = 1;
};

/// What a program does last. Ranks whose work is done, or was stopped (130), take leave of each
/// other; one that has failed ends all of them, which would wait for it for ever. Returns the
/// status.
int end_ranks(int status);

}  // namespace r1
