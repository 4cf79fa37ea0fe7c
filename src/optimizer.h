// AdamW over the one parameter buffer, with gradient clipping and a learning-rate schedule.
#pragma once
#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "src/transformer.h"

namespace r1 {

/// Linear warm-up to `lr` over warmup_steps, then constant, or a cosine down to lr * final_fraction at
/// total_steps.
struct LearningRate {
    double lr = 1e-3;
    std::int64_t warmup_steps = 0, total_steps = 1;
    bool cosine = false;
    double final_fraction = 0.1;

    /// step counts from 1.
    double at(std::int64_t step) const {
        if (step <= warmup_steps) return lr * static_cast<double>(step) / static_cast<double>(warmup_steps);
        if (!cosine) return lr;
        const double progress =
            std::min(1.0, static_cast<double>(step - warmup_steps) /
                              static_cast<double>(std::max<std::int64_t>(1, total_steps - warmup_steps)));
        return lr *
               (final_fraction + (1 - final_fraction) * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
    }
};

/// The moments live beside the parameters, in the same layout: in real(), or in bfloat16 beside a bfloat16 master.
class Optimizer {
  public:
    explicit Optimizer(Transformer& model, std::uint64_t seed = 0)
        : model_(model), seed_(seed), buffer_(model.backend(), bytes(model.layout(), dtype_of(model))) {
        const std::int64_t total = model.layout().total;
        const Tensor both{buffer_.data(), dtype_of(model), 2 * total, 1};
        m = both.slice(0, total), v = both.slice(total, total);
        model.backend().zero(both);
    }
    static std::size_t bytes(const ParameterLayout& layout, DType dtype) {
        return 2 * layout.total * bytes_of(dtype);
    }

    /// Clips the gradient to max_norm, updates the parameters, zeroes the gradient. Weight decay acts on
    /// matrices only. Returns the gradient's norm before clipping; a gradient that is not finite changes
    /// nothing but is returned.
    double step(double lr, double max_norm, double weight_decay, float beta1 = 0.9f, float beta2 = 0.95f) {
        Backend& backend = model_.backend();
        const Tensor gradients = model_.gradients();
        const double norm = std::sqrt(backend.sum_of_squares(gradients));
        if (std::isfinite(norm)) {
            AdamWOptions o;
            o.lr = static_cast<float>(lr), o.beta1 = beta1, o.beta2 = beta2, o.step = ++updates;
            o.grad_scale = static_cast<float>(max_norm > 0 && norm > max_norm ? max_norm / norm : 1);
            o.seed = seed_;
            auto update = [&](Tensor parameters, std::int64_t begin) {
                const std::int64_t count = parameters.rows;
                backend.adamw(parameters, gradients.slice(begin, count), m.slice(begin, count),
                              v.slice(begin, count), o);
            };
            o.weight_decay = static_cast<float>(weight_decay);
            update(model_.matrices(), 0);
            o.weight_decay = 0;
            update(model_.vectors(), model_.layout().matrices);
            model_.parameters_changed();
        }
        backend.zero(gradients);
        return norm;
    }

    Tensor m, v;               ///< [total] first and second moment
    std::int64_t updates = 0;  ///< made so far

  private:
    static DType dtype_of(const Transformer& model) { return model.matrices().dtype; }
    Transformer& model_;
    std::uint64_t seed_;
    Buffer buffer_;
};

}  // namespace r1
