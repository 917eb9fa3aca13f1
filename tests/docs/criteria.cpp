// Compiles and runs the code shown in docs/criteria.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

#include <cmath>
#include <utility>

struct Detector : torch::nn::Module {
  static constexpr int n_targets = 2;
  torch::nn::Linear label{register_module("label", torch::nn::Linear(16, 3))};
  torch::nn::Linear box{register_module("box", torch::nn::Linear(16, 4))};
  std::pair<at::Tensor, at::Tensor> forward(const at::Tensor& x) { return {label(x), box(x)}; }
};

struct Fades {
  void on_train_epoch_end(auto& ctx) { std::get<1>(ctx.criterion().parts).weight *= 0.9; }
};

bool callables_and_options() {
  const auto relative = [](const at::Tensor& output, const at::Tensor& target) {
    return ((output - target).abs() / (target.abs() + 1)).mean();
  };
  fulmen::CrossEntropy smooth{.label_smoothing = 0.1};
  fulmen::Huber robust{.delta = 0.5};
  fulmen::KLDiv divergence{.reduction = fulmen::KLDivReduction::batchmean};
  auto criterion = fulmen::MSE{} + 0.5 * fulmen::part<"relative">(relative);

  const at::Tensor two = at::full({4, 3}, 2.0), one = at::ones({4, 3});
  const at::Tensor uniform = at::full({4, 3}, 1.0 / 3);
  return criterion(two, one).item<float>() == 1.25f && robust(two, one).item<float>() == 0.375f &&
         std::abs(smooth(one, at::zeros({4}, at::kLong)).item<double>() - std::log(3.0)) < 1e-6 &&
         std::abs(divergence(uniform.log(), uniform).item<double>()) < 1e-6;
}

int main() {
  torch::manual_seed(1);
  const at::Tensor x = at::rand({40, 16}), labels = at::randint(3, {40}), boxes = at::rand({40, 4});
  fulmen::TensorLoader train{{x, labels, boxes}, {.batch_size = 10}};
  fulmen::Trainer trainer{Detector{},
                          fulmen::part<"label">(fulmen::CrossEntropy{}).of<0>() +
                              2 * fulmen::part<"box">(fulmen::SmoothL1{}).of<1>(),
                          fulmen::AdamW{.lr = 1e-2}};
  const fulmen::Metrics metrics = trainer.test(train);
  const double sum = metrics.at("test/label") + 2 * metrics.at("test/box");
  if (std::abs(metrics.at("test/loss") - sum) > 1e-5) return 1;

  fulmen::Trainer fading{
      Detector{},
      fulmen::part<"label">(fulmen::CrossEntropy{}).of<0>() + fulmen::part<"box">(fulmen::L1{}).of<1>(),
      fulmen::SGD{},
      fulmen::none,
      fulmen::Identity{},
      fulmen::callbacks(Fades{}),
      {.max_epochs = 2},
      fulmen::barebones};
  fading.fit(train);
  if (std::abs(std::get<1>(fading.context().criterion().parts).weight - 0.81) > 1e-12) return 1;
  return callables_and_options() ? 0 : 1;
}
