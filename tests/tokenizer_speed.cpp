// Encodes a text file several times and prints the median speed in MB/s; tests/golden/tokenizer_speed.py sets it
// beside that of the `tokenizers` library.
#include <algorithm>
#include <cstdio>

#include "src/run/mapped_file.h"
#include "src/run/log.h"
#include "tokenizer/tokenizer.h"

int main(int argc, char** argv) {
    if (argc != 3) return std::puts("usage: r1_tokenizer_speed TOKENIZER.json TEXT"), 2;
    const r1::Tokenizer tokenizer = r1::Tokenizer::load(argv[1]);
    const r1::MappedFile text(argv[2]);
    std::vector<double> seconds;
    std::size_t ids = 0;
    for (int i = 0; i < 7; ++i) {
        const r1::Stopwatch clock;
        ids = tokenizer.encode(text.bytes()).size();
        seconds.push_back(clock.seconds());
    }
    std::ranges::sort(seconds);
    std::printf("%zu %.3f\n", ids, static_cast<double>(text.bytes().size()) / seconds[3] / 1e6);
}
