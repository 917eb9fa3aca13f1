// Steps: a module's own, found by concepts, or the default ones made of forward, criterion and predictor.
#pragma once

#include <fulmen/criteria/call.hpp>
#include <fulmen/criteria/sum.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/fixed_string.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/loop/hooks.hpp>
#include <fulmen/none.hpp>
#include <fulmen/predict/predictor.hpp>
#include <fulmen/profile/profiler.hpp>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fulmen {

/// What the default training step gives back. A step of one's own may return a loss tensor, or any struct with a `loss`.
template <class Prediction>
struct TrainingOutputs {
  at::Tensor loss;        ///< the criterion's value, attached to the graph
  Prediction prediction;  ///< what forward returned
};

/// What the default evaluation steps give back.
template <class Prediction, class Targets>
struct InferenceOutputs {
  Prediction prediction;
  Targets targets;  ///< the target, or a std::tuple of them where the batch has several
};

namespace detail {

/// Calls a module's own step with as much as it takes: (ctx, batch, batch_idx, dataloader_idx) or a leading part of them
/// with the batch, or the batch alone.
template <class Step, class M, class Ctx, class Batch>
[[gnu::always_inline]] inline decltype(auto) call_step(M& module, Ctx& ctx, Batch& batch, std::int64_t batch_idx,
                                                       [[maybe_unused]] std::int64_t dataloader_idx = 0) {
  const auto measured = measure<Step, M>(ctx);
  if constexpr (Step::template takes<M, Ctx, Batch, std::int64_t, std::int64_t>) {
    return Step::call(module, ctx, batch, batch_idx, dataloader_idx);
  } else if constexpr (Step::template takes<M, Ctx, Batch, std::int64_t>) {
    return Step::call(module, ctx, batch, batch_idx);
  } else if constexpr (Step::template takes<M, Ctx, Batch>) {
    return Step::call(module, ctx, batch);
  } else if constexpr (Step::template takes<M, Batch>) {
    return Step::call(module, batch);
  } else {
    this_member_has_the_name_of_a_hook_but_cannot_be_called_with_its_arguments<M, Step, typename Step::Expected>{};
    return at::Tensor();  // as good a step as any, so that no other message follows
  }
}

/// Calls a module's step that takes outputs: (ctx, outputs) or (outputs).
template <class Step, class M, class Ctx, class Outputs>
decltype(auto) call_outputs(M& module, Ctx& ctx, Outputs& outputs) {
  const auto measured = measure<Step, M>(ctx);
  if constexpr (Step::template takes<M, Ctx, Outputs>) {
    return Step::call(module, ctx, outputs);
  } else if constexpr (Step::template takes<M, Outputs>) {
    return Step::call(module, outputs);
  } else {
    this_member_has_the_name_of_a_hook_but_cannot_be_called_with_its_arguments<M, Step, typename Step::Expected>{};
    return at::Tensor();
  }
}

/// How many of a batch's last members are targets: the module's `static constexpr … n_targets`, 1 unless it has one; in
/// evaluation its n_val_targets, if it has that.
template <class Step, class M>
consteval std::size_t n_targets() {
  constexpr bool evaluates = !std::is_same_v<Step, hooks::training_step>;
  if constexpr (evaluates && requires { M::n_val_targets; }) {
    return static_cast<std::size_t>(M::n_val_targets);
  } else if constexpr (requires { M::n_targets; }) {
    return static_cast<std::size_t>(M::n_targets);
  } else {
    return 1;
  }
}

/// Looked for as hooks are: whatever its arguments, overloaded or a template.
struct Forward {
  struct Named {
    int forward;
  };
  template <class Probe>
  static constexpr bool unambiguous_in = requires { &Probe::forward; };
};

template <class M, class Tuple>
inline constexpr bool forward_takes = false;
template <class M, class... In>
inline constexpr bool forward_takes<M, std::tuple<In...>> = requires(M& m, In... in) { m.forward(in...); };

/// Elements [First, First + Count) of a tuple of references.
template <std::size_t First, std::size_t Count, class Tuple>
constexpr auto part(const Tuple& all) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return std::tuple<std::tuple_element_t<First + I, Tuple>...>(std::get<First + I>(all)...);
  }(std::make_index_sequence<Count>{});
}

/// One thing as it is, several as a tuple of values.
template <class... T>
constexpr auto one_or_tuple(const std::tuple<T&...>& refs) {
  if constexpr (sizeof...(T) == 1) {
    return std::remove_cv_t<std::tuple_element_t<0, std::tuple<T...>>>(std::get<0>(refs));
  } else {
    return std::tuple<std::remove_cv_t<T>...>(refs);
  }
}

/// A batch's inputs and targets, as tuples of references to its members.
template <class Step, class M, class Batch>
constexpr auto split(Batch& batch) {
  auto all = members(batch);
  constexpr std::size_t size = std::tuple_size_v<decltype(all)>, targets = n_targets<Step, M>();
  constexpr std::size_t inputs = size > targets ? size - targets : 0;
  return std::pair(part<0, inputs>(all), part<inputs, size - inputs>(all));
}

/// Whether the default step can call forward with the inputs of such a batch. If not, says why: once.
template <class Step, class M, class Batch>
consteval bool forward_fits() {
  using Inputs = decltype(split<Step, M>(std::declval<Batch&>()).first);
  if constexpr (std::tuple_size_v<Inputs> > 0 && forward_takes<M, Inputs>) {
    return true;
  } else if constexpr (!names<Forward, M>()) {
    static_assert(!std::is_same_v<Step, hooks::training_step>,
                  "fulmen: fit needs a module with training_step, or with forward(inputs...) for the default step");
    static_assert(!std::is_same_v<Step, hooks::validation_step>,
                  "fulmen: validation needs a module with validation_step or inference_step, or with forward(inputs...) "
                  "for the default step");
    static_assert(!std::is_same_v<Step, hooks::test_step>,
                  "fulmen: test needs a module with test_step or inference_step, or with forward(inputs...) for the "
                  "default step");
    static_assert(!std::is_same_v<Step, hooks::predict_step>,
                  "fulmen: predict needs a module with predict_step or inference_step, or with forward(inputs...) for "
                  "the default step");
    return false;
  } else {
    static_assert(std::tuple_size_v<Inputs> > 0,
                  "fulmen: this batch has too few members for the default step: the last n_targets (1 unless the module "
                  "says otherwise) are targets, and at least one input must stand before them");
    static_assert(std::tuple_size_v<Inputs> == 0 || forward_takes<M, Inputs>,
                  "fulmen: the default step calls forward(inputs...) with all members of the batch but the last "
                  "n_targets (1 unless the module says otherwise); this module's forward does not take these");
    return false;
  }
}

template <class M, class Inputs>
decltype(auto) forward(M& module, const Inputs& inputs) {
  return std::apply([&](auto&... in) -> decltype(auto) { return module.forward(in...); }, inputs);
}

template <class Ctx, class Inputs>
[[gnu::always_inline]] inline decltype(auto) measured_forward(Ctx& ctx, const Inputs& inputs) {
  const auto measured = measure<"forward">(ctx);
  return forward(ctx.module(), inputs);
}

/// The module's activation(x) where it has one, for inference only.
template <class M, class X>
decltype(auto) activate(M& module, X&& x) {
  if constexpr (requires { module.activation(std::forward<X>(x)); }) {
    return module.activation(std::forward<X>(x));
  } else {
    return std::forward<X>(x);
  }
}

template <class M, class X>
inline constexpr bool has_activation = requires(M& m, X x) { m.activation(x); };

template <class Criterion, class Output, class Targets>
inline constexpr bool criterion_fits = false;
template <class Criterion, class Output, class... T>
inline constexpr bool criterion_fits<Criterion, Output, std::tuple<T&...>> = criterion_takes<Criterion, Output, T...>;

/// What the log names of a step begin with.
template <class Step>
inline constexpr FixedString log_prefix{"train/"};
template <>
inline constexpr FixedString log_prefix<hooks::validation_step>{"val/"};
template <>
inline constexpr FixedString log_prefix<hooks::test_step>{"test/"};

/// The criterion's value, logged under the name; of a sum of criteria also the parts, under names with the prefix of the step.
template <class Step, class Ctx, class Output, class Targets>
at::Tensor logged_loss(Ctx& ctx, LogName name, const Output& output, const Targets& targets) {
  using Criterion = std::remove_reference_t<decltype(ctx.criterion())>;
  static_assert(!is_none<Criterion>,
                "fulmen: the criterion is fulmen::none, so the module needs a training_step of its own");
  static_assert(is_none<Criterion> || criterion_fits<Criterion, Output, Targets>,
                "fulmen: the criterion cannot be called as criterion(output of forward, targets...) -> tensor");
  const auto measured = measure<"criterion">(ctx);
  if constexpr (!criterion_fits<Criterion, Output, Targets>) {
    return {};
  } else if constexpr (is_criterion_sum<Criterion>) {
    const auto values = std::apply([&](auto&... t) { return ctx.criterion().values(output, t...); }, targets);
    ctx.log(name, values.loss, {.prog_bar = true});
    ctx.criterion().for_each(values, [&]<class Part>(const Part&, const at::Tensor& value) {
      ctx.log(joined<log_prefix<Step>, Part::name>.text, value);
    });
    return values.loss;
  } else {
    at::Tensor loss = std::apply([&](auto&... t) { return call_criterion(ctx.criterion(), output, t...); }, targets);
    ctx.log(name, loss, {.prog_bar = true});
    return loss;
  }
}

/// The default training step: criterion(forward(inputs...), targets...), logged as train/loss, the parts of a sum of
/// criteria as train/<name>.
template <class Ctx, class Batch>
auto default_training_step(Ctx& ctx, Batch& batch) {
  if constexpr (forward_fits<hooks::training_step, typename Ctx::Module, Batch>()) {
    const auto measured = measure<hooks::training_step, None>(ctx);
    const auto parts = split<hooks::training_step, typename Ctx::Module>(batch);
    auto prediction = measured_forward(ctx, parts.first);
    at::Tensor loss = logged_loss<hooks::training_step>(ctx, "train/loss", prediction, parts.second);
    return TrainingOutputs<decltype(prediction)>{std::move(loss), std::move(prediction)};
  } else {
    return TrainingOutputs<at::Tensor>{};
  }
}

/// What a step returned knows itself what is to be logged: see loop/result.hpp.
template <class Outputs>
concept StepResult = requires(Outputs& outputs, Context& ctx) { outputs.apply(ctx); };

/// Lets such outputs log, and collects what they want written; nothing for all others.
template <class Outputs, class Predictions>
void take_result(Context& ctx, Outputs& outputs, Predictions& predictions) {
  if constexpr (StepResult<Outputs>) {
    outputs.apply(ctx);
    if constexpr (requires { predictions.add(outputs); }) {
      if (!ctx.sanity_checking()) predictions.add(outputs);
    }
  }
}

/// Where the predictions of such outputs are kept until the end of an evaluation pass.
template <class Outputs>
struct PredictionsOf {
  using type = None;
};
template <class Outputs>
  requires requires { typename Outputs::Predictions; }
struct PredictionsOf<Outputs> {
  using type = typename Outputs::Predictions;
};

/// The loss in what a training step returned; nothing if the step asked to skip the batch (an empty optional, an
/// undefined tensor).
template <class Outputs>
at::Tensor loss_in(const Outputs& outputs) {
  if constexpr (TensorLike<Outputs>) {
    return outputs;
  } else if constexpr (OptionalLike<Outputs>) {
    return outputs ? loss_in(*outputs) : at::Tensor();
  } else {
    constexpr bool has_loss = requires { { outputs.loss } -> TensorLike; };
    static_assert(has_loss,
                  "fulmen: training_step must return a loss tensor, a struct with a tensor named loss, or a std::optional "
                  "of either; a module that optimises by hand says static constexpr bool automatic_optimization = false");
    if constexpr (has_loss) return outputs.loss;
    else return {};
  }
}

template <class Ctx>
using PredictorOf = std::remove_cvref_t<decltype(std::declval<Ctx&>().predictor())>;

/// Where a predictor cuts the inputs up, they stay where they are and infer moves the parts.
template <class Ctx>
inline constexpr bool moves_parts = CutsInputs<PredictorOf<Ctx>>;

/// Moves a batch, or a part of it, to the device.
template <class Ctx, class Batch>
[[gnu::always_inline]] inline void move_measured(Ctx& ctx, Batch& batch) {
  const auto measured = measure<hooks::transfer_batch_to_device, None>(ctx);
  move_to(batch, ctx.device());
}

/// The module's own inference_step, or predictor(inputs, activation(forward)) on the device, with the targets.
/// With a log name, the loss is logged as well, where it can be had: without an activation between forward and prediction.
template <class Step, class Ctx, class Batch, class Name>
auto inference(Ctx& ctx, Batch& batch, std::int64_t batch_idx, Name loss_name) {
  using M = typename Ctx::Module;
  M& module = ctx.module();
  if constexpr (answers<hooks::inference_step, M>) {
    return call_step<hooks::inference_step>(module, ctx, batch, batch_idx, ctx.dataloader_idx());
  } else if constexpr (!forward_fits<Step, M, Batch>()) {
    return InferenceOutputs<at::Tensor, at::Tensor>{};
  } else {
    if constexpr (!moves_parts<Ctx>) move_measured(ctx, batch);
    const auto parts = split<Step, M>(batch);
    if constexpr (moves_parts<Ctx>) move_measured(ctx, parts.second);
    auto inputs = one_or_tuple(parts.first);
    using Inputs = decltype(inputs);
    const auto run = [&](const Inputs& in) {
      if constexpr (std::tuple_size_v<std::remove_cvref_t<decltype(parts.first)>> == 1) {
        return measured_forward(ctx, std::tie(in));
      } else {
        return measured_forward(ctx, std::apply([](auto&... x) { return std::tie(x...); }, in));
      }
    };
    const auto infer = [&](Inputs in) {
      if constexpr (moves_parts<Ctx>) move_measured(ctx, in);
      return activate(module, run(in));
    };
    using Output = decltype(run(inputs));
    constexpr bool identity = std::is_same_v<PredictorOf<Ctx>, Identity>;
    constexpr bool wants_loss = !std::is_same_v<Name, None> && !is_none<std::remove_cvref_t<decltype(ctx.criterion())>>;
    const auto log_loss = [&](const auto& output) {
      if constexpr (wants_loss) logged_loss<Step>(ctx, loss_name(), output, parts.second);
    };
    if constexpr (identity) {
      auto output = run(inputs);
      log_loss(output);
      auto prediction = activate(module, std::move(output));
      return InferenceOutputs<std::remove_cvref_t<decltype(prediction)>, decltype(one_or_tuple(parts.second))>{
          std::move(prediction), one_or_tuple(parts.second)};
    } else {
      auto prediction = fulmen::run(ctx.predictor(), inputs, infer);
      if constexpr (!has_activation<M, Output>) log_loss(prediction);
      return InferenceOutputs<decltype(prediction), decltype(one_or_tuple(parts.second))>{
          std::move(prediction), one_or_tuple(parts.second)};
    }
  }
}

/// The default predict step: as inference, but the batch may come without targets.
template <class Ctx, class Batch>
auto default_predict_step(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
  using M = typename Ctx::Module;
  if constexpr (answers<hooks::inference_step, M>) {
    return call_step<hooks::inference_step>(ctx.module(), ctx, batch, batch_idx, ctx.dataloader_idx());
  } else if constexpr (forward_takes<M, decltype(members(batch))>) {
    if constexpr (!moves_parts<Ctx>) move_measured(ctx, batch);
    const auto infer = [&](auto... in) {
      if constexpr (moves_parts<Ctx>) (move_measured(ctx, in), ...);
      return activate(ctx.module(), measured_forward(ctx, std::tie(in...)));
    };
    auto all = members(batch);
    if constexpr (std::tuple_size_v<decltype(all)> == 1) {
      return run(ctx.predictor(), std::get<0>(all), infer);
    } else {
      return run(ctx.predictor(), one_or_tuple(all), [&](auto in) { return std::apply(infer, std::move(in)); });
    }
  } else {
    return inference<hooks::predict_step>(ctx, batch, batch_idx, none).prediction;
  }
}

}  // namespace detail
}  // namespace fulmen
