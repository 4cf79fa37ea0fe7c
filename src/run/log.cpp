#include "src/run/log.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <optional>

#include "src/run/error.h"

namespace r1 {
namespace {

/// The step a line belongs to; nothing for a line without one.
std::optional<std::int64_t> step_of(const nlohmann::json& line) {
    if (!line.is_object()) return {};
    auto step = line.find("step");
    if (step != line.end() && step->is_number_integer()) return step->get<std::int64_t>();
    auto eval = line.find("eval");
    return eval == line.end() ? std::nullopt : step_of(*eval);
}

/// "%.3g" of value / base^k, with the unit that leaves it below `limit`, which is where rounding
/// would show base.
std::string scaled(double value, double base, double limit, const char* format,
                   std::span<const char* const> units) {
    std::size_t unit = 0;
    for (; std::abs(value) >= limit && unit + 1 < units.size(); unit++) value /= base;
    std::array<char, 64> text;
    std::snprintf(text.data(), text.size(), format, value);
    return text.data() + std::string(units[unit]);
}

}  // namespace

KeptLines kept_lines(const std::filesystem::path& file, std::int64_t step) {
    std::ifstream in(file, std::ios::binary);
    KeptLines kept;
    std::string line;
    for (std::int64_t number = 1; std::getline(in, line); number++) {
        if (in.eof()) break;  // no newline: a crash cut it off
        const auto parsed = nlohmann::json::parse(line, nullptr, false);
        if (parsed.is_discarded())
            fail(file, ":", number, ": is not JSON; mend or remove the file, then resume");
        const auto of_line = step_of(parsed);
        if (of_line > step) break;  // no step is less than any
        kept.last_step = std::max(kept.last_step, of_line.value_or(0));
        kept.bytes += line.size() + 1;
    }
    return kept;
}

void JsonLines::write(const nlohmann::ordered_json& line) {
    file_.write(line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n');
}

std::vector<nlohmann::json> read_json_lines(const std::filesystem::path& file) {
    std::vector<nlohmann::json> lines;
    std::ifstream in(file, std::ios::binary);
    for (std::string text; std::getline(in, text);)
        if (auto line = nlohmann::json::parse(text, nullptr, false); line.is_object())
            lines.push_back(std::move(line));
    return lines;
}

double number_at(const nlohmann::json& object, const char* key) {
    const auto value = object.is_object() ? object.value(key, nlohmann::json()) : nlohmann::json();
    return value.is_number() ? value.get<double>() : std::nan("");
}

std::string sparkline(std::span<const double> values, int width, double low, double high) {
    static constexpr std::array<const char*, 8> kBars = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    const std::size_t n = values.size(),
                      columns = std::min(n, static_cast<std::size_t>(std::max(width, 0)));
    std::string line;
    for (std::size_t c = 0; c < columns; c++) {
        const std::size_t begin = c * n / columns, end = (c + 1) * n / columns;
        double sum = 0;
        for (std::size_t i = begin; i < end; i++) sum += values[i];
        const double mean = sum / static_cast<double>(end - begin);
        const double height = high > low ? std::clamp((mean - low) / (high - low), 0.0, 1.0) : 0.0;
        line += std::isnan(mean) || std::isnan(height)
                    ? " "
                    : kBars[static_cast<std::size_t>(std::lround(height * 7))];
    }
    return line;
}

void Progress::show(std::int64_t done, std::int64_t total, const std::string& more) {
    static const bool terminal = isatty(STDOUT_FILENO);
    if (first_ < 0) {
        first_ = done;
        clock_ = {};
    }
    const double seconds = clock_.seconds();
    if (seconds - shown_at_ < (terminal ? 0.2 : 10)) return;
    shown_at_ = seconds;
    std::printf("%s%s: %lld of %lld%s", terminal ? "\r" : "", what_.c_str(),
                static_cast<long long>(done), static_cast<long long>(total), more.c_str());
    if (done > first_)
        std::printf(", %.0f s left", seconds / static_cast<double>(done - first_) *
                                         static_cast<double>(total - done));
    std::printf(terminal ? "   " : "\n");
    std::fflush(stdout);
    line_open_ = terminal;
}

void Progress::end() {
    if (line_open_) std::printf("\r\033[K");
    line_open_ = false;
}

void print_summary(const std::filesystem::path& log) {
    std::vector<double> rewards, lengths;
    std::vector<nlohmann::json> evaluations;
    for (const auto& line : read_json_lines(log)) {
        if (line.contains("eval")) evaluations.push_back(line["eval"]);
        if (!line.contains("step") || std::isnan(number_at(line, "reward"))) continue;
        rewards.push_back(number_at(line, "reward"));
        lengths.push_back(number_at(line, "length"));
    }
    if (!rewards.empty()) {
        const auto [low, high] = std::ranges::minmax(rewards);
        const double longest = std::ranges::max(lengths);
        std::printf("reward %7.3f to %6.3f  %s\n", low, high,
                    sparkline(rewards, 80, low, high).c_str());
        std::printf("length %7.1f to %6.1f  %s\n", 0.0, longest,
                    sparkline(lengths, 80, 0, longest).c_str());
    }
    if (evaluations.size() < 2) return;
    const auto change = [&](const char* key, auto written) {
        return written(number_at(evaluations.front(), key)) + " -> " +
               written(number_at(evaluations.back(), key));
    };
    const auto number = [](double x) {
        std::array<char, 32> text;
        std::snprintf(text.data(), text.size(), "%.4g", x);
        return std::string(text.data());
    };
    std::printf("held out: reward %s, accuracy %s, format %s, length %s\n",
                change("reward", number).c_str(), change("accuracy", percent).c_str(),
                change("format", percent).c_str(), change("length", number).c_str());
}

std::string folded(const std::string& text) {
    constexpr std::size_t each = 300;
    if (text.size() <= 2 * each + 50) return text;
    const auto cuts_a_character = [&](std::size_t at) {
        return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
    };
    std::size_t begin = each, end = text.size() - each;
    while (begin > 0 && cuts_a_character(begin)) --begin;
    while (end + 1 < text.size() && cuts_a_character(end)) ++end;
    return text.substr(0, begin) + " [... " + std::to_string(end - begin) + " bytes ...] " +
           text.substr(end);
}

std::string percent(double share) {
    if (std::isnan(share)) return "-";
    std::array<char, 32> text;
    std::snprintf(text.data(), text.size(), "%.1f%%", 100 * share);
    return text.data();
}

std::string human_bytes(double bytes) {
    static constexpr std::array<const char*, 5> kUnits = {" B", " KiB", " MiB", " GiB", " TiB"};
    bytes = std::round(bytes);
    if (std::abs(bytes) < 1024) return scaled(bytes, 1024, 1024, "%.0f", kUnits);
    return scaled(bytes, 1024, 1023.95, "%.1f", kUnits);
}

std::string human_count(double count) {
    static constexpr std::array<const char*, 5> kUnits = {"", "k", "M", "B", "T"};
    return scaled(count, 1000, 999.5, "%.3g", kUnits);
}

}  // namespace r1
