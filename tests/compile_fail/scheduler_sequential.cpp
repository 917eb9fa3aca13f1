// A sequence without the time when its second scheduler begins.
#include "common.hpp"

#include <fulmen/schedule/compose.hpp>

const auto scheduler = fulmen::sequential(fulmen::LinearLR{}, fulmen::ConstantLR{});
