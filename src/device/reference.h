// The reference backend's class, for those that derive from it: the fast CPU backend, and a port
// that begins with memory that host and device share.
#pragma once
#include "src/device/backend.h"

namespace r1 {

/// Every primitive of backend.h as a plain loop over tensors in the host's memory. Real: float, or
/// double for tests.
template <class Real>
class Reference : public Backend {
  public:
    const char* name() const override { return "reference"; }
    DType real() const override { return sizeof(Real) == 8 ? DType::F64 : DType::F32; }

    void* allocate(std::size_t bytes) override;
    void release(void* data) override;
    void upload(Tensor to, const void* host) override;
    void download(void* host, Tensor from) override;
    std::size_t available_memory() const override;
    std::size_t used_memory() const override;
    std::size_t peak_memory() const override;
    bool on_host() const override { return true; }
    void to_bfloat16(Tensor to, Tensor from) override;

    void gather_rows(Tensor out, Tensor in, Tensor index) override;
    void add_rows(Tensor out, Tensor in, Tensor index) override;
    void rmsnorm_forward(Tensor y, Tensor rstd, Tensor sum, Tensor x, Tensor delta, Tensor weight,
                         float eps) override;
    void rmsnorm_backward(Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor rstd,
                          Tensor weight) override;
    void head_norm_forward(Tensor out, Tensor rstd, Tensor in, Tensor q_weight, Tensor k_weight,
                           AttentionShape shape, float eps) override;
    void head_norm_backward(Tensor d, Tensor dq_weight, Tensor dk_weight, Tensor in, Tensor rstd,
                            Tensor q_weight, Tensor k_weight, AttentionShape shape) override;
    void rope(Tensor qkv, Tensor positions, Tensor inv_freq, AttentionShape shape,
              bool inverse) override;
    void linear_forward(Tensor y, Tensor x, Tensor weight, Tensor bias) override;
    void linear_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor x,
                         Tensor weight) override;
    void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor ranges,
                           AttentionShape shape) override;
    void attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv,
                            Tensor ranges, AttentionShape shape) override;
    void rope_append(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows, Tensor positions,
                     Tensor inv_freq, AttentionShape shape) override;
    void decode_attention(Tensor out, Tensor qkv, Tensor k_pool, Tensor v_pool, Tensor spans,
                          AttentionShape shape) override;
    void advance(Tensor positions, Tensor rows, Tensor spans, Tensor counters) override;
    void swiglu_forward(Tensor out, Tensor gate_up) override;
    void swiglu_backward(Tensor dgate_up, Tensor dout, Tensor gate_up) override;
    void softmax_forward(Tensor logp, Tensor entropy, Tensor logits, Tensor targets,
                         float temperature) override;
    void softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor logp, Tensor entropy,
                          Tensor targets, float temperature) override;
    void sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                const SampleOptions& options) override;
    double sum_of_squares(Tensor t) override;
    void adamw(Tensor param, Tensor copy, Tensor grad, Tensor m, Tensor v,
               const AdamWOptions& options) override;
};

}  // namespace r1
