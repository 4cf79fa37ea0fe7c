#include "src/run/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <map>

namespace r1 {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPart = 1 << 20;

/// The digests of what was read.
std::map<fs::path, std::string>& digests() {
    static std::map<fs::path, std::string> all;
    return all;
}

[[noreturn]] void fail_errno(const fs::path& file, const char* what) {
    fail(file, ": ", what, ": ", std::strerror(errno));
}

FileDescriptor open_input(const fs::path& file, struct stat& status) {
    if (file.empty()) fail("a file name is empty");
    FileDescriptor in(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (in.number() < 0 && errno == ENOENT) fail(file, ": there is no such file");
    if (in.number() < 0 || ::fstat(in.number(), &status) != 0) fail_errno(file, "cannot be opened");
    if (S_ISDIR(status.st_mode)) fail(file, ": is a folder, not a file");
    return in;
}

/// Calls body(bytes) for each part of an open file or pipe, until its end.
template <class Body>
void for_each_part(const FileDescriptor& in, const fs::path& file, Body body) {
    std::string part(kPart, '\0');
    while (const ssize_t n = ::read(in.number(), part.data(), kPart)) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail_errno(file, "cannot be read");
        body(std::string_view(part).substr(0, static_cast<std::size_t>(n)));
    }
}

/// What a link names is replaced, and the link stays.
fs::path target_of(const fs::path& file) {
    return fs::is_symlink(file) ? fs::weakly_canonical(file) : file;
}

fs::path folder_of(const fs::path& file) {
    return file.has_parent_path() ? file.parent_path() : fs::path(".");
}

}  // namespace

std::string read_input(const fs::path& file, std::uint64_t limit) {
    struct stat status {};
    const FileDescriptor in = open_input(file, status);
    const bool anonymous_pipe = S_ISFIFO(status.st_mode) && file.string().starts_with("/dev/");
    if (!S_ISREG(status.st_mode) && !S_ISSOCK(status.st_mode) && !anonymous_pipe)
        fail(file, ": is neither a regular file nor a pipe such as /dev/stdin");
    ::fcntl(in.number(), F_SETFL, 0);  // wait for what a writer has to say
    std::string bytes;
    bytes.reserve(static_cast<std::size_t>(status.st_size));
    Sha256 sum;
    for_each_part(in, file, [&](std::string_view part) {
        if (bytes.size() + part.size() > limit)
            fail(file, ": is larger than ", limit, " bytes, which is no such file");
        sum.add(part);
        bytes += part;
    });
    digests()[file] = sum.hex();
    return bytes;
}

void Sha256::add(std::string_view bytes) {
    sha256_update(&context_, bytes.size(), reinterpret_cast<const std::uint8_t*>(bytes.data()));
}
std::string Sha256::hex() {
    std::array<std::uint8_t, SHA256_DIGEST_SIZE> digest;
    sha256_digest(&context_, digest.size(), digest.data());
    std::string text;
    for (std::uint8_t byte : digest) {
        constexpr const char* kDigits = "0123456789abcdef";
        text += {kDigits[byte >> 4], kDigits[byte & 15]};
    }
    return text;
}

std::string sha256_of(const fs::path& file) {
    if (const auto known = digests().find(file); known != digests().end()) return known->second;
    struct stat status {};
    const FileDescriptor in = open_input(file, status);
    Sha256 sum;
    for_each_part(in, file, [&](std::string_view part) { sum.add(part); });
    return sum.hex();
}

FileDescriptor::~FileDescriptor() {
    if (number_ >= 0) ::close(number_);
}
FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
}

InputFile::InputFile(const fs::path& file) : path_(file), descriptor_(-1) {
    struct stat status {};
    descriptor_ = open_input(file, status);
    if (!S_ISREG(status.st_mode)) fail(file, ": is not a regular file");
    size_ = static_cast<std::uint64_t>(status.st_size);
}

void InputFile::read(std::uint64_t offset, std::span<char> out) const {
    while (!out.empty()) {
        const ssize_t n = ::pread(descriptor_.number(), out.data(), std::min(out.size(), kPart),
                                  static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail_errno(path_, "cannot be read");
        if (n == 0) fail(path_, ": became shorter while it was read");
        offset += static_cast<std::uint64_t>(n);
        out = out.subspan(static_cast<std::size_t>(n));
    }
}

AppendedFile::AppendedFile(const fs::path& file, std::uint64_t keep)
    : path_(file), descriptor_(-1) {
    check_output(file);
    std::error_code error;
    if (file.has_parent_path()) fs::create_directories(file.parent_path(), error);
    if (error) fail(file, ": cannot be written: ", error.message());
    descriptor_ = FileDescriptor(::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    if (descriptor_.number() < 0) fail_errno(file, "cannot be written");
    struct stat opened {
    }, named{};
    // The file may have been renamed by the process that has just let go of it.
    if (::flock(descriptor_.number(), LOCK_EX | LOCK_NB) != 0 ||
        ::fstat(descriptor_.number(), &opened) != 0 || ::stat(file.c_str(), &named) != 0 ||
        opened.st_ino != named.st_ino)
        fail(file, ": another process is writing it");
    const auto end = static_cast<off_t>(keep);
    if (::ftruncate(descriptor_.number(), end) != 0 ||
        ::lseek(descriptor_.number(), end, SEEK_SET) != end)
        fail_errno(file, "cannot be written");
}

void AppendedFile::write(std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t n = ::write(descriptor_.number(), bytes.data(), bytes.size());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) fail_errno(path_, "could not be written");
        bytes.remove_prefix(static_cast<std::size_t>(n));
    }
}

void AppendedFile::overwrite(std::uint64_t offset, std::string_view bytes) {
    const ssize_t n =
        ::pwrite(descriptor_.number(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n != static_cast<ssize_t>(bytes.size())) fail_errno(path_, "could not be written");
}

void AppendedFile::sync() {
    struct stat status {};
    if (::fsync(descriptor_.number()) != 0 || ::fstat(descriptor_.number(), &status) != 0)
        fail_errno(path_, "could not be written");
    if (status.st_nlink == 0) fail(path_, ": was removed while it was written");
}

OutputFile::OutputFile(const fs::path& file)
    : file_((check_output(file), file)), partial_(partial_of(file)) {}

OutputFile::~OutputFile() {
    std::error_code ignored;
    if (!done_) fs::remove(partial_of(file_), ignored);
}

void OutputFile::done() {
    partial_.sync();
    put_in_place(file_);
    done_ = true;
}

fs::path partial_of(const fs::path& file) { return target_of(file) += ".partial"; }

void put_in_place(const fs::path& file) {
    std::error_code error;
    fs::rename(partial_of(file), target_of(file), error);
    if (error) fail(file, ": could not be written: ", error.message());
    sync_folder(folder_of(target_of(file)));
}

void write_file(const fs::path& file, std::string_view text) {
    OutputFile out(file);
    out->write(text);
    out.done();
}

void check_output(const fs::path& file) {
    if (file.empty()) fail("the name of a file to be written is empty");
    std::error_code error;
    const fs::file_status status = fs::status(file, error);
    if (fs::is_directory(status)) fail(file, ": is a folder; a file is wanted");
    if (fs::exists(status) && !fs::is_regular_file(status))
        fail(file, ": is not a regular file, and only such a one is written");
}

FileDescriptor lock_folder(const fs::path& folder) {
    FileDescriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (descriptor.number() < 0) fail_errno(folder, "cannot be opened");
    if (::flock(descriptor.number(), LOCK_EX | LOCK_NB) != 0)
        fail(folder, ": another run is going on in it; choose another --out");
    return descriptor;
}

void sync_folder(const fs::path& folder) {
    const FileDescriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (descriptor.number() >= 0) ::fsync(descriptor.number());
}

}  // namespace r1
