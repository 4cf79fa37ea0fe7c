#include "src/model/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <set>

#include "src/device/formulas.h"
#include "src/run/json.h"

namespace r1 {
namespace {

using nlohmann::json;
using Shape = std::vector<std::int64_t>;

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr std::size_t kPart = 1 << 20;             // values converted at a time

/// Bytes of a value, by the format's names of types; those that we read come first, in the order of
/// SafeDtype.
constexpr std::array<std::pair<const char*, int>, 15> kDtypes = {{{"F32", 4},
                                                                  {"F16", 2},
                                                                  {"BF16", 2},
                                                                  {"F64", 8},
                                                                  {"I64", 8},
                                                                  {"I32", 4},
                                                                  {"I16", 2},
                                                                  {"I8", 1},
                                                                  {"U64", 8},
                                                                  {"U32", 4},
                                                                  {"U16", 2},
                                                                  {"U8", 1},
                                                                  {"BOOL", 1},
                                                                  {"F8_E4M3", 1},
                                                                  {"F8_E5M2", 1}}};

std::size_t bytes_of(SafeDtype dtype) { return dtype == SafeDtype::F32 ? 4 : 2; }

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
    const json parsed = parse_json(read_input(index), index.string());
    std::map<std::string, std::string> weight_map;
    if (const auto map = parsed.find("weight_map"); map != parsed.end() && map->is_object())
        for (const auto& [name, file] : map->items())
            weight_map[name] = file.is_string() ? file.get<std::string>() : "";
    if (weight_map.empty()) fail(index.string(), ": has no weight_map that names the files");
    std::set<std::string> files;
    for (const auto& [name, file] : weight_map) {
        if (file.empty() || file.find('/') != file.npos || file == "." || file == "..")
            fail(index, ", tensor ", shown(name), ": ", shown(file), " is not a plain file name");
        files.insert(file);
    }
    for (const auto& file : files) {
        const auto before = tensors_.size();
        add_file(index.parent_path() / file);
        if (tensors_.size() == before)
            fail(index, ": names ", shown(file), ", which holds no tensors");
    }
    for (const auto& [name, file] : weight_map)
        if (!tensors_.contains(name))
            fail(index, ": promises the tensor ", shown(name), " in ", shown(file),
                 ", which is not there");
}

void SafeTensors::add_file(const std::filesystem::path& file) {
    const InputFile& in = files_.emplace_back(file);
    const std::uint64_t size = in.size();
    std::uint64_t header_size = 0;
    if (size < kLengthBytes)
        fail(file, ": is not a safetensors file: ", size, " bytes are too few for a header");
    in.read(0, {reinterpret_cast<char*>(&header_size), kLengthBytes});
    if (header_size > size - kLengthBytes || header_size > kMaxHeader)
        fail(file, ": claims a header of ", header_size, " bytes, of a file of ", size,
             " and at most ", kMaxHeader,
             "; the download is incomplete (Git LFS pointer?) or it is not a safetensors file");

    std::string text(header_size, '\0');
    in.read(kLengthBytes, text);
    const std::uint64_t data = kLengthBytes + header_size;
    if (!text.starts_with('{'))
        fail(file, ": has a header that does not begin with '{'; the file is damaged");
    const json header = parse_json(text, file.string() + ": the header");
    std::vector<const SafeTensorView*> order;

    for (const auto& [name, entry] : header.items()) {
        auto bad = [&, name = &name](const auto&... what) {
            fail(file, ", tensor ", shown(*name), ": ", what...);
        };
        if (!entry.is_object()) bad("its header entry is not an object; the file is damaged");
        if (name == "__metadata__") {
            for (const auto& [key, value] : entry.items()) {
                if (!value.is_string()) bad(shown(key), " is not a string; the file is damaged");
                metadata_[key] = value.get<std::string>();
            }
            continue;
        }
        const json dtype = entry.value("dtype", json()), dims = entry.value("shape", json()),
                   offsets = entry.value("data_offsets", json());
        if (entry.size() != 3 || !dtype.is_string() || !dims.is_array() || !offsets.is_array() ||
            offsets.size() != 2)
            bad("its header entry is not {dtype, shape, data_offsets: [begin, end]}; the file is damaged");

        SafeTensorView view{name, SafeDtype::Other, dtype, {}, files_.size() - 1, 0, 0};
        const auto known = std::ranges::find_if(
            kDtypes, [&](const auto& d) { return d.first == view.dtype_name; });
        if (known - kDtypes.begin() < static_cast<int>(SafeDtype::Other))
            view.dtype = static_cast<SafeDtype>(known - kDtypes.begin());
        for (const json& dim : dims) {
            view.shape.push_back(as_index(dim));
            if (view.shape.back() < 0)
                bad("dimension ", shown(dim), " is not an integer >= 0; the file is damaged");
        }
        const std::int64_t first = as_index(offsets[0]), last = as_index(offsets[1]);
        if (first < 0 || last < first || static_cast<std::uint64_t>(last) > size - data)
            bad("data_offsets ", shown(offsets), " do not lie in the ", size - data,
                " bytes of data; the file is damaged or incomplete");
        view.offset = data + static_cast<std::uint64_t>(first);
        view.bytes = static_cast<std::uint64_t>(last - first);
        std::uint64_t wanted = view.bytes;
        if (known != kDtypes.end() &&
            !size_of(view.shape, static_cast<std::uint64_t>(known->second), wanted))
            bad("shape ", to_string(view.shape), " overflows; the file is damaged");
        if (view.bytes != wanted)
            bad("shape ", to_string(view.shape), " of ", view.dtype_name, " needs ", wanted,
                " bytes, data_offsets ", shown(offsets), " hold ", view.bytes,
                "; the file is damaged");
        const auto [place, added] = tensors_.emplace(name, std::move(view));
        if (!added) bad("is in another shard too; the download is a mixture of two models");
        order.push_back(&place->second);
    }

    // The data must be covered exactly: in the order of their offsets, each tensor begins where the
    // last one ended.
    std::ranges::sort(order, {}, [](const auto* v) { return std::pair(v->offset, v->bytes); });
    std::uint64_t end = data;
    for (const SafeTensorView* view : order) {
        if (view->offset != end)
            fail(file, ", tensor ", shown(view->name),
                 view->offset < end ? ": overlaps another" : ": follows a gap", " at byte ",
                 view->offset - data, " of the data; the file is damaged");
        end += view->bytes;
    }
    if (end != size)
        fail(file, ": has ", size - end, " bytes after its last tensor; the file is damaged");
}

const SafeTensorView& SafeTensors::find(const std::string& name, const Shape& shape) const {
    auto found = tensors_.find(name);
    if (found == tensors_.end())
        fail(path_, ": has no tensor ", shown(name), " (expected with shape ", to_string(shape),
             "); is it the weight file of this config.json?");
    if (found->second.shape != shape)
        fail(path_, ", tensor ", shown(name), " has shape ", to_string(found->second.shape),
             ", expected ", to_string(shape), "; is it the weight file of this config.json?");
    if (found->second.dtype == SafeDtype::Other)
        fail(path_, ", tensor ", shown(name), ": dtype ", shown(found->second.dtype_name),
             " is not supported; convert it to F32, F16 or BF16");
    return found->second;
}

void SafeTensors::read_f32(
    const std::string& name, const Shape& shape,
    const std::function<void(std::int64_t, std::span<const float>)>& body) const {
    const SafeTensorView& view = find(name, shape);
    const std::size_t width = bytes_of(view.dtype), count = view.bytes / width;
    std::vector<float> part(std::min(count, kPart));
    std::vector<std::uint16_t> narrow(view.dtype == SafeDtype::F32 ? 0 : part.size());
    for (std::size_t first = 0; first < count; first += part.size()) {
        part.resize(std::min(part.size(), count - first));
        const auto read_into = [&](void* out) {
            files_[view.file].read(view.offset + first * width,
                                   {static_cast<char*>(out), part.size() * width});
        };
        if (view.dtype == SafeDtype::F32) {
            read_into(part.data());
        } else {
            read_into(narrow.data());
            const auto convert = view.dtype == SafeDtype::F16 ? from_f16 : from_bfloat16;
            std::transform(narrow.begin(),
                           narrow.begin() + static_cast<std::ptrdiff_t>(part.size()), part.begin(),
                           convert);
        }
        body(static_cast<std::int64_t>(first), part);
    }
}

void SafeTensors::read_f32(const std::string& name, const Shape& shape,
                           std::span<float> out) const {
    const SafeTensorView& view = find(name, shape);
    if (const std::size_t count = view.bytes / bytes_of(view.dtype); out.size() != count)
        fail(path_, ", tensor ", shown(name), " has ", count, " values, the output has room for ",
             out.size());
    read_f32(name, shape, [&](std::int64_t first, std::span<const float> part) {
        std::ranges::copy(part, out.begin() + first);
    });
}

void SafeTensors::verify() const {
    const InputFile& in = files_.at(0);
    const auto found = metadata_.find("sha256");
    if (found == metadata_.end()) fail(in.path(), ": has no checksum");
    Sha256 sum;
    std::string part;
    for (std::uint64_t at = 0; at < in.size(); at += part.size()) {
        part.resize(std::min<std::uint64_t>(in.size() - at, kLengthBytes + kMaxHeader));
        in.read(at, part);
        if (at == 0)
            if (const auto digest = part.find(found->second); digest != part.npos)
                part.replace(digest, kNoChecksum.size(), kNoChecksum);
        sum.add(part);
    }
    if (sum.hex() != found->second)
        fail(in.path(), ": is damaged: its checksum is not the one that it was written with");
}

void write_safetensors(const std::filesystem::path& file, const std::vector<SafeTensorOut>& tensors,
                       SafeDtype dtype, const std::map<std::string, std::string>& metadata) {
    if (dtype != SafeDtype::F32 && dtype != SafeDtype::BF16)
        fail(file, ": cannot be written: weights are written as F32 or BF16");
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::uint64_t offset = 0;
    for (const SafeTensorOut& tensor : tensors) {
        std::uint64_t count = 0;
        if (tensor.name == "__metadata__" || header.contains(tensor.name))
            fail(file, ": cannot be written: the tensor name ", shown(tensor.name), " is taken");
        if (!size_of(tensor.shape, 1, count) || (!tensor.read && count != tensor.values.size()))
            fail(file, ": cannot be written: tensor ", shown(tensor.name), " of shape ",
                 to_string(tensor.shape), " is given ", tensor.values.size(), " values");
        std::uint64_t end = offset + count * bytes_of(dtype);
        header[tensor.name] = {{"dtype", kDtypes[static_cast<std::size_t>(dtype)].first},
                               {"shape", tensor.shape},
                               {"data_offsets", {offset, end}}};
        offset = end;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins aligned
    const std::size_t checksum_at = text.find(kNoChecksum);
    if (text.size() > kMaxHeader)
        fail(file, ": cannot be written: a header of ", text.size(), " bytes is over the limit");

    OutputFile out(file);
    Sha256 sum;
    const auto put = [&](const void* data, std::size_t bytes) {
        const std::string_view written(static_cast<const char*>(data), bytes);
        out->write(written);
        if (checksum_at != text.npos) sum.add(written);
    };
    const std::uint64_t header_size = text.size();
    put(&header_size, kLengthBytes);
    put(text.data(), text.size());
    std::vector<float> part;
    std::vector<std::uint16_t> narrow;
    for (const SafeTensorOut& tensor : tensors) {
        std::uint64_t count = 0;
        size_of(tensor.shape, 1, count);
        for (std::size_t first = 0; first < count; first += part.size()) {
            part.resize(std::min<std::size_t>(kPart, count - first));
            if (tensor.read)
                tensor.read(static_cast<std::int64_t>(first), part);
            else
                std::ranges::copy(tensor.values.subspan(first, part.size()), part.begin());
            if (dtype == SafeDtype::F32) {
                put(part.data(), part.size() * sizeof(float));
            } else {
                narrow.resize(part.size());
                std::ranges::transform(part, narrow.begin(), to_bfloat16);
                put(narrow.data(), narrow.size() * sizeof(std::uint16_t));
            }
        }
    }
    if (checksum_at != text.npos) out->overwrite(kLengthBytes + checksum_at, sum.hex());
    out.done();
}

}  // namespace r1
