// The program of the consumer that links fulmen::pch: the library, its headers and LibTorch compile, link and train.
#include <fulmen/fulmen.hpp>

struct Net : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
  torch::Tensor forward(const torch::Tensor& x) { return layer(x); }
};

int main() {
  fulmen::TensorLoader train{{torch::ones({8, 2}), torch::ones({8, 1})}, {.batch_size = 4}};
  fulmen::Trainer trainer{Net{}, fulmen::MSE{}, fulmen::AdamW{.lr = 1e-2}, fulmen::none, fulmen::Identity{},
                          fulmen::callbacks(), {.max_epochs = 2, .default_root_dir = "consumer_runs"}};
  trainer.fit(train);
  return trainer.context().global_step() == 4 ? 0 : 1;
}
