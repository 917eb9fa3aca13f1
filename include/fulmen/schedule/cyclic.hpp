// Schedulers that move the momentum against the rate: CyclicLR and OneCycleLR.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/schedule/option.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#if FULMEN_BODIES
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <string>
#endif

namespace fulmen {

template <class Function>
struct ScaledCyclicLR;

/// Between base_lr and max_lr in straight lines, step_size_up epochs up and step_size_down (the same unless given)
/// down; the momentum the other way round. With mode triangular2 each cycle is half as high as the one before, with
/// exp_range the height is gamma^t. Meant to advance with the steps:
/// `per_step(CyclicLR{.base_lr = 1e-3, .max_lr = 1e-2})`.
/// Source: torch.optim.lr_scheduler.CyclicLR, after arXiv:1506.01186.
struct CyclicLR {
  enum class Mode : std::uint8_t { triangular, triangular2, exp_range };
  enum class ScaleMode : std::uint8_t { cycle, iterations };

  RequiredGroupValues base_lr, max_lr;
  std::int64_t step_size_up = 2000;
  std::optional<std::int64_t> step_size_down{};
  Mode mode = Mode::triangular;
  double gamma = 1.0;
  ScaleMode scale_mode = ScaleMode::cycle;  ///< what a function given to scaled_by is called with
  bool cycle_momentum = true;
  GroupValues base_momentum = 0.8, max_momentum = 0.9;

  /// The same with a height of one's own in place of the mode's: `scale_fn` is called with the number of the cycle,
  /// from 1 on, or with the time, and gives the factor of max_lr - base_lr.
  template <std::invocable<double> Function>
  ScaledCyclicLR<Function> scaled_by(Function scale_fn) const {
    return {*this, std::move(scale_fn)};
  }

  void begin(std::span<ParamGroup> groups) const;
  void update(std::int64_t t, std::span<ParamGroup> groups) const;

  /// Where in which cycle a time is.
  struct Place {
    double cycle, height;
  };
  Place place(std::int64_t t) const;
  void set(std::span<ParamGroup> groups, double height, double scale) const;
};

/// A CyclicLR with a scale_fn: see CyclicLR::scaled_by.
template <class Function>
struct ScaledCyclicLR {
  CyclicLR options;
  Function scale_fn;

  void begin(std::span<ParamGroup> groups) const { options.begin(groups); }
  void update(std::int64_t t, std::span<ParamGroup> groups) const {
    const auto [cycle, height] = options.place(t);
    const double x = options.scale_mode == CyclicLR::ScaleMode::cycle ? cycle : static_cast<double>(t);
    options.set(groups, height, static_cast<double>(scale_fn(x)));
  }
};

/// Up from max_lr / div_factor to max_lr in the first pct_start of all steps, then down to the initial rate /
/// final_div_factor; with three_phase down to the initial rate first, in as many steps as it went up. The momentum
/// goes the other way round. Advances with the steps: `per_step(OneCycleLR{.max_lr = 0.1, .total_steps = 1000})`.
/// @throws std::runtime_error when it is stepped more than total_steps times
/// Source: torch.optim.lr_scheduler.OneCycleLR, after arXiv:1708.07120.
struct OneCycleLR {
  RequiredGroupValues max_lr;
  std::optional<std::int64_t> total_steps{};                ///< or:
  std::optional<std::int64_t> epochs{}, steps_per_epoch{};  ///< whose product it is
  double pct_start = 0.3;
  Anneal anneal_strategy = Anneal::cos;
  bool cycle_momentum = true;
  GroupValues base_momentum = 0.85, max_momentum = 0.95;
  double div_factor = 25.0, final_div_factor = 1e4;
  bool three_phase = false;

  void begin(std::span<ParamGroup> groups) const;

  void update(std::int64_t t, std::span<ParamGroup> groups) const;

 private:
  double anneal(double from, double to, double pct) const;
};

#if FULMEN_BODIES
namespace detail {

/// Checks the options for the momentum, and sets it to its maximum, from which both schedulers start.
inline void begin_momentum(const char* scheduler, const GroupValues& base, const GroupValues& max,
                           std::span<ParamGroup> groups) {
  const bool any =
      std::any_of(groups.begin(), groups.end(), [](const ParamGroup& g) { return g.momentum.has_value(); });
  if (!any) {
    fail<std::invalid_argument>(
        "{}::cycle_momentum is on, expected an optimizer with momentum or betas, such as Adam", scheduler);
  }
  base.check((std::string(scheduler) + "::base_momentum").c_str(), groups.size());
  max.check((std::string(scheduler) + "::max_momentum").c_str(), groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].momentum) groups[i].momentum = max[i];
  }
}

}  // namespace detail

FULMEN_INLINE void CyclicLR::begin(std::span<ParamGroup> groups) const {
  base_lr.check("CyclicLR::base_lr", groups.size());
  max_lr.check("CyclicLR::max_lr", groups.size());
  detail::check_at_least<std::int64_t>("CyclicLR::step_size_up", step_size_up, 1);
  detail::check_at_least<std::int64_t>("CyclicLR::step_size_down", step_size_down.value_or(step_size_up), 0);
  for (std::size_t i = 0; i < groups.size(); ++i) groups[i].lr = base_lr[i];
  if (cycle_momentum) detail::begin_momentum("CyclicLR", base_momentum, max_momentum, groups);
}

FULMEN_INLINE void CyclicLR::update(std::int64_t t, std::span<ParamGroup> groups) const {
  const Place at = place(t);
  const auto scale = [&] {
    switch (mode) {
      case Mode::triangular2:
        return 1 / std::pow(2.0, at.cycle - 1);
      case Mode::exp_range:
        return std::pow(gamma, static_cast<double>(t));
      case Mode::triangular:
        break;
    }
    return 1.0;
  };
  set(groups, at.height, scale());
}

FULMEN_INLINE void CyclicLR::set(std::span<ParamGroup> groups, double height, double scale) const {
  for (std::size_t i = 0; i < groups.size(); ++i) {
    groups[i].lr = base_lr[i] + (max_lr[i] - base_lr[i]) * height * scale;
    if (cycle_momentum && groups[i].momentum) {
      groups[i].momentum = max_momentum[i] - (max_momentum[i] - base_momentum[i]) * height * scale;
    }
  }
}

FULMEN_INLINE CyclicLR::Place CyclicLR::place(std::int64_t t) const {
  const double up = static_cast<double>(step_size_up);
  const double total = up + static_cast<double>(step_size_down.value_or(step_size_up)), ratio = up / total;
  const double cycle = std::floor(1 + static_cast<double>(t) / total);
  const double x = 1.0 + static_cast<double>(t) / total - cycle;
  return {cycle, x <= ratio ? x / ratio : (x - 1) / (ratio - 1)};
}

FULMEN_INLINE void OneCycleLR::begin(std::span<ParamGroup> groups) const {
  if (!total_steps && !(epochs && steps_per_epoch)) {
    fail<std::invalid_argument>("OneCycleLR needs total_steps, or both epochs and steps_per_epoch");
  }
  if (total_steps) {
    detail::check_at_least<std::int64_t>("OneCycleLR::total_steps", *total_steps, 1);
  } else {
    detail::check_at_least<std::int64_t>("OneCycleLR::epochs", *epochs, 1);
    detail::check_at_least<std::int64_t>("OneCycleLR::steps_per_epoch", *steps_per_epoch, 1);
  }
  detail::check_range("OneCycleLR::pct_start", pct_start, 0.0, 1.0);
  max_lr.check("OneCycleLR::max_lr", groups.size());
  for (std::size_t i = 0; i < groups.size(); ++i) groups[i].initial_lr = max_lr[i] / div_factor;
  if (cycle_momentum) detail::begin_momentum("OneCycleLR", base_momentum, max_momentum, groups);
}

FULMEN_INLINE void OneCycleLR::update(std::int64_t t, std::span<ParamGroup> groups) const {
  const std::int64_t total = total_steps ? *total_steps : *epochs * *steps_per_epoch;
  if (t > total) fail("OneCycleLR was stepped {} times, its total_steps is {}", t, total);
  enum Rate : std::size_t { initial, highest, lowest };
  struct Part {
    double end;
    Rate from, to;
    bool momentum_falls, momentum_rises;
  };
  const double steps = static_cast<double>(total), up = pct_start * steps - 1;
  const Part last{steps - 1, three_phase ? initial : highest, lowest, false, !three_phase};
  const std::array<Part, 3> phases{
      Part{up, initial, highest, true, false},
      three_phase ? Part{2 * pct_start * steps - 2, highest, initial, false, true} : last, last};
  const std::size_t count = three_phase ? 3 : 2;
  const double now = static_cast<double>(t);
  std::size_t k = 0;
  while (k + 1 < count && now > phases[k].end) ++k;
  const double begin = k == 0 ? 0.0 : phases[k - 1].end, end = phases[k].end;
  if (end == begin) {
    fail<std::invalid_argument>("OneCycleLR: with pct_start {} of {} steps phase {} has no length", pct_start,
                                total, k + 1);
  }
  const double pct = (now - begin) / (end - begin);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const double first = max_lr[i] / div_factor;
    const std::array<double, 3> rates{first, max_lr[i], first / final_div_factor};
    groups[i].lr = anneal(rates[phases[k].from], rates[phases[k].to], pct);
    if (!cycle_momentum || !groups[i].momentum) continue;
    const double from = phases[k].momentum_rises ? base_momentum[i] : max_momentum[i];
    const double to = phases[k].momentum_falls ? base_momentum[i] : max_momentum[i];
    groups[i].momentum = anneal(from, to, pct);
  }
}

FULMEN_INLINE double OneCycleLR::anneal(double from, double to, double pct) const {
  if (anneal_strategy == Anneal::linear) return (to - from) * pct + from;
  return to + (from - to) / 2.0 * (std::cos(std::numbers::pi * pct) + 1);
}
#endif

}  // namespace fulmen
