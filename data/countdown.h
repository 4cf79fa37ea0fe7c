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

/// What a corpus is drawn with. The same seed gives the same everywhere: integers only, no library distributions.
class Draws {
  protected:
    explicit Draws(std::uint64_t seed) : random_(seed) {}
    int below(int n) { return static_cast<int>(random_() % static_cast<std::uint64_t>(n)); }
    bool chance(int percent) { return below(100) < percent; }
    /// The task's numbers, in random order.
    void shuffle(Numbers& numbers);
    /// Right one time in ten, else wrong.
    const Attempt& guess(const std::vector<Attempt>& attempts, int target);
    /// What a search tries next, taken out of `attempts`: any of them, or one time in four one drawn by how close it comes.
    Attempt take_attempt(std::vector<Attempt>& attempts, int target);

  private:
    std::mt19937_64 random_;
};

/// An endless corpus over `tasks`.
class Corpus : Draws {
  public:
    Corpus(std::vector<Task> tasks, std::uint64_t seed) : Draws(seed), tasks_(std::move(tasks)) {}
    Document next();

  private:
    std::string search(const Task& task, int max_attempts, int give_up_percent, std::string& answer);

    std::vector<Task> tasks_;
};

}  // namespace r1::countdown
