// The first argument is no module.
#include "common.hpp"

void run() { fulmen::Trainer trainer{std::string("net"), fulmen::CrossEntropy{}, fulmen::SGD{}}; }
