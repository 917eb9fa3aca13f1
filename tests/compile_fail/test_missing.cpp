// test with a module that has no way to test.
#include "common.hpp"

void run(Batches& test) {
  fulmen::Trainer trainer{WithoutForward{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.test(test);
}
