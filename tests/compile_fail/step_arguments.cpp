// A module's step takes what the loop does not give.
#include "common.hpp"

struct Module : Net {
  void validation_step(fulmen::Context&, const Batch&, const std::string&) {}
};

void run(Batches& val) {
  fulmen::Trainer trainer{Module{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.validate(val);
}
