// Stands in for the system's header of this name, by which cuda/ opens cuBLAS and NCCL: libraries
// are looked for and opened as ever, but in place of theirs it finds the functions of the headers
// beside it.
#pragma once
#include_next <dlfcn.h>

#include <string_view>

#include "cublas_v2.h"
#include "nccl.h"

static inline void* stand_in_symbol(std::string_view name) {
    if (name == "cublasCreate_v2") return reinterpret_cast<void*>(cublasCreate);
    if (name == "cublasDestroy_v2") return reinterpret_cast<void*>(cublasDestroy);
    if (name == "cublasSetStream_v2") return reinterpret_cast<void*>(cublasSetStream);
    if (name == "cublasSetWorkspace_v2") return reinterpret_cast<void*>(cublasSetWorkspace);
    if (name == "cublasSetMathMode") return reinterpret_cast<void*>(cublasSetMathMode);
    if (name == "cublasGetStatusString") return reinterpret_cast<void*>(cublasGetStatusString);
    if (name == "cublasGemmEx") return reinterpret_cast<void*>(cublasGemmEx);
    if (name == "ncclGetUniqueId") return reinterpret_cast<void*>(ncclGetUniqueId);
    if (name == "ncclCommInitRank") return reinterpret_cast<void*>(ncclCommInitRank);
    if (name == "ncclCommDestroy") return reinterpret_cast<void*>(ncclCommDestroy);
    if (name == "ncclAllReduce") return reinterpret_cast<void*>(ncclAllReduce);
    return name == "ncclGetErrorString" ? reinterpret_cast<void*>(ncclGetErrorString) : nullptr;
}
#define dlsym(library, name) (static_cast<void>(library), stand_in_symbol(name))
