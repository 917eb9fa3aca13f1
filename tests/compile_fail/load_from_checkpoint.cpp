// load_from_checkpoint of a module that can be made neither of nothing nor of hyper-parameters.
#include "common.hpp"

#include <fulmen/checkpoint/load_weights.hpp>

struct Wide : torch::nn::Module {
  explicit Wide(int) {}
};

void run() { fulmen::load_from_checkpoint<Wide>("best.ckpt"); }
