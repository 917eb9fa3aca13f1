// Two optimizers, and the module does not say that it optimises by hand.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, std::tuple{fulmen::SGD{}, fulmen::SGD{}}};
  trainer.fit(train);
}
