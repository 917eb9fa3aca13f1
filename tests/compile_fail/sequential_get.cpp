// A Sequential is asked for a layer that it does not have.
#include "common.hpp"

#include <fulmen/nn/sequential.hpp>

void run() {
  fulmen::nn::Sequential net{fulmen::nn::named<"fc">(torch::nn::Linear(4, 8))};
  net.get<"fc1">();
}
