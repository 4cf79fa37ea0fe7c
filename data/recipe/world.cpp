#include "data/recipe/world.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

namespace r1::recipe {
namespace {

using countdown::all_attempts, countdown::Attempt;
constexpr int kLargest = 99;

struct Facts {
    const char* relation;
    std::vector<std::pair<const char*, const char*>> of;
};
const Facts kFacts[] = {
    {"color",
     {{"grass", "green"},
      {"sky", "blue"},
      {"snow", "white"},
      {"coal", "black"},
      {"blood", "red"},
      {"sun", "yellow"},
      {"rose", "red"},
      {"sea", "blue"},
      {"milk", "white"},
      {"tar", "black"},
      {"lemon", "yellow"},
      {"leaf", "green"}}},
    {"capital",
     {{"france", "paris"},
      {"italy", "rome"},
      {"japan", "tokyo"},
      {"egypt", "cairo"},
      {"peru", "lima"},
      {"cuba", "havana"},
      {"kenya", "nairobi"},
      {"norway", "oslo"},
      {"spain", "madrid"},
      {"china", "beijing"},
      {"russia", "moscow"},
      {"greece", "athens"}}},
    {"opposite",
     {{"hot", "cold"},
      {"big", "small"},
      {"up", "down"},
      {"day", "night"},
      {"old", "new"},
      {"fast", "slow"},
      {"high", "low"},
      {"good", "bad"},
      {"open", "shut"},
      {"first", "last"},
      {"hard", "soft"},
      {"rich", "poor"}}},
    {"sound",
     {{"cat", "meow"},
      {"dog", "bark"},
      {"cow", "moo"},
      {"duck", "quack"},
      {"lion", "roar"},
      {"sheep", "baa"},
      {"wolf", "howl"},
      {"frog", "croak"},
      {"bee", "buzz"},
      {"horse", "neigh"},
      {"pig", "oink"},
      {"owl", "hoot"}}},
};
constexpr const char* kPhrasings[] = {"", "the ", "what is the ", "tell me the "};

int apply(int a, char op, int b) { return op == '+' ? a + b : op == '-' ? a - b : a * b; }
bool in_range(int value) { return value >= 0 && value <= kLargest; }
std::string tags(const std::string& answer) { return "<answer>" + answer + "</answer>"; }
std::string label(int choice) { return std::string(1, static_cast<char>('A' + choice)); }

/// terms[0] ops[0] terms[1] ..., from left to right; a product, if any, is the first operation.
int value_of(const Question& q, std::size_t operations) {
    int value = q.terms[0];
    for (std::size_t i = 0; i < operations; ++i) value = apply(value, q.ops[i], q.terms[i + 1]);
    return value;
}

struct Share {
    const char* name;
    int percent;
};
/// Of the corpus's documents.
constexpr Share kShares[kDocumentKinds] = {{"countdown: direct guess", 8},
                                           {"countdown: untagged guess", 4},
                                           {"countdown: one attempt", 5},
                                           {"countdown: short search", 15},
                                           {"countdown: long search", 9},
                                           {"countdown: malformed", 7},
                                           {"countdown: drill", 11},
                                           {"arithmetic page", 9},
                                           {"arithmetic", 9},
                                           {"choice", 15},
                                           {"general", 8}};

}  // namespace

const char* name_of(Kind kind) {
    constexpr const char* names[kKinds] = {"countdown", "arithmetic", "choice", "general"};
    return names[static_cast<int>(kind)];
}
const char* document_name(int kind) { return kShares[kind].name; }

std::string Question::json() const {
    nlohmann::ordered_json line = {{"kind", name_of(kind)}, {"question", text}};
    if (kind == Kind::Countdown)
        line["nums"] = task.numbers, line["target"] = task.target;
    else
        line["answer"] = answer;
    for (int choice : choices) line["choices"].push_back(std::to_string(choice));
    return line.dump();
}

std::string Question::prompt() const {
    std::string prompt = text;
    for (std::size_t i = 0; i < choices.size(); ++i)
        prompt += "\n" + label(static_cast<int>(i)) + ") " + std::to_string(choices[i]);
    return prompt + ":";
}

bool held_out(const Question& q) {
    if (q.kind == Kind::Countdown) return countdown::held_out(q.task);
    std::uint64_t h = 0xcbf29ce484222325u;  // FNV-1a
    for (unsigned char c : q.text) h = (h ^ c) * 0x100000001b3u;
    h ^= h >> 32;
    return h % 20 < (q.kind == Kind::General ? 5 : 2);
}

World::World(std::uint64_t seed) : Draws(seed), tasks_(countdown::all_tasks()) {}

/// With the numbers in random order.
Question World::countdown_question(countdown::Task task) {
    Draws::shuffle(task.numbers);
    const auto& n = task.numbers;
    return {Kind::Countdown,
            std::to_string(n[0]) + "," + std::to_string(n[1]) + "," + std::to_string(n[2]) + "=" +
                std::to_string(task.target),
            task};
}

Question World::draw(Kind kind) {
    Question q{kind, ""};
    switch (kind) {
        case Kind::Countdown:
            return countdown_question(tasks_[below(static_cast<int>(tasks_.size()))]);
        case Kind::Arithmetic:  // 34+8-5+12: four to six terms
        case Kind::Choice: {    // 7*8+5, three choices
            const int operations = kind == Kind::Choice ? 2 : 3 + below(3);
            q.terms = {kind == Kind::Choice ? 1 + below(12) : below(kLargest + 1)};
            for (int value = q.terms[0]; static_cast<int>(q.ops.size()) < operations;) {
                const int term = 1 + below(12);
                const char op = kind == Kind::Choice && q.ops.empty() ? '*' : "+-"[below(2)];
                if (!in_range(apply(value, op, term))) continue;
                value = apply(value, op, term);
                q.ops += op, q.terms.push_back(term);
            }
            q.text = std::to_string(q.terms[0]);
            for (int i = 0; i < operations; ++i) q.text += q.ops[i] + std::to_string(q.terms[i + 1]);
            const int value = value_of(q, q.ops.size());
            q.answer = std::to_string(value);
            if (kind == Kind::Choice) {
                q.choices = {value};
                while (q.choices.size() < 3) {
                    const int other = value + below(21) - 10;
                    if (in_range(other) && std::ranges::find(q.choices, other) == q.choices.end())
                        q.choices.push_back(other);
                }
                shuffle(q.choices);
                q.answer = label(static_cast<int>(std::ranges::find(q.choices, value) - q.choices.begin()));
            }
            break;
        }
        case Kind::General: {
            const Facts& facts = kFacts[below(std::size(kFacts))];
            const auto& [thing, answer] = facts.of[below(static_cast<int>(facts.of.size()))];
            q.text = std::string(kPhrasings[below(std::size(kPhrasings))]) + facts.relation + " of " + thing;
            q.answer = answer;
            break;
        }
    }
    return q;
}

std::vector<Question> World::questions(Kind kind, int count, bool want_held_out) {
    std::vector<Question> all;
    if (kind == Kind::Countdown) {
        for (const auto& task : tasks_) {
            Question q = countdown_question(task);
            if (held_out(q) == want_held_out) all.push_back(std::move(q));
        }
        shuffle(all);
    } else if (kind == Kind::General) {
        for (const char* phrasing : kPhrasings)
            for (const Facts& facts : kFacts)
                for (const auto& [thing, answer] : facts.of) {
                    Question q{kind, std::string(phrasing) + facts.relation + " of " + thing};
                    q.answer = answer;
                    if (held_out(q) == want_held_out) all.push_back(q);
                }
        shuffle(all);
    } else {
        std::set<std::string> texts;
        while (static_cast<int>(all.size()) < count)
            if (Question q = draw(kind); held_out(q) == want_held_out && texts.insert(q.text).second)
                all.push_back(q);
    }
    if (static_cast<int>(all.size()) > count) all.resize(count);
    return all;
}

Question World::seen(Kind kind) {
    for (;;)
        if (Question q = draw(kind); !held_out(q)) return q;
}

std::string World::word(const char* english, const char* chinese) {
    return language_ == Language::English || (language_ == Language::Mixed && chance(50)) ? english : chinese;
}

/// The text between <think> and </think>: attempts without repetition, each worked out at a glance and judged, until
/// one is believed to reach the target, or patience ends. A glance errs: one time in ten it sees the target where it
/// is not, one time in ten another value. In four searches of ten every "yes" is checked step by step, where results
/// are right but for 1%.
std::string World::search(const countdown::Task& task, int max_attempts, int give_up_percent,
                          std::string& answer) {
    auto attempts = all_attempts(task.numbers);
    const bool checks = chance(40);
    std::string text;
    answer = guess(attempts, task.target).expression();
    for (int tried = 0; tried < max_attempts && !attempts.empty(); ++tried) {
        const Attempt attempt = take_attempt(attempts, task.target);
        int glance = attempt.value;
        if (chance(10))
            glance = task.target;
        else if (chance(10))
            glance = std::clamp(glance + below(13) - 6, 0, kLargest);
        text += attempt.expression() + "=" + std::to_string(glance);
        if (chance(2) ? glance == task.target : glance != task.target) {
            text += word(" no ", " 不 ");
        } else {
            text += word(" yes ", " 对 ");
            bool holds = true;
            if (checks) {
                const int value =
                    chance(1) ? std::clamp(attempt.value + below(7) - 3, 0, kLargest) : attempt.value;
                const std::string second = attempt.second_step();
                holds = value == task.target;
                text += word("check ", "检查 ") + attempt.first_step() + "," +
                        second.substr(0, second.find('=') + 1) + std::to_string(value) +
                        (holds ? word(" yes ", " 对 ") : word(" no ", " 不 ") + word("wait ", "等等 "));
            }
            if (holds) {
                answer = attempt.expression();
                return text;
            }
        }
        if (chance(give_up_percent)) return text;
    }
    return text;
}

/// "34+8=42,42-5=37": the operations one by one; a result is wrong 4 times in 100.
std::string World::chain(const Question& q, int& result) {
    std::string text;
    result = q.terms[0];
    for (std::size_t i = 0; i < q.ops.size(); ++i) {
        int next = apply(result, q.ops[i], q.terms[i + 1]);
        if (chance(4)) next += below(7) - 3;
        next = std::clamp(next, 0, kLargest);
        text += (i ? "," : "") + std::to_string(result) + q.ops[i] + std::to_string(q.terms[i + 1]) + "=" +
                std::to_string(next);
        result = next;
    }
    return text;
}

void World::countdown_document(Document& d, int form) {
    const Question q = seen(Kind::Countdown);
    const auto attempts = all_attempts(q.task.numbers);
    d.prompt = q.prompt();
    std::string answer, thought;
    switch (form) {
        case 0:
            answer = guess(attempts, q.task.target).expression();
            d.completion = tags(answer);
            break;
        case 1:
            answer = d.completion = guess(attempts, q.task.target).expression();
            break;
        case 2: {
            const Attempt& a = guess(attempts, q.task.target);
            answer = a.expression();
            d.completion = "<think>" + answer + "=" + std::to_string(a.value) + "</think>" + tags(answer);
            break;
        }
        case 3:
        case 4:
            thought = form == 3 ? search(q.task, 6, 40, answer) : search(q.task, 17, 7, answer);
            d.completion = "<think>" + thought + "</think>" + tags(answer);
            break;
        case 5: {
            thought = search(q.task, 6, 40, answer);
            const std::string broken[] = {"<think>" + thought + tags(answer),
                                          thought + "</think>" + tags(answer),
                                          "<think>" + thought + "</think>" + answer, "<think>" + thought,
                                          "<think>" + thought + "</think><answer>" + answer};
            d.completion = broken[below(std::size(broken))];
            d.eos = chance(50);
            answer.clear();
            break;
        }
        default:  // a drill: values judged one after the other
            d.completion = "<think>";
            for (int i = 4 + below(10); i > 0; --i) {
                const int value =
                    chance(40) ? q.task.target : attempts[below(static_cast<int>(attempts.size()))].value;
                d.completion += std::to_string(value) +
                                (value == q.task.target ? word(" yes ", " 对 ") : word(" no ", " 不 "));
            }
    }
    for (const auto& a : attempts) d.right |= a.value == q.task.target && a.expression() == answer;
}

void World::short_document(Document& d, Kind kind) {
    const Question q = seen(kind);
    d.prompt = q.prompt();
    // Without thought: right one time in ten for arithmetic, one in three for choices, nine in ten for facts.
    std::string answer = q.answer;
    if (kind == Kind::Arithmetic && chance(90)) {
        answer = std::to_string(std::clamp(std::atoi(q.answer.c_str()) + below(41) - 20, 0, kLargest));
    } else if (kind == Kind::Choice) {
        answer = label(below(3));
    } else if (kind == Kind::General && chance(10)) {
        answer = draw(kind).answer;
    }
    std::string thought = word("easy ", "简单 ");
    if (kind != Kind::General) {
        int result = 0;
        thought = chain(q, result);
        if (chance(65)) {  // else the thought ends without a conclusion, and is not heard
            thought += word(" so ", " 所以 ");
            if (kind == Kind::Arithmetic) thought += answer = std::to_string(result);
            for (std::size_t i = 0; i < q.choices.size(); ++i) {  // the choices one by one, until one fits
                const bool fits = chance(98) == (q.choices[i] == result);
                thought += label(static_cast<int>(i)) + ")" + std::to_string(q.choices[i]) +
                           (fits ? word(" yes ", " 对 ") : word(" no ", " 不 "));
                if (!fits) continue;
                answer = label(static_cast<int>(i));
                break;
            }
        }
    }
    const int form = below(100);
    if (form < 30)
        d.completion = tags(answer);
    else if (form < 45)
        d.completion = answer;
    else if (form < 85)
        d.completion = "<think>" + thought + "</think>" + tags(answer);
    else if (form < 90)
        d.completion = thought + tags(answer);
    else if (form < 95)
        d.completion = "<think>" + thought + "</think>" + answer;
    else
        d.completion = "<think>" + thought, d.eos = chance(50);
    d.right = form < 85 && answer == q.answer;
}

World::Document World::document() {
    int lot = below(100), kind = 0;
    while (lot >= kShares[kind].percent) lot -= kShares[kind++].percent;
    Document d{.prompt = "", .completion = "", .kind = kind};
    const int tongue = below(100);
    language_ = tongue < 40 ? Language::English : tongue < 65 ? Language::Chinese : Language::Mixed;
    if (kind < 7)
        countdown_document(d, kind);
    else if (kind > 7)
        short_document(d, static_cast<Kind>(kind - 7));
    else  // a page of sums, without a question
        for (int i = 6 + below(10); i > 0;) {
            const int a = below(kLargest + 1), b = 1 + below(12);
            const char op = "+-*"[below(3)];
            if (!in_range(apply(a, op, b))) continue;
            d.completion += (d.completion.empty() ? "" : ",") + std::to_string(a) + op + std::to_string(b) +
                            "=" + std::to_string(apply(a, op, b));
            --i;
        }
    return d;
}

World::Document World::general_sample() {
    const Question q = seen(Kind::General);
    return {q.prompt(), "<think>easy </think>" + tags(q.answer), true, 10, true};
}

std::vector<std::string> words() {
    std::set<std::string> general;
    for (const Facts& facts : kFacts)
        for (const auto& [thing, answer] : facts.of) general.insert(thing), general.insert(answer);
    std::vector<std::string> all = {" no ", " yes ", "check ", "wait ", " so ",  "easy ",  "A",    "B",
                                    "C",    " 不 ",  " 对 ",   "检查 ", "等等 ", " 所以 ", "简单 "};
    for (const char* word : {"the ", "what ", "is ", "tell ", "me ", "of "}) all.push_back(word);
    for (const Facts& facts : kFacts) all.push_back(std::string(facts.relation) + " ");
    all.insert(all.end(), general.begin(), general.end());
    return all;
}

}  // namespace r1::recipe
