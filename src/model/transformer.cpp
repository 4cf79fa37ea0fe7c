#include "src/model/transformer.h"

#include <algorithm>

namespace r1 {

using std::int32_t;
using std::int64_t;

/// One decoder layer. Leaves what the feed-forward adds to a.x2 in work_.delta.
template <class Attend>
void Transformer::forward_layer(std::size_t layer, const LayerActivations& a, Tensor x,
                                Tensor delta, Attend attend) {
    const auto& p = weights_.layout().layers[layer];
    const auto shape = config_.attention();
    const int64_t C = config_.hidden_size, F = config_.intermediate_size;
    const Tensor added = work_.delta.slice(0, a.x.rows);

    backend_.rmsnorm_forward(a.norm1, a.rstd1, a.x, x, delta, weights_.vector(p.input_norm, C),
                             static_cast<float>(config_.rms_norm_eps));
    backend_.linear_forward(config_.head_norm() ? a.raw_qkv : a.qkv, a.norm1,
                            weights_.matrix(p.qkv, shape.qkv_cols(), C),
                            weights_.vector(p.qkv_bias, shape.qkv_cols()));
    if (config_.head_norm())
        backend_.head_norm_forward(a.qkv, a.head_rstd, a.raw_qkv,
                                   weights_.vector(p.q_norm, shape.head_dim),
                                   weights_.vector(p.k_norm, shape.head_dim), shape,
                                   static_cast<float>(config_.rms_norm_eps));
    attend(layer, a);
    backend_.linear_forward(added, a.attention, weights_.matrix(p.o, C, shape.q_cols()), {});

    backend_.rmsnorm_forward(a.norm2, a.rstd2, a.x2, a.x, added, weights_.vector(p.post_norm, C),
                             static_cast<float>(config_.rms_norm_eps));
    backend_.linear_forward(a.gate_up, a.norm2, weights_.matrix(p.gate_up, 2 * F, C), {});
    backend_.swiglu_forward(a.swiglu, a.gate_up);
    backend_.linear_forward(added, a.swiglu, weights_.matrix(p.down, C, F), {});
}

template <class Attend>
Transformer::LayerActivations Transformer::run_layers(Tensor tokens, Attend attend) {
    const Tensor delta = work_.delta.slice(0, tokens.rows);
    LayerActivations a = activations(0, tokens.rows);
    backend_.gather_rows(
        a.x, weights_.matrix(weights_.layout().embed, config_.vocab_size, config_.hidden_size),
        tokens);
    forward_layer(0, a, a.x, {}, attend);
    for (std::size_t layer = 1; layer < weights_.layout().layers.size(); ++layer) {
        const Tensor x2 = a.x2;
        a = activations(layer, tokens.rows);
        forward_layer(layer, a, x2, delta, attend);
    }
    return a;
}

void Transformer::rotate_and_attend(const LayerActivations& a) {
    backend_.rope(a.qkv, batch_.positions, inv_freq_, config_.attention(), false);
    backend_.attention_forward(a.attention, a.lse, a.qkv, batch_.ranges, config_.attention());
}

Transformer::Scores Transformer::forward(const PackedBatch& batch, float temperature) {
    if (backend_.real() != DType::F32) fail("forward() returns float32; use a float32 backend");
    forward_on_device(batch, temperature);
    Scores scores{std::vector<float>(batch.scored()), std::vector<float>(batch.scored())};
    backend_.download(scores.logp.data(), work_.logp.slice(0, batch.scored()));
    backend_.download(scores.entropy.data(), work_.entropy.slice(0, batch.scored()));
    return scores;
}

std::pair<Tensor, Tensor> Transformer::forward_on_device(const PackedBatch& batch,
                                                         float temperature) {
    const int64_t M = batch.scored(), C = config_.hidden_size, V = config_.vocab_size;
    batch_ = upload(batch);
    temperature_ = temperature;
    const auto last = run_layers(
        batch_.tokens, [&](std::size_t, const LayerActivations& a) { rotate_and_attend(a); });
    // Only rows that score a token reach the final norm and the head.
    const Tensor scored = work_.scored.slice(0, M), delta = work_.scored_delta.slice(0, M),
                 hidden = work_.hidden.slice(0, M);
    backend_.gather_rows(scored, last.x2, batch_.score_rows);
    backend_.gather_rows(delta, work_.delta.slice(0, batch.size()), batch_.score_rows);
    backend_.rmsnorm_forward(hidden, work_.rstd.slice(0, M), scored, scored, delta,
                             weights_.vector(weights_.layout().final_norm, C),
                             static_cast<float>(config_.rms_norm_eps));
    backend_.head_forward(work_.logp.slice(0, M), work_.entropy.slice(0, M), hidden,
                          weights_.matrix(weights_.layout().head, V, C), batch_.targets,
                          temperature, work_.logits);
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
    backend_.head_backward(dhidden, weights_.gradient(weights_.layout().head, V, C), d, de,
                           work_.logp.slice(0, M), work_.entropy.slice(0, M),
                           work_.hidden.slice(0, M), weights_.matrix(weights_.layout().head, V, C),
                           batch_.targets, temperature_, work_.logits);
    backend_.zero(dscored);
    backend_.rmsnorm_backward(dscored, weights_.gradient(weights_.layout().final_norm, C), dhidden,
                              work_.scored.slice(0, M), work_.rstd.slice(0, M),
                              weights_.vector(weights_.layout().final_norm, C));
    const Tensor dx = work_.dx.slice(0, N);
    backend_.zero(dx);
    backend_.add_rows(dx, dscored, batch_.score_rows);
    for (std::size_t layer = weights_.layout().layers.size(); layer-- > 0;) {
        const auto a = activations(layer, N);
        if (options_.recompute && layer + 1 < weights_.layout().layers.size())
            forward_layer(layer, a, a.x, {},
                          [&](std::size_t, const LayerActivations& a) { rotate_and_attend(a); });
        backward_layer(layer, a);
    }
    backend_.add_rows(weights_.gradient(weights_.layout().embed, V, C), dx, batch_.tokens);
}

/// forward_layer read from the bottom up. work_.dx holds the gradient of the residual stream behind
/// the layer, and afterwards of the one before it: the stream itself passes gradients on unchanged,
/// each block adds its own.
void Transformer::backward_layer(std::size_t layer, const LayerActivations& a) {
    const auto& p = weights_.layout().layers[layer];
    const auto shape = config_.attention();
    const int64_t N = a.x.rows, C = config_.hidden_size, F = config_.intermediate_size;
    const Tensor dx = work_.dx.slice(0, N), dnorm = work_.dnorm.slice(0, N);
    const Tensor dswiglu = work_.dswiglu.slice(0, N), dgate_up = work_.dgate_up.slice(0, N);
    const Tensor dattention = work_.dattention.slice(0, N), dqkv = work_.dqkv.slice(0, N);

    backend_.linear_backward(dswiglu, weights_.gradient(p.down, C, F), {}, dx, a.swiglu,
                             weights_.matrix(p.down, C, F));
    backend_.swiglu_backward(dgate_up, dswiglu, a.gate_up);
    backend_.linear_backward(dnorm, weights_.gradient(p.gate_up, 2 * F, C), {}, dgate_up, a.norm2,
                             weights_.matrix(p.gate_up, 2 * F, C));
    backend_.rmsnorm_backward(dx, weights_.gradient(p.post_norm, C), dnorm, a.x2, a.rstd2,
                              weights_.vector(p.post_norm, C));

    backend_.linear_backward(dattention, weights_.gradient(p.o, C, shape.q_cols()), {}, dx,
                             a.attention, weights_.matrix(p.o, C, shape.q_cols()));
    backend_.attention_backward(dqkv, dattention, a.attention, a.lse, a.qkv, batch_.ranges, shape);
    backend_.rope(dqkv, batch_.positions, inv_freq_, shape, true);
    if (config_.head_norm())
        backend_.head_norm_backward(dqkv, weights_.gradient(p.q_norm, shape.head_dim),
                                    weights_.gradient(p.k_norm, shape.head_dim), a.raw_qkv,
                                    a.head_rstd, weights_.vector(p.q_norm, shape.head_dim),
                                    weights_.vector(p.k_norm, shape.head_dim), shape);
    backend_.linear_backward(dnorm, weights_.gradient(p.qkv, shape.qkv_cols(), C),
                             weights_.gradient(p.qkv_bias, shape.qkv_cols()), dqkv, a.norm1,
                             weights_.matrix(p.qkv, shape.qkv_cols(), C));
    backend_.rmsnorm_backward(dx, weights_.gradient(p.input_norm, C), dnorm, a.x, a.rstd1,
                              weights_.vector(p.input_norm, C));
}

// ---- generation ----

void Transformer::prefill(const PackedBatch& batch, const std::vector<int32_t>& cache_rows,
                          KvCache& cache) {
    batch_ = upload(batch);
    const Tensor rows = upload(work_.cache_rows, cache_rows);
    run_layers(batch_.tokens, [&](std::size_t layer, const LayerActivations& a) {
        backend_.rope_append(cache.k[layer], cache.v[layer], a.qkv, rows, batch_.positions,
                             inv_freq_, config_.attention());
        backend_.attention_forward(a.attention, a.lse, a.qkv, batch_.ranges, config_.attention());
    });
}

Tensor Transformer::decode(const DecodeInput& in, KvCache& cache) {
    const int64_t B = in.tokens.rows, C = config_.hidden_size;
    const auto last = run_layers(in.tokens, [&](std::size_t layer, const LayerActivations& a) {
        backend_.rope_append(cache.k[layer], cache.v[layer], a.qkv, in.cache_rows, in.positions,
                             inv_freq_, config_.attention());
        backend_.decode_attention(a.attention, a.qkv, cache.k[layer], cache.v[layer], in.spans,
                                  config_.attention());
    });
    const Tensor x = work_.scored.slice(0, B), hidden = work_.hidden.slice(0, B),
                 logits = work_.decode_logits.slice(0, B);
    backend_.rmsnorm_forward(hidden, work_.rstd.slice(0, B), x, last.x2, work_.delta.slice(0, B),
                             weights_.vector(weights_.layout().final_norm, C),
                             static_cast<float>(config_.rms_norm_eps));
    backend_.linear_forward(logits, hidden,
                            weights_.matrix(weights_.layout().head, config_.vocab_size, C), {});
    return logits;
}

Transformer::DecodeInput Transformer::upload_decode_input(const std::vector<int32_t>& tokens,
                                                          const std::vector<int32_t>& positions,
                                                          const std::vector<int32_t>& cache_rows,
                                                          const std::vector<int32_t>& spans) {
    check_ids(tokens);
    return {upload(work_.tokens, tokens), upload(work_.positions, positions),
            upload(work_.cache_rows, cache_rows),
            upload(work_.spans, spans).reshape(static_cast<int64_t>(tokens.size()), 4)};
}

// ---- batches and memory ----

Transformer::Transformer(Backend& backend, const Config& config, const TransformerOptions& options)
    : backend_(backend), config_(config), options_(options), weights_(backend, config, options) {
    const int half = config.head_dim / 2;
    rope_buffer_ = Buffer(backend, half * bytes_of(backend.real()));
    inv_freq_ = {rope_buffer_.data(), backend.real(), half, 1};
    const auto inv_freq = config.rotary_frequencies();
    if (backend.real() == DType::F64)
        backend.upload(inv_freq_, inv_freq.data());
    else
        upload_floats(backend, inv_freq_, std::vector<float>(inv_freq.begin(), inv_freq.end()));
    arena_ = Arena(backend, workspace_bytes(config, options, backend));
    work_ = take_workspace(arena_, config, options, backend);
}

std::size_t Transformer::workspace_bytes(const Config& config, const TransformerOptions& options,
                                         const Backend& backend) {
    Arena measure;
    take_workspace(measure, config, options, backend);
    return measure.used();
}

Transformer::Workspace Transformer::take_workspace(Arena& arena, const Config& c,
                                                   const TransformerOptions& o,
                                                   const Backend& backend) {
    const int64_t N = std::max(o.max_tokens, o.max_decode_rows), M = o.max_tokens,
                  B = o.max_decode_rows;
    const int64_t C = c.hidden_size, F = c.intermediate_size, V = c.vocab_size;
    const AttentionShape shape = c.attention();
    auto real = [&](int64_t rows, int64_t cols = 1) {
        return arena.take(backend.real(), rows, cols);
    };
    auto act = [&](int64_t rows, int64_t cols) {
        return arena.take(backend.activation(), rows, cols);
    };
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
    w.delta = act(N, C);
    w.scored = real(N, C), w.scored_delta = act(M, C), w.hidden = act(N, C), w.rstd = real(N);
    w.logp = real(M), w.entropy = real(M);
    const int64_t chunk = std::max<int64_t>(backend.preferences().logit_rows, (1 << 20) / V);
    w.logits = real(o.keep_logits ? M : std::min(M, chunk), V);
    if (o.trainable) {
        w.dlogp = real(M), w.dentropy = real(M), w.dhidden = act(M, C), w.dscored = real(M, C);
        w.dx = real(N, C), w.dnorm = act(N, C), w.dattention = act(N, shape.q_cols());
        w.dqkv = act(N, shape.qkv_cols()), w.dswiglu = act(N, F), w.dgate_up = act(N, 2 * F);
    }
    w.tokens = ints(N), w.positions = ints(N), w.ranges = ints(N, 4);
    w.score_rows = ints(N), w.targets = ints(N), w.cache_rows = ints(N), w.spans = ints(B, 4);
    w.decode_logits = real(B, V);
    return w;
}

Tensor Transformer::upload(Tensor to, const std::vector<int32_t>& host) {
    to = to.reshape(to.size(), 1).slice(0, static_cast<int64_t>(host.size()));
    backend_.upload(to, host.data());
    return to;
}

void Transformer::check_ids(const std::vector<int32_t>& ids) const {
    for (int32_t id : ids)
        if (id < 0 || id >= config_.vocab_size)
            fail("token id ", id, " is outside the model's vocabulary of ", config_.vocab_size,
                 ": tokenizer and model do not match");
}

Transformer::Batch Transformer::upload(const PackedBatch& batch) {
    if (batch.size() > options_.max_tokens)
        fail("a batch of ", batch.size(), " tokens does not fit the planned ", options_.max_tokens,
             "; raise --token-budget");
    check_ids(batch.tokens);
    check_ids(batch.targets);
    const Tensor ranges = work_.ranges.slice(0, batch.size());
    backend_.upload(ranges, batch.ranges.data());
    return {upload(work_.tokens, batch.tokens), upload(work_.positions, batch.positions), ranges,
            upload(work_.score_rows, batch.score_rows), upload(work_.targets, batch.targets)};
}

Transformer::LayerActivations Transformer::activations(std::size_t layer, int64_t tokens) const {
    LayerActivations a = work_.layers[layer];
    for (Tensor* t : {&a.x, &a.norm1, &a.rstd1, &a.raw_qkv, &a.head_rstd, &a.qkv, &a.attention,
                      &a.lse, &a.x2, &a.norm2, &a.rstd2, &a.gate_up, &a.swiglu})
        *t = t->slice(0, std::min(tokens, t->rows));
    return a;
}

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
    const std::size_t prompt = std::ranges::find(scored, true) - scored.begin();
    const bool shared = shares_prompt(sequence, prompt);
    const std::size_t begin = tokens.size(), first = shared ? prompt : 0;
    if (!shared) {
        prompt_begin_ = begin;
        prompt_ = prompt < sequence.size() && prompt >= kShortestShared ? prompt : 0;
    }
    const auto row = [&](std::size_t t) {
        return static_cast<int32_t>(t < first ? prompt_begin_ + t : begin + t - first);
    };
    const int32_t end = row(sequence.size() - 1), prompt_row = row(0),
                  own_row = static_cast<int32_t>(begin);
    for (std::size_t t = first; t + 1 < sequence.size(); ++t) {
        tokens.push_back(sequence[t]);
        positions.push_back(static_cast<int32_t>(t));
        ranges.push_back({prompt_row, prompt_row + static_cast<int32_t>(first), own_row, end});
    }
    for (std::size_t t = 1; t < sequence.size(); ++t)
        if (scored[t]) {
            score_rows.push_back(row(t - 1));
            targets.push_back(sequence[t]);
        }
    // What goes on from a shared prompt reads its keys, up to the last row so far.
    for (std::size_t t = 0; t < first; ++t) ranges[row(t)].end = static_cast<int32_t>(size());
}

bool PackedBatch::shares_prompt(const std::vector<int32_t>& sequence,
                                std::size_t first_scored) const {
    return prompt_ > 0 && first_scored == prompt_ && first_scored < sequence.size() &&
           std::equal(sequence.begin(), sequence.begin() + static_cast<int64_t>(prompt_),
                      tokens.begin() + static_cast<int64_t>(prompt_begin_));
}

int64_t PackedBatch::rows_of(const std::vector<int32_t>& sequence, std::size_t first_scored) const {
    const std::size_t first = shares_prompt(sequence, first_scored) ? first_scored : 0;
    return static_cast<int64_t>(sequence.size() - 1 - first);
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

}  // namespace r1
