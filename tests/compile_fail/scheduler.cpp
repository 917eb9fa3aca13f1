// The scheduler is no policy.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}, 0.5};
  trainer.fit(train);
}
