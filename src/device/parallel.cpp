#include "src/device/parallel.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "src/run/error.h"

namespace r1 {
namespace {

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

thread_local bool inside = false;  // in a task: nested calls run serially

class Pool {
  public:
    explicit Pool(int count) {
        try {
            for (int i = 1; i < count; ++i) workers_.emplace_back([this] { work(); });
        } catch (const std::system_error&) {
            end();
            fail("--threads ", count, ": the system gives this process only ", size(),
                 "; ask for fewer");
        }
    }
    ~Pool() { end(); }
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    void run(std::int64_t count, const std::function<void(std::int64_t)>& task) {
        task_ = &task;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        generation_.fetch_add(1);
        generation_.notify_all();
        drain();
        for (int spin = 0; spin < 2000 && busy_.load(std::memory_order_acquire) > 0; ++spin)
            relax();
        for (int left; (left = busy_.load(std::memory_order_acquire)) > 0;) busy_.wait(left);
    }

  private:
    void end() {
        stop_ = true;
        generation_.fetch_add(1);
        generation_.notify_all();
        for (auto& w : workers_) w.join();
    }
    void drain() {
        inside = true;
        for (std::int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;)
            (*task_)(i);
        inside = false;
    }
    void work() {
        for (unsigned seen = 0;;) {
            for (int spin = 0; spin < 2000 && generation_.load(std::memory_order_acquire) == seen;
                 ++spin)
                relax();
            generation_.wait(seen);
            seen = generation_.load(std::memory_order_acquire);
            if (stop_) return;
            drain();
            if (busy_.fetch_sub(1, std::memory_order_release) == 1) busy_.notify_one();
        }
    }

    std::vector<std::thread> workers_;
    const std::function<void(std::int64_t)>* task_ = nullptr;
    std::int64_t count_ = 0;
    std::atomic<std::int64_t> next_{0};
    std::atomic<int> busy_{0};
    std::atomic<unsigned> generation_{0};
    std::atomic<bool> stop_{false};
};

std::unique_ptr<Pool>& pool() {
    static std::unique_ptr<Pool> instance;
    return instance;
}

}  // namespace

void set_threads(int count) {
    if (count <= 0) count = std::max(1u, std::thread::hardware_concurrency());
    if (pool() && pool()->size() == count) return;
    pool() = std::make_unique<Pool>(count);
}

int threads() {
    if (!pool()) set_threads(0);
    return pool()->size();
}

void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& task) {
    if (count <= 0) return;
    if (inside || count == 1 || threads() == 1) {
        for (std::int64_t i = 0; i < count; ++i) task(i);
        return;
    }
    pool()->run(count, task);
}

}  // namespace r1
