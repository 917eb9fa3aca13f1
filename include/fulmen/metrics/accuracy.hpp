// Metrics with state: fed batch by batch, read at the end of an epoch.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <string_view>

#if FULMEN_BODIES
#include <ATen/ops/argmax.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/scalar_tensor.h>

#include <limits>
#endif

namespace fulmen {

/// A metric: `update(prediction, target)` for each batch, `compute()` for the value so far, `reset()` for the next epoch.
template <class M>
concept MetricWithState = requires(M& metric, const at::Tensor& tensor) {
  { M::name } -> std::convertible_to<std::string_view>;
  metric.update(tensor, tensor);
  { metric.compute() } -> std::convertible_to<double>;
  metric.reset();
};

/// The share of samples whose highest score is at the target class (micro average, as torchmetrics has it by default).
class Accuracy {
 public:
  static constexpr std::string_view name = "accuracy";

  /// @param prediction scores N×C, or class indices N
  /// @param target     class indices N
  /// @throws std::invalid_argument if the shapes do not go together.
  void update(const at::Tensor& prediction, const at::Tensor& target);

  /// NaN where nothing has been seen.
  double compute() const;

  void reset() {
    correct_.reset();
    total_ = 0;
  }

  /// What has been counted since the last reset().
  State state_dict() const;
  void load_state_dict(const State& state);

 private:
  at::Tensor correct_;
  std::int64_t total_ = 0;
};

#if FULMEN_BODIES
FULMEN_INLINE void Accuracy::update(const at::Tensor& prediction, const at::Tensor& target) {
  const at::Tensor classes = prediction.dim() == target.dim() + 1 ? prediction.argmax(1) : prediction;
  if (!classes.sizes().equals(target.sizes())) {
    fail<std::invalid_argument>(
        "Accuracy: prediction has {} dimensions and {} samples, target {} and {}; expected "
        "scores N×C or classes N, and targets N",
        prediction.dim(), prediction.dim() ? prediction.size(0) : 1, target.dim(),
        target.dim() ? target.size(0) : 1);
  }
  // The count stays on the device; compute() reads it.
  const at::Tensor correct = classes.eq(target).sum();
  correct_ = correct_.defined() ? correct_.add(correct) : correct;
  total_ += target.numel();
}

FULMEN_INLINE double Accuracy::compute() const {
  return total_ == 0 ? std::numeric_limits<double>::quiet_NaN()
                     : correct_.item().toDouble() / static_cast<double>(total_);
}

FULMEN_INLINE State Accuracy::state_dict() const {
  return State("Accuracy").set("correct", total_ == 0 ? std::int64_t{0} : correct_.item().toLong()).set("total", total_);
}

FULMEN_INLINE void Accuracy::load_state_dict(const State& state) {
  const auto correct = state.get<std::int64_t>("correct"), total = state.get<std::int64_t>("total");
  correct_ = at::scalar_tensor(correct, at::kLong);
  total_ = total;
}
#endif

}  // namespace fulmen
