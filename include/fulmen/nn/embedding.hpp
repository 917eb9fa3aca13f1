// Embedding and EmbeddingBag, and the rules of their gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <torch/nn/modules/embedding.h>

#include <array>
#include <cstddef>
#include <cstdint>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/Dispatch.h>
#include <ATen/ops/_embedding_bag.h>
#include <ATen/ops/_embedding_bag_backward.h>
#include <ATen/ops/_embedding_bag_forward_only.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding_backward.h>
#include <ATen/ops/embedding_renorm.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/index_select_cpu_dispatch.h>
#include <ATen/ops/mul.h>

#include <stdexcept>
#include <utility>
#include <variant>
#endif

namespace fulmen::nn {

using torch::nn::Embedding;
using torch::nn::EmbeddingBag;
using torch::nn::EmbeddingBagOptions;
using torch::nn::EmbeddingOptions;

/// Indices (int64 or int32) of any shape … to …×embedding_dim. The gradient of the weights is dense, or
/// sparse where the module says so.
template <>
struct Rule<torch::nn::EmbeddingImpl> {
  struct Kept {
    Buffer indices, output, rows;
    at::Tensor weight_grad;
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::EmbeddingImpl& layer, Kept& kept, const ForwardPass<>& pass);
  /// Indices have no gradient: a null pointer.
  static Buffer* backward(torch::nn::EmbeddingImpl& layer, Kept& kept, const BackwardPass<>& pass);
};

namespace detail {

struct EmbeddingBagKept {
  Buffer indices, output, bag_of_index, bag_sizes, largest;
  at::Tensor offsets;  // of a matrix of indices
  std::int64_t row_length = -1;
};
Buffer& embedding_bag_forward(torch::nn::EmbeddingBagImpl& layer, EmbeddingBagKept& kept, const Buffer& input,
                              const at::Tensor* offsets, Workspace& workspace, bool has_backward);
void embedding_bag_backward(torch::nn::EmbeddingBagImpl& layer, EmbeddingBagKept& kept,
                            const at::Tensor& gradient, const at::Tensor& offsets, Workspace& workspace);

}  // namespace detail

/// The sums, means or maxima of the rows for bags of indices (int64): a matrix, each of whose rows is a bag,
/// or with N = 2 a vector and the place in it where each bag begins. Bags with weights are left to autograd.
/// ATen's kernels allocate what they give.
template <std::size_t N>
  requires(N == 1 || N == 2)
struct Rule<torch::nn::EmbeddingBagImpl, N> {
  using Kept = detail::EmbeddingBagKept;
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(torch::nn::EmbeddingBagImpl& layer, Kept& kept, const ForwardPass<N>& pass) {
    return detail::embedding_bag_forward(layer, kept, *pass.inputs[0], N == 2 ? &pass.x(N - 1) : nullptr,
                                         pass.workspace, pass.has_backward);
  }
  /// No gradients of indices and offsets: null pointers.
  static std::array<Buffer*, N> backward(torch::nn::EmbeddingBagImpl& layer, Kept& kept,
                                         const BackwardPass<N>& pass) {
    detail::embedding_bag_backward(layer, kept, pass.grad(), N == 2 ? pass.x(N - 1) : kept.offsets,
                                   pass.workspace);
    return {};
  }
};

#if FULMEN_BODIES
namespace detail {

/// The indices, one after the other.
inline void take_indices(const char* layer, Workspace& workspace, Buffer& indices, const Buffer& input) {
  if (input->scalar_type() != at::kLong && input->scalar_type() != at::kInt)
    fail<std::invalid_argument>("{}: the input is of type {}, expected indices of int64 or int32", layer,
                                c10::toString(input->scalar_type()));
  if (input->is_contiguous()) [[likely]]
    workspace.view(indices, input, [](const at::Tensor& t) { return t.view(-1); });
  else
    workspace.hold(indices, input->reshape(-1));
}

/// As LibTorch's modules do before they look rows up; they give the norms in single precision.
template <class L>
void limit_norm(L& layer, const at::Tensor& indices) {
  if (!layer.options.max_norm()) return;
  at::embedding_renorm_(layer.weight, indices, static_cast<float>(*layer.options.max_norm()),
                        static_cast<float>(layer.options.norm_type()));
}

/// Adds the rows of a gradient to those of the weights they are of, in order. Both are contiguous, of one
/// type, and on the CPU.
inline void add_rows(at::Tensor& weight, const at::Tensor& indices, const at::Tensor& rows,
                     std::int64_t padding) {
  const std::int64_t count = indices.numel(), height = weight.size(0), width = weight.size(1);
  const bool wide = indices.scalar_type() == at::kLong;
  const void* const data = indices.const_data_ptr();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, weight.scalar_type(), "embedding_backward", [&] {
    scalar_t* const to = weight.mutable_data_ptr<scalar_t>();
    const scalar_t* from = rows.const_data_ptr<scalar_t>();
    for (std::int64_t i = 0; i < count; ++i, from += width) {
      const std::int64_t index =
          wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
      if (index == padding) continue;
      if (index < 0 || index >= height)
        fail<std::out_of_range>("Embedding: an index is {}, expected one below {}", index, height);
      scalar_t* const row = to + index * width;
      for (std::int64_t k = 0; k < width; ++k) row[k] += from[k];
    }
  });
}

/// The row whose gradient is not computed, or -1.
template <class L>
std::int64_t padding_of(const L& layer) {
  const std::int64_t padding = layer.options.padding_idx().value_or(-1);
  return layer.options.padding_idx() && padding < 0 ? padding + layer.weight.size(0) : padding;
}

/// As the kernels number the modes.
inline std::int64_t mode_of(const torch::nn::EmbeddingBagImpl& layer) {
  const auto& mode = layer.options.mode();
  return std::holds_alternative<torch::enumtype::kSum>(mode)    ? 0
         : std::holds_alternative<torch::enumtype::kMean>(mode) ? 1
                                                                : 2;
}

FULMEN_INLINE Buffer& embedding_bag_forward(torch::nn::EmbeddingBagImpl& layer, EmbeddingBagKept& kept,
                                            const Buffer& input, const at::Tensor* offsets,
                                            Workspace& workspace, bool has_backward) {
  const at::Tensor& x = *input;
  const auto& options = layer.options;
  const std::int64_t dims = offsets == nullptr ? 2 : 1;
  if (x.dim() != dims) {
    fail<std::invalid_argument>("EmbeddingBag: the input has {} dimensions, expected {} {} offsets", x.dim(),
                                dims, offsets == nullptr ? "without" : "with");
  }
  if (mode_of(layer) == 2 && (options.sparse() || options.scale_grad_by_freq()))
    fail<std::invalid_argument>(
        "EmbeddingBag: mode is max, expected sum or mean with sparse or scale_grad_by_freq");
  take_indices("EmbeddingBag", workspace, kept.indices, input);
  const at::Tensor& indices = *kept.indices;
  if (offsets == nullptr) {
    if (!kept.offsets.defined() || kept.offsets.numel() != x.size(0) || kept.offsets.device() != x.device() ||
        kept.offsets.dtype() != x.dtype() || kept.row_length != x.size(1)) {
      kept.row_length = x.size(1);
      kept.offsets = at::mul(at::arange(x.size(0), x.options()), x.size(1));
    }
    offsets = &kept.offsets;
  }
  limit_norm(layer, indices);
  // Without the gradient of the weights the kernel need not say where it has found them.
  const bool trained = has_backward && layer.weight.requires_grad();
  auto [y, bag_of_index, bag_sizes, largest] =
      (trained ? at::_embedding_bag : at::_embedding_bag_forward_only)(
          layer.weight, indices, *offsets, options.scale_grad_by_freq(), mode_of(layer), options.sparse(), {},
          options.include_last_offset(), padding_of(layer));
  workspace.hold(kept.output, std::move(y));
  if (trained) {
    workspace.hold(kept.bag_of_index, std::move(bag_of_index));
    workspace.hold(kept.bag_sizes, std::move(bag_sizes));
    workspace.hold(kept.largest, std::move(largest));
  } else {
    workspace.release(kept.indices);
  }
  return kept.output;
}

FULMEN_INLINE void embedding_bag_backward(torch::nn::EmbeddingBagImpl& layer, EmbeddingBagKept& kept,
                                          const at::Tensor& gradient, const at::Tensor& offsets,
                                          Workspace& workspace) {
  if (!layer.weight.requires_grad()) return;
  add_gradient(layer.weight, at::_embedding_bag_backward(gradient, *kept.indices, offsets, *kept.bag_of_index,
                                                         *kept.bag_sizes, *kept.largest, layer.weight.size(0),
                                                         layer.options.scale_grad_by_freq(), mode_of(layer),
                                                         layer.options.sparse(), {}, padding_of(layer)));
  for (Buffer* buffer : {&kept.indices, &kept.bag_of_index, &kept.bag_sizes, &kept.largest})
    workspace.release(*buffer);
}

}  // namespace detail

FULMEN_INLINE Buffer& Rule<torch::nn::EmbeddingImpl>::forward(torch::nn::EmbeddingImpl& layer, Kept& kept,
                                                              const ForwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& x = pass.x();
  detail::take_indices("Embedding", workspace, kept.indices, *pass.inputs[0]);
  const at::Tensor& indices = *kept.indices;
  detail::limit_norm(layer, indices);
  const std::int64_t count = indices.size(0), width = layer.weight.size(1);
  at::DimVector sizes(x.sizes());
  sizes.push_back(width);
  workspace.take(kept.output, sizes, layer.weight);
  at::Tensor& rows = workspace.view(kept.rows, kept.output, [&](const at::Tensor& t) {
    return t.view({count, width});
  });
  if (rows.is_cpu()) [[likely]]
    at::cpu::index_select_out(rows, layer.weight, 0, indices);
  else
    at::index_select_out(rows, layer.weight, 0, indices);
  workspace.release(kept.rows);
  if (!pass.has_backward) workspace.release(kept.indices);
  return kept.output;
}

FULMEN_INLINE Buffer* Rule<torch::nn::EmbeddingImpl>::backward(torch::nn::EmbeddingImpl& layer, Kept& kept,
                                                               const BackwardPass<>& pass) {
  if (layer.weight.requires_grad()) {
    const at::Tensor& gy = pass.grad();
    const at::Tensor& indices = *kept.indices;
    // So small that one thread is as good as many. It needs no second tensor of the weights' size.
    constexpr std::int64_t small = 1 << 18;
    if (gy.is_cpu() && gy.numel() <= small && !layer.options.sparse() &&
        !layer.options.scale_grad_by_freq() && layer.weight.is_contiguous() &&
        gy.scalar_type() == layer.weight.scalar_type() && !layer.weight.grad().is_sparse()) {
      const Gradient weight = gradient_of(layer.weight, kept.weight_grad);
      if (weight.fresh) weight.tensor.zero_();
      if (weight.tensor.is_contiguous()) {
        detail::add_rows(weight.tensor, indices, gy.contiguous(), detail::padding_of(layer));
        pass.workspace.release(kept.indices);
        return nullptr;
      }
    }
    add_gradient(layer.weight,
                 at::embedding_backward(gy, pass.x(), layer.weight.size(0), detail::padding_of(layer),
                                        layer.options.scale_grad_by_freq(), layer.options.sparse()));
  }
  pass.workspace.release(kept.indices);
  return nullptr;
}
#endif

}  // namespace fulmen::nn
