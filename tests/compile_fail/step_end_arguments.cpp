// A module's training_step_end takes other outputs than its training step gives.
#include "common.hpp"

struct Module : Net {
  at::Tensor training_step(const Batch& batch) { return batch.first.sum(); }
  at::Tensor training_step_end(fulmen::Context&, const std::string&) { return {}; }
};

void run(Batches& train) {
  fulmen::Trainer trainer{Module{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train);
}
