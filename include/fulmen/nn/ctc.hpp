// The rule of CTC: ATen's own kernels for its value and its gradient.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/criteria/ctc.hpp>
#include <fulmen/nn/criterion_rule.hpp>
#include <fulmen/nn/reduction.hpp>

#include <ATen/core/Tensor.h>

#include <array>

#if FULMEN_BODIES
#include <ATen/core/Reduction.h>
#include <ATen/ops/_ctc_loss.h>
#include <ATen/ops/_ctc_loss_backward.h>

#include <cstdint>
#include <limits>
#include <tuple>
#endif

namespace fulmen::nn {

namespace detail {

struct CtcKept {
  Buffer loss, terms, losses, alphas, labels, input_lengths, target_lengths, gradient, share;
};
Buffer& ctc_forward(const CTC& criterion, CtcKept& kept, Workspace& workspace, const at::Tensor& log_p,
                    const at::Tensor& targets, const at::Tensor& input_lengths,
                    const at::Tensor& target_lengths);
Buffer* ctc_backward(const CTC& criterion, CtcKept& kept, Workspace& workspace, const at::Tensor& log_p,
                     const at::Tensor& seed);

}  // namespace detail

/// Log-probabilities; targets, the lengths of inputs and of targets.
template <>
struct CriterionRule<CTC, 1, 3> {
  using Kept = detail::CtcKept;
  static Buffer& forward(const CTC& criterion, Kept& kept, const LossPass<1, 3>& pass) {
    return detail::ctc_forward(criterion, kept, pass.workspace, pass.output(), pass.target(0), pass.target(1),
                               pass.target(2));
  }
  static Buffer* backward(const CTC& criterion, Kept& kept, const LossPass<1, 3>& pass) {
    return detail::ctc_backward(criterion, kept, pass.workspace, pass.output(), *pass.seed);
  }
};
/// Log-probabilities and the lengths of inputs; targets and their lengths.
template <>
struct CriterionRule<CTC, 2, 2> {
  using Kept = detail::CtcKept;
  static Buffer& forward(const CTC& criterion, Kept& kept, const LossPass<2, 2>& pass) {
    return detail::ctc_forward(criterion, kept, pass.workspace, pass.output(0), pass.target(0),
                               pass.output(1), pass.target(1));
  }
  static std::array<Buffer*, 2> backward(const CTC& criterion, Kept& kept, const LossPass<2, 2>& pass) {
    return {detail::ctc_backward(criterion, kept, pass.workspace, pass.output(0), *pass.seed), nullptr};
  }
};

#if FULMEN_BODIES
namespace detail {

inline at::IntArrayRef as_lengths(const at::Tensor& lengths) {
  return {lengths.const_data_ptr<std::int64_t>(), static_cast<std::size_t>(lengths.numel())};
}
inline bool has_batch(const at::Tensor& log_p) { return log_p.dim() == 3; }

FULMEN_INLINE Buffer& ctc_forward(const CTC& criterion, CtcKept& kept, Workspace& workspace,
                                  const at::Tensor& log_p, const at::Tensor& targets,
                                  const at::Tensor& input_lengths, const at::Tensor& target_lengths) {
  if (log_p.dim() != 2 && log_p.dim() != 3)
    static_cast<void>(criterion(log_p, targets, input_lengths, target_lengths));
  const auto cpu_lengths = [&](Buffer& buffer, const at::Tensor& lengths) {
    return as_lengths(workspace.hold(buffer, lengths.to(at::kCPU, at::kLong).contiguous()));
  };
  const at::IntArrayRef of_inputs = cpu_lengths(kept.input_lengths, input_lengths);
  const at::IntArrayRef of_targets = cpu_lengths(kept.target_lengths, target_lengths);
  workspace.hold(kept.labels, targets.to(log_p.device(), at::kLong));
  auto [losses, alphas] = at::_ctc_loss(has_batch(log_p) ? log_p : log_p.unsqueeze(1), *kept.labels,
                                        of_inputs, of_targets, criterion.blank, criterion.zero_infinity);
  workspace.hold(kept.losses, losses);
  workspace.hold(kept.alphas, alphas);
  at::Tensor terms = losses;
  if (criterion.zero_infinity)
    terms = terms.masked_fill(losses == std::numeric_limits<double>::infinity(), 0);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  if (reduction == at::Reduction::None)
    return keep_loss(workspace, kept.loss, has_batch(log_p) ? terms : terms.squeeze(0));
  if (reduction == at::Reduction::Mean) terms = terms / kept.target_lengths->clamp_min(1).to(terms.options());
  workspace.hold(kept.terms, terms);
  return reduce_terms(workspace, kept.loss, kept.terms, reduction);
}

FULMEN_INLINE Buffer* ctc_backward(const CTC& criterion, CtcKept& kept, Workspace& workspace,
                                   const at::Tensor& log_p, const at::Tensor& seed) {
  const std::int64_t reduction =
      backward_reduction("CTC", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  const at::Tensor& losses = *kept.losses;
  at::Tensor grad = share_of_terms(workspace, kept.share, seed, reduction, losses.numel())
                        .reshape({1})
                        .expand(losses.sizes());
  if (reduction == at::Reduction::Mean) grad = grad / kept.target_lengths->clamp_min(1).to(grad.options());
  if (criterion.zero_infinity) grad = grad.masked_fill(losses == std::numeric_limits<double>::infinity(), 0);
  at::Tensor gradient = at::_ctc_loss_backward(
      grad, has_batch(log_p) ? log_p : log_p.unsqueeze(1), *kept.labels, as_lengths(*kept.input_lengths),
      as_lengths(*kept.target_lengths), losses, *kept.alphas, criterion.blank, criterion.zero_infinity);
  workspace.hold(kept.gradient, has_batch(log_p) ? gradient : gradient.squeeze(1));
  for (Buffer* buffer :
       {&kept.losses, &kept.alphas, &kept.labels, &kept.input_lengths, &kept.target_lengths, &kept.share}) {
    workspace.release(*buffer);
  }
  return &kept.gradient;
}

}  // namespace detail
#endif

}  // namespace fulmen::nn
