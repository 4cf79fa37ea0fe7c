#include "src/device/device.h"

#include <dlfcn.h>

#include <filesystem>

#include "src/run/error.h"

namespace r1 {

std::unique_ptr<Backend> make_cuda_backend(bool bfloat16, std::string& why_not) {
    const auto library = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libr1_cuda.so";
    if (!std::filesystem::exists(library)) {
        why_not = "this build has no libr1_cuda.so (it needs nvcc)";
        return nullptr;
    }
    void* handle = dlopen(library.c_str(), RTLD_NOW);  // never closed: the backend's code lives in it
    if (!handle) {
        why_not = dlerror();
        return nullptr;
    }
    const auto missing = reinterpret_cast<const char* (*)()>(dlsym(handle, "r1_cuda_missing"));
    const auto make = reinterpret_cast<Backend* (*)(bool)>(dlsym(handle, "r1_make_cuda_backend"));
    if (!missing || !make) fail(library.string(), ": not this program's CUDA backend; build it anew");
    if (const char* reason = missing()) {
        why_not = reason;
        return nullptr;
    }
    return std::unique_ptr<Backend>(make(bfloat16));
}

Device make_device(const std::string& device, const std::string& dtype, bool exact) {
    if (exact && device == "cuda")
        fail("--exact: only the CPU backend has exact arithmetic; choose --device cpu");
    std::string why_not;
    if (device != "cpu" && !exact) {
        if (auto cuda = make_cuda_backend(dtype != "float32", why_not)) {
            const bool bf16 = cuda->activation() == DType::BF16;
            return {std::move(cuda), bf16};
        }
        if (device == "cuda") fail("--device cuda: no GPU can be used: ", why_not);
        why_not = "; no GPU: " + why_not;
    }
    return {make_cpu_backend(DType::F32, exact), dtype == "bfloat16", why_not};
}

}  // namespace r1
