// What is measured of a response. One table serves the reward, the filter of samples, the log and
// the files of `infer`; the functions below it read a text alone.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "src/rl/response.h"

namespace r1 {

/// What is measured, how, and what it is worth.
struct RewardOptions {
    std::string parts{};           ///< "accuracy=1,format=0.2"; empty: there is no reward
    std::string script = "latin";  ///< of language_consistency()
    int max_new_tokens = 256;      ///< of the longest response
    int overlong_cache = 0;        ///< of overlong_penalty(); 0: a fifth of max_new_tokens
    std::string program{};         ///< the command behind the part "program"
    double program_seconds = 30;
};

struct Measure {
    const char *name, *meaning;
    /// Of a response with text and verdicts.
    double (*of)(const Response& response, const RewardOptions& options);
};
extern const std::vector<Measure> kMeasures;

/// Scripts that language_consistency() tells apart: latin, greek, cyrillic, hebrew, arabic,
/// devanagari, thai, hangul, kana, han. Throws Error for another name.
void check_script(const std::string& script);

/// The share of the words of a response's thought (of all of it, if it has none) that are written
/// in the script, 1 if it has no words (the tags are none): DeepSeek-R1's language consistency
/// reward (arXiv 2501.12948, section 2.3.2), with the script standing for the language. A word is a
/// run of letters; each Han character is one; \commands of LaTeX are none.
double language_consistency(std::string_view response, const std::string& script);

/// The share of runs of four words (separated by white space) that have occurred before, 0 for
/// fewer than five words.
double repetition(std::string_view text);

/// How often a text uses a word that DeepSeek-R1 (arXiv 2501.12948 v2, on self-evolution) counts as
/// reflective: wait, mistake, however, but, retry, error, verify, wrong, evaluate, check; or its
/// Chinese equivalent, since a model that mixes languages reflects in both.
int reflective_words(std::string_view text);

}  // namespace r1
