// ASGD: gradient descent that keeps an average of the weights.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <algorithm>
#include <array>
#include <cmath>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sub.h>
#endif

namespace fulmen {

/// Averaged stochastic gradient descent (Polyak and Juditsky, 1992). Options, defaults and state:
/// torch.optim.ASGD. The average is in the state, as "ax"; the parameters themselves are not averaged.
struct ASGD {
  double lr = 1e-2;
  double lambd = 1e-4;  ///< decay; the rate of step n is lr / (1 + lambd lr n)^alpha
  double alpha = 0.75;
  double t0 = 1e6;  ///< the step at which averaging begins
  double weight_decay = 0;
  bool maximize = false;

  static constexpr auto options =
      std::tuple{option("lambd", &ASGD::lambd), option("alpha", &ASGD::alpha), option("t0", &ASGD::t0),
                 option("weight_decay", &ASGD::weight_decay), option("maximize", &ASGD::maximize)};
  static constexpr std::array state_names = {"ax"};
  static constexpr std::array counter_names = {"step", "eta", "mu"};

  struct Scalars {
    double eta, weight_kept, mu;
  };
  Scalars advance(std::array<double, 3>& counters) const {
    auto& [step, eta, mu] = counters;
    // Python keeps eta and mu in tensors of float32.
    if (++step == 1) eta = static_cast<float>(lr), mu = 1;
    const Scalars now{eta, 1 - lambd * eta, mu};
    eta = static_cast<float>(lr / std::pow(1 + lambd * lr * step, alpha));
    mu = static_cast<float>(1 / std::max(1.0, step - t0));
    return now;
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars& s) const {
    const auto g = e.grad(maximize, weight_decay);
    const auto p = e.param() * e.scalar(s.weight_kept) - g * e.scalar(s.eta);
    e.set_param(p);
    if (s.mu == 1)
      e.set_state(0, p);
    else
      e.set_state(0, e.state(0) + (p - e.state(0)) * e.scalar(s.mu));
  }

  void foreach(const TensorLists<1>& l, const Scalars& s) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<ASGD> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<ASGD>);

#if FULMEN_BODIES
FULMEN_INLINE void ASGD::foreach(const TensorLists<1>& l, const Scalars& s) const {
  const std::vector<at::Tensor> g = detail::foreach_gradients(l, maximize, weight_decay);
  at::_foreach_mul_(l.params, s.weight_kept);
  at::_foreach_add_(l.params, g, -s.eta);
  if (s.mu == 1) return at::_foreach_copy_(l.state[0], l.params);
  const std::vector<at::Tensor> differences = at::_foreach_sub(l.params, l.state[0]);
  at::_foreach_mul_(differences, s.mu);
  at::_foreach_add_(l.state[0], differences);
}

FULMEN_INLINE detail::BoundElementwise<ASGD> ASGD::bind(NamedParameters parameters) const {
  detail::at_least_0("ASGD", "lr", lr);
  detail::at_least_0("ASGD", "lambd", lambd);
  detail::at_least_0("ASGD", "alpha", alpha);
  detail::at_least_0("ASGD", "weight_decay", weight_decay);
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
