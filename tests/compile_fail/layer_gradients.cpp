// The backward of a layer with two inputs returns one gradient.
#include "common.hpp"

#include <fulmen/nn/nn.hpp>

struct Difference {
  at::Tensor forward(const at::Tensor& a, const at::Tensor& b) const { return a - b; }
  at::Tensor backward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor& grad) const {
    return grad;
  }
};

void run() {
  fulmen::nn::Sequential net{fulmen::nn::Branch{fulmen::nn::Linear(4, 8), fulmen::nn::Linear(4, 8)},
                             Difference{}};
  fulmen::CrossEntropy criterion;
  fulmen::nn::ComposedStep<decltype(net), fulmen::CrossEntropy> step(net, criterion);
  step.backward();
}
