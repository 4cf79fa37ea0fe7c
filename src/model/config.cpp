#include "src/model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "src/run/files.h"
#include "src/run/json.h"

namespace r1 {

using nlohmann::json;

namespace {

/// Reads config.json field by field; what is wrong is said with the file and the field.
class ConfigReader {
  public:
    ConfigReader(std::filesystem::path file, const json& object)
        : file_(std::move(file)), object_(object) {}

    /// The field; nothing where it is missing or null.
    const json* find(const char* key) const {
        const auto found = object_.find(key);
        return found == object_.end() || found->is_null() ? nullptr : &*found;
    }
    int size(const char* key, std::optional<int> otherwise = std::nullopt,
             int largest = 1 << 20) const {
        const json* value = find(key);
        if (!value && otherwise) return *otherwise;
        if (!value) fail(file_, ": ", key, " is missing");
        if (!value->is_number_integer() || *value < 1 || *value > largest)
            fail(file_, ": ", key, " is ", shown(*value), ", not an integer from 1 to ", largest);
        return value->get<int>();
    }
    double positive(const char* key, std::optional<double> otherwise = std::nullopt) const {
        const json* value = find(key);
        if (!value && otherwise) return *otherwise;
        if (!value) fail(file_, ": ", key, " is missing");
        if (!value->is_number() || value->get<double>() <= 0)
            fail(file_, ": ", key, " is ", shown(*value), ", not a positive number");
        return value->get<double>();
    }
    bool flag(const char* key, bool otherwise) const {
        const json* value = find(key);
        if (value && !value->is_boolean())
            fail(file_, ": ", key, " is ", shown(*value), ", not true or false");
        return value ? value->get<bool>() : otherwise;
    }
    std::string text(const char* key, const std::string& otherwise) const {
        const json* value = find(key);
        if (value && !value->is_string()) fail(file_, ": ", key, " is not a string");
        return value ? value->get<std::string>() : otherwise;
    }
    /// A list of texts or a single one.
    std::vector<std::string> texts(const char* key) const {
        const json* value = find(key);
        std::vector<std::string> all;
        for (const json& text : !value              ? json::array()
                                : value->is_array() ? *value
                                                    : json::array({*value})) {
            if (!text.is_string() || text.get<std::string>().empty())
                fail(file_, ": ", key, " holds ", shown(text), ", which is no text");
            all.push_back(text);
        }
        return all;
    }
    ConfigReader inner(const char* key) const {
        if (!find(key)->is_object()) fail(file_, ": ", key, " is not an object");
        return {file_, *find(key)};
    }
    /// A list of ids or a single one, added to `ids` where new.
    void token_ids(const char* key, std::vector<int>& ids) const {
        const json* value = find(key);
        for (const json& id : !value              ? json::array()
                              : value->is_array() ? *value
                                                  : json::array({*value})) {
            if (!id.is_number_integer() || id < 0 || id >= 1 << 24)
                fail(file_, ": ", key, " holds ", shown(id), ", which is not a token id");
            if (std::ranges::find(ids, id.get<int>()) == ids.end()) ids.push_back(id.get<int>());
        }
    }
    [[noreturn]] void refuse(const std::string& what) const {
        fail(file_, ": ", what, " is not supported");
    }

  private:
    std::filesystem::path file_;
    const json& object_;
};

json parse_json_file(const std::filesystem::path& file) {
    json parsed = parse_json(read_input(file), file.string());
    if (!parsed.is_object()) fail(file, ": not a JSON object");
    return parsed;
}

void read_rope(const ConfigReader& reader, const char* key, Config& c) {
    if (!reader.find(key)) return;
    const ConfigReader rope = reader.inner(key);
    const std::string type = rope.text("rope_type", rope.text("type", "default"));
    c.rope_theta = rope.positive("rope_theta", c.rope_theta);
    if (type == "llama3")
        c.rope_scaling = {rope.positive("factor"), rope.positive("low_freq_factor"),
                          rope.positive("high_freq_factor"),
                          rope.positive("original_max_position_embeddings")};
    else if (type != "default")
        rope.refuse("the rope type \"" + type + "\"");
    if (c.rope_scaling && c.rope_scaling->low_freq_factor >= c.rope_scaling->high_freq_factor)
        rope.refuse("a low_freq_factor that is not below high_freq_factor");
    if (rope.positive("partial_rotary_factor", 1) != 1) rope.refuse("partial_rotary_factor");
}

}  // namespace

Config Config::load(const std::filesystem::path& path) {
    const auto file = std::filesystem::is_directory(path) ? path / "config.json" : path;
    const json object = parse_json_file(file);
    const ConfigReader reader(file, object);
    Config c;
    c.model_type = reader.text("model_type", "");
    if (c.model_type != "qwen2" && c.model_type != "qwen3" && c.model_type != "llama")
        reader.refuse("the model_type \"" + c.model_type + "\" (qwen2, qwen3 and llama are)");
    c.hidden_size = reader.size("hidden_size");
    c.intermediate_size = reader.size("intermediate_size");
    c.num_hidden_layers = reader.size("num_hidden_layers", std::nullopt, 1 << 12);
    c.num_attention_heads = reader.size("num_attention_heads");
    c.num_key_value_heads = reader.size("num_key_value_heads", c.num_attention_heads);
    c.head_dim = reader.size("head_dim", c.hidden_size / c.num_attention_heads);
    c.vocab_size = reader.size("vocab_size", std::nullopt, 1 << 24);
    c.max_position_embeddings = reader.size("max_position_embeddings", std::nullopt, 1 << 24);
    c.rms_norm_eps = reader.positive("rms_norm_eps");
    c.rope_theta = reader.positive("rope_theta", c.rope_theta);
    read_rope(reader, "rope_scaling", c);     // older files
    read_rope(reader, "rope_parameters", c);  // newer ones, with rope_theta
    c.tie_word_embeddings = reader.flag("tie_word_embeddings", false);
    c.attention_bias = c.model_type == "qwen2";  // whose code does not ask the configuration
    reader.token_ids("eos_token_id", c.eos_token_ids);

    if (c.num_attention_heads % c.num_key_value_heads || c.head_dim < 2 || c.head_dim % 2)
        fail(file,
             ": num_attention_heads must be a multiple of num_key_value_heads, head_dim even");
    if (std::int64_t{c.num_attention_heads} * c.head_dim > 1 << 22)
        fail(file, ": num_attention_heads x head_dim is absurdly large");
    if (const auto act = reader.text("hidden_act", "silu"); act != "silu")
        reader.refuse("the hidden_act \"" + act + "\"");
    if (c.model_type != "qwen2" && reader.flag("attention_bias", false))
        reader.refuse("attention_bias of a " + c.model_type);
    if (reader.flag("mlp_bias", false)) reader.refuse("mlp_bias");
    if (reader.flag("rope_interleaved", false)) reader.refuse("rope_interleaved");
    for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"})
        if (reader.find(key)) reader.refuse("a mixture of experts (" + std::string(key) + ")");
    if (reader.find("quantization_config")) {
        const auto quantization = reader.inner("quantization_config");
        reader.refuse("quantised weights (" +
                      quantization.text("quant_method", "of an unnamed method") + ")");
    }
    // Qwen's layers from max_window_layers on see a window only, if use_sliding_window says so.
    const json *window = reader.find("sliding_window"), *whole = reader.find("max_window_layers");
    if (reader.flag("use_sliding_window", false) && window && *window < c.max_position_embeddings &&
        (!whole || *whole < c.num_hidden_layers))
        reader.refuse("a sliding window (use_sliding_window)");
    if (const json* types = reader.find("layer_types"))
        for (const json& type : *types)
            if (type != "full_attention") reader.refuse("the layer type " + shown(type));

    if (const auto generation = file.parent_path() / "generation_config.json";
        std::filesystem::exists(generation)) {
        const json more = parse_json_file(generation);
        const ConfigReader generation_reader(generation, more);
        generation_reader.token_ids("eos_token_id", c.eos_token_ids);
        c.stop_texts = generation_reader.texts("stop_strings");
    }
    for (int id : c.eos_token_ids)
        if (id >= c.vocab_size)
            fail(file, ": eos_token_id ", id, " is beyond the vocab_size of ", c.vocab_size);
    return c;
}

std::vector<double> Config::rotary_frequencies() const {
    const int half = head_dim / 2;
    std::vector<double> frequencies(half);
    for (int i = 0; i < half; ++i) {
        double& f = frequencies[i] = std::pow(rope_theta, -static_cast<double>(i) / half);
        if (!rope_scaling) continue;
        const auto& s = *rope_scaling;
        // How often the wave turns within the original context: often, it stays; rarely, it is
        // slowed down.
        const double turns = s.original_max_position_embeddings * f / (2 * std::numbers::pi);
        const double keep = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        f *= std::lerp(1 / s.factor, 1, std::clamp(keep, 0.0, 1.0));
    }
    return frequencies;
}

}  // namespace r1
