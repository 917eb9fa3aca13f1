// One of the optimizers is no policy.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, std::tuple{fulmen::SGD{}, 1e-3}};
  trainer.fit(train);
}
