#include "src/run/comm.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "src/run/error.h"

#ifdef R1_MPI
#include <mpi.h>
#endif

namespace r1 {
namespace {

/// How many processes the launcher has started: Open MPI's, MPICH's, or Slurm's srun; else 1.
int launched() {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"})
        if (const char* size = std::getenv(name)) return std::atoi(size);
    return 1;
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
    if (launched() == 1) return;
    MPI_Init(nullptr, nullptr);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    if (rank_ != 0 && !std::freopen("/dev/null", "w", stdout)) fail("/dev/null cannot be opened");
}
std::vector<std::string> Comm::all_gather(const std::string& own) const {
    if (size_ == 1) return {own};
    const int bytes = static_cast<int>(own.size());
    std::vector<int> sizes(size_), begins(size_ + 1);
    MPI_Allgather(&bytes, 1, MPI_INT, sizes.data(), 1, MPI_INT, MPI_COMM_WORLD);
    for (int r = 0; r < size_; ++r) begins[r + 1] = begins[r] + sizes[r];
    std::string all(begins[size_], 0);
    MPI_Allgatherv(own.data(), bytes, MPI_CHAR, all.data(), sizes.data(), begins.data(), MPI_CHAR,
                   MPI_COMM_WORLD);
    std::vector<std::string> parts;
    for (int r = 0; r < size_; ++r) parts.push_back(all.substr(begins[r], sizes[r]));
    return parts;
}
void Comm::broadcast(std::span<char> bytes) const {
    if (size_ > 1)
        MPI_Bcast(bytes.data(), static_cast<int>(bytes.size()), MPI_CHAR, 0, MPI_COMM_WORLD);
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
    if (launched() > 1)
        fail("launched by MPI, but built without it; install libopenmpi-dev and build again");
}
std::vector<std::string> Comm::all_gather(const std::string& own) const { return {own}; }
void Comm::broadcast(std::span<char>) const {}
void Comm::all_reduce_sum(std::span<double>) const {}
void Comm::all_reduce_max(std::span<double>) const {}
void Comm::all_reduce_sum(std::span<float>) const {}
int end_ranks(int status) { return status; }
#endif

}  // namespace r1
