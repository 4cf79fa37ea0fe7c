// The reference backend: plain loops a reader can check against the formulas in backend.h, written once for
// float and double, and oneDNN for float32/bfloat16 GEMM. Work is cut into tasks whose size depends on shapes
// alone, never on the number of threads, and each output is written by one task: results are bitwise the same
// for any number of threads.
#include <omp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>
#include <fstream>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "src/device/backend.h"
#include "src/device/parallel.h"

namespace r1 {
namespace {

using std::int32_t;
using std::int64_t;
using bf16 = std::uint16_t;

float widen(bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16); }
template <class Real>
Real widen(Real x) {
    return x;
}
/// Round to nearest even. NaN stays NaN.
bf16 narrow(float x) {
    auto bits = std::bit_cast<std::uint32_t>(x);
    if (x != x) return 0x7fc0;
    return static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/// exp with a relative error below 2e-7 that the compiler vectorises: exp(x) = 2^n exp(r), |r| <= log(2)/2,
/// and a Taylor polynomial of degree 7 for exp(r). Below -87 it returns about 1e-38 instead of a denormal
/// number.
inline float fast_exp(float x) {
    x = std::min(88.0f, std::max(-87.0f, x));
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;    // log(2) in two parts, n * the first is exact
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}
inline double fast_exp(double x) { return std::exp(x); }

/// A scratch vector that each thread keeps between calls. `Slot` tells apart several used at once.
template <class T, int Slot = 0>
T* scratch(std::size_t count) {
    thread_local std::vector<T> memory;
    if (memory.size() < count) memory.resize(count);
    return memory.data();
}

int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

/// Calls body(begin, end) for fixed-size pieces of [0, count).
template <class Body>
void parallel_chunks(int64_t count, int64_t chunk, Body body) {
    parallel_for((count + chunk - 1) / chunk,
                 [&](int64_t i) { body(i * chunk, std::min(count, (i + 1) * chunk)); });
}

// ---- GEMM ----

/// C [m, n] (row stride ldc, float32) = A B, or C += A B. Single-threaded oneDNN matmul: the callers are
/// tasks of parallel_for. Creating a primitive compiles code (milliseconds), so each thread keeps those it
/// has made; the callers cut their work into equal blocks, so there are few shapes.
struct MatmulKey {
    int64_t m, n, k, a_row, a_col, b_row, b_col, ldc;
    bool is_bf16, accumulate;
    bool operator==(const MatmulKey&) const = default;
};
struct MatmulKeyHash {
    std::size_t operator()(const MatmulKey& key) const {
        std::size_t h = key.is_bf16 * 2 + key.accumulate;
        for (int64_t v : {key.m, key.n, key.k, key.a_row, key.a_col, key.b_row, key.b_col, key.ldc})
            h = h * 1000003 + static_cast<std::size_t>(v);
        return h;
    }
};

void matmul(const void* a, const void* b, float* c, const MatmulKey& key) {
    static const bool has_bf16 = dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core;
    if (key.is_bf16 && !has_bf16) {  // the same product of the same rounded numbers, in float32
        float *wide_a = scratch<float, 2>(key.m * key.k), *wide_b = scratch<float, 3>(key.k * key.n);
        for (int64_t i = 0; i < key.m; ++i)
            for (int64_t p = 0; p < key.k; ++p)
                wide_a[i * key.k + p] = widen(static_cast<const bf16*>(a)[i * key.a_row + p * key.a_col]);
        for (int64_t p = 0; p < key.k; ++p)
            for (int64_t j = 0; j < key.n; ++j)
                wide_b[p * key.n + j] = widen(static_cast<const bf16*>(b)[p * key.b_row + j * key.b_col]);
        return matmul(wide_a, wide_b, c,
                      {key.m, key.n, key.k, key.k, 1, key.n, 1, key.ldc, false, key.accumulate});
    }
    struct Primitive {
        dnnl::matmul op;
        dnnl::memory a, b, c;
        std::unordered_map<int, dnnl::memory> arguments;
    };
    thread_local const bool one_thread = (omp_set_num_threads(1), true);  // oneDNN's own threads stay unused
    (void)one_thread;
    thread_local dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    thread_local dnnl::stream stream(engine);
    thread_local std::unordered_map<MatmulKey, Primitive, MatmulKeyHash> cache;
    auto found = cache.find(key);
    if (found == cache.end()) {
        using memory = dnnl::memory;
        auto in = key.is_bf16 ? memory::data_type::bf16 : memory::data_type::f32;
        memory::desc a_desc({key.m, key.k}, in, memory::dims{key.a_row, key.a_col});
        memory::desc b_desc({key.k, key.n}, in, memory::dims{key.b_row, key.b_col});
        memory::desc c_desc({key.m, key.n}, memory::data_type::f32, memory::dims{key.ldc, 1});
        dnnl::primitive_attr attributes;
        if (key.accumulate) {
            dnnl::post_ops sum;
            sum.append_sum(1.0f);
            attributes.set_post_ops(sum);
        }
#if DNNL_VERSION_MAJOR >= 3
        const dnnl::matmul::primitive_desc product(engine, a_desc, b_desc, c_desc, attributes);
#else  // oneDNN 2 takes the descriptors by way of a `desc` that oneDNN 3 no longer has
        const dnnl::matmul::primitive_desc product({a_desc, b_desc, c_desc}, attributes, engine);
#endif
        Primitive p{dnnl::matmul(product),
                    memory(a_desc, engine, nullptr),
                    memory(b_desc, engine, nullptr),
                    memory(c_desc, engine, nullptr),
                    {}};
        p.arguments = {{DNNL_ARG_SRC, p.a}, {DNNL_ARG_WEIGHTS, p.b}, {DNNL_ARG_DST, p.c}};
        found = cache.emplace(key, std::move(p)).first;
    }
    Primitive& p = found->second;
    p.a.set_data_handle(const_cast<void*>(a));
    p.b.set_data_handle(const_cast<void*>(b));
    p.c.set_data_handle(c);
    p.op.execute(stream, p.arguments);
    stream.wait();
}

// Rows of x a task: enough to pay for oneDNN's packing of the weights. Tails are padded with rows of zeros to a multiple of
// kRowPadding, so that few shapes occur and few primitives are compiled. Both are multiples of 48, hence of the 4, 6 and 8
// rows that oneDNN's kernels unroll: then a row's result depends neither on its place nor on how many others there are.
constexpr int64_t kRowBlock = 144, kRowPadding = 48;
constexpr int64_t kTokenBlock = 128,
                  kTokenPadding = 64;  // the same for tokens summed into a weight's gradient
constexpr int64_t kColBlock = 1024;    // outputs a task
// A few rows times a large matrix are a memory-bound matrix-vector product. Small matrices go through the
// same product as many rows: then sampling gives a token bit by bit the log-probability that training gives
// it.
constexpr int64_t kGemvRows = 4, kGemvWeights = 1 << 18;

template <class Real, class Weight>
Real dot(const Real* x, const Weight* w, int64_t count) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += x[i] * widen(w[i]);
    return sum;
}

/// y += a * x
template <class Real, class Weight>
void axpy(Real* y, Real a, const Weight* x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) y[i] += a * widen(x[i]);
}

/// Calls body with a typed pointer to a matrix of Real or bf16.
template <class Real, class Body>
void with_weights(const Tensor& w, Body body) {
    if (w.dtype == DType::BF16)
        body(w.as<const bf16>());
    else
        body(w.as<const Real>());
}

// ---- attention scores, shared by the forward and the backward pass ----

/// scores[j] = sum_d scale q[d] kt[d, j] for j < count, one multiply-add after the other in order of d: kt is
/// [D, stride], so the inner loop runs over keys.
template <class Real>
void scores_of(Real* scores, const Real* q, Real scale, const Real* kt, int64_t stride, int head_dim,
               int64_t count) {
    std::fill(scores, scores + count, Real(0));
    int d = 0;
    for (; d + 4 <= head_dim; d += 4) {
        const Real *k0 = kt + d * stride, *k1 = k0 + stride, *k2 = k1 + stride, *k3 = k2 + stride;
        const Real q0 = q[d] * scale, q1 = q[d + 1] * scale, q2 = q[d + 2] * scale, q3 = q[d + 3] * scale;
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) {
            Real s = scores[j];
            s += q0 * k0[j];
            s += q1 * k1[j];
            s += q2 * k2[j];
            s += q3 * k3[j];
            scores[j] = s;
        }
    }
    for (; d < head_dim; ++d) axpy(scores, q[d] * scale, kt + d * stride, count);
}

/// Overwrites scores with exp(scores - max); returns (max, sum).
template <class Real>
std::pair<Real, Real> exp_in_place(Real* scores, int64_t count) {
    Real top = -std::numeric_limits<Real>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < count; ++j) top = std::max(top, scores[j]);
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum += scores[j] = fast_exp(scores[j] - top);
    return {top, sum};
}

/// Value rows of a sequence: those of a shared prompt, then its own.
template <class Real>
struct ValueRows {
    const Real* rows;
    int64_t count;
};

/// out[d] = sum_j p[j] row_j[d] / sum. Rows with even and odd j are summed apart, so that one multiply-add
/// need not wait for the other; the order does not depend on where one part ends and the next begins.
template <int D, class Real>
void weighted_mean_of(Real* out, const Real* p, Real sum, std::initializer_list<ValueRows<Real>> parts,
                      int64_t stride) {
    Real sums[2][D] = {};
    int64_t j = 0;
    for (const auto& part : parts) {
        const Real* row = part.rows;
        int64_t left = part.count;
        auto add = [&](Real* to) {
            const Real weight = p[j++];
#pragma omp simd
            for (int d = 0; d < D; ++d) to[d] += weight * row[d];
            row += stride, --left;
        };
        if (j % 2 && left) add(sums[1]);
        while (left >= 2) add(sums[0]), add(sums[1]);
        if (left) add(sums[0]);
    }
    for (int d = 0; d < D; ++d) out[d] = (sums[0][d] + sums[1][d]) / sum;
}
/// The same for any head size: the usual ones have their loops unrolled, with the sums in registers.
template <class Real>
void weighted_mean(Real* out, const Real* p, Real sum, std::initializer_list<ValueRows<Real>> parts,
                   int64_t stride, int head_dim) {
    switch (head_dim) {
        case 16:
            return weighted_mean_of<16>(out, p, sum, parts, stride);
        case 32:
            return weighted_mean_of<32>(out, p, sum, parts, stride);
        case 64:
            return weighted_mean_of<64>(out, p, sum, parts, stride);
        case 128:
            return weighted_mean_of<128>(out, p, sum, parts, stride);
    }
    std::fill(out, out + head_dim, Real(0));
    int64_t j = 0;
    for (const auto& part : parts)
        for (int64_t i = 0; i < part.count; ++i) axpy(out, p[j++], part.rows + i * stride, head_dim);
    for (int d = 0; d < head_dim; ++d) out[d] /= sum;
}

/// to[d * count + j] = from[j * stride + d]
template <class Real>
void transpose(Real* to, const Real* from, int64_t stride, int head_dim, int64_t count) {
    for (int64_t j = 0; j < count; ++j)
        for (int d = 0; d < head_dim; ++d) to[d * count + j] = from[j * stride + d];
}

// ---- softmax over the vocabulary: head and sampler must give a token the same log-probability ----

/// max and log sum exp of logits[v] / temperature
template <class Real>
Real log_sum_exp(const Real* logits, Real inverse_temperature, int64_t vocab) {
    Real top = -std::numeric_limits<Real>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t v = 0; v < vocab; ++v) top = std::max(top, logits[v]);
#pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < vocab; ++v) sum += fast_exp((logits[v] - top) * inverse_temperature);
    return top * inverse_temperature + std::log(sum);
}

template <class Real>
class CpuBackend final : public Backend {
  public:
    explicit CpuBackend(bool exact) : exact_(exact) {}
    const char* name() const override { return "cpu"; }
    DType real() const override { return std::is_same_v<Real, double> ? DType::F64 : DType::F32; }

    bool on_host() const override { return true; }
    std::size_t available_memory() const override {
        std::ifstream in("/proc/meminfo");
        for (std::string name, unit; in >> name;) {
            std::size_t kibibytes = 0;
            in >> kibibytes >> unit;
            if (name == "MemAvailable:") return kibibytes * 1024;
        }
        return std::numeric_limits<std::size_t>::max();  // not Linux: unknown
    }
    std::size_t used_memory() const override {
        std::size_t total = 0, resident = 0;
        std::ifstream("/proc/self/statm") >> total >> resident;
        return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    }
    std::size_t peak_memory() const override {
        rusage usage{};
        getrusage(RUSAGE_SELF, &usage);
        return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
    }
    void* allocate(std::size_t bytes) override {
        void* p = std::aligned_alloc(64, std::max<std::size_t>(64, (bytes + 63) / 64 * 64));
        if (!p) fail("not enough memory: ", bytes, " bytes wanted");
        return p;
    }
    void release(void* data) override { std::free(data); }
    void upload(Tensor to, const void* host) override {
        if (to.size()) std::memcpy(to.data, host, to.bytes());
    }
    void download(void* host, Tensor from) override {
        if (from.size()) std::memcpy(host, from.data, from.bytes());
    }
    void copy(Tensor to, Tensor from) override {
        if (to.dtype == from.dtype) return upload(to, from.data);
        const Real* in = from.as<Real>();
        bf16* out = to.as<bf16>();
        parallel_chunks(to.size(), 1 << 16, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) out[i] = narrow(static_cast<float>(in[i]));
        });
    }
    void zero(Tensor t) override {
        if (t.size()) std::memset(t.data, 0, t.bytes());
    }

    // ---- embedding ----
    void embedding_forward(Tensor out, Tensor ids, Tensor table) override {
        with_weights<Real>(table, [&](auto* rows) {
            parallel_chunks(out.rows, 64, [&](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n) {
                    const auto* row = rows + ids.as<int32_t>()[n] * out.cols;
                    for (int64_t c = 0; c < out.cols; ++c) out.as<Real>()[n * out.cols + c] = widen(row[c]);
                }
            });
        });
    }
    void embedding_backward(Tensor dtable, Tensor ids, Tensor dout) override {
        const int64_t cols = dout.cols;
        parallel_chunks(cols, 32,
                        [&](int64_t begin, int64_t end) {  // a task owns columns: no two write one place
                            for (int64_t n = 0; n < dout.rows; ++n)
                                axpy(dtable.as<Real>() + ids.as<int32_t>()[n] * cols + begin, Real(1),
                                     dout.as<Real>() + n * cols + begin, end - begin);
                        });
    }
    void gather_rows(Tensor out, Tensor in, Tensor index) override {
        for (int64_t m = 0; m < out.rows; ++m)
            upload(out.slice(m, 1), in.slice(index.as<int32_t>()[m], 1).data);
    }
    void scatter_rows(Tensor out, Tensor in, Tensor index) override {
        zero(out);
        for (int64_t m = 0; m < in.rows; ++m)
            upload(out.slice(index.as<int32_t>()[m], 1), in.slice(m, 1).data);
    }

    // ---- RMSNorm ----
    void rmsnorm_forward(Tensor y, Tensor rstd, Tensor sum, Tensor x, Tensor delta, Tensor weight,
                         float eps) override {
        const int64_t C = x.cols;
        const Real* w = weight.as<Real>();
        parallel_chunks(x.rows, 64, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                Real *xr = sum.as<Real>() + n * C, *yr = y.as<Real>() + n * C;
                if (delta) {
                    const Real *a = x.as<Real>() + n * C, *b = delta.as<Real>() + n * C;
#pragma omp simd
                    for (int64_t c = 0; c < C; ++c) xr[c] = a[c] + b[c];
                }
                Real r = 1 / std::sqrt(dot(xr, xr, C) / C + static_cast<Real>(eps));
                rstd.as<Real>()[n] = r;
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) yr[c] = xr[c] * r * w[c];
            }
        });
    }
    void rmsnorm_backward(Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor rstd,
                          Tensor weight) override {
        const int64_t N = x.rows, C = x.cols;
        const Real *w = weight.as<Real>(), *r = rstd.as<Real>();
        parallel_chunks(N, 64, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                const Real *xr = x.as<Real>() + n * C, *dyr = dy.as<Real>() + n * C;
                Real *dxr = dx.as<Real>() + n * C, mean = 0;
#pragma omp simd reduction(+ : mean)
                for (int64_t c = 0; c < C; ++c) mean += w[c] * dyr[c] * xr[c];
                const Real shared = mean / C * r[n] * r[n] * r[n];
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) dxr[c] += r[n] * w[c] * dyr[c] - shared * xr[c];
            }
        });
        parallel_chunks(C, 32, [&](int64_t begin, int64_t end) {
            Real* dw = dweight.as<Real>();
            for (int64_t n = 0; n < N; ++n) {
                const Real *xr = x.as<Real>() + n * C, *dyr = dy.as<Real>() + n * C;
#pragma omp simd
                for (int64_t c = begin; c < end; ++c) dw[c] += dyr[c] * xr[c] * r[n];
            }
        });
    }

    void head_norm_forward(Tensor out, Tensor rstd, Tensor in, Tensor q_weight, Tensor k_weight,
                           AttentionShape shape, float eps) override {
        const int D = shape.head_dim, normed = shape.heads + shape.kv_heads;
        parallel_chunks(in.rows, 64, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                for (int h = 0; h < normed; ++h) {
                    const Real* w = (h < shape.heads ? q_weight : k_weight).as<Real>();
                    const Real* x = in.as<Real>() + n * in.cols + h * D;
                    Real* y = out.as<Real>() + n * in.cols + h * D;
                    const Real r = 1 / std::sqrt(dot(x, x, D) / D + static_cast<Real>(eps));
                    rstd.as<Real>()[n * normed + h] = r;
#pragma omp simd
                    for (int d = 0; d < D; ++d) y[d] = x[d] * r * w[d];
                }
                const Real* values = in.as<Real>() + n * in.cols + normed * D;
                std::copy_n(values, shape.kv_cols(), out.as<Real>() + n * in.cols + normed * D);
            }
        });
    }
    void head_norm_backward(Tensor d, Tensor dq_weight, Tensor dk_weight, Tensor in, Tensor rstd,
                            Tensor q_weight, Tensor k_weight, AttentionShape shape) override {
        const int D = shape.head_dim, normed = shape.heads + shape.kv_heads;
        parallel_chunks(D, 16, [&](int64_t begin, int64_t end) {  // before d is overwritten
            for (int64_t n = 0; n < in.rows; ++n)
                for (int h = 0; h < normed; ++h) {
                    const Real *x = in.as<Real>() + n * in.cols + h * D, r = rstd.as<Real>()[n * normed + h];
                    const Real* dy = d.as<Real>() + n * in.cols + h * D;
                    Real* dw = (h < shape.heads ? dq_weight : dk_weight).as<Real>();
#pragma omp simd
                    for (int64_t c = begin; c < end; ++c) dw[c] += dy[c] * x[c] * r;
                }
        });
        parallel_chunks(in.rows, 64, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n)
                for (int h = 0; h < normed; ++h) {
                    const Real* w = (h < shape.heads ? q_weight : k_weight).as<Real>();
                    const Real *x = in.as<Real>() + n * in.cols + h * D, r = rstd.as<Real>()[n * normed + h];
                    Real *dy = d.as<Real>() + n * in.cols + h * D, mean = 0;
#pragma omp simd reduction(+ : mean)
                    for (int c = 0; c < D; ++c) mean += w[c] * dy[c] * x[c];
                    const Real shared = mean / D * r * r * r;
#pragma omp simd
                    for (int c = 0; c < D; ++c) dy[c] = r * w[c] * dy[c] - shared * x[c];
                }
        });
    }

    // ---- rotary position embedding ----
    void rope(Tensor qkv, Tensor positions, Tensor inv_freq, AttentionShape shape, bool inverse) override {
        const int half = shape.head_dim / 2, rotated_heads = shape.heads + shape.kv_heads;
        parallel_chunks(qkv.rows, 64, [&](int64_t begin, int64_t end) {
            Real* cosine = scratch<Real>(2 * half);
            Real* sine = cosine + half;
            for (int64_t n = begin; n < end; ++n) {
                for (int i = 0; i < half; ++i) {
                    double angle = positions.as<int32_t>()[n] * static_cast<double>(inv_freq.as<Real>()[i]);
                    cosine[i] = static_cast<Real>(std::cos(angle));
                    sine[i] = static_cast<Real>(inverse ? -std::sin(angle) : std::sin(angle));
                }
                for (int h = 0; h < rotated_heads; ++h) {
                    Real *low = qkv.as<Real>() + n * qkv.cols + h * shape.head_dim, *high = low + half;
#pragma omp simd
                    for (int i = 0; i < half; ++i) {
                        const Real a = low[i], b = high[i];
                        low[i] = a * cosine[i] - b * sine[i];
                        high[i] = b * cosine[i] + a * sine[i];
                    }
                }
            }
        });
    }

    // ---- linear layers ----
    void linear_forward(Tensor y, Tensor x, Tensor weight, Tensor bias) override {
        const int64_t N = x.rows, I = x.cols, O = weight.rows;
        if (std::is_same_v<Real, double> || (!exact_ && N <= kGemvRows && O * I >= kGemvWeights)) {
            with_weights<Real>(weight, [&](auto* w) {
                parallel_chunks(O, 64, [&](int64_t begin, int64_t end) {
                    for (int64_t o = begin; o < end; ++o)
                        for (int64_t n = 0; n < N; ++n)
                            y.as<Real>()[n * O + o] = dot(x.as<Real>() + n * I, w + o * I, I);
                });
            });
        } else {
            const bool is_bf16 = weight.dtype == DType::BF16;
            // oneDNN may sum in another order for another number of rows: `exact` always gives it the same.
            const int64_t block = exact_ ? kRowPadding : kRowBlock, row_blocks = (N + block - 1) / block;
            parallel_for(row_blocks * ((O + kColBlock - 1) / kColBlock), [&](int64_t task) {
                const int64_t n = task % row_blocks * block, rows = std::min(block, N - n);
                const int64_t o = task / row_blocks * kColBlock, cols = std::min(kColBlock, O - o);
                matmul_rows(y, n, rows, o, cols, x,
                            static_cast<char*>(weight.data) + o * I * bytes_of(weight.dtype), 1, I, is_bf16);
            });
        }
        if (bias)
            parallel_chunks(N, 64, [&](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n)
                    axpy(y.as<Real>() + n * O, Real(1), bias.as<const Real>(), O);
            });
    }
    void linear_backward_input(Tensor dx, Tensor dy, Tensor weight) override {
        const int64_t N = dx.rows, I = dx.cols, O = dy.cols;
        if (std::is_same_v<Real, double>) {
            with_weights<Real>(weight, [&](auto* w) {
                parallel_for(N, [&](int64_t n) {
                    Real* row = dx.as<Real>() + n * I;
                    std::fill(row, row + I, Real(0));
                    for (int64_t o = 0; o < O; ++o) axpy(row, dy.as<Real>()[n * O + o], w + o * I, I);
                });
            });
            return;
        }
        const bool is_bf16 = weight.dtype == DType::BF16;
        const int64_t row_blocks = (N + kRowBlock - 1) / kRowBlock;
        parallel_for(row_blocks * ((I + kColBlock - 1) / kColBlock), [&](int64_t task) {
            const int64_t n = task % row_blocks * kRowBlock, rows = std::min(kRowBlock, N - n);
            const int64_t i = task / row_blocks * kColBlock, cols = std::min(kColBlock, I - i);
            matmul_rows(dx, n, rows, i, cols, dy,
                        static_cast<char*>(weight.data) + i * bytes_of(weight.dtype), I, 1, is_bf16);
        });
    }
    void linear_backward_weight(Tensor dweight, Tensor dbias, Tensor dy, Tensor x) override {
        const int64_t N = x.rows, I = x.cols, O = dy.cols;
        if (std::is_same_v<Real, double>) {
            parallel_for(O, [&](int64_t o) {
                for (int64_t n = 0; n < N; ++n)
                    axpy(dweight.as<Real>() + o * I, dy.as<Real>()[n * O + o], x.as<Real>() + n * I, I);
            });
        } else {
            const int64_t block = O <= 64 ? 32 : O <= 2048 ? 64 : 1024;  // outputs a task
            parallel_for((O + block - 1) / block, [&](int64_t task) {
                const int64_t o = task * block, outputs = std::min(block, O - o);
                for (int64_t n = 0; n < N; n += kTokenBlock) {
                    const int64_t rows = std::min(kTokenBlock, N - n), padded = round_up(rows, kTokenPadding);
                    float* to = dweight.as<float>() + o * I;
                    if (rows == padded) {
                        matmul(dy.as<float>() + n * O + o, x.as<float>() + n * I, to,
                               {outputs, I, rows, 1, O, I, 1, I, false, true});
                    } else {  // rows of zeros add nothing
                        float* a = copy_padded<0>(dy.as<float>() + n * O + o, rows, outputs, O, padded);
                        float* b = copy_padded<1>(x.as<float>() + n * I, rows, I, I, padded);
                        matmul(a, b, to, {outputs, I, padded, 1, outputs, I, 1, I, false, true});
                    }
                }
            });
        }
        if (dbias)
            parallel_chunks(O, 64, [&](int64_t begin, int64_t end) {
                for (int64_t n = 0; n < N; ++n)
                    axpy(dbias.as<Real>() + begin, Real(1), dy.as<Real>() + n * O + begin, end - begin);
            });
    }

    // ---- attention ----
    void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                           AttentionShape shape) override {
        const int D = shape.head_dim, group = shape.heads / shape.kv_heads;
        const Real scale = 1 / std::sqrt(static_cast<Real>(D));
        parallel_for((cu_seqlens.rows - 1) * shape.kv_heads, [&](int64_t task) {
            const int64_t b = task / shape.kv_heads, g = task % shape.kv_heads, W = qkv.cols;
            const int64_t first = cu_seqlens.as<int32_t>()[b], T = cu_seqlens.as<int32_t>()[b + 1] - first;
            const Real* rows = qkv.as<Real>() + first * W;
            const Real *k = rows + shape.q_cols() + g * D, *v = k + shape.kv_cols();
            Real *kt = scratch<Real>(T * (D + 1)), *p = kt + T * D;
            transpose(kt, k, W, D, T);
            for (int64_t h = g * group; h < (g + 1) * group; ++h) {
                for (int64_t i = 0; i < T; ++i) {
                    scores_of(p, rows + i * W + h * D, scale, kt, T, D, i + 1);
                    auto [top, sum] = exp_in_place(p, i + 1);
                    weighted_mean(out.as<Real>() + (first + i) * out.cols + h * D, p, sum, {{v, i + 1}}, W,
                                  D);
                    lse.as<Real>()[(first + i) * shape.heads + h] = top + std::log(sum);
                }
            }
        });
    }
    void attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv, Tensor cu_seqlens,
                            AttentionShape shape) override {
        const int D = shape.head_dim, group = shape.heads / shape.kv_heads;
        const Real scale = 1 / std::sqrt(static_cast<Real>(D));
        parallel_for((cu_seqlens.rows - 1) * shape.kv_heads, [&](int64_t task) {
            const int64_t b = task / shape.kv_heads, g = task % shape.kv_heads, W = qkv.cols;
            const int64_t first = cu_seqlens.as<int32_t>()[b], T = cu_seqlens.as<int32_t>()[b + 1] - first;
            const Real* rows = qkv.as<Real>() + first * W;
            const int64_t k_col = shape.q_cols() + g * D, v_col = k_col + shape.kv_cols();
            Real *kt = scratch<Real>(T * (4 * D + 2)), *vt = kt + T * D, *dkt = vt + T * D,
                 *dvt = dkt + T * D;
            Real *p = dvt + T * D, *ds = p + T;
            transpose(kt, rows + k_col, W, D, T);
            transpose(vt, rows + v_col, W, D, T);
            std::fill(dkt, dkt + 2 * T * D, Real(0));
            for (int64_t h = g * group; h < (g + 1) * group; ++h) {
                for (int64_t i = 0; i < T; ++i) {
                    const Real* q = rows + i * W + h * D;
                    const Real* doi = dout.as<Real>() + (first + i) * dout.cols + h * D;
                    const Real delta = dot(doi, out.as<Real>() + (first + i) * out.cols + h * D, D);
                    const Real log_sum = lse.as<Real>()[(first + i) * shape.heads + h];
                    scores_of(p, q, scale, kt, T, D, i + 1);       // s_ij
                    scores_of(ds, doi, Real(1), vt, T, D, i + 1);  // dp_ij = do_i . v_j
#pragma omp simd
                    for (int64_t j = 0; j <= i; ++j) {
                        p[j] = fast_exp(p[j] - log_sum);
                        ds[j] = p[j] * (ds[j] - delta) * scale;
                    }
                    Real* dq = dqkv.as<Real>() + (first + i) * W + h * D;
                    for (int d = 0; d < D; ++d) {
                        const Real *ktd = kt + d * T, qd = q[d], dod = doi[d];
                        Real *dktd = dkt + d * T, *dvtd = dvt + d * T, sum = 0;
#pragma omp simd reduction(+ : sum)
                        for (int64_t j = 0; j <= i; ++j) {
                            dktd[j] += ds[j] * qd;
                            dvtd[j] += p[j] * dod;
                            sum += ds[j] * ktd[j];
                        }
                        dq[d] = sum;
                    }
                }
            }
            for (int64_t j = 0; j < T; ++j)
                for (int d = 0; d < D; ++d) {
                    dqkv.as<Real>()[(first + j) * W + k_col + d] = dkt[d * T + j];
                    dqkv.as<Real>()[(first + j) * W + v_col + d] = dvt[d * T + j];
                }
        });
    }

    // ---- decoding ----
    // Keys of a block lie as [K D, kKvBlock], so that the score loop runs over keys; values as plain rows.
    void rope_append(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows, Tensor positions, Tensor inv_freq,
                     AttentionShape shape) override {
        rope(qkv, positions, inv_freq, shape, false);
        const int64_t cols = shape.kv_cols();
        for (int64_t n = 0; n < qkv.rows; ++n) {
            const int64_t row = rows.as<int32_t>()[n];
            if (row < 0) continue;
            const Real *k = qkv.as<Real>() + n * qkv.cols + shape.q_cols(), *v = k + cols;
            Real* block = k_pool.as<Real>() + row / kKvBlock * kKvBlock * cols + row % kKvBlock;
            for (int64_t c = 0; c < cols; ++c) block[c * kKvBlock] = k[c];
            std::copy(v, v + cols, v_pool.as<Real>() + row * cols);
        }
    }
    void decode_attention(Tensor out, Tensor qkv, Tensor k_pool, Tensor v_pool, Tensor spans,
                          AttentionShape shape) override {
        const int D = shape.head_dim, group = shape.heads / shape.kv_heads;
        const int64_t cols = shape.kv_cols();
        const Real scale = 1 / std::sqrt(static_cast<Real>(D));
        parallel_for(out.rows, [&](int64_t b) {
            const int32_t* span = spans.as<int32_t>() + b * 4;
            const int64_t count = span[1] + span[3];
            Real* p = scratch<Real>(count + kKvBlock);  // the last block's spare lanes spill behind
            for (int64_t h = 0; h < shape.heads; ++h) {
                const int64_t column = h / group * D;  // of the key/value head
                const Real* q = qkv.as<Real>() + b * qkv.cols + h * D;
                for (int part = 0, at = 0; part < 2; at += span[1], ++part)
                    for (int64_t j = 0; j < span[2 * part + 1]; j += kKvBlock) {
                        const Real* k = k_pool.as<Real>() + (span[2 * part] + j) * cols + column * kKvBlock;
                        Real sum[kKvBlock] = {};
                        for (int d = 0; d < D; ++d)
#pragma omp simd
                            for (int lane = 0; lane < kKvBlock; ++lane)
                                sum[lane] += (q[d] * scale) * k[d * kKvBlock + lane];
                        std::copy(sum, sum + kKvBlock, p + at + j);
                    }
                const Real sum = exp_in_place(p, count).second;
                const Real* v = v_pool.as<Real>() + column;
                weighted_mean(out.as<Real>() + b * out.cols + h * D, p, sum,
                              {{v + span[0] * cols, span[1]}, {v + span[2] * cols, span[3]}}, cols, D);
            }
        });
    }

    void advance(Tensor positions, Tensor rows, Tensor spans, Tensor counters) override {
        for (int64_t b = 0; b < rows.rows; ++b)
            if (rows.as<int32_t>()[b] >= 0) {
                ++rows.as<int32_t>()[b];
                ++positions.as<int32_t>()[b];
                ++spans.as<int32_t>()[4 * b + 3];
                ++counters.as<int32_t>()[4 * b + 3];
            }
    }

    // ---- SwiGLU ----
    void swiglu_forward(Tensor out, Tensor gate_up) override {
        const int64_t F = out.cols;
        parallel_chunks(out.rows, 32, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                const Real *gate = gate_up.as<Real>() + n * 2 * F, *up = gate + F;
                Real* o = out.as<Real>() + n * F;
#pragma omp simd
                for (int64_t f = 0; f < F; ++f) o[f] = gate[f] / (1 + fast_exp(-gate[f])) * up[f];
            }
        });
    }
    void swiglu_backward(Tensor dgate_up, Tensor dout, Tensor gate_up) override {
        const int64_t F = dout.cols;
        parallel_chunks(dout.rows, 32, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                const Real *gate = gate_up.as<Real>() + n * 2 * F, *up = gate + F,
                           *d = dout.as<Real>() + n * F;
                Real *dgate = dgate_up.as<Real>() + n * 2 * F, *dup = dgate + F;
#pragma omp simd
                for (int64_t f = 0; f < F; ++f) {
                    const Real sigmoid = 1 / (1 + fast_exp(-gate[f]));
                    dup[f] = d[f] * gate[f] * sigmoid;
                    dgate[f] = d[f] * up[f] * sigmoid * (1 + gate[f] * (1 - sigmoid));
                }
            }
        });
    }

    // ---- the head ----
    void head_forward(Tensor logp, Tensor entropy, Tensor hidden, Tensor weight, Tensor targets,
                      float temperature, Tensor logits) override {
        const int64_t V = weight.rows;
        const Real inverse = 1 / static_cast<Real>(temperature);
        for (int64_t m = 0; m < hidden.rows; m += logits.rows) {
            const int64_t rows = std::min(logits.rows, hidden.rows - m);
            linear_forward(logits.slice(0, rows), hidden.slice(m, rows), weight, {});
            parallel_chunks(rows, 8, [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; ++r) {
                    const Real* row = logits.as<Real>() + r * V;
                    const Real lse = log_sum_exp(row, inverse, V);
                    Real mean = 0;  // sum_v p log p
#pragma omp simd reduction(+ : mean)
                    for (int64_t v = 0; v < V; ++v) {
                        const Real log_p = row[v] * inverse - lse;
                        mean += fast_exp(log_p) * log_p;
                    }
                    logp.as<Real>()[m + r] = row[targets.as<int32_t>()[m + r]] * inverse - lse;
                    entropy.as<Real>()[m + r] = -mean;
                }
            });
        }
    }
    void head_backward(Tensor dhidden, Tensor dweight, Tensor dlogp, Tensor dentropy, Tensor hidden,
                       Tensor weight, Tensor targets, float temperature, Tensor logits) override {
        const int64_t V = weight.rows;
        const Real inverse = 1 / static_cast<Real>(temperature);
        for (int64_t m = 0; m < hidden.rows; m += logits.rows) {
            const int64_t rows = std::min(logits.rows, hidden.rows - m);
            const Tensor chunk = logits.slice(0, rows);
            linear_forward(chunk, hidden.slice(m, rows), weight, {});
            parallel_chunks(rows, 8, [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; ++r) {
                    Real* row = logits.as<Real>() + r * V;
                    const Real lse = log_sum_exp(row, inverse, V), d = dlogp.as<Real>()[m + r] * inverse;
                    const Real h = dentropy ? dentropy.as<Real>()[m + r] * inverse : Real(0);
                    Real entropy = 0;
                    if (h != 0)
                        for (int64_t v = 0; v < V; ++v) {
                            const Real log_p = row[v] * inverse - lse;
                            entropy -= fast_exp(log_p) * log_p;
                        }
#pragma omp simd
                    for (int64_t v = 0; v < V; ++v) {
                        const Real log_p = row[v] * inverse - lse;
                        row[v] = -fast_exp(log_p) * (d + h * (log_p + entropy));
                    }
                    row[targets.as<int32_t>()[m + r]] += d;
                }
            });
            linear_backward_input(dhidden.slice(m, rows), chunk, weight);
            linear_backward_weight(dweight, {}, chunk, hidden.slice(m, rows));
        }
    }

    // ---- sampling ----
    void sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                const SampleOptions& options) override {
        const int64_t V = logits.cols;
        parallel_chunks(logits.rows, 4, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                const double u = philox_uniform(options.seed, counters.as<std::uint32_t>() + b * 4);
                const Real* row = logits.as<Real>() + b * V;
                auto [token, log_probability] = options.temperature == 0 ? greedy(row, V)
                                                : options.top_k > 0 || options.top_p < 1
                                                    ? sample_truncated(row, V, options, u)
                                                    : sample_plain(row, V, options, u);
                tokens.as<int32_t>()[b] = token;
                logp.as<Real>()[b] = log_probability;
            }
        });
    }

    // ---- optimizer ----
    double sum_of_squares(Tensor t) override {
        constexpr int64_t chunk = 1 << 14;
        std::vector<double> part((t.size() + chunk - 1) / chunk);
        parallel_chunks(t.size(), chunk, [&](int64_t begin, int64_t end) {
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = begin; i < end; ++i)
                sum += static_cast<double>(t.as<Real>()[i]) * t.as<Real>()[i];
            part[begin / chunk] = sum;
        });
        return std::accumulate(part.begin(), part.end(), 0.0);
    }
    void adamw(Tensor param, Tensor grad, Tensor m, Tensor v, const AdamWOptions& o) override {
        const Real b1 = o.beta1, b2 = o.beta2, lr = o.lr, eps = o.eps, decay = o.weight_decay,
                   gs = o.grad_scale;
        const Real c1 = static_cast<Real>(1 / (1 - std::pow(static_cast<double>(b1), o.step)));
        const Real c2 = static_cast<Real>(1 / (1 - std::pow(static_cast<double>(b2), o.step)));
        if (param.dtype == DType::BF16 || m.dtype != param.dtype)
            return adamw_rounded(param, grad, m, v, o, c1, c2);
        parallel_chunks(param.size(), 1 << 14, [&](int64_t begin, int64_t end) {
            Real *p = param.as<Real>(), *mm = m.as<Real>(), *vv = v.as<Real>();
            const Real* gg = grad.as<Real>();
#pragma omp simd
            for (int64_t i = begin; i < end; ++i) {
                const Real g = gs * gg[i];
                mm[i] = b1 * mm[i] + (1 - b1) * g;
                vv[i] = b2 * vv[i] + (1 - b2) * g * g;
                p[i] -= lr * (mm[i] * c1 / (std::sqrt(vv[i] * c2) + eps) + decay * p[i]);
            }
        });
    }

  private:
    const bool exact_;

    /// The same with states in bfloat16.
    static void adamw_rounded(Tensor param, Tensor grad, Tensor m, Tensor v, const AdamWOptions& o,
                              Real c1, Real c2) {
        auto get = [](Tensor t, int64_t i) {
            return t.dtype == DType::BF16 ? static_cast<Real>(widen(t.as<bf16>()[i])) : t.as<Real>()[i];
        };
        auto set = [](Tensor t, int64_t i, Real value, std::uint64_t random) {
            if (t.dtype == DType::BF16)
                t.as<bf16>()[i] =
                    round_stochastically(std::bit_cast<std::uint32_t>(static_cast<float>(value)), random);
            else
                t.as<Real>()[i] = value;
        };
        parallel_chunks(param.size(), 1 << 12, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const Real g = o.grad_scale * grad.as<Real>()[i], p = get(param, i);
                const Real new_m = o.beta1 * get(m, i) + (1 - o.beta1) * g;
                const Real new_v = o.beta2 * get(v, i) + (1 - o.beta2) * g * g;
                const Real step = new_m * c1 / (std::sqrt(new_v * c2) + o.eps) + o.weight_decay * p;
                const std::uint64_t random = rounding_bits(o.seed, o.step, i);
                set(param, i, p - o.lr * step, random);
                set(m, i, new_m, random >> 16);
                set(v, i, new_v, random >> 32);
            }
        });
    }

    template <int Slot>
    static float* copy_padded(const float* from, int64_t rows, int64_t cols, int64_t stride, int64_t padded) {
        float* to = scratch<float, Slot>(padded * cols);
        for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * stride, cols, to + r * cols);
        std::fill(to + rows * cols, to + padded * cols, 0.0f);
        return to;
    }

    /// out[n .. n + rows, col .. col + cols) = in[n .. n + rows, :] times a matrix with the given strides.
    void matmul_rows(Tensor out, int64_t n, int64_t rows, int64_t col, int64_t cols, Tensor in,
                     const void* weight, int64_t w_row, int64_t w_col, bool is_bf16) const {
        const int64_t K = in.cols, padded = round_up(rows, kRowPadding);
        const float* from = in.as<float>() + n * K;
        const void* a = from;
        if (is_bf16) {
            bf16* rounded = scratch<bf16>(padded * K);
            for (int64_t i = 0; i < rows * K; ++i) rounded[i] = narrow(from[i]);
            std::fill(rounded + rows * K, rounded + padded * K, bf16{0});
            a = rounded;
        } else if (rows != padded) {
            a = copy_padded<0>(from, rows, K, K, padded);
        }
        float* to = out.as<float>() + n * out.cols + col;
        if (rows == padded && !exact_)  // another stride of the result is another order of summation
            return matmul(a, weight, to, {rows, cols, K, K, 1, w_row, w_col, out.cols, is_bf16, false});
        float* block = scratch<float, 1>(padded * cols);
        matmul(a, weight, block, {padded, cols, K, K, 1, w_row, w_col, cols, is_bf16, false});
        for (int64_t r = 0; r < rows; ++r) std::copy_n(block + r * cols, cols, to + r * out.cols);
    }

    struct Draw {
        int32_t token;
        Real logp;
    };
    static Draw greedy(const Real* row, int64_t V) {
        auto best = static_cast<int32_t>(std::max_element(row, row + V) - row);
        return {best, row[best] - log_sum_exp(row, Real(1), V)};
    }
    /// The first token at which the cumulative probability exceeds u.
    static Draw sample_plain(const Real* row, int64_t V, const SampleOptions& options, double u) {
        const Real inverse = 1 / static_cast<Real>(options.temperature), lse = log_sum_exp(row, inverse, V);
        double cumulative = 0;
        int32_t last = 0;  // rounding may leave the sum just below u: then the last possible token
        for (int32_t v = 0; v < V; ++v) {
            const Real p = fast_exp(row[v] * inverse - lse);
            if (!(p > std::numeric_limits<float>::min() * 8)) continue;
            last = v;
            if ((cumulative += p) > u) break;
        }
        return {last, row[last] * inverse - lse};
    }
    static Draw sample_truncated(const Real* row, int64_t V, const SampleOptions& options, double u) {
        const Real inverse = 1 / static_cast<Real>(options.temperature), lse = log_sum_exp(row, inverse, V);
        std::vector<int32_t> order(V);
        std::iota(order.begin(), order.end(), 0);
        std::size_t kept = options.top_k > 0 ? std::min<std::size_t>(options.top_k, V) : V;
        std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                          [&](int32_t a, int32_t b) { return row[a] != row[b] ? row[a] > row[b] : a < b; });
        std::vector<double> mass(kept);  // cumulative
        double sum = 0;
        for (std::size_t i = 0; i < kept; ++i)
            mass[i] = sum += std::exp(static_cast<double>(row[order[i]] * inverse - lse));
        const auto enough = std::lower_bound(mass.begin(), mass.end(), options.top_p * sum);
        kept = std::min<std::size_t>(kept, enough - mass.begin() + 1);
        const double total = mass[kept - 1];
        std::sort(order.begin(), order.begin() + kept);
        int32_t token = order[kept - 1];
        double cumulative = 0;
        for (std::size_t i = 0; i < kept; ++i)
            if ((cumulative += std::exp(static_cast<double>(row[order[i]] * inverse - lse))) > u * total) {
                token = order[i];
                break;
            }
        return {token, static_cast<Real>(row[token] * inverse - lse - std::log(total))};
    }
};

}  // namespace

void download_floats(Backend& backend, Tensor from, std::span<float> to) {
    if (from.dtype == DType::F32) return backend.download(to.data(), from);
    if (from.dtype == DType::BF16) {
        std::vector<bf16> narrow(to.size());
        backend.download(narrow.data(), from);
        std::ranges::transform(narrow, to.begin(), [](bf16 x) { return widen(x); });
    } else {
        std::vector<double> wide(to.size());
        backend.download(wide.data(), from);
        std::ranges::copy(wide, to.begin());
    }
}

void upload_floats(Backend& backend, Tensor to, std::span<const float> from) {
    if (to.dtype == DType::F32) return backend.upload(to, from.data());
    if (to.dtype == DType::BF16) {
        std::vector<bf16> rounded(from.size());
        std::ranges::transform(from, rounded.begin(), [](float x) { return narrow(x); });
        backend.upload(to, rounded.data());
    } else {
        backend.upload(to, std::vector<double>(from.begin(), from.end()).data());
    }
}

std::unique_ptr<Backend> make_cpu_backend(DType real, bool exact) {
    if (real == DType::F64) return std::make_unique<CpuBackend<double>>(exact);
    return std::make_unique<CpuBackend<float>>(exact);
}

}  // namespace r1
