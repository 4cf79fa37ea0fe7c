// `make bench`: training and decoding speed of the tiny model and of Qwen2.5-0.5B's shape with random
// weights, beside the GEMM and memory peaks measured in the same run. Medians of several repeats; compare
// within one run, machines are noisy.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <vector>

#include "src/command_line.h"
#include "src/generate.h"
#include "src/memory_plan.h"
#include "src/parallel.h"
#include "src/run_log.h"

using namespace r1;

namespace {

double median_seconds(int repeats, const std::function<void()>& body) {
    body();  // warm-up: oneDNN compiles, pages are touched
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) {
        const Stopwatch clock;
        body();
        seconds.push_back(clock.seconds());
    }
    std::ranges::nth_element(seconds, seconds.begin() + repeats / 2);
    return seconds[repeats / 2];
}

/// FLOP/s of a square matrix product of the backend.
double gemm_peak(Backend& backend, DType weights, std::int64_t n) {
    Arena arena(backend, 4 * n * n * 4 + 1024);
    const Tensor x = arena.take(DType::F32, n, n), w = arena.take(DType::F32, n, n),
                 y = arena.take(DType::F32, n, n);
    backend.zero(x), backend.zero(w);
    Tensor weight = w;
    if (weights == DType::BF16) {
        weight = arena.take(DType::BF16, n, n);
        backend.copy(weight, w);
    }
    return 2.0 * n * n * n / median_seconds(5, [&] { backend.linear_forward(y, x, weight, {}); });
}

/// Bytes/s of reading a large array on all threads.
double read_bandwidth() {
    constexpr std::int64_t chunk = 1 << 17, chunks = 512;  // 64-bit words: 512 MiB
    const std::vector<std::uint64_t> words(chunk * chunks, 1);
    std::vector<std::uint64_t> sums(chunks);
    const double seconds = median_seconds(5, [&] {
        parallel_for(chunks, [&](std::int64_t c) {
            std::uint64_t sum = 0;
            for (std::int64_t i = c * chunk; i < (c + 1) * chunk; ++i) sum += words[i];
            sums[c] = sum;
        });
    });
    if (std::accumulate(sums.begin(), sums.end(), std::uint64_t{0}) != words.size()) fail("the sum is wrong");
    return static_cast<double>(words.size()) * 8 / seconds;
}

/// 6 FLOPs a token and parameter, and 6 L C T for attention in a sequence of T tokens.
double train_flops(const Config& c, std::int64_t parameters, double T) {
    return 6.0 * static_cast<double>(parameters) + 6.0 * c.num_hidden_layers * c.attention().q_cols() * T;
}

void bench_model(Backend& backend, const char* name, const Config& config, DType dtype, int sequence,
                 int sequences, const std::vector<int>& decode_rows, int context, double peak,
                 double bandwidth, int repeats) {
    const int rows = *std::ranges::max_element(decode_rows);
    const TransformerOptions options{
        .bf16_matrices = dtype == DType::BF16, .max_tokens = sequence * sequences, .max_decode_rows = rows};
    Transformer model(backend, config, options);
    model.initialize(1);
    std::vector<std::int32_t> tokens(sequence + 1);
    for (int t = 0; t <= sequence; ++t) tokens[t] = t * 7919 % config.vocab_size;
    PackedBatch batch;
    for (int s = 0; s < sequences; ++s) batch.add(tokens, 1);
    const std::vector<float> dlogp(batch.scored(), -1.0f / static_cast<float>(batch.scored()));
    const double seconds = median_seconds(repeats, [&] {
        model.forward(batch);
        model.backward(dlogp);
    });
    const double flops =
        static_cast<double>(batch.size()) * train_flops(config, model.layout().total, sequence);
    std::printf("%-16s %-9s train   %2d x %-4d  %10.0f tokens/s  %6.1f GFLOP/s = %4.1f%% of the GEMM peak\n",
                name, name_of(dtype), sequences, sequence, static_cast<double>(batch.size()) / seconds,
                flops / seconds / 1e9, 100 * flops / seconds / peak);

    const int own = (context + kKvBlock) / kKvBlock * kKvBlock;
    KvCache cache(backend, config, static_cast<std::int64_t>(rows) * own);
    for (int B : decode_rows) {
        std::vector<std::int32_t> ids(B, 1), positions(B, context), places(B), spans;
        for (int b = 0; b < B; ++b) {
            places[b] = b * own + context;
            spans.insert(spans.end(), {0, 0, b * own, context + 1});
        }
        const double step = median_seconds(
            repeats, [&] { model.decode(model.upload_decode_input(ids, positions, places, spans), cache); });
        // One step must read every weight once (tied embeddings are read as the head) and the cache of every
        // sequence.
        const double bytes = static_cast<double>(model.layout().matrices) * bytes_of(dtype) +
                             static_cast<double>(B) * (context + 1) * config.num_hidden_layers *
                                 config.attention().kv_cols() * 2 * 4;
        std::printf(
            "%-16s %-9s decode  B = %-4d  %10.0f tokens/s  %6.1f GB/s     = %4.1f%% of the read bandwidth\n",
            name, name_of(dtype), B, B / step, bytes / step / 1e9, 100 * bytes / step / bandwidth);
    }
}

int bench(const std::string& tiny, bool quick) {
    const auto backend = make_cpu_backend();
    const double bandwidth = read_bandwidth();
    const double peak32 = gemm_peak(*backend, DType::F32, quick ? 512 : 2048),
                 peak16 = gemm_peak(*backend, DType::BF16, quick ? 512 : 2048);
    std::printf("%d threads; GEMM peak %.0f GFLOP/s in float32, %.0f in bfloat16; read bandwidth %.1f GB/s\n",
                threads(), peak32 / 1e9, peak16 / 1e9, bandwidth / 1e9);
    bench_model(*backend, "tiny", Config::load(tiny), DType::F32, 100, 80, {256, 1}, 100, peak32, bandwidth,
                9);
    if (quick) return 0;
    Config c;  // Qwen2.5-0.5B, https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/config.json
    c.hidden_size = 896, c.intermediate_size = 4864, c.num_hidden_layers = 24, c.num_attention_heads = 14,
    c.num_key_value_heads = 2;
    c.head_dim = 64, c.vocab_size = 151936, c.max_position_embeddings = 32768, c.rope_theta = 1e6,
    c.tie_word_embeddings = true;
    bench_model(*backend, "Qwen2.5-0.5B", c, DType::F32, 512, 2, {32, 1}, 256, peak32, bandwidth, 3);
    bench_model(*backend, "Qwen2.5-0.5B", c, DType::BF16, 512, 2, {32, 1}, 256, peak16, bandwidth, 3);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    std::string tiny = "data/tiny";
    int thread_count = 0;
    bool quick = false;
    CLI::App app{"Training and decoding speed beside the machine's peaks", "r1_bench"};
    app.option_defaults()->always_capture_default();
    app.add_option("--tiny", tiny, "folder of the tiny model");
    app.add_option("--threads", thread_count, "0: one a core");
    app.add_flag("--quick", quick, "the tiny model only");
    return run_main(app, argc, argv, [&] {
        set_threads(thread_count);
        return bench(tiny, quick);
    });
}
