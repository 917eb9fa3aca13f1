// Compiles and runs the code shown in docs/predictors.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>
#include <fulmen/predict/augmentation.hpp>
#include <fulmen/predict/pad.hpp>
#include <fulmen/predict/patches.hpp>
#include <fulmen/predict/stream.hpp>

#include <iostream>
#include <vector>

struct Net : torch::nn::Module {
  torch::nn::Conv2d conv{register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 2, 3).padding(1)))};
  torch::Tensor forward(const torch::Tensor& x) { return conv(x); }
};

struct Twice {
  torch::Tensor operator()(const torch::Tensor& x, auto&& infer) const { return (infer(x) + infer(-x)) / 2; }
};

struct Columns {
  std::vector<torch::Tensor> forward(const torch::Tensor& x) const { return x.split(1, 1); }
  torch::Tensor backward(const std::vector<torch::Tensor>& parts, auto&& predictions) const {
    torch::Tensor sum = torch::zeros_like(parts.front());
    for (auto&& y : predictions) sum += y;
    return sum / static_cast<double>(parts.size());
  }
};

bool in_a_trainer() {
  const torch::Tensor image = torch::rand({1, 1, 100, 130});
  std::vector<torch::Tensor> images{image, image};
  fulmen::Trainer trainer{Net{},
                          fulmen::none,
                          fulmen::none,
                          fulmen::none,
                          fulmen::PadToMultiple<2>{.multiple = 16} |
                              fulmen::Patches<2>{.size = 64, .overlap = 0.5, .batch_size = 8,
                                                 .weights = fulmen::PatchWeights::gaussian} |
                              fulmen::TestTimeAugmentation{fulmen::flips<2>()},
                          fulmen::callbacks(),
                          {},
                          fulmen::barebones};
  for (torch::Tensor& y : trainer.predict(images)) std::cout << y.sizes() << '\n';
  return trainer.predict(images)[1].sizes() == torch::IntArrayRef({1, 2, 100, 130});
}

bool by_hand() {
  const torch::Tensor x = torch::rand({2, 3});
  const auto largest = [](auto&& predictions) {
    torch::Tensor all;
    for (auto&& y : predictions) all = all.defined() ? torch::maximum(all, y) : y;
    return all;
  };
  fulmen::TestTimeAugmentation turned{fulmen::square_symmetries(), largest};
  const auto same = [](const torch::Tensor& t) { return t; };
  const bool kept = fulmen::run(turned, x, same).equal(x);

  std::vector<torch::Tensor> camera(100, torch::zeros({}));
  camera[40] = torch::ones({});
  int read = 0;
  const auto infer = [&](const torch::Tensor& batch) {
    ++read;
    return batch;
  };
  for (torch::Tensor& y : fulmen::run(fulmen::Batched{.batch_size = 32}, camera, infer)) {
    if (y.item<float>() > 0.9) break;
  }
  return kept && read == 2 && fulmen::run(Twice{}, x, same).equal(torch::zeros_like(x)) &&
         fulmen::run(Columns{}, x, same).allclose(x.mean(1, true));
}

int main() { return in_a_trainer() && by_hand() ? 0 : 1; }
