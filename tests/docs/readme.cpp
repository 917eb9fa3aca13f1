// Compiles and runs the code shown in the README beside the program of examples/minimal.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

struct Regression : torch::nn::Module {
  torch::nn::Linear line{register_module("line", torch::nn::Linear(1, 1))};

  torch::Tensor training_step(auto& ctx, const std::tuple<torch::Tensor, torch::Tensor>& batch) {
    const auto& [x, y] = batch;
    torch::Tensor loss = torch::mse_loss(line(x), y);
    ctx.log("loss", loss, {.prog_bar = true, .on_epoch = true});
    return loss;
  }
  void on_train_epoch_end(fulmen::Context& ctx) {
    if (ctx.metrics().find("loss_epoch") < 1e-6) ctx.request_stop();
  }
};

int main() {
  fulmen::seed_everything(1);
  const torch::Tensor x = torch::rand({100, 1}), y = 3 * x - 1;
  fulmen::TensorLoader loader{{x, y}, {.batch_size = 10, .shuffle = true}};
  fulmen::Trainer trainer{Regression{}, fulmen::none, fulmen::Adam{.lr = 0.05}, fulmen::none, fulmen::Identity{},
                          fulmen::callbacks(), {.max_epochs = 500}, fulmen::barebones};
  trainer.fit(loader);
  static_assert(trainer.plan().runs("on_train_epoch_end"));
  return trainer.context().epoch() < 500 && trainer.context().epoch() > 1 ? 0 : 1;
}
