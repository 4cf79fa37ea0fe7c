#include "src/model/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <set>
#include <tuple>

#include "src/device/parallel.h"

namespace r1 {

using std::int64_t;

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

namespace {

/// Takes the reference policy's matrices, in the type that they are multiplied in or in the
/// master's, and vectors.
std::pair<Tensor, Tensor> take_reference(Arena& arena, const ParameterLayout& layout,
                                         const TransformerOptions& options, DType real) {
    const bool bf16 =
        options.reference == ReferencePolicy::OnHost ? options.bf16_master : options.bf16_matrices;
    return {arena.take(bf16 ? DType::BF16 : real, layout.matrices),
            arena.take(real, layout.total - layout.matrices)};
}

}  // namespace

Parameters::Bytes Parameters::bytes(const Config& config, const TransformerOptions& options,
                                    const Backend& backend) {
    const ParameterLayout layout(config);
    const std::size_t real = bytes_of(backend.real());
    Bytes bytes;
    bytes.parameters = (layout.total - layout.matrices) * real;
    if (!options.bf16_master) bytes.parameters += layout.matrices * real;
    if (options.bf16_matrices) bytes.parameters += layout.matrices * bytes_of(DType::BF16);
    if (options.trainable) bytes.gradients = layout.total * real;
    Arena measure;
    if (options.reference == ReferencePolicy::OnDevice)
        take_reference(measure, layout, options, backend.real());
    bytes.reference = measure.used();
    return bytes;
}

Parameters::Parameters(Backend& backend, const Config& config, const TransformerOptions& options)
    : backend_(backend),
      options_(options),
      layout_(config),
      residual_scale_(1 / std::sqrt(2.0 * config.num_hidden_layers)) {
    const DType real = backend.real();
    const int64_t matrices = layout_.matrices, vectors = layout_.total - matrices;
    if (options.bf16_matrices) {
        bf16_buffer_ = Buffer(backend, matrices * bytes_of(DType::BF16));
        policy_.matrices = {bf16_buffer_.data(), DType::BF16, matrices, 1};
    }
    if (options.bf16_master) {
        master_buffer_ = Buffer(backend, vectors * bytes_of(real));
        matrices_ = policy_.matrices;
        vectors_ = {master_buffer_.data(), real, vectors, 1};
    } else {
        master_buffer_ = Buffer(backend, layout_.total * bytes_of(real));
        const Tensor all{master_buffer_.data(), real, layout_.total, 1};
        matrices_ = all.slice(0, matrices);
        vectors_ = all.slice(matrices, vectors);
    }
    policy_.vectors = vectors_;
    if (!options.bf16_matrices) policy_.matrices = matrices_;
    backend.zero(matrices_);
    backend.zero(vectors_);
    if (options.trainable) {
        gradient_buffer_ = Buffer(backend, layout_.total * bytes_of(real));
        gradients_ = {gradient_buffer_.data(), real, layout_.total, 1};
        backend.zero(gradients_);
    }
    if (options.reference == ReferencePolicy::None) return;
    if (options.reference == ReferencePolicy::OnHost) host_ = make_reference_backend(real);
    Arena measure;
    take_reference(measure, layout_, options, real);
    reference_arena_ = Arena(reference_home(), measure.used());
    std::tie(reference_.matrices, reference_.vectors) =
        take_reference(reference_arena_, layout_, options, real);
}

Tensor Parameters::matrix(int64_t offset, int64_t rows, int64_t cols) const {
    return used().matrices.slice(offset, rows * cols).reshape(rows, cols);
}
Tensor Parameters::vector(int64_t offset, int64_t size) const {
    return offset < 0 ? Tensor{} : used().vectors.slice(offset - layout_.matrices, size);
}
Tensor Parameters::gradient(int64_t offset, int64_t rows, int64_t cols) const {
    return offset < 0 ? Tensor{} : gradients_.slice(offset, rows * cols).reshape(rows, cols);
}

Tensor Parameters::master(int64_t first, int64_t count) const {
    return first < layout_.matrices ? matrices_.slice(first, count)
                                    : vectors_.slice(first - layout_.matrices, count);
}

template <class Body>
void Parameters::for_each_part(Body body) const {
    constexpr int64_t largest = 1 << 20;
    for (const auto& [master, reference] :
         {std::pair(matrices_, reference_.matrices), std::pair(vectors_, reference_.vectors)})
        for (int64_t first = 0; first < master.rows; first += largest) {
            const int64_t count = std::min(largest, master.rows - first);
            body(master.slice(first, count), reference.slice(first, count));
        }
}

void Parameters::keep_as_reference() {
    std::vector<float> values;
    for_each_part([&](Tensor master, Tensor reference) {
        values.resize(master.rows);
        download_floats(backend_, master, values);
        upload_floats(reference_home(), reference, values);
    });
}

void Parameters::use_reference(bool on) {
    if (!host_) {
        use_reference_ = on;
        return;
    }
    // The two policies change places.
    std::vector<std::byte> present;
    for_each_part([&](Tensor master, Tensor reference) {
        present.resize(master.bytes());
        backend_.download(present.data(), master);
        backend_.upload(master, reference.data);
        host_->upload(reference, present.data());
    });
    changed();
}

std::vector<std::pair<std::string, Tensor>> Parameters::reference() const {
    if (options_.reference == ReferencePolicy::None) return {};
    return {{"reference.matrices", reference_.matrices}, {"reference.vectors", reference_.vectors}};
}

std::vector<float> Parameters::download() const {
    std::vector<float> values(layout_.total);
    download_floats(backend_, matrices_, std::span(values).first(layout_.matrices));
    download_floats(backend_, vectors_, std::span(values).subspan(layout_.matrices));
    return values;
}

void Parameters::check_finite() const {
    std::vector<float> values;
    for (const auto& e : layout_.entries) {
        values.resize(e.rows * e.cols);
        download_floats(backend_, master(e.offset, e.rows * e.cols), values);
        if (!std::ranges::all_of(values, [](float w) { return std::isfinite(w); }))
            fail("the weights of ", e.name, " are no longer finite, and are not saved; lower --lr");
    }
}

void Parameters::upload(std::span<const float> values) {
    upload_floats(backend_, matrices_, values.first(layout_.matrices));
    upload_floats(backend_, vectors_, values.subspan(layout_.matrices));
    changed();
}

double Parameters::fingerprint() const {
    const double vectors = backend_.sum_of_squares(vectors_);
    return options_.bf16_master ? vectors : vectors + backend_.sum_of_squares(matrices_);
}

void Parameters::changed() {
    if (const Tensor copy = bf16_copy()) backend_.to_bfloat16(copy, matrices_);
}

void Parameters::initialize(std::uint64_t seed) {
    for (const auto& e : layout_.entries) {
        const bool into_residual =
            e.name.ends_with("o_proj.weight") || e.name.ends_with("down_proj.weight");
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
                    values[i] =
                        static_cast<float>(0.02 * normal * (into_residual ? residual_scale_ : 1));
                }
            });
        upload_floats(backend_, master(e.offset, e.rows * e.cols), values);
    }
    changed();
}

namespace {

constexpr const char* kHead = "lm_head.weight";

/// Whether transformers would compute something else if a tensor were not there: one of a layer
/// that the model has or of the stream around the layers, but for what follows from the
/// configuration (the rotary frequencies that old Llamas were saved with, a tied head).
bool would_change(const std::string& name, const ParameterLayout& layout) {
    if (name.ends_with("rotary_emb.inv_freq")) return false;
    std::size_t layer = 0;
    if (std::sscanf(name.c_str(), "model.layers.%zu.", &layer) == 1)
        return layer < layout.layers.size();
    return name.starts_with("model.embed_tokens.") || name.starts_with("model.norm.") ||
           (name.starts_with("lm_head.") && name != kHead);
}

void check_loaded(const std::filesystem::path& folder, const std::string& name,
                  std::span<const float> values) {
    for (float value : values)
        if (!std::isfinite(value))
            fail(folder, ": the tensor ", name, " holds ", value, "; the model is broken");
}

std::vector<int64_t> shape_of(const ParameterLayout::Entry& e) {
    return e.is_matrix ? std::vector<int64_t>{e.rows, e.cols} : std::vector<int64_t>{e.rows};
}

}  // namespace

void Parameters::load(const std::filesystem::path& folder) {
    const SafeTensors weights(folder);
    std::set<std::string> used;
    for (const auto& e : layout_.entries) {
        std::string name = e.name;
        // Some tools keep the other name of a tied embedding.
        if (e.offset == layout_.embed && layout_.head == layout_.embed &&
            !weights.tensors().contains(name))
            name = kHead;
        used.insert(name);
        weights.read_f32(name, shape_of(e), [&](int64_t first, std::span<const float> values) {
            check_loaded(folder, name, values);
            upload_floats(backend_, master(e.offset + first, static_cast<int64_t>(values.size())),
                          values);
        });
    }
    std::string ignored;
    for (const auto& [name, tensor] : weights.tensors()) {
        if (used.contains(name)) continue;
        if (would_change(name, layout_))
            fail(folder, ": the tensor ", name,
                 " has no place in the model that config.json describes");
        ignored += (ignored.empty() ? "" : ", ") + name;
    }
    if (!ignored.empty()) std::printf("%s: not used: %s\n", folder.c_str(), ignored.c_str());
    changed();
}

void Parameters::save(const std::filesystem::path& folder, SafeDtype dtype) const {
    std::vector<SafeTensorOut> tensors;
    for (const auto& e : layout_.entries)
        tensors.push_back({e.name, shape_of(e), {}, [&](int64_t first, std::span<float> out) {
                               download_floats(
                                   backend_,
                                   master(e.offset + first, static_cast<int64_t>(out.size())), out);
                           }});
    std::filesystem::create_directories(folder);
    write_safetensors(folder / "model.safetensors", tensors, dtype);
}

}  // namespace r1
