// Learning-rate schedulers: plain values, bound to an optimizer by the Trainer. Thunder's policies.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/error.hpp>
#include <fulmen/none.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace fulmen {

/// A scheduler policy: `rate(t, initial, current)` is the learning rate from time t on, given the group's initial rate
/// and the one it has now. Time 0 is when training begins; it advances by 1 each epoch (or each step: see per_step).
template <class S>
concept SchedulerPolicy = std::copy_constructible<S> && requires(const S& scheduler, std::int64_t t, double rate) {
  { scheduler.rate(t, rate, rate) } -> std::convertible_to<double>;
};

/// Thunder's Switch: sets the rate at the given epochs and leaves it alone between them: `Switch{{{5, 1e-4}}}`.
struct Switch {
  std::map<std::int64_t, double> rates;

  double rate(std::int64_t t, double, double current) const {
    const auto found = rates.find(t);
    return found == rates.end() ? current : found->second;
  }
};

/// Thunder's Multiply: multiplies the rate at the given epochs: `Multiply{{{5, 0.1}, {8, 0.1}}}`.
struct Multiply {
  std::map<std::int64_t, double> factors;

  double rate(std::int64_t t, double, double current) const {
    const auto found = factors.find(t);
    return found == factors.end() ? current : current * found->second;
  }
};

/// Thunder's Schedule: the rate is a function of the epoch: `Schedule{[](std::int64_t epoch) { return 1e-3 / (1 + epoch); }}`.
template <std::invocable<std::int64_t> Function>
struct Schedule {
  Function function;

  double rate(std::int64_t t, double, double) const { return static_cast<double>(function(t)); }
};
template <class Function>
Schedule(Function) -> Schedule<Function>;

/// A scheduler that follows a logged value: `step(metric, groups)` changes the groups' rates by itself.
template <class S>
concept MonitoringSchedulerPolicy =
    std::copy_constructible<S> && requires(S& scheduler, double metric, std::vector<ParamGroup>& groups) {
      scheduler.step(metric, groups);
    };

/// What the fourth argument of a Trainer may hold.
template <class S>
concept AnySchedulerPolicy = SchedulerPolicy<S> || MonitoringSchedulerPolicy<S>;

enum class Interval : std::uint8_t { epoch, step };

/// When a scheduler advances and what it monitors: Lightning's lr_scheduler configuration. Made by per_step, per_epoch and
/// monitoring.
template <AnySchedulerPolicy S, Interval When>
struct Scheduled {
  S scheduler;
  std::int64_t frequency = 1;  ///< advance every so many epochs, or batches of an epoch
  std::string monitor{};       ///< for a MonitoringSchedulerPolicy: the name of a logged value
};

/// Advances with the optimizer steps instead of the epochs; with a frequency, at every so many batches of an epoch.
template <AnySchedulerPolicy S>
Scheduled<S, Interval::step> per_step(S scheduler, std::int64_t frequency = 1) {
  return {std::move(scheduler), frequency, {}};
}
/// Advances every so many epochs.
template <AnySchedulerPolicy S>
Scheduled<S, Interval::epoch> per_epoch(S scheduler, std::int64_t frequency = 1) {
  return {std::move(scheduler), frequency, {}};
}
/// Follows a logged value: `monitoring("val/loss", ReduceLROnPlateau{.patience = 3})`.
template <MonitoringSchedulerPolicy S>
Scheduled<S, Interval::epoch> monitoring(std::string name, S scheduler, std::int64_t frequency = 1) {
  return {std::move(scheduler), frequency, std::move(name)};
}

/// A scheduler that brings the optimizer it drives, for a Trainer whose Optimizer is none: see with_optimizer.
template <class Optimizer, class Scheduler>
struct WithOptimizer {
  Optimizer optimizer;
  Scheduler scheduler;
};

/// `Trainer{net, criterion, none, with_optimizer(Adam{}, Switch{...})}`: as ThunderModule takes a scheduler alone.
template <class Optimizer, AnySchedulerPolicy Scheduler>
WithOptimizer<Optimizer, Scheduler> with_optimizer(Optimizer optimizer, Scheduler scheduler) {
  return {std::move(optimizer), std::move(scheduler)};
}

/// Multiplies the rates by `factor` when a monitored value has not become better for more than `patience` epochs.
/// Options, defaults and arithmetic: torch.optim.lr_scheduler.ReduceLROnPlateau. Monitors val/loss unless told otherwise.
struct ReduceLROnPlateau {
  enum class Mode : std::uint8_t { min, max };
  enum class Threshold : std::uint8_t { rel, abs };

  Mode mode = Mode::min;
  double factor = 0.1;
  std::int64_t patience = 10;
  double threshold = 1e-4;
  Threshold threshold_mode = Threshold::rel;
  std::int64_t cooldown = 0;
  double min_lr = 0;
  double eps = 1e-8;

  void step(double metric, std::vector<ParamGroup>& groups) {
    if (better(metric)) {
      best_ = metric;
      bad_epochs_ = 0;
    } else {
      ++bad_epochs_;
    }
    if (cooldown_left_ > 0) {
      --cooldown_left_;
      bad_epochs_ = 0;
    }
    if (bad_epochs_ <= patience) return;
    for (ParamGroup& group : groups) {
      const double lower = std::max(group.lr * factor, min_lr);
      if (group.lr - lower > eps) group.lr = lower;
    }
    cooldown_left_ = cooldown;
    bad_epochs_ = 0;
  }

  State state_dict() const {
    State state("ReduceLROnPlateau");
    state.set("best", best_).set("num_bad_epochs", bad_epochs_).set("cooldown_counter", cooldown_left_);
    return state;
  }
  void load_state_dict(const State& state) {
    best_ = state.get<double>("best");
    bad_epochs_ = state.get<std::int64_t>("num_bad_epochs");
    cooldown_left_ = state.get<std::int64_t>("cooldown_counter");
  }

  // Public only because aggregates have no private members; NaN: nothing seen yet.
  double best_ = std::numeric_limits<double>::quiet_NaN();
  std::int64_t bad_epochs_ = 0, cooldown_left_ = 0;

 private:
  bool better(double metric) const {
    if (std::isnan(best_)) return !std::isnan(metric);
    if (threshold_mode == Threshold::rel) {
      return mode == Mode::min ? metric < best_ * (1 - threshold) : metric > best_ * (1 + threshold);
    }
    return mode == Mode::min ? metric < best_ - threshold : metric > best_ + threshold;
  }
};

namespace detail {

/// A policy alone means: by epoch, each epoch; one that monitors, val/loss.
template <class S>
struct ScheduledOf {
  using type = Scheduled<S, Interval::epoch>;
  static type make(S scheduler) { return {std::move(scheduler), 1, "val/loss"}; }
};
template <class S, Interval When>
struct ScheduledOf<Scheduled<S, When>> {
  using type = Scheduled<S, When>;
  static type make(type scheduled) { return scheduled; }
};

template <class S>
inline constexpr bool is_scheduler = AnySchedulerPolicy<S>;
template <class S, Interval When>
inline constexpr bool is_scheduler<Scheduled<S, When>> = true;

template <class S>
struct AllSchedulerPolicies : std::bool_constant<is_scheduler<S>> {};
template <>
struct AllSchedulerPolicies<None> : std::true_type {};
template <class... S>
struct AllSchedulerPolicies<std::tuple<S...>> : std::bool_constant<(is_scheduler<S> && ...)> {};

/// A policy with its clock and the groups of the optimizer whose rates it sets.
template <class S, Interval When>
class BoundScheduler {
 public:
  static constexpr Interval interval = When;
  static constexpr bool monitors = !SchedulerPolicy<S>;

  /// Sets the rates of time 0.
  BoundScheduler(Scheduled<S, When> scheduled, std::vector<ParamGroup>& groups)
      : scheduled_(std::move(scheduled)), groups_(&groups) {
    if (scheduled_.frequency < 1) {
      fail<std::invalid_argument>("a scheduler's frequency is {}, expected at least 1", scheduled_.frequency);
    }
    if constexpr (!monitors) apply();
  }

  /// Advances by one: what the loop calls, and modules that optimise by hand.
  void step()
    requires(!monitors)
  {
    ++time_;
    apply();
  }
  void step(double metric)
    requires monitors
  {
    ++time_;
    scheduled_.scheduler.step(metric, *groups_);
  }

  std::int64_t frequency() const { return scheduled_.frequency; }
  const std::string& monitor() const { return scheduled_.monitor; }

  State state_dict() const {
    State state("scheduler");
    if constexpr (requires { scheduled_.scheduler.state_dict(); }) state = scheduled_.scheduler.state_dict();
    state.set("last_epoch", time_);
    return state;
  }
  void load_state_dict(const State& state) {
    if constexpr (requires { scheduled_.scheduler.load_state_dict(state); }) scheduled_.scheduler.load_state_dict(state);
    time_ = state.get<std::int64_t>("last_epoch");
  }

 private:
  void apply() {
    for (ParamGroup& group : *groups_) {
      group.lr = static_cast<double>(scheduled_.scheduler.rate(time_, group.initial_lr, group.lr));
    }
  }

  Scheduled<S, When> scheduled_;
  std::vector<ParamGroup>* groups_;
  std::int64_t time_ = 0;
};

}  // namespace detail

}  // namespace fulmen
