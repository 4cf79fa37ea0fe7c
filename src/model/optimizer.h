// AdamW over the one parameter buffer, with gradient clipping and a learning-rate schedule.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "src/device/float8.h"
#include "src/model/transformer.h"

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

/// What training keeps of each parameter. Float32: a float32 master and moments. BFloat16: both in bfloat16, Float8: a
/// bfloat16 master, and moments of matrices in 8 bits; both rounded stochastically.
enum class StateType { Float32, BFloat16, Float8 };
inline StateType state_type(const std::string& name) {
    return name == "float8"     ? StateType::Float8
           : name == "bfloat16" ? StateType::BFloat16
                                : StateType::Float32;
}

class Optimizer {
  public:
    explicit Optimizer(Transformer& model, StateType type = StateType::Float32, std::uint64_t seed = 0)
        : model_(model),
          seed_(seed),
          arena_(model.backend(), bytes(model.layout(), model.backend(), type)),
          regions_(take(arena_, model.layout(), model.backend(), type)) {
        regions_[0].parameters = model.matrices(), regions_[1].parameters = model.vectors();
        for (const auto& [name, tensor] : state()) model.backend().zero(tensor);
    }
    static std::size_t bytes(const ParameterLayout& layout, const Backend& backend, StateType type) {
        Arena measure;
        take(measure, layout, backend, type);
        return measure.used();
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
            for (const Region& r : regions_) {
                o.weight_decay = static_cast<float>(&r == &regions_[0] ? weight_decay : 0);
                backend.adamw(r.parameters, gradients.slice(r.begin, r.parameters.rows), r.m, r.v, r.scales,
                              o);
            }
            model_.parameters_changed();
        }
        backend.zero(gradients);
        return norm;
    }

    /// First and second moments, for checkpoints.
    std::vector<std::pair<std::string, Tensor>> state() const {
        std::vector<std::pair<std::string, Tensor>> all;
        for (const Region& r : regions_) {
            const std::string of = &r == &regions_[0] ? "matrices" : "vectors";
            all.emplace_back("adam.m." + of, r.m), all.emplace_back("adam.v." + of, r.v);
            if (r.scales) all.emplace_back("adam.scales." + of, r.scales.reshape(r.scales.size(), 1));
        }
        return all;
    }
    std::int64_t updates = 0;  ///< made so far

  private:
    struct Region {  ///< matrices, or vectors
        std::int64_t begin;
        Tensor parameters, m, v, scales;
    };
    static std::array<Region, 2> take(Arena& arena, const ParameterLayout& layout, const Backend& backend,
                                      StateType type) {
        auto moments = [&](std::int64_t begin, std::int64_t count, DType dtype) {
            Region r{begin, {}, arena.take(dtype, count), arena.take(dtype, count), {}};
            if (dtype == DType::F8)
                r.scales = arena.take(backend.real(), 2, (count + kFloat8Block - 1) / kFloat8Block);
            return r;
        };
        const DType narrow = type == StateType::BFloat16 ? DType::BF16 : backend.real();
        return {moments(0, layout.matrices, type == StateType::Float8 ? DType::F8 : narrow),
                moments(layout.matrices, layout.total - layout.matrices, narrow)};
    }
    Transformer& model_;
    std::uint64_t seed_;
    Arena arena_;
    std::array<Region, 2> regions_;
};

}  // namespace r1
