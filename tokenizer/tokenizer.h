// Byte-level BPE from a Hugging Face tokenizer.json: the tokenizers of GPT-2, Llama 3, Qwen,
// SmolLM2 and DeepSeek-R1.
//
//   text -> cut out added tokens ("<think>") -> NFC -> split into words by the file's own patterns
//   -> bytes
//   -> merges
//
// Byte-pair encoding: Sennrich et al. 2016, arXiv:1508.07909. Bytes as its alphabet: Radford et al.
// 2019 (GPT-2). The results are those of the `tokenizers` library
// (https://github.com/huggingface/tokenizers), except where said.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace r1 {

/// Immutable once loaded: cheap to copy (the tables are shared) and safe to use from several
/// threads.
class Tokenizer {
  public:
    /// path: a tokenizer.json or a model folder that holds one.
    /// Throws Error for a broken file, and for one that asks for anything not implemented here, by
    /// name. The file's truncation and padding are ignored.
    /// escaping: see escaped().
    static Tokenizer load(const std::filesystem::path& path, bool escaping = false);

    /// The ids of text. No BOS or EOS is added; added tokens written out in the text are
    /// recognised. Bytes that are not UTF-8 are kept: they become words of their own (`tokenizers`
    /// only ever sees U+FFFD there). A character that the vocabulary lacks is spelt by
    /// byte_fallback, else becomes the unk_token, else is dropped; `lacking`, if given, names the
    /// first that was not spelt, and is empty if all were. Throws Error where the unk_token itself
    /// is lacking.
    std::vector<int> encode(std::string_view text, std::string* lacking = nullptr) const;

    /// The text with the added tokens that the file's post_processor puts around it, such as
    /// "<|begin_of_text|>", where they are not there already.
    std::string framed(std::string_view text) const;

    /// An escaping tokenizer can be told which text is plain: escaped() marks every special token
    /// in it (one that the file calls "special"), encode() then spells that instead, as
    /// `tokenizers` does with encode_special_tokens, and unescaped() takes the marks away. With
    /// another tokenizer they return the text as it is. Not seen is a token that normalization
    /// makes of other characters first.
    std::string escaped(std::string_view text) const;
    std::string unescaped(std::string_view text) const;

    /// The bytes of all ids, joined; half a character stays half a character. Ids without a token
    /// (a model may have more rows than the file has tokens) give nothing.
    std::string decode(std::span<const int> ids) const;

    /// 1 + the largest id.
    int vocab_size() const;

  private:
    struct Tables;
    Tokenizer(std::shared_ptr<const Tables> tables, bool escaping)
        : tables_(std::move(tables)), escaping_(escaping) {}
    std::shared_ptr<const Tables> tables_;
    bool escaping_;
};

/// Decodes ids one at a time and holds a character back until its last byte is there. All that push
/// and the final flush return, joined, is decode of all the ids: bytes that can never become UTF-8
/// pass through.
class StreamDecoder {
  public:
    explicit StreamDecoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

    /// The characters that id completes; often one, sometimes none.
    std::string push(int id);

    /// What is left: the start of a character that never came to its end, or nothing.
    std::string flush();

  private:
    Tokenizer tokenizer_;
    std::string pending_;
};

}  // namespace r1
