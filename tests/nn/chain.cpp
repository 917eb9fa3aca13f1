// One chain of layers four times, for the object-code test: static, nested, by hand, and as LibTorch's boxed
// Sequential.
#include <fulmen/nn/sequential.hpp>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

using torch::nn::LinearImpl;
using torch::nn::ReLUImpl;

struct Scale {
  double by;
  at::Tensor operator()(const at::Tensor& x) const { return x.mul(by); }
};

using Chain = fulmen::nn::Sequential<LinearImpl, ReLUImpl, Scale, LinearImpl>;
at::Tensor run_chain(Chain& net, const at::Tensor& x) { return net.forward(x); }

using Nested = fulmen::nn::Sequential<fulmen::nn::Sequential<LinearImpl, ReLUImpl>, Scale, LinearImpl>;
at::Tensor run_nested(Nested& net, const at::Tensor& x) { return net.forward(x); }

struct Hand {
  std::shared_ptr<LinearImpl> first;
  std::shared_ptr<ReLUImpl> relu;
  Scale scale;
  std::shared_ptr<LinearImpl> last;
};
at::Tensor run_hand(Hand& net, const at::Tensor& x) {
  return net.last->forward(net.scale(net.relu->forward(net.first->forward(x))));
}

at::Tensor run_boxed(torch::nn::SequentialImpl& net, const at::Tensor& x) { return net.forward(x); }
