// Encodes a text file several times and prints the median speed in MB/s; tests/golden/tokenizer_speed.py sets it
// beside that of the `tokenizers` library.
#include <algorithm>
#include <cstdio>

#include "src/run/files.h"
#include "src/run/log.h"
#include "tokenizer/tokenizer.h"

int main(int argc, char** argv) {
    if (argc != 3) return std::puts("usage: r1_tokenizer_speed TOKENIZER.json TEXT"), 2;
    const r1::Tokenizer tokenizer = r1::Tokenizer::load(argv[1]);
    const std::string text = r1::read_input(argv[2], r1::kLargestData);
    std::vector<double> seconds;
    std::size_t ids = 0;
    for (int i = 0; i < 7; ++i) {
        const r1::Stopwatch clock;
        ids = tokenizer.encode(text).size();
        seconds.push_back(clock.seconds());
    }
    std::ranges::sort(seconds);
    std::printf("%zu %.3f\n", ids, static_cast<double>(text.size()) / seconds[3] / 1e6);
}
