// A callback's hook asks for one argument more than there is.
#include "common.hpp"

struct Greeter {
  void on_train_batch_end(fulmen::Context&, auto&, Batch&, std::int64_t, std::int64_t) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Net{},        fulmen::CrossEntropy{}, fulmen::SGD{},
                          fulmen::none, fulmen::Identity{},     fulmen::callbacks(Greeter{})};
  trainer.fit(train);
}
