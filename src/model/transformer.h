// The Llama / Qwen2 / Qwen3 family of decoder-only transformers: RMSNorm, rotary positions, grouped-query
// attention (Qwen2: with biases; Qwen3: with an RMSNorm of every query and key head), SwiGLU, tied or untied
// head. Forward and backward by hand on packed sequences, prefill and decode with a
// key/value cache.
#pragma once
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/device/backend.h"
#include "src/model/safetensors.h"

namespace r1 {

/// Llama 3.1's stretched rotary positions (rope_type "llama3"; arXiv 2407.21783, section 3.4.2 names the aim,
/// transformers' modeling_rope_utils.py has the formula): long waves turn `factor` times slower.
struct Llama3RopeScaling {
    double factor = 1, low_freq_factor = 1, high_freq_factor = 4, original_max_position_embeddings = 8192;
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
    bool attention_bias = true;      ///< on the query, key and value projections
    std::vector<int> eos_token_ids;  ///< the one that training appends first; all of them end a response
    std::vector<std::string> stop_texts;  ///< so do these (generation_config.json's stop_strings)

    AttentionShape attention() const { return {num_attention_heads, num_key_value_heads, head_dim}; }
    bool head_norm() const { return model_type == "qwen3"; }
    /// The angle that dimensions i and i + D/2 of a head turn by at each position, [D/2].
    std::vector<double> rotary_frequencies() const;
    /// Reads MODEL_FOLDER/config.json (or the file itself), and the end-of-sequence tokens and
    /// stop texts that generation_config.json beside it adds. Refuses what is not supported, by name.
    static Config load(const std::filesystem::path& path);
};

/// Every parameter, under its Hugging Face name, as a view into one contiguous buffer: matrices first
/// (the part that may have a bfloat16 copy and weight decay), then norms and biases. Gradients and optimizer
/// states use the same layout. Projections that share an input lie side by side, so q|k|v and gate|up are one
/// GEMM each.
struct ParameterLayout {
    struct Entry {
        std::string name;
        std::int64_t offset, rows, cols;  ///< cols = 1 and rank 1 for vectors
        bool is_matrix;
    };
    struct Layer {  ///< offsets; -1: there is none
        std::int64_t input_norm, qkv, qkv_bias = -1, q_norm = -1, k_norm = -1, o, post_norm, gate_up, down;
    };
    std::vector<Entry> entries;
    std::vector<Layer> layers;
    std::int64_t embed = 0, final_norm = 0, head = 0;  ///< offsets; head == embed when tied
    std::int64_t matrices = 0, total = 0;              ///< element counts

    explicit ParameterLayout(const Config& config);
};

/// Sequences laid end to end, without padding, and which of their tokens are scored.
struct PackedBatch {
    std::vector<std::int32_t> tokens, positions, cu_seqlens{0};  ///< [N], [N], [B + 1]
    std::vector<std::int32_t> score_rows, targets;  ///< [M]: row score_rows[m] predicts token targets[m]

    /// Adds tokens[0 .. n-1), scoring tokens [first_scored, n): logits at position t score token t + 1, and
    /// the last token is nobody's input. first_scored is the prompt's length, at least 1.
    void add(const std::vector<std::int32_t>& sequence, std::size_t first_scored);
    /// The same for any choice of scored tokens; scored[0] must be false, as nothing predicts the first.
    void add(const std::vector<std::int32_t>& sequence, const std::vector<bool>& scored);
    std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
    std::int64_t scored() const { return static_cast<std::int64_t>(targets.size()); }
    void clear() { *this = PackedBatch(); }
};

/// Key/value cache: for every layer a pool of rows (see Backend::rope_append).
struct KvCache {
    KvCache(Backend& backend, const Config& config, std::int64_t rows);
    static std::size_t bytes(const Config& config, std::int64_t rows, const Backend& backend);
    std::int64_t rows;
    std::vector<Tensor> k, v;  ///< per layer [rows, K D]

  private:
    Arena arena_;
};

struct TransformerOptions {
    bool trainable = true;       ///< allocate gradients
    bool recompute = false;      ///< keep one layer's activations, recompute the others in the backward pass
    bool bf16_matrices = false;  ///< multiply matrices in bfloat16; the float32 master stays
    bool bf16_master = false;    ///< it does not: matrices exist in bfloat16 only (wants bf16_matrices)
    std::int64_t max_tokens = 4096;    ///< largest packed batch
    std::int64_t max_decode_rows = 0;  ///< largest decode batch, 0: none
};

class Transformer {
  public:
    Transformer(Backend& backend, const Config& config, const TransformerOptions& options);

    /// Normal(0, 0.02) matrices (projections back into the residual stream / sqrt(2 L)), ones for norms, zero
    /// biases.
    void initialize(std::uint64_t seed);
    /// MODEL_FOLDER/model.safetensors, or the shards its index names.
    void load_weights(const std::filesystem::path& folder);
    /// MODEL_FOLDER/model.safetensors. A tied head is not written, as Hugging Face does it.
    void save_weights(const std::filesystem::path& folder, SafeDtype dtype) const;
    /// Call after the parameters were changed from outside: refreshes the bfloat16 copy.
    void parameters_changed();

    /// Log-probability and entropy of every scored token at the given temperature, each [M] on the host.
    /// Keeps what backward() needs until the next forward pass of any kind.
    struct Scores {
        std::vector<float> logp, entropy;
    };
    Scores forward(const PackedBatch& batch, float temperature = 1);
    /// The same, left in backend memory: logp [M], entropy [M].
    std::pair<Tensor, Tensor> forward_on_device(const PackedBatch& batch, float temperature = 1);
    /// Adds to gradients() the gradient of sum_m dlogp[m] logp[m] + dentropy[m] entropy[m] (dentropy may be
    /// empty) of the latest forward().
    void backward(const std::vector<float>& dlogp, const std::vector<float>& dentropy = {});

    /// Runs a packed batch of prompts and stores their keys and values: token n goes to pool row
    /// cache_rows[n].
    void prefill(const PackedBatch& batch, const std::vector<std::int32_t>& cache_rows, KvCache& cache);
    /// One token for each of B sequences: it stands at positions[b] [B], its keys and values go to pool row
    /// cache_rows[b] [B] (-1: a free slot), and it sees spans[b] [B, 4] as in Backend::decode_attention, itself
    /// included. Returns logits [B, V], valid until the next call. All in backend memory.
    struct DecodeInput {
        Tensor tokens, positions, cache_rows, spans;
    };
    Tensor decode(const DecodeInput& input, KvCache& cache);
    /// Brings it there; valid until the next call or batch. spans: [B * 4].
    DecodeInput upload_decode_input(const std::vector<std::int32_t>& tokens,
                                    const std::vector<std::int32_t>& positions,
                                    const std::vector<std::int32_t>& cache_rows,
                                    const std::vector<std::int32_t>& spans);

    const Config& config() const { return config_; }
    const ParameterLayout& layout() const { return layout_; }
    Backend& backend() const { return backend_; }
    std::int64_t max_tokens() const { return options_.max_tokens; }
    /// The master: layout().matrices elements, float32 or bfloat16, and the vectors behind them, float32.
    Tensor matrices() const { return matrices_; }
    Tensor vectors() const { return vectors_; }
    Tensor gradients() const { return gradients_; }
    std::vector<float> download_parameters() const;
    void upload_parameters(std::span<const float> values);

    /// Bytes: parameters (with gradients and the bfloat16 copy) and activations, before anything is
    /// allocated.
    struct Plan {
        std::size_t parameters = 0, gradients = 0, activations = 0;
    };
    static Plan plan(const Config& config, const TransformerOptions& options, const Backend& backend);

  private:
    /// What the backward pass reads of one layer; see forward_layer. N tokens.
    struct LayerActivations {
        Tensor x;          ///< [N, C] the residual stream at the layer's entry
        Tensor norm1;      ///< [N, C]
        Tensor rstd1;      ///< [N]
        Tensor raw_qkv;    ///< [N, (H + 2K) D] before the head norm; empty without one
        Tensor head_rstd;  ///< [N, H + K]
        Tensor qkv;        ///< [N, (H + 2K) D], rotated
        Tensor attention;  ///< [N, H D]
        Tensor lse;        ///< [N, H]
        Tensor x2;         ///< [N, C] the residual stream between attention and feed-forward
        Tensor norm2;      ///< [N, C]
        Tensor rstd2;      ///< [N]
        Tensor gate_up;    ///< [N, 2F]
        Tensor swiglu;     ///< [N, F]
    };
    struct Batch {  ///< a PackedBatch on the device
        Tensor tokens, positions, cu_seqlens, score_rows, targets;
    };
    struct Workspace {  ///< everything but parameters, taken from one arena
        std::vector<LayerActivations> layers;
        Tensor branch;  ///< [N, C] what a block adds to the residual stream
        Tensor scored, delta, hidden, rstd, logp, entropy;  ///< head input (M rows) and output
        Tensor logits;                                      ///< [chunk, V]
        Tensor dlogp, dentropy, dhidden, dscored;           ///< gradients, as above
        Tensor dx, dnorm, dattention, dqkv, dswiglu, dgate_up;
        Tensor tokens, positions, cu_seqlens, score_rows, targets, cache_rows, spans;
        Tensor decode_logits;  ///< [B, V]
    };
    static Workspace take_workspace(Arena& arena, const Config& config, const TransformerOptions& options,
                                    const Backend& backend);

    /// Elements [first, first + count) of the layout: all matrices or all vectors.
    Tensor parameters(std::int64_t first, std::int64_t count) const;
    Tensor matrix(std::int64_t offset, std::int64_t rows, std::int64_t cols) const;
    Tensor vector(std::int64_t offset, std::int64_t size) const;
    Tensor gradient(std::int64_t offset, std::int64_t rows, std::int64_t cols = 1) const;

    Tensor upload(Tensor to, const std::vector<std::int32_t>& host);
    Batch upload(const PackedBatch& batch);
    LayerActivations activations(std::size_t layer, std::int64_t tokens) const;
    /// Fills a.attention from a.qkv, over the packed sequences of batch_.
    void rotate_and_attend(const LayerActivations& a);
    /// Activations of all layers, one after the other; attend(layer, a) rotates a.qkv and fills a.attention.
    template <class Attend>
    LayerActivations run_layers(Tensor tokens, Attend attend);
    template <class Attend>
    void forward_layer(std::size_t layer, const LayerActivations& a, Tensor x, Tensor delta, Attend attend);
    void backward_layer(std::size_t layer, const LayerActivations& a);

    Backend& backend_;
    Config config_;
    TransformerOptions options_;
    ParameterLayout layout_;
    Buffer parameter_buffer_, gradient_buffer_, bf16_buffer_, rope_buffer_;
    Tensor matrices_, vectors_, gradients_;
    Tensor bf16_matrices_;  ///< a copy of the master, or the master itself
    Tensor inv_freq_;
    Arena arena_;
    Workspace work_;
    Batch batch_;  ///< of the latest forward()
    float temperature_ = 1;
};

}  // namespace r1
