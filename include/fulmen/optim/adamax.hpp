// Adamax: Adam with the largest gradient in place of the second moment.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>
#include <cmath>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_abs.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcdiv.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_maximum.h>
#include <ATen/ops/_foreach_mul.h>
#endif

namespace fulmen {

/// Adamax (Kingma and Ba, 2015, section 7.1). Options, defaults and state: torch.optim.Adamax.
struct Adamax {
  double lr = 2e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0;
  bool maximize = false;

  static constexpr auto options =
      std::tuple{option("betas", &Adamax::betas), option("eps", &Adamax::eps),
                 option("weight_decay", &Adamax::weight_decay), option("maximize", &Adamax::maximize)};
  static constexpr std::array state_names = {"exp_avg", "exp_inf"};
  static constexpr std::array counter_names = {"step"};

  struct Scalars {
    double step_size;
  };
  Scalars advance(std::array<double, 1>& counters) const {
    return {lr / (1 - std::pow(betas[0], ++counters[0]))};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars& s) const {
    const auto g = e.grad(maximize, weight_decay);
    const auto m = e.lerp(e.state(0), g, 1 - betas[0]);
    const auto largest = e.max(e.state(1) * e.scalar(betas[1]), e.abs(g) + e.scalar(eps));
    e.set_state(0, m);
    e.set_state(1, largest);
    e.set_param(e.param() - m * e.scalar(s.step_size) / largest);
  }

  void foreach(const TensorLists<2>& l, const Scalars& s) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<Adamax> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<Adamax>);

#if FULMEN_BODIES
FULMEN_INLINE void Adamax::foreach(const TensorLists<2>& l, const Scalars& s) const {
  const std::vector<at::Tensor> g = detail::foreach_gradients(l, maximize, weight_decay);
  at::_foreach_lerp_(l.state[0], g, 1 - betas[0]);
  at::_foreach_mul_(l.state[1], betas[1]);
  const std::vector<at::Tensor> sizes = at::_foreach_abs(g);
  at::_foreach_add_(sizes, eps);
  at::_foreach_maximum_(l.state[1], sizes);
  at::_foreach_addcdiv_(l.params, l.state[0], l.state[1], -s.step_size);
}

FULMEN_INLINE detail::BoundElementwise<Adamax> Adamax::bind(NamedParameters parameters) const {
  detail::at_least_0("Adamax", "lr", lr);
  detail::at_least_0("Adamax", "eps", eps);
  detail::from_0_below_1("Adamax", "betas", betas);
  detail::at_least_0("Adamax", "weight_decay", weight_decay);
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
