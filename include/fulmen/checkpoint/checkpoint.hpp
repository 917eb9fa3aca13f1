// What a checkpoint holds, under Lightning's keys: collected from a Trainer's context, and put back into it.
#pragma once

#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/loop/plan.hpp>
#include <fulmen/loop/trainer_context.hpp>
#include <fulmen/seed.hpp>

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <algorithm>
#endif

namespace fulmen::detail {

// The version of Lightning whose keys these are: its load_from_checkpoint asks for it.
inline constexpr const char* lightning_version = "2.6.6";

/// Clones the tensors of a flat state in place, so that what its owner does to them leaves it as it is.
void clone_tensors(const State& state);

/// The gradients of those parameters that have one, by name.
State gradients_state(const torch::nn::Module& module);
void load_gradients(torch::nn::Module& module, const State& state);

/// What is not in Lightning's checkpoints and makes a run go on to the same bits: where the epoch is, the generators, the logged
/// values.
State progress_state(Context& ctx);
/// Lightning's `loops`, from which its Trainer goes on.
/// @param steps_by_hand the module optimises by hand
State loops_state(Context& ctx, bool steps_by_hand);
/// Of a checkpoint of Lightning's there are only the `loops`: its order of batches and random numbers are Python's.
void restore_progress(Context& ctx, const State& all);
/// Whether the running epoch has gradients that the next step needs.
bool holds_gradients(Context& ctx, bool steps_by_hand);

[[noreturn, gnu::cold]] void fail_for_weights_only();

/// Callbacks with state_dict() and load_state_dict(state) have their state saved, under their state_key() or their type's name.
template <class C>
concept Stateful = requires(C& callback, const State& state) {
  { callback.state_dict() } -> std::convertible_to<State>;
  callback.load_state_dict(state);
};

/// Gives each callback a key of its own: the second of a type without state_key() has `#2` behind it.
class CallbackKeys {
 public:
  template <class C>
  std::string next(const C& callback) {
    if constexpr (requires { { callback.state_key() } -> std::convertible_to<std::string>; }) return unique(callback.state_key());
    else return unique(std::string(type_name<C>()));
  }

 private:
  std::string unique(std::string key);
  std::vector<std::string> given_;
};

/// Calls `use(callback, key)` with each callback that has a state.
template <class Ctx, class Use>
void each_stateful(Ctx& ctx, Use&& use) {
  CallbackKeys keys;
  const auto one = [&](auto& callback) {
    if constexpr (Stateful<std::remove_cvref_t<decltype(callback)>>) use(callback, keys.next(callback));
  };
  std::apply([&](auto&... callback) { (one(callback), ...); }, ctx.callbacks());
}

/// @param weights_only only what is needed to use the model, not to train it further
template <class Ctx>
State collect_checkpoint(Ctx& ctx, bool weights_only = false) {
  constexpr bool steps_by_hand = !automatic_optimization<typename Ctx::Module>();
  State all("checkpoint");
  all.set("pytorch-lightning_version", lightning_version);
  all.set("epoch", ctx.epoch());
  all.set("global_step", ctx.global_step());
  all.set("state_dict", module_state(ctx.module()));
  State own;
  if (!weights_only) all.set("fulmen", own = progress_state(ctx));
  all.set("loops", loops_state(ctx, steps_by_hand));
  // Lightning gives them to the module's __init__ by their names.
  if (const std::optional<State> params = ctx.hyperparameters()) all.set("hparams_name", "kwargs").set("hyper_parameters", *params);
  if (weights_only) return all;
  std::vector<State> optimizers, schedulers;
  if (ctx.bound()) {
    std::apply([&](auto&... o) { (optimizers.push_back(o.state_dict()), ...); }, ctx.optimizers());
    std::apply([&](auto&... s) { (schedulers.push_back(s.state_dict()), ...); }, ctx.schedulers());
  }
  all.set("optimizer_states", optimizers);
  all.set("lr_schedulers", schedulers);
  State callbacks;
  each_stateful(ctx, [&](auto& callback, const std::string& key) { callbacks.set(key, State(callback.state_dict())); });
  all.set("callbacks", callbacks);
  // The loader first: asking where it is brings the data module's state up to date.
  std::optional<State> loader = ctx.walk_state();
  // Between epochs only a loader with a state of its own has something to go on from.
  if (loader && !own.get<bool>("mid_epoch") && !loader->contains("loader")) loader.reset();
  if (!loader) loader = ctx.loader_state();
  if (loader) own.set("loader", *loader);
  if (ctx.data_state()) all.set("datamodule", *ctx.data_state());
  if (holds_gradients(ctx, steps_by_hand)) own.set("gradients", gradients_state(ctx.module()));
  if constexpr (Ctx::has_loggers) {
    const bool validating = LoopAccess::progress(ctx).validation_generator.defined();
    own.set("evaluated_batches", validating ? ctx.evaluated_before() : ctx.evaluated_batches().state_dict());
  }
  return all;
}

template <class Ctx>
void save_checkpoint(Ctx& ctx, const std::filesystem::path& path, bool weights_only = false) {
  State all = collect_checkpoint(ctx, weights_only);
  ctx.template tell_all<hooks::on_save_checkpoint>(all);
  checkpoint::write(path, all);
}

template <class Ctx>
void restore_checkpoint(Ctx& ctx, const State& all) {
  const auto load_each = [](auto& tuple, const std::vector<State>& states, const char* what) {
    using Tuple = std::remove_cvref_t<decltype(tuple)>;
    if (states.empty()) return;  // saved before fit: there was nothing to save
    if (states.size() != std::tuple_size_v<Tuple>) {
      fail("it has {} {}, expected {} as this Trainer has", states.size(), what, std::tuple_size_v<Tuple>);
    }
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (std::get<I>(tuple).load_state_dict(states[I]), ...);
    }(std::make_index_sequence<std::tuple_size_v<Tuple>>{});
  };
  if (!all.contains("optimizer_states")) fail_for_weights_only();
  load_module_state(ctx.module(), all.get<State>("state_dict"));
  load_each(ctx.optimizers(), all.get<std::vector<State>>("optimizer_states"), "optimizer states");
  load_each(ctx.schedulers(), all.get<std::vector<State>>("lr_schedulers"), "scheduler states");
  const State callbacks = all.get_or("callbacks", State());
  each_stateful(ctx, [&](auto& callback, const std::string& key) {
    if (callbacks.contains(key)) callback.load_state_dict(callbacks.get<State>(key));
  });
  const State own = all.get_or("fulmen", State());
  ctx.data_state() = all.get_or<std::optional<State>>("datamodule", std::nullopt);
  ctx.loader_state() = own.get_or<std::optional<State>>("loader", std::nullopt);
  if (own.contains("gradients")) load_gradients(ctx.module(), own.get<State>("gradients"));
  if constexpr (Ctx::has_loggers) {
    if (own.contains("evaluated_batches")) ctx.evaluated_batches().load_state_dict(own.get<State>("evaluated_batches"));
  }
  restore_progress(ctx, all);
}

/// @throws std::runtime_error naming the file and what does not fit; nothing is changed then
template <class Ctx>
void load_checkpoint(Ctx& ctx, const std::filesystem::path& path) {
  State all(checkpoint::read(path), "checkpoint '" + path.string() + "'");
  ctx.bind();
  ctx.template tell_all<hooks::on_load_checkpoint>(all);
  // Module and generator are restored in place; a copy of what they were undoes a load that fails half-way.
  State before = collect_checkpoint(ctx);
  clone_tensors(before.get<State>("state_dict"));
  const bool resumed = LoopAccess::resumes(ctx);
  try {
    restore_checkpoint(ctx, all);
  } catch (const std::exception& exception) {
    const std::string message = exception.what();
    restore_checkpoint(ctx, before);
    LoopAccess::resumes(ctx) = resumed;
    fail("cannot load checkpoint '{}': {}", path.string(), message);
  }
}

/// The weights alone, for a stage that does not train.
template <class Ctx>
void load_weights_for_stage(Ctx& ctx, const std::filesystem::path& path) {
  State all(checkpoint::read(path), "checkpoint '" + path.string() + "'");
  ctx.template tell_all<hooks::on_load_checkpoint>(all);
  ctx.module().to(ctx.device());
  try {
    load_module_state(ctx.module(), all.get<State>("state_dict"));
  } catch (const std::exception& exception) {
    fail("cannot load checkpoint '{}': {}", path.string(), exception.what());
  }
}

#if FULMEN_BODIES
/// Where training is inside an epoch, as seen from a hook. The batches done up to there are counted then.
struct PlaceInEpoch {
  bool mid_epoch;
  std::int64_t done = 0;                  // batches of the running epoch
  bool logged = false, validated = false;  // what follows the last of them

  explicit PlaceInEpoch(Context& ctx) {
    const EpochProgress& progress = LoopAccess::progress(ctx);
    mid_epoch = progress.running && ctx.epochs_completed() == ctx.epoch();
    if (!mid_epoch) return;
    if (LoopAccess::by_step(ctx)) {
      done = std::max(progress.done, ctx.batch_idx());
      logged = validated = done == ctx.batch_idx();  // else a batch is ending right now
    } else {
      done = progress.done;
      logged = progress.logged_at == done, validated = progress.validated_at == done;
    }
    tell_progress(ctx, done);
  }
};

FULMEN_INLINE bool holds_gradients(Context& ctx, bool steps_by_hand) {
  const PlaceInEpoch place(ctx);
  if (steps_by_hand) return LoopAccess::progress(ctx).running;
  return place.mid_epoch && place.done % ctx.accumulate_grad_batches() != 0;
}

FULMEN_INLINE State progress_state(Context& ctx) {
  const EpochProgress& progress = LoopAccess::progress(ctx);
  const PlaceInEpoch place(ctx);
  State own("a run's progress");
  own.set("epochs_completed", ctx.epochs_completed());
  own.set("training", LoopAccess::training(ctx)).set("mid_epoch", place.mid_epoch);
  own.set("batches_done", place.done).set("last_batch", progress.last).set("logged", place.logged).set("validated", place.validated);
  own.set("total_batches", LoopAccess::total_batches(ctx)).set("logged_steps", LoopAccess::logged_steps(ctx));
  // max_time is each call's own.
  own.set("should_stop", ctx.should_stop() && !LoopAccess::out_of_time(ctx));
  if (ctx.accumulate_grad_batches() != ctx.options().accumulate_grad_batches) {
    own.set("accumulate_grad_batches", ctx.accumulate_grad_batches());
  }
  // A validation that is cut short is done again, with the random numbers that it had.
  own.set("rng_state", progress.validation_generator.defined() ? progress.validation_generator : generator_state());
  own.set("gpu_rng_states", gpu_generator_states());
  own.set("metrics", ctx.metrics().state_dict());
  return own;
}

FULMEN_INLINE State loops_state(Context& ctx, bool steps_by_hand) {
  const EpochProgress& progress = LoopAccess::progress(ctx);
  const PlaceInEpoch place(ctx);
  // Their counters tell a restart what was under way.
  const auto counts = [](std::int64_t ready, std::int64_t started, std::int64_t processed, std::int64_t completed) {
    return State().set("ready", ready).set("started", started).set("processed", processed).set("completed", completed);
  };
  const auto steps = [](std::int64_t n) { return State().set("ready", n).set("completed", n); };
  const auto zero_grads = [](std::int64_t n) { return State().set("ready", n).set("started", n).set("completed", n); };
  const auto batches = [&](std::int64_t n) { return counts(n, n, n, n); };
  const State none = State().set("total", batches(0)).set("current", batches(0)).set("is_last_batch", false);
  const bool over = ctx.epochs_completed() > ctx.epoch(), batch_ends = place.mid_epoch && !place.logged;
  const std::int64_t epoch = ctx.epoch(), done = over ? progress.done : place.done, total = LoopAccess::total_batches(ctx);
  const std::int64_t by_hand = steps_by_hand ? ctx.global_step() : 0, by_loop = ctx.global_step() - by_hand;
  const std::int64_t epoch_steps = std::min(by_loop, done / ctx.accumulate_grad_batches());
  const auto ending = [&](std::int64_t n) { return counts(n, n, n, n - batch_ends); };
  State fit;
  fit.set("state_dict", State());
  // Lightning counts the batch that is ending when it restarts.
  fit.set("epoch_loop.state_dict",
          State().set("_batches_that_stepped", LoopAccess::logged_steps(ctx) - (place.mid_epoch && done > 0)));
  fit.set("epoch_loop.batch_progress", State().set("total", ending(total)).set("current", ending(done))
                                           .set("is_last_batch", over || progress.last));
  const std::int64_t scheduled = over || !place.mid_epoch ? ctx.epochs_completed() : epoch;
  fit.set("epoch_loop.scheduler_progress", State().set("total", steps(scheduled)).set("current", steps(over ? 1 : 0)));
  fit.set("epoch_loop.automatic_optimization.state_dict", State());
  fit.set("epoch_loop.automatic_optimization.optim_progress",
          State().set("optimizer",
                      State().set("step", State().set("total", steps(by_loop)).set("current", steps(epoch_steps)))
                          .set("zero_grad", State().set("total", zero_grads(by_loop)).set("current", zero_grads(epoch_steps)))));
  fit.set("epoch_loop.manual_optimization.state_dict", State());
  fit.set("epoch_loop.manual_optimization.optim_step_progress",
          State().set("total", steps(by_hand)).set("current", steps(0)));
  fit.set("epoch_loop.val_loop.state_dict", State());
  fit.set("epoch_loop.val_loop.batch_progress", none);
  const State epochs = over              ? counts(epoch + 1, epoch + 1, epoch + 1, epoch)
                       : place.mid_epoch ? counts(epoch + 1, epoch + 1, epoch, epoch)
                                         : batches(epoch);
  fit.set("epoch_progress", State().set("total", epochs).set("current", epochs));
  State loops;
  loops.set("fit_loop", fit);
  for (const char* loop : {"validate_loop", "test_loop", "predict_loop"}) {
    loops.set(loop, State().set("state_dict", State()).set("batch_progress", none));
  }
  return loops;
}

FULMEN_INLINE void restore_progress(Context& ctx, const State& all) {
  EpochProgress progress;
  if (all.contains("fulmen")) {
    const State own = all.get<State>("fulmen");
    progress.running = own.get<bool>("mid_epoch");
    const bool training = own.get<bool>("training");
    progress.done = progress.told = own.get<std::int64_t>("batches_done");
    progress.last = own.get<bool>("last_batch");
    progress.logged_at = own.get<bool>("logged") ? progress.done : -1;
    progress.validated_at = own.get<bool>("validated") ? progress.done : -1;
    const auto total = own.get<std::int64_t>("total_batches"), logged = own.get<std::int64_t>("logged_steps");
    const bool should_stop = own.get<bool>("should_stop");
    const auto accumulate = own.get_or("accumulate_grad_batches", ctx.options().accumulate_grad_batches);
    const at::Tensor generator = own.get<at::Tensor>("rng_state");
    const auto gpus = own.get<std::vector<at::Tensor>>("gpu_rng_states");
    LoopAccess::epoch(ctx) = own.get<std::int64_t>("epochs_completed");
    ctx.metrics().load_state_dict(own.get<State>("metrics"));
    ctx.set_accumulate_grad_batches(accumulate);
    LoopAccess::should_stop(ctx) = should_stop;
    LoopAccess::training(ctx) = training;
    LoopAccess::total_batches(ctx) = total;
    LoopAccess::logged_steps(ctx) = logged;
    set_generator_state(generator);
    set_gpu_generator_states(gpus);
  } else {
    const State fit = all.get<State>("loops").get<State>("fit_loop");
    const State epochs = fit.get<State>("epoch_progress").get<State>("current");
    const State batches = fit.get<State>("epoch_loop.batch_progress");
    const auto count = [](const State& counts, const char* what) { return counts.get<std::int64_t>(what); };
    const auto stepped = count(fit.get<State>("epoch_loop.state_dict"), "_batches_that_stepped");
    progress.running = count(epochs, "started") > count(epochs, "processed");
    if (progress.running) {
      progress.done = progress.told = count(batches.get<State>("current"), "processed");
      progress.last = batches.get<bool>("is_last_batch");
      const bool batch_ends = count(batches.get<State>("current"), "completed") < progress.done;
      progress.logged_at = progress.validated_at = batch_ends ? -1 : progress.done;
    }
    LoopAccess::epoch(ctx) = count(epochs, "processed");
    LoopAccess::total_batches(ctx) = count(batches.get<State>("total"), "processed");
    // The batch that ends when it saves is counted when it restarts, if it stepped.
    LoopAccess::logged_steps(ctx) = stepped + (progress.running && progress.done % ctx.accumulate_grad_batches() == 0);
    LoopAccess::should_stop(ctx) = LoopAccess::training(ctx) = false;
  }
  LoopAccess::global_step(ctx) = all.get<std::int64_t>("global_step");
  LoopAccess::progress(ctx) = progress;
  LoopAccess::resumes(ctx) = true;
}

FULMEN_INLINE State gradients_state(const torch::nn::Module& module) {
  State state("gradients");
  for (const auto& parameter : module.named_parameters()) {
    if (parameter->grad().defined()) state.set(parameter.key(), parameter->grad());
  }
  return state;
}

FULMEN_INLINE void load_gradients(torch::nn::Module& module, const State& state) {
  for (auto& parameter : module.named_parameters()) {
    at::Tensor gradient;
    if (state.contains(parameter.key())) gradient = state.get<at::Tensor>(parameter.key()).to(parameter->device());
    parameter->mutable_grad() = std::move(gradient);
  }
}

FULMEN_INLINE void fail_for_weights_only() {
  fail("it holds weights only (ModelCheckpoint::save_weights_only), expected the optimizers' states too: training cannot go "
       "on from it");
}

FULMEN_INLINE std::string CallbackKeys::unique(std::string key) {
  const auto same = std::count_if(given_.begin(), given_.end(), [&](const std::string& one) { return one == key; });
  given_.push_back(key);
  return same == 0 ? key : key + "#" + std::to_string(same + 1);
}

FULMEN_INLINE void clone_tensors(const State& state) {
  for (const std::string& key : state.keys()) State(state).set(key, state.get<at::Tensor>(key).clone());
}
#endif

}  // namespace fulmen::detail
