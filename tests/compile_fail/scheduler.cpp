// The scheduler is no policy.
#include "common.hpp"

void run() { fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, fulmen::SGD{}, 0.5}; }
