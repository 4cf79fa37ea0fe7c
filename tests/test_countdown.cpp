// The tiny world: what the generator claims must hold.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "data/countdown.h"
#include "src/rl/rewards.h"

using namespace r1;
using namespace r1::countdown;

namespace {
std::vector<Task> split(bool want_held_out) {
    std::vector<Task> tasks;
    for (const auto& t : all_tasks())
        if (held_out(t) == want_held_out) tasks.push_back(t);
    return tasks;
}
}  // namespace

TEST_CASE("every attempt's steps and expression evaluate to its value, by the reward's own parser") {
    for (const auto& task : split(true)) {
        bool solvable = false;
        for (const auto& a : all_attempts(task.numbers)) {
            const Countdown gold{{task.numbers.begin(), task.numbers.end()}, a.value};
            const Verdict v = check_answer(a.expression(), gold);
            INFO(a.expression(), " should be ", a.value, ": ", v.reason);
            CHECK(v.value == 1);
            CHECK((a.value >= 0 && a.value <= 99 && a.first_result >= 0 && a.first_result <= 99));
            solvable |= a.value == task.target;
        }
        CHECK(solvable);
    }
}

TEST_CASE("at least 400 problems are held out, and none of them ever prompts a document") {
    const auto kept = split(true);
    CHECK(kept.size() >= 400);
    std::set<std::array<int, 4>> forbidden;
    for (const auto& t : kept) forbidden.insert({t.numbers[0], t.numbers[1], t.numbers[2], t.target});
    Corpus corpus(split(false), 3);
    int prompts = 0;
    for (int i = 0; i < 50000; ++i) {
        const auto d = corpus.next();
        if (d.prompt.empty()) continue;
        int a, b, c, t;
        REQUIRE(std::sscanf(d.prompt.c_str(), "%d,%d,%d=%d:", &a, &b, &c, &t) == 4);
        std::array<int, 3> n = {a, b, c};
        std::ranges::sort(n);
        REQUIRE(!forbidden.contains({n[0], n[1], n[2], t}));
        ++prompts;
    }
    CHECK(prompts > 40000);
}

TEST_CASE(
    "the corpus: shares as stated, guesses right one time in ten, `right` as the reward sees it; same seed, "
    "same documents") {
    const auto tasks = split(false);
    Corpus corpus(tasks, 5), again(tasks, 5), other(tasks, 6);
    std::map<Kind, int> count, right;
    bool differs = false;
    const int n = 30000;
    for (int i = 0; i < n; ++i) {
        const auto d = corpus.next(), same = again.next();
        REQUIRE(d.prompt == same.prompt);
        REQUIRE(d.completion == same.completion);
        differs |= other.next().completion != d.completion;
        ++count[d.kind], right[d.kind] += d.right;
        if (d.kind == Kind::DirectGuess || d.kind == Kind::OneAttempt || d.kind == Kind::ShortSearch ||
            d.kind == Kind::LongSearch) {
            int a, b, c, t;
            REQUIRE(std::sscanf(d.prompt.c_str(), "%d,%d,%d=%d:", &a, &b, &c, &t) == 4);
            const Gold gold = Countdown{{a, b, c}, t};
            CHECK(accuracy_reward(d.completion, gold).value == d.right);
            CHECK(format_reward(d.completion).value == (d.kind != Kind::DirectGuess));
        }
    }
    CHECK(differs);
    for (int k = 0; k < kKinds; ++k) {
        const double share = share_of(static_cast<Kind>(k)) / 100.0;
        CHECK(std::abs(count[static_cast<Kind>(k)] - n * share) < 5 * std::sqrt(n * share));
    }
    for (Kind k : {Kind::DirectGuess, Kind::UntaggedGuess, Kind::OneAttempt})
        CHECK(std::abs(right[k] - 0.1 * count[k]) < 5 * std::sqrt(0.1 * count[k]));
}
