#include "src/rl/sample_file.h"

#include <fstream>

#include "src/run/record.h"

namespace r1 {

SampleFile::SampleFile(const std::string& out, const nlohmann::ordered_json& record,
                       const std::set<std::string>& may_differ, bool resume, const Comm& comm)
    : out_(out) {
    const auto partial = partial_of(out);
    const std::filesystem::path made_by = out + ".run.json";
    const bool resuming = resume && std::filesystem::exists(partial);
    comm.any(false);  // every rank has looked before one writes
    std::size_t bytes = 0;
    if (resuming) {
        const auto before = std::filesystem::exists(made_by) ? read_input(made_by) : "";
        print_notes(compare_runs(nlohmann::ordered_json::parse(before, nullptr, false), record,
                                 may_differ));
        // All of the problems before the last stay, which may not be done.
        std::ifstream in(partial, std::ios::binary);
        std::size_t bytes_read = 0, samples_read = 0;
        for (std::string text; std::getline(in, text) && !in.eof(); ++samples_read) {
            const auto line = nlohmann::json::parse(text, nullptr, false);
            const double problem = number_at(line, "problem");
            if (!(problem >= 0 && problem < 1e9))
                fail(partial, ":", samples_read + 1, ": is no sample; remove the file");
            if (static_cast<std::size_t>(problem) != problems_) {
                problems_ = static_cast<std::size_t>(problem);
                samples_ = samples_read;
                bytes = bytes_read;
            }
            bytes_read += text.size() + 1;
        }
    } else if (comm.is_root()) {
        // It is an older run's, which the new record would not describe.
        std::filesystem::remove(partial);
        write_file(made_by, record.dump(2) + "\n");
    }
    comm.any(false);
    if (comm.is_root()) lines_.emplace(partial, bytes);
}

void SampleFile::finish() {
    if (!lines_) return;
    lines_->sync();
    put_in_place(out_);
}

}  // namespace r1
