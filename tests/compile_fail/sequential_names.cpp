// Two layers of a Sequential have one name.
#include "common.hpp"

#include <fulmen/nn/sequential.hpp>

void run() {
  using fulmen::nn::named;
  fulmen::nn::Sequential net{torch::nn::Linear(4, 8), torch::nn::ReLU(), named<"0">(torch::nn::Linear(8, 2))};
}
