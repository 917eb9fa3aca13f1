// A callback by reference, whose hooks would not be found.
#include <functional>

#include "common.hpp"

struct Greeter {
  void on_fit_start(fulmen::Context&) {}
};

void run(Batches& train, Greeter& greeter) {
  fulmen::Trainer trainer{Net{},        fulmen::CrossEntropy{}, fulmen::SGD{},
                          fulmen::none, fulmen::Identity{},     fulmen::callbacks(std::ref(greeter))};
  trainer.fit(train);
}
