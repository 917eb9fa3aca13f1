// A part of a sum of criteria has the name of the sum.
#include "common.hpp"

void run() { (void)(fulmen::L1{} + fulmen::part<"loss">(fulmen::MSE{})); }
