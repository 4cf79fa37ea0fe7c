// The architecture of a model, as its folder's config.json describes it.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "src/device/backend.h"

namespace r1 {

/// Llama 3.1's stretched rotary positions (rope_type "llama3"; arXiv 2407.21783, section 3.4.2
/// names the aim, transformers' modeling_rope_utils.py has the formula): long waves turn `factor`
/// times slower.
struct Llama3RopeScaling {
    double factor = 1, low_freq_factor = 1, high_freq_factor = 4,
           original_max_position_embeddings = 8192;
};

/// The architecture, under Hugging Face's config.json names.
struct Config {
    std::string model_type = "qwen2";  ///< qwen2, qwen3 or llama
    int hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0;
    int num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
    int vocab_size = 0, max_position_embeddings = 0;
    double rms_norm_eps = 1e-6, rope_theta = 10000;
    std::optional<Llama3RopeScaling> rope_scaling;
    bool tie_word_embeddings = false;
    bool attention_bias = true;  ///< on the query, key and value projections
    std::vector<int>
        eos_token_ids;  ///< the one that training appends first; all of them end a response
    std::vector<std::string> stop_texts;  ///< so do these (generation_config.json's stop_strings)

    AttentionShape attention() const {
        return {num_attention_heads, num_key_value_heads, head_dim};
    }
    bool head_norm() const { return model_type == "qwen3"; }
    /// The angle that dimensions i and i + D/2 of a head turn by at each position, [D/2].
    std::vector<double> rotary_frequencies() const;
    /// Reads MODEL_FOLDER/config.json (or the file itself), and the end-of-sequence tokens and
    /// stop texts that generation_config.json beside it adds. Refuses what is not supported, by
    /// name.
    static Config load(const std::filesystem::path& path);
};

}  // namespace r1
