// Compiles and runs the code shown in docs/migration.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

using Batch = std::tuple<torch::Tensor, torch::Tensor>;

struct LitClassifier : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(28, 10))};

  torch::Tensor forward(const torch::Tensor& x) { return layer(x.relu()); }
  torch::Tensor training_step(fulmen::Context& ctx, const Batch& batch, std::int64_t batch_idx) {
    const auto& [x, y] = batch;
    torch::Tensor loss = torch::cross_entropy_loss(forward(x), y);
    ctx.log("train_loss", loss, {.prog_bar = true});
    if (batch_idx == 0) ctx.log("first_loss", loss);
    return loss;
  }
  void validation_step(fulmen::Context& ctx, const Batch& batch) {
    const auto& [x, y] = batch;
    ctx.log("val_loss", torch::cross_entropy_loss(forward(x), y));
  }
};

struct StopsEarly {
  double below = 0.1;
  void on_validation_end(auto& ctx) {
    if (ctx.metrics().find("val_loss") < below) ctx.request_stop();
  }
};

struct FromThunder : torch::nn::Module {
  static constexpr int n_targets = 1;
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(28, 10))};

  torch::Tensor forward(const torch::Tensor& x) { return layer(x); }
  torch::Tensor activation(const torch::Tensor& x) { return x.softmax(1); }
};

int main() {
  const torch::Tensor x = torch::rand({20, 28}), y = torch::randint(10, {20});
  fulmen::TensorLoader train{{x, y}, {.batch_size = 5, .shuffle = true}}, val{{x, y}, {.batch_size = 10}};

  fulmen::Trainer trainer{LitClassifier{},    fulmen::none,
                          fulmen::Adam{},     fulmen::Multiply{{{10, 0.1}}},
                          fulmen::Identity{}, fulmen::callbacks(StopsEarly{.below = 0.2}),
                          {.max_epochs = 1},  fulmen::barebones};
  trainer.fit(train, val);

  fulmen::Trainer thunder{FromThunder{},      fulmen::CrossEntropy{},
                          fulmen::SGD{},      fulmen::none,
                          fulmen::Identity{}, fulmen::callbacks(fulmen::MetricMonitor{fulmen::Accuracy{}}),
                          {.max_epochs = 1},  fulmen::barebones};
  thunder.fit(train, val);
  return trainer.context().global_step() == 4 && thunder.context().global_step() == 4 ? 0 : 1;
}
