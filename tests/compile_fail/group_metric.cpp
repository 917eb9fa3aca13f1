// A group metric that gives no number.
#include <fulmen/callbacks/metric_monitor.hpp>

struct Ctx : fulmen::Context {};

void run(Ctx& ctx) {
  const auto metric = [](const at::Tensor&, const at::Tensor&) { return "good"; };
  fulmen::MetricMonitor monitor{fulmen::group_metrics(fulmen::named("metric", metric))};
  monitor.on_validation_epoch_end(ctx);
}
