// Stands in for the system's header of this name, by which cuda/ opens cuBLAS: it finds the
// functions of the cublas_v2.h beside it.
#pragma once
#include <string_view>

#include "cublas_v2.h"

constexpr int RTLD_NOW = 2;

static inline void* dlopen(const char* name, int) { return const_cast<char*>(name); }
static inline const char* dlerror() { return ""; }
static inline void* dlsym(void*, std::string_view name) {
    if (name == "cublasCreate_v2") return reinterpret_cast<void*>(cublasCreate);
    if (name == "cublasDestroy_v2") return reinterpret_cast<void*>(cublasDestroy);
    if (name == "cublasSetStream_v2") return reinterpret_cast<void*>(cublasSetStream);
    if (name == "cublasSetWorkspace_v2") return reinterpret_cast<void*>(cublasSetWorkspace);
    if (name == "cublasGetStatusString") return reinterpret_cast<void*>(cublasGetStatusString);
    return name == "cublasGemmEx" ? reinterpret_cast<void*>(cublasGemmEx) : nullptr;
}
