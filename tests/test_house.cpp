// The house itself: includes run one way, and the README names nothing that is not there.
#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "tests/programs.h"

using namespace r1;
using namespace r1::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}

/// What stands between an opening and a closing mark, one after the other.
std::vector<std::string> between(const std::string& text, const std::string& open,
                                 const std::string& close) {
    std::vector<std::string> parts;
    for (std::size_t at = 0; (at = text.find(open, at)) != text.npos;) {
        at += open.size();
        const auto end = text.find(close, at);
        if (end == text.npos) break;
        parts.push_back(text.substr(at, end - at));
        at = end + close.size();
    }
    return parts;
}

/// The longest words of a text that are made of these characters.
std::vector<std::string> words(const std::string& text, const std::string& characters) {
    std::vector<std::string> all;
    for (std::size_t at = 0; (at = text.find_first_of(characters, at)) != text.npos;) {
        const auto end = std::min(text.find_first_not_of(characters, at), text.size());
        all.push_back(text.substr(at, end - at));
        at = end;
    }
    return all;
}

const std::string kLetters = "abcdefghijklmnopqrstuvwxyz";
const std::string kIdentifier = kLetters + "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:";

/// Every source file below a folder, in one text.
std::string sources(const std::string& folder) {
    std::string all;
    for (const auto& entry : fs::recursive_directory_iterator(kSource + "/" + folder))
        if (entry.is_regular_file()) all += read_file(entry.path());
    return all;
}

/// The README's code: spans between backticks, and the lines of its blocks.
std::vector<std::string> code_of(const std::string& readme) {
    std::vector<std::string> code;
    bool in_block = false;
    for (const std::string& line : lines_of(readme)) {
        if (line.starts_with("```"))
            in_block = !in_block;
        else if (in_block)
            code.push_back(line);
        else
            for (const std::string& span : between(line, "`", "`")) code.push_back(span);
    }
    return code;
}

}  // namespace

TEST_CASE("includes run one way: run, device, model, rl; and nothing in src includes data") {
    const std::vector<std::string> rooms = {"run", "device", "model", "rl"};
    int includes = 0;
    for (std::size_t room = 0; room < rooms.size(); ++room)
        for (const auto& entry : fs::directory_iterator(kSource + "/src/" + rooms[room]))
            for (const std::string& line : lines_of(read_file(entry.path()))) {
                if (!line.starts_with("#include \"")) continue;
                CAPTURE(entry.path().string());
                CAPTURE(line);
                CHECK(!has(line, "\"data/"));
                for (std::size_t above = room + 1; above < rooms.size(); ++above)
                    CHECK(!has(line, "\"src/" + rooms[above] + "/"));
                ++includes;
            }
    CHECK(includes > 80);
}

TEST_CASE("the README: every file, flag, target, function and metric that it names exists") {
    const TemporaryFolder f;
    const std::string readme = read_file(kSource + "/README.md");
    for (const std::string& link : between(readme, "](", ")")) {
        CAPTURE(link);
        CHECK((link.starts_with("http") || fs::exists(kSource + "/" + link)));
    }

    std::string help;
    for (const char* program : {"train_grpo", "train_sft", "infer", "make_world"})
        help += run(f, std::string(program) + " --help").out;
    const std::string makefile = read_file(kSource + "/Makefile");
    const std::string scripts = read_file(kSource + "/data/r1/report.sh");
    const std::string code = sources("src") + sources("tokenizer") + sources("cuda") +
                             sources("data") + sources("tests") +
                             read_file(kSource + "/train_grpo.cpp") +
                             read_file(kSource + "/CMakeLists.txt");
    int flags = 0, targets = 0, files = 0, names = 0;
    for (const std::string& text : code_of(readme)) {
        CAPTURE(text);
        if (text.starts_with("hf ")) continue;  // another program's
        for (const std::string& flag : words(text, kLetters + "-")) {
            if (!flag.starts_with("--") || flag.size() < 4) continue;
            CAPTURE(flag);
            CHECK((has(help, flag + " ") || has(help, flag + "=") || has(scripts, flag)));
            ++flags;
        }
        for (std::size_t at = 0; (at = text.find("make ", at)) != text.npos; at += 5) {
            const auto target = words(text.substr(at + 5), kLetters + "0123456789-");
            REQUIRE(!target.empty());
            CAPTURE(target[0]);
            CHECK(has(makefile, "\n" + target[0] + ":"));
            ++targets;
        }
        for (const std::string& file : words(text, kIdentifier + "-./")) {
            const bool is_file =
                file.starts_with("tests/") || file.starts_with("data/") || file.starts_with("src/");
            if (is_file) CHECK(fs::exists(kSource + "/" + file));
            files += is_file;
        }
        // A name such as group_advantages or Generator::generate.
        if (text.find_first_not_of(kIdentifier) == text.npos && text.find('_') != text.npos) {
            const auto colon = text.rfind("::");
            CHECK(has(code, colon == text.npos ? text : text.substr(colon + 2)));
            ++names;
        }
    }
    CHECK(flags > 30);
    CHECK(targets > 10);
    CHECK(files > 15);
    CHECK(names > 10);

    // The third column of the table of details: metrics, as a run logs them.
    REQUIRE(run(f, "train_grpo --model " + kBase + " --train " + kTrain +
                       " --prompts 2 --group 2 --max-new-tokens 8 --steps 1 --out " + (f / "run"))
                .status == 0);
    const json step = read_json_lines(f / "run/log.jsonl").at(1);
    int metrics = 0;
    for (const std::string& line : lines_of(readme)) {
        if (!has(line, "tests/test_") || !line.starts_with("| ")) continue;
        const auto columns = between(line + " ", "| ", " |");
        REQUIRE(columns.size() >= 2);
        for (const std::string& name : between(columns[1], "`", "`")) {
            CAPTURE(name);
            CHECK(step.contains(name));
            ++metrics;
        }
    }
    CHECK(metrics > 12);
}
