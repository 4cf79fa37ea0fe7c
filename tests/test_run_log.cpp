#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <random>
#include <thread>

#include "src/run/error.h"
#include "src/run/log.h"
#include "src/run/stop.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;
namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

std::vector<ordered_json> read_lines(const fs::path& file) {
    std::ifstream in(file);
    std::vector<ordered_json> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(ordered_json::parse(line));
    return lines;
}

JsonLines resumed(const fs::path& file, std::int64_t step) {
    return JsonLines(file, kept_lines(file, step).bytes);
}

}  // namespace

TEST_CASE("run log: lines can be read while the log is open, and stay valid JSON") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "deep" / "run" / "log.jsonl";
    JsonLines log(file);
    const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
    log.write({{"step", 1}, {"loss", nan}, {"kl", {inf, -inf, 0.5}}, {"also", std::nanf("")}});
    CHECK(read_file(file) == "{\"step\":1,\"loss\":null,\"kl\":[null,null,0.5],\"also\":null}\n");

    log.write({{"step", 2}, {"text", "half a character \xe2\x82, line\nbreak"}});
    auto lines = read_lines(file);
    REQUIRE(lines.size() == 2);
    CHECK(lines[1]["text"] == "half a character \xef\xbf\xbd, line\nbreak");
}

TEST_CASE("run log: a fresh run starts an empty file, a resume without a file too") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "log.jsonl";
    resumed(file, 7).write({{"step", 8}});
    CHECK(read_lines(file).size() == 1);
    JsonLines(file).write({{"step", 1}});
    CHECK(read_file(file) == "{\"step\":1}\n");
}

TEST_CASE("run log: a resumed run gives the log of one that was never stopped") {
    TemporaryFolder folder;
    std::mt19937 rng(3);
    auto run = [](JsonLines& log, int first, int last) {
        for (int step = first; step <= last; step++) {
            log.write({{"step", step}, {"loss", std::sin(step)}});
            if (step % 3 == 0) log.write({{"eval", {{"step", step}, {"accuracy", std::cos(step)}}}});
        }
    };
    JsonLines whole(folder.path / "whole.jsonl");
    whole.write({{"config", "no step"}});
    run(whole, 1, 20);
    const std::string want = read_file(folder.path / "whole.jsonl");

    for (int trial = 0; trial < 50; trial++) {
        const fs::path file = folder.path / "resumed.jsonl";
        const int stopped = 1 + static_cast<int>(rng() % 20),
                  checkpoint = static_cast<int>(rng() % (stopped + 1u));
        {
            JsonLines log(file);
            log.write({{"config", "no step"}});
            run(log, 1, stopped);
        }
        if (trial % 2) {  // a crash in the middle of a line
            std::ofstream(file, std::ios::app) << R"({"step":)" << stopped + 1 << R"(,"lo)";
        }
        JsonLines log = resumed(file, checkpoint);
        run(log, checkpoint + 1, 20);
        CHECK(read_file(file) == want);
    }
}

TEST_CASE("run log: what cannot be logged to or resumed is an error, and the file is left alone") {
    TemporaryFolder folder;
    const fs::path file = folder.path / "log.jsonl";
    const std::string text = "{\"step\":1}\nnot json\n{\"step\":2}\n";
    std::ofstream(file) << text;
    CHECK_ERROR(resumed(file, 5), "log.jsonl:2: is not JSON");
    CHECK(read_file(file) == text);
    CHECK_THROWS_AS(JsonLines(folder.path), Error);            // a folder
    CHECK_THROWS_AS(JsonLines(file / "below a file"), Error);  // no folder
    CHECK_ERROR(JsonLines("/dev/full"), "is not a regular file");
    JsonLines open(file, text.size());
    CHECK_ERROR(JsonLines{file}, "another process is writing it");
    fs::remove(file);
    CHECK_ERROR(open.sync(), "was removed while it was written");
}

TEST_CASE("run log: the first signal asks to stop, the second ends the process") {
    for (auto [first, second] : {std::pair{SIGINT, SIGTERM}, {SIGTERM, SIGTERM}, {SIGINT, SIGINT}}) {
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            ::close(STDERR_FILENO);  // its notice would look like a fault of the tests
            install_stop_handler();
            if (stop_requested()) ::_exit(1);
            ::kill(::getpid(), first);
            for (int i = 0; i < 1000 && !stop_requested(); ++i) ::usleep(1000);
            if (!stop_requested()) ::_exit(2);
            ::kill(::getpid(), second);
            ::usleep(1'000'000);
            ::_exit(3);
        }
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        INFO("exit status " << WEXITSTATUS(status));
        REQUIRE(WIFSIGNALED(status));
        CHECK(WTERMSIG(status) == second);
    }
    CHECK_FALSE(stop_requested());
}

TEST_CASE("run log: sparkline") {
    const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
    auto line = [](std::vector<double> values, int width, double low = 0, double high = 7) {
        return sparkline(values, width, low, high);
    };
    CHECK(line({0, 1, 2, 3, 4, 5, 6, 7}, 80) == "▁▂▃▄▅▆▇█");
    CHECK(line({-5, 99, inf, -inf}, 80) == "▁██▁");
    CHECK(line({0, 0, 7, 7}, 2) == "▁█");
    CHECK(line({0, 4, 7}, 2) == "▁▇");  // [0], [4, 7] -> 5.5, rounded to 6
    CHECK(line({1, nan, 7}, 3) == "▂ █");
    CHECK(line({3, 3}, 5, 3, 3) == "▁▁");
    CHECK(line({nan}, 5, 3, 3) == " ");
    CHECK(line({}, 5) == "");
    CHECK(line({1, 2}, 0) == "");
    CHECK(line({1, 2}, -1) == "");

    // pooling covers every value once: the column means, weighted by their lengths, give the mean of all
    std::mt19937 rng(4);
    for (int trial = 0; trial < 200; trial++) {
        const std::size_t n = 1 + rng() % 300, at = rng() % n;
        const int width = 1 + static_cast<int>(rng() % 100);
        std::vector<double> values(n, 0.0);
        values[at] = 1e9;  // wherever it is, exactly one column is full
        const std::string text = sparkline(values, width, 0, 1);
        const std::size_t columns = std::min(n, static_cast<std::size_t>(width));
        CHECK(text.size() == 3 * columns);  // three bytes a bar
        std::size_t full = 0, column = 0;
        for (std::size_t c = 0; c < columns; c++)
            if (text.substr(3 * c, 3) == "█") full++, column = c;
        CHECK(full == 1);
        CHECK(std::abs(static_cast<double>(column) -
                       static_cast<double>(at * columns) / static_cast<double>(n)) <= 1);
    }
}

TEST_CASE("run log: sizes and counts") {
    CHECK(human_bytes(0) == "0 B");
    CHECK(human_bytes(1023) == "1023 B");
    CHECK(human_bytes(1023.7) == "1.0 KiB");
    CHECK(human_bytes(1536) == "1.5 KiB");
    CHECK(human_bytes(1024. * 1024 - 1) == "1.0 MiB");
    CHECK(human_bytes(1023.9 * 1024) == "1023.9 KiB");
    CHECK(human_bytes(-2.5 * (1 << 30)) == "-2.5 GiB");
    CHECK(human_bytes(3e15) == "2728.5 TiB");
    CHECK(human_count(0) == "0");
    CHECK(human_count(999) == "999");
    CHECK(human_count(1000) == "1k");
    CHECK(human_count(193'216) == "193k");
    CHECK(human_count(999'600) == "1M");
    CHECK(human_count(494'032'768) == "494M");
    CHECK(human_count(1'543'714'304) == "1.54B");
}

TEST_CASE("run log: the stopwatch runs forward") {
    Stopwatch watch;
    const double first = watch.seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(first >= 0);
    CHECK(watch.seconds() - first >= 0.02);
    CHECK(watch.seconds() < 60);
}

TEST_CASE("run log: a long text is folded for the terminal, between characters") {
    CHECK(folded("") == "");
    const std::string line(650, 'x');
    CHECK(folded(line) == line);
    CHECK(folded(line + "y") == std::string(300, 'x') + " [... 51 bytes ...] " + std::string(299, 'x') + "y");
    std::string wide;
    for (int i = 0; i < 300; ++i) wide += "\u4f60";  // three bytes each
    for (int shift = 0; shift < 3; ++shift) {
        const std::string text = folded(std::string(shift, 'x') + wide + std::string(shift, 'x'));
        CHECK(ordered_json::parse(ordered_json(text).dump()) == text);  // dump() throws where a character is cut
    }
    CHECK(folded(std::string(2000, '\x80')).size() < 2100);  // no character begins at all
}
