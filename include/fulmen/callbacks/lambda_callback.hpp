// lambda_callback: a callback made of functions, one a hook.
#pragma once

#include <fulmen/loop/hooks.hpp>

#include <concepts>
#include <cstddef>
#include <type_traits>
#include <utility>

namespace fulmen {

namespace detail {

/// A participant that answers one hook with a function. Its member is constrained by what the function takes, so that it may
/// take any leading part of the hook's arguments.
template <class Hook, class F>
struct OnHook;

#define FULMEN_ON_HOOK(NAME, ...)                               \
  template <class F>                                            \
  struct OnHook<hooks::NAME, F> {                               \
    [[no_unique_address]] F function;                           \
    template <class... Args>                                    \
      requires std::invocable<F&, Args&...>                     \
    [[gnu::always_inline]] decltype(auto) NAME(Args&... args) { \
      return function(args...);                                 \
    }                                                           \
  };
FULMEN_HOOKS(FULMEN_ON_HOOK)
#undef FULMEN_ON_HOOK

template <class Hook, class... All>
inline constexpr bool once = (std::size_t{std::is_same_v<Hook, All>} + ... + 0) == 1;

}  // namespace detail

/// See lambda_callback.
template <class... On>
struct LambdaCallback : On... {};

/// A function for a hook, for lambda_callback.
template <class Hook, class F>
detail::OnHook<Hook, F> on(F function) {
  static_assert(Hook::kind == HookKind::hook,
                "fulmen: on<hook>(function): this is a step or an action, which is the module's, not a callback's");
  return {std::move(function)};
}

/// A callback without a struct of one's own; a function takes any leading part of its hook's arguments:
///
///   lambda_callback(on<hooks::on_train_start>([](auto& ctx) { ... }), on<hooks::teardown>([] { ... }))
///
/// It is resolved like any other: hooks that are not given leave nothing in the program.
/// Source: lightning.pytorch.callbacks.LambdaCallback.
template <class... Hook, class... F>
LambdaCallback<detail::OnHook<Hook, F>...> lambda_callback(detail::OnHook<Hook, F>... on) {
  static_assert((detail::once<Hook, Hook...> && ...), "fulmen: lambda_callback takes one function a hook");
  return {std::move(on)...};
}

}  // namespace fulmen
