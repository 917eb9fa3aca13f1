// Pooling layers, and the rule of their gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <c10/util/SmallVector.h>
#include <torch/nn/modules/pooling.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/ScalarOps.h>
#include <ATen/ops/_adaptive_avg_pool2d.h>
#include <ATen/ops/_adaptive_avg_pool2d_backward.h>
#include <ATen/ops/_adaptive_avg_pool3d.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/adaptive_avg_pool2d_cpu_dispatch.h>
#include <ATen/ops/adaptive_avg_pool3d.h>
#include <ATen/ops/adaptive_avg_pool3d_backward.h>
#include <ATen/ops/adaptive_avg_pool3d_backward_cpu_dispatch.h>
#include <ATen/ops/adaptive_avg_pool3d_cpu_dispatch.h>
#include <ATen/ops/adaptive_max_pool2d.h>
#include <ATen/ops/adaptive_max_pool2d_backward.h>
#include <ATen/ops/adaptive_max_pool2d_backward_cpu_dispatch.h>
#include <ATen/ops/adaptive_max_pool2d_cpu_dispatch.h>
#include <ATen/ops/adaptive_max_pool3d.h>
#include <ATen/ops/adaptive_max_pool3d_backward.h>
#include <ATen/ops/adaptive_max_pool3d_backward_cpu_dispatch.h>
#include <ATen/ops/adaptive_max_pool3d_cpu_dispatch.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/avg_pool2d_backward.h>
#include <ATen/ops/avg_pool2d_backward_cpu_dispatch.h>
#include <ATen/ops/avg_pool2d_cpu_dispatch.h>
#include <ATen/ops/avg_pool3d.h>
#include <ATen/ops/avg_pool3d_backward.h>
#include <ATen/ops/avg_pool3d_backward_cpu_dispatch.h>
#include <ATen/ops/avg_pool3d_cpu_dispatch.h>
#include <ATen/ops/div.h>
#include <ATen/ops/div_cpu_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/ops/max_pool2d_with_indices_backward_cpu_dispatch.h>
#include <ATen/ops/max_pool2d_with_indices_cpu_dispatch.h>
#include <ATen/ops/max_pool3d_with_indices.h>
#include <ATen/ops/max_pool3d_with_indices_backward.h>
#include <ATen/ops/max_pool3d_with_indices_backward_cpu_dispatch.h>
#include <ATen/ops/max_pool3d_with_indices_cpu_dispatch.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mean_cpu_dispatch.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <utility>
#endif

namespace fulmen::nn {

using torch::nn::AdaptiveAvgPool1d;
using torch::nn::AdaptiveAvgPool1dOptions;
using torch::nn::AdaptiveAvgPool2d;
using torch::nn::AdaptiveAvgPool2dOptions;
using torch::nn::AdaptiveAvgPool3d;
using torch::nn::AdaptiveAvgPool3dOptions;
using torch::nn::AdaptiveMaxPool1d;
using torch::nn::AdaptiveMaxPool1dOptions;
using torch::nn::AdaptiveMaxPool2d;
using torch::nn::AdaptiveMaxPool2dOptions;
using torch::nn::AdaptiveMaxPool3d;
using torch::nn::AdaptiveMaxPool3dOptions;
using torch::nn::AvgPool1d;
using torch::nn::AvgPool1dOptions;
using torch::nn::AvgPool2d;
using torch::nn::AvgPool2dOptions;
using torch::nn::AvgPool3d;
using torch::nn::AvgPool3dOptions;
using torch::nn::MaxPool1d;
using torch::nn::MaxPool1dOptions;
using torch::nn::MaxPool2d;
using torch::nn::MaxPool2dOptions;
using torch::nn::MaxPool3d;
using torch::nn::MaxPool3dOptions;
// These are left to autograd.
using torch::nn::FractionalMaxPool2d;
using torch::nn::FractionalMaxPool3d;
using torch::nn::LPPool1d;
using torch::nn::LPPool2d;
using torch::nn::LPPool3d;

namespace detail {

/// What a pooling layer asks for. One of one dimension is ATen's of two, the first of which has size 1.
struct Pooling {
  enum class Kind { Max, Average, AdaptiveMax, AdaptiveAverage } kind;
  std::size_t given_dims;  ///< 1, 2 or 3
  std::size_t dims = given_dims == 1 ? 2 : given_dims;
  std::array<std::int64_t, 3> kernel{1, 1, 1}, stride{1, 1, 1}, padding{}, dilation{1, 1, 1};
  bool ceil_mode = false, count_include_pad = true;
  std::optional<std::int64_t> divisor{};
  std::array<std::optional<std::int64_t>, 3> output_size{1, 1,
                                                         1};  ///< of the adaptive ones; none: the input's

  /// Of the layer's dimensions.
  template <class To, class From>
  void set(std::array<To, 3>& to, const From& from) const {
    for (std::size_t i = 0; i < given_dims; ++i) to[i + dims - given_dims] = from[i];
  }
  at::IntArrayRef of(const std::array<std::int64_t, 3>& values) const { return {values.data(), dims}; }
};

template <std::size_t D, class Derived>
Pooling pooling_of(const torch::nn::MaxPoolImpl<D, Derived>& layer) {
  Pooling out{Pooling::Kind::Max, D};
  out.set(out.kernel, *layer.options.kernel_size());
  out.set(out.stride, *layer.options.stride());
  out.set(out.padding, *layer.options.padding());
  out.set(out.dilation, *layer.options.dilation());
  out.ceil_mode = layer.options.ceil_mode();
  return out;
}
template <std::size_t D, class Derived>
Pooling pooling_of(const torch::nn::AvgPoolImpl<D, Derived>& layer) {
  Pooling out{Pooling::Kind::Average, D};
  out.set(out.kernel, *layer.options.kernel_size());
  out.set(out.stride, *layer.options.stride());
  out.set(out.padding, *layer.options.padding());
  out.ceil_mode = layer.options.ceil_mode();
  out.count_include_pad = layer.options.count_include_pad();
  if (D > 1) out.divisor = layer.options.divisor_override();  // that of one dimension does not look at it
  return out;
}
template <std::size_t D, class Size, class Derived>
Pooling pooling_of(const torch::nn::AdaptiveMaxPoolImpl<D, Size, Derived>& layer) {
  Pooling out{Pooling::Kind::AdaptiveMax, D};
  out.set(out.output_size, *layer.options.output_size());
  return out;
}
template <std::size_t D, class Size, class Derived>
Pooling pooling_of(const torch::nn::AdaptiveAvgPoolImpl<D, Size, Derived>& layer) {
  Pooling out{Pooling::Kind::AdaptiveAverage, D};
  out.set(out.output_size, *layer.options.output_size());
  return out;
}

struct PoolingKept {
  Buffer input_wide, output, output_wide, indices, gradient, gradient_wide, output_gradient_wide;
  c10::SmallVector<std::int64_t, 5> input_sizes;  // with two dimensions where there is one
  at::MemoryFormat format = at::MemoryFormat::Contiguous;
  at::Tensor number;
};
Buffer& pooling_forward(const Pooling& pooling, PoolingKept& kept, const ForwardPass<>& pass);
Buffer* pooling_backward(const Pooling& pooling, PoolingKept& kept, const BackwardPass<>& pass);

/// N×C×… (or C×… without a batch), C being kept. Backward needs the places of the maxima, and else only the
/// shape of the input.
template <class Impl>
struct PoolingRule {
  using Kept = PoolingKept;
  static constexpr bool saves_input = false, saves_output = false;

  static Buffer& forward(Impl& layer, Kept& kept, const ForwardPass<>& pass) {
    return pooling_forward(pooling_of(layer), kept, pass);
  }
  static Buffer* backward(Impl& layer, Kept& kept, const BackwardPass<>& pass) {
    return pooling_backward(pooling_of(layer), kept, pass);
  }
};

}  // namespace detail

template <>
struct Rule<torch::nn::MaxPool1dImpl> : detail::PoolingRule<torch::nn::MaxPool1dImpl> {};
template <>
struct Rule<torch::nn::MaxPool2dImpl> : detail::PoolingRule<torch::nn::MaxPool2dImpl> {};
template <>
struct Rule<torch::nn::MaxPool3dImpl> : detail::PoolingRule<torch::nn::MaxPool3dImpl> {};
template <>
struct Rule<torch::nn::AvgPool1dImpl> : detail::PoolingRule<torch::nn::AvgPool1dImpl> {};
template <>
struct Rule<torch::nn::AvgPool2dImpl> : detail::PoolingRule<torch::nn::AvgPool2dImpl> {};
template <>
struct Rule<torch::nn::AvgPool3dImpl> : detail::PoolingRule<torch::nn::AvgPool3dImpl> {};
template <>
struct Rule<torch::nn::AdaptiveMaxPool1dImpl> : detail::PoolingRule<torch::nn::AdaptiveMaxPool1dImpl> {};
template <>
struct Rule<torch::nn::AdaptiveMaxPool2dImpl> : detail::PoolingRule<torch::nn::AdaptiveMaxPool2dImpl> {};
template <>
struct Rule<torch::nn::AdaptiveMaxPool3dImpl> : detail::PoolingRule<torch::nn::AdaptiveMaxPool3dImpl> {};
template <>
struct Rule<torch::nn::AdaptiveAvgPool1dImpl> : detail::PoolingRule<torch::nn::AdaptiveAvgPool1dImpl> {};
template <>
struct Rule<torch::nn::AdaptiveAvgPool2dImpl> : detail::PoolingRule<torch::nn::AdaptiveAvgPool2dImpl> {};
template <>
struct Rule<torch::nn::AdaptiveAvgPool3dImpl> : detail::PoolingRule<torch::nn::AdaptiveAvgPool3dImpl> {};

#if FULMEN_BODIES
namespace detail {

using PooledSizes = c10::SmallVector<std::int64_t, 5>;

/// How many windows there are; 0 where that makes no sense, which ATen then reports.
inline std::int64_t window_count(std::int64_t size, std::int64_t kernel, std::int64_t stride,
                                 std::int64_t padding, std::int64_t dilation, bool ceil_mode) {
  const std::int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  if (room < 0 || stride <= 0) return 0;
  std::int64_t count = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  // A window must not begin in the padding at the right.
  if (ceil_mode && (count - 1) * stride >= size + padding) --count;
  return count;
}

inline PooledSizes pooled_sizes(const Pooling& p, at::IntArrayRef input) {
  PooledSizes out(input.begin(), input.end());
  for (std::size_t i = 0; i < p.dims; ++i) {
    std::int64_t& size = out[out.size() - p.dims + i];
    if (p.kind == Pooling::Kind::Max || p.kind == Pooling::Kind::Average) {
      size = window_count(size, p.kernel[i], p.stride[i], p.padding[i], p.dilation[i], p.ceil_mode);
    } else {
      size = p.output_size[i].value_or(size);
    }
  }
  return out;
}

/// Without the dimension that one of one dimension was given.
inline PooledSizes as_given(const Pooling& p, PooledSizes sizes) {
  if (p.given_dims == 1) sizes.erase(sizes.end() - 2);
  return sizes;
}
inline at::Tensor as_given(const Pooling& p, const at::Tensor& wide) {
  return p.given_dims == 1 ? wide.squeeze(-2) : wide;
}
inline const at::Tensor& as_wide(const Pooling& p, Workspace& workspace, Buffer& wide, const Buffer& given) {
  if (p.given_dims > 1) return *given;
  return workspace.view(wide, given, [](const at::Tensor& t) { return t.unsqueeze(-2); });
}

inline at::IntArrayRef pooled_part(const Pooling& p, at::IntArrayRef sizes) {
  return sizes.slice(sizes.size() - p.dims);
}

/// The mean of all, which ATen does not leave to the pooling kernel.
inline bool is_mean(const Pooling& p) {
  if (p.kind != Pooling::Kind::AdaptiveAverage) return false;
  return std::all_of(p.output_size.begin(), p.output_size.begin() + p.dims, [](auto n) { return n == 1; });
}
inline at::IntArrayRef pooled_dims(const Pooling& p) {
  static constexpr std::array<std::int64_t, 3> last{-1, -2, -3};
  return {last.data(), p.dims};
}

/// With what ATen allocates, in the layout of the input.
inline at::Tensor pool(const Pooling& p, const at::Tensor& x, at::IntArrayRef output_size,
                       at::Tensor& indices) {
  const at::IntArrayRef kernel = p.of(p.kernel), stride = p.of(p.stride), padding = p.of(p.padding),
                        dilation = p.of(p.dilation);
  at::Tensor y;
  switch (p.kind) {
    case Pooling::Kind::Max:
      std::tie(y, indices) =
          p.dims == 2 ? at::max_pool2d_with_indices(x, kernel, stride, padding, dilation, p.ceil_mode)
                      : at::max_pool3d_with_indices(x, kernel, stride, padding, dilation, p.ceil_mode);
      return y;
    case Pooling::Kind::Average:
      return p.dims == 2
                 ? at::avg_pool2d(x, kernel, stride, padding, p.ceil_mode, p.count_include_pad, p.divisor)
                 : at::avg_pool3d(x, kernel, stride, padding, p.ceil_mode, p.count_include_pad, p.divisor);
    case Pooling::Kind::AdaptiveMax:
      std::tie(y, indices) =
          p.dims == 2 ? at::adaptive_max_pool2d(x, output_size) : at::adaptive_max_pool3d(x, output_size);
      return y;
    case Pooling::Kind::AdaptiveAverage:
      if (is_mean(p)) return at::mean(x, pooled_dims(p), /*keepdim=*/true);
      return p.dims == 2 ? at::_adaptive_avg_pool2d(x, output_size)
                         : at::_adaptive_avg_pool3d(x, output_size);
  }
  return y;
}

inline void pool_out(const Pooling& p, const at::Tensor& x, at::IntArrayRef output_size, at::Tensor y,
                     at::Tensor indices) {
  const at::IntArrayRef kernel = p.of(p.kernel), stride = p.of(p.stride), padding = p.of(p.padding),
                        dilation = p.of(p.dilation);
  const bool cpu = x.is_cpu(), two = p.dims == 2;
  switch (p.kind) {
    case Pooling::Kind::Max:
      if (cpu && two)
        at::cpu::max_pool2d_with_indices_out(y, indices, x, kernel, stride, padding, dilation, p.ceil_mode);
      else if (cpu)
        at::cpu::max_pool3d_with_indices_out(y, indices, x, kernel, stride, padding, dilation, p.ceil_mode);
      else if (two)
        at::max_pool2d_with_indices_out(y, indices, x, kernel, stride, padding, dilation, p.ceil_mode);
      else
        at::max_pool3d_with_indices_out(y, indices, x, kernel, stride, padding, dilation, p.ceil_mode);
      return;
    case Pooling::Kind::Average:
      if (cpu && two)
        at::cpu::avg_pool2d_out(y, x, kernel, stride, padding, p.ceil_mode, p.count_include_pad, p.divisor);
      else if (cpu)
        at::cpu::avg_pool3d_out(y, x, kernel, stride, padding, p.ceil_mode, p.count_include_pad, p.divisor);
      else if (two)
        at::avg_pool2d_out(y, x, kernel, stride, padding, p.ceil_mode, p.count_include_pad, p.divisor);
      else
        at::avg_pool3d_out(y, x, kernel, stride, padding, p.ceil_mode, p.count_include_pad, p.divisor);
      return;
    case Pooling::Kind::AdaptiveMax:
      if (cpu && two)
        at::cpu::adaptive_max_pool2d_out(y, indices, x, output_size);
      else if (cpu)
        at::cpu::adaptive_max_pool3d_out(y, indices, x, output_size);
      else if (two)
        at::adaptive_max_pool2d_out(y, indices, x, output_size);
      else
        at::adaptive_max_pool3d_out(y, indices, x, output_size);
      return;
    case Pooling::Kind::AdaptiveAverage:
      if (is_mean(p)) {
        if (cpu)
          at::cpu::mean_out(y, x, pooled_dims(p), /*keepdim=*/true);
        else
          at::mean_out(y, x, pooled_dims(p), /*keepdim=*/true);
      } else if (cpu && two) {
        at::cpu::adaptive_avg_pool2d_out(y, x, output_size);
      } else if (cpu) {
        at::cpu::adaptive_avg_pool3d_out(y, x, output_size);
      } else if (two) {
        at::adaptive_avg_pool2d_out(y, x, output_size);
      } else {
        at::adaptive_avg_pool3d_out(y, x, output_size);
      }
      return;
  }
}

/// ATen asks for the input, but looks at its shape and layout only: gx has these, too.
inline void pool_backward_out(const Pooling& p, at::Tensor gx, const at::Tensor& gy,
                              const at::Tensor& indices) {
  const at::IntArrayRef kernel = p.of(p.kernel), stride = p.of(p.stride), padding = p.of(p.padding),
                        dilation = p.of(p.dilation);
  const bool cpu = gy.is_cpu(), two = p.dims == 2;
  switch (p.kind) {
    case Pooling::Kind::Max:
      if (cpu && two)
        at::cpu::max_pool2d_with_indices_backward_out(gx, gy, gx, kernel, stride, padding, dilation,
                                                      p.ceil_mode, indices);
      else if (cpu)
        at::cpu::max_pool3d_with_indices_backward_out(gx, gy, gx, kernel, stride, padding, dilation,
                                                      p.ceil_mode, indices);
      else if (two)
        at::max_pool2d_with_indices_backward_out(gx, gy, gx, kernel, stride, padding, dilation, p.ceil_mode,
                                                 indices);
      else
        at::max_pool3d_with_indices_backward_out(gx, gy, gx, kernel, stride, padding, dilation, p.ceil_mode,
                                                 indices);
      return;
    case Pooling::Kind::Average:
      if (cpu && two)
        at::cpu::avg_pool2d_backward_out(gx, gy, gx, kernel, stride, padding, p.ceil_mode,
                                         p.count_include_pad, p.divisor);
      else if (cpu)
        at::cpu::avg_pool3d_backward_out(gx, gy, gx, kernel, stride, padding, p.ceil_mode,
                                         p.count_include_pad, p.divisor);
      else if (two)
        at::avg_pool2d_backward_out(gx, gy, gx, kernel, stride, padding, p.ceil_mode, p.count_include_pad,
                                    p.divisor);
      else
        at::avg_pool3d_backward_out(gx, gy, gx, kernel, stride, padding, p.ceil_mode, p.count_include_pad,
                                    p.divisor);
      return;
    case Pooling::Kind::AdaptiveMax:
      if (cpu && two)
        at::cpu::adaptive_max_pool2d_backward_out(gx, gy, gx, indices);
      else if (cpu)
        at::cpu::adaptive_max_pool3d_backward_out(gx, gy, gx, indices);
      else if (two)
        at::adaptive_max_pool2d_backward_out(gx, gy, gx, indices);
      else
        at::adaptive_max_pool3d_backward_out(gx, gy, gx, indices);
      return;
    case Pooling::Kind::AdaptiveAverage:
      if (cpu)
        at::cpu::adaptive_avg_pool3d_backward_out(gx, gy, gx);
      else
        at::adaptive_avg_pool3d_backward_out(gx, gy, gx);
      return;
  }
}

FULMEN_INLINE Buffer& pooling_forward(const Pooling& p, PoolingKept& kept, const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const auto dims = static_cast<std::int64_t>(p.given_dims);
  if (pass.x().dim() != dims + 1 && pass.x().dim() != dims + 2) {
    fail<std::invalid_argument>(
        "pooling of {} dimensions: the input has {} dimensions, expected {} or, without a batch, {}", dims,
        pass.x().dim(), dims + 2, dims + 1);
  }
  const at::Tensor& x = as_wide(p, workspace, kept.input_wide, *pass.inputs[0]);
  kept.input_sizes.assign(x.sizes().begin(), x.sizes().end());
  // ATen's kernels of three dimensions write a contiguous gradient whatever they are given, all but the one
  // of the maximum; and without a batch they do not know channels last.
  const bool any_format = pass.x().dim() == dims + 2 && (dims < 3 || p.kind == Pooling::Kind::Max);
  kept.format = any_format ? x.suggest_memory_format() : at::MemoryFormat::Contiguous;
  const PooledSizes sizes = pooled_sizes(p, x.sizes());
  const at::IntArrayRef output_size = pooled_part(p, sizes);
  const bool has_indices = p.kind == Pooling::Kind::Max || p.kind == Pooling::Kind::AdaptiveMax;
  if (x.is_contiguous()) {
    kept.format = at::MemoryFormat::Contiguous;
    workspace.take(kept.output, as_given(p, sizes), x);
    if (has_indices) workspace.take(kept.indices, sizes, x.options().dtype(at::kLong));
    pool_out(p, x, output_size, as_wide(p, workspace, kept.output_wide, kept.output), *kept.indices);
    workspace.release(kept.output_wide);
  } else {
    at::Tensor indices;
    const at::Tensor y = pool(p, x, output_size, indices);
    workspace.hold(kept.output, as_given(p, y));
    if (has_indices) workspace.hold(kept.indices, std::move(indices));
  }
  workspace.release(kept.input_wide);
  if (!pass.has_backward) workspace.release(kept.indices);
  return kept.output;
}

FULMEN_INLINE Buffer* pooling_backward(const Pooling& p, PoolingKept& kept, const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  if (pass.wants_input) {
    const at::Tensor& gy = as_wide(p, workspace, kept.output_gradient_wide, *pass.gradients[0]);
    if (p.kind == Pooling::Kind::AdaptiveAverage && p.dims == 2 && !is_mean(p)) {
      // The only one without an output; a number in the shape of the input tells it that.
      if (!kept.number.defined() || kept.number.dtype() != gy.dtype() ||
          kept.number.device() != gy.device()) {
        kept.number = at::empty({}, gy.options());
      }
      workspace.hold(kept.gradient, as_given(p, at::_adaptive_avg_pool2d_backward(
                                                    gy, kept.number.expand(kept.input_sizes))));
    } else {
      at::Tensor gx;
      if (kept.format == at::MemoryFormat::Contiguous) {
        workspace.take(kept.gradient, as_given(p, kept.input_sizes), gy);
        gx = as_wide(p, workspace, kept.gradient_wide, kept.gradient);
      } else {
        gx = at::empty(kept.input_sizes, gy.options(), kept.format);
        workspace.hold(kept.gradient, as_given(p, gx));
      }
      if (is_mean(p)) {
        std::int64_t count = 1;
        for (const std::int64_t size : pooled_part(p, kept.input_sizes)) count *= size;
        const at::Tensor divisor = at::native::wrapped_scalar_tensor(count);
        if (gy.is_cpu())
          at::cpu::div_out(gx, gy.expand(kept.input_sizes), divisor);
        else
          at::div_out(gx, gy.expand(kept.input_sizes), divisor);
      } else {
        pool_backward_out(p, std::move(gx), gy, *kept.indices);
      }
    }
    workspace.release(kept.gradient_wide);
    workspace.release(kept.output_gradient_wide);
  }
  workspace.release(kept.indices);
  return &kept.gradient;
}

}  // namespace detail
#endif

}  // namespace fulmen::nn
