// The first argument is no module.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{std::string("net"), fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train);
}
