// A predictor of streams inside one that gives it tensors.
#include <fulmen/predict/patches.hpp>
#include <fulmen/predict/stream.hpp>

#include "common.hpp"

void predict(const at::Tensor& x) {
  fulmen::run(fulmen::Patches<2>{.size = 8} | fulmen::Infinite{}, x, [](const at::Tensor& t) { return t; });
}
