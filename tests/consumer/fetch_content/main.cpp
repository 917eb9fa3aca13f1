// The program of the consumer that links fulmen::fulmen alone: header-only, with few includes.
#include <fulmen/criteria/regression.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/trainer.hpp>

#include <ATen/ops/ones.h>
#include <boost/hana/tuple.hpp>
#include <fmt/format.h>
#include <torch/nn/modules/linear.h>

struct Net : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
  at::Tensor forward(const at::Tensor& x) { return layer(x); }
};

int main() {
  fulmen::TensorLoader train{{at::ones({8, 2}), at::ones({8, 1})}, {.batch_size = 4}};
  fulmen::Trainer trainer{Net{}, fulmen::MSE{}, fulmen::SGD{.lr = 1e-2}, fulmen::none, fulmen::Identity{},
                          fulmen::callbacks(), {.max_epochs = 2}, fulmen::barebones};
  trainer.fit(train);
  return trainer.context().global_step() == 4 ? 0 : 1;
}
