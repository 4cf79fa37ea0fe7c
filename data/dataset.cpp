#include "data/dataset.h"

#include <nlohmann/json.hpp>
#include <sstream>

#include "src/error.h"

namespace r1 {
namespace {

using nlohmann::json;

/// The structure of R1-Zero's template (DeepSeek-R1, table 1) in our own words.
constexpr const char* kZeroTemplate =
    "What follows is a dialogue: a user brings a problem, an assistant solves it. The assistant first works "
    "through the problem in "
    "thought and only then states the result. The thought stands between <think> and </think>, the result "
    "between <answer> and "
    "</answer>, like this: <think> the thought </think> <answer> the result </answer>.\nUser: "
    "{question}\nAssistant: ";

std::string joined(const std::vector<std::int64_t>& numbers, const char* separator) {
    std::string text;
    for (auto n : numbers) text += (text.empty() ? "" : separator) + std::to_string(n);
    return text;
}

/// Replaces every {name} by its value; braces around anything else stay.
std::string fill(std::string text, const std::vector<std::pair<std::string, std::string>>& values) {
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

Problem parse_problem(const json& line, const std::string& prompt_template) {
    if (line.contains("nums")) {
        const Countdown gold{line.at("nums").get<std::vector<std::int64_t>>(),
                             line.at("target").get<std::int64_t>()};
        if (gold.numbers.empty()) fail("\"nums\" is empty");
        const std::string question =
            "Using each of the numbers " + joined(gold.numbers, ", ") +
            " exactly once, with + - * / and parentheses, write an expression that equals " +
            std::to_string(gold.target) + ".";
        if (!holds(prompt_template, "{question}") &&
            !(holds(prompt_template, "{numbers}") && holds(prompt_template, "{target}")))
            fail("the prompt template has neither {question} nor {numbers} and {target}");
        return {fill(prompt_template, {{"{question}", question},
                                       {"{numbers}", joined(gold.numbers, ",")},
                                       {"{target}", std::to_string(gold.target)}}),
                gold};
    }
    if (!holds(prompt_template, "{question}"))
        fail("the prompt template has no {question}; give another with --template");
    std::string question = line.contains("question") ? line.at("question") : line.at("problem");
    const json& answer = line.at("answer");
    if (line.contains("choices")) {
        const auto choices = line.at("choices").get<std::vector<std::string>>();
        std::string label;
        if (answer.is_number_integer())
            label = std::string(1, static_cast<char>('A' + answer.get<int>()));
        else
            label = answer.get<std::string>();
        const std::string normal = normalize_label(label);
        if (choices.size() > 26 || normal.size() != 1 || normal[0] < 'a' ||
            normal[0] >= 'a' + static_cast<int>(choices.size()))
            fail("the answer \"", label, "\" is none of the ", choices.size(), " choices");
        for (std::size_t i = 0; i < choices.size(); ++i)
            question += "\n" + std::string(1, static_cast<char>('A' + i)) + ") " + choices[i];
        return {fill(prompt_template, {{"{question}", question}}), ChoiceGold{label}};
    }
    std::string text = answer.is_string() ? answer.get<std::string>() : answer.dump();
    if (const auto mark = text.rfind("####"); mark != text.npos) text = text.substr(mark + 4);
    const auto value = parse_number(text);
    if (!value) fail("the answer \"", text.substr(0, 80), "\" is not a number that can be read");
    return {fill(prompt_template, {{"{question}", question}}), NumberGold{*value}};
}

/// Runs `body`; what goes wrong in it is reported with file and line.
template <class Body>
auto at_line(const std::string& file, std::int64_t line, Body body) {
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

std::ifstream open(const std::filesystem::path& file) {
    if (std::filesystem::is_directory(file)) fail(file.string(), ": is a folder, not a file");
    std::ifstream in(file, std::ios::binary);
    if (!in) fail(file.string(), ": cannot be opened");
    return in;
}

}  // namespace

std::vector<Problem> load_problems(const std::filesystem::path& file, const std::string& prompt_template) {
    auto in = open(file);
    std::vector<Problem> problems;
    std::int64_t number = 0;
    for (std::string line; std::getline(in, line);) {
        ++number;
        if (line.find_first_not_of(" \t\r") == line.npos) continue;
        problems.push_back(at_line(file.string(), number,
                                   [&] { return parse_problem(json::parse(line), prompt_template); }));
    }
    if (problems.empty()) fail(file.string(), ": holds no problems");
    return problems;
}

std::string fill_question(const std::string& prompt_template, const std::string& question) {
    return holds(prompt_template, "{question}") ? fill(prompt_template, {{"{question}", question}})
                                                : question;
}

std::string load_prompt_template(const std::filesystem::path& model_folder,
                                 const std::string& template_file) {
    const auto of_model = model_folder / "prompt_template.txt";
    if (template_file.empty() && !std::filesystem::exists(of_model)) return kZeroTemplate;
    auto in = open(template_file.empty() ? of_model : std::filesystem::path(template_file));
    std::stringstream all;
    all << in.rdbuf();
    std::string text = all.str();
    if (text.ends_with("\n")) text.pop_back();
    return text;
}

SftReader::SftReader(const std::filesystem::path& file) : name_(file.string()), in_(open(file)) {}

std::optional<SftExample> SftReader::next() {
    for (std::string line; std::getline(in_, line);) {
        ++line_;
        byte_ += static_cast<std::int64_t>(line.size()) + (in_.eof() ? 0 : 1);
        if (line.find_first_not_of(" \t\r") == line.npos) continue;
        return at_line(name_, line_, [&] {
            const json example = json::parse(line);
            return SftExample{example.at("prompt"), example.at("completion"), example.value("eos", true)};
        });
    }
    return std::nullopt;
}

std::string SftReader::position() const { return std::to_string(byte_) + " " + std::to_string(line_); }

void SftReader::seek(const std::string& position) {
    std::istringstream(position) >> byte_ >> line_;
    in_.clear();
    in_.seekg(byte_);
}

}  // namespace r1
