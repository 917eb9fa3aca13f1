// LearningRateMonitor in a Trainer without a logger.
#include "common.hpp"

#include <fulmen/callbacks/learning_rate_monitor.hpp>

void run(Batches& train) {
  fulmen::Trainer trainer{
      Net{},        fulmen::CrossEntropy{}, fulmen::SGD{},
      fulmen::none, fulmen::Identity{},     fulmen::callbacks(fulmen::LearningRateMonitor{}),
      {},           fulmen::barebones};
  trainer.fit(train);
}
