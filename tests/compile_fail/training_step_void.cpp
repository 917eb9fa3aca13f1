// training_step returns no loss, and the module does not say that it optimises by hand.
#include "common.hpp"

struct Module : Net {
  void training_step(fulmen::Context&, const Batch&) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Module{}, fulmen::none, fulmen::SGD{}};
  trainer.fit(train);
}
