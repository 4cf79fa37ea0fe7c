#include "data/dataset.h"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "src/backend.h"
#include "src/error.h"
#include "src/whole_file.h"

namespace r1 {
namespace {

using nlohmann::json;

/// The built-in templates, from data/templates. r1-zero has the structure of R1-Zero's (DeepSeek-R1, table 1)
/// in our own words; boxed is what DeepSeek-R1's and Qwen2.5's model cards recommend for mathematics.
const std::map<std::string, std::string> kTemplates = {
#include "prompt_templates.inc"
};

constexpr const char *kTemplateFile = "prompt_template.txt",
                     *kPlainTemplateFile = "prompt_template.plain.txt";

std::string joined(const std::vector<std::int64_t>& numbers, const char* separator) {
    std::string text;
    for (auto n : numbers) text += (text.empty() ? "" : separator) + std::to_string(n);
    return text;
}

/// Replaces every {name} by its value; braces around anything else stay.
std::string replace(const std::string& text, const std::vector<std::pair<std::string, std::string>>& values) {
    std::string filled;
    for (std::size_t at = 0; at < text.size();) {
        bool replaced = false;
        for (const auto& [name, value] : values)
            if (text.compare(at, name.size(), name) == 0) {
                filled += value, at += name.size(), replaced = true;
                break;
            }
        if (!replaced) filled += text[at++];
    }
    return filled;
}

bool holds(const std::string& text, const char* part) { return text.find(part) != text.npos; }

std::string read_text(const std::filesystem::path& file) { return std::string(MappedFile(file).bytes()); }

/// The label of a gold choice, and the question with its choices below it.
ChoiceGold read_choices(const json& line, std::string& question) {
    const auto choices = line.at("choices").get<std::vector<std::string>>();
    const json& answer = line.at("answer");
    std::string label;
    if (!answer.is_number_integer())
        label = answer.get<std::string>();
    else if (answer >= 0 && answer < 26)
        label = std::string(1, static_cast<char>('A' + answer.get<int>()));
    const std::string normal = normalize_label(label);
    if (choices.size() > 26 || normal.size() != 1 || normal[0] < 'a' ||
        normal[0] >= 'a' + static_cast<int>(choices.size()))
        fail("the answer ", answer.dump(), " is none of the ", choices.size(), " choices");
    for (std::size_t i = 0; i < choices.size(); ++i)
        question += "\n" + std::string(1, static_cast<char>('A' + i)) + ") " + choices[i];
    return {label};
}

MathGold read_math(const json& line) {
    std::string text;
    if (const auto answer = line.find("answer"); answer != line.end()) {
        if (!answer->is_number() && !answer->is_string()) fail("the answer is neither a text nor a number");
        text = answer->is_number() ? answer->dump() : answer->get<std::string>();
        if (const auto mark = text.rfind("####"); mark != text.npos) text = text.substr(mark + 4);
    } else {
        if (!line.contains("solution")) fail("there is neither an \"answer\" nor a \"solution\"");
        const std::string solution = line.at("solution");
        const auto boxed = last_boxed(solution);
        if (!boxed) fail("the solution has no \\boxed{} answer");
        text = *boxed;
    }
    const auto value = MathAnswer::parse(text);
    if (!value) fail("the answer \"", text.substr(0, 80), "\" cannot be read as mathematics");
    return {*value};
}

std::int64_t read_integer(const json& value) {
    constexpr double limit = 1e12;
    if (!value.is_number_integer() || std::abs(value.get<double>()) > limit)
        fail("a countdown is made of integers up to 10^12, not of ", value.dump());
    return value.get<std::int64_t>();
}

Problem parse_problem(const json& line, const PromptTemplate& prompt_template) {
    const AnswerIn answer_in = prompt_template.answer_in();
    if (line.contains("nums")) {
        Countdown gold{{}, read_integer(line.at("target"))};
        for (const json& number : line.at("nums")) gold.numbers.push_back(read_integer(number));
        if (gold.numbers.empty()) fail("\"nums\" is empty");
        return {line.contains("question") ? prompt_template.fill(line.at("question").get<std::string>())
                                          : prompt_template.fill(gold),
                gold, answer_in};
    }
    if (!prompt_template.has_question())
        fail("the prompt template has no {question}; give another with --template");
    std::string question = line.contains("question") ? line.at("question") : line.at("problem");
    Gold gold = line.contains("choices") ? Gold(read_choices(line, question)) : Gold(read_math(line));
    return {prompt_template.fill(question), std::move(gold), answer_in};
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
    } catch (const json::parse_error& e) {
        fail(file, ":", line, ": not valid JSON (byte ", e.byte, " of the line)");
    } catch (const json::exception& e) {
        const std::string what = e.what();  // "[json.exception.out_of_range.403] key 'answer' not found"
        fail(file, ":", line, ": ", what.substr(std::min(what.size(), what.find("] ") + 2)));
    } catch (const Error& e) {
        fail(file, ":", line, ": ", e.what());
    }
}

}  // namespace

PromptTemplate::PromptTemplate(std::string text, std::optional<ChatFormat> chat)
    : text_(std::move(text)), chat_(std::move(chat)) {}

PromptTemplate PromptTemplate::load(const std::filesystem::path& model_folder, const std::string& choice,
                                    std::optional<ChatFormat> chat, bool plain) {
    const auto of_model = model_folder / kTemplateFile, plain_of_model = model_folder / kPlainTemplateFile;
    const bool is_plain = chat && (plain || (choice.empty() && std::filesystem::exists(plain_of_model)));
    if (is_plain) chat.reset();
    std::string text;
    if (const auto built_in = kTemplates.find(choice); built_in != kTemplates.end())
        text = built_in->second;
    else if (!choice.empty())
        text = read_text(choice);
    else if (std::filesystem::exists(plain_of_model))
        text = read_text(plain_of_model);
    else if (std::filesystem::exists(of_model))
        text = read_text(of_model);
    else
        text = kTemplates.at(chat ? "r1-chat" : "r1-zero");
    if (text.ends_with("\n")) text.pop_back();
    PromptTemplate loaded(std::move(text), std::move(chat));
    loaded.plain_ = is_plain;
    return loaded;
}

bool PromptTemplate::exists_in(const std::filesystem::path& model_folder) {
    return std::filesystem::exists(model_folder / kTemplateFile) ||
           std::filesystem::exists(model_folder / kPlainTemplateFile);
}

void PromptTemplate::save(const std::filesystem::path& folder) const {
    WholeFile file(folder / (plain_ ? kPlainTemplateFile : kTemplateFile));
    file << text_ << "\n";
    file.done();
    std::filesystem::remove(folder / (plain_ ? kTemplateFile : kPlainTemplateFile));
}

std::string PromptTemplate::finish(const std::string& user) const {
    return chat_ ? chat_->render({{"user", user}}) : user;
}

bool PromptTemplate::has_question() const { return holds(text_, "{question}"); }

AnswerIn PromptTemplate::answer_in() const {
    return holds(text_, "\\boxed") && !holds(text_, "<answer>") ? AnswerIn::Boxed : AnswerIn::Tags;
}

std::string PromptTemplate::fill(const std::string& question) const {
    return finish(has_question() ? replace(text_, {{"{question}", question}}) : question);
}

std::string PromptTemplate::fill(const Countdown& problem) const {
    if (!has_question() && !(holds(text_, "{numbers}") && holds(text_, "{target}")))
        fail("the prompt template has neither {question} nor {numbers} and {target}");
    const std::string target = std::to_string(problem.target);
    const std::string question =
        "Using each of the numbers " + joined(problem.numbers, ", ") +
        " exactly once, with + - * / and parentheses, write an expression that equals " + target + ".";
    return finish(replace(
        text_,
        {{"{question}", question}, {"{numbers}", joined(problem.numbers, ",")}, {"{target}", target}}));
}

std::vector<Problem> load_problems(const std::filesystem::path& file, const PromptTemplate& prompt_template) {
    const MappedFile mapped(file);
    std::vector<Problem> problems;
    for_each_line(mapped.bytes(), [&](std::size_t, std::string_view line, std::size_t number) {
        problems.push_back(at_line(file.string(), number,
                                   [&] { return parse_problem(json::parse(line), prompt_template); }));
        problems.back().source = line;
    });
    if (problems.empty()) fail(file.string(), ": holds no problems");
    return problems;
}

std::uint32_t Order::at(std::uint64_t i) {
    if (const auto epoch = static_cast<std::uint32_t>(i / order_.size()); epoch != epoch_) {
        epoch_ = epoch;
        std::iota(order_.begin(), order_.end(), 0u);
        for (auto k = static_cast<std::uint32_t>(order_.size()); k > 1; --k) {  // Fisher-Yates
            const std::uint32_t counter[4] = {epoch, k, 0, 0x6f726465};
            std::swap(order_[k - 1], order_[static_cast<std::size_t>(philox_uniform(seed_, counter) * k)]);
        }
    }
    return order_[i % order_.size()];
}

SftReader::SftReader(const std::filesystem::path& file, std::optional<std::uint64_t> seed,
                     std::filesystem::path model_folder)
    : name_(file.string()), file_(file), model_folder_(std::move(model_folder)) {
    for_each_line(file_.bytes(), [&](std::size_t begin, std::string_view line, std::size_t number) {
        lines_.push_back({begin, line.size(), number});
    });
    if (lines_.empty()) fail(name_, ": holds no examples");
    if (seed) order_.emplace(lines_.size(), *seed);
}

SftExample SftReader::next() {
    const Line line = lines_[order_ ? order_->at(position_) : position_ % lines_.size()];
    ++position_;
    return at_line(name_, line.number, [&]() -> SftExample {
        const json example = json::parse(file_.bytes().substr(line.begin, line.length));
        if (!example.contains("messages"))
            return {{{example.at("prompt"), false}, {example.at("completion"), true}},
                    example.value("eos", true)};
        if (!chat_) chat_ = ChatFormat::load(model_folder_);
        if (!chat_) fail("\"messages\" need a chat template, and ", model_folder_.string(), " has none");
        std::vector<Message> messages;
        for (const json& message : example["messages"])
            messages.push_back({message.at("role"), message.at("content")});
        return {chat_->segments(messages), false};
    });
}

}  // namespace r1
