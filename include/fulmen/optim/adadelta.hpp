// Adadelta: steps as large as the past ones, relative to the gradients.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sqrt.h>
#endif

namespace fulmen {

/// Adadelta (Zeiler, 2012). Options, defaults and state: torch.optim.Adadelta.
struct Adadelta {
  double lr = 1;
  double rho = 0.9;  ///< from 0 to 1: how much of the running averages is kept
  double eps = 1e-6;
  double weight_decay = 0;
  bool maximize = false;

  static constexpr auto options =
      std::tuple{option("rho", &Adadelta::rho), option("eps", &Adadelta::eps),
                 option("weight_decay", &Adadelta::weight_decay), option("maximize", &Adadelta::maximize)};
  static constexpr std::array state_names = {"square_avg", "acc_delta"};
  static constexpr std::array counter_names = {"step"};

  struct Scalars {};
  Scalars advance(std::array<double, 1>& counters) const {
    ++counters[0];
    return {};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars&) const {
    const auto g = e.grad(maximize, weight_decay);
    const auto square = e.state(0) * e.scalar(rho) + g * e.scalar(1 - rho) * g;
    const auto delta = e.sqrt(e.state(1) + e.scalar(eps)) / e.sqrt(square + e.scalar(eps)) * g;
    e.set_state(0, square);
    e.set_state(1, e.state(1) * e.scalar(rho) + delta * e.scalar(1 - rho) * delta);
    e.set_param(e.param() - delta * e.scalar(lr));
  }

  void foreach(const TensorLists<2>& l, const Scalars&) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<Adadelta> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<Adadelta>);

#if FULMEN_BODIES
FULMEN_INLINE void Adadelta::foreach(const TensorLists<2>& l, const Scalars&) const {
  const std::vector<at::Tensor> g = detail::foreach_gradients(l, maximize, weight_decay);
  at::_foreach_mul_(l.state[0], rho);
  at::_foreach_addcmul_(l.state[0], g, g, 1 - rho);
  const std::vector<at::Tensor> roots = at::_foreach_add(l.state[0], eps),
                                deltas = at::_foreach_add(l.state[1], eps);
  at::_foreach_sqrt_(roots);
  at::_foreach_sqrt_(deltas);
  at::_foreach_div_(deltas, roots);
  at::_foreach_mul_(deltas, g);
  at::_foreach_mul_(l.state[1], rho);
  at::_foreach_addcmul_(l.state[1], deltas, deltas, 1 - rho);
  at::_foreach_add_(l.params, deltas, -lr);
}

FULMEN_INLINE detail::BoundElementwise<Adadelta> Adadelta::bind(NamedParameters parameters) const {
  detail::at_least_0("Adadelta", "lr", lr);
  if (!(rho >= 0 && rho <= 1)) fail<std::invalid_argument>("Adadelta::rho is {}, expected from 0 to 1", rho);
  detail::at_least_0("Adadelta", "eps", eps);
  detail::at_least_0("Adadelta", "weight_decay", weight_decay);
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
