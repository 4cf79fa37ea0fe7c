// Every primitive of backend.h as a plain loop: the end of the README's tour, where a training step
// comes to its last multiplication; the oracle of the tests, in float64; and what a port replaces,
// one primitive at a time. for_each() is a for loop that spreads over the cores: no two of its
// turns write to one place, so the result does not depend on it.
#include "src/device/reference.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "src/device/parallel.h"

namespace r1 {
namespace {

using std::int32_t;
using std::int64_t;

/// Element i of a tensor that may be BF16.
template <class Real>
Real read(const Tensor& t, int64_t i) {
    return t.dtype == DType::BF16 ? static_cast<Real>(from_bfloat16(t.as<std::uint16_t>()[i]))
                                  : t.as<Real>()[i];
}

template <class Real>
Real* row(const Tensor& t, int64_t n) {
    return t.as<Real>() + n * t.cols;
}

int32_t at(const Tensor& t, int64_t i) { return t.as<int32_t>()[i]; }

template <class Real>
Real dot(const Real* a, const Real* b, int64_t count) {
    Real sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

/// The heads of one packed buffer. A key or value is that which query head h reads.
template <class Real>
struct Heads {
    Tensor qkv;
    AttentionShape shape;
    Real* query(int64_t n, int64_t h) const { return row<Real>(qkv, n) + h * shape.head_dim; }
    Real* key(int64_t n, int64_t h) const {
        return query(n, shape.heads + h * shape.kv_heads / shape.heads);
    }
    Real* value(int64_t n, int64_t h) const { return key(n, h) + shape.kv_cols(); }
};

/// out = sum_j softmax_j(q . keys[j] / sqrt(D)) values[j]; returns log sum_j exp(q . keys[j] /
/// sqrt(D)).
template <class Real>
Real attend(Real* out, const Real* q, const std::vector<const Real*>& keys,
            const std::vector<const Real*>& values, int D) {
    std::vector<Real> p(keys.size());
    Real largest = -std::numeric_limits<Real>::infinity(), sum = 0;
    for (std::size_t j = 0; j < p.size(); ++j) {
        p[j] = dot(q, keys[j], D) / std::sqrt(static_cast<Real>(D));
        largest = std::max(largest, p[j]);
    }
    for (Real& score : p) sum += score = std::exp(score - largest);
    std::fill(out, out + D, Real(0));
    for (std::size_t j = 0; j < p.size(); ++j)
        for (int d = 0; d < D; ++d) out[d] += p[j] / sum * values[j][d];
    return largest + std::log(sum);
}

/// log softmax(z / temperature) of a row. The largest is subtracted before anything is divided by
/// the temperature, so that a low one costs no precision.
template <class Real>
struct LogSoftmax {
    Real largest, temperature, log_sum = 0;
    LogSoftmax(const Real* z, int64_t V, Real temperature)
        : largest(*std::max_element(z, z + V)), temperature(temperature) {
        Real sum = 0;
        for (int64_t v = 0; v < V; ++v) sum += std::exp((*this)(z[v]));
        log_sum = std::log(sum);
    }
    Real operator()(Real z) const { return (z - largest) / temperature - log_sum; }
};

}  // namespace

// ---- memory ----

template <class Real>
void* Reference<Real>::allocate(std::size_t bytes) {
    // Large memory comes in pages of 2 MiB where the system has them: fewer of them to fetch, to
    // clear and to look up.
    constexpr std::size_t kHugePage = 2 << 20;
    const std::size_t multiple = bytes >= kHugePage ? kHugePage : 64;
    const std::size_t size = (std::max<std::size_t>(bytes, 1) + multiple - 1) / multiple * multiple;
    void* data = std::aligned_alloc(multiple, size);
    if (!data) fail("not enough memory: ", bytes, " bytes wanted");
    if (multiple == kHugePage) madvise(data, size, MADV_HUGEPAGE);
    return data;
}
template <class Real>
void Reference<Real>::release(void* data) {
    std::free(data);
}
template <class Real>
void Reference<Real>::upload(Tensor to, const void* host) {
    if (to.size()) std::memcpy(to.data, host, to.bytes());
}
template <class Real>
void Reference<Real>::download(void* host, Tensor from) {
    if (from.size()) std::memcpy(host, from.data, from.bytes());
}
template <class Real>
std::size_t Reference<Real>::available_memory() const {
    std::ifstream in("/proc/meminfo");
    for (std::string name, unit; in >> name;) {
        std::size_t kibibytes = 0;
        in >> kibibytes >> unit;
        if (name == "MemAvailable:") return kibibytes * 1024;
    }
    return std::numeric_limits<std::size_t>::max();  // this is not Linux, and nobody knows
}
template <class Real>
std::size_t Reference<Real>::used_memory() const {
    std::size_t total = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> total >> resident;
    return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}
template <class Real>
std::size_t Reference<Real>::peak_memory() const {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}
template <class Real>
void Reference<Real>::to_bfloat16(Tensor to, Tensor from) {
    for_each(to.size(), [&](int64_t i) {
        to.as<std::uint16_t>()[i] = r1::to_bfloat16(static_cast<float>(from.as<Real>()[i]));
    });
}

// ---- rows of a table ----

template <class Real>
void Reference<Real>::gather_rows(Tensor out, Tensor in, Tensor index) {
    for_each(out.rows, [&](int64_t m) {
        for (int64_t c = 0; c < out.cols; ++c)
            row<Real>(out, m)[c] = read<Real>(in, at(index, m) * in.cols + c);
    });
}
template <class Real>
void Reference<Real>::add_rows(Tensor out, Tensor in, Tensor index) {
    parallel_chunks(out.cols, 32, [&](int64_t begin, int64_t end) {  // a task owns columns
        for (int64_t m = 0; m < in.rows; ++m)
            for (int64_t c = begin; c < end; ++c)
                row<Real>(out, at(index, m))[c] += row<Real>(in, m)[c];
    });
}

// ---- RMSNorm ----

template <class Real>
void Reference<Real>::rmsnorm_forward(Tensor y, Tensor rstd, Tensor sum, Tensor x, Tensor delta,
                                      Tensor weight, float eps) {
    for_each(x.rows, [&](int64_t n) {
        Real* s = row<Real>(sum, n);
        if (delta)
            for (int64_t c = 0; c < x.cols; ++c) s[c] = row<Real>(x, n)[c] + row<Real>(delta, n)[c];
        const Real r = 1 / std::sqrt(dot(s, s, x.cols) / x.cols + static_cast<Real>(eps));
        for (int64_t c = 0; c < x.cols; ++c) row<Real>(y, n)[c] = s[c] * r * weight.as<Real>()[c];
        rstd.as<Real>()[n] = r;
    });
}
template <class Real>
void Reference<Real>::rmsnorm_backward(Tensor dx, Tensor dweight, Tensor dy, Tensor x, Tensor rstd,
                                       Tensor weight) {
    const Real *w = weight.as<Real>(), *r = rstd.as<Real>();
    for_each(x.rows, [&](int64_t n) {
        const Real *d = row<Real>(dy, n), *in = row<Real>(x, n);
        Real mean = 0;
        for (int64_t c = 0; c < x.cols; ++c) mean += w[c] * d[c] * in[c] / x.cols;
        for (int64_t c = 0; c < x.cols; ++c)
            row<Real>(dx, n)[c] += r[n] * (w[c] * d[c] - in[c] * r[n] * r[n] * mean);
    });
    parallel_chunks(x.cols, 32, [&](int64_t begin, int64_t end) {
        for (int64_t n = 0; n < x.rows; ++n)
            for (int64_t c = begin; c < end; ++c)
                dweight.as<Real>()[c] += row<Real>(dy, n)[c] * row<Real>(x, n)[c] * r[n];
    });
}

template <class Real>
void Reference<Real>::head_norm_forward(Tensor out, Tensor rstd, Tensor in, Tensor q_weight,
                                        Tensor k_weight, AttentionShape shape, float eps) {
    const int D = shape.head_dim, normed = shape.heads + shape.kv_heads;
    for_each(in.rows, [&](int64_t n) {
        std::copy_n(row<Real>(in, n), in.cols, row<Real>(out, n));  // the values stay so
        for (int h = 0; h < normed; ++h) {
            const Real *x = row<Real>(in, n) + h * D,
                       *w = (h < shape.heads ? q_weight : k_weight).template as<Real>();
            const Real r = 1 / std::sqrt(dot(x, x, D) / D + static_cast<Real>(eps));
            for (int d = 0; d < D; ++d) row<Real>(out, n)[h * D + d] = x[d] * r * w[d];
            row<Real>(rstd, n)[h] = r;
        }
    });
}
template <class Real>
void Reference<Real>::head_norm_backward(Tensor d, Tensor dq_weight, Tensor dk_weight, Tensor in,
                                         Tensor rstd, Tensor q_weight, Tensor k_weight,
                                         AttentionShape shape) {
    const int64_t D = shape.head_dim, normed = shape.heads + shape.kv_heads;
    parallel_chunks(D, 32, [&](int64_t begin, int64_t end) {  // before d is overwritten
        for (int64_t item = 0; item < in.rows * normed; ++item) {
            const int64_t n = item / normed, h = item % normed;
            const Real *x = row<Real>(in, n) + h * D, *dy = row<Real>(d, n) + h * D;
            Real* dw = (h < shape.heads ? dq_weight : dk_weight).template as<Real>();
            for (int64_t c = begin; c < end; ++c) dw[c] += dy[c] * x[c] * row<Real>(rstd, n)[h];
        }
    });
    for_each(in.rows * normed, [&](int64_t item) {
        const int64_t n = item / normed, h = item % normed;
        const Real *x = row<Real>(in, n) + h * D,
                   *w = (h < shape.heads ? q_weight : k_weight).template as<Real>();
        Real *dy = row<Real>(d, n) + h * D, r = row<Real>(rstd, n)[h], mean = 0;
        for (int c = 0; c < D; ++c) mean += w[c] * dy[c] * x[c] / D;
        for (int c = 0; c < D; ++c) dy[c] = r * (w[c] * dy[c] - x[c] * r * r * mean);
    });
}

// ---- rotary position embedding ----

template <class Real>
void Reference<Real>::rope(Tensor qkv, Tensor positions, Tensor inv_freq, AttentionShape shape,
                           bool inverse) {
    const int half = shape.head_dim / 2;
    for_each(qkv.rows, [&](int64_t n) {
        for (int i = 0; i < half; ++i) {
            const double angle = at(positions, n) * static_cast<double>(inv_freq.as<Real>()[i]);
            const Real cosine = static_cast<Real>(std::cos(angle));
            const Real sine = static_cast<Real>(inverse ? -std::sin(angle) : std::sin(angle));
            for (int h = 0; h < shape.heads + shape.kv_heads; ++h) {
                Real* x = row<Real>(qkv, n) + h * shape.head_dim + i;
                const Real a = x[0], b = x[half];
                x[0] = a * cosine - b * sine;
                x[half] = b * cosine + a * sine;
            }
        }
    });
}

// ---- linear layers ----

template <class Real>
void Reference<Real>::linear_forward(Tensor y, Tensor x, Tensor weight, Tensor bias) {
    const int64_t O = y.cols, I = x.cols;
    for_each(y.size(), [&](int64_t item) {
        const int64_t n = item / O, o = item % O;
        Real sum = bias ? bias.as<Real>()[o] : 0;
        for (int64_t i = 0; i < I; ++i) sum += row<Real>(x, n)[i] * read<Real>(weight, o * I + i);
        row<Real>(y, n)[o] = sum;
    });
}
template <class Real>
void Reference<Real>::linear_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor x,
                                      Tensor weight) {
    const int64_t O = dy.cols, I = dx.cols;
    for_each(dx.rows, [&](int64_t n) {
        std::fill_n(row<Real>(dx, n), I, Real(0));
        for (int64_t o = 0; o < O; ++o)
            for (int64_t i = 0; i < I; ++i)
                row<Real>(dx, n)[i] += row<Real>(dy, n)[o] * read<Real>(weight, o * I + i);
    });
    for_each(O, [&](int64_t o) {
        for (int64_t n = 0; n < x.rows; ++n) {
            const Real d = row<Real>(dy, n)[o];
            for (int64_t i = 0; i < I; ++i) row<Real>(dweight, o)[i] += d * row<Real>(x, n)[i];
            if (dbias) dbias.as<Real>()[o] += d;
        }
    });
}

// ---- attention ----

template <class Real>
void Reference<Real>::attention_forward(Tensor out, Tensor lse, Tensor qkv, Tensor ranges,
                                        AttentionShape shape) {
    const Heads<Real> in{qkv, shape};
    for_each(qkv.rows * shape.heads, [&](int64_t item) {
        const int64_t n = item / shape.heads, h = item % shape.heads;
        const RowRange& range = row_ranges(ranges)[n];
        std::vector<const Real*> keys, values;
        for (int j = range.first(); j <= n; j = range.next(j)) {
            keys.push_back(in.key(j, h));
            values.push_back(in.value(j, h));
        }
        row<Real>(lse, n)[h] = attend(row<Real>(out, n) + h * shape.head_dim, in.query(n, h), keys,
                                      values, shape.head_dim);
    });
}
template <class Real>
void Reference<Real>::attention_backward(Tensor dqkv, Tensor dout, Tensor out, Tensor lse,
                                         Tensor qkv, Tensor ranges, AttentionShape shape) {
    const Heads<Real> in{qkv, shape}, gradient{dqkv, shape};
    const int D = shape.head_dim, group = shape.heads / shape.kv_heads;
    const Real scale = 1 / std::sqrt(static_cast<Real>(D));
    std::fill_n(dqkv.as<Real>(), dqkv.size(), Real(0));
    parallel_for(shape.kv_heads, [&](int64_t g) {
        for (int64_t item = 0; item < qkv.rows * group; ++item) {
            const int64_t n = item / group, h = g * group + item % group;
            const Real *q = in.query(n, h), *d_out = row<Real>(dout, n) + h * D;
            const Real delta = dot(d_out, row<Real>(out, n) + h * D, D);
            const RowRange& range = row_ranges(ranges)[n];
            for (int j = range.first(); j <= n; j = range.next(j)) {
                const Real p = std::exp(dot(q, in.key(j, h), D) * scale - row<Real>(lse, n)[h]);
                const Real ds = p * (dot(d_out, in.value(j, h), D) - delta) * scale;
                for (int d = 0; d < D; ++d) {
                    gradient.query(n, h)[d] += ds * in.key(j, h)[d];
                    gradient.key(j, h)[d] += ds * q[d];
                    gradient.value(j, h)[d] += p * d_out[d];
                }
            }
        }
    });
}

// ---- decoding ----

template <class Real>
void Reference<Real>::rope_append(Tensor k_pool, Tensor v_pool, Tensor qkv, Tensor rows,
                                  Tensor positions, Tensor inv_freq, AttentionShape shape) {
    rope(qkv, positions, inv_freq, shape, false);
    for_each(qkv.rows, [&](int64_t n) {
        if (at(rows, n) < 0) return;
        const Real* key = row<Real>(qkv, n) + shape.q_cols();
        std::copy_n(key, shape.kv_cols(), row<Real>(k_pool, at(rows, n)));
        std::copy_n(key + shape.kv_cols(), shape.kv_cols(), row<Real>(v_pool, at(rows, n)));
    });
}
template <class Real>
void Reference<Real>::decode_attention(Tensor out, Tensor qkv, Tensor k_pool, Tensor v_pool,
                                       Tensor spans, AttentionShape shape) {
    const Heads<Real> in{qkv, shape};
    for_each(out.rows * shape.heads, [&](int64_t item) {
        const int64_t b = item / shape.heads, h = item % shape.heads;
        const int64_t column = h * shape.kv_heads / shape.heads * shape.head_dim;
        std::vector<const Real*> keys, values;
        for (int part = 0; part < 2; ++part)
            for (int64_t j = 0; j < at(spans, 4 * b + 2 * part + 1); ++j) {
                keys.push_back(row<Real>(k_pool, at(spans, 4 * b + 2 * part) + j) + column);
                values.push_back(row<Real>(v_pool, at(spans, 4 * b + 2 * part) + j) + column);
            }
        attend(row<Real>(out, b) + h * shape.head_dim, in.query(b, h), keys, values,
               shape.head_dim);
    });
}
template <class Real>
void Reference<Real>::advance(Tensor positions, Tensor rows, Tensor spans, Tensor counters) {
    for (int64_t b = 0; b < rows.rows; ++b) {
        if (at(rows, b) < 0) continue;
        ++rows.as<int32_t>()[b];
        ++positions.as<int32_t>()[b];
        ++spans.as<int32_t>()[4 * b + 3];
        ++counters.as<int32_t>()[4 * b + 3];
    }
}

// ---- SwiGLU ----

template <class Real>
void Reference<Real>::swiglu_forward(Tensor out, Tensor gate_up) {
    for_each(out.rows, [&](int64_t n) {
        const Real *gate = row<Real>(gate_up, n), *up = gate + out.cols;
        for (int64_t f = 0; f < out.cols; ++f)
            row<Real>(out, n)[f] = gate[f] / (1 + std::exp(-gate[f])) * up[f];
    });
}
template <class Real>
void Reference<Real>::swiglu_backward(Tensor dgate_up, Tensor dout, Tensor gate_up) {
    for_each(dout.rows, [&](int64_t n) {
        const Real *gate = row<Real>(gate_up, n), *up = gate + dout.cols, *d = row<Real>(dout, n);
        Real *dgate = row<Real>(dgate_up, n), *dup = dgate + dout.cols;
        for (int64_t f = 0; f < dout.cols; ++f) {
            const Real sigmoid = 1 / (1 + std::exp(-gate[f]));
            dup[f] = d[f] * gate[f] * sigmoid;
            dgate[f] = d[f] * up[f] * sigmoid * (1 + gate[f] * (1 - sigmoid));
        }
    });
}

// ---- the head ----

template <class Real>
void Reference<Real>::softmax_forward(Tensor logp, Tensor entropy, Tensor logits, Tensor targets,
                                      float temperature) {
    for_each(logits.rows, [&](int64_t m) {
        const Real* z = row<Real>(logits, m);
        const LogSoftmax<Real> log_p(z, logits.cols, temperature);
        logp.as<Real>()[m] = log_p(z[at(targets, m)]);
        Real sum = 0;
        for (int64_t v = 0; v < logits.cols; ++v) sum -= std::exp(log_p(z[v])) * log_p(z[v]);
        entropy.as<Real>()[m] = sum;
    });
}
template <class Real>
void Reference<Real>::softmax_backward(Tensor logits, Tensor dlogp, Tensor dentropy, Tensor logp,
                                       Tensor entropy, Tensor targets, float temperature) {
    for_each(logits.rows, [&](int64_t m) {
        Real *z = row<Real>(logits, m), d = dlogp.as<Real>()[m],
             d_entropy = dentropy ? dentropy.as<Real>()[m] : 0;
        const Real z_target = z[at(targets, m)];
        for (int64_t v = 0; v < logits.cols; ++v) {
            const Real log_p = (z[v] - z_target) / temperature + logp.as<Real>()[m];
            const Real p = std::exp(log_p), hit = v == at(targets, m) ? 1 : 0;
            z[v] = (d * (hit - p) - d_entropy * p * (log_p + entropy.as<Real>()[m])) / temperature;
        }
    });
}

// ---- sampling ----

template <class Real>
void Reference<Real>::sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                             const SampleOptions& o) {
    for_each(logits.rows, [&](int64_t b) {
        const Real* z = row<Real>(logits, b);
        const LogSoftmax<Real> log_p(z, logits.cols, o.temperature > 0 ? o.temperature : 1);
        auto p = [&](int32_t v) { return std::exp(static_cast<double>(log_p(z[v]))); };
        std::vector<int32_t> kept(logits.cols);  // the likeliest first
        std::iota(kept.begin(), kept.end(), 0);
        std::stable_sort(kept.begin(), kept.end(),
                         [&](int32_t v, int32_t w) { return z[v] > z[w]; });
        if (o.temperature == 0) kept.resize(1);
        if (o.top_k > 0) kept.resize(std::min<std::size_t>(o.top_k, kept.size()));
        double total = 0, mass = 0;
        for (int32_t v : kept) total += p(v);
        std::size_t count = 0;
        while (count < kept.size() && (count == 0 || mass < o.top_p * total))
            mass += p(kept[count++]);
        kept.resize(count);
        std::sort(kept.begin(), kept.end());

        const double u = philox_uniform(o.seed, counters.as<std::uint32_t>() + b * 4);
        double cumulative = 0;
        auto drawn = kept.begin();
        while ((cumulative += p(*drawn)) <= u * mass && drawn + 1 < kept.end()) ++drawn;
        tokens.as<int32_t>()[b] = *drawn;
        logp.as<Real>()[b] = log_p(z[*drawn]);
        if (o.temperature > 0) logp.as<Real>()[b] -= static_cast<Real>(std::log(mass));
    });
}

// ---- optimizer ----

template <class Real>
double Reference<Real>::sum_of_squares(Tensor t) {
    double sum = 0;
    for (int64_t i = 0; i < t.size(); ++i)
        sum += static_cast<double>(t.as<Real>()[i]) * t.as<Real>()[i];
    return sum;
}
template <class Real>
void Reference<Real>::adamw(Tensor param, Tensor copy, Tensor grad, Tensor m, Tensor v,
                            const AdamWOptions& o) {
    auto write = [](Tensor t, int64_t i, Real value, std::uint64_t random) {
        if (t.dtype == DType::BF16)
            t.as<std::uint16_t>()[i] = r1_round_stochastically(
                std::bit_cast<std::uint32_t>(static_cast<float>(value)), random);
        else
            t.as<Real>()[i] = value;
    };
    const Real correction1 =
        static_cast<Real>(1 / (1 - std::pow(static_cast<double>(o.beta1), o.step)));
    const Real correction2 =
        static_cast<Real>(1 / (1 - std::pow(static_cast<double>(o.beta2), o.step)));
    for_each(param.size(), [&](int64_t i) {
        const Real g = o.grad_scale * grad.as<Real>()[i], p = read<Real>(param, i);
        const Real new_m = o.beta1 * read<Real>(m, i) + (1 - o.beta1) * g;
        const Real new_v = o.beta2 * read<Real>(v, i) + (1 - o.beta2) * g * g;
        const Real step =
            new_m * correction1 / (std::sqrt(new_v * correction2) + o.eps) + o.weight_decay * p;
        const std::uint64_t random =
            r1_rounding_bits(o.seed, static_cast<std::uint64_t>(o.step), i);
        write(param, i, p - o.lr * step, random);
        write(m, i, new_m, random >> 16);
        write(v, i, new_v, random >> 32);
    });
    if (copy) to_bfloat16(copy, param);
    zero(grad);
}

template class Reference<float>;
template class Reference<double>;

std::unique_ptr<Backend> make_reference_backend(DType real) {
    if (real == DType::F64) return std::make_unique<Reference<double>>();
    return std::make_unique<Reference<float>>();
}

}  // namespace r1
