// What is no loader, prefetched.
#include "common.hpp"

#include <fulmen/data/prefetch.hpp>

void run() { fulmen::prefetch(3); }
