// A module's own backward takes what the loop does not give.
#include "common.hpp"

struct Module : Net {
  void backward(fulmen::Context&, const std::string&) {}
};

void run(Batches& train) {
  fulmen::Trainer trainer{Module{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train);
}
