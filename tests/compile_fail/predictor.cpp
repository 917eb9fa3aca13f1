// The predictor cannot be called.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}, fulmen::none, 5};
  trainer.fit(train);
}
