// The evaluation stages: validation (alone or inside fit), test and predict.
#pragma once

#include <fulmen/data/loader.hpp>
#include <fulmen/loop/interrupt.hpp>
#include <fulmen/loop/steps.hpp>
#include <fulmen/loop/trainer_context.hpp>

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen::detail {

/// The hooks and names that make validation, test and predict different.
struct Validation {
  using Start = hooks::on_validation_start;
  using EpochStart = hooks::on_validation_epoch_start;
  using BatchStart = hooks::on_validation_batch_start;
  using Step = hooks::validation_step;
  using BatchEnd = hooks::on_validation_batch_end;
  using EpochEnd = hooks::on_validation_epoch_end;
  using End = hooks::on_validation_end;
  static constexpr Phase phase = Phase::validation;
  static constexpr auto loss_name = [] { return LogName("val/loss"); };
};
struct Test {
  using Start = hooks::on_test_start;
  using EpochStart = hooks::on_test_epoch_start;
  using BatchStart = hooks::on_test_batch_start;
  using Step = hooks::test_step;
  using BatchEnd = hooks::on_test_batch_end;
  using EpochEnd = hooks::on_test_epoch_end;
  using End = hooks::on_test_end;
  static constexpr Phase phase = Phase::test;
  static constexpr auto loss_name = [] { return LogName("test/loss"); };
};
struct Predict {
  using Start = hooks::on_predict_start;
  using EpochStart = hooks::on_predict_epoch_start;
  using BatchStart = hooks::on_predict_batch_start;
  using Step = hooks::predict_step;
  using BatchEnd = hooks::on_predict_batch_end;
  using EpochEnd = hooks::on_predict_epoch_end;
  using End = hooks::on_predict_end;
  static constexpr Phase phase = Phase::predict;
};

/// Puts a module into eval mode; afterwards each submodule is back in the mode it had of its own.
class EvalMode {
 public:
  explicit EvalMode(torch::nn::Module& module) : module_(module), training_(module.is_training()) {
    for (auto& child : module.modules(/*include_self=*/false)) {
      const bool training = child->is_training();
      children_.emplace_back(std::move(child), training);
    }
    module.eval();
  }
  ~EvalMode() {
    // train() is recursive; parents come before their children here, so that a child's own mode has the last word.
    module_.train(training_);
    for (auto& [child, training] : children_) child->train(training);
  }
  EvalMode(const EvalMode&) = delete;
  EvalMode& operator=(const EvalMode&) = delete;

 private:
  torch::nn::Module& module_;
  bool training_;
  std::vector<std::pair<std::shared_ptr<torch::nn::Module>, bool>> children_;
};

/// No gradients, by inference mode (faster: no version counters) or plain no_grad.
class NoGradients {
 public:
  explicit NoGradients(bool inference_mode) {
    if (inference_mode) inference_.emplace();
    else no_grad_.emplace();
  }

 private:
  std::optional<c10::InferenceMode> inference_;
  std::optional<at::NoGradGuard> no_grad_;
};

/// Notes which phase runs, and puts back the one before: validation inside fit returns to training.
class PhaseScope {
 public:
  PhaseScope(Context& ctx, Phase phase)
      : ctx_(ctx),
        phase_(LoopAccess::phase(ctx)),
        batch_idx_(LoopAccess::batch_idx(ctx)),
        batch_size_(LoopAccess::batch_size(ctx)),
        num_batches_(LoopAccess::num_batches(ctx)),
        by_step_(LoopAccess::by_step(ctx)) {
    LoopAccess::phase(ctx) = phase;
    LoopAccess::by_step(ctx) = false;
  }
  ~PhaseScope() {
    LoopAccess::phase(ctx_) = phase_;
    LoopAccess::batch_idx(ctx_) = batch_idx_;
    LoopAccess::batch_size(ctx_) = batch_size_;
    LoopAccess::num_batches(ctx_) = num_batches_;
    LoopAccess::by_step(ctx_) = by_step_;
    LoopAccess::in_batch(ctx_) = false;
  }
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  Context& ctx_;
  Phase phase_;
  std::int64_t batch_idx_, batch_size_;
  std::optional<std::int64_t> num_batches_;
  bool by_step_;
};

inline bool interrupted(Context& ctx) {
  if (InterruptScope::requested()) [[unlikely]] LoopAccess::interrupted(ctx) = true;
  return LoopAccess::interrupted(ctx);
}

/// The output of one evaluation batch: the module's own step, or the default one.
template <class E, class Ctx, class Batch>
decltype(auto) evaluation_step(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
  if constexpr (answers<typename E::Step, typename Ctx::Module>) {
    return call_step<typename E::Step>(ctx.module(), ctx, batch, batch_idx);
  } else if constexpr (std::is_same_v<E, Predict>) {
    return default_predict_step(ctx, batch, batch_idx);
  } else {
    return inference<typename E::Step>(ctx, batch, batch_idx, E::loss_name);
  }
}

/// One pass over a loader in eval mode without gradients. `use(outputs)` gets what each step returned.
/// @return the number of batches seen
template <class E, class Ctx, class L, class Use>
std::int64_t evaluation_pass(Ctx& ctx, L& loader, std::optional<std::int64_t> limit, Phase phase, Use&& use) {
  const PhaseScope scope(ctx, phase);
  const EvalMode eval(ctx.module());
  const NoGradients no_gradients(ctx.options().inference_mode);
  LoopAccess::num_batches(ctx) = limit;
  ctx.metrics().begin_epoch(phase);
  ctx.template tell_all<typename E::Start>();
  ctx.template tell_all<typename E::EpochStart>();
  std::int64_t batch_idx = 0;
  if (!limit || *limit > 0) {
    for (auto&& item : loader) {
      auto batch = std::forward<decltype(item)>(item);
      LoopAccess::batch_idx(ctx) = batch_idx;
      LoopAccess::batch_size(ctx) = batch_size(batch);
      LoopAccess::in_batch(ctx) = true;
      // A module with a step of its own gets its batches on the device; the default step moves them itself, after the
      // predictor has cut them up.
      if constexpr (answers<typename E::Step, typename Ctx::Module>) move_to(batch, ctx.device());
      ctx.template tell_all<typename E::BatchStart>(batch, batch_idx);
      using Outputs = decltype(evaluation_step<E>(ctx, batch, batch_idx));
      if constexpr (std::is_void_v<Outputs>) {
        evaluation_step<E>(ctx, batch, batch_idx);
        None nothing;
        ctx.template tell_all<typename E::BatchEnd>(nothing, batch, batch_idx);
      } else {
        auto outputs = evaluation_step<E>(ctx, batch, batch_idx);
        ctx.template tell_all<typename E::BatchEnd>(outputs, batch, batch_idx);
        use(std::move(outputs));
      }
      LoopAccess::in_batch(ctx) = false;
      ++batch_idx;
      if (interrupted(ctx) || (limit && batch_idx >= *limit)) break;
    }
  }
  if (batch_idx == 0 && !ctx.interrupted()) {
    fail<std::invalid_argument>("{}: the loader is empty, expected at least one batch", to_string(phase));
  }
  if (!ctx.interrupted()) {
    ctx.template tell_all<typename E::EpochEnd>();
    const Metrics results = ctx.metrics().end_epoch(phase);
    if (phase != Phase::sanity_check) ctx.log_metrics(results);
    ctx.template tell_all<typename E::End>();
  }
  return batch_idx;
}

/// limit_*_batches and fast_dev_run together. A limit of a count is clipped to the loader's size where that is known.
inline std::optional<std::int64_t> batch_limit(const Context& ctx, const Limit& limit,
                                               std::optional<std::int64_t> size, const char* option) {
  const std::int64_t fast = ctx.options().fast_dev_run;
  return fast > 0 ? Limit(fast).of(size, option) : limit.of(size, option);
}

}  // namespace fulmen::detail
