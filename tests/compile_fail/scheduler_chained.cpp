// A chain of something that is no scheduler.
#include "common.hpp"

#include <fulmen/schedule/compose.hpp>

const auto scheduler = fulmen::chained(fulmen::LinearLR{}, 5);
