// A module's validation_epoch_end takes one output, not all of them.
#include "common.hpp"

struct Module : Net {
  at::Tensor validation_step(const Batch& batch) { return batch.first.sum(); }
  void validation_epoch_end(fulmen::Context&, const at::Tensor&) {}
};

void run(Batches& data) {
  fulmen::Trainer trainer{Module{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.validate(data);
}
