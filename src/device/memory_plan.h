// Memory is planned before the first step: a table, and a sentence instead of a crash if it does not fit.
#pragma once
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "src/device/device.h"
#include "src/run/log.h"

namespace r1 {

/// rows: what the memory is for (with the flags that change it) and how many bytes.
/// What the process holds already is added. Returns the total.
inline std::size_t print_and_check_memory_plan(const Device& device,
                                               std::vector<std::pair<std::string, std::size_t>> rows) {
    const Backend& backend = *device.backend;
    std::size_t total = 0;
    const std::size_t present = backend.used_memory();
    rows.emplace_back("in use already: program, libraries, data", present);
    std::printf("memory plan (%s%s)\n", backend.name(), device.note.c_str());
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
