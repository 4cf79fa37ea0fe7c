// Files: one way in, by which everything is checked before it is used, and one way out, by which a
// file is there whole or not at all.
#pragma once
#include <nettle/sha2.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "src/run/error.h"

namespace r1 {

/// What a file of settings, and what a data set or a pipe may hold, in bytes.
constexpr std::uint64_t kLargestSettings = 1ull << 28, kLargestData = 1ull << 36;

/// All bytes of a regular file or a pipe, such as /dev/stdin. Throws Error where there are none to
/// be had, or more than `limit`.
std::string read_input(const std::filesystem::path& file, std::uint64_t limit = kLargestSettings);

class Sha256 {
  public:
    Sha256() { sha256_init(&context_); }
    void add(std::string_view bytes);
    /// The digest in hexadecimal, as `sha256sum` prints it and Hugging Face shows it beside a file.
    /// Ends the sum.
    std::string hex();

  private:
    sha256_ctx context_;
};

/// The digest of what read_input() has read from there, which may have been a pipe, else that of
/// the file.
std::string sha256_of(const std::filesystem::path& file);

/// An open file. Closing is all that it does by itself.
class FileDescriptor {
  public:
    explicit FileDescriptor(int number) : number_(number) {}
    ~FileDescriptor();
    FileDescriptor(FileDescriptor&& other) noexcept : number_(other.number_) { other.number_ = -1; }
    FileDescriptor& operator=(FileDescriptor&& other) noexcept;
    int number() const { return number_; }

  private:
    int number_;
};

/// A regular file that is read part by part, since it may be larger than memory.
class InputFile {
  public:
    /// Throws Error where it cannot be opened or is not a regular file.
    explicit InputFile(const std::filesystem::path& file);
    const std::filesystem::path& path() const { return path_; }
    std::uint64_t size() const { return size_; }
    /// Fills `out` with the bytes from `offset` on. Throws Error where the file has been cut.
    void read(std::uint64_t offset, std::span<char> out) const;

  private:
    std::filesystem::path path_;
    FileDescriptor descriptor_;
    std::uint64_t size_;
};

/// A file that grows, in one process at a time: a log, or FILE.partial on its way to be FILE.
class AppendedFile {
  public:
    /// Makes the folder and opens the file, of which the first `keep` bytes stay. Throws Error if
    /// it cannot be written, is no regular file, or is open for writing in another process.
    explicit AppendedFile(const std::filesystem::path& file, std::uint64_t keep = 0);
    void write(std::string_view bytes);
    /// Replaces bytes that were written before.
    void overwrite(std::uint64_t offset, std::string_view bytes);
    /// Returns when all of it is on the disk. Throws Error also where the file was removed.
    void sync();

  private:
    std::filesystem::path path_;
    FileDescriptor descriptor_;
};

/// Writes FILE.partial, which becomes FILE in done(), and otherwise goes with this.
class OutputFile {
  public:
    explicit OutputFile(const std::filesystem::path& file);
    ~OutputFile();
    AppendedFile* operator->() { return &partial_; }
    void done();

  private:
    std::filesystem::path file_;
    AppendedFile partial_;
    bool done_ = false;
};

/// FILE.partial, and how it becomes FILE once all of it is on the disk.
std::filesystem::path partial_of(const std::filesystem::path& file);
void put_in_place(const std::filesystem::path& file);

void write_file(const std::filesystem::path& file, std::string_view text);

/// Throws Error where FILE is something that write_file() must not replace: a folder, a device, a
/// pipe. To be asked before the work whose result goes there.
void check_output(const std::filesystem::path& file);

/// A folder that belongs to one process until this ends. Throws Error where another has it.
FileDescriptor lock_folder(const std::filesystem::path& folder);

/// Makes renamed and removed names in a folder last.
void sync_folder(const std::filesystem::path& folder);

}  // namespace r1
