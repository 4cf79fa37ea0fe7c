// Hugging Face's weight file: 8 bytes of header length, a JSON header, then the tensors' bytes
// without gaps. https://huggingface.co/docs/safetensors
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "src/run/files.h"

namespace r1 {

/// What is read. Tensors of another type may be in a file, as long as nobody asks for them.
enum class SafeDtype { F32, F16, BF16, Other };

/// Where a tensor lies.
struct SafeTensorView {
    std::string name;
    SafeDtype dtype;
    std::string dtype_name;           ///< as the file has it
    std::vector<std::int64_t> shape;  ///< row-major; empty for a scalar
    std::size_t file;                 ///< which of the shards
    std::uint64_t offset, bytes;      ///< in the file
};

/// One file, or all shards of a model, read part by part. Headers and index are checked as hostile
/// input before anything is used.
class SafeTensors {
  public:
    /// A file, or a model folder: its model.safetensors, else the files that
    /// model.safetensors.index.json names. Throws Error when one cannot be read or breaks the
    /// format in any way.
    explicit SafeTensors(const std::filesystem::path& path);

    const std::map<std::string, SafeTensorView>& tensors() const { return tensors_; }
    const std::map<std::string, std::string>& metadata() const { return metadata_; }

    /// Converts tensor `name` to float32 into `out`, which holds as many values as `shape` says
    /// (checked). Throws Error if the tensor is missing or has another shape.
    void read_f32(const std::string& name, const std::vector<std::int64_t>& shape,
                  std::span<float> out) const;
    /// The same bit by bit, for tensors too large to hold twice: body(index of the first value,
    /// values).
    void read_f32(const std::string& name, const std::vector<std::int64_t>& shape,
                  const std::function<void(std::int64_t, std::span<const float>)>& body) const;
    /// Throws Error if a file whose metadata has a "sha256" is not what was written.
    void verify() const;

  private:
    void add_file(const std::filesystem::path& file);
    void add_shards(const std::filesystem::path& index);
    const SafeTensorView& find(const std::string& name,
                               const std::vector<std::int64_t>& shape) const;

    std::filesystem::path path_;
    std::vector<InputFile> files_;
    std::map<std::string, SafeTensorView> tensors_;
    std::map<std::string, std::string> metadata_;
};

struct SafeTensorOut {
    std::string name;
    std::vector<std::int64_t> shape;
    std::span<const float> values;
    /// Instead of `values`, for tensors too large to hold twice: fills `out` with those from index
    /// `first` on.
    std::function<void(std::int64_t first, std::span<float> out)> read{};
};

/// The metadata entry in which a file can carry its own checksum, for which this stands while it is
/// computed.
const std::string kNoChecksum(64, '0');

/// Writes the tensors in the order given, as F32 or BF16 (round to nearest even), whole or not at
/// all. An entry {"sha256", kNoChecksum} of the metadata becomes the SHA-256 that verify() checks.
/// Throws Error when it cannot.
void write_safetensors(const std::filesystem::path& file, const std::vector<SafeTensorOut>& tensors,
                       SafeDtype dtype,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace r1
