// SWALR: the rate of stochastic weight averaging; the average itself is optim/averaged_model.hpp.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/schedule/option.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

#if FULMEN_BODIES
#include <algorithm>
#include <cmath>
#include <numbers>
#endif

namespace fulmen {

/// From the rate that is there to swa_lr within anneal_epochs, and then swa_lr: `until(100, StepLR{...}) |
/// SWALR{.swa_lr = 0.05}`.
/// Source: torch.optim.swa_utils.SWALR.
struct SWALR {
  RequiredGroupValues swa_lr;
  std::int64_t anneal_epochs = 10;
  Anneal anneal_strategy = Anneal::cos;

  void begin(std::span<ParamGroup> groups) const;
  void update(std::int64_t t, std::span<ParamGroup> groups) const;

 private:
  double part(std::int64_t step) const;
};

#if FULMEN_BODIES
FULMEN_INLINE void SWALR::begin(std::span<ParamGroup> groups) const {
  swa_lr.check("SWALR::swa_lr", groups.size());
  detail::check_at_least<std::int64_t>("SWALR::anneal_epochs", anneal_epochs, 0);
}

FULMEN_INLINE void SWALR::update(std::int64_t t, std::span<ParamGroup> groups) const {
  const std::int64_t step = anneal_epochs == 0 ? std::max<std::int64_t>(1, t) : t;
  const double before = part(step - 1), now = part(step);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    // The rate from which it started, out of the one it has now.
    const double from = before == 1 ? swa_lr[i] : (groups[i].lr - before * swa_lr[i]) / (1 - before);
    groups[i].lr = swa_lr[i] * now + from * (1 - now);
  }
}

FULMEN_INLINE double SWALR::part(std::int64_t step) const {
  const double t = static_cast<double>(step) / static_cast<double>(std::max<std::int64_t>(1, anneal_epochs));
  const double inside = std::clamp(t, 0.0, 1.0);
  return anneal_strategy == Anneal::linear ? inside : (1 - std::cos(std::numbers::pi * inside)) / 2;
}
#endif

}  // namespace fulmen
