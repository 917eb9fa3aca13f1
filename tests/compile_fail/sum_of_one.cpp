// A Sum of a single layer.
#include "common.hpp"

#include <fulmen/nn/nn.hpp>

void run() { fulmen::nn::Sum sum{fulmen::nn::Linear(4, 8)}; }
