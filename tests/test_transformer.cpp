// The whole model: gradients against central differences in float64, invariance to micro-batches and
// recomputation, and decoding against training.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "src/rl/generate.h"
#include "src/model/checkpoint.h"
#include "src/model/optimizer.h"
#include "src/device/device.h"
#include "src/device/parallel.h"
#include "src/device/reference.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;

namespace {

std::vector<double> all(Bench& bench, Tensor t) { return bench.values(t); }

std::vector<float> random_coefficients(Bench& bench, std::int64_t count) {
    std::normal_distribution<float> d;
    std::vector<float> c(count);
    for (float& x : c) x = d(bench.random);
    return c;
}

}  // namespace

TEST_CASE("whole model: every parameter's gradient equals central differences in float64") {
    for (unsigned seed = 0; seed < 9; ++seed) {
        Bench bench(DType::F64, seed);
        const Config config = small_config(bench, seed % 2, kFamilies[seed % 3]);
        Transformer model(*bench.backend, config, {.recompute = seed >= 3, .max_tokens = 64});
        randomize(bench, model);
        const PackedBatch batch = random_batch(bench, config, 4, 9);
        const float temperature = seed % 2 ? 1.0f : 0.7f;
        const auto dlogp = random_coefficients(bench, batch.scored()),
                   dentropy = random_coefficients(bench, batch.scored());
        const std::vector<double> wl(dlogp.begin(), dlogp.end()), we(dentropy.begin(), dentropy.end());
        auto loss = [&] {
            auto [logp, entropy] = model.forward_on_device(batch, temperature);
            return weighted(all(bench, logp), wl) + weighted(all(bench, entropy), we);
        };
        loss();
        model.backward(dlogp, dentropy);
        const auto gradient = all(bench, model.parameters().gradients());
        for (const auto& entry : model.parameters().layout().entries) {
            CAPTURE(entry.name);
            const std::int64_t matrices = model.parameters().layout().matrices, count = entry.rows * entry.cols;
            const Tensor part = entry.is_matrix ? model.parameters().matrices().slice(entry.offset, count)
                                                : model.parameters().vectors().slice(entry.offset - matrices, count);
            const std::vector<double> g(gradient.begin() + entry.offset,
                                        gradient.begin() + entry.offset + part.size());
            check_gradient(bench, part, g, loss, 6, 1e-5);
        }
    }
}

TEST_CASE("gradients do not depend on the split into micro-batches, nor on recomputation") {
    for (bool recompute : {false, true}) {
        Bench bench(DType::F64, 11);
        const Config config = small_config(bench, true, "qwen2");
        Transformer model(*bench.backend, config, {.recompute = recompute, .max_tokens = 128});
        randomize(bench, model);
        std::vector<std::vector<std::int32_t>> sequences;
        for (int b = 0; b < 6; ++b) {
            sequences.emplace_back();
            for (int t = bench.between(2, 12); t > 0; --t)
                sequences.back().push_back(bench.between(0, config.vocab_size - 1));
        }
        auto gradient_in_batches_of = [&](std::size_t count) {
            bench.backend->zero(model.parameters().gradients());
            for (std::size_t b = 0; b < sequences.size(); b += count) {
                PackedBatch batch;
                std::vector<float> dlogp;
                for (std::size_t i = b; i < std::min(sequences.size(), b + count); ++i) {
                    batch.add(sequences[i], 1);
                    for (std::size_t t = 1; t < sequences[i].size(); ++t)
                        dlogp.push_back(0.1f * static_cast<float>(i + t));
                }
                model.forward_on_device(batch);
                model.backward(dlogp);
            }
            return all(bench, model.parameters().gradients());
        };
        const auto whole = gradient_in_batches_of(6);
        CHECK(relative_distance(gradient_in_batches_of(1), whole) < 1e-12);
        CHECK(relative_distance(gradient_in_batches_of(4), whole) < 1e-12);
    }
}

TEST_CASE(
    "float32 agrees with float64, in values and gradients; bfloat16 matrices agree to their precision") {
    Bench narrow(DType::F32, 5), wide(DType::F64, 5);
    Config config = small_config(narrow, false, "qwen3");
    config.hidden_size = 37, config.head_dim = 16, config.vocab_size = 131;
    Transformer a(*narrow.backend, config, {.max_tokens = 512}),
        b(*wide.backend, config, {.max_tokens = 512});
    Transformer c(*narrow.backend, config, {.bf16_matrices = true, .max_tokens = 512});
    randomize(narrow, a, 0.1);
    b.parameters().upload(a.parameters().download());
    c.parameters().upload(a.parameters().download());
    const PackedBatch batch = random_batch(narrow, config, 12, 60);
    const auto dlogp = random_coefficients(narrow, batch.scored());
    std::vector<std::vector<double>> logp;
    for (Transformer* model : {&a, &b, &c}) {
        Bench& bench = model == &b ? wide : narrow;
        logp.push_back(all(bench, model->forward_on_device(batch).first));
        model->backward(dlogp);
    }
    CHECK(relative_distance(logp[0], logp[1]) < 1e-6);
    CHECK(relative_distance(logp[2], logp[1]) < 1e-2);
    CHECK(relative_distance(all(narrow, a.parameters().gradients()), all(wide, b.parameters().gradients())) < 1e-5);
    CHECK(relative_distance(all(narrow, c.parameters().gradients()), all(wide, b.parameters().gradients())) < 5e-2);
}

TEST_CASE("shift: logits at position t score token t + 1, from the prompt's last token on") {
    PackedBatch batch;
    batch.add({7, 8, 9, 10}, 2);
    CHECK(batch.tokens == std::vector<std::int32_t>{7, 8, 9});
    CHECK(batch.score_rows == std::vector<std::int32_t>{1, 2});
    CHECK(batch.targets == std::vector<std::int32_t>{9, 10});
    batch.add({1, 2}, 1);
    CHECK(batch.ranges == std::vector<RowRange>{{0, 0, 0, 3}, {0, 0, 0, 3}, {0, 0, 0, 3}, {3, 3, 3, 4}});
    CHECK(batch.positions == std::vector<std::int32_t>{0, 1, 2, 0});
    CHECK(batch.score_rows == std::vector<std::int32_t>{1, 2, 3});
}

TEST_CASE("responses to one prompt share its rows: the first token of each is scored by its last one") {
    constexpr int P = PackedBatch::kShortestShared;
    const auto behind = [](int first, std::vector<std::int32_t> response) {
        std::vector<std::int32_t> tokens(P, 7);
        tokens[0] = first;
        tokens.insert(tokens.end(), response.begin(), response.end());
        return tokens;
    };
    PackedBatch batch;
    batch.add(behind(1, {9, 10}), P);
    CHECK(batch.rows_of(behind(1, {5, 6, 4}), P) == 2);
    batch.add(behind(1, {5, 6, 4}), P);
    batch.add(behind(1, {3}), P);  // a response of one token has no row of its own
    CHECK(batch.rows_of(behind(1, {3}), P - 1) == P);  // a shorter prompt is another one
    CHECK(batch.rows_of(behind(2, {3}), P) == P);
    batch.add(behind(2, {3}), P);
    auto tokens = behind(1, {9, 5, 6}), last = behind(2, {});
    tokens.insert(tokens.end(), last.begin(), last.end());
    CHECK(batch.tokens == tokens);
    CHECK(batch.score_rows == std::vector<std::int32_t>{P - 1, P, P - 1, P + 1, P + 2, P - 1, P + 3 + P - 1});
    CHECK(batch.targets == std::vector<std::int32_t>{9, 10, 5, 6, 4, 3, 3});
    std::vector<RowRange> ranges(P, {0, 0, 0, P + 3});
    ranges.insert(ranges.end(), {{0, 0, 0, P + 1}, {0, P, P + 1, P + 3}, {0, P, P + 1, P + 3}});
    ranges.insert(ranges.end(), P, {P + 3, P + 3, P + 3, P + 3 + P});
    CHECK(batch.ranges == ranges);
    for (int n = 0; n < batch.size(); ++n) CHECK(batch.positions[n] == (n < P + 1 ? n : n < P + 3 ? n - 1 : n - P - 3));
}

TEST_CASE("shared prompts change neither log-probabilities nor gradients") {
    for (DType real : {DType::F64, DType::F32})
        for (unsigned seed = 0; seed < 4; ++seed) {
            Bench bench(real, seed);
            const Config config = small_config(bench, true, kFamilies[seed % 3]);
            const bool recompute = seed % 2;
            Transformer model(*bench.backend, config, {.recompute = recompute, .max_tokens = 512});
            randomize(bench, model);
            std::vector<std::pair<std::vector<std::int32_t>, std::size_t>> sequences;
            for (int group = 0; group < 3; ++group) {
                std::vector<std::int32_t> prompt(bench.between(10, 40));
                for (auto& token : prompt) token = bench.between(0, config.vocab_size - 1);
                for (int r = bench.between(1, 5); r > 0; --r) {
                    sequences.emplace_back(prompt, prompt.size());
                    for (int t = bench.between(1, 20); t > 0; --t)
                        sequences.back().first.push_back(bench.between(0, config.vocab_size - 1));
                }
            }
            const auto run = [&](bool shared) {
                bench.backend->zero(model.parameters().gradients());
                std::vector<double> logp;
                PackedBatch batch;
                const auto flush = [&] {
                    const auto some = all(bench, model.forward_on_device(batch).first);
                    logp.insert(logp.end(), some.begin(), some.end());
                    std::vector<float> dlogp;
                    for (double x : some) dlogp.push_back(static_cast<float>(std::sin(x)));
                    model.backward(dlogp);
                    batch.clear();
                };
                for (const auto& [tokens, first_scored] : sequences) {
                    batch.add(tokens, first_scored);
                    if (!shared) flush();
                }
                if (shared) flush();
                return std::pair(logp, all(bench, model.parameters().gradients()));
            };
            const auto [logp, gradient] = run(true);
            const auto [unshared_logp, unshared_gradient] = run(false);
            // Float32 too: the CPU backend gives a row the same bits wherever its prompt lies.
            CHECK(logp == unshared_logp);
            CHECK(relative_distance(gradient, unshared_gradient) < (real == DType::F64 ? 1e-12 : 1e-5));
        }
}

TEST_CASE("a sequence's log-probabilities do not depend on its neighbours in the batch") {
    Bench bench(DType::F64, 3);
    const Config config = small_config(bench, true, "qwen2");
    Transformer model(*bench.backend, config, {.max_tokens = 128});
    randomize(bench, model);
    PackedBatch together, alone;
    together.add({1, 2, 3, 4, 5}, 1);
    together.add({6, 7, 8}, 1);
    alone.add({6, 7, 8}, 1);
    const auto both = all(bench, model.forward_on_device(together).first);
    const auto one = all(bench, model.forward_on_device(alone).first);
    CHECK(both[4] == doctest::Approx(one[0]).epsilon(1e-13));
    CHECK(both[5] == doctest::Approx(one[1]).epsilon(1e-13));
}

TEST_CASE(
    "log-probabilities recorded while sampling equal those recomputed in training, at any temperature") {
    for (float temperature : {1.0f, 0.6f, 1.7f}) {
        Bench bench(DType::F32, 21);
        Config config = small_config(bench, true, "qwen2");
        Transformer model(*bench.backend, config, {.max_tokens = 512, .max_decode_rows = 7});
        randomize(bench, model, 0.2);
        Generator generator(model, 7, 10, 40);
        std::vector<Prompt> prompts;
        for (std::uint32_t p = 0; p < 5; ++p) {
            prompts.push_back({p, {}});
            for (std::uint32_t t = 0; t <= p * 2; ++t)
                prompts.back().tokens.push_back(bench.between(0, config.vocab_size - 1));  // lengths 1..9
        }
        const GenerateOptions options{.sample = {.temperature = temperature, .seed = 9},
                                      .samples_per_prompt = 3,
                                      .max_new_tokens = 40,
                                      .stop_tokens = {0}};
        const auto responses = generator.generate(prompts, options);
        REQUIRE(responses.size() == 15);
        double largest_gap = 0;
        for (std::size_t i = 0; i < responses.size(); ++i) {
            const Response& r = responses[i];
            const auto& prompt = prompts[i / 3].tokens;
            auto tokens = prompt;
            tokens.insert(tokens.end(), r.tokens.begin(), r.tokens.end());
            PackedBatch batch;
            batch.add(tokens, prompt.size());
            const auto logp = model.forward(batch, temperature).logp;
            REQUIRE(logp.size() == r.sampled_logp.size());
            for (std::size_t t = 0; t < logp.size(); ++t)
                largest_gap = std::max<double>(largest_gap, std::abs(logp[t] - r.sampled_logp[t]));
        }
        INFO("temperature ", temperature, ": largest gap ", largest_gap);
        CHECK(largest_gap < 1e-5);
    }
}

TEST_CASE(
    "a sample does not depend on slots, neighbours or threads; every stop token ends it; lengths are "
    "bounded") {
    Bench bench(DType::F32, 33);
    Config config = small_config(bench, false, "llama");
    config.vocab_size = 13;
    Transformer model(*bench.backend, config, {.max_tokens = 64, .max_decode_rows = 16});
    randomize(bench, model, 0.2);
    std::vector<Prompt> prompts;
    for (std::uint32_t p = 0; p < 9; ++p)
        prompts.push_back({100 + p, {1, static_cast<std::int32_t>(p % 13), 5}});
    const GenerateOptions options{.sample = {.seed = 4},
                                  .step = 3,
                                  .samples_per_prompt = 4,
                                  .max_new_tokens = 6,
                                  .stop_tokens = {0, 7}};
    set_threads(2);
    Generator wide(model, 16, 3, 20), narrow(model, 3, 3, 20);
    const auto a = wide.generate(prompts, options);
    const auto b = narrow.generate(prompts, options);
    const auto alone = narrow.generate({prompts[4]}, options);
    set_threads(1);
    const auto c = wide.generate(prompts, options);
    set_threads(0);
    int stopped = 0, cut = 0, ended_by_second = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        CHECK(a[i].tokens == b[i].tokens);
        CHECK(a[i].tokens == c[i].tokens);
        CHECK(a[i].sampled_logp == c[i].sampled_logp);
        const bool stop = a[i].tokens.back() == 0 || a[i].tokens.back() == 7;
        CHECK(a[i].stopped == stop);
        CHECK((stop || a[i].tokens.size() == 6));
        for (std::size_t t = 0; t + 1 < a[i].tokens.size(); ++t)
            CHECK((a[i].tokens[t] != 0 && a[i].tokens[t] != 7));
        stopped += stop, cut += !stop, ended_by_second += a[i].tokens.back() == 7;
    }
    CHECK(stopped > 0);
    CHECK(ended_by_second > 0);
    CHECK(cut > 0);
    for (int i = 0; i < 4; ++i) CHECK(alone[i].tokens == a[16 + i].tokens);
}

TEST_CASE("a prompt that leaves no room in the context is refused") {
    Bench bench(DType::F32, 2);
    const Config config = small_config(bench, true, "qwen2");
    Transformer model(*bench.backend, config, {.max_tokens = 128, .max_decode_rows = 2});
    Generator generator(model, 2, 100, 8);
    const std::vector<std::int32_t> full(config.max_position_embeddings, 1);
    CHECK_ERROR(generator.generate({{0, full}}, {}), "context of 64");
    CHECK_THROWS_AS(generator.generate({{0, {}}}, {}), Error);
    auto almost = full;
    almost.pop_back();  // room for one token
    CHECK(generator.generate({{0, almost}}, {.max_new_tokens = 8}).at(0).tokens.size() == 1);
}

TEST_CASE("same input, same bits, with 1 and with 2 threads") {
    std::vector<std::vector<float>> gradients;
    for (int count : {1, 2, 2}) {
        set_threads(count);
        Bench bench(DType::F32, 77);
        Config config = small_config(bench, true, "qwen2");
        config.hidden_size = 48, config.vocab_size = 150, config.intermediate_size = 130;
        Transformer model(*bench.backend, config, {.max_tokens = 2048});
        randomize(bench, model, 0.1);
        const PackedBatch batch = random_batch(bench, config, 40, 60);
        model.forward(batch);
        model.backward(random_coefficients(bench, batch.scored()));
        gradients.emplace_back(model.parameters().layout().total);
        bench.backend->download(gradients.back().data(), model.parameters().gradients());
    }
    set_threads(0);
    CHECK(gradients[0] == gradients[1]);
    CHECK(gradients[1] == gradients[2]);
}

TEST_CASE("weights come back as they were saved; what does not fit is refused with tensor and shapes") {
    const TemporaryFolder folder;
    Bench bench(DType::F32, 1);
    const Config config = small_config(bench, false, "qwen2");
    Transformer model(*bench.backend, config, {.max_tokens = 16});
    randomize(bench, model);
    CHECK_ERROR(model.parameters().load(folder.path), "model.safetensors");
    model.parameters().save(folder.path, SafeDtype::F32);
    Transformer again(*bench.backend, config, {.max_tokens = 16});
    again.parameters().load(folder.path);
    CHECK(again.parameters().download() == model.parameters().download());
    Config other = config;
    other.intermediate_size += 1;
    Transformer wrong(*bench.backend, other, {.max_tokens = 16});
    CHECK_ERROR(wrong.parameters().load(folder.path), "mlp.gate_proj.weight");
    // What training has broken is not saved.
    again.parameters().check_finite();
    auto values = again.parameters().download();
    values.back() = std::nanf("");
    again.parameters().upload(values);
    const Optimizer optimizer(again);
    const std::string sentence = "the weights of model.norm.weight are no longer finite";
    CHECK_ERROR(save_checkpoint(folder.path, again, optimizer, {{{"step", "1"}}, {}}, 0), sentence);
    CHECK_ERROR(save_model(again, {{"config.json", "{}"}}, folder / "out", SafeDtype::F32), sentence);
    CHECK(!has_checkpoint(folder.path));
    CHECK(!std::filesystem::exists(folder / "out"));
}

TEST_CASE("the memory plan is what the model takes") {
    Bench bench(DType::F32, 1);
    const Config config = small_config(bench, true, "qwen2");
    const TransformerOptions keep{.max_tokens = 1000}, recompute{.recompute = true, .max_tokens = 1000};
    CHECK(Transformer::workspace_bytes(config, keep, *bench.backend) >=
          Transformer::workspace_bytes(config, recompute, *bench.backend));
    CHECK(Parameters::bytes(config, keep, *bench.backend).parameters ==
          ParameterLayout(config).total * 4u);
}

TEST_CASE("updates too small for bfloat16 are not lost: they gather in the float32 master") {
    Bench bench(DType::F32, 6);
    const Config config = small_config(bench, true, "qwen2");
    Transformer model(*bench.backend, config, {.bf16_matrices = true, .max_tokens = 16});
    randomize(bench, model);
    Optimizer optimizer(model);
    const auto before = model.parameters().download();
    for (int step = 0; step < 50; ++step) {
        const std::vector<float> ones(model.parameters().layout().total, 1.0f);
        bench.backend->upload(model.parameters().gradients(), ones.data());
        optimizer.step(1e-6, {0, 0});
    }
    const auto after = model.parameters().download();
    for (std::size_t i = 0; i < after.size(); ++i)
        CHECK(before[i] - after[i] == doctest::Approx(50e-6).epsilon(0.05));
}

TEST_CASE(
    "clipping scales the gradient to the norm asked for; a gradient that is not finite changes nothing") {
    Bench bench(DType::F32, 6);
    const Config config = small_config(bench, true, "qwen2");
    Transformer model(*bench.backend, config, {.max_tokens = 16});
    Optimizer optimizer(model);
    std::vector<float> gradient(model.parameters().layout().total, 3.0f);
    bench.backend->upload(model.parameters().gradients(), gradient.data());
    const double norm = 3 * std::sqrt(static_cast<double>(gradient.size()));
    CHECK(optimizer.step(1e-3, {1, 0}) == doctest::Approx(norm));
    CHECK(bench.values(optimizer.state()[0].second)[0] ==
          doctest::Approx(0.1 * 3 / norm));  // (1 - beta1) times the clipped gradient
    CHECK(bench.values(model.parameters().gradients())[0] == 0);
    const auto before = model.parameters().download();
    gradient[1] = std::numeric_limits<float>::quiet_NaN();
    bench.backend->upload(model.parameters().gradients(), gradient.data());
    CHECK(!std::isfinite(optimizer.step(1e-3, {1, 0})));
    CHECK(model.parameters().download() == before);
    CHECK(bench.values(model.parameters().gradients())[0] == 0);
}

TEST_CASE("states in bfloat16, rounded stochastically, learn what float32 states learn") {
    Bench bench(DType::F32, 8);
    const Config config = small_config(bench, false, "qwen2");
    const PackedBatch batch = random_batch(bench, config, 4, 12);
    const std::vector<float> dlogp(batch.scored(), -1.0f / static_cast<float>(batch.scored()));
    auto loss_after = [&](bool bf16_states) {
        Transformer model(
            *bench.backend, config,
            {.bf16_matrices = true, .bf16_master = bf16_states, .max_tokens = 64});
        model.parameters().initialize(3);
        Optimizer optimizer(model, bf16_states, 1);
        double loss = 0;
        for (int step = 0; step < 150; ++step) {
            loss = 0;
            for (float logp : model.forward(batch).logp) loss -= logp / static_cast<float>(batch.scored());
            model.backward(dlogp);
            optimizer.step(3e-3, {1, 0});
        }
        return loss;
    };
    const double wide = loss_after(false);
    CHECK(wide < 1);  // from log V, more than 2.3
    CHECK(std::abs(loss_after(true) - wide) < 0.15);
}

namespace {

/// Counts what crosses the bus, and the recordings that are begun.
struct Counting : Reference<float> {
    std::size_t moved = 0;
    int recordings = 0;
    void upload(Tensor to, const void* host) override {
        moved += to.bytes();
        Reference::upload(to, host);
    }
    void download(void* host, Tensor from) override {
        moved += from.bytes();
        Reference::download(host, from);
    }
    void replay(std::shared_ptr<void>& recording, const std::function<void()>& body) override {
        recordings += !recording;
        recording = std::make_shared<int>();
        body();
    }
};

}  // namespace

TEST_CASE("the reference policy lies on the device or on the host, and leaves the policy alone") {
    for (const auto& [bf16_matrices, bf16_master] :
         {std::pair(false, false), std::pair(true, false), std::pair(true, true)})
        for (const ReferencePolicy where : {ReferencePolicy::OnDevice, ReferencePolicy::OnHost}) {
            INFO(bf16_matrices, bf16_master, where == ReferencePolicy::OnHost);
            auto counting = std::make_unique<Counting>();
            Counting& device = *counting;
            Bench bench(std::move(counting), 3);
            const Config config = small_config(bench, true, "qwen2");
            const TransformerOptions options{.bf16_matrices = bf16_matrices,
                                             .bf16_master = bf16_master,
                                             .reference = where,
                                             .max_tokens = 64};
            const std::size_t before = device.used_memory();
            Transformer model(device, config, options);
            Parameters& parameters = model.parameters();
            const auto plan = Parameters::bytes(config, options, device);
            CHECK((plan.reference > 0) == (where == ReferencePolicy::OnDevice));
            const PackedBatch batch = random_batch(bench, config, 4, 9);
            randomize(bench, model);
            parameters.changed();
            const auto old = model.forward(batch).logp;
            parameters.keep_as_reference();
            randomize(bench, model);
            parameters.changed();
            const auto weights = parameters.download();
            const auto present = model.forward(batch).logp;
            CHECK(present != old);
            for (int step = 0; step < 2; ++step) {
                device.moved = 0;
                parameters.use_reference(true);
                CHECK((device.moved == 0) == (where == ReferencePolicy::OnDevice));
                CHECK(model.forward(batch).logp == old);
                parameters.use_reference(false);
                CHECK(model.forward(batch).logp == present);
                CHECK(parameters.download() == weights);
            }
            CHECK(device.used_memory() >= before);
        }
}

TEST_CASE("recordings stay while sampling options change: training and evaluation take turns") {
    auto counting = std::make_unique<Counting>();
    Counting& device = *counting;
    Bench bench(std::move(counting), 3);
    const Config config = small_config(bench, true, "qwen2");
    Transformer model(device, config, {.trainable = false, .max_tokens = 64, .max_decode_rows = 2});
    randomize(bench, model);
    Generator generator(model, 2, 8, 8);
    for (int turn = 0; turn < 3; ++turn)
        for (const float temperature : {1.0f, 0.6f})
            generator.generate({{0, {1}}, {1, {2}}},
                               {.sample = {.temperature = temperature}, .max_new_tokens = 8});
    CHECK(device.recordings == 2);
}

TEST_CASE("memory plans of real models: Qwen2.5-1.5B trains in 24 GB, 3B in 80 GB") {
    Bench bench(DType::F32, 1);
    auto qwen = [](int hidden_size, int intermediate_size, int layers, int heads) {
        Config c;  // the config.json files of Qwen/Qwen2.5-1.5B and Qwen/Qwen2.5-3B
        c.hidden_size = hidden_size, c.intermediate_size = intermediate_size, c.num_hidden_layers = layers;
        c.num_attention_heads = heads, c.num_key_value_heads = 2, c.head_dim = 128, c.vocab_size = 151936;
        c.max_position_embeddings = 32768, c.tie_word_embeddings = true;
        return c;
    };
    /// Bytes for GRPO on 256 responses in flight of up to 1,024 tokens, without the backend's own.
    auto planned = [&](const Config& config, bool bf16_states, double bytes_each, int slots) {
        const TransformerOptions options{.bf16_matrices = true,
                                         .bf16_master = bf16_states,
                                         .recompute = true,
                                         .max_tokens = 4096,
                                         .max_decode_rows = slots};
        const auto plan = Parameters::bytes(config, options, *bench.backend);
        const ParameterLayout layout(config);
        const double by_hand = static_cast<double>(layout.matrices) * bytes_each;
        const auto planned = static_cast<double>(plan.parameters + plan.gradients +
                                                 Optimizer::bytes(layout, *bench.backend, bf16_states));
        CHECK(planned == doctest::Approx(by_hand).epsilon(0.005));
        return planned + static_cast<double>(Transformer::workspace_bytes(config, options, *bench.backend)) +
               static_cast<double>(Generator::bytes(config, slots, 256, 1024, *bench.backend));
    };
    // With float32 activations, as planned here; on a GPU they take half of that.
    const Config small = qwen(1536, 8960, 28, 12), large = qwen(2048, 11008, 36, 16);
    CHECK(planned(small, true, 2 + 4 + 4, 32) < 24e9);
    CHECK(planned(large, false, 2 + 4 + 4 + 8, 64) < 80e9);
}

TEST_CASE("exact arithmetic: sampled and trained log-probabilities agree to the last bit") {
    for (const std::string name : {"cpu", "cuda-on-cpu"})
        for (const std::string dtype : {"float32", "bfloat16"}) {
            CAPTURE(name);
            CAPTURE(dtype);
            Device device = make_device(name, dtype, true);
            Bench bench(std::move(device.backend), 4);
            const bool large = name == "cpu";  // where it is exact in small matrices anyway
            Config config;
            config.hidden_size = large ? 512 : 72, config.intermediate_size = large ? 1024 : 136;
            config.num_attention_heads = large ? 8 : 4, config.num_key_value_heads = 2, config.head_dim = 64;
            config.num_hidden_layers = 2, config.vocab_size = large ? 700 : 704;
            config.max_position_embeddings = 128;
            Transformer model(*bench.backend, config,
                              {.trainable = false,
                               .bf16_matrices = device.bf16_matrices,
                               .max_tokens = 512,
                               .max_decode_rows = 6});
            model.parameters().initialize(5);
            for (const auto& e : model.parameters().layout().entries)
                if (e.is_matrix && large) REQUIRE(e.rows * e.cols >= 1 << 16);
            std::vector<Prompt> prompts{{0, {}}, {1, {4}}};
            for (std::size_t t = 0; t < PackedBatch::kShortestShared; ++t)
                prompts[0].tokens.push_back(static_cast<std::int32_t>(t));
            for (int slots : {1, 6}) {
                Generator generator(model, slots, 40, 30);
                const auto responses =
                    generator.generate(prompts, {.samples_per_prompt = 3, .max_new_tokens = 30});
                std::vector<float> sampled;
                PackedBatch batch, alone;
                for (std::size_t i = 0; i < responses.size(); ++i) {
                    const auto& [id, prompt] = prompts[i / 3];
                    auto tokens = prompt;
                    std::ranges::copy(responses[i].tokens, std::back_inserter(tokens));
                    batch.add(tokens, prompt.size());
                    std::ranges::copy(responses[i].sampled_logp, std::back_inserter(sampled));
                    alone.clear();
                    alone.add(tokens, prompt.size());
                    CHECK(model.forward(alone).logp == responses[i].sampled_logp);
                }
                CHECK(model.forward(batch).logp == sampled);
            }
        }
}
