// JSON from a file, checked before any of it is used.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace r1 {

/// Throws Error, which begins with `where`, if the text is not JSON, is nested deeper than anything
/// that we read, or has a key twice in one object.
void check_json(std::string_view text, const std::string& where);

/// `Json` may be nlohmann::ordered_json, which keeps the order of keys.
template <class Json = nlohmann::json>
Json parse_json(std::string_view text, const std::string& where) {
    check_json(text, where);
    return Json::parse(text);
}

/// A value as a message shows it, with control characters escaped: it ends up on a terminal.
std::string shown(const nlohmann::json& value);

}  // namespace r1
