// A preprocessing of metrics that returns one tensor, not the metrics' arguments.
#include <fulmen/callbacks/metric_monitor.hpp>

struct Outputs {
  at::Tensor prediction, targets;
};

void run(fulmen::Context& ctx, const Outputs& outputs) {
  const auto preprocess = [](const at::Tensor& target, const at::Tensor&) { return target; };
  const auto metric = [](const at::Tensor&, const at::Tensor&) { return 1.0; };
  fulmen::MetricMonitor monitor{fulmen::group_metrics(preprocess, fulmen::named("metric", metric))};
  monitor.on_validation_batch_end(ctx, outputs);
}
