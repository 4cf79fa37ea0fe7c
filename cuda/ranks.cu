// Sums over ranks from GPU to GPU, by NCCL, which is opened when it is first wanted: a program of
// one process, or one that was built or runs without it, does without.
#include <algorithm>
#include <cstdio>

#include "cuda/backend_cuda.h"
#include "src/run/comm.h"

#if __has_include(<nccl.h>)
#include <nccl.h>
#endif

namespace r1::cuda {

#ifdef NCCL_MAJOR
namespace {

struct Nccl {
    decltype(&ncclGetUniqueId) get_unique_id = nullptr;
    decltype(&ncclCommInitRank) comm_init_rank = nullptr;
    decltype(&ncclCommDestroy) comm_destroy = nullptr;
    decltype(&ncclAllReduce) all_reduce = nullptr;
    decltype(&ncclGetErrorString) error_string = nullptr;
    std::string missing;  ///< why it cannot be used; empty where it can

    Nccl() {
        void* library = open_library("libnccl.so.2", "nccl", "", missing);
        if (!library) return;
        missing.clear();
        find_function(get_unique_id, library, "ncclGetUniqueId", missing);
        find_function(comm_init_rank, library, "ncclCommInitRank", missing);
        find_function(comm_destroy, library, "ncclCommDestroy", missing);
        find_function(all_reduce, library, "ncclAllReduce", missing);
        find_function(error_string, library, "ncclGetErrorString", missing);
        // Which algorithm adds up decides the last bits; NCCL would choose by what it measures.
        setenv("NCCL_ALGO", "Ring", false);
        setenv("NCCL_PROTO", "Simple", false);
    }
};
const Nccl& nccl() {
    static const Nccl opened;  // never closed: its functions live in it
    return opened;
}

void check(ncclResult_t status) {
    if (status != ncclSuccess) fail("NCCL: ", nccl().error_string(status));
}

/// Whether each rank has a GPU of its own, which NCCL insists on: no two have the same first bytes
/// of their identities.
bool have_own_gpus(int device, const Comm& ranks) {
    cudaDeviceProp properties;
    cuda::check(cudaGetDeviceProperties(&properties, device), "properties");
    std::vector<double> gpus(ranks.size());
    std::size_t identity = 0;
    for (char byte : properties.uuid.bytes)
        identity = identity * 257 + static_cast<unsigned char>(byte);
    gpus[ranks.rank()] = static_cast<double>(identity >> 12);
    ranks.all_reduce_sum(gpus);
    std::ranges::sort(gpus);
    return std::ranges::adjacent_find(gpus) == gpus.end();
}

/// This GPU among those of the other ranks; null, and the reason printed, where one cannot join.
std::shared_ptr<void> join(int device, const Comm& ranks) {
    const bool lack_it = ranks.any(!nccl().missing.empty());
    if (lack_it || !have_own_gpus(device, ranks)) {
        const std::string why = !lack_it ? "ranks share a GPU" : "no NCCL: " + nccl().missing;
        std::printf("note: gradients are added up through the host (%s)\n", why.c_str());
        return nullptr;
    }
    ncclUniqueId id;
    if (ranks.is_root()) check(nccl().get_unique_id(&id));
    ranks.broadcast(id.internal);
    ncclComm_t comm = nullptr;
    check(nccl().comm_init_rank(&comm, ranks.size(), id, ranks.rank()));
    std::printf("gradients are added up by NCCL\n");
    return {comm, [](void* c) { nccl().comm_destroy(static_cast<ncclComm_t>(c)); }};
}

}  // namespace

void CudaBackend::all_reduce_sum(Tensor t, const Comm& ranks) {
    if (ranks.size() > 1 && !tried_nccl_) {
        nccl_ = join(device_, ranks);
        tried_nccl_ = true;
    }
    if (!nccl_) return Backend::all_reduce_sum(t, ranks);
    check(nccl().all_reduce(t.data, t.data, static_cast<std::size_t>(t.size()), ncclFloat32,
                            ncclSum, static_cast<ncclComm_t>(nccl_.get()), stream_));
}
#else
void CudaBackend::all_reduce_sum(Tensor t, const Comm& ranks) { Backend::all_reduce_sum(t, ranks); }
#endif

}  // namespace r1::cuda
