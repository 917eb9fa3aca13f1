// The last argument says nothing of how to run.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{},
                          fulmen::CrossEntropy{},
                          fulmen::SGD{},
                          fulmen::none,
                          fulmen::Identity{},
                          fulmen::callbacks(),
                          {.max_epochs = 1},
                          5};
  trainer.fit(train);
}
