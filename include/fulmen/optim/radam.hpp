// RAdam: Adam whose first steps are plain momentum.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>
#include <cmath>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_reciprocal.h>
#include <ATen/ops/_foreach_sqrt.h>
#endif

namespace fulmen {

/// RAdam (Liu et al., 2020, "On the Variance of the Adaptive Learning Rate and Beyond"). Options, defaults
/// and state: torch.optim.RAdam.
struct RAdam {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0;
  bool decoupled_weight_decay = false;  ///< true: decay as in AdamW
  bool maximize = false;

  static constexpr auto options = std::tuple{option("betas", &RAdam::betas), option("eps", &RAdam::eps),
                                             option("weight_decay", &RAdam::weight_decay),
                                             option("decoupled_weight_decay", &RAdam::decoupled_weight_decay),
                                             option("maximize", &RAdam::maximize)};
  static constexpr std::array state_names = {"exp_avg", "exp_avg_sq"};
  static constexpr std::array counter_names = {"step"};

  struct Scalars {
    bool rectified;  // whether the second moment is known well enough to be used
    double bias_correction1, bias_correction2_sqrt, rectification, weight_kept, weight_added;
  };
  Scalars advance(std::array<double, 1>& counters) const {
    const double step = ++counters[0];
    const double power = std::pow(betas[1], step), longest = 2 / (1 - betas[1]) - 1;
    const double length = longest - 2 * step * power / (1 - power);  // of the moving average, in steps
    const bool rectified = length > 5, decoupled = decoupled_weight_decay;
    const double r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length);
    return {rectified,
            1 - std::pow(betas[0], step),
            std::sqrt(1 - power),
            rectified ? std::sqrt(r) : 0,
            decoupled ? 1 - lr * weight_decay : 1,
            decoupled ? 0 : weight_decay};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars& s) const {
    const auto g = e.grad(maximize, s.weight_added);
    const auto m = e.lerp(e.state(0), g, 1 - betas[0]);
    const auto v = e.state(1) * e.scalar(betas[1]) + g * e.scalar(1 - betas[1]) * g;
    e.set_state(0, m);
    e.set_state(1, v);
    auto step = m / e.scalar(s.bias_correction1) * e.scalar(lr);
    if (s.rectified) {
      const auto rate = e.scalar(s.bias_correction2_sqrt) / (e.sqrt(v) + e.scalar(eps));
      step = step * rate * e.scalar(s.rectification);
    }
    e.set_param(e.param() * e.scalar(s.weight_kept) - step);
  }

  void foreach(const TensorLists<2>& l, const Scalars& s) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<RAdam> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<RAdam>);

#if FULMEN_BODIES
FULMEN_INLINE void RAdam::foreach(const TensorLists<2>& l, const Scalars& s) const {
  const std::vector<at::Tensor> g = detail::foreach_gradients(l, maximize, s.weight_added);
  if (s.weight_kept != 1) at::_foreach_mul_(l.params, s.weight_kept);
  at::_foreach_lerp_(l.state[0], g, 1 - betas[0]);
  at::_foreach_mul_(l.state[1], betas[1]);
  at::_foreach_addcmul_(l.state[1], g, g, 1 - betas[1]);
  if (!s.rectified) return at::_foreach_add_(l.params, l.state[0], -lr / s.bias_correction1);
  const std::vector<at::Tensor> rates = at::_foreach_sqrt(l.state[1]);
  at::_foreach_add_(rates, eps);
  at::_foreach_div_(rates, -s.bias_correction2_sqrt * (lr * s.rectification / s.bias_correction1));
  at::_foreach_reciprocal_(rates);
  at::_foreach_addcmul_(l.params, l.state[0], rates);
}

FULMEN_INLINE detail::BoundElementwise<RAdam> RAdam::bind(NamedParameters parameters) const {
  detail::at_least_0("RAdam", "lr", lr);
  detail::at_least_0("RAdam", "eps", eps);
  detail::from_0_below_1("RAdam", "betas", betas);
  detail::at_least_0("RAdam", "weight_decay", weight_decay);
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
