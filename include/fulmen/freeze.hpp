// Freezing and unfreezing a module or a part of one.
#pragma once

#include <fulmen/compiled.hpp>

#include <torch/nn/module.h>

namespace fulmen {

/// Takes a module's parameters out of training and puts it into eval mode (batch normalisation and dropout too), as
/// Lightning's freeze does. An optimizer leaves out parameters without gradients; their state stays for unfreeze.
void freeze(torch::nn::Module& module);

/// The reverse: parameters take part again, and the module is in training mode.
void unfreeze(torch::nn::Module& module);

#if FULMEN_BODIES
FULMEN_INLINE void freeze(torch::nn::Module& module) {
  for (at::Tensor& parameter : module.parameters()) parameter.requires_grad_(false);
  module.eval();
}

FULMEN_INLINE void unfreeze(torch::nn::Module& module) {
  for (at::Tensor& parameter : module.parameters()) parameter.requires_grad_(true);
  module.train();
}
#endif

}  // namespace fulmen
