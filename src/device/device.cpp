#include "src/device/device.h"

#include <dlfcn.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "src/run/error.h"

namespace r1 {
namespace {

namespace fs = std::filesystem;

/// What "auto" tries, in this order, before the CPU.
const std::string kAuto[] = {"cuda"};

fs::path folder() { return fs::read_symlink("/proc/self/exe").parent_path(); }

/// Opens libr1_NAME.so, and of its devices the one of this number; -1: it chooses.
std::unique_ptr<Backend> load(const std::string& name, int device, bool bfloat16,
                              std::string& why_not) {
    const fs::path library = folder() / ("libr1_" + name + ".so");
    if (!fs::exists(library)) {
        why_not = library.filename().string() + " is not beside the program";
        return nullptr;
    }
    void* handle =
        dlopen(library.c_str(), RTLD_NOW);  // it stays open: the backend's code lives in it
    if (!handle) {
        why_not = dlerror();
        return nullptr;
    }
    const auto version =
        reinterpret_cast<decltype(&r1_backend_version)>(dlsym(handle, "r1_backend_version"));
    const auto open =
        reinterpret_cast<decltype(&r1_open_backend)>(dlsym(handle, "r1_open_backend"));
    if (!version || !open)
        fail(library.string(), ": it does not export ",
             version ? "r1_open_backend" : "r1_backend_version",
             "(), with C linkage (extern \"C\"); src/device/backend.h ends with both");
    if (version() != kBackendVersion)
        fail(library.string(), ": it was built for version ", version(),
             " of the contract, this program for ", kBackendVersion, "; build it anew");
    const char* reason = "it does not say why";
    std::unique_ptr<Backend> backend(open(device, bfloat16, &reason));
    if (!backend) why_not = reason;
    return backend;
}

}  // namespace

std::vector<std::string> backend_names() {
    std::vector<std::string> names{"cpu", "reference"};
    for (const auto& entry : fs::directory_iterator(folder())) {
        const std::string file = entry.path().stem().string();
        if (file.starts_with("libr1_") && entry.path().extension() == ".so")
            names.push_back(file.substr(6));
    }
    std::sort(names.begin() + 2, names.end());
    return names;
}

std::unique_ptr<Backend> open_backend(const std::string& name, bool bfloat16,
                                      std::string& why_not) {
    const std::string library = name.substr(0, name.find(':'));
    const char* const end = name.data() + name.size();
    int device = -1;
    if (library != name) {
        const auto [stop, error] = std::from_chars(&name[library.size() + 1], end, device);
        if (error != std::errc() || stop != end || device < 0) {
            why_not = "a device's number, from 0, is wanted after the colon";
            return nullptr;
        }
    }
    if (library != "cpu" && library != "reference") return load(library, device, bfloat16, why_not);
    why_not = "its devices have no numbers";
    if (device >= 0) return nullptr;
    return library == "cpu" ? make_cpu_backend() : make_reference_backend();
}

Device make_device(const std::string& name, const std::string& dtype, bool exact) {
    const auto device = [&](std::unique_ptr<Backend> backend, const std::string& note = "") {
        if (exact && name != "reference" && !backend->make_exact())  // the reference always is
            fail("--exact: --device ", name, " has no exact arithmetic; choose --device cpu");
        const bool bf16 = backend->activation() == DType::BF16 || dtype == "bfloat16";
        return Device{std::move(backend), bf16, note};
    };
    std::string why_not, note;
    if (name != "auto") {
        if (auto backend = open_backend(name, dtype != "float32", why_not))
            return device(std::move(backend));
        std::string known = "auto";
        for (const std::string& other : backend_names()) known += ", " + other;
        fail("--device ", name, ": ", why_not, "; the devices here are ", known);
    }
    for (const std::string& gpu : kAuto) {
        if (auto backend = open_backend(gpu, dtype != "float32", why_not))
            return device(std::move(backend));
        note += "; no " + gpu + ": " + why_not;
    }
    return device(make_cpu_backend(), note);
}

}  // namespace r1
