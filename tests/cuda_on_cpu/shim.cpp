// The scheduler of the fibers that stand for CUDA threads, and the runtime and cuBLAS functions
// that cuda/ calls.
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "cublas_v2.h"
#include "cuda_bf16.h"
#include "cuda_runtime.h"

#ifdef __has_feature  // clang
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace cuda_on_cpu {
namespace {

[[noreturn]] void die(const char* what) {
    std::fprintf(stderr, "cuda_on_cpu: %s (block %u %u %u, thread %u)\n", what, blockIdx.x,
                 blockIdx.y, blockIdx.z, threadIdx.x);
    std::abort();
}

#ifdef __x86_64__
/// Saves the callee-saved registers and the stack pointer, and takes up another stack where it left
/// off.
extern "C" void r1_switch_stack(void** save, void* load);
asm(R"(
.text
.globl r1_switch_stack
.type r1_switch_stack, @function
r1_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx  # not `ret`, whose target the processor would predict wrongly
.size r1_switch_stack, .-r1_switch_stack
)");
#endif

constexpr std::size_t kStackBytes = 128 * 1024, kFirstFrames = 16 * 1024;

struct Copy {
    void* to;
    const void* from;
    int bytes;
    int group = -1;  ///< none yet
    void make() const {
        std::memset(to, 0, 16);
        std::memcpy(to, from, bytes);
    }
};

struct Fiber {
#ifdef __x86_64__
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    std::unique_ptr<std::byte[]> stack;  ///< none for the scheduler's
    void* fake_stack = nullptr;
    std::vector<Copy> copies;  ///< that it has begun
    int groups = 0;            ///< of copies, so far
};

struct Warp {
    unsigned alive = ~0u, ready = ~0u;  ///< bits of the lanes that have not ended, and that can run
    unsigned first = 0;  ///< the lane that runs first, drawn anew whenever they become ready
    int arrived = 0;
    void* arguments[32];
    void (*operation)(void* const[32]) = nullptr;
};

/// One block at a time. Fibers are kept for the next.
struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<int> priority;  ///< of warps, the first first: drawn anew at every barrier
    std::size_t turn = 0;  ///< in `priority`: those before it wait at the barrier, or have ended
    std::size_t threads = 0, running = 0, done = 0, at_barrier = 0;
    const std::function<void()>* body = nullptr;
    std::unique_ptr<void, void (*)(void*)> shared{nullptr, std::free};
    std::minstd_rand random{1};
    Fiber scheduler;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_bytes = 0;
} block;

constexpr std::size_t kScheduler = -1;
Fiber& fiber(std::size_t index) {
    return index == kScheduler ? block.scheduler : block.fibers[index];
}

void make_ready(Warp& warp, unsigned lanes) {
    warp.ready |= lanes;
    warp.first = block.random() % 32;
}

void release_barrier() {
    block.at_barrier = block.turn = 0;
    std::shuffle(block.priority.begin(), block.priority.end(), block.random);
    for (Warp& warp : block.warps) make_ready(warp, warp.alive);
}

/// The thread that runs next; the scheduler when all have ended.
std::size_t choose() {
    for (;; release_barrier()) {
        for (; block.turn < block.priority.size(); ++block.turn) {
            const std::size_t w = block.priority[block.turn];
            Warp& warp = block.warps[w];
            if (!warp.ready) continue;
            const unsigned later = warp.ready >> warp.first << warp.first;
            const int lane = __builtin_ctz(later ? later : warp.ready);
            warp.ready &= ~(1u << lane);
            return w * 32 + lane;
        }
        if (block.done == block.threads) return kScheduler;
        if (block.at_barrier == 0 || block.at_barrier + block.done < block.threads)
            die("deadlock: some threads wait at a barrier or a warp operation that others never reach");
    }
}

/// AddressSanitizer wants to know of a new stack, where it is entered, and says which was left.
void arrive([[maybe_unused]] void* fake_stack) {
#ifdef __SANITIZE_ADDRESS__
    const bool first = !block.scheduler_stack;
    __sanitizer_finish_switch_fiber(fake_stack, first ? &block.scheduler_stack : nullptr,
                                    first ? &block.scheduler_bytes : nullptr);
#endif
}

/// Lets others run, and returns when the caller is chosen again.
void leave([[maybe_unused]] bool for_good = false) {
    const std::size_t index = block.running;
    block.running = choose();
    if (block.running == index) return;
    threadIdx = dim3(static_cast<unsigned>(block.running), 0, 0);
    Fiber &from = fiber(index), &to = fiber(block.running);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack,
                                   to.stack ? to.stack.get() : block.scheduler_stack,
                                   to.stack ? kStackBytes : block.scheduler_bytes);
#endif
#ifdef __x86_64__
    r1_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
    arrive(from.fake_stack);
}

void fiber_main() {
    arrive(nullptr);
    (*block.body)();
    if (!fiber(block.running).copies.empty()) die("nobody waits for a copy that was begun");
    block.warps[block.running / 32].alive &= ~(1u << block.running % 32);
    ++block.done;
    leave(true);
}

void prepare(Fiber& fiber) {
    if (!fiber.stack) fiber.stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
#ifdef __SANITIZE_ADDRESS__
    // fiber_main() and leave() never return: what they forbid on the stack would stay forbidden.
    __asan_unpoison_memory_region(fiber.stack.get() + kStackBytes - kFirstFrames, kFirstFrames);
#endif
#ifdef __x86_64__
    // Stacks begin in different lines of the cache: where all begin at the same place of a page,
    // they push each other out of it.
    const std::size_t colour = static_cast<std::size_t>(&fiber - block.fibers.data()) * 9 % 128;
    auto top =
        (reinterpret_cast<std::uintptr_t>(fiber.stack.get() + kStackBytes) & ~std::uintptr_t{63}) -
        colour * 64;
    auto* stack = reinterpret_cast<void**>(top);
    *--stack =
        nullptr;  // where a return address would be, so that the stack is aligned as after a call
    *--stack = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--stack = nullptr;  // the callee-saved registers
    fiber.stack_pointer = stack;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#endif
}

std::vector<std::function<void()>>* capturing = nullptr;
bool narrow_sums = true;  ///< what CUBLAS_DEFAULT_MATH allows

std::deque<std::function<void()>> queue;
std::size_t queued = 0, done = 0;  ///< since the program began

/// Does the work that is queued until `count` pieces are done.
void wait_for(std::size_t count) {
    if (capturing) die("a captured stream cannot be waited for");
    for (; done < count; ++done) {
        const auto work = std::move(queue.front());
        queue.pop_front();
        work();
    }
}

}  // namespace

void* shared_memory() { return block.shared.get(); }

void warp_collective(void* argument, void (*operation)(void* const[32])) {
    const std::size_t self = block.running;
    Warp& warp = block.warps[self / 32];
    if (warp.arrived && warp.operation != operation)
        die("the lanes of a warp are in different warp operations");
    warp.operation = operation;
    warp.arguments[self % 32] = argument;
    if (++warp.arrived == 32) {
        operation(warp.arguments);
        warp.arrived = 0;
        return make_ready(warp, ~(1u << self % 32));
    }
    leave();
}

void copy_async(void* to, const void* from, int bytes) {
    const Copy copy{to, from, bytes};
    if (block.random() % 2) return copy.make();
    fiber(block.running).copies.push_back(copy);
}

void end_group() {
    Fiber& self = fiber(block.running);
    for (Copy& copy : self.copies)
        if (copy.group < 0) copy.group = self.groups;
    ++self.groups;
}

void wait_for_copies(int latest, bool ungrouped) {
    Fiber& self = fiber(block.running);
    std::erase_if(self.copies, [&](const Copy& copy) {
        const bool due = copy.group < 0 ? ungrouped : copy.group < self.groups - latest;
        if (due) copy.make();
        return due;
    });
}

void submit(std::function<void()> work) {
    if (capturing) return capturing->push_back(std::move(work));
    queue.push_back(std::move(work));
    ++queued;
}

void launch(dim3 grid, dim3 size, std::size_t shared_bytes, const std::function<void()>& thread) {
    if (size.x % 32 || size.x > 1024 || size.y != 1 || size.z != 1)
        die("blocks are whole warps in x, up to 1024");
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
        die("the grid is empty or too large");
    if (shared_bytes > 227 * 1024) die("more shared memory than a block can have");
    block.threads = size.x;
    block.body = &thread;
    while (block.fibers.size() < block.threads) block.fibers.emplace_back();
    blockDim = size, gridDim = grid;
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, shared_bytes)) die("out of memory");
    block.shared.reset(shared);
    block.priority.resize(block.threads / 32);
    std::iota(block.priority.begin(), block.priority.end(), 0);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                std::memset(shared, 0xff, shared_bytes);  // NaN in float32, bfloat16 and float64
                for (std::size_t i = 0; i < block.threads; ++i) prepare(block.fibers[i]);
                block.warps.assign(block.threads / 32, {});
                block.done = 0;
                release_barrier();
                block.running = kScheduler;
                block.scheduler_stack = nullptr;
                leave();
            }
    block.shared.reset();
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

void __syncthreads() {
    ++block.at_barrier;
    leave();
}

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the CPU stand-in";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
    const char* wanted = std::getenv("R1_STAND_IN_GPUS");
    return *count = wanted ? std::atoi(wanted) : 2, cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    *properties = {};
    return properties->uuid.bytes[0] = static_cast<char>(device), cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaMalloc(void** data, std::size_t bytes) {
    if (bytes > std::size_t{1} << 40) return cudaErrorMemoryAllocation;
    if (posix_memalign(data, 256, bytes)) return cudaErrorMemoryAllocation;
    std::memset(*data, 0xff, bytes);  // NaN
    return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
    wait_for(queued);
    return std::free(data), cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
    return *data = std::malloc(bytes), cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) { return std::free(data), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return *event = new std::size_t(0), cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    return *event = queued, cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait_for(*event), cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    *free = *total = std::size_t{16} << 30;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
    submit([=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
    submit([=] { std::memset(to, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    static int only_one;
    return *stream = &only_one, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait_for(queued), cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    capturing = new std::vector<std::function<void()>>;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    *graph = std::exchange(capturing, nullptr);
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
    *executable = new std::vector<std::function<void()>>(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    for (const auto& work : *graph) submit(work);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
    return *handle = nullptr, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, std::size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t mode) {
    narrow_sums = mode != CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    return CUBLAS_STATUS_SUCCESS;
}
const char* cublasGetStatusString(cublasStatus_t) { return "success"; }

cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t transpose_a,
                            cublasOperation_t transpose_b, int m, int n, int k, const void* alpha,
                            const void* a, cudaDataType a_type, int lda, const void* b,
                            cudaDataType b_type, int ldb, const void* beta, void* c,
                            cudaDataType c_type, int ldc, cublasComputeType_t, cublasGemmAlgo_t) {
    if (a_type != b_type) die("cublasGemmEx: A and B must have one type");
    if (narrow_sums && c_type == CUDA_R_16BF) die("cublasGemmEx: it may add up in bfloat16");
    if (lda < (transpose_a == CUBLAS_OP_N ? m : k) || ldb < (transpose_b == CUBLAS_OP_N ? k : n) ||
        ldc < m)
        die("cublasGemmEx: a leading dimension is too small");
    const float alpha_value = *static_cast<const float*>(alpha),
                beta_value = *static_cast<const float*>(beta);
    submit([=] {
        auto element = [](const void* data, cudaDataType type, std::int64_t i) {
            return type == CUDA_R_32F
                       ? static_cast<const float*>(data)[i]
                       : __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
        };
        std::vector<float> wide_a(static_cast<std::size_t>(m) * k),
            wide_b(static_cast<std::size_t>(k) * n);
        for (std::int64_t i = 0; i < m; ++i)
            for (std::int64_t p = 0; p < k; ++p)
                wide_a[i * k + p] =
                    element(a, a_type, transpose_a == CUBLAS_OP_N ? p * lda + i : i * lda + p);
        for (std::int64_t j = 0; j < n; ++j)
            for (std::int64_t p = 0; p < k; ++p)
                wide_b[j * k + p] =
                    element(b, b_type, transpose_b == CUBLAS_OP_N ? j * ldb + p : p * ldb + j);
        for (std::int64_t j = 0; j < n; ++j)
            for (std::int64_t i = 0; i < m; ++i) {
                float sum = 0;
                for (std::int64_t p = 0; p < k; ++p) sum += wide_a[i * k + p] * wide_b[j * k + p];
                const std::int64_t at = j * ldc + i;
                sum *= alpha_value;
                if (beta_value != 0) sum += beta_value * element(c, c_type, at);
                if (c_type == CUDA_R_32F)
                    static_cast<float*>(c)[at] = sum;
                else
                    static_cast<__nv_bfloat16*>(c)[at] = __float2bfloat16(sum);
            }
    });
    return CUBLAS_STATUS_SUCCESS;
}
