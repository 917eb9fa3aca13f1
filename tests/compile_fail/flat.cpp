// flat() of an optimizer whose update needs the shapes of its parameters.
#include "common.hpp"

void run() { auto policy = fulmen::flat(fulmen::Muon{}); }
