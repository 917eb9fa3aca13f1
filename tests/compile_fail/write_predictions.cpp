// Predictions of another type than the one that is to be kept.
#include "common.hpp"

#include <fulmen/callbacks/prediction_writer.hpp>

struct Module : Net {
  std::string predict_step(const Batch&) { return "prediction"; }
};

void run(Batches& data) {
  auto writer =
      fulmen::write_predictions<fulmen::WriteInterval::epoch>([](auto&, const std::vector<at::Tensor>&) {});
  fulmen::Trainer trainer{Module{},     fulmen::CrossEntropy{}, fulmen::SGD{},
                          fulmen::none, fulmen::Identity{},     fulmen::callbacks(writer)};
  trainer.predict(data);
}
