#include "src/rl/reward_program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "src/rl/dataset.h"
#include "src/run/log.h"

namespace r1 {

using nlohmann::json;

RewardProgram::RewardProgram(std::string command, double seconds)
    : command_(std::move(command)), seconds_(seconds) {
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
        fail("no pipe to the reward program could be made");
    process_ = fork();
    if (process_ < 0) fail("the reward program could not be started");
    if (process_ == 0) {
        setpgid(0, 0);  // Ctrl-C is for the trainer, which ends the program when it is done
        dup2(to[0], 0), dup2(from[1], 1);
        execl("/bin/sh", "sh", "-c", command_.c_str(), nullptr);
        _exit(127);
    }
    close(to[0]), close(from[1]);
    to_ = to[1], from_ = from[0];
    fcntl(to_, F_SETFL, O_NONBLOCK);
    signal(SIGPIPE, SIG_IGN);
}

RewardProgram::~RewardProgram() {
    close(to_), close(from_);
    kill(-process_, SIGTERM);
    waitpid(process_, nullptr, 0);
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
    // Written and read by turns: a program that answers as it reads must never wait for us while we
    // wait for it.
    const Stopwatch clock;
    std::size_t sent = 0, lines = 0;
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
        if (polls[1].revents & POLLOUT) {
            const auto n =
                write(to_, out.data() + sent, std::min<std::size_t>(out.size() - sent, 1 << 16));
            if (n > 0) sent += static_cast<std::size_t>(n);
        }
        if (polls[0].revents) {
            char buffer[1 << 16];
            const auto n = read(from_, buffer, sizeof buffer);
            if (n <= 0) fail_ended(lines, responses.size());
            lines += static_cast<std::size_t>(std::count(buffer, buffer + n, '\n'));
            in.append(buffer, static_cast<std::size_t>(n));
        }
    }
    std::vector<double> rewards;
    for (std::size_t begin = 0, end; begin < in.size(); begin = end + 1) {
        end = in.find('\n', begin);
        const std::string line = in.substr(begin, end - begin);
        const json answer = json::parse(line, nullptr, false);
        const json reward = answer.is_object() ? answer.value("reward", json()) : answer;
        if (!reward.is_number() || !std::isfinite(reward.get<double>()) ||
            rewards.size() == responses.size())
            fail("--reward-program: \"", command_, "\" answered \"", line.substr(0, 80),
                 "\"; a number or {\"reward\": number} is wanted, one line for each response");
        rewards.push_back(reward.get<double>());
        if (end == in.npos) break;
    }
    return rewards;
}

}  // namespace r1
