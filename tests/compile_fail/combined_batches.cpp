// Loaders one after the other whose batches are of different types.
#include "common.hpp"

void run(std::vector<at::Tensor>& a, std::vector<std::pair<at::Tensor, at::Tensor>>& b) {
  fulmen::combined(fulmen::CombineMode::sequential, a, b);
}
