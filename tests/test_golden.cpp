// The transformer against Hugging Face transformers (tests/golden/make_transformers.py).
#include <filesystem>

#include "src/safetensors.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;

TEST_CASE("log-probabilities and every gradient equal those of Hugging Face transformers in float32") {
    const auto root = std::filesystem::path(__FILE__).parent_path() / "golden";
    for (const char* name : {"qwen2", "llama"}) {
        CAPTURE(name);
        const Config config = Config::load(root / name);
        Bench bench(DType::F32, 0);
        Transformer model(*bench.backend, config, {.max_tokens = 64});
        model.load_weights(root / name);
        PackedBatch batch;
        std::vector<float> dlogp;
        const std::vector<std::vector<std::int32_t>> sequences = {
            {1, 5, 9, 30, 2, 2, 17, 44}, {7, 3}, {20, 21, 22, 40, 41, 8, 0, 50, 50, 11, 12, 13}};
        for (std::size_t i = 0; i < sequences.size(); ++i) {
            batch.add(sequences[i], 1);
            for (std::size_t t = 1; t < sequences[i].size(); ++t)
                dlogp.push_back(0.25f * static_cast<float>(t) - static_cast<float>(i));
        }
        const auto logp = model.forward(batch).logp;
        model.backward(dlogp);
        const SafeTensors golden(root / name / "golden.safetensors");
        std::vector<float> expected(logp.size());
        golden.read_f32("logp", {static_cast<std::int64_t>(logp.size())}, expected);
        for (std::size_t i = 0; i < logp.size(); ++i)
            CHECK(std::abs(logp[i] - expected[i]) < 1e-5 * (1 + std::abs(expected[i])));
        const auto gradients = bench.values(model.gradients());
        for (const auto& e : model.layout().entries) {
            CAPTURE(e.name);
            std::vector<float> g(e.rows * e.cols);
            golden.read_f32(
                "grad." + e.name,
                e.is_matrix ? std::vector<std::int64_t>{e.rows, e.cols} : std::vector<std::int64_t>{e.rows},
                g);
            double difference = 0, norm = 0, other = 0, dot = 0;
            for (std::size_t i = 0; i < g.size(); ++i) {
                const double a = gradients[e.offset + static_cast<std::int64_t>(i)], b = g[i];
                difference += (a - b) * (a - b), norm += b * b, other += a * a, dot += a * b;
            }
            if (norm < 1e-10) {  // a key bias has no influence on the softmax: its gradient is rounding noise
                CHECK(other < 1e-8);
                continue;
            }
            CHECK(std::sqrt(difference / norm) < 1e-5);
            CHECK(dot / std::sqrt(norm * other) > 0.99999);
        }
    }
}
