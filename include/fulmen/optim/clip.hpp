// Gradient clipping by norm and by value, over the gradients that are there.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <ATen/core/Tensor.h>

#include <vector>

#if FULMEN_BODIES
#include <fulmen/optim/flat_memory.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_clamp_max.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/clamp_cpu_dispatch.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linalg_vector_norm_cpu_dispatch.h>
#include <ATen/ops/stack.h>
#endif

namespace fulmen {

/// Scales all gradients so that their total 2-norm is at most `max_norm`. The same arithmetic as Python's
/// torch.nn.utils.clip_grad_norm_; nothing is read back from the device. @return the norm before; nothing
/// without gradients. Those of an optimizer that is flat() are taken as one.
at::Tensor clip_grad_norm(const std::vector<ParamGroup>& groups, double max_norm);

/// Cuts every element of every gradient to [-max_value, max_value].
void clip_grad_value(const std::vector<ParamGroup>& groups, double max_value);

#if FULMEN_BODIES
namespace detail {
inline std::vector<at::Tensor> gradients(const std::vector<ParamGroup>& groups) {
  GradientRuns runs;
  for (const ParamGroup& group : groups) {
    for (const at::Tensor& p : group.params) runs.add(p);
  }
  return runs.tensors();
}

/// Whether this is one tensor with which ATen's kernels on the CPU can do directly.
inline bool one_on_cpu(const std::vector<at::Tensor>& grads) {
  return grads.size() == 1 && grads[0].is_cpu() && grads[0].layout() == at::kStrided &&
         (grads[0].scalar_type() == at::kFloat || grads[0].scalar_type() == at::kDouble);
}

/// Scales it so that its norm, which is known, is at most that; rounded as tensors would be.
template <class T>
void scale_to_norm(const at::Tensor& grad, const at::Tensor& norm, double max_norm) {
  const T scale = T(1) / (*norm.const_data_ptr<T>() + static_cast<T>(1e-6)) * static_cast<T>(max_norm);
  if (!(scale >= 1)) grad.mul_(scale);  // NaN, too
}
}  // namespace detail

FULMEN_INLINE at::Tensor clip_grad_norm(const std::vector<ParamGroup>& groups, double max_norm) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> grads = detail::gradients(groups);
  if (grads.empty()) return {};
  if (detail::one_on_cpu(grads)) {
    at::Tensor total = at::cpu::linalg_vector_norm(grads[0], 2);
    if (total.scalar_type() == at::kFloat)
      detail::scale_to_norm<float>(grads[0], total, max_norm);
    else
      detail::scale_to_norm<double>(grads[0], total, max_norm);
    return total;
  }
  const at::Tensor total = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)), 2);
  at::_foreach_mul_(grads, total.add(1e-6).reciprocal().mul(max_norm).clamp_max(1.0));
  return total;
}

FULMEN_INLINE void clip_grad_value(const std::vector<ParamGroup>& groups, double max_value) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> grads = detail::gradients(groups);
  if (grads.empty()) return;
  if (detail::one_on_cpu(grads)) {
    at::cpu::clamp_(grads[0], at::Scalar(-max_value), at::Scalar(max_value));
    return;
  }
  at::_foreach_clamp_min_(grads, -max_value);
  at::_foreach_clamp_max_(grads, max_value);
}
#endif

}  // namespace fulmen
