// RMSprop: gradients divided by the root of their mean square.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcdiv.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sqrt.h>
#endif

namespace fulmen {

/// RMSprop (Hinton's lecture 6e, 2012; centered: Graves, 2013). Options, defaults and state:
/// torch.optim.RMSprop.
struct RMSprop {
  double lr = 1e-2;
  double alpha = 0.99;  ///< how much of the running averages is kept
  double eps = 1e-8;
  double weight_decay = 0;
  double momentum = 0;
  bool centered = false;  ///< true: divided by the standard deviation
  bool maximize = false;

  static constexpr auto options = std::tuple{option("alpha", &RMSprop::alpha),
                                             option("eps", &RMSprop::eps),
                                             option("weight_decay", &RMSprop::weight_decay),
                                             option("momentum", &RMSprop::momentum),
                                             option("centered", &RMSprop::centered),
                                             option("maximize", &RMSprop::maximize)};
  static constexpr std::array state_names = {"square_avg", "momentum_buffer", "grad_avg"};
  static constexpr std::array counter_names = {"step"};
  static constexpr std::size_t optional_states = 2;
  bool has_state(std::size_t k) const { return k == 0 || (k == 1 ? momentum > 0 : centered); }

  struct Scalars {};
  Scalars advance(std::array<double, 1>& counters) const {
    ++counters[0];
    return {};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars&) const {
    const auto g = e.grad(maximize, weight_decay);
    const auto square = e.state(0) * e.scalar(alpha) + g * e.scalar(1 - alpha) * g;
    e.set_state(0, square);
    auto variance = square;
    if constexpr (E::has(2)) {
      const auto mean = e.lerp(e.state(2), g, 1 - alpha);
      e.set_state(2, mean);
      variance = square - mean * mean;
    }
    const auto root = e.sqrt(variance) + e.scalar(eps);
    if constexpr (E::has(1)) {
      const auto buffer = e.state(1) * e.scalar(momentum) + g / root;
      e.set_state(1, buffer);
      e.set_param(e.param() - buffer * e.scalar(lr));
    } else {
      e.set_param(e.param() - g * e.scalar(lr) / root);
    }
  }

  void foreach(const TensorLists<3>& l, const Scalars&) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<RMSprop> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<RMSprop>);

#if FULMEN_BODIES
FULMEN_INLINE void RMSprop::foreach(const TensorLists<3>& l, const Scalars&) const {
  const std::vector<at::Tensor> g = detail::foreach_gradients(l, maximize, weight_decay);
  at::_foreach_mul_(l.state[0], alpha);
  at::_foreach_addcmul_(l.state[0], g, g, 1 - alpha);
  std::vector<at::Tensor> roots;
  if (centered) {
    at::_foreach_lerp_(l.state[2], g, 1 - alpha);
    roots = at::_foreach_addcmul(l.state[0], l.state[2], l.state[2], -1);
    at::_foreach_sqrt_(roots);
  } else {
    roots = at::_foreach_sqrt(l.state[0]);
  }
  at::_foreach_add_(roots, eps);
  if (momentum > 0) {
    at::_foreach_mul_(l.state[1], momentum);
    at::_foreach_addcdiv_(l.state[1], g, roots);
    at::_foreach_add_(l.params, l.state[1], -lr);
  } else {
    at::_foreach_addcdiv_(l.params, g, roots, -lr);
  }
}

FULMEN_INLINE detail::BoundElementwise<RMSprop> RMSprop::bind(NamedParameters parameters) const {
  detail::at_least_0("RMSprop", "lr", lr);
  detail::at_least_0("RMSprop", "alpha", alpha);
  detail::at_least_0("RMSprop", "eps", eps);
  detail::at_least_0("RMSprop", "weight_decay", weight_decay);
  detail::at_least_0("RMSprop", "momentum", momentum);
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
