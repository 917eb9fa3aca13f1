// One seed for everything random.
#pragma once

#include <ATen/Context.h>

#include <cstdint>

namespace fulmen {

/// Seeds LibTorch's generators on all devices. Initial weights, loaders that shuffle and dropout all draw from them: call
/// it before the module is made. The same seed gives the same numbers, bit for bit, on the same machine.
inline void seed_everything(std::uint64_t seed) { at::manual_seed(seed); }

}  // namespace fulmen
