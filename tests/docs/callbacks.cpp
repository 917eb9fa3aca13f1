// Compiles and runs the code shown in docs/callbacks.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

#include <fulmen/callbacks/backbone_finetuning.hpp>
#include <fulmen/callbacks/early_stopping.hpp>
#include <fulmen/callbacks/lambda_callback.hpp>
#include <fulmen/callbacks/learning_rate_monitor.hpp>
#include <fulmen/callbacks/model_checkpoint.hpp>
#include <fulmen/callbacks/prediction_writer.hpp>
#include <fulmen/callbacks/weight_averaging.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <tuple>

using namespace fulmen;

struct Net : torch::nn::Module {
  torch::nn::Linear backbone{register_module("backbone", torch::nn::Linear(4, 8))};
  torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(8))};
  torch::nn::Linear head{register_module("head", torch::nn::Linear(8, 3))};
  torch::Tensor forward(const torch::Tensor& x) { return head(norm(backbone(x)).relu()); }
};

struct FromTheThirdEpochOn {
  bool after_epoch(std::int64_t epoch) const { return epoch >= 2; }  // and/or after_step(std::int64_t)
};

int main() {
  seed_everything(1);
  const torch::Tensor x = torch::rand({40, 4}), y = x.narrow(1, 0, 3).argmax(1);
  TensorLoader train{{x, y}, {.batch_size = 10}}, val{{x, y}, {.batch_size = 20}};
  const auto folder = std::filesystem::temp_directory_path() / "fulmen_docs_callbacks";
  const Options options{.max_epochs = 4,
                        .enable_progress_bar = false,
                        .enable_model_summary = false,
                        .default_root_dir = folder};

  Trainer trainer{
      Net{},
      CrossEntropy{},
      AdamW{.lr = 1e-3},
      none,
      Identity{},
      callbacks(EarlyStopping{.monitor = "val/loss", .patience = 5},
                LearningRateMonitor{.logging_interval = Interval::epoch}, EMAWeightAveraging{.decay = 0.99}),
      options};
  trainer.fit(train, val);
  const auto& stopping = std::get<EarlyStopping>(trainer.context().callbacks());
  std::printf("best val/loss: %f\n", stopping.best_score);

  ModelCheckpoint three{.filename = "epoch={epoch:02d}-loss={val/loss:.3f}",
                        .monitor = "val/loss",
                        .save_top_k = 3,
                        .auto_insert_metric_name = false};
  Trainer saver{Net{}, CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(three), options};
  saver.fit(train, val);
  const auto& saved = std::get<ModelCheckpoint>(saver.context().callbacks());
  for (const auto& [path, loss] : saved.best_k_models) std::printf("%f: %s\n", loss, path.c_str());
  saver.load(saved.best_model_path);

  auto hello = lambda_callback(
      on<hooks::on_train_start>([](auto& ctx) { std::printf("from epoch %d\n", int(ctx.epoch())); }),
      on<hooks::teardown>([] { std::puts("done"); }));
  Trainer greeter{Net{}, CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(hello), options};
  greeter.fit(train, val);

  Trainer finetuner{Net{},
                    CrossEntropy{},
                    with_backbone("backbone", AdamW{.lr = 1e-3}),
                    none,
                    Identity{},
                    callbacks(BackboneFinetuning{.unfreeze_backbone_at_epoch = 2,
                                                 .lambda_func = [](std::int64_t) { return 1.5; }}),
                    options};
  finetuner.fit(train, val);

  WeightAveraging average{EqualAverage{}, FromTheThirdEpochOn{}, {.use_buffers = false}};
  Trainer averaged{Net{}, CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(average), options};
  averaged.fit(train, val);

  Trainer swa{Net{},  CrossEntropy{}, SGD{.lr = 0.1},
              none,   Identity{},     callbacks(StochasticWeightAveraging{.swa_lrs = 0.05}),
              options};
  swa.fit(train, val);

  auto writer = write_predictions<WriteInterval::batch>(
      [](auto&, const torch::Tensor& prediction, const auto&, std::int64_t batch_idx) {
        std::printf("batch %d: %d predictions\n", int(batch_idx), int(prediction.size(0)));
      });
  Trainer predictor{Net{}, none, none, none, Identity{}, callbacks(writer), options};
  predictor.predict(val);

  const auto frozen_then_freed =
      std::get<BackboneFinetuning>(finetuner.context().callbacks()).previous_backbone_lr;
  const auto averages =
      std::get<WeightAveraging<EqualAverage, FromTheThirdEpochOn>>(averaged.context().callbacks());
  const bool good =
      saved.best_k_models.size() == 3 && stopping.best_score < 10 && std::abs(*frozen_then_freed - 1.5e-4) < 1e-12 && averages.average_model()->n_averaged() == 2;
  std::filesystem::remove_all(folder);
  return good ? 0 : 1;
}
