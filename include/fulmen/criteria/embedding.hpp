// Criteria for distances: of pairs, of triplets, from labels.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/fixed_string.hpp>
#include <fulmen/criteria/reduction.hpp>
#include <fulmen/error.hpp>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cosine_embedding_loss.h>
#include <ATen/ops/hinge_embedding_loss.h>
#include <ATen/ops/margin_ranking_loss.h>
#include <ATen/ops/pairwise_distance.h>
#include <ATen/ops/triplet_margin_loss.h>

#if FULMEN_BODIES
#include <stdexcept>
#endif

namespace fulmen {

/// Distances x with labels y of one shape: x where y is 1, max(0, margin - x) where it is -1.
/// Source: torch.nn.HingeEmbeddingLoss. @throws std::invalid_argument if the shapes differ.
struct HingeEmbedding {
  static constexpr FixedString criterion_name{"hinge_embedding"};

  double margin = 1;
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    detail::same_shape("HingeEmbedding", output, target);
    return at::hinge_embedding_loss(output, target, margin, detail::enum_of(reduction));
  }
};

/// Cosine similarity of two outputs N×D (or D), that belong together (target N or a scalar: 1) or do not
/// (-1). Source: torch.nn.CosineEmbeddingLoss. Forward returns the two outputs.
struct CosineEmbedding {
  static constexpr FixedString criterion_name{"cosine_embedding"};

  double margin = 0;
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& first, const at::Tensor& second, const at::Tensor& target) const {
    return at::cosine_embedding_loss(first, second, target, margin, detail::enum_of(reduction));
  }
};

/// Which of two outputs should be the larger: the first where the target is 1, the second where it is -1; all
/// of one shape. Source: torch.nn.MarginRankingLoss. Forward returns the two outputs. @throws
/// std::invalid_argument if the shapes differ.
struct MarginRanking {
  static constexpr FixedString criterion_name{"margin_ranking"};

  double margin = 0;
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& first, const at::Tensor& second, const at::Tensor& target) const {
    detail::same_shape("MarginRanking", first, second, "second output");
    detail::same_shape("MarginRanking", first, target);
    return at::margin_ranking_loss(first, second, target, margin, detail::enum_of(reduction));
  }
};

namespace detail {
void check_margin(const char* criterion, double margin);
}  // namespace detail

/// An anchor should be nearer to the positive than to the negative by a margin; N×D or D, distances of the
/// p-norm. Source: torch.nn.TripletMarginLoss. Forward returns anchor, positive and negative, and the batch
/// has no target
/// (`static constexpr int n_targets = 0`). @throws std::invalid_argument if the margin is not above 0.
struct TripletMargin {
  static constexpr FixedString criterion_name{"triplet_margin"};

  double margin = 1;
  double p = 2;
  double eps = 1e-6;  ///< added to differences
  bool swap = false;  ///< take the positive for the anchor where it is nearer to the negative
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& anchor, const at::Tensor& positive,
                        const at::Tensor& negative) const {
    detail::check_margin("TripletMargin", margin);
    return at::triplet_margin_loss(anchor, positive, negative, margin, p, eps, swap,
                                   detail::enum_of(reduction));
  }
};

/// torch.pairwise_distance: the 2-norm of the difference, over the last dimension.
struct PairwiseDistance {
  double p = 2;
  double eps = 1e-6;

  at::Tensor operator()(const at::Tensor& a, const at::Tensor& b) const {
    return at::pairwise_distance(a, b, p, eps);
  }
};

/// TripletMargin with a distance of one's own, called as distance(a, b) -> tensor.
/// Source: torch.nn.TripletMarginWithDistanceLoss. @throws std::invalid_argument if the margin is not above
/// 0.
template <class Distance = PairwiseDistance>
struct TripletMarginWithDistance {
  static constexpr FixedString criterion_name{"triplet_margin_with_distance"};

  [[no_unique_address]] Distance distance_function{};
  double margin = 1;
  bool swap = false;
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& anchor, const at::Tensor& positive,
                        const at::Tensor& negative) const {
    detail::check_margin("TripletMarginWithDistance", margin);
    const at::Tensor to_positive = distance_function(anchor, positive);
    at::Tensor to_negative = distance_function(anchor, negative);
    if (swap) to_negative = to_negative.minimum(distance_function(positive, negative));
    return detail::reduce((margin + to_positive - to_negative).clamp_min(0), reduction);
  }
};
template <class Distance>
TripletMarginWithDistance(Distance, double = 1, bool = false, Reduction = Reduction::mean)
    -> TripletMarginWithDistance<Distance>;

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE void check_margin(const char* criterion, double margin) {
  if (!(margin > 0)) [[unlikely]]
    fail<std::invalid_argument>("{}::margin is {}, expected above 0", criterion, margin);
}

}  // namespace detail
#endif

}  // namespace fulmen
