#include "src/run/json.h"

#include <set>
#include <vector>

#include "src/run/error.h"

namespace r1 {
namespace {

using nlohmann::json;

/// The parser calls nest, so that a file of brackets alone would overflow the stack later on.
constexpr std::size_t kDeepest = 64;

/// Visits a text without building anything of it.
class Checker : public nlohmann::json_sax<json> {
  public:
    explicit Checker(const std::string& where) : where_(where) {}
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t&) override { return true; }
    bool string(string_t&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool start_object(std::size_t) override { return open(); }
    bool start_array(std::size_t) override { return open(); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& name) override {
        if (!keys_.back().insert(name).second)
            fail(where_, ": the key ", shown(name), " is there twice in one object");
        return true;
    }
    bool parse_error(std::size_t, const std::string&, const json::exception& e) override {
        const std::string what = e.what();  // "[json.exception.parse_error.101] parse error at ..."
        const std::size_t reason = what.find("] ");
        fail(where_, ": not valid JSON: ", reason == what.npos ? what : what.substr(reason + 2));
    }

  private:
    bool open() {
        keys_.emplace_back();
        if (keys_.size() > kDeepest) fail(where_, ": is nested deeper than ", kDeepest, " levels");
        return true;
    }
    bool close() {
        keys_.pop_back();
        return true;
    }
    const std::string& where_;
    std::vector<std::set<std::string>> keys_;  ///< of the objects and arrays now open
};

}  // namespace

void check_json(std::string_view text, const std::string& where) {
    Checker checker(where);
    json::sax_parse(text, &checker);
}

std::string shown(const json& value) {
    const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

}  // namespace r1
