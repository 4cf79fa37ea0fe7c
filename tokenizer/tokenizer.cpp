#include "tokenizer/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <map>
#include <nlohmann/json.hpp>
#include <queue>
#include <tuple>
#include <unordered_map>

#include "src/run/error.h"

namespace r1 {
namespace {

using nlohmann::json;
using std::string_view;

// ---- characters ----

/// The first character of text. length 0: text is empty or does not start with valid UTF-8.
struct Character {
    int code = -1;
    size_t length = 0;
};

Character first_character(string_view text) {
    utf8proc_int32_t code = -1;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto length = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size()), &code);
    return length > 0 ? Character{code, static_cast<size_t>(length)} : Character{};
}

bool is_continuation(char byte) { return (byte & 0xC0) == 0x80; }

/// How many bytes the character that starts with this one has; 1 also for a byte that starts none.
size_t length_by_first_byte(unsigned char byte) {
    if (byte >= 0xF0 && byte <= 0xF4) return 4;
    if (byte >= 0xE0 && byte <= 0xEF) return 3;
    return byte >= 0xC2 && byte <= 0xDF ? 2 : 1;
}

/// The last character of valid UTF-8.
Character last_character(string_view text) {
    size_t start = text.size();
    while (start > 0 && is_continuation(text[--start])) {
    }
    return first_character(text.substr(start));
}

size_t valid_prefix(string_view text) {
    size_t end = 0;
    while (const size_t length = first_character(text.substr(end)).length) end += length;
    return end;
}

/// Unicode's White_Space.
bool is_space(Character c) {
    const auto category = utf8proc_category(c.code);
    return (c.code >= '\t' && c.code <= '\r') || c.code == 0x85 || category == UTF8PROC_CATEGORY_ZS ||
           category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

/// A regular expression's \w: letters, marks, digits, connectors and joiners.
bool is_word(Character c) {
    const auto category = utf8proc_category(c.code);
    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) ||
           category == UTF8PROC_CATEGORY_PC || c.code == 0x200C || c.code == 0x200D;
}

/// Normalization form C of valid UTF-8.
std::string nfc(string_view text) {
    if (std::ranges::all_of(text, [](unsigned char byte) { return byte < 0x80; })) return std::string(text);
    utf8proc_uint8_t* buffer = nullptr;
    const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                     static_cast<utf8proc_ssize_t>(text.size()), &buffer,
                                     static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(buffer, std::free);
    if (length < 0) fail("cannot bring the text into Unicode form NFC: ", utf8proc_errmsg(length));
    return {reinterpret_cast<const char*>(buffer), static_cast<size_t>(length)};
}

/// GPT-2 writes each byte of a token as one visible character: '!'..'~', U+00A1..U+00AC and U+00AE..U+00FF
/// stand for themselves, the other 68 bytes, in order, for U+0100 and up ("Ġ" is a space).
struct ByteAlphabet {
    std::array<std::string, 256> text;  // of a byte, in UTF-8
    std::map<int, char> byte;           // of a code point

    ByteAlphabet() {
        for (int value = 0, next = 256; value < 256; ++value) {
            const bool visible = (value >= '!' && value <= '~') || (value >= 0xA1 && value != 0xAD);
            const int code = visible ? value : next++;
            utf8proc_uint8_t buffer[4];
            text[value].assign(reinterpret_cast<char*>(buffer), utf8proc_encode_char(code, buffer));
            byte[code] = static_cast<char>(value);
        }
    }
};

const ByteAlphabet& alphabet() {
    static const ByteAlphabet instance;
    return instance;
}

/// The bytes behind a token's text; a text with any other character in it stands for itself.
std::string bytes_of_text(string_view text) {
    std::string bytes;
    for (size_t at = 0; at < text.size();) {
        const Character c = first_character(text.substr(at));
        const auto found = alphabet().byte.find(c.code);
        if (found == alphabet().byte.end()) return std::string(text);
        bytes += found->second;
        at += c.length;
    }
    return bytes;
}

// ---- added tokens ----

/// A token that is cut out of the text before anything else happens to it.
struct AddedToken {
    std::string content;
    int id;
    bool lstrip, rstrip;  // also swallow the white space on that side
    bool single_word;     // only where no word character touches it
};

/// A part of a text: an added token, or (id -1) text still to encode.
struct Part {
    string_view text;
    int id;
};

/// Finds added tokens: the leftmost first, of those that start together the longest.
class AddedTokens {
  public:
    void add(AddedToken token) {
        int node = 0;
        for (const char byte : token.content) {
            const auto [child, inserted] =
                nodes_[node].next.try_emplace(byte, static_cast<int>(nodes_.size()));
            node = child->second;
            if (inserted) nodes_.emplace_back();
        }
        nodes_[node].token = static_cast<int>(tokens_.size());
        tokens_.push_back(std::move(token));
    }

    std::vector<Part> split(string_view text) const {
        std::vector<Part> parts;
        size_t done = 0;
        for (size_t at = 0; at < text.size();) {
            const AddedToken* token = match(text.substr(at));
            if (!token) {
                ++at;
                continue;
            }
            size_t start = at, stop = at + token->content.size();
            at = stop;
            if (token->single_word && ((start > 0 && is_word(last_character(text.substr(0, start)))) ||
                                       (stop < text.size() && is_word(first_character(text.substr(stop))))))
                continue;
            if (token->lstrip)
                for (Character c; start > done && is_space(c = last_character(text.substr(0, start)));)
                    start -= c.length;
            if (token->rstrip)
                for (Character c; stop < text.size() && is_space(c = first_character(text.substr(stop)));)
                    stop += c.length;
            if (done < start) parts.push_back({text.substr(done, start - done), -1});
            parts.push_back({{}, token->id});
            done = stop;
            at = std::max(at, done);
        }
        if (done < text.size()) parts.push_back({text.substr(done), -1});
        return parts;
    }

  private:
    struct Node {
        std::map<char, int> next;
        int token = -1;
    };
    std::vector<AddedToken> tokens_;
    std::vector<Node> nodes_{1};  // a prefix tree over bytes; 0 is the root

    const AddedToken* match(string_view text) const {
        int longest = -1, node = 0;
        for (const char byte : text) {
            const auto child = nodes_[node].next.find(byte);
            if (child == nodes_[node].next.end()) break;
            node = child->second;
            if (nodes_[node].token >= 0) longest = nodes_[node].token;
        }
        return longest < 0 ? nullptr : &tokens_[longest];
    }
};

// ---- splits into words ----

/// What becomes of a match, the delimiter, when a text is split at it.
enum class Behavior { Isolated, Removed, Contiguous, MergedWithPrevious, MergedWithNext };

/// One step from text to words.
struct Split {
    std::shared_ptr<pcre2_code> pattern;  // null: do not split
    Behavior behavior = Behavior::Isolated;
    bool invert = false;            // the delimiter is what lies between two matches
    bool add_prefix_space = false;  // before splitting
};

/// Tokenizer files are written for Oniguruma, whose \s is Unicode's White_Space; PCRE2's also holds U+180E
/// (it occurs in Mongolian). Spells \s and \S out; \S inside a class stays.
std::string spell_out_spaces(string_view pattern) {
    const std::string space = R"(\p{Z}\x{09}-\x{0D}\x{85})";
    std::string result;
    bool in_class = false;
    for (size_t i = 0; i < pattern.size(); ++i) {
        const string_view escape = pattern[i] == '\\' ? pattern.substr(i, 2) : "";
        if (escape == "\\s") {
            result += in_class ? space : "[" + space + "]";
        } else if (escape == "\\S" && !in_class) {
            result += "[^" + space + "]";
        } else if (!escape.empty()) {
            result += escape;
        } else {
            if (pattern[i] == '[') in_class = true;
            if (pattern[i] == ']') in_class = false;
            result += pattern[i];
        }
        if (!escape.empty()) i += escape.size() - 1;
    }
    return result;
}

std::shared_ptr<pcre2_code> compile(string_view regex, bool literal, const std::string& file) {
    const std::string pattern = literal ? std::string(regex) : spell_out_spaces(regex);
    const uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP;
    int error = 0;
    size_t offset = 0;
    std::shared_ptr<pcre2_code> code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                                                   pattern.size(), options, &error, &offset, nullptr),
                                     pcre2_code_free);
    if (!code) {
        char reason[128] = "";
        pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(reason), sizeof reason);
        fail(file, ": PCRE2 cannot compile the pre_tokenizer's pattern ", regex, " (", reason, ")");
    }
    // Where there is no JIT, this fails and pcre2_match interprets the pattern: the same result, later.
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
    return code;
}

/// Cuts valid UTF-8 into words (views into text).
std::vector<string_view> split_words(string_view text, const Split& split) {
    struct Piece {
        size_t start, stop;
        bool delimiter;
    };
    std::vector<Piece> pieces;
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
        pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const size_t* range = pcre2_get_ovector_pointer(match.get());
    for (size_t at = 0, done = 0; done < text.size();) {
        // Without NO_UTF_CHECK every call would check the whole rest of the text.
        uint32_t options = PCRE2_NO_UTF_CHECK;
        auto run = [&] {
            return pcre2_match(split.pattern.get(), subject, text.size(), at, options, match.get(), nullptr);
        };
        int found = run();
        if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
            options |= PCRE2_NO_JIT;
            found = run();
        }
        if (found < 0 && found != PCRE2_ERROR_NOMATCH)
            fail("splitting a text of ", text.size(), " bytes into words failed: PCRE2 error ", found,
                 "; split the text first");
        const size_t start = found < 0 ? text.size() : range[0], stop = found < 0 ? text.size() : range[1];
        if (done < start) pieces.push_back({done, start, split.invert});
        if (start < stop) pieces.push_back({start, stop, !split.invert});
        // An empty match splits too; the next search starts one character on.
        at = start < stop ? stop : stop + std::max<size_t>(1, first_character(text.substr(stop)).length);
        done = stop;
    }

    std::vector<string_view> words;
    size_t start = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
        const bool delimiter = pieces[i].delimiter;
        if (i + 1 < pieces.size()) {
            const bool next = pieces[i + 1].delimiter;
            if (split.behavior == Behavior::Contiguous && delimiter == next) continue;
            if (split.behavior == Behavior::MergedWithPrevious && !delimiter && next) continue;
            if (split.behavior == Behavior::MergedWithNext && delimiter && !next) continue;
        }
        if (split.behavior != Behavior::Removed || !delimiter)
            words.push_back(text.substr(start, pieces[i].stop - start));
        start = pieces[i].stop;
    }
    return words;
}

/// For looking strings up by string_view.
struct StringHash {
    using is_transparent = void;
    size_t operator()(string_view text) const { return std::hash<string_view>{}(text); }
};

uint64_t pair_key(int left, int right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

// ---- encoding ----

struct Tokenizer::Tables {
    struct Merge {
        int rank, id;  // the lowest rank merges first; id of the result
    };
    std::string file;                // for errors
    std::vector<std::string> bytes;  // of each id; empty: no token
    std::vector<bool> special;       // of each id
    std::unordered_map<std::string, int, StringHash, std::equal_to<>> vocab, added;  // token text -> id
    std::array<int, 256> byte_ids;               // -1: not in the vocabulary
    std::unordered_map<uint64_t, Merge> merges;  // by pair_key
    bool ignore_merges = false;  // a word that is a token is that token, whatever the merges make of it
    bool normalize = false;      // NFC
    AddedTokens added_raw, added_normalized;  // looked for before and after normalization
    std::vector<Split> splits;

    void encode_valid(string_view text, std::vector<int>& ids) const;
    void encode_words(string_view text, size_t step, std::vector<int>& ids) const;
    void encode_word(string_view word, std::vector<int>& ids) const;
    [[noreturn]] void fail_unknown(string_view word, size_t at) const;
};

/// text is valid UTF-8.
void Tokenizer::Tables::encode_valid(string_view text, std::vector<int>& ids) const {
    for (const Part& raw : added_raw.split(text)) {
        if (raw.id >= 0) {
            ids.push_back(raw.id);
            continue;
        }
        const std::string normalized = normalize ? nfc(raw.text) : std::string(raw.text);
        for (const Part& part : added_normalized.split(normalized)) {
            if (part.id >= 0)
                ids.push_back(part.id);
            else
                encode_words(part.text, 0, ids);
        }
    }
}

/// Applies the splits from number step on, then encodes the words.
void Tokenizer::Tables::encode_words(string_view text, size_t step, std::vector<int>& ids) const {
    if (step == splits.size()) return encode_word(text, ids);
    const Split& split = splits[step];
    std::string prefixed;
    if (split.add_prefix_space && !text.starts_with(' ')) text = prefixed.append(" ").append(text);
    if (!split.pattern) return encode_words(text, step + 1, ids);
    for (const string_view word : split_words(text, split)) encode_words(word, step + 1, ids);
}

/// Byte-pair encoding: of all neighbours that may merge, the pair of lowest rank does, the leftmost first;
/// until none is left. The candidates wait in a heap: O(n log n) for n bytes, where a search for each merge
/// would take O(n^2).
void Tokenizer::Tables::encode_word(string_view word, std::vector<int>& ids) const {
    if (ignore_merges) {
        std::string text;
        for (const unsigned char byte : word) text += alphabet().text[byte];
        if (const auto found = vocab.find(text); found != vocab.end()) return ids.push_back(found->second);
    }

    struct Symbol {
        int id, previous, next;  // id -1: merged into its left neighbour; previous, next -1: none
    };
    const int n = static_cast<int>(word.size());
    std::vector<Symbol> symbols(n);
    for (int i = 0; i < n; ++i) {
        const int id = byte_ids[static_cast<unsigned char>(word[i])];
        if (id < 0) fail_unknown(word, i);
        symbols[i] = {id, i - 1, i + 1 < n ? i + 1 : -1};
    }

    using Candidate = std::tuple<int, int, int>;  // rank, left symbol, id of the result
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
    auto find_merge = [&](int left) {
        const int right = left < 0 ? -1 : symbols[left].next;
        return right < 0 ? merges.end() : merges.find(pair_key(symbols[left].id, symbols[right].id));
    };
    auto propose = [&](int left) {
        if (const auto found = find_merge(left); found != merges.end())
            candidates.emplace(found->second.rank, left, found->second.id);
    };
    for (int i = 0; i + 1 < n; ++i) propose(i);
    while (!candidates.empty()) {
        const auto [rank, left, id] = candidates.top();
        candidates.pop();
        if (symbols[left].id < 0) continue;
        const auto current = find_merge(left);  // an earlier merge may have changed either side
        if (current == merges.end() || current->second.id != id) continue;
        Symbol& symbol = symbols[left];
        Symbol& absorbed = symbols[symbol.next];
        absorbed.id = -1;
        symbol.id = id;
        symbol.next = absorbed.next;
        if (symbol.next >= 0) symbols[symbol.next].previous = left;
        propose(symbol.previous);
        propose(left);
    }
    for (int i = n > 0 ? 0 : -1; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

void Tokenizer::Tables::fail_unknown(string_view word, size_t at) const {
    std::ostringstream byte, name;
    byte << "byte 0x" << std::hex << std::uppercase << std::setfill('0') << std::setw(2)
         << static_cast<int>(static_cast<unsigned char>(word[at]));
    while (at > 0 && is_continuation(word[at])) --at;
    const Character c = first_character(word.substr(at));
    if (c.length == 0)
        fail(file, ": the vocabulary has no token for ", byte.str(), "; remove it from the text");
    name << "U+" << std::hex << std::uppercase << std::setfill('0') << std::setw(4) << c.code;
    if (c.code >= ' ' && c.code != 0x7F) name << " '" << word.substr(at, c.length) << "'";
    fail(file, ": the vocabulary cannot spell the character ", name.str(), " (it has no token for ",
         byte.str(), "); remove the character from the text or use a model that knows it");
}

std::vector<int> Tokenizer::encode(string_view text) const {
    std::vector<int> ids;
    while (!text.empty()) {
        const size_t valid = valid_prefix(text);
        if (valid > 0) tables_->encode_valid(text.substr(0, valid), ids);
        text.remove_prefix(valid);
        size_t invalid = 0;
        while (invalid < text.size() && first_character(text.substr(invalid)).length == 0) ++invalid;
        if (invalid > 0) tables_->encode_word(text.substr(0, invalid), ids);
        text.remove_prefix(invalid);
    }
    return ids;
}

// ---- decoding ----

std::string Tokenizer::decode(std::span<const int> ids, bool skip_special) const {
    std::string text;
    for (const int id : ids)
        if (!skip_special || !is_special(id)) text += token_text(id);
    return text;
}

int Tokenizer::vocab_size() const { return static_cast<int>(tables_->bytes.size()); }

std::optional<int> Tokenizer::token_id(string_view token) const {
    for (const auto* table : {&tables_->added, &tables_->vocab})
        if (const auto found = table->find(token); found != table->end()) return found->second;
    return std::nullopt;
}

std::string Tokenizer::token_text(int id) const {
    return id >= 0 && id < vocab_size() ? tables_->bytes[id] : std::string();
}

bool Tokenizer::is_special(int id) const { return id >= 0 && id < vocab_size() && tables_->special[id]; }

std::string StreamDecoder::push(int id) {
    if (!skip_special_ || !tokenizer_.is_special(id)) pending_ += tokenizer_.token_text(id);
    // Look among the last three bytes for the first byte of a character that needs more bytes than there are.
    size_t complete = pending_.size();
    for (size_t back = 1; back <= std::min<size_t>(3, pending_.size()); ++back) {
        const char byte = pending_[pending_.size() - back];
        if (is_continuation(byte)) continue;
        if (back < length_by_first_byte(byte)) complete -= back;
        break;
    }
    std::string text = pending_.substr(0, complete);
    pending_.erase(0, complete);
    return text;
}

std::string StreamDecoder::flush() { return std::exchange(pending_, {}); }

// ---- loading ----

namespace {

/// An optional string of the file; null counts as absent.
std::string text_or(const json& object, const char* key, const std::string& fallback) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? fallback : found->get<std::string>();
}

/// A step of "normalizer" or "pre_tokenizer": the object itself, or each of a Sequence.
std::vector<json> steps(const json& tokenizer, const char* key, const char* list) {
    const auto found = tokenizer.find(key);
    if (found == tokenizer.end() || found->is_null()) return {};
    if (found->at("type") != "Sequence") return {*found};
    return found->at(list).get<std::vector<json>>();
}

Split read_split(const json& step, const std::string& file) {
    // GPT-2's words: contractions, letters, digits, other symbols, white space.
    constexpr const char* gpt2 =
        R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
    const std::string type = step.at("type");
    Split split;
    if (type == "ByteLevel") {
        split.add_prefix_space = step.value("add_prefix_space", true);
        if (step.value("use_regex", true)) split.pattern = compile(gpt2, false, file);
    } else if (type == "Digits") {
        split.pattern = compile(R"(\p{N})", false, file);
        if (!step.value("individual_digits", false)) split.behavior = Behavior::Contiguous;
    } else if (type == "Split") {
        const json& pattern = step.at("pattern");
        const bool literal = pattern.contains("String");
        split.pattern = compile(pattern.at(literal ? "String" : "Regex").get<std::string>(), literal, file);
        split.invert = step.value("invert", false);
        const std::map<std::string, Behavior> behaviors = {
            {"Isolated", Behavior::Isolated},
            {"Removed", Behavior::Removed},
            {"Contiguous", Behavior::Contiguous},
            {"MergedWithPrevious", Behavior::MergedWithPrevious},
            {"MergedWithNext", Behavior::MergedWithNext}};
        const std::string behavior = step.at("behavior");
        if (!behaviors.contains(behavior))
            fail(file, ": the Split behavior \"", behavior, "\" is not supported");
        split.behavior = behaviors.at(behavior);
    } else {
        fail(file, ": the pre_tokenizer \"", type, "\" is not supported, only Split, Digits and ByteLevel");
    }
    return split;
}

/// The two sides of a merge, written "a b" or ["a", "b"].
std::pair<std::string, std::string> read_merge(const json& merge, size_t number, const std::string& file) {
    if (merge.is_array() && merge.size() == 2) return {merge[0], merge[1]};
    if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
            return {text.substr(0, space), text.substr(space + 1)};
    }
    fail(file, ": merge ", number, ", ", merge.dump(), ", is not two tokens (\"a b\" or [\"a\", \"b\"])");
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
    const auto file_path = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
    const std::string file = file_path.string();
    std::ifstream in(file_path, std::ios::binary);
    if (!in) fail("cannot open the tokenizer ", file, "; give a tokenizer.json or a folder that holds one");
    const auto tables = std::make_shared<Tables>();
    Tables& t = *tables;
    t.file = file;
    try {
        const json root = json::parse(in);
        const json& model = root.at("model");

        // A file may leave out the type, as GPT-2's does; the merges then tell.
        if (const std::string type = text_or(model, "type", model.contains("merges") ? "BPE" : "");
            type != "BPE")
            fail(file, ": the model type \"", type, "\" is not supported, only BPE");
        if (model.value("byte_fallback", false))
            fail(file, ": byte_fallback is not supported, only byte-level BPE");
        if (const auto dropout = model.find("dropout");
            dropout != model.end() && !dropout->is_null() && *dropout != 0)
            fail(file, ": dropout is not supported; set it to null");
        for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
            if (!text_or(model, key, "").empty())
                fail(file, ": ", key, " is not supported; only byte-level BPE is");
        t.ignore_merges = model.value("ignore_merges", false);

        for (const json& step : steps(root, "normalizer", "normalizers")) {
            if (step.at("type") != "NFC")
                fail(file, ": the normalizer ", step.at("type"), " is not supported, only NFC");
            t.normalize = true;
        }
        const auto pre_tokenizer = steps(root, "pre_tokenizer", "pretokenizers");
        const json last = pre_tokenizer.empty() ? json() : pre_tokenizer.back().at("type");
        if (last != "ByteLevel")
            fail(file, ": the pre_tokenizer ends in ", last,
                 ", not in ByteLevel; only byte-level BPE is supported");
        for (const json& step : pre_tokenizer) t.splits.push_back(read_split(step, file));

        auto define = [&](const std::string& text, const json& value, std::string bytes) {
            constexpr int limit = 1 << 24;
            if (!value.is_number_unsigned() || value.get<uint64_t>() >= limit)
                fail(file, ": the token ", json(text).dump(), " has the id ", value.dump(), "; ids are 0 to ",
                     limit - 1);
            const size_t id = value;
            if (t.bytes.size() <= id) t.bytes.resize(id + 1), t.special.resize(id + 1);
            if (!t.bytes[id].empty() && t.bytes[id] != bytes)
                fail(file, ": two tokens have the id ", id, ", one of them ", json(text).dump());
            t.bytes[id] = std::move(bytes);
            return static_cast<int>(id);
        };
        for (const auto& [text, id] : model.at("vocab").items())
            t.vocab[text] = define(text, id, bytes_of_text(text));
        for (int byte = 0; byte < 256; ++byte) {
            const auto found = t.vocab.find(alphabet().text[byte]);
            t.byte_ids[byte] = found == t.vocab.end() ? -1 : found->second;
        }

        size_t number = 0;
        int rank = 0;
        for (const json& merge : model.at("merges")) {
            ++number;
            if (merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version")) continue;
            const auto [left, right] = read_merge(merge, number, file);
            auto id_of = [&](const std::string& token) {
                const auto found = t.vocab.find(token);
                if (found == t.vocab.end())
                    fail(file, ": merge ", number, ", ", merge.dump(), ", needs the token ",
                         json(token).dump(), ", which is not in the vocabulary");
                return found->second;
            };
            const int left_id = id_of(left), right_id = id_of(right);
            t.merges[pair_key(left_id, right_id)] = {rank++, id_of(left + right)};
        }

        for (const json& entry : root.value("added_tokens", json::array())) {
            const std::string content = entry.at("content");
            if (content.empty()) continue;
            if (const auto found = t.vocab.find(content); found != t.vocab.end()) {
                if (entry.at("id") != found->second)
                    fail(file, ": the added token ", json(content).dump(), " has the id ",
                         entry.at("id").dump(), ", but the vocabulary says ", found->second);
                t.bytes[found->second] = content;  // an added token stands for its text, not for bytes
            }
            const int id = define(content, entry.at("id"), content);
            t.added[content] = id;
            t.special[id] = entry.value("special", false);
            const bool normalized = entry.value("normalized", false);
            (normalized ? t.added_normalized : t.added_raw)
                .add({.content = normalized && t.normalize ? nfc(content) : content,
                      .id = id,
                      .lstrip = entry.value("lstrip", false),
                      .rstrip = entry.value("rstrip", false),
                      .single_word = entry.value("single_word", false)});
        }
    } catch (const json::exception& error) {
        fail(file, ": not a tokenizer.json that can be read: ", error.what());
    }
    return Tokenizer(tables);
}

}  // namespace r1
