// One fuzzer for each target: R1_FUZZ_TARGET=answer build-fuzz/r1_fuzz CORPUS_FOLDER
#include <cstdio>
#include <cstdlib>

#include "src/run/error.h"
#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
    static const auto target = [] {
        const char* name = std::getenv("R1_FUZZ_TARGET");
        const auto found = r1::test::kFuzzTargets.find(name ? name : "");
        if (found == r1::test::kFuzzTargets.end()) {
            std::fprintf(stderr, "set R1_FUZZ_TARGET to one of");
            for (const auto& [known, function] : r1::test::kFuzzTargets)
                std::fprintf(stderr, " %s", known.c_str());
            std::fprintf(stderr, "\n");
            std::exit(2);
        }
        return found->second;
    }();
    try {
        target({reinterpret_cast<const char*>(data), size});
    } catch (const r1::Error&) {
    }
    return 0;
}
