// PyTorch's schedulers that compute each group's rate from its own: steps, ramps, decays, cosines. Where PyTorch
// computes a rate from the one before, so do these, so that they agree when chained and to the last bit.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/schedule/option.hpp>

#include <concepts>
#include <cstdint>
#include <span>
#include <vector>

#if FULMEN_BODIES
#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#endif

namespace fulmen {

/// The initial rate times a function of the epoch: `LambdaLR{[](std::int64_t epoch) { return 1.0 / (1 + epoch); }}`.
/// For a function each group: per_group(LambdaLR{f}, LambdaLR{g}). Source: torch.optim.lr_scheduler.LambdaLR.
template <std::invocable<std::int64_t> Function>
struct LambdaLR {
  Function lr_lambda;

  double rate(std::int64_t t, double initial, double) const {
    return initial * static_cast<double>(lr_lambda(t));
  }
};
template <class Function>
LambdaLR(Function) -> LambdaLR<Function>;

/// The rate times a function of the epoch, at each epoch after the first. Source:
/// torch.optim.lr_scheduler.MultiplicativeLR.
template <std::invocable<std::int64_t> Function>
struct MultiplicativeLR {
  Function lr_lambda;

  double rate(std::int64_t t, double, double current) const {
    return t == 0 ? current : current * static_cast<double>(lr_lambda(t));
  }
  double restart(double, double current) const { return current * static_cast<double>(lr_lambda(0)); }
};
template <class Function>
MultiplicativeLR(Function) -> MultiplicativeLR<Function>;

/// Times gamma every step_size epochs: `StepLR{.step_size = 30}`. Source: torch.optim.lr_scheduler.StepLR.
struct StepLR {
  Required<std::int64_t> step_size;
  double gamma = 0.1;

  void begin(std::span<ParamGroup>) const;
  double rate(std::int64_t t, double, double current) const {
    return t == 0 || t % step_size != 0 ? current : current * gamma;
  }
  double restart(double initial, double) const { return initial; }
};

/// Times gamma at each of the milestones: `MultiStepLR{.milestones = {30, 80}}`. A milestone given twice counts
/// twice.
/// Source: torch.optim.lr_scheduler.MultiStepLR.
struct MultiStepLR {
  std::vector<std::int64_t> milestones{};
  double gamma = 0.1;

  double rate(std::int64_t t, double, double current) const;
  double restart(double initial, double) const;
};

/// Times factor for the first total_iters epochs. Source: torch.optim.lr_scheduler.ConstantLR.
struct ConstantLR {
  double factor = 1.0 / 3;
  std::int64_t total_iters = 5;

  void begin(std::span<ParamGroup>) const;
  double rate(std::int64_t t, double, double current) const {
    if (t == 0) return current * factor;
    return t == total_iters ? current * (1.0 / factor) : current;
  }
  double restart(double initial, double) const {
    return initial * (total_iters <= 0 ? factor + (1 - factor) : factor);
  }
};

/// From start_factor to end_factor in equal steps over total_iters epochs: the usual warm-up, see warmup().
/// Source: torch.optim.lr_scheduler.LinearLR.
struct LinearLR {
  double start_factor = 1.0 / 3, end_factor = 1.0;
  std::int64_t total_iters = 5;

  void begin(std::span<ParamGroup>) const;
  double rate(std::int64_t t, double, double current) const;
  double restart(double initial, double) const { return initial * start_factor; }
};

/// Times gamma each epoch: `ExponentialLR{.gamma = 0.95}`. Source: torch.optim.lr_scheduler.ExponentialLR.
struct ExponentialLR {
  Required<double> gamma;

  double rate(std::int64_t t, double, double current) const { return t == 0 ? current : current * gamma; }
  double restart(double initial, double) const { return initial; }
};

/// Down to 0 as a power of what is left of total_iters epochs. Source: torch.optim.lr_scheduler.PolynomialLR.
struct PolynomialLR {
  std::int64_t total_iters = 5;
  double power = 1.0;

  void begin(std::span<ParamGroup>) const;
  double rate(std::int64_t t, double, double current) const;
  double restart(double initial, double) const { return initial; }
};

/// Down to eta_min along half a cosine of T_max epochs, then up again, and so on. Source:
/// torch.optim.lr_scheduler.CosineAnnealingLR, after SGDR (arXiv:1608.03983) without its restarts.
struct CosineAnnealingLR {
  Required<std::int64_t> T_max;
  double eta_min = 0.0;

  void begin(std::span<ParamGroup>) const;
  double rate(std::int64_t t, double initial, double current) const;
  double restart(double initial, double) const { return eta_min + (initial - eta_min) * 2 / 2; }
};

/// Down to eta_min along half a cosine of T_0 epochs, then from the initial rate again, each time for T_mult times as
/// long.
/// Source: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, after SGDR (arXiv:1608.03983).
struct CosineAnnealingWarmRestarts {
  Required<std::int64_t> T_0;
  std::int64_t T_mult = 1;
  double eta_min = 0.0;

  void begin(std::span<ParamGroup>) const;
  double rate(std::int64_t t, double initial, double) const;
};

#if FULMEN_BODIES
FULMEN_INLINE void StepLR::begin(std::span<ParamGroup>) const {
  detail::check_at_least<std::int64_t>("StepLR::step_size", step_size, 1);
}

FULMEN_INLINE void ConstantLR::begin(std::span<ParamGroup>) const {
  // PyTorch accepts 0 and then divides by it when the epochs are over.
  if (!(factor > 0 && factor <= 1)) {
    fail<std::invalid_argument>("ConstantLR::factor is {}, expected above 0 and at most 1", factor);
  }
}

FULMEN_INLINE void LinearLR::begin(std::span<ParamGroup>) const {
  if (!(start_factor > 0 && start_factor <= 1)) {
    fail<std::invalid_argument>("LinearLR::start_factor is {}, expected above 0 and at most 1", start_factor);
  }
  detail::check_range("LinearLR::end_factor", end_factor, 0.0, 1.0);
  detail::check_at_least<std::int64_t>("LinearLR::total_iters", total_iters, 0);
}

FULMEN_INLINE void PolynomialLR::begin(std::span<ParamGroup>) const {
  detail::check_at_least<std::int64_t>("PolynomialLR::total_iters", total_iters, 0);
}

FULMEN_INLINE void CosineAnnealingLR::begin(std::span<ParamGroup>) const {
  detail::check_at_least<std::int64_t>("CosineAnnealingLR::T_max", T_max, 1);
}

FULMEN_INLINE void CosineAnnealingWarmRestarts::begin(std::span<ParamGroup>) const {
  detail::check_at_least<std::int64_t>("CosineAnnealingWarmRestarts::T_0", T_0, 1);
  detail::check_at_least<std::int64_t>("CosineAnnealingWarmRestarts::T_mult", T_mult, 1);
}

FULMEN_INLINE double MultiStepLR::rate(std::int64_t t, double, double current) const {
  const auto count = std::count(milestones.begin(), milestones.end(), t);
  return count == 0 ? current : current * std::pow(gamma, static_cast<double>(count));
}

FULMEN_INLINE double LinearLR::rate(std::int64_t t, double, double current) const {
  if (t == 0) return current * start_factor;
  if (t > total_iters) return current;
  const double range = end_factor - start_factor;
  return current * (1.0 + range / (static_cast<double>(total_iters) * start_factor +
                                   static_cast<double>(t - 1) * range));
}

FULMEN_INLINE double PolynomialLR::rate(std::int64_t t, double, double current) const {
  if (t == 0 || t > total_iters) return current;
  const double total = static_cast<double>(total_iters);
  return current *
         std::pow((1.0 - static_cast<double>(t) / total) / (1.0 - static_cast<double>(t - 1) / total), power);
}

FULMEN_INLINE double CosineAnnealingLR::rate(std::int64_t t, double initial, double current) const {
  constexpr double pi = std::numbers::pi;
  const double period = static_cast<double>(T_max);
  if (t == 0) return current;
  // At the bottom the recursion below would divide by zero.
  if ((t - 1 - T_max) % (2 * T_max) == 0)
    return current + (initial - eta_min) * (1 - std::cos(pi / period)) / 2;
  const double now = 1 + std::cos(pi * static_cast<double>(t) / period);
  const double before = 1 + std::cos(pi * static_cast<double>(t - 1) / period);
  return now / before * (current - eta_min) + eta_min;
}

FULMEN_INLINE double CosineAnnealingWarmRestarts::rate(std::int64_t t, double initial, double) const {
  std::int64_t since = t, period = T_0;
  if (T_mult == 1) {
    since %= period;
  } else {
    for (; since >= period; period *= T_mult) since -= period;
  }
  const double angle = std::numbers::pi * static_cast<double>(since) / static_cast<double>(period);
  return eta_min + (initial - eta_min) * (1 + std::cos(angle)) / 2;
}

FULMEN_INLINE double MultiStepLR::restart(double initial, double) const {
  const auto passed =
      std::count_if(milestones.begin(), milestones.end(), [](std::int64_t m) { return m <= 0; });
  return initial * std::pow(gamma, static_cast<double>(passed));
}
#endif

}  // namespace fulmen
