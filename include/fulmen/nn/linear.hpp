// Linear, and the rule of its gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <torch/nn/modules/linear.h>

#include <cstdint>

#if FULMEN_BODIES
#include <fulmen/nn/kernels.hpp>

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#endif

namespace fulmen::nn {

using torch::nn::Linear;
using torch::nn::LinearOptions;

/// …×in_features to …×out_features.
template <>
struct Rule<torch::nn::LinearImpl> {
  struct Kept {
    Buffer rows, output, output_rows, gradient_rows, input_gradient, input_gradient_rows;
    at::Tensor weight_grad, bias_grad;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::LinearImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::LinearImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

#if FULMEN_BODIES
namespace detail {

/// …×n as rows×n.
inline at::Tensor& as_rows(Workspace& workspace, Buffer& rows, const Buffer& of) {
  if (of->dim() == 2 && of->is_contiguous()) [[likely]]
    return workspace.alias(rows, of);
  const std::int64_t width = of->dim() == 0 ? 1 : of->size(-1);
  const auto shape = [&](const at::Tensor& t) { return t.view({width == 0 ? 0 : t.numel() / width, width}); };
  if (of->is_contiguous()) return workspace.view(rows, of, shape);
  return workspace.hold(rows, shape(of->contiguous()));
}

/// The sizes of `like`, the last one replaced.
inline c10::SmallVector<std::int64_t, 6> with_last(const at::Tensor& like, std::int64_t last) {
  c10::SmallVector<std::int64_t, 6> sizes(like.sizes().begin(), like.sizes().end());
  if (!sizes.empty()) sizes.back() = last;
  return sizes;
}

}  // namespace detail

FULMEN_INLINE Buffer& Rule<torch::nn::LinearImpl>::forward(torch::nn::LinearImpl& layer, Kept& kept,
                                                           const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& x = detail::as_rows(workspace, kept.rows, *pass.inputs[0]);
  const std::int64_t width = layer.weight.size(0);
  const at::Tensor& given = pass.x();
  at::Tensor* out = nullptr;
  if (given.dim() == 2) {
    out = &workspace.take(kept.output, {x.size(0), width}, x);
  } else {
    workspace.take(kept.output, detail::with_last(given, width), x);
    out = &workspace.view(kept.output_rows, kept.output, [&](const at::Tensor& t) {
      return t.view({x.size(0), width});
    });
  }
  at::Tensor& y = *out;
  if (layer.bias.defined()) {
    if (!(kernels::fill_rows(y, layer.bias) &&
          kernels::gemm(y, x, false, layer.weight, true, kernels::Begin::kept)))
      at::addmm_out(y, layer.bias, x, layer.weight.t());
  } else if (!kernels::gemm(y, x, false, layer.weight, true, kernels::Begin::zero)) {
    at::mm_out(y, x, layer.weight.t());
  }
  workspace.release(kept.output_rows);
  if (!pass.has_backward) workspace.release(kept.rows);
  return kept.output;
}

FULMEN_INLINE Buffer* Rule<torch::nn::LinearImpl>::backward(torch::nn::LinearImpl& layer, Kept& kept,
                                                            const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& x = *kept.rows;
  const at::Tensor& gy = detail::as_rows(workspace, kept.gradient_rows, *pass.gradients[0]);
  using kernels::Begin;
  if (layer.bias.defined() && layer.bias.requires_grad()) {
    const Gradient bias = gradient_of(layer.bias, kept.bias_grad);
    if (!kernels::sum_rows(bias.tensor, gy, bias.fresh ? Begin::zero : Begin::kept)) {
      if (bias.fresh)
        at::sum_out(bias.tensor, gy, at::OptionalIntArrayRef(0));
      else
        bias.tensor.add_(gy.sum(0));
    }
  }
  if (layer.weight.requires_grad()) {
    const Gradient weight = gradient_of(layer.weight, kept.weight_grad);
    if (!kernels::gemm(weight.tensor, gy, true, x, false, weight.fresh ? Begin::zero : Begin::kept)) {
      if (weight.fresh)
        at::mm_out(weight.tensor, gy.t(), x);
      else
        weight.tensor.addmm_(gy.t(), x);
    }
  }
  if (pass.wants_input) {
    at::Tensor* out = nullptr;
    if (pass.grad().dim() == 2) {
      out = &workspace.take(kept.input_gradient, {gy.size(0), layer.weight.size(1)}, gy);
    } else {
      workspace.take(kept.input_gradient, detail::with_last(pass.grad(), layer.weight.size(1)), gy);
      out = &workspace.view(kept.input_gradient_rows, kept.input_gradient, [&](const at::Tensor& t) {
        return t.view({gy.size(0), layer.weight.size(1)});
      });
    }
    if (!kernels::gemm(*out, gy, false, layer.weight, false, Begin::zero)) at::mm_out(*out, gy, layer.weight);
    workspace.release(kept.input_gradient_rows);
  }
  workspace.release(kept.gradient_rows);
  workspace.release(kept.rows);
  return &kept.input_gradient;
}
#endif

}  // namespace fulmen::nn
