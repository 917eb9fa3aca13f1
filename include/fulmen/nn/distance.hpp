// The rules of the criteria for distances. TripletMarginWithDistance has none: autograd serves it, as the
// distance is anybody's.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/criteria/embedding.hpp>
#include <fulmen/nn/criterion_rule.hpp>
#include <fulmen/nn/reduction.hpp>

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>

#if FULMEN_BODIES
#include <ATen/core/Reduction.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/minimum.h>

#include <cstdint>
#endif

namespace fulmen::nn {

template <>
struct CriterionRule<HingeEmbedding> {
  struct Kept : detail::TermsKept {
    Buffer margin_left, missed, scratch;
    detail::Number margin;
  };
  static Buffer& forward(const HingeEmbedding& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const HingeEmbedding& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<MarginRanking, 2, 1> {
  struct Kept : detail::TermsKept {
    Buffer unclamped, second_gradient, second_as_output;
    detail::Number margin;
  };
  static Buffer& forward(const MarginRanking& criterion, Kept& kept, const LossPass<2, 1>& pass);
  static std::array<Buffer*, 2> backward(const MarginRanking& criterion, Kept& kept,
                                         const LossPass<2, 1>& pass);
};

template <>
struct CriterionRule<CosineEmbedding, 2, 1> {
  struct Kept {
    Buffer loss, terms, product, cosine, denominator, share;
    std::array<Buffer, 2> squares, gradients;
  };
  static Buffer& forward(const CosineEmbedding& criterion, Kept& kept, const LossPass<2, 1>& pass);
  static std::array<Buffer*, 2> backward(const CosineEmbedding& criterion, Kept& kept,
                                         const LossPass<2, 1>& pass);
};

namespace detail {

/// Criterion C in a rule of its own, where autograd is to serve some options of it.
template <class C>
struct Deferred {
  const C* criterion = nullptr;
  template <class... T>
  auto operator()(const T&... tensors) const -> decltype((*criterion)(tensors...)) {
    return (*criterion)(tensors...);
  }
};

}  // namespace detail

/// Of the 2-norm, and three tensors of one shape; autograd serves other norms, and tensors that are
/// broadcast.
template <>
struct CriterionRule<TripletMargin, 3, 0> {
  using ByAutograd = CriterionRule<detail::Deferred<TripletMargin>, 3, 0>;
  struct Kept {
    Buffer loss, terms, share;
    std::array<Buffer, 3> differences, distances,
        gradients;  // of anchor and positive, anchor and negative, positive and negative
    bool deferred = false;
    detail::Deferred<TripletMargin> criterion;
    ByAutograd::Kept by_autograd;
  };
  static Buffer& forward(const TripletMargin& criterion, Kept& kept, const LossPass<3, 0>& pass);
  static std::array<Buffer*, 3> backward(const TripletMargin& criterion, Kept& kept,
                                         const LossPass<3, 0>& pass);
};

#if FULMEN_BODIES
FULMEN_INLINE Buffer& CriterionRule<HingeEmbedding>::forward(const HingeEmbedding& criterion, Kept& kept,
                                                             const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("HingeEmbedding", x, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& left = workspace.take(kept.margin_left, x.sizes(), x);
  detail::direct::sub(left, detail::number(kept.margin, criterion.margin, x), x);
  detail::direct::clamp_min(left, left, 0);
  at::Tensor& scratch = workspace.take(kept.scratch, x.sizes(), x);
  at::Tensor& terms = workspace.take(reduction == at::Reduction::None ? kept.loss : kept.terms, x.sizes(), x);
  detail::direct::differs(scratch, t, 1);
  detail::direct::mul(scratch, scratch, left);
  detail::direct::differs(terms, t, -1);
  detail::direct::mul(terms, terms, x);
  detail::direct::add(terms, scratch, terms);
  workspace.release(kept.scratch);
  return detail::reduce_terms(workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<HingeEmbedding>::backward(const HingeEmbedding& criterion, Kept& kept,
                                                              const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("HingeEmbedding", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  // (t is not -1) - (t is not 1 and the margin is not reached), each 0 or 1.
  at::Tensor& left = workspace.alias(kept.missed, kept.margin_left);
  at::Tensor& gradient = workspace.take(kept.gradient, x.sizes(), x);
  detail::direct::greater(left, left, 0);
  detail::direct::differs(gradient, t, 1);
  detail::direct::mul(left, left, gradient);
  detail::direct::differs(gradient, t, -1);
  detail::direct::sub(gradient, gradient, left);
  detail::direct::mul(gradient, gradient,
                      detail::share_of_terms(workspace, kept.share, *pass.seed, reduction, x.numel()));
  workspace.release(kept.share);
  workspace.release(kept.missed);
  workspace.release(kept.margin_left);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<MarginRanking, 2, 1>::forward(const MarginRanking& criterion, Kept& kept,
                                                                  const LossPass<2, 1>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &first = pass.output(0), &second = pass.output(1), &t = pass.target();
  fulmen::detail::same_shape("MarginRanking", first, second, "second output");
  fulmen::detail::same_shape("MarginRanking", first, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& unclamped = detail::take_common(workspace, kept.unclamped, first, second);
  detail::direct::sub(unclamped, second, first);
  detail::direct::mul(unclamped, unclamped, t);
  detail::direct::add(unclamped, unclamped, detail::number(kept.margin, criterion.margin, unclamped));
  detail::direct::clamp_min(detail::take_terms(workspace, kept, reduction, unclamped, unclamped), unclamped,
                            0);
  return detail::reduce_terms(workspace, kept, reduction);
}
FULMEN_INLINE std::array<Buffer*, 2> CriterionRule<MarginRanking, 2, 1>::backward(
    const MarginRanking& criterion, Kept& kept, const LossPass<2, 1>& pass) {
  Workspace& workspace = pass.workspace;
  const std::int64_t reduction =
      detail::backward_reduction("MarginRanking", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  at::Tensor& second = workspace.alias(kept.second_gradient, kept.unclamped);
  detail::direct::greater(second, second, 0);
  detail::direct::mul(second, second, pass.target());
  detail::direct::mul(second, second,
                      detail::share_of_terms(workspace, kept.share, *pass.seed, reduction, second.numel()));
  detail::direct::neg(workspace.take(kept.gradient, second.sizes(), second), second);
  workspace.release(kept.share);
  workspace.release(kept.unclamped);
  return {detail::as_output(workspace, kept.gradient, kept.gradient_as_output, pass.output(0)),
          detail::as_output(workspace, kept.second_gradient, kept.second_as_output, pass.output(1))};
}

FULMEN_INLINE Buffer& CriterionRule<CosineEmbedding, 2, 1>::forward(const CosineEmbedding& criterion,
                                                                    Kept& kept, const LossPass<2, 1>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &first = pass.output(0), &second = pass.output(1), &t = pass.target();
  if (!first.sizes().equals(second.sizes()) || t.dim() > 1 || first.dim() != t.dim() + 1 ||
      !t.sizes().equals(first.sizes().slice(0, static_cast<std::size_t>(t.dim())))) {
    // Throws, but for a few shapes that would be broadcast.
    static_cast<void>(criterion(first, second, t));
    fail<std::invalid_argument>(
        "CosineEmbedding: the outputs have shapes {} and {}, the target {}; expected N×D twice and N, or D "
        "and "
        "none",
        fulmen::detail::shape_text(first.sizes()), fulmen::detail::shape_text(second.sizes()),
        fulmen::detail::shape_text(t.sizes()));
  }
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  constexpr double epsilon = 1e-12f;  // ATen's, a float
  at::Tensor& product = detail::take_common(workspace, kept.product, first, second);
  const auto dot = [&](Buffer& buffer, const at::Tensor& a, const at::Tensor& b) -> at::Tensor& {
    at::Tensor& out = workspace.take(buffer, t.sizes(), product);
    detail::direct::mul(product, a, b);
    detail::direct::sum(out, product, t.dim());
    return out;
  };
  at::Tensor& cosine = dot(kept.cosine, first, second);
  const at::Tensor& first_square = dot(kept.squares[0], first, first).add_(epsilon);
  const at::Tensor& second_square = dot(kept.squares[1], second, second).add_(epsilon);
  workspace.release(kept.product);
  at::Tensor& denominator = workspace.take(kept.denominator, t.sizes(), cosine);
  detail::direct::mul(denominator, first_square, second_square);
  denominator.sqrt_();
  detail::direct::div(cosine, cosine, denominator);
  at::Tensor& terms = detail::take_terms(workspace, kept, reduction, cosine, cosine);
  terms.copy_((1 - cosine).mul_(t == 1).add_((cosine - criterion.margin).clamp_min_(0).mul_(t == -1)));
  return detail::reduce_terms(workspace, kept.loss, kept.terms, reduction);
}
FULMEN_INLINE std::array<Buffer*, 2> CriterionRule<CosineEmbedding, 2, 1>::backward(
    const CosineEmbedding& criterion, Kept& kept, const LossPass<2, 1>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &first = pass.output(0), &second = pass.output(1), &t = pass.target(),
                   &cosine = *kept.cosine;
  const std::int64_t reduction =
      detail::backward_reduction("CosineEmbedding", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  const at::Tensor& share = detail::share_of_terms(workspace, kept.share, *pass.seed, reduction, t.numel());
  // The gradient of each cosine, a·b / |a||b|: that of a is b / |a||b| - cosine · a / |a|².
  const at::Tensor slope = (cosine > criterion.margin)
                               .logical_and_(t == -1)
                               .to(cosine.scalar_type())
                               .sub_((t == 1).to(cosine.scalar_type()))
                               .mul_(share);
  const at::Tensor across = (slope / *kept.denominator).unsqueeze(-1), along = slope * cosine;
  const auto gradient_of_one = [&](std::size_t i, const at::Tensor& one, const at::Tensor& other) {
    at::Tensor& gradient = workspace.take(kept.gradients[i], one.sizes(), one);
    detail::direct::mul(gradient, across, other);
    gradient.addcmul_((along / *kept.squares[i]).unsqueeze(-1), one, -1);
    return &kept.gradients[i];
  };
  const std::array<Buffer*, 2> out{gradient_of_one(0, first, second), gradient_of_one(1, second, first)};
  for (Buffer* buffer : {&kept.cosine, &kept.denominator, &kept.squares[0], &kept.squares[1], &kept.share})
    workspace.release(*buffer);
  return out;
}

FULMEN_INLINE Buffer& CriterionRule<TripletMargin, 3, 0>::forward(const TripletMargin& criterion, Kept& kept,
                                                                  const LossPass<3, 0>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &anchor = pass.output(0), &positive = pass.output(1), &negative = pass.output(2);
  fulmen::detail::check_margin("TripletMargin", criterion.margin);
  kept.deferred = criterion.p != 2 || anchor.dim() == 0 || !anchor.sizes().equals(positive.sizes()) ||
                  !anchor.sizes().equals(negative.sizes()) || anchor.dtype() != positive.dtype() ||
                  anchor.dtype() != negative.dtype();
  if (kept.deferred) {
    kept.criterion.criterion = &criterion;
    return ByAutograd::forward(kept.criterion, kept.by_autograd, pass);
  }
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  const at::IntArrayRef rows = anchor.sizes().slice(0, anchor.sizes().size() - 1);
  const auto distance = [&](std::size_t i, const at::Tensor& a, const at::Tensor& b) -> at::Tensor& {
    at::Tensor& difference = workspace.take(kept.differences[i], a.sizes(), a);
    at::Tensor& out = workspace.take(kept.distances[i], rows, a);
    detail::direct::sub(difference, a, b);
    difference.add_(criterion.eps);
    at::linalg_vector_norm_out(out, difference, 2, at::IntArrayRef(-1));
    return out;
  };
  const at::Tensor& to_positive = distance(0, anchor, positive);
  const at::Tensor& to_negative = distance(1, anchor, negative);
  at::Tensor& terms = detail::take_terms(workspace, kept, reduction, to_positive, to_positive);
  terms.copy_(to_positive).add_(criterion.margin);
  detail::direct::sub(
      terms, terms, criterion.swap ? at::minimum(to_negative, distance(2, positive, negative)) : to_negative);
  detail::direct::clamp_min(terms, terms, 0);
  return detail::reduce_terms(workspace, kept.loss, kept.terms, reduction);
}
FULMEN_INLINE std::array<Buffer*, 3> CriterionRule<TripletMargin, 3, 0>::backward(
    const TripletMargin& criterion, Kept& kept, const LossPass<3, 0>& pass) {
  Workspace& workspace = pass.workspace;
  const std::int64_t reduction =
      detail::backward_reduction("TripletMargin", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  if (kept.deferred) return ByAutograd::backward(kept.criterion, kept.by_autograd, pass);
  const at::Tensor &to_positive = *kept.distances[0], &to_negative = *kept.distances[1];
  const at::Tensor& share =
      detail::share_of_terms(workspace, kept.share, *pass.seed, reduction, to_positive.numel());
  at::Tensor left = to_positive + criterion.margin;
  std::array<at::Tensor, 3> slopes;  // of the distances
  if (criterion.swap) {
    const at::Tensor& swapped = *kept.distances[2];
    left.sub_(at::minimum(to_negative, swapped));
    slopes[0] = (left > 0).to(left.scalar_type()).mul_(share);
    // Where both are the same, each gets half of it.
    const at::Tensor nearer = (to_negative < swapped).to(left.scalar_type()),
                     equal = (to_negative == swapped).to(left.scalar_type());
    slopes[1] = (nearer + 0.5 * equal).mul_(slopes[0]).neg_();
    slopes[2] = -(slopes[0] + slopes[1]);
  } else {
    slopes[0] = left.sub_(to_negative).gt_(0).mul_(share);
    slopes[1] = -slopes[0];
  }
  for (std::size_t i = 0; i < 3; ++i) {
    if (!slopes[i].defined()) continue;
    const at::Tensor& distance = *kept.distances[i];
    kept.differences[i]->mul_(slopes[i].div_(distance).masked_fill_(distance == 0, 0).unsqueeze(-1));
  }
  const at::Tensor &by_positive = *kept.differences[0], &by_negative = *kept.differences[1];
  std::array<at::Tensor*, 3> out;
  for (std::size_t i = 0; i < 3; ++i)
    out[i] = &workspace.take(kept.gradients[i], by_positive.sizes(), by_positive);
  detail::direct::add(*out[0], by_positive, by_negative);
  detail::direct::neg(*out[1], by_positive);
  detail::direct::neg(*out[2], by_negative);
  if (criterion.swap) {
    out[1]->add_(*kept.differences[2]);
    out[2]->sub_(*kept.differences[2]);
  }
  for (std::size_t i = 0; i < 3; ++i) {
    workspace.release(kept.differences[i]);
    workspace.release(kept.distances[i]);
  }
  workspace.release(kept.share);
  return {&kept.gradients[0], &kept.gradients[1], &kept.gradients[2]};
}
#endif

}  // namespace fulmen::nn
