#include "src/rl/keep.h"

#include <charconv>

#include "src/run/error.h"
#include "src/rl/text_measures.h"

namespace r1 {

Keep::Keep(const std::string& conditions, std::string script) : script_(std::move(script)) {
    check_script(script_);
    for (std::size_t begin = 0; begin < conditions.size();) {
        const std::size_t end = std::min(conditions.find(',', begin), conditions.size());
        const std::string condition = conditions.substr(begin, end - begin);
        begin = end + 1;
        const auto number_behind = [&](const std::string& name, double& value) {
            if (!condition.starts_with(name)) return false;
            const char* last = condition.data() + condition.size();
            const auto [at, error] = std::from_chars(condition.data() + name.size(), last, value);
            return error == std::errc() && at == last;
        };
        if (condition == "correct")
            correct_ = true;
        else if (condition == "well-formed")
            well_formed_ = true;
        else if (condition == "readable")
            well_formed_ = stopped_ = true, language_ = std::max(language_, 0.95),
            repetition_ = std::min(repetition_, 0.2);
        else if (!number_behind("longest<", longest_) && !number_behind("language>=", language_) &&
                 !number_behind("repetition<=", repetition_))
            fail("--keep: \"", condition,
                 "\" is none of correct, well-formed, readable, longest<N, language>=X and repetition<=X");
    }
}

bool Keep::operator()(const Response& r) const {
    return (!correct_ || r.accuracy.value == 1) && (!well_formed_ || r.format.value == 1) &&
           (!stopped_ || r.completion.stopped) &&
           static_cast<double>(r.completion.tokens.size()) < longest_ &&
           language_consistency(r.text, script_) >= language_ && repetition(r.text) <= repetition_;
}

}  // namespace r1
