// `make bench`: training and decoding speed of the tiny model and of Qwen2.5-0.5B's shape with
// random weights, beside the GEMM and memory peaks measured in the same run. Medians of several
// repeats; compare within one run, machines are noisy.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <numeric>
#include <vector>

#include "src/device/device.h"
#include "src/device/parallel.h"
#include "src/model/optimizer.h"
#include "src/rl/generate.h"
#include "src/rl/micro_batch.h"
#include "src/run/flags.h"
#include "src/run/log.h"

using namespace r1;

namespace {

/// Waits for the device at the end of every run. What takes long is repeated less often.
double median_seconds(Backend& backend, int repeats, const std::function<void()>& body) {
    Arena arena(backend, 64);
    const Tensor flag = arena.take(DType::I32, 1);
    std::int32_t ignored = 0;
    std::vector<double> seconds;
    const Stopwatch all;
    // Two to warm up: libraries compile and choose, pages are touched.
    for (int i = -2; i < repeats && (seconds.empty() || all.seconds() < 30); ++i) {
        backend.download(&ignored, flag);
        const Stopwatch clock;
        body();
        backend.download(&ignored, flag);
        if (i >= 0 || clock.seconds() > 10) seconds.push_back(clock.seconds());
    }
    const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
    std::ranges::nth_element(seconds, middle);
    return *middle;
}

/// FLOP/s of a square matrix product of the backend, on random numbers: zeros cost a GPU less
/// power, and so run faster.
double gemm_peak(Backend& backend, DType weights, std::int64_t n) {
    Arena arena(backend, 3 * n * n * 4 + 1024);
    std::vector<float> random(static_cast<std::size_t>(n) * n);
    for (std::uint32_t i = 0; i < random.size(); ++i) {
        const std::uint32_t counter[4] = {i, 0, 0, 0};
        random[i] = static_cast<float>(philox_uniform(1, counter) - 0.5);
    }
    const Tensor x = arena.take(backend.activation(), n, n),
                 y = arena.take(backend.activation(), n, n), w = arena.take(weights, n, n);
    upload_floats(backend, x, random);
    upload_floats(backend, w, random);
    return 2.0 * n * n * n /
           median_seconds(backend, 5, [&] { backend.linear_forward(y, x, w, {}); });
}

/// Bytes/s that the device moves between its memory and itself: reading 512 MiB on all threads of
/// the CPU, gathering as much (bytes read and written) on another device.
double memory_bandwidth(Backend& backend, bool is_cpu) {
    constexpr std::int64_t chunk = 1 << 17, chunks = 512;  // 64-bit words
    constexpr double bytes = chunk * chunks * 8.0;
    if (!is_cpu) {
        Arena arena(backend, static_cast<std::size_t>(2 * bytes) + (1 << 20));
        constexpr std::int64_t rows = chunk / 4;
        const Tensor from = arena.take(DType::F32, rows, 8 * chunks),
                     to = arena.take(DType::F32, rows, 8 * chunks),
                     index = arena.take(DType::I32, rows);
        std::vector<std::int32_t> in_order(rows);
        std::iota(in_order.begin(), in_order.end(), 0);
        backend.upload(index, in_order.data());
        return 2 * bytes /
               median_seconds(backend, 9, [&] { backend.gather_rows(to, from, index); });
    }
    const std::vector<std::uint64_t> words(chunk * chunks, 1);
    std::vector<std::uint64_t> sums(chunks);
    const double seconds = median_seconds(backend, 5, [&] {
        parallel_for(chunks, [&](std::int64_t c) {
            std::uint64_t sum = 0;
            for (std::int64_t i = c * chunk; i < (c + 1) * chunk; ++i) sum += words[i];
            sums[c] = sum;
        });
    });
    if (std::accumulate(sums.begin(), sums.end(), std::uint64_t{0}) != words.size())
        fail("the sum is wrong");
    return bytes / seconds;
}

/// 6 FLOPs a token and parameter, and 6 L C T for attention in a sequence of T tokens.
double train_flops(const Config& c, std::int64_t parameters, double T) {
    return 6.0 * static_cast<double>(parameters) +
           6.0 * c.num_hidden_layers * c.attention().q_cols() * T;
}

struct Case {
    const char* name;
    Config config;
    DType dtype;            ///< of the matrices
    int sequences, length;  ///< of a training batch
    std::vector<int> rows;  ///< of the decode batches
    int context, repeats;
    std::string folder = "";     ///< of the weights; random ones without
    int prompts = 1, group = 8;  ///< of a GRPO step
};

/// A GRPO step by phase: G responses of L tokens to each of some prompts of P tokens, and the
/// training pass over them, with a prompt's rows shared and with a copy of them for each response.
void bench_step(Backend& backend, const Case& c, Transformer& model, double update) {
    const int P = std::min(140, c.config.max_position_embeddings / 2),
              L = std::min(128, c.config.max_position_embeddings / 2), R = c.prompts * c.group;
    if (model.max_tokens() < P + L) return;
    std::vector<Prompt> prompts;
    for (int p = 0; p < c.prompts; ++p) {
        Prompt& prompt = prompts.emplace_back(Prompt{static_cast<std::uint32_t>(p), {}});
        for (int t = 0; t < P; ++t) prompt.tokens.push_back((t * 7919 + p) % c.config.vocab_size);
    }
    Generator generator(model, std::min(R, *std::ranges::max_element(c.rows)), P, L);
    std::vector<Response> responses;
    const double rollout = median_seconds(backend, c.repeats, [&] {
        responses =
            generator.generate(prompts, {.samples_per_prompt = c.group, .max_new_tokens = L});
    });
    double training[2];
    for (const bool shared : {false, true}) {
        std::vector<Problem> problems(R);
        for (int r = 0; r < R; ++r) {
            problems[r].tokens = prompts[r / c.group].tokens;
            responses[r].problem = &problems[shared ? r / c.group * c.group : r];
            if (!shared) problems[r].tokens[0] = r % c.config.vocab_size;  // another prompt
        }
        training[shared] = median_seconds(backend, c.repeats, [&] {
            for_each_micro_batch(responses, model.max_tokens(), [&](auto, const auto& batch) {
                model.forward(batch);
                model.backward(std::vector<float>(batch.scored(), -1e-3f));
            });
        });
    }
    std::printf(
        "%-13s %-8s step   %d x %d of %d + %d tokens: rollout %.3g s (%.0f tokens/s), training %.3g s, "
        "with a copy of the prompt for each response %.2f times as long, update %.2g s; peak %.2f GiB\n",
        c.name, name_of(c.dtype), c.prompts, c.group, P, L, rollout, R * L / rollout, training[1],
        training[0] / training[1], update, static_cast<double>(backend.peak_memory()) / (1 << 30));
}

void bench_model(Backend& backend, const Case& c, double peak, double bandwidth) {
    const int most = *std::ranges::max_element(c.rows);
    const std::int64_t N = static_cast<std::int64_t>(c.sequences) * c.length;
    const TransformerOptions options{
        .bf16_matrices = c.dtype == DType::BF16,
        .keep_logits = c.config.vocab_size > 4096,  // as the trainers choose where it fits
        .max_tokens = N,
        .max_decode_rows = most};
    Transformer model(backend, c.config, options);
    Optimizer optimizer(model);
    if (c.folder.empty())
        model.parameters().initialize(1);
    else
        model.parameters().load(c.folder);
    std::vector<std::int32_t> tokens(c.length + 1);
    for (int t = 0; t <= c.length; ++t) tokens[t] = t * 7919 % c.config.vocab_size;
    PackedBatch batch;
    for (int s = 0; s < c.sequences; ++s) batch.add(tokens, 1);
    const std::vector<float> dlogp(batch.scored(), -1.0f / static_cast<float>(batch.scored()));
    const double update = median_seconds(backend, c.repeats, [&] { optimizer.step(1e-6, {1, 0}); });
    const double seconds = median_seconds(backend, c.repeats, [&] {
        model.forward(batch);
        model.backward(dlogp);
    });
    const double flops =
        static_cast<double>(N) * train_flops(c.config, model.parameters().layout().total, c.length);
    std::printf(
        "%-13s %-8s train  %3d x %-4d  %9.0f tokens/s  %7.1f GFLOP/s = %4.1f%% of the GEMM peak; update %.1f "
        "ms; %.2f GiB in use\n",
        c.name, name_of(c.dtype), c.sequences, c.length, static_cast<double>(N) / seconds,
        flops / seconds / 1e9, 100 * flops / seconds / peak, 1e3 * update,
        static_cast<double>(backend.used_memory()) / (1 << 30));
    bench_step(backend, c, model, update);

    const int own = (c.context + kKvBlock) / kKvBlock * kKvBlock;
    KvCache cache(backend, c.config, static_cast<std::int64_t>(most) * own);
    for (const Tensor& t : cache.k) backend.zero(t);
    for (const Tensor& t : cache.v) backend.zero(t);
    Arena arena(backend, static_cast<std::size_t>(most) * 64 + 1024);
    for (int B : c.rows) {
        std::vector<std::int32_t> ids(B, 1), positions(B, c.context), places(B), spans,
            counters(B * 4);
        for (int b = 0; b < B; ++b) {
            places[b] = b * own + c.context;
            spans.insert(spans.end(), {0, 0, b * own, c.context + 1});
            counters[b * 4] = b;
        }
        arena.release_to(0);
        const Tensor drawn = arena.take(DType::I32, B), logp = arena.take(backend.real(), B),
                     counter = arena.take(DType::I32, B, 4);
        backend.upload(counter, counters.data());
        const auto input = model.upload_decode_input(ids, positions, places, spans);
        const auto seconds_with = [&](const SampleOptions& options) {
            std::shared_ptr<void> recording;
            return median_seconds(backend, 3 * c.repeats, [&] {
                backend.replay(recording, [&] {
                    backend.sample(drawn, logp, model.decode(input, cache), counter, options);
                });
            });
        };
        const double step = seconds_with({}),
                     nucleus = seconds_with({.temperature = 0.6f, .top_p = 0.95f});
        // One step must read every weight once (tied embeddings are read as the head) and the cache
        // of every sequence.
        const double bytes =
            static_cast<double>(model.parameters().layout().matrices) *
                static_cast<double>(bytes_of(c.dtype)) +
            static_cast<double>(
                KvCache::bytes(c.config, static_cast<std::int64_t>(B) * (c.context + 1), backend));
        std::printf(
            "%-13s %-8s decode B = %-4d   %9.0f tokens/s  %7.1f GB/s    = %4.1f%% of the bandwidth; "
            "with T = 0.6, top-p 0.95: %.2f times that\n",
            c.name, name_of(c.dtype), B, B / step, bytes / step / 1e9,
            100 * bytes / step / bandwidth, step / nucleus);
    }
    std::fflush(stdout);
}

/// Qwen2.5's shapes, https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/config.json and
/// Qwen2.5-1.5B's.
Config qwen(int hidden_size, int intermediate_size, int layers, int heads, int head_dim) {
    Config c;
    c.hidden_size = hidden_size, c.intermediate_size = intermediate_size,
    c.num_hidden_layers = layers;
    c.num_attention_heads = heads, c.num_key_value_heads = 2, c.head_dim = head_dim;
    c.vocab_size = 151936, c.max_position_embeddings = 32768, c.rope_theta = 1e6,
    c.tie_word_embeddings = true;
    return c;
}

// clang-format off
struct Options : Flags {
    Options() : Flags("r1_bench", "Training and decoding speed beside the machine's peaks") {}
    const std::string& device = flag("--device", "auto", "where to compute: auto, cpu, reference, or a libr1_NAME.so's NAME");
    const int& threads = flag("--threads", 0, "CPU threads, 0: one a core", kNonNegative);
    const bool& quick = flag("--quick", false, "on a CPU: the tiny model only");
    Group one = group("One model, measured alone");
    const std::string& model = flag("--model", "", "a model folder, whose weights decide what top-p keeps, or a config.json for random weights");
    const std::string& dtype = choice("--dtype", {"float32", "bfloat16"}, "type for matrix products");
    const int& sequences = flag("--sequences", 4, "sequences of a training batch", kPositive);
    const int& length = flag("--length", 512, "tokens of each", kPositive);
    const int& rows = flag("--rows", 0, "sequences decoded at once, 0: 64, 8 and 1", kNonNegative);
    const int& prompts = flag("--prompts", 1, "prompts of a GRPO step", kPositive);
    const int& responses = flag("--group", 8, "responses to each", kPositive);
    const int& context = flag("--context", 256, "tokens of each in the cache before", kNonNegative);
};
// clang-format on

int bench(const Options& o) {
    const Device device = make_device(o.device, o.model.empty() ? "auto" : o.dtype);
    Backend& backend = *device.backend;
    const bool is_cpu = backend.on_host();
    const double bandwidth = memory_bandwidth(backend, is_cpu);
    const int square = !is_cpu ? 8192 : o.quick ? 512 : 2048;
    const double peak16 = gemm_peak(backend, DType::BF16, square);
    const Config half = qwen(896, 4864, 24, 14, 64);
    std::printf("%s; GEMM peak %.0f GFLOP/s in bfloat16; memory bandwidth %.1f GB/s\n",
                backend.name(), peak16 / 1e9, bandwidth / 1e9);
    if (!o.model.empty()) {
        const DType dtype = device.bf16_matrices ? DType::BF16 : DType::F32;
        const bool folder = std::filesystem::is_directory(o.model);
        const std::vector<int> rows = o.rows ? std::vector{o.rows} : std::vector{64, 8, 1};
        const std::string name = std::filesystem::path(o.model).stem().string();
        bench_model(backend,
                    {name.c_str(), Config::load(o.model), dtype, o.sequences, o.length, rows,
                     o.context, 3, folder ? o.model : "", o.prompts, o.responses},
                    dtype == DType::F32 ? gemm_peak(backend, dtype, square) : peak16, bandwidth);
        return 0;
    }
    const Config tiny = Config::load("data/world/base");
    if (!is_cpu) {
        bench_model(backend, {"tiny", tiny, DType::BF16, 80, 100, {256, 1}, 100, 9, "", 32}, peak16,
                    bandwidth);
        bench_model(backend,
                    {"Qwen2.5-0.5B", half, DType::BF16, 32, 512, {256, 32, 1}, 512, 7, "", 32},
                    peak16, bandwidth);
        bench_model(backend,
                    {"Qwen2.5-1.5B",
                     qwen(1536, 8960, 28, 12, 128),
                     DType::BF16,
                     32,
                     512,
                     {256, 32, 1},
                     512,
                     7,
                     "",
                     32},
                    peak16, bandwidth);
        return 0;
    }
    const double peak32 = gemm_peak(backend, DType::F32, square);
    std::printf("%d threads; GEMM peak %.0f GFLOP/s in float32\n", threads(), peak32 / 1e9);
    bench_model(backend, {"tiny", tiny, DType::F32, 80, 100, {256, 1}, 100, 9, "", 8}, peak32,
                bandwidth);
    if (o.quick) return 0;
    bench_model(backend, {"Qwen2.5-0.5B", half, DType::F32, 2, 512, {32, 1}, 256, 3}, peak32,
                bandwidth);
    bench_model(backend, {"Qwen2.5-0.5B", half, DType::BF16, 2, 512, {32, 1}, 256, 3}, peak16,
                bandwidth);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    return o.main(argc, argv, [&] {
        set_threads(o.threads);
        return bench(o);
    });
}
