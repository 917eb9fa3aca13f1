// write_predictions: functions of the user's that write what predict gives, by batch or at the end.
#pragma once

#include <fulmen/callbacks/lambda_callback.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/loop/hooks.hpp>
#include <fulmen/none.hpp>

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen {

/// When a PredictionWriter writes.
enum class WriteInterval : std::uint8_t { batch, epoch, batch_and_epoch };

/// See write_predictions.
template <WriteInterval When, class Prediction, class OnBatch, class OnEpoch>
class PredictionWriter {
 public:
  PredictionWriter(OnBatch on_batch, OnEpoch on_epoch)
      : on_batch_{std::move(on_batch)}, on_epoch_(std::move(on_epoch)) {}

  void on_predict_epoch_start(Context&) { predictions_.clear(); }
  template <class Ctx, class Outputs, class Batch>
  void on_predict_batch_end(Ctx& ctx, const Outputs& outputs, const Batch& batch, std::int64_t batch_idx,
                            std::int64_t dataloader_idx) {
    if constexpr (When != WriteInterval::batch) {
      constexpr bool fits = std::convertible_to<const Outputs&, Prediction>;
      static_assert(
          fits,
          "fulmen: write_predictions<interval, Prediction>: predict gives something else than Prediction, "
          "which is at::Tensor unless said otherwise");
      if constexpr (fits) predictions_.push_back(outputs);
    }
    if constexpr (When != WriteInterval::epoch)
      tell<hooks::on_predict_batch_end>(on_batch_, ctx, outputs, batch, batch_idx, dataloader_idx);
  }
  template <class Ctx>
  void on_predict_epoch_end(Ctx& ctx) {
    if constexpr (When != WriteInterval::batch) on_epoch_(ctx, std::as_const(predictions_));
    predictions_.clear();
  }

 private:
  [[no_unique_address]] detail::OnHook<hooks::on_predict_batch_end, OnBatch> on_batch_;
  [[no_unique_address]] OnEpoch on_epoch_;
  std::vector<Prediction> predictions_;
};

// clang-format off
/// A callback that gives predictions to functions as they come, so that a program need not keep what predict() returns:
///
///   write_predictions<WriteInterval::batch>(f)     f(ctx, prediction, batch, batch_idx, dataloader_idx) after each batch
///   write_predictions<WriteInterval::epoch, P>(g)  g(ctx, std::vector<P>) at the end; P: what predict_step gives
///   write_predictions<WriteInterval::batch_and_epoch, P>(f, g)
///
/// `f` may take any leading part of its arguments.
/// Source: lightning.pytorch.callbacks.BasePredictionWriter (whose batch_indices no loader here knows).
// clang-format on
template <WriteInterval When, class Prediction = at::Tensor, class First>
auto write_predictions(First first) {
  static_assert(When != WriteInterval::batch_and_epoch,
                "fulmen: write_predictions<batch_and_epoch> takes two functions");
  if constexpr (When == WriteInterval::batch)
    return PredictionWriter<When, Prediction, First, None>(std::move(first), None{});
  else
    return PredictionWriter<When, Prediction, None, First>(None{}, std::move(first));
}
template <WriteInterval When, class Prediction = at::Tensor, class OnBatch, class OnEpoch>
PredictionWriter<When, Prediction, OnBatch, OnEpoch> write_predictions(OnBatch on_batch, OnEpoch on_epoch) {
  static_assert(When == WriteInterval::batch_and_epoch,
                "fulmen: two functions are for write_predictions<batch_and_epoch>");
  return {std::move(on_batch), std::move(on_epoch)};
}

}  // namespace fulmen
