#include "src/rl/measures.h"

#include <utf8proc.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <unordered_set>
#include <vector>

#include "src/rl/grpo.h"
#include "src/run/error.h"

namespace r1 {
namespace {

struct Range {
    std::uint32_t first, last;
    const char* script;
};
/// Blocks of the Unicode standard; what is in none of them (digits, punctuation, symbols) belongs
/// to no word.
constexpr Range kRanges[] = {
    {'A', 'Z', "latin"},        {'a', 'z', "latin"},          {0xc0, 0xd6, "latin"},
    {0xd8, 0xf6, "latin"},      {0xf8, 0x24f, "latin"},       {0x370, 0x3ff, "greek"},
    {0x400, 0x52f, "cyrillic"}, {0x5d0, 0x5ea, "hebrew"},     {0x620, 0x64a, "arabic"},
    {0x671, 0x6d3, "arabic"},   {0x900, 0x963, "devanagari"}, {0xe01, 0xe4e, "thai"},
    {0x1100, 0x11ff, "hangul"}, {0x1e00, 0x1eff, "latin"},    {0x3041, 0x30ff, "kana"},
    {0x3400, 0x4dbf, "han"},    {0x4e00, 0x9fff, "han"},      {0xac00, 0xd7a3, "hangul"},
    {0xf900, 0xfaff, "han"},    {0x20000, 0x323af, "han"},
};

/// The script of a code point, nothing if it is no letter.
std::string_view script_of(std::uint32_t c) {
    for (const Range& r : kRanges)
        if (c >= r.first && c <= r.last) return r.script;
    return {};
}

/// Takes one character off the front; a byte that is not UTF-8 is a character of its own, and no
/// letter.
std::uint32_t next_character(std::string_view& text) {
    utf8proc_int32_t c = 0;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto length = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size()), &c);
    text.remove_prefix(length > 0 ? static_cast<std::size_t>(length) : 1);
    return length > 0 ? static_cast<std::uint32_t>(c) : 0;
}

std::string_view thought_of(std::string_view response) {
    constexpr std::string_view open = "<think>", close = "</think>";
    const auto begin = response.find(open);
    if (begin == response.npos) return response;
    response.remove_prefix(begin + open.size());
    return response.substr(0, response.find(close));
}

/// Words between white space.
std::vector<std::string_view> split(std::string_view text) {
    std::vector<std::string_view> words;
    auto is_space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
    for (auto at = text.begin(); at != text.end();) {
        const auto begin = std::find_if_not(at, text.end(), is_space);
        at = std::find_if(begin, text.end(), is_space);
        if (begin != at) words.emplace_back(begin, at);
    }
    return words;
}

}  // namespace

const std::vector<Measure> kMeasures = {
    {"accuracy", "1 for a right answer",
     [](const Response& r, const RewardOptions&) { return r.accuracy.value; }},
    {"format", "1 for the form that the prompt asks for",
     [](const Response& r, const RewardOptions&) { return r.format.value; }},
    {"language", "share of words in --script",
     [](const Response& r, const RewardOptions& o) {
         return language_consistency(r.text, o.script);
     }},
    {"repetition", "share of runs of four words that occurred before",
     [](const Response& r, const RewardOptions&) { return repetition(r.text); }},
    {"overlong", "DAPO's punishment, 0 to -1, of a response near the longest",
     [](const Response& r, const RewardOptions& o) {
         return overlong_penalty(r.length(), o.max_new_tokens, o.overlong_cache);
     }},
    {"length", "tokens",
     [](const Response& r, const RewardOptions&) { return static_cast<double>(r.length()); }},
    {"truncated", "1 if it was cut off at the longest",
     [](const Response& r, const RewardOptions&) { return r.stopped ? 0.0 : 1.0; }},
    {"reflective_words", "words such as check and wait",
     [](const Response& r, const RewardOptions&) {
         return static_cast<double>(reflective_words(r.text));
     }},
};

void check_script(const std::string& script) {
    for (const Range& r : kRanges)
        if (script == r.script) return;
    fail(
        "unknown script \"", script,
        "\"; choose latin, greek, cyrillic, hebrew, arabic, devanagari, thai, hangul, kana or han");
}

double language_consistency(std::string_view response, const std::string& script) {
    std::string_view text = thought_of(response);
    int words = 0, right = 0;
    bool inside = false, pure = true, command = false;
    auto end_word = [&] {
        if (inside && !command) ++words, right += pure;
        inside = false, pure = true, command = false;
    };
    bool after_backslash = false;
    while (!text.empty()) {
        for (const std::string_view tag : {"<think>", "</think>", "<answer>", "</answer>"})
            if (text.starts_with(tag)) {
                end_word();
                text.remove_prefix(tag.size());
            }
        if (text.empty()) break;
        const std::uint32_t c = next_character(text);
        const std::string_view of = script_of(c);
        if (of.empty()) {
            end_word();
        } else {
            if (of == "han" || !inside) end_word();
            if (!inside) command = after_backslash && of == "latin";
            inside = true;
            pure = pure && of == script;
            if (of == "han") end_word();
        }
        after_backslash = c == '\\';
    }
    end_word();
    return words ? static_cast<double>(right) / words : 1;
}

double repetition(std::string_view text) {
    const auto words = split(text);
    if (words.size() < 5) return 0;
    const std::size_t runs = words.size() - 3;
    std::unordered_set<std::string> different;
    for (std::size_t i = 0; i < runs; ++i) {
        std::string run;
        for (std::size_t k = 0; k < 4; ++k) run.append(words[i + k]).push_back(' ');
        different.insert(std::move(run));
    }
    return 1 - static_cast<double>(different.size()) / static_cast<double>(runs);
}

int reflective_words(std::string_view text) {
    int count = 0;
    for (const std::string_view word :
         {"等等", "错误", "然而", "但是", "重试", "验证", "评估", "检查"})
        for (auto at = text.find(word); at != text.npos; at = text.find(word, at + word.size()))
            ++count;
    static const std::unordered_set<std::string> words = {"wait",     "mistake", "however", "but",
                                                          "retry",    "error",   "verify",  "wrong",
                                                          "evaluate", "check"};
    std::string word;
    auto end_word = [&] {
        count += static_cast<int>(words.count(word));
        word.clear();
    };
    for (char c : text)
        if (std::isalpha(static_cast<unsigned char>(c)))
            word += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
        else
            end_word();
    end_word();
    return count;
}

}  // namespace r1
