// fulmen's twenty lines with CALLBACKS callbacks more, each with three hooks: see bench/build.py.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

struct Net : torch::nn::Module {
  torch::nn::Linear hidden{register_module("hidden", torch::nn::Linear(2, 64))};
  torch::nn::Linear out{register_module("out", torch::nn::Linear(64, 2))};
  torch::Tensor forward(const torch::Tensor& x) { return out(torch::relu(hidden(x))); }
};

template <int>
struct Counts {
  std::int64_t batches = 0, epochs = 0, values = 0;
  void on_train_batch_end(fulmen::Context&) { ++batches; }
  void on_train_epoch_end(auto& ctx) { epochs += ctx.epoch(); }
  void on_validation_end() { ++values; }
};

int main() {
  fulmen::seed_everything(1);
  torch::Tensor points = torch::rand({5000, 2}) * 2 - 1, inside = (points.square().sum(1) < 0.6).to(torch::kLong);
  fulmen::TensorLoader train{{points, inside}, {.batch_size = 50, .shuffle = true}};
  auto counts = []<int... I>(std::integer_sequence<int, I...>) {
    return std::tuple<Counts<I>...>();
  }(std::make_integer_sequence<int, CALLBACKS>());
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::AdamW{.lr = 1e-2}, fulmen::none, fulmen::Identity{},
                          counts, {.max_epochs = 10}};
  trainer.fit(train);
}
