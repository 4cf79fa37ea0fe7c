#include "src/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numbers>

#include "src/device/parallel.h"

namespace r1 {

using nlohmann::json;
using std::int32_t;
using std::int64_t;

// ---- configuration ----

namespace {

/// Reads config.json field by field; what is wrong is said with the file and the field.
class ConfigReader {
  public:
    ConfigReader(std::filesystem::path file, const json& object) : file_(std::move(file)), object_(object) {}

    /// The field; nothing where it is missing or null.
    const json* find(const char* key) const {
        const auto found = object_.find(key);
        return found == object_.end() || found->is_null() ? nullptr : &*found;
    }
    int size(const char* key, std::optional<int> otherwise = std::nullopt, int largest = 1 << 20) const {
        const json* value = find(key);
        if (!value && otherwise) return *otherwise;
        if (!value) fail(file_.string(), ": ", key, " is missing");
        if (!value->is_number_integer() || *value < 1 || *value > largest)
            fail(file_.string(), ": ", key, " is ", value->dump(), ", not an integer from 1 to ", largest);
        return value->get<int>();
    }
    double positive(const char* key, std::optional<double> otherwise = std::nullopt) const {
        const json* value = find(key);
        if (!value && otherwise) return *otherwise;
        if (!value) fail(file_.string(), ": ", key, " is missing");
        if (!value->is_number() || value->get<double>() <= 0)
            fail(file_.string(), ": ", key, " is ", value->dump(), ", not a positive number");
        return value->get<double>();
    }
    bool flag(const char* key, bool otherwise) const {
        const json* value = find(key);
        if (value && !value->is_boolean())
            fail(file_.string(), ": ", key, " is ", value->dump(), ", not true or false");
        return value ? value->get<bool>() : otherwise;
    }
    std::string text(const char* key, const std::string& otherwise) const {
        const json* value = find(key);
        if (value && !value->is_string()) fail(file_.string(), ": ", key, " is not a string");
        return value ? value->get<std::string>() : otherwise;
    }
    /// A list of texts or a single one.
    std::vector<std::string> texts(const char* key) const {
        const json* value = find(key);
        std::vector<std::string> all;
        for (const json& text : !value ? json::array() : value->is_array() ? *value : json::array({*value})) {
            if (!text.is_string() || text.get<std::string>().empty())
                fail(file_.string(), ": ", key, " holds ", text.dump(), ", which is no text");
            all.push_back(text);
        }
        return all;
    }
    ConfigReader inner(const char* key) const {
        if (!find(key)->is_object()) fail(file_.string(), ": ", key, " is not an object");
        return {file_, *find(key)};
    }
    /// A list of ids or a single one, added to `ids` where new.
    void token_ids(const char* key, std::vector<int>& ids) const {
        const json* value = find(key);
        for (const json& id : !value ? json::array() : value->is_array() ? *value : json::array({*value})) {
            if (!id.is_number_integer() || id < 0 || id >= 1 << 24)
                fail(file_.string(), ": ", key, " holds ", id.dump(), ", which is not a token id");
            if (std::ranges::find(ids, id.get<int>()) == ids.end()) ids.push_back(id.get<int>());
        }
    }
    [[noreturn]] void refuse(const std::string& what) const {
        fail(file_.string(), ": ", what, " is not supported");
    }

  private:
    std::filesystem::path file_;
    const json& object_;
};

json parse_json_file(const std::filesystem::path& file) {
    std::ifstream in(file);
    if (!in)
        fail(file.string(),
             ": cannot be opened; a model folder holds config.json, model.safetensors and tokenizer.json");
    try {
        json parsed = json::parse(in);
        if (!parsed.is_object()) fail(file.string(), ": not a JSON object");
        return parsed;
    } catch (const json::exception& e) {
        const std::string what =
            e.what();  // "[json.exception.parse_error.101] parse error at line 3, column 1: ..."
        fail(file.string(), ": not valid JSON: ", what.substr(std::min(what.size(), what.find("] ") + 2)));
    }
}

void read_rope(const ConfigReader& reader, const char* key, Config& c) {
    if (!reader.find(key)) return;
    const ConfigReader rope = reader.inner(key);
    const std::string type = rope.text("rope_type", rope.text("type", "default"));
    c.rope_theta = rope.positive("rope_theta", c.rope_theta);
    if (type == "llama3")
        c.rope_scaling = {rope.positive("factor"), rope.positive("low_freq_factor"),
                          rope.positive("high_freq_factor"),
                          rope.positive("original_max_position_embeddings")};
    else if (type != "default")
        rope.refuse("the rope type \"" + type + "\"");
    if (c.rope_scaling && c.rope_scaling->low_freq_factor >= c.rope_scaling->high_freq_factor)
        rope.refuse("a low_freq_factor that is not below high_freq_factor");
    if (rope.positive("partial_rotary_factor", 1) != 1) rope.refuse("partial_rotary_factor");
}

}  // namespace

Config Config::load(const std::filesystem::path& path) {
    const auto file = std::filesystem::is_directory(path) ? path / "config.json" : path;
    const json object = parse_json_file(file);
    const ConfigReader reader(file, object);
    Config c;
    c.model_type = reader.text("model_type", "");
    if (c.model_type != "qwen2" && c.model_type != "qwen3" && c.model_type != "llama")
        reader.refuse("the model_type \"" + c.model_type + "\" (qwen2, qwen3 and llama are)");
    c.hidden_size = reader.size("hidden_size");
    c.intermediate_size = reader.size("intermediate_size");
    c.num_hidden_layers = reader.size("num_hidden_layers", std::nullopt, 1 << 12);
    c.num_attention_heads = reader.size("num_attention_heads");
    c.num_key_value_heads = reader.size("num_key_value_heads", c.num_attention_heads);
    c.head_dim = reader.size("head_dim", c.hidden_size / c.num_attention_heads);
    c.vocab_size = reader.size("vocab_size", std::nullopt, 1 << 24);
    c.max_position_embeddings = reader.size("max_position_embeddings", std::nullopt, 1 << 24);
    c.rms_norm_eps = reader.positive("rms_norm_eps");
    c.rope_theta = reader.positive("rope_theta", c.rope_theta);
    read_rope(reader, "rope_scaling", c);     // older files
    read_rope(reader, "rope_parameters", c);  // newer ones, with rope_theta
    c.tie_word_embeddings = reader.flag("tie_word_embeddings", false);
    c.attention_bias = reader.flag("attention_bias", c.model_type == "qwen2");
    reader.token_ids("eos_token_id", c.eos_token_ids);

    if (c.num_attention_heads % c.num_key_value_heads || c.head_dim < 2 || c.head_dim % 2)
        fail(file.string(), ": num_attention_heads must be a multiple of num_key_value_heads, head_dim even");
    if (std::int64_t{c.num_attention_heads} * c.head_dim > 1 << 22)
        fail(file.string(), ": num_attention_heads x head_dim is absurdly large");
    if (const auto act = reader.text("hidden_act", "silu"); act != "silu")
        reader.refuse("the hidden_act \"" + act + "\"");
    if (c.attention_bias && c.model_type != "qwen2") reader.refuse("attention_bias of a " + c.model_type);
    if (reader.flag("mlp_bias", false)) reader.refuse("mlp_bias");
    if (reader.flag("rope_interleaved", false)) reader.refuse("rope_interleaved");
    for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"})
        if (reader.find(key)) reader.refuse("a mixture of experts (" + std::string(key) + ")");
    if (reader.find("quantization_config")) {
        const auto quantization = reader.inner("quantization_config");
        reader.refuse("quantised weights (" + quantization.text("quant_method", "of an unnamed method") +
                      ")");
    }
    // Qwen's layers from max_window_layers on see a window only, if use_sliding_window says so.
    const json *window = reader.find("sliding_window"), *whole = reader.find("max_window_layers");
    if (reader.flag("use_sliding_window", false) && window && *window < c.max_position_embeddings &&
        (!whole || *whole < c.num_hidden_layers))
        reader.refuse("a sliding window (use_sliding_window)");
    if (const json* types = reader.find("layer_types"))
        for (const json& type : *types)
            if (type != "full_attention") reader.refuse("the layer type " + type.dump());

    if (const auto generation = file.parent_path() / "generation_config.json";
        std::filesystem::exists(generation)) {
        const json more = parse_json_file(generation);
        const ConfigReader generation_reader(generation, more);
        generation_reader.token_ids("eos_token_id", c.eos_token_ids);
        c.stop_texts = generation_reader.texts("stop_strings");
    }
    return c;
}

std::vector<double> Config::rotary_frequencies() const {
    const int half = head_dim / 2;
    std::vector<double> frequencies(half);
    for (int i = 0; i < half; ++i) {
        double& f = frequencies[i] = std::pow(rope_theta, -static_cast<double>(i) / half);
        if (!rope_scaling) continue;
        const auto& s = *rope_scaling;
        // How often the wave turns within the original context: often, it stays; rarely, it is slowed down.
        const double turns = s.original_max_position_embeddings * f / (2 * std::numbers::pi);
        const double keep = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        f *= std::lerp(1 / s.factor, 1, std::clamp(keep, 0.0, 1.0));
    }
    return frequencies;
}

ParameterLayout::ParameterLayout(const Config& c) {
    auto add = [&](const std::string& name, int64_t rows, int64_t cols, bool is_matrix) {
        entries.push_back({name, total, rows, cols, is_matrix});
        total += rows * cols;
        return total - rows * cols;
    };
    const int64_t C = c.hidden_size, F = c.intermediate_size;
    const int64_t q = c.attention().q_cols(), kv = c.attention().kv_cols();
    layers.resize(c.num_hidden_layers);
    auto prefix = [](std::size_t l) { return "model.layers." + std::to_string(l) + "."; };

    embed = head = add("model.embed_tokens.weight", c.vocab_size, C, true);
    for (std::size_t l = 0; l < layers.size(); ++l) {
        layers[l].qkv = add(prefix(l) + "self_attn.q_proj.weight", q, C, true);
        add(prefix(l) + "self_attn.k_proj.weight", kv, C, true);
        add(prefix(l) + "self_attn.v_proj.weight", kv, C, true);
        layers[l].o = add(prefix(l) + "self_attn.o_proj.weight", C, q, true);
        layers[l].gate_up = add(prefix(l) + "mlp.gate_proj.weight", F, C, true);
        add(prefix(l) + "mlp.up_proj.weight", F, C, true);
        layers[l].down = add(prefix(l) + "mlp.down_proj.weight", C, F, true);
    }
    if (!c.tie_word_embeddings) head = add("lm_head.weight", c.vocab_size, C, true);
    matrices = total;
    for (std::size_t l = 0; l < layers.size(); ++l) {
        layers[l].input_norm = add(prefix(l) + "input_layernorm.weight", C, 1, false);
        layers[l].post_norm = add(prefix(l) + "post_attention_layernorm.weight", C, 1, false);
        if (c.head_norm()) {
            layers[l].q_norm = add(prefix(l) + "self_attn.q_norm.weight", c.head_dim, 1, false);
            layers[l].k_norm = add(prefix(l) + "self_attn.k_norm.weight", c.head_dim, 1, false);
        }
        if (c.attention_bias) {
            layers[l].qkv_bias = add(prefix(l) + "self_attn.q_proj.bias", q, 1, false);
            add(prefix(l) + "self_attn.k_proj.bias", kv, 1, false);
            add(prefix(l) + "self_attn.v_proj.bias", kv, 1, false);
        }
    }
    final_norm = add("model.norm.weight", C, 1, false);
}

// ---- batches and memory ----

void PackedBatch::add(const std::vector<int32_t>& sequence, std::size_t first_scored) {
    if (first_scored < 1 || first_scored > sequence.size())
        fail("a sequence needs a first token and one that it predicts");
    std::vector<bool> scored(sequence.size(), true);
    std::fill_n(scored.begin(), first_scored, false);
    add(sequence, scored);
}

void PackedBatch::add(const std::vector<int32_t>& sequence, const std::vector<bool>& scored) {
    if (sequence.size() < 2 || scored.size() != sequence.size() || scored[0])
        fail("a sequence needs a first token and one that it predicts");
    for (std::size_t t = 0; t + 1 < sequence.size(); ++t) {
        if (scored[t + 1]) {
            score_rows.push_back(static_cast<int32_t>(tokens.size()));
            targets.push_back(sequence[t + 1]);
        }
        tokens.push_back(sequence[t]);
        positions.push_back(static_cast<int32_t>(t));
    }
    cu_seqlens.push_back(static_cast<int32_t>(tokens.size()));
}

KvCache::KvCache(Backend& backend, const Config& config, int64_t rows)
    : rows(rows), arena_(backend, bytes(config, rows, backend)) {
    for (int l = 0; l < config.num_hidden_layers; ++l) {
        k.push_back(arena_.take(backend.activation(), rows, config.attention().kv_cols()));
        v.push_back(arena_.take(backend.activation(), rows, config.attention().kv_cols()));
    }
}

std::size_t KvCache::bytes(const Config& config, int64_t rows, const Backend& backend) {
    Arena measure;
    for (int i = 0; i < 2 * config.num_hidden_layers; ++i)
        measure.take(backend.activation(), rows, config.attention().kv_cols());
    return measure.used();
}

Transformer::Workspace Transformer::take_workspace(Arena& arena, const Config& c, const TransformerOptions& o,
                                                   const Backend& backend) {
    const int64_t N = std::max(o.max_tokens, o.max_decode_rows), M = o.max_tokens, B = o.max_decode_rows;
    const int64_t C = c.hidden_size, F = c.intermediate_size, V = c.vocab_size;
    const AttentionShape shape = c.attention();
    auto real = [&](int64_t rows, int64_t cols = 1) { return arena.take(backend.real(), rows, cols); };
    auto act = [&](int64_t rows, int64_t cols) { return arena.take(backend.activation(), rows, cols); };
    auto ints = [&](int64_t rows, int64_t cols = 1) { return arena.take(DType::I32, rows, cols); };

    Workspace w;
    const bool keep_all = o.trainable && !o.recompute;
    const int64_t head_norm_rows = c.head_norm() ? N : 0;
    for (int l = 0; l < c.num_hidden_layers; ++l) {
        if (l == 0 || keep_all)
            w.layers.push_back({.x = real(N, C),
                                .norm1 = act(N, C),
                                .rstd1 = real(N),
                                .raw_qkv = act(head_norm_rows, shape.qkv_cols()),
                                .head_rstd = real(head_norm_rows, shape.heads + shape.kv_heads),
                                .qkv = act(N, shape.qkv_cols()),
                                .attention = act(N, shape.q_cols()),
                                .lse = real(N, shape.heads),
                                .x2 = real(N, C),
                                .norm2 = act(N, C),
                                .rstd2 = real(N),
                                .gate_up = act(N, 2 * F),
                                .swiglu = act(N, F)});
        else
            w.layers.push_back(w.layers[0]);
        if (l > 0 && o.trainable && o.recompute) w.layers.back().x = real(N, C);
    }
    w.branch = act(N, C);
    w.scored = real(N, C), w.delta = act(M, C), w.hidden = act(N, C), w.rstd = real(N);
    w.logp = real(M), w.entropy = real(M);
    w.logits =
        real(std::min<int64_t>(M, std::max<int64_t>(backend.preferences().logit_rows, (1 << 20) / V)), V);
    if (o.trainable) {
        w.dlogp = real(M), w.dentropy = real(M), w.dhidden = act(M, C), w.dscored = real(M, C);
        w.dx = real(N, C), w.dnorm = act(N, C), w.dattention = act(N, shape.q_cols());
        w.dqkv = act(N, shape.qkv_cols()), w.dswiglu = act(N, F), w.dgate_up = act(N, 2 * F);
    }
    w.tokens = ints(N), w.positions = ints(N), w.cu_seqlens = ints(N + 1);
    w.score_rows = ints(N), w.targets = ints(N), w.cache_rows = ints(N), w.spans = ints(B, 4);
    w.decode_logits = real(B, V);
    return w;
}

Transformer::Plan Transformer::plan(const Config& config, const TransformerOptions& options,
                                    const Backend& backend) {
    const ParameterLayout layout(config);
    Arena measure;
    take_workspace(measure, config, options, backend);
    Plan p;
    const std::size_t real = bytes_of(backend.real());
    p.parameters = (layout.total - layout.matrices) * real +
                   layout.matrices * (options.bf16_master ? 0 : real) +
                   layout.matrices * (options.bf16_matrices ? 2 : 0);
    p.gradients = options.trainable ? layout.total * real : 0;
    p.activations = measure.used();
    return p;
}

Transformer::Transformer(Backend& backend, const Config& config, const TransformerOptions& options)
    : backend_(backend), config_(config), options_(options), layout_(config) {
    const DType real = backend.real();
    const int64_t matrices = layout_.matrices, vectors = layout_.total - matrices;
    if (options.bf16_matrices) {
        bf16_buffer_ = Buffer(backend, matrices * 2);
        bf16_matrices_ = {bf16_buffer_.data(), DType::BF16, matrices, 1};
    }
    if (options.bf16_master) {
        parameter_buffer_ = Buffer(backend, vectors * bytes_of(real));
        matrices_ = bf16_matrices_;
        vectors_ = {parameter_buffer_.data(), real, vectors, 1};
    } else {
        parameter_buffer_ = Buffer(backend, layout_.total * bytes_of(real));
        const Tensor all{parameter_buffer_.data(), real, layout_.total, 1};
        matrices_ = all.slice(0, matrices), vectors_ = all.slice(matrices, vectors);
    }
    backend.zero(matrices_), backend.zero(vectors_);
    if (options.trainable) {
        gradient_buffer_ = Buffer(backend, layout_.total * bytes_of(real));
        gradients_ = {gradient_buffer_.data(), real, layout_.total, 1};
        backend.zero(gradients_);
    }
    const int half = config.head_dim / 2;
    rope_buffer_ = Buffer(backend, half * bytes_of(real));
    inv_freq_ = {rope_buffer_.data(), real, half, 1};
    const auto inv_freq = config.rotary_frequencies();
    if (real == DType::F64)
        backend.upload(inv_freq_, inv_freq.data());
    else
        upload_floats(backend, inv_freq_, std::vector<float>(inv_freq.begin(), inv_freq.end()));
    Arena measure;
    take_workspace(measure, config, options, backend);
    arena_ = Arena(backend, measure.used());
    work_ = take_workspace(arena_, config, options, backend);
}

// ---- parameters ----

Tensor Transformer::matrix(int64_t offset, int64_t rows, int64_t cols) const {
    const Tensor& all = options_.bf16_matrices ? bf16_matrices_ : matrices_;
    return all.slice(offset, rows * cols).reshape(rows, cols);
}
Tensor Transformer::vector(int64_t offset, int64_t size) const {
    return offset < 0 ? Tensor{} : vectors_.slice(offset - layout_.matrices, size);
}
Tensor Transformer::gradient(int64_t offset, int64_t rows, int64_t cols) const {
    return offset < 0 ? Tensor{} : gradients_.slice(offset, rows * cols).reshape(rows, cols);
}

Tensor Transformer::parameters(int64_t first, int64_t count) const {
    return first < layout_.matrices ? matrices_.slice(first, count)
                                    : vectors_.slice(first - layout_.matrices, count);
}

std::vector<float> Transformer::download_parameters() const {
    std::vector<float> values(layout_.total);
    download_floats(backend_, matrices_, std::span(values).first(layout_.matrices));
    download_floats(backend_, vectors_, std::span(values).subspan(layout_.matrices));
    return values;
}

void Transformer::upload_parameters(std::span<const float> values) {
    upload_floats(backend_, matrices_, values.first(layout_.matrices));
    upload_floats(backend_, vectors_, values.subspan(layout_.matrices));
    parameters_changed();
}

void Transformer::parameters_changed() {
    if (options_.bf16_matrices && !options_.bf16_master) backend_.copy(bf16_matrices_, matrices_);
}

void Transformer::initialize(std::uint64_t seed) {
    const double residual = 1 / std::sqrt(2.0 * config_.num_hidden_layers);  // GPT-2, section 2.3
    for (const auto& e : layout_.entries) {
        const bool into_residual = e.name.ends_with("o_proj.weight") || e.name.ends_with("down_proj.weight");
        std::vector<float> values(e.rows * e.cols, e.name.ends_with("norm.weight") ? 1.0f : 0.0f);
        if (e.is_matrix)
            parallel_for(e.rows, [&](int64_t row) {
                for (int64_t i = row * e.cols; i < (row + 1) * e.cols; ++i) {  // Box-Muller
                    const auto index = static_cast<std::uint64_t>(e.offset + i);
                    const std::uint32_t a[4] = {static_cast<std::uint32_t>(index),
                                                static_cast<std::uint32_t>(index >> 32), 0, 0};
                    const std::uint32_t b[4] = {a[0], a[1], 1, 0};
                    const double normal = std::sqrt(-2 * std::log(philox_uniform(seed, a))) *
                                          std::cos(2 * std::numbers::pi * philox_uniform(seed, b));
                    values[i] = static_cast<float>(0.02 * normal * (into_residual ? residual : 1));
                }
            });
        upload_floats(backend_, parameters(e.offset, e.rows * e.cols), values);
    }
    parameters_changed();
}

namespace {
std::vector<int64_t> shape_of(const ParameterLayout::Entry& e) {
    return e.is_matrix ? std::vector<int64_t>{e.rows, e.cols} : std::vector<int64_t>{e.rows};
}
}  // namespace

void Transformer::load_weights(const std::filesystem::path& folder) {
    const SafeTensors weights(folder);
    for (const auto& e : layout_.entries)
        weights.read_f32(e.name, shape_of(e), [&](int64_t first, std::span<const float> values) {
            upload_floats(backend_, parameters(e.offset + first, static_cast<int64_t>(values.size())),
                          values);
        });
    parameters_changed();
}

void Transformer::save_weights(const std::filesystem::path& folder, SafeDtype dtype) const {
    std::vector<SafeTensorOut> tensors;
    for (const auto& e : layout_.entries)
        tensors.push_back({e.name, shape_of(e), {}, [&](int64_t first, std::span<float> out) {
                               download_floats(backend_,
                                               parameters(e.offset + first, static_cast<int64_t>(out.size())),
                                               out);
                           }});
    std::filesystem::create_directories(folder);
    write_safetensors(folder / "model.safetensors", tensors, dtype);
}

// ---- the architecture ----

Tensor Transformer::upload(Tensor to, const std::vector<int32_t>& host) {
    to = to.reshape(to.size(), 1).slice(0, static_cast<int64_t>(host.size()));
    backend_.upload(to, host.data());
    return to;
}

Transformer::Batch Transformer::upload(const PackedBatch& batch) {
    if (batch.size() > options_.max_tokens)
        fail("a batch of ", batch.size(), " tokens does not fit the planned ", options_.max_tokens,
             "; raise --token-budget");
    for (int32_t id : batch.tokens)
        if (id < 0 || id >= config_.vocab_size)
            fail("token id ", id, " is outside the model's vocabulary of ", config_.vocab_size,
                 ": tokenizer and model do not match");
    return {upload(work_.tokens, batch.tokens), upload(work_.positions, batch.positions),
            upload(work_.cu_seqlens, batch.cu_seqlens), upload(work_.score_rows, batch.score_rows),
            upload(work_.targets, batch.targets)};
}

Transformer::LayerActivations Transformer::activations(std::size_t layer, int64_t tokens) const {
    LayerActivations a = work_.layers[layer];
    for (Tensor* t : {&a.x, &a.norm1, &a.rstd1, &a.raw_qkv, &a.head_rstd, &a.qkv, &a.attention, &a.lse, &a.x2,
                      &a.norm2, &a.rstd2, &a.gate_up, &a.swiglu})
        *t = t->slice(0, std::min(tokens, t->rows));
    return a;
}

/// One decoder layer. Leaves what the feed-forward adds to a.x2 in work_.branch.
template <class Attend>
void Transformer::forward_layer(std::size_t layer, const LayerActivations& a, Tensor x, Tensor delta,
                                Attend attend) {
    const auto& p = layout_.layers[layer];
    const auto shape = config_.attention();
    const int64_t C = config_.hidden_size, F = config_.intermediate_size;
    const Tensor branch = work_.branch.slice(0, a.x.rows);

    backend_.rmsnorm_forward(a.norm1, a.rstd1, a.x, x, delta, vector(p.input_norm, C),
                             static_cast<float>(config_.rms_norm_eps));
    backend_.linear_forward(config_.head_norm() ? a.raw_qkv : a.qkv, a.norm1,
                            matrix(p.qkv, shape.qkv_cols(), C), vector(p.qkv_bias, shape.qkv_cols()));
    if (config_.head_norm())
        backend_.head_norm_forward(a.qkv, a.head_rstd, a.raw_qkv, vector(p.q_norm, shape.head_dim),
                                   vector(p.k_norm, shape.head_dim), shape,
                                   static_cast<float>(config_.rms_norm_eps));
    attend(layer, a);
    backend_.linear_forward(branch, a.attention, matrix(p.o, C, shape.q_cols()), {});

    backend_.rmsnorm_forward(a.norm2, a.rstd2, a.x2, a.x, branch, vector(p.post_norm, C),
                             static_cast<float>(config_.rms_norm_eps));
    backend_.linear_forward(a.gate_up, a.norm2, matrix(p.gate_up, 2 * F, C), {});
    backend_.swiglu_forward(a.swiglu, a.gate_up);
    backend_.linear_forward(branch, a.swiglu, matrix(p.down, C, F), {});
}

void Transformer::rotate_and_attend(const LayerActivations& a) {
    backend_.rope(a.qkv, batch_.positions, inv_freq_, config_.attention(), false);
    backend_.attention_forward(a.attention, a.lse, a.qkv, batch_.cu_seqlens, config_.attention());
}

template <class Attend>
Transformer::LayerActivations Transformer::run_layers(Tensor tokens, Attend attend) {
    const Tensor branch = work_.branch.slice(0, tokens.rows);
    LayerActivations a = activations(0, tokens.rows);
    backend_.embedding_forward(a.x, tokens, matrix(layout_.embed, config_.vocab_size, config_.hidden_size));
    forward_layer(0, a, a.x, {}, attend);
    for (std::size_t layer = 1; layer < layout_.layers.size(); ++layer) {
        const Tensor x2 = a.x2;
        a = activations(layer, tokens.rows);
        forward_layer(layer, a, x2, branch, attend);
    }
    return a;
}

Transformer::Scores Transformer::forward(const PackedBatch& batch, float temperature) {
    if (backend_.real() != DType::F32) fail("forward() returns float32; use a float32 backend");
    forward_on_device(batch, temperature);
    Scores scores{std::vector<float>(batch.scored()), std::vector<float>(batch.scored())};
    backend_.download(scores.logp.data(), work_.logp.slice(0, batch.scored()));
    backend_.download(scores.entropy.data(), work_.entropy.slice(0, batch.scored()));
    return scores;
}

std::pair<Tensor, Tensor> Transformer::forward_on_device(const PackedBatch& batch, float temperature) {
    const int64_t M = batch.scored(), C = config_.hidden_size, V = config_.vocab_size;
    batch_ = upload(batch);
    temperature_ = temperature;
    const auto last =
        run_layers(batch_.tokens, [&](std::size_t, const LayerActivations& a) { rotate_and_attend(a); });
    // Only rows that score a token reach the final norm and the head.
    const Tensor scored = work_.scored.slice(0, M), delta = work_.delta.slice(0, M),
                 hidden = work_.hidden.slice(0, M);
    backend_.gather_rows(scored, last.x2, batch_.score_rows);
    backend_.gather_rows(delta, work_.branch.slice(0, batch.size()), batch_.score_rows);
    backend_.rmsnorm_forward(hidden, work_.rstd.slice(0, M), scored, scored, delta,
                             vector(layout_.final_norm, C), static_cast<float>(config_.rms_norm_eps));
    backend_.head_forward(work_.logp.slice(0, M), work_.entropy.slice(0, M), hidden,
                          matrix(layout_.head, V, C), batch_.targets, temperature, work_.logits);
    return {work_.logp.slice(0, M), work_.entropy.slice(0, M)};
}

void Transformer::backward(const std::vector<float>& dlogp, const std::vector<float>& dentropy) {
    auto upload_real = [&](Tensor to, const std::vector<float>& host) {
        to = to.slice(0, static_cast<int64_t>(host.size()));
        if (to.dtype == DType::F32)
            backend_.upload(to, host.data());
        else
            backend_.upload(to, std::vector<double>(host.begin(), host.end()).data());
        return to;
    };
    const int64_t N = batch_.tokens.rows, M = batch_.targets.rows, C = config_.hidden_size,
                  V = config_.vocab_size;
    if (static_cast<int64_t>(dlogp.size()) != M)
        fail("backward() wants one coefficient per scored token of the latest forward()");
    const Tensor d = upload_real(work_.dlogp, dlogp);
    const Tensor de = dentropy.empty() ? Tensor{} : upload_real(work_.dentropy, dentropy);

    const Tensor dhidden = work_.dhidden.slice(0, M), dscored = work_.dscored.slice(0, M);
    backend_.head_backward(dhidden, gradient(layout_.head, V, C), d, de, work_.hidden.slice(0, M),
                           matrix(layout_.head, V, C), batch_.targets, temperature_, work_.logits);
    backend_.zero(dscored);
    backend_.rmsnorm_backward(dscored, gradient(layout_.final_norm, C), dhidden, work_.scored.slice(0, M),
                              work_.rstd.slice(0, M), vector(layout_.final_norm, C));
    backend_.scatter_rows(work_.dx.slice(0, N), dscored, batch_.score_rows);
    for (std::size_t layer = layout_.layers.size(); layer-- > 0;) {
        const auto a = activations(layer, N);
        if (options_.recompute && layer + 1 < layout_.layers.size())
            forward_layer(layer, a, a.x, {},
                          [&](std::size_t, const LayerActivations& a) { rotate_and_attend(a); });
        backward_layer(layer, a);
    }
    backend_.embedding_backward(gradient(layout_.embed, V, C), batch_.tokens, work_.dx.slice(0, N));
}

/// forward_layer read from the bottom up. work_.dx holds the gradient of the residual stream behind the
/// layer, and afterwards of the one before it: the stream itself passes gradients on unchanged, each block
/// adds its own.
void Transformer::backward_layer(std::size_t layer, const LayerActivations& a) {
    const auto& p = layout_.layers[layer];
    const auto shape = config_.attention();
    const int64_t N = a.x.rows, C = config_.hidden_size, F = config_.intermediate_size;
    const Tensor dx = work_.dx.slice(0, N), dnorm = work_.dnorm.slice(0, N);
    const Tensor dswiglu = work_.dswiglu.slice(0, N), dgate_up = work_.dgate_up.slice(0, N);
    const Tensor dattention = work_.dattention.slice(0, N), dqkv = work_.dqkv.slice(0, N);

    backend_.linear_backward_weight(gradient(p.down, C, F), {}, dx, a.swiglu);
    backend_.linear_backward_input(dswiglu, dx, matrix(p.down, C, F));
    backend_.swiglu_backward(dgate_up, dswiglu, a.gate_up);
    backend_.linear_backward_weight(gradient(p.gate_up, 2 * F, C), {}, dgate_up, a.norm2);
    backend_.linear_backward_input(dnorm, dgate_up, matrix(p.gate_up, 2 * F, C));
    backend_.rmsnorm_backward(dx, gradient(p.post_norm, C), dnorm, a.x2, a.rstd2, vector(p.post_norm, C));

    backend_.linear_backward_weight(gradient(p.o, C, shape.q_cols()), {}, dx, a.attention);
    backend_.linear_backward_input(dattention, dx, matrix(p.o, C, shape.q_cols()));
    backend_.attention_backward(dqkv, dattention, a.attention, a.lse, a.qkv, batch_.cu_seqlens, shape);
    backend_.rope(dqkv, batch_.positions, inv_freq_, shape, true);
    if (config_.head_norm())
        backend_.head_norm_backward(
            dqkv, gradient(p.q_norm, shape.head_dim), gradient(p.k_norm, shape.head_dim), a.raw_qkv,
            a.head_rstd, vector(p.q_norm, shape.head_dim), vector(p.k_norm, shape.head_dim), shape);
    backend_.linear_backward_weight(gradient(p.qkv, shape.qkv_cols(), C),
                                    gradient(p.qkv_bias, shape.qkv_cols()), dqkv, a.norm1);
    backend_.linear_backward_input(dnorm, dqkv, matrix(p.qkv, shape.qkv_cols(), C));
    backend_.rmsnorm_backward(dx, gradient(p.input_norm, C), dnorm, a.x, a.rstd1, vector(p.input_norm, C));
}

// ---- generation ----

void Transformer::prefill(const PackedBatch& batch, const std::vector<int32_t>& cache_rows, KvCache& cache) {
    batch_ = upload(batch);
    const Tensor rows = upload(work_.cache_rows, cache_rows);
    run_layers(batch_.tokens, [&](std::size_t layer, const LayerActivations& a) {
        backend_.rope_append(cache.k[layer], cache.v[layer], a.qkv, rows, batch_.positions, inv_freq_,
                             config_.attention());
        backend_.attention_forward(a.attention, a.lse, a.qkv, batch_.cu_seqlens, config_.attention());
    });
}

Transformer::DecodeInput Transformer::upload_decode_input(const std::vector<int32_t>& tokens,
                                                          const std::vector<int32_t>& positions,
                                                          const std::vector<int32_t>& cache_rows,
                                                          const std::vector<int32_t>& spans) {
    return {upload(work_.tokens, tokens), upload(work_.positions, positions),
            upload(work_.cache_rows, cache_rows),
            upload(work_.spans, spans).reshape(static_cast<int64_t>(tokens.size()), 4)};
}

Tensor Transformer::decode(const DecodeInput& in, KvCache& cache) {
    const int64_t B = in.tokens.rows, C = config_.hidden_size;
    const auto last = run_layers(in.tokens, [&](std::size_t layer, const LayerActivations& a) {
        backend_.rope_append(cache.k[layer], cache.v[layer], a.qkv, in.cache_rows, in.positions, inv_freq_,
                             config_.attention());
        backend_.decode_attention(a.attention, a.qkv, cache.k[layer], cache.v[layer], in.spans,
                                  config_.attention());
    });
    const Tensor x = work_.scored.slice(0, B), hidden = work_.hidden.slice(0, B),
                 logits = work_.decode_logits.slice(0, B);
    backend_.rmsnorm_forward(hidden, work_.rstd.slice(0, B), x, last.x2, work_.branch.slice(0, B),
                             vector(layout_.final_norm, C), static_cast<float>(config_.rms_norm_eps));
    backend_.linear_forward(logits, hidden, matrix(layout_.head, config_.vocab_size, C), {});
    return logits;
}

}  // namespace r1
