// The smallest port: libr1_skeleton.so, found by `--device skeleton` and by the tests. It computes in the host's memory
// and takes every primitive from the reference but one, its own. README, "Port it", goes on from here.
#include <cmath>

#include "src/device/reference.h"

namespace {

class Skeleton final : public r1::Reference<float> {
  public:
    const char* name() const override { return "skeleton"; }

    void swiglu_forward(r1::Tensor out, r1::Tensor gate_up) override {
        for (std::int64_t n = 0; n < out.rows; ++n)
            for (std::int64_t f = 0; f < out.cols; ++f) {
                const float gate = gate_up.as<float>()[n * 2 * out.cols + f];
                const float up = gate_up.as<float>()[n * 2 * out.cols + out.cols + f];
                out.as<float>()[n * out.cols + f] = gate / (1 + std::exp(-gate)) * up;
            }
    }
};

}  // namespace

extern "C" int r1_backend_version() { return r1::kBackendVersion; }
extern "C" r1::Backend* r1_open_backend(bool, const char**) { return new Skeleton; }
