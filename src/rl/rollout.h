// From problems to responses: what training, evaluation and rejection sampling have in common.
#pragma once
#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "src/rl/dataset.h"
#include "src/rl/generate.h"
#include "src/rl/judge.h"
#include "src/rl/model_folder.h"
#include "src/run/comm.h"

namespace r1 {

/// Whether a response's text holds one of the texts, which its last token may have completed.
std::function<bool(std::span<const std::int32_t>)> stop_at(const Tokenizer& tokenizer,
                                                           const std::vector<std::string>& texts);
/// The text up to the end of the first stop text: the last token may hold more.
std::string cut_behind_stop(std::string text, const std::vector<std::string>& stop_texts);
/// What a response says: decoded, without the stop token, up to the end of the first stop text.
std::string text_of(const Response& response, const ModelFolder& model);
/// "<think>" for a prompt that ends in it, else nothing.
std::string opened_thought(std::string_view prompt);

/// options.samples_per_prompt responses to each of the problems, whose tokens are encoded, one
/// problem after the other. They have a text, and are not graded yet.
std::vector<Response> sample_responses(Generator& generator, const ModelFolder& model,
                                       const std::vector<const Problem*>& problems,
                                       GenerateOptions options);

/// Samples and grades problems, some at a time, which the ranks share, and calls body(responses to
/// all of those) on each rank while that returns true. Shows how far it has come, where `progress`
/// says what it is.
void for_each_chunk(Generator& generator, const ModelFolder& model, Judge& judge, const Comm& comm,
                    std::span<const Problem> problems, const GenerateOptions& options,
                    const std::string& progress,
                    const std::function<bool(std::vector<Response>&)>& body);

/// The groups of a step: those that teach something, in the order of their questions, and behind
/// them, up to as many as are wanted, others. Each rank keeps its own of them, and knows how many
/// all have: so they are the same groups on any number of ranks.
class ChosenGroups {
  public:
    ChosenGroups(int wanted, std::size_t group_size) : wanted_(wanted), group_size_(group_size) {}
    /// `teaches`: of each question of a round, over all ranks. sampled: the responses to those of
    /// this rank, every comm.size()-th.
    void add(std::vector<Response>& sampled, const std::vector<double>& teaches, const Comm& comm);
    int teaching() const { return teaching_; }
    /// This rank's responses, with the numbers of their groups.
    std::vector<Response> take();

  private:
    int wanted_, teaching_ = 0, spare_ = 0;
    std::size_t group_size_;
    std::vector<Response> own_;
};

/// The rank that trains on each of a step's groups, which have so many tokens: for each update of
/// a pass anew, the longest group first, to whoever has the fewest tokens. The root, which shows
/// responses, gets the first group.
std::vector<int> deal_by_length(std::span<const double> tokens, int updates, int ranks);

/// Deals the groups of a step, each of which some rank has, by their lengths: in training the ranks
/// wait for the one that has most to do. `problems`: those that the responses are to.
void share_by_length(std::vector<Response>& responses, std::span<const Problem> problems,
                     int groups, int updates, const Comm& comm);

}  // namespace r1
