// What the programs that must not compile share: a module, a batch, a loader. Each then makes one mistake.
#pragma once

#include <fulmen/fulmen.hpp>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

struct Net : torch::nn::Module {
  at::Tensor forward(const at::Tensor& x) { return x; }
};
struct WithoutForward : torch::nn::Module {};

using Batch = std::pair<at::Tensor, at::Tensor>;
using Batches = std::vector<Batch>;
