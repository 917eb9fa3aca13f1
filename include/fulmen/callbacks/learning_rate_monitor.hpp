// LearningRateMonitor: logs the rates of all optimizers, and momentum and weight decay if asked to.
#pragma once

#include <fulmen/callbacks/log_due.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/plan.hpp>
#include <fulmen/loop/trainer_context.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <algorithm>
#include <stdexcept>
#endif

namespace fulmen {

namespace detail {

/// What an optimizer is called in a log: its policy's type, without namespaces and template arguments; of a
/// policy around another (parameters_of, param_groups), that of the inner one.
template <class Policy>
constexpr std::string_view policy_name() {
  if constexpr (requires { requires OptimizerPolicy<decltype(Policy::policy)>; }) {
    return policy_name<decltype(Policy::policy)>();
  } else {
    std::string_view name = type_name<Policy>();
    name = name.substr(0, name.find('<'));
    return name.substr(name.rfind(':') + 1);
  }
}

template <class Ctx>
struct OptimizersOf;
template <class M, class C, class O, class S, class P, class Cb, class R>
struct OptimizersOf<TrainerContext<M, C, O, S, P, Cb, R>> {
  using Policies = typename PolicyTuple<O>::type;
};

}  // namespace detail

/// Logs `lr-AdamW`, for several groups `lr-AdamW/pg1`, `lr-AdamW/pg2`, ..., for a group with a name (see
/// param_groups) `lr-AdamW/<name>`, for a second optimizer of a kind `lr-AdamW-1`; with them `lr-AdamW-momentum` (betas[0] where the optimizer has betas, 0 where it has
/// neither) and `lr-AdamW-weight_decay`. Callbacks can monitor these names, too. Source:
/// lightning.pytorch.callbacks.LearningRateMonitor.
struct LearningRateMonitor {
  /// Interval::step: at batches at which the loop logs; Interval::epoch: at each epoch's start; unset: as the
  /// scheduler of the optimizer advances, and both where it has none.
  std::optional<Interval> logging_interval{};
  bool log_momentum = false;
  bool log_weight_decay = false;  ///< an error with an optimizer that has none

  std::map<std::string, std::vector<double>, std::less<>>
      lrs{};  ///< all rates logged since fit began, by name

  /// @throws std::invalid_argument if groups of one optimizer have one name
  template <class Ctx>
  void on_train_start(Ctx& ctx) {
    static_assert(Ctx::has_loggers,
                  "fulmen: LearningRateMonitor needs a logger, and this Trainer's Runtime has none");
    using Policies = typename detail::OptimizersOf<Ctx>::Policies;
    lrs.clear();
    watched_.clear();
    std::vector<std::string_view> names;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (watch(detail::policy_name<std::tuple_element_t<I, Policies>>(), std::get<I>(ctx.optimizers()), names),
       ...);
    }
    (std::make_index_sequence<std::tuple_size_v<Policies>>{});
  }

  template <class Ctx>
  void on_train_batch_start(Ctx& ctx) {
    due_.batch_starts(ctx);
    if (logging_interval != Interval::epoch && due_.now(ctx)) log<Interval::step>(ctx, due_.step());
  }

  template <class Ctx>
  void on_train_epoch_start(Ctx& ctx) {
    if (logging_interval != Interval::step) log<Interval::epoch>(ctx, due_.next_step(ctx));
  }

  struct Watched {
    std::vector<std::string> names;     // of each group
    std::vector<double> weight_decays;  // which nothing changes
  };
  // Public only because aggregates have no private members.
  std::vector<Watched> watched_{};
  detail::LogDue due_{};

 private:
  template <class Optimizer>
  void watch(std::string_view policy, const Optimizer& optimizer, std::vector<std::string_view>& before) {
    std::vector<std::string> names(optimizer.groups().size());
    if constexpr (requires { optimizer.names(); }) names = optimizer.names();
    watched_.push_back(named(policy, std::move(names), before));
    if (log_weight_decay) watched_.back().weight_decays = weight_decays(optimizer.state_dict());
  }

  template <Interval Now, class Ctx>
  void log(Ctx& ctx, std::int64_t step) {
    Metrics out;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (
          [&] {
            bool wanted = true;
            if constexpr (I < std::tuple_size_v<typename Ctx::Schedulers>) {
              wanted = logging_interval || std::tuple_element_t<I, typename Ctx::Schedulers>::interval == Now;
            }
            if (wanted) gather(watched_[I], std::get<I>(ctx.optimizers()).groups(), out);
          }(),
          ...);
    }
    (std::make_index_sequence<std::tuple_size_v<typename Ctx::Optimizers>>{});
    if (out.empty()) return;
    for (const Metric& metric : out) {
      ctx.log(runtime_name(metric.name), metric.value, {.logger = false, .on_step = true, .on_epoch = false});
    }
    ctx.log_metrics(std::move(out), step);
  }

  /// @param groups the names of its groups; an empty one: it has none
  /// @param before the policies of the optimizers before this one, to which it is added
  static Watched named(std::string_view policy, std::vector<std::string> groups,
                       std::vector<std::string_view>& before);
  static std::vector<double> weight_decays(const State& optimizer);
  void gather(const Watched& watched, const std::vector<ParamGroup>& groups, Metrics& out);
};

#if FULMEN_BODIES

FULMEN_INLINE LearningRateMonitor::Watched LearningRateMonitor::named(std::string_view policy,
                                                                      std::vector<std::string> groups,
                                                                      std::vector<std::string_view>& before) {
  const auto same = std::count(before.begin(), before.end(), policy);
  before.push_back(policy);
  std::string name = "lr-" + std::string(policy);
  if (same > 0) name += "-" + std::to_string(same);
  const bool single = groups.size() == 1;
  Watched out;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].empty() && !single) groups[i] = "pg" + std::to_string(i + 1);
  }
  for (const std::string& group : groups) {
    if (std::count(groups.begin(), groups.end(), group) > 1)
      fail<std::invalid_argument>("LearningRateMonitor: {} has several parameter groups called '{}'", name, group);
    out.names.push_back(group.empty() ? name : name + "/" + group);
  }
  return out;
}

FULMEN_INLINE std::vector<double> LearningRateMonitor::weight_decays(const State& optimizer) {
  std::vector<double> out;
  const auto add = [&](const State& state) {
    for (const State& group : state.get<std::vector<State>>("param_groups"))
      out.push_back(group.get<double>("weight_decay"));
  };
  if (optimizer.contains("optimizers")) {  // those of a split_parameters
    for (const State& part : optimizer.get<std::vector<State>>("optimizers")) add(part);
  } else {
    add(optimizer);
  }
  return out;
}

FULMEN_INLINE void LearningRateMonitor::gather(const Watched& watched, const std::vector<ParamGroup>& groups,
                                               Metrics& out) {
  for (std::size_t i = 0; i < watched.names.size(); ++i) {
    const std::string& name = watched.names[i];
    out.emplace_back(name, groups[i].lr);
    lrs[name].push_back(groups[i].lr);
    if (log_momentum) out.emplace_back(name + "-momentum", groups[i].momentum.value_or(0));
    if (log_weight_decay) out.emplace_back(name + "-weight_decay", watched.weight_decays[i]);
  }
}

#endif

}  // namespace fulmen
