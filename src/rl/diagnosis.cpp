#include "src/rl/diagnosis.h"

#include <map>
#include <sstream>

namespace r1 {

std::string why_nothing_is_learnt(const std::vector<Problem>& problems,
                                  const std::vector<Response>& responses, int max_new_tokens) {
    std::size_t cut_off = 0, talk_on = 0, well_formed = 0, right = 0, wrong = 0;
    std::map<std::string, std::size_t> format_reasons, accuracy_reasons;
    for (const Response& r : responses) {
        const AnswerIn answer_in = problems[r.completion.prompt].answer_in;
        const std::string end = answer_in == AnswerIn::Tags ? "</answer>" : "}";
        const auto answered = answer_in == AnswerIn::Tags ? r.text.find(end)
                              : r.text.find("\\boxed{") == r.text.npos
                                  ? r.text.npos
                                  : r.text.find(end, r.text.find("\\boxed{"));
        if (answered != r.text.npos)
            talk_on += r.text.find_first_not_of(" \n.$", answered + end.size()) != r.text.npos;
        else
            cut_off += !r.completion.stopped;
        well_formed += r.format.value == 1;
        right += r.accuracy.value == 1;
        wrong += r.accuracy.value == 0;  // neither where no answer is known
        ++format_reasons[r.format.reason];
        ++accuracy_reasons[r.accuracy.reason];
    }
    const std::size_t all = responses.size();
    auto most_often = [](const std::map<std::string, std::size_t>& reasons) {
        return std::ranges::max_element(reasons, {}, [](const auto& r) { return r.second; })->first;
    };
    const bool tags = problems.at(0).answer_in == AnswerIn::Tags;
    std::ostringstream why;
    if (right == all)
        why << "every response is right: give harder questions";
    else if (2 * talk_on > all)
        why << talk_on << " of " << all << " responses state an answer and then talk on"
            << (tags ? ": end them there with --stop-text \"</answer>\""
                     : ": the model does not stop by itself; teach it to with train_sft first");
    else if (2 * cut_off > all)
        why << cut_off << " of " << all << " responses are cut off at --max-new-tokens " << max_new_tokens
            << " before they answer: raise it, or ask for shorter answers in --template";
    else if (2 * well_formed <= all)
        why << all - well_formed << " of " << all
            << " responses do not keep the format (most often: " << most_often(format_reasons)
            << "): ask for it in --template with an example, or teach it with train_sft first";
    else if (wrong == all)
        why << "no response is right (most often: " << most_often(accuracy_reasons)
            << "), though most keep the format: give easier questions, or raise --group";
    else
        why << "the reward does not tell the responses to a question apart: raise --temperature, or give "
               "questions "
               "that the model gets right only sometimes";
    return why.str();
}

}  // namespace r1
