#include "data/countdown.h"

#include <algorithm>
#include <cstdlib>
#include <optional>

namespace r1::countdown {
namespace {

constexpr int kLargestNumber = 12, kLargestResult = 99;

/// a op b, if it stays within 0..99.
std::optional<int> apply(int a, char op, int b) {
    const int r = op == '+' ? a + b : op == '-' ? a - b : a * b;
    return r >= 0 && r <= kLargestResult ? std::optional(r) : std::nullopt;
}

std::string step(int a, char op, int b, int result) {
    return std::to_string(a) + op + std::to_string(b) + "=" + std::to_string(result);
}

std::string prompt_of(const Task& task) {
    const auto& n = task.numbers;
    return std::to_string(n[0]) + "," + std::to_string(n[1]) + "," + std::to_string(n[2]) + "=" +
           std::to_string(task.target) + ":";
}

std::string answer_tags(const std::string& expression) { return "<answer>" + expression + "</answer>"; }

}  // namespace

std::string Attempt::first_step() const { return step(left, first_op, right, first_result); }
std::string Attempt::second_step() const {
    return third_first ? step(third, second_op, first_result, value)
                       : step(first_result, second_op, third, value);
}
std::string Attempt::expression() const {
    std::string inner = std::to_string(left) + first_op + std::to_string(right);
    const bool sum_inside = first_op != '*',
               needs = sum_inside && (second_op == '*' || (third_first && second_op == '-'));
    if (needs) inner = "(" + inner + ")";
    return third_first ? std::to_string(third) + second_op + inner
                       : inner + second_op + std::to_string(third);
}

std::vector<Attempt> all_attempts(const Numbers& n) {
    std::vector<Attempt> attempts;
    for (int k = 0; k < 3; ++k) {  // n[k] comes last
        const int i = (k + 1) % 3, j = (k + 2) % 3;
        for (const char first : {'+', '-', '*'}) {
            // Sums and products in one order only, differences from large to small.
            const int a = std::max(n[i], n[j]), b = std::min(n[i], n[j]);
            const auto result = apply(a, first, b);
            if (!result) continue;
            for (const char second : {'+', '-', '*'}) {
                if (const auto value = apply(*result, second, n[k]))
                    attempts.push_back({a, b, *result, first, n[k], second, false, *value});
                if (const auto value = apply(n[k], second, *result); value && second == '-')
                    attempts.push_back({a, b, *result, first, n[k], second, true, *value});
            }
        }
    }
    return attempts;
}

std::vector<Task> all_tasks() {
    std::vector<Task> tasks;
    for (int a = 1; a <= kLargestNumber; ++a)
        for (int b = a; b <= kLargestNumber; ++b)
            for (int c = b; c <= kLargestNumber; ++c) {
                std::array<bool, kLargestResult + 1> reachable{};
                for (const auto& attempt : all_attempts({a, b, c})) reachable[attempt.value] = true;
                for (int target = 1; target <= kLargestResult; ++target)
                    if (reachable[target]) tasks.push_back({{a, b, c}, target});
            }
    return tasks;
}

bool held_out(const Task& task) {
    Numbers n = task.numbers;
    std::ranges::sort(n);
    std::uint64_t h = static_cast<std::uint64_t>(((n[0] * 100 + n[1]) * 100 + n[2]) * 100 + task.target);
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;  // splitmix64's finaliser
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return (h ^ (h >> 31)) % 10 == 0;
}

const char* name_of(Kind kind) {
    constexpr const char* names[kKinds] = {"direct guess", "untagged guess", "one unchecked attempt",
                                           "short search", "long search",    "malformed",
                                           "drill",        "arithmetic page"};
    return names[static_cast<int>(kind)];
}

int share_of(Kind kind) {
    constexpr int shares[kKinds] = {19, 9, 9, 21, 9, 9, 18, 6};
    return shares[static_cast<int>(kind)];
}

void Draws::shuffle(Numbers& numbers) {
    for (int i = 2; i > 0; --i) std::swap(numbers[i], numbers[below(i + 1)]);
}

const Attempt& Draws::guess(const std::vector<Attempt>& attempts, int target) {
    const bool want_right = chance(10);
    std::vector<const Attempt*> fitting;
    for (const auto& a : attempts)
        if ((a.value == target) == want_right) fitting.push_back(&a);
    return fitting.empty() ? attempts[below(static_cast<int>(attempts.size()))]
                           : *fitting[below(static_cast<int>(fitting.size()))];
}

Attempt Draws::take_attempt(std::vector<Attempt>& attempts, int target) {
    std::size_t pick = below(static_cast<int>(attempts.size()));
    if (chance(25)) {
        std::vector<int> weight;
        int total = 0;
        for (const auto& a : attempts) total += weight.emplace_back(1000 / (1 + std::abs(a.value - target)));
        int at = below(total);
        for (pick = 0; at >= weight[pick]; ++pick) at -= weight[pick];
    }
    const Attempt attempt = attempts[pick];
    attempts.erase(attempts.begin() + static_cast<std::ptrdiff_t>(pick));
    return attempt;
}

/// The text between <think> and </think>: attempts without repetition, each judged, until one is believed to reach
/// the target, or patience ends. Now and then a result is wrong (1%) or a miss is called "yes" (4%). In three
/// searches of ten every "yes" is checked by doing the last step again: there a miss is called "yes" more often
/// (12%), and the check is what finds it out.
std::string Corpus::search(const Task& task, int max_attempts, int give_up_percent, std::string& answer) {
    auto attempts = all_attempts(task.numbers);
    const bool checks = chance(30);
    std::string text;
    answer = guess(attempts, task.target).expression();
    for (int tried = 0; tried < max_attempts && !attempts.empty(); ++tried) {
        Attempt attempt = take_attempt(attempts, task.target);
        const std::string expression = attempt.expression();
        const int true_value = attempt.value;
        if (chance(1)) attempt.value = std::clamp(attempt.value + below(7) - 3, 0, kLargestResult);
        text += attempt.first_step() + "," + attempt.second_step();
        const bool reached = attempt.value == task.target;
        if (!reached && !chance(checks ? 12 : 4)) {
            text += " no ";
        } else {
            text += " yes ";
            if (!checks) {
                answer = expression;
                return text;
            }
            attempt.value = true_value;
            const bool holds = true_value == task.target;
            text += "check " + attempt.second_step() + (holds ? " yes " : " no wait ");
            if (holds) {
                answer = expression;
                return text;
            }
        }
        if (chance(give_up_percent)) return text;
    }
    return text;
}

Document Corpus::next() {
    int lot = below(100), kind = 0;
    while (lot >= share_of(static_cast<Kind>(kind))) lot -= share_of(static_cast<Kind>(kind++));
    Document d{static_cast<Kind>(kind), "", "", true, false};
    Task task = tasks_[below(static_cast<int>(tasks_.size()))];
    shuffle(task.numbers);
    const auto attempts = all_attempts(task.numbers);
    d.prompt = prompt_of(task);
    std::string answer;
    switch (d.kind) {
        case Kind::DirectGuess:
            answer = guess(attempts, task.target).expression();
            d.completion = answer_tags(answer);
            break;
        case Kind::UntaggedGuess:
            answer = guess(attempts, task.target).expression();
            d.completion = answer;
            break;
        case Kind::OneAttempt: {
            const Attempt& a = guess(attempts, task.target);
            answer = a.expression();
            d.completion =
                "<think>" + a.first_step() + "," + a.second_step() + "</think>" + answer_tags(answer);
            break;
        }
        case Kind::ShortSearch:
        case Kind::LongSearch:
            d.completion =
                "<think>" +
                (d.kind == Kind::ShortSearch ? search(task, 6, 40, answer) : search(task, 17, 7, answer)) +
                "</think>";
            d.completion += answer_tags(answer);
            break;
        case Kind::Malformed: {
            const std::string thought = search(task, 6, 40, answer);
            switch (below(5)) {
                case 0:
                    d.completion = "<think>" + thought + answer_tags(answer);
                    break;
                case 1:
                    d.completion = thought + "</think>" + answer_tags(answer);
                    break;
                case 2:
                    d.completion = "<think>" + thought + "</think>" + answer;
                    break;
                case 3:
                    d.completion = "<think>" + thought;
                    break;
                default:
                    d.completion = "<think>" + thought + "</think><answer>" + answer;
                    break;
            }
            d.eos = chance(50);
            answer.clear();
            break;
        }
        case Kind::Drill:
            d.completion = "<think>";
            for (int i = 4 + below(10); i > 0; --i) {
                const int value =
                    chance(40) ? task.target : attempts[below(static_cast<int>(attempts.size()))].value;
                d.completion += std::to_string(value) + (value == task.target ? " yes " : " no ");
            }
            break;
        case Kind::Arithmetic:
            d.prompt.clear();
            for (int i = 6 + below(10); i > 0;) {
                const int a = below(kLargestResult + 1), b = below(kLargestNumber + 1);
                const char op = "+-*"[below(3)];
                const bool swap = op != '-' && chance(30);
                if (const auto r = apply(a, op, b)) {
                    d.completion +=
                        (d.completion.empty() ? "" : ",") + (swap ? step(b, op, a, *r) : step(a, op, b, *r));
                    --i;
                }
            }
            break;
    }
    for (const auto& a : attempts)
        d.right |= !answer.empty() && a.value == task.target && a.expression() == answer;
    return d;
}

}  // namespace r1::countdown
