// Normalization layers, and the rule of their gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/instancenorm.h>
#include <torch/nn/modules/normalization.h>

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <type_traits>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/Context.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/_batch_norm_impl_index.h>
#include <ATen/ops/_batch_norm_impl_index_backward.h>
#include <ATen/ops/_fused_rms_norm.h>
#include <ATen/ops/_fused_rms_norm_backward.h>
#include <ATen/ops/mean_cpu_dispatch.h>
#include <ATen/ops/mul_cpu_dispatch.h>
#include <ATen/ops/native_batch_norm_backward_cpu_dispatch.h>
#include <ATen/ops/native_batch_norm_cpu_dispatch.h>
#include <ATen/ops/native_group_norm.h>
#include <ATen/ops/native_group_norm_backward.h>
#include <ATen/ops/native_group_norm_backward_cpu_dispatch.h>
#include <ATen/ops/native_group_norm_cpu_dispatch.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/native_layer_norm_backward_cpu_dispatch.h>
#include <ATen/ops/native_layer_norm_cpu_dispatch.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pow_cpu_dispatch.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/rsqrt_cpu_dispatch.h>
#include <ATen/ops/sub_cpu_dispatch.h>
#include <ATen/ops/sum_cpu_dispatch.h>
#include <ATen/ops/zeros_like.h>

#include <c10/util/accumulate.h>

#include <array>
#include <limits>
#include <ostream>
#include <stdexcept>
#include <tuple>
#include <utility>
#endif

namespace fulmen::nn {

using torch::nn::BatchNorm1d;
using torch::nn::BatchNorm2d;
using torch::nn::BatchNorm3d;
using torch::nn::BatchNormOptions;
using torch::nn::GroupNorm;
using torch::nn::GroupNormOptions;
using torch::nn::InstanceNorm1d;
using torch::nn::InstanceNorm2d;
using torch::nn::InstanceNorm3d;
using torch::nn::InstanceNormOptions;
using torch::nn::LayerNorm;
using torch::nn::LayerNormOptions;
// These are left to autograd.
using torch::nn::CrossMapLRN2d;
using torch::nn::LocalResponseNorm;

/// x / sqrt(mean(x²) + eps) * weight, the mean being over the last dimensions: Python's nn.RMSNorm, of which
/// LibTorch's C++ side has none. Any shape that ends in normalized_shape.
class RMSNorm : public torch::nn::Cloneable<RMSNorm> {
 public:
  /// @param shape the normalized_shape
  /// @param epsilon eps; if none is given, the smallest step from 1 in the type that is computed with
  /// @param affine whether there is a weight
  /// @throws std::invalid_argument for a normalized_shape without dimensions
  explicit RMSNorm(std::vector<std::int64_t> shape, std::optional<double> epsilon = std::nullopt,
                   bool affine = true);
  explicit RMSNorm(std::int64_t features, std::optional<double> epsilon = std::nullopt, bool affine = true)
      : RMSNorm(std::vector<std::int64_t>{features}, epsilon, affine) {}

  void reset() override;
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;
  at::Tensor forward(const at::Tensor& x);

  std::vector<std::int64_t> normalized_shape;
  std::optional<double> eps;
  bool elementwise_affine;
  at::Tensor weight;  ///< of normalized_shape; undefined if !elementwise_affine
};

namespace detail {

/// What a layer that normalizes channels asks for, with statistics of the batch or of each of its samples.
struct ChannelNorm {
  const at::Tensor &weight, &bias;
  at::Tensor &running_mean, &running_var, &batches;
  std::int64_t dims;  ///< after the channels
  bool of_instances, training, tracks;
  std::optional<double> momentum;
  double eps;
};

template <std::size_t D, class Derived, class Options>
ChannelNorm channel_norm_of(torch::nn::NormImplBase<D, Derived, Options>& layer) {
  const auto& options = layer.options;
  return {layer.weight,
          layer.bias,
          layer.running_mean,
          layer.running_var,
          layer.num_batches_tracked,
          static_cast<std::int64_t>(D),
          std::is_same_v<Options, torch::nn::InstanceNormOptions>,
          layer.is_training(),
          options.track_running_stats(),
          options.momentum(),
          options.eps()};
}

struct ChannelNormKept {
  Buffer output, mean, inverse_deviation, reserve, gradient;
  bool from_batch = true;
  std::int64_t implementation = 0;  // which of ATen's
  // Of instance normalization: the input as one sample of N*C channels, and what there is of each channel N
  // times.
  at::Tensor rows, weight, bias, running_mean, running_var;
};
Buffer& channel_norm_forward(const ChannelNorm& norm, ChannelNormKept& kept, const ForwardPass<>& pass);
Buffer* channel_norm_backward(const ChannelNorm& norm, ChannelNormKept& kept, const BackwardPass<>& pass);

/// N×C×… to the same. Running statistics and num_batches_tracked change as in the layer's own forward.
template <class Impl>
struct ChannelNormRule {
  using Kept = ChannelNormKept;
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(Impl& layer, Kept& kept, const ForwardPass<>& pass) {
    return channel_norm_forward(channel_norm_of(layer), kept, pass);
  }
  static Buffer* backward(Impl& layer, Kept& kept, const BackwardPass<>& pass) {
    return channel_norm_backward(channel_norm_of(layer), kept, pass);
  }
};

}  // namespace detail

template <>
struct Rule<torch::nn::BatchNorm1dImpl> : detail::ChannelNormRule<torch::nn::BatchNorm1dImpl> {};
template <>
struct Rule<torch::nn::BatchNorm2dImpl> : detail::ChannelNormRule<torch::nn::BatchNorm2dImpl> {};
template <>
struct Rule<torch::nn::BatchNorm3dImpl> : detail::ChannelNormRule<torch::nn::BatchNorm3dImpl> {};
template <>
struct Rule<torch::nn::InstanceNorm1dImpl> : detail::ChannelNormRule<torch::nn::InstanceNorm1dImpl> {};
template <>
struct Rule<torch::nn::InstanceNorm2dImpl> : detail::ChannelNormRule<torch::nn::InstanceNorm2dImpl> {};
template <>
struct Rule<torch::nn::InstanceNorm3dImpl> : detail::ChannelNormRule<torch::nn::InstanceNorm3dImpl> {};

/// Any shape that ends in normalized_shape. ATen's kernels allocate what they return.
template <>
struct Rule<torch::nn::LayerNormImpl> {
  struct Kept {
    Buffer output, mean, inverse_deviation, gradient;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::LayerNormImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::LayerNormImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

/// N×C×…. ATen's kernels allocate what they return.
template <>
struct Rule<torch::nn::GroupNormImpl> {
  struct Kept {
    Buffer input, output, mean, inverse_deviation, gradient;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::GroupNormImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::GroupNormImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

/// Any shape that ends in normalized_shape.
template <>
struct Rule<RMSNorm> {
  struct Kept {
    Buffer input, input_rows, output, output_rows, scale;
    Buffer output_gradient, output_gradient_rows, gradient, gradient_rows, product, row_sum, summed;
    at::Tensor weight_grad;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(RMSNorm& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(RMSNorm& layer, Kept& kept, const BackwardPass<>& pass);
};

#if FULMEN_BODIES
FULMEN_INLINE RMSNorm::RMSNorm(std::vector<std::int64_t> shape, std::optional<double> epsilon, bool affine)
    : normalized_shape(std::move(shape)), eps(epsilon), elementwise_affine(affine) {
  if (normalized_shape.empty())
    fail<std::invalid_argument>("RMSNorm: normalized_shape must have at least one dimension");
  RMSNorm::reset();
}

FULMEN_INLINE void RMSNorm::reset() {
  if (elementwise_affine)
    weight = register_parameter("weight", at::ones(normalized_shape));
  else
    weight = register_parameter("weight", at::Tensor(), /*requires_grad=*/false);
}

FULMEN_INLINE void RMSNorm::reset_parameters() {
  if (!weight.defined()) return;
  const at::NoGradGuard no_grad;
  weight.fill_(1);
}

FULMEN_INLINE void RMSNorm::pretty_print(std::ostream& stream) const {
  stream << "fulmen::nn::RMSNorm(" << at::IntArrayRef(normalized_shape) << ", eps=";
  if (eps)
    stream << *eps;
  else
    stream << "None";
  stream << ", elementwise_affine=" << std::boolalpha << elementwise_affine << ')';
}

FULMEN_INLINE at::Tensor RMSNorm::forward(const at::Tensor& x) {
  return at::rms_norm(x, normalized_shape, weight, eps);
}

namespace detail {

/// What is normalized, and with what: of a batch as it is, of instances as one sample of N*C channels.
struct NormInput {
  const at::Tensor &x, &weight, &bias, &running_mean, &running_var;
};
inline NormInput norm_input(const ChannelNorm& n, const ChannelNormKept& kept, const at::Tensor& x) {
  if (n.of_instances) return {kept.rows, kept.weight, kept.bias, kept.running_mean, kept.running_var};
  return {x, n.weight, n.bias, n.running_mean, n.running_var};
}

inline at::Tensor as_one_sample(const at::Tensor& t, std::int64_t dims) {
  std::vector<std::int64_t> sizes{1, -1};
  sizes.insert(sizes.end(), t.sizes().end() - dims, t.sizes().end());
  return t.contiguous().view(sizes);
}
inline at::Tensor repeated(const at::Tensor& t, std::int64_t times) {
  return t.defined() ? t.detach().repeat(times) : at::Tensor();
}

/// Throws if the layer's own forward would.
inline void check_channel_norm(const ChannelNorm& n, const at::Tensor& x) {
  const char* const name = n.of_instances ? "InstanceNorm" : "BatchNorm";
  const std::int64_t other = n.of_instances || n.dims == 1 ? n.dims + 1 : n.dims + 2;
  if (x.dim() != n.dims + 2 && x.dim() != other) {
    fail<std::invalid_argument>("{}{}d: the input has {} dimensions, expected {}", name, n.dims, x.dim(),
                                n.dims + 2);
  }
  const std::int64_t channels = x.size(n.of_instances && x.dim() == n.dims + 1 ? 0 : 1);
  const at::Tensor& per_channel = n.weight.defined() ? n.weight : n.running_mean;
  if (per_channel.defined() && per_channel.numel() != channels) {
    fail<std::invalid_argument>("{}{}d: the input has {} channels, expected {}", name, n.dims, channels,
                                per_channel.numel());
  }
  if (!n.of_instances && (n.training || !n.tracks) && channels > 0 && x.numel() == channels) {
    fail<std::invalid_argument>("{}{}d: a batch of one value per channel has no variance to normalize with",
                                name, n.dims);
  }
}

/// Counts the batch. @return the weight of its statistics
inline double count_batch(const ChannelNorm& n) {
  if (n.of_instances || !n.training || !n.tracks || !n.batches.defined()) return n.momentum.value_or(0);
  if (n.batches.is_cpu() && n.batches.scalar_type() == at::kLong)
    ++*n.batches.mutable_data_ptr<std::int64_t>();
  else
    n.batches.add_(1);
  return n.momentum ? *n.momentum : 1 / n.batches.item<double>();
}

FULMEN_INLINE Buffer& channel_norm_forward(const ChannelNorm& n, ChannelNormKept& kept,
                                           const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& given = pass.x();
  check_channel_norm(n, given);
  const double momentum = count_batch(n);
  kept.from_batch = n.training || !n.tracks;
  if (given.numel() == 0) {
    workspace.take(kept.output, given.sizes(), given);
    return kept.output;
  }
  std::int64_t samples = 1;
  if (n.of_instances) {
    if (given.dim() == n.dims + 2) samples = given.size(0);
    kept.rows = as_one_sample(given, n.dims);
    kept.weight = repeated(n.weight, samples), kept.bias = repeated(n.bias, samples);
    kept.running_mean = repeated(n.running_mean, samples),
    kept.running_var = repeated(n.running_var, samples);
  }
  const auto& [x, weight, bias, running_mean, running_var] = norm_input(n, kept, given);
  const bool cpu = x.is_cpu();
  if (cpu && x.is_contiguous() && !n.of_instances &&
      (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble)) {
    at::Tensor& y = workspace.take(kept.output, x.sizes(), x);
    const std::int64_t statistics = kept.from_batch ? x.size(1) : 0;
    at::cpu::native_batch_norm_out(y, workspace.take(kept.mean, statistics, x),
                                   workspace.take(kept.inverse_deviation, statistics, x), x, weight, bias,
                                   running_mean, running_var, kept.from_batch, momentum, n.eps);
  } else {
    at::Tensor y, mean, inverse_deviation, reserve;
    if (cpu) {
      std::tie(y, mean, inverse_deviation) = at::cpu::native_batch_norm(
          x, weight, bias, running_mean, running_var, kept.from_batch, momentum, n.eps);
    } else {
      std::tie(y, mean, inverse_deviation, reserve, kept.implementation) =
          at::_batch_norm_impl_index(x, weight, bias, running_mean, running_var, kept.from_batch, momentum,
                                     n.eps, at::globalContext().userEnabledCuDNN());
      workspace.hold(kept.reserve, std::move(reserve));
    }
    workspace.hold(kept.output, n.of_instances ? y.view(given.sizes()) : std::move(y));
    workspace.hold(kept.mean, std::move(mean));
    workspace.hold(kept.inverse_deviation, std::move(inverse_deviation));
  }
  if (n.of_instances) {
    // Each sample has moved its own copy of the running statistics.
    for (const auto& [to, from] :
         {std::pair(&n.running_mean, &running_mean), std::pair(&n.running_var, &running_var)}) {
      if (to->defined()) to->copy_(from->view({samples, -1}).mean(0));
    }
    kept.rows.reset();
  }
  if (!pass.has_backward) {
    workspace.release(kept.mean), workspace.release(kept.inverse_deviation), workspace.release(kept.reserve);
    kept.weight.reset(), kept.bias.reset(), kept.running_mean.reset(), kept.running_var.reset();
  }
  return kept.output;
}

FULMEN_INLINE Buffer* channel_norm_backward(const ChannelNorm& n, ChannelNormKept& kept,
                                            const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& given = pass.x();
  const bool trains_weight = n.weight.defined() && n.weight.requires_grad(),
             trains_bias = n.bias.defined() && n.bias.requires_grad();
  if (given.numel() == 0) {
    if (pass.wants_input) workspace.take(kept.gradient, given.sizes(), given);
    if (trains_weight) add_gradient(n.weight, at::zeros_like(n.weight));
    if (trains_bias) add_gradient(n.bias, at::zeros_like(n.bias));
    return &kept.gradient;
  }
  at::Tensor gy = pass.grad();
  if (n.of_instances) {
    kept.rows = as_one_sample(given, n.dims);
    gy = as_one_sample(gy, n.dims);
  }
  const auto& [x, weight, bias, running_mean, running_var] = norm_input(n, kept, given);
  const std::array<bool, 3> mask{pass.wants_input, trains_weight, trains_bias};
  at::Tensor gx, gw, gb;
  if (gy.is_cpu()) {
    std::tie(gx, gw, gb) =
        at::cpu::native_batch_norm_backward(gy, x, weight, running_mean, running_var, *kept.mean,
                                            *kept.inverse_deviation, kept.from_batch, n.eps, mask);
  } else {
    const at::Tensor reserve = kept.reserve.defined() ? *kept.reserve : at::Tensor();
    std::tie(gx, gw, gb) = at::_batch_norm_impl_index_backward(
        kept.implementation, x, gy, weight, running_mean, running_var, *kept.mean, *kept.inverse_deviation,
        kept.from_batch, n.eps, mask, reserve);
  }
  workspace.release(kept.mean), workspace.release(kept.inverse_deviation), workspace.release(kept.reserve);
  if (n.of_instances) {
    const auto summed = [&](at::Tensor& gradient, bool wanted) {
      if (wanted) gradient = gradient.view({-1, n.weight.numel()}).sum(0);
    };
    summed(gw, trains_weight), summed(gb, trains_bias);
    if (pass.wants_input) gx = gx.view(given.sizes());
    kept.rows.reset(), kept.weight.reset(), kept.bias.reset(), kept.running_mean.reset(),
        kept.running_var.reset();
  }
  if (trains_weight) add_gradient(n.weight, std::move(gw));
  if (trains_bias) add_gradient(n.bias, std::move(gb));
  if (pass.wants_input) workspace.hold(kept.gradient, std::move(gx));
  return &kept.gradient;
}

}  // namespace detail

FULMEN_INLINE Buffer& Rule<torch::nn::LayerNormImpl>::forward(torch::nn::LayerNormImpl& layer, Kept& kept,
                                                              const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const auto& shape = layer.options.normalized_shape();
  auto [y, mean, inverse_deviation] =
      pass.x().is_cpu()
          ? at::cpu::native_layer_norm(pass.x(), shape, layer.weight, layer.bias, layer.options.eps())
          : at::native_layer_norm(pass.x(), shape, layer.weight, layer.bias, layer.options.eps());
  workspace.hold(kept.output, std::move(y));
  if (pass.has_backward) {
    workspace.hold(kept.mean, std::move(mean));
    workspace.hold(kept.inverse_deviation, std::move(inverse_deviation));
  }
  return kept.output;
}

FULMEN_INLINE Buffer* Rule<torch::nn::LayerNormImpl>::backward(torch::nn::LayerNormImpl& layer, Kept& kept,
                                                               const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const auto& shape = layer.options.normalized_shape();
  const std::array<bool, 3> mask{pass.wants_input, layer.weight.defined() && layer.weight.requires_grad(),
                                 layer.bias.defined() && layer.bias.requires_grad()};
  const at::Tensor &gy = pass.grad(), &x = pass.x();
  auto [gx, gw, gb] =
      x.is_cpu() ? at::cpu::native_layer_norm_backward(gy, x, shape, *kept.mean, *kept.inverse_deviation,
                                                       layer.weight, layer.bias, mask)
                 : at::native_layer_norm_backward(gy, x, shape, *kept.mean, *kept.inverse_deviation,
                                                  layer.weight, layer.bias, mask);
  workspace.release(kept.mean);
  workspace.release(kept.inverse_deviation);
  if (mask[1]) add_gradient(layer.weight, std::move(gw));
  if (mask[2]) add_gradient(layer.bias, std::move(gb));
  if (mask[0]) workspace.hold(kept.gradient, std::move(gx));
  return &kept.gradient;
}

FULMEN_INLINE Buffer& Rule<torch::nn::GroupNormImpl>::forward(torch::nn::GroupNormImpl& layer, Kept& kept,
                                                              const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& given = pass.x();
  const std::int64_t groups = layer.options.num_groups();
  if (given.dim() < 2)
    fail<std::invalid_argument>("GroupNorm: the input has {} dimensions, expected 2 or more", given.dim());
  const std::int64_t n = given.size(0), channels = given.size(1);
  if (groups <= 0 || channels % groups != 0 || (layer.weight.defined() && layer.weight.numel() != channels)) {
    fail<std::invalid_argument>("GroupNorm: the input has {} channels, expected {}, a multiple of {} groups",
                                channels, layer.options.num_channels(), groups);
  }
  // On the CPU, kernels take channels last, too.
  const at::MemoryFormat format =
      given.is_cpu() ? given.suggest_memory_format() : at::MemoryFormat::Contiguous;
  const at::Tensor& x = given.is_contiguous(format) ? workspace.alias(kept.input, *pass.inputs[0])
                                                    : workspace.hold(kept.input, given.contiguous(format));
  const std::int64_t inner =
      n * channels == 0 ? c10::multiply_integers(given.sizes().slice(2)) : given.numel() / (n * channels);
  auto [y, mean, inverse_deviation] =
      x.is_cpu() ? at::cpu::native_group_norm(x, layer.weight, layer.bias, n, channels, inner, groups,
                                              layer.options.eps())
                 : at::native_group_norm(x, layer.weight, layer.bias, n, channels, inner, groups,
                                         layer.options.eps());
  workspace.hold(kept.output, std::move(y));
  if (pass.has_backward) {
    workspace.hold(kept.mean, std::move(mean));
    workspace.hold(kept.inverse_deviation, std::move(inverse_deviation));
  } else {
    workspace.release(kept.input);
  }
  return kept.output;
}

FULMEN_INLINE Buffer* Rule<torch::nn::GroupNormImpl>::backward(torch::nn::GroupNormImpl& layer, Kept& kept,
                                                               const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& x = *kept.input;
  const std::array<bool, 3> mask{pass.wants_input, layer.weight.defined() && layer.weight.requires_grad(),
                                 layer.bias.defined() && layer.bias.requires_grad()};
  const std::int64_t n = x.size(0), channels = x.size(1), groups = layer.options.num_groups();
  const std::int64_t inner =
      n * channels == 0 ? c10::multiply_integers(x.sizes().slice(2)) : x.numel() / (n * channels);
  // The kernel reads both in the layout of the input.
  const at::Tensor gy =
      pass.grad().contiguous(x.is_cpu() ? x.suggest_memory_format() : at::MemoryFormat::Contiguous);
  const at::Tensor &mean = *kept.mean, &inverse_deviation = *kept.inverse_deviation;
  auto [gx, gw, gb] = x.is_cpu()
                          ? at::cpu::native_group_norm_backward(gy, x, mean, inverse_deviation, layer.weight,
                                                                n, channels, inner, groups, mask)
                          : at::native_group_norm_backward(gy, x, mean, inverse_deviation, layer.weight, n,
                                                           channels, inner, groups, mask);
  workspace.release(kept.mean);
  workspace.release(kept.inverse_deviation);
  workspace.release(kept.input);
  if (mask[1]) add_gradient(layer.weight, std::move(gw));
  if (mask[2]) add_gradient(layer.bias, std::move(gb));
  if (mask[0]) workspace.hold(kept.gradient, std::move(gx));
  return &kept.gradient;
}

namespace detail {

/// As rows of what is normalized together, in the type that is computed with: float for the half ones.
inline const at::Tensor& norm_rows(Workspace& workspace, Buffer& computed, Buffer& rows, const Buffer& given,
                                   std::int64_t width) {
  const at::ScalarType type = at::toOpMathType(given->scalar_type());
  if (given->is_contiguous() && given->scalar_type() == type)
    workspace.alias(computed, given);
  else
    workspace.hold(computed, given->to(type).contiguous());
  return workspace.view(rows, computed, [&](const at::Tensor& t) {
    return t.view({width == 0 ? 0 : t.numel() / width, width});
  });
}

}  // namespace detail

FULMEN_INLINE Buffer& Rule<RMSNorm>::forward(RMSNorm& layer, Kept& kept, const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& given = pass.x();
  const at::IntArrayRef shape = layer.normalized_shape;
  if (given.sizes().size() < shape.size() ||
      !given.sizes().slice(given.sizes().size() - shape.size()).equals(shape)) {
    fail<std::invalid_argument>(
        "RMSNorm: the last {} dimensions of the input are not those of normalized_shape", shape.size());
  }
  if (!given.is_cpu()) {
    auto [y, scale] = at::_fused_rms_norm(given, shape, layer.weight, layer.eps);
    workspace.hold(kept.output, std::move(y));
    if (pass.has_backward) workspace.hold(kept.scale, std::move(scale));
    return kept.output;
  }
  const at::Tensor& x = detail::norm_rows(workspace, kept.input, kept.input_rows, *pass.inputs[0],
                                          c10::multiply_integers(shape));
  const bool same_type = x.scalar_type() == given.scalar_type();
  at::Tensor& y_given = workspace.take(kept.output, given.sizes(), given);
  at::Tensor& y = same_type ? workspace.view(kept.output_rows, kept.output,
                                             [&](const at::Tensor& t) { return t.view(x.sizes()); })
                            : workspace.take(kept.output_rows, x.sizes(), x);
  at::Tensor& scale = workspace.take(kept.scale, {x.size(0), 1}, x);
  at::cpu::mul_out(y, x, x);
  at::cpu::mean_out(scale, y, at::OptionalIntArrayRef(1), /*keepdim=*/true);
  constexpr double of_double = std::numeric_limits<double>::epsilon(),
                   of_float = std::numeric_limits<float>::epsilon();
  scale.add_(layer.eps.value_or(x.scalar_type() == at::kDouble ? of_double : of_float));
  at::cpu::rsqrt_out(scale, scale);
  at::cpu::mul_out(y, x, scale);
  if (layer.weight.defined()) at::cpu::mul_out(y, y, layer.weight.view({1, -1}));
  if (!same_type) y_given.copy_(y.view(given.sizes()));
  workspace.release(kept.output_rows);
  if (!pass.has_backward)
    workspace.release(kept.input_rows), workspace.release(kept.input), workspace.release(kept.scale);
  return kept.output;
}

FULMEN_INLINE Buffer* Rule<RMSNorm>::backward(RMSNorm& layer, Kept& kept, const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& weight = layer.weight;
  const bool trains_weight = weight.defined() && weight.requires_grad();
  if (!pass.x().is_cpu()) {
    auto [gx, gw] = at::_fused_rms_norm_backward(pass.grad(), pass.x(), layer.normalized_shape, *kept.scale,
                                                 weight, {pass.wants_input, trains_weight});
    workspace.release(kept.scale);
    if (trains_weight) add_gradient(weight, std::move(gw));
    if (pass.wants_input) workspace.hold(kept.gradient, std::move(gx));
    return &kept.gradient;
  }
  const at::Tensor& x = *kept.input_rows;
  at::Tensor scale = *kept.scale;
  const at::Tensor& gy = detail::norm_rows(workspace, kept.output_gradient, kept.output_gradient_rows,
                                           *pass.gradients[0], x.size(1));
  // gx = g·scale - x·scale³·mean(g·x) with g = gy·weight: computed in the order of ATen's graph, so that the
  // bits are the same.
  at::Tensor& product = workspace.take(kept.product, x.sizes(), x);
  if (trains_weight) {
    at::cpu::mul_out(product, x, scale);
    at::cpu::mul_out(product, product, gy);
    at::Tensor& sum = workspace.take(kept.summed, x.size(1), x);
    at::cpu::sum_out(sum, product, at::OptionalIntArrayRef(0));
    const Gradient gradient = gradient_of(weight, kept.weight_grad);
    if (gradient.fresh)
      gradient.tensor.copy_(sum.view(weight.sizes()));
    else
      gradient.tensor.add_(sum.view(weight.sizes()));
    workspace.release(kept.summed);
  }
  if (pass.wants_input) {
    const bool same_type = x.scalar_type() == pass.x().scalar_type();
    at::Tensor& gx_given = workspace.take(kept.gradient, pass.x().sizes(), pass.x());
    at::Tensor& gx = same_type ? workspace.view(kept.gradient_rows, kept.gradient,
                                                [&](const at::Tensor& t) { return t.view(x.sizes()); })
                               : workspace.take(kept.gradient_rows, x.sizes(), x);
    at::Tensor& sum = workspace.take(kept.row_sum, scale.sizes(), scale);
    if (weight.defined()) at::cpu::mul_out(gx, gy, weight.view({1, -1}));
    const at::Tensor& g = weight.defined() ? gx : gy;
    at::cpu::mul_out(product, g, x);
    at::cpu::sum_out(sum, product, at::OptionalIntArrayRef(1), /*keepdim=*/true);
    at::cpu::mul_out(gx, g, scale);
    at::cpu::pow_out(scale, scale, 3);
    at::cpu::mul_out(sum, sum, scale);
    sum.div_(x.size(1));
    at::cpu::mul_out(product, x, sum);
    at::cpu::sub_out(gx, gx, product);
    if (!same_type) gx_given.copy_(gx.view(pass.x().sizes()));
    workspace.release(kept.gradient_rows);
    workspace.release(kept.row_sum);
  }
  workspace.release(kept.product);
  workspace.release(kept.output_gradient_rows);
  workspace.release(kept.output_gradient);
  workspace.release(kept.input_rows);
  workspace.release(kept.input);
  workspace.release(kept.scale);
  return &kept.gradient;
}
#endif

}  // namespace fulmen::nn
