// More schedulers than optimizers.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{},
                          std::tuple{fulmen::Switch{}, fulmen::Multiply{}}};
  trainer.fit(train);
}
