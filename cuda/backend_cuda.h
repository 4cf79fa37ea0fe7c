// The CUDA backend: each .cu file beside this one implements a family of its primitives
// (src/device/backend.h).
//
// activation() is BF16, for GEMM and attention on tensor cores, or F32, which computes everything
// in float32: slower, and made for checking. One stream orders all work. Sums have a fixed order,
// and there are no atomics on floats.
#pragma once
#include <cublas_v2.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <vector>

#include "cuda/common.cuh"
#include "src/device/backend.h"

namespace r1::cuda {

/// FILE from where the loader looks (beside this library, in LD_LIBRARY_PATH, among the system's),
/// else from where CUDA's toolkit, conda and Python's wheels put it: in nvidia/WHEEL/lib, a glob
/// pattern. `needs`: what it needs of the same folder. Null, and why, where it is not found.
void* open_library(const std::string& file, const std::string& wheel, const std::string& needs,
                   std::string& missing);
/// The function of this name in a library that was opened so; where it has none, that is `missing`.
template <class Function>
void find_function(Function& function, void* library, const char* name, std::string& missing) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) missing = std::string("the library that was found has no ") + name;
}

class CudaBackend final : public Backend {
  public:
    CudaBackend(int device, DType activation);
    ~CudaBackend() override;
    const char* name() const override { return name_.c_str(); }
    DType real() const override { return DType::F32; }
    DType activation() const override { return activation_; }
    Preferences preferences() const override {
        return {.decode_tokens = 8, .decode_rows = 16, .logit_rows = 2048};
    }

    // backend_cuda.cu
    bool make_exact() override { return exact_ = true; }
    std::size_t available_memory() const override;
    std::size_t used_memory() const override;
    /// Nothing is given back while a program runs.
    std::size_t peak_memory() const override { return used_memory(); }
    void* allocate(std::size_t bytes) override;
    void release(void* data) override;
    void upload(Tensor to, const void* host) override;
    void download(void* host, Tensor from) override;
    void zero(Tensor t) override;
    void replay(std::shared_ptr<void>& recording, const std::function<void()>& body) override;
    void linear_forward(Tensor y, Tensor x, Tensor weight, Tensor bias) override;
    void linear_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor x,
                         Tensor weight) override;

    // elementwise.cu
    void to_bfloat16(Tensor to, Tensor from) override;
    void swiglu_forward(Tensor out, Tensor gate_up) override;
    void swiglu_backward(Tensor dgate_up, Tensor dout, Tensor gate_up) override;
    double sum_of_squares(Tensor t) override;
    void adamw(Tensor param, Tensor copy, Tensor grad, Tensor m, Tensor v,
               const AdamWOptions& options) override;

    // embedding.cu
    void gather_rows(Tensor out, Tensor in, Tensor index) override;
    void add_rows(Tensor out, Tensor in, Tensor index) override;

    // norm.cu
    void rmsnorm_forward(Tensor y, Tensor rstd, Tensor sum, Tensor x, Tensor delta, Tensor weight,
                         float eps) override;
    void rmsnorm_backward(Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor rstd,
                          Tensor weight) override;
    void head_norm_forward(Tensor out, Tensor rstd, Tensor in, Tensor q_weight, Tensor k_weight,
                           AttentionShape shape, float eps) override;
    void head_norm_backward(Tensor d, Tensor dq_weight, Tensor dk_weight, Tensor in, Tensor rstd,
                            Tensor q_weight, Tensor k_weight, AttentionShape shape) override;

    // rope.cu
    void rope(Tensor qkv, Tensor positions, Tensor inv_freq, AttentionShape shape,
              bool inverse) override;
    void rope_append(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows, Tensor positions,
                     Tensor inv_freq, AttentionShape shape) override;

    // attention.cu
    void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor ranges,
                           AttentionShape shape) override;
    void attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv,
                            Tensor ranges, AttentionShape shape) override;

    // decode.cu
    void decode_attention(Tensor out, Tensor qkv, Tensor k_pool, Tensor v_pool, Tensor spans,
                          AttentionShape shape) override;
    void advance(Tensor positions, Tensor rows, Tensor spans, Tensor counters) override;

    // head.cu
    void softmax_forward(Tensor logp, Tensor entropy, Tensor logits, Tensor targets,
                         float temperature) override;
    void softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor logp, Tensor entropy,
                          Tensor targets, float temperature) override;
    void head_backward(Tensor dhidden, Tensor dweight, Tensor dlogp, Tensor dentropy, Tensor logp,
                       Tensor entropy, Tensor hidden, Tensor weight, Tensor targets,
                       float temperature, Tensor logits) override;

    // ranks.cu
    void all_reduce_sum(Tensor t, const Comm& ranks) override;

    // sample.cu
    void sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                const SampleOptions& options) override;

  private:
    /// A matrix as stored: row-major, `stride` elements from row to row.
    struct Matrix {
        void* data;
        DType dtype;
        std::int64_t rows, cols, stride;
        Matrix(Tensor t)
            : data(t.data), dtype(t.dtype), rows(t.rows), cols(t.cols), stride(t.cols) {}
        Matrix(void* data, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t stride)
            : data(data), dtype(dtype), rows(rows), cols(cols), stride(stride) {}
    };
    enum class Transposed { None, Left, Right };
    enum class Slot { Rounded, RoundedGradient, Partial, Delta, Decode, Count };
    /// m rounded to bfloat16, in scratch.
    Matrix rounded(Matrix m, Slot slot);
    /// c = a b, with one of them transposed, or c += a b. If one is BF16 the other is rounded to it
    /// first.
    void gemm(Matrix c, Matrix a, Matrix b, Transposed transposed, bool accumulate);
    /// The same of factors of one type, in one order. In exact.cu.
    void exact_gemm(Matrix c, Matrix a, Matrix b, Transposed transposed, bool accumulate);
    /// rope() and, with a cache, rope_append(). In rope.cu.
    void rope(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows, Tensor positions,
              Tensor inv_freq, AttentionShape shape, bool inverse);
    /// Attention of every row of qkv over rows of k and v, `cols` elements apart, in their order:
    /// with lse those of its RowRange, else those of its span of the cache. In attention.cu.
    void attend(Tensor out, Tensor lse, Tensor qkv, Tensor k, Tensor v, Tensor spans,
                AttentionShape shape);
    /// The gradient of the logits in place, as T: a bfloat16 row fills the first half of its
    /// float32 row. In head.cu.
    template <class T>
    void softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor logp, Tensor entropy,
                          Tensor targets, float temperature);
    /// out[c] += sum_r partial[r, c] for c < cols, rows `stride` apart, in order of r. In
    /// elementwise.cu.
    void add_column_sums(Tensor out, const float* partial, std::int64_t rows, std::int64_t stride);

    /// Memory that grows on demand and stays. Recorded work may use a piece that was outgrown, so
    /// none is freed.
    void* scratch(Slot slot, std::size_t bytes);
    template <class T>
    T* scratch(Slot slot, std::int64_t count) {
        return static_cast<T*>(scratch(slot, static_cast<std::size_t>(count) * sizeof(T)));
    }

    /// Memory of the host's that the device reads by itself, and when it has done so.
    struct Piece {
        void* data = nullptr;
        cudaEvent_t copied = nullptr;
    };

    DType activation_;
    bool exact_ = false;
    std::string name_;
    cudaStream_t stream_ = nullptr;
    std::array<Piece, 4> ring_;  ///< which upload() goes through, a piece after the other
    std::size_t next_piece_ = 0;
    cublasHandle_t cublas_ = nullptr;
    int device_;
    std::shared_ptr<void> nccl_;  ///< this device among those of other ranks; null: not joined
    bool tried_nccl_ = false;
    /// decode_attention() splits its work where that makes no more blocks than this; which of those
    /// that share an item have ended is counted in arrived_, 0 between two kernels.
    static constexpr int kSplitBlocks = 512;
    Buffer arrived_;
    std::map<Slot, Buffer> scratch_;
    std::vector<Buffer> outgrown_;
};

}  // namespace r1::cuda
