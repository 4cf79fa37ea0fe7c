// A text file that is there only when it is complete.
#pragma once
#include <filesystem>
#include <fstream>

#include "src/run/error.h"

namespace r1 {

class WholeFile : public std::ofstream {
  public:
    /// Makes the folder and, in it, FILE.partial. Throws Error if it cannot be written.
    explicit WholeFile(std::filesystem::path file) : file_(std::move(file)), partial_(file_) {
        partial_ += ".partial";
        if (file_.has_parent_path()) std::filesystem::create_directories(file_.parent_path());
        open(partial_, std::ios::binary);
        if (!is_open()) r1::fail(file_.string(), ": cannot be written");
    }
    /// FILE.partial becomes FILE. Throws Error if something could not be written.
    void done() {
        close();
        if (!good()) r1::fail(file_.string(), ": could not be written; is the disk full?");
        std::filesystem::rename(partial_, file_);
    }

  private:
    std::filesystem::path file_, partial_;
};

}  // namespace r1
