#include "src/rl/reward_program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "src/rl/dataset.h"
#include "src/run/log.h"

namespace r1 {

using nlohmann::json;

namespace {

constexpr double kGrace = 2;                   ///< seconds from SIGTERM to SIGKILL
constexpr std::size_t kLongestLine = 1 << 20;  ///< bytes
constexpr double kLargestReward = 1e15;        ///< so that a sum of squares is a float
constexpr const char* kWanted =
    "a number or {\"reward\": number} is wanted, one line for each response";

}  // namespace

RewardProgram::RewardProgram(std::string command, double seconds)
    : command_(std::move(command)), seconds_(seconds) {
    signal(SIGPIPE, SIG_IGN);  // a program that has ended is an error, not our end
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
        fail("no pipe to the reward program could be made");
    // In a group of its own: Ctrl-C is for the trainer, which ends the program when it is done. And
    // with signals as every program finds them, whatever we do with ours.
    posix_spawnattr_t as;
    posix_spawnattr_init(&as);
    posix_spawnattr_setflags(
        &as, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    sigset_t signals;
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&as, &signals);
    sigfillset(&signals);
    posix_spawnattr_setsigdefault(&as, &signals);
    posix_spawn_file_actions_t streams;
    posix_spawn_file_actions_init(&streams);
    posix_spawn_file_actions_adddup2(&streams, to[0], 0);
    posix_spawn_file_actions_adddup2(&streams, from[1], 1);
    const char* words[] = {"sh", "-c", command_.c_str(), nullptr};
    const int error =
        posix_spawn(&process_, "/bin/sh", &streams, &as, const_cast<char* const*>(words), environ);
    posix_spawn_file_actions_destroy(&streams);
    posix_spawnattr_destroy(&as);
    if (error) fail("--reward-program could not be started: ", std::strerror(error));
    close(to[0]);
    close(from[1]);
    to_ = to[1];
    from_ = from[0];
    fcntl(to_, F_SETFL, O_NONBLOCK);
}

RewardProgram::~RewardProgram() {
    close(to_);
    close(from_);
    kill(-process_, SIGTERM);
    kill(-process_, SIGCONT);  // a stopped one would not hear of it
    bool ended = false;
    for (const Stopwatch clock; !ended && clock.seconds() < kGrace; usleep(10'000))
        ended = waitpid(process_, nullptr, WNOHANG) != 0;
    kill(-process_, SIGKILL);  // what it has started may be there still
    if (!ended) waitpid(process_, nullptr, 0);
}

/// A program that ends closes its output first, so that its exit status may come a moment later.
void RewardProgram::fail_ended(std::size_t answers, std::size_t wanted) const {
    siginfo_t end{};
    for (const Stopwatch clock; end.si_pid == 0 && clock.seconds() < 1; usleep(1000))
        waitid(P_PID, process_, &end, WEXITED | WNOHANG | WNOWAIT);  // the destructor reaps it
    std::string how = "has closed its output",
                advice = "it must answer line after line until its input ends";
    if (end.si_pid != 0 && end.si_code == CLD_EXITED) {
        how = "has ended with exit status " + std::to_string(end.si_status);
        if (end.si_status == 127)
            advice = "there is no such command";
        else if (end.si_status != 0)
            advice = "its own message, if it left one, is above";
    } else if (end.si_pid != 0) {
        how = "was ended by signal " + std::to_string(end.si_status);
    }
    fail("--reward-program: \"", command_, "\" ", how, " after ", answers, " of ", wanted,
         " answers; ", advice);
}

std::vector<double> RewardProgram::grade(std::span<const Response> responses) {
    std::string out, in;
    for (const Response& r : responses) {
        const json line = {{"problem", json::parse(r.problem->source)},
                           {"prompt", r.problem->prompt},
                           {"response", r.text}};
        out += line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    }
    if (pollfd early{from_, POLLIN, 0}; poll(&early, 1, 0) > 0) {
        char byte;
        if (read(from_, &byte, 1) <= 0) fail_ended(0, responses.size());
        fail("--reward-program: \"", command_, "\" wrote before it was asked; ", kWanted);
    }
    // Written and read by turns: a program that answers as it reads must never wait for us while we
    // wait for it.
    const Stopwatch clock;
    std::size_t sent = 0, lines = 0, line_begin = 0;
    while (lines < responses.size()) {
        const double left = seconds_ - clock.seconds();
        if (left <= 0)
            fail(
                "--reward-program: \"", command_, "\" has answered ", lines, " of ",
                responses.size(), " responses in ", seconds_,
                " seconds; does it flush its output after each line (in Python, print(..., flush=True))? "
                "If it needs longer, give it more with --reward-seconds");
        pollfd polls[2] = {{from_, POLLIN, 0}, {sent < out.size() ? to_ : -1, POLLOUT, 0}};
        poll(polls, 2, static_cast<int>(std::ceil(left * 1000)));
        if (polls[1].revents) {
            const auto n =
                write(to_, out.data() + sent, std::min<std::size_t>(out.size() - sent, 1 << 16));
            if (n > 0)
                sent += static_cast<std::size_t>(n);
            else if (errno == EPIPE)
                sent = out.size();  // it reads no more, but may have answered
        }
        if (polls[0].revents) {
            char buffer[1 << 16];
            const auto n = read(from_, buffer, sizeof buffer);
            if (n <= 0) fail_ended(lines, responses.size());
            in.append(buffer, static_cast<std::size_t>(n));
            for (std::size_t end; (end = in.find('\n', line_begin)) != in.npos; ++lines)
                line_begin = end + 1;
            if (in.size() - line_begin > kLongestLine)
                fail("--reward-program: \"", command_, "\" wrote ", kLongestLine,
                     " bytes without an end of line; ", kWanted);
        }
    }
    std::vector<double> rewards;
    std::istringstream answers(in);
    for (std::string line; std::getline(answers, line);) {
        const json answer = json::parse(line, nullptr, false);
        const json reward = answer.is_object() ? answer.value("reward", json()) : answer;
        const bool too_many = rewards.size() == responses.size();
        if (too_many || !reward.is_number() || !(std::abs(reward.get<double>()) <= kLargestReward))
            fail("--reward-program: \"", command_, "\" answered \"", line.substr(0, 80),
                 "\" in line ", rewards.size() + 1, " of a batch of ", responses.size(), "; ",
                 kWanted);
        rewards.push_back(reward.get<double>());
    }
    return rewards;
}

}  // namespace r1
