// Stands in for the system's header of this name, by which cuda/ opens cuBLAS: libraries are looked
// for and opened as ever, but in place of theirs it finds the functions of the cublas_v2.h beside it.
#pragma once
#include_next <dlfcn.h>

#include <string_view>

#include "cublas_v2.h"

static inline void* stand_in_symbol(std::string_view name) {
    if (name == "cublasCreate_v2") return reinterpret_cast<void*>(cublasCreate);
    if (name == "cublasDestroy_v2") return reinterpret_cast<void*>(cublasDestroy);
    if (name == "cublasSetStream_v2") return reinterpret_cast<void*>(cublasSetStream);
    if (name == "cublasSetWorkspace_v2") return reinterpret_cast<void*>(cublasSetWorkspace);
    if (name == "cublasSetMathMode") return reinterpret_cast<void*>(cublasSetMathMode);
    if (name == "cublasGetStatusString") return reinterpret_cast<void*>(cublasGetStatusString);
    return name == "cublasGemmEx" ? reinterpret_cast<void*>(cublasGemmEx) : nullptr;
}
#define dlsym(library, name) stand_in_symbol(name)
