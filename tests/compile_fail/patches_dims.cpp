// Patches of four spatial dimensions.
#include <fulmen/predict/patches.hpp>

#include "common.hpp"

fulmen::Patches<4> patches() { return {.size = 8}; }
