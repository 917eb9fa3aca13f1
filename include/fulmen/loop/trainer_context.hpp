// The full context: what hooks that take `auto& ctx` get. Adds to Context what depends on the Trainer's type.
#pragma once

#include <fulmen/checkpoint/hyperparameters_state.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/loop/hooks.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/profile/profiler.hpp>
#include <fulmen/runtime.hpp>
#include <fulmen/schedule/scheduler.hpp>

#include <torch/nn/module.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen {

namespace detail {

/// Writes to the private state of a Context. Only the loops use it.
struct LoopAccess {
  static void set_options(Context& c, Options options) { c.set_options(std::move(options)); }
  static auto& stage(Context& c) { return c.stage_; }
  static auto& phase(Context& c) { return c.phase_; }
  static auto& by_step(Context& c) { return c.by_step_; }
  static auto& in_batch(Context& c) { return c.in_batch_; }
  static auto& should_stop(Context& c) { return c.should_stop_; }
  static auto& interrupted(Context& c) { return c.interrupted_; }
  static auto& training(Context& c) { return c.training_; }
  static auto& epoch_over(Context& c) { return c.epoch_over_; }
  static auto& out_of_time(Context& c) { return c.out_of_time_; }
  static auto& resumes(Context& c) { return c.resumes_; }
  static auto& progress(Context& c) { return c.progress_; }
  static auto& resumed_at(Context& c) { return c.resumed_at_; }
  static auto& ckpt_path(Context& c) { return c.ckpt_path_; }
  static auto& epoch(Context& c) { return c.epoch_; }
  static auto& global_step(Context& c) { return c.global_step_; }
  static auto& batch_idx(Context& c) { return c.batch_idx_; }
  static auto& batch_size(Context& c) { return c.batch_size_; }
  static auto& dataloader_idx(Context& c) { return c.dataloader_idx_; }
  static auto& several_loaders(Context& c) { return c.several_loaders_; }
  static auto& logged_steps(Context& c) { return c.logged_steps_; }
  static auto& total_batches(Context& c) { return c.total_batches_; }
  static auto& accumulate(Context& c) { return c.accumulate_; }
  static auto& num_batches(Context& c) { return c.num_batches_; }
  static auto& device(Context& c) { return c.device_; }
  static auto& activation_bytes(Context& c) { return c.activation_bytes_; }
};

/// Counts the batches done in this epoch into what the context tells. The loop does so only when somebody can look, since a
/// batch is short.
void tell_progress(Context& ctx, std::int64_t done);

/// Whether a callback saves what the others produce. Such callbacks come last: see on_train_epoch_end.
template <class Callback>
inline constexpr bool saves = requires { requires Callback::saves_checkpoints; };

template <class T, class Tuple>
inline constexpr bool tuple_has = false;
template <class T, class... U>
inline constexpr bool tuple_has<T, std::tuple<U...>> = (std::is_same_v<T, U> || ...);

/// Which callbacks there are, by their place in (User..., Defaults...): the user's, then those defaults whose type the user did
/// not bring; the ones that save come last.
template <class User, class Defaults>
struct CallbackOrder;
template <class... U, class... D>
struct CallbackOrder<std::tuple<U...>, std::tuple<D...>> {
  static constexpr auto order = [] {
    std::array<std::size_t, sizeof...(U) + (std::size_t{!tuple_has<D, std::tuple<U...>>} + ... + 0)> out{};
    [[maybe_unused]] std::size_t filled = 0, place = 0;
    [[maybe_unused]] const auto note = [&](bool wanted) {
      if (wanted) out[filled++] = place;
      ++place;
    };
    (note(!saves<U>), ...);
    (note(!saves<D> && !tuple_has<D, std::tuple<U...>>), ...);
    place = 0;
    (note(saves<U>), ...);
    (note(saves<D> && !tuple_has<D, std::tuple<U...>>), ...);
    return out;
  }();
};

/// A tuple of them, moved. By their places, since each std::tuple_cat is a lot to compile.
template <class User, class Defaults>
auto all_callbacks(User&& user, Defaults&& defaults) {
  using Order = CallbackOrder<std::remove_cvref_t<User>, std::remove_cvref_t<Defaults>>;
  [[maybe_unused]] const auto at = [&]<std::size_t Place>(std::integral_constant<std::size_t, Place>) -> auto&& {
    constexpr std::size_t users = std::tuple_size_v<std::remove_cvref_t<User>>;
    if constexpr (Place < users) return std::get<Place>(std::move(user));
    else return std::get<Place - users>(std::move(defaults));
  };
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return std::tuple<std::remove_cvref_t<decltype(at(std::integral_constant<std::size_t, Order::order[I]>{}))>...>(
        at(std::integral_constant<std::size_t, Order::order[I]>{})...);
  }(std::make_index_sequence<Order::order.size()>{});
}

template <class M>
consteval bool automatic_optimization() {
  if constexpr (requires { M::automatic_optimization; }) {
    return static_cast<bool>(M::automatic_optimization);
  } else {
    return true;
  }
}

/// A bound optimizer inside a Trainer: its step() is that of the loop, with the hook before it and the count after it.
template <class Bound, class Ctx>
class LoopOptimizer : public Bound {
 public:
  LoopOptimizer(Bound bound, Ctx& ctx) : Bound(std::move(bound)), ctx_(&ctx) {}

  /// For modules that optimise by hand: gradients are there.
  void step() {
    ctx_->template tell_all<hooks::on_before_optimizer_step>(static_cast<Bound&>(*this));
    {
      const auto measured = measure<hooks::optimizer_step, None>(*ctx_);
      Bound::step();
    }
    ++LoopAccess::global_step(*ctx_);
  }

  /// Runs the closure, which makes the gradients and returns the loss, then updates. An optimizer with a step(closure) of
  /// its own (LBFGS) calls the closure as often as it needs.
  template <class Closure>
  void step(Closure&& closure) {
    if constexpr (requires(Bound& bound) { bound.step(closure); }) {
      Bound::step(closure);
    } else {
      closure();
      Bound::step();
    }
    ++LoopAccess::global_step(*ctx_);
  }

 private:
  Ctx* ctx_;
};

/// A Runtime of one's own need not name a gradient policy.
template <class R>
struct GradientPolicyIn {
  using type = Composed;
};
template <class R>
  requires requires { typename R::GradientPolicy; }
struct GradientPolicyIn<R> {
  using type = typename R::GradientPolicy;
};
template <class R>
using GradientPolicyOf = typename GradientPolicyIn<R>::type;

template <class Policies, class Ctx>
struct BoundOptimizers;
template <class... P, class Ctx>
struct BoundOptimizers<std::tuple<P...>, Ctx> {
  using type = std::tuple<LoopOptimizer<decltype(std::declval<const P&>().bind(NamedParameters{})), Ctx>...>;
};
template <class Policies>
struct BoundSchedulers;
template <class S, Interval When>
BoundScheduler<S, When> bound_scheduler(const Scheduled<S, When>&);
template <class... S>
struct BoundSchedulers<std::tuple<S...>> {
  using type = std::tuple<decltype(bound_scheduler(std::declval<typename ScheduledOf<S>::type>()))...>;
};

/// All parameters, frozen ones too: they have no gradient and are left out of the steps until they are freed.
NamedParameters named_parameters(const torch::nn::Module& module);

/// Takes a value called `step` out of the metrics, and sets the step to it.
void take_step(Metrics& metrics, std::int64_t& step);

/// How many batches of each loader the stages have evaluated.
class EvaluatedBatches {
 public:
  EvaluatedBatches();
  ~EvaluatedBatches();
  EvaluatedBatches(const EvaluatedBatches&) = delete;
  EvaluatedBatches& operator=(const EvaluatedBatches&) = delete;

  /// Counts one more. @return how many there were
  std::int64_t count(Stage stage, std::int64_t dataloader_idx);

  State state_dict() const;
  void load_state_dict(const State& state);

 private:
  std::map<Stage, std::vector<std::int64_t>> counts_;
};

/// Takes the gradients of a module's parameters that are in none of the groups, and notes which.
void toggle(const torch::nn::Module& module, const std::vector<ParamGroup>& groups, std::vector<at::Tensor>& toggled);
void untoggle(std::vector<at::Tensor>& toggled);

/// Says what else there is to monitor.
[[noreturn, gnu::cold]] void fail_for_monitor(std::string_view name, MetricStore& metrics);

}  // namespace detail

template <class ModuleType, class CriterionType, class OptimizerType, class SchedulerType, class PredictorType,
          class CallbacksType, class RuntimeType>
class TrainerContext : public Context {
  using OptimizerPolicies = typename detail::PolicyTuple<OptimizerType>::type;
  using SchedulerPolicies = typename detail::PolicyTuple<SchedulerType>::type;

 public:
  using Module = ModuleType;
  using Criterion = CriterionType;
  using GradientPolicy = detail::GradientPolicyOf<RuntimeType>;
  using Callbacks = decltype(detail::all_callbacks(std::declval<CallbacksType>(),
                                                   std::declval<decltype(RuntimeType::defaults)>()));
  using Optimizers = typename detail::BoundOptimizers<OptimizerPolicies, TrainerContext>::type;
  using Schedulers = typename detail::BoundSchedulers<SchedulerPolicies>::type;

  TrainerContext(std::shared_ptr<Module> module, CriterionType&& criterion, OptimizerType&& optimizer,
                 SchedulerType&& scheduler, PredictorType&& predictor, CallbacksType&& callbacks, Options&& options,
                 RuntimeType&& runtime)
      : Context(std::move(options)),
        module_(std::move(module)),
        criterion_(std::move(criterion)),
        optimizer_policies_(detail::PolicyTuple<OptimizerType>::make(std::move(optimizer))),
        scheduler_policies_(detail::PolicyTuple<SchedulerType>::make(std::move(scheduler))),
        predictor_(std::move(predictor)),
        callbacks_(detail::all_callbacks(std::move(callbacks), std::move(runtime.defaults))),
        loggers_(std::move(runtime.loggers)),
        profiler_(std::move(runtime.profiler)) {
    detail::LoopAccess::device(*this) = detail::choose_device(runtime.device);
  }

  Module& module() { return *module_; }
  const std::shared_ptr<Module>& module_ptr() const { return module_; }
  CriterionType& criterion() { return criterion_; }
  PredictorType& predictor() { return predictor_; }
  Callbacks& callbacks() { return callbacks_; }
  auto& loggers() { return loggers_; }
  auto& profiler() { return profiler_; }

  /// The bound optimizers, as a tuple: `auto& [g, d] = ctx.optimizers();`. @throws std::logic_error before fit binds them.
  Optimizers& optimizers() {
    if (!optimizers_) fail<std::logic_error>("optimizers are bound when fit begins, after setup: too early to ask");
    return *optimizers_;
  }
  /// The optimizer, where there is one.
  auto& optimizer() {
    static_assert(std::tuple_size_v<Optimizers> == 1, "fulmen: optimizer() is for Trainers with one; see optimizers()");
    return std::get<0>(optimizers());
  }
  Schedulers& schedulers() {
    if (!schedulers_) fail<std::logic_error>("schedulers are bound when fit begins, after setup: too early to ask");
    return *schedulers_;
  }
  bool bound() const { return optimizers_.has_value(); }
  /// The state of the data module, where it has one: as of the last epoch's end, or as a checkpoint brought it.
  std::optional<State>& data_state() { return data_state_; }
  /// Where the training loader is to go on, as a checkpoint or an interrupted epoch left it.
  std::optional<State>& loader_state() { return loader_state_; }
  /// Where it is while an epoch runs; notes the data module's state, too. Nothing outside of epochs.
  std::optional<State> walk_state() { return walk_ ? std::optional(state_of_walk_(walk_)) : std::nullopt; }

  /// While it lives, `where()` tells where the training loader is.
  class WalkScope {
   public:
    template <class Where>
    WalkScope(TrainerContext& ctx, Where& where) : ctx_(ctx) {
      ctx_.walk_ = &where;
      ctx_.state_of_walk_ = [](const void* walk) { return (*static_cast<const Where*>(walk))(); };
    }
    ~WalkScope() { ctx_.walk_ = nullptr; }
    WalkScope(const WalkScope&) = delete;
    WalkScope& operator=(const WalkScope&) = delete;

   private:
    TrainerContext& ctx_;
  };

  auto& evaluated_batches() { return evaluated_batches_; }
  /// Their state when the validation that runs now began.
  State& evaluated_before() { return evaluated_before_; }

  /// loss.backward() with its hooks around it: for modules that optimise by hand.
  void backward(const at::Tensor& loss) {
    backward(loss, [&] { loss.backward(); });
  }
  /// The same, where `run()` makes the gradients.
  template <class Run>
  void backward(const at::Tensor& loss, Run&& run) {
    tell_all<hooks::on_before_backward>(loss);
    act<hooks::backward>(run, loss);
    tell_all<hooks::on_after_backward>();
  }

  /// Lets gradients go to this optimizer's parameters only, until untoggle_optimizer: for modules with several that
  /// optimise by hand, so that the backward of one does not compute what belongs to the others.
  template <class Optimizer>
  void toggle_optimizer(Optimizer& optimizer) {
    untoggle_optimizer();
    detail::toggle(*module_, optimizer.groups(), toggled_);
  }
  void untoggle_optimizer() { detail::untoggle(toggled_); }

  /// What the loop does itself, unless the module has a member for it.
  template <class Action, class Otherwise, class... Args>
  [[gnu::always_inline]] void act(Otherwise&& otherwise, Args&... args) {
    if constexpr (answers<Action, Module>) {
      detail::tell_measured<Action>(*module_, *this, args...);
    } else {
      const auto measured = detail::measure<Action, None>(*this);
      otherwise();
    }
  }

  /// Calls the hook on every participant that has it: callbacks in order, then the module. Those that save come after it
  /// where a batch, an epoch or a validation ends, so that a checkpoint has all that happens there; where an epoch of
  /// training ends, the loop tells them by itself, when all else is done.
  template <class Hook, class... Args>
  [[gnu::always_inline]] void tell_all(Args&... args) {
    constexpr bool epoch_end = std::is_same_v<Hook, hooks::on_train_epoch_end>,
                   savers_last = epoch_end || std::is_same_v<Hook, hooks::on_train_batch_end> ||
                                 std::is_same_v<Hook, hooks::on_validation_end>;
    std::apply(
        [&](auto&... callback) {
          (
              [&] {
                if constexpr (!(savers_last && detail::saves<std::remove_cvref_t<decltype(callback)>>)) {
                  detail::tell_measured<Hook>(callback, *this, args...);
                }
              }(),
              ...);
          detail::tell_measured<Hook>(*module_, *this, args...);
        },
        callbacks_);
    if constexpr (savers_last && !epoch_end) tell_savers<Hook>(args...);
  }
  template <class Hook, class... Args>
  [[gnu::always_inline]] void tell_savers(Args&... args) {
    std::apply(
        [&](auto&... callback) {
          (
              [&] {
                if constexpr (detail::saves<std::remove_cvref_t<decltype(callback)>>) {
                  detail::tell_measured<Hook>(callback, *this, args...);
                }
              }(),
              ...);
        },
        callbacks_);
  }

  /// Whether anybody answers the hook.
  template <class Hook>
  static constexpr bool anybody = []<class... C>(std::type_identity<std::tuple<C...>>) {
    return (answers<Hook, C> || ... || answers<Hook, Module>);
  }(std::type_identity<Callbacks>{});

  static constexpr bool has_loggers = std::tuple_size_v<decltype(RuntimeType::loggers)> != 0;
  static constexpr bool has_profiler = !is_none<decltype(RuntimeType::profiler)>;

  /// Hands metrics to every logger, under the index of the optimizer step that was last done (as Lightning does).
  void log_metrics(const Metrics& metrics) {
    if constexpr (has_loggers) {
      log_metrics(metrics, stage() == Stage::fit ? std::max<std::int64_t>(global_step() - 1, 0) : global_step());
    }
  }
  /// The same under a step of one's own. A value called `step` is taken out and used as the step instead.
  void log_metrics(Metrics metrics, std::int64_t step) {
    if constexpr (has_loggers) {
      if (!writes_files()) return;
      detail::take_step(metrics, step);
      if (metrics.empty()) return;
      const auto measured = detail::measure<"log_metrics">(*this);
      std::apply([&](auto&... logger) { (logger.log_metrics(*this, metrics, step), ...); }, loggers_);
    }
  }
  /// What an evaluation batch logged on_step, under the number of batches its loader has given in this kind of stage.
  void log_evaluation_step() {
    if constexpr (has_loggers) {
      if (phase() == Phase::sanity_check) return;
      const bool several = detail::LoopAccess::several_loaders(*this);
      const std::int64_t seen = evaluated_batches_.count(stage(), dataloader_idx());
      log_metrics(metrics().step_metrics(phase(), several ? dataloader_idx() : -1), seen);
    }
  }
  /// What the module's member `hparams` says, or Trainer::save_hyperparameters was given.
  std::optional<State> hyperparameters() const {
    if constexpr (detail::HasHyperparameters<Module>) return hyperparameters_state(module_->hparams);
    else return hyperparameters_;
  }
  void set_hyperparameters(State hyperparameters) { hyperparameters_ = std::move(hyperparameters); }
  /// Hands them to the loggers that take some, once.
  void log_hyperparameters() {
    if constexpr (has_loggers) {
      const std::optional<State> params = hyperparameters();
      if (!params || !writes_files() || std::exchange(hyperparameters_logged_, true)) return;
      const auto log = [&](auto& logger) {
        if constexpr (requires { logger.log_hyperparams(*params); }) logger.log_hyperparams(*params);
      };
      std::apply([&](auto&... logger) { (log(logger), ...); }, loggers_);
    }
  }
  void finalize_loggers() {
    std::apply(
        [&](auto&... logger) {
          (
              [&] {
                if constexpr (requires { logger.finalize(*this); }) logger.finalize(*this);
              }(),
              ...);
        },
        loggers_);
  }

  /// Moves the module to the device and binds optimizers and schedulers to what it has by then. Once: a second fit goes
  /// on with the state of the first.
  void bind() {
    module_->to(device());
    if (bound()) return;
    optimizers_.emplace(std::apply(
        [&](const auto&... policy) {
          return Optimizers(detail::LoopOptimizer<decltype(policy.bind(NamedParameters{})), TrainerContext>(
              policy.bind(detail::named_parameters(*module_)), *this)...);
        },
        optimizer_policies_));
    bind_schedulers(std::make_index_sequence<std::tuple_size_v<Schedulers>>{});
  }

  /// Advances the schedulers of one kind, where their frequency says so. `index`: of the batch, or of the epoch.
  template <Interval When, bool Monitoring>
  void advance_schedulers(std::int64_t index) {
    std::apply(
        [&](auto&... scheduler) {
          (
              [&] {
                using S = std::remove_cvref_t<decltype(scheduler)>;
                if constexpr (S::interval == When && S::monitors == Monitoring) {
                  if ((index + 1) % scheduler.frequency() == 0) advance(scheduler);
                }
              }(),
              ...);
        },
        *schedulers_);
  }

 private:
  template <std::size_t... I>
  void bind_schedulers(std::index_sequence<I...>) {
    schedulers_.emplace(std::tuple_element_t<I, Schedulers>(
        detail::ScheduledOf<std::tuple_element_t<I, SchedulerPolicies>>::make(std::move(std::get<I>(scheduler_policies_))),
        std::get<I>(*optimizers_).groups())...);
  }

  template <class Scheduler>
  void advance(Scheduler& scheduler) {
    if constexpr (Scheduler::monitors) {
      const std::optional<double> found = metrics().find(scheduler.monitor());
      if (!found) detail::fail_for_monitor(scheduler.monitor(), metrics());
      double metric = *found;
      act<hooks::lr_scheduler_step>([&] { scheduler.step(metric); }, scheduler, metric);
    } else {
      None nothing;
      act<hooks::lr_scheduler_step>([&] { scheduler.step(); }, scheduler, nothing);
    }
  }

  std::shared_ptr<Module> module_;
  [[no_unique_address]] CriterionType criterion_;
  [[no_unique_address]] OptimizerPolicies optimizer_policies_;
  [[no_unique_address]] SchedulerPolicies scheduler_policies_;
  [[no_unique_address]] PredictorType predictor_;
  Callbacks callbacks_;
  decltype(RuntimeType::loggers) loggers_;
  [[no_unique_address]] decltype(RuntimeType::profiler) profiler_;
  std::optional<Optimizers> optimizers_;
  std::optional<Schedulers> schedulers_;
  std::vector<at::Tensor> toggled_;
  std::optional<State> data_state_, loader_state_, hyperparameters_;
  bool hyperparameters_logged_ = false;
  State evaluated_before_;
  const void* walk_ = nullptr;
  State (*state_of_walk_)(const void*) = nullptr;
  struct NothingEvaluated {};
  [[no_unique_address]] std::conditional_t<has_loggers, detail::EvaluatedBatches, NothingEvaluated> evaluated_batches_;
};

#if FULMEN_BODIES
FULMEN_INLINE void detail::tell_progress(Context& ctx, std::int64_t done) {
  EpochProgress& progress = LoopAccess::progress(ctx);
  const std::int64_t batches = done - std::exchange(progress.told, done);
  LoopAccess::total_batches(ctx) += batches;
  LoopAccess::logged_steps(ctx) += batches - std::exchange(progress.without_step, 0);
  progress.done = done;
}

FULMEN_INLINE NamedParameters detail::named_parameters(const torch::nn::Module& module) {
  NamedParameters out;
  for (const auto& item : module.named_parameters()) out.push_back({item.key(), item.value()});
  return out;
}

FULMEN_INLINE void detail::take_step(Metrics& metrics, std::int64_t& step) {
  std::erase_if(metrics, [&](const Metric& metric) {
    const bool is_step = metric.name == "step";
    if (is_step) step = static_cast<std::int64_t>(metric.value);
    return is_step;
  });
}

FULMEN_INLINE detail::EvaluatedBatches::EvaluatedBatches() = default;
FULMEN_INLINE detail::EvaluatedBatches::~EvaluatedBatches() = default;

FULMEN_INLINE std::int64_t detail::EvaluatedBatches::count(Stage stage, std::int64_t dataloader_idx) {
  const auto loader = static_cast<std::size_t>(dataloader_idx);
  std::vector<std::int64_t>& seen = counts_[stage];
  if (seen.size() <= loader) seen.resize(loader + 1);
  return seen[loader]++;
}

FULMEN_INLINE State detail::EvaluatedBatches::state_dict() const {
  State state("the numbers of evaluated batches");
  for (const auto& [stage, counts] : counts_) state.set(std::string(to_string(stage)), counts);
  return state;
}

FULMEN_INLINE void detail::EvaluatedBatches::load_state_dict(const State& state) {
  counts_.clear();
  for (const Stage stage : {Stage::fit, Stage::validate, Stage::test}) {
    const std::string name(to_string(stage));
    if (state.contains(name)) counts_[stage] = state.get<std::vector<std::int64_t>>(name);
  }
}

FULMEN_INLINE void detail::toggle(const torch::nn::Module& module, const std::vector<ParamGroup>& groups,
                                  std::vector<at::Tensor>& toggled) {
  const auto mine = [&](const at::Tensor& p) {
    for (const ParamGroup& group : groups) {
      for (const at::Tensor& own : group.params) {
        if (own.is_same(p)) return true;
      }
    }
    return false;
  };
  for (const at::Tensor& p : module.parameters()) {
    if (!p.requires_grad() || mine(p)) continue;
    p.requires_grad_(false);
    toggled.push_back(p);
  }
}

FULMEN_INLINE void detail::untoggle(std::vector<at::Tensor>& toggled) {
  for (const at::Tensor& p : toggled) p.requires_grad_(true);
  toggled.clear();
}

FULMEN_INLINE void detail::fail_for_monitor(std::string_view name, MetricStore& metrics) {
  fail("a scheduler monitors '{}', which was not logged; there is: {}", name, metrics.callback_metrics().names());
}
#endif

}  // namespace fulmen
