// The predictor cannot be called.
#include "common.hpp"

void run() { fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}, fulmen::none, 5}; }
