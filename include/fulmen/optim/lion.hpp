// Lion: steps along the sign of the momentum.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sign.h>
#endif

namespace fulmen {

namespace detail {

/// What Lion binds: as Lion, with the decay settled.
struct LionRule {
  double lr;
  std::array<double, 2> betas;
  double weight_decay;
  double decay_divisor;

  static constexpr auto options =
      std::tuple{option("betas", &LionRule::betas), option("weight_decay", &LionRule::weight_decay)};
  static constexpr std::array state_names = {"exp_avg"};

  struct Scalars {
    double weight_kept;
  };
  Scalars advance(std::array<double, 0>&) const { return {1 - lr * (weight_decay / decay_divisor)}; }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars& s) const {
    const auto m = e.state(0), g = e.grad();
    const auto direction = e.sign(m * e.scalar(betas[0]) + g * e.scalar(1 - betas[0]));
    e.set_param(e.param() * e.scalar(s.weight_kept) - direction * e.scalar(lr));
    e.set_state(0, m * e.scalar(betas[1]) + g * e.scalar(1 - betas[1]));
  }

  void foreach(const TensorLists<1>& l, const Scalars& s) const;
};

}  // namespace detail

/// Lion (Chen et al., 2023, "Symbolic Discovery of Optimization Algorithms"). It is not in torch.optim:
/// options, defaults and state are those of the package lion-pytorch.
struct Lion {
  double lr = 1e-4;  ///< every element moves by this much in every step
  std::array<double, 2> betas = {0.9, 0.99};
  double weight_decay = 0;
  bool decoupled_weight_decay =
      false;  ///< true: a step takes weight_decay * (rate / lr) of a weight, not weight_decay * rate

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<detail::LionRule> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<detail::LionRule>);

#if FULMEN_BODIES
FULMEN_INLINE void detail::LionRule::foreach(const TensorLists<1>& l, const Scalars& s) const {
  at::_foreach_mul_(l.params, s.weight_kept);
  const std::vector<at::Tensor> directions = at::_foreach_mul(l.state[0], betas[0]);
  at::_foreach_add_(directions, l.grads, 1 - betas[0]);
  at::_foreach_sign_(directions);
  at::_foreach_add_(l.params, directions, -lr);
  at::_foreach_mul_(l.state[0], betas[1]);
  at::_foreach_add_(l.state[0], l.grads, 1 - betas[1]);
}

FULMEN_INLINE detail::BoundElementwise<detail::LionRule> Lion::bind(NamedParameters parameters) const {
  if (!(lr > 0)) fail<std::invalid_argument>("Lion::lr is {}, expected above 0", lr);
  for (const double beta : betas) {
    if (!(beta >= 0 && beta <= 1))
      fail<std::invalid_argument>("Lion::betas has {}, expected from 0 to 1", beta);
  }
  return elementwise(detail::LionRule{lr, betas, weight_decay, decoupled_weight_decay ? lr : 1},
                     std::move(parameters));
}
#endif

}  // namespace fulmen
