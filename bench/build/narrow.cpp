// The same with narrow includes: see bench/build.py.
#include <fulmen/criteria/classification.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/seed.hpp>
#include <fulmen/trainer.hpp>

#include <ATen/TensorOperators.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/square.h>
#include <torch/nn/modules/linear.h>

struct Net : torch::nn::Module {
  torch::nn::Linear hidden{register_module("hidden", torch::nn::Linear(2, 64))};
  torch::nn::Linear out{register_module("out", torch::nn::Linear(64, 2))};
  at::Tensor forward(const at::Tensor& x) { return out(at::relu(hidden(x))); }
};

int main() {
  fulmen::seed_everything(1);
  at::Tensor points = at::rand({5000, 2}) * 2 - 1, inside = (points.square().sum(1) < 0.6).to(at::kLong);
  fulmen::TensorLoader train{{points, inside}, {.batch_size = 50, .shuffle = true}};
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::AdamW{.lr = 1e-2}, fulmen::none, fulmen::Identity{},
                          fulmen::callbacks(), {.max_epochs = 10}};
  trainer.fit(train);
}
