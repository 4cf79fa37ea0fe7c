#include "src/checkpoint.h"

#include "src/safetensors.h"

namespace r1 {
namespace {
std::filesystem::path file_in(const std::filesystem::path& folder) {
    return folder / "checkpoint.safetensors";
}
}  // namespace

void save_checkpoint(const std::filesystem::path& folder, const Transformer& model,
                     const Optimizer& optimizer, const Checkpoint& checkpoint) {
    std::filesystem::create_directories(folder);
    const std::int64_t total = model.layout().total;
    const auto parameters = model.download_parameters();
    std::vector<float> m(total), v(total);
    model.backend().download(m.data(), optimizer.m);
    model.backend().download(v.data(), optimizer.v);
    std::vector<SafeTensorOut> tensors = {
        {"parameters", {total}, parameters}, {"adam.m", {total}, m}, {"adam.v", {total}, v}};
    if (!checkpoint.reference.empty()) tensors.push_back({"reference", {total}, checkpoint.reference});
    auto numbers = checkpoint.numbers;
    numbers["updates"] = std::to_string(optimizer.updates);
    write_safetensors(file_in(folder), tensors, SafeDtype::F32, numbers);
}

Checkpoint load_checkpoint(const std::filesystem::path& folder, Transformer& model, Optimizer& optimizer) {
    const SafeTensors file(file_in(folder));
    const std::int64_t total = model.layout().total;
    std::vector<float> values(total);
    auto read = [&](const char* name) {
        file.read_f32(name, {total}, values);
        return values;
    };
    model.upload_parameters(read("parameters"));
    model.backend().upload(optimizer.m, read("adam.m").data());
    model.backend().upload(optimizer.v, read("adam.v").data());
    Checkpoint checkpoint{file.metadata(), {}};
    if (!checkpoint.numbers.contains("updates"))
        fail(file_in(folder).string(),
             ": not a checkpoint of this program; remove it or choose another --out");
    optimizer.updates = std::stoll(checkpoint.numbers["updates"]);
    if (file.tensors().contains("reference")) checkpoint.reference = read("reference");
    return checkpoint;
}

void save_model(const Transformer& model, const std::filesystem::path& tokenizer_folder,
                const std::filesystem::path& folder) {
    model.save(folder);
    for (const char* file : {"tokenizer.json", "prompt_template.txt"})
        if (const auto from = tokenizer_folder / file;
            std::filesystem::exists(from) && tokenizer_folder != folder)
            std::filesystem::copy_file(from, folder / file,
                                       std::filesystem::copy_options::overwrite_existing);
}

bool has_checkpoint(const std::filesystem::path& folder) { return std::filesystem::exists(file_in(folder)); }

}  // namespace r1
