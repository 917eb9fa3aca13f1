// What a checkpoint holds, under Lightning's keys: collected from a Trainer's context, and put back into it.
#pragma once

#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/loop/plan.hpp>
#include <fulmen/loop/trainer_context.hpp>

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <mutex>
#endif

namespace fulmen::detail {

// The version of Lightning whose keys these are: its load_from_checkpoint asks for it.
inline constexpr const char* lightning_version = "2.6.6";

// Of LibTorch's default generator.
at::Tensor generator_state();
void set_generator_state(const at::Tensor& state);

/// Clones the tensors of a flat state in place, so that what its owner does to them leaves it as it is.
void clone_tensors(const State& state);

/// Lightning's `loops`, as far as it is known here: what is counted besides epoch and global_step.
State loops_state(Context& ctx);
void load_loops_state(Context& ctx, const State& state);

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

template <class Ctx>
State collect_checkpoint(Ctx& ctx) {
  State all("checkpoint");
  all.set("pytorch-lightning_version", lightning_version);
  all.set("epoch", ctx.epoch());
  all.set("global_step", ctx.global_step());
  all.set("epochs_completed", ctx.epochs_completed());
  all.set("state_dict", module_state(ctx.module()));
  std::vector<State> optimizers, schedulers;
  if (ctx.bound()) {
    std::apply([&](auto&... o) { (optimizers.push_back(o.state_dict()), ...); }, ctx.optimizers());
    std::apply([&](auto&... s) { (schedulers.push_back(s.state_dict()), ...); }, ctx.schedulers());
  }
  all.set("optimizer_states", optimizers);
  all.set("lr_schedulers", schedulers);
  State callbacks;
  CallbackKeys keys;
  std::apply(
      [&](auto&... callback) {
        (
            [&] {
              if constexpr (Stateful<std::remove_cvref_t<decltype(callback)>>) {
                callbacks.set(keys.next(callback), State(callback.state_dict()));
              }
            }(),
            ...);
      },
      ctx.callbacks());
  all.set("callbacks", callbacks);
  if (ctx.data_state()) all.set("datamodule", *ctx.data_state());
  all.set("loops", loops_state(ctx));
  all.set("rng_state", generator_state());
  return all;
}

template <class Ctx>
void save_checkpoint(Ctx& ctx, const std::filesystem::path& path) {
  State all = collect_checkpoint(ctx);
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
  load_module_state(ctx.module(), all.get<State>("state_dict"));
  load_each(ctx.optimizers(), all.get<std::vector<State>>("optimizer_states"), "optimizer states");
  load_each(ctx.schedulers(), all.get<std::vector<State>>("lr_schedulers"), "scheduler states");
  const State callbacks = all.get<State>("callbacks");
  CallbackKeys keys;
  std::apply(
      [&](auto&... callback) {
        (
            [&] {
              if constexpr (Stateful<std::remove_cvref_t<decltype(callback)>>) {
                const std::string key = keys.next(callback);
                if (callbacks.contains(key)) callback.load_state_dict(callbacks.get<State>(key));
              }
            }(),
            ...);
      },
      ctx.callbacks());
  if (all.contains("datamodule")) ctx.data_state() = all.get<State>("datamodule");
  const at::Tensor rng = all.get<at::Tensor>("rng_state");
  LoopAccess::global_step(ctx) = all.get<std::int64_t>("global_step");
  LoopAccess::epoch(ctx) = all.get<std::int64_t>("epochs_completed");
  if (all.contains("loops")) load_loops_state(ctx, all.get<State>("loops"));
  set_generator_state(rng);
}

template <class Ctx>
void load_checkpoint(Ctx& ctx, const std::filesystem::path& path) {
  State all(checkpoint::read(path), "checkpoint '" + path.string() + "'");
  ctx.bind();
  ctx.template tell_all<hooks::on_load_checkpoint>(all);
  // Module and generator are restored in place; a copy of what they were undoes a load that fails half-way.
  State before = collect_checkpoint(ctx);
  clone_tensors(before.get<State>("state_dict"));
  try {
    restore_checkpoint(ctx, all);
  } catch (const std::exception& exception) {
    const std::string message = exception.what();
    restore_checkpoint(ctx, before);
    fail("cannot load checkpoint '{}': {}", path.string(), message);
  }
}

#if FULMEN_BODIES
FULMEN_INLINE State loops_state(Context& ctx) {
  const auto progress = [](std::int64_t n) {
    return State().set("ready", n).set("started", n).set("processed", n).set("completed", n);
  };
  State fit;
  fit.set("epoch_loop.state_dict", State().set("_batches_that_stepped", LoopAccess::logged_steps(ctx)));
  fit.set("epoch_loop.batch_progress", State().set("total", progress(LoopAccess::total_batches(ctx))));
  fit.set("epoch_progress", State().set("total", progress(ctx.epochs_completed())));
  return State().set("fit_loop", fit);
}

FULMEN_INLINE void load_loops_state(Context& ctx, const State& state) {
  const State fit = state.get<State>("fit_loop");
  const auto steps = fit.get<State>("epoch_loop.state_dict").get<std::int64_t>("_batches_that_stepped");
  LoopAccess::total_batches(ctx) =
      fit.get<State>("epoch_loop.batch_progress").get<State>("total").get<std::int64_t>("completed");
  LoopAccess::logged_steps(ctx) = steps;
}

FULMEN_INLINE std::string CallbackKeys::unique(std::string key) {
  const auto same = std::count_if(given_.begin(), given_.end(), [&](const std::string& one) { return one == key; });
  given_.push_back(key);
  return same == 0 ? key : key + "#" + std::to_string(same + 1);
}

FULMEN_INLINE at::Tensor generator_state() {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

FULMEN_INLINE void set_generator_state(const at::Tensor& state) {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

FULMEN_INLINE void clone_tensors(const State& state) {
  for (const std::string& key : state.keys()) State(state).set(key, state.get<at::Tensor>(key).clone());
}
#endif

}  // namespace fulmen::detail
