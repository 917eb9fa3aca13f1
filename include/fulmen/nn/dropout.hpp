// Dropout, and the rules of its gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <torch/nn/modules/dropout.h>

#include <cstdint>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/core/Generator.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/bernoulli_cpu_dispatch.h>
#include <ATen/ops/div_cpu_dispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/mul_cpu_dispatch.h>
#include <ATen/ops/native_dropout.h>
#include <ATen/ops/native_dropout_backward.h>
#include <ATen/ops/scalar_tensor.h>

#include <cmath>
#include <stdexcept>
#include <tuple>
#include <utility>
#endif

namespace fulmen::nn {

// Inputs of any shape, or of one and two dimensions at least for those that drop whole channels; the output
// has the same. What falls out is drawn from the default generator just as without these rules. In evaluation
// the output is the input.
using torch::nn::AlphaDropout;
using torch::nn::AlphaDropoutOptions;
using torch::nn::Dropout;
using torch::nn::Dropout2d;
using torch::nn::Dropout2dOptions;
using torch::nn::Dropout3d;
using torch::nn::Dropout3dOptions;
using torch::nn::DropoutOptions;
using torch::nn::FeatureAlphaDropout;
using torch::nn::FeatureAlphaDropoutOptions;

namespace detail {

/// What falls out together: each element alone; or channels, the second dimension, where an input that has
/// not `batched` dimensions is one without that of the batch (0: it always has it).
struct DropoutKind {
  bool channels = false;
  std::int64_t batched = 0;
  bool alpha = false;
};

struct DropoutKept {
  enum class Done { nothing, zero, noise, mask };
  Buffer output, noise, shift, gradient;
  Buffer input,
      same_gradient;  // where nothing is dropped: apart from the others, since p may change from step to step
  Done done = Done::nothing;
  double p = -1;
  at::Tensor divisor;  // 1 - p
};
Buffer& dropout_forward(DropoutKind kind, double p, bool training, DropoutKept& kept,
                        const ForwardPass<>& pass);
Buffer* dropout_backward(DropoutKept& kept, const BackwardPass<>& pass);

template <class L, bool channels = false, std::int64_t batched = 0, bool alpha = false>
struct DropoutRule {
  using Kept = DropoutKept;
  // The output is the input where nothing is dropped.
  static constexpr bool saves_input = false, saves_output = false, in_place = true, owns_output = false;

  static Buffer& forward(L& layer, Kept& kept, const ForwardPass<>& pass) {
    return dropout_forward({channels, batched, alpha}, layer.options.p(), layer.is_training(), kept, pass);
  }
  static Buffer* backward(L&, Kept& kept, const BackwardPass<>& pass) { return dropout_backward(kept, pass); }
};

}  // namespace detail

template <>
struct Rule<torch::nn::DropoutImpl> : detail::DropoutRule<torch::nn::DropoutImpl> {};
template <>
struct Rule<torch::nn::Dropout2dImpl> : detail::DropoutRule<torch::nn::Dropout2dImpl, true, 4> {};
template <>
struct Rule<torch::nn::Dropout3dImpl> : detail::DropoutRule<torch::nn::Dropout3dImpl, true, 5> {};
template <>
struct Rule<torch::nn::AlphaDropoutImpl> : detail::DropoutRule<torch::nn::AlphaDropoutImpl, false, 0, true> {
};
template <>
struct Rule<torch::nn::FeatureAlphaDropoutImpl>
    : detail::DropoutRule<torch::nn::FeatureAlphaDropoutImpl, true, 0, true> {};

#if FULMEN_BODIES
namespace detail {

/// The memory of the noise. Its elements are drawn in the order in which at::dropout's lie, so that the same
/// ones fall out.
inline at::Tensor& take_noise(DropoutKind kind, DropoutKept& kept, const at::Tensor& x,
                              Workspace& workspace) {
  if (!kind.channels) {
    if (x.is_contiguous()) [[likely]]
      return workspace.take(kept.noise, x.sizes(), x);
    return workspace.hold(kept.noise, at::empty_like(x));
  }
  const std::int64_t leading = kind.batched == 0 || x.dim() == kind.batched ? 2 : 1;
  if (x.dim() < leading)
    fail<std::invalid_argument>("dropout of channels: the input has {} dimensions, expected {} or more",
                                x.dim(), leading);
  at::DimVector sizes(static_cast<std::size_t>(x.dim()), 1);
  for (std::int64_t i = 0; i < leading; ++i) sizes[static_cast<std::size_t>(i)] = x.size(i);
  return workspace.take(kept.noise, sizes, x);
}

inline at::Tensor& dropout_out(Workspace& workspace, Buffer& out, const Buffer& like, bool may_overwrite) {
  if (may_overwrite && like->is_non_overlapping_and_dense()) return workspace.alias(out, like);
  return workspace.take(out, like->sizes(), *like);
}

FULMEN_INLINE Buffer& dropout_forward(DropoutKind kind, double p, bool training, DropoutKept& kept,
                                      const ForwardPass<>& pass) {
  using Done = DropoutKept::Done;
  Workspace& workspace = pass.workspace;
  const at::Tensor& x = pass.x();
  if (!(p >= 0 && p <= 1))
    fail<std::invalid_argument>("dropout: p is {}, expected a probability, from 0 to 1", p);
  if (!training || p == 0 || x.numel() == 0) {
    kept.done = Done::nothing;
    workspace.alias(kept.input, *pass.inputs[0]);
    return kept.input;
  }
  if (p == 1) {
    kept.done = Done::zero;
    at::mul_out(dropout_out(workspace, kept.output, *pass.inputs[0], pass.may_overwrite), x, 0);
    return kept.output;
  }
  if (kept.p != p) {
    kept.p = p;
    kept.divisor = at::scalar_tensor(1 - p, at::kDouble);
  }
  if (x.is_cuda() && !kind.channels && !kind.alpha) {
    kept.done = Done::mask;
    auto [y, mask] = at::native_dropout(x, p, true);
    workspace.hold(kept.output, std::move(y));
    workspace.hold(kept.noise, std::move(mask));
  } else {
    kept.done = Done::noise;
    const bool cpu = x.is_cpu();
    at::Tensor& noise = take_noise(kind, kept, x, workspace);
    if (cpu) [[likely]]
      at::cpu::bernoulli_(noise, 1 - p);
    else
      noise.bernoulli_(1 - p);
    if (kind.alpha) {
      // What is dropped becomes -alpha', and mean and variance are put back.
      constexpr double alpha = 1.7580993408473766;
      const double a = 1 / std::sqrt((alpha * alpha * p + 1) * (1 - p));
      at::Tensor& shift = workspace.take(kept.shift, noise.sizes(), noise);
      shift.copy_(noise).add_(-1).mul_(alpha * a).add_(alpha * a * p);
      noise.mul_(a);
    } else {
      if (cpu) [[likely]]
        at::cpu::div_(noise, kept.divisor);
      else
        noise.div_(kept.divisor);
    }
    at::Tensor& y = dropout_out(workspace, kept.output, *pass.inputs[0], pass.may_overwrite);
    if (cpu) [[likely]]
      at::cpu::mul_out(y, x, noise);
    else
      at::mul_out(y, x, noise);
    if (kind.alpha) y.add_(*kept.shift);
    workspace.release(kept.shift);
  }
  if (!pass.has_backward) workspace.release(kept.noise);
  return kept.output;
}

FULMEN_INLINE Buffer* dropout_backward(DropoutKept& kept, const BackwardPass<>& pass) {
  using Done = DropoutKept::Done;
  Workspace& workspace = pass.workspace;
  const at::Tensor& gy = pass.grad();
  if (kept.done == Done::nothing) {
    workspace.alias(kept.same_gradient, *pass.gradients[0]);
    return &kept.same_gradient;
  }
  if (kept.done == Done::mask) {
    workspace.hold(kept.gradient, at::native_dropout_backward(gy, *kept.noise, 1 / (1 - kept.p)));
  } else {
    at::Tensor& gx = dropout_out(workspace, kept.gradient, *pass.gradients[0], pass.may_overwrite);
    if (kept.done == Done::zero)
      at::mul_out(gx, gy, 0);
    else if (gx.is_cpu()) [[likely]]
      at::cpu::mul_out(gx, gy, *kept.noise);
    else
      at::mul_out(gx, gy, *kept.noise);
  }
  workspace.release(kept.noise);
  return &kept.gradient;
}

}  // namespace detail
#endif

}  // namespace fulmen::nn
