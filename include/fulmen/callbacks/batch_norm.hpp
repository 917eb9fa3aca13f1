// Which layers have BatchNorm's running statistics: for callbacks that treat these apart.
#pragma once

#include <fulmen/compiled.hpp>

#if FULMEN_BODIES
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#else
namespace torch::nn {
class Module;
}
#endif

namespace fulmen::detail {

/// Whether it is one of LibTorch's BatchNorm layers, of one to three dimensions.
bool is_batch_norm(const torch::nn::Module& module);

#if FULMEN_BODIES
FULMEN_INLINE bool is_batch_norm(const torch::nn::Module& module) {
  return module.as<torch::nn::BatchNorm1dImpl>() || module.as<torch::nn::BatchNorm2dImpl>() ||
         module.as<torch::nn::BatchNorm3dImpl>();
}
#endif

}  // namespace fulmen::detail
