// A sequence without its last part is no scheduler.
#include "common.hpp"

#include <fulmen/schedule/compose.hpp>

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}, fulmen::until(5, fulmen::LinearLR{})};
  trainer.fit(train);
}
