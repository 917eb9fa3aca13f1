// A data module's setup takes what the loop does not give.
#include "common.hpp"

struct Data {
  Batches train;
  void setup(int) {}
  Batches& train_dataloader() { return train; }
};

void run(Data& data) {
  fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}};
  trainer.fit(data);
}
