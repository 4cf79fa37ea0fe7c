// Byte-level BPE from a Hugging Face tokenizer.json: the tokenizers of GPT-2, Llama 3, Qwen, SmolLM2 and
// DeepSeek-R1.
//
//   text -> cut out added tokens ("<think>") -> NFC -> split into words by the file's own patterns -> bytes
//   -> merges
//
// Byte-pair encoding: Sennrich et al. 2016, arXiv:1508.07909. Bytes as its alphabet: Radford et al. 2019
// (GPT-2). The results are those of the `tokenizers` library (https://github.com/huggingface/tokenizers),
// except where said.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace r1 {

/// Immutable once loaded: cheap to copy (the tables are shared) and safe to use from several threads.
class Tokenizer {
  public:
    /// path: a tokenizer.json or a model folder that holds one.
    /// Throws Error for a broken file, and for one that asks for anything not implemented here, by name.
    /// The file's post_processor, truncation and padding are ignored: nothing is added to a text or cut from
    /// it.
    static Tokenizer load(const std::filesystem::path& path);

    /// The ids of text. No BOS or EOS is added; added tokens written out in the text are recognised.
    /// Bytes that are not UTF-8 are kept: they become words of their own (`tokenizers` only ever sees U+FFFD
    /// there). Throws Error for a character whose bytes are not in the vocabulary.
    std::vector<int> encode(std::string_view text) const;

    /// The bytes of all ids, joined; half a character stays half a character. Ids without a token (a model
    /// may have more rows than the file has tokens) give nothing. skip_special leaves out the tokens marked
    /// special.
    std::string decode(std::span<const int> ids, bool skip_special = false) const;

    /// 1 + the largest id.
    int vocab_size() const;

    /// The id of a token, its text as written in the file: "<|endoftext|>", or "Ġthe" for " the".
    std::optional<int> token_id(std::string_view token) const;

    /// The bytes a token stands for: " the" for "Ġthe". Empty for an id without a token.
    std::string token_text(int id) const;

    /// Whether decode leaves the id out on request.
    bool is_special(int id) const;

  private:
    struct Tables;
    explicit Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}
    std::shared_ptr<const Tables> tables_;
};

/// Decodes ids one at a time and holds a character back until its last byte is there. All that push and the
/// final flush return, joined, is decode of all the ids: bytes that can never become UTF-8 pass through.
class StreamDecoder {
  public:
    explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = false)
        : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

    /// The characters that id completes; often one, sometimes none.
    std::string push(int id);

    /// What is left: the start of a character that never came to its end, or nothing.
    std::string flush();

  private:
    Tokenizer tokenizer_;
    bool skip_special_;
    std::string pending_;
};

}  // namespace r1
