// What is no loader, among loaders.
#include "common.hpp"

void run(std::vector<at::Tensor>& a) { fulmen::combined(fulmen::CombineMode::min_size, a, 3); }
