// Ctrl-C, SIGTERM and SIGUSR1 during a stage: the first asks the loop to end in order, a second one ends the process.
#pragma once

#include <fulmen/compiled.hpp>

#include <atomic>
#include <csignal>
#include <string>

#if FULMEN_BODIES
#include <unistd.h>
#endif

namespace fulmen::detail {

/// The signal that asks the stage to end; 0: none has.
inline std::atomic<int> interrupt_requested{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may write lock-free atomics only");

/// Handles SIGINT while it lives, and SIGTERM and SIGUSR1 where the program has no handler for them (nor ignores them);
/// what there was before is put back.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  static bool requested() { return interrupt_requested.load(std::memory_order_relaxed) != 0; }
  static int signal() { return interrupt_requested.load(std::memory_order_relaxed); }

 private:
  static constexpr int signals[] = {SIGINT, SIGTERM, SIGUSR1};
  struct sigaction before_[3]{};
};

/// `interrupted by Ctrl-C (SIGINT)`
std::string interruption_text(int signal);

#if FULMEN_BODIES
extern "C" inline void fulmen_on_signal(int signal) {
  const int earlier = interrupt_requested.exchange(signal);
  if (earlier != 0) {
    // SIGUSR1 announces an end (a job's time is up); that it is announced again, or after another signal, is no hurry.
    if (signal == SIGUSR1) {
      interrupt_requested = earlier;
      return;
    }
    std::signal(signal, SIG_DFL);
    std::raise(signal);
    return;
  }
  constexpr char by_hand[] = "\nCtrl-C: ending in order (press again to kill)\n";
  constexpr char term[] = "\nSIGTERM: ending in order (send it again to kill)\n";
  constexpr char user[] = "\nSIGUSR1: ending in order\n";
  [[maybe_unused]] const auto written = signal == SIGINT    ? ::write(STDERR_FILENO, by_hand, sizeof by_hand - 1)
                                        : signal == SIGTERM ? ::write(STDERR_FILENO, term, sizeof term - 1)
                                                            : ::write(STDERR_FILENO, user, sizeof user - 1);
}

FULMEN_INLINE InterruptScope::InterruptScope() {
  interrupt_requested = 0;
  struct sigaction action{};
  action.sa_handler = &fulmen_on_signal;
  sigemptyset(&action.sa_mask);
  // System calls go on: a file that is being written is not torn by the signal.
  action.sa_flags = SA_RESTART;
  for (int i = 0; i < 3; ++i) {
    ::sigaction(signals[i], nullptr, &before_[i]);
    const bool untouched = (before_[i].sa_flags & SA_SIGINFO) == 0 && before_[i].sa_handler == SIG_DFL;
    if (signals[i] == SIGINT || untouched) ::sigaction(signals[i], &action, nullptr);
  }
}

FULMEN_INLINE InterruptScope::~InterruptScope() {
  for (int i = 0; i < 3; ++i) ::sigaction(signals[i], &before_[i], nullptr);
}

FULMEN_INLINE std::string interruption_text(int signal) {
  const char* by = signal == SIGTERM ? "SIGTERM" : signal == SIGUSR1 ? "SIGUSR1" : "Ctrl-C (SIGINT)";
  return std::string("interrupted by ") + by;
}
#endif

}  // namespace fulmen::detail
