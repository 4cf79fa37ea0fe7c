// Replays the inputs that fuzzing found interesting (make fuzz).
#include "tests/fuzz/targets.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;

TEST_CASE("fuzzing corpora: every input ends in a result or in a sentence") {
    const std::filesystem::path corpus = R1_SOURCE_DIR "/tests/fuzz/corpus";
    for (const auto& [name, target] : kFuzzTargets) {
        CAPTURE(name);
        std::size_t count = 0;
        for (const auto& file : std::filesystem::directory_iterator(corpus / name)) {
            CAPTURE(file.path().filename().string());
            const std::string input = read_file(file);
            try {
                target(input);
            } catch (const Error& e) {
                CHECK(std::string(e.what()) != "");
            }
            ++count;
        }
        CHECK(count > 0);
    }
}
