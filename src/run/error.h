// Errors a user can act on: one sentence that says what is wrong, where, and what to do.
#pragma once
#include <filesystem>
#include <sstream>
#include <stdexcept>

namespace r1 {

/// Bad input or an impossible request. Each main catches it once, prints the sentence and exits
/// with status 2.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Throws Error with the parts streamed into one sentence; paths without quotes.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream sentence;
    const auto add = [&](const auto& part) {
        if constexpr (std::is_same_v<decltype(part), const std::filesystem::path&>)
            sentence << part.string();
        else
            sentence << part;
    };
    (add(parts), ...);
    throw Error(sentence.str());
}

}  // namespace r1
