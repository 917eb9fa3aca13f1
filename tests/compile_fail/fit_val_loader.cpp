// fit with something for validation that is no loader.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train, 5);
}
