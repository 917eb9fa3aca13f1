// A predictor of streams as a Trainer's, whose predictors get one batch.
#include <fulmen/predict/stream.hpp>

#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}, fulmen::none, fulmen::Infinite{}};
  trainer.fit(train);
}
