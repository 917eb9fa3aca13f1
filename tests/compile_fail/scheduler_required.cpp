// A scheduler without an option that has no default.
#include "common.hpp"

#include <fulmen/schedule/decay.hpp>

const fulmen::StepLR scheduler{.gamma = 0.5};
