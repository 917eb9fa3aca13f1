// Ctrl-C during a stage: the first one asks the loop to end in order, the second one ends the process.
#pragma once

#include <fulmen/compiled.hpp>

#include <atomic>
#include <csignal>

#if FULMEN_BODIES
#include <unistd.h>
#endif

namespace fulmen::detail {

inline std::atomic<bool> interrupt_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may write lock-free atomics only");

/// Handles SIGINT while it lives; whatever handler there was before is put back.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  static bool requested() { return interrupt_requested.load(std::memory_order_relaxed); }

 private:
  struct sigaction before_{};
};

#if FULMEN_BODIES
extern "C" inline void fulmen_on_sigint(int) {
  if (interrupt_requested.exchange(true)) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
    return;
  }
  constexpr char message[] = "\nCtrl-C: ending in order (press again to kill)\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, message, sizeof message - 1);
}

FULMEN_INLINE InterruptScope::InterruptScope() {
  interrupt_requested = false;
  struct sigaction action{};
  action.sa_handler = &fulmen_on_sigint;
  sigemptyset(&action.sa_mask);
  // System calls go on: a file that is being written is not torn by the signal.
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, &before_);
}

FULMEN_INLINE InterruptScope::~InterruptScope() { ::sigaction(SIGINT, &before_, nullptr); }
#endif

}  // namespace fulmen::detail
