#include "src/run/comm.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "src/run/error.h"

#ifdef R1_MPI
#include <mpi.h>
#endif

namespace r1 {
namespace {

/// Set by the launchers of Open MPI, and of MPICH and Slurm.
bool launched_by_mpi() {
    return std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("PMI_SIZE") ||
           std::getenv("PMI_RANK");
}

#ifdef R1_MPI
/// Reduce and broadcast instead of all-reduce: MPI does not promise that all-reduce gives every
/// rank the same bits.
void reduce(void* data, std::int64_t count, MPI_Datatype type, MPI_Op op, int rank) {
    constexpr std::int64_t chunk = 1 << 26;  // MPI counts in int
    const std::int64_t bytes = type == MPI_DOUBLE ? 8 : 4;
    for (std::int64_t begin = 0; begin < count; begin += chunk) {
        void* at = static_cast<char*>(data) + begin * bytes;
        const int n = static_cast<int>(std::min(chunk, count - begin));
        MPI_Reduce(rank == 0 ? MPI_IN_PLACE : at, at, n, type, op, 0, MPI_COMM_WORLD);
        MPI_Bcast(at, n, type, 0, MPI_COMM_WORLD);
    }
}
#endif

}  // namespace

#ifdef R1_MPI
bool Comm::available() { return true; }
Comm::Comm() {
    if (!launched_by_mpi()) return;
    MPI_Init(nullptr, nullptr);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
}
void Comm::all_reduce_sum(std::span<double> v) const {
    if (size_ > 1)
        reduce(v.data(), static_cast<std::int64_t>(v.size()), MPI_DOUBLE, MPI_SUM, rank_);
}
void Comm::all_reduce_max(std::span<double> v) const {
    if (size_ > 1)
        reduce(v.data(), static_cast<std::int64_t>(v.size()), MPI_DOUBLE, MPI_MAX, rank_);
}
void Comm::all_reduce_sum(std::span<float> v) const {
    if (size_ > 1) reduce(v.data(), static_cast<std::int64_t>(v.size()), MPI_FLOAT, MPI_SUM, rank_);
}
int end_ranks(int status) {
    int begun = 0;
    MPI_Initialized(&begun);
    if (!begun) return status;
    if (status != 0 && status != 130) MPI_Abort(MPI_COMM_WORLD, status);
    MPI_Finalize();
    return status;
}
#else
bool Comm::available() { return false; }
Comm::Comm() {
    if (launched_by_mpi())
        fail("launched by MPI, but built without it; install libopenmpi-dev and build again");
}
void Comm::all_reduce_sum(std::span<double>) const {}
void Comm::all_reduce_max(std::span<double>) const {}
void Comm::all_reduce_sum(std::span<float>) const {}
int end_ranks(int status) { return status; }
#endif

}  // namespace r1
