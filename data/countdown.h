// The tiny world: countdown with three numbers from 1 to 12, +, - and *, every result within 0..99; and the
// synthetic corpus from which the tiny base learns its pieces of reasoning: attempts, checks and corrections
// among much that is short or wrong.
#pragma once
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace r1::countdown {

using Numbers = std::array<int, 3>;

struct Task {
    Numbers numbers;
    int target;  ///< 1..99
};

/// One way to combine all three numbers in two steps, e.g. 12*6=72 then 72-2=70.
struct Attempt {
    int left, right, first_result;  ///< the first step: left first_op right
    char first_op;
    int third;  ///< the remaining number
    char second_op;
    bool third_first;  ///< the second step is third second_op first_result, else first_result second_op third
    int value;

    std::string first_step() const;   ///< "12*6=72"
    std::string second_step() const;  ///< "72-2=70"
    std::string expression() const;   ///< "12*6-2", with parentheses where they are needed
};

/// Every attempt whose results stay within 0..99.
std::vector<Attempt> all_attempts(const Numbers& numbers);

/// Every solvable task, one for each multiset of numbers and each target, numbers sorted; in a fixed order.
std::vector<Task> all_tasks();
/// About one in ten, by a hash of sorted numbers and target: never shown in pretraining or reinforcement
/// learning.
bool held_out(const Task& task);

enum class Kind {
    DirectGuess,
    UntaggedGuess,
    OneAttempt,
    ShortSearch,
    LongSearch,
    Malformed,
    Drill,
    Arithmetic
};
constexpr int kKinds = 8;
const char* name_of(Kind kind);
/// Documents of each kind, of 100.
int share_of(Kind kind);

struct Document {
    Kind kind;
    std::string prompt, completion;
    bool eos = true;     ///< false: cut off in the middle
    bool right = false;  ///< the completion's answer solves the task
};

/// An endless corpus over `tasks`. The same seed gives the same documents everywhere: integers only, no
/// library distributions.
class Corpus {
  public:
    Corpus(std::vector<Task> tasks, std::uint64_t seed) : tasks_(std::move(tasks)), random_(seed) {}
    Document next();

  private:
    int below(int n) { return static_cast<int>(random_() % static_cast<std::uint64_t>(n)); }
    bool chance(int percent) { return below(100) < percent; }
    Task draw_task();
    const Attempt& guess(const std::vector<Attempt>& attempts, int target);
    std::string search(const Task& task, int max_attempts, int give_up_percent, std::string& answer);

    std::vector<Task> tasks_;
    std::mt19937_64 random_;
};

}  // namespace r1::countdown
