// Writes a tokenizer.json for the tiny worlds.
#pragma once
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace r1 {

/// Byte-level BPE. Tokens and merges are given as plain text and numbered in their order; tags come behind them, the last
/// of which ends a sequence. Without merges, every piece that `pattern` splits off is a token by itself.
struct TokenizerFile {
    std::vector<std::string> tokens;
    std::vector<std::pair<std::string, std::string>> merges;
    std::vector<std::string> tags = {"<think>", "</think>", "<answer>", "</answer>", "<|endoftext|>"};
    std::string pattern;

    void write(const std::filesystem::path& file) const;
    std::size_t size() const { return tokens.size() + tags.size(); }
};

}  // namespace r1
