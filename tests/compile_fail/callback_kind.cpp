// A callback is not of a class type, so it cannot have hooks.
#include "common.hpp"

void run() {
  fulmen::Trainer trainer{Net{},           fulmen::CrossEntropy{}, fulmen::SGD{}, fulmen::none, fulmen::Identity{},
                          fulmen::callbacks(5)};
}
