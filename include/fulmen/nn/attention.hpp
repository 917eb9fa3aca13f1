// Attention, and the rules of its gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/linear.hpp>
#include <fulmen/nn/rule.hpp>

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/activation.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/shape_text.hpp>

#include <ATen/SDPBackend.h>
#include <ATen/ops/_fused_sdp_choice_cpu_dispatch.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward_cpu_dispatch.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_cpu_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/nn/init.h>

#include <stdexcept>
#include <tuple>
#endif

namespace fulmen::nn {

/// LibTorch's own, called with query, key and value, gives their result and the weights. It has no rule:
/// autograd serves it. SelfAttention has one.
using torch::nn::MultiheadAttention;
using torch::nn::MultiheadAttentionOptions;

struct ScaledDotProductAttentionOptions {
  bool is_causal = false;         ///< no step looks at later ones
  double dropout_p = 0;           ///< of the weights, in training mode
  std::optional<double> scale{};  ///< 1/√D unless given
};

/// softmax(q·kᵀ·scale)·v of queries, keys and values B×H×T×D (keys and values may have another T, values
/// another D). Source: torch.nn.functional.scaled_dot_product_attention.
class ScaledDotProductAttention : public torch::nn::Cloneable<ScaledDotProductAttention> {
 public:
  /// @throws std::invalid_argument if dropout_p is not a probability
  explicit ScaledDotProductAttention(ScaledDotProductAttentionOptions options = {});
  at::Tensor forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value);
  void reset() override {}

  ScaledDotProductAttentionOptions options;
};

struct SelfAttentionOptions {
  std::int64_t embed_dim, num_heads;
  double dropout = 0;  ///< of the weights, in training mode
  bool bias = true;
  bool is_causal = false;  ///< no step looks at later ones
};

/// Attention of each step of x (B×T×embed_dim) to all steps, in several heads; gives B×T×embed_dim.
/// Its parameters have the names, shapes and first values of torch.nn.MultiheadAttention's, whose result is
/// the same: `MultiheadAttention(embed_dim, num_heads, batch_first=True)(x, x, x)[0]`, with a causal mask if
/// is_causal.
///
///     SelfAttention({.embed_dim = 64, .num_heads = 8, .is_causal = true})
///
/// Source: torch.nn.MultiheadAttention.
class SelfAttention : public torch::nn::Cloneable<SelfAttention> {
 public:
  /// @throws std::invalid_argument if num_heads does not divide embed_dim, or dropout is not a probability
  explicit SelfAttention(SelfAttentionOptions options);
  SelfAttention(std::int64_t embed_dim, std::int64_t num_heads)
      : SelfAttention(SelfAttentionOptions{embed_dim, num_heads}) {}

  /// @throws std::invalid_argument if x is not B×T×embed_dim
  at::Tensor forward(const at::Tensor& x);
  void reset() override;

  SelfAttentionOptions options;
  at::Tensor in_proj_weight, in_proj_bias;
  torch::nn::Linear out_proj = nullptr;

 private:
  friend struct Rule<SelfAttention>;
  void check(const at::Tensor& x) const;
  /// The layer that gives queries, keys and values in one tensor. It is not registered, as its parameters are
  /// this module's.
  torch::nn::LinearImpl& in_proj();
  std::shared_ptr<torch::nn::LinearImpl> in_proj_;
};

namespace detail {

/// The call of at::scaled_dot_product_attention.
struct Attend {
  double dropout_p = 0;
  bool is_causal = false;
  std::optional<double> scale{};

  at::Tensor operator()(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) const;
};

/// Its gradients: by the fused kernels of the CPU where at::scaled_dot_product_attention chooses these, else
/// by autograd, which knows those of other devices and the formula that they replace.
struct AttendRule {
  struct Kept {
    Attend attend;
    bool fused = false;
    std::array<Buffer, 3> inputs, gradients;
    Buffer output, given_out, log_sum;
    ByAutograd<Attend, 3>::Kept recorded;
  };
  static Buffer& forward(const Attend& attend, Kept& kept, const ForwardPass<3>& pass);
  static std::array<Buffer*, 3> backward(Kept& kept, const BackwardPass<3, 1>& pass);
};

}  // namespace detail

template <>
struct Rule<ScaledDotProductAttention, 3> {
  using Kept = detail::AttendRule::Kept;
  // It holds what the kernel that is chosen needs, which may be nothing.
  static constexpr bool saves_input = false, saves_output = false, owns_output = false;
  static constexpr std::size_t outputs = 1;

  static std::array<Buffer*, 1> forward(ScaledDotProductAttention& layer, Kept& kept,
                                        const ForwardPass<3>& pass);
  static std::array<Buffer*, 3> backward(ScaledDotProductAttention&, Kept& kept,
                                         const BackwardPass<3, 1>& pass) {
    return detail::AttendRule::backward(kept, pass);
  }
};

template <>
struct Rule<SelfAttention> {
  struct Kept {
    Rule<torch::nn::LinearImpl>::Kept in_proj, out_proj;
    std::array<Buffer, 3> parts, part_gradients;
    detail::AttendRule::Kept attend;
    Buffer merged, heads_gradient, gradient;
    bool inner = false;  // whether what comes before out_proj has a backward pass
  };
  static constexpr bool saves_input = true, saves_output = false;

  static Buffer& forward(SelfAttention& layer, Kept& kept, const ForwardPass<>& pass);
  static Buffer* backward(SelfAttention& layer, Kept& kept, const BackwardPass<>& pass);
};

#if FULMEN_BODIES
namespace detail {

inline void check_probability(const char* name, double p) {
  if (!(p >= 0 && p <= 1)) fail<std::invalid_argument>("{}: dropout is {}, expected a probability", name, p);
}

/// B×T×3E, queries, keys and values side by side, to the heads (B×H×T×D) of one of them.
inline at::Tensor heads_of(const at::Tensor& all, std::int64_t which, std::int64_t heads) {
  return all.view({all.size(0), all.size(1), 3, heads, all.size(2) / (3 * heads)})
      .select(2, which)
      .transpose(1, 2);
}

FULMEN_INLINE at::Tensor Attend::operator()(const at::Tensor& query, const at::Tensor& key,
                                            const at::Tensor& value) const {
  return at::scaled_dot_product_attention(query, key, value, {}, dropout_p, is_causal, scale);
}

FULMEN_INLINE Buffer& AttendRule::forward(const Attend& attend, Kept& kept, const ForwardPass<3>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &q = pass.x(0), &k = pass.x(1), &v = pass.x(2);
  kept.attend = attend;
  kept.fused = q.is_cpu() && k.is_cpu() && v.is_cpu() && q.dim() == 4 && k.dim() == 4 && v.dim() == 4 &&
               q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type() &&
               at::cpu::_fused_sdp_choice(q, k, v, {}, attend.dropout_p, attend.is_causal, attend.scale) ==
                   static_cast<std::int64_t>(at::SDPBackend::flash_attention);
  if (!kept.fused) return *ByAutograd<Attend, 3>::forward(kept.attend, kept.recorded, pass)[0];
  auto [output, log_sum] = at::cpu::_scaled_dot_product_flash_attention_for_cpu(
      q, k, v, attend.dropout_p, attend.is_causal, {}, attend.scale);
  workspace.hold(kept.output, std::move(output));
  if (!pass.has_backward) return kept.output;
  workspace.hold(kept.log_sum, std::move(log_sum));
  for (std::size_t i = 0; i < 3; ++i) workspace.alias(kept.inputs[i], *pass.inputs[i]);
  workspace.alias(kept.given_out, kept.output);
  return kept.given_out;
}

FULMEN_INLINE std::array<Buffer*, 3> AttendRule::backward(Kept& kept, const BackwardPass<3, 1>& pass) {
  if (!kept.fused) return ByAutograd<Attend, 3>::backward(kept.attend, kept.recorded, pass);
  Workspace& workspace = pass.workspace;
  const Attend& attend = kept.attend;
  auto [q, k, v] = at::cpu::_scaled_dot_product_flash_attention_for_cpu_backward(
      pass.grad(), *kept.inputs[0], *kept.inputs[1], *kept.inputs[2], *kept.output, *kept.log_sum,
      attend.dropout_p, attend.is_causal, {}, attend.scale);
  workspace.hold(kept.gradients[0], std::move(q));
  workspace.hold(kept.gradients[1], std::move(k));
  workspace.hold(kept.gradients[2], std::move(v));
  for (Buffer& input : kept.inputs) workspace.release(input);
  workspace.release(kept.output);
  workspace.release(kept.log_sum);
  return {&kept.gradients[0], &kept.gradients[1], &kept.gradients[2]};
}

}  // namespace detail

FULMEN_INLINE ScaledDotProductAttention::ScaledDotProductAttention(ScaledDotProductAttentionOptions given)
    : torch::nn::Cloneable<ScaledDotProductAttention>("fulmen::nn::ScaledDotProductAttention"),
      options(given) {
  detail::check_probability("ScaledDotProductAttention", options.dropout_p);
}

FULMEN_INLINE at::Tensor ScaledDotProductAttention::forward(const at::Tensor& query, const at::Tensor& key,
                                                            const at::Tensor& value) {
  return detail::Attend{is_training() ? options.dropout_p : 0, options.is_causal, options.scale}(query, key,
                                                                                                 value);
}

FULMEN_INLINE std::array<Buffer*, 1> Rule<ScaledDotProductAttention, 3>::forward(
    ScaledDotProductAttention& layer, Kept& kept, const ForwardPass<3>& pass) {
  const auto& options = layer.options;
  return {&detail::AttendRule::forward(
      {layer.is_training() ? options.dropout_p : 0, options.is_causal, options.scale}, kept, pass)};
}

FULMEN_INLINE SelfAttention::SelfAttention(SelfAttentionOptions given)
    : torch::nn::Cloneable<SelfAttention>("fulmen::nn::SelfAttention"), options(given) {
  if (options.embed_dim <= 0 || options.num_heads <= 0 || options.embed_dim % options.num_heads != 0) {
    fail<std::invalid_argument>(
        "SelfAttention: embed_dim is {} and num_heads {}, expected numbers of which the second divides the "
        "first",
        options.embed_dim, options.num_heads);
  }
  detail::check_probability("SelfAttention", options.dropout);
  reset();
}

FULMEN_INLINE void SelfAttention::reset() {
  const std::int64_t width = options.embed_dim;
  in_proj_weight = register_parameter("in_proj_weight", at::empty({3 * width, width}));
  if (options.bias) in_proj_bias = register_parameter("in_proj_bias", at::empty({3 * width}));
  out_proj = register_module("out_proj",
                             torch::nn::Linear(torch::nn::LinearOptions(width, width).bias(options.bias)));
  torch::nn::init::xavier_uniform_(in_proj_weight);
  if (options.bias) {
    torch::nn::init::zeros_(in_proj_bias);
    torch::nn::init::zeros_(out_proj->bias);
  }
  // A copy, since making one would draw random numbers, and those that come next would not be Python's.
  in_proj_ = std::make_shared<torch::nn::LinearImpl>(*out_proj);
  in_proj_->options.out_features(3 * width);
}

FULMEN_INLINE torch::nn::LinearImpl& SelfAttention::in_proj() {
  in_proj_->weight = in_proj_weight;
  in_proj_->bias = in_proj_bias;
  return *in_proj_;
}

FULMEN_INLINE void SelfAttention::check(const at::Tensor& x) const {
  if (x.dim() != 3 || x.size(2) != options.embed_dim) {
    fail<std::invalid_argument>("SelfAttention: the input's shape is {}, expected batch×steps×{}",
                                fulmen::detail::shape_text(x.sizes()), options.embed_dim);
  }
}

FULMEN_INLINE at::Tensor SelfAttention::forward(const at::Tensor& x) {
  check(x);
  const at::Tensor all = in_proj().forward(x);
  const auto part = [&](std::int64_t i) { return detail::heads_of(all, i, options.num_heads); };
  const at::Tensor heads = detail::Attend{is_training() ? options.dropout : 0, options.is_causal,
                                          std::nullopt}(part(0), part(1), part(2));
  return out_proj->forward(heads.transpose(1, 2).reshape(x.sizes()));
}

FULMEN_INLINE Buffer& Rule<SelfAttention>::forward(SelfAttention& layer, Kept& kept,
                                                   const ForwardPass<>& pass) {
  layer.check(pass.x());
  Workspace& workspace = pass.workspace;
  const auto sizes = pass.x().sizes().vec();
  torch::nn::LinearImpl& in_proj = layer.in_proj();
  const bool trained =
      in_proj.weight.requires_grad() || (in_proj.bias.defined() && in_proj.bias.requires_grad());
  kept.inner = pass.has_backward && (pass.wants_input || trained);

  Buffer& all = Rule<torch::nn::LinearImpl>::forward(
      in_proj, kept.in_proj, {pass.inputs, workspace, false, kept.inner, pass.wants_input});
  for (std::size_t i = 0; i < 3; ++i) {
    workspace.view(kept.parts[i], all, [&](const at::Tensor& t) {
      return detail::heads_of(t, static_cast<std::int64_t>(i), layer.options.num_heads);
    });
  }
  workspace.release(all);
  Buffer& heads = detail::AttendRule::forward(
      {layer.is_training() ? layer.options.dropout : 0, layer.options.is_causal, std::nullopt}, kept.attend,
      {{&kept.parts[0], &kept.parts[1], &kept.parts[2]}, workspace, false, kept.inner, kept.inner});
  for (Buffer& part : kept.parts) workspace.release(part);
  workspace.hold(kept.merged, heads->transpose(1, 2).reshape(sizes));
  workspace.release(heads);
  Buffer& out = Rule<torch::nn::LinearImpl>::forward(
      *layer.out_proj, kept.out_proj, {{&kept.merged}, workspace, false, pass.has_backward, kept.inner});
  workspace.release(kept.merged);
  return out;
}

FULMEN_INLINE Buffer* Rule<SelfAttention>::backward(SelfAttention& layer, Kept& kept,
                                                    const BackwardPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor& given = pass.grad();
  const std::int64_t batch = given.size(0), steps = given.size(1), width = layer.options.embed_dim,
                     heads = layer.options.num_heads;

  Buffer* const merged = Rule<torch::nn::LinearImpl>::backward(
      *layer.out_proj, kept.out_proj,
      {{&kept.merged}, {}, pass.gradients, workspace, kept.inner, pass.may_overwrite});
  if (!kept.inner) return nullptr;
  workspace.view(kept.heads_gradient, *merged, [&](const at::Tensor& t) {
    return t.view({batch, steps, heads, width / heads}).transpose(1, 2);
  });
  const auto parts =
      detail::AttendRule::backward(kept.attend, {{}, {}, {&kept.heads_gradient}, workspace, true, true});
  workspace.release(kept.heads_gradient);
  workspace.release(*merged);

  workspace.take(kept.gradient, {batch, steps, 3 * width}, given);
  for (std::size_t i = 0; i < 3; ++i) {
    workspace
        .view(kept.part_gradients[i], kept.gradient,
              [&](const at::Tensor& t) { return detail::heads_of(t, static_cast<std::int64_t>(i), heads); })
        .copy_(**parts[i]);
    workspace.release(kept.part_gradients[i]);
    workspace.release(*parts[i]);
  }
  Buffer* const out = Rule<torch::nn::LinearImpl>::backward(
      layer.in_proj(), kept.in_proj, {pass.inputs, {}, {&kept.gradient}, workspace, pass.wants_input, true});
  workspace.release(kept.gradient);
  return out;
}
#endif

}  // namespace fulmen::nn
