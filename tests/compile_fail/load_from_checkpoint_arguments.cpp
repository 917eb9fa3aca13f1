// load_from_checkpoint with arguments that the module's constructor does not take.
#include "common.hpp"

#include <fulmen/checkpoint/load_weights.hpp>

struct Wide : torch::nn::Module {
  explicit Wide(int) {}
};

void run() { fulmen::load_from_checkpoint<Wide>("best.ckpt", "wide", 3); }
