// The optimizer is no policy.
#include "common.hpp"

void run() { fulmen::Trainer trainer{Net{}, fulmen::CrossEntropy{}, 1e-3}; }
