// What is measured and rewarded beside accuracy and format: language, repetition, the weighted sum,
// programs of the user's, and what samples say about a model.
#include <chrono>
#include <thread>
#include <chrono>

#include "src/rl/evaluation.h"
#include "src/rl/judge.h"
#include "src/rl/measures.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;

namespace {

Problem countdown() {
    return {"2,12,6=70:", Countdown{{2, 12, 6}, 70}, AnswerIn::Tags,
            R"({"nums": [2, 12, 6], "target": 70})"};
}
const Problem kProblem = countdown(), kOther = countdown();
Response response(const std::string& text, int tokens = 10) {
    Response r;
    r.tokens.resize(static_cast<std::size_t>(tokens));
    r.stopped = true;
    r.problem = &kProblem;
    r.text = text;
    return r;
}

}  // namespace

TEST_CASE("language consistency: the share of the thought's words in the script asked for") {
    CHECK(language_consistency("<think>one two</think><answer>три</answer>", "latin") == 1);
    CHECK(language_consistency("<think>one два three четыре</think>", "latin") == 0.5);
    CHECK(language_consistency("<think>one два three четыре</think>", "cyrillic") == 0.5);
    CHECK(language_consistency("one 二三 four", "latin") == 0.5);   // each Han character is a word
    CHECK(language_consistency("wоrd", "latin") == 0);              // with a Cyrillic о in it
    CHECK(language_consistency("二 \\frac{1}{2} 三", "han") == 1);  // LaTeX is no language
    CHECK(language_consistency("1+1=2, 3*4=12", "latin") == 1);
    CHECK(language_consistency("", "han") == 1);
    CHECK(language_consistency("\xff\xfe ok \xe2\x82", "latin") == 1);
    CHECK_THROWS_AS(check_script("klingon"), Error);
}

TEST_CASE("repetition and words of reflection") {
    CHECK(repetition("a b c d e f") == 0);
    CHECK(repetition("a b c") == 0);
    CHECK(repetition("x x x x x x x") == doctest::Approx(0.75));  // one of four runs is new
    CHECK(repetition("so it is \n so it is \n so it is") == doctest::Approx(0.5));
    CHECK(reflective_words("Wait, that is wrong. Let me check: waiting, unchecked") == 3);
}

TEST_CASE("measures and rewards: names, weights, and what is wrong with a wrong one") {
    std::vector<Response> responses{response("<think>a</think><answer>12*6-2</answer>", 20),
                                    response("<answer>12*6-2</answer>", 10),
                                    response("да да да да да да wait", 16)};
    responses[2].stopped = false;
    Judge judge({.parts = "accuracy=2,format=0.5,language=1,repetition=-3,overlong=1,length=-0.1",
                 .script = "latin", .max_new_tokens = 20, .overlong_cache = 8});
    judge(responses);
    const auto measured = [&](int i, const std::string& name) {
        const auto& names = judge.names();
        return responses[i].measures.at(std::ranges::find(names, name) - names.begin());
    };
    CHECK(responses[0].measures == std::vector<double>{1, 1, 1, 0, -1, 20, 0, 0});
    CHECK(responses[0].reward == doctest::Approx(2 + 0.5 + 1 - 1 - 2));
    CHECK(responses[1].measures == std::vector<double>{1, 0, 1, 0, 0, 10, 0, 0});
    CHECK(measured(2, "accuracy") == 0);
    CHECK(measured(2, "language") == doctest::Approx(1.0 / 7));
    CHECK(measured(2, "repetition") == doctest::Approx(0.5));
    CHECK(measured(2, "overlong") == doctest::Approx(-0.5));
    CHECK(measured(2, "truncated") == 1);
    CHECK(measured(2, "reflective_words") == 1);
    const auto json = judge.json(responses[1]);
    CHECK(json["length"] == 10);
    CHECK(json["reason"] == "right");
    CHECK(json["reward"] == responses[1].reward);
    Judge none({.parts = ""});
    none(responses);
    CHECK(!none.json(responses[0]).contains("reward"));
    for (const char* bad : {"speed=1", "accuracy=x", "accuracy=1,accuracy=2", "accuracy=1,",
                            "program=1", "format=nan"})
        CHECK_THROWS_AS(Judge({.parts = bad}), Error);
    CHECK_THROWS_AS(Judge({.parts = "format", .program = "cat"}), Error);
    CHECK_THROWS_AS(Judge({.parts = "", .script = "klingon"}), Error);
}

TEST_CASE("problems need an answer only where accuracy is rewarded, or nothing is") {
    CHECK(Judge({.parts = ""}).answers() == Answers::Required);
    CHECK(Judge({.parts = "accuracy=1,format=0.2"}).answers() == Answers::Required);
    CHECK(Judge({.parts = "format,length=0.1"}).answers() == Answers::Optional);
    CHECK(Judge({.parts = "program", .program = "cat"}).answers() == Answers::Optional);
}

TEST_CASE("a program of the user's grades responses over a pipe") {
    std::vector<Response> responses;
    for (int i = 0; i < 300; ++i)
        responses.push_back(response(std::string(i, 'x') + "\"\n\xff"));  // more than a pipe holds
    // The length of a line, which holds the response, grows by one from each to the next.
    Judge judge({.parts = "program=2", .program = "while read -r line; do echo \"{\\\"reward\\\": ${#line}}\"; done"});
    judge(responses);
    for (int i = 1; i < 300; ++i) CHECK(responses[i].reward == responses[i - 1].reward + 2);
    judge(responses);  // it lives on
    CHECK(responses[299].reward == responses[0].reward + 2 * 299);

    auto error = [&](const std::string& program, double seconds) -> std::string {
        Judge broken({.parts = "program", .program = program, .program_seconds = seconds});
        try {
            broken(responses);
        } catch (const Error& e) {
            return e.what();
        }
        return "";
    };
    auto says = [&](const std::string& program, double seconds, const std::string& part) {
        const std::string message = error(program, seconds);
        CHECK_MESSAGE(message.find(part) != std::string::npos, message);
    };
    says("exit 3", 5, "exit status 3 after 0 of 300 answers; its own message");
    says("read -r line; echo 1", 5, "exit status 0 after 1 of 300 answers; it must answer line after line");
    says("no-such-command 2>/dev/null", 5,
         "exit status 127 after 0 of 300 answers; there is no such command");
    says("kill -9 $$", 5, "was ended by signal 9");
    says("exec >&-; sleep 100", 5, "has closed its output after 0");
    says("sleep 100", 0.2, "--reward-seconds");
    says("exec <&-; sleep 100", 0.5, "has answered 0 of 300");
    says("read -r line; yes | tr -d '\\n'", 5, "bytes without an end of line");
    says("while read -r line; do echo 1e300; done", 5, "answered \"1e300\" in line 1 of a batch of 300");
    says("trap '' TERM; while read -r line; do echo nan; done; sleep 100", 5, "answered \"nan\"");
    says("while read -r line; do echo 1; kill -STOP $$; done", 0.2, "--reward-seconds");
    Judge late({.parts = "program", .program = "exec 3<&0; while read -r line; do echo 1; done <&3 & sleep 0.5; echo 2; wait"});
    CHECK_NOTHROW(late(responses));
    std::this_thread::sleep_for(std::chrono::seconds(1));
    CHECK_THROWS_AS(late(responses), Error);
    says("while read -r line; do :; done", 0.2,
         "0 of 300 responses in 0.2 seconds; does it flush its output");
    says("while read -r line; do echo good; done", 5, "\"good\"");
    says("while read -r line; do echo nan; done", 5, "\"nan\"");
}

TEST_CASE("100,000 mutated answers: none crashes") {
    std::mt19937 random(11);
    const std::string seeds[] = {"\\frac{1}{2}+\\sqrt{8}",
                                 "(x+1)^2-3x",
                                 "[0,1)\\cup(2,\\infty)",
                                 "12*6-2=70",
                                 "9^{9^{9^9}}",
                                 "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
                                 "1{,}234.5\\%",
                                 "x=\\pm2"};
    const std::string alphabet = "0123456789+-*/^=(){}[]\\xyfracsqrtpi,.&%$ _";
    const Gold golds[] = {Countdown{{2, 12, 6}, 70}, MathGold{*MathAnswer::parse("\\frac{1}{2}+\\sqrt{8}")},
                          MathGold{*MathAnswer::parse("x^2-x+1")}, ChoiceGold{{"x", "1/2"}, 1},
                          TextGold{"1/2"}};
    double slowest = 0;
    std::string worst;
    for (int i = 0; i < 100000; ++i) {
        std::string text = seeds[random() % std::size(seeds)];
        for (unsigned edits = random() % 8; edits > 0; --edits) {
            const std::size_t at = random() % (text.size() + 1);
            if (const unsigned what = random() % 3; what == 0 && at < text.size())
                text.erase(at, 1 + random() % 3);
            else if (what == 1)
                text.insert(at, 1, alphabet[random() % alphabet.size()]);
            else
                text.insert(at, text.substr(random() % (text.size() + 1), random() % 12));
        }
        const auto start = std::chrono::steady_clock::now();
        check_answer(text, golds[i % std::size(golds)]);
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (seconds > slowest) slowest = seconds, worst = text;
    }
    MESSAGE("the slowest took ", slowest * 1e3, " ms: ", worst);  // shown, not checked: machines are noisy
}

TEST_CASE("majority votes: mathematics counts as equal, silence does not vote") {
    const Gold math = MathGold{*MathAnswer::parse("1/2")}, choice = ChoiceGold{{"red", "blue"}, 0},
               text = TextGold{"x"};
    CHECK(majority({"1/2", "3", "0.5", "\\frac{1}{2}"}, math) == 0);
    CHECK(majority({std::nullopt, "3", "4", "4"}, math) == 2);
    CHECK(majority({std::nullopt, std::nullopt}, math) == 2);
    CHECK(majority({"7", "8"}, math) == 0);
    CHECK(majority({"A", "b", " B "}, choice) == 1);
    CHECK(majority({"A", "(B)", "Blue"}, choice) == 1);  // a label and its text are one vote
    CHECK(majority({"a b", "ab", "Ab", " Ab "}, text) == 2);
    CHECK(majority({"12*6-2", "6 * 12", "6*12"}, countdown().gold) == 1);
    CHECK(majority({"A", "a"}, NoGold{}) == 0);
}

TEST_CASE("pass@1, cons@k, pass@k, and their intervals") {
    std::vector<Response> responses;
    for (const char* answer : {"12*6-2", "12*6-2", "1", "2", "5", "5", "12*6-2", "5"}) {
        responses.push_back(response("<think>a</think><answer>" + std::string(answer) + "</answer>"));
        if (responses.size() > 4) responses.back().problem = &kOther;
    }
    Judge({.parts = ""})(responses);
    Evaluation e;
    for (std::size_t begin : {0, 4}) e.add(std::span(responses).subspan(begin, 4));
    CHECK(e.pass1 == std::vector{0.5, 0.25});
    CHECK(e.cons == std::vector{1.0, 0.0});
    CHECK(e.pass_k == std::vector{1.0, 1.0});
    CHECK(confidence_interval(e.pass_k).low < 0.5);  // two problems say little
    // Wilson's interval for 8 of 10, from the formula: (0.8 + z^2/20 +- z sqrt(0.016 + z^2/400)) / (1 + z^2/10)
    std::vector<double> ten(10, 1.0);
    ten[3] = ten[7] = 0;
    const Interval i = confidence_interval(ten);
    CHECK(i.low == doctest::Approx(0.4902).epsilon(1e-3));
    CHECK(i.high == doctest::Approx(0.9433).epsilon(1e-3));
}
