// A profiler that is told when actions start, and not when they stop.
#include "common.hpp"

struct Starts {
  void start(const fulmen::Action&) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Net{},
                          fulmen::CrossEntropy{},
                          fulmen::SGD{},
                          fulmen::none,
                          fulmen::Identity{},
                          fulmen::callbacks(),
                          {.max_epochs = 1},
                          fulmen::barebones.with_profiler(Starts{})};
  trainer.fit(train);
}
