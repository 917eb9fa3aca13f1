// The Trainer: what it is made of and what can be called on it. Start reading here.
//
//   fit               loop/fit.hpp        epochs, batches, backward, optimizer step
//   validate, test    loop/evaluate.hpp   one pass in eval mode without gradients
//   predict           loop/evaluate.hpp   the same, and keeps what the steps return
//   gradients         loop/gradients.hpp  by autograd, or composed from the rules of the module's layers (nn/rule.hpp)
//   steps             loop/steps.hpp      a module's own steps, or those made of forward, criterion and predictor
//   hooks             loop/hooks.hpp      the one list of steps and hooks; how a participant is found to answer one
//   ctx               loop/context.hpp    what steps and hooks are given; loop/trainer_context.hpp: the rest of it
#pragma once

#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/checkpoint/checkpoint.hpp>
#include <fulmen/data/data_module.hpp>
#include <fulmen/defaults.hpp>
#include <fulmen/loop/evaluate.hpp>
#include <fulmen/loop/fit.hpp>
#include <fulmen/loop/plan.hpp>
#include <fulmen/loop/requeue.hpp>
#include <fulmen/loop/trainer_context.hpp>
#include <fulmen/none.hpp>
#include <fulmen/predict/predictor.hpp>
#include <fulmen/profile/profiler.hpp>
#include <fulmen/runtime.hpp>

#include <torch/nn/pimpl.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/Context.h>
#endif

namespace fulmen {

/// Callbacks in the order in which they are asked: `callbacks(EarlyStopping{...}, MyCallback{})`.
template <class... C>
std::tuple<C...> callbacks(C... callback) {
  return {std::move(callback)...};
}

namespace detail {

template <class M>
inline constexpr bool is_module = std::derived_from<M, torch::nn::Module>;

template <class T>
struct ModuleOf {
  using type = T;
};
template <class T>
struct ModuleOf<std::shared_ptr<T>> : ModuleOf<T> {};
template <class T>
  requires std::is_base_of_v<torch::detail::ModuleHolderIndicator, T>
struct ModuleOf<T> : ModuleOf<typename T::ContainedType> {};

/// A module by value is moved into shared ownership, where LibTorch expects modules; the others are shared already.
template <class M, class Argument>
std::shared_ptr<M> share_module(Argument&& argument) {
  using A = std::remove_cvref_t<Argument>;
  std::shared_ptr<M> module;
  if constexpr (is_module<A>) {
    module = std::make_shared<M>(std::forward<Argument>(argument));
  } else if constexpr (std::is_base_of_v<torch::detail::ModuleHolderIndicator, A>) {
    module = argument.is_empty() ? nullptr : argument.ptr();
  } else if constexpr (is_module<M>) {
    module = std::forward<Argument>(argument);
  }
  if (!module) fail<std::invalid_argument>("Trainer: the module is a null pointer, expected a module");
  return module;
}

/// A pointer or a reference to a callback has none of its members, so all its hooks would be ignored.
template <class C>
inline constexpr bool is_callback = std::is_class_v<C> && !requires(C& c) { c.operator->(); };
template <class C>
inline constexpr bool is_callback<std::reference_wrapper<C>> = false;
template <class T>
inline constexpr bool are_callbacks = false;
template <class... C>
inline constexpr bool are_callbacks<std::tuple<C...>> = (is_callback<C> && ...);

template <class R>
concept RuntimePolicy = requires(R runtime) {
  { runtime.device } -> std::convertible_to<std::optional<at::Device>>;
  std::tuple_size<decltype(runtime.loggers)>::value;
  std::tuple_size<decltype(runtime.defaults)>::value;
  runtime.profiler;
};

/// Of another last argument than a Runtime, that is said.
template <class R>
inline constexpr bool profiler_fits = true;
template <RuntimePolicy R>
inline constexpr bool profiler_fits<R> = ProfilerPolicy<decltype(R::profiler)>;

/// Notes which stage runs, with what the options ask of LibTorch, and looks after signals meanwhile.
class StageScope {
 public:
  /// @throws std::logic_error if one runs already
  StageScope(Context& ctx, Stage stage);
  ~StageScope();
  StageScope(const StageScope&) = delete;
  StageScope& operator=(const StageScope&) = delete;

 private:
  /// @return the same context
  static Context& idle(Context& ctx, Stage next);

  Context& ctx_;
  InterruptScope interrupt_;
};

/// The checkpoint that this SLURM job left when it was sent back to the queue; an empty path if there is none.
std::filesystem::path requeued(const Context& ctx);

/// In a SLURM job: saves the run for requeued(). @return the job that is to go back to the queue
template <class Ctx>
std::string save_for_requeue(Ctx& ctx) {
  const std::string job = slurm_job();
  if (job.empty() || !ctx.writes_files()) return "";
  const std::filesystem::path parent = ctx.options().default_root_dir / ctx.options().name;
  checkpoint::make_folder(parent, "Trainer");
  save_checkpoint(ctx, requeue_checkpoint(parent, job));
  return job;
}

[[noreturn, gnu::cold]] void fail_for_checkpoint(Stage stage, const std::filesystem::path& ckpt_path);
void warn_of_no_checkpoint();
/// The newer of two files; either may be an empty path.
std::filesystem::path newer_file(const std::filesystem::path& a, const std::filesystem::path& b);

/// The file that `ckpt_path` means: see StageArguments.
template <class Ctx>
std::filesystem::path find_checkpoint(Ctx& ctx, Stage stage, const std::filesystem::path& ckpt_path) {
  const bool last = ckpt_path == "last", best = ckpt_path == "best";
  if (!last && !best) return ckpt_path;
  std::filesystem::path found;
  const auto ask = [&](auto& callback) {
    if constexpr (requires { callback.last_checkpoint(ctx); }) {
      if (last) found = newer_file(found, callback.last_checkpoint(ctx));
    }
    if constexpr (requires { callback.best_checkpoint(); }) {
      if (best && found.empty()) found = callback.best_checkpoint();
    }
  };
  std::apply([&](auto&... callback) { (ask(callback), ...); }, ctx.callbacks());
  if (found.empty()) {
    if (best || stage != Stage::fit) fail_for_checkpoint(stage, ckpt_path);
    warn_of_no_checkpoint();
  }
  return found;
}

/// Stands for the context of a Trainer whose arguments are wrong, so that the message about them is the only one.
struct NoContext {
  explicit NoContext(auto&&...) {}
};

}  // namespace detail

/// What a stage may be given besides its loaders: `trainer.fit(train, val, {.ckpt_path = "last"})`.
struct StageArguments {
  /// The checkpoint that the stage begins with. fit goes on where it was saved; the others take its weights. A path; or
  /// "last": the newest that a ModelCheckpoint of this run, or of an earlier one of the same name, left (fit begins anew if there
  /// is none); or "best": the best one of this Trainer's ModelCheckpoint. (A file of such a name is "./last".)
  std::filesystem::path ckpt_path{};
};

/// Trains, validates, tests and predicts with a module and five policies, all resolved at compile time.
///
/// @tparam ModuleType    a class derived from torch::nn::Module; its own steps and hooks are found by their names
/// @tparam CriterionType callable as criterion(output, targets...) -> loss tensor, or None
/// @tparam OptimizerType an optimizer policy (optim/optimizer.hpp), a std::tuple of them, or None
/// @tparam SchedulerType a scheduler policy (schedule/scheduler.hpp), a std::tuple of them, or None; the i-th scheduler
///                       drives the i-th optimizer
/// @tparam PredictorType see predict/predictor.hpp
/// @tparam CallbacksType a std::tuple, as callbacks(...) makes it
/// @tparam RuntimeType   see runtime.hpp
///
/// Not thread-safe: one Trainer, one thread. Neither copied nor moved: hooks may keep the address of their context.
template <class ModuleType, class CriterionType, class OptimizerType, class SchedulerType, class PredictorType,
          class CallbacksType, class RuntimeType>
class Trainer {
  static constexpr bool module_fits = detail::is_module<ModuleType>,
                        optimizer_fits = detail::AllOptimizerPolicies<OptimizerType>::value,
                        scheduler_fits = detail::AllSchedulerPolicies<SchedulerType>::value,
                        counts_fit = std::tuple_size_v<typename detail::PolicyTuple<SchedulerType>::type> <=
                                     std::tuple_size_v<typename detail::PolicyTuple<OptimizerType>::type>,
                        predictor_fits = BatchPredictor<PredictorType>,
                        callbacks_fit = detail::are_callbacks<CallbacksType>,
                        runtime_fits = detail::RuntimePolicy<RuntimeType>,
                        profiler_fits = detail::profiler_fits<RuntimeType>,
                        gradients_fit = std::is_same_v<detail::GradientPolicyOf<RuntimeType>, Composed> ||
                                        std::is_same_v<detail::GradientPolicyOf<RuntimeType>, Autograd>;
  static_assert(module_fits,
                "fulmen: a Trainer's first argument must be a module: a class derived from torch::nn::Module by value, a "
                "std::shared_ptr to one, or a module holder");
  static_assert(optimizer_fits,
                "fulmen: a Trainer's third argument (Optimizer) must be an optimizer policy such as fulmen::AdamW{}, a "
                "std::tuple of them, or fulmen::none");
  static_assert(scheduler_fits,
                "fulmen: a Trainer's fourth argument (Scheduler) must be a scheduler policy with rate(t, initial, current) "
                "such as fulmen::StepLR{...}, a function of the epoch, a std::tuple of them, or fulmen::none");
  static_assert(counts_fit, "fulmen: there are more schedulers than optimizers");
  static_assert(predictor_fits,
                "fulmen: a Trainer's fifth argument (Predictor) must be callable as predictor(inputs, infer), such as "
                "fulmen::Identity{}");
  static_assert(callbacks_fit,
                "fulmen: a Trainer's sixth argument (Callbacks) must be made by fulmen::callbacks(...), of objects, not of "
                "pointers or references to them");
  static_assert(runtime_fits,
                "fulmen: a Trainer's last argument must be a fulmen::Runtime{...}, such as fulmen::barebones");
  static_assert(profiler_fits,
                "fulmen: Runtime::profiler must be a profiler with start(action) and stop(action), which take a const "
                "fulmen::Action& or a std::string_view, such as fulmen::SimpleProfiler{}");
  static_assert(gradients_fit, "fulmen: a Runtime's gradient policy must be fulmen::Composed or fulmen::Autograd");
  static constexpr bool fits = module_fits && optimizer_fits && scheduler_fits && counts_fit && predictor_fits &&
                               callbacks_fit && runtime_fits && profiler_fits && gradients_fit;

 public:
  using Context = std::conditional_t<fits,
                                     TrainerContext<ModuleType, CriterionType, OptimizerType, SchedulerType,
                                                    PredictorType, CallbacksType, RuntimeType>,
                                     detail::NoContext>;

  /// @throws std::invalid_argument if the module is a null pointer or an option is out of range.
  template <class ModuleArgument>
  explicit(false) Trainer(ModuleArgument&& module, CriterionType criterion, OptimizerType optimizer,
                          SchedulerType scheduler = {}, PredictorType predictor = {}, CallbacksType callbacks = {},
                          Options options = {}, RuntimeType runtime = {})
      : ctx_(detail::share_module<ModuleType>(std::forward<ModuleArgument>(module)), std::move(criterion),
             std::move(optimizer), std::move(scheduler), std::move(predictor), std::move(callbacks), std::move(options),
             std::move(runtime)) {}
  /// The same, where the scheduler brings its optimizer.
  template <class ModuleArgument>
  explicit(false) Trainer(ModuleArgument&& module, CriterionType criterion, None,
                          WithOptimizer<OptimizerType, SchedulerType> both, PredictorType predictor = {},
                          CallbacksType callbacks = {}, Options options = {}, RuntimeType runtime = {})
      : Trainer(std::forward<ModuleArgument>(module), std::move(criterion), std::move(both.optimizer),
                std::move(both.scheduler), std::move(predictor), std::move(callbacks), std::move(options),
                std::move(runtime)) {}
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// Trains until max_epochs, max_steps, max_time, or a request to stop. With a validation loader, or several in a
  /// std::tuple, validates between epochs. A second call goes on where the first one ended; with a checkpoint
  /// (`fit(train, val, {.ckpt_path = "last"})`), fit goes on where that was saved, also in the middle of an epoch.
  template <class Train = None, class Val = None>
  void fit(Train&& train = {}, Val&& val = {}, const StageArguments& arguments = {}) {
    if constexpr (DataModule<Train> && is_none<Val>) {
      fit_data(train, arguments);
    } else {
      static_assert(LoaderArgument<Train>, "fulmen: fit(train, val): train must be a loader: a range of batches, a pointer "
                                           "to one, or a tensor; or a data module alone");
      static_assert(is_none<Val> || LoaderArgument<Val> || detail::LoaderTuple<Val>,
                    "fulmen: fit(train, val): val must be a loader (a range of batches, a pointer to one, or a tensor), a "
                    "std::tuple of loaders, or be left out");
      if constexpr (fits && LoaderArgument<Train> && (is_none<Val> || LoaderArgument<Val> || detail::LoaderTuple<Val>)) {
        auto&& train_loader = detail::loader_of(train, "fit");
        detail::GivenLoader<std::remove_reference_t<decltype(train_loader)>> train_source{train_loader};
        None no_data;
        if constexpr (is_none<Val>) {
          run(Stage::fit, no_data, arguments, [&] { detail::fit(ctx_, train_source, no_data); });
        } else {
          auto&& val_loader = detail::loader_of(val, "fit");
          detail::GivenLoader<std::remove_reference_t<decltype(val_loader)>> val_source{val_loader};
          run(Stage::fit, no_data, arguments, [&] { detail::fit(ctx_, train_source, val_source); });
        }
      }
    }
  }
  template <class Train>
  void fit(Train&& train, const StageArguments& arguments) {
    fit(std::forward<Train>(train), None{}, arguments);
  }

  /// One validation pass over a loader, several in a std::tuple, or a data module's. @return what was logged on_epoch
  template <class L = None>
  Metrics validate(L&& loader = {}, const StageArguments& arguments = {}) {
    return evaluate<detail::Validation>(loader, Stage::validate, arguments, &Options::limit_val_batches, "limit_val_batches",
                                        [](auto& data) -> decltype(auto) { return data.val_dataloader(); });
  }

  /// One test pass, likewise. @return what was logged on_epoch
  template <class L = None>
  Metrics test(L&& loader = {}, const StageArguments& arguments = {}) {
    return evaluate<detail::Test>(loader, Stage::test, arguments, &Options::limit_test_batches, "limit_test_batches",
                                  [](auto& data) -> decltype(auto) { return data.test_dataloader(); });
  }

  /// What predict_step returns for each batch, in a std::vector (of several loaders one after the other); nothing if it
  /// returns nothing.
  template <class L = None>
  auto predict(L&& argument = {}, const StageArguments& arguments = {}) {
    static_assert(LoaderArgument<L> || detail::LoaderTuple<L> || DataModule<L>,
                  "fulmen: predict(loader): expected a range of batches, a pointer to one, or a tensor");
    if constexpr (!fits) {
      return;
    } else if constexpr (DataModule<L>) {
      detail::LoaderFromData source(argument, [](auto& data) -> decltype(auto) { return data.predict_dataloader(); }, 0);
      return predictions(source, argument, arguments);
    } else if constexpr (LoaderArgument<L> || detail::LoaderTuple<L>) {
      auto&& loader = detail::loader_of(argument, "predict");
      detail::GivenLoader<std::remove_reference_t<decltype(loader)>> source{loader};
      None no_data;
      return predictions(source, no_data, arguments);
    }
  }

  /// Each stage, its steps and hooks in order, who answers each: constexpr data; to_string(plan()) is the table.
  static constexpr auto plan() {
    return []<class... C>(std::type_identity<std::tuple<C...>>) {
      return detail::make_plan<C..., ModuleType>(detail::gradient_plan<ModuleType, CriterionType, detail::GradientPolicyOf<RuntimeType>, 1,
                                                                       detail::n_targets<hooks::training_step, ModuleType>()>());
    }(std::type_identity<typename Context::Callbacks>{});
  }

  /// Writes module, optimizers, schedulers, counters and generator to a file that Python's torch.load reads.
  /// @throws std::runtime_error naming the file; what it held before is then whole.
  void save(const std::filesystem::path& path) { detail::save_checkpoint(ctx_, path); }

  /// Takes all that back from a file. @throws std::runtime_error naming the file and what does not fit; nothing is
  /// changed then.
  void load(const std::filesystem::path& path) { detail::load_checkpoint(ctx_, path); }

  /// Has the hyper-parameters (a struct that BOOST_HANA_ADAPT_STRUCT describes) in each checkpoint and with each logger that takes
  /// some, as Lightning's save_hyperparameters does. Not needed where they are the module's member `hparams`.
  template <class H>
  void save_hyperparameters(const H& hparams) {
    static_assert(detail::Adapted<const H>, "fulmen: save_hyperparameters(hparams): expected a struct with BOOST_HANA_ADAPT_STRUCT");
    if constexpr (detail::Adapted<const H>) {
      static_assert(!detail::HasHyperparameters<ModuleType>,
                    "fulmen: save_hyperparameters(hparams): the module has hyper-parameters of its own, its member hparams");
      ctx_.set_hyperparameters(hyperparameters_state(hparams));
    }
  }

  const Options& options() const { return ctx_.options(); }
  /// Other options from the next stage on: more epochs for a second fit, say.
  /// @throws std::invalid_argument naming the option that is out of range.
  void set_options(Options options) { detail::LoopAccess::set_options(ctx_, std::move(options)); }

  ModuleType& module() { return ctx_.module(); }
  Context& context() { return ctx_; }
  /// Whether Ctrl-C (or SIGTERM, SIGUSR1) ended the last stage (to be asked where Options::exit_on_interrupt is off).
  bool interrupted() const { return ctx_.interrupted(); }

 private:
  template <class D>
  void fit_data(D& data, const StageArguments& arguments) {
    const std::int64_t reload = ctx_.options().reload_dataloaders_every_n_epochs;
    static_assert(requires { data.train_dataloader(); }, "fulmen: fit(data module): it has no train_dataloader()");
    detail::LoaderFromData train(data, [](auto& d) -> decltype(auto) { return d.train_dataloader(); }, reload);
    if constexpr (requires { data.val_dataloader(); }) {
      detail::LoaderFromData val(data, [](auto& d) -> decltype(auto) { return d.val_dataloader(); }, reload);
      run(Stage::fit, data, arguments, [&] { detail::fit(ctx_, train, val); });
    } else {
      const None no_validation;
      run(Stage::fit, data, arguments, [&] { detail::fit(ctx_, train, no_validation); });
    }
  }

  template <class E, class L, class FromData>
  Metrics evaluate(L& argument, Stage stage, const StageArguments& arguments, Limit Options::*limit_option, const char* option, FromData from_data) {
    static_assert(LoaderArgument<L> || detail::LoaderTuple<L> || DataModule<L>,
                  "fulmen: validate(loader), test(loader): expected a range of batches, a pointer to one, or a tensor");
    const auto pass = [&](auto& source, auto& data) {
      run(stage, data, arguments, [&] {
        const Limit wanted = ctx_.options().*limit_option;
        if (wanted.is_zero()) return;
        ctx_.module().to(ctx_.device());
        detail::evaluation_pass<E>(
            ctx_, source.loader(0),
            [&](auto& loader) { return detail::batch_limit(ctx_, wanted, detail::loader_size(loader), option); }, E::phase,
            [](auto&&) {});
      });
    };
    if constexpr (fits && DataModule<L>) {
      static_assert(std::is_invocable_v<FromData, L&>, "fulmen: the data module has no loader for this stage");
      detail::LoaderFromData source(argument, from_data, 0);
      pass(source, argument);
    } else if constexpr (fits && (LoaderArgument<L> || detail::LoaderTuple<L>)) {
      auto&& loader = detail::loader_of(argument, to_string(stage).data());
      detail::GivenLoader<std::remove_reference_t<decltype(loader)>> source{loader};
      None no_data;
      pass(source, no_data);
    }
    return ctx_.metrics().results(E::phase);
  }

  template <class Source, class D>
  auto predictions(Source& source, D& data, const StageArguments& arguments) {
    using L = std::remove_reference_t<decltype(source.loader(0))>;
    using Batch = detail::FirstBatchOf<L>;
    using Outputs = decltype(detail::evaluation_step<detail::Predict>(ctx_, std::declval<Batch&>(), 0));
    const auto pass = [&](auto&& use) {
      run(Stage::predict, data, arguments, [&] {
        const Limit limit = ctx_.options().limit_predict_batches;
        if (limit.is_zero()) return;
        ctx_.module().to(ctx_.device());
        detail::evaluation_pass<detail::Predict>(
            ctx_, source.loader(0),
            [&](auto& loader) {
              return detail::batch_limit(ctx_, limit, detail::loader_size(loader), "limit_predict_batches");
            },
            Phase::predict, use);
      });
    };
    if constexpr (std::is_void_v<Outputs>) {
      pass([](auto&&) {});
    } else {
      std::vector<std::remove_cvref_t<Outputs>> predictions;
      pass([&](auto&& outputs) { predictions.push_back(std::forward<decltype(outputs)>(outputs)); });
      return predictions;
    }
  }

  /// What surrounds every stage: setup, teardown, exceptions and signals.
  /// @param data the data module, or None; it is asked before the others where everybody is told
  template <class D, class Body>
  void run(Stage stage, D& data, const StageArguments& arguments, Body&& body) {
    std::string job;
    {
      const detail::StageScope scope(ctx_, stage);
      try {
        detail::tell_profiler<hooks::setup>(ctx_);
        detail::tell_measured<hooks::prepare_data>(data, ctx_);
        ctx_.template tell_all<hooks::prepare_data>();
        detail::tell_measured<hooks::setup>(data, ctx_);
        ctx_.template tell_all<hooks::setup>();
        ctx_.template tell_all<hooks::configure_model>();
        load_for(stage, arguments);
        if (stage == Stage::fit) ctx_.log_hyperparameters();
        if constexpr (requires(const State& state) { data.load_state_dict(state); }) {
          if (stage == Stage::fit && ctx_.data_state()) data.load_state_dict(*ctx_.data_state());
        }
        body();
        if (ctx_.interrupted()) {
          if (stage == Stage::fit && ctx_.interrupted_by() == SIGUSR1) job = detail::save_for_requeue(ctx_);
          const std::runtime_error interruption(detail::interruption_text(ctx_.interrupted_by()));
          const std::exception& exception = interruption;
          ctx_.template tell_all<hooks::on_exception>(exception);
          detail::tell_measured<hooks::on_exception>(data, ctx_, exception);
        }
        detail::tell_measured<hooks::teardown>(data, ctx_);
        ctx_.template tell_all<hooks::teardown>();
        ctx_.finalize_loggers();
        detail::tell_profiler<hooks::teardown>(ctx_);
      } catch (const std::exception& exception) {
        // What a hook throws here must not hide the exception that brought us here.
        try {
          ctx_.template tell_all<hooks::on_exception>(exception);
          detail::tell_measured<hooks::on_exception>(data, ctx_, exception);
          ctx_.finalize_loggers();
        } catch (const std::exception& second) {
          std::fprintf(stderr, "fulmen: while handling an exception: %s\n", second.what());
        }
        if constexpr (detail::profiles<Context>) {
          try {
            detail::tell_profiler<hooks::teardown>(ctx_);
          } catch (const std::exception& second) {
            std::fprintf(stderr, "fulmen: while handling an exception: %s\n", second.what());
          }
        }
        // Another fit begins its epoch anew.
        detail::LoopAccess::progress(ctx_) = {};
        detail::LoopAccess::training(ctx_) = false;
        throw;
      }
    }
    if (!job.empty()) detail::requeue(job);
    if (ctx_.interrupted() && ctx_.options().exit_on_interrupt) std::exit(128 + ctx_.interrupted_by());
  }

  /// Loads the checkpoint that a stage is to begin with: all of it for fit, else the weights.
  void load_for(Stage stage, const StageArguments& arguments) {
    std::filesystem::path& path = detail::LoopAccess::ckpt_path(ctx_);
    path.clear();
    if (stage == Stage::fit && ctx_.writes_files()) path = detail::requeued(ctx_);
    if (path.empty() && !arguments.ckpt_path.empty()) path = detail::find_checkpoint(ctx_, stage, arguments.ckpt_path);
    if (path.empty()) return;
    if (stage == Stage::fit) load(path);
    else detail::load_weights_for_stage(ctx_, path);
  }

  Context ctx_;
};

template <class M, class C, class O, class S = None, class P = Identity, class Cb = std::tuple<>,
          class R = DefaultRuntime>
Trainer(M&&, C, O, S = {}, P = {}, Cb = {}, Options = {}, R = {})
    -> Trainer<typename detail::ModuleOf<std::remove_cvref_t<M>>::type, C, O, S, P, Cb, R>;
template <class M, class C, class O, class S, class P = Identity, class Cb = std::tuple<>, class R = DefaultRuntime>
Trainer(M&&, C, None, WithOptimizer<O, S>, P = {}, Cb = {}, Options = {}, R = {})
    -> Trainer<typename detail::ModuleOf<std::remove_cvref_t<M>>::type, C, O, S, P, Cb, R>;

#if FULMEN_BODIES
FULMEN_INLINE std::filesystem::path detail::requeued(const Context& ctx) {
  const std::string job = slurm_job();
  if (job.empty()) return {};
  const std::filesystem::path left = requeue_checkpoint(ctx.options().default_root_dir / ctx.options().name, job);
  if (!std::filesystem::exists(left)) return {};
  std::fprintf(stderr, "fulmen: going on where this job was when its time was up: %s\n", left.string().c_str());
  return left;
}

FULMEN_INLINE void detail::fail_for_checkpoint(Stage stage, const std::filesystem::path& ckpt_path) {
  fail("{}: ckpt_path is \"{}\", but no ModelCheckpoint of this Trainer has saved {}: expected the path of a checkpoint",
       to_string(stage), ckpt_path.string(), ckpt_path == "best" ? "a best one" : "any");
}

FULMEN_INLINE void detail::warn_of_no_checkpoint() {
  std::fputs("fulmen: fit: ckpt_path is \"last\", but there is no checkpoint yet: beginning anew\n", stderr);
}

FULMEN_INLINE std::filesystem::path detail::newer_file(const std::filesystem::path& a, const std::filesystem::path& b) {
  if (a.empty() || b.empty()) return a.empty() ? b : a;
  return std::filesystem::last_write_time(b) > std::filesystem::last_write_time(a) ? b : a;
}

FULMEN_INLINE detail::StageScope::StageScope(Context& ctx, Stage stage) : ctx_(idle(ctx, stage)) {
  LoopAccess::stage(ctx) = stage;
  LoopAccess::interrupted(ctx) = 0;
  if (ctx.options().deterministic) at::globalContext().setDeterministicAlgorithms(true, false);
  if (ctx.options().benchmark) at::globalContext().setBenchmarkCuDNN(true);
}

FULMEN_INLINE detail::StageScope::~StageScope() { LoopAccess::stage(ctx_) = Stage::idle; }

FULMEN_INLINE Context& detail::StageScope::idle(Context& ctx, Stage next) {
  if (ctx.stage() != Stage::idle) {
    fail<std::logic_error>("{} was called while {} runs: a stage cannot start another", to_string(next),
                           to_string(ctx.stage()));
  }
  return ctx;
}
#endif

}  // namespace fulmen
