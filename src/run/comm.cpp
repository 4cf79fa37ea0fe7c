#include "src/run/comm.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>

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

/// What a rank says of itself to the next one.
enum class Beat : char { AtWork, Done };

std::thread* watch = nullptr;  // never destroyed: MPI_Abort may end the process beside it
std::atomic<Beat> own_state{Beat::AtWork};

/// Seconds of silence after which a rank is taken for lost.
double rank_timeout() {
    const char* text = std::getenv("R1_RANK_TIMEOUT");
    if (!text) return 20;
    char* end = nullptr;
    const double seconds = std::strtod(text, &end);
    if (*end || !(seconds >= 1))
        fail("R1_RANK_TIMEOUT=", text, ": must be a number of seconds from 1 on, or inf");
    return seconds;
}

/// Sends beats to the next rank of a ring and receives those of the one before, called `name`,
/// until both are done. It blocks nowhere, whatever the main thread computes or waits for.
void keep_watch(MPI_Comm ring, int next, int before, const std::string& name, double timeout) {
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](auto t) { return std::chrono::duration<double>(t).count(); };
    Beat said = Beat::AtWork, heard = Beat::AtWork;
    MPI_Request sent = MPI_REQUEST_NULL;
    auto last_heard = Clock::now(), last_turn = last_heard;
    while (said != Beat::Done || heard != Beat::Done) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        const auto now = Clock::now();
        // Whoever was stopped himself, perhaps with all the others, has not listened meanwhile.
        if (seconds(now - last_turn) > timeout / 4) last_heard = now;
        last_turn = now;
        int yes = 0;
        MPI_Test(&sent, &yes, MPI_STATUS_IGNORE);
        if (yes && said != Beat::Done) {
            said = own_state;
            MPI_Isend(&said, 1, MPI_CHAR, next, 0, ring, &sent);
        }
        for (;;) {
            MPI_Iprobe(before, 0, ring, &yes, MPI_STATUS_IGNORE);
            if (!yes) break;
            MPI_Recv(&heard, 1, MPI_CHAR, before, 0, ring, MPI_STATUS_IGNORE);
            last_heard = now;
        }
        if (seconds(now - last_heard) < timeout) continue;
        std::fprintf(stderr,
                     "%s has not been heard from for %g s: it hangs, or its machine is out of "
                     "reach; the run ends, and goes on from its last checkpoint with --resume\n",
                     name.c_str(), timeout);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    MPI_Wait(&sent, MPI_STATUS_IGNORE);
}
#endif

}  // namespace

#ifdef R1_MPI
bool Comm::available() { return true; }
Comm::Comm() {
    if (launched() == 1) return;
    int threads = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &threads);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    if (rank_ != 0 && !std::freopen("/dev/null", "w", stdout)) fail("/dev/null cannot be opened");
    if (size_ == 1) return;
    if (threads < MPI_THREAD_MULTIPLE) {
        if (is_root())
            std::fprintf(
                stderr,
                "note: this MPI has no MPI_THREAD_MULTIPLE, so no one notices a rank that hangs\n");
        return;
    }
    char host[MPI_MAX_PROCESSOR_NAME];
    int length = 0;
    MPI_Get_processor_name(host, &length);
    const auto names =
        all_gather("rank " + std::to_string(rank_) + " (host " + std::string(host, length) + ")");
    const int next = (rank_ + 1) % size_, before = (rank_ + size_ - 1) % size_;
    MPI_Comm ring;
    MPI_Comm_dup(MPI_COMM_WORLD, &ring);
    watch = new std::thread(keep_watch, ring, next, before, names[before], rank_timeout());
}
std::vector<std::string> Comm::all_gather(const std::string& own) const {
    if (size_ == 1) return {own};
    if (own.size() > std::size_t(std::numeric_limits<int>::max() / size_))
        fail(
            "a rank has more to tell the others than MPI can count; lower --prompts, --group or "
            "--max-new-tokens");
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
    MPI_Barrier(MPI_COMM_WORLD);  // all are watched until the last is done
    own_state = Beat::Done;
    if (watch) watch->join();
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
