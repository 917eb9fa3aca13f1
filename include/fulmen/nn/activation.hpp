// Activations, and the rules of their gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/activation.h>

#include <cstdint>
#include <type_traits>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/nn/kernels.hpp>

#include <ATen/ExpandUtils.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_log_softmax_backward_data_cpu_dispatch.h>
#include <ATen/ops/_log_softmax_cpu_dispatch.h>
#include <ATen/ops/_prelu_kernel_backward.h>
#include <ATen/ops/_softmax.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/_softmax_backward_data_cpu_dispatch.h>
#include <ATen/ops/_softmax_cpu_dispatch.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/abs_cpu_dispatch.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/clamp_min_cpu_dispatch.h>
#include <ATen/ops/div.h>
#include <ATen/ops/div_cpu_dispatch.h>
#include <ATen/ops/elu.h>
#include <ATen/ops/elu_backward.h>
#include <ATen/ops/elu_backward_cpu_dispatch.h>
#include <ATen/ops/elu_cpu_dispatch.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/gelu_backward_cpu_dispatch.h>
#include <ATen/ops/gelu_cpu_dispatch.h>
#include <ATen/ops/glu.h>
#include <ATen/ops/glu_backward.h>
#include <ATen/ops/glu_backward_cpu_dispatch.h>
#include <ATen/ops/glu_cpu_dispatch.h>
#include <ATen/ops/hardshrink.h>
#include <ATen/ops/hardshrink_backward.h>
#include <ATen/ops/hardshrink_backward_cpu_dispatch.h>
#include <ATen/ops/hardshrink_cpu_dispatch.h>
#include <ATen/ops/hardsigmoid.h>
#include <ATen/ops/hardsigmoid_backward.h>
#include <ATen/ops/hardsigmoid_backward_cpu_dispatch.h>
#include <ATen/ops/hardsigmoid_cpu_dispatch.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/hardswish_backward.h>
#include <ATen/ops/hardswish_backward_cpu_dispatch.h>
#include <ATen/ops/hardswish_cpu_dispatch.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/hardtanh_backward_cpu_dispatch.h>
#include <ATen/ops/hardtanh_cpu_dispatch.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/leaky_relu_backward_cpu_dispatch.h>
#include <ATen/ops/leaky_relu_cpu_dispatch.h>
#include <ATen/ops/log_sigmoid_backward.h>
#include <ATen/ops/log_sigmoid_backward_cpu_dispatch.h>
#include <ATen/ops/log_sigmoid_forward.h>
#include <ATen/ops/log_sigmoid_forward_cpu_dispatch.h>
#include <ATen/ops/mish.h>
#include <ATen/ops/mish_backward.h>
#include <ATen/ops/mish_backward_cpu_dispatch.h>
#include <ATen/ops/mish_cpu_dispatch.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/mul_cpu_dispatch.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/neg_cpu_dispatch.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/rrelu_with_noise.h>
#include <ATen/ops/rrelu_with_noise_cpu_dispatch.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/sigmoid_backward_cpu_dispatch.h>
#include <ATen/ops/sigmoid_cpu_dispatch.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/silu_backward_cpu_dispatch.h>
#include <ATen/ops/silu_cpu_dispatch.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/softplus_backward.h>
#include <ATen/ops/softplus_backward_cpu_dispatch.h>
#include <ATen/ops/softplus_cpu_dispatch.h>
#include <ATen/ops/softshrink.h>
#include <ATen/ops/softshrink_backward.h>
#include <ATen/ops/softshrink_backward_cpu_dispatch.h>
#include <ATen/ops/softshrink_cpu_dispatch.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/sub_cpu_dispatch.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/tanh_backward_cpu_dispatch.h>
#include <ATen/ops/tanh_cpu_dispatch.h>
#include <ATen/ops/threshold.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/threshold_backward_cpu_dispatch.h>
#include <ATen/ops/threshold_cpu_dispatch.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#endif

namespace fulmen::nn {

// Inputs of any shape; the output has the same, GLU's aside. That a module says `inplace` changes nothing
// where its rule serves it: an activation writes into its input wherever nobody needs that any more.
using torch::nn::CELU;
using torch::nn::CELUOptions;
using torch::nn::ELU;
using torch::nn::ELUOptions;
using torch::nn::GELU;
using torch::nn::GELUOptions;
using torch::nn::GLU;
using torch::nn::GLUOptions;
using torch::nn::Hardshrink;
using torch::nn::HardshrinkOptions;
using torch::nn::Hardtanh;
using torch::nn::HardtanhOptions;
using torch::nn::LeakyReLU;
using torch::nn::LeakyReLUOptions;
using torch::nn::LogSigmoid;
using torch::nn::LogSoftmax;
using torch::nn::LogSoftmaxOptions;
using torch::nn::Mish;
using torch::nn::PReLU;
using torch::nn::PReLUOptions;
using torch::nn::ReLU;
using torch::nn::ReLU6;
using torch::nn::ReLU6Options;
using torch::nn::ReLUOptions;
using torch::nn::RReLU;
using torch::nn::RReLUOptions;
using torch::nn::SELU;
using torch::nn::SELUOptions;
using torch::nn::Sigmoid;
using torch::nn::SiLU;
using torch::nn::Softmax;
using torch::nn::Softmax2d;
using torch::nn::SoftmaxOptions;
using torch::nn::Softmin;
using torch::nn::SoftminOptions;
using torch::nn::Softplus;
using torch::nn::SoftplusOptions;
using torch::nn::Softshrink;
using torch::nn::SoftshrinkOptions;
using torch::nn::Softsign;
using torch::nn::Tanh;
using torch::nn::Tanhshrink;
using torch::nn::Threshold;
using torch::nn::ThresholdOptions;

/// x · clamp(x + 3, 0, 6) / 6. Source: torch.nn.Hardswish, which LibTorch has not as a module.
class Hardswish : public torch::nn::Cloneable<Hardswish> {
 public:
  Hardswish() : Cloneable("fulmen::nn::Hardswish") {}
  at::Tensor forward(const at::Tensor& x);
  void reset() override {}
};

/// clamp(x + 3, 0, 6) / 6. Source: torch.nn.Hardsigmoid, which LibTorch has not as a module.
class Hardsigmoid : public torch::nn::Cloneable<Hardsigmoid> {
 public:
  Hardsigmoid() : Cloneable("fulmen::nn::Hardsigmoid") {}
  at::Tensor forward(const at::Tensor& x);
  void reset() override {}
};

namespace detail {

/// The functions of one number that have kernels for themselves and for their gradients.
enum class Function {
  relu,
  hardtanh,
  leaky_relu,
  elu,
  gelu,
  silu,
  mish,
  sigmoid,
  tanh,
  hardshrink,
  softshrink,
  softplus,
  threshold,
  hardswish,
  hardsigmoid
};

/// Their parameters, in the order in which the kernels have them.
struct FunctionParameters {
  double a = 0, b = 0, c = 0;
  double backward_c = 0;         ///< elu's third one, where the gradient is computed with another
  const char* variant = "none";  ///< gelu's
};
inline FunctionParameters parameters_of(const torch::nn::Module&) { return {}; }
inline FunctionParameters parameters_of(const torch::nn::ReLU6Impl&) { return {0, 6}; }
inline FunctionParameters parameters_of(const torch::nn::HardtanhImpl& l) {
  return {l.options.min_val(), l.options.max_val()};
}
inline FunctionParameters parameters_of(const torch::nn::LeakyReLUImpl& l) {
  return {l.options.negative_slope()};
}
inline FunctionParameters parameters_of(const torch::nn::ELUImpl& l) { return {l.options.alpha(), 1, 1, 1}; }
inline FunctionParameters parameters_of(const torch::nn::SELUImpl&) {
  return {1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1, 1};
}
FunctionParameters parameters_of(const torch::nn::CELUImpl& layer);
inline FunctionParameters parameters_of(const torch::nn::GELUImpl& l) {
  return {0, 0, 0, 0, l.options.approximate().c_str()};
}
inline FunctionParameters parameters_of(const torch::nn::HardshrinkImpl& l) { return {l.options.lambda()}; }
inline FunctionParameters parameters_of(const torch::nn::SoftshrinkImpl& l) { return {l.options.lambda()}; }
inline FunctionParameters parameters_of(const torch::nn::SoftplusImpl& l) {
  return {l.options.beta(), l.options.threshold()};
}
inline FunctionParameters parameters_of(const torch::nn::ThresholdImpl& l) {
  return {l.options.threshold(), l.options.value()};
}

struct ElementwiseKept {
  Buffer output, gradient;
};

/// Where an elementwise rule is to write: over a tensor that nobody else needs, or in memory of its own. (Of
/// an expanded tensor several elements are one.)
inline at::Tensor& elementwise_out(Workspace& workspace, Buffer& out, const Buffer& like,
                                   bool may_overwrite) {
  if (may_overwrite && like->is_non_overlapping_and_dense()) return workspace.alias(out, like);
  return workspace.take(out, like->sizes(), *like);
}

Buffer& elementwise_forward(Function function, const FunctionParameters& p, ElementwiseKept& kept,
                            const ForwardPass<>& pass, bool in_place);
/// @param saved the input or the output, as the function's kernel wants it
Buffer* elementwise_backward(Function function, const FunctionParameters& p, ElementwiseKept& kept,
                             const BackwardPass<>& pass, const at::Tensor& saved);

enum class Saved { input, output };

template <class L, Function function, Saved saved>
struct ElementwiseRule {
  using Kept = ElementwiseKept;
  static constexpr bool saves_input = saved == Saved::input, saves_output = !saves_input,
                        in_place = !saves_input;

  static Buffer& forward(L& layer, Kept& kept, const ForwardPass<>& pass) {
    return elementwise_forward(function, parameters_of(layer), kept, pass, in_place);
  }
  static Buffer* backward(L& layer, Kept& kept, const BackwardPass<>& pass) {
    return elementwise_backward(function, parameters_of(layer), kept, pass,
                                saves_input ? pass.x() : pass.y());
  }
};

}  // namespace detail

// Those whose output says as much as their input save that: then the input can be overwritten, and the next
// layer mostly saves the output anyway.
template <>
struct Rule<torch::nn::ReLUImpl>
    : detail::ElementwiseRule<torch::nn::ReLUImpl, detail::Function::relu, detail::Saved::output> {};
template <>
struct Rule<torch::nn::ReLU6Impl>
    : detail::ElementwiseRule<torch::nn::ReLU6Impl, detail::Function::hardtanh, detail::Saved::output> {};
template <>
struct Rule<torch::nn::HardtanhImpl>
    : detail::ElementwiseRule<torch::nn::HardtanhImpl, detail::Function::hardtanh, detail::Saved::output> {};
template <>
struct Rule<torch::nn::SigmoidImpl>
    : detail::ElementwiseRule<torch::nn::SigmoidImpl, detail::Function::sigmoid, detail::Saved::output> {};
template <>
struct Rule<torch::nn::TanhImpl>
    : detail::ElementwiseRule<torch::nn::TanhImpl, detail::Function::tanh, detail::Saved::output> {};
template <>
struct Rule<torch::nn::HardshrinkImpl>
    : detail::ElementwiseRule<torch::nn::HardshrinkImpl, detail::Function::hardshrink,
                              detail::Saved::output> {};
template <>
struct Rule<torch::nn::SoftshrinkImpl>
    : detail::ElementwiseRule<torch::nn::SoftshrinkImpl, detail::Function::softshrink,
                              detail::Saved::output> {};
template <>
struct Rule<torch::nn::ELUImpl>
    : detail::ElementwiseRule<torch::nn::ELUImpl, detail::Function::elu, detail::Saved::input> {};
template <>
struct Rule<torch::nn::SELUImpl>
    : detail::ElementwiseRule<torch::nn::SELUImpl, detail::Function::elu, detail::Saved::input> {};
template <>
struct Rule<torch::nn::CELUImpl>
    : detail::ElementwiseRule<torch::nn::CELUImpl, detail::Function::elu, detail::Saved::input> {};
template <>
struct Rule<torch::nn::GELUImpl>
    : detail::ElementwiseRule<torch::nn::GELUImpl, detail::Function::gelu, detail::Saved::input> {};
template <>
struct Rule<torch::nn::SiLUImpl>
    : detail::ElementwiseRule<torch::nn::SiLUImpl, detail::Function::silu, detail::Saved::input> {};
template <>
struct Rule<torch::nn::MishImpl>
    : detail::ElementwiseRule<torch::nn::MishImpl, detail::Function::mish, detail::Saved::input> {};
template <>
struct Rule<torch::nn::SoftplusImpl>
    : detail::ElementwiseRule<torch::nn::SoftplusImpl, detail::Function::softplus, detail::Saved::input> {};
template <>
struct Rule<torch::nn::ThresholdImpl>
    : detail::ElementwiseRule<torch::nn::ThresholdImpl, detail::Function::threshold, detail::Saved::input> {};
template <>
struct Rule<Hardswish>
    : detail::ElementwiseRule<Hardswish, detail::Function::hardswish, detail::Saved::input> {};
template <>
struct Rule<Hardsigmoid>
    : detail::ElementwiseRule<Hardsigmoid, detail::Function::hardsigmoid, detail::Saved::input> {};

/// x where it is positive, else slope · x. The sign of the output says which, unless the slope is negative.
template <>
struct Rule<torch::nn::LeakyReLUImpl> {
  struct Kept : detail::ElementwiseKept {
    Buffer input;
  };
  static constexpr bool saves_input = false, saves_output = true, in_place = true;

  static Buffer& forward(torch::nn::LeakyReLUImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::LeakyReLUImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

/// x where it is positive, else weight · x: one weight, or one for each channel (the second dimension).
template <>
struct Rule<torch::nn::PReLUImpl> {
  struct Kept {
    Buffer output, gradient;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::PReLUImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::PReLUImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

/// x where it is positive, else slope · x: drawn for each element in training, else the mean.
template <>
struct Rule<torch::nn::RReLUImpl> {
  struct Kept {
    Buffer output, noise, gradient;
    bool drawn = false;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::RReLUImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::RReLUImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

/// log(sigmoid(x)).
template <>
struct Rule<torch::nn::LogSigmoidImpl> {
  struct Kept {
    Buffer output, exponential, gradient;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::LogSigmoidImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::LogSigmoidImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

/// x - tanh(x).
template <>
struct Rule<torch::nn::TanhshrinkImpl> {
  struct Kept {
    Buffer output, tanh, gradient;
  };
  static constexpr bool saves_input = false, saves_output = false, in_place = true;

  static Buffer& forward(torch::nn::TanhshrinkImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::TanhshrinkImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

/// x / (1 + |x|), whose gradient is 1 / (1 + |x|)².
template <>
struct Rule<torch::nn::SoftsignImpl> {
  struct Kept {
    Buffer output, denominator, gradient;
  };
  static constexpr bool saves_input = false, saves_output = false, in_place = true;

  static Buffer& forward(torch::nn::SoftsignImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::SoftsignImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

/// a · sigmoid(b) of the two halves along a dimension, which must be even.
template <>
struct Rule<torch::nn::GLUImpl> {
  struct Kept {
    Buffer output, gradient;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::GLUImpl& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(torch::nn::GLUImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

namespace detail {

enum class SoftmaxOf { x, minus_x, logarithm };

struct SoftmaxKept {
  Buffer negated, output, gradient;
};
Buffer& softmax_forward(SoftmaxOf of, std::int64_t dim, SoftmaxKept& kept, const ForwardPass<>& pass);
Buffer* softmax_backward(SoftmaxOf of, std::int64_t dim, SoftmaxKept& kept, const BackwardPass<>& pass);

inline constexpr std::int64_t channels_of_images = -3;
template <class L>
std::int64_t softmax_dim(const L& layer) {
  if constexpr (requires { layer.options.dim(); })
    return layer.options.dim();
  else
    return channels_of_images;
}
void check_softmax2d(const at::Tensor& x);

template <class L, SoftmaxOf of>
struct SoftmaxRule {
  using Kept = SoftmaxKept;
  static constexpr bool saves_input = false, saves_output = true;

  static Buffer& forward(L& layer, Kept& kept, const ForwardPass<>& pass) {
    if constexpr (std::is_same_v<L, torch::nn::Softmax2dImpl>) check_softmax2d(pass.x());
    return softmax_forward(of, softmax_dim(layer), kept, pass);
  }
  static Buffer* backward(L& layer, Kept& kept, const BackwardPass<>& pass) {
    return softmax_backward(of, softmax_dim(layer), kept, pass);
  }
};

}  // namespace detail

template <>
struct Rule<torch::nn::SoftmaxImpl> : detail::SoftmaxRule<torch::nn::SoftmaxImpl, detail::SoftmaxOf::x> {};
template <>
struct Rule<torch::nn::Softmax2dImpl> : detail::SoftmaxRule<torch::nn::Softmax2dImpl, detail::SoftmaxOf::x> {
};
template <>
struct Rule<torch::nn::SoftminImpl>
    : detail::SoftmaxRule<torch::nn::SoftminImpl, detail::SoftmaxOf::minus_x> {};
template <>
struct Rule<torch::nn::LogSoftmaxImpl>
    : detail::SoftmaxRule<torch::nn::LogSoftmaxImpl, detail::SoftmaxOf::logarithm> {};

#if FULMEN_BODIES
FULMEN_INLINE at::Tensor Hardswish::forward(const at::Tensor& x) { return at::hardswish(x); }
FULMEN_INLINE at::Tensor Hardsigmoid::forward(const at::Tensor& x) { return at::hardsigmoid(x); }

namespace detail {

FULMEN_INLINE FunctionParameters parameters_of(const torch::nn::CELUImpl& layer) {
  const double alpha = layer.options.alpha();
  if (alpha == 0) fail<std::invalid_argument>("CELU: alpha is {}, expected another number", alpha);
  // That the gradient has it in single precision is autograd's formula.
  return {alpha, 1, 1 / alpha, 1.0 / static_cast<float>(alpha)};
}

/// Calls ATen's kernel for the CPU, or whatever the dispatcher finds: that costs as much as a small kernel
/// does.
template <auto cpu, auto any, class... Arguments>
void on_device(at::Tensor& out, const Arguments&... arguments) {
  if (out.is_cpu()) [[likely]]
    cpu(out, arguments...);
  else
    any(out, arguments...);
}

FULMEN_INLINE Buffer& elementwise_forward(Function function, const FunctionParameters& p,
                                          ElementwiseKept& kept, const ForwardPass<>& pass, bool in_place) {
  const at::Tensor& x = pass.x();
  at::Tensor& y =
      elementwise_out(pass.workspace, kept.output, *pass.inputs[0], in_place && pass.may_overwrite);
  switch (function) {
    case Function::relu:
      if (kernels::relu(y, x)) [[likely]]
        break;
      if (y.is_cpu())
        at::cpu::clamp_min_out(y, x, 0);
      else
        at::clamp_min_out(y, x, 0);
      break;
    case Function::hardtanh:
      on_device<at::cpu::hardtanh_out, at::hardtanh_out>(y, x, p.a, p.b);
      break;
    case Function::leaky_relu:
      on_device<at::cpu::leaky_relu_out, at::leaky_relu_out>(y, x, p.a);
      break;
    case Function::elu:
      on_device<at::cpu::elu_out, at::elu_out>(y, x, p.a, p.b, p.c);
      break;
    case Function::gelu:
      on_device<at::cpu::gelu_out, at::gelu_out>(y, x, p.variant);
      break;
    case Function::silu:
      on_device<at::cpu::silu_out, at::silu_out>(y, x);
      break;
    case Function::mish:
      on_device<at::cpu::mish_out, at::mish_out>(y, x);
      break;
    case Function::sigmoid:
      on_device<at::cpu::sigmoid_out, at::sigmoid_out>(y, x);
      break;
    case Function::tanh:
      on_device<at::cpu::tanh_out, at::tanh_out>(y, x);
      break;
    case Function::hardshrink:
      on_device<at::cpu::hardshrink_out, at::hardshrink_out>(y, x, p.a);
      break;
    case Function::softshrink:
      on_device<at::cpu::softshrink_out, at::softshrink_out>(y, x, p.a);
      break;
    case Function::softplus:
      on_device<at::cpu::softplus_out, at::softplus_out>(y, x, p.a, p.b);
      break;
    case Function::threshold:
      on_device<at::cpu::threshold_out, at::threshold_out>(y, x, p.a, p.b);
      break;
    case Function::hardswish:
      on_device<at::cpu::hardswish_out, at::hardswish_out>(y, x);
      break;
    case Function::hardsigmoid:
      on_device<at::cpu::hardsigmoid_out, at::hardsigmoid_out>(y, x);
      break;
  }
  return kept.output;
}

FULMEN_INLINE Buffer* elementwise_backward(Function function, const FunctionParameters& p,
                                           ElementwiseKept& kept, const BackwardPass<>& pass,
                                           const at::Tensor& saved) {
  const at::Tensor& gy = pass.grad();
  // These two have no kernels with an output.
  if (function == Function::mish) {
    pass.workspace.hold(kept.gradient,
                        gy.is_cpu() ? at::cpu::mish_backward(gy, saved) : at::mish_backward(gy, saved));
    return &kept.gradient;
  }
  if (function == Function::hardswish) {
    pass.workspace.hold(kept.gradient, gy.is_cpu() ? at::cpu::hardswish_backward(gy, saved)
                                                   : at::hardswish_backward(gy, saved));
    return &kept.gradient;
  }
  at::Tensor& gx = elementwise_out(pass.workspace, kept.gradient, *pass.gradients[0], pass.may_overwrite);
  switch (function) {
    case Function::relu:
      if (!kernels::relu_backward(gx, gy, saved))
        on_device<at::cpu::threshold_backward_out, at::threshold_backward_out>(gx, gy, saved, 0);
      break;
    case Function::hardtanh:
      on_device<at::cpu::hardtanh_backward_out, at::hardtanh_backward_out>(gx, gy, saved, p.a, p.b);
      break;
    // Of input and output alike: these have one sign.
    case Function::leaky_relu:
      on_device<at::cpu::leaky_relu_backward_out, at::leaky_relu_backward_out>(gx, gy, saved, p.a, false);
      break;
    case Function::elu:
      on_device<at::cpu::elu_backward_out, at::elu_backward_out>(gx, gy, p.a, p.b, p.backward_c, false,
                                                                 saved);
      break;
    case Function::gelu:
      on_device<at::cpu::gelu_backward_out, at::gelu_backward_out>(gx, gy, saved, p.variant);
      break;
    case Function::silu:
      on_device<at::cpu::silu_backward_out, at::silu_backward_out>(gx, gy, saved);
      break;
    case Function::sigmoid:
      on_device<at::cpu::sigmoid_backward_out, at::sigmoid_backward_out>(gx, gy, saved);
      break;
    case Function::tanh:
      on_device<at::cpu::tanh_backward_out, at::tanh_backward_out>(gx, gy, saved);
      break;
    // The output is 0 where the input is in [-lambda, lambda], and in the interval nowhere else: 0 alone
    // where it has been shifted.
    case Function::hardshrink:
      on_device<at::cpu::hardshrink_backward_out, at::hardshrink_backward_out>(gx, gy, saved, p.a);
      break;
    case Function::softshrink:
      on_device<at::cpu::softshrink_backward_out, at::softshrink_backward_out>(gx, gy, saved, 0);
      break;
    case Function::softplus:
      on_device<at::cpu::softplus_backward_out, at::softplus_backward_out>(gx, gy, saved, p.a, p.b);
      break;
    case Function::threshold:
      on_device<at::cpu::threshold_backward_out, at::threshold_backward_out>(gx, gy, saved, p.a);
      break;
    case Function::hardsigmoid:
      on_device<at::cpu::hardsigmoid_backward_out, at::hardsigmoid_backward_out>(gx, gy, saved);
      break;
    case Function::mish:
    case Function::hardswish:
      break;
  }
  return &kept.gradient;
}

FULMEN_INLINE Buffer& softmax_forward(SoftmaxOf of, std::int64_t dim, SoftmaxKept& kept,
                                      const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor* x = &pass.x();
  if (of == SoftmaxOf::minus_x) {
    at::Tensor& negated = workspace.take(kept.negated, x->sizes(), *x);
    on_device<at::cpu::neg_out, at::neg_out>(negated, *x);
    x = &negated;
  }
  at::Tensor& y = workspace.take(kept.output, x->sizes(), *x);
  if (of == SoftmaxOf::logarithm)
    on_device<at::cpu::_log_softmax_out, at::_log_softmax_out>(y, *x, dim, false);
  else
    on_device<at::cpu::_softmax_out, at::_softmax_out>(y, *x, dim, false);
  workspace.release(kept.negated);
  return kept.output;
}

FULMEN_INLINE Buffer* softmax_backward(SoftmaxOf of, std::int64_t dim, SoftmaxKept& kept,
                                       const BackwardPass<>& pass) {
  const at::Tensor& gy = pass.grad();
  const at::Tensor& y = pass.y();
  at::Tensor& gx = pass.workspace.take(kept.gradient, gy.sizes(), gy);
  if (of == SoftmaxOf::logarithm)
    on_device<at::cpu::_log_softmax_backward_data_out, at::_log_softmax_backward_data_out>(gx, gy, y, dim,
                                                                                           y.scalar_type());
  else
    on_device<at::cpu::_softmax_backward_data_out, at::_softmax_backward_data_out>(gx, gy, y, dim,
                                                                                   y.scalar_type());
  if (of == SoftmaxOf::minus_x) on_device<at::cpu::neg_out, at::neg_out>(gx, gx);
  return &kept.gradient;
}

FULMEN_INLINE void check_softmax2d(const at::Tensor& x) {
  if (x.dim() != 3 && x.dim() != 4)
    fail<std::invalid_argument>("Softmax2d: the input has {} dimensions, expected 3 or 4", x.dim());
}

/// A PReLU's weights, shaped so that they are the channels' of x.
inline at::Tensor prelu_weight(const at::Tensor& weight, const at::Tensor& x) {
  at::DimVector sizes(static_cast<std::size_t>(x.dim()), 1);
  if (x.dim() > 1) sizes[1] = weight.numel();
  return weight.detach().view(sizes);
}

}  // namespace detail

FULMEN_INLINE Buffer& Rule<torch::nn::LeakyReLUImpl>::forward(torch::nn::LeakyReLUImpl& layer, Kept& kept,
                                                              const ForwardPass<>& pass) {
  if (layer.options.negative_slope() < 0 && pass.has_backward) {
    pass.workspace.take(kept.input, pass.x().sizes(), pass.x()).copy_(pass.x());
  }
  return detail::elementwise_forward(detail::Function::leaky_relu, detail::parameters_of(layer), kept, pass,
                                     true);
}
FULMEN_INLINE Buffer* Rule<torch::nn::LeakyReLUImpl>::backward(torch::nn::LeakyReLUImpl& layer, Kept& kept,
                                                               const BackwardPass<>& pass) {
  Buffer* const out =
      detail::elementwise_backward(detail::Function::leaky_relu, detail::parameters_of(layer), kept, pass,
                                   layer.options.negative_slope() < 0 ? *kept.input : pass.y());
  pass.workspace.release(kept.input);
  return out;
}

FULMEN_INLINE Buffer& Rule<torch::nn::PReLUImpl>::forward(torch::nn::PReLUImpl& layer, Kept& kept,
                                                          const ForwardPass<>& pass) {
  pass.workspace.hold(kept.output, at::prelu(pass.x(), layer.weight));
  return kept.output;
}
FULMEN_INLINE Buffer* Rule<torch::nn::PReLUImpl>::backward(torch::nn::PReLUImpl& layer, Kept& kept,
                                                           const BackwardPass<>& pass) {
  const at::Tensor weight = detail::prelu_weight(layer.weight, pass.x());
  auto [gx, of_weight] = at::_prelu_kernel_backward(pass.grad(), pass.x(), weight);
  if (layer.weight.requires_grad())
    add_gradient(layer.weight,
                 at::sum_to(std::move(of_weight), weight.sizes()).reshape(layer.weight.sizes()));
  if (!pass.wants_input) return nullptr;
  pass.workspace.hold(kept.gradient, std::move(gx));
  return &kept.gradient;
}

FULMEN_INLINE Buffer& Rule<torch::nn::RReLUImpl>::forward(torch::nn::RReLUImpl& layer, Kept& kept,
                                                          const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& x = pass.x();
  const double lower = layer.options.lower(), upper = layer.options.upper();
  if (!(lower <= upper))
    fail<std::invalid_argument>("RReLU: lower is {} and upper is {}, expected lower <= upper", lower, upper);
  at::Tensor& y = workspace.take(kept.output, x.sizes(), x);
  if (layer.is_training()) {
    at::Tensor& noise = workspace.take(kept.noise, x.sizes(), x);
    if (y.is_cpu()) [[likely]]
      at::cpu::rrelu_with_noise_out(y, x, noise, lower, upper, true);
    else
      at::rrelu_with_noise_out(y, x, noise, lower, upper, true);
    // So near to each other the gradient is the mean's, in autograd, too.
    kept.drawn = upper - lower > 1e-6;
    if (!kept.drawn || !pass.has_backward) workspace.release(kept.noise);
  } else {
    detail::on_device<at::cpu::leaky_relu_out, at::leaky_relu_out>(y, x, (lower + upper) / 2);
    kept.drawn = false;
  }
  return kept.output;
}
FULMEN_INLINE Buffer* Rule<torch::nn::RReLUImpl>::backward(torch::nn::RReLUImpl& layer, Kept& kept,
                                                           const BackwardPass<>& pass) {
  const at::Tensor& gy = pass.grad();
  at::Tensor& gx =
      detail::elementwise_out(pass.workspace, kept.gradient, *pass.gradients[0], pass.may_overwrite);
  const double mean = (layer.options.lower() + layer.options.upper()) / 2;
  if (!kept.drawn)
    detail::on_device<at::cpu::leaky_relu_backward_out, at::leaky_relu_backward_out>(gx, gy, pass.x(), mean,
                                                                                     false);
  else if (gx.is_cpu()) [[likely]]
    at::cpu::mul_out(gx, gy, *kept.noise);
  else
    at::mul_out(gx, gy, *kept.noise);
  pass.workspace.release(kept.noise);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& Rule<torch::nn::LogSigmoidImpl>::forward(torch::nn::LogSigmoidImpl&, Kept& kept,
                                                               const ForwardPass<>& pass) {
  const at::Tensor& x = pass.x();
  at::Tensor& y = pass.workspace.take(kept.output, x.sizes(), x);
  // Of use on the CPU only.
  at::Tensor& exponential =
      pass.workspace.take(kept.exponential, x.is_cpu() ? x.sizes() : at::IntArrayRef{0}, x);
  if (x.is_cpu()) [[likely]]
    at::cpu::log_sigmoid_forward_out(y, exponential, x);
  else
    at::log_sigmoid_forward_out(y, exponential, x);
  if (!pass.has_backward) pass.workspace.release(kept.exponential);
  return kept.output;
}
FULMEN_INLINE Buffer* Rule<torch::nn::LogSigmoidImpl>::backward(torch::nn::LogSigmoidImpl&, Kept& kept,
                                                                const BackwardPass<>& pass) {
  at::Tensor& gx =
      detail::elementwise_out(pass.workspace, kept.gradient, *pass.gradients[0], pass.may_overwrite);
  detail::on_device<at::cpu::log_sigmoid_backward_out, at::log_sigmoid_backward_out>(
      gx, pass.grad(), pass.x(), *kept.exponential);
  pass.workspace.release(kept.exponential);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& Rule<torch::nn::TanhshrinkImpl>::forward(torch::nn::TanhshrinkImpl&, Kept& kept,
                                                               const ForwardPass<>& pass) {
  const at::Tensor& x = pass.x();
  at::Tensor& tanh = pass.workspace.take(kept.tanh, x.sizes(), x);
  at::Tensor& y = detail::elementwise_out(pass.workspace, kept.output, *pass.inputs[0], pass.may_overwrite);
  detail::on_device<at::cpu::tanh_out, at::tanh_out>(tanh, x);
  if (y.is_cpu()) [[likely]]
    at::cpu::sub_out(y, x, tanh);
  else
    at::sub_out(y, x, tanh);
  if (!pass.has_backward) pass.workspace.release(kept.tanh);
  return kept.output;
}
FULMEN_INLINE Buffer* Rule<torch::nn::TanhshrinkImpl>::backward(torch::nn::TanhshrinkImpl&, Kept& kept,
                                                                const BackwardPass<>& pass) {
  const at::Tensor& gy = pass.grad();
  at::Tensor of_tanh = *kept.tanh;  // becomes its gradient
  detail::on_device<at::cpu::tanh_backward_out, at::tanh_backward_out>(of_tanh, gy, of_tanh);
  at::Tensor& gx =
      detail::elementwise_out(pass.workspace, kept.gradient, *pass.gradients[0], pass.may_overwrite);
  if (gx.is_cpu()) [[likely]]
    at::cpu::sub_out(gx, gy, of_tanh);
  else
    at::sub_out(gx, gy, of_tanh);
  pass.workspace.release(kept.tanh);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& Rule<torch::nn::SoftsignImpl>::forward(torch::nn::SoftsignImpl&, Kept& kept,
                                                             const ForwardPass<>& pass) {
  const at::Tensor& x = pass.x();
  at::Tensor& denominator = pass.workspace.take(kept.denominator, x.sizes(), x);
  at::Tensor& y = detail::elementwise_out(pass.workspace, kept.output, *pass.inputs[0], pass.may_overwrite);
  detail::on_device<at::cpu::abs_out, at::abs_out>(denominator, x);
  denominator.add_(1);
  if (y.is_cpu()) [[likely]]
    at::cpu::div_out(y, x, denominator);
  else
    at::div_out(y, x, denominator);
  if (!pass.has_backward) pass.workspace.release(kept.denominator);
  return kept.output;
}
FULMEN_INLINE Buffer* Rule<torch::nn::SoftsignImpl>::backward(torch::nn::SoftsignImpl&, Kept& kept,
                                                              const BackwardPass<>& pass) {
  const at::Tensor& gy = pass.grad();
  at::Tensor& gx =
      detail::elementwise_out(pass.workspace, kept.gradient, *pass.gradients[0], pass.may_overwrite);
  if (gx.is_cpu()) [[likely]] {
    at::cpu::div_out(gx, gy, *kept.denominator);
    at::cpu::div_out(gx, gx, *kept.denominator);
  } else {
    at::div_out(gx, gy, *kept.denominator);
    at::div_out(gx, gx, *kept.denominator);
  }
  pass.workspace.release(kept.denominator);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& Rule<torch::nn::GLUImpl>::forward(torch::nn::GLUImpl& layer, Kept& kept,
                                                        const ForwardPass<>& pass) {
  const at::Tensor& x = pass.x();
  if (x.dim() == 0)
    fail<std::invalid_argument>("GLU: the input has 0 dimensions, expected one that can be halved");
  const std::int64_t dim = at::maybe_wrap_dim(layer.options.dim(), x.dim());
  at::DimVector sizes(x.sizes());
  if (x.size(dim) % 2 != 0)
    fail<std::invalid_argument>("GLU: dimension {} of the input is {}, expected an even number", dim,
                                x.size(dim));
  sizes[static_cast<std::size_t>(dim)] /= 2;
  detail::on_device<at::cpu::glu_out, at::glu_out>(pass.workspace.take(kept.output, sizes, x), x, dim);
  return kept.output;
}
FULMEN_INLINE Buffer* Rule<torch::nn::GLUImpl>::backward(torch::nn::GLUImpl& layer, Kept& kept,
                                                         const BackwardPass<>& pass) {
  at::Tensor& gx = pass.workspace.take(kept.gradient, pass.x().sizes(), pass.x());
  detail::on_device<at::cpu::glu_backward_out, at::glu_backward_out>(gx, pass.grad(), pass.x(),
                                                                     layer.options.dim());
  return &kept.gradient;
}
#endif

}  // namespace fulmen::nn
