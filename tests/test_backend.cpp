// Every primitive of the CPU backend: values against the formula of backend.h written out in
// float64, gradients against central differences in float64, float32 against float64 with
// tolerances that follow from the length of the reductions.
#include <algorithm>
#include <map>
#include <set>

#include "src/device/parallel.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;

namespace {

/// Runs `body` on ten random benches in float64 and compares what it returns with the same in
/// float32. body(bench) builds its inputs from bench.normal (the same numbers in both precisions)
/// and returns all its outputs.
void check_float32(const std::function<std::vector<double>(Bench&)>& body, double tolerance) {
    for (unsigned seed = 100; seed < 110; ++seed) {
        Bench wide(DType::F64, seed), narrow(DType::F32, seed);
        const auto expected = body(wide), actual = body(narrow);
        REQUIRE(expected.size() == actual.size());
        double largest = 1e-3;
        for (double e : expected) largest = std::max(largest, std::abs(e));
        for (std::size_t i = 0; i < expected.size(); ++i) {
            INFO("seed ", seed, " element ", i, " expected ", expected[i], " actual ", actual[i]);
            CHECK(std::abs(expected[i] - actual[i]) <= tolerance * largest);
        }
    }
}

std::vector<double> join(std::initializer_list<std::vector<double>> parts) {
    std::vector<double> all;
    for (const auto& p : parts) all.insert(all.end(), p.begin(), p.end());
    return all;
}

constexpr double kEps32 = 6e-8;  // half a unit in the last place of float32

}  // namespace

TEST_CASE("embedding: rows are copied, gradients of repeated ids add up") {
    for (unsigned seed = 0; seed < 5; ++seed) {
        Bench b(DType::F64, seed);
        const int N = b.between(1, 90), C = b.between(1, 70), V = b.between(1, 9);
        std::vector<std::int32_t> id(N);
        for (auto& x : id) x = b.between(0, V - 1);
        Tensor ids = b.ints(id), table = b.normal(V, C), out = b.tensor(N, C),
               dout = b.normal(N, C), dtable = b.normal(V, C);
        const auto before = b.values(dtable), d = b.values(dout), t = b.values(table);
        b.backend->gather_rows(out, table, ids);
        b.backend->add_rows(dtable, dout, ids);
        const auto o = b.values(out), after = b.values(dtable);
        std::vector<double> expected = before;
        for (int n = 0; n < N; ++n)
            for (int c = 0; c < C; ++c) {
                CHECK(o[n * C + c] == t[id[n] * C + c]);
                expected[id[n] * C + c] += d[n * C + c];
            }
        CHECK(after == expected);
    }
}

TEST_CASE("RMSNorm with the residual add") {
    for (unsigned seed = 0; seed < 6; ++seed) {
        Bench b(DType::F64, seed);
        const int N = b.between(1, 70), C = b.between(1, 50);
        Tensor x = b.normal(N, C), delta = seed % 2 ? b.normal(N, C) : Tensor{}, w = b.normal(C),
               sum = delta ? b.tensor(N, C) : x;
        Tensor y = b.tensor(N, C), rstd = b.tensor(N), dy = b.normal(N, C), dx = b.zeros(N, C),
               dw = b.zeros(C);
        const auto weights = b.values(dy);
        auto loss = [&] {
            b.backend->rmsnorm_forward(y, rstd, sum, x, delta, w, 1e-6f);
            return weighted(b.values(y), weights);
        };
        loss();
        // value
        const auto xs = b.values(sum), ws = b.values(w), ys = b.values(y);
        for (int n = 0; n < N; ++n) {
            double ms = 0;
            for (int c = 0; c < C; ++c) ms += xs[n * C + c] * xs[n * C + c] / C;
            for (int c = 0; c < C; ++c)
                CHECK(ys[n * C + c] ==
                      doctest::Approx(xs[n * C + c] / std::sqrt(ms + 1e-6) * ws[c]).epsilon(1e-6));
        }
        b.backend->rmsnorm_backward(dx, dw, dy, sum, rstd, w);
        check_gradient(b, x, b.values(dx), loss);
        if (delta) check_gradient(b, delta, b.values(dx), loss);
        check_gradient(b, w, b.values(dw), loss);
    }
    check_float32(
        [](Bench& b) {
            const int N = b.between(1, 70), C = b.between(1, 300);
            Tensor x = b.normal(N, C), w = b.normal(C), y = b.tensor(N, C), rstd = b.tensor(N),
                   dy = b.normal(N, C), dx = b.normal(N, C), dw = b.normal(C);
            b.backend->rmsnorm_forward(y, rstd, x, x, {}, w, 1e-6f);
            b.backend->rmsnorm_backward(dx, dw, dy, x, rstd, w);
            return join({b.values(y), b.values(dx), b.values(dw)});
        },
        300 * kEps32);
}

TEST_CASE("RMSNorm of query and key heads") {
    for (unsigned seed = 0; seed < 4; ++seed) {
        Bench b(DType::F64, seed);
        const int K = b.between(1, 3), H = K * b.between(1, 3), D = 2 * b.between(1, 20),
                  N = b.between(1, 9);
        const AttentionShape shape{H, K, D};
        Tensor in = b.normal(N, shape.qkv_cols()), qw = b.normal(D), kw = b.normal(D),
               out = b.tensor(N, shape.qkv_cols()), rstd = b.tensor(N, H + K),
               d = b.normal(N, shape.qkv_cols()), dq = b.zeros(D), dk = b.zeros(D);
        const auto weights = b.values(d);
        auto loss = [&] {
            b.backend->head_norm_forward(out, rstd, in, qw, kw, shape, 1e-6f);
            return weighted(b.values(out), weights);
        };
        loss();
        const auto x = b.values(in), y = b.values(out), q = b.values(qw), k = b.values(kw);
        for (int n = 0; n < N; ++n)
            for (int h = 0; h < H + 2 * K; ++h) {
                const double* head = &x[n * shape.qkv_cols() + h * D];
                double ms = 0;
                for (int c = 0; c < D; ++c) ms += head[c] * head[c] / D;
                for (int c = 0; c < D; ++c) {
                    const double norm = head[c] / std::sqrt(ms + 1e-6);
                    const double expected = h < H ? norm * q[c] : h < H + K ? norm * k[c] : head[c];
                    CHECK(y[n * shape.qkv_cols() + h * D + c] ==
                          doctest::Approx(expected).epsilon(1e-12));
                }
            }
        b.backend->head_norm_backward(d, dq, dk, in, rstd, qw, kw, shape);
        check_gradient(b, in, b.values(d), loss);
        check_gradient(b, qw, b.values(dq), loss);
        check_gradient(b, kw, b.values(dk), loss);
    }
    check_float32(
        [](Bench& b) {
            const AttentionShape shape{6, 2, 2 * b.between(1, 64)};
            const int N = b.between(1, 70), D = shape.head_dim;
            Tensor in = b.normal(N, shape.qkv_cols()), qw = b.normal(D), kw = b.normal(D),
                   out = b.tensor(N, shape.qkv_cols()), rstd = b.tensor(N, 8),
                   d = b.normal(N, shape.qkv_cols()), dq = b.normal(D), dk = b.normal(D);
            b.backend->head_norm_forward(out, rstd, in, qw, kw, shape, 1e-6f);
            b.backend->head_norm_backward(d, dq, dk, in, rstd, qw, kw, shape);
            return join({b.values(out), b.values(d), b.values(dq), b.values(dk)});
        },
        300 * kEps32);
}

TEST_CASE("RoPE: the half-split rotation, explicit positions, and its inverse") {
    for (unsigned seed = 0; seed < 5; ++seed) {
        Bench b(DType::F64, seed);
        const AttentionShape shape{b.between(1, 3), 1, 2 * b.between(1, 6)};
        const int N = b.between(1, 80), D = shape.head_dim, half = D / 2;
        std::vector<std::int32_t> position(N);
        for (auto& p : position) p = b.between(0, 100000);
        Tensor qkv = b.normal(N, shape.qkv_cols()), freq = b.normal(half),
               positions = b.ints(position);
        const auto before = b.values(qkv), f = b.values(freq);
        b.backend->rope(qkv, positions, freq, shape, false);
        const auto after = b.values(qkv);
        for (int n = 0; n < N; ++n)
            for (int col = 0; col < shape.qkv_cols(); ++col) {
                const int i = col % D, row = n * shape.qkv_cols();
                double expected = before[row + col];
                if (col < shape.q_cols() + shape.kv_cols()) {
                    const double a = position[n] * f[i % half];
                    expected = i < half ? before[row + col] * std::cos(a) -
                                              before[row + col + half] * std::sin(a)
                                        : before[row + col] * std::cos(a) +
                                              before[row + col - half] * std::sin(a);
                }
                CHECK(after[row + col] == doctest::Approx(expected).epsilon(1e-9));
            }
        b.backend->rope(qkv, positions, freq, shape, true);
        const auto again = b.values(qkv);
        for (std::size_t i = 0; i < again.size(); ++i)
            CHECK(again[i] == doctest::Approx(before[i]).epsilon(1e-9));
    }
}

TEST_CASE(
    "linear layers: y = x W^T + b and its gradients, in float64, float32 and with bfloat16 weights") {
    for (unsigned seed = 0; seed < 4; ++seed) {
        Bench b(DType::F64, seed);
        const int N = b.between(1, 20), I = b.between(1, 20), O = b.between(1, 20);
        Tensor x = b.normal(N, I), w = b.normal(O, I), bias = seed % 2 ? b.normal(O) : Tensor{},
               y = b.tensor(N, O);
        Tensor dy = b.normal(N, O), dx = b.tensor(N, I), dw = b.zeros(O, I),
               dbias = bias ? b.zeros(O) : Tensor{};
        const auto weights = b.values(dy);
        auto loss = [&] {
            b.backend->linear_forward(y, x, w, bias);
            return weighted(b.values(y), weights);
        };
        loss();
        b.backend->linear_backward(dx, dw, dbias, dy, x, w);
        check_gradient(b, x, b.values(dx), loss);
        check_gradient(b, w, b.values(dw), loss);
        if (bias) check_gradient(b, bias, b.values(dbias), loss);
    }
    auto run = [](Bench& b) {  // shapes across every blocking boundary: a row, a few, a tail,
                               // several blocks
        const int N = std::vector{1, 3, 5, 63, 64, 129, 300}[b.between(0, 6)],
                  I = b.between(1, 150), O = b.between(1, 1200);
        Tensor x = b.normal(N, I), w = b.normal(O, I), bias = b.normal(O), y = b.tensor(N, O);
        Tensor dy = b.normal(N, O), dx = b.tensor(N, I), dw = b.normal(O, I), dbias = b.normal(O);
        b.backend->linear_forward(y, x, w, bias);
        b.backend->linear_backward(dx, dw, dbias, dy, x, w);
        return join({b.values(y), b.values(dx), b.values(dw), b.values(dbias)});
    };
    check_float32(run, 1200 * kEps32);
    check_float32(
        [](Bench& b) {  // inputs and weights that bfloat16 holds exactly: the product must be exact
                        // to float32
            const int N = b.between(1, 200), I = b.between(1, 90), O = b.between(1, 90);
            auto rounded = [&](int rows, int cols) {
                std::vector<double> v(static_cast<std::size_t>(rows * cols));
                for (double& e : v) e = b.between(-128, 127) / 32.0;
                return v;
            };
            Tensor x = b.from(rounded(N, I), N, I), w = b.from(rounded(O, I), O, I),
                   dy = b.from(rounded(N, O), N, O), y = b.tensor(N, O), dx = b.tensor(N, I),
                   dw = b.zeros(O, I);
            Buffer memory(*b.backend, w.size() * 2);
            const Tensor narrow{memory.data(), DType::BF16, O, I};
            b.backend->to_bfloat16(narrow, w);
            b.backend->linear_forward(y, x, narrow, {});
            b.backend->linear_backward(dx, dw, {}, dy, x, narrow);
            return join({b.values(y), b.values(dx), b.values(dw)});
        },
        200 * kEps32);
}

TEST_CASE("attention: causal, grouped-query, over packed sequences and shared prompts") {
    for (unsigned seed = 0; seed < 8; ++seed) {
        Bench b(DType::F64, seed);
        const int K = b.between(1, 3), group = b.between(1, 3);
        const AttentionShape shape{K * group, K, b.between(1, 9)};
        const auto packing = b.packing(b.between(1, 4), 9);
        const int N = static_cast<int>(packing.size()), D = shape.head_dim, H = shape.heads,
                  W = shape.qkv_cols();
        Tensor qkv = b.normal(N, W), out = b.tensor(N, H * D), lse = b.tensor(N, H),
               ranges = b.ranges(packing);
        Tensor dout = b.normal(N, H * D), dqkv = b.normal(N, W);
        const auto weights = b.values(dout);
        auto loss = [&] {
            b.backend->attention_forward(out, lse, qkv, ranges, shape);
            return weighted(b.values(out), weights);
        };
        loss();
        const auto x = b.values(qkv), o = b.values(out), l = b.values(lse);
        const auto sees = [&](int n, int j) {
            const RowRange& r = packing[n];
            return (r.prompt_begin <= j && j < r.prompt_end) || (r.begin <= j && j <= n);
        };
        for (int n = 0; n < N; ++n) {
            // What reads a key: those rows of [n, end), and no others.
            for (int m = 0; m < N; ++m) CHECK(sees(m, n) == (m >= n && m < packing[n].end));
            for (int h = 0; h < H; ++h) {
                std::vector<double> expected(D);
                double sum = 0;
                for (int j = 0; j < N; ++j) {
                    if (!sees(n, j)) continue;
                    double score = 0;
                    for (int d = 0; d < D; ++d)
                        score += x[n * W + h * D + d] * x[j * W + H * D + h / group * D + d];
                    const double p = std::exp(score / std::sqrt(D));
                    sum += p;
                    for (int d = 0; d < D; ++d)
                        expected[d] += p * x[j * W + (H + K) * D + h / group * D + d];
                }
                CHECK(l[n * H + h] == doctest::Approx(std::log(sum)).epsilon(1e-10));
                for (int d = 0; d < D; ++d)
                    CHECK(o[n * H * D + h * D + d] ==
                          doctest::Approx(expected[d] / sum).epsilon(1e-10));
            }
        }
        b.backend->attention_backward(dqkv, dout, out, lse, qkv, ranges, shape);
        check_gradient(b, qkv, b.values(dqkv), loss, 80);
    }
    check_float32(
        [](Bench& b) {
            const AttentionShape shape{4, 2, b.between(1, 40)};
            const auto packing = b.packing(3, 150);
            const auto N = static_cast<std::int64_t>(packing.size());
            Tensor qkv = b.normal(N, shape.qkv_cols()), out = b.tensor(N, shape.q_cols()),
                   lse = b.tensor(N, 4), ranges = b.ranges(packing);
            Tensor dout = b.normal(N, shape.q_cols()), dqkv = b.tensor(N, shape.qkv_cols());
            b.backend->attention_forward(out, lse, qkv, ranges, shape);
            b.backend->attention_backward(dqkv, dout, out, lse, qkv, ranges, shape);
            return join({b.values(out), b.values(lse), b.values(dqkv)});
        },
        200 * kEps32);
}

TEST_CASE(
    "decode attention over a shared prompt and own rows equals the last row of packed attention") {
    for (DType real : {DType::F64, DType::F32}) {
        for (unsigned seed = 0; seed < 8; ++seed) {
            Bench b(real, seed);
            const int D = 2 * b.between(1, 20);
            const AttentionShape shape{4, 2, D};
            const int B = b.between(1, 6), prefix = b.between(0, 70), rows = 9 * 3 * kKvBlock,
                      W = shape.qkv_cols();
            Tensor k_pool = b.normal(rows, shape.kv_cols()),
                   v_pool = b.normal(rows, shape.kv_cols());
            // Sequence s: `prefix` shared rows, then its own. The packed oracle holds a copy of the
            // prefix for each.
            const auto shared = b.values(b.normal(std::max(prefix, 1), W));
            std::vector<std::int32_t> cu{0}, append, spans;
            std::vector<RowRange> ranges;
            std::vector<double> packed;
            for (int s = 0; s < B; ++s) {
                const int own = b.between(1, 60), base = (3 + 3 * s) * kKvBlock;
                const auto mine = b.values(b.normal(own, W));
                packed.insert(packed.end(), shared.begin(), shared.begin() + prefix * W);
                packed.insert(packed.end(), mine.begin(), mine.end());
                for (int t = 0; t < prefix; ++t) append.push_back(s == 0 ? t : -1);
                for (int t = 0; t < own; ++t) append.push_back(base + t);
                const int begin = cu.back(), end = begin + prefix + own;
                ranges.insert(ranges.end(), end - begin, {begin, begin, begin, end});
                cu.push_back(end);
                spans.insert(spans.end(), {0, prefix, base, own});
            }
            const int N = cu.back();
            Tensor qkv = b.from(packed, N, W), out = b.tensor(N, shape.q_cols()),
                   lse = b.tensor(N, 4), query = b.tensor(B, W),
                   decoded = b.tensor(B, shape.q_cols());
            // rope_append() rotates qkv as it stores it; the queries, which it has rotated too, are
            // taken from there.
            std::vector<std::int32_t> position(N);
            for (int s = 0; s < B; ++s)
                for (int t = cu[s]; t < cu[s + 1]; ++t) position[t] = t - cu[s];
            b.backend->rope_append(k_pool, v_pool, qkv, b.ints(append), b.ints(position),
                                   b.normal(D / 2), shape);
            b.backend->attention_forward(out, lse, qkv, b.ranges(ranges), shape);
            std::vector<std::int32_t> ends;
            for (int s = 0; s < B; ++s) ends.push_back(cu[s + 1] - 1);
            b.backend->gather_rows(query, qkv, b.ints(ends));
            b.backend->decode_attention(decoded, query, k_pool, v_pool, b.ints(spans, 4), shape);
            const auto expected = b.values(out), actual = b.values(decoded);
            const int width = shape.q_cols();
            for (int s = 0; s < B; ++s)
                for (int c = 0; c < width; ++c)
                    CHECK(std::abs(actual[s * width + c] - expected[(cu[s + 1] - 1) * width + c]) <
                          (real == DType::F64 ? 1e-12 : 130 * kEps32 * 4));
        }
    }
}

TEST_CASE("decode attention on the CPU: where the shared prompt ends does not change a bit") {
    for (int D : {10, 16, 64, 128}) {
        Bench b(DType::F32, D);
        const AttentionShape shape{2, 1, D};
        const int N = 75, own = 3 * kKvBlock;
        const Tensor qkv = b.normal(N, shape.qkv_cols()), query = b.tensor(1, shape.qkv_cols()),
                     k_pool = b.tensor(2 * own, D), v_pool = b.tensor(2 * own, D),
                     freq = b.zeros(D / 2), out = b.tensor(1, shape.q_cols());
        b.backend->gather_rows(query, qkv, b.ints({N - 1}));
        std::vector<std::vector<double>> outs;
        for (int prompt : {0, 1, 2, 31, 40, 73}) {
            std::vector<std::int32_t> rows;
            for (int t = 0; t < N; ++t) rows.push_back(t < prompt ? t : own + t - prompt);
            b.backend->rope_append(k_pool, v_pool, qkv, b.ints(rows), b.ints(rows), freq, shape);
            b.backend->decode_attention(out, query, k_pool, v_pool,
                                        b.ints({0, prompt, own, N - prompt}, 4), shape);
            outs.push_back(b.values(out));
            CHECK(outs.back() == outs.front());
        }
    }
}

TEST_CASE("SwiGLU") {
    for (unsigned seed = 0; seed < 4; ++seed) {
        Bench b(DType::F64, seed);
        const int N = b.between(1, 40), F = b.between(1, 30);
        Tensor in = b.normal(N, 2 * F, 3), out = b.tensor(N, F), dout = b.normal(N, F),
               din = b.tensor(N, 2 * F);
        const auto weights = b.values(dout);
        auto loss = [&] {
            b.backend->swiglu_forward(out, in);
            return weighted(b.values(out), weights);
        };
        loss();
        const auto x = b.values(in), o = b.values(out);
        for (int n = 0; n < N; ++n)
            for (int f = 0; f < F; ++f) {
                const double gate = x[n * 2 * F + f];
                CHECK(o[n * F + f] ==
                      doctest::Approx(gate / (1 + std::exp(-gate)) * x[n * 2 * F + F + f]));
            }
        b.backend->swiglu_backward(din, dout, in);
        check_gradient(b, in, b.values(din), loss);
    }
    check_float32(
        [](Bench& b) {
            const int N = b.between(1, 40), F = b.between(1, 90);
            Tensor in = b.normal(N, 2 * F, 30), out = b.tensor(N, F), dout = b.normal(N, F),
                   din = b.tensor(N, 2 * F);
            b.backend->swiglu_forward(out, in);
            b.backend->swiglu_backward(din, dout, in);
            return join({b.values(out), b.values(din)});
        },
        16 * kEps32);
}

TEST_CASE("head: log-probability, entropy and their gradients, at any temperature and chunk size") {
    for (unsigned seed = 0; seed < 8; ++seed) {
        Bench b(DType::F64, seed);
        const int M = b.between(1, 20), C = b.between(1, 12), V = b.between(2, 30);
        const float temperature = seed % 3 == 0 ? 1.0f : seed % 3 == 1 ? 0.5f : 2.0f;
        std::vector<std::int32_t> target(M);
        for (auto& t : target) t = b.between(0, V - 1);
        Tensor hidden = b.normal(M, C), w = b.normal(V, C), targets = b.ints(target),
               logp = b.tensor(M), entropy = b.tensor(M);
        Tensor chunk = b.tensor(b.between(1, M), V), dlogp = b.normal(M),
               dentropy = seed % 2 ? b.normal(M) : Tensor{};
        Tensor dhidden = b.tensor(M, C), dw = b.zeros(V, C);
        const auto wl = b.values(dlogp),
                   we = dentropy ? b.values(dentropy) : std::vector<double>(M, 0.0);
        auto loss = [&] {
            b.backend->head_forward(logp, entropy, hidden, w, targets, temperature, chunk);
            return weighted(b.values(logp), wl) + weighted(b.values(entropy), we);
        };
        loss();
        const auto h = b.values(hidden), table = b.values(w), lp = b.values(logp),
                   en = b.values(entropy);
        for (int m = 0; m < M; ++m) {
            std::vector<double> logit(V);
            double sum = 0, expected_entropy = 0;
            for (int v = 0; v < V; ++v) {
                for (int c = 0; c < C; ++c) logit[v] += h[m * C + c] * table[v * C + c];
                logit[v] /= temperature;
                sum += std::exp(logit[v]);
            }
            for (int v = 0; v < V; ++v)
                expected_entropy -= std::exp(logit[v]) / sum * (logit[v] - std::log(sum));
            CHECK(lp[m] == doctest::Approx(logit[target[m]] - std::log(sum)).epsilon(1e-9));
            CHECK(en[m] == doctest::Approx(expected_entropy).epsilon(1e-9));
        }
        b.backend->head_backward(dhidden, dw, dlogp, dentropy, logp, entropy, hidden, w, targets,
                                 temperature, chunk);
        check_gradient(b, hidden, b.values(dhidden), loss);
        check_gradient(b, w, b.values(dw), loss);
    }
    check_float32(
        [](Bench& b) {
            const int M = b.between(1, 150), C = b.between(1, 60), V = b.between(2, 500);
            std::vector<std::int32_t> target(M);
            for (auto& t : target) t = b.between(0, V - 1);
            Tensor hidden = b.normal(M, C), w = b.normal(V, C), targets = b.ints(target),
                   logp = b.tensor(M), entropy = b.tensor(M);
            Tensor chunk = b.tensor(64, V), dlogp = b.normal(M), dentropy = b.normal(M),
                   dhidden = b.tensor(M, C), dw = b.normal(V, C);
            b.backend->head_forward(logp, entropy, hidden, w, targets, 1, chunk);
            b.backend->head_backward(dhidden, dw, dlogp, dentropy, logp, entropy, hidden, w,
                                     targets, 1, chunk);
            return join({b.values(logp), b.values(entropy), b.values(dhidden), b.values(dw)});
        },
        500 * kEps32);
}

TEST_CASE(
    "sampling follows the distribution: plain, top-k, top-p, greedy; logp is that of the distribution drawn "
    "from") {
    Bench b(DType::F32, 8);
    const int V = 12, draws = 40000;
    const auto row = b.values(b.normal(1, V, 1.5));
    std::vector<double> rows;
    std::vector<std::int32_t> counters;
    for (int i = 0; i < draws; ++i) {
        rows.insert(rows.end(), row.begin(), row.end());
        counters.insert(counters.end(), {1, 2, 3, i});
    }
    Tensor logits = b.from(rows, draws, V), tokens = b.ints(std::vector<std::int32_t>(draws)),
           logp = b.tensor(draws), counter = b.ints(counters, 4);
    for (SampleOptions o :
         {SampleOptions{}, SampleOptions{.temperature = 0.5f}, SampleOptions{.top_k = 4},
          SampleOptions{.top_p = 0.6f}, SampleOptions{.temperature = 2, .top_k = 7, .top_p = 0.7f},
          SampleOptions{.temperature = 0}, SampleOptions{.top_k = 1}}) {
        o.seed = 5;
        // the distribution, from its definition
        std::vector<int> order(V);
        for (int v = 0; v < V; ++v) order[v] = v;
        std::sort(order.begin(), order.end(), [&](int x, int y) { return row[x] > row[y]; });
        std::vector<double> p(V, 0.0);
        double total = 0;
        const double t = o.temperature == 0 ? 1 : o.temperature;
        const int k = o.top_k ? o.top_k : V;
        for (int i = 0; i < k; ++i) total += p[order[i]] = std::exp(row[order[i]] / t);
        double mass = 0, kept = 0;
        for (int i = 0; i < k; ++i) {
            if (mass >= o.top_p * total) p[order[i]] = 0;
            mass += p[order[i]];
            kept += p[order[i]];
        }
        for (double& x : p) x /= kept;
        b.backend->sample(tokens, logp, logits, counter, o);
        std::map<int, int> count;
        const auto lp = b.values(logp);
        for (int i = 0; i < draws; ++i) {
            const int token = tokens.as<std::int32_t>()[i];
            ++count[token];
            if (o.temperature == 0) {
                CHECK(token == order[0]);
            } else {
                REQUIRE(p[token] > 0);
            }
            CHECK(std::abs(lp[i] - std::log(p[token])) < 2e-6);
        }
        if (o.temperature == 0) continue;
        for (int v = 0; v < V; ++v) {  // five standard deviations of a binomial
            CHECK(std::abs(count[v] - draws * p[v]) <=
                  5 * std::sqrt(draws * p[v] * (1 - p[v])) + 1e-9);
        }
    }
}

TEST_CASE("Philox4x32-10: known answers, and uniform numbers") {
    // Known-answer vectors of the Random123 distribution (kat_vectors): zeros, ones, and pi.
    CHECK(r1_philox(0, 0, 0, 0, 0) == 0x6627e8d5e169c58d);
    CHECK(r1_philox(~0ull, ~0u, ~0u, ~0u, ~0u) == 0x408f276d41c83b0e);
    CHECK(r1_philox(0x299f31d0a4093822, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344) ==
          0xd16cfe0994fdcceb);
    const std::uint32_t zero[4] = {0, 0, 0, 0};
    const double expected =
        (static_cast<double>((0x6627e8d5ull << 21) ^ (0xe169c58dull >> 11)) + 0.5) * 0x1p-53;
    CHECK(philox_uniform(0, zero) == expected);
    double mean = 0, square = 0;
    const int n = 100000;
    for (std::uint32_t i = 0; i < n; ++i) {
        const std::uint32_t counter[4] = {0, 0, i, 7};
        const double u = philox_uniform(42, counter);
        REQUIRE((u > 0 && u < 1));
        mean += u / n, square += u * u / n;
    }
    CHECK(std::abs(mean - 0.5) < 5 * std::sqrt(1.0 / 12 / n));
    CHECK(std::abs(square - 1.0 / 3) < 5 * std::sqrt(4.0 / 45 / n));
}

TEST_CASE("AdamW follows its formula over several steps; the gradient norm is exact") {
    for (DType real : {DType::F64, DType::F32}) {
        Bench b(real, 4);
        const int n = 20011;
        Tensor p = b.normal(n), m = b.zeros(n), v = b.zeros(n);
        auto ep = b.values(p);
        std::vector<double> em(n, 0.0), ev(n, 0.0);
        for (int step = 1; step <= 4; ++step) {
            Tensor g = b.normal(n);
            const auto grad = b.values(g);
            double squares = 0;
            for (double x : grad) squares += x * x;
            CHECK(b.backend->sum_of_squares(g) == doctest::Approx(squares).epsilon(1e-12));
            const AdamWOptions o{
                .lr = 0.01f, .weight_decay = 0.1f, .step = step, .grad_scale = 0.5f};
            b.backend->adamw(p, {}, g, m, v, o);
            const double b1 = o.beta1, b2 = o.beta2, lr = o.lr, eps = o.eps, wd = o.weight_decay;
            for (int i = 0; i < n; ++i) {
                em[i] = b1 * em[i] + (1 - b1) * 0.5 * grad[i];
                ev[i] = b2 * ev[i] + (1 - b2) * 0.25 * grad[i] * grad[i];
                ep[i] -= lr * (em[i] / (1 - std::pow(b1, step)) /
                                   (std::sqrt(ev[i] / (1 - std::pow(b2, step))) + eps) +
                               wd * ep[i]);
            }
        }
        const auto actual = b.values(p);
        double worst = 0;
        for (int i = 0; i < n; ++i) worst = std::max(worst, std::abs(actual[i] - ep[i]));
        CHECK(worst < (real == DType::F64 ? 1e-12 : 1e-5 * 0.1));
    }
}

TEST_CASE("parallel_for runs every task once, with any number of threads, nested too") {
    for (int count : {1, 2, 5}) {
        set_threads(count);
        for (int repeat = 0; repeat < 200; ++repeat) {
            std::vector<int> runs(97, 0);
            parallel_for(
                97, [&](std::int64_t i) { parallel_for(2, [&](std::int64_t) { ++runs[i]; }); });
            REQUIRE(std::count(runs.begin(), runs.end(), 2) == 97);
        }
    }
    set_threads(0);
}
