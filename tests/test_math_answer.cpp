// Equality of mathematical answers: a table of our own, real gold answers and their rewritings, the grading
// cases of public graders, and mutated input.
#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <random>
#include <regex>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "src/rl/math_answer.h"
#include "tests/support.h"

using namespace r1;
using namespace r1::test;
using nlohmann::json;
using std::string;

namespace {

bool same(const string& a, const string& b) {
    const auto x = MathAnswer::parse(a), y = MathAnswer::parse(b);
    return x && y && equal(*x, *y);
}

/// The last formula or number in a text, whichever comes last.
string last_formula(const string& text) {
    string found;
    std::size_t end = 0;
    static const std::regex formula(R"(\$\$([^$]+)\$\$|\\\(([^]*?)\\\)|\\\[([^]*?)\\\]|\$((?:[^$\\]|\\[^])+)\$)");
    for (std::sregex_iterator i(text.begin(), text.end(), formula), none; i != none; ++i) {
        for (std::size_t group = 1; group < i->size(); ++group)
            if ((*i)[group].matched) found = (*i)[group];
        end = static_cast<std::size_t>(i->position() + i->length());
    }
    static const std::regex number(R"((?:^|[^A-Za-z0-9,./-])(-?[.]?\d[\d,./]*))");
    for (std::sregex_iterator i(text.begin() + static_cast<std::ptrdiff_t>(end), text.end(), number), none; i != none; ++i)
        found = (*i)[1];
    return found;
}

/// The final answer in free text: the last \\boxed{}, else the last formula or number behind "answer is" or
/// "answer:", else in all of the text.
string find_answer(const string& text) {
    const string small = lower_case(text);
    std::size_t behind = 0;
    for (const string mark : {"answer is", "answer:", "answer:**"})
        if (const auto at = small.rfind(mark); at != string::npos) behind = std::max(behind, at + mark.size());
    if (behind <= std::min(text.rfind("\\boxed"), text.size()))
        if (const auto boxed = last_boxed(text)) return *boxed;
    string sentence = text.substr(behind);
    if (behind > 0) sentence = sentence.substr(0, sentence.find(". "));
    for (const string& place : {sentence, text})
        if (const string found = last_formula(place); !found.empty()) return found;
    return text;
}

/// What a text says, whether it is an answer or a solution that ends in one.
std::optional<MathAnswer> read(const string& text) {
    if (!last_boxed(text))
        if (const auto whole = MathAnswer::parse(text)) return whole;
    return MathAnswer::parse(find_answer(text));
}

std::vector<json> lines_of(const std::filesystem::path& file) {
    std::istringstream lines(read_file(file));
    std::vector<json> all;
    for (string line; std::getline(lines, line);) all.push_back(json::parse(line));
    return all;
}

std::vector<string> gold_answers(const std::filesystem::path& fixtures) {
    std::vector<string> all;
    for (const char* set : {"gsm8k/train", "gsm8k/test", "math500/test", "aime24/test"})
        for (const json& line : lines_of(fixtures / "datasets" / (string(set) + ".jsonl"))) {
            const json& answer = line.at("answer");
            const string text = answer.is_string() ? answer.get<string>() : answer.dump();
            const auto mark = text.rfind("####");
            all.push_back(mark == string::npos ? text : text.substr(mark + 4));
        }
    return all;
}

string replaced(string text, const string& from, const string& to) {
    for (auto at = text.find(from); at != string::npos; at = text.find(from, at + to.size()))
        text.replace(at, from.size(), to);
    return text;
}

}  // namespace

TEST_CASE("mathematics: what is equal") {
    const std::pair<string, string> pairs[] = {
        {"72", "72.0"},
        {"72", " 72. "},
        {"72", "+72"},
        {"1234", "1,234"},
        {"1234", "1 234"},
        {"1234", "1{,}234"},
        {"1234567", "1,234,567"},
        {"10080", "10,\\!080"},
        {"1000000.5", "$1,000,000.50"},
        {"-5", "-\\$5"},
        {".4", "0.4"},
        {"50\\%", "50"},
        {"50%", "50 percent"},
        {"12 cm", "12"},
        {"15\\mbox{ cm}^2", "15"},
        {"90^\\circ", "90"},
        {"90°", "90^{\\circ}"},
        {"3 hours", "3"},
        {"5.4 \\text{ cents}", "5.4"},
        {"$\\frac{1}{2}$", "0.5"},
        {"\\frac12", "1/2"},
        {"\\dfrac{3}{4}", "\\tfrac34"},
        {"\\frac 59", "5/9"},
        {"\\frac9{19}", "9/19"},
        {"-\\frac{1}{2}", "\\frac{-1}{2}"},
        {"-\\frac{1}{2}", "\\frac{1}{-2}"},
        {"6/8", "3/4"},
        {"1\\frac{4}{5}", "9/5"},
        {"137 \\frac{1}{2}", "137.5"},
        {"1 1/2", "1.5"},
        {"2^{10}", "1024"},
        {"2^10", "1024"},
        {"10!", "3628800"},
        {"\\binom{5}{2}", "10"},
        {"3.21", "321/100"},
        {"\\sqrt{8}", "2\\sqrt{2}"},
        {"\\sqrt2", "\\sqrt{2}"},
        {"\\sqrt[3]{27}", "3"},
        {"\\sqrt[3]{-8}", "-2"},
        {"\\frac{1}{\\sqrt{3}}", "\\frac{\\sqrt{3}}{3}"},
        {"\\sqrt{5+2\\sqrt6}", "\\sqrt2+\\sqrt3"},
        {"8^{1/3}", "2"},
        {"12\\pi", "\\pi \\cdot 12"},
        {"\\frac{\\pi}{4}", "\\pi/4"},
        {"π", "\\pi"},
        {"18+2\\pi", "2(9+\\pi)"},
        {"e^{i\\pi}", "-1"},
        {"\\ln e^2", "2"},
        {"\\log_2 8", "3"},
        {"\\log 100", "2"},
        {"\\sin(\\frac{\\pi}{6})", "1/2"},
        {"\\tan 0", "0"},
        {"6 - 5i", "-5i+6"},
        {"(1+i)^2", "2i"},
        {"|-3|", "3"},
        {"2-2p", "-2p+2"},
        {"(x+1)^2", "x^2+2x+1"},
        {"x(x-1)", "x^2-x"},
        {"(a+5)(b+2)", "ab+2a+5b+10"},
        {"\\frac{x^2-1}{x-1}", "x+1"},
        {"\\frac{11+9a}{20}", "0.05(9a+11)"},
        {"3R^2", "3 \\cdot R \\cdot R"},
        {"2 \\sin b \\cos a", "\\sin(a+b)-\\sin(a-b)"},
        {"\\cot x", "1/\\tan x"},
        {"\\tan^2 y+1", "\\sec^2 y"},
        {"2^{n+1}", "2 \\cdot 2^n"},
        {"x_1+x_2", "x_{2}+x_{1}"},
        {"5x/2", "2.5x"},
        {"x=5", "5"},
        {"5 = x", "x = 5"},
        {"f(x)=2x", "2x"},
        {"y = 2x + 3", "2x - y + 3 = 0"},
        {"2x+4y-3=0", "y=-\\frac12x+\\frac34"},
        {"5x-7y+11z+4=0", "-5x+7y-11z-4=0"},
        {"x=1+1=2", "2"},
        {"x \\approx 3", "3"},
        {"(x,y)=(1,2)", "(1,2)"},
        {"x \\geq 5", "5 \\leq x"},
        {"x<1", "-x>-1"},
        {"x != 3", "x \\neq 3"},
        {"x \\in [-2,7]", "-2 \\le x \\le 7"},
        {"x>2", "(2,\\infty)"},
        {"(-\\infty,2)\\cup(3,\\infty)", "(3,\\infty)\\cup(-\\infty,2)"},
        {"1\\le|z|\\le 2", "[-2,-1]\\cup[1,2]"},
        {"x^2<4", "(-2,2)"},
        {"[0, 1)", "\\left[0,1\\right)"},
        {"(-\\sqrt{3}, \\sqrt{3})", "(-3^{1/2},3^{1/2})"},
        {"(3, \\frac{\\pi}{2})", "\\left( 3, \\pi/2 \\right)"},
        {"(6,31,-1)", "(6, 31, -1.0)"},
        {"1,-2", "-2,1"},
        {"3, 5, 7", "7, 3 and 5"},
        {"\\{1,2\\}", "\\{2,1\\}"},
        {"\\{1,1,2\\}", "\\{2,1\\}"},
        {"1 or 2", "1,2"},
        {"1;2;3", "\\{3,2,1\\}"},
        {"\\{1,2\\}", "1,2"},
        {"x=1, y=2", "1, 2"},
        {"1 \\pm \\sqrt{19}", "1-\\sqrt{19}, 1+\\sqrt{19}"},
        {"\\pm 2", "-2, 2"},
        {"\\{1\\pm\\sqrt{5},-2\\}", "-2, 1+\\sqrt5, 1-\\sqrt5"},
        {"3 \\pm 2 \\sqrt{2}", "3 \\mp 2\\sqrt2"},
        {"(1,2),(3,4)", "(3,4),(1,2)"},
        {"p=5,q=2;p=7,q=2", "(5,2),(7,2)"},
        {"\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\\\\\end{bmatrix}"},
        {"\\begin{pmatrix} 1/5 & 0 \\\\ x & 1 \\end{pmatrix}", "\\begin{array}{cc}0.2&0\\\\x&1\\end{array}"},
        {"\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}\\begin{pmatrix}1\\\\1\\end{pmatrix}",
         "\\begin{pmatrix}3\\\\7\\end{pmatrix}"},
        {"52_8", "52_{8}"},
        {"4210_{5}", "4210"},
        {"7:32", "7/32"},
        {"1:0.5", "2"},
        {"6:00", "6:00"},
        {"1:03", "1:03 PM"},
        {"\\text{east}", "east"},
        {"\\text{(C)}", "C"},
        {"(B)", "\\textbf{(B)}"},
        {"\\text{Even}", "even"},
        {"\\text{not enough information}", "not enough information"},
        {"\\emptyset", "\\emptyset"},
        {"\\mathbb{R}", "\\mathbb{R}"},
        {"\\infty", "\\infty"},
        {"-\\infty", "-\\infty"},
        {"f(2)<f(1)", "f(2) < f(1)"},
        {"\\\\frac{1}{2}", "\\frac{1}{2}"},
        {"\\frac83", "2.6667"},
        {"\\pi", "3.1416"},
        {"1e", "e"},
        {"\\textbf{41}", "41"},
        {"**41**", "41"},
        {"\\text{1,700}", "1700"},
        {"1.5e-4", "0.00015"},
        {"5e-05", "0.00005"},
        {"£5", "5"},
        {"= 5", "5"},
        {"10 km/h", "10"},
        {"\\boxed 7", "7"},
        {"(n-2) 2^{n}+1", "1+2^n (n-2)"},
        {"\\lfloor x\\rfloor", "\\lfloor x \\rfloor"},
        {"0.\\overline{3}", "1/3"},
        {"\\cos 60^\\circ", "1/2"},
        {"\\sin(30^\\circ)", "0.5"},
        {"50\\%", "0.5"},
        {"3\\text{ million}", "3000000"},
        {"€5", "\\$5"},
        {"10\\text{ m/s}", "10"},
        {"10 m/s", "10"},
        {"5 \\text{ miles per hour}", "5"},
        {"12 eggs", "12"},
        {"n2^{n-1}", "n \\cdot 2^{n-1}"},
        {"2xyz", "2zyx"},
        {"ab", "a \\cdot b"},
        {"\\mathbb{R}", "(-\\infty,\\infty)"},
        {"\\emptyset", "\\varnothing"},
        {"x<2\\text{ or }x>3", "(-\\infty,2)\\cup(3,\\infty)"},
        {"x\\in\\{1,2\\}", "1,2"},
        {"\\frac{n!}{(n-2)!}", "n(n-1)"},
        {"\\binom{n}{2}", "\\frac{n(n-1)}{2}"},
        {"\\arctan 1", "\\frac{\\pi}{4}"},
        {"\\tan^{-1} 1", "\\frac{\\pi}{4}"},
        {"0.1\\overline{6}", "\\frac16"},
        {"α", "\\alpha"},
        {"x^{-1}", "\\frac1x"},
        {"\\sqrt[4]{16}", "2"},
        {"\\log_{2}8", "3"},
        {"2 + 3 = 5", "5"},
        {"\\text{Area}=50\\pi", "50\\pi"},
        {"Area = 5", "5"},
        {"-1\\frac12", "-1.5"},
        {"No", "\\text{no}"},
        {"yes", "Yes"},
        {"1.5\\times10^{-4}", "0.00015"},
        {"\\frac{3}{4}\\text{ cup}", "0.75"},
        {"\\lceil 2.5 \\rceil", "3"},
        {"1{,}234{,}567", "1234567"},
        {"x=1,y=2", "y=2,x=1"},
        {"90^{\\circ}", "90"},
        {"\\mathbb{R}\\setminus\\{0\\}", "(-\\infty,0)\\cup(0,\\infty)"},
        {"[0,1]\\cup[1,2]", "[0,2]"},
        {"\\left\\{1,2\\right\\}", "\\{2, 1\\}"},
        {"5\\%", "\\frac{1}{20}"},
        {"\\$1{,}000", "1000"},
        {"2\\cdot10^{3}", "2000"},
        {"\\begin{pmatrix}1&2\\end{pmatrix}+\\begin{pmatrix}1&1\\end{pmatrix}", "\\begin{pmatrix}2&3\\end{pmatrix}"},
        {"e^{2000}", "e^{1000}e^{1000}"},
        {"\\dfrac{1}{2}x", "0.5x"},
        {"\\frac{x}{2}", "x/2"},
        {"100\\text{ square feet}", "100"},
        {"\\overline{AB}", "\\overline{AB}"},
        {"\\textbf{(C)}", "C"},
        {"72 \\text{ dollars}", "\\$72"},
        {"{1,2}", "1,2"},
        {"3 \\cdot 10^8 \\text{ m/s}", "3 \\times 10^8"},
        {"\\frac{1+\\sqrt{5}}{2}", "\\frac{\\sqrt5+1}{2}"},
        {"y=-\\frac{1}{2}x+3", "x+2y=6"},
        {"x\\in\\{1,2\\}", "\\{2,1\\}"},
        {"27,54,108,135", "135, 27, 54, 108"},
        {"f(1,2)=1,234", "1234"},
        {"11, \\! 111, \\! 100", "11111100"},
        {"\\frac{1}{LCs^{2}+RCs+1}", "\\frac{1}{RsC + s^2LC + 1}"},
        {"MRS_{S,C} = \\frac23", "\\frac23"},
        {"15000 \\text{ kcal m}^{-2} \\text{ yr}^{-1}", "15000"},
        {"12^{\\mathrm{th}} \\text{ grade}", "12"},
        {"12th", "12"},
        {"40\\text{ points}", "40"},
        {"18\\text{ ways.}", "18"},
        {"9\\text{ a.m.}", "9\\text{ am}"},
        {"\\text{4:30 p.m.}", "4:30"},
        {"\\text{June 20}", "\\text{june 20}"},
        {"\\frac{\\dot x_0 \\sin \\omega t}{\\omega}", "\\dot{x}_{0}\\sin(\\omega t)/\\omega"},
        {"SRMC=LRMC", "SRMC = LRMC"},
        {"10^{3},10", "(x, y) = (1000, 10)"},
        {"x>2 \\text{ and } x<5", "(2,5)"},
        {"|x-2|<3", "(-1,5)"},
        {"x^3<8", "(-\\infty,2)"},
        {"2x=5", "4x=10"},
        {"0.66667e-6", "\\frac23 \\times 10^{-6}"},
        {"-221_3", "-221_{3}"},
        {"72\\text{ times}", "72"},
        {"10\\,000", "10000"},
        {"{\\bf 72};", "72"},
        {"10\\text{ F}", "10"},
        {"0<f(x)<1", "(0,1)"},
    };
    for (const auto& [a, b] : pairs) {
        CHECK_MESSAGE(same(a, b), a, "   ", b);
        CHECK_MESSAGE(same(b, a), b, "   ", a);
        CHECK_MESSAGE(same(a, a), a);
    }
}

TEST_CASE("mathematics: what is not equal, or not an answer") {
    const std::pair<string, string> pairs[] = {
        {"72", "73"},
        {"72", "-72"},
        {"12", "1,2"},
        {"1234", "1, 234"},
        {"1/3", "0.333"},
        {"\\sqrt{2}", "1.414"},
        {"\\pi", "22/7"},
        {"3", "3.0001"},
        {"0.12345", "0.12346"},
        {"1/2", "2"},
        {"\\frac{1}{2}", "\\frac{2}{1}"},
        {"x^2", "x^3"},
        {"x", "y"},
        {"x+1", "x"},
        {"2x", "x"},
        {"(x+1)^2", "x^2+1"},
        {"2^{n}", "n^2"},
        {"\\sin x", "\\cos x"},
        {"i", "1"},
        {"5i", "5"},
        {"1\\sqrt{19}", "1"},
        {"(1,2)", "(2,1)"},
        {"(1,2)", "[1,2]"},
        {"[0,1)", "[0,1]"},
        {"(1,2,3)", "(1,2)"},
        {"\\{1,2\\}", "\\{1,3\\}"},
        {"\\{1,2\\}", "\\{1\\}"},
        {"1,2", "1,2,3"},
        {"(1,3)", "\\{3,1\\}"},
        {"\\{1,2\\}", "3"},
        {"1 \\pm 2", "3"},
        {"x=5", "x=6"},
        {"x=5", "6"},
        {"7 = 11a+c", "11a+c"},
        {"a+3z=0", "0"},
        {"y=2x+3", "y=2x+4"},
        {"y=2x+3", "x=2y+3"},
        {"x+y=1", "x-y=1"},
        {"x>5", "x<5"},
        {"x>5", "x\\ge5"},
        {"x<1", "x>-1"},
        {"x^2<5", "x^2<4.9"},
        {"(2,\\infty)", "[2,\\infty)"},
        {"(0,9)\\cup(9,36)", "(0,36)"},
        {"-1<x<1", "x<1"},
        {"\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}"},
        {"\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"},
        {"\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(1,2)"},
        {"52_8", "52_9"},
        {"6:00", "6:30"},
        {"1/3", "1:03 PM"},
        {"9:05", "9/5"},
        {"\\text{east}", "west"},
        {"\\text{(C)}", "D"},
        {"east", "5"},
        {"d", "\\text{E}"},
        {"\\infty", "-\\infty"},
        {"10^{20}", "10^{20}+1"},
        {"1/0", "2/0"},
        {"0", "0/0"},
        {"9^9^9^9", "9^9^9^9+1"},
        {"100!", "100!+1"},
        {"2^{61}", "1"},
        {"1/2^{99}", "1/2^{38}"},
        {"|x|", "x"},
        {"x=1, y=2", "x=2, y=1"},
        {"x=1, y=2", "2, 1"},
        {"3 million", "3"},
        {"2\\mathrm{e}", "2"},
        {"3+4\\mathrm{i}", "7"},
        {"f(0)", "0"},
        {"[1,3]", "\\{1,3\\}"},
        {"\\sqrt2", "\\sqrt2+10^{-12}"},
        {"1,234", "1, 234"},
        {"\\sqrt{x}+1", "\\sqrt{x+1}"},
        {"2^{n}+1", "2^{n+1}"},
        {"11/2", "1 1/2"},
        {"VI", "IV"},
        {"on", "no"},
        {"72\\text{ or 73}", "72"},
        {"72\\text{ or 73}", "73"},
        {"10^{400}", "10^{400}+1"},
        {"10^{400}", "0"},
        {"3 thousand", "3"},
        {"3\\text{ dozen}", "3"},
        {"2xyz", "2"},
        {"2α", "2"},
        {"3万", "3"},
        {"g(0)", "0"},
        {"P(0)", "0"},
        {"f(1)", "f"},
        {"x=5", "y=5"},
        {"x>2", "y>2"},
        {"\\lfloor x\\rfloor", "x"},
        {"\\lceil x\\rceil-1", "\\lfloor x\\rfloor"},
        {"\\max(x,0)", "x"},
        {"\\max(x,y)", "x"},
        {"\\sqrt{x^2}", "x"},
        {"\\ln(x^2)", "2\\ln x"},
        {"5 cm", "5 km"},
        {"15\\mbox{ cm}^2", "15\\mbox{ cm}^3"},
        {"(0,\\sqrt2)", "(0,\\sqrt2+10^{-12})"},
        {"0<x<\\sqrt2", "0<x<\\sqrt2+10^{-12}"},
        {"1/10^6", "0.0000"},
        {"e^{2000}", "e^{2000}+1"},
        {"1000!", "1000!+1"},
        {"2^{100000}", "2^{100000}+1"},
        {"72\xe2\x80\x8b""3", "72"},
        {"7\xe2\x80\x8b""2", "72"},
        {"east\xe2\x80\x8b""", "east"},
        {"\\{1,2\\}", "[1,2]"},
        {"AB", "BA"},
        {"1 2", "12"},
        {"2e-1", "0.2"},
        {"\\frac{1}{2}", "1/20"},
        {"5\\%", "0.5"},
        {"50\\%", "5"},
        {"3 squared", "3"},
        {"2\\pi", "2"},
        {"2 pi", "2"},
        {"x^2", "|x|^2x"},
        {"\\sin x", "\\sin(-x)"},
        {"\\cos x", "\\sin x"},
        {"a=1,b=2", "a=2,b=1"},
        {"(x,y)=(1,2)", "(x,y)=(2,1)"},
        {"x\\in(1,2)", "y\\in(1,2)"},
        {"7 or 8", "7"},
        {"1 \\pm 2 \\mp 3", "1 \\pm 2 \\pm 3"},
        {"\\tan^{-1} x", "1/\\tan x"},
        {"10 m/s", "10 km/h"},
        {"x!", "x"},
        {"\\frac{n!}{(n-2)!}", "n^2"},
        {"\\begin{pmatrix}1&1\\\\1&1\\end{pmatrix}^2", "\\begin{pmatrix}1&1\\\\1&1\\end{pmatrix}"},
        {"\\sum_{k=1}^n k", "\\sum_{k=1}^{n+1} k"},
        {"3 quarters", "3"},
        {"1\\text{ and }2", "1"},
        {"(-1)^n", "1"},
        {"i^2", "1"},
        {"12:00", "1:00"},
        {"9", "2x=5"},
        {"5", "2x=10"},
        {"2x=5", "3x=7"},
        {"\\{5\\}", "3x=16"},
        {"\\frac13,1,9", "d(3/5)=1, d(5/8)=1, d(7/18)=3"},
        {"x^3<5", "x^3<5.1"},
        {"x^2<1000", "\\mathbb{R}"},
        {"x^2=4", "2"},
        {"(6,3),(9,3)", "(0,0)"},
        {"(6,3),(9,3),(9,5)", "(6,3),(9,3)"},
        {"(2,1),(4,3)", "(6,5),(8,7)"},
        {"x>2 \\text{ or } x<5", "(2,5)"},
        {"|x-2|<3", "(-1,4)"},
        {"\\{(1,2)\\}", "\\{1,2\\}"},
        {"50\\%", "5000\\%"},
        {"|x-1|>0", "\\mathbb{R}"},
        {"|x-2|\\le0", "\\emptyset"},
        {"ix<1", "x<-i"},
        {"72", "72\\text{ x}"},
        {"72", "72\\text{ less}"},
        {"2.7778e-6", "1.34 \\times 10^{-7}"},
        {"2.7778e-6", "3.39 \\times 10^{-6}"},
        {"f(2)<f(1)<f(4)", "f(9)<f(1)<f(4)"},
        {"f(x)=1", "f(y)=1"},
        {"-221_3", "-221_6"},
        {"111, \\! 111", "111"},
        {"9\\text{ a.m.}", "9\\text{ p.m.}"},
        {"\\text{June 20}", "\\text{June 21}"},
        {"\\dot{x}", "x"},
        {"A^{\\text{T}}", "A"},
        {"3\\text{ thirds}", "3"},
    };
    for (const auto& [a, b] : pairs) {
        CHECK_MESSAGE(!same(a, b), a, "   ", b);
        CHECK_MESSAGE(!same(b, a), b, "   ", a);
    }
    const string deep = string(2000, '('), nested = string(500, '{') + "1" + string(500, '}');
    for (const string& bad : {string(""),
                              string(" "),
                              string("$$"),
                              string("\\frac{1}"),
                              string("\\frac{"),
                              string("1+"),
                              string("*2"),
                              string("72 73"),
                              string("72 not 73"),
                              string("2 x 3 4"),
                              string("(1"),
                              string("1)"),
                              string("[1,2"),
                              string("{1,2"),
                              string("x2"),
                              string("\\unknown{1}"),
                              string("|1"),
                              string("1//2"),
                              string("\\begin{pmatrix}1&2\\\\3\\end{pmatrix}"),
                              string("="),
                              string("x="),
                              deep,
                              nested,
                              string(5000, '1'),
                              string("\xff\xfe"),
                              string("\x01\x02\x03"),
                              string("1\0002", 3)})
        CHECK_MESSAGE(!same(bad, bad == "\xff\xfe" ? "1" : bad + "1"), bad.substr(0, 60));
    for (const char* costly :
         {"9^9^9^9", "9**9**9**9", "100000!", "2^{999999}", "((((2^{99})^{99})^{99})^{99})^{99}",
          "\\binom{1000}{500}", "\\sqrt[1000]{2}", "1000!!!!!"})
        same(costly, costly);
}

TEST_CASE("mathematics: hostile answers take no longer than others") {
    const auto many = [](int count, const string& piece) {
        string text;
        for (int i = 0; i < count; ++i) text += piece;
        return text;
    };
    const string matrix = "\\begin{pmatrix}1&1\\\\1&1\\end{pmatrix}";
    const string eight = "\\begin{pmatrix}" + many(8, "x&x&x&x&x&x&x&x\\\\") + "\\end{pmatrix}";
    for (const string& costly : std::vector<string>
         {many(34, matrix), many(100, matrix), many(200, "(x+1)"), many(200, "\\sin x "),
          many(60, "(x^{99}+1)^{99}"), "(((x^{20000})^{20000})^{20000})", many(500, "7!"), many(300, "999!"),
          many(64, "\\{1,2\\},"), many(64, "\\sqrt{7},") + "1", "\\sin(e^{e^{20}})", "e^{e^{e^{e^{e}}}}",
          "\\binom{x}{2999}", "1e9999", many(40, "9^"), many(99, "2^{99}"), "\\cos(10^{9999})",
          many(50, "\\binom{2999}{1500}+"), many(6, eight), many(100, "7^{0.123}*"), many(150, "1e9999+"), many(1000, "("),
          many(150, "\\frac1{"), many(30, "\\sqrt{x+"), many(39, "|"), many(1000, "x+1/")}) {
        const std::clock_t begin = std::clock();
        for (const string& other : {costly + "1", costly + "2", matrix, string("x")}) same(costly, other);
        CHECK_MESSAGE(std::clock() - begin < CLOCKS_PER_SEC, costly.substr(0, 60));
    }
    for (const string& piece : std::vector<string>{"\\boxed{", "\\boxed{1}", "\\boxed{1} and ", "\\boxed", "{", "}", "\\boxed{\\boxed{1}}"}) {
        const string text = many(static_cast<int>((1 << 20) / piece.size()), piece);
        const std::clock_t begin = std::clock();
        last_boxed(text);
        CHECK_MESSAGE(std::clock() - begin < CLOCKS_PER_SEC, piece);
    }
}

namespace {

/// Answers whose every digit, sign, bracket and variable counts.
string made_gold(std::mt19937& random) {
    const char* shapes[] = {"A", "-A.B", "\\frac{A}{B}", "A\\sqrt{B}", "Ax^B+Cx-D", "(A,B)", "[A,-B)", "\\{A,B,C\\}",
                            "x=A", "x>A", "A^{B}", "A-Bi", "(x-A)(y+B)", "A\\pi-B", "A, B", "x=A, y=B", "\\frac{Ax}{B+y}",
                            "\\begin{pmatrix}A&B\\\\-C&D\\end{pmatrix}", "(-\\infty,-A]\\cup(B,\\infty)", "y=Ax+B", "\\sqrt[3]{A}+B",
                            "\\log_{A}B", "A\\sin x-B", "|x-A|", "A\\%", "A_B", "\\pm A", "A!+B", "2^{x+A}-B", "n^A+\\frac{1}{B}"};
    string text = shapes[random() % std::size(shapes)];
    std::set<string> used;  // numbers that differ, from 2 on, so that none is redundant
    string gold;
    for (char c : text) {
        if (c < 'A' || c > 'D') {
            gold += c;
            continue;
        }
        string number;
        do number = std::to_string(2 + random() % 60);
        while (!used.insert(number).second);
        gold += number;
    }
    return gold;
}

/// One digit, sign, bracket, variable or exponent of `gold` changed; nothing if it has none there.
string near_miss(const string& gold, std::mt19937& random) {
    string text = gold;
    const std::size_t at = random() % text.size();
    const char before = at > 0 ? text[at - 1] : '\0', c = text[at], after = at + 1 < text.size() ? text[at + 1] : '\0';
    const auto letter = [](char x) { return (x >= 'a' && x <= 'z') || (x >= 'A' && x <= 'Z') || x == '\\'; };
    const auto digit = [](char x) { return x >= '0' && x <= '9'; };
    if (digit(c))
        text[at] = static_cast<char>('1' + (c - '1' + 1 + static_cast<int>(random() % 8)) % 9);
    else if (c == '+' || (c == '-' && at > 0))
        text[at] = c == '+' ? '-' : '+';
    else if ((c == '(' || c == '[') && at == 0 && text.find(',') != string::npos)
        text[at] = c == '(' ? '[' : '(';
    else if ((c == ')' || c == ']') && !after && text.find(',') != string::npos)
        text[at] = c == ')' ? ']' : ')';
    else if (letter(c) && c != '\\' && !letter(before) && !letter(after))
        text[at] = c == 'z' ? 'w' : static_cast<char>(c + 1);
    else if (at == 0)
        text = c == '-' ? text.substr(1) : digit(c) ? "-" + text : text;
    return text == gold ? "" : text;
}

}  // namespace

TEST_CASE("mathematics: of near misses, one character off, none is paid") {
    std::mt19937 random(3);
    std::vector<string> golds;
    for (int i = 0; i < 1000; ++i) golds.push_back(made_gold(random));
    if (const auto root = fixtures())
        for (const string& gold : gold_answers(*root)) golds.push_back(gold);
    int tried = 0;
    while (tried < 2000) {
        const string& gold = golds[tried % 2 ? random() % golds.size() : random() % 1000];
        const string miss = near_miss(gold, random);
        if (miss.empty()) continue;
        CHECK_MESSAGE(same(gold, gold), gold);
        CHECK_MESSAGE(!same(gold, miss), gold, "   ", miss);
        CHECK_MESSAGE(!same(miss, gold), miss, "   ", gold);
        ++tried;
    }
}

TEST_CASE("mathematics: the answer in a text") {
    CHECK(last_boxed("a \\boxed{1} b \\boxed{\\frac{1}{2}} c") == "\\frac{1}{2}");
    CHECK(last_boxed("\\boxed {\\{1\\}}") == "\\{1\\}");
    CHECK(last_boxed("\\boxed 7") == "7");
    CHECK(last_boxed("$\\boxed7$.") == "7");
    CHECK(last_boxed("\\boxed{1 \\boxed{2}}") == "1 \\boxed{2}");
    CHECK(last_boxed("\\boxed{1}, \\boxed{2}") == "1, 2");
    CHECK(last_boxed("\\boxed{1}. Wait, \\boxed{2}") == "2");
    CHECK(!last_boxed("\\boxed{72}. Wait, \\boxed{7"));
    CHECK(!last_boxed("\\boxed{1"));
    string boxes;
    for (int i = 0; i < 65; ++i) boxes += "\\boxed{" + std::to_string(i) + "} so ";
    CHECK(last_boxed(boxes) == "64");
    CHECK(!last_boxed("nothing"));
    CHECK(last_boxed("\\boxed{1} and \\boxed{2}") == "1, 2");
}

TEST_CASE("mathematics: every gold answer of the data sets equals itself rewritten, and not its neighbour") {
    const auto root = fixtures();
    if (!root) return;
    const auto all = gold_answers(*root);
    CHECK(all.size() == 7473 + 1319 + 500 + 30);
    int different = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
        const string& gold = all[i];
        const auto answer = MathAnswer::parse(gold);
        REQUIRE_MESSAGE(answer, gold);
        const bool whole = gold.find_first_not_of("0123456789- ") == string::npos;
        // As a solution ends; with LaTeX's other spellings; and with what does not change a value.
        const string solution = "Since $2 + 2 = 4$, it is $\\boxed{" + gold + "}$. $x$ is not asked for.";
        string spelled =
            replaced(replaced(replaced(gold, "\\frac", "\\dfrac"), "(", "\\left("), ")", "\\right)");
        spelled = replaced(replaced(spelled, "+", "\\,+ "), "\\text", "\\mbox");
        const string dressed = whole ? "\\$ " + gold + ".00" : "$ " + gold + " $.";
        for (const string& rewritten : {find_answer(solution), spelled, dressed})
            CHECK_MESSAGE(same(gold, rewritten), gold, "   ", rewritten);
        const string& next = all[(i + 1) % all.size()];
        if (replaced(gold, ",", "") != replaced(next, ",", "") && "x=" + gold != next) {
            CHECK_MESSAGE(!same(gold, next), gold, "   ", next);
            ++different;
        }
    }
    CHECK(different > 8000);
}

TEST_CASE("mathematics: the verdicts of public graders' own tests") {
    const auto root = fixtures();
    if (!root) return;
    // Where we differ, and why.
    const std::pair<string, string> known[] = {
        {"Answer \\( \n 9 \n \\)", "a line break inside \\( \\) does not make 9 another number"},
        {"-2 \\\\le x \\\\le 7", "listed twice, once each way round, with opposite verdicts"},
        {"\\begin{pmatrix}0.33\\\\0.2 \\end{pmatrix}", "1/3 is not 0.33"},
        {"4, 10, -2", "a list of solutions has no order"},
        {"4, .1, 2", "a list of solutions has no order"},
    };
    int agreed = 0, count = 0;
    for (const json& line : lines_of(*root / "grading/math_equivalence.jsonl")) {
        const string gold = line.at("gold"), answer = line.at("pred");
        const auto a = read(gold), b = read(answer);
        ++count;
        if ((a && b && equal(*a, *b)) == line.at("equal").get<bool>()) {
            ++agreed;
            continue;
        }
        const auto found =
            std::ranges::find_if(known, [&](const auto& k) { return answer.find(k.first) != string::npos; });
        CHECK_MESSAGE(found != std::end(known), gold, "   ", answer);
    }
    MESSAGE("agreed: ", agreed, " of ", count);
    CHECK(agreed >= 0.97 * count);
}

TEST_CASE("mathematics: Math-Verify's verdicts, written by tests/golden/grader_agreement.py") {
    const char* path = std::getenv("R1_GRADER_CASES");
    if (!path || !*path) {
        skip("R1_GRADER_CASES is not set");
        return;
    }
    int agreed = 0, count = 0;
    for (const json& line : lines_of(path)) {
        const string gold = line.at("gold"), answer = line.at("answer");
        const bool expected = line.at("equal"), paid = same(gold, answer);
        if (line.contains("miss"))
            CHECK_MESSAGE((expected || !paid), gold, "   ", answer);
        else if (paid != expected)
            MESSAGE(string(paid ? "paid: " : "not paid: "), gold, "   ", answer);
        ++count;
        agreed += paid == expected;
    }
    MESSAGE("agreed: ", agreed, " of ", count);
    CHECK(agreed >= 0.95 * count);
}

TEST_CASE("mathematics: mutated answers are read or refused, and the work is bounded") {
    std::mt19937 random(11);
    const std::vector<string> seeds = {"\\frac{1}{2}",
                                       "\\{1\\pm\\sqrt{5},-2\\}",
                                       "(-\\infty, 2) \\cup (3, \\infty)",
                                       "\\begin{pmatrix} -1/3 \\\\ 2/3 \\end{pmatrix}",
                                       "x^8+x^7+1",
                                       "10,\\!080",
                                       "137 \\frac{1}{2}",
                                       "\\log_2{8}!",
                                       "2 \\sin b \\cos a",
                                       "y = 2x+3",
                                       "-2 < |x|^3 \\le 7"};
    const string alphabet = "0123456789+-*/^_!|()[]{}<>=,;:.\\ xyi$%&\n\xc3";
    for (int i = 0; i < 20000; ++i) {
        string text = seeds[random() % seeds.size()];
        for (int edits = 1 + static_cast<int>(random() % 8); edits > 0; --edits) {
            const std::size_t at = random() % (text.size() + 1);
            if (random() % 3 == 0)
                text.insert(at, 1, alphabet[random() % alphabet.size()]);
            else if (random() % 2)
                text.erase(at, 1 + random() % 3);
            else
                text.insert(at, seeds[random() % seeds.size()].substr(random() % 5, random() % 12));
        }
        const auto answer = MathAnswer::parse(text);
        if (answer) CHECK_MESSAGE(equal(*answer, *answer), text);
        if (answer) equal(*answer, *MathAnswer::parse(seeds[i % seeds.size()]));
        last_boxed(text);
    }
}
