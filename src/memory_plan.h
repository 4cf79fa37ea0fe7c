// Memory is planned before the first step: a table, and a sentence instead of a crash if it does not fit.
#pragma once
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "src/backend.h"
#include "src/run_log.h"

namespace r1 {

/// rows: what the memory is for (with the flags that change it) and how many bytes.
inline void print_and_check_memory_plan(const Backend& backend,
                                        const std::vector<std::pair<std::string, std::size_t>>& rows) {
    std::size_t total = 0;
    std::printf("memory plan (%s)\n", backend.name());
    for (const auto& [what, bytes] : rows) {
        std::printf("  %12s  %s\n", human_bytes(static_cast<double>(bytes)).c_str(), what.c_str());
        total += bytes;
    }
    const std::size_t available = backend.available_memory();
    std::printf("  %12s  in all\n", human_bytes(static_cast<double>(total)).c_str());
    if (total > available)
        fail("the plan needs ", human_bytes(static_cast<double>(total)), ", ",
             human_bytes(static_cast<double>(total - available)),
             " more than is free; lower the largest rows with the flags named beside them");
}

}  // namespace r1
