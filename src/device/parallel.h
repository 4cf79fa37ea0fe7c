// parallel_for over a small pool of threads. Why not OpenMP: libgomp's waiting threads either spin
// for milliseconds (two threads are then slower than one on a busy machine) or sleep at once (a
// wake-up costs more than a decode kernel). Here a worker spins for some microseconds, then sleeps.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>

namespace r1 {

/// Threads used from now on: 1..; 0 means one per core. The result of no computation depends on it.
void set_threads(int count);
int threads();

/// Calls task(i) for every i in [0, count), in any order, possibly at the same time; returns when
/// all are done. Nested calls run in the calling thread. Tasks must not throw.
void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& task);

/// Calls body(begin, end) for pieces of [0, count), each of `chunk` but the last.
template <class Body>
void parallel_chunks(std::int64_t count, std::int64_t chunk, Body body) {
    parallel_for((count + chunk - 1) / chunk,
                 [&](std::int64_t i) { body(i * chunk, std::min(count, (i + 1) * chunk)); });
}

/// Calls body(i) for every i in [0, count), with `chunk` neighbours to a task.
template <class Body>
void for_each(std::int64_t count, std::int64_t chunk, Body body) {
    parallel_chunks(count, chunk, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) body(i);
    });
}
/// With 32.
template <class Body>
void for_each(std::int64_t count, Body body) {
    for_each(count, 32, body);
}

}  // namespace r1
