// NAdam: Adam with Nesterov momentum.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>
#include <cmath>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcdiv.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sqrt.h>
#endif

namespace fulmen {

/// NAdam (Dozat, 2016, "Incorporating Nesterov Momentum into Adam"). Options, defaults and state:
/// torch.optim.NAdam.
struct NAdam {
  double lr = 2e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0;
  double momentum_decay = 4e-3;         ///< how fast the momentum comes up to betas[0]
  bool decoupled_weight_decay = false;  ///< true: decay as in AdamW
  bool maximize = false;

  static constexpr auto options = std::tuple{option("betas", &NAdam::betas),
                                             option("eps", &NAdam::eps),
                                             option("weight_decay", &NAdam::weight_decay),
                                             option("momentum_decay", &NAdam::momentum_decay),
                                             option("decoupled_weight_decay", &NAdam::decoupled_weight_decay),
                                             option("maximize", &NAdam::maximize)};
  static constexpr std::array state_names = {"exp_avg", "exp_avg_sq"};
  static constexpr std::array counter_names = {"step", "mu_product"};

  struct Scalars {
    double bias_correction2, grad_step, momentum_step, weight_kept, weight_added;
  };
  Scalars advance(std::array<double, 2>& counters) const {
    auto& [step, product] = counters;
    if (++step == 1) product = 1;
    const double mu = betas[0] * (1 - 0.5 * std::pow(0.96, step * momentum_decay));
    const double next = betas[0] * (1 - 0.5 * std::pow(0.96, (step + 1) * momentum_decay));
    product = static_cast<float>(product) * static_cast<float>(mu);  // Python keeps it in a tensor of float32
    const bool decoupled = decoupled_weight_decay;
    return {1 - std::pow(betas[1], step), lr * (1 - mu) / (1 - product), lr * next / (1 - product * next),
            decoupled ? 1 - lr * weight_decay : 1, decoupled ? 0 : weight_decay};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars& s) const {
    const auto g = e.grad(maximize, s.weight_added);
    const auto m = e.lerp(e.state(0), g, 1 - betas[0]);
    const auto v = e.state(1) * e.scalar(betas[1]) + g * e.scalar(1 - betas[1]) * g;
    const auto denominator = e.sqrt(v / e.scalar(s.bias_correction2)) + e.scalar(eps);
    e.set_state(0, m);
    e.set_state(1, v);
    const auto p = e.param() * e.scalar(s.weight_kept) - g * e.scalar(s.grad_step) / denominator;
    e.set_param(p - m * e.scalar(s.momentum_step) / denominator);
  }

  void foreach(const TensorLists<2>& l, const Scalars& s) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<NAdam> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<NAdam>);

#if FULMEN_BODIES
FULMEN_INLINE void NAdam::foreach(const TensorLists<2>& l, const Scalars& s) const {
  const std::vector<at::Tensor> g = detail::foreach_gradients(l, maximize, s.weight_added);
  if (s.weight_kept != 1) at::_foreach_mul_(l.params, s.weight_kept);
  at::_foreach_lerp_(l.state[0], g, 1 - betas[0]);
  at::_foreach_mul_(l.state[1], betas[1]);
  at::_foreach_addcmul_(l.state[1], g, g, 1 - betas[1]);
  const std::vector<at::Tensor> denominators = at::_foreach_sqrt(l.state[1]);
  at::_foreach_div_(denominators, std::sqrt(s.bias_correction2));
  at::_foreach_add_(denominators, eps);
  at::_foreach_addcdiv_(l.params, g, denominators, -s.grad_step);
  at::_foreach_addcdiv_(l.params, l.state[0], denominators, -s.momentum_step);
}

FULMEN_INLINE detail::BoundElementwise<NAdam> NAdam::bind(NamedParameters parameters) const {
  detail::at_least_0("NAdam", "lr", lr);
  detail::at_least_0("NAdam", "eps", eps);
  detail::from_0_below_1("NAdam", "betas", betas);
  detail::at_least_0("NAdam", "weight_decay", weight_decay);
  detail::at_least_0("NAdam", "momentum_decay", momentum_decay);
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
