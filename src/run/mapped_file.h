// A file's bytes, mapped read-only: nothing is read before it is looked at, and nothing is held
// twice.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string_view>

#include "src/run/error.h"

namespace r1 {

class MappedFile {
  public:
    /// Throws Error when the file cannot be read.
    explicit MappedFile(const std::filesystem::path& file) {
        std::error_code ignored;
        if (std::filesystem::is_directory(file, ignored))
            fail(file.string(), ": is a folder, not a file");
        if (!std::filesystem::is_regular_file(file, ignored))
            fail(file.string(), ": there is no such file");
        const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
        if (descriptor < 0) fail(file.string(), ": cannot be opened: ", std::strerror(errno));
        struct stat status {};
        void* memory = nullptr;
        if (::fstat(descriptor, &status) == 0 && status.st_size > 0)
            memory = ::mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ,
                            MAP_PRIVATE, descriptor, 0);
        const int error = errno;
        ::close(descriptor);  // the mapping stays
        if (memory == MAP_FAILED) fail(file.string(), ": cannot be mapped: ", std::strerror(error));
        size_ = static_cast<std::size_t>(status.st_size);
        data_ = {static_cast<const char*>(memory), [size = size_](const char* data) {
                     if (data) ::munmap(const_cast<char*>(data), size);
                 }};
    }
    std::string_view bytes() const { return {data_.get(), size_}; }

  private:
    std::shared_ptr<const char> data_;  ///< copies share the mapping
    std::size_t size_ = 0;
};

}  // namespace r1
