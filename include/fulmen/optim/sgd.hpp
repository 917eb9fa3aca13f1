// Stochastic gradient descent.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>
#include <utility>

#if FULMEN_BODIES
#include <ATen/ops/_fused_sgd.h>
#endif

namespace fulmen {

/// SGD with momentum. Options, defaults and the meaning of `dampening` in the first step: torch.optim.SGD.
struct SGD {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  bool maximize = false;

  static constexpr auto options =
      std::tuple{option("momentum", &SGD::momentum), option("dampening", &SGD::dampening),
                 option("weight_decay", &SGD::weight_decay), option("nesterov", &SGD::nesterov),
                 option("maximize", &SGD::maximize)};
  static constexpr std::array state_names = {"momentum_buffer"};
  static constexpr std::array counter_names = {""};
  static constexpr std::size_t optional_states = 1;
  bool has_state(std::size_t) const { return momentum != 0; }

  struct Scalars {
    bool first;
    double kept, taken, from_grad, from_buffer;
  };
  Scalars advance(std::array<double, 1>& counters) const {
    // A parameter's first step with momentum takes the gradient into its buffer undampened.
    const bool first = momentum != 0 && std::exchange(counters[0], 1) == 0;
    return {first, first ? 0 : momentum, first ? 1 : 1 - dampening, nesterov ? 1.0 : 0.0,
            nesterov ? momentum : 1.0};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars& s) const {
    const auto p = e.param();
    const auto g = e.grad(maximize, weight_decay);
    if constexpr (E::has(0)) {
      const auto buffer = e.state(0) * e.scalar(s.kept) + g * e.scalar(s.taken);
      e.set_state(0, buffer);
      e.set_param(p - (g * e.scalar(s.from_grad) + buffer * e.scalar(s.from_buffer)) * e.scalar(lr));
    } else {
      e.set_param(p - g * e.scalar(lr));
    }
  }

  void foreach(const TensorLists<1>& l, const Scalars& s) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<SGD> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<SGD>);

#if FULMEN_BODIES
FULMEN_INLINE void SGD::foreach(const TensorLists<1>& l, const Scalars& s) const {
  const at::TensorList buffers = momentum != 0 ? at::TensorList(l.state[0]) : at::TensorList();
  at::_fused_sgd_(l.params, l.grads, buffers, weight_decay, momentum, lr, dampening, nesterov, maximize,
                  s.first);
}

FULMEN_INLINE detail::BoundElementwise<SGD> SGD::bind(NamedParameters parameters) const {
  detail::at_least_0("SGD", "lr", lr);
  detail::at_least_0("SGD", "momentum", momentum);
  detail::at_least_0("SGD", "weight_decay", weight_decay);
  if (nesterov && (momentum <= 0 || dampening != 0)) {
    fail<std::invalid_argument>("SGD::nesterov needs momentum above 0 (it is {}) and dampening 0 (it is {})",
                                momentum, dampening);
  }
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
