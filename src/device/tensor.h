// Tensor = shape + dtype + pointer. A Buffer owns memory; an Arena hands out pieces of one. Nothing
// clever.
#pragma once
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "src/run/error.h"

namespace r1 {

/// F64 exists for tests (finite differences), I32 for ids, positions and lengths.
enum class DType : std::uint8_t { F64, F32, BF16, I32 };

constexpr std::size_t bytes_of(DType t) { return t == DType::F64 ? 8 : t == DType::BF16 ? 2 : 4; }
constexpr const char* name_of(DType t) {
    return t == DType::F64    ? "float64"
           : t == DType::F32  ? "float32"
           : t == DType::BF16 ? "bfloat16"
                              : "int32";
}

/// A non-owning, contiguous, row-major view of one or two dimensions: [rows] or [rows, cols].
struct Tensor {
    void* data = nullptr;
    DType dtype = DType::F32;
    std::int64_t rows = 0;
    std::int64_t cols = 1;

    std::int64_t size() const { return rows * cols; }
    std::size_t bytes() const { return static_cast<std::size_t>(size()) * bytes_of(dtype); }
    explicit operator bool() const { return data != nullptr; }

    template <class T>
    T* as() const {
        assert(sizeof(T) == bytes_of(dtype));
        return static_cast<T*>(data);
    }
    /// Rows [begin, begin + count).
    Tensor slice(std::int64_t begin, std::int64_t count) const {
        assert(begin >= 0 && count >= 0 && begin + count <= rows);
        return {static_cast<std::byte*>(data) +
                    static_cast<std::size_t>(begin * cols) * bytes_of(dtype),
                dtype, count, cols};
    }
    Tensor reshape(std::int64_t new_rows, std::int64_t new_cols) const {
        assert(new_rows * new_cols == size());
        return {data, dtype, new_rows, new_cols};
    }
};

class Backend;

/// Memory of one backend, released with the object.
class Buffer {
  public:
    Buffer() = default;
    Buffer(Backend& backend, std::size_t bytes);
    ~Buffer();
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    void* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }

  private:
    void swap(Buffer& other) noexcept {
        std::swap(backend_, other.backend_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }
    Backend* backend_ = nullptr;
    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

/// A bump allocator over one Buffer. An Arena without a buffer only measures: the same code that
/// takes activations from a real arena says beforehand how many bytes they need, so a plan cannot
/// drift from the truth.
class Arena {
  public:
    Arena() = default;  ///< measures
    Arena(Backend& backend, std::size_t bytes) : buffer_(backend, bytes), measuring_(false) {}

    Tensor take(DType dtype, std::int64_t rows, std::int64_t cols = 1) {
        Tensor t{nullptr, dtype, rows, cols};
        std::size_t begin = used_;
        used_ += (t.bytes() + 63) / 64 * 64;
        if (used_ >> 50)  // long before a sum of sizes overflows
            fail(
                "more than a pebibyte of memory is wanted; lower --token-budget, --slots or "
                "--max-new-tokens");
        if (measuring_) return t;
        if (used_ > buffer_.bytes())
            fail("out of planned memory: ", used_, " bytes wanted, ", buffer_.bytes(),
                 " planned; lower --token-budget or report this as a fault of the memory plan");
        t.data = static_cast<std::byte*>(buffer_.data()) + begin;
        return t;
    }
    std::size_t used() const { return used_; }
    /// Gives back everything taken since `used` was the value of used().
    void release_to(std::size_t used) { used_ = used; }

  private:
    Buffer buffer_;
    std::size_t used_ = 0;
    bool measuring_ = true;
};

}  // namespace r1
