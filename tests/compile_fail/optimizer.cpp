// The optimizer is no policy.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, 1e-3};
  trainer.fit(train);
}
