// The batch is one tensor: no target.
#include "common.hpp"

void run(std::vector<at::Tensor>& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train);
}
