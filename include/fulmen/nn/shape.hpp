// Layers that change no value but the shape, or leave values out, and the rules of their gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <ATen/core/DimVector.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <tuple>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/WrapDimUtilsMulti.h>
#include <ATen/ops/div.h>
#include <ATen/ops/div_cpu_dispatch.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mean_cpu_dispatch.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <stdexcept>
#include <utility>
#endif

namespace fulmen::nn {

using torch::nn::Flatten;
using torch::nn::FlattenOptions;
using torch::nn::Identity;
using torch::nn::Unflatten;
using torch::nn::UnflattenOptions;

/// N×… to N×sizes: a sample's shape, of which one dimension may be -1. `Reshape({3, 28, 28})`.
/// Source: Tensor.reshape. @throws std::invalid_argument if an input has no dimensions
class Reshape : public torch::nn::Cloneable<Reshape> {
 public:
  explicit Reshape(std::vector<std::int64_t> sizes);
  at::Tensor forward(const at::Tensor& x) const;
  void reset() override {}
  /// What becomes of the shape of an input.
  at::DimVector sizes_of(at::IntArrayRef input) const;

 private:
  std::vector<std::int64_t> sizes_;
};

/// The dimensions in another order: `Permute({0, 2, 1})`. Source: Tensor.permute, whose errors it has.
class Permute : public torch::nn::Cloneable<Permute> {
 public:
  explicit Permute(std::vector<std::int64_t> dims);
  at::Tensor forward(const at::Tensor& x) const { return x.permute(dims_); }
  void reset() override {}
  /// The gradient of an input, from that of its output.
  at::Tensor back(const at::Tensor& gradient, std::int64_t input_dims) const;

 private:
  std::vector<std::int64_t> dims_;
};

/// Two dimensions exchanged: `Transpose(1, 2)`. Source: Tensor.transpose, whose errors it has.
class Transpose : public torch::nn::Cloneable<Transpose> {
 public:
  Transpose(std::int64_t a, std::int64_t b);
  at::Tensor forward(const at::Tensor& x) const { return x.transpose(a_, b_); }
  void reset() override {}
  at::Tensor back(const at::Tensor& gradient, std::int64_t) const { return gradient.transpose(a_, b_); }

 private:
  std::int64_t a_, b_;
};

/// Without a dimension of one element, if it has just one: `Squeeze(-1)`. Source: Tensor.squeeze(dim), whose
/// errors it has.
class Squeeze : public torch::nn::Cloneable<Squeeze> {
 public:
  explicit Squeeze(std::int64_t dim);
  at::Tensor forward(const at::Tensor& x) const { return x.squeeze(dim_); }
  void reset() override {}
  at::Tensor back(const at::Tensor& gradient, std::int64_t input_dims) const;

 private:
  std::int64_t dim_;
};

/// With another dimension, of one element: `Unsqueeze(1)`. Source: Tensor.unsqueeze, whose errors it has.
class Unsqueeze : public torch::nn::Cloneable<Unsqueeze> {
 public:
  explicit Unsqueeze(std::int64_t dim);
  at::Tensor forward(const at::Tensor& x) const { return x.unsqueeze(dim_); }
  void reset() override {}
  at::Tensor back(const at::Tensor& gradient, std::int64_t) const { return gradient.squeeze(dim_); }

 private:
  std::int64_t dim_;
};

/// The I-th of several inputs: `Select<0>()`. The others get no gradient.
template <std::size_t I>
class Select : public torch::nn::Cloneable<Select<I>> {
 public:
  Select() : torch::nn::Cloneable<Select<I>>("fulmen::nn::Select") {}
  template <std::convertible_to<const at::Tensor&>... In>
    requires(I < sizeof...(In))
  at::Tensor forward(const In&... x)
  const { return std::get<I>(std::tie(x...)); }
  void reset() override {}
};

/// The mean over dimensions: `Mean({2, 3})` pools images, `Mean({1})` a sequence. They are left out, or have
/// one element if `keepdim`. Source: Tensor.mean(dim), whose errors it has. @throws std::invalid_argument if
/// no dimension is given
class Mean : public torch::nn::Cloneable<Mean> {
 public:
  explicit Mean(std::vector<std::int64_t> dims, bool keepdim = false);
  at::Tensor forward(const at::Tensor& x) const;
  void reset() override {}
  const std::vector<std::int64_t>& dims() const { return dims_; }
  bool keepdim() const { return keepdim_; }

 private:
  std::vector<std::int64_t> dims_;
  bool keepdim_;
};

namespace detail {

struct ShapeKept {
  Buffer output, gradient;
  at::DimVector input_sizes;
};

/// The tensor in this shape: a view, or a copy where there is none.
Buffer& reshape_to(Workspace& workspace, Buffer& out, const Buffer& of, at::IntArrayRef sizes);

at::DimVector sizes_of(const torch::nn::FlattenImpl& layer, at::IntArrayRef input);
at::DimVector sizes_of(const torch::nn::UnflattenImpl& layer, at::IntArrayRef input);
inline at::DimVector sizes_of(const Reshape& layer, at::IntArrayRef input) { return layer.sizes_of(input); }

/// Of a layer whose output has the input's elements in their order.
template <class L>
struct ReshapeRule {
  using Kept = ShapeKept;
  static constexpr bool saves_input = false, saves_output = false, owns_output = false;

  static Buffer& forward(L& layer, Kept& kept, const ForwardPass<>& pass) {
    kept.input_sizes = at::DimVector(pass.x().sizes());
    return reshape_to(pass.workspace, kept.output, *pass.inputs[0], sizes_of(layer, pass.x().sizes()));
  }
  static Buffer* backward(L&, Kept& kept, const BackwardPass<>& pass) {
    return &reshape_to(pass.workspace, kept.gradient, *pass.gradients[0], kept.input_sizes);
  }
};

/// Of a layer whose forward gives a view, and back() the view of a gradient.
template <class L>
struct ViewRule {
  struct Kept {
    Buffer output, gradient;
    std::int64_t input_dims = 0;
  };
  static constexpr bool saves_input = false, saves_output = false, owns_output = false;

  static Buffer& forward(L& layer, Kept& kept, const ForwardPass<>& pass) {
    kept.input_dims = pass.x().dim();
    pass.workspace.view(kept.output, *pass.inputs[0], [&](const at::Tensor& t) { return layer.forward(t); });
    return kept.output;
  }
  static Buffer* backward(L& layer, Kept& kept, const BackwardPass<>& pass) {
    pass.workspace.view(kept.gradient, *pass.gradients[0],
                        [&](const at::Tensor& t) { return layer.back(t, kept.input_dims); });
    return &kept.gradient;
  }
};

}  // namespace detail

template <>
struct Rule<torch::nn::FlattenImpl> : detail::ReshapeRule<torch::nn::FlattenImpl> {};
template <>
struct Rule<torch::nn::UnflattenImpl> : detail::ReshapeRule<torch::nn::UnflattenImpl> {};
template <>
struct Rule<Reshape> : detail::ReshapeRule<Reshape> {};
template <>
struct Rule<Permute> : detail::ViewRule<Permute> {};
template <>
struct Rule<Transpose> : detail::ViewRule<Transpose> {};
template <>
struct Rule<Squeeze> : detail::ViewRule<Squeeze> {};
template <>
struct Rule<Unsqueeze> : detail::ViewRule<Unsqueeze> {};

template <std::size_t I, std::size_t N>
struct Rule<Select<I>, N> {
  static_assert(I < N, "fulmen: Select is given fewer tensors than the index of the one it selects");
  struct Kept {
    Buffer output, gradient;
  };
  static constexpr bool saves_input = false, saves_output = false, owns_output = false;

  static Buffer& forward(Select<I>&, Kept& kept, const ForwardPass<N>& pass) {
    pass.workspace.alias(kept.output, *pass.inputs[I]);
    return kept.output;
  }
  static std::array<Buffer*, N> backward(Select<I>&, Kept& kept, const BackwardPass<N>& pass) {
    pass.workspace.alias(kept.gradient, *pass.gradients[0]);
    std::array<Buffer*, N> out{};
    out[I] = &kept.gradient;
    return out;
  }
};

template <>
struct Rule<torch::nn::IdentityImpl> {
  struct Kept {
    Buffer output, gradient;
  };
  static constexpr bool saves_input = false, saves_output = false, owns_output = false;

  static Buffer& forward(torch::nn::IdentityImpl&, Kept& kept, const ForwardPass<>& pass) {
    pass.workspace.alias(kept.output, *pass.inputs[0]);
    return kept.output;
  }
  static Buffer* backward(torch::nn::IdentityImpl&, Kept& kept, const BackwardPass<>& pass) {
    pass.workspace.alias(kept.gradient, *pass.gradients[0]);
    return &kept.gradient;
  }
};

template <>
struct Rule<Mean> {
  struct Kept {
    Buffer output, expanded, gradient;
    at::DimVector input_sizes;
    at::Tensor divisor;
    std::int64_t count = -1;
  };
  static constexpr bool saves_input = false, saves_output = false;

  static Buffer& forward(Mean& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(Mean& layer, Kept& kept, const BackwardPass<>& pass);
};

#if FULMEN_BODIES
FULMEN_INLINE Reshape::Reshape(std::vector<std::int64_t> sizes)
    : Cloneable("fulmen::nn::Reshape"), sizes_(std::move(sizes)) {}
FULMEN_INLINE at::DimVector Reshape::sizes_of(at::IntArrayRef input) const {
  if (input.empty()) fail<std::invalid_argument>("Reshape: the input has no dimensions, expected a batch");
  std::int64_t elements = 1;
  for (const std::int64_t size : input.slice(1)) elements *= size;
  at::DimVector out = at::infer_size_dv(sizes_, elements);
  out.insert(out.begin(), input[0]);
  return out;
}
FULMEN_INLINE at::Tensor Reshape::forward(const at::Tensor& x) const {
  return x.reshape(sizes_of(x.sizes()));
}

FULMEN_INLINE Permute::Permute(std::vector<std::int64_t> dims)
    : Cloneable("fulmen::nn::Permute"), dims_(std::move(dims)) {}
FULMEN_INLINE at::Tensor Permute::back(const at::Tensor& gradient, std::int64_t input_dims) const {
  std::vector<std::int64_t> places(dims_.size());
  for (std::size_t i = 0; i < dims_.size(); ++i) {
    places[static_cast<std::size_t>(at::maybe_wrap_dim(dims_[i], input_dims))] = static_cast<std::int64_t>(i);
  }
  return gradient.permute(places);
}

FULMEN_INLINE Transpose::Transpose(std::int64_t a, std::int64_t b)
    : Cloneable("fulmen::nn::Transpose"), a_(a), b_(b) {}
FULMEN_INLINE Squeeze::Squeeze(std::int64_t dim) : Cloneable("fulmen::nn::Squeeze"), dim_(dim) {}
FULMEN_INLINE at::Tensor Squeeze::back(const at::Tensor& gradient, std::int64_t input_dims) const {
  // There may have been nothing to leave out.
  if (gradient.dim() == input_dims) return gradient;
  return gradient.unsqueeze(at::maybe_wrap_dim(dim_, input_dims));
}
FULMEN_INLINE Unsqueeze::Unsqueeze(std::int64_t dim) : Cloneable("fulmen::nn::Unsqueeze"), dim_(dim) {}

FULMEN_INLINE Mean::Mean(std::vector<std::int64_t> dims, bool keepdim)
    : Cloneable("fulmen::nn::Mean"), dims_(std::move(dims)), keepdim_(keepdim) {
  if (dims_.empty()) fail<std::invalid_argument>("Mean: no dimensions are given, expected one or more");
}
FULMEN_INLINE at::Tensor Mean::forward(const at::Tensor& x) const { return at::mean(x, dims_, keepdim_); }

namespace detail {

FULMEN_INLINE Buffer& reshape_to(Workspace& workspace, Buffer& out, const Buffer& of, at::IntArrayRef sizes) {
  if (of->is_contiguous() || at::detail::computeStride(of->sizes(), of->strides(), at::DimVector(sizes))) {
    workspace.view(out, of, [&](const at::Tensor& t) { return t.view(sizes); });
  } else {
    workspace.take(out, sizes, *of).view(of->sizes()).copy_(*of);
  }
  return out;
}

FULMEN_INLINE at::DimVector sizes_of(const torch::nn::FlattenImpl& layer, at::IntArrayRef input) {
  const auto dims = static_cast<std::int64_t>(input.size());
  const std::int64_t first = at::maybe_wrap_dim(layer.options.start_dim(), dims),
                     last = at::maybe_wrap_dim(layer.options.end_dim(), dims);
  if (first > last)
    fail<std::invalid_argument>("Flatten: start_dim is {} and end_dim {}, expected start_dim <= end_dim",
                                first, last);
  if (dims == 0) return {1};
  at::DimVector out;
  for (std::int64_t i = 0; i < dims; ++i) {
    const std::int64_t size = input[static_cast<std::size_t>(i)];
    if (i > first && i <= last)
      out.back() *= size;
    else
      out.push_back(size);
  }
  return out;
}

FULMEN_INLINE at::DimVector sizes_of(const torch::nn::UnflattenImpl& layer, at::IntArrayRef input) {
  const auto dim = static_cast<std::size_t>(
      at::maybe_wrap_dim(layer.options.dim(), static_cast<std::int64_t>(input.size())));
  at::DimVector out(input.slice(0, dim));
  for (const std::int64_t size : at::infer_size_dv(layer.options.sizes(), input[dim])) out.push_back(size);
  for (const std::int64_t size : input.slice(dim + 1)) out.push_back(size);
  return out;
}

}  // namespace detail

FULMEN_INLINE Buffer& Rule<Mean>::forward(Mean& layer, Kept& kept, const ForwardPass<>& pass) {
  const at::Tensor& x = pass.x();
  kept.input_sizes = at::DimVector(x.sizes());
  const auto reduced =
      at::dim_list_to_bitset(at::IntArrayRef(layer.dims()), static_cast<std::size_t>(x.dim()));
  at::DimVector sizes;
  std::int64_t count = 1;
  for (std::size_t i = 0; i < kept.input_sizes.size(); ++i) {
    if (reduced[i]) count *= kept.input_sizes[i];
    if (!reduced[i] || layer.keepdim()) sizes.push_back(reduced[i] ? 1 : kept.input_sizes[i]);
  }
  if (kept.count != count) {
    kept.count = count;
    kept.divisor = at::scalar_tensor(count, at::kDouble);
  }
  at::Tensor& y = pass.workspace.take(kept.output, sizes, x);
  if (y.is_cpu()) [[likely]]
    at::cpu::mean_out(y, x, at::IntArrayRef(layer.dims()), layer.keepdim());
  else
    at::mean_out(y, x, at::IntArrayRef(layer.dims()), layer.keepdim());
  return kept.output;
}

FULMEN_INLINE Buffer* Rule<Mean>::backward(Mean& layer, Kept& kept, const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& expanded =
      workspace.view(kept.expanded, *pass.gradients[0], [&](const at::Tensor& gradient) {
        if (layer.keepdim()) return gradient.expand(kept.input_sizes);
        const auto reduced = at::dim_list_to_bitset(at::IntArrayRef(layer.dims()), kept.input_sizes.size());
        at::Tensor out = gradient;
        for (std::size_t i = 0; i < kept.input_sizes.size(); ++i) {
          if (reduced[i]) out = out.unsqueeze(static_cast<std::int64_t>(i));
        }
        return out.expand(kept.input_sizes);
      });
  at::Tensor& gx = workspace.take(kept.gradient, kept.input_sizes, expanded);
  if (gx.is_cpu()) [[likely]]
    at::cpu::div_out(gx, expanded, kept.divisor);
  else
    at::div_out(gx, expanded, kept.divisor);
  workspace.release(kept.expanded);
  return &kept.gradient;
}
#endif

}  // namespace fulmen::nn
