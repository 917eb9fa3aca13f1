// A layer of a Sequential does not take what the one before it returns.
#include "common.hpp"

#include <fulmen/nn/sequential.hpp>

void run(const at::Tensor& x) {
  fulmen::nn::Sequential net{torch::nn::Linear(4, 8), torch::nn::LSTM(8, 8), torch::nn::Linear(8, 2)};
  net.forward(x);
}
