// A part of a sum of criteria asks for a second output of a module that has one.
#include "common.hpp"

void run(Batches& train) {
  fulmen::Trainer trainer{Net{}, fulmen::L1{} + fulmen::part<"box">(fulmen::MSE{}).of<1, 0>(), fulmen::SGD{}};
  trainer.fit(train);
}
