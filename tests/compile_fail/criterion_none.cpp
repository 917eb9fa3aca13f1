// No criterion, and no training_step that could do without.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::none, fulmen::SGD{}};
  trainer.fit(train);
}
