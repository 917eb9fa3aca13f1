// A hyper-parameter of a type that no checkpoint holds.
#include "common.hpp"

#include <fulmen/checkpoint/hyperparameters_state.hpp>

struct Hparams {
  void* where = nullptr;
};
BOOST_HANA_ADAPT_STRUCT(Hparams, where);

void run() { fulmen::hyperparameters_state(Hparams{}); }
