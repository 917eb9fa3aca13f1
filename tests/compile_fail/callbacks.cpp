// A callback is given as it is, not by callbacks(...).
#include "common.hpp"

struct Greeter {
  void on_fit_start(fulmen::Context&) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Net{},        fulmen::CrossEntropy{}, fulmen::SGD{},
                          fulmen::none, fulmen::Identity{},     Greeter{}};
  trainer.fit(train);
}
