// MetricMonitor: computes metrics from what the evaluation steps return and logs them for each run.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/metrics/accuracy.hpp>
#include <fulmen/metrics/case_metrics.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen {

namespace detail {

/// What an argument of MetricMonitor is.
template <class P>
struct MonitorPart {
  static constexpr std::size_t singles = 0, groups = 0;
  static constexpr bool fits = MetricWithState<P>;
};
template <class P, class... F>
struct MonitorPart<SingleMetrics<P, F...>> {
  static constexpr std::size_t singles = sizeof...(F), groups = 0;
  static constexpr bool fits = true;
};
template <class P, class... F>
struct MonitorPart<GroupMetrics<P, F...>> {
  static constexpr std::size_t singles = 0, groups = 1;
  static constexpr bool fits = true;
};
template <class... A>
struct MonitorPart<Aggregates<A...>> {
  static constexpr std::size_t singles = 0, groups = 0;
  static constexpr bool fits = true;
};
template <>
struct MonitorPart<LogIndividualMetrics> {
  static constexpr std::size_t singles = 0, groups = 0;
  static constexpr bool fits = true;
};

template <template <class...> class Set, class P>
inline constexpr bool is_a = false;
template <template <class...> class Set, class... A>
inline constexpr bool is_a<Set, Set<A...>> = true;

}  // namespace detail

/// `MetricMonitor{Accuracy{}}` logs val/accuracy and test/accuracy. Its arguments, in any order:
///
/// - metrics with state, such as Accuracy: fed with the batches of all loaders
/// - `single_metrics(named("dice", dice))`: functions of one case; logged is the mean over all cases
/// - `group_metrics(named("auc", auc))`: functions of all cases
/// - `single_metrics(preprocess, ...)`, `group_metrics(preprocess, ...)`: the same behind a function of one case
/// - `aggregate_fn("std", "median")`: what the single metrics come to besides the mean, as val/std/dice
/// - `log_individual_metrics`: tables with a row a case in the run's folder, val/dataloader_0.csv, written anew by
///   each run, and given to loggers that have log_table(ctx, name, table)
///
/// It reads `prediction` and `targets` of the step's outputs, which the default steps give; a step of one's own
/// has to return a struct with these two members. Functions get (target, prediction), detached and on the CPU; of
/// several targets or heads, which come in a tuple, a single metric gets a tuple, and a group metric one argument
/// each. Of several loaders each has values of its own, val/dice/0, val/dice/1. A name that is given to a
/// single and to a group metric becomes single/<name> and group/<name>.
/// Source: neuro-ml/thunder, thunder/callbacks/metric_monitor.py. (There rows of a table lose the place in the
/// batch, where all batches have one case, only if there are group metrics besides; here always, as it is
/// documented there.)
/// @throws std::invalid_argument if several metrics have one name.
template <class... Parts>
class MetricMonitor {
  static_assert((detail::MonitorPart<Parts>::fits && ...),
                "fulmen: MetricMonitor takes metrics: objects with a static name, update(prediction, target), "
                "compute() and reset(), or what single_metrics, group_metrics, aggregate_fn and "
                "log_individual_metrics make");

  static constexpr std::size_t singles = (detail::MonitorPart<Parts>::singles + ... + 0),
                               groups = (detail::MonitorPart<Parts>::groups + ... + 0);
  static constexpr bool has_functions = singles + groups > 0,
                        has_tables = (std::is_same_v<Parts, LogIndividualMetrics> || ...);

 public:
  explicit MetricMonitor(Parts... parts) : parts_(std::move(parts)...) {
    if constexpr ((detail::MonitorPart<Parts>::fits && ...)) take_names();
  }

  void on_validation_epoch_start(Context&) { reset(); }
  void on_validation_batch_end(Context& ctx, const auto& outputs) { update(ctx, outputs); }
  void on_validation_epoch_end(auto& ctx) { log(ctx, "val/"); }
  void on_test_epoch_start(Context&) { reset(); }
  void on_test_batch_end(Context& ctx, const auto& outputs) { update(ctx, outputs); }
  void on_test_epoch_end(auto& ctx) { log(ctx, "test/"); }

  std::string state_key() const { return "MetricMonitor"; }

  /// What the running epoch has gathered so far, and the states of the metrics that have a state_dict().
  State state_dict() const {
    State state = gathered_.state_dict(), metrics;
    each_object([&](const auto& metric) {
      if constexpr (requires { State(metric.state_dict()); }) metrics.set(metric.name, State(metric.state_dict()));
    });
    return state.set("metrics", metrics);
  }
  /// @throws std::runtime_error if there are other metrics.
  void load_state_dict(const State& state) {
    gathered_.load_state_dict(state);
    const State metrics = state.get<State>("metrics");
    each_object([&](auto& metric) {
      if constexpr (requires(const State& own) { metric.load_state_dict(own); }) {
        metric.load_state_dict(metrics.get<State>(metric.name));
      }
    });
  }

 private:
  /// Calls `f` with each metric that has state.
  template <class Self, class F>
  static void each_object_of(Self& self, F&& f) {
    std::apply(
        [&](auto&... part) {
          (
              [&] {
                if constexpr (MetricWithState<std::remove_cvref_t<decltype(part)>>) f(part);
              }(),
              ...);
        },
        self.parts_);
  }
  template <class F>
  void each_object(F&& f) {
    each_object_of(*this, f);
  }
  template <class F>
  void each_object(F&& f) const {
    each_object_of(*this, f);
  }

  /// Calls `f(set, index of its first metric, index among the sets)` with each set of single or of group metrics.
  template <template <class...> class Set, class F>
  void each_set(F&& f) const {
    std::size_t metric = 0, set = 0;
    const auto look = [&]<class P>(const P& part) {
      if constexpr (detail::is_a<Set, P>) {
        f(part, metric, set);
        metric += std::tuple_size_v<decltype(part.metrics)>, ++set;
      }
    };
    std::apply([&](const auto&... part) { (look(part), ...); }, parts_);
  }
  void take_names() {
    const auto add = [](std::vector<std::string>& names) {
      return [&](const auto& set, std::size_t, std::size_t) {
        std::apply([&](const auto&... metric) { (names.push_back(metric.name), ...); }, set.metrics);
      };
    };
    each_set<SingleMetrics>(add(single_names_));
    each_set<GroupMetrics>(add(group_names_));
    detail::check_metric_names(single_names_);
    detail::check_metric_names(group_names_);
    detail::tell_apart(single_names_, group_names_);
    std::vector<std::string> all = single_names_;
    all.insert(all.end(), group_names_.begin(), group_names_.end());
    each_object([&](const auto& metric) { all.emplace_back(metric.name); });
    detail::check_metric_names(all);
  }

  void reset() {
    each_object([](auto& metric) { metric.reset(); });
    gathered_.clear();
  }

  void update(Context& ctx, const auto& outputs) {
    constexpr bool complete = requires { outputs.prediction, outputs.targets; };
    static_assert(complete,
                  "fulmen: MetricMonitor needs steps that return a struct with prediction and targets, as the default "
                  "steps do");
    if constexpr (complete) {
      each_object([&](auto& metric) { metric.update(outputs.prediction, outputs.targets); });
      if constexpr (has_functions) gather(ctx, outputs.prediction, outputs.targets);
    }
  }

  template <class Prediction, class Targets>
  void gather(Context& ctx, Prediction prediction, Targets targets) {
    constexpr bool fits = detail::can_have_cases<Prediction> && detail::can_have_cases<Targets>;
    static_assert(fits,
                  "fulmen: MetricMonitor's functions need a prediction and targets that are tensors, or tuples or "
                  "vectors of them");
    if constexpr (fits) {
      const auto own = [](at::Tensor& t) { t = t.detach().cpu(); };
      for_each_tensor(prediction, own);
      for_each_tensor(targets, own);
      std::vector<at::Tensor> flat, flat_predictions;
      detail::flatten(targets, flat);
      detail::flatten(prediction, flat_predictions);
      const std::int64_t count = detail::count_cases(flat, flat_predictions);
      flat.insert(flat.end(), flat_predictions.begin(), flat_predictions.end());
      auto& loader = gathered_.add_batch(ctx.dataloader_idx(), ctx.batch_idx(), count);
      each_set<SingleMetrics>([&](const auto& set, std::size_t first, std::size_t) {
        gather_single(loader, set, first, prediction, targets, count);
      });
      each_set<GroupMetrics>([&](const auto& set, std::size_t, std::size_t index) {
        gather_group(loader, set, index, prediction, targets, count, flat);
      });
    }
  }

  template <class Preprocess, class... F>
  void gather_single(detail::GatheredCases::Loader& loader, const SingleMetrics<Preprocess, F...>& set,
                     std::size_t first, const auto& prediction, const auto& targets, std::int64_t count) {
    static_assert(is_none<Preprocess> || !(detail::is_per_batch<F> || ...),
                  "fulmen: a per_batch metric takes a batch as it is: it cannot have a preprocessing");
    std::size_t at = first;
    const auto whole = [&]<class One>(const Named<One>& metric) {
      if constexpr (detail::is_per_batch<One>)
        gathered_.add_values(loader, at, metric.call.call(targets, prediction), count, metric.name);
      ++at;
    };
    std::apply([&](const auto&... metric) { (whole(metric), ...); }, set.metrics);
    if constexpr (!(detail::is_per_batch<F> && ...)) {
      for (std::int64_t i = 0; i < count; ++i) {
        const auto target = detail::case_of(targets, i);
        const auto predicted = detail::case_of(prediction, i);
        const auto arguments = detail::preprocessed(set.preprocess, target, predicted);
        at = first;
        const auto one = [&]<class One>(const Named<One>& metric) {
          if constexpr (!detail::is_per_batch<One>)
            loader.values[at].push_back(detail::single_value(metric.call, arguments));
          ++at;
        };
        std::apply([&](const auto&... metric) { (one(metric), ...); }, set.metrics);
      }
    }
  }

  template <class Preprocess, class... F>
  void gather_group(detail::GatheredCases::Loader& loader, const GroupMetrics<Preprocess, F...>& set,
                    std::size_t index, const auto& prediction, const auto& targets, std::int64_t count,
                    const std::vector<at::Tensor>& flat) {
    if constexpr (is_none<Preprocess>) {
      gathered_.add_group(loader, index, flat);
    } else {
      std::vector<std::vector<at::Tensor>> cases(static_cast<std::size_t>(count));
      for (std::int64_t i = 0; i < count; ++i) {
        const auto target = detail::case_of(targets, i);
        const auto predicted = detail::case_of(prediction, i);
        detail::flatten(detail::preprocessed(set.preprocess, target, predicted),
                        cases[static_cast<std::size_t>(i)]);
      }
      gathered_.add_group(loader, index, cases);
    }
  }

  void log(auto& ctx, const char* prefix) {
    const auto put = [&](const std::string& name, double value, bool prog_bar) {
      ctx.log(runtime_name(prefix + name), value, {.prog_bar = prog_bar});
    };
    each_object([&](const auto& metric) { put(std::string(metric.name), metric.compute(), true); });
    if constexpr (has_functions) {
      if constexpr (has_tables) tables(ctx, prefix);
      log_singles(put);
      each_set<GroupMetrics>([&](const auto& set, std::size_t first, std::size_t index) {
        for (std::size_t l = 0; l < gathered_.loaders().size(); ++l) log_group(put, set, first, index, l);
      });
      gathered_.clear();
    }
  }

  void log_singles(const auto& put) {
    const auto aggregate = [&](const std::string& before, const auto& call, bool prog_bar) {
      for (std::size_t l = 0; l < gathered_.loaders().size(); ++l) {
        const auto& loader = gathered_.loaders()[l];
        if (loader.cases.empty()) continue;
        for (std::size_t i = 0; i < singles; ++i) {
          put(before + single_names_[i] + gathered_.postfix(l),
              static_cast<double>(call(CaseValues(loader.values[i]))), prog_bar);
        }
      }
    };
    aggregate("", detail::StockAggregate{"mean"}, true);
    const auto look = [&]<class P>(const P& part) {
      if constexpr (detail::is_a<Aggregates, P>) {
        std::apply([&](const auto&... one) { (aggregate(one.name + "/", one.call, false), ...); }, part.all);
      }
    };
    std::apply([&](const auto&... part) { (look(part), ...); }, parts_);
  }

  template <class Preprocess, class... F>
  void log_group(const auto& put, const GroupMetrics<Preprocess, F...>& set, std::size_t first, std::size_t index,
                 std::size_t loader) {
    static_assert((detail::takes_some_tensors<F> && ...),
                  "fulmen: a group metric must be callable as metric(targets, predictions), of tensors with all "
                  "cases, or with what its preprocessing returns, and give a number or a tensor with one element");
    if (gathered_.loaders()[loader].cases.empty()) return;
    const std::vector<at::Tensor> arguments = gathered_.arguments(loader, index);
    std::size_t at = first;
    const auto one = [&](const auto& metric) {
      const double value = detail::call_with_tensors(metric.call, arguments, metric.name);
      put(group_names_[at++] + gathered_.postfix(loader), value, true);
    };
    std::apply([&](const auto&... metric) { (one(metric), ...); }, set.metrics);
  }

  void tables(auto& ctx, std::string_view prefix) {
    const LogIndividualMetrics& wanted = std::get<LogIndividualMetrics>(parts_);
    if (!(prefix == "val/" ? wanted.val : wanted.test) || ctx.sanity_checking() || !ctx.writes_files()) return;
    for (std::size_t l = 0; l < gathered_.loaders().size(); ++l) {
      if (gathered_.loaders()[l].cases.empty()) continue;
      const CaseTable table = detail::case_table(gathered_.loaders()[l], single_names_);
      const std::string name = std::string(prefix) + "dataloader_" + std::to_string(l);
      if constexpr (requires { ctx.loggers(); }) {
        const auto give = [&](auto& logger) {
          if constexpr (requires { logger.log_table(ctx, name, table); }) logger.log_table(ctx, name, table);
        };
        std::apply([&](auto&... logger) { (give(logger), ...); }, ctx.loggers());
      }
      detail::write_case_table(ctx.run_dir() / (name + ".csv"), table);
    }
  }

  std::tuple<Parts...> parts_;
  std::vector<std::string> single_names_, group_names_;
  detail::GatheredCases gathered_{singles, groups};
};

}  // namespace fulmen
