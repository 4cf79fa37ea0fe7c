// What a run leaves behind and shows: JSON lines, a line of chart for the terminal.
#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "src/run/files.h"

namespace r1 {

/// A file of JSON lines, written line by line, so that it can be read while the run goes on.
class JsonLines {
  public:
    /// The first `keep` bytes of the file stay.
    explicit JsonLines(const std::filesystem::path& file, std::uint64_t keep = 0)
        : file_(file, keep) {}
    /// NaN and infinities become null, bytes that are not UTF-8 become U+FFFD: every line is valid
    /// JSON.
    void write(const nlohmann::ordered_json& line);
    /// Returns when all lines are on the disk.
    void sync() { file_.sync(); }

  private:
    AppendedFile file_;
};

/// What of a file of JSON lines a run keeps that is resumed after a step.
struct KeptLines {
    std::uint64_t bytes = 0;
    std::int64_t last_step = 0;  ///< of those lines
};
/// The lines before the first whose "step" (or "eval"."step") is greater, so that no step is there
/// twice, without a last line that a crash cut off. Throws Error where one is not JSON.
KeptLines kept_lines(const std::filesystem::path& file, std::int64_t step);

/// The objects of a file of JSON lines, without what is none: a line that a crash cut off. Nothing
/// for no file.
std::vector<nlohmann::json> read_json_lines(const std::filesystem::path& file);

/// The number behind a key of what was read; NaN where there is none.
double number_at(const nlohmann::json& object, const char* key);

/// Values as a line of bars between low and high, "▁▂▃▅▇": mean-pooled to at most `width` columns,
/// a blank for NaN.
std::string sparkline(std::span<const double> values, int width, double low, double high);

/// Wall-clock seconds since construction.
class Stopwatch {
  public:
    double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  private:
    using Clock = std::chrono::steady_clock;
    Clock::time_point start_ = Clock::now();
};

/// How far something long has come: on a terminal one line that is written over, elsewhere a line
/// every ten seconds.
class Progress {
  public:
    explicit Progress(std::string what) : what_(std::move(what)) {}
    /// "WHAT: 120 of 428, 12 s left", with the time that the work done since construction predicts.
    void show(std::int64_t done, std::int64_t total, const std::string& more = "");
    /// Ends the line, or takes it away: nothing is left of progress that went no further than its
    /// beginning.
    void end();

  private:
    std::string what_;
    Stopwatch clock_;
    double shown_at_ = 0;
    std::int64_t first_ = -1;
    bool line_open_ = false;
};

/// Charts of a whole run's rewards and lengths, and its first and last evaluation, from its log.
void print_summary(const std::filesystem::path& log);

/// A text as a terminal shows it: of a long one the beginning and the end, in whole characters.
std::string folded(const std::string& text);
std::string percent(double share);      ///< 0.125 -> "12.5%", NaN -> "-"
std::string human_bytes(double bytes);  ///< 1536 -> "1.5 KiB"
std::string human_count(double count);  ///< 494032768 -> "494M"

}  // namespace r1
