// The world of the whole recipe (`make r1`): four kinds of questions, two languages to think in, and a synthetic corpus
// of pieces of reasoning from which a base model learns. It extends the demo's countdown (data/countdown.h).
//
// Two things are in it for the paper's stages. A thought may be written in English words, in Chinese ones or in a mixture:
// no rule of R1-Zero's asks for one of them. And an attempt is judged in one glance ("12*6-2=70 yes"), which is often
// wrong, while "check" does it again step by step, which seldom is: reflection that costs tokens and pays.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "data/countdown.h"

namespace r1::recipe {

enum class Kind { Countdown, Arithmetic, Choice, General };
constexpr int kKinds = 4;
const char* name_of(Kind kind);

/// A question with its answer. As text: countdown "2,12,6=70", arithmetic "34+8-5+12", choice "7*8+5" with three
/// choices, general "color of grass".
struct Question {
    Kind kind;
    std::string text;
    countdown::Task task{};      ///< countdown
    std::vector<int> terms{};    ///< arithmetic and choice: the operands...
    std::string ops{};           ///< ...and the operators between them
    std::vector<int> choices{};  ///< choice
    std::string answer{};        ///< all but countdown: "49", "B", "green"

    /// As a line for load_problems(), with its kind beside what is read there.
    std::string json() const;
    /// What a model is asked, as load_problems() and the model's template render it.
    std::string prompt() const;
};

/// About one question in ten is held out of the corpus and of all training, by a hash of its text (countdown: of the
/// sorted numbers and the target); of the general questions one in four, so that a known fact is asked for in other words.
bool held_out(const Question& question);

/// Draws questions and documents. The same seed gives the same everywhere.
class World : countdown::Draws {
  public:
    explicit World(std::uint64_t seed);
    /// Any question of that kind, held out or not.
    Question draw(Kind kind);
    /// Every countdown and every general question, or `count` different ones of the other kinds; in random order.
    std::vector<Question> questions(Kind kind, int count, bool held_out);

    struct Document {
        std::string prompt, completion;
        bool eos = true;     ///< false: cut off in the middle
        int kind;            ///< index into document_name()
        bool right = false;  ///< the completion ends in a right answer
    };
    /// The pretraining corpus: mostly useless, see world.cpp for its shares.
    Document document();
    /// A general question with a short right answer in the wanted form: the paper's non-reasoning samples
    /// (arXiv 2501.12948, section 2.3.3).
    Document general_sample();

  private:
    enum class Language { English, Chinese, Mixed };
    template <class T>
    void shuffle(std::vector<T>& values) {
        for (int i = static_cast<int>(values.size()); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
    }
    Question countdown_question(countdown::Task task);
    Question seen(Kind kind);
    std::string word(const char* english, const char* chinese);
    std::string search(const countdown::Task& task, int max_attempts, int give_up_percent,
                       std::string& answer);
    std::string chain(const Question& question, int& result);
    void countdown_document(Document& d, int form);
    void short_document(Document& d, Kind kind);

    std::vector<countdown::Task> tasks_;
    Language language_ = Language::English;
};

constexpr int kDocumentKinds = 11;
const char* document_name(int kind);

/// Every word of the world, with the blanks that it carries: the tokenizer's vocabulary beside numbers and signs.
std::vector<std::string> words();

}  // namespace r1::recipe
