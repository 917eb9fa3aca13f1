// Adam and AdamW.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>
#include <cmath>

#if FULMEN_BODIES
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/scalar_tensor.h>
#endif

namespace fulmen {

/// Adam (Kingma and Ba, 2015). Options and defaults are those of Python's torch.optim.Adam.
struct Adam {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0;
  bool amsgrad = false;
  bool maximize = false;
  bool decoupled_weight_decay = false;  ///< true: AdamW

  static constexpr auto options = std::tuple{option("betas", &Adam::betas),
                                             option("eps", &Adam::eps),
                                             option("weight_decay", &Adam::weight_decay),
                                             option("amsgrad", &Adam::amsgrad),
                                             option("maximize", &Adam::maximize),
                                             option("decoupled_weight_decay", &Adam::decoupled_weight_decay)};
  static constexpr std::array state_names = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
  static constexpr std::array counter_names = {"step"};
  static constexpr std::size_t optional_states = 1;
  bool has_state(std::size_t k) const { return k < 2 || amsgrad; }

  struct Scalars {
    double step, step_size, eps, weight_kept, weight_added;
  };
  Scalars advance(std::array<double, 1>& counters) const {
    const double step = ++counters[0];
    // The second bias correction is drawn out of the denominator: that spares a division for each element.
    const double correction2 = std::sqrt(1 - std::pow(betas[1], step));
    return {step, lr * correction2 / (1 - std::pow(betas[0], step)), eps * correction2,
            decoupled_weight_decay ? 1 - lr * weight_decay : 1, decoupled_weight_decay ? 0 : weight_decay};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars& s) const {
    const auto g = e.grad(maximize, s.weight_added);
    const auto m = e.lerp(e.state(0), g, 1 - betas[0]);
    const auto v = e.state(1) * e.scalar(betas[1]) + g * g * e.scalar(1 - betas[1]);
    auto largest = v;
    if constexpr (E::has(2)) {
      largest = e.max(e.state(2), v);
      e.set_state(2, largest);
    }
    e.set_state(0, m);
    e.set_state(1, v);
    e.set_param(e.param() * e.scalar(s.weight_kept) -
                m * e.scalar(s.step_size) / (e.sqrt(largest) + e.scalar(s.eps)));
  }

  void foreach(const TensorLists<3>& l, const Scalars& s) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<Adam> bind(NamedParameters parameters) const;
};

/// Adam with decoupled weight decay (Loshchilov and Hutter, 2019). Options and defaults: torch.optim.AdamW.
struct AdamW {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 1e-2;
  bool amsgrad = false;
  bool maximize = false;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<Adam> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<Adam>);

#if FULMEN_BODIES
FULMEN_INLINE void Adam::foreach(const TensorLists<3>& l, const Scalars& s) const {
  const at::Tensor step =
      at::scalar_tensor(s.step, at::TensorOptions(at::kFloat).device(l.params[0].device()));
  const std::vector<at::Tensor> steps(l.params.size(), step);
  const at::TensorList largest = amsgrad ? at::TensorList(l.state[2]) : at::TensorList();
  const auto run = [&](const auto& kernel) {
    kernel(l.params, l.grads, l.state[0], l.state[1], largest, steps, lr, betas[0], betas[1], weight_decay,
           eps, amsgrad, maximize);
  };
  if (decoupled_weight_decay)
    run([](const auto&... a) { at::_fused_adamw_(a...); });
  else
    run([](const auto&... a) { at::_fused_adam_(a...); });
}

namespace detail {
template <class Policy>
void validate_adam(const char* name, const Policy& policy) {
  at_least_0(name, "lr", policy.lr), at_least_0(name, "eps", policy.eps),
      at_least_0(name, "weight_decay", policy.weight_decay);
  from_0_below_1(name, "betas", policy.betas);
}
}  // namespace detail

FULMEN_INLINE detail::BoundElementwise<Adam> Adam::bind(NamedParameters parameters) const {
  detail::validate_adam("Adam", *this);
  return elementwise(*this, std::move(parameters));
}

FULMEN_INLINE detail::BoundElementwise<Adam> AdamW::bind(NamedParameters parameters) const {
  detail::validate_adam("AdamW", *this);
  return elementwise(Adam{lr, betas, eps, weight_decay, amsgrad, maximize, true}, std::move(parameters));
}
#endif

}  // namespace fulmen
