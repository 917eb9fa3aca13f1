// A callback's hook is private, which no call from the loop can reach.
#include "common.hpp"

class Greeter {
  void on_fit_start(fulmen::Context&) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Net{},        fulmen::CrossEntropy{}, fulmen::SGD{},
                          fulmen::none, fulmen::Identity{},     fulmen::callbacks(Greeter{})};
  trainer.fit(train);
}
