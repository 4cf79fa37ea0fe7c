#include "data/tokenizer_file.h"

#include <nlohmann/json.hpp>

#include "src/run/whole_file.h"

namespace r1 {
namespace {

using nlohmann::ordered_json;

/// How byte-level BPE spells a byte: visible ones as themselves, the others as characters from U+0100 on (GPT-2).
std::string spelled(const std::string& text) {
    std::string out;
    auto append = [&](unsigned c) {  // UTF-8 of a code point below 0x800
        if (c < 0x80)
            out += static_cast<char>(c);
        else
            out += static_cast<char>(0xc0 | c >> 6), out += static_cast<char>(0x80 | (c & 0x3f));
    };
    auto visible = [](unsigned b) { return (b >= 33 && b <= 126) || (b >= 161 && b != 173); };
    for (unsigned char byte : text) {
        unsigned hidden_before = 0;
        for (unsigned b = 0; b < byte; ++b) hidden_before += !visible(b);
        append(visible(byte) ? byte : 256 + hidden_before);
    }
    return out;
}

}  // namespace

void TokenizerFile::write(const std::filesystem::path& file) const {
    ordered_json vocab = ordered_json::object(), pairs = ordered_json::array(), added = ordered_json::array();
    for (const auto& token : tokens) vocab.emplace(spelled(token), vocab.size());
    for (const auto& [a, b] : merges) pairs.push_back(ordered_json::array({spelled(a), spelled(b)}));
    for (const auto& tag : tags)
        added.push_back({{"id", vocab.size() + added.size()},
                         {"content", tag},
                         {"single_word", false},
                         {"lstrip", false},
                         {"rstrip", false},
                         {"normalized", false},
                         {"special", tag == tags.back()}});
    const ordered_json split = {
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    const ordered_json bytes = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
    const ordered_json all = {{"version", "1.0"},
                              {"truncation", nullptr},
                              {"padding", nullptr},
                              {"added_tokens", added},
                              {"normalizer", nullptr},
                              {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}}},
                              {"post_processor", nullptr},
                              {"decoder", bytes},
                              {"model",
                               {{"type", "BPE"},
                                {"dropout", nullptr},
                                {"unk_token", nullptr},
                                {"continuing_subword_prefix", nullptr},
                                {"end_of_word_suffix", nullptr},
                                {"fuse_unk", false},
                                {"byte_fallback", false},
                                {"ignore_merges", merges.empty()},
                                {"vocab", vocab},
                                {"merges", pairs}}}};
    WholeFile out(file);
    out << all.dump(1) << "\n";
    out.done();
}

}  // namespace r1
