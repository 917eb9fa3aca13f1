// Compiles and runs the code shown in docs/metrics.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <utility>

using namespace fulmen;

struct Segmenter : torch::nn::Module {
  torch::nn::Conv2d conv{register_module("conv", torch::nn::Conv2d(1, 1, 1))};
  torch::Tensor forward(const torch::Tensor& x) { return conv(x); }
  torch::Tensor activation(const torch::Tensor& x) { return x.sigmoid(); }
};

double dice(const torch::Tensor& target, const torch::Tensor& prediction) {
  const double both = target.logical_and(prediction).sum().item<double>();
  return 2 * both / (target.sum() + prediction.sum()).item<double>();
}

auto threshold(const torch::Tensor& target, const torch::Tensor& prediction) {
  return std::pair(target > 0.5, prediction > 0.5);
}

auto volumes(const torch::Tensor& target, const torch::Tensor& prediction) {
  return std::pair(target.sum(), (prediction > 0.5).sum());
}

torch::Tensor rmse(const torch::Tensor& targets, const torch::Tensor& predictions) {
  return (targets - predictions).square().mean().sqrt();
}

torch::Tensor mae(const torch::Tensor& targets, const torch::Tensor& predictions) {
  return (targets - predictions).abs().mean({1, 2, 3});
}

struct Positives {
  static constexpr std::string_view name = "positives";
  double count = 0;
  void update(const torch::Tensor& prediction, const torch::Tensor&) { count += (prediction > 0.5).sum().item<double>(); }
  double compute() const { return count; }
  void reset() { count = 0; }
};

int main() {
  seed_everything(1);
  const torch::Tensor images = torch::rand({8, 1, 4, 4}), masks = (images > 0.5).to(torch::kFloat);
  TensorLoader train{{images, masks}, {.batch_size = 4}}, val{{images, masks}, {.batch_size = 4}};
  const auto folder = std::filesystem::temp_directory_path() / "fulmen_docs_metrics";

  MetricMonitor monitor{
      single_metrics(threshold, named("dice", dice)),
      group_metrics(volumes, named("volume_error", rmse)),
      aggregate_fn("std", "median", named("worst", [](CaseValues v) { return *std::min_element(v.begin(), v.end()); })),
      log_individual_metrics};

  Trainer trainer{Segmenter{},
                  BCEWithLogits{},
                  AdamW{.lr = 0.1},
                  none,
                  Identity{},
                  callbacks(monitor),
                  {.max_epochs = 2, .enable_progress_bar = false, .enable_model_summary = false, .default_root_dir = folder}};
  trainer.fit(train, val);
  const Metrics found = trainer.validate(val);
  std::printf("dice %f, its median %f\n", found.at("val/dice"), found.at("val/median/dice"));
  const bool table = std::filesystem::exists(trainer.context().run_dir() / "val" / "dataloader_0.csv");

  MetricMonitor more{Positives{}, single_metrics(named("mae", per_batch(mae))), LogIndividualMetrics{.val = false}};
  Trainer other{Segmenter{},   BCEWithLogits{}, none, none, Identity{}, callbacks(more),
                {.enable_progress_bar = false, .enable_model_summary = false, .default_root_dir = folder}};
  const Metrics tested = other.test(val);
  const bool good = table && found.find("val/worst/dice") && found.find("val/volume_error") &&
                    std::isfinite(tested.at("test/mae")) && tested.find("test/positives");
  std::filesystem::remove_all(folder);
  return good ? 0 : 1;
}
