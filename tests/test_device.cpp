// The door: devices are found by name, and what is not there is refused in one sentence.
#include <algorithm>

#include "src/device/device.h"
#include "tests/programs.h"

using namespace r1;
using namespace r1::test;

TEST_CASE("a device is built in, or a library beside the program; another name is refused") {
    const auto names = backend_names();
    for (const char* name : {"cpu", "reference", "cuda-on-cpu", "skeleton"}) {
        INFO(name);
        CHECK(std::ranges::count(names, name) == 1);
        CHECK(make_device(name, "float32").backend->activation() == DType::F32);
        CHECK(make_device(name, "bfloat16").bf16_matrices);
    }
    CHECK(make_device("auto", "auto", true).backend->name() == std::string("cpu"));
    CHECK(make_device("cuda-on-cpu", "auto").backend->activation() == DType::BF16);
    CHECK(!make_device("skeleton", "auto").bf16_matrices);
    CHECK_ERROR(make_device("nope", "auto"),
                "--device nope: libr1_nope.so is not beside the program");
    CHECK_ERROR(make_device("", "auto"), "the devices here are auto, cpu, reference, ");
    CHECK_ERROR(make_device("skeleton", "auto", true), "choose --device cpu");
}

TEST_CASE("a plugin trains, and samples what the reference samples") {
    const TemporaryFolder f;
    auto samples = [&](const std::string& device) {
        const auto ran = run(f, "train_grpo --model " + kBase + " --train " + kTrain +
                                    " --prompts 2 --group 2 --max-new-tokens 12 --steps 2 --seed 3 "
                                    "--device " +
                                    device + " --out " + (f / device));
        CHECK(ran.status == 0);
        return read_file(f / (device + "/samples.jsonl"));
    };
    const std::string expected = samples("reference");
    CHECK(!expected.empty());
    CHECK(samples("skeleton") == expected);
    CHECK(samples("cpu") == expected);
    const auto refused = run(f, "train_grpo --model " + kBase + " --train " + kTrain +
                                    " --device nope --out " + (f / "nope"));
    CHECK(refused.status == 2);
}

TEST_CASE("formulas.h is C, and OpenCL C where clang is there") {
    const TemporaryFolder f;
    const std::string file = kSource + "/src/device/formulas.h";
    CHECK(shell(f, "g++ -x c -std=c99 -Wall -Wextra -Werror -pedantic -fsyntax-only " + file)
              .status == 0);
    if (shell(f, "clang++ --version").status == 0)
        CHECK(
            shell(f, "clang++ -x cl -cl-std=CL1.2 -Xclang -finclude-default-header -fsyntax-only " +
                         file)
                .status == 0);
}
