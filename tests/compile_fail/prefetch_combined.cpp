// Loaders combined, prefetched as one, where some begin in between.
#include "common.hpp"

#include <fulmen/data/prefetch.hpp>

void run(Batches& a, Batches& b) { fulmen::prefetch(fulmen::combined(fulmen::CombineMode::max_size_cycle, a, b)); }
