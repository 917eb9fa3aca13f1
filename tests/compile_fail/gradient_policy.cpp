// A Runtime with a gradient policy that there is not.
#include "common.hpp"

struct Finite {};

void run() {
  fulmen::Trainer trainer{Net{},
                          fulmen::CrossEntropy{},
                          fulmen::Adam{},
                          fulmen::none,
                          fulmen::Identity{},
                          fulmen::callbacks(),
                          {},
                          fulmen::Runtime<>{}.with_gradients(Finite{})};
}
