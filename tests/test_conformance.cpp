// One suite that every backend passes: the primitives of backend.h on random shapes, among them
// lengths of 1 and every kernel's special cases, against the reference in float64 (which
// tests/test_backend.cpp holds to the formulas).
//
// It tries every device that it finds by name: those built in, and each libr1_NAME.so beside it
// (cuda-on-cpu is the CUDA kernels run by tests/cuda_on_cpu, skeleton is tests/port).
// R1_BACKEND=NAME tries that one alone, R1_SEEDS=1 the first random shapes only. Each is tried with
// activations in float32, with matrices in bfloat16 beside them, and, where it has them, with
// activations in bfloat16; those that have exact arithmetic, with it too. What an output holds
// beforehand is NaN, and what was uploaded is scribbled over on the host (tests/support.h).
//
// Tolerances are not tuned. An output may err, relative to its largest element, by 2 length 2^-24
// for the float32 sum of `length` terms behind it, and by 2^-8 for each rounding to bfloat16 on the
// way: one unit in its last place.
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "src/device/device.h"
#include "src/rl/generate.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;

namespace {

struct Output {
    std::string name;
    std::vector<double> values;
    int length;     ///< of the longest sum behind it
    int roundings;  ///< to bfloat16, where activations are bfloat16
};
using Outputs = std::vector<Output>;

struct Subject {
    std::string name;
    std::function<std::unique_ptr<Backend>()> make;
    bool bf16_matrices;  ///< beside activations in float32, or as they are
};

std::vector<Subject> find_subjects(bool exact) {
    std::vector<Subject> found;
    const char* only = std::getenv("R1_BACKEND");  // a porter's, or the one to be debugged
    std::string why_not;
    for (const std::string& name : only ? std::vector<std::string>{only} : backend_names())
        for (bool bf16 : {false, true}) {
            const auto probe = open_backend(name, bf16, why_not);
            if (!probe || (exact && !probe->make_exact())) continue;
            const auto make = [=] {
                std::string ignored;
                auto backend = open_backend(name, bf16, ignored);
                if (exact) backend->make_exact();
                return backend;
            };
            if (!bf16) found.push_back({name + " float32", make, false});
            found.push_back(
                {name + (bf16 ? " bfloat16" : " float32, matrices bfloat16"), make, true});
            if (bf16 && probe->activation() != DType::BF16) found.pop_back();
        }
    if (found.empty() && !exact)
        FAIL("the backend that R1_BACKEND names cannot be used here: ", why_not);
    return found;
}
const std::vector<Subject>& subjects() {
    static const std::vector<Subject> all = find_subjects(false);
    return all;
}
/// Those that have it, with exact arithmetic.
const std::vector<Subject>& exact_subjects() {
    static const std::vector<Subject> all = find_subjects(true);
    return all;
}

/// A matrix of weights.
Tensor weights(Bench& b, std::int64_t rows, std::int64_t cols, double scale = 1) {
    return b.parameter(rows, cols, scale, b.bf16_matrices ? DType::BF16 : b.backend->real());
}

/// Rotary frequencies that float32 holds exactly: at position 100000 an angle shows every bit of
/// them.
Tensor frequencies(Bench& b, AttentionShape shape) {
    std::vector<double> f(shape.head_dim / 2);
    for (double& x : f) x = b.between(0, 1 << 20) * 0x1p-20;
    return b.from(f, shape.head_dim / 2);
}

/// Both halves of a seed count.
constexpr std::uint64_t kSeed = 0x123456789abcdef0;

/// Memory that nobody has written: NaN.
Tensor nothing(Bench& b, std::int64_t rows, std::int64_t cols) {
    return b.from(std::vector<double>(rows * cols, std::numeric_limits<double>::quiet_NaN()), rows,
                  cols, b.backend->activation());
}

// AddressSanitizer looks at what is touched, not at what comes out, and takes three times as long:
// fewer seeds.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

void check_conformance(const std::function<Outputs(Bench&)>& body, int seeds = 6,
                       const std::vector<Subject>& subjects = ::subjects()) {
    if (kSanitized) seeds = std::min(seeds, 2);
    if (const char* limit = std::getenv("R1_SEEDS")) seeds = std::min(seeds, std::atoi(limit));
    for (const Subject& subject : subjects)
        for (int seed = 0; seed < seeds; ++seed) {
            INFO(subject.name, ", seed ", seed);
            const bool bf16 = subject.bf16_matrices;
            Bench actual_bench(subject.make(), seed, bf16), again_bench(subject.make(), seed, bf16),
                oracle_bench(make_reference_backend(DType::F64), seed, bf16);
            actual_bench.bf16_matrices = again_bench.bf16_matrices = bf16;
            const Outputs expected = body(oracle_bench), actual = body(actual_bench),
                          again = body(again_bench);
            REQUIRE(expected.size() == actual.size());
            for (std::size_t o = 0; o < expected.size(); ++o) {
                const auto &e = expected[o].values, &a = actual[o].values;
                REQUIRE(e.size() == a.size());
                // Bitwise the same, twice.
                CHECK(std::memcmp(a.data(), again[o].values.data(), a.size() * sizeof(double)) ==
                      0);
                double largest = 1e-3;
                for (double x : e) largest = std::max(largest, std::abs(x));
                const double tolerance =
                    (2 * actual[o].length * 0x1p-24 + (bf16 ? actual[o].roundings * 0x1p-8 : 0)) *
                    largest;
                for (std::size_t i = 0; i < e.size(); ++i)
                    if (!(std::abs(e[i] - a[i]) <= tolerance)) {
                        FAIL_CHECK(expected[o].name, "[", i, "] of ", e.size(), ": ", a[i],
                                   ", expected ", e[i], " within ", tolerance);
                        break;
                    }
            }
        }
}

Outputs attention(Bench& b, AttentionShape shape, const std::vector<RowRange>& packing) {
    const int N = static_cast<int>(packing.size());
    // Scores of 8^2 in their standard deviation: exp() of the largest is no float. A score s is
    // rounded to s 2^-24, which exp() turns into a relative error, as a sum of that length would.
    const double scale = b.between(0, 1) ? 1 : 8;
    const int score = static_cast<int>(5 * scale * scale);
    const Tensor qkv = b.normal_activation(N, shape.qkv_cols(), scale),
                 out = b.activation(N, shape.q_cols()), lse = b.tensor(N, shape.heads),
                 ranges = b.ranges(packing), dout = b.normal_activation(N, shape.q_cols()),
                 dqkv = b.activation(N, shape.qkv_cols());
    b.backend->attention_forward(out, lse, qkv, ranges, shape);
    b.backend->attention_backward(dqkv, dout, out, lse, qkv, ranges, shape);
    // roundings: probabilities and output; backward also the output it is given, and dS
    return {
        {"out", b.values(out), N + shape.head_dim + score, 2},
        {"lse", b.values(lse), N + shape.head_dim + score, 0},
        {"dqkv", b.values(dqkv), (N + shape.head_dim + score) * shape.heads / shape.kv_heads, 4}};
}

}  // namespace

TEST_CASE("conformance: the suite also runs on a GPU") {
    std::string why_not;
    if (!open_backend("cuda", true, why_not)) skip(why_not);
}

TEST_CASE("conformance: rows of a table, and what is added to them") {
    check_conformance([](Bench& b) -> Outputs {
        const int N = b.between(1, 600),
                  C = b.between(0, 1) ? 8 * b.between(1, 9) : b.between(1, 70),
                  V = b.between(1, 40);
        std::vector<std::int32_t> id(N), order(N);
        for (int n = 0; n < N; ++n) id[n] = b.between(0, V - 1), order[n] = n;
        std::shuffle(order.begin(), order.end(), b.random);
        order.resize(b.between(1, N));
        const int M = static_cast<int>(order.size());
        const Tensor ids = b.ints(id), index = b.ints(order), table = weights(b, V, C),
                     out = b.tensor(N, C), dout = b.normal(N, C), dtable = b.parameter(V, C),
                     real = b.normal(N, C), real_rows = b.tensor(M, C),
                     act = b.normal_activation(N, C), act_rows = b.activation(M, C),
                     back = b.tensor(N, C);
        b.backend->gather_rows(out, table, ids);
        b.backend->add_rows(dtable, dout, ids);
        b.backend->gather_rows(real_rows, real, index);
        b.backend->gather_rows(act_rows, act, index);
        b.backend->zero(back);
        b.backend->add_rows(back, real_rows, index);
        return {{"out", b.values(out), 1, 0},
                {"dtable", b.values(dtable), N, 0},
                {"real rows", b.values(real_rows), 1, 0},
                {"rows", b.values(act_rows), 1, 0},
                {"scattered", b.values(back), 1, 0}};
    });
}

TEST_CASE("conformance: RMSNorm with the residual add") {
    check_conformance([](Bench& b) -> Outputs {
        const int N = b.between(1, 70),
                  C = b.between(0, 1) ? 8 * b.between(1, 100) : b.between(1, 300);
        const bool adds = b.between(0, 2) > 0;
        const Tensor x = b.normal(N, C), delta = adds ? b.normal_activation(N, C) : Tensor{},
                     w = b.parameter(C), sum = adds && b.between(0, 1) ? b.tensor(N, C) : x,
                     y = b.activation(N, C), rstd = b.tensor(N), dy = b.normal_activation(N, C),
                     dx = b.normal(N, C), dw = b.parameter(C);
        b.backend->rmsnorm_forward(y, rstd, sum, x, delta, w, 1e-6f);
        b.backend->rmsnorm_backward(dx, dw, dy, sum, rstd, w);
        return {{"sum", b.values(sum), 2, 0},
                {"y", b.values(y), C, 1},
                {"rstd", b.values(rstd), C, 0},
                {"dx", b.values(dx), C, 0},
                {"dweight", b.values(dw), N + C, 0}};
    });
}

TEST_CASE("conformance: RMSNorm of query and key heads") {
    check_conformance([](Bench& b) -> Outputs {
        const int K = b.between(1, 3), D = 2 * b.between(1, 70), N = b.between(1, 70);
        const AttentionShape shape{K * b.between(1, 4), K, D};
        const Tensor in = b.normal_activation(N, shape.qkv_cols()), qw = b.parameter(D),
                     kw = b.parameter(D), out = b.activation(N, shape.qkv_cols()),
                     rstd = b.tensor(N, shape.heads + K),
                     d = b.normal_activation(N, shape.qkv_cols()), dq = b.parameter(D),
                     dk = b.parameter(D);
        b.backend->head_norm_forward(out, rstd, in, qw, kw, shape, 1e-6f);
        b.backend->head_norm_backward(d, dq, dk, in, rstd, qw, kw, shape);
        return {{"out", b.values(out), D, 1},
                {"rstd", b.values(rstd), D, 0},
                {"d", b.values(d), D, 1},
                {"dq_weight", b.values(dq), D + N * shape.heads, 0},
                {"dk_weight", b.values(dk), D + N * K, 0}};
    });
}

TEST_CASE("conformance: RoPE and its inverse") {
    check_conformance([](Bench& b) -> Outputs {
        const AttentionShape shape{b.between(1, 5), 1, 2 * b.between(1, 64)};
        const int N = b.between(1, 80);
        std::vector<std::int32_t> position(N);
        for (auto& p : position) p = b.between(0, 100000);
        const Tensor qkv = b.normal_activation(N, shape.qkv_cols()), freq = frequencies(b, shape),
                     positions = b.ints(position);
        b.backend->rope(qkv, positions, freq, shape, false);
        const auto rotated = b.values(qkv);
        b.backend->rope(qkv, positions, freq, shape, true);
        return {{"rotated", rotated, 4, 1}, {"and back", b.values(qkv), 8, 2}};
    });
}

TEST_CASE("conformance: linear layers") {
    for (const auto* some : {&subjects(), &exact_subjects()})
        check_conformance(
            [](Bench& b) -> Outputs {
                const int N = std::vector{1, 3, 5, 63, 64, 129}[b.between(0, 5)],
                          I = b.between(1, 150), O = b.between(1, 300);
                const Tensor x = b.normal_activation(N, I), w = weights(b, O, I),
                             bias = b.parameter(O), y = b.activation(N, O), logits = b.tensor(N, O),
                             wide_dy = b.normal(N, O), dy = b.normal_activation(N, O),
                             dx = b.activation(N, I), wide_dx = b.activation(N, I),
                             dw = b.parameter(O, I), dbias = b.parameter(O),
                             wide_dw = b.parameter(O, I);
                b.backend->linear_forward(y, x, w, bias);
                b.backend->linear_forward(logits, x, w, {});
                b.backend->linear_backward(dx, dw, dbias, dy, x, w);
                // The gradient of the residual stream is float32.
                b.backend->linear_backward(wide_dx, wide_dw, {}, wide_dy, x, w);
                // Factors that are bfloat16 already are not rounded again.
                const int rounds = b.backend->activation() != DType::BF16;
                return {{"y", b.values(y), I, 2},
                        {"logits", b.values(logits), I, 1},
                        {"dx", b.values(dx), O, 2},
                        {"dx of float32", b.values(wide_dx), O, 2},
                        {"dweight", b.values(dw), N, 2 * rounds},
                        {"dbias", b.values(dbias), N, 0},
                        {"dweight of float32", b.values(wide_dw), N, 1 + rounds}};
            },
            8, *some);
}

TEST_CASE("conformance: linear layers round to bfloat16 where they may, and to the nearest") {
    for (const Subject& subject : subjects())
        for (int C : {40, 520})
            for (int N : {1, 5, 70}) {
                INFO(subject.name, ", ", N, " x ", C);
                Bench b(subject.make(), N);
                b.bf16_matrices = subject.bf16_matrices;
                std::vector<double> identity(C * C, 0.0);
                for (int c = 0; c < C; ++c) identity[c * C + c] = 1;
                const Tensor w = b.from(identity, C, C, b.bf16_matrices ? DType::BF16 : DType::F32),
                             x = b.normal(N, C), y = b.tensor(N, C), dx = b.tensor(N, C),
                             dw = b.zeros(C, C), ones = b.from(std::vector(N * C, 1.0), N, C);
                b.backend->linear_forward(y, x, w, {});
                b.backend->linear_backward(dx, dw, {}, x, ones, w);
                const auto given = b.values(x);
                for (const auto& result : {b.values(y), b.values(dx)}) {
                    int wrong = 0;
                    for (int i = 0; i < N * C; ++i) {
                        const double rounded =
                            from_bfloat16(to_bfloat16(static_cast<float>(given[i])));
                        wrong +=
                            result[i] != given[i] && !(b.bf16_matrices && result[i] == rounded);
                    }
                    CHECK(wrong == 0);
                }
            }
}

TEST_CASE("conformance: attention over packed sequences") {
    for (int D : {0, 64, 96, 128}) {  // 0: any
        INFO("head size: ", D ? std::to_string(D) : "any");
        for (const auto* some : {&subjects(), &exact_subjects()})
            check_conformance(
                [D](Bench& b) -> Outputs {
                    const int K = b.between(1, 2);
                    const AttentionShape shape{K * b.between(1, 4 - K), K,
                                               D ? D : 2 * b.between(1, 40)};
                    return attention(b, shape, b.packing(2, D ? 66 : 50));
                },
                D ? 2 : 4, *some);
    }
}

TEST_CASE("conformance: attention at the edges of tiles") {
    // Tiles of 64 keys that rows see whole, or but for one; the same for queries.
    std::vector<RowRange> edges(2, {0, 0, 0, 2});
    edges.insert(edges.end(), 189, {2, 2, 2, 191});
    edges.insert(edges.end(), 100, {191, 191, 191, 403});  // a shared prompt
    edges.insert(edges.end(), 92, {191, 291, 291, 383});
    edges.insert(edges.end(), 20, {191, 291, 383, 403});
    std::vector<Subject> tiled;
    for (const Subject& subject : subjects())  // tensor cores want activations in bfloat16
        if (!subject.name.ends_with("float32") && !subject.name.ends_with("matrices bfloat16"))
            tiled.push_back(subject);
    check_conformance([&](Bench& b) { return attention(b, {2, 1, 64}, edges); }, 1, tiled);
}

TEST_CASE("conformance: attention over a long sequence and a long shared prompt") {
    std::vector<Subject> fast;
    for (const Subject& subject : subjects())  // a fiber for every thread would take minutes
        if (!subject.name.starts_with("cuda-on-cpu")) fast.push_back(subject);
    check_conformance(
        [](Bench& b) -> Outputs {
            const int prompt = b.between(1020, 1030), end = prompt + b.between(1, 30),
                      last = end + b.between(1, 30), all = last + 1050;
            std::vector<RowRange> rows(prompt, {0, 0, 0, last});
            rows.insert(rows.end(), end - prompt, {0, prompt, prompt, end});
            rows.insert(rows.end(), last - end, {0, prompt, end, last});
            rows.insert(rows.end(), all - last, {last, last, last, all});
            return attention(b, {2, 1, 16}, rows);
        },
        1, fast);
}

TEST_CASE("conformance: decoding over a shared prompt and own rows") {
    for (int D : {0, 64, 96, 128}) {  // 0: any
        INFO("head size: ", D ? std::to_string(D) : "any");
        for (const auto* some : {&subjects(), &exact_subjects()})
            check_conformance(
                [D](Bench& b) -> Outputs {
                    const int K = b.between(1, 2);
                    const AttentionShape shape{K * b.between(1, 7), K,
                                               D ? D : 2 * b.between(1, 40)};
                    const int B = b.between(1, 5), prefix = b.between(0, 1) ? b.between(0, 200) : 0;
                    const int own_blocks = 3, rows = (7 + B * own_blocks) * kKvBlock;
                    std::vector<std::int32_t> append, position, spans, ends;
                    // Large scores, as above, at position 0: there rotated keys are not rounded to
                    // bfloat16 once more.
                    const bool large = b.between(0, 1);
                    const int score = large ? 320 : 5;
                    auto place = [&](int t) { return large ? 0 : t; };
                    for (int t = 0; t < prefix; ++t)
                        append.push_back(t), position.push_back(place(t));
                    for (int s = 0; s < B; ++s) {
                        const int own = b.between(1, own_blocks * kKvBlock),
                                  base = (7 + s * own_blocks) * kKvBlock;
                        for (int t = 0; t < own; ++t)
                            append.push_back(base + t), position.push_back(place(prefix + t));
                        ends.push_back(static_cast<int>(append.size()) - 1);
                        spans.insert(spans.end(), {0, prefix, base, own});
                    }
                    append.push_back(-1),
                        position.push_back(place(3));  // a free slot: rotated, not stored
                    const int N = static_cast<int>(append.size());
                    const Tensor packed = b.normal_activation(N, shape.qkv_cols(), large ? 8 : 1),
                                 keys = nothing(b, rows, shape.kv_cols()),
                                 values = nothing(b, rows, shape.kv_cols()),
                                 query = b.activation(B, shape.qkv_cols()),
                                 out = b.activation(B, shape.q_cols());
                    b.backend->rope_append(keys, values, packed, b.ints(append), b.ints(position),
                                           frequencies(b, shape), shape);
                    b.backend->gather_rows(query, packed, b.ints(ends));
                    b.backend->decode_attention(out, query, keys, values, b.ints(spans, 4), shape);
                    // Nothing that the first call leaves behind may reach the second.
                    const Tensor second = nothing(b, B, shape.q_cols());
                    b.backend->decode_attention(second, query, keys, values, b.ints(spans, 4),
                                                shape);
                    CHECK(b.values(second) == b.values(out));
                    return {{"rotated", b.values(packed), 4, 1},
                            {"out", b.values(out), 300 + shape.head_dim + score, 4}};
                },
                D ? 3 : 5, *some);
    }
}

TEST_CASE("conformance: exact arithmetic gives a row the same bits alone and among others") {
    for (const Subject& subject : exact_subjects())
        for (int D : {64, 22}) {
            INFO(subject.name, ", heads of ", D);
            Bench b(subject.make(), D, true);
            b.bf16_matrices = subject.bf16_matrices;
            Backend& backend = *b.backend;
            const int K = 2, O = 211;
            const AttentionShape shape{6, K, D};
            const auto packing = b.packing(3, 66);
            const int N = static_cast<int>(packing.size());

            const Tensor packed = b.normal_activation(N, shape.qkv_cols()), bias = b.parameter(O),
                         w = weights(b, O, shape.qkv_cols()), y = b.activation(N, O);
            backend.linear_forward(y, packed, w, bias);
            const auto together = b.values(y);
            for (int n = 0; n < N; n += 7) {
                const int rows = std::min(N - n, b.between(1, 5));
                const Tensor few = b.activation(rows, O);
                backend.linear_forward(few, packed.slice(n, rows), w, bias);
                CHECK(b.values(few) == b.values(y.slice(n, rows)));
            }

            // Every row once more as a query over the cache, where a sequence begins a block.
            std::vector<std::int32_t> rows, positions, spans, all;
            for (int n = 0, at = 0; n < N; ++n, ++at) {
                const auto [prompt_begin, prompt_end, begin, end] = packing[n];
                if (begin == n) at = (at + kKvBlock - 1) / kKvBlock * kKvBlock;
                all.push_back(n), rows.push_back(at);
                positions.push_back(prompt_end - prompt_begin + n - begin);
                spans.insert(spans.end(), {prompt_end > prompt_begin ? rows[prompt_begin] : 0,
                                           prompt_end - prompt_begin, rows[begin], n + 1 - begin});
            }
            const std::int64_t pool = (rows.back() / kKvBlock + 1) * kKvBlock;
            const Tensor keys = nothing(b, pool, shape.kv_cols()),
                         values = nothing(b, pool, shape.kv_cols()),
                         out = b.activation(N, shape.q_cols()), lse = b.tensor(N, shape.heads),
                         one = b.activation(N, shape.q_cols());
            backend.rope_append(keys, values, packed, b.ints(rows), b.ints(positions),
                                frequencies(b, shape), shape);
            backend.attention_forward(out, lse, packed, b.ranges(packing), shape);
            backend.decode_attention(one, packed, keys, values, b.ints(spans, 4), shape);
            CHECK(b.values(one) == b.values(out));

            for (int V : {720, 701}) {
                const Tensor logits = b.normal(N, V, 3), tokens = b.ints(all),
                             sampled = b.tensor(N), scored = b.tensor(N), entropy = b.tensor(N);
                std::vector<std::int32_t> counters(4 * N);
                std::iota(counters.begin(), counters.end(), 0);
                backend.sample(tokens, sampled, logits, b.ints(counters, 4), {.temperature = 0.7f});
                backend.softmax_forward(scored, entropy, logits, tokens, 0.7f);
                CHECK(b.values(sampled) == b.values(scored));
            }
        }
}

TEST_CASE("conformance: SwiGLU") {
    check_conformance([](Bench& b) -> Outputs {
        const int N = b.between(1, 40),
                  F = b.between(0, 1) ? 8 * b.between(1, 20) : b.between(1, 90);
        const Tensor in = b.normal_activation(N, 2 * F, 3), out = b.activation(N, F),
                     dout = b.normal_activation(N, F), din = b.activation(N, 2 * F);
        b.backend->swiglu_forward(out, in);
        b.backend->swiglu_backward(din, dout, in);
        return {{"out", b.values(out), 8, 1}, {"din", b.values(din), 8, 1}};
    });
}

TEST_CASE("conformance: the head") {
    check_conformance([](Bench& b) -> Outputs {
        const int M = b.between(1, 90), C = b.between(1, 60), V = b.between(2, 1500);
        const float temperature = b.between(0, 1) ? 1.0f : 0.7f;
        const bool large = b.between(0, 1);  // logits of up to some hundreds, as above
        const int score = large ? 500 : 0;
        std::vector<std::int32_t> target(M);
        for (auto& t : target) t = b.between(0, V - 1);
        const Tensor hidden = b.normal_activation(M, C, large ? 20 : 0.5),
                     w = weights(b, V, C, 0.5), targets = b.ints(target), logp = b.tensor(M),
                     entropy = b.tensor(M), chunk = b.tensor(32, V), dlogp = b.normal(M),
                     dentropy = b.between(0, 1) ? b.normal(M) : Tensor{},
                     dhidden = b.activation(M, C), dw = b.parameter(V, C);
        b.backend->head_forward(logp, entropy, hidden, w, targets, temperature, chunk);
        b.backend->head_backward(dhidden, dw, dlogp, dentropy, logp, entropy, hidden, w, targets,
                                 temperature, chunk);
        return {{"logp", b.values(logp), C + 64 + score, 1},
                {"entropy", b.values(entropy), C + 64 + score, 1},
                {"dhidden", b.values(dhidden), C + V + score, 2},
                {"dweight", b.values(dw), C + M + score, 1}};
    });
}

TEST_CASE("conformance: the head's softmax, at low temperatures and of large logits") {
    check_conformance(
        [](Bench& b) -> Outputs {
            const int M = b.between(1, 9),
                      V = b.between(0, 1) ? 8 * b.between(1, 1300) : b.between(1, 999);
            const float temperature = std::array{1.0f, 0.6f, 1e-3f, 1e-8f}[b.between(0, 3)];
            // At a low one the quotients are too large to hold the differences.
            const double scale = temperature < 0.01f && b.between(0, 1) ? 2500 : 2;
            std::vector<double> z(static_cast<std::size_t>(M) * V);
            std::normal_distribution<double> normal(0, scale);
            for (double& x : z) x = static_cast<float>(normal(b.random));
            std::vector<std::int32_t> target(M);  // the likeliest, as if it had been drawn
            for (int m = 0; m < M; ++m)
                target[m] =
                    static_cast<int>(std::max_element(&z[m * V], &z[m * V] + V) - &z[m * V]);
            const Tensor logits = b.from(z, M, V), logp = b.tensor(M), entropy = b.tensor(M),
                         dlogp = b.normal(M), dentropy = b.between(0, 1) ? b.normal(M) : Tensor{},
                         targets = b.ints(target);
            b.backend->softmax_forward(logp, entropy, logits, targets, temperature);
            b.backend->softmax_backward(logits, dlogp, dentropy, logp, entropy, targets,
                                        temperature);
            return {{"logp", b.values(logp), V + 64, 0},
                    {"entropy", b.values(entropy), V + 64, 0},
                    {"dlogits", b.values(logits), V + 64, 0}};
        },
        12);
}

TEST_CASE("conformance: the gradient's norm and AdamW") {
    check_conformance([](Bench& b) -> Outputs {
        const int n = b.between(1, 30000);
        const Tensor p = b.normal(n), m = b.zeros(n), v = b.zeros(n);
        const Buffer memory(*b.backend, n * 2);
        const Tensor copy{memory.data(), DType::BF16, n, 1};
        const bool copies = b.between(0, 1);
        std::vector<double> squares, gradients, off_nearest;
        for (int step = 1; step <= 3; ++step) {
            const Tensor g = b.normal(n);
            squares.push_back(b.backend->sum_of_squares(g));
            b.backend->adamw(p, copies ? copy : Tensor{}, g, m, v,
                             {.lr = 0.01f, .weight_decay = 0.1f, .step = step, .grad_scale = 0.5f});
            gradients = b.values(g);
        }
        const auto weights = b.values(p), copied = b.values(copy);
        for (int i = 0; i < n; ++i)
            off_nearest.push_back(
                copies ? copied[i] - from_bfloat16(to_bfloat16(static_cast<float>(weights[i])))
                       : 0);
        return {{"squares", squares, 1, 0}, {"gradients", gradients, 0, 0},
                {"param", weights, 8, 0},   {"copy", off_nearest, 0, 0},
                {"m", b.values(m), 8, 0},   {"v", b.values(v), 8, 0}};
    });
}

TEST_CASE("conformance: AdamW with states in bfloat16, rounded as by the reference") {
    for (const Subject& subject : subjects()) {
        INFO(subject.name);
        const int n = 5000;
        auto run = [&](Bench& b, bool bf16_parameters) {
            const DType type = bf16_parameters ? DType::BF16 : DType::F32;
            std::vector<double> ones(n, 1.0), zeros(n, 0.0);
            const Tensor p = b.from(ones, n, 1, type), m = b.from(zeros, n, 1, DType::BF16),
                         v = b.from(zeros, n, 1, DType::BF16);
            for (int step = 1; step <= 20; ++step)
                b.backend->adamw(p, {}, b.normal(n), m, v,
                                 {.lr = 1e-4f, .step = step, .seed = kSeed});
            return std::array{b.values(p), b.values(m), b.values(v)};
        };
        for (bool bf16_parameters : {false, true}) {
            Bench actual(subject.make(), 4), expected(make_reference_backend(), 4);
            const auto [p, m, v] = run(actual, bf16_parameters);
            const auto [p_expected, m_expected, v_expected] = run(expected, bf16_parameters);
            // An error in the last bit of float32 may decide which way to round.
            const auto different = [&](const auto& x, const auto& y) {
                int count = 0;
                for (int i = 0; i < n; ++i) count += x[i] != y[i];
                return count;
            };
            CHECK(different(m, m_expected) < n / 100);
            CHECK(different(v, v_expected) < n / 100);
            if (bf16_parameters) CHECK(different(p, p_expected) < n / 100);
            // Steps of about 1e-4 are far below bfloat16's resolution at 1, and yet the mean keeps
            // them: 20 random walks of rounding, each step by at most 2^-8, leave 2^-8 sqrt(20) /
            // sqrt(n) of noise on it.
            double mean = 0, mean_expected = 0;
            for (int i = 0; i < n; ++i) mean += p[i] / n, mean_expected += p_expected[i] / n;
            CHECK(std::abs(mean - mean_expected) < 4 * 0x1p-8 * std::sqrt(20.0 / n));
        }
    }
}

TEST_CASE("conformance: sampling draws the reference's tokens") {
    for (const Subject& subject : subjects()) {
        INFO(subject.name);
        for (int V : {1, 7, 1501, 5003}) {
            CAPTURE(V);
            Bench bench(subject.make(), 3), reference(make_reference_backend(), 3);
            const int B = V < 100 ? 16 : V < 5000 ? 12 : 1;
            std::vector<std::int32_t> counters;
            for (int i = 0; i < B; ++i) counters.insert(counters.end(), {1, 2, 3, i});
            std::vector<double> row(static_cast<std::size_t>(B) * V);
            std::normal_distribution<double> normal(0, 2);
            // Half of the rows on a coarse grid: many equal logits. In a quarter all are equal but
            // the last, which is likelier: which of the others are kept decides whether it is
            // drawn.
            for (std::size_t i = 0; i < row.size(); ++i) {
                row[i] = normal(bench.random);
                if (i / V % 2 == 0) row[i] = std::round(row[i]);
                if (i / V % 4 == 2) row[i] = (i + 1) % V == 0;
            }
            for (SampleOptions o :
                 {SampleOptions{}, SampleOptions{.temperature = 0.5f}, SampleOptions{.top_k = 4},
                  SampleOptions{.top_p = 0.6f},
                  SampleOptions{.temperature = 2, .top_k = 7, .top_p = 0.7f},
                  SampleOptions{.temperature = 0}, SampleOptions{.top_k = 1},
                  SampleOptions{.top_p = 1e-6f}, SampleOptions{.top_p = 0.999f},
                  SampleOptions{.temperature = 0.6f, .top_p = 0.95f},
                  // (z - largest) / temperature, or nothing is left of it
                  SampleOptions{.temperature = 1e-8f}, SampleOptions{.temperature = 1e-40f}}) {
                // A large vocabulary is there for what top_p looks at.
                if (V > 5000 && (o.top_p == 1 || o.top_k > 0)) continue;
                o.seed = kSeed;
                CAPTURE(o.temperature);
                CAPTURE(o.top_k);
                CAPTURE(o.top_p);
                auto draw = [&](Bench& b) {
                    const Tensor logits = b.from(row, B, V),
                                 tokens = b.ints(std::vector<std::int32_t>(B)), logp = b.tensor(B);
                    b.backend->sample(tokens, logp, logits, b.ints(counters, 4), o);
                    return std::pair(b.values(tokens), b.values(logp));
                };
                const auto [tokens, logp] = draw(bench);
                const auto [expected_tokens, expected_logp] = draw(reference);
                CHECK(tokens == expected_tokens);
                for (int i = 0; i < B; ++i)
                    CHECK(std::abs(logp[i] - expected_logp[i]) <
                          2 * (V + 64) * 0x1p-24);  // a sum of V
            }
        }
    }
}

TEST_CASE("conformance: rounding to bfloat16, to the nearest, of two the even one") {
    for (const Subject& subject : subjects()) {
        INFO(subject.name);
        for (int n : {1, 7, 4096, 4099}) {
            Bench b(subject.make(), n);
            std::vector<double> x(n);
            for (int i = 0; i < n; ++i) {
                auto bits = static_cast<std::uint32_t>(b.random());
                if (i % 4 == 0) bits = (bits & 0xffff0000u) | 0x8000u;  // halfway
                if ((bits & 0x7f800000u) == 0x7f800000u)
                    bits = i % 8 ? 0x7f7fffffu : 0xff800000u;  // overflow, -inf
                x[i] = std::bit_cast<float>(bits);
            }
            x[n / 2] = std::numeric_limits<double>::quiet_NaN();
            const Tensor to = b.from(std::vector<double>(n, 1), n, 1, DType::BF16),
                         from = b.from(x, n);
            b.backend->to_bfloat16(to, from);
            const auto rounded = b.values(to);
            for (int i = 0; i < n; ++i) {
                const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(x[i]));
                const std::uint32_t low = bits & 0xffff0000u, high = low + 0x10000u;
                const double below = std::bit_cast<float>(low);
                double above = std::bit_cast<float>(high);
                if (std::isinf(above))
                    above = std::copysign(0x1p128, x[i]);  // IEEE 754, section 4.3.1
                double expected = std::abs(x[i] - below) < std::abs(x[i] - above)   ? below
                                  : std::abs(x[i] - below) > std::abs(x[i] - above) ? above
                                  : (low >> 16) % 2                                 ? above
                                                                                    : below;
                if (std::abs(expected) == 0x1p128) expected = std::copysign(INFINITY, expected);
                if (std::isinf(x[i])) expected = x[i];
                INFO(x[i], " became ", rounded[i]);
                CHECK((std::isnan(x[i]) ? std::isnan(rounded[i]) : rounded[i] == expected));
            }
        }
    }
}

TEST_CASE("conformance: rows are added in order, to the last bit") {
    for (const Subject& subject : subjects()) {
        INFO(subject.name);
        Bench b(subject.make(), 2);
        const int M = 700, C = 70, N = 3;
        std::vector<std::int32_t> index(M);
        for (auto& i : index) i = b.between(0, N - 1);
        const Tensor out = b.parameter(N, C), in = b.normal(M, C);
        const auto before = b.values(out), rows = b.values(in);
        std::vector<float> expected(before.begin(), before.end());
        for (int m = 0; m < M; ++m)
            for (int c = 0; c < C; ++c)
                expected[index[m] * C + c] += static_cast<float>(rows[m * C + c]);
        b.backend->add_rows(out, in, b.ints(index));
        const auto added = b.values(out);
        const auto differs = std::mismatch(added.begin(), added.end(), expected.begin()).first;
        if (differs != added.end()) {
            const auto at = differs - added.begin();
            FAIL("out[", at / C, ", ", at % C, "] is ", *differs, ", not ", expected[at],
                 ": rows must be added one after the other, in order of m");
        }
    }
}

TEST_CASE("conformance: advance() over several tokens") {
    for (const Subject& subject : subjects()) {
        INFO(subject.name);
        for (int B : {1, 5, 200}) {
            Bench b(subject.make(), B);
            std::vector<std::int32_t> position(B), row(B), span(4 * B), counter(4 * B);
            for (auto* all : {&position, &span, &counter})
                for (auto& x : *all) x = b.between(0, 1000);
            for (auto& x : row) x = b.between(-1, 2);
            const Tensor positions = b.ints(position), rows = b.ints(row), spans = b.ints(span, 4),
                         counters = b.ints(counter, 4);
            for (int step = 0; step < 3; ++step)
                b.backend->advance(positions, rows, spans, counters);
            for (int i = 0; i < B; ++i) {
                if (row[i] < 0) continue;
                row[i] += 3, position[i] += 3, span[4 * i + 3] += 3, counter[4 * i + 3] += 3;
            }
            auto same = [&](Tensor t, const std::vector<std::int32_t>& expected) {
                CHECK(b.values(t) == std::vector<double>(expected.begin(), expected.end()));
            };
            same(positions, position), same(rows, row), same(spans, span), same(counters, counter);
        }
    }
}

TEST_CASE("conformance: memory is aligned, may be empty, and keeps what is put into it") {
    for (const Subject& subject : subjects()) {
        INFO(subject.name);
        const auto backend = subject.make();
        const std::size_t before = backend->available_memory();
        CHECK(before > 0);
        for (std::size_t bytes : {0, 1, 63, 65, 4096, 100001}) {
            void* data = backend->allocate(bytes);
            CHECK(reinterpret_cast<std::uintptr_t>(data) % 64 == 0);
            backend->release(data);
        }
        Bench b(subject.make(), 1);
        std::vector<std::int32_t> values(400009);
        for (auto& v : values) v = b.between(-1000, 1000);
        const Tensor whole = b.ints(values), part = whole.slice(1, 7);
        b.backend->zero(part);
        std::fill(values.begin() + 1, values.begin() + 8, 0);
        CHECK(b.values(whole) == std::vector<double>(values.begin(), values.end()));
        const std::size_t held = b.backend->used_memory();
        CHECK(b.backend->peak_memory() >= held);
        CHECK_ERROR(Buffer(*b.backend, std::size_t{1} << 50), std::to_string(std::size_t{1} << 50));
        const Tensor none{nullptr, b.backend->real(), 0, 4};
        b.backend->zero(none);
        b.backend->add_rows(whole, none, {nullptr, DType::I32, 0, 1});
        b.backend->gather_rows(none, none, {nullptr, DType::I32, 0, 1});
    }
}

TEST_CASE("conformance: a recording is replayed with new inputs") {
    for (const Subject& subject : subjects()) {
        INFO(subject.name);
        Bench b(subject.make(), 1);
        const Tensor in = b.normal_activation(5, 16), out = b.activation(5, 8);
        std::shared_ptr<void> recording;
        for (int repeat = 0; repeat < 5; ++repeat) {
            const Tensor fresh = b.normal_activation(5, 16), expected = b.activation(5, 8);
            const auto rows = b.ints({0, 1, 2, 3, 4});
            b.backend->gather_rows(in, fresh, rows);
            b.backend->replay(recording, [&] { b.backend->swiglu_forward(out, in); });
            b.backend->swiglu_forward(expected, fresh);
            CHECK(b.values(out) == b.values(expected));
        }
    }
}

namespace {

struct Trained {
    std::vector<double> logp, entropy, gradients;
    std::vector<Response> responses;
    std::vector<double> recomputed;  ///< log-probabilities of the responses by the training pass
};

/// Everything that a training step asks of a model: a forward and a backward pass, and a rollout.
Trained run_model(std::unique_ptr<Backend> backend, const std::string& family, bool bf16_matrices,
                  bool recompute, int seed) {
    Bench b(std::move(backend), seed, true);
    Config config = small_config(b, seed % 2, family);
    if (seed % 3 == 0) config.head_dim = 64;
    Transformer model(*b.backend, config,
                      {.bf16_matrices = bf16_matrices,
                       .recompute = recompute,
                       .max_tokens = 256,
                       .max_decode_rows = 5});
    std::vector<float> parameters;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 0.2f);
    for (std::int64_t i = 0; i < model.parameters().layout().total; ++i) {
        const float v = normal(random) + (i >= model.parameters().layout().matrices ? 0.5f : 0);
        parameters.push_back(std::bit_cast<float>(std::bit_cast<std::uint32_t>(v) & 0xffff0000u));
    }
    model.parameters().upload(parameters);
    const PackedBatch batch = random_batch(b, config, 3, 30);
    std::vector<float> dlogp(batch.scored()), dentropy(batch.scored());
    for (float& d : dlogp) d = normal(b.random);
    for (float& d : dentropy) d = normal(b.random);
    Trained t;
    const auto scores = model.forward(batch, 0.8f);
    t.logp.assign(scores.logp.begin(), scores.logp.end());
    t.entropy.assign(scores.entropy.begin(), scores.entropy.end());
    model.backward(dlogp, dentropy);
    t.gradients = b.values(model.parameters().gradients());

    Generator generator(model, 5, 12, 20);  // fewer slots than responses
    std::vector<Prompt> prompts;
    for (std::uint32_t p = 0; p < 4; ++p) {
        prompts.push_back({p, {}});
        for (int i = b.between(1, 12); i > 0; --i)
            prompts.back().tokens.push_back(b.between(0, config.vocab_size - 1));
    }
    t.responses = generator.generate(
        prompts, {.samples_per_prompt = 3, .max_new_tokens = 20, .stop_tokens = {0}});
    PackedBatch sampled;
    for (std::size_t i = 0; i < t.responses.size(); ++i) {
        const auto& prompt = prompts[i / 3].tokens;
        auto tokens = prompt;
        tokens.insert(tokens.end(), t.responses[i].tokens.begin(), t.responses[i].tokens.end());
        sampled.clear();
        sampled.add(tokens, prompt.size());
        for (float logp : model.forward(sampled).logp) t.recomputed.push_back(logp);
    }
    return t;
}

}  // namespace

TEST_CASE("conformance: a whole model trains and samples as by the reference") {
    for (const Subject& subject : subjects()) {
        if (subject.name.starts_with("reference")) continue;
        const bool bf16 = subject.bf16_matrices;
        for (int seed = 0; seed < 6; seed += kSanitized ? 2 : 1) {  // each family once, at least
            const std::string family = kFamilies[seed % 3];
            INFO(subject.name, ", ", family, ", seed ", seed);
            const Trained expected =
                              run_model(make_reference_backend(), family, false, false, seed),
                          actual = run_model(subject.make(), family, bf16, seed >= 3, seed);
            // Errors of rounding to bfloat16 (2^-9 at most, each) pass through up to three layers
            // of seven steps.
            const double tolerance = bf16 ? 3 * 7 * 0x1p-9 : 1e-5;
            CHECK(relative_distance(actual.logp, expected.logp) < tolerance);
            CHECK(relative_distance(actual.entropy, expected.entropy) < tolerance);
            CHECK(relative_distance(actual.gradients, expected.gradients) < tolerance);
            std::size_t at = 0;
            for (std::size_t c = 0; c < actual.responses.size(); ++c) {
                if (!bf16) CHECK(actual.responses[c].tokens == expected.responses[c].tokens);
                for (float logp : actual.responses[c].sampled_logp)
                    CHECK(std::abs(logp - actual.recomputed[at++]) < (bf16 ? 0.1 : 1e-5));
            }
        }
    }
}
