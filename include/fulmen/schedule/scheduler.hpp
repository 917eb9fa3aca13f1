// Learning-rate schedulers: plain values, bound to an optimizer by the Trainer. Thunder's policies.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/error.hpp>
#include <fulmen/none.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <concepts>
#include <cstdint>
#include <map>
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

/// A scheduler that advances with each optimizer step instead of each epoch.
template <SchedulerPolicy S>
struct PerStep : S {};

template <SchedulerPolicy S>
constexpr PerStep<S> per_step(S scheduler) {
  return {std::move(scheduler)};
}

namespace detail {

template <class S>
inline constexpr bool is_per_step = false;
template <class S>
inline constexpr bool is_per_step<PerStep<S>> = true;

template <class S>
struct AllSchedulerPolicies : std::bool_constant<SchedulerPolicy<S>> {};
template <>
struct AllSchedulerPolicies<None> : std::true_type {};
template <class... S>
struct AllSchedulerPolicies<std::tuple<S...>> : std::bool_constant<(SchedulerPolicy<S> && ...)> {};

/// A policy with its clock. It writes to the optimizer it is given; which one that is, the Trainer knows.
template <class S>
class BoundScheduler {
 public:
  static constexpr bool per_step = is_per_step<S>;

  /// Sets the rates of time 0.
  BoundScheduler(S policy, std::vector<ParamGroup>& groups) : policy_(std::move(policy)) { apply(groups); }

  void step(std::vector<ParamGroup>& groups) {
    ++time_;
    apply(groups);
  }

  State state_dict() const {
    State state;
    state.set("last_epoch", time_);
    return state;
  }
  void load_state_dict(const State& state) { time_ = state.get<std::int64_t>("last_epoch"); }

 private:
  void apply(std::vector<ParamGroup>& groups) {
    for (ParamGroup& group : groups) group.lr = static_cast<double>(policy_.rate(time_, group.initial_lr, group.lr));
  }

  S policy_;
  std::int64_t time_ = 0;
};

}  // namespace detail

}  // namespace fulmen
