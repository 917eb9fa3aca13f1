// Thunder's policies: the rate by epoch, as a table or a function.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/schedule/option.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>

namespace fulmen {

namespace detail {

void set_lr_init(const char* option, const GroupValues& lr_init, std::span<ParamGroup> groups);

}  // namespace detail

/// Sets the rate at the given epochs and leaves it alone between them: `Switch{{{5, 1e-4}}}`. Epochs count from 0, so
/// that an entry for 0 is the rate of the first. Source: thunder.policy.Switch. A table for each group:
/// per_group(Switch{...}, Switch{...}).
struct Switch {
  std::map<std::int64_t, double> rates;
  /// The rate before the first entry. In Thunder 1e-3 unless given; here that of the optimizer.
  GroupValues lr_init{};

  void begin(std::span<ParamGroup> groups) const { detail::set_lr_init("Switch::lr_init", lr_init, groups); }
  double rate(std::int64_t t, double, double current) const {
    const auto found = rates.find(t);
    return found == rates.end() ? current : found->second;
  }
};

/// Multiplies the rate at the given epochs: `Multiply{{{5, 0.1}, {8, 0.1}}}`. Epochs count from 0.
/// Source: thunder.policy.Multiply.
struct Multiply {
  std::map<std::int64_t, double> factors;
  GroupValues lr_init{};  ///< see Switch

  void begin(std::span<ParamGroup> groups) const {
    detail::set_lr_init("Multiply::lr_init", lr_init, groups);
  }
  double rate(std::int64_t t, double, double current) const {
    const auto found = factors.find(t);
    return found == factors.end() ? current : current * found->second;
  }
};

/// The rate is a function of the epoch: `Schedule{[](std::int64_t epoch) { return 1e-3 / (1 + epoch); }}`. The
/// function alone is a scheduler, too. Source: thunder.policy.Schedule.
template <std::invocable<std::int64_t> Function>
struct Schedule {
  Function function;

  double rate(std::int64_t t, double, double) const { return static_cast<double>(function(t)); }
};
template <class Function>
Schedule(Function) -> Schedule<Function>;

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE void set_lr_init(const char* option, const GroupValues& lr_init, std::span<ParamGroup> groups) {
  if (!lr_init.given()) return;
  lr_init.check(option, groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) groups[i].lr = lr_init[i];
}

}  // namespace detail
#endif

}  // namespace fulmen
