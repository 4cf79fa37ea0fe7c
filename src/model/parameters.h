// The weights of a model: where each lies, how they begin, are loaded and are saved.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/model/config.h"
#include "src/model/safetensors.h"

namespace r1 {

/// Every parameter, under its Hugging Face name, as a view into one contiguous buffer: matrices
/// first (the part that may have a bfloat16 copy and weight decay), then norms and biases.
/// Gradients and optimizer states use the same layout. Projections that share an input lie side by
/// side, so q|k|v and gate|up are one GEMM each.
struct ParameterLayout {
    struct Entry {
        std::string name;
        std::int64_t offset, rows, cols;  ///< cols = 1 and rank 1 for vectors
        bool is_matrix;
    };
    struct Layer {  ///< offsets; -1: there is none
        std::int64_t input_norm, qkv, qkv_bias = -1, q_norm = -1, k_norm = -1, o, post_norm,
                                      gate_up, down;
    };
    std::vector<Entry> entries;
    std::vector<Layer> layers;
    std::int64_t embed = 0, final_norm = 0, head = 0;  ///< offsets; head == embed when tied
    std::int64_t matrices = 0, total = 0;              ///< element counts

    explicit ParameterLayout(const Config& config);
};

/// Where the weights of a second policy are kept, if at all: on the device, or, where it has no
/// room, in the host's memory.
enum class ReferencePolicy { None, OnDevice, OnHost };

/// How a model is kept and run.
struct TransformerOptions {
    bool trainable = true;       ///< allocate gradients
    bool bf16_matrices = false;  ///< multiply matrices in bfloat16; the float32 master stays
    bool bf16_master = false;    ///< no, matrices exist in bfloat16 only; wants bf16_matrices
    bool keep_logits = false;  ///< of a whole batch, so that backward() need not compute them again
    ReferencePolicy reference = ReferencePolicy::None;
    bool recompute = false;  ///< keep one layer's activations, and recompute the others going back
    std::int64_t max_tokens = 4096;    ///< of the largest packed batch
    std::int64_t max_decode_rows = 0;  ///< of the largest decode batch, 0: none
};

class Parameters {
  public:
    Parameters(Backend& backend, const Config& config, const TransformerOptions& options);
    struct Bytes {
        std::size_t parameters = 0, gradients = 0, reference = 0;
    };
    /// What the constructor will allocate on the device.
    static Bytes bytes(const Config& config, const TransformerOptions& options,
                       const Backend& backend);

    /// Normal(0, 0.02) matrices (those that project back into the residual stream / sqrt(2 layers),
    /// as GPT-2 does, section 2.3), ones for norms, zero biases.
    void initialize(std::uint64_t seed);
    /// Reads FOLDER/model.safetensors, or the shards that its index names. Names the tensors that
    /// the model does not use, and throws Error where one of them would change it in transformers,
    /// and where a weight is not finite.
    void load(const std::filesystem::path& folder);
    /// Writes FOLDER/model.safetensors. A tied head is not written, as Hugging Face does it.
    void save(const std::filesystem::path& folder, SafeDtype dtype) const;
    /// Makes the present weights the reference policy's.
    void keep_as_reference();
    /// Forward passes are the reference policy's until the policy is put back: use_reference(true),
    /// some of them, use_reference(false), and nothing else in between.
    void use_reference(bool on);
    /// The reference policy's tensors by name, and the backend in whose memory they lie, for
    /// checkpoints; none where there is no such policy.
    std::vector<std::pair<std::string, Tensor>> reference() const;
    Backend& reference_home() const { return host_ ? *host_ : backend_; }

    std::vector<float> download() const;
    /// Sum of the squares of all of them (of the vectors alone, where the matrices are bfloat16):
    /// a number that copies which have come apart do not share.
    double fingerprint() const;
    /// Throws Error where training has left a weight that is not finite, which nobody should save.
    void check_finite() const;
    void upload(std::span<const float> values);
    /// Call after the master alone was changed from outside: refreshes the bfloat16 copy.
    void changed();

    const ParameterLayout& layout() const { return layout_; }
    /// The master: layout().matrices elements, float32 or bfloat16, and the vectors behind them,
    /// float32.
    Tensor matrices() const { return matrices_; }
    Tensor vectors() const { return vectors_; }
    /// The matrices in bfloat16, beside a float32 master; else empty. An update writes both.
    Tensor bf16_copy() const {
        return options_.bf16_matrices && !options_.bf16_master ? policy_.matrices : Tensor{};
    }
    Tensor gradients() const { return gradients_; }

    /// A parameter by its offset in the layout, in the type that it is multiplied in, and its
    /// gradient. Empty where the offset is -1.
    Tensor matrix(std::int64_t offset, std::int64_t rows, std::int64_t cols) const;
    Tensor vector(std::int64_t offset, std::int64_t size) const;
    Tensor gradient(std::int64_t offset, std::int64_t rows, std::int64_t cols = 1) const;

  private:
    /// Elements [first, first + count) of the master: all matrices or all vectors.
    Tensor master(std::int64_t first, std::int64_t count) const;
    /// body(part of the master, the same part of the reference), over all of both, in parts of at
    /// most 4 MiB.
    template <class Body>
    void for_each_part(Body body) const;

    /// All matrices in one type, and all vectors.
    struct Weights {
        Tensor matrices, vectors;
    };
    /// Those that a forward pass reads.
    const Weights& used() const { return use_reference_ ? reference_ : policy_; }

    Backend& backend_;
    TransformerOptions options_;
    ParameterLayout layout_;
    Buffer master_buffer_, gradient_buffer_, bf16_buffer_;
    Tensor matrices_, vectors_, gradients_;
    Weights policy_;     ///< matrices as they are multiplied: a bfloat16 copy, or the master itself
    Weights reference_;  ///< matrices likewise; on the host they are of the master's type
    std::unique_ptr<Backend> host_;  ///< whose memory holds the reference, where it is the host's
    Arena reference_arena_;
    bool use_reference_ = false;
    double residual_scale_;  ///< of initial matrices that project into the residual stream
};

}  // namespace r1
