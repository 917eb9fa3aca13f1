// The fit stage: epochs of training batches with validation between them, in Lightning's order.
#pragma once

#include <fulmen/data/data_module.hpp>
#include <fulmen/loop/evaluate.hpp>
#include <fulmen/optim/clip.hpp>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/anomaly_mode.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>
#endif

namespace fulmen::detail {

/// Puts the default generator back as it was, so that the sanity check does not change what training draws.
class IsolatedGenerator {
 public:
  IsolatedGenerator();
  ~IsolatedGenerator();
  IsolatedGenerator(const IsolatedGenerator&) = delete;
  IsolatedGenerator& operator=(const IsolatedGenerator&) = delete;

 private:
  at::Generator generator_;
  at::Tensor state_;
};

/// The outputs of one training batch: the module's own training_step or the default one, then training_step_end.
template <class Ctx, class Batch>
decltype(auto) raw_training_step(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
  if constexpr (answers<hooks::training_step, typename Ctx::Module>) {
    return call_step<hooks::training_step>(ctx.module(), ctx, batch, batch_idx);
  } else {
    return default_training_step(ctx, batch);
  }
}
template <class Ctx, class Batch>
auto training_step(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
  if constexpr (std::is_void_v<decltype(raw_training_step(ctx, batch, batch_idx))>) {
    return raw_training_step(ctx, batch, batch_idx);
  } else {
    return after_step<hooks::training_step_end>(ctx, raw_training_step(ctx, batch, batch_idx));
  }
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

/// What is done with a batch: whether an optimizer stepped.
enum class BatchResult : std::uint8_t { accumulated, stepped };

/// Forward, backward and optimizer step of one batch; gives the outputs to on_train_batch_end, and to `use`.
template <class Ctx, class Batch, class Use>
BatchResult train_batch(Ctx& ctx, Batch& batch, std::int64_t batch_idx, bool last, Use&& use) {
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
      None nothing;
      take_result(ctx, outputs, nothing);
      end(outputs);
      use(outputs);
    }
    return BatchResult::stepped;
  } else if constexpr (can_optimize<Ctx, Outputs>()) {
    const std::int64_t accumulate = ctx.accumulate_grad_batches();
    const bool first_of_step = accumulate == 1 || batch_idx % accumulate == 0;
    const bool last_of_step = accumulate == 1 || (batch_idx + 1) % accumulate == 0 || last;
    auto& optimizer = ctx.optimizer();
    std::optional<Outputs> outputs;
    const auto gradients = [&]() -> at::Tensor {
      outputs.emplace(training_step(ctx, batch, batch_idx));
      None nothing;
      take_result(ctx, *outputs, nothing);
      at::Tensor loss = loss_in(*outputs);
      if (first_of_step) {
        ctx.template tell_all<hooks::on_before_zero_grad>(optimizer);
        ctx.template act<hooks::optimizer_zero_grad>([&] { optimizer.zero_grad(); }, optimizer);
      }
      if (loss.defined()) [[likely]] {
        if (accumulate == 1) ctx.backward(loss);
        else ctx.backward(loss.div(static_cast<double>(accumulate)));
      }
      return loss;
    };
    if (last_of_step) {
      // What an optimizer runs, once or more often, to get gradients.
      auto closure = [&]() -> at::Tensor {
        const at::AutoGradMode grad(true);
        at::Tensor loss = gradients();
        ctx.template tell_all<hooks::on_before_optimizer_step>(optimizer);
        ctx.template act<hooks::configure_gradient_clipping>(
            [&] {
              const Options& o = ctx.options();
              if (o.gradient_clip_val == 0) [[likely]] return;
              if (o.gradient_clip_algorithm == GradientClip::norm) clip_grad_norm(optimizer.groups(), o.gradient_clip_val);
              else clip_grad_value(optimizer.groups(), o.gradient_clip_val);
            },
            optimizer);
        return loss;
      };
      ctx.template act<hooks::optimizer_step>([&] { optimizer.step(closure); }, optimizer, closure);
      if (!outputs) fail<std::logic_error>("optimizer_step did not run its closure: call optimizer.step(closure)");
      ctx.template advance_schedulers<Interval::step, false>(batch_idx);
    } else {
      gradients();
    }
    // Before this epoch's validation, as in Lightning.
    if (last) ctx.template advance_schedulers<Interval::epoch, false>(ctx.epoch());
    end(*outputs);
    use(*outputs);
    return last_of_step ? BatchResult::stepped : BatchResult::accumulated;
  } else {
    return BatchResult::stepped;  // the reason is a compile error already
  }
}

/// The module's (and callbacks') on_train_batch_start. @return whether the module said -1: skip the rest of the epoch
template <class Ctx, class Batch>
bool skips_epoch(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
  using Hook = hooks::on_train_batch_start;
  using M = typename Ctx::Module;
  std::apply([&](auto&... callback) { (tell<Hook>(callback, ctx, batch, batch_idx), ...); }, ctx.callbacks());
  if constexpr (answers<Hook, M>) {
    constexpr int arity = Arity<Hook, M, Ctx, Batch, std::int64_t>::value;
    if constexpr (arity < 0) {
      tell<Hook>(ctx.module(), ctx, batch, batch_idx);  // says what is wrong
    } else if constexpr (std::is_void_v<decltype(call_leading<Hook, arity>(ctx.module(), ctx, batch, batch_idx))>) {
      call_leading<Hook, arity>(ctx.module(), ctx, batch, batch_idx);
    } else {
      return call_leading<Hook, arity>(ctx.module(), ctx, batch, batch_idx) == -1;
    }
  }
  return false;
}

/// Whether fit may end because somebody asked to stop: not before min_epochs and min_steps.
template <class Ctx>
bool may_stop(Ctx& ctx) {
  return ctx.should_stop() && ctx.epoch() >= ctx.options().min_epochs && ctx.global_step() >= ctx.options().min_steps;
}

template <class Ctx>
bool max_steps_reached(Ctx& ctx) {
  return ctx.options().max_steps >= 0 && ctx.global_step() >= ctx.options().max_steps;
}

template <class Ctx>
bool training_done(Ctx& ctx) {
  return ctx.interrupted() || max_steps_reached(ctx) || may_stop(ctx);
}

template <class Ctx, class Val>
void validate_in_fit(Ctx& ctx, Val& val, bool accumulating) {
  if constexpr (!is_none<Val>) {
    const Options& o = ctx.options();
    if (!accumulating) {
      // Memory that validation can use; gradients that are still being summed stay.
      ctx.template act<hooks::on_validation_model_zero_grad>(
          [&] { std::apply([](auto&... optimizer) { (optimizer.zero_grad(), ...); }, ctx.optimizers()); });
    }
    evaluation_pass<Validation>(
        ctx, val.loader(ctx.epoch()), [&](auto& l) { return batch_limit(ctx, o.limit_val_batches, loader_size(l), "limit_val_batches"); },
        Phase::validation, [](auto&&) {});
  }
}

/// Whether validation may run in an epoch.
inline bool validates(const Options& o, std::int64_t epoch) {
  return !o.limit_val_batches.is_zero() &&
         (o.check_val_every_n_epoch == 0 || (epoch + 1) % o.check_val_every_n_epoch == 0);
}

/// After how many batches validation runs; nothing: at the epoch's end.
std::optional<std::int64_t> validation_interval(const Options& o, std::optional<std::int64_t> batches);

/// Counts what the context is told before anybody looks, and when the epoch is left in whatever way: the batches done, which
/// `batch_idx` is the number of, and the optimizer's steps.
class BatchCounts {
 public:
  BatchCounts(Context& ctx, const std::int64_t& batch_idx) : ctx_(&ctx), batch_idx_(&batch_idx) {}
  ~BatchCounts() { tell(); }
  BatchCounts(const BatchCounts&) = delete;
  BatchCounts& operator=(const BatchCounts&) = delete;

  /// To be said of each batch. Counts those without a step, so that nothing is left of it where each has one.
  void stepped(bool yes) { without_step_ += !yes; }
  void tell() {
    const std::int64_t batches = *batch_idx_ - std::exchange(told_, *batch_idx_);
    LoopAccess::total_batches(*ctx_) += batches;
    LoopAccess::logged_steps(*ctx_) += batches - std::exchange(without_step_, 0);
  }

 private:
  Context* ctx_;
  const std::int64_t* batch_idx_;
  std::int64_t told_ = 0, without_step_ = 0;
};

/// Not inlined, so that its loop has the registers to itself, and a profile shows it.
template <class Ctx, class Source, class Val>
[[gnu::noinline]] void train_epoch(Ctx& ctx, Source& source, Val& val, const std::optional<std::chrono::steady_clock::time_point>& deadline) {
  const Options& o = ctx.options();
  using M = typename Ctx::Module;
  auto& train = source.loader(ctx.epoch());
  const Unshuffled unshuffled(train, !o.overfit_batches.is_zero());
  const auto limit = batch_limit(ctx, o.limit_train_batches, loader_size(train), "limit_train_batches");
  LoopAccess::num_batches(ctx) = limit;
  const bool may_validate = !is_none<Val> && !o.limit_val_batches.is_zero();
  const auto interval = may_validate ? validation_interval(o, limit) : std::nullopt;
  const bool validates_this_epoch = !is_none<Val> && validates(o, ctx.epoch());
  ctx.template tell_all<hooks::on_train_epoch_start>();

  constexpr bool keeps_outputs = answers<hooks::training_epoch_end, M>;
  using Batch = BatchOf<decltype(train)>;
  using Outputs = decltype(training_step(ctx, std::declval<Batch&>(), 0));
  std::vector<std::conditional_t<keeps_outputs && !std::is_void_v<Outputs>, Outputs, None>> all;
  const auto use = [&](auto& outputs) {
    if constexpr (keeps_outputs) all.push_back(outputs);
  };

  std::int64_t batch_idx = 0;
  // The next batch after which something can be due besides an end that somebody asks for. Up to there the loop looks at no
  // option.
  const auto next_due = [&]() -> std::int64_t {
    if (!limit || deadline || o.max_steps >= 0) return batch_idx;
    std::int64_t quiet = std::min(*limit - 1 - batch_idx, o.log_every_n_steps - 1 - LoopAccess::logged_steps(ctx) % o.log_every_n_steps);
    if (validates_this_epoch && interval) {
      const std::int64_t count = o.check_val_every_n_epoch == 0 ? LoopAccess::total_batches(ctx) : batch_idx;
      quiet = std::min(quiet, *interval - 1 - count % *interval);
    }
    return batch_idx + quiet;
  };
  auto it = train.begin();
  const auto end = train.end();
  const auto has_batch = [&] { return (!limit || batch_idx < *limit) && it != end; };
  const auto is_last = [&] { return limit && batch_idx + 1 == *limit; };
  std::int64_t due = next_due();
  bool more = has_batch(), last = is_last(), skipped = false;
  BatchCounts counts(ctx, batch_idx);
  LoopAccess::by_step(ctx) = true;
  while (more) {
    auto batch = *it;
    if constexpr (!has_size<decltype(train)>) {
      // Where the size is unknown, only the next item tells whether this one is the last.
      if (!limit) {
        ++it;
        last = !(it != end);
      }
    }
    LoopAccess::batch_idx(ctx) = batch_idx;
    LoopAccess::batch_size(ctx) = batch_size(batch);
    transfer(ctx, train, batch, true);
    if (skips_epoch(ctx, batch, batch_idx)) {
      LoopAccess::by_step(ctx) = false;
      ctx.template advance_schedulers<Interval::epoch, false>(ctx.epoch());
      skipped = true;
      break;
    }
    const bool stepped = train_batch(ctx, batch, batch_idx, last, use) == BatchResult::stepped;
    ++batch_idx;
    counts.stepped(stepped);
    if (batch_idx < due && !ctx.should_stop() && !InterruptScope::requested()) [[likely]] {
      ++it;
      more = it != end;
      continue;
    }
    counts.tell();
    LoopAccess::by_step(ctx) = false;
    if (stepped && LoopAccess::logged_steps(ctx) % o.log_every_n_steps == 0) {
      ctx.log_metrics(ctx.metrics().step_metrics(Phase::train));
    }
    if (deadline && std::chrono::steady_clock::now() >= *deadline) [[unlikely]] ctx.request_stop();
    if (interrupted(ctx)) break;
    if constexpr (!is_none<Val>) {
      if (validates_this_epoch) {
        const std::int64_t count = o.check_val_every_n_epoch == 0 ? LoopAccess::total_batches(ctx) : batch_idx;
        if (may_stop(ctx) || (interval ? count % *interval == 0 : last)) {
          validate_in_fit(ctx, val, !stepped);
          if (ctx.interrupted()) break;
        }
      }
    }
    if (last || training_done(ctx)) break;
    if (limit) ++it;
    due = next_due();
    more = has_batch();
    last = is_last();
    LoopAccess::by_step(ctx) = true;
  }
  LoopAccess::by_step(ctx) = false;
  source.note_state(ctx);
  if (ctx.interrupted()) return;
  if (batch_idx == 0 && !skipped) fail<std::invalid_argument>("fit: the training loader is empty, expected at least one batch");
  if constexpr (keeps_outputs) call_outputs<hooks::training_epoch_end>(ctx.module(), ctx, all);
  LoopAccess::epoch_over(ctx) = true;
  // Reduced before the hook, so that callbacks can read the epoch's values, and after it, for what is logged there.
  Metrics results = ctx.metrics().end_epoch(Phase::train, /*last=*/false);
  ctx.template tell_all<hooks::on_train_epoch_end>();
  const Metrics late = ctx.metrics().end_epoch(Phase::train);
  results.insert(results.end(), late.begin(), late.end());
  ctx.log_metrics(results);
  ctx.template advance_schedulers<Interval::epoch, true>(ctx.epoch());
}

/// @param train,val where the loaders come from: see data/data_module.hpp; val is None where there is none
template <class Ctx, class Train, class Val>
void fit(Ctx& ctx, Train& train, Val& val) {
  const Options& o = ctx.options();
  ctx.bind();
  ctx.template tell_all<hooks::on_fit_start>();
  const std::int64_t max_epochs = o.fast_dev_run > 0 ? ctx.epoch() + 1 : o.max_epochs;
  LoopAccess::should_stop(ctx) = LoopAccess::epoch_over(ctx) = false;
  if constexpr (!is_none<Val>) {
    if (o.num_sanity_val_steps != 0 && o.fast_dev_run == 0 && !o.limit_val_batches.is_zero()) {
      const IsolatedGenerator isolated;
      const PhaseScope scope(ctx, Phase::sanity_check);
      ctx.template tell_all<hooks::on_sanity_check_start>();
      const auto limit_of = [&](auto& loader) {
        const auto limit = batch_limit(ctx, o.limit_val_batches, loader_size(loader), "limit_val_batches");
        if (o.num_sanity_val_steps < 0) return limit;
        return std::optional(limit ? std::min(*limit, o.num_sanity_val_steps) : o.num_sanity_val_steps);
      };
      evaluation_pass<Validation>(ctx, val.loader(ctx.epoch()), limit_of, Phase::sanity_check, [](auto&&) {});
      ctx.template tell_all<hooks::on_sanity_check_end>();
      ctx.metrics().forget(Phase::sanity_check);
    }
  }
  const auto more = [&] {
    return !o.limit_train_batches.is_zero() && (max_epochs < 0 || ctx.epoch() < max_epochs) && !training_done(ctx);
  };
  if (!o.limit_train_batches.is_zero()) {
    // A data module makes its loaders here, before anybody hears that training starts.
    train.loader(ctx.epoch());
    if constexpr (!is_none<Val>) {
      if (validates(o, ctx.epoch())) val.loader(ctx.epoch());
    }
  }
  if (more()) {
    std::optional<torch::autograd::DetectAnomalyGuard> anomaly;
    if (o.detect_anomaly) anomaly.emplace();
    std::optional<std::chrono::steady_clock::time_point> deadline;
    if (o.max_time.count() > 0) {
      deadline = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(o.max_time);
    }
    const PhaseScope scope(ctx, Phase::train);
    ctx.metrics().begin_epoch(Phase::train);  // before on_train_start, whose values are the first epoch's
    ctx.template tell_all<hooks::on_train_start>();
    while (more()) {
      train_epoch(ctx, train, val, deadline);
      ctx.metrics().begin_epoch(Phase::train);
      if (std::exchange(LoopAccess::epoch_over(ctx), false)) ++LoopAccess::epoch(ctx);
    }
    if (!ctx.interrupted()) ctx.template tell_all<hooks::on_train_end>();
  }
  if (!ctx.interrupted()) ctx.template tell_all<hooks::on_fit_end>();
}

#if FULMEN_BODIES
FULMEN_INLINE IsolatedGenerator::IsolatedGenerator() : generator_(at::detail::getDefaultCPUGenerator()) {
  const std::lock_guard lock(generator_.mutex());
  state_ = generator_.get_state();
}

FULMEN_INLINE IsolatedGenerator::~IsolatedGenerator() {
  const std::lock_guard lock(generator_.mutex());
  generator_.set_state(state_);
}

FULMEN_INLINE std::optional<std::int64_t> validation_interval(const Options& o, std::optional<std::int64_t> batches) {
  if (o.val_check_interval.is_default()) return std::nullopt;
  if (!o.val_check_interval.is_count() && !batches) {
    fail<std::invalid_argument>("Options::val_check_interval is the fraction {} of a loader that has no size(): give a "
                                "count of batches instead", o.val_check_interval.value());
  }
  const std::int64_t interval = o.val_check_interval.is_count()
                                    ? static_cast<std::int64_t>(o.val_check_interval.value())
                                    : std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(*batches) *
                                                                                          o.val_check_interval.value()));
  if (o.check_val_every_n_epoch != 0 && batches && interval > *batches) {
    fail<std::invalid_argument>("Options::val_check_interval is {}, expected at most the {} batches of an epoch; to count "
                                "batches across epochs, set check_val_every_n_epoch to 0", interval, *batches);
  }
  return interval;
}
#endif

}  // namespace fulmen::detail
