// Criteria for classes: one of several, or any number of them.
#pragma once

#include <fulmen/fixed_string.hpp>
#include <fulmen/criteria/reduction.hpp>

#include <ATen/TensorOperators.h>
#include <ATen/ops/binary_cross_entropy.h>
#include <ATen/ops/binary_cross_entropy_with_logits.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/multi_margin_loss.h>
#include <ATen/ops/multilabel_margin_loss.h>
#include <ATen/ops/nll_loss_nd.h>
#include <ATen/ops/soft_margin_loss.h>

#include <cstdint>

namespace fulmen {

/// Softmax cross entropy: logits N×C(×…) and class indices N(×…) (int64), or probabilities of the logits'
/// shape. Source: torch.nn.CrossEntropyLoss. @throws c10::Error naming the shapes where they do not fit.
struct CrossEntropy {
  static constexpr FixedString criterion_name{"cross_entropy"};

  at::Tensor weight{};  ///< C, a weight for each class
  Reduction reduction = Reduction::mean;
  std::int64_t ignore_index = -100;
  double label_smoothing = 0;

  at::Tensor operator()(const at::Tensor& logits, const at::Tensor& target) const {
    return at::cross_entropy_loss(logits, target, detail::given(weight), detail::enum_of(reduction),
                                  ignore_index, label_smoothing);
  }
};

/// Negative log likelihood: log-probabilities N×C(×…) or C, class indices N(×…) (int64). Source:
/// torch.nn.NLLLoss.
struct NLL {
  static constexpr FixedString criterion_name{"nll"};

  at::Tensor weight{};  ///< C, a weight for each class
  Reduction reduction = Reduction::mean;
  std::int64_t ignore_index = -100;

  at::Tensor operator()(const at::Tensor& log_probabilities, const at::Tensor& target) const {
    return at::nll_loss_nd(log_probabilities, target, detail::given(weight), detail::enum_of(reduction),
                           ignore_index);
  }
};

/// Binary cross entropy on probabilities; target of the output's shape, both with values from 0 to 1.
/// Source: torch.nn.BCELoss. @throws std::invalid_argument if the shapes differ.
struct BCE {
  static constexpr FixedString criterion_name{"bce"};

  at::Tensor weight{};  ///< broadcast to the target's shape
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    detail::same_shape("BCE", output, target);
    return at::binary_cross_entropy(output, target,
                                    weight.defined() ? std::optional(weight.expand_as(target)) : std::nullopt,
                                    detail::enum_of(reduction));
  }
};

/// Binary cross entropy on logits; target of the logits' shape with values from 0 to 1.
/// Source: torch.nn.BCEWithLogitsLoss. @throws std::invalid_argument if the shapes differ.
struct BCEWithLogits {
  static constexpr FixedString criterion_name{"bce_with_logits"};

  at::Tensor weight{};      ///< broadcast to the target's shape
  at::Tensor pos_weight{};  ///< C, a weight for each class's positive examples
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& logits, const at::Tensor& target) const {
    detail::same_shape("BCEWithLogits", logits, target);
    return at::binary_cross_entropy_with_logits(logits, target, detail::given(weight),
                                                detail::given(pos_weight), detail::enum_of(reduction));
  }
};

/// Multi-class hinge loss: scores N×C or C, class indices N or a scalar (int64). Source:
/// torch.nn.MultiMarginLoss.
struct MultiMargin {
  static constexpr FixedString criterion_name{"multi_margin"};

  std::int64_t p = 1;  ///< 1 or 2
  double margin = 1;
  at::Tensor weight{};  ///< C, a weight for each class
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    return at::multi_margin_loss(output, target, p, margin, detail::given(weight),
                                 detail::enum_of(reduction));
  }
};

/// Multi-class, multi-label hinge loss: scores N×C or C; the target (int64, of that shape) lists the classes
/// of each sample up to the first -1. Source: torch.nn.MultiLabelMarginLoss.
struct MultiLabelMargin {
  static constexpr FixedString criterion_name{"multi_label_margin"};

  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    return at::multilabel_margin_loss(output, target, detail::enum_of(reduction));
  }
};

/// One-versus-all cross entropy of several labels: logits and targets (0 or 1) of shape (…×)C, the mean over
/// the classes. Source: torch.nn.MultiLabelSoftMarginLoss. @throws std::invalid_argument if the shapes
/// differ.
struct MultiLabelSoftMargin {
  static constexpr FixedString criterion_name{"multi_label_soft_margin"};

  at::Tensor weight{};  ///< C, a weight for each class
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& logits, const at::Tensor& target) const {
    detail::same_shape("MultiLabelSoftMargin", logits, target);
    at::Tensor loss = -(target * at::log_sigmoid(logits) + (1 - target) * at::log_sigmoid(-logits));
    if (weight.defined()) loss = loss * weight;
    return detail::reduce(loss.sum(-1) / logits.size(-1), reduction);
  }
};

/// Logistic loss of two classes: outputs of any shape, targets 1 or -1 of the same. Source:
/// torch.nn.SoftMarginLoss.
/// @throws std::invalid_argument if the shapes differ.
struct SoftMargin {
  static constexpr FixedString criterion_name{"soft_margin"};

  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    detail::same_shape("SoftMargin", output, target);
    return at::soft_margin_loss(output, target, detail::enum_of(reduction));
  }
};

}  // namespace fulmen
