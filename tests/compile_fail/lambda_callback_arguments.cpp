// A function that does not take what its hook gives.
#include "common.hpp"

#include <fulmen/callbacks/lambda_callback.hpp>

void run(Batches& train) {
  auto callback =
      fulmen::lambda_callback(fulmen::on<fulmen::hooks::on_train_start>([](fulmen::Context&, int) {}));
  fulmen::Trainer trainer{Net{},        fulmen::CrossEntropy{}, fulmen::SGD{},
                          fulmen::none, fulmen::Identity{},     fulmen::callbacks(callback)};
  trainer.fit(train);
}
