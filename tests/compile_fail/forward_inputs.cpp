// The batch has two inputs, forward takes one.
#include "common.hpp"

void run(std::vector<std::tuple<at::Tensor, at::Tensor, at::Tensor>>& train) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(train);
}
