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

/// A word of a thought, with the blanks that it carries.
struct Word {
    const char *english, *chinese;
};
constexpr Word kNo = {" no ", " 不 "}, kYes = {" yes ", " 对 "}, kCheck = {"check ", "检查 "},
               kWait = {"wait ", "等等 "}, kSo = {" so ", " 所以 "}, kEasy = {"easy ", "简单 "};

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

namespace {

/// Every solvable task, once for each multiset of numbers and each target.
std::vector<Task> all_tasks() {
    std::vector<Task> tasks;
    for (int a = 1; a <= kLargestTerm; ++a)
        for (int b = a; b <= kLargestTerm; ++b)
            for (int c = b; c <= kLargestTerm; ++c) {
                std::set<int> targets;
                for (const Attempt& attempt : all_attempts({a, b, c}))
                    targets.insert(attempt.second.result);
                targets.erase(0);
                for (const int target : targets) tasks.push_back({{a, b, c}, target});
            }
    return tasks;
}
const std::vector<Task> kTasks = all_tasks();

enum class Language { English, Chinese, Mixed };

struct Draws {
    Random& random;
    Language language = Language::English;

    int below(std::uint64_t n) { return static_cast<int>(random() % n); }
    bool chance(int percent) { return below(100) < percent; }
    template <class Values>
    const auto& any_of(const Values& values) {
        return values[below(std::size(values))];
    }
    template <class Values>
    void shuffle(Values& values) {
        for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
    }

    /// The task with its numbers in random order.
    Question countdown(Task task) {
        shuffle(task.numbers);
        std::string text;
        for (const int n : task.numbers) text += (text.empty() ? "" : ",") + std::to_string(n);
        return {Kind::Countdown, text + "=" + std::to_string(task.target), task};
    }

    /// Arithmetic has four to six terms, as in 34+8-5+12; a choice has three, as in 7*8+5.
    Question calculation(Kind kind) {
        const bool choice = kind == Kind::Choice;
        const std::size_t operations = choice ? 2 : 3 + below(3);
        int value = choice ? 1 + below(kLargestTerm) : below(kLargestResult + 1);
        Question q{kind, std::to_string(value)};
        while (q.steps.size() < operations) {
            const int term = 1 + below(kLargestTerm);
            const char op = choice && q.steps.empty() ? '*' : kOperators[below(2)];
            const Step next = step(value, op, term);
            if (!in_range(next.result)) continue;
            value = next.result;
            q.steps.push_back(next);
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
    Question question(Kind kind) {
        if (kind == Kind::Countdown) return countdown(any_of(kTasks));
        if (kind != Kind::General) return calculation(kind);
        const Facts& facts = any_of(kFacts);
        const auto& fact = any_of(facts.of);
        return general(any_of(kPhrasings), facts.relation, fact);
    }

    Question seen(Kind kind) {
        for (;;)
            if (Question q = question(kind); !held_out(q)) return q;
    }

    std::string word(const Word& word) {
        if (language == Language::Mixed) return chance(50) ? word.english : word.chinese;
        return language == Language::English ? word.english : word.chinese;
    }
    std::string verdict(bool yes) { return word(yes ? kYes : kNo); }

    /// The value, or `percent` times in 100 one that is off by up to `size`; within 0..99.
    int slip(int value, int percent, int size) {
        if (chance(percent)) value += below(2 * size + 1) - size;
        return std::clamp(value, 0, kLargestResult);
    }

    /// Right one time in ten, else wrong.
    Attempt guess(const std::vector<Attempt>& attempts, int target) {
        const bool want_right = chance(10);
        std::vector<Attempt> fitting;
        for (const Attempt& attempt : attempts)
            if ((attempt.second.result == target) == want_right) fitting.push_back(attempt);
        return any_of(fitting.empty() ? attempts : fitting);
    }

    /// What a search tries next, taken out of `attempts`: any of them, or one time in four one that
    /// is drawn by how close it comes.
    Attempt take_attempt(std::vector<Attempt>& attempts, int target) {
        int pick = below(attempts.size());
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

    /// The text between <think> and </think>: attempts without repetition, each worked out at a
    /// glance and judged, until one is believed to reach the target, or patience ends (after a
    /// miss, `give_up` times in 100). A glance errs: one time in ten it sees the target where it is
    /// not, one time in ten another value. In four searches of ten every "yes" is checked step by
    /// step, where 99% of the results are right.
    std::string search(const Task& task, int most, int give_up, std::string& answer) {
        auto attempts = all_attempts(task.numbers);
        const bool checks = chance(40);
        std::string text;
        answer = guess(attempts, task.target).expression();
        for (int tried = 0; tried < most && !attempts.empty(); ++tried) {
            const Attempt attempt = take_attempt(attempts, task.target);
            const int glance = chance(10) ? task.target : slip(attempt.second.result, 10, 6);
            const bool misjudged = chance(2);
            bool holds = (glance == task.target) != misjudged;
            text += attempt.expression() + "=" + std::to_string(glance) + verdict(holds);
            if (holds && checks) {
                Step again = attempt.second;
                again.result = slip(again.result, 1, 3);
                holds = again.result == task.target;
                // The words of a check are drawn from the last to the first.
                std::string end = holds ? "" : word(kWait);
                end = verdict(holds) + end;
                text += word(kCheck) + attempt.first.text() + "," + again.text() + end;
            }
            if (holds) answer = attempt.expression();
            if (holds || chance(give_up)) break;
        }
        return text;
    }

    /// "34+8=42,42-5=37": the operations one by one; 4 results in 100 are wrong. Two times in three
    /// a conclusion follows and becomes the answer: the result, or the first choice that seems to
    /// fit.
    std::string reckoning(const Question& q, std::string& answer) {
        std::string text;
        int result = q.steps[0].left;
        for (const auto& [left, op, right, value] : q.steps) {
            Step next = step(result, op, right);
            next.result = result = slip(next.result, 4, 3);
            text += (text.empty() ? "" : ",") + next.text();
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

    std::string countdown_text(Form form, const Task& task, bool& eos) {
        const auto attempts = all_attempts(task.numbers);
        if (form == Form::DirectGuess) return tags(guess(attempts, task.target).expression());
        if (form == Form::UntaggedGuess) return guess(attempts, task.target).expression();
        if (form == Form::OneAttempt) {
            const Attempt attempt = guess(attempts, task.target);
            const std::string answer = attempt.expression();
            return think(answer + "=" + std::to_string(attempt.second.result)) + tags(answer);
        }
        if (form == Form::Drill) {  // values judged one after the other
            std::string text = "<think>";
            for (int i = 4 + below(10); i > 0; --i) {
                const int value = chance(40) ? task.target : any_of(attempts).second.result;
                text += std::to_string(value) + verdict(value == task.target);
            }
            return text;
        }
        const bool patient = form == Form::LongSearch;
        std::string answer;
        const std::string thought = search(task, patient ? 17 : 6, patient ? 7 : 40, answer);
        if (form != Form::Malformed) return think(thought) + tags(answer);
        const std::string broken[] = {"<think>" + thought + tags(answer),
                                      thought + "</think>" + tags(answer), think(thought) + answer,
                                      "<think>" + thought, think(thought) + "<answer>" + answer};
        const std::string& text = any_of(broken);
        eos = chance(50);
        return text;
    }

    /// An answer without a search. Without a thought it is right one time in ten for arithmetic,
    /// one in three for choices, nine in ten for facts.
    std::string short_text(const Question& q, bool& eos) {
        std::string answer = q.answer;
        if (q.kind == Kind::Arithmetic) answer = std::to_string(slip(std::stoi(answer), 90, 20));
        if (q.kind == Kind::Choice) answer = label(below(3));
        if (q.kind == Kind::General && chance(10)) answer = question(q.kind).answer;
        std::string thought = word(kEasy);
        if (q.kind != Kind::General) thought = reckoning(q, answer);

        const int lot = below(100);
        if (lot < 30) return tags(answer);
        if (lot < 45) return answer;
        if (lot < 85) return think(thought) + tags(answer);
        if (lot < 90) return thought + tags(answer);
        if (lot < 95) return think(thought) + answer;
        eos = chance(50);
        return "<think>" + thought;
    }

    std::string sums() {
        std::string text;
        for (int left = 6 + below(10); left > 0;) {
            const int a = below(kLargestResult + 1), b = 1 + below(kLargestTerm);
            const Step sum = step(a, any_of(kOperators), b);
            if (!in_range(sum.result)) continue;
            text += (text.empty() ? "" : ",") + sum.text();
            --left;
        }
        return text;
    }
};

}  // namespace

std::vector<Question> questions(Kind kind, int count, bool want_held_out, Random& random) {
    Draws draws{random};
    std::vector<Question> all;
    std::set<std::string> texts;
    auto add = [&](const Question& q) {
        if (held_out(q) == want_held_out && texts.insert(q.text).second) all.push_back(q);
    };
    if (kind == Kind::Countdown) {
        for (const Task& task : kTasks) add(draws.countdown(task));
        draws.shuffle(all);
    } else if (kind == Kind::General) {
        for (const char* phrasing : kPhrasings)
            for (const Facts& facts : kFacts)
                for (const auto& fact : facts.of) add(general(phrasing, facts.relation, fact));
        draws.shuffle(all);
    } else {
        while (static_cast<int>(all.size()) < count) add(draws.question(kind));
    }
    if (static_cast<int>(all.size()) > count) all.resize(count);
    return all;
}

Document document(Random& random) {
    Draws draws{random};
    const DocumentKind* kind = kDocumentKinds;
    for (int lot = draws.below(100); lot >= kind->percent; ++kind) lot -= kind->percent;
    const int tongue = draws.below(100);
    if (tongue >= 40) draws.language = tongue < 65 ? Language::Chinese : Language::Mixed;

    Document d{kind->form, kind->question, "", ""};
    if (kind->form == Form::SumPage) {
        d.completion = draws.sums();
        return d;
    }
    const Question q = draws.seen(kind->question);
    d.prompt = q.prompt();
    d.completion = kind->form == Form::Short ? draws.short_text(q, d.eos)
                                             : draws.countdown_text(kind->form, q.task, d.eos);
    return d;
}

Document general_sample(Random& random) {
    const Question q = Draws{random}.seen(Kind::General);
    return {Form::Short, Kind::General, q.prompt(), think(kEasy.english) + tags(q.answer)};
}

std::vector<std::string> vocabulary() {
    std::vector<std::string> all;
    for (int i = 0; i <= kLargestResult; ++i) all.push_back(std::to_string(i));
    for (const char sign : std::string_view("+-*/=,:() \n")) all.push_back({sign});
    const Word words[] = {kNo, kYes, kCheck, kWait, kSo, kEasy};
    for (const auto& word : words) all.push_back(word.english);
    for (const char* choice : {"A", "B", "C"}) all.push_back(choice);
    for (const auto& word : words) all.push_back(word.chinese);
    for (const char* word : {"the ", "what ", "is ", "tell ", "me ", "of "}) all.push_back(word);
    std::set<std::string> names;
    for (const Facts& facts : kFacts) {
        all.push_back(std::string(facts.relation) + " ");
        for (const auto& [thing, answer] : facts.of) names.insert({thing, answer});
    }
    all.insert(all.end(), names.begin(), names.end());
    return all;
}

}  // namespace r1::world
