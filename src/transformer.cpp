#include "src/transformer.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numbers>

#include "src/safetensors.h"

namespace r1 {

using nlohmann::ordered_json;
using std::int32_t;
using std::int64_t;

// ---- configuration ----

Config Config::load(const std::filesystem::path& path) {
    const auto file = std::filesystem::is_directory(path) ? path / "config.json" : path;
    std::ifstream in(file);
    if (!in)
        fail(file.string(),
             ": cannot be opened; a model folder holds config.json, model.safetensors and tokenizer.json");
    Config c;
    try {
        const auto json = ordered_json::parse(in);
        auto refuse = [&](const std::string& what) { fail(file.string(), ": ", what, " is not supported"); };
        c.model_type = json.at("model_type");
        if (c.model_type != "qwen2" && c.model_type != "llama") refuse("model_type \"" + c.model_type + "\"");
        if (json.value("hidden_act", "silu") != "silu") refuse("hidden_act other than silu");
        if (json.value("use_sliding_window", false)) refuse("use_sliding_window");
        if (json.contains("rope_scaling") && !json["rope_scaling"].is_null()) refuse("rope_scaling");
        c.hidden_size = json.at("hidden_size");
        c.intermediate_size = json.at("intermediate_size");
        c.num_hidden_layers = json.at("num_hidden_layers");
        c.num_attention_heads = json.at("num_attention_heads");
        c.num_key_value_heads = json.value("num_key_value_heads", c.num_attention_heads);
        c.vocab_size = json.at("vocab_size");
        c.max_position_embeddings = json.at("max_position_embeddings");
        c.rms_norm_eps = json.at("rms_norm_eps");
        c.rope_theta = json.value("rope_theta", 10000.0);
        if (auto rope = json.find("rope_parameters");
            rope != json.end() && !rope->is_null()) {  // where newer files keep it
            if (rope->value("rope_type", "default") != "default")
                refuse("rope_type " + rope->at("rope_type").dump());
            c.rope_theta = rope->value("rope_theta", c.rope_theta);
        }
        c.tie_word_embeddings = json.value("tie_word_embeddings", false);
        c.attention_bias = json.value("attention_bias", c.model_type == "qwen2");
        if (c.model_type == "llama" && c.attention_bias)
            refuse("attention_bias of a llama (it has one on o_proj too)");
        if (auto eos = json.find("eos_token_id"); eos != json.end() && !eos->is_null())
            c.eos_token_ids =
                eos->is_array() ? eos->get<std::vector<int>>() : std::vector<int>{eos->get<int>()};
        for (int v : {c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
                      c.num_key_value_heads, c.vocab_size, c.max_position_embeddings})
            if (v <= 0 || v > 1 << 24) fail(file.string(), ": a size is zero, negative or absurdly large");
        c.head_dim = c.hidden_size / c.num_attention_heads;
        if (json.contains("head_dim") && !json["head_dim"].is_null()) c.head_dim = json["head_dim"];
        if (c.num_attention_heads % c.num_key_value_heads || c.head_dim <= 0 || c.head_dim % 2)
            fail(file.string(),
                 ": num_attention_heads must be a multiple of num_key_value_heads, head_dim even");
    } catch (const nlohmann::json::exception& e) {
        fail(file.string(), ": not a valid model configuration: ", e.what());
    }
    return c;
}

ordered_json Config::to_json() const {
    ordered_json json = {{"architectures", {model_type == "qwen2" ? "Qwen2ForCausalLM" : "LlamaForCausalLM"}},
                         {"model_type", model_type},
                         {"hidden_size", hidden_size},
                         {"intermediate_size", intermediate_size},
                         {"num_hidden_layers", num_hidden_layers},
                         {"num_attention_heads", num_attention_heads},
                         {"num_key_value_heads", num_key_value_heads},
                         {"head_dim", head_dim},
                         {"vocab_size", vocab_size},
                         {"max_position_embeddings", max_position_embeddings},
                         {"rms_norm_eps", rms_norm_eps},
                         {"rope_theta", rope_theta},
                         {"hidden_act", "silu"},
                         {"attention_bias", attention_bias},
                         {"tie_word_embeddings", tie_word_embeddings}};
    if (eos_token_ids.size() == 1) json["eos_token_id"] = eos_token_ids[0];
    if (eos_token_ids.size() > 1) json["eos_token_id"] = eos_token_ids;
    return json;
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
        layers[l].qkv_bias = -1;
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
    if (sequence.size() < 2 || first_scored < 1)
        fail("a sequence needs a first token and one that it predicts");
    for (std::size_t t = 0; t + 1 < sequence.size(); ++t) {
        if (t + 1 >= first_scored) {
            score_rows.push_back(static_cast<int32_t>(tokens.size()));
            targets.push_back(sequence[t + 1]);
        }
        tokens.push_back(sequence[t]);
        positions.push_back(static_cast<int32_t>(t));
    }
    cu_seqlens.push_back(static_cast<int32_t>(tokens.size()));
}

KvCache::KvCache(Backend& backend, const Config& config, int64_t rows)
    : rows(rows), arena_(backend, bytes(config, rows, backend.real())) {
    for (int l = 0; l < config.num_hidden_layers; ++l) {
        k.push_back(arena_.take(backend.real(), rows, config.attention().kv_cols()));
        v.push_back(arena_.take(backend.real(), rows, config.attention().kv_cols()));
    }
}

std::size_t KvCache::bytes(const Config& config, int64_t rows, DType real) {
    Arena measure;
    for (int i = 0; i < 2 * config.num_hidden_layers; ++i)
        measure.take(real, rows, config.attention().kv_cols());
    return measure.used();
}

Transformer::Workspace Transformer::take_workspace(Arena& arena, const Config& c, const TransformerOptions& o,
                                                   DType real) {
    const int64_t N = std::max(o.max_tokens, o.max_decode_rows), M = o.max_tokens, B = o.max_decode_rows;
    const int64_t C = c.hidden_size, F = c.intermediate_size, V = c.vocab_size;
    const AttentionShape shape = c.attention();
    auto take = [&](int64_t rows, int64_t cols = 1) { return arena.take(real, rows, cols); };
    auto take_int = [&](int64_t rows, int64_t cols = 1) { return arena.take(DType::I32, rows, cols); };

    Workspace w;
    const bool keep_all = o.trainable && !o.recompute;
    for (int l = 0; l < c.num_hidden_layers; ++l) {
        if (l == 0 || keep_all)
            w.layers.push_back({take(N, C), take(N, C), take(N), take(N, shape.qkv_cols()),
                                take(N, shape.q_cols()), take(N, shape.heads), take(N, C), take(N, C),
                                take(N), take(N, 2 * F), take(N, F)});
        else
            w.layers.push_back(w.layers[0]);
        if (l > 0 && o.trainable && o.recompute) w.layers.back().x = take(N, C);
    }
    w.branch = take(N, C);
    w.scored = take(N, C), w.delta = take(M, C), w.hidden = take(N, C), w.rstd = take(N);
    w.logp = take(M), w.entropy = take(M);
    w.logits = take(std::min<int64_t>(M, std::max<int64_t>(256, (1 << 20) / V)), V);
    if (o.trainable) {
        w.dlogp = take(M), w.dentropy = take(M), w.dhidden = take(M, C), w.dscored = take(M, C);
        w.dx = take(N, C), w.dnorm = take(N, C), w.dattention = take(N, shape.q_cols());
        w.dqkv = take(N, shape.qkv_cols()), w.dswiglu = take(N, F), w.dgate_up = take(N, 2 * F);
    }
    w.tokens = take_int(N), w.positions = take_int(N), w.cu_seqlens = take_int(N + 1);
    w.score_rows = take_int(N), w.targets = take_int(N), w.cache_rows = take_int(N), w.spans = take_int(B, 4);
    w.decode_logits = take(B, V);
    return w;
}

Transformer::Plan Transformer::plan(const Config& config, const TransformerOptions& options, DType real) {
    const ParameterLayout layout(config);
    Arena measure;
    take_workspace(measure, config, options, real);
    Plan p;
    p.parameters = layout.total * bytes_of(real) + (options.bf16_matrices ? layout.matrices * 2 : 0);
    p.gradients = options.trainable ? layout.total * bytes_of(real) : 0;
    p.activations = measure.used();
    return p;
}

Transformer::Transformer(Backend& backend, const Config& config, const TransformerOptions& options)
    : backend_(backend), config_(config), options_(options), layout_(config) {
    const DType real = backend.real();
    const auto bytes = layout_.total * bytes_of(real);
    parameter_buffer_ = Buffer(backend, bytes);
    parameters_ = {parameter_buffer_.data(), real, layout_.total, 1};
    backend.zero(parameters_);
    if (options.trainable) {
        gradient_buffer_ = Buffer(backend, bytes);
        gradients_ = {gradient_buffer_.data(), real, layout_.total, 1};
        backend.zero(gradients_);
    }
    if (options.bf16_matrices) {
        bf16_buffer_ = Buffer(backend, layout_.matrices * 2);
        bf16_matrices_ = {bf16_buffer_.data(), DType::BF16, layout_.matrices, 1};
    }
    const int half = config.head_dim / 2;
    rope_buffer_ = Buffer(backend, half * bytes_of(real));
    inv_freq_ = {rope_buffer_.data(), real, half, 1};
    std::vector<double> inv_freq(half);
    for (int i = 0; i < half; ++i) inv_freq[i] = std::pow(config.rope_theta, -static_cast<double>(i) / half);
    if (real == DType::F64)
        backend.upload(inv_freq_, inv_freq.data());
    else
        backend.upload(inv_freq_, std::vector<float>(inv_freq.begin(), inv_freq.end()).data());
    Arena measure;
    take_workspace(measure, config, options, real);
    arena_ = Arena(backend, measure.used());
    work_ = take_workspace(arena_, config, options, real);
}

// ---- parameters ----

Tensor Transformer::matrix(int64_t offset, int64_t rows, int64_t cols) const {
    const Tensor& all = options_.bf16_matrices ? bf16_matrices_ : parameters_;
    return all.slice(offset, rows * cols).reshape(rows, cols);
}
Tensor Transformer::vector(int64_t offset, int64_t size) const {
    return offset < 0 ? Tensor{} : parameters_.slice(offset, size);
}
Tensor Transformer::gradient(int64_t offset, int64_t rows, int64_t cols) const {
    return offset < 0 ? Tensor{} : gradients_.slice(offset, rows * cols).reshape(rows, cols);
}

std::vector<float> Transformer::download_parameters() const {
    std::vector<float> values(layout_.total);
    if (backend_.real() == DType::F32) {
        backend_.download(values.data(), parameters_);
    } else {
        std::vector<double> wide(layout_.total);
        backend_.download(wide.data(), parameters_);
        values.assign(wide.begin(), wide.end());
    }
    return values;
}

void Transformer::upload_parameters(const std::vector<float>& values) {
    if (backend_.real() == DType::F32)
        backend_.upload(parameters_, values.data());
    else
        backend_.upload(parameters_, std::vector<double>(values.begin(), values.end()).data());
    parameters_changed();
}

void Transformer::parameters_changed() {
    if (options_.bf16_matrices) backend_.copy(bf16_matrices_, parameters_.slice(0, layout_.matrices));
}

void Transformer::initialize(std::uint64_t seed) {
    std::vector<float> values(layout_.total, 0);
    const double residual = 1 / std::sqrt(2.0 * config_.num_hidden_layers);  // GPT-2, section 2.3
    for (const auto& e : layout_.entries) {
        const bool into_residual = e.name.ends_with("o_proj.weight") || e.name.ends_with("down_proj.weight");
        for (int64_t i = e.offset; i < e.offset + e.rows * e.cols; ++i) {
            if (e.is_matrix) {  // Box-Muller
                const auto index = static_cast<std::uint64_t>(i);
                const std::uint32_t a[4] = {static_cast<std::uint32_t>(index),
                                            static_cast<std::uint32_t>(index >> 32), 0, 0};
                const std::uint32_t b[4] = {a[0], a[1], 1, 0};
                const double normal = std::sqrt(-2 * std::log(philox_uniform(seed, a))) *
                                      std::cos(2 * std::numbers::pi * philox_uniform(seed, b));
                values[i] = static_cast<float>(0.02 * normal * (into_residual ? residual : 1));
            } else if (e.name.ends_with("norm.weight")) {
                values[i] = 1;
            }
        }
    }
    upload_parameters(values);
}

void Transformer::load_weights(const std::filesystem::path& folder) {
    const SafeTensors file(folder / "model.safetensors");
    std::vector<float> values(layout_.total);
    for (const auto& e : layout_.entries)
        file.read_f32(e.name,
                      e.is_matrix ? std::vector<int64_t>{e.rows, e.cols} : std::vector<int64_t>{e.rows},
                      std::span(values).subspan(e.offset, e.rows * e.cols));
    upload_parameters(values);
}

void Transformer::save(const std::filesystem::path& folder, bool as_bf16) const {
    std::filesystem::create_directories(folder);
    const auto values = download_parameters();
    std::vector<SafeTensorOut> tensors;
    for (const auto& e : layout_.entries)
        tensors.push_back({e.name,
                           e.is_matrix ? std::vector<int64_t>{e.rows, e.cols} : std::vector<int64_t>{e.rows},
                           std::span(values).subspan(e.offset, e.rows * e.cols)});
    write_safetensors(folder / "model.safetensors", tensors, as_bf16 ? SafeDtype::BF16 : SafeDtype::F32);
    auto json = config_.to_json();
    json["torch_dtype"] = as_bf16 ? "bfloat16" : "float32";
    std::ofstream(folder / "config.json") << json.dump(2) << "\n";
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
    for (Tensor* t : {&a.x, &a.norm1, &a.rstd1, &a.qkv, &a.attention, &a.lse, &a.x2, &a.norm2, &a.rstd2,
                      &a.gate_up, &a.swiglu})
        *t = t->slice(0, tokens);
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
    backend_.linear_forward(a.qkv, a.norm1, matrix(p.qkv, shape.qkv_cols(), C),
                            vector(p.qkv_bias, shape.qkv_cols()));
    backend_.rope(a.qkv, work_.positions.slice(0, a.x.rows), inv_freq_, shape, false);
    attend(layer, a);
    backend_.linear_forward(branch, a.attention, matrix(p.o, C, shape.q_cols()), {});

    backend_.rmsnorm_forward(a.norm2, a.rstd2, a.x2, a.x, branch, vector(p.post_norm, C),
                             static_cast<float>(config_.rms_norm_eps));
    backend_.linear_forward(a.gate_up, a.norm2, matrix(p.gate_up, 2 * F, C), {});
    backend_.swiglu_forward(a.swiglu, a.gate_up);
    backend_.linear_forward(branch, a.swiglu, matrix(p.down, C, F), {});
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
    const auto last = run_layers(batch_.tokens, [&](std::size_t, const LayerActivations& a) {
        backend_.attention_forward(a.attention, a.lse, a.qkv, batch_.cu_seqlens, config_.attention());
    });
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
            forward_layer(layer, a, a.x, {}, [&](std::size_t, const LayerActivations& a) {
                backend_.attention_forward(a.attention, a.lse, a.qkv, batch_.cu_seqlens, config_.attention());
            });
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
        backend_.kv_append(cache.k[layer], cache.v[layer], a.qkv, rows, config_.attention());
        backend_.attention_forward(a.attention, a.lse, a.qkv, batch_.cu_seqlens, config_.attention());
    });
}

Tensor Transformer::decode(const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions,
                           const std::vector<int32_t>& cache_rows, const std::vector<int32_t>& spans,
                           KvCache& cache) {
    const int64_t B = static_cast<int64_t>(tokens.size()), C = config_.hidden_size;
    const Tensor ids = upload(work_.tokens, tokens);
    upload(work_.positions, positions);
    const Tensor rows = upload(work_.cache_rows, cache_rows);
    const Tensor attended = upload(work_.spans, spans).reshape(B, 4);
    const auto last = run_layers(ids, [&](std::size_t layer, const LayerActivations& a) {
        backend_.kv_append(cache.k[layer], cache.v[layer], a.qkv, rows, config_.attention());
        backend_.decode_attention(a.attention, a.qkv, cache.k[layer], cache.v[layer], attended,
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
