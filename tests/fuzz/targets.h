// What is done with hostile input, one function a parser. `make fuzz` lets libFuzzer make the input up;
// tests/test_fuzz.cpp replays tests/fuzz/corpus. An Error is a good end; a crash, a hang, a sanitizer's
// report or any other exception is not.
#pragma once
#include <map>
#include <string>
#include <string_view>

namespace r1::test {
extern const std::map<std::string, void (*)(std::string_view)> kFuzzTargets;
}
