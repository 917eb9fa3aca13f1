// Adagrad: rates that fall with the sum of the squared gradients.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcdiv.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sqrt.h>
#endif

namespace fulmen {

/// Adagrad (Duchi, Hazan and Singer, 2011). Options, defaults and state: torch.optim.Adagrad, but without
/// sparse gradients.
struct Adagrad {
  double lr = 1e-2;
  double lr_decay = 0;  ///< the rate of step n, counted from 0, is lr / (1 + n lr_decay)
  double weight_decay = 0;
  double initial_accumulator_value = 0;
  double eps = 1e-10;
  bool maximize = false;

  static constexpr auto options =
      std::tuple{option("lr_decay", &Adagrad::lr_decay), option("weight_decay", &Adagrad::weight_decay),
                 option("initial_accumulator_value", &Adagrad::initial_accumulator_value),
                 option("eps", &Adagrad::eps), option("maximize", &Adagrad::maximize)};
  static constexpr std::array state_names = {"sum"};
  static constexpr std::array counter_names = {"step"};
  double initial_state(std::size_t) const { return initial_accumulator_value; }

  struct Scalars {
    double rate;
  };
  Scalars advance(std::array<double, 1>& counters) const {
    return {lr / (1 + (++counters[0] - 1) * lr_decay)};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars& s) const {
    const auto g = e.grad(maximize, weight_decay);
    const auto sum = e.state(0) + g * g;
    e.set_state(0, sum);
    e.set_param(e.param() - g * e.scalar(s.rate) / (e.sqrt(sum) + e.scalar(eps)));
  }

  void foreach(const TensorLists<1>& l, const Scalars& s) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<Adagrad> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<Adagrad>);

#if FULMEN_BODIES
FULMEN_INLINE void Adagrad::foreach(const TensorLists<1>& l, const Scalars& s) const {
  const std::vector<at::Tensor> g = detail::foreach_gradients(l, maximize, weight_decay);
  at::_foreach_addcmul_(l.state[0], g, g, 1);
  const std::vector<at::Tensor> roots = at::_foreach_sqrt(l.state[0]);
  at::_foreach_add_(roots, eps);
  at::_foreach_addcdiv_(l.params, at::_foreach_mul(g, -s.rate), roots);
}

FULMEN_INLINE detail::BoundElementwise<Adagrad> Adagrad::bind(NamedParameters parameters) const {
  detail::at_least_0("Adagrad", "lr", lr);
  detail::at_least_0("Adagrad", "lr_decay", lr_decay);
  detail::at_least_0("Adagrad", "weight_decay", weight_decay);
  detail::at_least_0("Adagrad", "initial_accumulator_value", initial_accumulator_value);
  detail::at_least_0("Adagrad", "eps", eps);
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
