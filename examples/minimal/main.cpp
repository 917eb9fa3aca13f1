// The program of the README: a network, data, a Trainer.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

struct Net : torch::nn::Module {
  torch::nn::Linear hidden{register_module("hidden", torch::nn::Linear(2, 64))};
  torch::nn::Linear out{register_module("out", torch::nn::Linear(64, 2))};
  torch::Tensor forward(const torch::Tensor& x) { return out(torch::relu(hidden(x))); }
};

int main() {
  fulmen::seed_everything(1);
  torch::Tensor points = torch::rand({6000, 2}) * 2 - 1;            // in the square, inside the circle or not?
  torch::Tensor inside = (points.square().sum(1) < 0.6).to(torch::kLong);
  fulmen::TensorLoader train{{points.slice(0, 0, 5000), inside.slice(0, 0, 5000)}, {.batch_size = 50, .shuffle = true}};
  fulmen::TensorLoader val{{points.slice(0, 5000), inside.slice(0, 5000)}, {.batch_size = 500}};

  fulmen::Trainer trainer{Net{},                                                          // Module
                          fulmen::CrossEntropy{},                                         // Criterion
                          fulmen::AdamW{.lr = 1e-2},                                      // Optimizer
                          fulmen::Switch{{{7, 1e-3}}},                                    // Scheduler
                          fulmen::Identity{},                                             // Predictor
                          fulmen::callbacks(fulmen::MetricMonitor{fulmen::Accuracy{}}),   // Callbacks
                          {.max_epochs = 10}};
  trainer.fit(train, val);
  trainer.test(val);
}
