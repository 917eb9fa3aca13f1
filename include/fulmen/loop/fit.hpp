// The fit stage: epochs of training batches with validation between them, in Lightning's order.
#pragma once

#include <fulmen/data/data_module.hpp>
#include <fulmen/data/position.hpp>
#include <fulmen/loop/evaluate.hpp>
#include <fulmen/loop/gradients.hpp>
#include <fulmen/optim/clip.hpp>
#include <fulmen/seed.hpp>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/anomaly_mode.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen::detail {

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
BatchResult train_batch(Ctx& ctx, Gradients<Ctx, Batch>& gradients, Batch& batch, std::int64_t batch_idx, bool last, Use&& use) {
  using M = typename Ctx::Module;
  auto measured = measure<"run_training_batch">(ctx);
  const auto end = [&](auto& outputs) {
    measured.stop();
    // For those that save a checkpoint there.
    if constexpr (Ctx::template anybody<hooks::on_train_batch_end>) {
      LoopAccess::progress(ctx).done = batch_idx + 1;
      LoopAccess::progress(ctx).last = last;
    }
    ctx.template tell_all<hooks::on_train_batch_end>(outputs, batch, batch_idx);
  };
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
    const auto loss_and_gradients = [&]() -> at::Tensor {
      outputs.emplace(gradients.step(ctx, batch, batch_idx));
      None nothing;
      take_result(ctx, *outputs, nothing);
      at::Tensor loss = loss_in(*outputs);
      if (first_of_step) {
        ctx.template tell_all<hooks::on_before_zero_grad>(optimizer);
        ctx.template act<hooks::optimizer_zero_grad>([&] { optimizer.zero_grad(); }, optimizer);
      }
      if (loss.defined()) [[likely]] gradients.backward(ctx, loss, accumulate);
      return loss;
    };
    if (last_of_step) {
      // What an optimizer runs, once or more often, to get gradients.
      auto closure = [&]() -> at::Tensor {
        const at::AutoGradMode grad(true);
        at::Tensor loss = loss_and_gradients();
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
      loss_and_gradients();
      ++LoopAccess::progress(ctx).without_step;
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
  std::apply([&](auto&... callback) { (tell_measured<Hook>(callback, ctx, batch, batch_idx), ...); }, ctx.callbacks());
  if constexpr (answers<Hook, M>) {
    const auto measured = measure<Hook, M>(ctx);
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
    LoopAccess::progress(ctx).validation_generator = generator_state();
    if constexpr (Ctx::has_loggers) ctx.evaluated_before() = ctx.evaluated_batches().state_dict();
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

/// Counts the batches done when an exception leaves the epoch. (Without a reference to the loop's variables, which are to be in
/// registers.)
class LeftEpoch {
 public:
  explicit LeftEpoch(Context& ctx) : ctx_(ctx) {}
  ~LeftEpoch();
  LeftEpoch(const LeftEpoch&) = delete;
  LeftEpoch& operator=(const LeftEpoch&) = delete;

 private:
  Context& ctx_;
};

/// What can be due after a batch, in one epoch.
struct DuePlan {
  bool validates;                         ///< whether validation may run in this epoch
  std::optional<std::int64_t> interval;   ///< after how many batches it does; nothing: after the last one
  const std::optional<std::chrono::steady_clock::time_point>& deadline;

  /// The number that `interval` divides.
  std::int64_t count(Context& ctx, std::int64_t done) const {
    return ctx.options().check_val_every_n_epoch == 0 ? LoopAccess::total_batches(ctx) : done;
  }
};

/// Logs, looks at the clock and validates, where it is time to; all but what a resumed run had done already.
/// @param done batches of this epoch @return whether the epoch goes on
template <class Ctx, class Val>
[[gnu::noinline]] bool after_batch(Ctx& ctx, [[maybe_unused]] Val& val, const DuePlan& plan, std::int64_t done, bool stepped, bool last) {
  EpochProgress& progress = LoopAccess::progress(ctx);
  tell_progress(ctx, done);
  progress.last = last;
  LoopAccess::by_step(ctx) = false;
  if (stepped && progress.logged_at != done && LoopAccess::logged_steps(ctx) % ctx.options().log_every_n_steps == 0) {
    ctx.log_metrics(ctx.metrics().step_metrics(Phase::train));
  }
  progress.logged_at = done;
  if (plan.deadline && std::chrono::steady_clock::now() >= *plan.deadline) [[unlikely]] {
    LoopAccess::out_of_time(ctx) = !ctx.should_stop();
    ctx.request_stop();
  }
  if (interrupted(ctx)) return false;
  if constexpr (!is_none<Val>) {
    if (plan.validates && progress.validated_at != done &&
        (may_stop(ctx) || (plan.interval ? plan.count(ctx, done) % *plan.interval == 0 : last))) {
      validate_in_fit(ctx, val, !stepped);
      if (ctx.interrupted()) return false;
    }
  }
  progress.validated_at = done;
  return !last && !training_done(ctx);
}

/// Not inlined, so that its loop has the registers to itself, and a profile shows it.
template <class Ctx, class Batch, class Source, class Val>
[[gnu::noinline]] void train_epoch(Ctx& ctx, Gradients<Ctx, Batch>& gradients, Source& source, Val& val, const std::optional<std::chrono::steady_clock::time_point>& deadline) {
  const Options& o = ctx.options();
  using M = typename Ctx::Module;
  auto& train = source.loader(ctx.epoch());
  using Train = std::remove_reference_t<decltype(train)>;
  const Unshuffled unshuffled(train, !o.overfit_batches.is_zero());
  const auto limit = batch_limit(ctx, o.limit_train_batches, loader_size(train), "limit_train_batches");
  LoopAccess::num_batches(ctx) = limit;
  const bool may_validate = !is_none<Val> && !o.limit_val_batches.is_zero();
  const DuePlan plan{!is_none<Val> && validates(o, ctx.epoch()), may_validate ? validation_interval(o, limit) : std::nullopt, deadline};
  EpochProgress& progress = LoopAccess::progress(ctx);
  const bool resumes = progress.running;
  if (!resumes) ctx.template tell_all<hooks::on_train_epoch_start>();
  progress.running = true;

  constexpr bool keeps_outputs = answers<hooks::training_epoch_end, M>;
  using Outputs = decltype(training_step(ctx, std::declval<BatchOf<Train>&>(), 0));
  std::vector<std::conditional_t<keeps_outputs && !std::is_void_v<Outputs>, Outputs, None>> all;
  const auto use = [&](auto& outputs) {
    if constexpr (keeps_outputs) all.push_back(outputs);
  };

  std::int64_t batch_idx = progress.done;
  // The next batch after which something can be due besides an end that somebody asks for. Up to there the loop looks at no
  // option.
  const auto next_due = [&]() -> std::int64_t {
    if (!limit || deadline || o.max_steps >= 0) return batch_idx;
    std::int64_t quiet = std::min(*limit - 1 - batch_idx, o.log_every_n_steps - 1 - LoopAccess::logged_steps(ctx) % o.log_every_n_steps);
    if (plan.validates && plan.interval) quiet = std::min(quiet, *plan.interval - 1 - plan.count(ctx, batch_idx) % *plan.interval);
    return batch_idx + quiet;
  };
  LoaderPosition<Train> position;
  if (const std::optional<State> state = std::exchange(ctx.loader_state(), std::nullopt)) position.go_on(train, *state, resumes);
  // For whoever saves a checkpoint.
  const auto where = [&] {
    source.note_state(ctx);
    return position.state(train);
  };
  const typename Ctx::WalkScope walk(ctx, where);
  auto measured = measure<"run_training_epoch">(ctx);
  bool more = true, skipped = false;
  if (batch_idx > 0) {
    const bool was_last = limit ? batch_idx >= *limit : progress.last;
    const bool stepped = !automatic_optimization<M>() || batch_idx % ctx.accumulate_grad_batches() == 0 || was_last;
    more = after_batch(ctx, val, plan, batch_idx, stepped, was_last);
    if (!more && !ctx.interrupted()) position.end_epoch(train);
  }
  if (more) {
    auto advance = measure<"train_dataloader_advance">(ctx);
    auto it = measured_iterator<"train">(ctx, position.begin(train, batch_idx));
    advance.stop();
    const auto end = train.end();
    const auto has_batch = [&] { return (!limit || batch_idx < *limit) && it != end; };
    const auto is_last = [&] { return limit && batch_idx + 1 == *limit; };
    const auto begin_batches = [&] {
      LoopAccess::batch_idx(ctx) = batch_idx;
      LoopAccess::by_step(ctx) = true;
    };
    std::int64_t due = next_due();
    more = has_batch();
    bool last = is_last();
    const LeftEpoch left(ctx);
    if (more) begin_batches();
    while (more) {
      auto batch = *it;
      if constexpr (!has_size<Train>) {
        // Where the size is unknown, only the next item tells whether this one is the last.
        if (!limit) {
          ++it;
          last = !(it != end);
        }
      }
      LoopAccess::batch_size(ctx) = batch_size(batch);
      transfer(ctx, train, batch, true);
      if (skips_epoch(ctx, batch, batch_idx)) {
        LoopAccess::by_step(ctx) = false;
        ctx.template advance_schedulers<Interval::epoch, false>(ctx.epoch());
        skipped = true;
        break;
      }
      const bool stepped = train_batch(ctx, gradients, batch, batch_idx, last, use) == BatchResult::stepped;
      ++batch_idx;
      tell_profiler<ProfilerStep>(ctx);
      if (batch_idx < due && !ctx.should_stop() && !InterruptScope::requested()) [[likely]] {
        LoopAccess::batch_idx(ctx) = batch_idx;
        ++it;
        more = it != end;
        continue;
      }
      if (!after_batch(ctx, val, plan, batch_idx, stepped, last)) break;
      if (limit) ++it;
      due = next_due();
      more = has_batch();
      last = is_last();
      begin_batches();
    }
    LoopAccess::by_step(ctx) = false;
  }
  measured.stop();
  tell_progress(ctx, batch_idx);
  source.note_state(ctx);
  if (ctx.interrupted()) {
    ctx.loader_state() = position.state(train);
    return;
  }
  if (batch_idx == 0 && !skipped) fail<std::invalid_argument>("fit: the training loader is empty, expected at least one batch");
  if constexpr (keeps_outputs) call_outputs<hooks::training_epoch_end>(ctx.module(), ctx, all);
  LoopAccess::epoch_over(ctx) = true;
  // Reduced before the hook, so that callbacks can read the epoch's values, and after it, for what is logged there.
  Metrics results = ctx.metrics().end_epoch(Phase::train, /*last=*/false);
  ctx.template tell_all<hooks::on_train_epoch_end>();
  end_epoch(ctx, Phase::train, results);
  ctx.log_metrics(results);
  ctx.template advance_schedulers<Interval::epoch, true>(ctx.epoch());
  // When nothing else is left to be done in this epoch.
  ctx.template tell_savers<hooks::on_train_epoch_end>();
}

/// @param train,val where the loaders come from: see data/data_module.hpp; val is None where there is none
template <class Ctx, class Train, class Val>
void fit(Ctx& ctx, Train& train, Val& val) {
  const Options& o = ctx.options();
  ctx.bind();
  ctx.template tell_all<hooks::on_fit_start>();
  const std::int64_t max_epochs = o.fast_dev_run > 0 ? ctx.epoch() + 1 : o.max_epochs;
  EpochProgress& progress = LoopAccess::progress(ctx);
  const bool loaded = std::exchange(LoopAccess::resumes(ctx), false);
  if (!loaded) LoopAccess::should_stop(ctx) = false;
  LoopAccess::epoch_over(ctx) = LoopAccess::out_of_time(ctx) = false;
  if (loaded && max_epochs >= 0 && ctx.epoch() > max_epochs) {
    fail<std::invalid_argument>("Options::max_epochs is {}, but the checkpoint is from a run of {} epochs", max_epochs, ctx.epoch());
  }
  if constexpr (!is_none<Val>) {
    if (!progress.running && o.num_sanity_val_steps != 0 && o.fast_dev_run == 0 && !o.limit_val_batches.is_zero()) {
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
    if (o.limit_train_batches.is_zero()) return false;
    // An epoch under way is brought to its end in order even if it was to be the last thing.
    return progress.running || ((max_epochs < 0 || ctx.epoch() < max_epochs) && !interrupted(ctx) && !training_done(ctx));
  };
  if (!o.limit_train_batches.is_zero()) {
    // A data module makes its loaders here, before anybody hears that training starts.
    train.loader(ctx.epoch());
    if constexpr (!is_none<Val>) {
      if (validates(o, ctx.epoch())) val.loader(ctx.epoch());
    }
  }
  // What was loaded may be from the end of the last epoch: then only on_train_end is left to be done.
  const bool unfinished = std::exchange(LoopAccess::training(ctx), false) && loaded;
  if (more() || (unfinished && !interrupted(ctx))) {
    std::optional<torch::autograd::DetectAnomalyGuard> anomaly;
    if (o.detect_anomaly) anomaly.emplace();
    std::optional<std::chrono::steady_clock::time_point> deadline;
    if (o.max_time.count() > 0) {
      deadline = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(o.max_time);
    }
    const PhaseScope scope(ctx, Phase::train);
    if (!progress.running) ctx.metrics().begin_epoch(Phase::train);  // before on_train_start, whose values are the first epoch's
    LoopAccess::training(ctx) = true;
    LoopAccess::num_batches(ctx) = batch_limit(ctx, o.limit_train_batches, loader_size(train.loader(ctx.epoch())), "limit_train_batches");
    LoopAccess::resumed_at(ctx) = progress.done;
    ctx.template tell_all<hooks::on_train_start>();
    LoopAccess::resumed_at(ctx) = 0;
    using Batch = BatchOf<std::remove_reference_t<decltype(train.loader(0))>>;
    Gradients<Ctx, Batch> gradients(ctx);
    while (more()) {
      train_epoch(ctx, gradients, train, val, deadline);
      if (ctx.interrupted()) break;
      progress = {};
      LoopAccess::epoch_over(ctx) = false;
      ++LoopAccess::epoch(ctx);
      ctx.metrics().begin_epoch(Phase::train);
    }
    if (!ctx.interrupted()) {
      LoopAccess::training(ctx) = false;
      // That of the last epoch: no other is made for this.
      auto& loader = train.loader(std::max<std::int64_t>(0, ctx.epoch() - 1));
      ctx.template tell_all<hooks::on_train_end>(loader);
    }
  }
  if (!ctx.interrupted()) ctx.template tell_all<hooks::on_fit_end>();
}

#if FULMEN_BODIES
FULMEN_INLINE LeftEpoch::~LeftEpoch() {
  if (!LoopAccess::by_step(ctx_)) return;
  EpochProgress& progress = LoopAccess::progress(ctx_);
  const std::int64_t done = std::max(progress.done, ctx_.batch_idx());
  // What follows the batch before this one is done.
  if (done == ctx_.batch_idx()) progress.logged_at = progress.validated_at = done;
  tell_progress(ctx_, done);
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
