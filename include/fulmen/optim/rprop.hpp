// Rprop: steps that depend on the gradients' signs alone.
#pragma once

#include <fulmen/optim/elementwise.hpp>

#include <array>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_clamp_max.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sign.h>
#endif

namespace fulmen {

/// Rprop without weight backtracking (Riedmiller and Braun, 1993), for gradients of the whole data set.
/// Options, defaults and state: torch.optim.Rprop.
struct Rprop {
  double lr = 1e-2;  ///< the first step of each element; it has no effect later
  std::array<double, 2> etas = {
      0.5, 1.2};  ///< factors of the step where the sign has changed and where it has not
  std::array<double, 2> step_sizes = {1e-6, 50};  ///< smallest and largest step
  bool maximize = false;

  static constexpr auto options =
      std::tuple{option("etas", &Rprop::etas), option("step_sizes", &Rprop::step_sizes),
                 option("maximize", &Rprop::maximize)};
  static constexpr std::array state_names = {"prev", "step_size"};
  static constexpr std::array counter_names = {"step"};
  double initial_state(std::size_t k) const { return k == 1 ? lr : 0; }

  struct Scalars {};
  Scalars advance(std::array<double, 1>& counters) const {
    ++counters[0];
    return {};
  }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars&) const {
    const auto zero = e.fill(0);
    auto g = e.grad(maximize, 0);
    const auto product = g * e.state(0);
    const auto factor = product > zero ? e.fill(etas[1]) : (product < zero ? e.fill(etas[0]) : e.fill(1));
    const auto size = e.min(e.max(e.state(1) * factor, e.fill(step_sizes[0])), e.fill(step_sizes[1]));
    g = product < zero ? zero : g;  // no step, and none of the two signs to compare with in the next
    e.set_state(0, g);
    e.set_state(1, size);
    e.set_param(e.param() - e.sign(g) * size);
  }

  void foreach(const TensorLists<2>& l, const Scalars&) const;

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundElementwise<Rprop> bind(NamedParameters parameters) const;
};

FULMEN_INSTANTIATE(class detail::BoundElementwise<Rprop>);

#if FULMEN_BODIES
FULMEN_INLINE void Rprop::foreach(const TensorLists<2>& l, const Scalars&) const {
  const std::vector<at::Tensor> g = detail::foreach_gradients(l, maximize, 0);
  const std::vector<at::Tensor> factors = at::_foreach_mul(g, l.state[0]);
  at::_foreach_copy_(l.state[0], g);
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const at::Tensor same = factors[i].gt(0), changed = factors[i].lt(0);
    factors[i].fill_(1).masked_fill_(same, etas[1]).masked_fill_(changed, etas[0]);
    l.state[0][i].masked_fill_(changed, 0);
  }
  at::_foreach_mul_(l.state[1], factors);
  at::_foreach_clamp_min_(l.state[1], step_sizes[0]);
  at::_foreach_clamp_max_(l.state[1], step_sizes[1]);
  at::_foreach_addcmul_(l.params, at::_foreach_sign(l.state[0]), l.state[1], -1);
}

FULMEN_INLINE detail::BoundElementwise<Rprop> Rprop::bind(NamedParameters parameters) const {
  detail::at_least_0("Rprop", "lr", lr);
  if (!(0 < etas[0] && etas[0] < 1 && 1 < etas[1])) {
    fail<std::invalid_argument>("Rprop::etas are {} and {}, expected one between 0 and 1 and one above 1",
                                etas[0], etas[1]);
  }
  return elementwise(*this, std::move(parameters));
}
#endif

}  // namespace fulmen
