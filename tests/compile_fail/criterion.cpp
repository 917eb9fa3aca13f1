// The criterion does not take output and target.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, [](const at::Tensor& output) { return output; }, fulmen::SGD{}};
  trainer.fit(train);
}
