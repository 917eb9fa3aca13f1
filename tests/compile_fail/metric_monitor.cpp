// MetricMonitor beside a step whose outputs have no prediction.
#include "common.hpp"

struct Module : Net {
  int validation_step(const Batch&) { return 0; }
};

void run(Batches& val) {
  fulmen::Trainer trainer{Module{},           fulmen::CrossEntropy{},
                          fulmen::SGD{},      fulmen::none,
                          fulmen::Identity{}, fulmen::callbacks(fulmen::MetricMonitor{fulmen::Accuracy{}})};
  trainer.validate(val);
}
