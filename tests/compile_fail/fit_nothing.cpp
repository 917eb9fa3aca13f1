// fit without a loader.
#include "common.hpp"

void run() {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit();
}
