#include "data/world/world.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

namespace r1::world {
namespace {

constexpr int kLargestTerm = 12, kLargestResult = 99;
constexpr std::string_view kOperators = "+-*";

struct Facts {
    const char* relation;
    std::vector<std::pair<const char*, const char*>> of;
};
// clang-format off
const Facts kFacts[] = {
    {"color", {{"grass", "green"}, {"sky", "blue"}, {"snow", "white"}, {"coal", "black"},
               {"blood", "red"}, {"sun", "yellow"}, {"rose", "red"}, {"sea", "blue"},
               {"milk", "white"}, {"tar", "black"}, {"lemon", "yellow"}, {"leaf", "green"}}},
    {"capital", {{"france", "paris"}, {"italy", "rome"}, {"japan", "tokyo"}, {"egypt", "cairo"},
                 {"peru", "lima"}, {"cuba", "havana"}, {"kenya", "nairobi"}, {"norway", "oslo"},
                 {"spain", "madrid"}, {"china", "beijing"}, {"russia", "moscow"}, {"greece", "athens"}}},
    {"opposite", {{"hot", "cold"}, {"big", "small"}, {"up", "down"}, {"day", "night"},
                  {"old", "new"}, {"fast", "slow"}, {"high", "low"}, {"good", "bad"},
                  {"open", "shut"}, {"first", "last"}, {"hard", "soft"}, {"rich", "poor"}}},
    {"sound", {{"cat", "meow"}, {"dog", "bark"}, {"cow", "moo"}, {"duck", "quack"},
               {"lion", "roar"}, {"sheep", "baa"}, {"wolf", "howl"}, {"frog", "croak"},
               {"bee", "buzz"}, {"horse", "neigh"}, {"pig", "oink"}, {"owl", "hoot"}}}};
// clang-format on
constexpr const char* kPhrasings[] = {"", "the ", "what is the ", "tell me the "};

int apply(int a, char op, int b) {
    if (op == '*') return a * b;
    return op == '+' ? a + b : a - b;
}
Step step(int a, char op, int b) { return {a, op, b, apply(a, op, b)}; }
bool in_range(int value) { return value >= 0 && value <= kLargestResult; }
std::string think(const std::string& thought) { return "<think>" + thought + "</think>"; }
std::string tags(const std::string& answer) { return "<answer>" + answer + "</answer>"; }
std::string label(std::size_t choice) { return {static_cast<char>('A' + choice)}; }

Question general(const char* phrasing, const char* relation,
                 const std::pair<const char*, const char*>& fact) {
    Question q{Kind::General, std::string(phrasing) + relation + " of " + fact.first};
    q.answer = fact.second;
    return q;
}

}  // namespace

const World::Word World::kNo = {" no ", " 不 "}, World::kYes = {" yes ", " 对 "},
                  World::kCheck = {"check ", "检查 "}, World::kWait = {"wait ", "等等 "},
                  World::kSo = {" so ", " 所以 "}, World::kEasy = {"easy ", "简单 "};

std::string Step::text() const {
    return std::to_string(left) + op + std::to_string(right) + "=" + std::to_string(result);
}

std::string Attempt::expression() const {
    std::string inner = std::to_string(first.left) + first.op + std::to_string(first.right);
    if (first.op != '*' && (second.op == '*' || (second.op == '-' && first_on_right)))
        inner = "(" + inner + ")";
    return first_on_right ? std::to_string(second.left) + second.op + inner
                          : inner + second.op + std::to_string(second.right);
}

std::vector<Attempt> all_attempts(const Numbers& n) {
    std::vector<Attempt> attempts;
    for (int k = 0; k < 3; ++k) {  // n[k] comes last
        // Sums and products have one order only, and differences go from large to small.
        const auto [small, large] = std::minmax(n[(k + 1) % 3], n[(k + 2) % 3]);
        for (const char op : kOperators) {
            const Step first = step(large, op, small);
            if (!in_range(first.result)) continue;
            for (const char op2 : kOperators) {
                const Step left = step(first.result, op2, n[k]),
                           right = step(n[k], op2, first.result);
                if (in_range(left.result)) attempts.push_back({first, left, false});
                if (in_range(right.result) && op2 == '-') attempts.push_back({first, right, true});
            }
        }
    }
    return attempts;
}

std::string Question::json() const {
    nlohmann::ordered_json line = {{"kind", kKindNames[static_cast<int>(kind)]},
                                   {"question", text}};
    if (kind == Kind::Countdown) {
        line["nums"] = task.numbers;
        line["target"] = task.target;
    } else {
        line["answer"] = answer;
    }
    for (const int choice : choices) line["choices"].push_back(std::to_string(choice));
    return line.dump();
}

std::string Question::prompt() const {
    std::string prompt = text;
    for (std::size_t i = 0; i < choices.size(); ++i)
        prompt += "\n" + label(i) + ") " + std::to_string(choices[i]);
    return prompt + ":";
}

bool held_out(const Question& q) {
    if (q.kind == Kind::Countdown) {
        Numbers n = q.task.numbers;
        std::ranges::sort(n);
        std::uint64_t h = ((n[0] * 100 + n[1]) * 100 + n[2]) * 100 + q.task.target;
        h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;  // splitmix64's finaliser
        h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
        return (h ^ (h >> 31)) % 10 == 0;
    }
    std::uint64_t h = 0xcbf29ce484222325u;  // FNV-1a
    for (const unsigned char c : q.text) h = (h ^ c) * 0x100000001b3u;
    return (h ^ (h >> 32)) % 20 < (q.kind == Kind::General ? 5 : 2);
}

/// Lists every solvable task once for each multiset of numbers and each target.
World::World(std::uint64_t seed) : random_(seed) {
    for (int a = 1; a <= kLargestTerm; ++a)
        for (int b = a; b <= kLargestTerm; ++b)
            for (int c = b; c <= kLargestTerm; ++c) {
                std::set<int> targets;
                for (const Attempt& attempt : all_attempts({a, b, c}))
                    targets.insert(attempt.second.result);
                targets.erase(0);
                for (const int target : targets) tasks_.push_back({{a, b, c}, target});
            }
}

Question World::countdown(Task task) {
    shuffle(task.numbers);
    std::string text;
    for (const int n : task.numbers) text += (text.empty() ? "" : ",") + std::to_string(n);
    return {Kind::Countdown, text + "=" + std::to_string(task.target), task};
}

/// Arithmetic has four to six terms, as in 34+8-5+12; a choice has three, as in 7*8+5.
Question World::calculation(Kind kind) {
    const bool choice = kind == Kind::Choice;
    const std::size_t operations = choice ? 2 : 3 + below(3);
    int value = choice ? 1 + below(kLargestTerm) : below(kLargestResult + 1);
    Question q{kind, std::to_string(value)};
    q.terms = {value};
    while (q.ops.size() < operations) {
        const int term = 1 + below(kLargestTerm);
        const char op = choice && q.ops.empty() ? '*' : kOperators[below(2)];
        if (!in_range(apply(value, op, term))) continue;
        value = apply(value, op, term);
        q.ops += op;
        q.terms.push_back(term);
        q.text += op + std::to_string(term);
    }
    q.answer = std::to_string(value);
    if (!choice) return q;

    q.choices = {value};
    while (q.choices.size() < 3) {
        const int other = value + below(21) - 10;
        if (in_range(other) && std::ranges::find(q.choices, other) == q.choices.end())
            q.choices.push_back(other);
    }
    shuffle(q.choices);
    q.answer = label(std::ranges::find(q.choices, value) - q.choices.begin());
    return q;
}

/// Any question of that kind, held out or not.
Question World::draw(Kind kind) {
    if (kind == Kind::Countdown) return countdown(any_of(tasks_));
    if (kind != Kind::General) return calculation(kind);
    const Facts& facts = any_of(kFacts);
    const auto& fact = any_of(facts.of);
    return general(any_of(kPhrasings), facts.relation, fact);
}

Question World::seen(Kind kind) {
    for (;;)
        if (Question q = draw(kind); !held_out(q)) return q;
}

std::vector<Question> World::questions(Kind kind, int count, bool want_held_out) {
    std::vector<Question> all;
    std::set<std::string> texts;
    auto add = [&](const Question& q) {
        if (held_out(q) == want_held_out && texts.insert(q.text).second) all.push_back(q);
    };
    if (kind == Kind::Countdown) {
        for (const Task& task : tasks_) add(countdown(task));
        shuffle(all);
    } else if (kind == Kind::General) {
        for (const char* phrasing : kPhrasings)
            for (const Facts& facts : kFacts)
                for (const auto& fact : facts.of) add(general(phrasing, facts.relation, fact));
        shuffle(all);
    } else {
        while (static_cast<int>(all.size()) < count) add(draw(kind));
    }
    if (static_cast<int>(all.size()) > count) all.resize(count);
    return all;
}

std::string World::word(const Word& word) {
    if (language_ == Language::Mixed) return chance(50) ? word.english : word.chinese;
    return language_ == Language::English ? word.english : word.chinese;
}

/// The value, or `percent` times in 100 one that is off by up to `size`; within 0..99.
int World::slip(int value, int percent, int size) {
    if (chance(percent)) value += below(2 * size + 1) - size;
    return std::clamp(value, 0, kLargestResult);
}

/// Right one time in ten, else wrong.
Attempt World::guess(const std::vector<Attempt>& attempts, int target) {
    const bool want_right = chance(10);
    std::vector<Attempt> fitting;
    for (const Attempt& attempt : attempts)
        if ((attempt.second.result == target) == want_right) fitting.push_back(attempt);
    return any_of(fitting.empty() ? attempts : fitting);
}

/// What a search tries next, taken out of `attempts`: any of them, or one time in four one that is
/// drawn by how close it comes.
Attempt World::take_attempt(std::vector<Attempt>& attempts, int target) {
    int pick = below(static_cast<int>(attempts.size()));
    if (chance(25)) {
        std::vector<int> weight;
        int total = 0;
        for (const Attempt& a : attempts)
            total += weight.emplace_back(1000 / (1 + std::abs(a.second.result - target)));
        int at = below(total);
        for (pick = 0; at >= weight[pick]; ++pick) at -= weight[pick];
    }
    const Attempt attempt = attempts[pick];
    attempts.erase(attempts.begin() + pick);
    return attempt;
}

/// The text between <think> and </think>: attempts without repetition, each worked out at a glance
/// and judged, until one is believed to reach the target, or patience ends (after a miss, `give_up`
/// times in 100). A glance errs: one time in ten it sees the target where it is not, one time in
/// ten another value. In four searches of ten every "yes" is checked step by step, where 99% of the
/// results are right.
std::string World::search(const Task& task, int max_attempts, int give_up, std::string& answer) {
    auto attempts = all_attempts(task.numbers);
    const bool checks = chance(40);
    std::string text;
    answer = guess(attempts, task.target).expression();
    for (int tried = 0; tried < max_attempts && !attempts.empty(); ++tried) {
        const Attempt attempt = take_attempt(attempts, task.target);
        const int glance = chance(10) ? task.target : slip(attempt.second.result, 10, 6);
        const bool misjudged = chance(2);
        bool holds = (glance == task.target) != misjudged;
        text += attempt.expression() + "=" + std::to_string(glance) + verdict(holds);
        if (holds && checks) {
            Step again = attempt.second;
            again.result = slip(again.result, 1, 3);
            holds = again.result == task.target;
            std::string end = holds ? "" : word(kWait);
            end = verdict(holds) + end;
            text += word(kCheck) + attempt.first.text() + "," + again.text() + end;
        }
        if (holds) answer = attempt.expression();
        if (holds || chance(give_up)) break;
    }
    return text;
}

/// "34+8=42,42-5=37": the operations one by one; 4 results in 100 are wrong. Two times in three a
/// conclusion follows and becomes the answer: the result, or the first choice that is believed to
/// fit.
std::string World::reckoning(const Question& q, std::string& answer) {
    std::string text;
    int result = q.terms[0];
    for (std::size_t i = 0; i < q.ops.size(); ++i) {
        Step next = step(result, q.ops[i], q.terms[i + 1]);
        next.result = result = slip(next.result, 4, 3);
        text += (i ? "," : "") + next.text();
    }
    if (!chance(65)) return text;
    text += word(kSo);
    if (q.kind == Kind::Arithmetic) text += answer = std::to_string(result);
    for (std::size_t i = 0; i < q.choices.size(); ++i) {
        const bool fits = chance(98) == (q.choices[i] == result);
        text += label(i) + ")" + std::to_string(q.choices[i]) + verdict(fits);
        if (!fits) continue;
        answer = label(i);
        break;
    }
    return text;
}

void World::write_countdown(Document& d) {
    const Question q = seen(Kind::Countdown);
    const int target = q.task.target;
    const auto attempts = all_attempts(q.task.numbers);
    d.prompt = q.prompt();
    std::string answer, thought;
    switch (d.form) {
        case Form::DirectGuess:
            d.completion = tags(guess(attempts, target).expression());
            break;
        case Form::UntaggedGuess:
            d.completion = guess(attempts, target).expression();
            break;
        case Form::OneAttempt: {
            const Attempt attempt = guess(attempts, target);
            answer = attempt.expression();
            thought = answer + "=" + std::to_string(attempt.second.result);
            d.completion = think(thought) + tags(answer);
            break;
        }
        case Form::ShortSearch:
            thought = search(q.task, 6, 40, answer);
            d.completion = think(thought) + tags(answer);
            break;
        case Form::LongSearch:
            thought = search(q.task, 17, 7, answer);
            d.completion = think(thought) + tags(answer);
            break;
        case Form::Malformed: {
            thought = search(q.task, 6, 40, answer);
            const std::string broken[] = {
                "<think>" + thought + tags(answer), thought + "</think>" + tags(answer),
                think(thought) + answer, "<think>" + thought, think(thought) + "<answer>" + answer};
            d.completion = any_of(broken);
            d.eos = chance(50);
            break;
        }
        default:  // a drill: values judged one after the other
            d.completion = "<think>";
            for (int i = 4 + below(10); i > 0; --i) {
                const int value = chance(40) ? target : any_of(attempts).second.result;
                d.completion += std::to_string(value) + verdict(value == target);
            }
    }
}

void World::write_short(Document& d, Kind kind) {
    const Question q = seen(kind);
    d.prompt = q.prompt();
    // Without thought it is right one time in ten for arithmetic, one in three for choices, nine in
    // ten for facts.
    std::string answer = q.answer;
    if (kind == Kind::Arithmetic) answer = std::to_string(slip(std::stoi(answer), 90, 20));
    if (kind == Kind::Choice) answer = label(below(3));
    if (kind == Kind::General && chance(10)) answer = draw(kind).answer;
    std::string thought = word(kEasy);
    if (kind != Kind::General) thought = reckoning(q, answer);

    const int form = below(100);
    if (form < 30) {
        d.completion = tags(answer);
    } else if (form < 45) {
        d.completion = answer;
    } else if (form < 85) {
        d.completion = think(thought) + tags(answer);
    } else if (form < 90) {
        d.completion = thought + tags(answer);
    } else if (form < 95) {
        d.completion = think(thought) + answer;
    } else {
        d.completion = "<think>" + thought;
        d.eos = chance(50);
    }
}

/// Equations without a question.
void World::write_sums(Document& d) {
    for (int left = 6 + below(10); left > 0;) {
        const int a = below(kLargestResult + 1), b = 1 + below(kLargestTerm);
        const Step sum = step(a, any_of(kOperators), b);
        if (!in_range(sum.result)) continue;
        d.completion += (d.completion.empty() ? "" : ",") + sum.text();
        --left;
    }
}

Document World::document() {
    int lot = below(100), form = 0;
    while (lot >= kShares[form]) lot -= kShares[form++];
    Document d{static_cast<Form>(form)};
    const int tongue = below(100);
    language_ = tongue < 65 ? Language::Chinese : Language::Mixed;
    if (tongue < 40) language_ = Language::English;
    switch (d.form) {
        case Form::SumPage:
            write_sums(d);
            break;
        case Form::Arithmetic:
            write_short(d, Kind::Arithmetic);
            break;
        case Form::Choice:
            write_short(d, Kind::Choice);
            break;
        case Form::General:
            write_short(d, Kind::General);
            break;
        default:
            write_countdown(d);
    }
    return d;
}

Document World::general_sample() {
    const Question q = seen(Kind::General);
    return {Form::General, q.prompt(), think(kEasy.english) + tags(q.answer)};
}

std::vector<std::string> vocabulary() {
    std::vector<std::string> all;
    for (int i = 0; i <= kLargestResult; ++i) all.push_back(std::to_string(i));
    for (const char sign : std::string_view("+-*/=,:() \n")) all.push_back({sign});
    const World::Word words[] = {World::kNo,   World::kYes, World::kCheck,
                                 World::kWait, World::kSo,  World::kEasy};
    for (const auto& word : words) all.push_back(word.english);
    for (const char* choice : {"A", "B", "C"}) all.push_back(choice);
    for (const auto& word : words) all.push_back(word.chinese);
    for (const char* word : {"the ", "what ", "is ", "tell ", "me ", "of "}) all.push_back(word);
    std::set<std::string> general;
    for (const Facts& facts : kFacts) {
        all.push_back(std::string(facts.relation) + " ");
        for (const auto& [thing, answer] : facts.of) general.insert({thing, answer});
    }
    all.insert(all.end(), general.begin(), general.end());
    return all;
}

}  // namespace r1::world
