// The one list of steps and hooks. Detection, call order, diagnostics, the plan and the table in the docs come from it.
#pragma once

#include <fulmen/loop/stage.hpp>

#include <array>
#include <cstddef>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

/// Every step and hook, in the order in which it first runs: HOOK(name, kind, stages, (arguments), documentation).
///
/// A hook is answered by a participant (callback, module, data module) that has a member of its name. The member may take
/// any leading part of the arguments: `on_train_batch_end(ctx)` is as good as `on_train_batch_end(ctx, outputs, batch,
/// batch_idx)`. A step is the module's, and takes its arguments likewise, or without the ctx its batch (or outputs) alone.
/// An action is the module's, too: what the loop does itself unless the module has a member of that name.
/// Names and order are Lightning 2's.
// clang-format off
#define FULMEN_HOOKS(HOOK) \
  HOOK(prepare_data, hook, in_all, (ctx), "download, unpack: before anything else, once per node; leaves no state behind")                                                     \
  HOOK(setup, hook, in_all, (ctx), "make what the stage needs; parameters made here are seen by the optimizers")                                                               \
  HOOK(configure_model, hook, in_all, (ctx), "make layers that are too large to be made earlier")                                                                              \
  HOOK(on_fit_start, hook, in_fit, (ctx), "fit begins; optimizers and schedulers are bound")                                                                                   \
  HOOK(on_sanity_check_start, hook, in_fit, (ctx), "before the short validation run that precedes training")                                                                   \
  HOOK(on_sanity_check_end, hook, in_fit, (ctx), "after it")                                                                                                                   \
  HOOK(on_train_start, hook, in_fit, (ctx), "before the first epoch")                                                                                                          \
  HOOK(on_train_epoch_start, hook, in_fit, (ctx), "an epoch begins")                                                                                                           \
  HOOK(on_before_batch_transfer, action, in_all, (ctx, batch, dataloader_idx), "change the batch before it moves to the device; gives the batch back, or changes it in place") \
  HOOK(transfer_batch_to_device, action, in_all, (ctx, batch, device, dataloader_idx), "move the batch, in place or by giving back another")                                   \
  HOOK(on_after_batch_transfer, action, in_all, (ctx, batch, dataloader_idx), "change the batch on the device: augmentation")                                                  \
  HOOK(on_train_batch_start, hook, in_fit, (ctx, batch, batch_idx), "a batch is on the device; a module that returns -1 skips the rest of the epoch")                          \
  HOOK(optimizer_step, action, in_fit, (ctx, optimizer, closure), "instead of optimizer.step(closure), which runs all from training_step to clipping, then updates")           \
  HOOK(training_step, step, in_fit, (ctx, batch, batch_idx), "forward pass and loss")                                                                                          \
  HOOK(training_step_end, step, in_fit, (ctx, outputs), "takes what training_step returned, gives what is used in its place")                                                  \
  HOOK(on_before_zero_grad, hook, in_fit, (ctx, optimizer), "before the gradients of the last step are dropped")                                                               \
  HOOK(optimizer_zero_grad, action, in_fit, (ctx, optimizer), "instead of optimizer.zero_grad()")                                                                              \
  HOOK(on_before_backward, hook, in_fit, (ctx, loss), "before loss.backward()")                                                                                                \
  HOOK(backward, action, in_fit, (ctx, loss), "instead of loss.backward()")                                                                                                    \
  HOOK(on_after_backward, hook, in_fit, (ctx), "gradients are there, unclipped")                                                                                               \
  HOOK(on_before_optimizer_step, hook, in_fit, (ctx, optimizer), "gradients are complete; clipping and the update come next")                                                  \
  HOOK(configure_gradient_clipping, action, in_fit, (ctx, optimizer), "instead of clipping as the options say")                                                                \
  HOOK(lr_scheduler_step, action, in_fit, (ctx, scheduler, metric), "instead of scheduler.step(), or step(metric) where it monitors one")                                      \
  HOOK(on_train_batch_end, hook, in_fit, (ctx, outputs, batch, batch_idx), "the batch is done")                                                                                \
  HOOK(on_validation_model_zero_grad, action, in_fit, (ctx), "instead of dropping the gradients before a validation inside fit")                                               \
  HOOK(on_validation_model_eval, action, in_fit | in_validate, (ctx), "instead of module.eval()")                                                                              \
  HOOK(on_validation_start, hook, in_fit | in_validate, (ctx), "a validation run begins; the module is in eval mode")                                                          \
  HOOK(on_validation_epoch_start, hook, in_fit | in_validate, (ctx), "its pass over the loaders begins")                                                                       \
  HOOK(on_validation_batch_start, hook, in_fit | in_validate, (ctx, batch, batch_idx, dataloader_idx), "before a batch")                                                       \
  HOOK(validation_step, step, in_fit | in_validate, (ctx, batch, batch_idx, dataloader_idx), "what to do with a validation batch")                                             \
  HOOK(validation_step_end, step, in_fit | in_validate, (ctx, outputs), "takes what validation_step returned, gives what is used in its place")                                \
  HOOK(on_validation_batch_end, hook, in_fit | in_validate, (ctx, outputs, batch, batch_idx, dataloader_idx), "after a batch")                                                 \
  HOOK(validation_epoch_end, step, in_fit | in_validate, (ctx, all_outputs), "all outputs of the pass in a std::vector; kept only if this is there")                           \
  HOOK(on_validation_epoch_end, hook, in_fit | in_validate, (ctx), "last chance to log values of this run")                                                                    \
  HOOK(on_validation_end, hook, in_fit | in_validate, (ctx), "the run is over, its metrics can be read")                                                                       \
  HOOK(on_validation_model_train, action, in_fit | in_validate, (ctx), "instead of putting each submodule back into the mode it had")                                          \
  HOOK(on_test_model_eval, action, in_test, (ctx), "instead of module.eval()")                                                                                                 \
  HOOK(on_test_start, hook, in_test, (ctx), "a test run begins; the module is in eval mode")                                                                                   \
  HOOK(on_test_epoch_start, hook, in_test, (ctx), "its pass over the loaders begins")                                                                                          \
  HOOK(on_test_batch_start, hook, in_test, (ctx, batch, batch_idx, dataloader_idx), "before a batch")                                                                          \
  HOOK(test_step, step, in_test, (ctx, batch, batch_idx, dataloader_idx), "what to do with a test batch")                                                                      \
  HOOK(test_step_end, step, in_test, (ctx, outputs), "takes what test_step returned, gives what is used in its place")                                                         \
  HOOK(on_test_batch_end, hook, in_test, (ctx, outputs, batch, batch_idx, dataloader_idx), "after a batch")                                                                    \
  HOOK(test_epoch_end, step, in_test, (ctx, all_outputs), "all outputs of the pass in a std::vector; kept only if this is there")                                              \
  HOOK(on_test_epoch_end, hook, in_test, (ctx), "last chance to log values of this run")                                                                                       \
  HOOK(on_test_end, hook, in_test, (ctx), "the run is over, its metrics can be read")                                                                                          \
  HOOK(on_test_model_train, action, in_test, (ctx), "instead of putting each submodule back into the mode it had")                                                             \
  HOOK(on_predict_model_eval, action, in_predict, (ctx), "instead of module.eval()")                                                                                           \
  HOOK(on_predict_start, hook, in_predict, (ctx), "a predict run begins; the module is in eval mode")                                                                          \
  HOOK(on_predict_epoch_start, hook, in_predict, (ctx), "its pass over the loaders begins")                                                                                    \
  HOOK(on_predict_batch_start, hook, in_predict, (ctx, batch, batch_idx, dataloader_idx), "before a batch")                                                                    \
  HOOK(predict_step, step, in_predict, (ctx, batch, batch_idx, dataloader_idx), "the prediction for a batch")                                                                  \
  HOOK(on_predict_batch_end, hook, in_predict, (ctx, outputs, batch, batch_idx, dataloader_idx), "after a batch")                                                              \
  HOOK(on_predict_epoch_end, hook, in_predict, (ctx), "last chance to log values of this run")                                                                                 \
  HOOK(on_predict_end, hook, in_predict, (ctx), "the run is over, its metrics can be read")                                                                                    \
  HOOK(on_predict_model_train, action, in_predict, (ctx), "instead of putting each submodule back into the mode it had")                                                       \
  HOOK(training_epoch_end, step, in_fit, (ctx, all_outputs), "all outputs of the epoch in a std::vector; kept only if this is there")                                          \
  HOOK(on_train_epoch_end, hook, in_fit, (ctx), "the epoch is over; callbacks that save come last")                                                                            \
  HOOK(on_train_end, hook, in_fit, (ctx, train_loader), "after the last epoch, with the loader it had")                                                                        \
  HOOK(on_fit_end, hook, in_fit, (ctx), "fit is over")                                                                                                                         \
  HOOK(inference_step, step, in_all, (ctx, batch, batch_idx, dataloader_idx), "the prediction that the default evaluation steps share")                                        \
  HOOK(on_exception, hook, in_all, (ctx, exception), "an exception or Ctrl-C ends the stage; the exception goes on afterwards")                                                \
  HOOK(on_save_checkpoint, hook, in_all, (ctx, checkpoint), "a checkpoint is about to be written; add to it")                                                                  \
  HOOK(on_load_checkpoint, hook, in_all, (ctx, checkpoint), "a checkpoint was read, nothing is restored from it yet")                                                          \
  HOOK(teardown, hook, in_all, (ctx), "after everything else of a stage, also when Ctrl-C ended it")
// clang-format on

namespace fulmen {

/// Whether everybody is told (hook), the module does the work (step), or the module may replace what the loop does (action).
enum class HookKind : std::uint8_t { hook, step, action };

namespace hooks {

// The words in which signatures are written. They are types only so that a compiler's message can show a signature.
struct ctx;
struct batch;
struct batch_idx;
struct dataloader_idx;
struct device;
struct loss;
struct outputs;
struct all_outputs;
struct optimizer;
struct closure;
struct scheduler;
struct metric;
struct exception;
struct train_loader;
struct checkpoint;

#define FULMEN_DECLARE_HOOK(NAME, KIND, STAGES, ARGUMENTS, DOC)                                          \
  struct NAME {                                                                                          \
    static constexpr std::string_view name = #NAME, signature = #NAME #ARGUMENTS, doc = DOC;             \
    static constexpr HookKind kind = HookKind::KIND;                                                     \
    static constexpr Stages stages = STAGES;                                                             \
    using Expected = void ARGUMENTS;                                                                     \
    struct Named {                                                                                       \
      int NAME;                                                                                          \
    };                                                                                                   \
    template <class Probe>                                                                               \
    static constexpr bool unambiguous_in = requires { &Probe::NAME; };                                   \
    template <class P, class... Args>                                                                    \
    static constexpr bool takes = requires(P& participant, Args&... args) { participant.NAME(args...); }; \
    template <class P, class... Args>                                                                    \
    static constexpr decltype(auto) call(P& participant, Args&... args) {                                \
      return participant.NAME(args...);                                                                  \
    }                                                                                                    \
  };
FULMEN_HOOKS(FULMEN_DECLARE_HOOK)
#undef FULMEN_DECLARE_HOOK

#define FULMEN_LIST_HOOK(NAME, ...) , NAME
/// The list as a type; the leading void only serves the comma.
template <class, class... Hooks>
struct ListOf {
  using type = std::tuple<Hooks...>;
};
using List = ListOf<void FULMEN_HOOKS(FULMEN_LIST_HOOK)>::type;
#undef FULMEN_LIST_HOOK

inline constexpr std::size_t count = std::tuple_size_v<List>;

}  // namespace hooks

namespace detail {

/// Naming a member that both bases have is ambiguous: so `&Probe::name` fails just when P has a member of that name,
/// whatever its kind, overloads, templates or access.
template <class Hook, class P>
struct Probe : P, Hook::Named {};

template <class Hook, class P>
consteval bool names() {
  // A final class cannot be probed; there an overloaded or templated member is found only if it can be called.
  if constexpr (std::is_final_v<P>) {
    return Hook::template unambiguous_in<P>;
  } else {
    return !Hook::template unambiguous_in<Probe<Hook, P>>;
  }
}

}  // namespace detail

/// The compile error for a member that has a hook's name but cannot be called with any leading part of its arguments.
/// It is a type without definition, so that compilers print participant, hook and expected signature on one line.
template <class Participant, class Hook, class Expected>
struct this_member_has_the_name_of_a_hook_but_cannot_be_called_with_its_arguments;

namespace detail {

/// How many of `Args` (the longest leading part that fits) the participant's member takes; -1 if it takes none of them.
template <class Hook, class P, class... Args>
struct Arity {
  template <std::size_t... I>
  static consteval bool fits(std::index_sequence<I...>) {
    return Hook::template takes<P, std::tuple_element_t<I, std::tuple<Args...>>...>;
  }
  template <std::size_t N = sizeof...(Args)>
  static consteval int find() {
    if constexpr (fits(std::make_index_sequence<N>{})) {
      return static_cast<int>(N);
    } else if constexpr (N > 0) {
      return find<N - 1>();
    } else {
      return -1;
    }
  }
  static constexpr int value = find();
};

template <class Hook, int N, class P, class... Args>
constexpr decltype(auto) call_leading(P& participant, Args&... args) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) -> decltype(auto) {
    if constexpr (N == sizeof...(Args)) {
      return Hook::call(participant, args...);
    } else {
      auto all = std::tie(args...);
      return Hook::call(participant, std::get<I>(all)...);
    }
  }(std::make_index_sequence<static_cast<std::size_t>(N)>{});
}

}  // namespace detail

/// Whether participant P has a member of the hook's name. Needs no argument types, so the plan can ask it.
template <class Hook, class P>
inline constexpr bool answers = detail::names<Hook, std::remove_cvref_t<P>>();

/// Calls the participant's member if it has one; nothing at all is generated if it has not. A near miss does not compile.
template <class Hook, class P, class... Args>
[[gnu::always_inline]] inline void tell(P& participant, Args&... args) {
  if constexpr (answers<Hook, P> || (std::is_final_v<P> && detail::Arity<Hook, P, Args...>::value >= 0)) {
    constexpr int arity = detail::Arity<Hook, P, Args...>::value;
    if constexpr (arity >= 0) {
      static_cast<void>(detail::call_leading<Hook, arity>(participant, args...));
    } else {
      this_member_has_the_name_of_a_hook_but_cannot_be_called_with_its_arguments<P, Hook, typename Hook::Expected>{};
    }
  }
}

}  // namespace fulmen
