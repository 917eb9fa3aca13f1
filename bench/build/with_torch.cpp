// Twenty lines with LibTorch alone: what bench/build.py compares fulmen's with.
#include <torch/torch.h>

struct Net : torch::nn::Module {
  torch::nn::Linear hidden{register_module("hidden", torch::nn::Linear(2, 64))};
  torch::nn::Linear out{register_module("out", torch::nn::Linear(64, 2))};
  torch::Tensor forward(const torch::Tensor& x) { return out(torch::relu(hidden(x))); }
};

int main() {
  torch::manual_seed(1);
  torch::Tensor points = torch::rand({5000, 2}) * 2 - 1, inside = (points.square().sum(1) < 0.6).to(torch::kLong);
  Net net;
  torch::optim::AdamW optimizer(net.parameters(), 1e-2);
  for (int epoch = 0; epoch < 10; ++epoch) {
    const torch::Tensor order = torch::randperm(5000);
    for (int i = 0; i < 5000; i += 50) {
      const torch::Tensor index = order.slice(0, i, i + 50);
      optimizer.zero_grad();
      torch::nn::functional::cross_entropy(net.forward(points.index_select(0, index)), inside.index_select(0, index)).backward();
      optimizer.step();
    }
  }
}
