// More schedulers than optimizers.
#include "common.hpp"

void run() {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{},
                          std::tuple{fulmen::Switch{}, fulmen::Multiply{}}};
}
