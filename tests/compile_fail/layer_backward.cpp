// A layer's backward cannot be called with inputs, output and gradient.
#include "common.hpp"

#include <fulmen/nn/nn.hpp>

struct Double {
  at::Tensor forward(const at::Tensor& x) const { return x * 2; }
  at::Tensor backward(const at::Tensor& grad) const { return grad * 2; }
};

void run() {
  fulmen::nn::Sequential net{fulmen::nn::Linear(4, 8), Double{}};
  fulmen::CrossEntropy criterion;
  fulmen::nn::ComposedStep<decltype(net), fulmen::CrossEntropy> step(net, criterion);
}
