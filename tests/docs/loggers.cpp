// Compiles and runs the code shown in docs/loggers.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

#include <fulmen/loggers/json_lines.hpp>
#include <fulmen/loggers/mlflow.hpp>
#include <fulmen/loggers/tensorboard.hpp>

#include <cstdio>
#include <filesystem>
#include <string>
#include <tuple>
#include <utility>

#include "../testing.hpp"

using namespace fulmen;

struct Net : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(4, 3))};
  torch::Tensor forward(const torch::Tensor& x) { return layer(x); }

  void on_train_epoch_end(auto& ctx) {
    auto& board = std::get<TensorBoardLogger>(ctx.loggers());
    board.log_histogram("weights", layer->weight, ctx.global_step());
    board.log_image("weights/picture", layer->weight.sigmoid().unsqueeze(0), ctx.global_step());
    board.log_text("notes", "**one** layer", ctx.global_step());
  }
};

struct PrintLogger {
  void log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step) {
    for (const Metric& metric : metrics) {
      std::printf("%lld %lld %s %g\n", static_cast<long long>(ctx.epoch()), static_cast<long long>(step),
                  metric.name.c_str(), metric.value);
    }
  }
  void finalize(Context&) { std::fflush(stdout); }
};

struct Plain : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(4, 3))};
  torch::Tensor forward(const torch::Tensor& x) { return layer(x); }
};

int main() {
  const TemporaryFolder folder;
  std::filesystem::current_path(folder.path);
  const torch::Tensor x = torch::rand({20, 4}), y = torch::randint(3, {20});
  TensorLoader train{{x, y}, {.batch_size = 5}};
  const Options options{.max_epochs = 2};

  Runtime<std::tuple<CSVLogger, TensorBoardLogger, JSONLinesLogger, MLFlowLogger>> runtime{
      .loggers = {CSVLogger{}, TensorBoardLogger{}, JSONLinesLogger{},
                  MLFlowLogger{{.experiment_name = "digits"}}}};
  Trainer trainer{Net{},      CrossEntropy{}, AdamW{.lr = 1e-3}, fulmen::none,
                  Identity{}, callbacks(),    options,           std::move(runtime)};

  const State params = State().set("lr", 1e-3).set("net", State().set("layers", 1));
  auto& loggers = trainer.context().loggers();
  std::get<TensorBoardLogger>(loggers).log_hyperparams(params, Metrics{{"val/loss", 0.5}});
  std::get<MLFlowLogger>(loggers).log_hyperparams(params);
  trainer.fit(train, train);

  Trainer printing{Plain{},    CrossEntropy{}, SGD{.lr = 1e-3}, fulmen::none,
                   Identity{}, callbacks(),    options,         Runtime<std::tuple<PrintLogger>>{}};
  printing.fit(train, train);

  int missing = 0;
  for (const char* file : {"metrics.csv", "metrics.jsonl"})
    missing += !std::filesystem::exists("runs/default/version_0" / std::filesystem::path(file));
  const MLFlowLogger& mlflow = std::get<MLFlowLogger>(loggers);
  const std::filesystem::path run =
      std::filesystem::path("mlruns") / mlflow.experiment_id() / mlflow.run_id();
  missing += !std::filesystem::exists(run / "params/net/layers");
  missing += !std::filesystem::exists(std::get<TensorBoardLogger>(loggers).path());
  if (missing > 0) std::printf("%d files are missing\n", missing);
  std::filesystem::current_path("/");
  return missing;
}
