// `train_grpo --explain` against tests/explain.py, which recomputes each number from those printed
// above it.
#include <cstdlib>
#include <string>

#include "tests/support.h"

using namespace r1::test;

namespace {

/// Runs a shell command that must succeed, with its output in `file` of the folder.
void run(const TemporaryFolder& folder, const std::string& command, const std::string& file) {
    CAPTURE(command);
    const int status =
        std::system((command + " >" + (folder / file) + " 2>" + (folder / "errors")).c_str());
    CHECK_MESSAGE(status == 0, read_file(folder / "errors"));
}

}  // namespace

TEST_CASE(
    "each number of --explain follows from those printed above it, and a wrong one is noticed") {
    if (std::system("command -v python3 >/dev/null") != 0) {
        skip("no python3, which runs tests/explain.py");
        return;
    }
    const TemporaryFolder f;
    const std::string source = R1_SOURCE_DIR,
                      program = R1_BINARY_DIR "/train_grpo --explain --model " + source +
                                "/data/world/base --train " + source +
                                "/data/world/countdown_train.jsonl --max-new-tokens 48 ",
                      reader = "python3 " + source + "/tests/explain.py <" + (f / "explanation");
    int numbers = 0;
    for (
        const std::string flags :
        {"--preset r1-zero --lr 1e-3", "--preset grpo --group 4 --lr 2e-4",
         "--preset dapo --group 4 --lr 1e-3", "--preset dr-grpo --group 3 --lr 1e-3",
         "--preset gspo --lr 1e-3", "--group 2 --seed 3",
         "--advantage-scale batch --clip-norm 0 --lr 1e-2",
         "--advantage-scale none --temperature 0.7 --seed 2",
         "--importance-cap 2 --beta 0.04 --ratio sequence --clip-low 0.01 --clip-high 0.02 --lr 1e-3 --group 4",
         "--entropy-bonus 0.01 --overlong mask --max-new-tokens 24 --lr 1e-3 --seed 4",
         "--reward accuracy=1,language=0.1,repetition=0.3,length=0.25,overlong=0.5 --lr 10 --beta 0.1",
         "--group 2 --max-new-tokens 2"}) {  // every reward is 0
        CAPTURE(flags);
        run(f, program + flags, "explanation");
        run(f, reader, "checked");
        numbers += std::atoi(read_file(f / "checked").c_str());
        if (flags.find("--group 4") != flags.npos || flags.find("--group 2") != flags.npos)
            run(f, reader + " --corrupt", "noticed");
    }
    CHECK(numbers > 5000);
}
