// Tests nn/linear.hpp and nn/workspace.hpp: gradients against autograd, and the memory of a step.
#include "gradients.hpp"

#include <fulmen/nn/activation.hpp>
#include <fulmen/nn/classification.hpp>
#include <fulmen/nn/kernels.hpp>
#include <fulmen/nn/linear.hpp>

namespace {

using namespace fulmen;
using gradients_test::check_layer;
using gradients_test::check_step;

TEST(LinearGradients, AnyShape) {
  for (const auto type : {at::kFloat, at::kDouble}) {
    for (const bool bias : {true, false}) {
      for (const std::vector<std::int64_t>& batch :
           std::vector<std::vector<std::int64_t>>{{3}, {1}, {2, 3}, {2, 1, 4}, {}, {0}}) {
        for (const bool accumulate : {false, true}) {
          torch::nn::LinearImpl layer(torch::nn::LinearOptions(5, 7).bias(bias));
          layer.to(type);
          std::vector<std::int64_t> sizes = batch;
          sizes.push_back(5);
          check_layer<1>(layer, [&] { return std::array{at::randn(sizes, type)}; },
                         {.accumulate = accumulate});
          if (sizes.size() == 3) {
            check_layer<1>(layer, [&] {
              return std::array{at::randn({sizes[1], sizes[0], 5}, type).transpose(0, 1)};
            });
          }
        }
      }
    }
  }
}

TEST(LinearGradients, Frozen) {
  torch::nn::LinearImpl layer(4, 3);
  layer.weight.requires_grad_(false);
  check_layer<1>(layer, [] { return std::array{at::randn({2, 4})}; });
  layer.bias.requires_grad_(false);
  check_layer<1>(layer, [] { return std::array{at::randn({2, 4})}; });
}

TEST(Kernels, SumsAreThoseOfATen) {
  for (const auto type : {at::kFloat, at::kDouble}) {
    for (const std::int64_t rows : {1, 2, 7, 16, 17, 53, 64, 100, 256, 300, 1000, 4097}) {
      for (const std::int64_t n : {1, 2, 3, 8, 10, 31, 64, 67}) {
        const at::Tensor x = at::randn({rows, n}, type);
        at::Tensor sum = at::randn({n}, type), begun = sum.clone();
        if (!nn::kernels::sum_rows(sum, x, nn::kernels::Begin::zero)) continue;
        EXPECT_TRUE(sum.equal(x.sum(0))) << rows << "x" << n;
        nn::kernels::sum_rows(begun, x, nn::kernels::Begin::kept);
      }
    }
  }
}

TEST(ComposedStep, Mlp) {
  nn::Sequential net{nn::Linear(6, 5), nn::ReLU(), nn::Linear(5, 4), nn::ReLU(), nn::Linear(4, 3)};
  CrossEntropy criterion;
  std::int64_t batch = 4;
  check_step(
      net, criterion,
      [&] {
        batch = batch == 4 ? 3 : 4;
        return std::pair(std::array{at::randn({batch, 6})}, std::array{at::randint(3, {batch}, at::kLong)});
      },
      {.steps = 6, .accumulate = true});
}

}  // namespace
