// The last argument says nothing of how to run.
#include "common.hpp"

void run() {
  fulmen::Trainer trainer{Net{},     fulmen::CrossEntropy{}, fulmen::SGD{}, fulmen::none, fulmen::Identity{},
                          fulmen::callbacks(), {.max_epochs = 1}, 5};
}
