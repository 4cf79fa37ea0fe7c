#include "src/rl/diagnosis.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <sstream>

#include "src/model/checkpoint.h"
#include "src/rl/dataset.h"
#include "src/run/error.h"

namespace r1 {

std::string why_nothing_is_learnt(std::span<const Response> responses, int max_new_tokens) {
    std::size_t cut_off = 0, talk_on = 0, well_formed = 0, right = 0, wrong = 0;
    std::map<std::string, std::size_t> format_reasons, accuracy_reasons;
    for (const Response& r : responses) {
        const AnswerIn answer_in = r.problem->answer_in;
        const std::string end = answer_in == AnswerIn::Tags ? "</answer>" : "}";
        const auto answered = answer_in == AnswerIn::Tags ? r.text.find(end)
                              : r.text.find("\\boxed{") == r.text.npos
                                  ? r.text.npos
                                  : r.text.find(end, r.text.find("\\boxed{"));
        if (answered != r.text.npos)
            talk_on += r.text.find_first_not_of(" \n.$", answered + end.size()) != r.text.npos;
        else
            cut_off += !r.stopped;
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
    const bool tags = responses[0].problem->answer_in == AnswerIn::Tags;
    std::ostringstream why;
    if (right == all)
        why << "every response is right: give harder questions";
    else if (2 * talk_on > all)
        why << talk_on << " of " << all << " responses state an answer and then talk on"
            << (tags ? ": end them there with --stop-text \"</answer>\""
                     : ": the model does not stop by itself; teach it to with train_sft first");
    else if (2 * cut_off > all)
        why << cut_off << " of " << all << " responses are cut off at --max-new-tokens "
            << max_new_tokens
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
               "questions that the model gets right only sometimes";
    return why.str();
}

void Watch::check(int step, const Metrics& metrics, double min_entropy, const std::string& out) {
    const std::string resume = advice_to_resume(out);
    if (!std::isfinite(metrics["grad_norm"]))
        fail("step ", step, ": the gradient is not finite; lower --lr", resume);
    collapsed_steps_ = metrics["entropy"] < min_entropy ? collapsed_steps_ + 1 : 0;
    if (collapsed_steps_ == 10)
        fail(
            "step ", step, ": the entropy has been below ", min_entropy,
            " for 10 steps: every response is the same, and nothing more can be learnt; lower --lr "
            "or raise --entropy-bonus (--min-entropy 0 goes on regardless)",
            resume);
}

void Watch::say_if_nothing_is_learnt(const Metrics& metrics, std::span<const Response> responses,
                                     int max_new_tokens) {
    steps_without_spread_ = metrics["groups_without_spread"] == 1 ? steps_without_spread_ + 1 : 0;
    if (steps_without_spread_ % 20 != 3 || responses.empty()) return;
    const Response& r = responses[0];
    std::printf(
        "nothing is learnt: for %d steps the responses of each group had equal rewards; %s. For example:\n"
        "  %s%s   [%s; %s]\n",
        steps_without_spread_, why_nothing_is_learnt(responses, max_new_tokens).c_str(),
        r.problem->prompt.c_str(), r.text.c_str(), r.accuracy.reason.c_str(),
        r.format.reason.c_str());
}

}  // namespace r1
