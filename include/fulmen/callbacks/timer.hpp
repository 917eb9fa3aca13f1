// Timer: how long training, validation and test take; ends fit after a given time.
#pragma once

#include <fulmen/callbacks/clock.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/schedule/scheduler.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string_view>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <fmt/format.h>

#include <cstdio>
#include <stdexcept>
#include <utility>
#endif

namespace fulmen {

/// How long a Timer lets fit run: no limit, a std::chrono duration, or text in the form DD:HH:MM:SS.
class TimeLimit {
 public:
  TimeLimit() = default;
  template <class Rep, class Period>
  TimeLimit(std::chrono::duration<Rep, Period> time)
      : seconds_(std::chrono::duration<double>(time).count()) {}
  /// @throws std::invalid_argument for text in another form
  TimeLimit(const char* text) : TimeLimit(std::string_view(text)) {}
  TimeLimit(std::string_view text);

  /// Seconds; nothing: no limit.
  const std::optional<double>& seconds() const { return seconds_; }

 private:
  std::optional<double> seconds_{};
};

/// `Timer{.duration = "00:12:00:00"}` ends fit after 12 hours of training, those before a checkpoint was
/// loaded included. (Options::max_time counts from the start of each fit.) Source:
/// lightning.pytorch.callbacks.Timer.
struct Timer {
  TimeLimit duration{};
  Interval interval = Interval::step;  ///< Interval::step: after the batch that is running then;
                                       ///< Interval::epoch: after the epoch
  bool verbose = true;                 ///< a line on stderr when the time is over

  // Seconds; phases are train, validation and test. Points in time are those of std::chrono::steady_clock.
  std::optional<double> start_time(Phase phase = Phase::train) const { return starts_[index(phase)]; }
  std::optional<double> end_time(Phase phase = Phase::train) const { return ends_[index(phase)]; }
  /// From the phase's last start to its end, or to now where it runs still; 0 where it has not run.
  double time_elapsed(Phase phase = Phase::train) const;
  /// Of `duration`; nothing where there is no limit.
  std::optional<double> time_remaining(Phase phase = Phase::train) const;

  void on_train_start(Context& ctx);
  void on_train_batch_end(Context& ctx) {
    if (interval == Interval::step) check(ctx);
  }
  void on_train_epoch_end(Context& ctx) {
    if (interval == Interval::epoch) check(ctx);
  }
  void on_train_end() { ends_[index(Phase::train)] = detail::steady_seconds(); }
  void on_validation_start() { start(Phase::validation); }
  void on_validation_end() { ends_[index(Phase::validation)] = detail::steady_seconds(); }
  void on_test_start() { start(Phase::test); }
  void on_test_end() { ends_[index(Phase::test)] = detail::steady_seconds(); }

  /// Lightning's keys.
  State state_dict() const;
  void load_state_dict(const State& state);

  // Public only because aggregates have no private members.
  std::array<std::optional<double>, 6> starts_{}, ends_{};
  double offset_ = 0;  // seconds of training before the checkpoint that was loaded

 private:
  static std::size_t index(Phase phase) { return static_cast<std::size_t>(phase); }
  void start(Phase phase) {
    starts_[index(phase)] = detail::steady_seconds();
    ends_[index(phase)].reset();
  }
  void check(Context& ctx) {
    if (duration.seconds() && time_elapsed() >= *duration.seconds()) stop(ctx);
  }
  void stop(Context& ctx) const;
};

#if FULMEN_BODIES

FULMEN_INLINE TimeLimit::TimeLimit(std::string_view text) {
  // Two digits and a colon, from the right; the days may have more.
  constexpr std::array<double, 4> units{1, 60, 3600, 86400};
  std::string_view rest = text;
  double total = 0;
  bool good = true;
  for (std::size_t i = 0; good && i < units.size(); ++i) {
    const std::size_t colon = i + 1 < units.size() ? rest.rfind(':') : rest.npos;
    const std::string_view digits = colon == rest.npos ? rest : rest.substr(colon + 1);
    good = !digits.empty() && digits.find_first_not_of("0123456789") == digits.npos &&
           (i + 1 == units.size() || (colon != rest.npos && digits.size() == 2));
    double number = 0;
    for (const char digit : digits) number = number * 10 + (digit - '0');
    total += number * units[i];
    rest = colon == rest.npos ? std::string_view() : rest.substr(0, colon);
  }
  if (!good) fail<std::invalid_argument>("Timer::duration is '{}', expected DD:HH:MM:SS", text);
  seconds_ = total;
}

FULMEN_INLINE double Timer::time_elapsed(Phase phase) const {
  const double before = phase == Phase::train ? offset_ : 0;
  const std::optional<double> start = start_time(phase);
  if (!start) return before;
  return end_time(phase).value_or(detail::steady_seconds()) - *start + before;
}

FULMEN_INLINE std::optional<double> Timer::time_remaining(Phase phase) const {
  if (!duration.seconds()) return std::nullopt;
  return *duration.seconds() - time_elapsed(phase);
}

FULMEN_INLINE void Timer::on_train_start(Context& ctx) {
  start(Phase::train);
  check(ctx);  // the checkpoint may be of a run that had used up its time
}

FULMEN_INLINE void Timer::stop(Context& ctx) const {
  if (verbose && !ctx.should_stop()) {
    fmt::print(stderr, "Timer: the time limit of {} s is reached after {:.0f} s: fit ends\n",
               *duration.seconds(), time_elapsed());
  }
  ctx.request_stop();
}

namespace detail {
inline constexpr std::array<std::pair<const char*, Phase>, 5> timer_keys{
    {{"train", Phase::train},
     {"sanity_check", Phase::sanity_check},
     {"validate", Phase::validation},
     {"test", Phase::test},
     {"predict", Phase::predict}}};
}

FULMEN_INLINE State Timer::state_dict() const {
  State elapsed;
  for (const auto& [name, phase] : detail::timer_keys) elapsed.set(name, time_elapsed(phase));
  return State("Timer").set("time_elapsed", elapsed);
}

FULMEN_INLINE void Timer::load_state_dict(const State& state) {
  offset_ = state.get<State>("time_elapsed").get_or<double>("train", 0);
  // What has run in this process is not added to it.
  starts_ = ends_ = {};
}

#endif

}  // namespace fulmen
