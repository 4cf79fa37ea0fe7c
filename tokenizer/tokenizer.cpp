#include "tokenizer/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "src/run/error.h"
#include "src/run/files.h"
#include "src/run/json.h"

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
    return (c.code >= '\t' && c.code <= '\r') || c.code == 0x85 ||
           category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
           category == UTF8PROC_CATEGORY_ZP;
}

/// A regular expression's \w: letters, marks, digits, connectors and joiners.
bool is_word(Character c) {
    const auto category = utf8proc_category(c.code);
    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) ||
           category == UTF8PROC_CATEGORY_PC || c.code == 0x200C || c.code == 0x200D;
}

/// Normalization form C of valid UTF-8. utf8proc composes; the marks on a letter are sorted here,
/// since it takes quadratic time for that.
std::string nfc(string_view text) {
    if (std::ranges::all_of(text, [](unsigned char byte) { return byte < 0x80; }))
        return std::string(text);
    constexpr auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    std::vector<utf8proc_int32_t> codes;
    for (Character c; (c = first_character(text)).length > 0; text.remove_prefix(c.length)) {
        utf8proc_int32_t parts[4];  // no canonical decomposition is longer
        const auto n = utf8proc_decompose_char(c.code, parts, 4, options, nullptr);
        codes.insert(codes.end(), parts, parts + n);
    }
    const auto order = [](int code) { return utf8proc_get_property(code)->combining_class; };
    for (auto begin = codes.begin(); begin != codes.end();) {
        const auto end = std::ranges::find(begin, codes.end(), 0, order);
        std::ranges::stable_sort(begin, end, {}, order);
        begin = end == codes.end() ? end : end + 1;
    }
    codes.push_back(0);  // room for the end mark that reencode writes
    const auto length =
        utf8proc_reencode(codes.data(), static_cast<utf8proc_ssize_t>(codes.size() - 1), options);
    return {reinterpret_cast<const char*>(codes.data()), static_cast<size_t>(length)};
}

/// GPT-2 writes each byte of a token as one visible character: '!'..'~', U+00A1..U+00AC and
/// U+00AE..U+00FF stand for themselves, the other 68 bytes, in order, for U+0100 and up ("Ġ" is a
/// space).
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

/// Stands before a special token that is plain text: a code point that Unicode reserves for such
/// use within a program, U+FDD0.
constexpr string_view kPlain = "\xEF\xB7\x90";

std::string without_marks(string_view text) {
    std::string result;
    for (size_t at; (at = text.find(kPlain)) != text.npos; text.remove_prefix(at + kPlain.size()))
        result += text.substr(0, at);
    return result.append(text);
}

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

    /// The one that the text begins with.
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

    /// escaping: where kPlain stands, none begins.
    std::vector<Part> split(string_view text, bool escaping) const {
        std::vector<Part> parts;
        size_t done = 0;
        for (size_t at = 0; at < text.size();) {
            if (escaping && text.substr(at).starts_with(kPlain)) {
                at += kPlain.size() + 1;
                continue;
            }
            const AddedToken* token = match(text.substr(at));
            if (!token) {
                ++at;
                continue;
            }
            size_t start = at, stop = at + token->content.size();
            at = stop;
            if (token->single_word &&
                ((start > 0 && is_word(last_character(text.substr(0, start)))) ||
                 (stop < text.size() && is_word(first_character(text.substr(stop))))))
                continue;
            if (token->lstrip)
                for (Character c;
                     start > done && is_space(c = last_character(text.substr(0, start)));)
                    start -= c.length;
            if (token->rstrip)
                for (Character c;
                     stop < text.size() && is_space(c = first_character(text.substr(stop)));)
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
};

// ---- splits into words ----

/// What becomes of a match, the delimiter, when a text is split at it.
enum class Behavior { Isolated, Removed, Contiguous, MergedWithPrevious, MergedWithNext };

/// A pattern that several threads may use.
class Regex {
  public:
    /// where: what holds the pattern, for the error.
    Regex(string_view pattern, uint32_t options, const std::string& where) {
        int error = 0;
        size_t offset = 0;
        code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  options | PCRE2_UTF, &error, &offset, nullptr),
                    pcre2_code_free);
        if (!code_) {
            char reason[128] = "";
            pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(reason), sizeof reason);
            fail(where, ": PCRE2 cannot compile the pattern ", pattern, " (", reason, ")");
        }
        // Where there is no JIT, this fails and pcre2_match interprets the pattern: the same
        // result, later.
        pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
    }

    /// Where the first match in valid UTF-8 from `at` on begins and ends; twice the text's end if
    /// there is none.
    std::pair<size_t, size_t> find(string_view text, size_t at) const {
        thread_local const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>
            match(pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
        // Without NO_UTF_CHECK every call would check the whole rest of the text.
        const auto run = [&](uint32_t options) {
            return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                               at, options | PCRE2_NO_UTF_CHECK, match.get(), nullptr);
        };
        int found = run(0);
        if (found == PCRE2_ERROR_JIT_STACKLIMIT)
            found = run(PCRE2_NO_JIT);  // which keeps its stack on the heap
        if (found == PCRE2_ERROR_NOMATCH) return {text.size(), text.size()};
        if (found < 0)
            fail("searching a text of ", text.size(), " bytes failed: PCRE2 error ", found,
                 "; split the text first");
        const size_t* range = pcre2_get_ovector_pointer(match.get());
        return {range[0], range[1]};
    }

  private:
    std::shared_ptr<pcre2_code> code_;
};

/// Split patterns are written for Oniguruma. This matches as much of one, from its start, as means
/// the same to PCRE2. Left out are {n,m}+ (there a repetition of repetitions), {n}? (there an
/// option) and {,n}; ^ and $; nested classes and &&; \h, \w, \b, scripts; and, where case does not
/// matter, what folds to two letters ("ss").
constexpr string_view kCommonSyntax = R"((?x)\A(?(DEFINE)
    (?<category>   C[cfno]? | L[ulmto]? | M[nce]? | N[dlo]? | P[cdsefio]? | S[mcko]? | Z[slp]? )
    (?<set>        \\ (?: [dDsS] | [pP] \{ \^? (?&category) \} ) )
    (?<escape>     \\ (?: [nrtf[:punct:]\ ] | x \{ [[:xdigit:]]{1,6} \} ) )
    (?<class>      \[ \^? (?! \] ) -? (?: (?&set) (?! - [^]] ) | (?&escape) | - (?! \\ [dDpPsS] )
                                        | & (?! & ) | [^][\\&-] )* \] )
    (?<quantifier> (?: [*+?] [+?]? | \{ \d+ , \d* \} \?? | \{ \d+ \} ) (?! [*+?{] ) )
    (?<group>      \( (?: (?! [*?] ) | \? (?: [:=!>] | < [=!] ) ) )
    (?<caseless>   \( \? i: (?! [^)]* (?i: ff | fi | fl | ss | st ) )
                   (?: ['a-zA-Z\ |] | \[ ['a-zA-Z]+ \] | (?&quantifier) )* \) ) )
    (?: (?&set) | (?&escape) | (?&class) | (?&quantifier) | (?&group) | (?&caseless)
      | [^\\^$*+?({[] )*+)";

/// PCRE2's \s also holds U+180E, which occurs in Mongolian: spells \s and \S out.
std::string spell_out_spaces(string_view pattern) {
    const std::string
        space = R"(\x{09}-\x{0D}\x{85}\p{Z})",
        rest = R"(\x{00}-\x{08}\x{0E}-\x{1F}\x{7F}-\x{84}\x{86}-\x{9F}\p{Cf}\p{Cn}\p{Co})"
               R"(\p{L}\p{M}\p{N}\p{P}\p{S})";
    std::string result;
    bool in_class = false;
    for (size_t i = 0; i < pattern.size(); ++i) {
        const string_view escape = pattern[i] == '\\' ? pattern.substr(i, 2) : "";
        if (escape == "\\s" || escape == "\\S") {
            const std::string& set = escape == "\\s" ? space : rest;
            result += in_class ? set : "[" + set + "]";
        } else {
            if (pattern[i] == '[') in_class = true;
            if (pattern[i] == ']') in_class = false;
            result += escape.empty() ? pattern.substr(i, 1) : escape;
        }
        if (!escape.empty()) ++i;
    }
    return result;
}

Regex split_pattern(string_view pattern, const std::string& file) {
    static const Regex common(kCommonSyntax, 0, "");
    const size_t read = common.find(pattern, 0).second;
    if (read < pattern.size())
        fail(file, ": the split pattern ", pattern, " holds \"", pattern.substr(read),
             "\", whose start is not supported: PCRE2 may read it otherwise than Oniguruma");
    // PCRE2 10.42 takes .+ or \P{Lt}+ for possessive where what follows could need some of it.
    return Regex(spell_out_spaces(pattern), PCRE2_UCP | PCRE2_NO_AUTO_POSSESS, file);
}

/// One step from text to words.
struct Split {
    std::optional<Regex> pattern{};  // nothing: do not split
    Behavior behavior = Behavior::Isolated;
    bool invert = false;            // the delimiter is what lies between two matches
    bool add_prefix_space = false;  // before splitting
};

/// Cuts valid UTF-8 into words (views into text).
std::vector<string_view> split_words(string_view text, const Split& split) {
    struct Piece {
        size_t start, stop;
        bool delimiter;
    };
    std::vector<Piece> pieces;
    for (size_t at = 0, done = 0; done < text.size();) {
        const auto [start, stop] = split.pattern->find(text, at);
        if (done < start) pieces.push_back({done, start, split.invert});
        if (start < stop) pieces.push_back({start, stop, !split.invert});
        // An empty match splits too; the next search starts one character on.
        at = start < stop ? stop
                          : stop + std::max<size_t>(1, first_character(text.substr(stop)).length);
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
    std::unordered_map<std::string, int, StringHash, std::equal_to<>> vocab;  // token text -> id
    std::array<int, 256> byte_ids;                   // -1: not in the vocabulary
    std::array<std::vector<int>, 256> fallback_ids;  // of such a byte, as byte_fallback spells it
    std::optional<std::string> unk_token;            // stands for a byte that has neither
    int unk_id = -1;
    bool fuse_unk = false;                       // one unk_token for all such bytes in a row
    std::string before, behind;                  // what the post_processor puts around a text
    std::unordered_map<uint64_t, Merge> merges;  // by pair_key
    bool ignore_merges =
        false;               // a word that is a token is that token, whatever the merges make of it
    bool normalize = false;  // NFC
    AddedTokens added_raw, added_normalized;  // looked for before and after normalization
    AddedTokens special;                      // those of them that are
    std::vector<Split> splits;

    struct Result {
        std::vector<int> ids;
        std::string lacking;  // the first character that the vocabulary lacks
    };
    void encode_valid(string_view text, bool escaping, Result& result) const;
    void encode_words(string_view text, size_t step, Result& result) const;
    void encode_word(string_view word, Result& result) const;
};

/// text is valid UTF-8.
void Tokenizer::Tables::encode_valid(string_view text, bool escaping, Result& result) const {
    for (const Part& raw : added_raw.split(text, escaping)) {
        if (raw.id >= 0) {
            result.ids.push_back(raw.id);
            continue;
        }
        const std::string normalized = normalize ? nfc(raw.text) : std::string(raw.text);
        for (const Part& part : added_normalized.split(normalized, escaping)) {
            if (part.id >= 0)
                result.ids.push_back(part.id);
            else if (escaping)
                encode_words(without_marks(part.text), 0, result);
            else
                encode_words(part.text, 0, result);
        }
    }
}

/// Applies the splits from number step on, then encodes the words.
void Tokenizer::Tables::encode_words(string_view text, size_t step, Result& result) const {
    if (step == splits.size()) return encode_word(text, result);
    const Split& split = splits[step];
    std::string prefixed;
    if (split.add_prefix_space && !text.starts_with(' ')) text = prefixed.append(" ").append(text);
    if (!split.pattern) return encode_words(text, step + 1, result);
    for (const string_view word : split_words(text, split)) encode_words(word, step + 1, result);
}

/// What the vocabulary lacks, as a person names it: the character that the byte is a part of.
std::string name_of(string_view word, size_t at) {
    char name[16];
    const int byte = static_cast<unsigned char>(word[at]);
    while (at > 0 && is_continuation(word[at])) --at;
    const Character c = first_character(word.substr(at));
    const bool valid = c.length > 0, visible = c.code >= ' ' && c.code != 0x7F;
    std::snprintf(name, sizeof name, valid ? "U+%04X" : "the byte 0x%02X", valid ? c.code : byte);
    return visible ? name + (" '" + std::string(word.substr(at, c.length)) + "'") : name;
}

/// Byte-pair encoding: of all neighbours that may merge, the pair of lowest rank does, the leftmost
/// first; until none is left. The candidates wait in a heap: O(n log n) for n bytes, where a search
/// for each merge would take O(n^2).
void Tokenizer::Tables::encode_word(string_view word, Result& result) const {
    if (ignore_merges) {
        std::string text;
        for (const unsigned char byte : word) text += alphabet().text[byte];
        if (const auto found = vocab.find(text); found != vocab.end())
            return result.ids.push_back(found->second);
    }

    struct Symbol {
        int id, previous, next;  // id -1: merged into its left neighbour; previous, next -1: none
    };
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    auto add = [&](int id) {
        const int i = static_cast<int>(symbols.size());
        symbols.push_back({id, i - 1, i + 1});
    };
    bool unknown = false;  // an unk_token is due; the library lets it wait for the next byte
    for (size_t i = 0; i < word.size(); ++i) {
        const auto byte = static_cast<unsigned char>(word[i]);
        if (byte_ids[byte] >= 0) {
            if (std::exchange(unknown, false)) add(unk_id);
            add(byte_ids[byte]);
            continue;
        }
        for (const int id : fallback_ids[byte]) add(id);
        if (!fallback_ids[byte].empty()) continue;
        if (result.lacking.empty()) result.lacking = name_of(word, i);
        if (!unk_token) continue;
        if (unk_id < 0)
            fail(file, ": the vocabulary has neither ", result.lacking, " nor the unk_token \"",
                 *unk_token, "\"; remove the character from the text");
        if (unknown && !fuse_unk) add(unk_id);
        unknown = true;
    }
    if (unknown) add(unk_id);
    if (symbols.empty()) return;
    symbols.back().next = -1;

    using Candidate = std::tuple<int, int, int>;  // rank, left symbol, id of the result
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
    auto find_merge = [&](int left) {
        const int right = left < 0 ? -1 : symbols[left].next;
        return right < 0 ? merges.end()
                         : merges.find(pair_key(symbols[left].id, symbols[right].id));
    };
    auto propose = [&](int left) {
        if (const auto found = find_merge(left); found != merges.end())
            candidates.emplace(found->second.rank, left, found->second.id);
    };
    for (size_t i = 0; i + 1 < symbols.size(); ++i) propose(static_cast<int>(i));
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
    for (int i = 0; i >= 0; i = symbols[i].next) result.ids.push_back(symbols[i].id);
}

std::vector<int> Tokenizer::encode(string_view text, std::string* lacking) const {
    Tables::Result result;
    while (!text.empty()) {
        const size_t valid = valid_prefix(text);
        if (valid > 0) tables_->encode_valid(text.substr(0, valid), escaping_, result);
        text.remove_prefix(valid);
        size_t invalid = 0;
        while (invalid < text.size() && first_character(text.substr(invalid)).length == 0)
            ++invalid;
        if (invalid > 0) tables_->encode_word(text.substr(0, invalid), result);
        text.remove_prefix(invalid);
    }
    if (lacking) *lacking = result.lacking;
    return result.ids;
}

std::string Tokenizer::framed(string_view text) const {
    std::string framed(text.starts_with(tables_->before) ? "" : tables_->before);
    return framed.append(text).append(text.ends_with(tables_->behind) ? "" : tables_->behind);
}

std::string Tokenizer::escaped(string_view text) const {
    std::string marked;
    for (size_t at = 0; at < text.size(); ++at) {
        if (escaping_ && tables_->special.match(text.substr(at))) marked += kPlain;
        marked += text[at];
    }
    return marked;
}

std::string Tokenizer::unescaped(string_view text) const {
    return escaping_ ? without_marks(text) : std::string(text);
}

// ---- decoding ----

std::string Tokenizer::decode(std::span<const int> ids) const {
    std::string text;
    for (const int id : ids)
        if (id >= 0 && id < vocab_size()) text += tables_->bytes[id];
    return text;
}

int Tokenizer::vocab_size() const { return static_cast<int>(tables_->bytes.size()); }

std::string StreamDecoder::push(int id) {
    pending_ += tokenizer_.decode({&id, 1});
    // Look among the last three bytes for the first byte of a character that needs more bytes than
    // there are.
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
        if (step.value("use_regex", true)) split.pattern = split_pattern(gpt2, file);
    } else if (type == "Digits") {
        split.pattern = split_pattern(R"(\p{N})", file);
        if (!step.value("individual_digits", false)) split.behavior = Behavior::Contiguous;
    } else if (type == "Split") {
        const json& pattern = step.at("pattern");
        split.pattern = pattern.contains("String")
                            ? Regex(pattern.at("String").get<std::string>(), PCRE2_LITERAL, file)
                            : split_pattern(pattern.at("Regex").get<std::string>(), file);
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
        fail(file, ": the pre_tokenizer \"", type,
             "\" is not supported, only Split, Digits and ByteLevel");
    }
    return split;
}

/// The ids of byte_fallback's tokens, "<0xC4>", for a character; none unless it has them all.
template <class Find>
std::vector<int> fallback(const std::string& character, Find find) {
    std::vector<int> ids;
    for (const unsigned char byte : character) {
        char token[8];
        std::snprintf(token, sizeof token, "<0x%02X>", byte);
        ids.push_back(find(token));
    }
    return std::ranges::count(ids, -1) ? std::vector<int>() : ids;
}

/// Adds what a step of the post_processor puts before and behind a text: added tokens.
void read_post_processor(const json& step, const std::map<std::string, int>& added,
                         const std::string& file, std::string& before, std::string& behind) {
    const std::string type = step.at("type");
    if (type == "ByteLevel") return;  // it moves offsets only
    if (type != "TemplateProcessing")
        fail(file, ": the post_processor \"", type, "\" is not supported");
    std::string sides[2];
    size_t side = 0;
    for (const json& piece : step.at("single")) {
        if (piece.contains("Sequence")) {
            ++side;
            continue;
        }
        const json& token =
            step.at("special_tokens").at(piece.at("SpecialToken").at("id").get<std::string>());
        for (size_t i = 0; i < token.at("ids").size(); ++i) {
            const std::string text = token.at("tokens").at(i);
            if (!added.contains(text) || added.at(text) != token.at("ids")[i])
                fail(file, ": the post_processor adds ", token.dump(),
                     ", which is not among the added_tokens");
            sides[side > 0] += text;
        }
    }
    if (side != 1) fail(file, ": the post_processor's template holds ", side, " texts, not one");
    before = sides[0] + before;
    behind += sides[1];
}

/// The two sides of a merge, written "a b" or ["a", "b"].
std::pair<std::string, std::string> read_merge(const json& merge, size_t number,
                                               const std::string& file) {
    if (merge.is_array() && merge.size() == 2) return {merge[0], merge[1]};
    if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
            return {text.substr(0, space), text.substr(space + 1)};
    }
    fail(file, ": merge ", number, ", ", merge.dump(),
         ", is not two tokens (\"a b\" or [\"a\", \"b\"])");
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& path, bool escaping) {
    const auto file_path = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
    const std::string file = file_path.string();
    const auto tables = std::make_shared<Tables>();
    Tables& t = *tables;
    t.file = file;
    try {
        const json root = parse_json(read_input(file_path), file);
        const json& model = root.at("model");

        // A file may leave out the type, as GPT-2's does; the merges then tell.
        if (const std::string type = text_or(model, "type", model.contains("merges") ? "BPE" : "");
            type != "BPE")
            fail(file, ": the model type \"", type, "\" is not supported, only BPE");
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
        json last;
        for (const json& step : steps(root, "pre_tokenizer", "pretokenizers")) {
            if (last == "ByteLevel")
                fail(file, ": the pre_tokenizer has a step behind ByteLevel, ", step.at("type"),
                     "; that is not supported");
            last = step.at("type");
            t.splits.push_back(read_split(step, file));
        }
        if (last != "ByteLevel")
            fail(file, ": the pre_tokenizer ends in ", last,
                 ", not in ByteLevel; only byte-level BPE is supported");

        auto define = [&](const std::string& text, const json& value, std::string bytes) {
            constexpr int limit = 1 << 24;
            if (!value.is_number_unsigned() || value.get<uint64_t>() >= limit)
                fail(file, ": the token ", json(text).dump(), " has the id ", value.dump(),
                     "; ids are 0 to ", limit - 1);
            const size_t id = value;
            if (t.bytes.size() <= id) t.bytes.resize(id + 1);
            if (!t.bytes[id].empty() && t.bytes[id] != bytes)
                fail(file, ": two tokens have the id ", id, ", one of them ", json(text).dump());
            t.bytes[id] = std::move(bytes);
            return static_cast<int>(id);
        };
        for (const auto& [text, id] : model.at("vocab").items())
            t.vocab[text] = define(text, id, bytes_of_text(text));
        auto find = [&](const std::string& token) {
            const auto found = t.vocab.find(token);
            return found == t.vocab.end() ? -1 : found->second;
        };
        for (int byte = 0; byte < 256; ++byte) {
            t.byte_ids[byte] = find(alphabet().text[byte]);
            if (t.byte_ids[byte] < 0 && model.value("byte_fallback", false))
                t.fallback_ids[byte] = fallback(alphabet().text[byte], find);
        }
        if (const auto unk = model.find("unk_token"); unk != model.end() && !unk->is_null())
            t.unk_id = find(t.unk_token.emplace(unk->get<std::string>()));
        t.fuse_unk = model.value("fuse_unk", false);

        size_t number = 0;
        int rank = 0;
        for (const json& merge : model.at("merges")) {
            ++number;
            if (merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version"))
                continue;
            const auto [left, right] = read_merge(merge, number, file);
            auto id_of = [&](const std::string& token) {
                const int id = find(token);
                if (id < 0)
                    fail(file, ": merge ", number, ", ", merge.dump(), ", needs the token ",
                         json(token).dump(), ", which is not in the vocabulary");
                return id;
            };
            const int left_id = id_of(left), right_id = id_of(right);
            t.merges[pair_key(left_id, right_id)] = {rank++, id_of(left + right)};
        }

        std::map<std::string, int> added;
        for (const json& entry : root.value("added_tokens", json::array())) {
            const std::string content = entry.at("content");
            if (content.empty()) continue;
            if (const int known = find(content); known >= 0) {
                if (entry.at("id") != known)
                    fail(file, ": the added token ", json(content).dump(), " has the id ",
                         entry.at("id").dump(), ", but the vocabulary says ", known);
                t.bytes[known] = content;  // an added token stands for its text, not for bytes
            }
            const int id = added[content] = define(content, entry.at("id"), content);
            const bool normalized = entry.value("normalized", false);
            const AddedToken token{.content = normalized && t.normalize ? nfc(content) : content,
                                   .id = id,
                                   .lstrip = entry.value("lstrip", false),
                                   .rstrip = entry.value("rstrip", false),
                                   .single_word = entry.value("single_word", false)};
            (normalized ? t.added_normalized : t.added_raw).add(token);
            if (entry.value("special", false)) t.special.add(token);
        }
        for (const json& step : steps(root, "post_processor", "processors"))
            read_post_processor(step, added, file, t.before, t.behind);
    } catch (const json::exception& error) {
        fail(file, ": not a tokenizer.json that can be read: ", error.what());
    }
    return Tokenizer(tables, escaping);
}

}  // namespace r1
