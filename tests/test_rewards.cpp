// Rewards that cannot be gamed: every attack that worked on other implementations scores 0 here.
#include <doctest/doctest.h>

#include <functional>
#include <random>
#include <string>

#include "src/rl/rewards.h"

using namespace r1;

namespace {
double format(const std::string& s) { return format_reward(s).value; }
double accuracy(const std::string& s, const Gold& g) { return accuracy_reward(s, g).value; }
double answer(const std::string& s, const Gold& g) { return check_answer(s, g).value; }
const Gold kSeventy = Countdown{{2, 12, 6}, 70};
}  // namespace

TEST_CASE("format: each tag exactly once, in order, nothing outside, neither part blank") {
    CHECK(format("<think>a</think><answer>b</answer>") == 1);
    CHECK(format(" \n<think> a </think>\n\n<answer>\nb\n</answer>\n") == 1);
    for (const char* bad : {"",
                            "b",
                            "<answer>b</answer>",
                            "<think>a</think>b",
                            "<think>a<answer>b</answer>",
                            "a</think><answer>b</answer>",
                            "<think>a</think><answer>b",
                            "<think>a</think>x<answer>b</answer>",
                            "x<think>a</think><answer>b</answer>",
                            "<think>a</think><answer>b</answer>x",
                            "<answer>b</answer><think>a</think>",
                            "<think></think><answer>b</answer>",
                            "<think>a</think><answer></answer>",
                            "<think> \n</think><answer>b</answer>",
                            "<think>a</think><answer> </answer>",
                            "<think><think>a</think><answer>b</answer>",
                            "<think>a</think></think><answer>b</answer>",
                            "<think>a</think><answer>b</answer><answer>c</answer>",
                            "<think>a<answer>b</think></answer>",
                            "<think>a</think><answer>b<think></answer>",
                            "<THINK>a</THINK><answer>b</answer>"})
        CHECK_MESSAGE(format(bad) == 0, bad);
}

TEST_CASE("accuracy: only a finished answer at the end counts") {
    CHECK(accuracy("<think>x</think><answer>12*6-2</answer>", kSeventy) == 1);
    CHECK(accuracy("<think>x</think><answer>12*6-2</answer>\n", kSeventy) == 1);  // a newline is not text
    CHECK(accuracy("<answer> 12 * 6 - 2 </answer>", kSeventy) == 1);  // right, though without a thought
    CHECK(accuracy("<think>x</think><answer>12*6-2</answer> done", kSeventy) == 0);  // trailing text
    CHECK(accuracy("<think>so <answer>12*6-2</answer>", kSeventy) == 0);  // inside an unfinished thought
    CHECK(accuracy("<think>so <answer>12*6-2</answer></think>", kSeventy) == 0);  // inside the thought
    CHECK(accuracy("<answer>12*6-2</answer></think>", kSeventy) == 0);
    CHECK(accuracy("<answer>1</answer><answer>12*6-2</answer>", kSeventy) == 0);  // several tries
    CHECK(accuracy("12*6-2", kSeventy) == 0);
    CHECK(accuracy("<answer>12*6-2", kSeventy) == 0);
    CHECK(accuracy("<answer></answer>", kSeventy) == 0);
}

TEST_CASE("countdown: exact arithmetic over + - * / and parentheses, each number exactly once") {
    CHECK(answer("12*6-2", kSeventy) == 1);
    CHECK(answer("(12*6)-2", kSeventy) == 1);
    CHECK(answer("12*6-2=70", kSeventy) == 1);
    CHECK(answer("12*6-2=71", kSeventy) == 0);
    CHECK(answer("70=12*6-2", kSeventy) == 0);
    CHECK(answer("12*6", kSeventy) == 0);        // 2 is not used
    CHECK(answer("12*6-2*1", kSeventy) == 0);    // 1 is not given
    CHECK(answer("12*6-2+2-2", kSeventy) == 0);  // 2 used three times
    CHECK(answer("12*6-2/1", kSeventy) == 0);
    CHECK(answer("70", kSeventy) == 0);
    CHECK(answer("6/(2-12)", Countdown{{2, 12, 6}, 0}) == 0);      // -3/5 is not 0
    CHECK(answer("8/(3-8/3)", Countdown{{8, 8, 3, 3}, 24}) == 1);  // needs exact fractions
    CHECK(answer("7/3*3", Countdown{{7, 3, 3}, 7}) == 1);
    CHECK(answer("2-3-4", Countdown{{2, 3, 4}, -5}) == 1);  // left to right
    CHECK(answer("12/6/2", Countdown{{2, 12, 6}, 1}) == 1);
    CHECK(answer("5+5", Countdown{{5, 5}, 10}) == 1);
    CHECK(answer("5+5", Countdown{{5, 5, 5}, 10}) == 0);
}

TEST_CASE("countdown: signs as LaTeX and Unicode write them, and negative numbers") {
    for (const char* right : {"12 \\times 6 - 2", "12×6−2", "$12*6-2$", "12 \\cdot 6 - 2", "\\boxed{12*6-2}",
                              "$12 \\times 6 - 2 = 70$", "\\left(12 \\times 6\\right) - 2"})
        CHECK_MESSAGE(answer(right, kSeventy) == 1, right);
    CHECK(answer("12 ÷ 6", Countdown{{12, 6}, 2}) == 1);
    CHECK(answer("\\frac{12}{6}", Countdown{{12, 6}, 2}) == 1);
    for (const char* right : {"5 + -3", "-3 + 5", "5 + (-3)", "(-3)+5 = 2"})
        CHECK_MESSAGE(answer(right, Countdown{{5, -3}, 2}) == 1, right);
    CHECK(answer("5 - -3", Countdown{{5, -3}, 8}) == 1);
    CHECK(answer("-3*5", Countdown{{5, -3}, -15}) == 1);
    CHECK(answer("5 - 3", Countdown{{5, -3}, 2}) == 0);
    CHECK(answer("5 + -3", Countdown{{5, 3}, 2}) == 0);
    CHECK(answer("12%6", Countdown{{12, 6}, 0}) == 0);
    CHECK(answer("1 1/2 + 3", Countdown{{1, 1, 2, 3}, 4}) == 0);
}

TEST_CASE("countdown: attacks that scored elsewhere") {
    CHECK(answer("2**3", Countdown{{2, 3}, 8}) == 0);  // a power is not an operation
    CHECK(answer("2^3", Countdown{{2, 3}, 8}) == 0);
    CHECK(answer("7//2", Countdown{{7, 2}, 3}) == 0);  // nor is floor division
    CHECK(answer("7%2", Countdown{{7, 2}, 1}) == 0);
    CHECK(answer("1.5*4", Countdown{{1, 5, 4}, 6}) == 0);  // digits of a decimal are not the numbers
    CHECK(answer("1e2", Countdown{{1, 2}, 100}) == 0);
    CHECK(answer("9**9**9**9", Countdown{{9, 9, 9, 9}, 1}) == 0);  // at once
    CHECK(answer("12*6-2 # comment", kSeventy) == 0);
    CHECK(answer("12*6-2; 1", kSeventy) == 0);
    CHECK(answer("__import__('os')", kSeventy) == 0);
    CHECK(answer("-2+12*6", kSeventy) == 0);  // no signs
    CHECK(answer("12(6)-2", kSeventy) == 0);
    CHECK(answer("126-2", kSeventy) == 0);  // digits may not be joined
    CHECK(answer("12*6-2)", kSeventy) == 0);
    CHECK(answer("(12*6-2", kSeventy) == 0);
    CHECK(answer("2/(6-6)", Countdown{{2, 6, 6}, 0}) == 0);  // division by zero
    CHECK(answer("", kSeventy) == 0);
    CHECK(answer("12*6-2=", kSeventy) == 0);
    CHECK(answer("12*6-2=70=70", kSeventy) == 0);
    CHECK(answer(std::string(5000, '('), kSeventy) == 0);
    CHECK(answer(std::string(200, '('), kSeventy) == 0);
    CHECK(answer("999999999999*999999999999*999999999999",
                 Countdown{{999999999999, 999999999999, 999999999999}, 1}) == 0);
    CHECK(answer("99999999999999999999", kSeventy) == 0);
}

TEST_CASE("random expressions: the verdict agrees with their value and their numbers in exact fractions") {
    std::mt19937 random(1);
    auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    for (int i = 0; i < 3000; ++i) {
        std::vector<std::int64_t> numbers;
        // Builds text and exact value (as a fraction of doubles with small integers: exact) together.
        std::function<std::pair<std::string, std::pair<double, double>>(int)> build =
            [&](int depth) -> std::pair<std::string, std::pair<double, double>> {
            if (depth == 0 || below(3) == 0) {
                numbers.push_back(1 + below(9));
                return {std::to_string(numbers.back()), {static_cast<double>(numbers.back()), 1.0}};
            }
            const auto [left, a] = build(depth - 1);
            const auto [right, b] = build(depth - 1);
            switch (below(4)) {
                case 0:
                    return {"(" + left + "+" + right + ")",
                            {a.first * b.second + b.first * a.second, a.second * b.second}};
                case 1:
                    return {"(" + left + " - " + right + ")",
                            {a.first * b.second - b.first * a.second, a.second * b.second}};
                case 2:
                    return {"(" + left + "*" + right + ")", {a.first * b.first, a.second * b.second}};
                default:
                    return {"(" + left + "/" + right + ")", {a.first * b.second, a.second * b.first}};
            }
        };
        const auto [text, value] = build(2);
        const bool defined = value.second != 0, whole = defined && std::fmod(value.first, value.second) == 0;
        const auto target = whole ? static_cast<std::int64_t>(value.first / value.second) : 7;
        CHECK_MESSAGE(answer(text, Countdown{numbers, target}) == (whole ? 1 : 0), text);
        CHECK(answer(text, Countdown{numbers, target + 1}) == 0);
        auto fewer = numbers;
        fewer.pop_back();
        CHECK(answer(text, Countdown{fewer, target}) == 0);
    }
}

TEST_CASE("mathematics: an answer as a person writes it, one answer, and nothing but the answer") {
    const Gold gold = MathGold{*MathAnswer::parse("72")};
    for (const char* right : {"72", "72.0", " 72. ", "$72", "\\boxed{72}", "72 dollars", "144/2"})
        CHECK_MESSAGE(answer(right, gold) == 1, right);
    for (const char* wrong : {"72 or 73", "73", "71, 72", "72 72", "-72", "", "x", "seven", "72 - 73",
                              "9^9^9^9", "9**9**9**9", "100000!", "72/0"})
        CHECK_MESSAGE(answer(wrong, gold) == 0, wrong);
}

TEST_CASE("an answer in \\boxed{}: the last one, behind a finished thought") {
    const Gold gold = MathGold{*MathAnswer::parse("1/2")};
    auto accuracy = [&](const char* s) { return accuracy_reward(s, gold, AnswerIn::Boxed).value; };
    auto format = [&](const char* s) { return format_reward(s, AnswerIn::Boxed).value; };
    for (const char* right : {"so \\boxed{0.5}.", "<think>\\boxed{7}</think> \\boxed{\\frac{1}{2}}",
                              "<think> x\n</think>\n\n\\boxed{3}, no, \\boxed{\\frac12}", "\\boxed{\\frac12}, \\boxed{0.5}"}) {
        CHECK_MESSAGE(accuracy(right) == 1, right);
        CHECK_MESSAGE(format(right) == 1, right);
    }
    for (const char* wrong :
         {"0.5", "<think>\\boxed{0.5}", "<think>\\boxed{0.5}</think> 0.5", "\\boxed{}", "\\boxed{", "\\boxed{0.5}. Wait, \\boxed{0",
          "</think> \\boxed{0.5}", "<think></think><think></think>\\boxed{0.5}"}) {
        CHECK_MESSAGE(accuracy(wrong) == 0, wrong);
        CHECK_MESSAGE(format(wrong) == 0, wrong);
    }
}

TEST_CASE("text: this very text, in this order and case") {
    const Gold gold = TextGold{" 3, 1, b "};
    for (const char* right : {"3, 1, b", " 3, 1, b\n"}) CHECK_MESSAGE(answer(right, gold) == 1, right);
    for (const char* wrong : {"", "1, 3, b", "3,1,b", "3, 1, B", "3,  1, b", "(3, 1, b)", "3, 1, b."})
        CHECK_MESSAGE(answer(wrong, gold) == 0, wrong);
    CHECK(accuracy("<think>a</think><answer>3, 1, b</answer>", gold) == 1);
}

TEST_CASE("choices: by label, or by the text that only one of them has") {
    const Gold second = ChoiceGold{{"red", "Green", "b. blue"}, 1};
    for (const char* right : {"B", "b", "(B)", " B. ", "b)", "Green", " green\n", "B) Green", "B: green", "(B) Green",
                              "\\boxed{B}", "\\text{B}", "**B**", "$\\boxed{\\text{B}}$", "\\textbf{(B)}", "**B. Green**"})
        CHECK_MESSAGE(answer(right, second) == 1, right);
    for (const char* wrong : {"", "A", "B or C", "AB", "BB", "D", "red", "not green", "green.", "B) Red", "B: b. blue"})
        CHECK_MESSAGE(answer(wrong, second) == 0, wrong);
    const Gold crossed = ChoiceGold{{"B", "A"}, 0};  // a label counts before a text
    CHECK(answer("A", crossed) == 1);
    CHECK(answer("B", crossed) == 0);
    const Gold cases =
        ChoiceGold{{"xY", "xy", "XX", "XX"}, 1};  // here case matters, and twins have only their labels
    CHECK(answer("xy", cases) == 1);
    CHECK(answer("xY", cases) == 0);
    CHECK(answer("XY", cases) == 0);
    CHECK(answer("XX", ChoiceGold{{"XX", "xx", "XX"}, 0}) == 0);
    CHECK(answer("Positive", ChoiceGold{{"negative", "positive"}, 1}) == 1);
    CHECK(answer("2", ChoiceGold{{"1", "2", "3"}, 1}) == 1);
}

TEST_CASE("no answer is known: none is right or wrong, and the reason says so") {
    const Verdict verdict = accuracy_reward("<think>a</think><answer>1</answer>", NoGold{});
    CHECK(std::isnan(verdict.value));
    CHECK(verdict.reason == "no answer is known");
    CHECK(accuracy_reward("", NoGold{}).reason == "no answer is known");
}

TEST_CASE("100,000 mutated responses neither crash nor hang, and none that differs in meaning scores") {
    std::mt19937 random(7);
    const std::string base = "<think>12*6=72,72-2=70 yes </think><answer>12*6-2</answer>",
                      alphabet = "0123456789+-*/()=<>tankswer. ,\n\xff{}$%";
    const Gold seventy = MathGold{*MathAnswer::parse("70")};
    int right = 0;
    for (int i = 0; i < 100000; ++i) {
        std::string s = base;
        for (int edits = 1 + static_cast<int>(random() % 6); edits > 0; --edits) {
            const std::size_t at = random() % (s.size() + 1);
            switch (random() % 4) {
                case 0:
                    s.insert(at, 1, alphabet[random() % alphabet.size()]);
                    break;
                case 1:
                    s.erase(at, random() % 5);
                    break;
                case 2:
                    s.insert(at, s.substr(random() % (s.size() + 1), random() % 40));
                    break;
                default:
                    if (at < s.size()) s[at] = alphabet[random() % alphabet.size()];
            }
        }
        const auto v = accuracy_reward(s, kSeventy);
        if (v.value == 1) {
            const auto a = extract_answer(s);
            REQUIRE(a.has_value());
            CHECK(a->find("12") != a->npos);
            ++right;
        }
        format_reward(s);
        check_answer(s, seventy);
        check_answer(s, ChoiceGold{{"70", "12"}, 1});
    }
    CHECK(right > 100);  // most edits fall into the thought, which nobody judges
    CHECK(right < 60000);
}
