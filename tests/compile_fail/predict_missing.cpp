// predict with a module that has no way to predict.
#include "common.hpp"

void run(Batches& images) {
  fulmen::Trainer trainer{WithoutForward{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.predict(images);
}
