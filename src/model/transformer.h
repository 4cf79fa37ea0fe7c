// The Llama / Qwen2 / Qwen3 family of decoder-only transformers: RMSNorm, rotary positions,
// grouped-query attention (Qwen2: with biases; Qwen3: with an RMSNorm of every query and key head),
// SwiGLU, tied or untied head. Forward and backward by hand on packed sequences, prefill and decode
// with a key/value cache.
#pragma once
#include <span>
#include <utility>
#include <vector>

#include "src/model/parameters.h"

namespace r1 {

/// Sequences laid end to end, without padding, and which of their tokens are scored. Sequences that
/// are added one after the other and begin with the same prompt (the tokens before the first scored
/// one) share its rows: the prompt is computed once, each response sees it and itself.
struct PackedBatch {
    /// A shorter prompt is not worth the seam that it makes in what attention reads.
    static constexpr std::size_t kShortestShared = 16;
    std::vector<std::int32_t> tokens, positions;  ///< [N]
    std::vector<RowRange> ranges;                 ///< [N]
    /// [M]: row score_rows[m] predicts token targets[m]. Of responses that share a prompt each has
    /// its first token predicted by the prompt's last row.
    std::vector<std::int32_t> score_rows, targets;

    /// Adds a sequence of tokens[0 .. n), whose last one is nobody's input. `scored` says which
    /// tokens are: logits at position t score token t + 1, and scored[0] must be false, as nothing
    /// predicts it.
    void add(const std::vector<std::int32_t>& sequence, const std::vector<bool>& scored);
    /// Scores [first_scored, n): first_scored is the length of a prompt, at least 1.
    void add(const std::vector<std::int32_t>& sequence, std::size_t first_scored);
    /// How many rows add() would add.
    std::int64_t rows_of(const std::vector<std::int32_t>& sequence, std::size_t first_scored) const;
    std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
    std::int64_t scored() const { return static_cast<std::int64_t>(targets.size()); }
    void clear() { *this = PackedBatch(); }

  private:
    std::size_t prompt_begin_ = 0, prompt_ = 0;  ///< rows of the latest prompt that can be shared
    bool shares_prompt(const std::vector<std::int32_t>& sequence, std::size_t first_scored) const;
};

/// The key/value cache: for every layer a pool of rows (see Backend::rope_append).
struct KvCache {
    KvCache(Backend& backend, const Config& config, std::int64_t rows);
    static std::size_t bytes(const Config& config, std::int64_t rows, const Backend& backend);
    std::int64_t rows;
    std::vector<Tensor> k, v;  ///< a layer: [rows, K D]

  private:
    Arena arena_;
};

class Transformer {
  public:
    Transformer(Backend& backend, const Config& config, const TransformerOptions& options);
    /// Bytes of activations and scratch memory, before anything is allocated.
    static std::size_t workspace_bytes(const Config& config, const TransformerOptions& options,
                                       const Backend& backend);

    /// Log-probability and entropy of every scored token at the given temperature, each [M] on the
    /// host. Keeps what backward() needs until the next forward pass of any kind.
    struct Scores {
        std::vector<float> logp, entropy;
    };
    Scores forward(const PackedBatch& batch, float temperature = 1);
    /// The same, left in backend memory.
    std::pair<Tensor, Tensor> forward_on_device(const PackedBatch& batch, float temperature = 1);
    /// Adds to the gradients that of sum_m dlogp[m] logp[m] + dentropy[m] entropy[m] of the latest
    /// forward(). dentropy may be empty.
    void backward(const std::vector<float>& dlogp, const std::vector<float>& dentropy = {});

    /// Runs a packed batch of prompts, and stores the keys and values of token n in pool row
    /// cache_rows[n].
    void prefill(const PackedBatch& batch, const std::vector<std::int32_t>& cache_rows,
                 KvCache& cache);
    /// One token for each of B sequences: it stands at positions[b] [B], its keys and values go to
    /// pool row cache_rows[b] [B] (-1: a free slot), and it sees spans[b] [B, 4] as in
    /// Backend::decode_attention, itself included. Returns logits [B, V], valid until the next
    /// call. All in backend memory.
    struct DecodeInput {
        Tensor tokens, positions, cache_rows, spans;
    };
    Tensor decode(const DecodeInput& input, KvCache& cache);
    /// Uploads one decode step's inputs, spans [B * 4]; valid until the next call or batch.
    DecodeInput upload_decode_input(const std::vector<std::int32_t>& tokens,
                                    const std::vector<std::int32_t>& positions,
                                    const std::vector<std::int32_t>& cache_rows,
                                    const std::vector<std::int32_t>& spans);

    const Config& config() const { return config_; }
    Backend& backend() const { return backend_; }
    Parameters& parameters() { return weights_; }
    const Parameters& parameters() const { return weights_; }
    std::int64_t max_tokens() const { return options_.max_tokens; }

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
    /// A PackedBatch on the device.
    struct Batch {
        Tensor tokens, positions, ranges, score_rows, targets;
    };
    /// Everything but parameters, taken from one arena.
    struct Workspace {
        std::vector<LayerActivations> layers;
        Tensor delta;  ///< [N, C] what a block adds to the residual stream
        /// The head's M rows: residual stream, what the last block adds, normalised, and results.
        Tensor scored, scored_delta, hidden, rstd, logp, entropy;
        Tensor logits;                             ///< [chunk, V]
        Tensor dlogp, dentropy, dhidden, dscored;  ///< gradients, as above
        Tensor dx, dnorm, dattention, dqkv, dswiglu, dgate_up;
        Tensor tokens, positions, ranges, score_rows, targets, cache_rows, spans;
        Tensor decode_logits;  ///< [B, V]
    };
    static Workspace take_workspace(Arena& arena, const Config& config,
                                    const TransformerOptions& options, const Backend& backend);

    /// Every id comes by here before a kernel uses it as an index.
    void check_ids(const std::vector<std::int32_t>& ids) const;
    Tensor upload(Tensor to, const std::vector<std::int32_t>& host);
    Batch upload(const PackedBatch& batch);
    LayerActivations activations(std::size_t layer, std::int64_t tokens) const;
    /// Fills a.attention from a.qkv, over the packed sequences of batch_.
    void rotate_and_attend(const LayerActivations& a);
    /// Activations of all layers, one after the other; attend(layer, a) rotates a.qkv and fills
    /// a.attention.
    template <class Attend>
    LayerActivations run_layers(Tensor tokens, Attend attend);
    template <class Attend>
    void forward_layer(std::size_t layer, const LayerActivations& a, Tensor x, Tensor delta,
                       Attend attend);
    void backward_layer(std::size_t layer, const LayerActivations& a);

    Backend& backend_;
    Config config_;
    TransformerOptions options_;
    Parameters weights_;
    Buffer rope_buffer_;
    Tensor inv_freq_;
    Arena arena_;
    Workspace work_;
    Batch batch_;  ///< of the latest forward()
    float temperature_ = 1;
};

}  // namespace r1
