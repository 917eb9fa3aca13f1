// The fit stage: epochs of training batches with validation between them, in Lightning's order.
#pragma once

#include <fulmen/loop/evaluate.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/anomaly_mode.h>

#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>

namespace fulmen::detail {

/// Puts the default generator back as it was, so that the sanity check does not change what training draws.
class IsolatedGenerator {
 public:
  IsolatedGenerator() : generator_(at::detail::getDefaultCPUGenerator()) {
    const std::lock_guard lock(generator_.mutex());
    state_ = generator_.get_state();
  }
  ~IsolatedGenerator() {
    const std::lock_guard lock(generator_.mutex());
    generator_.set_state(state_);
  }
  IsolatedGenerator(const IsolatedGenerator&) = delete;
  IsolatedGenerator& operator=(const IsolatedGenerator&) = delete;

 private:
  at::Generator generator_;
  at::Tensor state_;
};

/// The outputs of one training batch: the module's own training_step, or the default one.
template <class Ctx, class Batch>
decltype(auto) training_step(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
  if constexpr (answers<hooks::training_step, typename Ctx::Module>) {
    return call_step<hooks::training_step>(ctx.module(), ctx, batch, batch_idx);
  } else {
    return default_training_step(ctx, batch);
  }
}

template <class Ctx>
void zero_grad(Ctx& ctx) {
  ctx.template tell_all<hooks::on_before_zero_grad>();
  std::apply([](auto&... optimizer) { (optimizer.zero_grad(), ...); }, ctx.optimizers());
}

/// Whether the loop can do the optimizing of a module whose training_step returns `Outputs`. If not, says why: once.
template <class Ctx, class Outputs>
consteval bool can_optimize() {
  constexpr std::size_t optimizers = std::tuple_size_v<typename Ctx::Optimizers>;
  static_assert(!std::is_void_v<Outputs>,
                "fulmen: training_step returns nothing; return the loss, or say static constexpr bool "
                "automatic_optimization = false and optimise by hand");
  static_assert(optimizers <= 1,
                "fulmen: several optimizers need a module that optimises by hand: static constexpr bool "
                "automatic_optimization = false and ctx.optimizers() in training_step");
  static_assert(optimizers != 0, "fulmen: fit needs an optimizer, or a module that optimises by hand");
  return !std::is_void_v<Outputs> && optimizers == 1;
}

/// Forward, backward and optimizer step of one batch; gives the outputs to on_train_batch_end.
/// @return whether the optimizer stepped
template <class Ctx, class Batch>
bool train_batch(Ctx& ctx, Batch& batch, std::int64_t batch_idx, bool last) {
  using M = typename Ctx::Module;
  const auto end = [&](auto& outputs) { ctx.template tell_all<hooks::on_train_batch_end>(outputs, batch, batch_idx); };
  using Outputs = decltype(training_step(ctx, batch, batch_idx));
  if constexpr (!automatic_optimization<M>()) {
    if constexpr (std::is_void_v<Outputs>) {
      training_step(ctx, batch, batch_idx);
      None nothing;
      end(nothing);
    } else {
      auto outputs = training_step(ctx, batch, batch_idx);
      end(outputs);
    }
    return true;
  } else if constexpr (can_optimize<Ctx, Outputs>()) {
    const std::int64_t accumulate = ctx.options().accumulate_grad_batches;
    const bool first_of_step = accumulate == 1 || batch_idx % accumulate == 0;
    const bool last_of_step = accumulate == 1 || (batch_idx + 1) % accumulate == 0 || last;
    auto outputs = training_step(ctx, batch, batch_idx);
    const at::Tensor loss = loss_in(outputs);
    if (first_of_step) zero_grad(ctx);
    if (loss.defined()) [[likely]] {
      if (accumulate == 1) ctx.backward(loss);
      else ctx.backward(loss.div(static_cast<double>(accumulate)));
    }
    if (last_of_step) {
      ctx.optimizer().step();
      ctx.template advance_schedulers<true>();
    }
    // Before this epoch's validation, as in Lightning.
    if (last) ctx.template advance_schedulers<false>();
    end(outputs);
    return last_of_step;
  } else {
    return false;  // the reason is a compile error already
  }
}

/// Whether fit is over: a limit is reached, or somebody asked to stop and the minima are reached.
template <class Ctx>
bool training_done(Ctx& ctx) {
  const Options& o = ctx.options();
  if (ctx.interrupted()) return true;
  if (o.max_steps >= 0 && ctx.global_step() >= o.max_steps) return true;
  return ctx.should_stop() && ctx.epoch() >= o.min_epochs && ctx.global_step() >= o.min_steps;
}

template <class Ctx, class Val>
void validate_in_fit(Ctx& ctx, Val& val) {
  if constexpr (!is_none<Val>) {
    if (ctx.options().limit_val_batches.is_zero()) return;
    const auto limit = batch_limit(ctx, ctx.options().limit_val_batches, loader_size(val), "limit_val_batches");
    evaluation_pass<Validation>(ctx, val, limit, Phase::validation, [](auto&&) {});
  }
}

template <class Ctx, class Train, class Val>
void train_epoch(Ctx& ctx, Train& train, Val& val) {
  const Options& o = ctx.options();
  const auto limit = batch_limit(ctx, o.limit_train_batches, loader_size(train), "limit_train_batches");
  LoopAccess::num_batches(ctx) = limit;
  ctx.metrics().begin_epoch(Phase::train);
  ctx.template tell_all<hooks::on_train_epoch_start>();
  std::int64_t batch_idx = 0;
  bool complete = false;
  auto it = train.begin();
  const auto end = train.end();
  const auto more = [&] { return (!limit || batch_idx < *limit) && it != end; };
  while (more()) {
    auto batch = *it;
    // Where the size is unknown, only the next item tells whether this one is the last.
    bool last = limit && batch_idx + 1 == *limit;
    if (!limit) {
      ++it;
      last = !(it != end);
    }
    LoopAccess::batch_idx(ctx) = batch_idx;
    LoopAccess::batch_size(ctx) = batch_size(batch);
    LoopAccess::by_step(ctx) = true;
    move_to(batch, ctx.device());
    ctx.template tell_all<hooks::on_train_batch_start>(batch, batch_idx);
    const bool stepped = train_batch(ctx, batch, batch_idx, last);
    LoopAccess::by_step(ctx) = false;
    if (stepped && ctx.global_step() % o.log_every_n_steps == 0) ctx.log_metrics(ctx.metrics().take_step_metrics(Phase::train));
    ++batch_idx;
    if (limit && !last) ++it;
    complete = last;
    if (interrupted(ctx) || last || training_done(ctx)) break;
  }
  if (batch_idx == 0) {
    fail<std::invalid_argument>("fit: the training loader is empty, expected at least one batch");
  }
  if (ctx.interrupted()) return;
  // An epoch cut short by a request to stop is validated, one cut short by max_steps is not.
  const bool max_steps_reached = o.max_steps >= 0 && ctx.global_step() >= o.max_steps;
  if ((ctx.epoch() + 1) % o.check_val_every_n_epoch == 0 && (complete || !max_steps_reached)) validate_in_fit(ctx, val);
  if (ctx.interrupted()) return;
  LoopAccess::epoch_over(ctx) = true;
  // Reduced before the hook, so that callbacks can read the epoch's values, and after it, for what is logged there.
  Metrics results = ctx.metrics().end_epoch(Phase::train);
  ctx.template tell_all<hooks::on_train_epoch_end>();
  const Metrics late = ctx.metrics().end_epoch(Phase::train);
  results.insert(results.end(), late.begin(), late.end());
  ctx.log_metrics(results);
}

template <class Ctx, class Train, class Val>
void fit(Ctx& ctx, Train& train, Val& val) {
  const Options& o = ctx.options();
  if (o.limit_train_batches.is_zero()) return;
  ctx.bind();
  ctx.template tell_all<hooks::on_fit_start>();
  if constexpr (!is_none<Val>) {
    if (o.num_sanity_val_steps != 0 && o.fast_dev_run == 0 && !o.limit_val_batches.is_zero() && ctx.global_step() == 0) {
      const IsolatedGenerator isolated;
      PhaseScope scope(ctx, Phase::sanity_check);
      ctx.template tell_all<hooks::on_sanity_check_start>();
      auto limit = batch_limit(ctx, o.limit_val_batches, loader_size(val), "limit_val_batches");
      if (o.num_sanity_val_steps > 0) limit = limit ? std::min(*limit, o.num_sanity_val_steps) : o.num_sanity_val_steps;
      evaluation_pass<Validation>(ctx, val, limit, Phase::sanity_check, [](auto&&) {});
      ctx.template tell_all<hooks::on_sanity_check_end>();
      ctx.metrics().forget(Phase::sanity_check);
    }
  }
  std::optional<torch::autograd::DetectAnomalyGuard> anomaly;
  if (o.detect_anomaly) anomaly.emplace();
  const PhaseScope scope(ctx, Phase::train);
  LoopAccess::should_stop(ctx) = false;
  const std::int64_t max_epochs = o.fast_dev_run > 0 ? ctx.epoch() + 1 : o.max_epochs;
  const auto more = [&] { return (max_epochs < 0 || ctx.epoch() < max_epochs) && !training_done(ctx); };
  if (more()) {
    ctx.template tell_all<hooks::on_train_start>();
    while (more()) {
      train_epoch(ctx, train, val);
      if (std::exchange(LoopAccess::epoch_over(ctx), false)) ++LoopAccess::epoch(ctx);
    }
    if (!ctx.interrupted()) ctx.template tell_all<hooks::on_train_end>();
  }
  if (!ctx.interrupted()) ctx.template tell_all<hooks::on_fit_end>();
}

}  // namespace fulmen::detail
