#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "src/run/error.h"
#include "tests/support.h"
#include "tokenizer/tokenizer.h"

using namespace r1;
using namespace r1::test;
namespace fs = std::filesystem;
using nlohmann::json;
using Ids = std::vector<int>;

namespace {

Tokenizer load_text(const std::string& content, bool escaping = false) {
    const TemporaryFolder folder;
    write_file(folder / "tokenizer.json", content);
    return Tokenizer::load(folder.path, escaping);
}
Tokenizer load_json(const json& content, bool escaping = false) {
    return load_text(content.dump(), escaping);
}

std::string error_of(const std::string& content) {
    try {
        load_text(content);
    } catch (const Error& error) {
        return error.what();
    }
    return "no error";
}

std::string lacking_of(const Tokenizer& tokenizer, std::string_view text) {
    std::string lacking;
    tokenizer.encode(text, &lacking);
    return lacking;
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

/// a b c d and a space ("Ġ"), a few merges, and the two bytes of é.
json tiny() {
    return json::parse(R"({
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": null,
        "added_tokens": [],
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "Ġ": 4, "ab": 5, "bc": 6, "abc": 7, "Ġa": 8, "Ã": 9, "©": 10,
                      "Ã©": 11, "cd": 12, "abcd": 13, "-": 14, "1": 15},
            "merges": ["b c", "a b", "a bc", "Ġ a", "Ã ©", "c d"]
        }
    })");
}

json added(const std::string& content, int id, const json& flags = json::object()) {
    json token = {{"content", content}, {"id", id},        {"special", true},
                  {"lstrip", false},    {"rstrip", false}, {"single_word", false},
                  {"normalized", false}};
    token.update(flags);
    return token;
}

std::string utf8(char32_t code) {
    auto tail = [&](int shift) { return static_cast<char>(0x80 | (code >> shift & 63)); };
    if (code < 0x80) return {static_cast<char>(code)};
    if (code < 0x800) return {static_cast<char>(0xC0 | code >> 6), tail(0)};
    if (code < 0x10000) return {static_cast<char>(0xE0 | code >> 12), tail(6), tail(0)};
    return {static_cast<char>(0xF0 | code >> 18), tail(12), tail(6), tail(0)};
}

/// A vocabulary of all 256 bytes: ids are byte values, which the test's own table of the alphabet undoes.
json all_bytes() {
    json file = tiny();
    file["model"]["vocab"] = json::object();
    file["model"]["merges"] = json::array();
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
        const bool visible = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
        const int code = visible ? byte : next++;
        file["model"]["vocab"][utf8(static_cast<char32_t>(code))] = byte;
    }
    return file;
}

std::string random_text(std::mt19937& rng) {
    const std::pair<char32_t, char32_t> ranges[] = {{0, 0x7F},       {0x20, 0x7E},     {0x80, 0x7FF},
                                                    {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, 0x10FFFF}};
    std::string text;
    for (int length = rng() % 40; length > 0; --length) {
        const auto [low, high] = ranges[rng() % 6];
        text += utf8(low + rng() % (high - low + 1));
    }
    return text;
}

std::string random_bytes(std::mt19937& rng) {
    std::string bytes(rng() % 40, '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng() % 3 ? rng() : "aé€"[rng() % 6]);
    return bytes;
}

/// Whether text ends inside a character that more bytes could complete, or begins inside one.
bool cuts_a_character(const std::string& text) {
    if (text.empty()) return false;
    if ((text[0] & 0xC0) == 0x80) return true;
    size_t lead = text.size() - 1;
    while (lead > 0 && (text[lead] & 0xC0) == 0x80) --lead;
    const unsigned char byte = text[lead];
    const size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return text.size() - lead < length;
}

}  // namespace

TEST_CASE("tokenizer: merges apply by rank, then from the left") {
    const Tokenizer tokenizer = load_json(tiny());
    CHECK(tokenizer.encode("abc") == Ids{7});  // b+c first, then a+bc
    CHECK(tokenizer.encode("abab") == Ids{5, 5});
    CHECK(tokenizer.encode("bcd") == Ids{6, 3});       // bc has a lower rank than cd
    CHECK(tokenizer.encode("abcd") == Ids{7, 3});      // abcd is a token that no merge reaches
    CHECK(tokenizer.encode("a abc") == Ids{0, 4, 7});  // the merges of abc rank before that of Ġa
    CHECK(tokenizer.encode("").empty());
    CHECK(tokenizer.vocab_size() == 16);
    CHECK(tokenizer.encode(" a") == Ids{8});
    CHECK(tokenizer.decode(Ids{8}) == " a");
    CHECK(tokenizer.decode(Ids{16}).empty());
    CHECK(tokenizer.decode(Ids{7, 8, 99, -1, 11}) == "abc aé");

    json pairs = tiny();
    pairs["model"]["merges"] = json::parse(R"([["b", "c"], ["a", "b"], ["a", "bc"]])");
    pairs["model"].erase("type");  // as in GPT-2's file
    CHECK(load_json(pairs).encode("abcab") == Ids{7, 5});

    json whole_words = tiny();
    whole_words["model"]["ignore_merges"] = true;
    CHECK(load_json(whole_words).encode("abcd") == Ids{13});
    CHECK(load_json(whole_words).encode("abcda") == Ids{7, 3, 0});
}

TEST_CASE("tokenizer: the file's own splits") {
    json file = tiny();
    auto ids = [&](const char* pre_tokenizer, const char* text) {
        file["pre_tokenizer"] = json::parse(pre_tokenizer);
        return load_json(file).encode(text);
    };
    const std::string bytes = R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";
    auto split = [&](const std::string& behavior, const std::string& invert) {
        const std::string text =
            R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"String": "b"},)"
            R"("behavior": ")" +
            behavior + R"(", "invert": )" + invert + "}, " + bytes + "]}";
        return ids(text.c_str(), "abbcab");
    };
    CHECK(ids(bytes.c_str(), "abbcab") == Ids{5, 6, 5});             // ab bc ab
    CHECK(split("Isolated", "false") == Ids{0, 1, 1, 2, 0, 1});      // a|b|b|ca|b
    CHECK(split("Removed", "false") == Ids{0, 2, 0});                // a|ca
    CHECK(split("Removed", "true") == Ids{1, 1, 1});                 // b|b|b
    CHECK(split("MergedWithPrevious", "false") == Ids{5, 1, 2, 5});  // ab|b|cab
    CHECK(split("MergedWithNext", "false") == Ids{0, 1, 6, 0, 1});   // a|b|bca|b
    CHECK(split("Contiguous", "false") == Ids{0, 1, 1, 2, 0, 1});    // a|bb|ca|b
    CHECK(ids(R"({"type": "ByteLevel", "add_prefix_space": true})", "ac") == Ids{8, 2});
    CHECK(ids(R"({"type": "ByteLevel", "add_prefix_space": true})", " ac") == Ids{8, 2});

    file["model"]["vocab"]["11"] = 16;
    file["model"]["merges"].push_back("1 1");
    auto digits = [&](const std::string& individual) {
        const std::string text =
            R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": )" +
            individual + "}, " + bytes + "]}";
        return ids(text.c_str(), "a11b");
    };
    CHECK(digits("true") == Ids{0, 15, 15, 1});
    CHECK(digits("false") == Ids{0, 16, 1});
}

TEST_CASE("tokenizer: white space is Unicode's, with U+180E not part of it") {
    json file = all_bytes();
    file["model"]["ignore_merges"] = true;
    file["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\s|[^\\s]\\S"}, "behavior": "Removed"},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})");
    const Tokenizer tokenizer = load_json(file);
    for (const char* space : {" ", "\t", "\n", "\v", "\f", "\r", "\u0085", "\u00a0", "\u1680", "\u2000",
                              "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"})
        CHECK(tokenizer.encode(space).empty());
    for (const std::string other : {"x", "\u180e", "\u200b", "\ufeff", "\x1c"}) {
        CHECK(tokenizer.decode(tokenizer.encode(other)) == other);
        CHECK(tokenizer.encode(other + other).empty());
    }
}

TEST_CASE("tokenizer: added tokens and their flags") {
    json file = tiny();
    file["added_tokens"] = {added("<s>", 20),
                            added("<s>>", 21),
                            added("<l>", 22, {{"lstrip", true}}),
                            added("<r>", 23, {{"rstrip", true}, {"special", false}}),
                            added("dd", 24, {{"single_word", true}}),
                            added("<é>", 25, {{"normalized", true}})};
    const Tokenizer tokenizer = load_json(file);
    CHECK(tokenizer.encode("a<s>b") == Ids{0, 20, 1});
    CHECK(tokenizer.encode("<s>><s>") == Ids{21, 20});  // the longest of those that start together
    CHECK(tokenizer.encode("a <s> a") == Ids{0, 4, 20, 8});
    CHECK(tokenizer.encode("a \t\u00a0<l> a") == Ids{0, 22, 8});
    CHECK(tokenizer.encode("a <r>\n\u3000 a") == Ids{0, 4, 23, 0});
    CHECK(tokenizer.encode("<r>  <l>") == Ids{23, 22});  // the first takes the spaces
    CHECK(tokenizer.encode("dd-dd ddd") == Ids{24, 14, 24, 4, 3, 3, 3});
    CHECK(tokenizer.encode("add") == Ids{0, 3, 3});
    CHECK(tokenizer.encode("a<é>") == Ids{0, 25});
    CHECK(tokenizer.vocab_size() == 26);
    CHECK(tokenizer.decode(Ids{25}) == "<é>");  // an added token is text, not bytes in disguise
    CHECK(tokenizer.decode(Ids{0, 20, 23, 1}) == "a<s><r>b");
    CHECK(lacking_of(tokenizer, "<s") == "U+003C '<'");
}

TEST_CASE("tokenizer: NFC") {
    const std::string decomposed = "e\u0301";
    json file = tiny();
    file["added_tokens"] = {added("<" + decomposed + ">", 20, {{"normalized", true}}), added("(e)", 21)};
    CHECK(lacking_of(load_json(file), "a" + decomposed) == "U+0065 'e'");
    for (const char* normalizer :
         {R"({"type": "NFC"})", R"({"type": "Sequence", "normalizers": [{"type": "NFC"}]})"}) {
        file["normalizer"] = json::parse(normalizer);
        const Tokenizer tokenizer = load_json(file);
        CHECK(tokenizer.encode("a" + decomposed + "b") == Ids{0, 11, 1});
        CHECK(tokenizer.encode("<é><" + decomposed + ">") == Ids{20, 20});
        // A token that is matched before normalization separates a letter from its mark.
        CHECK(lacking_of(tokenizer, "(e)\u0301").starts_with("U+0301"));
    }
}

TEST_CASE("tokenizer: decode undoes encode on random text, and on random bytes") {
    json file = all_bytes();
    file["model"]["vocab"].update(
        {{"he", 256}, {"hel", 257}, {"Ġt", 258}, {"â\u0124", 259}});  // the last: half a "€"
    file["model"]["merges"] = {"h e", "he l", "Ġ t", "â \u0124"};
    const Tokenizer tokenizer = load_json(file);
    std::mt19937 rng(1);
    for (int i = 0; i < 2000; ++i) {
        const std::string text = i % 2 ? random_text(rng) : random_bytes(rng);
        CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
    }
    // Not UTF-8: stray continuation, cut character, overlong, surrogate, beyond U+10FFFF.
    for (const std::string bytes :
         {"\x80", "a\xE2\x82", "\xC0\xAFhel", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF\xFE"})
        CHECK(tokenizer.decode(tokenizer.encode(bytes)) == bytes);
    CHECK(tokenizer.encode("\xFFhel\xFE") == Ids{0xFF, 257, 0xFE});
    CHECK(tokenizer.encode(std::string("\0", 1)) == Ids{0});
}

TEST_CASE("tokenizer: what the vocabulary lacks is dropped, or becomes the unk_token, and is named") {
    json file = tiny();
    const Tokenizer tokenizer = load_json(file);
    CHECK(tokenizer.encode("ab€c\n") == Ids{5, 2});
    CHECK(tokenizer.encode("a\n\n\nbc") == Ids{0, 6});
    CHECK(lacking_of(tokenizer, "abc").empty());
    CHECK(lacking_of(tokenizer, "ab€c\n") == "U+20AC '€'");
    CHECK(lacking_of(tokenizer, "è") == "U+00E8 'è'");  // its first byte is known, its second is not
    CHECK(lacking_of(tokenizer, "ab\n") == "U+000A");
    CHECK(lacking_of(tokenizer, "ab\xFF") == "the byte 0xFF");
    file["model"]["unk_token"] = "c";
    CHECK(load_json(file).encode("a€b") == Ids{0, 2, 2, 2, 1});  // one for each byte
    file["model"]["unk_token"] = "<none>";
    CHECK(load_json(file).encode("ab") == Ids{5});
    CHECK_ERROR(load_json(file).encode("a\nb"), "has neither U+000A nor the unk_token \"<none>\"");
}

TEST_CASE("tokenizer: marks without end on one letter take no quadratic time") {
    json file = all_bytes();
    file["normalizer"] = {{"type", "NFC"}};
    const Tokenizer tokenizer = load_json(file);
    std::string text = "a", sorted = "a";
    const size_t n = 300'000;
    for (size_t i = 0; i < n; ++i) text += "\u0315\u0316";  // classes 232 and 220
    for (const char* mark : {"\u0316", "\u0315"})
        for (size_t i = 0; i < n; ++i) sorted += mark;
    const auto start = std::chrono::steady_clock::now();
    CHECK(tokenizer.decode(tokenizer.encode(text)) == sorted);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    CHECK(seconds.count() < 20);  // ten times the text that used to take 5 s, which was quadratic
}

TEST_CASE("tokenizer: a stream holds back half characters only") {
    const Tokenizer tokenizer = load_json(all_bytes());
    StreamDecoder euro(tokenizer);
    CHECK(euro.push('a') == "a");
    CHECK(euro.push(0xE2) == "");
    CHECK(euro.push(0x82) == "");
    CHECK(euro.push(0xAC) == "€");
    CHECK(euro.push(0xF0) == "");
    CHECK(euro.push('b') ==
          "\xF0"
          "b");  // never becomes a character
    CHECK(euro.push(0xF0) == "");
    CHECK(euro.push(0x9F) == "");
    CHECK(euro.flush() == "\xF0\x9F");
    CHECK(euro.flush() == "");
    CHECK(euro.push(0x80) == "\x80");

    std::mt19937 rng(2);
    for (int i = 0; i < 1000; ++i) {
        const bool valid = i % 2;
        const std::string text = valid ? random_text(rng) : random_bytes(rng);
        const Ids ids = tokenizer.encode(text);
        StreamDecoder stream(tokenizer);
        std::string joined;
        for (const int id : ids) {
            const std::string part = stream.push(id);
            if (valid) CHECK_FALSE(cuts_a_character(part));
            joined += part;
        }
        const std::string rest = stream.flush();
        if (valid) CHECK(rest.empty());
        CHECK(joined + rest == text);
    }
}

TEST_CASE("tokenizer: a long word takes no quadratic time") {
    json file = tiny();
    std::string token = "a";
    int id = 100;
    file["model"]["merges"] = json::array();
    for (; token.size() < 64; token += token) {
        file["model"]["vocab"][token + token] = id++;
        file["model"]["merges"].push_back({token, token});
    }
    const Tokenizer tokenizer = load_json(file);
    const size_t n = 1 << 20;
    const auto start = std::chrono::steady_clock::now();
    CHECK(tokenizer.encode(std::string(n, 'a')) == Ids(n / 64, id - 1));
    CHECK(tokenizer.encode(std::string(n, ' ')).size() == n);
    CHECK(tokenizer.encode(std::string(n, ' ') + "-").size() == n + 1);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    CHECK(seconds.count() < 60);  // a quadratic search would take hours
}

TEST_CASE("tokenizer: what is not supported is refused by name") {
    auto refused = [](const char* pointer, const json& value) {
        json file = tiny();
        file[json::json_pointer(pointer)] = value;
        const std::string error = error_of(file.dump());
        CHECK(contains(error, "tokenizer.json: "));
        return error;
    };
    CHECK(contains(refused("/model/type", "Unigram"), "Unigram"));
    CHECK(contains(refused("/model/dropout", 0.1), "dropout"));
    CHECK(contains(refused("/model/continuing_subword_prefix", "##"), "continuing_subword_prefix"));
    CHECK(contains(refused("/model/end_of_word_suffix", "</w>"), "end_of_word_suffix"));
    CHECK(contains(refused("/normalizer", {{"type", "Lowercase"}}), "Lowercase"));
    CHECK(contains(refused("/pre_tokenizer", nullptr), "ByteLevel"));
    CHECK(contains(refused("/pre_tokenizer", {{"type", "Whitespace"}}), "Whitespace"));
    const json byte_level = tiny()["pre_tokenizer"];
    auto before = [&](json step) {
        return json{{"type", "Sequence"}, {"pretokenizers", json::array({std::move(step), byte_level})}};
    };
    CHECK(contains(refused("/pre_tokenizer", before({{"type", "Punctuation"}})), "Punctuation"));
    json split = {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}};
    CHECK(contains(refused("/pre_tokenizer", before(split)), "(a"));
    for (const char* differs :
         {R"(\p{N}{1,3}+)", R"(\h)", "^ ", " $", R"(\w)", R"(\b)", R"(\X)", R"(\p{Han})", R"(\p{Lu)", "a{3}?", "a{,3}",
          "[a[b]]", "[a-z&&[^b]]", "[[:alpha:]]", "[]a]", R"([\s-z])", R"([!-\d])", "a**", "(?i)a", "(?m:a)", "(?<n>a)",
          "(?i:ss)", "(?i:\u00e9)", R"((?i:\p{Lu}))", R"((a)\1)", R"(\Qa\E)", "(*FAIL)", R"(\v)", R"(\x41)"}) {
        split["pattern"]["Regex"] = std::string("a|") + differs;
        CAPTURE(differs);
        CHECK(contains(refused("/pre_tokenizer", before(split)), std::string("holds \"")));
    }
    split["pattern"]["Regex"] = R"(\d| \h+)";
    CHECK(contains(refused("/pre_tokenizer", before(split)), R"(holds "\h+", whose start is not supported)"));
    split["pattern"]["Regex"] = "a";
    CHECK(contains(refused("/pre_tokenizer", before(byte_level)), "a step behind ByteLevel"));
    CHECK(contains(refused("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {byte_level, split}}}),
                   "a step behind ByteLevel, \"Split\""));
    CHECK(contains(refused("/post_processor", {{"type", "BertProcessing"}}), "BertProcessing"));
    split["behavior"] = "Sideways";
    CHECK(contains(refused("/pre_tokenizer", before(split)), "Sideways"));
}

TEST_CASE("tokenizer: broken files") {
    auto broken = [](const char* pointer, const json& value) {
        json file = tiny();
        file[json::json_pointer(pointer)] = value;
        return error_of(file.dump());
    };
    CHECK(contains(broken("/model/merges/1", "a x"), "merge 2, \"a x\", needs the token \"x\""));
    CHECK(contains(broken("/model/merges/1", "d d"), "needs the token \"dd\""));
    CHECK(contains(broken("/model/merges/1", "a b c"), "merge 2"));
    CHECK(contains(broken("/model/merges/1", json::array({"a"})), "merge 2"));
    CHECK(contains(broken("/model/merges/1", 7), "merge 2"));
    CHECK(contains(broken("/model/merges", nullptr), "no error"));
    CHECK(contains(broken("/model/vocab/a", -1), "\"a\" has the id -1"));
    CHECK(contains(broken("/model/vocab/a", 4e9), "\"a\" has the id"));
    CHECK(contains(broken("/model/vocab/a", 1), "two tokens have the id 1"));
    CHECK(contains(broken("/added_tokens", json::array({added("a", 30)})), "vocabulary says 0"));
    CHECK(contains(broken("/added_tokens", json::array({added("<s>", 3)})), "two tokens have the id 3"));
    CHECK(contains(broken("/added_tokens", json::array({{{"id", 3}}})), "content"));
    CHECK(contains(broken("/model/vocab", "a"), "tokenizer.json"));
    CHECK(contains(error_of("{}"), "model"));
    CHECK(contains(error_of("[1, 2]"), "tokenizer.json"));
    const std::string whole = tiny().dump();
    for (size_t size = 0; size < whole.size(); size += 7)
        CHECK(contains(error_of(whole.substr(0, size)), "tokenizer.json"));
    CHECK(contains(error_of(R"({"model": {}, "model": {}})"), "\"model\" is there twice"));
    CHECK(contains(error_of(std::string(100000, '[')), "nested deeper than"));
    CHECK_ERROR(Tokenizer::load("/nowhere/tokenizer.json"), "there is no such file");
    CHECK_THROWS_AS(Tokenizer::load(fs::temp_directory_path()), Error);
}

TEST_CASE("tokenizer: golden ids of real tokenizers") {
    const auto root = fixtures();
    if (!root) return;
    const std::map<std::string, std::string> tokenizers = {{"qwen2", "qwen2.5"},
                                                           {"deepseek-r1-qwen", "deepseek-r1-distill-qwen"},
                                                           {"llama-bpe", "llama3.1"},
                                                           {"gpt-2", "gpt2"}};
    for (const auto& entry : tokenizers) {
        const auto& golden = entry.first;
        const auto& folder = entry.second;
        CAPTURE(folder);
        const Tokenizer tokenizer = Tokenizer::load(*root / "tokenizers" / folder);
        const std::string base = root->string() + "/golden/ggml-vocab-" + golden + ".gguf";
        const std::string inputs = read_file(base + ".inp"), separator = "\n__ggml_vocab_test__\n";
        std::istringstream outputs(read_file(base + ".out"));
        size_t cases = 0, start = 0;
        for (std::string line; std::getline(outputs, line); ++cases) {
            REQUIRE(start <= inputs.size());
            const size_t end = std::min(inputs.find(separator, start), inputs.size());
            const std::string text = inputs.substr(start, end - start);
            start = end + separator.size();
            std::istringstream numbers(line);
            Ids expected;
            for (int id; numbers >> id;) expected.push_back(id);
            CAPTURE(text);
            CHECK(tokenizer.encode(text) == expected);
            CHECK(tokenizer.decode(expected) == text);
        }
        CHECK(cases == 46);
    }
}

TEST_CASE("tokenizer: real tokenizers, their own tokens and long texts") {
    const auto root = fixtures();
    if (!root) return;
    const Tokenizer r1_distill = Tokenizer::load(*root / "tokenizers/deepseek-r1-distill-qwen");
    CHECK(r1_distill.encode("<think>") == Ids{151648});
    CHECK(r1_distill.vocab_size() == 151665);
    CHECK(r1_distill.encode("<｜User｜>Hi<think>\n") == Ids{151644, 13048, 151648, 198});
    CHECK(r1_distill.decode(Ids{13048, 151900}) == "Hi");  // a row of the model without a token

    const Tokenizer qwen3 = Tokenizer::load(*root / "tokenizers/qwen3/tokenizer.json");
    CHECK(qwen3.encode("<think>") == Ids{151667});
    CHECK(qwen3.decode(qwen3.encode("<|im_start|>user\nWhat is 2+2?<|im_end|>\n")) ==
          "<|im_start|>user\nWhat is 2+2?<|im_end|>\n");
    const std::string emoji = "family 👨‍👩‍👧‍👦, 你好, 𝔘𝔫𝔦";
    StreamDecoder stream(qwen3);
    std::string joined;
    for (const int id : qwen3.encode(emoji)) {
        const std::string part = stream.push(id);
        CHECK_FALSE(cuts_a_character(part));
        joined += part;
    }
    CHECK(joined + stream.flush() == emoji);

    std::string mixed;
    for (std::mt19937 rng(3); mixed.size() < 1'000'000;)
        mixed += random_text(rng) + " it's 2024. The next line\n";
    const Tokenizer gpt2 = Tokenizer::load(*root / "tokenizers/gpt2");
    const auto start = std::chrono::steady_clock::now();
    CHECK(gpt2.decode(gpt2.encode(mixed)) == mixed);
    for (const char* unit : {"a", " ", "\n", "=", "1", "é", "<", " \n", "中"}) {
        std::string text;
        while (text.size() < 1'000'000) text += unit;
        CHECK(qwen3.decode(qwen3.encode(text)) == text);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    MESSAGE("10 texts of 1 MB: ", seconds.count(), " s");
    CHECK(seconds.count() < 300);  // generous: sanitizers, busy machines
}

TEST_CASE("tokenizer: small tokenizers, as the library reads them (tests/golden/tokenizer_rules.py)") {
    std::istringstream lines(read_file(R1_SOURCE_DIR "/tests/golden/tokenizer_rules.jsonl"));
    std::string line;
    std::getline(lines, line);
    const json base = json::parse(line);
    json file = base;
    Tokenizer tokenizer = load_json(base);
    size_t cases = 0;
    while (std::getline(lines, line)) {
        const json expected = json::parse(line);
        if (expected.contains("patch")) {
            file = base;
            file.merge_patch(expected["patch"]);
            tokenizer = load_json(file);
            continue;
        }
        ++cases;
        const std::string text = expected.at("text");
        CAPTURE(line);
        CHECK(tokenizer.encode(text) == expected.at("ids").get<Ids>());
        CHECK(tokenizer.encode(tokenizer.framed(text)) == expected.at("special").get<Ids>());
        CHECK(tokenizer.framed(tokenizer.framed(text)) == tokenizer.framed(text));  // never twice
        CHECK(tokenizer.escaped(text) == text);
        const Tokenizer escaping = load_json(file, true);
        CHECK(escaping.encode(text) == expected.at("ids").get<Ids>());
        CHECK(escaping.unescaped(escaping.escaped(text)) == text);
        if (!expected.contains("as_text")) continue;
        CHECK(escaping.encode(escaping.escaped(text)) == expected["as_text"].get<Ids>());
        // A template's tokens around it are still tokens.
        Ids framed = tokenizer.encode("<s>");
        for (const int id : expected["as_text"]) framed.push_back(id);
        CHECK(escaping.encode("<s>" + escaping.escaped(text)) == framed);
    }
    CHECK(cases > 150);
}

TEST_CASE("tokenizer: random cases written by tests/golden/tokenizer_random.py") {
    const char* path = std::getenv("R1_TOKENIZER_CASES");
    if (!path || !*path) {
        skip("R1_TOKENIZER_CASES is not set");
        return;
    }
    std::map<std::string, Tokenizer> tokenizers;
    std::istringstream lines(read_file(path));
    size_t cases = 0;
    for (std::string line; std::getline(lines, line); ++cases) {
        const json expected = json::parse(line);
        const std::string file = expected.at("tokenizer"), text = expected.at("text");
        if (!tokenizers.contains(file)) tokenizers.emplace(file, Tokenizer::load(file));
        const Tokenizer& tokenizer = tokenizers.at(file);
        const Ids ids = expected.at("ids");
        CAPTURE(line);
        CHECK(tokenizer.encode(text) == ids);
        CHECK(tokenizer.decode(ids) == expected.at("decoded").get<std::string>());
    }
    CHECK(cases > 0);
}
