// An option that there is not.
#include "common.hpp"

void run() {
  fulmen::Trainer trainer{Net{},           fulmen::CrossEntropy{}, fulmen::SGD{},
                          fulmen::none,    fulmen::Identity{},     fulmen::callbacks(),
                          {.max_epoch = 3}};
}
