// Convolutions and transposed convolutions, and the rule of their gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <ATen/PadNd.h>
#include <torch/nn/modules/conv.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <variant>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/ops/_pad_enum.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty_like.h>

#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>
#endif

namespace fulmen::nn {

using torch::nn::Conv1d;
using torch::nn::Conv1dOptions;
using torch::nn::Conv2d;
using torch::nn::Conv2dOptions;
using torch::nn::Conv3d;
using torch::nn::Conv3dOptions;
using torch::nn::ConvTranspose1d;
using torch::nn::ConvTranspose1dOptions;
using torch::nn::ConvTranspose2d;
using torch::nn::ConvTranspose2dOptions;
using torch::nn::ConvTranspose3d;
using torch::nn::ConvTranspose3dOptions;

namespace detail {

/// What a convolution layer of any number of dimensions asks for.
struct Convolution {
  const at::Tensor &weight, &bias;
  std::size_t dims;
  bool transposed;
  std::int64_t groups;
  at::IntArrayRef stride, dilation, output_padding;
  std::array<std::int64_t, 3> padding{};  ///< what the convolution itself adds: zeros, on both sides
  /// What is added before: by at::pad's order, the last dimension's two sides first; none if !pads.
  std::array<std::int64_t, 6> around{};
  bool pads = false;
  at::padding_mode mode = at::padding_mode::constant;
};

/// The padding that a layer has worked out for the modes other than zeros.
template <class Base>
struct PaddingAround : Base {
  static at::IntArrayRef of(const Base& layer) {
    return layer.*&PaddingAround::_reversed_padding_repeated_twice;
  }
};

template <std::size_t D, class Derived>
Convolution convolution_of(const torch::nn::ConvNdImpl<D, Derived>& layer) {
  const auto& options = layer.options;
  Convolution out{layer.weight,
                  layer.bias,
                  D,
                  options.transposed(),
                  options.groups(),
                  *options.stride(),
                  *options.dilation(),
                  *options.output_padding()};
  if (!std::holds_alternative<torch::enumtype::kZeros>(options.padding_mode())) {
    out.pads = true;
    const at::IntArrayRef around = PaddingAround<torch::nn::ConvNdImpl<D, Derived>>::of(layer);
    for (std::size_t i = 0; i < 2 * D; ++i) out.around[i] = around[i];
    if (std::holds_alternative<torch::enumtype::kReflect>(options.padding_mode()))
      out.mode = at::padding_mode::reflect;
    else if (std::holds_alternative<torch::enumtype::kReplicate>(options.padding_mode()))
      out.mode = at::padding_mode::replicate;
    else
      out.mode = at::padding_mode::circular;
  } else if (const auto* padding = std::get_if<torch::ExpandingArray<D>>(&options.padding())) {
    for (std::size_t i = 0; i < D; ++i) out.padding[i] = (**padding)[i];
  } else if (std::holds_alternative<torch::enumtype::kSame>(options.padding())) {
    for (std::size_t i = 0; i < D; ++i) {
      const std::int64_t total = (*options.dilation())[i] * ((*options.kernel_size())[i] - 1);
      out.padding[i] = total / 2;
      // Of an odd number of zeros, the one more goes to the right.
      if (total % 2 != 0) out.pads = true, out.around[2 * (D - 1 - i) + 1] = 1;
    }
  }
  return out;
}

struct ConvolutionKept {
  Buffer output, padded, gradient;
  at::Tensor padding_leaf, padding_result;  // the graph of the padding alone
};
Buffer& convolution_forward(const Convolution& convolution, ConvolutionKept& kept, const ForwardPass<>& pass);
Buffer* convolution_backward(const Convolution& convolution, ConvolutionKept& kept,
                             const BackwardPass<>& pass);

/// N×in_channels×… (or one sample without N) to N×out_channels×…. The convolution is ATen's, whose kernels
/// allocate what they return. Padding that it does not know (reflect, replicate, circular; 'same' where the
/// two sides differ) is autograd's.
template <class Impl>
struct ConvolutionRule {
  using Kept = ConvolutionKept;
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(Impl& layer, Kept& kept, const ForwardPass<>& pass) {
    return convolution_forward(convolution_of(layer), kept, pass);
  }
  static Buffer* backward(Impl& layer, Kept& kept, const BackwardPass<>& pass) {
    return convolution_backward(convolution_of(layer), kept, pass);
  }
};

}  // namespace detail

template <>
struct Rule<torch::nn::Conv1dImpl> : detail::ConvolutionRule<torch::nn::Conv1dImpl> {};
template <>
struct Rule<torch::nn::Conv2dImpl> : detail::ConvolutionRule<torch::nn::Conv2dImpl> {};
template <>
struct Rule<torch::nn::Conv3dImpl> : detail::ConvolutionRule<torch::nn::Conv3dImpl> {};
template <>
struct Rule<torch::nn::ConvTranspose1dImpl> : detail::ConvolutionRule<torch::nn::ConvTranspose1dImpl> {};
template <>
struct Rule<torch::nn::ConvTranspose2dImpl> : detail::ConvolutionRule<torch::nn::ConvTranspose2dImpl> {};
template <>
struct Rule<torch::nn::ConvTranspose3dImpl> : detail::ConvolutionRule<torch::nn::ConvTranspose3dImpl> {};

#if FULMEN_BODIES
namespace detail {

/// With a dimension for the batch.
inline at::Tensor batched(const Convolution& c, const at::Tensor& t) {
  return t.dim() == c.weight.dim() ? t : t.unsqueeze(0);
}

FULMEN_INLINE Buffer& convolution_forward(const Convolution& c, ConvolutionKept& kept,
                                          const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& given = pass.x();
  const auto dims = static_cast<std::int64_t>(c.dims);
  if (given.dim() != dims + 1 && given.dim() != dims + 2) {
    fail<std::invalid_argument>("Conv{}{}d: the input has {} dimensions, expected {} or, without a batch, {}",
                                c.transposed ? "Transpose" : "", dims, given.dim(), dims + 2, dims + 1);
  }
  if (c.transposed && c.pads)
    fail<std::invalid_argument>("ConvTranspose{}d: its padding_mode must be zeros", dims);
  at::Tensor x = batched(c, given);
  if (c.pads) {
    const LocalGraph graph(pass.has_backward && pass.wants_input);
    kept.padding_leaf = leaf(x, pass.wants_input);
    kept.padding_result = at::_pad_enum(kept.padding_leaf, at::IntArrayRef(c.around.data(), 2 * c.dims),
                                        static_cast<std::int64_t>(c.mode));
    x = workspace.hold(kept.padded, kept.padding_result.detach());
  }
  at::Tensor y = at::convolution(x, c.weight, c.bias, c.stride, at::IntArrayRef(c.padding.data(), c.dims),
                                 c.dilation, c.transposed, c.output_padding, c.groups);
  workspace.hold(kept.output, given.dim() == dims + 1 ? y.squeeze(0) : std::move(y));
  if (c.pads && !pass.has_backward) {
    workspace.release(kept.padded);
    kept.padding_leaf.reset(), kept.padding_result.reset();
  }
  return kept.output;
}

FULMEN_INLINE Buffer* convolution_backward(const Convolution& c, ConvolutionKept& kept,
                                           const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const bool bias = c.bias.defined() && c.bias.requires_grad();
  const bool one_sample = pass.x().dim() != c.weight.dim();
  if (pass.wants_input || c.weight.requires_grad() || bias) {
    auto [gx, gw, gb] = at::convolution_backward(
        batched(c, pass.grad()), c.pads ? *kept.padded : batched(c, pass.x()), c.weight,
        c.bias.defined() ? at::OptionalIntArrayRef(c.bias.sizes()) : std::nullopt, c.stride,
        at::IntArrayRef(c.padding.data(), c.dims), c.dilation, c.transposed, c.output_padding, c.groups,
        {pass.wants_input, c.weight.requires_grad(), bias});
    workspace.release(kept.padded);
    if (c.weight.requires_grad()) {
      // In the layout of the input; as autograd does, one that an optimizer expects.
      if (!gw.strides().equals(c.weight.strides())) gw = at::empty_like(c.weight).copy_(gw);
      add_gradient(c.weight, std::move(gw));
    }
    if (bias) add_gradient(c.bias, std::move(gb));
    if (pass.wants_input && c.pads) {
      const LocalGraph graph;
      const at::Tensor *const root = &kept.padding_result, *const gradient = &gx;
      run_backward(&root, &gradient, 1);
      gx = std::move(kept.padding_leaf.mutable_grad());
    }
    if (pass.wants_input) workspace.hold(kept.gradient, one_sample ? gx.squeeze(0) : std::move(gx));
  }
  kept.padding_leaf.reset(), kept.padding_result.reset();
  return &kept.gradient;
}

}  // namespace detail
#endif

}  // namespace fulmen::nn
