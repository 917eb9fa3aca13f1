// A module's training step takes another batch than the loader gives.
#include "common.hpp"

struct Module : Net {
  at::Tensor training_step(fulmen::Context&, const std::string&) { return {}; }
};

void run(Batches& train) {
  fulmen::Trainer trainer{Module{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train);
}
