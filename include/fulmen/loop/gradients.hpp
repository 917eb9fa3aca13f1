// How the loop gets loss and gradients of a batch: by autograd's graph, or composed from the rules of the
// module's layers.
#pragma once

#include <fulmen/loop/plan.hpp>
#include <fulmen/loop/steps.hpp>
#include <fulmen/loop/trainer_context.hpp>
#include <fulmen/nn/composed_step.hpp>

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fulmen {

namespace detail {

/// For all that a Trainer's type says; the batch has its say in Gradients.
template <class Module, class Criterion, class Policy, std::size_t Inputs = 1, std::size_t Targets = 1>
consteval GradientPlan gradient_plan() {
  if constexpr (!std::is_same_v<Policy, Composed>) {
    return {false, "the runtime's gradient policy is not Composed"};
  } else if constexpr (!nn::is_composite<Module>) {
    return {false, "the module is not composed of fulmen::nn layers"};
  } else if constexpr (answers<hooks::training_step, Module>) {
    return {false, "the module has a training_step of its own"};
  } else if constexpr (answers<hooks::training_step_end, Module>) {
    return {false, "the module has a training_step_end"};
  } else if constexpr (!automatic_optimization<Module>()) {
    return {false, "the module optimises by hand"};
  } else if constexpr (answers<hooks::backward, Module>) {
    return {false, "the module has a backward of its own"};
  } else if constexpr (is_none<Criterion>) {
    return {false, "there is no criterion"};
  } else if constexpr (Inputs == 0) {
    return {false, "the batch has no inputs"};
  } else {
    using Step = nn::ComposedStep<Module, Criterion, Inputs, Targets>;
    constexpr nn::detail::RuleCount count = nn::detail::count_rules<nn::Rule<Module, Inputs>>();
    return {count.rules >= count.by_autograd,
            count.rules >= count.by_autograd ? "" : "most layers have no rule", count.rules,
            count.by_autograd, requires {Step::LossRule::by_autograd;
  }
};
}  // namespace detail
}  // namespace fulmen

/// The outputs of one training batch: the module's own training_step or the default one, then
/// training_step_end.
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

template <class Tuple>
inline constexpr bool all_tensors = false;
template <class... T>
inline constexpr bool all_tensors<std::tuple<T...>> = (std::is_same_v<std::remove_cvref_t<T>, at::Tensor> &&
                                                       ...);

/// loss.backward(), with its hooks, of the loss of one of so many batches that make a step.
template <class Ctx>
[[gnu::always_inline]] inline void backward_by_graph(Ctx& ctx, const at::Tensor& loss,
                                                     std::int64_t accumulate) {
  if (accumulate == 1)
    ctx.backward(loss);
  else
    ctx.backward(loss.div(static_cast<double>(accumulate)));
}

/// The gradients of batches of one type. This one: by autograd.
template <class Ctx, class Batch>
class Gradients {
 public:
  explicit Gradients(Ctx&) {}

  /// Runs the training step. @return what it returns
  [[gnu::always_inline]] static decltype(auto) step(Ctx& ctx, Batch& batch, std::int64_t batch_idx) {
    return training_step(ctx, batch, batch_idx);
  }
  /// Adds the gradients of loss / accumulate to those that are there.
  [[gnu::always_inline]] static void backward(Ctx& ctx, const at::Tensor& loss, std::int64_t accumulate) {
    backward_by_graph(ctx, loss, accumulate);
  }
};

template <class Ctx, class Batch>
struct BatchParts {
  using Module = typename Ctx::Module;
  using Parts = decltype(split<hooks::training_step, Module>(std::declval<Batch&>()));
  static constexpr std::size_t inputs = std::tuple_size_v<typename Parts::first_type>,
                               targets = std::tuple_size_v<typename Parts::second_type>;
  static constexpr bool are_tensors =
      all_tensors<typename Parts::first_type> && all_tensors<typename Parts::second_type>;
};

/// Whether the step of such a batch is composed.
template <class Ctx, class Batch>
consteval bool composes() {
  using Module = typename Ctx::Module;
  if constexpr (!nn::is_composite<Module>) {
    return false;
  } else {
    using Parts = BatchParts<Ctx, Batch>;
    if constexpr (!Parts::are_tensors || Parts::inputs == 0)
      return false;
    else
      return gradient_plan<Module, typename Ctx::Criterion, typename Ctx::GradientPolicy, Parts::inputs,
                           Parts::targets>()
          .composed;
  }
}

/// Composed, unless something at run time asks for a graph: autocast, anomaly detection, a hook on a
/// parameter; another device than the CPU, on which the rules have not been tried.
template <class Ctx, class Batch>
  requires(composes<Ctx, Batch>())
class Gradients<Ctx, Batch> {
  using Module = typename Ctx::Module;
  using Criterion = typename Ctx::Criterion;
  using Parts = BatchParts<Ctx, Batch>;
  using Step = nn::ComposedStep<Module, Criterion, Parts::inputs, Parts::targets>;

 public:
  using Outputs = decltype(default_training_step(std::declval<Ctx&>(), std::declval<Batch&>()));

  explicit Gradients(Ctx& ctx) : step_(ctx.module(), ctx.criterion()) {}

  Outputs step(Ctx& ctx, Batch& batch, std::int64_t) {
    records_graph_ = !ctx.device().is_cpu() || ctx.options().detect_anomaly || step_.has_hooks() ||
                     at::autocast::is_autocast_enabled(ctx.device().type());
    if (records_graph_) [[unlikely]]
      return default_training_step(ctx, batch);
    const auto measured = measure<hooks::training_step, None>(ctx);
    const auto parts = split<hooks::training_step, Module>(batch);
    const auto pointers = [](auto&... t) { return std::array<const at::Tensor*, sizeof...(t)>{&t...}; };
    {
      const auto forward = measure<"forward">(ctx);
      step_.forward(std::apply(pointers, parts.first), std::apply(pointers, parts.second));
    }
    at::Tensor loss;
    {
      const auto criterion = measure<"criterion">(ctx);
      loss = step_.loss();
    }
    ctx.log("train/loss", loss, {.prog_bar = true});
    if constexpr (is_criterion_sum<Criterion>) log_parts(ctx);
    return {std::move(loss), prediction(static_cast<decltype(Outputs::prediction)*>(nullptr))};
  }

  void backward(Ctx& ctx, const at::Tensor& loss, std::int64_t accumulate) {
    if (records_graph_) [[unlikely]]
      return backward_by_graph(ctx, loss, accumulate);
    ctx.backward(accumulate == 1 ? loss : loss.div(static_cast<double>(accumulate)),
                 [&] { step_.backward(1 / static_cast<double>(accumulate)); });
    LoopAccess::activation_bytes(ctx) = step_.activation_bytes();
  }

 private:
  at::Tensor prediction(at::Tensor*) { return step_.output(); }
  template <class... T>
  std::tuple<T...> prediction(std::tuple<T...>*) {
    static_assert((std::is_same_v<T, at::Tensor> && ...) && sizeof...(T) == Step::outputs);
    return [&]<std::size_t... I>(std::index_sequence<I...>) { return std::tuple<T...>(step_.output(I)...); }
    (std::make_index_sequence<sizeof...(T)>{});
  }

  void log_parts(Ctx& ctx) {
    std::size_t i = 0;
    const auto log = [&]<class Part>(const Part&) {
      ctx.log(joined<log_prefix<hooks::training_step>, Part::name>.text, *step_.criterion_kept().values[i++]);
    };
    std::apply([&](const auto&... part) { (log(part), ...); }, ctx.criterion().parts);
  }

  Step step_;
  bool records_graph_ = false;
};

}  // namespace detail
}  // namespace fulmen
