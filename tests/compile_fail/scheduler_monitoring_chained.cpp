// A scheduler that follows a logged value as a part of another.
#include "common.hpp"

#include <fulmen/schedule/compose.hpp>
#include <fulmen/schedule/plateau.hpp>

const auto scheduler = fulmen::LinearLR{} | fulmen::ReduceLROnPlateau{};
