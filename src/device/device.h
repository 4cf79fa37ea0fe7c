// The door: which device computes, chosen by name at run time. A device is built in (cpu,
// reference) or comes as a library libr1_NAME.so beside the program, with the two functions that
// backend.h ends with.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "src/device/backend.h"

namespace r1 {

/// Names that open_backend() takes: cpu, reference, and that of every libr1_NAME.so beside the
/// program.
std::vector<std::string> backend_names();

/// A backend by its name, behind which a colon and a number choose among a library's devices
/// (cuda:1), with activations in bfloat16 if wanted and if it has them; null, and the reason, where
/// it cannot be used here.
std::unique_ptr<Backend> open_backend(const std::string& name, bool bfloat16, std::string& why_not);

struct Device {
    std::unique_ptr<Backend> backend;
    bool bf16_matrices = false;  ///< for TransformerOptions
    std::string note{};          ///< why it is only the CPU, where more was hoped for
};
/// name: a backend's, or "auto": a GPU if there is one, else the CPU. dtype: "float32", "bfloat16"
/// or "auto" (bfloat16 where activations can be), the type for matrix products. exact: see
/// Backend::make_exact(). Throws Error.
Device make_device(const std::string& name, const std::string& dtype, bool exact = false);

}  // namespace r1
