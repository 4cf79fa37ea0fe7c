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

TEST_CASE("a GPU is chosen by its number, or by the rank of the process on its machine") {
    const auto name = [](const std::string& device) {
        const std::string full = make_device(device, "auto").backend->name();
        return full.substr(0, full.find(','));
    };
    CHECK(name("cuda-on-cpu") == "cuda:0");
    CHECK(name("cuda-on-cpu:1") == "cuda:1");
    for (const char* variable :
         {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}) {
        setenv(variable, "3", true);
        CHECK(name("cuda-on-cpu") == "cuda:1");  // the stand-in has two
        CHECK(name("cuda-on-cpu:0") == "cuda:0");
        unsetenv(variable);
    }
    CHECK_ERROR(make_device("cuda-on-cpu:2", "auto"),
                "--device cuda-on-cpu:2: there is no GPU of this number; the last one is 1");
    for (const char* device : {"cpu:0", "reference:0", "skeleton:0"})
        CHECK_ERROR(make_device(device, "auto"),
                    "--device " + std::string(device) + ": its devices have no numbers");
    for (const char* device : {"cpu:", "cuda-on-cpu:x", "cuda-on-cpu:1x", "cuda-on-cpu:-1",
                               "cuda-on-cpu: 1", "cuda-on-cpu:99999999999"})
        CHECK_ERROR(make_device(device, "auto"), "a device's number, from 0, is wanted");
}

TEST_CASE("cuBLAS is found beside the program, in LD_LIBRARY_PATH, among Python's wheels, or not at all") {
    namespace fs = std::filesystem;
    const TemporaryFolder f;
    // The CUDA backend, but for CUDA itself, in the place where `auto` looks for it.
    fs::copy(kBin + "train_grpo", f / "train_grpo");
    fs::copy(kBin + "libr1_cuda-on-cpu.so", f / "libr1_cuda.so");
    const auto put = [&](const std::string& folder, const std::string& name = "libcublas.so.13") {
        fs::create_directories(f / folder);
        fs::copy(kBin + "cuda_on_cpu/libcublas.so.13", f / (folder + "/" + name));
    };
    const auto plan = [&](const std::string& environment) {
        return shell(f, "env -u VIRTUAL_ENV -u CONDA_PREFIX -u LD_LIBRARY_PATH LD_DEBUG=files HOME=/nowhere " +
                            environment + " " + (f / "train_grpo") + " --dry-run --model " + kBase +
                            " --train " + kTrain);
    };
    const auto found = [&](const Result& r, const std::string& file) {
        return r.status == 0 && has(r.out, "memory plan (cuda:0, ") &&
               has(r.out, "calling init: " + (f / file));
    };
    put("toolkit");
    CHECK(found(plan("LD_LIBRARY_PATH=" + (f / "toolkit")), "toolkit/libcublas.so.13"));
    const Result nothing = plan("");
    const bool here = !has(nothing.out, "memory plan (cpu; no cuda: no cuBLAS: libcublas.so.13: ");
    CHECK(nothing.status == 0);
    if (here) {
        CHECK(has(nothing.out, "memory plan (cuda:0, "));
        skip("this machine has a cuBLAS, which is found before a wheel's");
    } else {
        CHECK(has(nothing.out, "; name its folder in LD_LIBRARY_PATH, or install it)\n"));
        put("conda/lib/python3.12/site-packages/nvidia/cu13/lib");
        CHECK(found(plan("CONDA_PREFIX=" + (f / "conda")),
                    "conda/lib/python3.12/site-packages/nvidia/cu13/lib/libcublas.so.13"));
        put("venv/lib/python3.11/site-packages/nvidia/cublas/lib", "libcublas.so.12");
        CHECK(found(plan("VIRTUAL_ENV=" + (f / "venv")),
                    "venv/lib/python3.11/site-packages/nvidia/cublas/lib/libcublas.so.12"));
    }
    put(".");
    CHECK(found(plan("LD_LIBRARY_PATH=" + (f / "toolkit")), "libcublas.so.13"));
    put("lib");
    CHECK(found(plan(""), "lib/libcublas.so.13"));
}

TEST_CASE("a library that is no device is refused: it lacks the two functions, or is no library") {
    namespace fs = std::filesystem;
    const TemporaryFolder f;
    fs::copy(kBin + "train_grpo", f / "train_grpo");
    fs::copy(kBin + "cuda_on_cpu/libcublas.so.13", f / "libr1_other.so");
    std::ofstream(f / "libr1_text.so") << "no library\n";
    const auto error = [&](const std::string& device) {
        const Result r = shell(f, (f / "train_grpo") + " --device " + device + " --model " + kBase +
                                      " --train " + kTrain + " --out " + (f / "out"));
        CHECK(r.status == 2);
        CHECK(!fs::exists(f / "out"));
        return r.out;
    };
    CHECK(has(error("other"),
              "libr1_other.so: it does not export r1_backend_version(), with C linkage"));
    CHECK(has(error("text"), "--device text: " + (f / "libr1_text.so") + ": "));
}

TEST_CASE("gpu-check fails where a part of it fails or takes too long, and marks what was not predicted") {
    const TemporaryFolder f;
    const auto put = [&](const std::string& name, const std::string& script) {
        std::ofstream(f / name) << "#!/bin/bash\n" << script << "\n";
        std::filesystem::permissions(f / name, std::filesystem::perms::owner_all);
    };
    put("VERSION", "");
    put("nvidia-smi", "echo NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB");
    put("train_grpo", "[[ $* != *--dry-run* ]] || exit $START; exit $DEMO");
    put("r1_conformance", "sleep $SLEEP; exit $CONFORMANCE");
    put("r1_bench",
        "echo 'Qwen2.5-0.5B bfloat16 train 32 x 512 109000 tokens/s; update 6.8 ms'\n"
        "echo 'Qwen2.5-0.5B bfloat16 decode B = 256 9000 tokens/s'; exit $BENCH");
    put("compute-sanitizer", "shift 4; [ $R1_SEEDS = 1 ] && \"$@\"; exit $SANITIZER");
    const auto check = [&](const std::string& settings) {
        return shell(f, "cd " + kSource + "/tests/gpu; cp gpu-check predict.py " + f.path.string() +
                            "; env PATH=" + f.path.string() +
                            ":$PATH START=0 DEMO=0 CONFORMANCE=0 BENCH=0 SANITIZER=0 SLEEP=0 " +
                            settings + " " + (f / "gpu-check") +
                            " conformance demo bench memcheck racecheck");
    };
    const Result good = check("");
    CHECK(good.status == 0);
    CHECK(!has(good.out, "FAILED"));
    if (shell(f, "python3 --version").status == 0) {
        CHECK(has(good.out, "decode B = 256, tokens/s measured    9000.0 predicted  104696.0 0.09"));
        CHECK(has(good.out, "OFF by more than a quarter"));
        CHECK(has(good.out, "update, ms               measured       6.8 predicted       6.7 1.01\n"));
    }
    for (const char* fault : {"START=1", "DEMO=1", "CONFORMANCE=1", "BENCH=1", "SANITIZER=9",
                              "SLEEP=3 PART_SECONDS=1"}) {
        INFO(fault);
        const Result bad = check(fault);
        CHECK(bad.status == 1);
        CHECK(has(bad.out, "FAILED"));
    }
}

TEST_CASE("a reference policy that the device has no room for comes from the host") {
    const TemporaryFolder f;
    const auto plan = [&](int budget, const char* beta = "0.1") {
        return run(f, "train_grpo --model " + kBase + " --train " + kTrain +
                          " --device cuda-on-cpu --dry-run --beta " + beta + " --token-budget " +
                          std::to_string(budget));
    };
    const auto from_host = [](const Result& r) { return has(r.out, "reference policy: no room"); };
    int fits = 1000, too_large = 1 << 22;
    CHECK(from_host(plan(too_large)));
    CHECK(plan(too_large).status == 2);
    while (too_large - fits > 1) {
        const int middle = (fits + too_large) / 2;
        (from_host(plan(middle)) ? too_large : fits) = middle;
    }
    CHECK(has(plan(fits).out, "reference policy (--beta 0 needs none)"));
    CHECK(plan(too_large).status == 0);
    CHECK(!has(plan(too_large, "0").out, "reference policy"));
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
