// Which device computes: chosen at run time.
#pragma once
#include <memory>
#include <string>

#include "src/device/backend.h"

namespace r1 {

/// device: "cpu", "cuda" or "auto" (a GPU if there is one, else the CPU).
/// dtype: "float32", "bfloat16" or "auto" (bfloat16 on a GPU, float32 on the CPU), the type matrices are multiplied in.
/// The CUDA backend is the library libr1_cuda.so beside the program: without it, or without a driver, nothing else is
/// missing.
struct Device {
    std::unique_ptr<Backend> backend;
    bool bf16_matrices = false;  ///< for TransformerOptions
    std::string note{};          ///< why it is not a GPU, where one was hoped for
};
/// exact: see make_cpu_backend; a GPU has no such mode, and "auto" takes the CPU.
Device make_device(const std::string& device, const std::string& dtype, bool exact = false);

/// The CUDA backend, or the reason why there is none.
std::unique_ptr<Backend> make_cuda_backend(bool bfloat16, std::string& why_not);

}  // namespace r1
