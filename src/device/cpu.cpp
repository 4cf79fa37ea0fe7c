// The fast CPU backend, float32: the reference, with what is hot replaced. Matrix products are
// oneDNN's; the rest are loops that a compiler makes vectors of. Work is cut into tasks whose size
// depends on shapes alone, never on the number of threads, and each output is written by one task:
// results are bitwise the same for any number of threads.
#include <omp.h>

#include <bit>
#include <cmath>
#include <dnnl.hpp>
#include <limits>
#include <numeric>
#include <unordered_map>
#include <utility>
#include <vector>

#include "src/device/parallel.h"
#include "src/device/reference.h"

namespace r1 {
namespace {

using std::int32_t;
using std::int64_t;
using bf16 = std::uint16_t;

/// exp with a relative error below 2e-7 that the compiler vectorises: exp(x) = 2^n exp(r), |r| <=
/// log(2)/2, and a Taylor polynomial of degree 7 for exp(r). Below -87 it returns about 1e-38
/// instead of a denormal number.
inline float fast_exp(float x) {
    x = std::min(88.0f, std::max(-87.0f, x));
    float n =
        (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    float r =
        (x - n * 0.693145752f) - n * 1.42860677e-6f;  // log(2) in two parts, n * the first is exact
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

/// A scratch vector that each thread keeps between calls. `Slot` tells apart several used at once.
template <class T, int Slot = 0>
T* scratch(std::size_t count) {
    thread_local std::vector<T> memory;
    if (memory.size() < count) memory.resize(count);
    return memory.data();
}

int64_t round_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

// ---- GEMM ----

/// C [m, n] (row stride ldc, float32) = A B, or C += A B. Single-threaded oneDNN matmul: the
/// callers are tasks of parallel_for. Creating a primitive compiles code (milliseconds), so each
/// thread keeps those it has made; the callers cut their work into equal blocks, so there are few
/// shapes.
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
        float *wide_a = scratch<float, 2>(key.m * key.k),
              *wide_b = scratch<float, 3>(key.k * key.n);
        for (int64_t i = 0; i < key.m; ++i)
            for (int64_t p = 0; p < key.k; ++p)
                wide_a[i * key.k + p] =
                    from_bfloat16(static_cast<const bf16*>(a)[i * key.a_row + p * key.a_col]);
        for (int64_t p = 0; p < key.k; ++p)
            for (int64_t j = 0; j < key.n; ++j)
                wide_b[p * key.n + j] =
                    from_bfloat16(static_cast<const bf16*>(b)[p * key.b_row + j * key.b_col]);
        return matmul(wide_a, wide_b, c,
                      {key.m, key.n, key.k, key.k, 1, key.n, 1, key.ldc, false, key.accumulate});
    }
    struct Primitive {
        dnnl::matmul op;
        dnnl::memory a, b, c;
        std::unordered_map<int, dnnl::memory> arguments;
    };
    thread_local const bool one_thread =
        (omp_set_num_threads(1), true);  // oneDNN's own threads stay unused
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

// Rows of x a task: enough to pay for oneDNN's packing of the weights. Tails are padded with rows
// of zeros to a multiple of kRowPadding, so that few shapes occur and few primitives are compiled.
// Both are multiples of 48, hence of the 4, 6 and 8 rows that oneDNN's kernels unroll: then a row's
// result depends neither on its place nor on how many others there are.
constexpr int64_t kRowBlock = 144, kRowPadding = 48;
constexpr int64_t kTokenBlock = 128,
                  kTokenPadding = 64;  // the same for tokens summed into a weight's gradient
constexpr int64_t kColBlock = 1024;    // outputs a task
// A few rows times a large matrix are a memory-bound matrix-vector product. Small matrices go
// through the same product as many rows: then sampling gives a token bit by bit the log-probability
// that training gives it.
constexpr int64_t kGemvRows = 4, kGemvWeights = 1 << 18;
// Rows of a product with a matrix that large are padded to a multiple of this only: 64 sequences
// that are decoded together must not cost as much as 96.
constexpr int64_t kLargePadding = 8;
bool is_large(int64_t inputs, int64_t outputs) { return inputs * outputs >= kGemvWeights; }
/// Outputs a task. Of a large matrix and few rows all tasks are cut from the outputs: into an even
/// number of equal ones, or a core would wait for the other.
int64_t column_block(int64_t rows, int64_t inputs, int64_t outputs) {
    if (rows > kRowBlock || !is_large(inputs, outputs)) return kColBlock;
    const int64_t pairs = (outputs + 383) / 384;
    return ((outputs + 2 * pairs - 1) / (2 * pairs) + 15) / 16 * 16;
}

float widen(bf16 x) { return from_bfloat16(x); }
float widen(float x) { return x; }

template <class Weight>
float dot(const float* x, const Weight* w, int64_t count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += x[i] * widen(w[i]);
    return sum;
}

/// y += a * x
void axpy(float* y, float a, const float* x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) y[i] += a * x[i];
}

// ---- attention scores, shared by the forward and the backward pass ----

/// Keys are taken so many at a time: arrays by key have room for a multiple of it, and what stands
/// behind the last one changes nothing.
constexpr int64_t kLanes = 16;

/// scores[j] = sum_d scale q[d] kt[d, j] for j < count, one multiply-add after the other in order
/// of d: kt is [D, stride], so the inner loop runs over keys.
void scores_of(float* scores, const float* q, float scale, const float* kt, int64_t stride,
               int head_dim, int64_t count) {
    count = round_up(count, kLanes);
    std::fill(scores, scores + count, 0.0f);
    int d = 0;
    for (; d + 4 <= head_dim; d += 4) {
        const float *k0 = kt + d * stride, *k1 = k0 + stride, *k2 = k1 + stride, *k3 = k2 + stride;
        const float q0 = q[d] * scale, q1 = q[d + 1] * scale, q2 = q[d + 2] * scale,
                    q3 = q[d + 3] * scale;
        for (int64_t first = 0; first < count; first += kLanes)
#pragma omp simd
            for (int64_t j = first; j < first + kLanes; ++j) {
                float s = scores[j];
                s += q0 * k0[j];
                s += q1 * k1[j];
                s += q2 * k2[j];
                s += q3 * k3[j];
                scores[j] = s;
            }
    }
    for (; d < head_dim; ++d) axpy(scores, q[d] * scale, kt + d * stride, count);
}

/// out[d] = sum_j weights[j] kt[d, j]: by lanes, what is left over in the first of them, and then
/// these in order.
void sum_over_keys(float* out, const float* weights, const float* kt, int64_t stride, int head_dim,
                   int64_t count) {
    constexpr int kColumns = 16;
    const int64_t whole = count / kLanes * kLanes;
    for (int first = 0; first < head_dim; first += kColumns) {
        const int columns = std::min(kColumns, head_dim - first);
        float lanes[kColumns][kLanes] = {}, sums[kColumns] = {};
        for (int d = 0; d < columns; ++d) {
            const float* k = kt + (first + d) * stride;
            for (int64_t j = 0; j < whole; j += kLanes)
#pragma omp simd
                for (int64_t lane = 0; lane < kLanes; ++lane)
                    lanes[d][lane] += weights[j + lane] * k[j + lane];
            for (int64_t j = whole; j < count; ++j)
                lanes[d][0] = std::fma(weights[j], k[j], lanes[d][0]);
        }
        for (int lane = 0; lane < kLanes; ++lane)
            for (int d = 0; d < kColumns; ++d) sums[d] += lanes[d][lane];
        std::copy_n(sums, columns, out + first);
    }
}

/// Queries whose gradients reach the keys together, which are then fetched less often.
constexpr int kQueries = 4;

/// to[j] += sum_r weights[r, j] x[r][d] for j < count, one query after the other.
void add_queries(float* to, const float* weights, const float* const (&x)[kQueries], int d,
                 int64_t stride, int64_t count) {
    const float x0 = x[0][d], x1 = x[1][d], x2 = x[2][d], x3 = x[3][d];
    const float *w0 = weights, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    for (int64_t first = 0; first < count; first += kLanes)
#pragma omp simd
        for (int64_t j = first; j < first + kLanes; ++j) {
            float sum = to[j];
            sum += w0[j] * x0;
            sum += w1[j] * x1;
            sum += w2[j] * x2;
            sum += w3[j] * x3;
            to[j] = sum;
        }
}

/// Overwrites scores with exp(scores - max); returns (max, sum).
std::pair<float, float> exp_in_place(float* scores, int64_t count) {
    float top = -std::numeric_limits<float>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < count; ++j) top = std::max(top, scores[j]);
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum += scores[j] = fast_exp(scores[j] - top);
    return {top, sum};
}

/// Value rows of a sequence: those of a shared prompt, then its own.
struct ValueRows {
    const float* rows;
    int64_t count;
};

/// out[d] = sum_j p[j] row_j[d] / sum. Rows with even and odd j are summed apart, so that one
/// multiply-add need not wait for the other; the order does not depend on where one part ends and
/// the next begins.
template <int D>
void weighted_mean_of(float* out, const float* p, float sum, std::initializer_list<ValueRows> parts,
                      int64_t stride) {
    float sums[2][D] = {};
    int64_t j = 0;
    for (const auto& part : parts) {
        const float* row = part.rows;
        int64_t left = part.count;
        auto add = [&](float* to) {
            const float weight = p[j++];
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
/// The same for any head size: the usual ones have their loops unrolled, with the sums in
/// registers.
void weighted_mean(float* out, const float* p, float sum, std::initializer_list<ValueRows> parts,
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
    std::fill(out, out + head_dim, 0.0f);
    int64_t j = 0;
    for (const auto& part : parts)
        for (int64_t i = 0; i < part.count; ++i)
            axpy(out, p[j++], part.rows + i * stride, head_dim);
    for (int d = 0; d < head_dim; ++d) out[d] /= sum;
}

/// A sequence of a packed batch: `prompt` rows that begin at row prompt_begin, shared with
/// sequences before it, then its own rows [begin, end). [D, rows()] is how its keys are laid out.
struct PackedSequence {
    int64_t prompt_begin, prompt, begin, end;
    int64_t rows() const { return prompt + end - begin; }
    /// Where in the batch row i of this sequence lies.
    int64_t row(int64_t i) const { return i < prompt ? prompt_begin + i : begin + i - prompt; }
};

std::vector<PackedSequence> sequences_of(Tensor ranges) {
    std::vector<PackedSequence> sequences;
    for (int64_t n = 0; n < ranges.rows; ++n) {
        const RowRange& r = row_ranges(ranges)[n];
        if (r.begin == n)
            sequences.push_back({r.prompt_begin, r.prompt_end - r.prompt_begin, n, n});
        sequences.back().end = n + 1;
    }
    return sequences;
}

/// to[d, i] = column + d of the sequence's i-th row; rows of `to` are `stride` apart
void transpose(float* to, int64_t stride, Tensor qkv, int64_t column,
               const PackedSequence& sequence, int head_dim) {
    for (int64_t i = 0; i < sequence.rows(); ++i) {
        const float* from = qkv.as<float>() + sequence.row(i) * qkv.cols + column;
        for (int d = 0; d < head_dim; ++d) to[d * stride + i] = from[d];
    }
}

/// log softmax(logits / temperature) of a row. At a low temperature the largest logit is subtracted
/// before the division, or the quotients would be too large to hold the difference; at others what
/// is subtracted is their log sum exp, rounded once.
struct LogSoftmax {
    float shift, inverse_temperature, rest;
    float operator()(float logit) const { return (logit - shift) * inverse_temperature - rest; }
};
LogSoftmax log_softmax(const float* logits, float temperature, int64_t vocab) {
    const float inverse = std::min(1 / temperature, std::numeric_limits<float>::max());
    float top = -std::numeric_limits<float>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t v = 0; v < vocab; ++v) top = std::max(top, logits[v]);
#pragma omp simd reduction(+ : sum)
    for (int64_t v = 0; v < vocab; ++v) sum += fast_exp((logits[v] - top) * inverse);
    if (temperature < 0.01f) return {top, inverse, std::log(sum)};
    return {0, inverse, top * inverse + std::log(sum)};
}

/// Of the probabilities p [vocab] sets those to 0 that top_k and top_p leave out (see
/// Backend::sample), and returns the sum of the others. Nothing is sorted: tokens that cannot be
/// among them are dropped first; the rest is split into a likelier and a less likely half, one of
/// which is split again, until the last token that stays is found.
double keep_likeliest(float* p, const float* logits, int64_t vocab, const SampleOptions& o) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t v = 0; v < vocab; ++v) total += p[v];
    // A token that top_p keeps and those that are no likelier, at most `vocab` of them, hold more
    // than 1 - top_p of the mass. (0.999: a margin for rounding.)
    const auto least = static_cast<float>(
        o.top_k > 0 ? 0 : 0.999 * (1 - o.top_p) * total / static_cast<double>(vocab));
    auto* ids = scratch<int32_t>(vocab);
    int64_t count = 0;
    for (int64_t v = 0; v < vocab; ++v) {
        const bool possible = p[v] >= least;
        ids[count] = static_cast<int32_t>(v);
        count += possible;
        p[v] = possible ? p[v] : 0;
    }
    int32_t *first = ids, *end = ids + count;
    const auto split = [&](int32_t* middle) {
        std::nth_element(first, middle, end, [&](int32_t v, int32_t w) {
            return logits[v] > logits[w] || (logits[v] == logits[w] && v < w);
        });
    };
    const auto drop_from = [&](int32_t* middle) {
        std::for_each(middle, end, [&](int32_t v) { p[v] = 0; });
        end = middle;
    };
    const auto mass = [&](const int32_t* begin, const int32_t* end) {
        return std::accumulate(begin, end, 0.0, [&](double sum, int32_t v) { return sum + p[v]; });
    };
    if (o.top_k > 0 && o.top_k < count) {
        split(ids + o.top_k);
        drop_from(ids + o.top_k);
        total = mass(ids, end);
    }
    double kept = 0;  // the mass before `first`
    while (o.top_p < 1 && end - first > 1) {
        int32_t* middle = first + (end - first) / 2;
        split(middle);
        const double half = mass(first, middle);
        if (kept + half < o.top_p * total) {
            kept += half;
            first = middle;
        } else {
            drop_from(middle);
        }
    }
    return mass(ids, end);
}

class CpuBackend final : public Reference<float> {
  public:
    const char* name() const override { return "cpu"; }
    bool make_exact() override { return exact_ = true; }

    // What follows was measured beside the reference on two cores, for 512 tokens of a layer of
    // Qwen2.5-0.5B's width; the factor is how many times as fast an override is.

    // ---- RMSNorm: sums in vectors; 7 and 3 ----
    void rmsnorm_forward(Tensor y, Tensor rstd, Tensor sum, Tensor x, Tensor delta, Tensor weight,
                         float eps) override {
        const int64_t C = x.cols;
        const float* w = weight.as<float>();
        for_each(x.rows, 64, [&](int64_t n) {
            float *xr = sum.as<float>() + n * C, *yr = y.as<float>() + n * C;
            if (delta) {
                const float *a = x.as<float>() + n * C, *b = delta.as<float>() + n * C;
#pragma omp simd
                for (int64_t c = 0; c < C; ++c) xr[c] = a[c] + b[c];
            }
            float r = 1 / std::sqrt(dot(xr, xr, C) / C + static_cast<float>(eps));
            rstd.as<float>()[n] = r;
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) yr[c] = xr[c] * r * w[c];
        });
    }
    void rmsnorm_backward(Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor rstd,
                          Tensor weight) override {
        const int64_t N = x.rows, C = x.cols;
        const float *w = weight.as<float>(), *r = rstd.as<float>();
        for_each(N, 64, [&](int64_t n) {
            const float *xr = x.as<float>() + n * C, *dyr = dy.as<float>() + n * C;
            float *dxr = dx.as<float>() + n * C, mean = 0;
#pragma omp simd reduction(+ : mean)
            for (int64_t c = 0; c < C; ++c) mean += w[c] * dyr[c] * xr[c];
            const float shared = mean / C * r[n] * r[n] * r[n];
#pragma omp simd
            for (int64_t c = 0; c < C; ++c) dxr[c] += r[n] * w[c] * dyr[c] - shared * xr[c];
        });
        parallel_chunks(C, 32, [&](int64_t begin, int64_t end) {
            float* dw = dweight.as<float>();
            for (int64_t n = 0; n < N; ++n) {
                const float *xr = x.as<float>() + n * C, *dyr = dy.as<float>() + n * C;
#pragma omp simd
                for (int64_t c = begin; c < end; ++c) dw[c] += dyr[c] * xr[c] * r[n];
            }
        });
    }

    // ---- linear layers: oneDNN's blocks; 23, 19 and 32 ----
    void linear_forward(Tensor y, Tensor x, Tensor weight, Tensor bias) override {
        const int64_t N = x.rows, I = x.cols, O = weight.rows;
        if (!exact_ && N <= kGemvRows && is_large(I, O)) {
            const auto product = [&](const auto* w) {
                for_each(O, [&](int64_t o) {
                    for (int64_t n = 0; n < N; ++n)
                        y.as<float>()[n * O + o] = dot(x.as<float>() + n * I, w + o * I, I);
                });
            };
            weight.dtype == DType::BF16 ? product(weight.as<bf16>()) : product(weight.as<float>());
        } else {
            const bool is_bf16 = weight.dtype == DType::BF16;
            // oneDNN may sum in another order for another number of rows: `exact` always gives it
            // the same.
            const int64_t block = exact_ ? kRowPadding : kRowBlock,
                          row_blocks = (N + block - 1) / block,
                          columns = exact_ ? kColBlock : column_block(N, I, O);
            parallel_for(row_blocks * ((O + columns - 1) / columns), [&](int64_t task) {
                const int64_t n = task % row_blocks * block, rows = std::min(block, N - n);
                const int64_t o = task / row_blocks * columns, cols = std::min(columns, O - o);
                matmul_rows(y, n, rows, o, cols, x,
                            static_cast<char*>(weight.data) + o * I * bytes_of(weight.dtype), 1, I,
                            is_bf16);
            });
        }
        if (bias)
            parallel_chunks(N, 64, [&](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n)
                    axpy(y.as<float>() + n * O, 1.0f, bias.as<float>(), O);
            });
    }
    void linear_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor x,
                         Tensor weight) override {
        const int64_t N = x.rows, I = x.cols, O = dy.cols;
        const bool is_bf16 = weight.dtype == DType::BF16;
        const int64_t row_blocks = (N + kRowBlock - 1) / kRowBlock, columns = column_block(N, O, I);
        parallel_for(row_blocks * ((I + columns - 1) / columns), [&](int64_t task) {
            const int64_t n = task % row_blocks * kRowBlock, rows = std::min(kRowBlock, N - n);
            const int64_t i = task / row_blocks * columns, cols = std::min(columns, I - i);
            matmul_rows(dx, n, rows, i, cols, dy,
                        static_cast<char*>(weight.data) + i * bytes_of(weight.dtype), I, 1,
                        is_bf16);
        });
        const int64_t block = O <= 64 ? 32 : O <= 2048 ? 64 : 1024;  // outputs a task
        parallel_for((O + block - 1) / block, [&](int64_t task) {
            const int64_t o = task * block, outputs = std::min(block, O - o);
            for (int64_t n = 0; n < N; n += kTokenBlock) {
                const int64_t rows = std::min(kTokenBlock, N - n),
                              padded = round_up(rows, kTokenPadding);  // zeros add nothing
                const Rows a = factor<0>(dy.as<float>() + n * O + o, rows, outputs, O, padded,
                                         is_bf16),
                           b = factor<1>(x.as<float>() + n * I, rows, I, I, padded, is_bf16);
                matmul(a.data, b.data, dweight.as<float>() + o * I,
                       {outputs, I, padded, 1, a.stride, b.stride, 1, I, is_bf16, true});
            }
        });
        if (dbias)
            parallel_chunks(O, 64, [&](int64_t begin, int64_t end) {
                for (int64_t n = 0; n < N; ++n)
                    axpy(dbias.as<float>() + begin, 1.0f, dy.as<float>() + n * O + begin,
                         end - begin);
            });
    }

    // ---- attention: keys transposed, so that vectors run over them; 5 and 13 ----
    void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor ranges,
                           AttentionShape shape) override {
        const int D = shape.head_dim, group = shape.heads / shape.kv_heads;
        const float scale = 1 / std::sqrt(static_cast<float>(D));
        const auto sequences = sequences_of(ranges);
        parallel_for(static_cast<int64_t>(sequences.size()) * shape.kv_heads, [&](int64_t task) {
            const PackedSequence& sequence = sequences[task / shape.kv_heads];
            const int64_t g = task % shape.kv_heads, W = qkv.cols, T = sequence.rows();
            const int64_t k_col = shape.q_cols() + g * D, P = sequence.prompt,
                          stride = round_up(T, kLanes);
            const float* v = qkv.as<float>() + k_col + shape.kv_cols();
            float *kt = scratch<float>(stride * (D + 1)), *p = kt + stride * D;
            transpose(kt, stride, qkv, k_col, sequence, D);
            for (int64_t h = g * group; h < (g + 1) * group; ++h) {
                for (int64_t i = P; i < T; ++i) {
                    const int64_t n = sequence.row(i);
                    scores_of(p, qkv.as<float>() + n * W + h * D, scale, kt, stride, D, i + 1);
                    auto [top, sum] = exp_in_place(p, i + 1);
                    weighted_mean(
                        out.as<float>() + n * out.cols + h * D, p, sum,
                        {{v + sequence.prompt_begin * W, P}, {v + sequence.begin * W, i + 1 - P}},
                        W, D);
                    lse.as<float>()[n * shape.heads + h] = top + std::log(sum);
                }
            }
        });
    }
    void attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse, Tensor qkv,
                            Tensor ranges, AttentionShape shape) override {
        // A task takes a prompt with all the sequences that share it, one after the other.
        const auto sequences = sequences_of(ranges);
        std::vector<std::size_t> groups;
        for (std::size_t s = 0; s < sequences.size(); ++s)
            if (sequences[s].prompt == 0) groups.push_back(s);
        groups.push_back(sequences.size());
        parallel_for((static_cast<int64_t>(groups.size()) - 1) * shape.kv_heads, [&](int64_t task) {
            const int64_t g = task % shape.kv_heads, group = task / shape.kv_heads;
            for (std::size_t s = groups[group]; s < groups[group + 1]; ++s)
                backward_sequence(sequences[s], g, dqkv, dout, out, lse, qkv, shape);
        });
    }

    // ---- decoding; 6 ----
    // Keys of a block lie as [K D, kKvBlock], so that the score loop runs over keys; values as
    // plain rows.
    void rope_append(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows, Tensor positions,
                     Tensor inv_freq, AttentionShape shape) override {
        rope(qkv, positions, inv_freq, shape, false);
        const int64_t cols = shape.kv_cols();
        for (int64_t n = 0; n < qkv.rows; ++n) {
            const int64_t row = rows.as<int32_t>()[n];
            if (row < 0) continue;
            const float *k = qkv.as<float>() + n * qkv.cols + shape.q_cols(), *v = k + cols;
            float* block = k_pool.as<float>() + row / kKvBlock * kKvBlock * cols + row % kKvBlock;
            for (int64_t c = 0; c < cols; ++c) block[c * kKvBlock] = k[c];
            std::copy(v, v + cols, v_pool.as<float>() + row * cols);
        }
    }
    void decode_attention(Tensor out, Tensor qkv, Tensor k_pool, Tensor v_pool, Tensor spans,
                          AttentionShape shape) override {
        const int D = shape.head_dim, group = shape.heads / shape.kv_heads;
        const int64_t cols = shape.kv_cols();
        const float scale = 1 / std::sqrt(static_cast<float>(D));
        parallel_for(out.rows, [&](int64_t b) {
            const int32_t* span = spans.as<int32_t>() + b * 4;
            const int64_t count = span[1] + span[3];
            float* p =
                scratch<float>(count + kKvBlock);  // the last block's spare lanes spill behind
            for (int64_t h = 0; h < shape.heads; ++h) {
                const int64_t column = h / group * D;  // of the key/value head
                const float* q = qkv.as<float>() + b * qkv.cols + h * D;
                for (int part = 0, at = 0; part < 2; at += span[1], ++part)
                    for (int64_t j = 0; j < span[2 * part + 1]; j += kKvBlock) {
                        const float* k =
                            k_pool.as<float>() + (span[2 * part] + j) * cols + column * kKvBlock;
                        float sum[kKvBlock] = {};
                        for (int d = 0; d < D; ++d)
#pragma omp simd
                            for (int lane = 0; lane < kKvBlock; ++lane)
                                sum[lane] += (q[d] * scale) * k[d * kKvBlock + lane];
                        std::copy(sum, sum + kKvBlock, p + at + j);
                    }
                const float sum = exp_in_place(p, count).second;
                const float* v = v_pool.as<float>() + column;
                weighted_mean(out.as<float>() + b * out.cols + h * D, p, sum,
                              {{v + span[0] * cols, span[1]}, {v + span[2] * cols, span[3]}}, cols,
                              D);
            }
        });
    }

    // ---- SwiGLU: exp() in vectors; 20 and 18 ----
    void swiglu_forward(Tensor out, Tensor gate_up) override {
        const int64_t F = out.cols;
        for_each(out.rows, [&](int64_t n) {
            const float *gate = gate_up.as<float>() + n * 2 * F, *up = gate + F;
            float* o = out.as<float>() + n * F;
#pragma omp simd
            for (int64_t f = 0; f < F; ++f) o[f] = gate[f] / (1 + fast_exp(-gate[f])) * up[f];
        });
    }
    void swiglu_backward(Tensor dgate_up, Tensor dout, Tensor gate_up) override {
        const int64_t F = dout.cols;
        for_each(dout.rows, [&](int64_t n) {
            const float *gate = gate_up.as<float>() + n * 2 * F, *up = gate + F,
                        *d = dout.as<float>() + n * F;
            float *dgate = dgate_up.as<float>() + n * 2 * F, *dup = dgate + F;
#pragma omp simd
            for (int64_t f = 0; f < F; ++f) {
                const float sigmoid = 1 / (1 + fast_exp(-gate[f]));
                dup[f] = d[f] * gate[f] * sigmoid;
                dgate[f] = d[f] * up[f] * sigmoid * (1 + gate[f] * (1 - sigmoid));
            }
        });
    }

    // ---- the head: the same; 9 and 3 ----
    void softmax_forward(Tensor logp, Tensor entropy, Tensor logits, Tensor targets,
                         float temperature) override {
        const int64_t V = logits.cols;
        for_each(logits.rows, 8, [&](int64_t r) {
            const float* row = logits.as<float>() + r * V;
            const LogSoftmax log_p = log_softmax(row, temperature, V);
            float mean = 0;  // sum_v p log p
#pragma omp simd reduction(+ : mean)
            for (int64_t v = 0; v < V; ++v) mean += fast_exp(log_p(row[v])) * log_p(row[v]);
            logp.as<float>()[r] = log_p(row[targets.as<int32_t>()[r]]);
            entropy.as<float>()[r] = -mean;
        });
    }
    /// Finds the row's log softmax again, though logp is given: a pass over a row in the cache
    /// costs little, and the runs that are recorded (data/r1/RESULTS.md) keep their bits.
    void softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor, Tensor,
                          Tensor targets, float temperature) override {
        const int64_t V = logits.cols;
        for_each(logits.rows, 8, [&](int64_t r) {
            float* row = logits.as<float>() + r * V;
            const LogSoftmax log_p = log_softmax(row, temperature, V);
            const float d = dlogp.as<float>()[r] * log_p.inverse_temperature;
            const float h = dentropy ? dentropy.as<float>()[r] * log_p.inverse_temperature : 0.0f;
            float entropy = 0;
            if (h != 0)
                for (int64_t v = 0; v < V; ++v) entropy -= fast_exp(log_p(row[v])) * log_p(row[v]);
#pragma omp simd
            for (int64_t v = 0; v < V; ++v)
                row[v] = -fast_exp(log_p(row[v])) * (d + h * (log_p(row[v]) + entropy));
            row[targets.as<int32_t>()[r]] += d;
        });
    }

    // ---- sampling: nothing is sorted; 70 ----
    void sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                const SampleOptions& o) override {
        const int64_t V = logits.cols;
        for_each(logits.rows, 1, [&](int64_t b) {
            const float* row = logits.as<float>() + b * V;
            int32_t& token = tokens.as<int32_t>()[b];
            if (o.temperature == 0) {
                token = static_cast<int32_t>(std::max_element(row, row + V) - row);
                logp.as<float>()[b] = log_softmax(row, 1, V)(row[token]);
                return;
            }
            const LogSoftmax log_p = log_softmax(row, o.temperature, V);
            float* p = scratch<float>(V);
#pragma omp simd
            for (int64_t v = 0; v < V; ++v) p[v] = fast_exp(log_p(row[v]));
            const bool truncated = o.top_k > 0 || o.top_p < 1;
            const double mass = truncated ? keep_likeliest(p, row, V, o) : 1;
            const double u = mass * philox_uniform(o.seed, counters.as<std::uint32_t>() + b * 4);
            double cumulative = 0;
            token = 0;  // rounding may leave the sum just below u: then the last possible token
            for (int32_t v = 0; v < V; ++v) {
                if (!(p[v] > std::numeric_limits<float>::min() * 8)) continue;
                token = v;
                if ((cumulative += p[v]) > u) break;
            }
            logp.as<float>()[b] = log_p(row[token]) - static_cast<float>(std::log(mass));
        });
    }

    // ---- optimizer: all cores; AdamW in vectors and without random bits, 35 ----
    double sum_of_squares(Tensor t) override {
        constexpr int64_t chunk = 1 << 14;
        std::vector<double> part((t.size() + chunk - 1) / chunk);
        parallel_chunks(t.size(), chunk, [&](int64_t begin, int64_t end) {
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = begin; i < end; ++i)
                sum += static_cast<double>(t.as<float>()[i]) * t.as<float>()[i];
            part[begin / chunk] = sum;
        });
        return std::accumulate(part.begin(), part.end(), 0.0);
    }
    void adamw(Tensor param, Tensor copy, Tensor grad, Tensor m, Tensor v,
               const AdamWOptions& o) override {
        const float b1 = o.beta1, b2 = o.beta2, lr = o.lr, eps = o.eps, decay = o.weight_decay,
                    gs = o.grad_scale;
        const float c1 = static_cast<float>(1 / (1 - std::pow(static_cast<double>(b1), o.step)));
        const float c2 = static_cast<float>(1 / (1 - std::pow(static_cast<double>(b2), o.step)));
        if (param.dtype == DType::BF16 || m.dtype != param.dtype)
            return Reference::adamw(param, copy, grad, m, v, o);
        parallel_chunks(param.size(), 1 << 14, [&](int64_t begin, int64_t end) {
            float *p = param.as<float>(), *mm = m.as<float>(), *vv = v.as<float>();
            float* gg = grad.as<float>();
#pragma omp simd
            for (int64_t i = begin; i < end; ++i) {
                const float g = gs * gg[i];
                mm[i] = b1 * mm[i] + (1 - b1) * g;
                vv[i] = b2 * vv[i] + (1 - b2) * g * g;
                p[i] -= lr * (mm[i] * c1 / (std::sqrt(vv[i] * c2) + eps) + decay * p[i]);
                gg[i] = 0;
            }
            if (copy)
                for (int64_t i = begin; i < end; ++i) copy.as<bf16>()[i] = r1::to_bfloat16(p[i]);
        });
    }

  private:
    bool exact_ = false;

    /// The gradient of a sequence's own queries, keys and values for key/value head g, written to
    /// dqkv; that of a shared prompt's keys and values is added to what is there.
    static void backward_sequence(const PackedSequence& sequence, int64_t g, Tensor dqkv,
                                  Tensor dout, Tensor out, Tensor lse, Tensor qkv,
                                  AttentionShape shape) {
        const int D = shape.head_dim, group = shape.heads / shape.kv_heads;
        const float scale = 1 / std::sqrt(static_cast<float>(D));
        const int64_t W = qkv.cols, T = sequence.rows(), stride = round_up(T, kLanes);
        const int64_t k_col = shape.q_cols() + g * D, v_col = k_col + shape.kv_cols();
        float *kt = scratch<float>(stride * (4 * D + 2 * kQueries)), *vt = kt + stride * D,
              *dkt = vt + stride * D, *dvt = dkt + stride * D;
        float *p = dvt + stride * D, *ds = p + stride * kQueries;  // [kQueries, stride]
        transpose(kt, stride, qkv, k_col, sequence, D);
        transpose(vt, stride, qkv, v_col, sequence, D);
        std::fill(dkt, dkt + 2 * stride * D, 0.0f);
        for (int64_t h = g * group; h < (g + 1) * group; ++h)
            for (int64_t first = sequence.prompt; first < T; first += kQueries) {
                const int64_t keys = round_up(std::min(first + kQueries, T), kLanes);
                const float *q[kQueries], *dout_of[kQueries];
                for (int r = 0; r < kQueries; ++r) {
                    const int64_t i = std::min(first + r, T - 1), n = sequence.row(i);
                    q[r] = qkv.as<float>() + n * W + h * D;
                    dout_of[r] = dout.as<float>() + n * dout.cols + h * D;
                    float *pr = p + r * stride, *dsr = ds + r * stride;
                    const int64_t seen = first + r < T ? i + 1 : 0;  // past the last query: nothing
                    if (seen > 0) {
                        const float delta =
                            dot(dout_of[r], out.as<float>() + n * out.cols + h * D, D);
                        const float log_sum = lse.as<float>()[n * shape.heads + h];
                        scores_of(pr, q[r], scale, kt, stride, D, seen);
                        scores_of(dsr, dout_of[r], 1.0f, vt, stride, D, seen);  // dp = dout . v
#pragma omp simd
                        for (int64_t j = 0; j < seen; ++j) {
                            pr[j] = fast_exp(pr[j] - log_sum);
                            dsr[j] = pr[j] * (dsr[j] - delta) * scale;
                        }
                        sum_over_keys(dqkv.as<float>() + n * W + h * D, dsr, kt, stride, D, seen);
                    }
                    std::fill(pr + seen, pr + keys, 0.0f);
                    std::fill(dsr + seen, dsr + keys, 0.0f);
                }
                for (int d = 0; d < D; ++d) {
                    add_queries(dkt + d * stride, ds, q, d, stride, keys);
                    add_queries(dvt + d * stride, p, dout_of, d, stride, keys);
                }
            }
        for (int64_t i = 0; i < T; ++i) {
            float* to = dqkv.as<float>() + sequence.row(i) * W;
            for (int d = 0; d < D; ++d) {
                to[k_col + d] = dkt[d * stride + i] + (i < sequence.prompt ? to[k_col + d] : 0);
                to[v_col + d] = dvt[d * stride + i] + (i < sequence.prompt ? to[v_col + d] : 0);
            }
        }
    }

    /// Rows of a factor as matmul() takes them: where they lie, or in a copy that has rows of zeros
    /// behind them, or is rounded to bfloat16.
    struct Rows {
        const void* data;
        int64_t stride;
    };
    template <int Slot>
    static Rows factor(const float* from, int64_t rows, int64_t cols, int64_t stride,
                       int64_t padded, bool is_bf16) {
        const auto copy = [&](auto* to, auto convert) {
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < cols; ++c) to[r * cols + c] = convert(from[r * stride + c]);
            std::fill(to + rows * cols, to + padded * cols, 0);
            return Rows{to, cols};
        };
        if (is_bf16) return copy(scratch<bf16, Slot>(padded * cols), r1::to_bfloat16);
        if (rows == padded) return {from, stride};
        return copy(scratch<float, Slot>(padded * cols), std::identity{});
    }

    /// out[n .. n + rows, col .. col + cols) = in[n .. n + rows, :] times a matrix with the given
    /// strides.
    void matmul_rows(Tensor out, int64_t n, int64_t rows, int64_t col, int64_t cols, Tensor in,
                     const void* weight, int64_t w_row, int64_t w_col, bool is_bf16) const {
        const bool large = !exact_ && is_large(in.cols, out.cols);
        const int64_t K = in.cols, padded = round_up(rows, large ? kLargePadding : kRowPadding);
        const void* a = factor<0>(in.as<float>() + n * K, rows, K, K, padded, is_bf16).data;
        float* to = out.as<float>() + n * out.cols + col;
        if (rows == padded &&
            !exact_)  // another stride of the result is another order of summation
            return matmul(a, weight, to,
                          {rows, cols, K, K, 1, w_row, w_col, out.cols, is_bf16, false});
        float* block = scratch<float, 1>(padded * cols);
        matmul(a, weight, block, {padded, cols, K, K, 1, w_row, w_col, cols, is_bf16, false});
        for (int64_t r = 0; r < rows; ++r) std::copy_n(block + r * cols, cols, to + r * out.cols);
    }
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend() { return std::make_unique<CpuBackend>(); }

}  // namespace r1
