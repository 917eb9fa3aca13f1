// MetricMonitor: feeds metrics with what the default evaluation steps return and logs them for each run.
#pragma once

#include <fulmen/loop/context.hpp>
#include <fulmen/metrics/accuracy.hpp>

#include <string>
#include <tuple>

namespace fulmen {

/// `MetricMonitor{Accuracy{}}` logs val/accuracy and test/accuracy. It reads `prediction` and `targets` of the step's
/// outputs, which the default steps give; a step of one's own has to return a struct with these two members.
template <class... M>
class MetricMonitor {
  static_assert((MetricWithState<M> && ...),
                "fulmen: MetricMonitor takes metrics: objects with a static name, update(prediction, target), compute() "
                "and reset()");

 public:
  explicit MetricMonitor(M... metrics) : metrics_(std::move(metrics)...) {}

  void on_validation_epoch_start(Context&) { reset(); }
  void on_validation_batch_end(Context&, const auto& outputs) { update(outputs); }
  void on_validation_epoch_end(Context& ctx) { log(ctx, "val/"); }
  void on_test_epoch_start(Context&) { reset(); }
  void on_test_batch_end(Context&, const auto& outputs) { update(outputs); }
  void on_test_epoch_end(Context& ctx) { log(ctx, "test/"); }

 private:
  void reset() {
    std::apply([](auto&... metric) { (metric.reset(), ...); }, metrics_);
  }
  void update(const auto& outputs) {
    constexpr bool complete = requires { outputs.prediction, outputs.targets; };
    static_assert(complete,
                  "fulmen: MetricMonitor needs steps that return a struct with prediction and targets, as the default "
                  "steps do");
    if constexpr (complete) {
      std::apply([&](auto&... metric) { (metric.update(outputs.prediction, outputs.targets), ...); }, metrics_);
    }
  }
  void log(Context& ctx, const char* prefix) {
    const auto one = [&](const auto& metric) {
      std::string name = prefix;
      name += metric.name;
      ctx.log(runtime_name(name), metric.compute(), {.prog_bar = true});
    };
    std::apply([&](const auto&... metric) { (one(metric), ...); }, metrics_);
  }

  std::tuple<M...> metrics_;
};

}  // namespace fulmen
