// Ctrl-C and its kin: a run that is told to stop ends its step and leaves a checkpoint.
#pragma once

namespace r1 {

/// To be called before any thread is started. After it SIGINT, SIGTERM and SIGHUP (a closed
/// terminal; under nohup it stays ignored) only set stop_requested(). A second one ends the process
/// at once.
///
/// No signal interrupts a thread that computes: they are blocked in all but one, which waits for
/// them. oneDNN's generated code uses the stack pointer as one more register for a while, and a
/// signal's frame would be written over whatever it points to.
void install_stop_handler();
bool stop_requested();

}  // namespace r1
