#include "src/rl/dataset.h"

#include <cmath>
#include <cstdio>
#include <numeric>

#include "src/device/formulas.h"
#include "src/run/files.h"
#include "src/run/json.h"

namespace r1 {
namespace {

using nlohmann::json;

/// For a line that lacks something: a key may only be misspelt, so the message lists those that are
/// there.
[[noreturn]] void fail_wanting(const json& line, const char* sentence) {
    std::string keys;
    for (const auto& [key, value] : line.items())
        keys += (keys.empty() ? "" : ", ") + shown(json(key));
    fail(sentence, " (the keys of this line: ", keys.empty() ? "none" : keys, ")");
}

const std::string& text_at(const json& line, const char* key) {
    const json& value = line.at(key);
    if (!value.is_string()) fail("\"", key, "\" is ", shown(value), ", but must be a text");
    return value.get_ref<const std::string&>();
}

/// "match": whether an answer is compared as text, and not as mathematics.
bool matches_text(const json& line) {
    const json match = line.value("match", json("math"));
    if (match != "math" && match != "text")
        fail("\"match\" is ", shown(match),
             ", but must be \"math\" (which it is without this key) or \"text\"");
    return match == "text";
}

/// Labels are the letters A to Z.
constexpr std::size_t kMostChoices = 26;

std::vector<std::string> read_choices(const json& line) {
    const json& choices = line.at("choices");
    if (!choices.is_array() ||
        !std::all_of(choices.begin(), choices.end(), [](const json& c) { return c.is_string(); }))
        fail("\"choices\" is ", shown(choices), ", but must be a list of texts");
    if (choices.empty() || choices.size() > kMostChoices)
        fail("\"choices\" holds ", choices.size(), " texts; 1 to ", kMostChoices,
             " can be labelled");
    return choices.get<std::vector<std::string>>();
}

ChoiceGold read_right_choice(const json& answer, std::vector<std::string> choices) {
    if (!answer.is_number_integer() && !answer.is_string())
        fail("\"answer\" is ", shown(answer),
             ", but must be a choice: its label, its index from 0 or its text");
    std::optional<std::size_t> right;
    if (answer.is_string())
        right = choice_of(answer.get_ref<const std::string&>(), choices);
    else if (answer >= 0 && answer < choices.size())
        right = answer.get<std::size_t>();
    if (!right)
        fail("the answer ", shown(answer), " is not one of the ", choices.size(),
             " choices, by label, by index from 0 or by text");
    if (std::ranges::count_if(choices,
                              [&](const auto& c) { return trim(c) == trim(choices[*right]); }) > 1)
        fail("the right choice, ", shown(json(choices[*right])), ", is there twice");
    return {std::move(choices), *right};
}

struct UnreadableAnswer : Error {
    using Error::Error;
};

/// The text of a gold answer, out of what stands around it.
std::string answer_text(const json& line) {
    if (const auto answer = line.find("answer"); answer != line.end()) {
        if (answer->is_number()) return answer->dump();
        if (!answer->is_string())
            fail("\"answer\" is ", shown(*answer), ", but must be a text or a number",
                 answer->is_array() ? "; write a list as one text, \"1, 2\"" : "");
        const std::string text = *answer;
        const auto mark = text.rfind("####");
        return mark == text.npos ? text : text.substr(mark + 4);
    }
    const auto boxed = last_boxed(text_at(line, "solution"));
    if (!boxed) throw UnreadableAnswer("the solution has no \\boxed{} answer");
    return *boxed;
}

Gold read_answer(const json& line) {
    const std::string text = answer_text(line), start = shown(json(text));
    if (matches_text(line)) {
        if (trim(text).empty()) fail("\"answer\" is an empty text");
        if (text.size() > kLongestAnswer)
            fail("the answer ", start, " is longer than ", kLongestAnswer,
                 " bytes, and no response may state that much");
        return TextGold{text};
    }
    const auto value = MathAnswer::parse(text);
    if (!value)
        throw UnreadableAnswer("the answer " + start +
                               " cannot be read as mathematics; with \"match\": \"text\" it is "
                               "compared as text, and --skip-unreadable leaves it out");
    return MathGold{*value};
}

std::int64_t read_integer(const json& value) {
    constexpr double limit = 1e12;
    if (!value.is_number_integer() || std::abs(value.get<double>()) > limit)
        fail("a countdown is made of integers up to 10^12, not of ", shown(value));
    return value.get<std::int64_t>();
}

Countdown read_countdown(const json& line) {
    const json& numbers = line.at("nums");
    if (!numbers.is_array() || numbers.empty())
        fail("\"nums\" is ", shown(numbers), ", but must be a list of integers");
    if (!line.contains("target")) fail_wanting(line, "there is no \"target\" beside \"nums\"");
    Countdown gold{{}, read_integer(line.at("target"))};
    for (const json& number : numbers) gold.numbers.push_back(read_integer(number));
    return gold;
}

Problem parse_problem(const json& line, const PromptTemplate& prompt_template, Answers answers) {
    const AnswerIn answer_in = prompt_template.answer_in();
    if (line.contains("nums")) {
        const Countdown gold = read_countdown(line);
        return {line.contains("question") ? prompt_template.fill(text_at(line, "question"))
                                          : prompt_template.fill(gold),
                gold, answer_in};
    }
    if (!line.contains("question") && !line.contains("problem"))
        fail_wanting(
            line, "a problem must have a \"question\", a \"problem\", or \"nums\" and \"target\"");
    if (!prompt_template.has_question())
        fail("the prompt template has no {question}; give another with --template");
    std::string question = text_at(line, line.contains("question") ? "question" : "problem");
    const bool choose = line.contains("choices");
    const auto choices = choose ? read_choices(line) : std::vector<std::string>{};
    for (std::size_t i = 0; i < choices.size(); ++i)
        question += "\n" + std::string(1, static_cast<char>('A' + i)) + ") " + choices[i];
    Gold gold = NoGold{};
    if (line.contains("answer") || (line.contains("solution") && !choose))
        gold = choose ? read_right_choice(line.at("answer"), choices) : read_answer(line);
    else if (answers == Answers::Required)
        fail_wanting(
            line,
            "there is no \"answer\"; give one, or leave accuracy out of --reward and correct out of --keep");
    return {prompt_template.fill(question), std::move(gold), answer_in};
}

Message parse_message(const json& line) {
    if (!line.is_object() || !line.contains("role") || !line.contains("content"))
        fail("a message must be {\"role\": ..., \"content\": ...}, not ", shown(line));
    const std::string &role = text_at(line, "role"), &content = text_at(line, "content");
    Message message{role, content};
    for (const auto& [key, value] : line.items()) {
        if (key == "role" || key == "content" || value.is_null()) continue;
        if (key != "reasoning_content" || message.role != "assistant")
            fail("the key ", shown(json(key)), " of a message of the ", message.role,
                 " is not supported; role and content are, and reasoning_content of the assistant");
        message.thought = text_at(line, key.c_str());
    }
    return message;
}

SftExample parse_example(const json& line, const std::filesystem::path& model_folder,
                         std::optional<ChatFormat>& chat) {
    if (!line.contains("messages")) {
        if (!line.contains("prompt") || !line.contains("completion"))
            fail_wanting(line,
                         "an example must have a \"prompt\" and a \"completion\", or \"messages\"");
        const json eos = line.value("eos", json(true));
        if (!eos.is_boolean()) fail("\"eos\" is ", shown(eos), ", but must be true or false");
        const std::string &prompt = text_at(line, "prompt"),
                          &completion = text_at(line, "completion");
        return {.segments = {{prompt, false}, {completion, true}}, .eos = eos.get<bool>()};
    }
    if (!chat) chat = ChatFormat::load(model_folder);
    if (!chat) fail("\"messages\" need a chat template, and ", model_folder.string(), " has none");
    for (const char* key : {"tools", "chat_template_kwargs"})
        if (line.contains(key) && !line.at(key).empty())
            fail("\"", key, "\" beside \"messages\" is not supported");
    const json& list = line.at("messages");
    if (!list.is_array() || list.empty())
        fail("\"messages\" is ", shown(list),
             ", but must be a list of {\"role\": ..., \"content\": ...}");
    std::vector<Message> messages;
    for (const json& message : list) messages.push_back(parse_message(message));
    return {.segments = chat->segments(messages), .eos = false, .chat = true};
}

/// Marks the special tokens in every text of an example.
void escape(json& value, const Tokenizer& tokenizer) {
    if (value.is_string()) value = tokenizer.escaped(value.get_ref<const std::string&>());
    if (value.is_structured())
        for (json& part : value) escape(part, tokenizer);
}

/// Where a text begins, behind white space and the mark that some editors put before UTF-8.
std::string_view without_mark(std::string_view text) {
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
    return text.substr(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
}

json parse_object(std::string_view line) {
    const std::string_view text = without_mark(line);
    if (!text.starts_with("{"))
        fail("a line must be one JSON object, {...}, but this one begins with ",
             shown(json(text.substr(0, 20))));
    if (text[text.find_last_not_of(" \t\r")] != '}')
        fail("the line ends within a JSON object; each must be on one line (jq -c . does that)");
    return parse_json(text, "the line");
}

/// A file with an object on each line, or a sentence that says what it is instead.
std::string read_lines(const std::filesystem::path& file) {
    if (std::filesystem::is_directory(file))
        fail(file, ": is a folder; a file with one JSON object a line is wanted");
    std::string text = read_input(file, kLargestData);
    if (without_mark(text).starts_with("["))
        fail(file, ": is one JSON array; one object a line is wanted (jq -c '.[]' ", file,
             " > ...)");
    return text;
}

/// body(offset, line, line number) for every line that is not blank.
template <class Body>
void for_each_line(std::string_view text, Body body) {
    std::size_t number = 0;
    for (std::size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
        end = std::min(text.find('\n', begin), text.size());
        const std::string_view line = text.substr(begin, end - begin);
        ++number;
        if (line.find_first_not_of(" \t\r") != line.npos) body(begin, line, number);
    }
}

/// Runs `body`; what goes wrong in it is reported with file and line.
template <class Body>
auto at_line(const std::string& file, std::size_t line, Body body) {
    try {
        return body();
    } catch (const Error& e) {
        fail(file, ":", line, ": ", e.what());
    }
}

}  // namespace

std::vector<Problem> load_problems(const std::filesystem::path& file,
                                   const PromptTemplate& prompt_template, Answers answers,
                                   bool skip_unreadable) {
    const std::string text = read_lines(file);
    std::vector<Problem> problems;
    std::string first;
    std::size_t skipped = 0;
    for_each_line(text, [&](std::size_t, std::string_view line, std::size_t number) {
        const std::string place = file.string() + ":" + std::to_string(number);
        at_line(file.string(), number, [&] {
            try {
                problems.push_back(parse_problem(parse_object(line), prompt_template, answers));
            } catch (const UnreadableAnswer& e) {
                if (!skip_unreadable) throw;
                if (skipped++ == 0) first = place + ": " + e.what();
                return;
            }
            problems.back().source = line;
            problems.back().place = place;
            problems.back().id = static_cast<std::uint32_t>(problems.size() - 1);
        });
    });
    if (skipped > 0)
        std::fprintf(stderr,
                     "note: %zu of %zu problems are left out, since their answers cannot "
                     "be read; the first: %s\n",
                     skipped, skipped + problems.size(), first.c_str());
    if (problems.empty())
        fail(
            file,
            R"(: holds no problems; one a line is wanted, such as {"question": "1+1?", "answer": "2"})");
    return problems;
}

std::vector<Problem> limited(std::vector<Problem> problems, int limit) {
    const auto n = static_cast<std::size_t>(limit);
    if (n == 0 || problems.size() <= n) return problems;
    std::vector<Problem> some;
    for (std::size_t i = 0; i < n; ++i) {
        some.push_back(problems[i * problems.size() / n]);
        some.back().id = static_cast<std::uint32_t>(i);
    }
    return some;
}

void LackingNote::add(const std::string& place, const std::string& character) {
    if (character.empty() || count++ > 0) return;
    first = place.empty() ? "the prompt" : place;
    first += ": the vocabulary lacks " + character;
}

void LackingNote::print() const {
    if (count > 0)
        std::fprintf(stderr,
                     "note: %s, so the model does not see it; texts with such characters: %zu\n",
                     first.c_str(), count);
}

int encode_prompts(std::vector<Problem>& problems, const Tokenizer& tokenizer, int context) {
    int longest = 0;
    LackingNote note;
    for (Problem& p : problems) {
        const std::string where = p.place.empty() ? "" : p.place + ": ";
        std::string lacking;
        try {
            p.tokens = tokenizer.encode(p.prompt, &lacking);
            p.prompt = tokenizer.unescaped(p.prompt);
        } catch (const Error& e) {
            fail(where, e.what());
        }
        const int length = static_cast<int>(p.tokens.size());
        if (length == 0)
            fail(where, "the prompt has no token: it is empty, or the vocabulary lacks all of it");
        if (length >= context)
            fail(where, "the prompt has ", length,
                 " tokens, which leaves no room in the model's context of ", context);
        note.add(p.place, lacking);
        longest = std::max(longest, length);
    }
    note.print();
    return longest;
}

std::uint32_t Order::at(std::uint64_t i) {
    if (const auto epoch = static_cast<std::uint32_t>(i / order_.size()); epoch != epoch_) {
        epoch_ = epoch;
        std::iota(order_.begin(), order_.end(), 0u);
        for (auto k = static_cast<std::uint32_t>(order_.size()); k > 1; --k) {  // Fisher-Yates
            const std::uint32_t counter[4] = {epoch, k, 0, 0x6f726465};
            std::swap(order_[k - 1],
                      order_[static_cast<std::size_t>(philox_uniform(seed_, counter) * k)]);
        }
    }
    return order_[i % order_.size()];
}

SftReader::SftReader(const std::filesystem::path& file, std::optional<std::uint64_t> seed,
                     std::filesystem::path model_folder, std::optional<Tokenizer> tokenizer)
    : name_(file.string()),
      text_(read_lines(file)),
      model_folder_(std::move(model_folder)),
      tokenizer_(std::move(tokenizer)) {
    for_each_line(text_, [&](std::size_t begin, std::string_view line, std::size_t number) {
        lines_.push_back({begin, line.size(), number});
    });
    if (lines_.empty())
        fail(
            name_,
            R"(: holds no examples; one a line is wanted, such as {"prompt": "1+1=", "completion": "2"})");
    if (seed) shuffle(*seed);
}

SftExample SftReader::next() {
    const Line line = lines_[order_ ? order_->at(position_) : position_ % lines_.size()];
    ++position_;
    SftExample example = at_line(name_, line.number, [&] {
        json object = parse_object(std::string_view(text_).substr(line.begin, line.length));
        if (tokenizer_) escape(object, *tokenizer_);
        return parse_example(object, model_folder_, chat_);
    });
    example.place = name_ + ":" + std::to_string(line.number);
    return example;
}

}  // namespace r1
