// AdamW over the one parameter buffer, with gradient clipping and a learning-rate schedule.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "src/model/transformer.h"

namespace r1 {

/// Linear warm-up to `lr` over warmup_steps, then constant, or a cosine down to a tenth of it at
/// total_steps.
struct LearningRate {
    double lr = 1e-3;
    std::int64_t warmup_steps = 0, total_steps = 1;
    bool cosine = false;

    /// step counts from 1.
    double at(std::int64_t step) const {
        const auto s = static_cast<double>(step), warmup = static_cast<double>(warmup_steps);
        if (step <= warmup_steps) return lr * s / warmup;
        if (!cosine) return lr;
        const double progress =
            (s - warmup) / std::max(1.0, static_cast<double>(total_steps) - warmup);
        return lr * (0.1 + 0.9 * 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, progress))));
    }
};

/// Beside the learning rate.
struct OptimizerOptions {
    double clip_norm = 0;     ///< largest norm of the gradient, 0: any
    double weight_decay = 0;  ///< on matrices
};

class Optimizer {
  public:
    /// Keeps its moments in float32, or, rounded stochastically, in bfloat16.
    explicit Optimizer(Transformer& model, bool bf16_moments = false, std::uint64_t seed = 0)
        : model_(model),
          seed_(seed),
          arena_(model.backend(),
                 bytes(model.parameters().layout(), model.backend(), bf16_moments)),
          regions_(take(arena_, model.parameters().layout(), model.backend(), bf16_moments)) {
        regions_[0].parameters = model.parameters().matrices();
        regions_[0].copy = model.parameters().bf16_copy();
        regions_[1].parameters = model.parameters().vectors();
        for (const auto& [name, tensor] : state()) model.backend().zero(tensor);
    }
    static std::size_t bytes(const ParameterLayout& layout, const Backend& backend,
                             bool bf16_moments) {
        Arena measure;
        take(measure, layout, backend, bf16_moments);
        return measure.used();
    }

    /// Clips the gradient, updates the parameters, zeroes the gradient. Returns the gradient's norm
    /// before clipping; one that is not finite changes nothing.
    double step(double lr, const OptimizerOptions& options) {
        Backend& backend = model_.backend();
        const Tensor gradients = model_.parameters().gradients();
        const double norm = std::sqrt(backend.sum_of_squares(gradients));
        if (std::isfinite(norm)) {
            AdamWOptions o;
            o.lr = static_cast<float>(lr);
            o.step = ++updates;
            const double largest = options.clip_norm;
            o.grad_scale = static_cast<float>(largest > 0 && norm > largest ? largest / norm : 1);
            o.seed = seed_;
            for (const Region& r : regions_) {
                o.weight_decay = static_cast<float>(&r == &regions_[0] ? options.weight_decay : 0);
                backend.adamw(r.parameters, r.copy, gradients.slice(r.begin, r.parameters.rows),
                              r.m, r.v, o);
            }
        } else {
            backend.zero(gradients);
        }
        return norm;
    }

    /// First and second moments, for checkpoints.
    std::vector<std::pair<std::string, Tensor>> state() const {
        return {{"adam.m.matrices", regions_[0].m},
                {"adam.v.matrices", regions_[0].v},
                {"adam.m.vectors", regions_[1].m},
                {"adam.v.vectors", regions_[1].v}};
    }
    std::int64_t updates = 0;  ///< made so far

  private:
    /// All matrices, or all vectors.
    struct Region {
        std::int64_t begin;
        Tensor parameters, copy, m, v;
    };
    static std::array<Region, 2> take(Arena& arena, const ParameterLayout& layout,
                                      const Backend& backend, bool bf16_moments) {
        const DType type = bf16_moments ? DType::BF16 : backend.real();
        const auto region = [&](std::int64_t begin, std::int64_t count) {
            return Region{begin, {}, {}, arena.take(type, count), arena.take(type, count)};
        };
        return {region(0, layout.matrices),
                region(layout.matrices, layout.total - layout.matrices)};
    }
    Transformer& model_;
    std::uint64_t seed_;
    Arena arena_;
    std::array<Region, 2> regions_;
};

}  // namespace r1
