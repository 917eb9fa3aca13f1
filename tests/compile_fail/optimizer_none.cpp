// fit without an optimizer.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::none};
  trainer.fit(train);
}
