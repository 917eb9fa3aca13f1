// Connectionist temporal classification: sequences of labels without their places in time.
#pragma once

#include <fulmen/fixed_string.hpp>
#include <fulmen/criteria/reduction.hpp>

#include <ATen/ops/ctc_loss.h>

#include <cstdint>
#include <tuple>

namespace fulmen {

/// Log-probabilities T×N×C (or T×C), targets N×S or all labels in a row (integers), the lengths of inputs and
/// targets (N each, tensors of integers or at::IntArrayRef). Source: torch.nn.CTCLoss. With `mean` each loss
/// is first divided by the length of its target. A forward that returns the pair (log-probabilities, input
/// lengths) is taken as it is.
struct CTC {
  static constexpr FixedString criterion_name{"ctc"};

  std::int64_t blank = 0;  ///< the class that stands for no label
  Reduction reduction = Reduction::mean;
  bool zero_infinity = false;  ///< no loss and no gradient for a target that does not fit into its input

  at::Tensor operator()(const at::Tensor& log_probabilities, const at::Tensor& targets,
                        const at::Tensor& input_lengths, const at::Tensor& target_lengths) const {
    return at::ctc_loss(log_probabilities, targets, input_lengths, target_lengths, blank,
                        detail::enum_of(reduction), zero_infinity);
  }
  at::Tensor operator()(const at::Tensor& log_probabilities, const at::Tensor& targets,
                        at::IntArrayRef input_lengths, at::IntArrayRef target_lengths) const {
    return at::ctc_loss(log_probabilities, targets, input_lengths, target_lengths, blank,
                        detail::enum_of(reduction), zero_infinity);
  }
  template <class OutputAndLengths>
    requires(std::tuple_size<OutputAndLengths>::value == 2)
  at::Tensor operator()(const OutputAndLengths& output, const at::Tensor& targets,
                        const at::Tensor& target_lengths) const {
    const auto& [log_probabilities, input_lengths] = output;
    return (*this)(log_probabilities, targets, input_lengths, target_lengths);
  }
};

}  // namespace fulmen
