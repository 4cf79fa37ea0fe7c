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

// ---- attention, in training and decoding ----
//
// Keys (and in the backward pass values and the gradients of both) lie in blocks [D, kKvBlock], so
// that vectors run over the keys of one. Some queries meet a block together, which is then fetched
// once for all of them; sums are made in the same order however many there are. Where a function
// takes what the first of N queries sees, query r sees r keys more.

/// Sixteen numbers, in as many registers as the machine needs.
using Lanes [[gnu::vector_size(64), gnu::aligned(4), gnu::may_alias]] = float;
constexpr int kLanes = 16, kBlockLanes = kKvBlock / kLanes;
const Lanes* lanes(const float* x) { return reinterpret_cast<const Lanes*>(x); }
Lanes* lanes(float* x) { return reinterpret_cast<Lanes*>(x); }

/// Queries that meet a key together: so many sums have room in registers.
constexpr int kQueries = 4;
/// Queries that are done with one block before the next comes, which is then in a core's cache.
constexpr int kQueryTile = 32;

/// Calls f(N, r) for the queries r < count, N of them from r on at a time: kQueries, and 2 and 1 of
/// what is left; N is a constant.
template <class F>
void for_queries(int64_t count, F f) {
    int64_t r = 0;
    for (; r + kQueries <= count; r += kQueries) f(std::integral_constant<int, kQueries>{}, r);
    for (; r + 2 <= count; r += 2) f(std::integral_constant<int, 2>{}, r);
    for (; r < count; ++r) f(std::integral_constant<int, 1>{}, r);
}

/// scores[r, j] = sum_d q[r, d] k[d, j] for the keys j of a block, in order of d.
template <int N>
void scores_of(float* scores, int64_t width, const float* q, int64_t q_stride, const float* k,
               int head_dim) {
    Lanes sums[N][kBlockLanes] = {};
    for (int d = 0; d < head_dim; ++d)
#pragma GCC unroll 4
        for (int v = 0; v < kBlockLanes; ++v) {
            const Lanes keys = lanes(k + d * kKvBlock)[v];
#pragma GCC unroll 4
            for (int r = 0; r < N; ++r) sums[r][v] += q[r * q_stride + d] * keys;
        }
    for (int r = 0; r < N; ++r)
        for (int v = 0; v < kBlockLanes; ++v) lanes(scores + r * width)[v] = sums[r][v];
}

/// to[d, j] += sum_r weights[r, j] x[r, d] for the keys j of a block, in order of r.
template <int N>
void add_queries(float* to, const float* weights, const float* x, int64_t x_stride, int head_dim) {
    Lanes w[N][kBlockLanes];
    for (int r = 0; r < N; ++r)
        for (int v = 0; v < kBlockLanes; ++v) w[r][v] = lanes(weights + r * kKvBlock)[v];
    for (int d = 0; d < head_dim; ++d)
#pragma GCC unroll 4
        for (int v = 0; v < kBlockLanes; ++v) {
            Lanes sum = lanes(to + d * kKvBlock)[v];
#pragma GCC unroll 4
            for (int r = 0; r < N; ++r) sum += x[r * x_stride + d] * w[r][v];
            lanes(to + d * kKvBlock)[v] = sum;
        }
}

/// to[r, d] += weights[r, j] k[d, j] by lanes of j, for the first V of a block's.
template <int N, int V>
void add_keys(float* to, const float* weights, const float* k, int head_dim) {
    for (int d = 0; d < head_dim; ++d) {
        Lanes keys[V];
        for (int v = 0; v < V; ++v) keys[v] = lanes(k + d * kKvBlock)[v];
#pragma GCC unroll 4
        for (int r = 0; r < N; ++r) {
            Lanes sum = *lanes(to + (r * head_dim + d) * kLanes);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum += lanes(weights + r * kKvBlock)[v] * keys[v];
            *lanes(to + (r * head_dim + d) * kLanes) = sum;
        }
    }
}
/// The same for the keys of a block that N queries see, of which the first sees `count`: those that
/// fill no vector are added to the first lane.
template <int N>
void add_seen_keys(float* to, const float* weights, const float* k, int head_dim, int64_t count) {
    if (count >= kKvBlock) return add_keys<N, kBlockLanes>(to, weights, k, head_dim);
    for (int r = 0; r < N; ++r, to += head_dim * kLanes, weights += kKvBlock) {
        const int64_t seen = std::min<int64_t>(count + r, kKvBlock);
        if (seen == kKvBlock)
            add_keys<1, kBlockLanes>(to, weights, k, head_dim);
        else if (seen >= kLanes)
            add_keys<1, 1>(to, weights, k, head_dim);
        for (int64_t j = seen / kLanes * kLanes; j < seen; ++j)
            for (int d = 0; d < head_dim; ++d)
                to[d * kLanes] = std::fma(weights[j], k[d * kKvBlock + j], to[d * kLanes]);
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

/// For the keys of a block that a query sees, the first `seen`: scores become probabilities p, and
/// dp = dout . v becomes the gradient of scores before their scale, ds = p (dp - delta) scale.
/// Others get 0.
void softmax_gradient(float* p, float* ds, float lse, float delta, float scale, int64_t seen) {
#pragma omp simd
    for (int j = 0; j < kKvBlock; ++j) {
        const float probability = fast_exp(p[j] - lse);
        ds[j] = j < seen ? probability * (ds[j] - delta) * scale : 0;
        p[j] = j < seen ? probability : 0;
    }
}

/// Value rows of a sequence: those of a shared prompt, then its own, `stride` apart.
struct ValueRows {
    const float *prompt_rows, *own_rows;
    int64_t prompt, stride;
    const float* operator[](int64_t j) const {
        return j < prompt ? prompt_rows + j * stride : own_rows + (j - prompt) * stride;
    }
};

/// sums[r, j % 2, d] += weights[r, j] values[j, d] for V vectors of columns from d on and the rows
/// j in [begin, end), begin being even, that query r sees: those before `seen` and r more. Even and
/// odd rows are summed apart, so that one multiply-add need not wait for the other.
template <int N, int V>
void add_columns(float* sums, int head_dim, const float* weights, int64_t width,
                 const ValueRows& values, int d, int64_t begin, int64_t end, int64_t seen) {
    Lanes sum[N][2][V];
    const auto each = [&](auto f) {
        for (int i = 0; i < 2 * N; ++i)
            for (int v = 0; v < V; ++v) f(sum[i / 2][i % 2][v], lanes(sums + i * head_dim + d)[v]);
    };
    each([](Lanes& to, const Lanes& from) { to = from; });
    const auto add = [&](Lanes(&to)[V], float weight, const float* row) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) to[v] += weight * lanes(row + d)[v];
    };
    const int64_t even = begin + std::max<int64_t>(std::min(seen, end) - begin, 0) / 2 * 2;
    for (int64_t j = begin; j < even; j += 2)
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd)
#pragma GCC unroll 4
            for (int r = 0; r < N; ++r)
                add(sum[r][odd], weights[r * width + j + odd], values[j + odd]);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
        for (int r = 0; r < N; ++r)
            if (even + i < std::min(seen + r, end))
                add(sum[r][i % 2], weights[r * width + even + i], values[even + i]);
    each([](Lanes& from, Lanes& to) { to = from; });
}
/// The same for all columns of a head, as many at a time as have room in registers.
template <int N>
void add_values(float* sums, int head_dim, const float* weights, int64_t width,
                const ValueRows& values, int64_t begin, int64_t end, int64_t seen) {
    int d = 0;
    const auto add = [&](auto V) {
        for (; d + V * kLanes <= head_dim; d += V * kLanes)
            add_columns<N, V>(sums, head_dim, weights, width, values, d, begin, end, seen);
    };
    if constexpr (N < kQueries) add(std::integral_constant<int, 4>{});
    add(std::integral_constant<int, 2>{});
    add(std::integral_constant<int, 1>{});
    for (; d < head_dim; ++d)
        for (int r = 0; r < N; ++r)
            for (int64_t j = begin; j < std::min(seen + r, end); ++j) {
                float& sum = sums[(2 * r + j % 2) * head_dim + d];
                sum = std::fma(weights[r * width + j], values[j][d], sum);
            }
}

void divide_sums(float* out, const float* sums, float by, int head_dim) {
    for (int d = 0; d < head_dim; ++d) out[d] = (sums[d] + sums[head_dim + d]) / by;
}

/// to[r, d] = scale q[r, d]
void scale_queries(float* to, const float* q, int64_t stride, int64_t rows, float scale,
                   int head_dim) {
    for (int64_t r = 0; r < rows; ++r)
        for (int d = 0; d < head_dim; ++d) to[r * head_dim + d] = q[r * stride + d] * scale;
}

/// A sequence of a packed batch: `prompt` rows that begin at row prompt_begin, shared with
/// sequences before it, then its own rows [begin, end).
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

/// The blocks [D, kKvBlock] of columns [column, column + D) of a sequence's rows; zeros fill the
/// last one.
void blocks_of(float* to, Tensor qkv, int64_t column, const PackedSequence& sequence,
               int head_dim) {
    for (int64_t i = 0; i < round_up(sequence.rows(), kKvBlock); ++i) {
        float* key = to + i / kKvBlock * kKvBlock * head_dim + i % kKvBlock;
        const float* from = qkv.as<float>() + sequence.row(i) * qkv.cols + column;
        for (int d = 0; d < head_dim; ++d) key[d * kKvBlock] = i < sequence.rows() ? from[d] : 0;
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

    // ---- attention; 5 and 13 ----
    void attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor ranges,
                           AttentionShape shape) override {
        const int D = shape.head_dim, group = shape.heads / shape.kv_heads;
        const float scale = 1 / std::sqrt(static_cast<float>(D));
        const auto sequences = sequences_of(ranges);
        parallel_for(static_cast<int64_t>(sequences.size()) * shape.kv_heads, [&](int64_t task) {
            const PackedSequence& sequence = sequences[task / shape.kv_heads];
            const int64_t g = task % shape.kv_heads, W = qkv.cols, T = sequence.rows();
            const int64_t k_col = shape.q_cols() + g * D, P = sequence.prompt,
                          width = round_up(T, kKvBlock);
            const float* v = qkv.as<float>() + k_col + shape.kv_cols();
            const ValueRows values{v + sequence.prompt_begin * W, v + sequence.begin * W, P, W};
            float *k = scratch<float>(width * D + kQueryTile * (width + 3 * D)), *p = k + width * D,
                  *q = p + kQueryTile * width, *sums = q + kQueryTile * D;
            blocks_of(k, qkv, k_col, sequence, D);
            for (int64_t h = g * group; h < (g + 1) * group; ++h)
                for (int64_t first = P; first < T; first += kQueryTile) {
                    const int64_t n = sequence.row(first),
                                  rows = std::min<int64_t>(kQueryTile, T - first);
                    scale_queries(q, qkv.as<float>() + n * W + h * D, W, rows, scale, D);
                    for (int64_t key = 0; key < first + rows; key += kKvBlock)
                        for_queries(rows, [&](auto N, int64_t r) {
                            if (key < first + r + N)
                                scores_of<N>(p + r * width + key, width, q + r * D, D, k + key * D,
                                             D);
                        });
                    float sum[kQueryTile];
                    for (int64_t r = 0; r < rows; ++r) {
                        const auto [top, rest] = exp_in_place(p + r * width, first + r + 1);
                        sum[r] = rest;
                        lse.as<float>()[(n + r) * shape.heads + h] = top + std::log(rest);
                    }
                    std::fill_n(sums, rows * 2 * D, 0.0f);
                    for (int64_t key = 0; key < first + rows; key += kKvBlock)
                        for_queries(rows, [&](auto N, int64_t r) {
                            if (key < first + r + N)
                                add_values<N>(sums + r * 2 * D, D, p + r * width, width, values,
                                              key, key + kKvBlock, first + r + 1);
                        });
                    for (int64_t r = 0; r < rows; ++r)
                        divide_sums(out.as<float>() + (n + r) * out.cols + h * D, sums + r * 2 * D,
                                    sum[r], D);
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
            // Scores of the heads that share a key/value head [group, width]: the last block's
            // spare lanes spill behind.
            const int64_t width = count + kKvBlock;
            float *p = scratch<float>(group * (width + 3 * D)), *q = p + group * width,
                  *sums = q + group * D;
            for (int64_t g = 0; g < shape.kv_heads; ++g) {
                scale_queries(q, qkv.as<float>() + b * qkv.cols + g * group * D, D, group, scale,
                              D);
                for (int part = 0, at = 0; part < 2; at += span[1], ++part)
                    for (int64_t j = 0; j < span[2 * part + 1]; j += kKvBlock) {
                        const float* k =
                            k_pool.as<float>() + (span[2 * part] + j) * cols + g * D * kKvBlock;
                        for_queries(group, [&](auto N, int64_t r) {
                            scores_of<N>(p + r * width + at + j, width, q + r * D, D, k, D);
                        });
                    }
                const float* v = v_pool.as<float>() + g * D;
                const ValueRows values{v + span[0] * cols, v + span[2] * cols, span[1], cols};
                std::fill_n(sums, group * 2 * D, 0.0f);
                for_queries(group, [&](auto N, int64_t r) {
                    float sum[N];
                    for (int i = 0; i < N; ++i)
                        sum[i] = exp_in_place(p + (r + i) * width, count).second;
                    add_values<N>(sums + r * 2 * D, D, p + r * width, width, values, 0, count,
                                  count);
                    for (int i = 0; i < N; ++i)
                        divide_sums(out.as<float>() + b * out.cols + (g * group + r + i) * D,
                                    sums + (r + i) * 2 * D, sum[i], D);
                });
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
        const int64_t W = qkv.cols, T = sequence.rows(), width = round_up(T, kKvBlock);
        const int64_t k_col = shape.q_cols() + g * D, v_col = k_col + shape.kv_cols();
        float *k = scratch<float>(4 * width * D + kQueryTile * D * (1 + kLanes)),
              *v = k + width * D, *dk = v + width * D, *dv = dk + width * D, *q = dv + width * D,
              *dq = q + kQueryTile * D;  // dq [kQueryTile, D, kLanes]
        blocks_of(k, qkv, k_col, sequence, D);
        blocks_of(v, qkv, v_col, sequence, D);
        std::fill(dk, dk + 2 * width * D, 0.0f);
        for (int64_t h = g * group; h < (g + 1) * group; ++h)
            for (int64_t first = sequence.prompt; first < T; first += kQueryTile) {
                const int64_t n = sequence.row(first),
                              rows = std::min<int64_t>(kQueryTile, T - first);
                const float *queries = qkv.as<float>() + n * W + h * D,
                            *douts = dout.as<float>() + n * dout.cols + h * D;
                float delta[kQueryTile];
                for (int64_t r = 0; r < rows; ++r)
                    delta[r] =
                        dot(douts + r * dout.cols, out.as<float>() + (n + r) * out.cols + h * D, D);
                scale_queries(q, queries, W, rows, scale, D);
                std::fill_n(dq, rows * D * kLanes, 0.0f);
                for (int64_t key = 0; key < first + rows; key += kKvBlock)
                    for_queries(rows, [&](auto N, int64_t r) {
                        const int64_t seen = first + r + 1 - key;  // of this block, by query r
                        if (seen + N <= 1) return;
                        const float *xs = queries + r * W, *ys = douts + r * dout.cols;
                        float p[N * kKvBlock], ds[N * kKvBlock];
                        scores_of<N>(p, kKvBlock, q + r * D, D, k + key * D, D);
                        scores_of<N>(ds, kKvBlock, ys, dout.cols, v + key * D, D);  // dp = dout . v
                        for (int i = 0; i < N; ++i)
                            softmax_gradient(p + i * kKvBlock, ds + i * kKvBlock,
                                             lse.as<float>()[(n + r + i) * shape.heads + h],
                                             delta[r + i], scale, seen + i);
                        add_seen_keys<N>(dq + r * D * kLanes, ds, k + key * D, D, seen);
                        add_queries<N>(dk + key * D, ds, xs, W, D);
                        add_queries<N>(dv + key * D, p, ys, dout.cols, D);
                    });
                for (int64_t r = 0; r < rows; ++r)
                    for (int d = 0; d < D; ++d) {
                        float sum = 0;
                        for (int lane = 0; lane < kLanes; ++lane)
                            sum += dq[(r * D + d) * kLanes + lane];
                        dqkv.as<float>()[(n + r) * W + h * D + d] = sum;
                    }
            }
        for (int64_t i = 0; i < T; ++i) {
            float* to = dqkv.as<float>() + sequence.row(i) * W;
            const int64_t at = i / kKvBlock * kKvBlock * D + i % kKvBlock;
            for (int d = 0; d < D; ++d) {
                const int64_t key = at + d * kKvBlock;
                to[k_col + d] = dk[key] + (i < sequence.prompt ? to[k_col + d] : 0);
                to[v_col + d] = dv[key] + (i < sequence.prompt ? to[v_col + d] : 0);
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
