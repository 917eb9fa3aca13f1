// One seed for everything random.
#pragma once

#include <fulmen/compiled.hpp>

#include <cstdint>

#if FULMEN_BODIES
#include <ATen/Context.h>
#endif

namespace fulmen {

/// Seeds LibTorch's generators on all devices. Initial weights, loaders that shuffle and dropout all draw from them: call
/// it before the module is made. The same seed gives the same numbers, bit for bit, on the same machine.
void seed_everything(std::uint64_t seed);

#if FULMEN_BODIES
FULMEN_INLINE void seed_everything(std::uint64_t seed) { at::manual_seed(seed); }
#endif

}  // namespace fulmen
