// Gradient clipping by norm and by value, over the gradients that are there.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <ATen/core/Tensor.h>

#include <vector>

#if FULMEN_BODIES
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_clamp_max.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#endif

namespace fulmen {

/// Scales all gradients so that their total 2-norm is at most `max_norm`. The same arithmetic as Python's
/// torch.nn.utils.clip_grad_norm_; nothing is read back from the device. @return the norm before
at::Tensor clip_grad_norm(const std::vector<ParamGroup>& groups, double max_norm);

/// Cuts every element of every gradient to [-max_value, max_value].
void clip_grad_value(const std::vector<ParamGroup>& groups, double max_value);

#if FULMEN_BODIES
namespace detail {
inline std::vector<at::Tensor> gradients(const std::vector<ParamGroup>& groups) {
  std::vector<at::Tensor> out;
  for (const ParamGroup& group : groups) {
    for (const at::Tensor& p : group.params) {
      if (p.grad().defined()) out.push_back(p.grad());
    }
  }
  return out;
}
}  // namespace detail

FULMEN_INLINE at::Tensor clip_grad_norm(const std::vector<ParamGroup>& groups, double max_norm) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> grads = detail::gradients(groups);
  if (grads.empty()) return {};
  const at::Tensor total = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)), 2);
  at::_foreach_mul_(grads, total.add(1e-6).reciprocal().mul(max_norm).clamp_max(1.0));
  return total;
}

FULMEN_INLINE void clip_grad_value(const std::vector<ParamGroup>& groups, double max_value) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> grads = detail::gradients(groups);
  if (grads.empty()) return;
  at::_foreach_clamp_min_(grads, -max_value);
  at::_foreach_clamp_max_(grads, max_value);
}
#endif

}  // namespace fulmen
