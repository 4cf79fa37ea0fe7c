#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>

#include "src/run/error.h"
#include "src/model/safetensors.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;
namespace fs = std::filesystem;
using Shape = std::vector<std::int64_t>;

namespace {

template <class T>
std::string raw(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}

/// A file with this header over `data_bytes` zeros.
std::string with_header(const std::string& header, std::size_t data_bytes) {
    return raw<std::uint64_t>(header.size()) + header + std::string(data_bytes, '\0');
}

/// The message with which these bytes are refused, or "accepted".
std::string refusal(const std::string& bytes) {
    TemporaryFolder folder;
    write_file(folder.path / "x.safetensors", bytes);
    try {
        SafeTensors read(folder.path / "x.safetensors");
        return "accepted";
    } catch (const Error& e) {
        return e.what();
    }
}

template <class Body>
std::string message_of(Body body) {
    try {
        body();
        return "no error";
    } catch (const Error& e) {
        return e.what();
    }
}

void has(const std::string& text, const std::string& part) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, text, " should say ", part);
}

/// Round to nearest even, the slow way: the nearer of the two neighbours with 16 zero bits, ties to the even
/// one.
float bf16_by_search(float value) {
    auto bits = std::bit_cast<std::uint32_t>(value);
    double below = std::bit_cast<float>(bits & 0xffff0000u);
    // the next one in magnitude; past the largest it would be 2^128
    std::uint32_t next = (bits & 0xffff0000u) + 0x10000u;
    double above =
        (next & 0x7fffffffu) == 0x7f800000u ? std::copysign(0x1p128, value) : std::bit_cast<float>(next);
    double low_gap = std::abs(value - below), high_gap = std::abs(above - value);
    bool up = high_gap < low_gap || (high_gap == low_gap && (bits & 0x10000u));
    return up ? static_cast<float>(above == std::copysign(0x1p128, value)
                                       ? std::copysign(std::numeric_limits<double>::infinity(), value)
                                       : above)
              : static_cast<float>(below);
}

bool same_bits(float a, float b) {
    return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

}  // namespace

TEST_CASE("safetensors: random tensors survive a round trip") {
    TemporaryFolder folder;
    std::mt19937 rng(1);
    for (int trial = 0; trial < 60; trial++) {
        const bool bf16 = trial % 2;
        const fs::path file = folder.path / "model.safetensors";
        const int n = static_cast<int>(rng() % 6);
        std::vector<std::vector<float>> values(static_cast<std::size_t>(n));
        std::vector<SafeTensorOut> out;
        for (int i = 0; i < n; i++) {
            Shape shape;
            std::size_t count = 1;
            for (unsigned d = rng() % 4; d > 0; d--) {
                shape.push_back(trial % 5 == 0 ? rng() % 3 : rng() % 40);  // zeros too
                count *= static_cast<std::size_t>(shape.back());
            }
            for (std::size_t k = 0; k < count; k++)  // any bits: subnormals, infinities, NaN
                values[static_cast<std::size_t>(i)].push_back(
                    std::bit_cast<float>(static_cast<std::uint32_t>(rng())));
            std::string name = "weird \"näme\"\n." + std::to_string(rng() % 2 ? i : 1000 - i);
            out.push_back({name, shape, values[static_cast<std::size_t>(i)]});
        }
        const std::map<std::string, std::string> metadata = {{"format", "pt"},
                                                             {"trial", std::to_string(trial)}};
        write_safetensors(file, out, bf16 ? SafeDtype::BF16 : SafeDtype::F32, metadata);

        SafeTensors read(file);
        CHECK_FALSE(fs::exists(file.string() + ".partial"));
        CHECK(read.metadata() == metadata);
        REQUIRE(read.tensors().size() == out.size());
        for (const SafeTensorOut& tensor : out) {
            const SafeTensorView& view = read.tensors().at(tensor.name);
            CHECK(view.name == tensor.name);
            CHECK(view.dtype == (bf16 ? SafeDtype::BF16 : SafeDtype::F32));
            CHECK(view.bytes == tensor.values.size() * (bf16 ? 2 : 4));
            std::vector<float> back(tensor.values.size());
            read.read_f32(tensor.name, tensor.shape, back);
            int wrong = 0;
            for (std::size_t k = 0; k < back.size(); k++) {
                const float value = tensor.values[k];
                if (!bf16)
                    wrong += !same_bits(back[k], value);
                else if (std::isnan(value))
                    wrong += !std::isnan(back[k]);
                else
                    wrong += !same_bits(back[k], std::isinf(value) ? value : bf16_by_search(value));
            }
            CHECK(wrong == 0);
        }
    }
}

TEST_CASE("safetensors: empty file list, shape (0) and a scalar") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "m.safetensors";
    write_safetensors(file, {}, SafeDtype::F32, {});
    CHECK(SafeTensors(file).tensors().empty());
    CHECK(SafeTensors(file).metadata().empty());

    const float pi = 3.5f;
    write_safetensors(file, {{"none", {0}, {}}, {"scalar", {}, {&pi, 1}}, {"none2", {3, 0, 2}, {}}},
                      SafeDtype::F32);
    SafeTensors read(file);
    float out = 0;
    read.read_f32("scalar", {}, {&out, 1});
    CHECK(out == 3.5f);
    read.read_f32("none", {0}, std::span<float>());
    read.read_f32("none2", {3, 0, 2}, std::span<float>());
    CHECK(read.tensors().at("scalar").shape.empty());
    CHECK(read.metadata().at("format") == "pt");
}

TEST_CASE("safetensors: bf16 rounds to nearest, ties to even") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "m.safetensors";
    // 1 + k/256 lies halfway between two bf16 numbers for odd k; FLT_MAX rounds to infinity
    const std::vector<float> in = {
        1 + 1 / 256.f,  1 + 3 / 256.f, -1 - 1 / 256.f, 1 + 1.01f / 256, 3.4028235e38f,
        -std::nanf(""), 0x1p-149f,     -0.f,           0x1.8p-133f,     std::bit_cast<float>(0x7f800001u)};
    write_safetensors(file, {{"x", {10}, in}}, SafeDtype::BF16);
    std::vector<float> out(10);
    SafeTensors(file).read_f32("x", {10}, out);
    CHECK(out[0] == 1);
    CHECK(out[1] == 1 + 4 / 256.f);
    CHECK(out[2] == -1);
    CHECK(out[3] == 1 + 2 / 256.f);
    CHECK(out[4] == std::numeric_limits<float>::infinity());
    CHECK(std::isnan(out[5]));
    CHECK(same_bits(out[6], 0.f));
    CHECK(same_bits(out[7], -0.f));
    CHECK(out[8] == 0x1p-132f);  // a tie between the subnormals 1 and 2 goes to 2
    CHECK(std::isnan(out[9]));   // must not round to infinity
}

TEST_CASE("safetensors: every F16 value converts exactly") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "m.safetensors";
    const std::string header =
        R"({"x":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]}} )";  // odd alignment
    std::string bytes = raw<std::uint64_t>(header.size()) + header;
    for (std::uint32_t h = 0; h < 65536; h++) bytes += raw(static_cast<std::uint16_t>(h));
    write_file(file, bytes);
    std::vector<float> out(65536);
    SafeTensors(file).read_f32("x", {65536}, out);
    int wrong = 0;
    for (int h = 0; h < 65536; h++) {
        const int exponent = h >> 10 & 31, fraction = h & 1023;
        double want = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
        if (exponent == 31)
            want =
                fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
        const float got = out[static_cast<std::size_t>(h)];
        if (std::isnan(want))
            wrong += !std::isnan(got);
        else
            wrong += got != std::copysign(want, h & 0x8000 ? -1 : 1) || std::signbit(got) != bool(h & 0x8000);
    }
    CHECK(wrong == 0);
}

TEST_CASE("safetensors: damaged and hostile files are refused with the reason") {
    const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    REQUIRE(refusal(with_header(good, 8)) == "accepted");
    REQUIRE(refusal(with_header(good + "   ", 8)) == "accepted");

    // the length of the header
    has(refusal(""), "too few");
    has(refusal("1234567"), "too few");
    has(refusal(raw<std::uint64_t>(1) + ""), "claims a header of 1 bytes");
    has(refusal(raw<std::uint64_t>(~0ull) + good), "claims a header of 18446744073709551615 bytes");
    has(refusal("version https://git-lfs.github.com/spec/v1\n"), "Git LFS");
    has(refusal(with_header(good, 8).substr(0, 20)), "claims a header");
    has(refusal(raw<std::uint64_t>(0)), "does not begin with '{'");

    // JSON
    has(refusal(with_header("{\"a\":", 8)), "not valid JSON");
    has(refusal(with_header(good + "x", 8)), "not valid JSON");
    has(refusal(with_header("{\"\xff\":{}}", 8)), "not valid JSON");
    has(refusal(with_header(" " + good, 8)), "does not begin");
    has(refusal(with_header("[]", 8)), "does not begin");
    has(refusal(with_header(R"({"a":)" + std::string(100000, '['), 8)), "nested deeper than 64");
    std::string deep;
    for (int i = 0; i < 50000; i++) deep += "{\"a\":";
    has(refusal(with_header(deep, 8)), "nested deeper than 64");

    // duplicate names, at each level
    has(refusal(with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                            R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                            8)),
        "\"a\" is there twice");
    has(refusal(with_header(R"({"a":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,8]}})", 8)),
        "\"shape\" is there twice");
    has(refusal(with_header(R"({"__metadata__":{"k":"1","k":"2"}})", 0)), "\"k\" is there twice");
    // the same key in two different objects is fine
    CHECK(refusal(with_header(
              R"({"__metadata__":{"dtype":"1"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
              R"("dtype":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
              8)) == "accepted");

    // entries
    auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets,
                    std::size_t bytes) {
        return refusal(with_header(
            R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}",
            bytes));
    };
    CHECK(entry("\"F32\"", "[2]", "[0,8]", 8) == "accepted");
    has(entry("\"I64\"", "[2]", "[0,8]", 8), "needs 16 bytes");
    has(entry("7", "[2]", "[0,8]", 8), "is not {dtype, shape, data_offsets");
    has(entry("\"F32\"", "2", "[0,8]", 8), "is not {dtype");
    has(entry("\"F32\"", "[2]", "[0,8,8]", 8), "is not {dtype");
    has(entry("\"F32\"", "[2]", "{}", 8), "is not {dtype");
    has(entry("\"F32\"", "[2]", "[0,8],\"more\":1", 8), "is not {dtype");
    has(refusal(with_header(R"({"a":{"dtype":"F32","shape":[2]}})", 8)), "is not {dtype");
    has(refusal(with_header(R"({"a":[]})", 8)), "not an object");
    has(refusal(with_header(R"({"__metadata__":{"k":1}})", 0)), "\"k\" is not a string");
    has(refusal(with_header(R"({"__metadata__":"k"})", 0)), "not an object");

    // shapes
    has(entry("\"F32\"", "[-2]", "[0,8]", 8), "dimension -2");
    has(entry("\"F32\"", "[2.0]", "[0,8]", 8), "dimension 2.0");
    has(entry("\"F32\"", "[\"2\"]", "[0,8]", 8), "dimension \"2\"");
    has(entry("\"F32\"", "[9223372036854775808]", "[0,8]", 8), "dimension 9223372036854775808");
    has(entry("\"F32\"", "[4611686018427387906]", "[0,8]", 8),
        "overflows");  // 4 * (2^62 + 2) = 8 modulo 2^64
    has(entry("\"BF16\"", "[4294967296,4294967296]", "[0,0]", 0), "overflows");
    has(entry("\"F32\"", "[3]", "[0,8]", 8), "needs 12 bytes");
    has(entry("\"F16\"", "[2]", "[0,8]", 8), "needs 4 bytes");
    has(entry("\"F32\"", "[]", "[0,8]", 8), "needs 4 bytes");

    // offsets
    has(entry("\"F32\"", "[3]", "[0,12]", 8), "do not lie in the 8 bytes");
    has(entry("\"F32\"", "[2]", "[8,0]", 8), "do not lie");
    has(entry("\"F32\"", "[2]", "[-8,0]", 8), "do not lie");
    has(entry("\"F32\"", "[2]", "[0,18446744073709551615]", 8), "do not lie");
    has(entry("\"F32\"", "[2]", "[0.0,8.0]", 8), "do not lie");
    has(entry("\"F32\"", "[2]", "[4,12]", 12), "follows a gap");
    has(entry("\"F32\"", "[2]", "[0,8]", 9), "1 bytes after its last tensor");
    has(refusal(with_header("{}", 1)), "1 bytes after");
    auto pair = [](const char* first, const char* second) {
        return refusal(with_header(std::string(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)") + first +
                                       R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + second + "}}",
                                   16));
    };
    CHECK(pair("[0,8]", "[8,16]") == "accepted");
    CHECK(pair("[8,16]", "[0,8]") == "accepted");
    has(pair("[0,8]", "[0,8]"), "overlaps");
    has(pair("[0,8]", "[4,12]"), "overlaps");
    has(refusal(with_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                            R"("b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})",
                            16)),
        "follows a gap");
    has(refusal(with_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                            R"("b":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})",
                            8)),
        "overlaps");
}

TEST_CASE("safetensors: a header over 100 MB is refused though the file is long enough") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "x.safetensors";
    write_file(file, raw<std::uint64_t>(100'000'001));
    fs::resize_file(file, 100'000'100);  // sparse
    has(message_of([&] { SafeTensors read(file); }), "claims a header of 100000001 bytes");
}

TEST_CASE("safetensors: damaged bytes never crash the reader") {
    TemporaryFolder folder;
    const std::vector<float> values = {1, 2, 3, 4, 5, 6};
    const fs::path file = folder.path / "m.safetensors";
    write_safetensors(file, {{"first", {2, 3}, values}, {"second", {1}, std::span(values).first(1)}},
                      SafeDtype::F32);
    const std::string good = read_file(file);
    std::mt19937 rng(2);
    int accepted = 0, refused = 0;
    for (int trial = 0; trial < 2000; trial++) {
        std::string bytes = good;
        for (unsigned k = 1 + rng() % 3; k > 0; k--) {
            const std::size_t at = rng() % bytes.size();
            const char digits[] = "0123456789-[]{},:\"";
            if (rng() % 2)
                bytes[at] = digits[rng() % (sizeof digits - 1)];
            else if (rng() % 2)
                bytes[at] = static_cast<char>(rng());
            else
                bytes.erase(at, 1 + rng() % 3);
            if (bytes.empty()) bytes = "x";
        }
        write_file(file, bytes);
        try {
            SafeTensors read(file);
            for (const auto& [name, view] : read.tensors()) {
                std::vector<float> out(view.bytes / (view.dtype == SafeDtype::F32 ? 4 : 2));
                read.read_f32(name, view.shape, out);
            }
            accepted++;
        } catch (const Error&) {
            refused++;
        }
    }
    CHECK(accepted > 0);  // data bytes and names may change
    CHECK(refused > 1000);
}

TEST_CASE("safetensors: wrong requests say what is there and what was expected") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "m.safetensors";
    const std::vector<float> values(6, 1.f);
    write_safetensors(file, {{"w", {2, 3}, values}}, SafeDtype::F32);
    SafeTensors read(file);
    std::vector<float> out(6);
    has(message_of([&] { read.read_f32("v", {2, 3}, out); }), "no tensor \"v\"");
    std::string wrong = message_of([&] { read.read_f32("w", {3, 2}, out); });
    has(wrong, "has shape (2, 3)");
    has(wrong, "expected (3, 2)");
    has(message_of([&] { read.read_f32("w", {6}, out); }), "expected (6)");
    has(message_of([&] { read.read_f32("w", {2, 3}, std::span(out).first(5)); }), "room for 5");
    has(message_of([&] { SafeTensors missing(folder.path / "absent"); }), "absent");
    has(message_of([&] { SafeTensors directory(folder.path); }), "model.safetensors: there is no such file");
}

TEST_CASE("safetensors: a rewrite does not disturb who reads the old file, one that is cut is noticed") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "m.safetensors";
    std::vector<float> values(5000, 1.f), out(5000);
    write_safetensors(file, {{"w", {5000}, values}}, SafeDtype::F32);
    const SafeTensors before(file);
    values.assign(5000, 2.f);
    write_safetensors(file, {{"w", {5000}, values}}, SafeDtype::F32);
    before.read_f32("w", {5000}, out);
    CHECK(out == std::vector<float>(5000, 1.f));
    const SafeTensors after(file);
    after.read_f32("w", {5000}, out);
    CHECK(out == values);
    fs::resize_file(file, fs::file_size(file) - 8);
    has(message_of([&] { after.read_f32("w", {5000}, out); }), "became shorter while it was read");
}

TEST_CASE("safetensors: every flipped bit is seen by a file's own checksum") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "m.safetensors";
    const std::vector<float> values = {1, -2, 3.5f};
    write_safetensors(file, {{"w", {3}, values}}, SafeDtype::F32, {{"step", "7"}, {"sha256", kNoChecksum}});
    SafeTensors(file).verify();
    const std::string good = read_file(file);
    for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
        CAPTURE(bit);
        std::string bad = good;
        bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
        std::ofstream(file, std::ios::binary) << bad;
        CHECK_THROWS_AS(SafeTensors(file).verify(), Error);
    }
}

TEST_CASE("safetensors: a tensor of a type that is not read is in nobody's way, and a header of many is quick") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "m.safetensors";
    std::string header = R"({"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},)"
                         R"("w":{"dtype":"F32","shape":[1],"data_offsets":[16,20]})";
    for (int i = 0; i < 80'000; ++i)
        header += ",\"t" + std::to_string(i) + R"(":{"dtype":"BOOL","shape":[0],"data_offsets":[20,20]})";
    header += "}";
    write_file(file, raw<std::uint64_t>(header.size()) + header + std::string(16, '\0') + raw<float>(2.5f));
    const SafeTensors read(file);
    std::vector<float> out(2);
    read.read_f32("w", {1}, std::span(out).first(1));
    CHECK(out[0] == 2.5f);
    has(message_of([&] { read.read_f32("ids", {2}, out); }), "dtype \"I64\" is not supported");
}

TEST_CASE("safetensors: a failed write leaves the old file and no other") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "m.safetensors";
    const std::vector<float> values(6, 1.f);
    write_safetensors(file, {{"w", {6}, values}}, SafeDtype::F32);
    const std::string before = read_file(file);
    auto refused = [&](std::vector<SafeTensorOut> tensors, SafeDtype dtype) {
        return message_of([&] { write_safetensors(file, tensors, dtype); });
    };
    has(refused({{"w", {6}, values}}, SafeDtype::F16), "written as F32 or BF16");
    has(refused({{"w", {7}, values}}, SafeDtype::F32), "shape (7) is given 6 values");
    has(refused({{"w", {-2, -3}, values}}, SafeDtype::F32), "shape (-2, -3)");
    has(refused({{"w", {6}, values}, {"w", {6}, values}}, SafeDtype::F32), "\"w\" is taken");
    has(refused({{"__metadata__", {6}, values}}, SafeDtype::F32), "is taken");
    CHECK(read_file(file) == before);
    CHECK_FALSE(fs::exists(file.string() + ".partial"));

    has(message_of([&] { write_safetensors(file / "m", {}, SafeDtype::F32); }), "cannot be written");
    fs::create_directory(folder.path / "d");
    has(message_of([&] { write_safetensors(folder.path / "d", {}, SafeDtype::F32); }), "is a folder");
    has(message_of([&] { write_safetensors("/dev/null", {}, SafeDtype::F32); }), "is not a regular file");
    CHECK_FALSE(fs::exists(folder.path / "d.partial"));
}

TEST_CASE("safetensors: a model in shards is found through its index, which is not trusted") {
    const TemporaryFolder folder;
    const std::vector<float> values = {1, 2, 3, 4, 5, 6};
    const auto index = folder / "model.safetensors.index.json";
    auto open = [&](const std::string& text) {
        write_file(index, text);
        return message_of([&] { SafeTensors read(folder.path); });
    };
    write_safetensors(folder.path / "a.safetensors", {{"first", {2, 3}, values}}, SafeDtype::BF16);
    write_safetensors(folder.path / "b.safetensors", {{"second", {6}, values}}, SafeDtype::F32);
    const std::string good =
        R"({"metadata": {}, "weight_map": {"first": "a.safetensors", "second": "b.safetensors"}})";
    write_file(index, good);
    const SafeTensors read(folder.path);
    std::vector<float> out(6);
    for (const auto& [name, shape] : {std::pair{"first", Shape{2, 3}}, {"second", Shape{6}}}) {
        read.read_f32(name, shape, out);
        CHECK(out == values);
    }
    has(open("{"), "index");
    has(open("{}"), "weight_map");
    has(open(R"({"weight_map": {"first": 1}})"), "index");
    has(open(R"({"weight_map": {"first": "../a.safetensors"}})"), "plain file name");
    has(open(R"({"weight_map": {"first": "/etc/passwd"}})"), "plain file name");
    has(open(R"({"weight_map": {"first": "c.safetensors"}})"), "c.safetensors");
    has(open(R"({"weight_map": {"third": "a.safetensors"}})"), "third");
    write_safetensors(folder.path / "b.safetensors", {{"first", {6}, values}}, SafeDtype::F32);
    has(open(R"({"weight_map": {"first": "a.safetensors", "x": "b.safetensors"}})"), "another shard");
    // One whole file goes before an index.
    write_safetensors(folder.path / "model.safetensors", {{"whole", {6}, values}}, SafeDtype::F32);
    CHECK(SafeTensors(folder.path).tensors().contains("whole"));
}

TEST_CASE("safetensors: reads a file written by the Python library") {
    const auto root = fixtures();
    if (!root) return;
    SafeTensors read(*root / "weights/arithmetic_sequence/model.safetensors");
    CHECK(read.metadata().at("format") == "pt");
    REQUIRE(read.tensors().size() == 3 + 4 * 9);
    CHECK(read.tensors().at("model.layers.3.mlp.down_proj.weight").shape == Shape{128, 344});

    std::vector<float> norm(128), embedding(16 * 128);
    read.read_f32("model.norm.weight", {128}, norm);
    CHECK(norm == std::vector<float>(128, 1.f));  // RMSNorm weights start at one
    read.read_f32("model.embed_tokens.weight", {16, 128}, embedding);
    double sum = 0, squares = 0;
    for (float x : embedding) {
        sum += x;
        squares += double(x) * x;
    }
    const double n = static_cast<double>(embedding.size()), mean = sum / n;
    CHECK(std::abs(mean) < 0.002);  // drawn from N(0, 0.02^2), the initializer_range of its config.json
    CHECK(std::sqrt(squares / n - mean * mean) == doctest::Approx(0.02).epsilon(0.1));

    // writing what was read gives the same bytes of data
    TemporaryFolder folder;
    std::vector<std::vector<float>> values;
    std::vector<SafeTensorOut> out;
    for (const auto& [name, view] : read.tensors()) {
        values.emplace_back(view.bytes / 2);
        read.read_f32(name, view.shape, values.back());
        out.push_back({name, view.shape, values.back()});
    }
    write_safetensors(folder.path / "again", out, SafeDtype::BF16);
    const SafeTensors again(folder.path / "again");
    for (const auto& [name, view] : read.tensors()) {
        const SafeTensorView& copy = again.tensors().at(name);
        CHECK(copy.dtype == view.dtype);
        std::vector<float> before(view.bytes / 2), after(copy.bytes / 2);
        read.read_f32(name, view.shape, before);
        again.read_f32(name, copy.shape, after);
        CHECK(before == after);
    }
}
