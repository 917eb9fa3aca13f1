// The name of a layer has a dot.
#include "common.hpp"

#include <fulmen/nn/sequential.hpp>

void run() { fulmen::nn::Sequential net{fulmen::nn::named<"block.fc">(torch::nn::Linear(4, 8))}; }
