// The evaluation stages: validation (alone or inside fit), test and predict.
#pragma once

#include <fulmen/data/loader.hpp>
#include <fulmen/loop/interrupt.hpp>
#include <fulmen/loop/steps.hpp>
#include <fulmen/loop/trainer_context.hpp>

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <string>
#endif

namespace fulmen::detail {

/// The hooks and names that make validation, test and predict different.
struct Validation {
  using ModelEval = hooks::on_validation_model_eval;
  using Start = hooks::on_validation_start;
  using EpochStart = hooks::on_validation_epoch_start;
  using BatchStart = hooks::on_validation_batch_start;
  using Step = hooks::validation_step;
  using StepEnd = hooks::validation_step_end;
  using BatchEnd = hooks::on_validation_batch_end;
  using Outputs = hooks::validation_epoch_end;
  using EpochEnd = hooks::on_validation_epoch_end;
  using End = hooks::on_validation_end;
  using ModelTrain = hooks::on_validation_model_train;
  static constexpr Phase phase = Phase::validation;
  static constexpr FixedString prefix{"val"};
  static constexpr auto loss_name = [] { return LogName("val/loss"); };
};
struct Test {
  using ModelEval = hooks::on_test_model_eval;
  using Start = hooks::on_test_start;
  using EpochStart = hooks::on_test_epoch_start;
  using BatchStart = hooks::on_test_batch_start;
  using Step = hooks::test_step;
  using StepEnd = hooks::test_step_end;
  using BatchEnd = hooks::on_test_batch_end;
  using Outputs = hooks::test_epoch_end;
  using EpochEnd = hooks::on_test_epoch_end;
  using End = hooks::on_test_end;
  using ModelTrain = hooks::on_test_model_train;
  static constexpr Phase phase = Phase::test;
  static constexpr FixedString prefix{"test"};
  static constexpr auto loss_name = [] { return LogName("test/loss"); };
};
struct Predict {
  using ModelEval = hooks::on_predict_model_eval;
  using Start = hooks::on_predict_start;
  using EpochStart = hooks::on_predict_epoch_start;
  using BatchStart = hooks::on_predict_batch_start;
  using Step = hooks::predict_step;
  using BatchEnd = hooks::on_predict_batch_end;
  using EpochEnd = hooks::on_predict_epoch_end;
  using End = hooks::on_predict_end;
  using ModelTrain = hooks::on_predict_model_train;
  static constexpr Phase phase = Phase::predict;
  static constexpr FixedString prefix{"predict"};
};

/// The modes of a module and of each of its submodules, to be put back after evaluation.
class Modes {
 public:
  explicit Modes(torch::nn::Module& module);
  void restore();

 private:
  torch::nn::Module& module_;
  bool training_;
  std::vector<std::pair<std::shared_ptr<torch::nn::Module>, bool>> children_;
};

/// Puts a module into eval mode; afterwards each submodule is back in the mode it had of its own. The module's own
/// on_…_model_eval and on_…_model_train are called instead where it has them.
template <class E, class Ctx>
class EvalMode {
 public:
  explicit EvalMode(Ctx& ctx) : ctx_(ctx), modes_(ctx.module()) {
    ctx_.template act<typename E::ModelEval>([&] { ctx_.module().eval(); });
  }
  void leave() {
    left_ = true;
    ctx_.template act<typename E::ModelTrain>([&] { modes_.restore(); });
  }
  ~EvalMode() {
    if (!left_) modes_.restore();  // an exception passes through
  }
  EvalMode(const EvalMode&) = delete;
  EvalMode& operator=(const EvalMode&) = delete;

 private:
  Ctx& ctx_;
  Modes modes_;
  bool left_ = false;
};

/// No gradients, by inference mode (faster: no version counters) or plain no_grad.
class NoGradients {
 public:
  explicit NoGradients(bool inference_mode);
  ~NoGradients();
  NoGradients(const NoGradients&) = delete;
  NoGradients& operator=(const NoGradients&) = delete;

 private:
  std::optional<c10::InferenceMode> inference_;
  std::optional<at::NoGradGuard> no_grad_;
};

/// Notes which phase runs, and puts back the one before: validation inside fit returns to training.
class PhaseScope {
 public:
  PhaseScope(Context& ctx, Phase phase);
  ~PhaseScope();
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
  if (InterruptScope::requested()) [[unlikely]] LoopAccess::interrupted(ctx) = InterruptScope::signal();
  return ctx.interrupted();
}

/// Takes a batch through the module's (or data module's) transfer actions to the device; `move` is whether the loop moves
/// it itself where nobody else does.
template <class Ctx, class L, class Batch>
void transfer(Ctx& ctx, L& loader, Batch& batch, bool move) {
  std::int64_t dataloader_idx = ctx.dataloader_idx();
  at::Device device = ctx.device();
  const auto by = [&]<class Action>(std::type_identity<Action>, auto& participant, auto&... args) {
    using P = std::remove_cvref_t<decltype(participant)>;
    const auto measured = measure<Action, P>(ctx);
    constexpr int arity = Arity<Action, P, Ctx, Batch, std::remove_cvref_t<decltype(args)>...>::value;
    if constexpr (arity < 0) {
      tell<Action>(participant, ctx, batch, args...);  // says what is wrong
    } else if constexpr (std::is_void_v<decltype(call_leading<Action, arity>(participant, ctx, batch, args...))>) {
      call_leading<Action, arity>(participant, ctx, batch, args...);
    } else {
      batch = call_leading<Action, arity>(participant, ctx, batch, args...);
    }
  };
  // The data module's actions come before the module's, which it replaces.
  const auto act = [&]<class Action>(std::type_identity<Action> action, auto&&... args) {
    if constexpr (requires { loader.data_module(); }) {
      using D = std::remove_cvref_t<decltype(loader.data_module())>;
      if constexpr (answers<Action, D>) {
        by(action, loader.data_module(), args...);
        return true;
      }
    }
    if constexpr (answers<Action, typename Ctx::Module>) {
      by(action, ctx.module(), args...);
      return true;
    }
    return false;
  };
  act(std::type_identity<hooks::on_before_batch_transfer>{}, dataloader_idx);
  if (!act(std::type_identity<hooks::transfer_batch_to_device>{}, device, dataloader_idx) && move) move_measured(ctx, batch);
  act(std::type_identity<hooks::on_after_batch_transfer>{}, dataloader_idx);
}

/// The output of one evaluation batch: the module's own step, or the default one; then its …_step_end.
template <class E, class Ctx, class Batch>
decltype(auto) raw_evaluation_step(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
  if constexpr (answers<typename E::Step, typename Ctx::Module>) {
    return call_step<typename E::Step>(ctx.module(), ctx, batch, batch_idx, ctx.dataloader_idx());
  } else if constexpr (std::is_same_v<E, Predict>) {
    const auto measured = measure<hooks::predict_step, None>(ctx);
    return default_predict_step(ctx, batch, batch_idx);
  } else {
    const auto measured = measure<typename E::Step, None>(ctx);
    return inference<typename E::Step>(ctx, batch, batch_idx, E::loss_name);
  }
}

/// Passes outputs through the module's …_step_end, where it has one.
template <class StepEnd, class Ctx, class Outputs>
decltype(auto) after_step(Ctx& ctx, Outputs&& outputs) {
  if constexpr (answers<StepEnd, typename Ctx::Module>) {
    return call_outputs<StepEnd>(ctx.module(), ctx, outputs);
  } else {
    return std::forward<Outputs>(outputs);
  }
}

template <class E, class Ctx, class Batch>
auto evaluation_step(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
  if constexpr (std::is_void_v<decltype(raw_evaluation_step<E>(ctx, batch, batch_idx))>) {
    return raw_evaluation_step<E>(ctx, batch, batch_idx);
  } else if constexpr (requires { typename E::StepEnd; }) {
    return after_step<typename E::StepEnd>(ctx, raw_evaluation_step<E>(ctx, batch, batch_idx));
  } else {
    return raw_evaluation_step<E>(ctx, batch, batch_idx);
  }
}

/// Says which loader is empty: the running one.
[[noreturn, gnu::cold]] void fail_for_empty_loader(Context& ctx);

/// Notes, for a checkpoint saved from now on, that the validation inside fit need not be done again.
inline void validation_is_over(Context& ctx) {
  LoopAccess::progress(ctx).validated_at = LoopAccess::progress(ctx).done;
  LoopAccess::progress(ctx).validation_generator.reset();
}

/// Ends an epoch whose first values are in `results`: adds what was logged after them.
void end_epoch(Context& ctx, Phase phase, Metrics& results);

/// All batches of one loader. @return how many
template <class E, class Ctx, class L, class Predictions, class Use>
std::int64_t evaluate_loader(Ctx& ctx, L& loader, std::optional<std::int64_t> limit, Predictions& predictions, Use&& use) {
  LoopAccess::num_batches(ctx) = limit;
  const Unshuffled unshuffled(loader, ctx.stage() == Stage::fit && !ctx.options().overfit_batches.is_zero());
  std::int64_t batch_idx = 0, dataloader_idx = ctx.dataloader_idx();
  for (auto&& item : measured_loader<E::prefix>(ctx, loader)) {
    auto batch = std::forward<decltype(item)>(item);
    LoopAccess::batch_idx(ctx) = batch_idx;
    LoopAccess::batch_size(ctx) = batch_size(batch);
    LoopAccess::in_batch(ctx) = true;
    // A module with a step of its own gets its batches on the device; the default step moves them itself, after the
    // predictor has cut them up.
    transfer(ctx, loader, batch, answers<typename E::Step, typename Ctx::Module>);
    ctx.template tell_all<typename E::BatchStart>(batch, batch_idx, dataloader_idx);
    if constexpr (std::is_void_v<decltype(evaluation_step<E>(ctx, batch, batch_idx))>) {
      evaluation_step<E>(ctx, batch, batch_idx);
      None nothing;
      ctx.template tell_all<typename E::BatchEnd>(nothing, batch, batch_idx, dataloader_idx);
    } else {
      auto outputs = evaluation_step<E>(ctx, batch, batch_idx);
      take_result(ctx, outputs, predictions);
      ctx.template tell_all<typename E::BatchEnd>(outputs, batch, batch_idx, dataloader_idx);
      use(std::move(outputs));
    }
    LoopAccess::in_batch(ctx) = false;
    ctx.log_evaluation_step();
    ++batch_idx;
    tell_profiler<ProfilerStep>(ctx);
    if (interrupted(ctx) || (limit && batch_idx >= *limit)) break;
  }
  if (batch_idx == 0 && !ctx.interrupted()) fail_for_empty_loader(ctx);
  return batch_idx;
}

/// Calls `f` with each loader: with the one there is, or with those of a tuple.
template <class L, class F>
void each_loader(Context& ctx, L& loaders, F&& f) {
  if constexpr (LoaderTuple<L>) {
    LoopAccess::several_loaders(ctx) = std::tuple_size_v<std::remove_cvref_t<L>> > 1;
    std::apply(
        [&](auto&... argument) {
          std::int64_t index = 0;
          (
              [&] {
                LoopAccess::dataloader_idx(ctx) = index++;
                auto&& loader = loader_of(argument, "a stage with several loaders");
                f(loader);
              }(),
              ...);
        },
        loaders);
  } else {
    f(loaders);
  }
}

/// One pass over the loaders in eval mode without gradients. `limit_of(loader)` is how many of its batches are used;
/// `use(outputs)` gets what each step returned.
template <class E, class Ctx, class L, class LimitOf, class Use>
void evaluation_pass(Ctx& ctx, L& loaders, LimitOf&& limit_of, Phase phase, Use&& use) {
  const PhaseScope scope(ctx, phase);
  EvalMode<E, Ctx> eval(ctx);
  const NoGradients no_gradients(ctx.options().inference_mode);
  ctx.metrics().begin_epoch(phase);
  ctx.template tell_all<typename E::Start>();
  if constexpr (!LoaderTuple<L>) LoopAccess::num_batches(ctx) = limit_of(loaders);
  ctx.template tell_all<typename E::EpochStart>();
  using FirstOutputs = decltype(evaluation_step<E>(ctx, std::declval<FirstBatchOf<L>&>(), 0));
  typename PredictionsOf<std::remove_cvref_t<FirstOutputs>>::type predictions;
  if constexpr (requires { typename E::Outputs; }) {
    if constexpr (answers<typename E::Outputs, typename Ctx::Module>) {
      // Only here are outputs kept: the module takes them all at the end.
      static_assert(!LoaderTuple<L>, "fulmen: an …_epoch_end(outputs) takes the outputs of one loader");
      using Batch = BatchOf<L>;
      std::vector<std::remove_cvref_t<decltype(evaluation_step<E>(ctx, std::declval<Batch&>(), 0))>> all;
      evaluate_loader<E>(ctx, loaders, limit_of(loaders), predictions,
                         [&](auto&& outputs) { all.push_back(std::move(outputs)); });
      if (!ctx.interrupted()) call_outputs<typename E::Outputs>(ctx.module(), ctx, all);
    } else {
      each_loader(ctx, loaders, [&](auto& loader) { evaluate_loader<E>(ctx, loader, limit_of(loader), predictions, use); });
    }
  } else {
    each_loader(ctx, loaders, [&](auto& loader) { evaluate_loader<E>(ctx, loader, limit_of(loader), predictions, use); });
  }
  if (!ctx.interrupted()) {
    // Reduced before the hook, so that callbacks can read the epoch's values, and after it, for what is logged there.
    Metrics results = ctx.metrics().end_epoch(phase, /*last=*/false);
    ctx.template tell_all<typename E::EpochEnd>();
    end_epoch(ctx, phase, results);
    if (phase != Phase::sanity_check) ctx.log_metrics(results);
    if constexpr (requires { predictions.write(ctx); }) predictions.write(ctx);
    if (phase == Phase::validation) validation_is_over(ctx);
    ctx.template tell_all<typename E::End>();
  }
  eval.leave();
}

/// limit_*_batches and fast_dev_run together. A limit of a count is clipped to the loader's size where that is known.
std::optional<std::int64_t> batch_limit(const Context& ctx, const Limit& limit, std::optional<std::int64_t> size,
                                        const char* option);

#if FULMEN_BODIES
FULMEN_INLINE Modes::Modes(torch::nn::Module& module) : module_(module), training_(module.is_training()) {
  for (auto& child : module.modules(/*include_self=*/false)) {
    const bool training = child->is_training();
    children_.emplace_back(std::move(child), training);
  }
}

FULMEN_INLINE void Modes::restore() {
  // train() is recursive; parents come before their children here, so that a child's own mode has the last word.
  module_.train(training_);
  for (auto& [child, training] : children_) child->train(training);
}

FULMEN_INLINE NoGradients::NoGradients(bool inference_mode) {
  if (inference_mode) inference_.emplace();
  else no_grad_.emplace();
}
FULMEN_INLINE NoGradients::~NoGradients() = default;

FULMEN_INLINE PhaseScope::PhaseScope(Context& ctx, Phase phase)
    : ctx_(ctx),
      phase_(LoopAccess::phase(ctx)),
      batch_idx_(LoopAccess::batch_idx(ctx)),
      batch_size_(LoopAccess::batch_size(ctx)),
      num_batches_(LoopAccess::num_batches(ctx)),
      by_step_(LoopAccess::by_step(ctx)) {
  LoopAccess::phase(ctx) = phase;
  LoopAccess::by_step(ctx) = false;
}

FULMEN_INLINE PhaseScope::~PhaseScope() {
  LoopAccess::phase(ctx_) = phase_;
  LoopAccess::batch_idx(ctx_) = batch_idx_;
  LoopAccess::batch_size(ctx_) = batch_size_;
  LoopAccess::num_batches(ctx_) = num_batches_;
  LoopAccess::by_step(ctx_) = by_step_;
  LoopAccess::in_batch(ctx_) = false;
  LoopAccess::several_loaders(ctx_) = false;
  LoopAccess::dataloader_idx(ctx_) = 0;
}

FULMEN_INLINE void fail_for_empty_loader(Context& ctx) {
  fail<std::invalid_argument>("{}: the loader{} is empty, expected at least one batch", to_string(ctx.phase()),
                              LoopAccess::several_loaders(ctx) ? " " + std::to_string(ctx.dataloader_idx()) : "");
}

FULMEN_INLINE void end_epoch(Context& ctx, Phase phase, Metrics& results) {
  const Metrics late = ctx.metrics().end_epoch(phase);
  results.insert(results.end(), late.begin(), late.end());
}

FULMEN_INLINE std::optional<std::int64_t> batch_limit(const Context& ctx, const Limit& limit,
                                                       std::optional<std::int64_t> size, const char* option) {
  const std::int64_t fast = ctx.options().fast_dev_run;
  return fast > 0 ? Limit(fast).of(size, option) : limit.of(size, option);
}
#endif

}  // namespace fulmen::detail
