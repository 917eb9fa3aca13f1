// LBFGS is asked to step without a closure.
#include "common.hpp"

#include <fulmen/optim/lbfgs.hpp>

void run(Batches&) {
  auto optimizer = fulmen::LBFGS{}.bind({});
  optimizer.step();
}
