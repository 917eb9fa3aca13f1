// ReduceLROnPlateau: the scheduler that follows a logged value.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/schedule/option.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#if FULMEN_BODIES
#include <algorithm>
#include <limits>
#include <stdexcept>
#endif

namespace fulmen {

/// Multiplies the rates by `factor` when a monitored value has not become better for more than `patience` epochs. NaN
/// is not better. Options, defaults and arithmetic: torch.optim.lr_scheduler.ReduceLROnPlateau. Monitors val/loss
/// unless told otherwise: `monitoring("val/accuracy", ReduceLROnPlateau{.mode = ReduceLROnPlateau::Mode::max})`.
struct ReduceLROnPlateau {
  enum class Mode : std::uint8_t { min, max };
  enum class Threshold : std::uint8_t { rel, abs };

  Mode mode = Mode::min;
  double factor = 0.1;
  std::int64_t patience = 10;
  double threshold = 1e-4;  ///< how much better: a part of the best value, or an amount
  Threshold threshold_mode = Threshold::rel;
  std::int64_t cooldown = 0;  ///< epochs after a reduction that are not counted as bad
  GroupValues min_lr = 0.0;
  double eps = 1e-8;  ///< reductions smaller than this are not made

  void begin(std::span<ParamGroup> groups) const;

  void step(double metric, std::span<ParamGroup> groups);

  State state_dict() const;
  void load_state_dict(const State& state);

  // Public only because aggregates have no private members.
  std::optional<double> best_{};
  std::int64_t bad_epochs_ = 0, cooldown_left_ = 0;

 private:
  double best() const;
  bool better(double metric) const;
};

#if FULMEN_BODIES
FULMEN_INLINE void ReduceLROnPlateau::begin(std::span<ParamGroup> groups) const {
  if (!(factor < 1)) fail<std::invalid_argument>("ReduceLROnPlateau::factor is {}, expected below 1", factor);
  min_lr.check("ReduceLROnPlateau::min_lr", groups.size());
}

FULMEN_INLINE void ReduceLROnPlateau::step(double metric, std::span<ParamGroup> groups) {
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
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const double lower = std::max(groups[i].lr * factor, min_lr[i]);
    if (groups[i].lr - lower > eps) groups[i].lr = lower;
  }
  cooldown_left_ = cooldown;
  bad_epochs_ = 0;
}

FULMEN_INLINE State ReduceLROnPlateau::state_dict() const {
  State state("ReduceLROnPlateau");
  state.set("best", best()).set("num_bad_epochs", bad_epochs_).set("cooldown_counter", cooldown_left_);
  return state;
}

FULMEN_INLINE void ReduceLROnPlateau::load_state_dict(const State& state) {
  best_ = state.get<double>("best");
  bad_epochs_ = state.get<std::int64_t>("num_bad_epochs");
  cooldown_left_ = state.get<std::int64_t>("cooldown_counter");
}

FULMEN_INLINE double ReduceLROnPlateau::best() const {
  constexpr double worst = std::numeric_limits<double>::infinity();
  return best_.value_or(mode == Mode::min ? worst : -worst);
}

FULMEN_INLINE bool ReduceLROnPlateau::better(double metric) const {
  if (threshold_mode == Threshold::rel) {
    return mode == Mode::min ? metric < best() * (1 - threshold) : metric > best() * (1 + threshold);
  }
  return mode == Mode::min ? metric < best() - threshold : metric > best() + threshold;
}
#endif

}  // namespace fulmen
