#include "src/model/safetensors.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "src/run/error.h"

namespace r1 {
namespace {

using nlohmann::json;
using Shape = std::vector<std::int64_t>;

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

constexpr std::uint64_t kLengthBytes = 8,
                        kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr std::size_t kPart = 1 << 20;             // values converted at a time
constexpr std::array<const char*, 3> kDtypeNames = {"F32", "F16", "BF16"};

std::size_t bytes_of(SafeDtype dtype) { return dtype == SafeDtype::F32 ? 4 : 2; }

/// A name from a file, with quotes and with control characters escaped: it ends up on a terminal.
std::string quoted(const std::string& name) {
    return json(name).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string to_string(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); i++)
        text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + ")";
}

/// bytes * product of the shape; false if a dimension is negative or the product overflows.
bool size_of(const Shape& shape, std::uint64_t bytes, std::uint64_t& size) {
    size = bytes;
    for (std::int64_t dim : shape)
        if (dim < 0 || __builtin_mul_overflow(size, static_cast<std::uint64_t>(dim), &size))
            return false;
    return true;
}

/// Parses the header. nlohmann::json keeps the last of two equal keys, so they are caught here, as
/// is nesting deeper than {tensor: {shape: [...]}}.
json parse_header(const std::filesystem::path& file, std::string_view text) {
    std::array<std::set<std::string>, 4> keys;  // by depth, of the objects now open
    auto check = [&](int depth, json::parse_event_t event, json& value) {
        if (event == json::parse_event_t::object_start ||
            event == json::parse_event_t::array_start) {
            if (depth > 2)
                fail(file, " has a header nested too deeply; it is not a safetensors file");
            keys[static_cast<std::size_t>(depth) + 1].clear();
        } else if (event == json::parse_event_t::key) {
            auto name = value.get<std::string>();
            if (!keys[static_cast<std::size_t>(depth)].insert(name).second)
                fail(file, " has ", quoted(name), " twice in its header; the file is damaged");
        }
        return true;
    };
    try {
        if (!text.starts_with('{'))
            fail(file, " has a header that does not begin with '{'; the file is damaged");
        return json::parse(text, check);
    } catch (const json::exception& e) {
        fail(file, " has a header that is not valid JSON (", e.what(), "); the file is damaged");
    }
}

/// Value as an integer in [0, 2^63); something negative if it is not one (2^63 and above wrap to
/// below 0).
std::int64_t as_index(const json& value) {
    return value.is_number_unsigned() ? static_cast<std::int64_t>(value.get<std::uint64_t>()) : -1;
}

float from_f16(std::uint16_t half) {
    std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff,
                  bits;
    if (magnitude < 0x0400)  // zero and subnormals: multiples of 2^-24
        bits = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
    else if (magnitude < 0x7c00)  // the exponent's bias goes from 15 to 127
        bits = (magnitude << 13) + (112u << 23);
    else  // infinity, NaN
        bits = (magnitude << 13) | 0x7f800000;
    return std::bit_cast<float>(bits | sign);
}

float from_bf16(std::uint16_t half) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16);
}

std::uint16_t to_bf16(float value) {
    auto bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // stays a NaN
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

SafeTensors::SafeTensors(const std::filesystem::path& path) : path_(path) {
    const auto index = path / "model.safetensors.index.json";
    if (!std::filesystem::is_directory(path))
        add_file(path);
    else if (std::filesystem::exists(index) && !std::filesystem::exists(path / "model.safetensors"))
        add_shards(index);
    else
        add_file(path / "model.safetensors");
}

/// {"metadata": {...}, "weight_map": {tensor: file name}}
void SafeTensors::add_shards(const std::filesystem::path& index) {
    std::map<std::string, std::string> weight_map;
    try {
        std::ifstream in(index);
        weight_map = json::parse(in).at("weight_map").get<std::map<std::string, std::string>>();
    } catch (const json::exception& e) {
        fail(index, " is not an index of safetensors files: ", e.what());
    }
    std::set<std::string> files;
    for (const auto& [name, file] : weight_map) {
        if (file.empty() || file.find('/') != file.npos || file == "." || file == "..")
            fail(index, ", tensor ", quoted(name), ": ", quoted(file), " is not a plain file name");
        files.insert(file);
    }
    for (const auto& file : files) {
        const auto before = tensors_.size();
        add_file(index.parent_path() / file);
        if (tensors_.size() == before)
            fail(index, " names ", quoted(file), ", which holds no tensors");
    }
    for (const auto& [name, file] : weight_map)
        if (!tensors_.contains(name))
            fail(index, " promises the tensor ", quoted(name), " in ", quoted(file),
                 ", which is not there");
}

void SafeTensors::add_file(const std::filesystem::path& file) {
    const std::string_view bytes = files_.emplace_back(file).bytes();
    const std::uint64_t size = bytes.size();
    std::uint64_t header_size = 0;
    if (size < kLengthBytes)
        fail(file, " is not a safetensors file: ", size, " bytes are too few for a header");
    std::memcpy(&header_size, bytes.data(), kLengthBytes);
    if (header_size > size - kLengthBytes || header_size > kMaxHeader)
        fail(file, " claims a header of ", header_size, " bytes, of a file of ", size,
             " and at most ", kMaxHeader,
             "; the download is incomplete (Git LFS pointer?) or it is not a safetensors file");

    const std::string_view text = bytes.substr(kLengthBytes, header_size);
    const std::uint64_t data_size = size - kLengthBytes - header_size;
    const auto* data = reinterpret_cast<const std::byte*>(bytes.data() + size - data_size);
    const json header = parse_header(file, text);
    std::vector<const SafeTensorView*> order;

    for (const auto& [name, entry] : header.items()) {
        auto bad = [&, name = &name](const auto&... what) {
            fail(file, ", tensor ", quoted(*name), ": ", what...);
        };
        if (!entry.is_object()) bad("its header entry is not an object; the file is damaged");
        if (name == "__metadata__") {
            for (const auto& [key, value] : entry.items()) {
                if (!value.is_string()) bad(quoted(key), " is not a string; the file is damaged");
                metadata_[key] = value.get<std::string>();
            }
            continue;
        }
        const json dtype = entry.value("dtype", json()), dims = entry.value("shape", json()),
                   offsets = entry.value("data_offsets", json());
        if (entry.size() != 3 || !dtype.is_string() || !dims.is_array() || !offsets.is_array() ||
            offsets.size() != 2)
            bad("its header entry is not {dtype, shape, data_offsets: [begin, end]}; the file is damaged");

        auto known = std::find(kDtypeNames.begin(), kDtypeNames.end(), dtype.get<std::string>());
        if (known == kDtypeNames.end())
            bad("dtype ", quoted(dtype.get<std::string>()),
                " is not supported; convert it to F32, F16 or BF16");
        SafeTensorView view{
            name, static_cast<SafeDtype>(known - kDtypeNames.begin()), {}, nullptr, 0};

        for (const json& dim : dims) {
            view.shape.push_back(as_index(dim));
            if (view.shape.back() < 0)
                bad("dimension ", dim, " is not an integer >= 0; the file is damaged");
        }
        const std::int64_t first = as_index(offsets[0]), last = as_index(offsets[1]);
        if (first < 0 || last < first || static_cast<std::uint64_t>(last) > data_size)
            bad("data_offsets ", offsets, " do not lie in the ", data_size,
                " bytes of data; the file is damaged or incomplete");
        std::uint64_t wanted = 0;
        if (!size_of(view.shape, bytes_of(view.dtype), wanted))
            bad("shape ", to_string(view.shape), " overflows; the file is damaged");
        view.data = data + first;
        view.bytes = static_cast<std::size_t>(last - first);
        if (view.bytes != wanted)
            bad("shape ", to_string(view.shape), " of ", *known, " needs ", wanted,
                " bytes, data_offsets ", offsets, " hold ", view.bytes, "; the file is damaged");
        const auto [place, added] = tensors_.emplace(name, std::move(view));
        if (!added) bad("is in another shard too; the download is a mixture of two models");
        order.push_back(&place->second);
    }

    // The data must be covered exactly: in the order of their offsets, each tensor begins where the
    // last one ended.
    std::sort(order.begin(), order.end(), [](const SafeTensorView* a, const SafeTensorView* b) {
        return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
    });
    const std::byte* end = data;
    for (const SafeTensorView* view : order) {
        if (view->data != end)
            fail(file, ", tensor ", quoted(view->name),
                 view->data < end ? ": overlaps another" : ": follows a gap", " at byte ",
                 view->data - data, " of the data; the file is damaged");
        end += view->bytes;
    }
    if (end != data + data_size)
        fail(file, " has ", data + data_size - end,
             " bytes after its last tensor; the file is damaged");
}

const SafeTensorView& SafeTensors::find(const std::string& name, const Shape& shape) const {
    auto found = tensors_.find(name);
    if (found == tensors_.end())
        fail(path_, " has no tensor ", quoted(name), " (expected with shape ", to_string(shape),
             "); is it the weight file of this config.json?");
    if (found->second.shape != shape)
        fail(path_, ", tensor ", quoted(name), " has shape ", to_string(found->second.shape),
             ", expected ", to_string(shape), "; is it the weight file of this config.json?");
    return found->second;
}

void SafeTensors::read_f32(
    const std::string& name, const Shape& shape,
    const std::function<void(std::int64_t, std::span<const float>)>& body) const {
    const SafeTensorView& view = find(name, shape);
    const std::size_t width = bytes_of(view.dtype), count = view.bytes / width;
    std::vector<float> part(std::min(count, kPart));
    for (std::size_t first = 0; first < count; first += part.size()) {
        part.resize(std::min(part.size(), count - first));
        const std::byte* from = view.data + first * width;
        if (view.dtype == SafeDtype::F32) {
            std::memcpy(part.data(), from, part.size() * width);
        } else {
            for (std::size_t i = 0; i < part.size(); i++) {
                std::uint16_t half;
                std::memcpy(&half, from + 2 * i, 2);
                part[i] = view.dtype == SafeDtype::F16 ? from_f16(half) : from_bf16(half);
            }
        }
        body(static_cast<std::int64_t>(first), part);
    }
}

void SafeTensors::read_f32(const std::string& name, const Shape& shape,
                           std::span<float> out) const {
    const SafeTensorView& view = find(name, shape);
    if (const std::size_t count = view.bytes / bytes_of(view.dtype); out.size() != count)
        fail(path_, ", tensor ", quoted(name), " has ", count, " values, the output has room for ",
             out.size());
    read_f32(name, shape, [&](std::int64_t first, std::span<const float> part) {
        std::ranges::copy(part, out.begin() + first);
    });
}

void write_safetensors(const std::filesystem::path& file, const std::vector<SafeTensorOut>& tensors,
                       SafeDtype dtype, const std::map<std::string, std::string>& metadata) {
    if (dtype == SafeDtype::F16)
        fail("cannot write ", file, ": weights are written as F32 or BF16, not F16");
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::uint64_t offset = 0;
    for (const SafeTensorOut& tensor : tensors) {
        std::uint64_t count = 0;
        if (tensor.name == "__metadata__" || header.contains(tensor.name))
            fail("cannot write ", file, ": the tensor name ", quoted(tensor.name), " is taken");
        if (!size_of(tensor.shape, 1, count) || (!tensor.read && count != tensor.values.size()))
            fail("cannot write ", file, ": tensor ", quoted(tensor.name), " of shape ",
                 to_string(tensor.shape), " is given ", tensor.values.size(), " values");
        std::uint64_t end = offset + count * bytes_of(dtype);
        header[tensor.name] = {{"dtype", kDtypeNames[static_cast<std::size_t>(dtype)]},
                               {"shape", tensor.shape},
                               {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins aligned
    if (text.size() > kMaxHeader)
        fail("cannot write ", file, ": a header of ", text.size(), " bytes is over the limit");

    std::filesystem::path temporary = file;
    temporary += ".tmp";
    std::FILE* stream = std::fopen(temporary.c_str(), "wb");
    if (!stream) fail("cannot create ", temporary, ": ", std::strerror(errno));
    auto put = [&](const void* data, std::size_t bytes) {
        return bytes == 0 || std::fwrite(data, 1, bytes, stream) == bytes;
    };
    const std::uint64_t header_size = text.size();
    bool written = put(&header_size, kLengthBytes) && put(text.data(), text.size());
    std::vector<float> part;
    std::vector<std::uint16_t> narrow;
    for (const SafeTensorOut& tensor : tensors) {
        std::uint64_t count = 0;
        size_of(tensor.shape, 1, count);
        for (std::size_t first = 0; written && first < count; first += part.size()) {
            part.resize(std::min<std::size_t>(kPart, count - first));
            if (tensor.read)
                tensor.read(static_cast<std::int64_t>(first), part);
            else
                std::ranges::copy(tensor.values.subspan(first, part.size()), part.begin());
            if (dtype == SafeDtype::F32) {
                written = put(part.data(), part.size() * sizeof(float));
            } else {
                narrow.resize(part.size());
                std::ranges::transform(part, narrow.begin(), to_bf16);
                written = put(narrow.data(), narrow.size() * sizeof(std::uint16_t));
            }
        }
    }
    written = written && std::fflush(stream) == 0 && ::fsync(::fileno(stream)) == 0;
    int error = errno;
    if (std::fclose(stream) != 0 && written) {
        written = false;
        error = errno;
    }
    if (written && std::rename(temporary.c_str(), file.c_str()) != 0) {
        written = false;
        error = errno;
    }
    if (!written) {
        std::remove(temporary.c_str());
        fail("cannot write ", file, ": ", std::strerror(error));
    }
}

}  // namespace r1
