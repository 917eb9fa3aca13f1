// Criteria: named losses with their options. Any callable `criterion(output, targets...) -> loss tensor` serves as well.
#pragma once

#include <ATen/core/Reduction.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/binary_cross_entropy_with_logits.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/l1_loss.h>
#include <ATen/ops/mse_loss.h>

#include <cstdint>
#include <optional>

namespace fulmen {

enum class Reduction : std::int64_t { none = at::Reduction::None, mean = at::Reduction::Mean, sum = at::Reduction::Sum };

/// Softmax cross entropy: logits N×C(×…) and class indices N(×…) (int64), or probabilities of the logits' shape.
struct CrossEntropy {
  at::Tensor weight{};  ///< C, a weight for each class
  Reduction reduction = Reduction::mean;
  std::int64_t ignore_index = -100;
  double label_smoothing = 0;

  at::Tensor operator()(const at::Tensor& logits, const at::Tensor& target) const {
    return at::cross_entropy_loss(logits, target, weight.defined() ? std::optional(weight) : std::nullopt,
                                  static_cast<std::int64_t>(reduction), ignore_index, label_smoothing);
  }
};

/// Mean squared error of two tensors of one shape.
struct MSE {
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    return at::mse_loss(output, target, static_cast<std::int64_t>(reduction));
  }
};

/// Mean absolute error of two tensors of one shape.
struct L1 {
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    return at::l1_loss(output, target, static_cast<std::int64_t>(reduction));
  }
};

/// Binary cross entropy on logits; target of the logits' shape with values from 0 to 1.
struct BCEWithLogits {
  at::Tensor weight{};
  at::Tensor pos_weight{};
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& logits, const at::Tensor& target) const {
    return at::binary_cross_entropy_with_logits(logits, target, weight.defined() ? std::optional(weight) : std::nullopt,
                                                pos_weight.defined() ? std::optional(pos_weight) : std::nullopt,
                                                static_cast<std::int64_t>(reduction));
  }
};

}  // namespace fulmen
