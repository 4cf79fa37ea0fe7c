// The smallest port: libr1_skeleton.so, found by `--device skeleton` and by the tests. It computes
// in the host's memory and takes every primitive from the reference but one, its own, and those
// that the contract computes by itself. README, "Port it", goes on from here.
#include <cmath>

#include "src/device/reference.h"

using r1::Backend, r1::Tensor;

namespace {

class Skeleton final : public r1::Reference<float> {
  public:
    const char* name() const override { return "skeleton"; }

    void swiglu_forward(Tensor out, Tensor gate_up) override {
        for (std::int64_t n = 0; n < out.rows; ++n)
            for (std::int64_t f = 0; f < out.cols; ++f) {
                const float gate = gate_up.as<float>()[n * 2 * out.cols + f];
                const float up = gate_up.as<float>()[n * 2 * out.cols + out.cols + f];
                out.as<float>()[n * out.cols + f] = gate / (1 + std::exp(-gate)) * up;
            }
    }

    void zero(Tensor t) override { Backend::zero(t); }
    void to_bfloat16(Tensor to, Tensor from) override { Backend::to_bfloat16(to, from); }
    void advance(Tensor positions, Tensor rows, Tensor spans, Tensor counters) override {
        Backend::advance(positions, rows, spans, counters);
    }
    void sample(Tensor tokens, Tensor logp, Tensor logits, Tensor counters,
                const r1::SampleOptions& options) override {
        Backend::sample(tokens, logp, logits, counters, options);
    }
    double sum_of_squares(Tensor t) override { return Backend::sum_of_squares(t); }
    void adamw(Tensor param, Tensor copy, Tensor grad, Tensor m, Tensor v,
               const r1::AdamWOptions& options) override {
        Backend::adamw(param, copy, grad, m, v, options);
    }
    std::size_t used_memory() const override { return Backend::used_memory(); }
    std::size_t peak_memory() const override { return Backend::peak_memory(); }
};

}  // namespace

extern "C" int r1_backend_version() { return r1::kBackendVersion; }
extern "C" r1::Backend* r1_open_backend(int device, bool, const char** why_not) {
    *why_not = "its devices have no numbers";
    return device < 0 ? new Skeleton : nullptr;
}
