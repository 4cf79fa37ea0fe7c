#include "src/run/stop.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace r1 {
namespace {

std::atomic<bool> stop_flag{false};

/// The signals that stop a run.
sigset_t stops() {
    sigset_t set;
    sigemptyset(&set);
    for (int number : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction now {};
        sigaction(number, nullptr, &now);
        if (number != SIGHUP || now.sa_handler != SIG_IGN) sigaddset(&set, number);
    }
    return set;
}

void wait_for_stop(const sigset_t& set) {
    pthread_sigmask(SIG_SETMASK, &set, nullptr);  // this thread is the one that takes the others
    for (int number = 0; sigwait(&set, &number) == 0;) {
        if (stop_flag.exchange(true)) {
            signal(number, SIG_DFL);
            kill(getpid(), number);
            pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
        }
        constexpr char kNote[] =
            "\nstopping after this step, with a checkpoint; a second signal stops at once\n";
        [[maybe_unused]] auto written = ::write(STDERR_FILENO, kNote, sizeof kNote - 1);
    }
}

}  // namespace

void install_stop_handler() {
    const sigset_t set = stops();
    sigset_t blocked;
    sigfillset(&blocked);
    for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS})
        sigdelset(&blocked, number);  // what a thread does to itself
    pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
    std::thread(wait_for_stop, set).detach();
}

bool stop_requested() { return stop_flag; }

}  // namespace r1
