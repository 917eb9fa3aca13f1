// A profiler whose step takes what it is not given.
#include "common.hpp"

struct Steps {
  void start(std::string_view) {}
  void stop(std::string_view) {}
  void step(int) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Net{},
                          fulmen::CrossEntropy{},
                          fulmen::SGD{},
                          fulmen::none,
                          fulmen::Identity{},
                          fulmen::callbacks(),
                          {.max_epochs = 1},
                          fulmen::barebones.with_profiler(Steps{})};
  trainer.fit(train);
}
