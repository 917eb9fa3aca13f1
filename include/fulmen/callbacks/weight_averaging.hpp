// Callbacks that average a module's weights along training: WeightAveraging, EMAWeightAveraging and
// StochasticWeightAveraging.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/data/loader.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/optim/averaged_model.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/schedule/option.hpp>
#include <fulmen/schedule/swa.hpp>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <torch/nn/module.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/callbacks/batch_norm.hpp>
#include <fulmen/error.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#endif

namespace fulmen {

struct WeightAveragingOptions {
  std::optional<at::Device> device{};  ///< where the average is kept; the module's own unless given
  bool use_buffers = true;             ///< average the buffers, too; else they are copied from the module
};

namespace detail {

/// Lets a checkpoint have the average as "state_dict", which is what inference wants, the weights that are
/// trained as "current_model_state", and the rest of the average as "averaging_state". Lightning's keys.
/// @param swapped the module has the average now, and the average the module's weights
void average_into_checkpoint(State& checkpoint, const State& average, bool swapped);
/// The reverse: gives the average's state; "state_dict" has the weights that are trained again. The average
/// of a checkpoint without one is of its weights alone.
State average_from_checkpoint(State& checkpoint);

/// What WeightAveraging and EMAWeightAveraging share: the average, and where it is at what time.
template <Average A>
class WeightAverager {
 public:
  const std::optional<AveragedModel<A>>& average() const { return average_; }

  void begin(const torch::nn::Module& module, const A& how, const WeightAveragingOptions& options) {
    if (!std::exchange(loaded_, false)) make(module, how, options);
  }
  template <class Should>
  void step_done(const torch::nn::Module& module, std::int64_t steps, Should&& should) {
    if (steps <= latest_update_step_ || !should(steps - 1)) return;
    average_->update_parameters(module);
    latest_update_step_ = steps;
  }
  template <class Should>
  void epoch_done(const torch::nn::Module& module, std::int64_t epoch, Should&& should) {
    if (epoch <= latest_update_epoch_ || !should(epoch)) return;
    average_->update_parameters(module);
    latest_update_epoch_ = epoch;
  }
  /// Lets the module have the average, until swap_back.
  void swap_in(torch::nn::Module& module) {
    if (!average_ || swapped_) return;
    average_->swap(module);
    swapped_ = true;
  }
  void swap_back(torch::nn::Module& module) {
    if (std::exchange(swapped_, false)) average_->swap(module);
  }
  void end(torch::nn::Module& module) { average_->copy_to(module); }

  void save(State& checkpoint) const {
    if (average_) average_into_checkpoint(checkpoint, average_->state_dict(), swapped_);
  }
  void load(State& checkpoint, const torch::nn::Module& module, const A& how,
            const WeightAveragingOptions& options) {
    make(module, how, options);
    average_->load_state_dict(average_from_checkpoint(checkpoint));
    loaded_ = true;
  }
  State state_dict() const { return State("WeightAveraging").set("latest_update_step", latest_update_step_); }
  void load_state_dict(const State& state) {
    latest_update_step_ = state.get<std::int64_t>("latest_update_step");
  }

 private:
  void make(const torch::nn::Module& module, const A& how, const WeightAveragingOptions& options) {
    average_.emplace(module, how,
                     AveragedModelOptions{.use_buffers = options.use_buffers, .device = options.device});
  }

  std::optional<AveragedModel<A>> average_;
  bool loaded_ = false, swapped_ = false;
  std::int64_t latest_update_step_ = 0, latest_update_epoch_ = -1;
};

template <class When>
concept HasAfterStep = requires(const When& when, std::int64_t index) {
  { when.after_step(index) } -> std::convertible_to<bool>;
};
template <class When>
concept HasAfterEpoch = requires(const When& when, std::int64_t index) {
  { when.after_epoch(index) } -> std::convertible_to<bool>;
};

}  // namespace detail

/// When weights go into an average: a struct with after_step(index of the optimizer step) or
/// after_epoch(index of the epoch) or both, which give a bool. Indices count from 0.
template <class When>
concept AveragingTime = std::copy_constructible<When> &&
    (detail::HasAfterStep<When> || detail::HasAfterEpoch<When>);

struct EveryStep {
  bool after_step(std::int64_t) const { return true; }
};
struct EveryEpoch {
  bool after_epoch(std::int64_t) const { return true; }
};

/// Averages the weights while they are trained: `WeightAveraging{}` all of them equally after every step
/// (SWA), `WeightAveraging{ExponentialAverage{.decay = 0.99}, EveryEpoch{}}` otherwise. Validation inside fit
/// runs with the average, the module gets it when training ends, and checkpoints have it as "state_dict".
///
/// @tparam A    how: see AveragedModel
/// @tparam When after what: in place of Lightning's should_update
/// Source: lightning.pytorch.callbacks.WeightAveraging.
template <Average A = EqualAverage, AveragingTime When = EveryStep>
class WeightAveraging {
 public:
  explicit WeightAveraging(A average = {}, When when = {}, WeightAveragingOptions options = {})
      : how_(std::move(average)), when_(std::move(when)), options_(options) {}

  /// The average, once fit has begun.
  const std::optional<AveragedModel<A>>& average_model() const { return averager_.average(); }

  void on_fit_start(auto& ctx) { averager_.begin(ctx.module(), how_, options_); }
  void on_train_batch_end(auto& ctx) {
    if constexpr (detail::HasAfterStep<When>) {
      averager_.step_done(ctx.module(), ctx.global_step(),
                          [&](std::int64_t index) { return when_.after_step(index); });
    }
  }
  void on_train_epoch_end(auto& ctx) {
    if constexpr (detail::HasAfterEpoch<When>) {
      averager_.epoch_done(ctx.module(), ctx.epoch(),
                           [&](std::int64_t index) { return when_.after_epoch(index); });
    }
  }
  void on_validation_epoch_start(auto& ctx) {
    if (ctx.stage() == Stage::fit) averager_.swap_in(ctx.module());
  }
  void on_validation_epoch_end(auto& ctx) { averager_.swap_back(ctx.module()); }
  void on_exception(auto& ctx) { averager_.swap_back(ctx.module()); }  // a validation may have broken off
  void on_train_end(auto& ctx) { averager_.end(ctx.module()); }
  void on_save_checkpoint(auto&, State& checkpoint) const { averager_.save(checkpoint); }
  void on_load_checkpoint(auto& ctx, State& checkpoint) {
    averager_.load(checkpoint, ctx.module(), how_, options_);
  }
  State state_dict() const { return averager_.state_dict(); }
  void load_state_dict(const State& state) { averager_.load_state_dict(state); }

 private:
  A how_;
  [[no_unique_address]] When when_;
  WeightAveragingOptions options_;
  detail::WeightAverager<A> averager_;
};

/// An exponential moving average of the weights: `EMAWeightAveraging{.decay = 0.999}`; see WeightAveraging.
/// Source: lightning.pytorch.callbacks.EMAWeightAveraging.
struct EMAWeightAveraging {
  std::optional<at::Device> device{};  ///< where the average is kept; the module's own unless given
  bool use_buffers = true;             ///< average the buffers, too; else they are copied from the module
  double decay = 0.999;
  std::int64_t update_every_n_steps = 1;                  ///< 0: not after steps
  std::optional<std::int64_t> update_starting_at_step{};  ///< index of the first step; unset: 0
  std::optional<std::int64_t>
      update_starting_at_epoch{};  ///< after epochs, too, from this one on; unset: never

  /// The average, once fit has begun.
  const std::optional<AveragedModel<ExponentialAverage>>& average_model() const {
    return averager_.average();
  }

  void on_fit_start(auto& ctx) { averager_.begin(ctx.module(), {.decay = decay}, {device, use_buffers}); }
  void on_train_batch_end(auto& ctx) {
    averager_.step_done(ctx.module(), ctx.global_step(), [&](std::int64_t index) {
      return index >= update_starting_at_step.value_or(0) && update_every_n_steps > 0 &&
             index % update_every_n_steps == 0;
    });
  }
  void on_train_epoch_end(auto& ctx) {
    averager_.epoch_done(ctx.module(), ctx.epoch(), [&](std::int64_t index) {
      return update_starting_at_epoch && index >= *update_starting_at_epoch;
    });
  }
  void on_validation_epoch_start(auto& ctx) {
    if (ctx.stage() == Stage::fit) averager_.swap_in(ctx.module());
  }
  void on_validation_epoch_end(auto& ctx) { averager_.swap_back(ctx.module()); }
  void on_exception(auto& ctx) { averager_.swap_back(ctx.module()); }
  void on_train_end(auto& ctx) { averager_.end(ctx.module()); }
  void on_save_checkpoint(auto&, State& checkpoint) const { averager_.save(checkpoint); }
  void on_load_checkpoint(auto& ctx, State& checkpoint) {
    averager_.load(checkpoint, ctx.module(), {.decay = decay}, {device, use_buffers});
  }
  State state_dict() const { return averager_.state_dict(); }
  void load_state_dict(const State& state) { averager_.load_state_dict(state); }

  detail::WeightAverager<ExponentialAverage>
      averager_{};  // public only because aggregates have no private members
};

/// In which epoch something starts: an index from 1 (`8`: the eighth epoch), or a part of max_epochs (`0.8`).
class EpochStart {
 public:
  EpochStart(std::integral auto epoch) : value_(static_cast<double>(epoch)), is_part_(false) {}
  EpochStart(std::floating_point auto part) : value_(static_cast<double>(part)), is_part_(true) {}

  /// The index of that epoch, from 0. @throws std::invalid_argument naming the option, if the value is out of
  /// range
  std::int64_t of(std::int64_t max_epochs, const char* option) const;

 private:
  double value_;
  bool is_part_;
};

namespace detail {

/// Says on stderr that a module with BatchNorm layers needs update_bn.
void remind_of_batch_norm(const torch::nn::Module& module);

/// The part of StochasticWeightAveraging that does not depend on how is averaged.
class SwaRun {
 public:
  void begin(const GroupValues& lrs, const EpochStart& start, std::int64_t max_epochs, std::size_t groups);
  /// The rates are ours from the first epoch of averaging on.
  void epoch_starts(std::int64_t epoch, const SWALR& policy, std::vector<ParamGroup>& groups);
  void epoch_ends(const SWALR& policy, std::vector<ParamGroup>& groups);
  /// Puts our rates back, where a scheduler may have moved them.
  void hold(std::vector<ParamGroup>& groups) const {
    for (std::size_t i = 0; i < rates_.size(); ++i) groups[i].lr = rates_[i];
  }
  /// Whether this epoch's first weights are to be averaged.
  bool averages(std::int64_t epoch) const { return in_range(epoch) && epoch > latest_update_epoch_; }
  std::int64_t n_averaged() const { return n_averaged_; }
  /// @param weight the part of the way to the new weights that the average goes
  void update(const torch::nn::Module& module, const std::optional<at::Device>& device, std::int64_t epoch,
              double weight);
  /// Gives the module the average. @return whether it was time to
  bool end(torch::nn::Module& module, std::int64_t epochs_done) const;

  State state_dict() const;
  void load_state_dict(const State& state);

 private:
  bool in_range(std::int64_t epoch) const {
    return epoch >= start_ && (max_epochs_ == -1 || epoch < max_epochs_);
  }

  std::int64_t start_ = 0, max_epochs_ = -1, latest_update_epoch_ = -1, n_averaged_ = 0, time_ = 0;
  std::vector<double> rates_;  // empty until the first epoch of averaging
  std::vector<std::pair<std::string, at::Tensor>> average_;
};

}  // namespace detail

/// SWA by epochs: from swa_epoch_start on the rates go to swa_lrs, the weights that each epoch begins with
/// are averaged, and the module gets the average when the last epoch has been trained. A scheduler has no say
/// in the rates from then on.
///
/// Parameters are averaged, buffers are not. The running statistics of BatchNorm layers are made anew in the end, in one pass
/// over the training batches (Lightning's runs training_step, this one forward with a batch's first member). Where the module
/// has no such forward, a line on stderr says that they are still those of training.
/// @tparam A avg_fn: see AveragedModel
/// Source: lightning.pytorch.callbacks.StochasticWeightAveraging; Izmailov et al. 2018, arXiv:1803.05407.
template <Average A>
struct StochasticWeightAveragingBy {
  RequiredGroupValues swa_lrs;  ///< the rate in the end: one, or one for each parameter group
  EpochStart swa_epoch_start = 0.8;
  std::int64_t annealing_epochs = 10;  ///< in which the rates go from what they are to swa_lrs
  Anneal annealing_strategy = Anneal::cos;
  A avg_fn{};
  std::optional<at::Device> device =
      at::Device(at::kCPU);  ///< where the average is kept; unset: where the module is

  /// @throws std::invalid_argument if an option is out of range
  template <class Ctx>
  void on_fit_start(Ctx& ctx) {
    static_assert(std::tuple_size_v<typename Ctx::Optimizers> == 1,
                  "fulmen: StochasticWeightAveraging needs one optimizer");
    swa_.begin(swa_lrs, swa_epoch_start, ctx.options().max_epochs, ctx.optimizer().groups().size());
  }
  void on_train_epoch_start(auto& ctx) {
    swa_.epoch_starts(ctx.epoch(), policy(), ctx.optimizer().groups());
    if (swa_.averages(ctx.epoch())) {
      swa_.update(ctx.module(), device, ctx.epoch(),
                  static_cast<double>(std::as_const(avg_fn)(swa_.n_averaged())));
    }
  }
  void on_train_batch_start(auto& ctx) {
    swa_.hold(ctx.optimizer().groups());
  }  // a scheduler may have moved the rates
  void on_train_epoch_end(auto& ctx) { swa_.epoch_ends(policy(), ctx.optimizer().groups()); }
  template <class Ctx, class Loader>
  void on_train_end(Ctx& ctx, Loader& loader) {
    if (!swa_.end(ctx.module(), ctx.epoch())) return;
    constexpr bool has_inputs = requires(detail::BatchOf<Loader>& batch) {
      { std::get<0>(members(batch)) } -> std::convertible_to<at::Tensor>;
    };
    if constexpr (has_inputs && requires(at::Tensor& input) { ctx.module().forward(input); }) {
      update_bn(loader, ctx.module(), ctx.device(), ctx.num_batches());
    } else {
      detail::remind_of_batch_norm(ctx.module());
    }
  }

  State state_dict() const { return swa_.state_dict(); }
  void load_state_dict(const State& state) { swa_.load_state_dict(state); }

  detail::SwaRun swa_{};  // public only because aggregates have no private members

 private:
  SWALR policy() const {
    return {.swa_lr = swa_lrs, .anneal_epochs = annealing_epochs, .anneal_strategy = annealing_strategy};
  }
};
using StochasticWeightAveraging = StochasticWeightAveragingBy<EqualAverage>;

#if FULMEN_BODIES

FULMEN_INLINE void detail::average_into_checkpoint(State& checkpoint, const State& average, bool swapped) {
  State weights, rest;
  for (const std::string& key : average.keys()) {
    if (key.starts_with("module."))
      weights.set(key.substr(7), average.get<at::Tensor>(key));
    else
      rest.set(key, average.get<at::Tensor>(key));
  }
  const State modules = checkpoint.get<State>("state_dict");
  checkpoint.set("current_model_state", swapped ? weights : modules);
  checkpoint.set("state_dict", swapped ? modules : weights).set("averaging_state", rest);
}

FULMEN_INLINE State detail::average_from_checkpoint(State& checkpoint) {
  State average("AveragedModel");
  const State weights = checkpoint.get<State>("state_dict");
  for (const std::string& key : weights.keys()) average.set("module." + key, weights.get<at::Tensor>(key));
  if (checkpoint.contains("averaging_state") && checkpoint.contains("current_model_state")) {
    average.set("n_averaged", checkpoint.get<State>("averaging_state").get<at::Tensor>("n_averaged"));
    checkpoint.set("state_dict", checkpoint.get<State>("current_model_state"));
  } else {
    average.set("n_averaged", at::scalar_tensor(0, at::kLong));
  }
  return average;
}

FULMEN_INLINE std::int64_t EpochStart::of(std::int64_t max_epochs, const char* option) const {
  if (!is_part_) {
    if (value_ < 1)
      fail<std::invalid_argument>("{} is {}, expected an epoch of at least 1 or a part of 0.0 to 1.0", option,
                                  value_);
    return static_cast<std::int64_t>(value_) - 1;
  }
  if (!(value_ >= 0 && value_ <= 1)) {
    fail<std::invalid_argument>("{} is {}, expected an epoch of at least 1 or a part of 0.0 to 1.0", option,
                                value_);
  }
  if (max_epochs < 0) {
    fail<std::invalid_argument>("{} is a part of max_epochs, which is -1: give an epoch instead", option);
  }
  return std::max<std::int64_t>(static_cast<std::int64_t>(static_cast<double>(max_epochs) * value_) - 1, 0);
}

FULMEN_INLINE void detail::SwaRun::begin(const GroupValues& lrs, const EpochStart& start,
                                         std::int64_t max_epochs, std::size_t groups) {
  lrs.check("StochasticWeightAveraging::swa_lrs", groups);
  for (std::size_t i = 0; i < groups; ++i) {
    if (!(lrs[i] > 0))
      fail<std::invalid_argument>("StochasticWeightAveraging::swa_lrs is {}, expected more than 0", lrs[i]);
  }
  max_epochs_ = max_epochs;
  start_ = start.of(max_epochs, "StochasticWeightAveraging::swa_epoch_start");
}

FULMEN_INLINE void detail::SwaRun::epoch_starts(std::int64_t epoch, const SWALR& policy,
                                                std::vector<ParamGroup>& groups) {
  if (rates_.empty() && in_range(epoch)) {
    policy.begin(groups);
    policy.update(time_ = 0, groups);
    for (const ParamGroup& group : groups) rates_.push_back(group.lr);
  }
  hold(groups);
}

FULMEN_INLINE void detail::SwaRun::epoch_ends(const SWALR& policy, std::vector<ParamGroup>& groups) {
  if (rates_.empty()) return;
  hold(groups);
  policy.update(++time_, groups);
  for (std::size_t i = 0; i < rates_.size(); ++i) rates_[i] = groups[i].lr;
}

FULMEN_INLINE void detail::SwaRun::update(const torch::nn::Module& module,
                                          const std::optional<at::Device>& device, std::int64_t epoch,
                                          double weight) {
  const at::NoGradGuard no_grad;
  const auto parameters = module.named_parameters();
  const bool first = n_averaged_ == 0;
  if (first) average_.clear();
  if (!first && average_.size() != parameters.size()) {
    fail("StochasticWeightAveraging: the average has {} parameters, the module has {}", average_.size(),
         parameters.size());
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters[i].key();
    const at::Tensor theirs = parameters[i].value().detach();
    const at::Device where = device.value_or(theirs.device());
    if (first) {
      average_.emplace_back(name,
                            theirs.to(where, theirs.scalar_type(), /*non_blocking=*/false, /*copy=*/true));
      continue;
    }
    at::Tensor& own = average_[i].second;
    if (average_[i].first != name || !own.sizes().equals(theirs.sizes())) {
      fail("StochasticWeightAveraging: the average has '{}' where the module has '{}', or another shape",
           average_[i].first, name);
    }
    own = own.to(where);
    own.lerp_(theirs.to(where), weight);
  }
  ++n_averaged_;
  latest_update_epoch_ = epoch;
}

FULMEN_INLINE bool detail::SwaRun::end(torch::nn::Module& module, std::int64_t epochs_done) const {
  if (n_averaged_ == 0 || (max_epochs_ != -1 && epochs_done != max_epochs_)) return false;
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parameters = module.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].copy_(average_[i].second);
  return true;
}

FULMEN_INLINE void detail::remind_of_batch_norm(const torch::nn::Module& module) {
  for (const auto& child : module.modules(/*include_self=*/false)) {
    if (is_batch_norm(*child)) {
      std::fputs(
          "StochasticWeightAveraging: the BatchNorm statistics are still those of training; "
          "call fulmen::update_bn(train, trainer.module())\n",
          stderr);
      break;
    }
  }
}

FULMEN_INLINE State detail::SwaRun::state_dict() const {
  State state("StochasticWeightAveraging"), average;
  for (const auto& [name, tensor] : average_) average.set(name, tensor);
  state.set("n_averaged", n_averaged_).set("latest_update_epoch", latest_update_epoch_);
  state.set("scheduler_state", State().set("last_epoch", time_).set("_last_lr", rates_))
      .set("average_model_state", average);
  return state;
}

FULMEN_INLINE void detail::SwaRun::load_state_dict(const State& state) {
  const State scheduler = state.get<State>("scheduler_state"),
              average = state.get<State>("average_model_state");
  auto rates = scheduler.get<std::vector<double>>("_last_lr");
  const auto time = scheduler.get<std::int64_t>("last_epoch"),
             latest = state.get<std::int64_t>("latest_update_epoch");
  const auto n_averaged = state.get<std::int64_t>("n_averaged");
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const std::string& name : average.keys())
    tensors.emplace_back(name, average.get<at::Tensor>(name).clone());
  rates_ = std::move(rates), time_ = time, latest_update_epoch_ = latest, n_averaged_ = n_averaged;
  average_ = std::move(tensors);
}

#endif

}  // namespace fulmen
