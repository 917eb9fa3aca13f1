// Neither forward nor training_step.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{WithoutForward{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train);
}
