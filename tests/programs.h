// Programs, run as a user runs them.
#pragma once
#include <sys/wait.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "src/run/log.h"
#include "tests/support.h"

namespace r1::test {

inline const std::string kBin = R1_BINARY_DIR "/", kSource = R1_SOURCE_DIR;
/// The shipped base model, and questions of the demo.
inline const std::string kBase = kSource + "/data/world/base";
inline const std::string kTrain = kSource + "/data/world/countdown_train.jsonl";
inline const std::string kTest = kSource + "/data/world/countdown_test.jsonl";

struct Result {
    int status;            ///< -1: ended by a signal
    std::string out, err;  ///< what it printed
};

/// Runs a shell command; both streams are in `out`, as they came.
inline Result shell(const TemporaryFolder& folder, const std::string& command) {
    const std::string out = folder / "stdout";
    const int code = std::system((command + " >" + out + " 2>&1 </dev/null").c_str());
    return {WIFEXITED(code) ? WEXITSTATUS(code) : -1, read_file(out), ""};
}

/// Runs a program of this build, behind a launcher such as mpirun.
inline Result run(const TemporaryFolder& folder, const std::string& command,
                  const std::string& launcher = "") {
    const std::string out = folder / "stdout", err = folder / "stderr";
    const std::string line = launcher + kBin + command + " >" + out + " 2>" + err + " </dev/null";
    const int code = std::system(line.c_str());
    return {WIFEXITED(code) ? WEXITSTATUS(code) : -1, read_file(out), read_file(err)};
}

inline bool has(const std::string& text, const std::string& part) {
    return text.find(part) != text.npos;
}

/// The newest checkpoint of a run; an empty path if there is none.
inline std::filesystem::path last_checkpoint(const std::filesystem::path& run) {
    std::filesystem::path newest;
    int last = -1;
    for (const auto& entry : std::filesystem::directory_iterator(run)) {
        int step = -1;
        std::sscanf(entry.path().filename().c_str(), "checkpoint-%d.safetensors", &step);
        if (step > last) newest = entry.path();
        last = std::max(last, step);
    }
    return newest;
}

}  // namespace r1::test
