// A callback's hook takes what the loop does not give.
#include "common.hpp"

struct Greeter {
  void on_train_epoch_end(fulmen::Context&, int, int) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Net{},        fulmen::CrossEntropy{}, fulmen::SGD{},
                          fulmen::none, fulmen::Identity{},     fulmen::callbacks(Greeter{})};
  trainer.fit(train);
}
