// What the tests share: a backend with tensors that clean up after themselves, random numbers,
// finite differences.
#pragma once
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "src/device/backend.h"
#include "src/model/transformer.h"
#include "src/run/error.h"
#include "src/run/files.h"

namespace r1::test {

/// A folder of its own for each test case, gone with it.
struct TemporaryFolder {
    std::filesystem::path path;
    TemporaryFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "r1_XXXXXX").string();
        path = mkdtemp(name.data());
    }
    ~TemporaryFolder() { std::filesystem::remove_all(path); }
    TemporaryFolder(const TemporaryFolder&) = delete;
    std::string operator/(const std::string& name) const { return (path / name).string(); }
};

inline std::string read_file(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

/// Says that the running test case cannot run here, and why; the case returns after it. For doctest
/// such a case has passed, so tests/run_tests.sh reads these lines and counts it as skipped.
inline void skip(const std::string& why) {
    std::cout << "[skipped] " << doctest::getContextOptions()->currentTest->m_name << ": " << why
              << std::endl;
}

/// Checks that the expression throws an Error whose sentence contains `part`. doctest has its own
/// word for that only since 2.4.9, and Ubuntu 22.04 has 2.4.8.
#define CHECK_ERROR(expression, part)                    \
    do {                                                 \
        std::string sentence = "(no error)";             \
        try {                                            \
            static_cast<void>(expression);               \
        } catch (const r1::Error& error) {               \
            sentence = error.what();                     \
        }                                                \
        INFO("expected ", part, " in: ", sentence);      \
        CHECK(sentence.find(part) != std::string::npos); \
    } while (false)

/// $R1_FIXTURES: tokenizers, configurations and data sets of public projects, which are not in this
/// repository. A test case without them is skipped.
inline std::optional<std::filesystem::path> fixtures() {
    const char* folder = std::getenv("R1_FIXTURES");
    if (folder && *folder) return folder;
    skip("R1_FIXTURES is not set");
    return std::nullopt;
}

/// A backend and the memory of one test. In float64 the primitives are differentiable by finite
/// differences; in float32 they are what runs.
struct Bench {
    explicit Bench(DType real, unsigned seed)
        : Bench(real == DType::F64 ? make_reference_backend(real) : make_cpu_backend(), seed) {}
    /// round: random numbers are rounded to bfloat16, so that every type holds the same.
    Bench(std::unique_ptr<Backend> backend, unsigned seed, bool round = false)
        : backend(std::move(backend)), random(seed), round(round) {}

    Tensor tensor(std::int64_t rows, std::int64_t cols = 1) {
        return raw(backend->real(), rows, cols);
    }
    /// What passes between matrices.
    Tensor activation(std::int64_t rows, std::int64_t cols) {
        return raw(backend->activation(), rows, cols);
    }
    /// Normal random numbers.
    Tensor normal(std::int64_t rows, std::int64_t cols = 1, double scale = 1) {
        return from(normal_values(rows * cols, scale), rows, cols);
    }
    Tensor normal_activation(std::int64_t rows, std::int64_t cols, double scale = 1) {
        return from(normal_values(rows * cols, scale), rows, cols, backend->activation());
    }
    Tensor zeros(std::int64_t rows, std::int64_t cols = 1) {
        return from(std::vector<double>(rows * cols, 0.0), rows, cols);
    }
    Tensor from(const std::vector<double>& values, std::int64_t rows, std::int64_t cols = 1,
                std::optional<DType> dtype = std::nullopt) {
        Tensor t = raw(dtype.value_or(backend->real()), rows, cols);
        put(t, values);
        return t;
    }
    Tensor ints(const std::vector<std::int32_t>& values, std::int64_t cols = 1) {
        Tensor t = raw(DType::I32, static_cast<std::int64_t>(values.size()) / cols, cols);
        upload(t, values);
        return t;
    }
    /// As parameters lie: not where an allocation begins, but one element behind.
    Tensor parameter(std::int64_t rows, std::int64_t cols = 1, double scale = 1,
                     std::optional<DType> dtype = {}) {
        const auto values = normal_values(rows * cols, scale);
        const Tensor t = raw(dtype.value_or(backend->real()), rows * cols + 1, 1)
                             .slice(1, rows * cols)
                             .reshape(rows, cols);
        put(t, values);
        return t;
    }
    std::vector<double> values(Tensor t) {
        std::vector<double> wide(t.size());
        if (t.dtype == DType::F64) {
            backend->download(wide.data(), t);
        } else if (t.dtype == DType::F32) {
            std::vector<float> narrow(t.size());
            backend->download(narrow.data(), t);
            wide.assign(narrow.begin(), narrow.end());
        } else if (t.dtype == DType::I32) {
            std::vector<std::int32_t> narrow(t.size());
            backend->download(narrow.data(), t);
            wide.assign(narrow.begin(), narrow.end());
        } else {
            std::vector<std::uint16_t> narrow(t.size());
            backend->download(narrow.data(), t);
            for (std::size_t i = 0; i < wide.size(); ++i) wide[i] = from_bfloat16(narrow[i]);
        }
        return wide;
    }
    int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
    Tensor ranges(const std::vector<RowRange>& ranges) {
        std::vector<std::int32_t> flat;
        for (const RowRange& r : ranges)
            flat.insert(flat.end(), {r.prompt_begin, r.prompt_end, r.begin, r.end});
        return ints(flat, 4);
    }
    /// `count` sequences; behind each there may be others, which share a prompt with it: its first
    /// rows. The first has one row, the prompt of two others, of which the nearer is the longest:
    /// no tile of rows that begins there ends with the row that is read for longest.
    std::vector<RowRange> packing(int count, int longest) {
        std::vector<RowRange> rows;
        for (int s = 0; s < count; ++s) {
            const int begin = static_cast<int>(rows.size()), length = s ? between(1, longest) : 1;
            rows.insert(rows.end(), length, {begin, begin, begin, begin + length});
            const int prompt = between(1, length);
            const int others = s ? between(0, 2) : 2;
            for (int other = 0; other < others; ++other) {
                const int own = static_cast<int>(rows.size()),
                          end = own + (s || other ? between(1, longest) : longest);
                rows.insert(rows.end(), end - own, {begin, begin + prompt, own, end});
                for (int t = 0; t < prompt; ++t) rows[begin + t].end = end;
            }
        }
        return rows;
    }

    std::unique_ptr<Backend> backend;
    std::mt19937 random;
    bool bf16_matrices = false;

  private:
    void put(Tensor t, const std::vector<double>& values) {
        if (t.dtype == DType::F64) return upload(t, values);
        const std::vector<float> floats(values.begin(), values.end());
        if (t.dtype == DType::F32) return upload(t, floats);
        std::vector<std::uint16_t> narrow;
        for (float x : floats) narrow.push_back(to_bfloat16(x));
        upload(t, narrow);
    }
    /// The host's copy is scribbled over right after: upload() must have read it.
    template <class T>
    void upload(Tensor t, std::vector<T> host) {
        backend->upload(t, host.data());
        std::memset(host.data(), 0xa5, host.size() * sizeof(T));
    }
    std::vector<double> normal_values(std::int64_t count, double scale) {
        std::normal_distribution<double> d(0, scale);
        std::vector<double> values(static_cast<std::size_t>(count));
        for (double& v : values) {
            v = d(random);
            if (!round) continue;
            v = from_bfloat16(to_bfloat16(static_cast<float>(v)));
        }
        return values;
    }
    Tensor raw(DType dtype, std::int64_t rows, std::int64_t cols) {
        Tensor t{nullptr, dtype, rows, cols};
        memory.emplace_back(*backend, t.bytes());
        t.data = memory.back().data();
        backend->upload(
            t, std::vector<unsigned char>(t.bytes(), 0xff).data());  // NaN, until it is written
        return t;
    }
    bool round = false;
    std::deque<Buffer> memory;
};

/// sum_i weights[i] values[i]: turns any output into a scalar whose gradient is `weights`.
inline double weighted(const std::vector<double>& values, const std::vector<double>& weights) {
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
    return sum;
}

/// Compares `gradient` (of a float64 tensor) with central differences of `loss` at up to `samples`
/// of its elements. Central differences with h = 1e-5 have an error of about 1e-10 relative to the
/// loss' third derivative.
inline void check_gradient(Bench& bench, Tensor input, const std::vector<double>& gradient,
                           const std::function<double()>& loss, int samples = 40,
                           double tolerance = 1e-6) {
    auto* x = input.as<double>();
    double scale = 1e-3;  // a gradient of zeros is compared absolutely
    for (double g : gradient) scale = std::max(scale, std::abs(g));
    for (int s = 0; s < samples; ++s) {
        const std::int64_t i = samples >= input.size()
                                   ? s % input.size()
                                   : bench.between(0, static_cast<int>(input.size()) - 1);
        const double kept = x[i], h = 1e-5;
        x[i] = kept + h;
        const double up = loss();
        x[i] = kept - h;
        const double down = loss();
        x[i] = kept;
        const double numeric = (up - down) / (2 * h);
        INFO("element ", i, ": analytic ", gradient[i], ", numeric ", numeric);
        CHECK(std::abs(gradient[i] - numeric) < tolerance * scale);
    }
}

/// |a - b| / |b|, as vectors.
inline double relative_distance(const std::vector<double>& a, const std::vector<double>& b) {
    double difference = 0, norm = 1e-30;
    for (std::size_t i = 0; i < a.size(); ++i)
        difference += (a[i] - b[i]) * (a[i] - b[i]), norm += b[i] * b[i];
    return std::sqrt(difference / norm);
}

constexpr const char* kFamilies[] = {"qwen2", "qwen3", "llama"};

/// A small model with odd sizes.
inline Config small_config(Bench& bench, bool tied, const std::string& family) {
    Config c;
    c.model_type = family;
    c.num_key_value_heads = bench.between(1, 3);
    c.num_attention_heads = c.num_key_value_heads * bench.between(1, 3);
    c.head_dim = 2 * bench.between(1, 5);
    c.hidden_size = bench.between(5, 21);
    c.intermediate_size = bench.between(3, 30);
    c.num_hidden_layers = bench.between(1, 3);
    c.vocab_size = bench.between(11, 40);
    c.max_position_embeddings = 64;
    c.tie_word_embeddings = tied;
    c.attention_bias = family == "qwen2";
    if (family == "llama") c.rope_scaling = {8, 1, 4, 32};
    c.eos_token_ids = {0};
    return c;
}

/// Sequences of different lengths, the shortest possible among them, with random prompt lengths,
/// and three that share a prompt.
inline PackedBatch random_batch(Bench& bench, const Config& config, int count, int longest) {
    PackedBatch batch;
    const auto random_tokens = [&](std::size_t count) {
        std::vector<std::int32_t> tokens(count);
        for (auto& token : tokens) token = bench.between(0, config.vocab_size - 1);
        return tokens;
    };
    for (int b = 0; b < count; ++b) {
        const int length = b == 0 ? 2 : bench.between(2, longest);
        batch.add(random_tokens(length), static_cast<std::size_t>(bench.between(1, length - 1)));
    }
    const auto prompt = random_tokens(PackedBatch::kShortestShared);
    for (int b = 0; b < 3; ++b) {
        auto tokens = prompt;
        std::ranges::copy(random_tokens(bench.between(1, longest)), std::back_inserter(tokens));
        batch.add(tokens, prompt.size());
    }
    return batch;
}

/// Random weights large enough to make every part of the model matter.
inline void randomize(Bench& bench, Transformer& model, double scale = 0.3) {
    std::normal_distribution<double> d(0, scale);
    std::vector<float> values(model.parameters().layout().total);
    for (float& v : values) v = static_cast<float>(d(bench.random));
    for (std::int64_t i = model.parameters().layout().matrices;
         i < model.parameters().layout().total; ++i)
        values[i] += 0.5f;
    model.parameters().upload(values);
}

}  // namespace r1::test
