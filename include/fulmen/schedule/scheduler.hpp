// What a learning-rate scheduler is, when it advances, and how it is bound to an optimizer's parameter groups.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/none.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen {

/// The usual form of a scheduler: `rate(t, initial, current)` is the learning rate of a group from time t on, given
/// its initial rate and the one it has now. Time 0 is when training begins; it advances by 1 each epoch (or step:
/// per_step).
template <class S>
concept RatePolicy = requires(const S& scheduler, std::int64_t t, double rate) {
  { scheduler.rate(t, rate, rate) } -> std::convertible_to<double>;
};

/// The form for a scheduler that needs all groups, or writes their momentum: `update(t, groups)`.
template <class S>
concept GroupsPolicy = requires(S& scheduler, std::int64_t t, std::span<ParamGroup> groups) {
  scheduler.update(t, groups);
};

/// The shortest form: anything callable as `double(std::int64_t t)`. What it returns is the rate, as in Thunder's
/// Schedule; for a factor of the initial rate see LambdaLR.
template <class S>
concept RateFunction = std::is_invocable_r_v<double, const S&, std::int64_t>;

namespace detail {

/// Whether S is made of other schedulers: schedule/compose.hpp.
template <class S>
inline constexpr bool is_composite_scheduler = false;

}  // namespace detail

/// A scheduler policy: one of the three forms above, or several composed (schedule/compose.hpp). It may have, too:
/// - `begin(groups)`: called once when it is bound, before time 0, with a std::span<ParamGroup>: checks options, sets
///   initial rates;
/// - `restart(initial, current)`: the rate with which it takes over in a SequentialLR; without it, that of time 0;
/// - `state_dict()` and `load_state_dict(state)`: what it has to keep besides its time.
template <class S>
concept SchedulerPolicy = std::copy_constructible<S> &&
    (RatePolicy<S> || GroupsPolicy<S> || RateFunction<S> || detail::is_composite_scheduler<S>);

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

/// When a scheduler advances and what it monitors: Lightning's lr_scheduler configuration. Made by per_step,
/// per_epoch and monitoring.
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

std::vector<double> rates_of(std::span<const ParamGroup> groups);

/// `own`, what a policy keeps besides, with its clock and the rates.
State scheduler_state(State own, std::int64_t time, std::span<const ParamGroup> groups);
State scheduler_state(State own, std::int64_t time, const std::vector<double>& base_lrs,
                      std::span<const ParamGroup> groups);
std::int64_t last_epoch_in(const State& state);
/// @throws std::runtime_error if there are not as many as now
std::vector<double> base_lrs_in(const State& state, const std::vector<double>& now);
/// @throws std::invalid_argument if it is below 1
void check_frequency(std::int64_t frequency);

/// A rate that begin(groups) has set is the initial one of a group that no scheduler has had before.
void keep_begun_rates(std::span<const ParamGroup> before, std::span<ParamGroup> groups);

/// Runs the policy's begin(groups) where it has one. A rate set by it is the initial one of a group that no scheduler
/// has had before (`fresh`), unless it sets that, too: what Python's `setdefault("initial_lr", lr)` comes to.
template <class S>
void begin_scheduler(S& policy, std::span<ParamGroup> groups, bool fresh) {
  if constexpr (requires { policy.begin(groups); }) {
    const std::vector<ParamGroup> before(groups.begin(), groups.end());
    policy.begin(groups);
    if (fresh) keep_begun_rates(before, groups);
  }
}

template <class S>
State own_state(const S& policy) {
  if constexpr (requires { policy.state_dict(); }) return policy.state_dict();
  return State("scheduler");
}
template <class S>
void load_own_state(S& policy, const State& state) {
  if constexpr (requires { policy.load_state_dict(state); }) policy.load_state_dict(state);
}

/// A policy with its clock; composite ones are specialisations. Names of the state's keys are Python's. Groups that
/// are added to the optimizer later keep the rate they bring.
template <class S>
class SchedulerNode {
 public:
  explicit SchedulerNode(S policy) : policy_(std::move(policy)) {}

  /// What Python's constructor does, the rates of time 0 included. `fresh`: no other scheduler was there before.
  void bind(std::span<ParamGroup> groups, bool fresh) {
    begin_scheduler(policy_, groups, fresh);
    base_lrs_.clear();
    for (const ParamGroup& group : groups) base_lrs_.push_back(group.initial_lr);
    start(groups);
  }
  void start(std::span<ParamGroup> groups) {
    time_ = 0;
    apply(groups);
  }
  /// Time 0 again, after another scheduler has had the groups.
  void restart(std::span<ParamGroup> groups) {
    time_ = 0;
    if constexpr (requires { policy_.restart(0.0, 0.0); }) {
      for_each(groups,
               [&](ParamGroup& group, double initial) { group.lr = policy_.restart(initial, group.lr); });
    } else {
      apply(groups);
    }
  }
  void step(std::span<ParamGroup> groups) {
    ++time_;
    apply(groups);
  }
  /// Before time 0: as a scheduler whose turn has not come.
  void rewind() { time_ = -1; }

  State state_dict(std::span<const ParamGroup> groups) const {
    return scheduler_state(own_state(policy_), time_, base_lrs_, groups);
  }
  void load_state_dict(const State& state) {
    std::vector<double> base_lrs = base_lrs_in(state, base_lrs_);
    load_own_state(policy_, state);
    base_lrs_ = std::move(base_lrs);
    time_ = last_epoch_in(state);
  }

 private:
  template <class F>
  void for_each(std::span<ParamGroup> groups, F f) {
    const std::size_t count = std::min(groups.size(), base_lrs_.size());
    for (std::size_t i = 0; i < count; ++i) f(groups[i], base_lrs_[i]);
  }
  void apply(std::span<ParamGroup> groups) {
    if constexpr (GroupsPolicy<S>) {
      policy_.update(time_, groups.first(std::min(groups.size(), base_lrs_.size())));
    } else if constexpr (RatePolicy<S>) {
      for_each(groups, [&](ParamGroup& group, double initial) {
        group.lr = static_cast<double>(policy_.rate(time_, initial, group.lr));
      });
    } else {
      for_each(groups, [&](ParamGroup& group, double) {
        group.lr = static_cast<double>(std::as_const(policy_)(time_));
      });
    }
  }

  S policy_;
  std::vector<double> base_lrs_;
  std::int64_t time_ = 0;
};

/// One that follows a logged value.
template <class S>
  requires(!SchedulerPolicy<S>)
class SchedulerNode<S> {
 public:
  explicit SchedulerNode(S policy) : policy_(std::move(policy)) {}

  void bind(std::span<ParamGroup> groups, bool fresh) { begin_scheduler(policy_, groups, fresh); }
  void step(double metric, std::vector<ParamGroup>& groups) {
    ++time_;
    policy_.step(metric, groups);
  }
  State state_dict(std::span<const ParamGroup> groups) const {
    return scheduler_state(own_state(policy_), time_, groups);
  }
  void load_state_dict(const State& state) {
    load_own_state(policy_, state);
    time_ = last_epoch_in(state);
  }

 private:
  S policy_;
  std::int64_t time_ = 0;
};

/// A scheduler with the groups of the optimizer whose rates it sets.
template <class S, Interval When>
class BoundScheduler {
 public:
  static constexpr Interval interval = When;
  static constexpr bool monitors = !SchedulerPolicy<S>;

  /// Sets the rates of time 0. @throws std::invalid_argument naming an option that is out of range
  BoundScheduler(Scheduled<S, When> scheduled, std::vector<ParamGroup>& groups)
      : node_(std::move(scheduled.scheduler)),
        frequency_(scheduled.frequency),
        monitor_(std::move(scheduled.monitor)),
        groups_(&groups) {
    check_frequency(frequency_);
    node_.bind(groups, true);
  }

  /// Advances by one: what the loop calls, and modules that optimise by hand.
  void step() requires(!monitors) { node_.step(*groups_); }
  void step(double metric) requires monitors { node_.step(metric, *groups_); }

  /// The rates of the parameter groups now.
  std::vector<double> get_last_lr() const { return rates_of(*groups_); }
  std::int64_t frequency() const { return frequency_; }
  const std::string& monitor() const { return monitor_; }

  State state_dict() const { return node_.state_dict(*groups_); }
  void load_state_dict(const State& state) { node_.load_state_dict(state); }

 private:
  SchedulerNode<S> node_;
  std::int64_t frequency_;
  std::string monitor_;
  std::vector<ParamGroup>* groups_;
};

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE std::vector<double> rates_of(std::span<const ParamGroup> groups) {
  std::vector<double> rates;
  for (const ParamGroup& group : groups) rates.push_back(group.lr);
  return rates;
}

FULMEN_INLINE State scheduler_state(State own, std::int64_t time, std::span<const ParamGroup> groups) {
  own.set("last_epoch", time).set("_last_lr", rates_of(groups));
  return own;
}

FULMEN_INLINE State scheduler_state(State own, std::int64_t time, const std::vector<double>& base_lrs,
                                    std::span<const ParamGroup> groups) {
  own.set("last_epoch", time).set("base_lrs", base_lrs);
  own.set("_step_count", std::max<std::int64_t>(time + 1, 1)).set("_last_lr", rates_of(groups));
  return own;
}

FULMEN_INLINE std::int64_t last_epoch_in(const State& state) { return state.get<std::int64_t>("last_epoch"); }

FULMEN_INLINE std::vector<double> base_lrs_in(const State& state, const std::vector<double>& now) {
  auto base_lrs = state.get_or<std::vector<double>>("base_lrs", now);
  if (base_lrs.size() != now.size()) {
    fail("state of a scheduler has {} parameter groups, expected {}", base_lrs.size(), now.size());
  }
  return base_lrs;
}

FULMEN_INLINE void check_frequency(std::int64_t frequency) {
  if (frequency < 1) {
    fail<std::invalid_argument>("a scheduler's frequency is {}, expected at least 1", frequency);
  }
}

FULMEN_INLINE void keep_begun_rates(std::span<const ParamGroup> before, std::span<ParamGroup> groups) {
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const bool only_rate = groups[i].lr != before[i].lr && groups[i].initial_lr == before[i].initial_lr;
    if (only_rate) groups[i].initial_lr = groups[i].lr;
  }
}

}  // namespace detail
#endif

}  // namespace fulmen
