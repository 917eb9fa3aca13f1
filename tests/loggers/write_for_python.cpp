// Writes logs into a folder for tests/fixtures/loggers/check.py, which reads them with TensorBoard, MLflow
// and W&B:
//   write_for_python <folder> [kill]
// With `kill` the process kills itself, with SIGKILL, in the second epoch.
#include <fulmen/fulmen.hpp>
#include <fulmen/loggers/json_lines.hpp>
#include <fulmen/loggers/mlflow.hpp>
#include <fulmen/loggers/tensorboard.hpp>

#include <torch/torch.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

namespace {

using namespace fulmen;

struct Logging : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
  bool kill = false;

  at::Tensor training_step(auto& ctx, const at::Tensor& batch, std::int64_t batch_idx) {
    auto& tensorboard = std::get<TensorBoardLogger>(ctx.loggers());
    if (ctx.global_step() == 0) {
      tensorboard.log_text("notes", "**bold**, ü", 3);
      tensorboard.log_image("images/color", at::arange(3 * 4 * 5).to(at::kByte).view({3, 4, 5}), 4);
      tensorboard.log_image("images/grey", at::arange(20).to(at::kFloat).view({1, 4, 5}) / 19, 5);
      tensorboard.log_histogram("normal", at::linspace(-2, 2, 1001), 6);
    }
    if (kill && ctx.epoch() == 1) {
      std::this_thread::sleep_for(std::chrono::seconds(2));
      // In the writers' hands, or not, when the end comes.
      for (int i = 0; i < 1000; ++i) tensorboard.log_scalar("late", i, i);
      std::raise(SIGKILL);
    }
    ctx.log("train/loss", 0.5 + static_cast<double>(batch_idx), {.on_step = true, .on_epoch = true});
    return layer(batch).square().mean();
  }
  void validation_step(Context& ctx, const at::Tensor&) { ctx.log("val/loss", 1.0 / 3); }
};

void write_all(const std::filesystem::path& root, bool kill) {
  Logging module;
  module.kill = kill;
  Trainer trainer{std::move(module),
                  fulmen::none,
                  SGD{.lr = 0.0},
                  fulmen::none,
                  Identity{},
                  callbacks(),
                  Options{.max_epochs = 2, .log_every_n_steps = 1, .default_root_dir = root, .name = "run"},
                  Runtime<std::tuple<CSVLogger, TensorBoardLogger, JSONLinesLogger, MLFlowLogger>>{
                      .loggers = {CSVLogger{}, TensorBoardLogger{}, JSONLinesLogger{},
                                  MLFlowLogger{{.experiment_name = "an experiment: ü #1",
                                                .save_dir = root / "ml runs",
                                                .tags = {{"by", "me"}}}}}}};
  const State params = State()
                           .set("lr", 0.001)
                           .set("net", State().set("name", "résnet").set("layers", std::vector<int>{3, 4}));
  std::get<TensorBoardLogger>(trainer.context().loggers())
      .log_hyperparams(params, Metrics{{"hp/best", 0.75}});
  std::get<MLFlowLogger>(trainer.context().loggers()).log_hyperparams(params);
  const std::vector<at::Tensor> train(10, at::ones({3, 2})), val(2, at::ones({3, 2}));
  trainer.fit(train, val);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: write_for_python <folder> [kill]\n");
    return 2;
  }
  try {
    write_all(arguments[1], count > 2 && std::string_view(arguments[2]) == "kill");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
