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

#include "src/error.h"

namespace r1 {
namespace {

using nlohmann::json;
using std::string_view;

// ---------------------------------------------------------------------------------------------------- characters

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

/// GPT-2 writes each byte of a token as one visible character: '!'..'~', U+00A1..U+00AC and U+00AE..U+00FF stand for
/// themselves, the other 68 bytes, in order, for U+0100 and up ("Ġ" is a space).
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

// -------------------------------------------------------------------------------------------------- added tokens

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
            const auto [child, inserted] = nodes_[node].next.try_emplace(byte, static_cast<int>(nodes_.size()));
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

// ----------------------------------------------------------------------------------------------- splits into words

/// What becomes of a match, the delimiter, when a text is split at it.
enum class Behavior { Isolated, Removed, Contiguous, MergedWithPrevious, MergedWithNext };

/// One step from text to words.
struct Split {
    std::shared_ptr<pcre2_code> pattern;  // null: do not split
    Behavior behavior = Behavior::Isolated;
    bool invert = false;            // the delimiter is what lies between two matches
    bool add_prefix_space = false;  // before splitting
};

/// Tokenizer files are written for Oniguruma, whose \s is Unicode's White_Space; PCRE2's also holds U+180E (it occurs
/// in Mongolian). Spells \s and \S out; \S inside a class stays.
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
    std::shared_ptr<pcre2_code> code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                                   options, &error, &offset, nullptr),
                                     pcre2_code_free);
    if (!code) {
        char reason[128] = "";
        pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(reason), sizeof reason);
        fail(file, ": PCRE2 cannot compile the pre_tokenizer's pattern ", regex, " (", reason, ")");
    }
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // no JIT on this machine: the interpreter gives the same
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
        int found = at <= text.size() ? run() : PCRE2_ERROR_NOMATCH;
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
    bool previous_delimiter = false;
    size_t start = 0;  // of the word under construction
    for (size_t i = 0; i < pieces.size(); ++i) {
        const Piece& piece = pieces[i];
        const bool removed = split.behavior == Behavior::Removed && piece.delimiter;
        const bool next_delimiter = i + 1 < pieces.size() && pieces[i + 1].delimiter;
        bool joins_next = false;
        if (split.behavior == Behavior::Contiguous) joins_next = piece.delimiter == next_delimiter;
        if (split.behavior == Behavior::MergedWithPrevious) joins_next = !piece.delimiter && next_delimiter;
        if (split.behavior == Behavior::MergedWithNext) joins_next = piece.delimiter && !next_delimiter;
        if (i == 0 || start == piece.start) start = piece.start;
        if (!removed && (!joins_next || i + 1 == pieces.size()))
            words.push_back(text.substr(start, piece.stop - start));
        if (removed || !joins_next) start = piece.stop;
        previous_delimiter = piece.delimiter;
    }
    (void)previous_delimiter;
    return words;
}

}  // namespace
}  // namespace r1
