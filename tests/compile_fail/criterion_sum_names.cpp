// Two parts of a sum of criteria have one name.
#include "common.hpp"

void run() { (void)(fulmen::L1{} + 0.5 * fulmen::L1{}); }
