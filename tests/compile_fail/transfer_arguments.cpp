// A module's transfer action takes another batch than the loader gives.
#include "common.hpp"

struct Module : Net {
  void transfer_batch_to_device(fulmen::Context&, std::string&, at::Device) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Module{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train);
}
