// A layer of a Sequential is neither a module nor a callable.
#include "common.hpp"

#include <fulmen/nn/sequential.hpp>

void run() { fulmen::nn::Sequential net{torch::nn::Linear(4, 8), 5}; }
