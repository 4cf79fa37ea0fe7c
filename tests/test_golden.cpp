// The architectures of real models against Hugging Face transformers (tests/golden/make_transformers.py): logits,
// gradients, greedy decoding and fine-tuning; and the forms that config.json comes in.
#include <nlohmann/json.hpp>
#include <numeric>

#include "src/rl/generate.h"
#include "src/model/optimizer.h"
#include "src/model/safetensors.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;
using nlohmann::json;

namespace {

const std::filesystem::path kGolden = std::filesystem::path(R1_SOURCE_DIR) / "tests/golden";
constexpr const char* kModels[] = {"qwen2", "qwen3", "llama", "llama3"};
const std::vector<std::vector<std::int32_t>> kSequences = {
    {1, 5, 9, 30, 2, 2, 17, 44}, {7, 3}, {20, 21, 22, 40, 41, 8, 0, 50, 50, 11, 12, 13}};

std::vector<double> golden(const std::string& model, const std::string& tensor) {
    const SafeTensors file(kGolden / model / "golden.safetensors");
    const auto& view = file.tensors().at(tensor);
    std::vector<float> values(view.bytes / sizeof(float));
    file.read_f32(tensor, view.shape, values);
    return {values.begin(), values.end()};
}

/// |a - b| / |b|, and the cosine of the angle between them.
std::pair<double, double> compare(const std::vector<double>& a, const std::vector<double>& b) {
    REQUIRE(a.size() == b.size());
    double difference = 0, aa = 0, bb = 0, ab = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        difference += (a[i] - b[i]) * (a[i] - b[i]), aa += a[i] * a[i], bb += b[i] * b[i], ab += a[i] * b[i];
    return {std::sqrt(difference / bb), ab / std::sqrt(aa * bb)};
}

struct Model {
    explicit Model(const std::string& name)
        : config(Config::load(kGolden / name)),
          transformer(*bench.backend, config, {.max_tokens = 128, .max_decode_rows = 2}) {
        transformer.parameters().load(kGolden / name);
        for (const auto& s : kSequences) batch.add(s, 1);
    }
    Bench bench{DType::F32, 0};
    Config config;
    Transformer transformer;
    PackedBatch batch;
};

}  // namespace

TEST_CASE("Hugging Face: logits of every token") {
    for (const char* name : kModels) {
        CAPTURE(name);
        Model m(name);
        KvCache cache(*m.bench.backend, m.config, kKvBlock);
        std::vector<double> logits;
        for (const auto& sequence : kSequences)
            for (std::int32_t t = 0; t < static_cast<std::int32_t>(sequence.size()); ++t) {
                const auto input =
                    m.transformer.upload_decode_input({sequence[t]}, {t}, {t}, {0, 0, 0, t + 1});
                const auto row = m.bench.values(m.transformer.decode(input, cache));
                logits.insert(logits.end(), row.begin(), row.end());
            }
        const auto [distance, cosine] = compare(logits, golden(name, "logits"));
        CHECK(distance < 1e-5);
        CHECK(cosine > 0.99999);

        // The training pass gives the log-probabilities that belong to these logits.
        const auto logp = m.transformer.forward(m.batch).logp;
        std::size_t row = 0, scored = 0;
        for (const auto& sequence : kSequences)
            for (std::size_t t = 0; t < sequence.size(); ++t, ++row) {
                if (t + 1 == sequence.size()) continue;
                const double* l = &logits[row * m.config.vocab_size];
                double sum = 0;
                for (int v = 0; v < m.config.vocab_size; ++v) sum += std::exp(l[v]);
                CHECK(logp[scored++] == doctest::Approx(l[sequence[t + 1]] - std::log(sum)).epsilon(1e-5));
            }
    }
}

TEST_CASE("Hugging Face: the gradient of every parameter") {
    for (const char* name : kModels) {
        CAPTURE(name);
        Model m(name);
        std::vector<float> dlogp;
        for (std::size_t i = 0; i < kSequences.size(); ++i)
            for (std::size_t t = 1; t < kSequences[i].size(); ++t)
                dlogp.push_back(0.25f * static_cast<float>(t) - static_cast<float>(i));
        m.transformer.forward(m.batch);
        m.transformer.backward(dlogp);
        const auto gradients = m.bench.values(m.transformer.parameters().gradients());
        for (const auto& e : m.transformer.parameters().layout().entries) {
            CAPTURE(e.name);
            const auto begin = gradients.begin() + e.offset;
            const std::vector<double> ours(begin, begin + e.rows * e.cols);
            const auto theirs = golden(name, "grad." + e.name);
            const double norm = std::inner_product(theirs.begin(), theirs.end(), theirs.begin(), 0.0);
            if (norm < 1e-10) {  // a key bias does not move the softmax: its gradient is rounding noise
                CHECK(std::inner_product(ours.begin(), ours.end(), ours.begin(), 0.0) < 1e-8);
                continue;
            }
            const auto [distance, cosine] = compare(ours, theirs);
            CHECK(distance < 1e-5);
            CHECK(cosine > 0.99999);
        }
    }
}

TEST_CASE("Hugging Face: 64 greedy tokens") {
    for (const char* name : kModels) {
        CAPTURE(name);
        Model m(name);
        Generator generator(m.transformer, 1, 5, 64);
        const auto responses = generator.generate(
            {{0, {3, 1, 4, 1, 5}}}, {.sample = {.temperature = 0}, .max_new_tokens = 64, .stop_tokens = {}});
        const auto& tokens = responses.at(0).tokens;
        CHECK(std::vector<double>(tokens.begin(), tokens.end()) == golden(name, "greedy"));
    }
}

TEST_CASE("Hugging Face: the losses of 20 steps of fine-tuning are those of PyTorch's AdamW") {
    for (const char* name : kModels) {
        CAPTURE(name);
        Model m(name);
        Optimizer optimizer(m.transformer);
        for (const double expected : golden(name, "losses")) {
            const auto logp = m.transformer.forward(m.batch).logp;
            const float count = static_cast<float>(logp.size());
            CHECK(-std::accumulate(logp.begin(), logp.end(), 0.0) / count ==
                  doctest::Approx(expected).epsilon(1e-4));
            m.transformer.backward(std::vector<float>(logp.size(), -1 / count));
            optimizer.step(3e-3, {1.0, 0.1});
        }
    }
}

TEST_CASE("config.json: today's form and the older ones say the same") {
    const TemporaryFolder folder;
    auto load = [&](const json& object) {
        write_file(folder / "config.json", object.dump());
        return Config::load(folder.path);
    };
    json object = json::parse(read_file(kGolden / "llama3/config.json"));
    const Config today = load(object);
    REQUIRE(today.rope_scaling);
    CHECK(today.rope_theta == 500);
    CHECK(today.eos_token_ids == std::vector{0});
    json rope = object["rope_parameters"];
    object.erase("rope_parameters");
    object["rope_theta"] = rope["rope_theta"];
    rope.erase("rope_theta");
    object["rope_scaling"] = rope;
    object["eos_token_id"] = {0, 7};
    const Config older = load(object);
    CHECK(older.rotary_frequencies() == today.rotary_frequencies());
    CHECK(older.eos_token_ids == std::vector{0, 7});
    object["rope_scaling"]["type"] = "llama3", object["rope_scaling"].erase("rope_type");
    CHECK(load(object).rotary_frequencies() == today.rotary_frequencies());
    object["rope_scaling"] = nullptr;
    CHECK(load(object).rotary_frequencies() != today.rotary_frequencies());
    write_file(folder / "generation_config.json", R"({"eos_token_id": [7, 9]})");
    CHECK(load(object).eos_token_ids == std::vector{0, 7, 9});
}

TEST_CASE("config.json: what is not supported is refused by name") {
    const TemporaryFolder folder;
    const json good = json::parse(read_file(kGolden / "qwen2/config.json"));
    auto refusal = [&](const json& patch) -> std::string {
        json object = good;
        object.merge_patch(patch);
        write_file(folder / "config.json", object.dump());
        try {
            Config::load(folder.path);
        } catch (const Error& e) {
            return e.what();
        }
        return "accepted";
    };
    const json window = {{"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 1}};
    const std::pair<json, const char*> cases[] = {
        {{{"model_type", "qwen3_moe"}}, "\"qwen3_moe\""},
        {{{"rope_scaling", {{"type", "yarn"}, {"factor", 4}}}}, "\"yarn\""},
        {{{"rope_parameters", {{"rope_type", "linear"}}}}, "\"linear\""},
        {window, "sliding window"},
        {{{"layer_types", {"full_attention", "sliding_attention"}}}, "\"sliding_attention\""},
        {{{"num_experts", 8}}, "mixture of experts"},
        {{{"quantization_config", {{"quant_method", "gptq"}}}}, "gptq"},
        {{{"hidden_act", "gelu"}}, "\"gelu\""},
        {{{"model_type", "llama"}, {"attention_bias", true}}, "attention_bias"},
        {{{"mlp_bias", true}}, "mlp_bias"},
        {{{"hidden_size", -4}}, "hidden_size is -4"},
        {{{"hidden_size", 1e300}}, "hidden_size is 1e+300"},
        {{{"vocab_size", "many"}}, "vocab_size"},
        {{{"num_attention_heads", 3}}, "multiple"},
        {{{"eos_token_id", "</s>"}}, "eos_token_id"},
        {{{"hidden_size", nullptr}}, "hidden_size is missing"},
    };
    for (const auto& [patch, expected] : cases) {
        CAPTURE(patch.dump());
        CHECK(refusal(patch).find(expected) != std::string::npos);
    }
    // A window that is switched off, wider than the context, or of no layer does no harm.
    for (const char* harmless : {R"({"use_sliding_window": false})", R"({"sliding_window": 4096})",
                                 R"({"max_window_layers": 2})", R"({"sliding_window": null})"}) {
        json patch = window;
        patch.update(json::parse(harmless));
        CAPTURE(patch.dump());
        CHECK(refusal(patch) == "accepted");
    }
}

TEST_CASE("config.json of real models") {
    const auto root = fixtures();
    if (!root) return;
    auto load = [&](const char* name) { return Config::load(*root / "configs" / name); };
    CHECK(load("Qwen2.5-0.5B-Instruct").eos_token_ids == std::vector{151645, 151643});
    const Config qwen3 = load("Qwen3-0.6B"), llama = load("Llama-3.2-1B-Instruct");
    CHECK(qwen3.head_norm());
    CHECK(qwen3.attention().q_cols() == 2048);
    CHECK(!qwen3.attention_bias);
    CHECK(llama.rope_scaling);
    CHECK(llama.eos_token_ids == std::vector{128001, 128008, 128009});
    // Parameter counts as the model cards give them, in millions.
    for (const auto& [name, millions] : {std::pair{"Qwen2.5-0.5B-Instruct", 494},
                                         {"Qwen2.5-1.5B-Instruct", 1544},
                                         {"Qwen3-0.6B", 596},
                                         {"DeepSeek-R1-Distill-Qwen-1.5B", 1777},
                                         {"Llama-3.2-1B-Instruct", 1236}}) {
        CAPTURE(name);
        CHECK(std::llround(static_cast<double>(ParameterLayout(load(name)).total) / 1e6) == millions);
    }
}
