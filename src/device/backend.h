// THE porting contract: what a device must provide so that everything above it runs. A first port
// implements the functions that are `= 0`: seven small ones (name, real, five for memory) and
// seventeen kernels. The others have definitions in backend.cpp, made of those or computed on the
// host; a device replaces them one at a time where they are too slow for it. reference.cpp has
// every primitive as a plain loop; tests/test_conformance.cpp holds a device to it; README, "Port
// it", says how to start.
//
// Conventions, for every primitive unless it says otherwise.
//
// Shapes. [rows, cols], row-major, contiguous. N = tokens of a packed batch, B = sequences, C =
// hidden size, H = query heads, K = key/value heads, D = head size (even, at most 256), F =
// feed-forward size, V = vocabulary. A tensor may have no rows: then nothing is read or written,
// and its address means nothing. An argument that "may be empty" is then a Tensor{}, which is
// false. Every Tensor argument lies in the backend's memory, indices, positions and ranges too, and
// these are valid: the caller has checked them.
//
// Types. real() (float32; float64 in tests): the residual stream and its gradient, statistics,
// logits, vectors (weights of norms, biases), gradients of parameters. activation() (real() or
// BF16): what passes between matrices, and its gradient; marked "act" below. Matrices (of linear
// layers, the embedding) are real() or BF16, and a device takes both, {real() x, BF16 W} too; where
// activation() is BF16 they are always BF16. Ids, positions, ranges and counters are I32. No other
// combination occurs.
//
// Precision. Sums in float32 or wider, bfloat16 for storage only; + - x / and square roots round
// correctly (OpenCL: -cl-fp32-correctly-rounded-divide-sqrt), exp, log, sin and cos err by a few
// units in the last place. Where "float64" is written, pairs of floats or tables made on the host
// will also do. A softmax takes any scores: subtract the largest before exp().
//
// Aliasing. Outputs must not overlap inputs, except where "in place" is written. "+=" adds to the
// output, "=" overwrites it: its former contents may be anything, even NaN.
//
// Determinism. The order of every reduction depends on shapes alone: same input, same bits,
// whatever the number of threads. No floating-point atomics.
//
// Ordering. Calls come from one thread and take effect in the order they are made; download() waits
// for all that came before. Several backends may live at once, each used by itself.
#pragma once
#include <compare>
#include <functional>
#include <memory>
#include <span>

#include "src/device/formulas.h"
#include "src/device/tensor.h"

namespace r1 {

class Comm;

/// How attention reads one packed buffer: columns [0, H*D) are queries, then K*D keys, then K*D
/// values. Query head h uses key/value head h / (H / K) (grouped-query attention, arXiv
/// 2305.13245).
struct AttentionShape {
    int heads = 0, kv_heads = 0, head_dim = 0;
    constexpr int q_cols() const { return heads * head_dim; }
    constexpr int kv_cols() const { return kv_heads * head_dim; }
    constexpr int qkv_cols() const { return q_cols() + 2 * kv_cols(); }
};

/// What row n of a packed batch sees, and what sees it. Its query reads the keys of rows
/// [prompt_begin, prompt_end), a prompt that it shares with others (or none: an empty range), and
/// of [begin, n], its own sequence so far. All rows of [n, end) read its key: the rest of its
/// sequence, and for a row of a shared prompt whatever goes on from there, for those rows lie
/// behind it without a gap. prompt_begin <= prompt_end <= begin <= n < end.
struct RowRange {
    std::int32_t prompt_begin, prompt_end, begin, end;
    /// for (int j = r.first(); j <= n; j = r.next(j)): every row j whose key row n's query reads.
    /// A tile of `count` rows may be taken at once, if it does not reach over prompt_end.
    constexpr int first() const { return prompt_begin < prompt_end ? prompt_begin : begin; }
    constexpr int next(int j, int count = 1) const {
        return j + count == prompt_end ? begin : j + count;
    }
    bool operator==(const RowRange&) const = default;
};
/// Of `ranges` [N, 4] I32, one for each row; for kernels, and where the host can read them.
inline const RowRange* row_ranges(Tensor ranges) {
    return reinterpret_cast<const RowRange*>(ranges.as<std::int32_t>());
}

/// Rows of the key/value cache are handed out in blocks of this many.
constexpr int kKvBlock = 32;

/// Temperature 0 is greedy. top_k = 0 and top_p = 1 switch truncation off.
struct SampleOptions {
    float temperature = 1;
    int top_k = 0;
    float top_p = 1;
    std::uint64_t seed = 0;
    auto operator<=>(const SampleOptions&) const = default;
};

struct AdamWOptions {
    float lr = 1e-3f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, weight_decay = 0;
    std::int64_t step = 1;   ///< 1 at the first update (bias correction)
    float grad_scale = 1;    ///< multiplies the gradient first (clipping by global norm)
    std::uint64_t seed = 0;  ///< of stochastic rounding
};

/// What a backend runs best with. None of it changes results, but for the rounding on a GPU.
struct Preferences {
    /// Tokens between two looks of the host, at most 16; those decoded after a stop token are
    /// thrown away.
    int decode_tokens = 1;
    int decode_rows = 1;   ///< batches that are a multiple of this
    int logit_rows = 256;  ///< rows of logits at a time: memory against passes over the head
};

class Backend {
  public:
    virtual ~Backend() = default;
    virtual const char* name() const = 0;
    virtual DType real() const = 0;
    virtual DType activation() const { return real(); }
    virtual Preferences preferences() const { return {}; }
    /// From now on a row's result does not depend, not even in its last bit, on how many rows there
    /// are, so that sampling and training give a token the same log-probability: every row is
    /// summed in one order in linear_forward(), in attention_forward() and decode_attention() over
    /// the same keys, in softmax_forward() and sample(). Called before anything is computed; false
    /// where a backend has no such arithmetic.
    virtual bool make_exact() { return false; }

    // ---- memory ----
    /// 64-byte aligned; throws Error when there is not enough. allocate(0) returns something that
    /// release() accepts. A caller makes few allocations and cuts tensors out of them, at any
    /// element, by arithmetic on the address; nothing but the backend reads or writes through it.
    /// If your API has handles instead of addresses, return made-up, aligned addresses, reserve
    /// `bytes` of them, and map any address in that range back to its handle and offset.
    virtual void* allocate(std::size_t bytes) = 0;
    /// Called once for each allocate(), before the destructor.
    virtual void release(void* data) = 0;
    /// to.bytes() bytes, from memory that the caller may use again as soon as this returns.
    virtual void upload(Tensor to, const void* host) = 0;
    virtual void download(void* host, Tensor from) = 0;  ///< waits
    /// Bytes that allocate() could still give, less what the backend wants for itself: scratch that
    /// it takes on demand, such as partial sums, is in no memory plan.
    virtual std::size_t available_memory() const = 0;
    /// Bytes in use, now and at most: those allocated through Buffer, and what else a backend can
    /// tell; memory that several processes share may be counted whole.
    virtual std::size_t used_memory() const { return used_; }
    virtual std::size_t peak_memory() const { return peak_; }
    /// Whether its memory is the host's, where what programs keep for themselves counts too.
    virtual bool on_host() const { return false; }
    virtual void zero(Tensor t);
    /// to BF16 = from real(), by r1_round_to_bfloat16(). Same size.
    virtual void to_bfloat16(Tensor to, Tensor from);
    /// Runs `body`, which makes the same calls with the same tensors whenever it is given the same
    /// `recording`. A backend may record them the first time (into `recording`, which the caller
    /// keeps), and replay them afterwards; upload(), download(), and what returns a value are not
    /// among them.
    virtual void replay(std::shared_ptr<void>& recording, const std::function<void()>& body);

    // ---- rows of a table: the embedding, and the choice of the rows that are scored ----
    /// out[m, :] = in[index[m], :]             out [M, C], index [M]; in and out both real(), both
    /// act, or `in` a matrix and `out` real()
    virtual void gather_rows(Tensor out, Tensor in, Tensor index) = 0;
    /// out[index[m], :] += in[m, :], in order of m: the gradient of gather_rows().     in [M, C];
    /// both real()
    virtual void add_rows(Tensor out, Tensor in, Tensor index) = 0;

    // ---- RMSNorm with the residual add (arXiv 1910.07467) ----
    /// sum = x + delta; rstd[n] = 1 / sqrt(mean_c sum[n,c]^2 + eps); y = sum * rstd * weight
    /// y, delta act [N, C]; sum, x [N, C], rstd [N], weight [C]. sum may be x (in place); where
    /// delta is empty, sum is x.
    virtual void rmsnorm_forward(Tensor y, Tensor rstd, Tensor sum, Tensor x, Tensor delta,
                                 Tensor weight, float eps) = 0;
    /// dx += rstd * (w dy - x rstd^2 mean_c(w dy x));  dweight += sum_n dy x rstd.   dy act; the
    /// others real(); x: the sum of the forward pass
    virtual void rmsnorm_backward(Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor rstd,
                                  Tensor weight) = 0;

    // ---- RMSNorm of every query and key head (Qwen3, arXiv 2505.09388, section 2) ----
    /// For each of the H + K query and key heads of a row: rstd[n,h] = 1 / sqrt(mean_d in[n,h,d]^2
    /// + eps); out[n,h,:] = in[n,h,:] * rstd[n,h] * weight, where weight is q_weight or k_weight;
    /// values are copied. out, in act [N, (H + 2K) D], rstd [N, H + K], q_weight, k_weight [D]
    virtual void head_norm_forward(Tensor out, Tensor rstd, Tensor in, Tensor q_weight,
                                   Tensor k_weight, AttentionShape shape, float eps) = 0;
    /// d, the gradient of out, is overwritten with that of in (the formula of rmsnorm_backward, not
    /// added); its value columns stay as they are. dq_weight += sum over n and query heads of
    /// d * in * rstd, with d as it came, and dk_weight likewise.
    virtual void head_norm_backward(Tensor d, Tensor dq_weight, Tensor dk_weight, Tensor in,
                                    Tensor rstd, Tensor q_weight, Tensor k_weight,
                                    AttentionShape shape) = 0;

    // ---- rotary position embedding (arXiv 2104.09864), Hugging Face's half-split layout ----
    /// In place on the query and key columns of qkv act [N, (H + 2K) D]: for i < D/2 and angle a =
    /// positions[n] inv_freq[i]: (x[i], x[i + D/2]) -> (x[i] cos a - x[i + D/2] sin a, x[i + D/2]
    /// cos a + x[i] sin a). `inverse` rotates by -a, which is the backward pass. inv_freq [D/2]
    /// real(). Angles are formed in float64.
    virtual void rope(Tensor qkv, Tensor positions, Tensor inv_freq, AttentionShape shape,
                      bool inverse) = 0;

    // ---- linear layers (GEMM) ----
    // x, y and their gradients: real() or act, each as it comes. Where the matrix is BF16, a
    // backend may round x and dy to bfloat16 before it multiplies, or not.
    /// y = x W^T + bias           y [N, O], x [N, I], weight [O, I] a matrix, bias [O] or empty
    virtual void linear_forward(Tensor y, Tensor x, Tensor weight, Tensor bias) = 0;
    /// dx = dy W; dW += dy^T x; dbias += sum_n dy[n, :]
    /// dx [N, I], dy [N, O], dW [O, I], dbias [O] or empty; dW and dbias always real()
    virtual void linear_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor x,
                                 Tensor weight) = 0;

    // ---- attention over packed sequences ----
    /// With j over the rows that row n sees, s_j = q[n,h] . k[j,g] / sqrt(D):
    /// out[n, h] = sum_j softmax_j(s) v[j,g]; lse[n, h] = log sum_j exp(s_j).
    /// out act [N, H D], lse [N, H], qkv act [N, (H + 2K) D], ranges [N, 4]: a RowRange for each
    /// row. Nothing of size T x T may be stored.
    virtual void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor ranges,
                                   AttentionShape shape) = 0;
    /// dqkv = gradient of the above, given out and lse of the forward pass (arXiv 2205.14135,
    /// appendix B.4).
    virtual void attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv,
                                    Tensor ranges, AttentionShape shape) = 0;

    // ---- decoding with a key/value cache ----
    /// The cache of one layer is a pool of rows: k_pool, v_pool act [R, K D], R a multiple of
    /// kKvBlock. rope() of qkv, and cache[rows[n]] = keys, values of qkv[n]; a negative row is
    /// skipped. Within a block of kKvBlock rows a backend may lay them out as it likes.
    virtual void rope_append(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows,
                             Tensor positions, Tensor inv_freq, AttentionShape shape) = 0;
    /// One query a sequence. spans [B, 4]: the keys of query b are pool rows [s0, s0 + s1), a
    /// prompt that many samples may share, followed by [s2, s2 + s3), its own; s0 and s2 are
    /// multiples of kKvBlock. out act [B, H D]; only the query columns of qkv act [B, (H + 2K) D]
    /// are read.
    virtual void decode_attention(Tensor out, Tensor qkv, Tensor k_pool, Tensor v_pool,
                                  Tensor spans, AttentionShape shape) = 0;
    /// On to the next token: where rows[b] >= 0, one is added to it, to positions[b], to spans[b,
    /// 3] and to counters[b, 3]. All in place; counters [B, 4] as in sample().
    virtual void advance(Tensor positions, Tensor rows, Tensor spans, Tensor counters);

    // ---- SwiGLU (arXiv 2002.05202) ----
    /// out = silu(gate) * up            gate_up act [N, 2F]: gate first; out act [N, F]; silu(z) =
    /// z / (1 + exp(-z))
    virtual void swiglu_forward(Tensor out, Tensor gate_up) = 0;
    virtual void swiglu_backward(Tensor dgate_up, Tensor dout, Tensor gate_up) = 0;

    // ---- the head: log-probability and entropy ----
    /// With p = softmax(logits / temperature) of each row: logp[m] = log p[m, targets[m]],
    /// entropy[m] = -sum_v p log p. logits [M, V], targets, logp, entropy [M]
    virtual void softmax_forward(Tensor logp, Tensor entropy, Tensor logits, Tensor targets,
                                 float temperature) = 0;
    /// Gradient of sum_m (dlogp[m] logp[m] + dentropy[m] entropy[m]), in place of the logits:
    /// dlogits = (dlogp (1[v = target] - p) - dentropy p (log p + entropy)) / temperature, where
    /// log p[v] = (logits[v] - logits[target]) / temperature + logp: with logp and entropy of the
    /// forward pass a row is read once. dentropy [M] or empty
    virtual void softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor logp,
                                  Tensor entropy, Tensor targets, float temperature) = 0;
    /// softmax_forward() of hidden W^T, without N x V logits: rows of `logits`, scratch [chunk, V],
    /// are filled and forgotten chunk by chunk. hidden act [M, C], weight [V, C] a matrix.
    virtual void head_forward(Tensor logp, Tensor entropy, Tensor hidden, Tensor weight,
                              Tensor targets, float temperature, Tensor logits);
    /// dhidden = dlogits W, dweight += dlogits^T hidden, given logp and entropy of the forward
    /// pass, from logits computed once more, chunk by chunk; if `logits` has room for all rows, it
    /// holds what head_forward() has left there. dhidden act
    virtual void head_backward(Tensor dhidden, Tensor dweight, Tensor dlogp, Tensor dentropy,
                               Tensor logp, Tensor entropy, Tensor hidden, Tensor weight,
                               Tensor targets, float temperature, Tensor logits);

    // ---- sampling ----
    /// tokens[b] ~ softmax(logits[b] / temperature), truncated to the top_k likeliest and then to
    /// the smallest set that holds top_p of the rest's mass (of equal logits the lower ids first),
    /// renormalised: the first id, counted up, at which the cumulative probability exceeds a
    /// uniform number. logp[b] is its log-probability under that very distribution (greedy, the
    /// first of the largest: under the softmax at temperature 1). The only randomness is
    /// philox_uniform() of seed and counters[b, 0..3]: only its logits tie a sample to its batch.
    /// Probabilities are summed in float64: the suite wants the reference's tokens. logits [B, V],
    /// counters [B, 4], tokens [B] I32, logp [B].
    virtual void sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                        const SampleOptions& options);

    // ---- several devices, a process each ----
    /// t = its sum over the ranks, in place, with the same bits on each of them; all of them call
    /// it, with the same sizes. t F32
    virtual void all_reduce_sum(Tensor t, const Comm& ranks);

    // ---- optimizer ----
    /// sum of squares, in float64
    virtual double sum_of_squares(Tensor t);
    /// AdamW (arXiv 1711.05101, algorithm 2, with lr as the schedule): g = grad_scale grad;
    /// m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    /// param -= lr (m / (1 - b1^step) / (sqrt(v / (1 - b2^step)) + eps) + weight_decay param), with
    /// m and v as they are before they are rounded; copy = to_bfloat16(param); grad = 0. grad
    /// real(); copy BF16 or empty; all of param, m and v real(), m and v BF16, or all of them BF16.
    /// What is BF16 of these is rounded by r1_round_stochastically() and r1_rounding_bits() of
    /// seed, step and the element's index in this call's tensors, so that updates too small for
    /// bfloat16 are not lost on average.
    virtual void adamw(Tensor param, Tensor copy, Tensor grad, Tensor m, Tensor v,
                       const AdamWOptions& options);

  private:
    friend class Buffer;
    void count(std::size_t taken, std::size_t given);
    std::size_t used_ = 0, peak_ = 0;  ///< bytes in Buffers
};

/// float32, fast: src/device/cpu.cpp. It is exact for matrices of up to 2^18 weights without being
/// told; larger ones are then multiplied in whatever blocks are fastest.
std::unique_ptr<Backend> make_cpu_backend();
/// Plain loops in float32, or in float64 for tests: src/device/reference.cpp.
std::unique_ptr<Backend> make_reference_backend(DType real = DType::F32);

/// F32 or BF16 (F64, in tests), element by element, from and to floats on the host; a BF16 tensor
/// is given the nearest.
void download_floats(Backend& backend, Tensor from, std::span<float> to);
void upload_floats(Backend& backend, Tensor to, std::span<const float> from);

// ---- the door: what libr1_NAME.so exports for `--device NAME` (src/device/device.h) ----

/// Raise it with every change to the classes of this file and tensor.h: a library built for others
/// is turned away.
constexpr int kBackendVersion = 5;

}  // namespace r1

extern "C" {
/// Returns kBackendVersion.
int r1_backend_version();
/// A new backend; null, and a reason that stays readable, where it cannot be used here. `device` is
/// the number in `--device NAME:1`, and -1 where none is given: then the library chooses, and where
/// its devices have no numbers it refuses any other. With `bfloat16` its activation() may be BF16;
/// without, it must be real().
r1::Backend* r1_open_backend(int device, bool bfloat16, const char** why_not);
}
