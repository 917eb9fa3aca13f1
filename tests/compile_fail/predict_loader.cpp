// predict on something that is no loader.
#include "common.hpp"

void run() {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.predict(5);
}
