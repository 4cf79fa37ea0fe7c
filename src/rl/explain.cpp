#include "src/rl/explain.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

namespace r1 {

namespace {

/// Six significant digits.
std::string number(double value, bool sign = false) {
    char text[32];
    std::snprintf(text, sizeof text, sign ? "%+.6g" : "%.6g", value);
    return text;
}

/// Six decimals; a diverged policy's ratios would need dozens of digits before the point. What
/// rounds to zero loses its sign: a reader would wonder about -0.000000.
std::string decimals(double value, bool sign = false) {
    if (std::abs(value) >= 1e6) return number(value, sign);
    char text[32];
    std::snprintf(text, sizeof text, sign ? "%+.6f" : "%.6f", std::abs(value) < 5e-7 ? 0.0 : value);
    return text;
}

/// Each line of a text stands behind a bar, so that no response can be taken for a line of ours.
void print_quoted(const std::string& text) {
    for (char c : "| " + text) {
        std::putchar(c);
        if (c == '\n') std::printf("     | ");
    }
    std::putchar('\n');
}

void print_rewards(const ExplainedStep& s) {
    std::printf("\nThe question, as the model sees it:\n     ");
    print_quoted(s.responses[0].problem->prompt);
    std::printf("\n%zu responses, sampled at temperature %g; reward = ", s.responses.size(),
                s.scoring.temperature);
    const auto& parts = s.judge.parts();
    const auto name = [&](const Judge::Part& part) { return s.judge.names()[part.index].c_str(); };
    for (const Judge::Part& part : parts)
        std::printf("%s%g x %s", &part == &parts[0] ? "" : " + ", part.weight, name(part));
    std::printf("\n");
    for (std::size_t i = 0; i < s.responses.size(); ++i) {
        const Response& r = s.responses[i];
        std::printf("%3zu  ", i + 1);
        print_quoted(r.text);
        std::printf("     ");
        print_quoted("answer: " + r.accuracy.reason + "; format: " + r.format.reason);
        std::printf("     ");
        for (const Judge::Part& part : parts)
            std::printf("%s %s, ", name(part), number(r.measures[part.index]).c_str());
        std::printf("reward %s; %d tokens%s%s\n", number(r.reward).c_str(), r.length(),
                    r.stopped ? "" : ", cut off",
                    r.masked ? " and masked: no part of the loss" : "");
    }
}

/// Equal rewards, and no others, make every advantage exactly 0.
bool rewards_are_equal(const ExplainedStep& s) {
    return std::ranges::all_of(s.responses, [](const Response& r) { return r.advantage == 0; });
}

void print_advantages(const ExplainedStep& s) {
    const double count = static_cast<double>(s.responses.size());
    double mean = 0, squares = 0;
    for (const Response& r : s.responses) mean += r.reward / count;
    for (const Response& r : s.responses) squares += (r.reward - mean) * (r.reward - mean);
    const double deviation = rewards_are_equal(s) ? 0 : std::sqrt(squares / (count - 1));
    std::printf("\nmean reward %s, standard deviation %s (with n - 1 = %g)\n", number(mean).c_str(),
                number(deviation).c_str(), count - 1);
    // The question's group is the whole batch, so that --advantage-scale batch and group are one.
    const bool scaled = s.scale != AdvantageScale::None;
    std::printf("advantage = (reward - mean)%s\n",
                scaled ? " / (standard deviation + 0.0001)" : "");
    for (std::size_t i = 0; i < s.responses.size(); ++i)
        std::printf("%3zu  (%s - %s)%s = %s\n", i + 1, number(s.responses[i].reward).c_str(),
                    number(mean).c_str(), scaled ? (" / " + number(deviation + 1e-4)).c_str() : "",
                    number(s.responses[i].advantage, true).c_str());
}

void print_formulas(const ExplainedStep& s, double lr) {
    const ObjectiveOptions& o = s.objective;
    const std::string w = o.importance_cap > 0 ? "w " : "", beta = number(o.beta);
    std::printf("\nEach token of a response, before and after one update with learning rate %g:\n",
                lr);
    std::printf("  ratio = exp(%s); before the update new is old, and every ratio is 1\n",
                o.sequence_ratio ? "mean over the response's tokens of (new - old)" : "new - old");
    if (o.importance_cap > 0) std::printf("  w = min(%g, exp(old - sampled))\n", o.importance_cap);
    if (o.beta > 0) std::printf("  KL = exp(reference - new) - (reference - new) - 1\n");
    std::printf(
        "  loss = -%smin(ratio A, clipped A)%s, with the ratio clipped to [1 - %g, 1 + %g]\n",
        w.c_str(), o.beta > 0 ? (" + " + beta + " KL").c_str() : "", o.epsilon_low, o.epsilon_high);
    std::printf("  coefficient = weight x d loss / d new = weight x (-%sratio A%s),\n", w.c_str(),
                o.beta > 0 ? (" + " + beta + " (1 - exp(reference - new))").c_str() : "");
    std::printf(
        "      without ratio A where the clip is in force: low is A < 0 and ratio < 1 - %g,\n"
        "      high is A > 0 and ratio > 1 + %g\n",
        o.epsilon_low, o.epsilon_high);
    std::printf("  weight = 1 / %s\n",
                s.aggregation == LossAggregation::Grpo   ? "(sequences x tokens of the response)"
                : s.aggregation == LossAggregation::Dapo ? "tokens of all responses"
                                                         : "(sequences x --max-new-tokens)");
    std::printf("  exponents are kept between -60 and 60\n");
}

UpdateSize size_of(const ExplainedStep& s) {
    UpdateSize size{static_cast<double>(s.responses.size()), 0};
    for (const Response& r : s.responses) size.tokens += r.masked ? 0 : r.length();
    return size;
}

/// A response's share in the loss, before and after the update.
struct ResponseLoss {
    double before = 0, after = 0;
};

/// The table of a response's tokens, and its share in the loss.
ResponseLoss print_tokens(const ExplainedStep& s, std::size_t i) {
    const Response& r = s.responses[i];
    const UpdateSize size = size_of(s);
    const double weight = token_weight(r.length(), size, s.aggregation, s.max_new_tokens);
    std::printf("\nresponse %zu, advantage A = %s, weight of a token 1 / ", i + 1,
                number(r.advantage, true).c_str());
    switch (s.aggregation) {
        case LossAggregation::Grpo:
            std::printf("(%g x %d)", size.sequences, r.length());
            break;
        case LossAggregation::Dapo:
            std::printf("%g", size.tokens);
            break;
        case LossAggregation::DrGrpo:
            std::printf("(%g x %d)", size.sequences, s.max_new_tokens);
            break;
    }
    std::printf(" = %s\n", number(weight).c_str());

    const bool with_sampled = s.objective.importance_cap > 0, with_reference = !r.ref_logp.empty();
    const auto terms_under = [&](const std::vector<float>& policy) {
        return objective({.policy = policy,
                          .old = r.old_logp,
                          .reference = r.ref_logp,
                          .sampled = r.sampled_logp},
                         r.advantage, s.objective);
    };
    const std::vector<float>& updated = s.updated[i].old_logp;
    const auto before = terms_under(r.old_logp), after = terms_under(updated);
    const auto loss_columns = [&](const TokenObjective& term) {
        std::printf(" %8s %9s %+11.4e", with_reference ? decimals(term.kl).c_str() : "-",
                    decimals(term.loss, true).c_str(), weight * term.dloss_dlogp);
    };
    const int left = with_sampled ? 45 : 35;
    std::printf("%*s | %-30s | after the update\n", left, "", "before the update");
    std::printf("%-15s%s %9s %9s | %8s %9s %11s | %9s %8s %-4s %8s %9s %11s\n", "token",
                with_sampled ? "   sampled" : "", "old", "reference", "KL", "loss", "coefficient",
                "new", "ratio", "clip", "KL", "loss", "coefficient");
    double sum_before = 0, sum_after = 0;
    for (int t = 0; t < r.length(); ++t) {
        // As JSON, so that blanks and line breaks in a token can be seen.
        const auto token = nlohmann::json(s.tokenizer.decode(std::span(&r.tokens[t], 1)))
                               .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
        std::printf("%-15s", token.c_str());
        if (with_sampled) std::printf(" %9s", decimals(r.sampled_logp[t]).c_str());
        std::printf(" %9s %9s |", decimals(r.old_logp[t]).c_str(),
                    with_reference ? decimals(r.ref_logp[t]).c_str() : "-");
        loss_columns(before[t]);
        std::printf(" | %9s %8s %-4s", decimals(updated[t]).c_str(),
                    decimals(after[t].ratio).c_str(),
                    after[t].clipped_low    ? "low"
                    : after[t].clipped_high ? "high"
                                            : "-");
        loss_columns(after[t]);
        std::printf("\n");
        sum_before += before[t].loss;
        sum_after += after[t].loss;
    }

    const auto print_loss = [&](const char* when, double sum, double entropy) {
        double loss = weight * sum;
        std::printf("loss %s the update: %s x %s", when, number(weight).c_str(),
                    decimals(sum, true).c_str());
        if (s.entropy_bonus > 0) {
            loss -= s.entropy_bonus / size.tokens * entropy;
            std::printf(" - %g / %g x entropy %s", s.entropy_bonus, size.tokens,
                        decimals(entropy).c_str());
        }
        std::printf(" = %s\n", decimals(loss, true).c_str());
        return loss;
    };
    const double loss_before = print_loss("before", sum_before, s.entropy_before[i]);
    return {loss_before, print_loss("after", sum_after, s.entropy_after[i])};
}

/// Why the loss before the update is 0, or why it is not.
void print_why_loss(const ExplainedStep& s) {
    if (s.aggregation != LossAggregation::Grpo)
        std::printf(
            "Before the update every ratio is 1, and every token weighs the same. A long response\n"
            "therefore adds more of its -A to the loss than a short one: the advantages sum to 0, the\n"
            "loss need not. Its gradient is not 0, as each A acts on the tokens of its own response.\n");
    else if (std::ranges::any_of(s.responses, &Response::masked))
        std::printf(
            "Before the update every ratio is 1, and a response adds -A / %zu to the loss, however long\n"
            "it is. Without the masked responses the advantages need not sum to 0, nor need the loss.\n",
            s.responses.size());
    else
        std::printf(
            "The loss before the update %s: every ratio is 1, a response adds -A / %zu\n"
            "however long it is, and the advantages sum to 0. Its gradient is not 0, as each A acts on the\n"
            "tokens of its own response.\n",
            std::abs(s.loss) < 5e-7 ? "is 0" : "would be 0 but for KL, entropy or w",
            s.responses.size());
}

void print_gradient(const ExplainedStep& s, const std::vector<ResponseLoss>& losses,
                    double clip_norm) {
    std::printf("\n");
    print_why_loss(s);
    const std::string entropy = s.entropy_bonus > 0
                                    ? " - " + number(s.entropy_bonus) + " / " +
                                          number(size_of(s).tokens) + " x grad entropy"
                                    : "";
    std::printf(
        "\nThe gradient g is the sum over all tokens of coefficient x grad log pi%s, with the\n"
        "coefficients before the update. It has one number for each parameter. Its norm follows from\n"
        "the part g_i of that sum that is response i's, because |g|^2 = g . g = the sum of g_i . g.\n",
        entropy.c_str());
    std::printf("\nresponse   loss before       g_i . g   loss after\n");
    double product = 0, after = 0;
    for (std::size_t i = 0; i < s.responses.size(); ++i) {
        const Response& r = s.responses[i];
        if (r.masked) continue;
        std::printf("%8zu %13s  %+12.5e %12s\n", i + 1, decimals(losses[i].before, true).c_str(),
                    s.gradient_products[i], decimals(losses[i].after, true).c_str());
        product += s.gradient_products[i];
        after += losses[i].after;
    }
    std::printf("%8s %13s  %+12.5e %12s\n", "sum", decimals(s.loss, true).c_str(), product,
                decimals(after, true).c_str());
    std::printf("\ngradient norm = sqrt(%.5e) = %s\n", product, number(s.gradient_norm).c_str());
    if (clip_norm == 0) {
        std::printf("--clip-norm 0: AdamW gets the gradient as it is\n");
        return;
    }
    const double factor = s.gradient_norm > clip_norm ? clip_norm / s.gradient_norm : 1;
    std::printf(
        "--clip-norm %g: AdamW gets the gradient x min(1, %g / %s) = %s, whose norm is %s\n",
        clip_norm, clip_norm, number(s.gradient_norm).c_str(), number(factor).c_str(),
        number(factor * s.gradient_norm).c_str());
}

}  // namespace

bool ExplainedStep::teaches() const {
    return !rewards_are_equal(*this) && !std::ranges::all_of(responses, &Response::masked);
}

void explain_update(ExplainedStep& step, const Trainee& trainee, const OptimizerFlags& flags,
                    const std::function<double(std::span<Response>)>& accumulate_gradient) {
    Transformer& model = *trainee.model;
    std::vector<Response>& responses = step.responses;
    const auto scored = [&](std::vector<Response>& some) {
        return score(model, some, step.scoring, &Response::old_logp);
    };
    const auto gradient_of = [&](std::span<Response> some) {
        accumulate_gradient(some);
        const Tensor on_device = model.parameters().gradients();
        std::vector<float> gradient(on_device.size());
        model.backend().download(gradient.data(), on_device);
        model.backend().zero(on_device);
        return gradient;
    };
    step.entropy_before = scored(responses);
    const auto whole = gradient_of(responses);
    for (Response& r : responses) {
        const auto part = gradient_of({&r, 1});
        step.gradient_products.push_back(
            std::inner_product(part.begin(), part.end(), whole.begin(), 0.0));
    }
    step.loss = accumulate_gradient(responses);
    step.gradient_norm = trainee.optimizer->step(flags.lr, flags);
    step.updated = responses;
    step.entropy_after = scored(step.updated);
}

void print(const ExplainedStep& s, const OptimizerFlags& flags) {
    std::printf(
        "\nOne update on the responses to one question, at the full learning rate: --prompts,\n"
        "--mini-batches, --inner-epochs, --dynamic-sampling, --warmup and --schedule have no effect.\n"
        "Each number follows from those above it; log-probabilities and gradients are the model's.\n");
    print_rewards(s);
    print_advantages(s);
    if (!s.teaches()) {
        std::printf("%s: there is nothing to learn from this group. Try another --seed.\n",
                    rewards_are_equal(s) ? "All rewards are equal" : "All responses are masked");
        return;
    }
    print_formulas(s, flags.lr);
    std::vector<ResponseLoss> losses(s.responses.size());
    for (std::size_t i = 0; i < s.responses.size(); ++i)
        if (!s.responses[i].masked) losses[i] = print_tokens(s, i);
    print_gradient(s, losses, flags.clip_norm);
}

}  // namespace r1
