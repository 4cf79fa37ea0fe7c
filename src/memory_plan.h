// Memory is planned before the first step: a table, and a sentence instead of a crash if it does not fit.
#pragma once
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "src/backend.h"
#include "src/run_log.h"

namespace r1 {

/// The largest resident set of this process so far, and the present one, in bytes.
inline std::size_t peak_memory() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}
inline std::size_t present_memory() {
    std::size_t total = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> total >> resident;
    return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

/// rows: what the memory is for (with the flags that change it) and how many bytes.
/// What the process holds already (the program, tokenizer and data) is added. Returns the total.
inline std::size_t print_and_check_memory_plan(const Backend& backend,
                                               std::vector<std::pair<std::string, std::size_t>> rows) {
    std::size_t total = 0;
    const std::size_t present = present_memory();
    rows.emplace_back("program, tokenizer and data", present);
    std::printf("memory plan (%s)\n", backend.name());
    for (const auto& [what, bytes] : rows) {
        std::printf("  %12s  %s\n", human_bytes(static_cast<double>(bytes)).c_str(), what.c_str());
        total += bytes;
    }
    const std::size_t available = backend.available_memory();
    std::printf("  %12s  in all\n", human_bytes(static_cast<double>(total)).c_str());
    if (total - present > available)
        fail("the plan needs ", human_bytes(static_cast<double>(total)), ", ",
             human_bytes(static_cast<double>(total - present - available)),
             " more than is free; lower the largest rows with the flags named beside them");
    return total;
}

}  // namespace r1
