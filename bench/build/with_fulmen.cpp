// The same with fulmen: see bench/build.py.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

struct Net : torch::nn::Module {
  torch::nn::Linear hidden{register_module("hidden", torch::nn::Linear(2, 64))};
  torch::nn::Linear out{register_module("out", torch::nn::Linear(64, 2))};
  torch::Tensor forward(const torch::Tensor& x) { return out(torch::relu(hidden(x))); }
};

int main() {
  fulmen::seed_everything(1);
  torch::Tensor points = torch::rand({5000, 2}) * 2 - 1, inside = (points.square().sum(1) < 0.6).to(torch::kLong);
  fulmen::TensorLoader train{{points, inside}, {.batch_size = 50, .shuffle = true}};
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::AdamW{.lr = 1e-2}, fulmen::none, fulmen::Identity{},
                          fulmen::callbacks(), {.max_epochs = 10}};
  trainer.fit(train);
}
