// What a profiler is, what an action is, and the scopes with which the loops measure: nothing where there is
// no profiler.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/fixed_string.hpp>
#include <fulmen/loop/hooks.hpp>
#include <fulmen/loop/plan.hpp>
#include <fulmen/none.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#if FULMEN_BODIES
#include <atomic>
#endif

namespace fulmen {

/// What is measured. Its name is that of a step or hook, with who answers it before it, as in Lightning
/// (`[Callback]EarlyStopping.on_train_batch_end`, `[Module]Net.training_step`, `[DataModule]Data.setup`); of
/// what the loop does itself, the name alone (`backward`). There is one object of each in the program, made
/// when it is first measured.
class Action {
 public:
  explicit Action(std::string_view name, std::string_view kind = {}, std::string_view participant = {});
  Action(const Action&) = delete;
  Action& operator=(const Action&) = delete;

  const std::string& name() const { return name_; }
  operator std::string_view() const { return name_; }
  /// From 0, in the order in which actions are first measured: an index.
  std::size_t id() const { return id_; }

 private:
  std::string name_;
  std::size_t id_;
};

/// A profiler is told when actions start and stop, as `const Action&` or as std::string_view. The last one
/// that started stops first, unless code measures with scopes of its own that end in another order. stop must
/// not throw.
///
/// It may have, too: `setup(ctx)` before, `teardown(ctx)` after anything else of a stage, also when an
/// exception ends it, and `step(ctx)` after each batch of any phase. `ctx` is a fulmen::Context&.
template <class P>
concept ProfilerPolicy = is_none<P> || requires(P& profiler, const Action& action) {
  profiler.start(action);
  profiler.stop(action);
};

namespace detail {

/// What a profiler is told after each batch: looked for as hooks are, so that a near miss is an error.
struct ProfilerStep {
  static constexpr std::string_view name = "step";
  using Expected = void(hooks::ctx);
  struct Named {
    int step;
  };
  template <class Probe>
  static constexpr bool unambiguous_in = requires {
    &Probe::step;
  };
  template <class P, class... Args>
  static constexpr bool takes = requires(P& profiler, Args&... args) {
    profiler.step(args...);
  };
  template <class P, class... Args>
  static constexpr decltype(auto) call(P& profiler, Args&... args) {
    return profiler.step(args...);
  }
};

/// Whether a context has a profiler.
template <class Ctx>
inline constexpr bool profiles = false;
template <class Ctx>
  requires requires { requires Ctx::has_profiler; }
inline constexpr bool profiles<Ctx> = true;

/// An action until the scope ends, or is stopped.
template <class Profiler>
class [[nodiscard]] ActionScope {
 public:
  ActionScope(Profiler& profiler, const Action& action) : profiler_(&profiler), action_(action) {
    profiler.start(action);
  }
  ~ActionScope() { stop(); }
  ActionScope(const ActionScope&) = delete;
  ActionScope& operator=(const ActionScope&) = delete;

  void stop() {
    if (profiler_ != nullptr) std::exchange(profiler_, nullptr)->stop(action_);
  }

 private:
  Profiler* profiler_;
  const Action& action_;
};

/// What stands in its place without a profiler. The destructor is there so that nobody is told of an unused
/// variable.
struct NothingMeasured {
  ~NothingMeasured() {}
  void stop() const {}
};

template <FixedString Name>
const Action& action() {
  static const Action action(Name.view());
  return action;
}
template <class Hook, class P, class Ctx>
const Action& action() {
  if constexpr (is_none<P>) {
    static const Action action(Hook::name);
    return action;
  } else {
    constexpr bool is_callback = []<class... C>(std::type_identity<std::tuple<C...>>) {
      return (std::is_same_v<P, C> || ...);
    }(std::type_identity<typename Ctx::Callbacks>{});
    constexpr bool is_module = std::is_same_v<P, typename Ctx::Module>;
    constexpr std::string_view kind = is_module ? "[Module]" : is_callback ? "[Callback]" : "[DataModule]";
    static const Action action(Hook::name, kind, type_name<P>());
    return action;
  }
}

/// Measures what has a name of its own, for as long as the result lives.
template <FixedString Name, class Ctx>
[[gnu::always_inline]] inline auto measure([[maybe_unused]] Ctx& ctx) {
  if constexpr (profiles<Ctx>) {
    return ActionScope(ctx.profiler(), action<Name>());
  } else {
    return NothingMeasured{};
  }
}

/// Measures a step or hook: the participant's, or, for None, what the loop does in its place.
template <class Hook, class P, class Ctx>
[[gnu::always_inline]] inline auto measure([[maybe_unused]] Ctx& ctx) {
  if constexpr (profiles<Ctx>) {
    return ActionScope(ctx.profiler(), action<Hook, std::remove_cv_t<P>, Ctx>());
  } else {
    return NothingMeasured{};
  }
}

/// Calls a participant's hook, measured, if it has one.
template <class Hook, class P, class Ctx, class... Args>
[[gnu::always_inline]] inline void tell_measured(P& participant, Ctx& ctx, Args&... args) {
  if constexpr (profiles<Ctx> && answers<Hook, P>) {
    const auto scope = measure<Hook, P>(ctx);
    tell<Hook>(participant, ctx, args...);
  } else {
    tell<Hook>(participant, ctx, args...);
  }
}

/// Tells the profiler itself.
template <class Hook, class Ctx>
[[gnu::always_inline]] inline void tell_profiler(Ctx& ctx) {
  if constexpr (profiles<Ctx>) tell<Hook>(ctx.profiler(), ctx);
}

/// A loader's iterator whose operator* is measured as `<Prefix>_dataloader_next`, and whose ++ and != (and
/// making it) as
/// `<Prefix>_dataloader_advance`: which of them waits for data depends on the loader.
template <FixedString Prefix, class Ctx, class Inner>
struct MeasuredIterator {
  static constexpr FixedString next = joined<Prefix, "_dataloader_next">,
                               advance = joined<Prefix, "_dataloader_advance">;
  Ctx* ctx;
  Inner inner;

  decltype(auto) operator*() {
    const auto scope = measure<next>(*ctx);
    return *inner;
  }
  MeasuredIterator& operator++() {
    const auto scope = measure<advance>(*ctx);
    ++inner;
    return *this;
  }
  template <class End>
  bool operator!=(const End& end) {
    const auto scope = measure<advance>(*ctx);
    return inner != end;
  }
};

/// The iterator as it is, or measured where there is a profiler.
template <FixedString Prefix, class Ctx, class Inner>
[[gnu::always_inline]] inline auto measured_iterator([[maybe_unused]] Ctx& ctx, Inner inner) {
  if constexpr (profiles<Ctx>) {
    return MeasuredIterator<Prefix, Ctx, Inner>{&ctx, std::move(inner)};
  } else {
    return inner;
  }
}

/// The loader as it is, or measured likewise.
template <FixedString Prefix, class Ctx, class L>
struct MeasuredLoader {
  Ctx* ctx;
  L* loader;

  auto begin() {
    const auto advance = measure<joined<Prefix, "_dataloader_advance">>(*ctx);
    return measured_iterator<Prefix>(*ctx, loader->begin());
  }
  auto end() { return loader->end(); }
};
template <FixedString Prefix, class Ctx, class L>
[[gnu::always_inline]] inline decltype(auto) measured_loader([[maybe_unused]] Ctx& ctx, L& loader) {
  if constexpr (profiles<Ctx>) {
    return MeasuredLoader<Prefix, Ctx, L>{&ctx, &loader};
  } else {
    return (loader);
  }
}

}  // namespace detail

/// Measures code of one's own, for as long as what it returns lives; nothing where there is no profiler:
///
///   void training_step(auto& ctx, const Batch& batch) {
///     const auto measured = fulmen::profile<"augmentation">(ctx);
template <FixedString Name, class Ctx>
[[nodiscard, gnu::always_inline]] inline auto profile(Ctx& ctx) {
  return detail::measure<Name>(ctx);
}

#if FULMEN_BODIES
FULMEN_INLINE Action::Action(std::string_view name, std::string_view kind, std::string_view participant) {
  static std::atomic<std::size_t> actions{0};
  id_ = actions++;
  (name_ += kind) += participant;
  if (!participant.empty()) name_ += '.';
  name_ += name;
}
#endif

}  // namespace fulmen
