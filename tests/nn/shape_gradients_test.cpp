// Tests nn/shape.hpp, nn/dropout.hpp and nn/embedding.hpp: values and gradients against autograd.
#include "gradients.hpp"

#include <fulmen/nn/activation.hpp>
#include <fulmen/nn/classification.hpp>
#include <fulmen/nn/dropout.hpp>
#include <fulmen/nn/embedding.hpp>
#include <fulmen/nn/linear.hpp>
#include <fulmen/nn/shape.hpp>

#include <functional>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using gradients_test::Check;
using gradients_test::check_layer;
using gradients_test::check_step;
using Sizes = std::vector<std::int64_t>;
using MakeInput = std::function<std::array<at::Tensor, 1>()>;

/// Exactly as autograd: no value is computed, or by the same kernels.
constexpr double exact = 1e-300;

template <class L>
void check(L& layer, const Sizes& sizes, double tolerance = exact) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const bool transposed : {false, true}) {
      if (transposed && sizes.size() < 2) continue;
      std::string shape = std::string(c10::toString(type)) + (transposed ? " transposed" : "");
      for (const std::int64_t size : sizes) shape += " " + std::to_string(size);
      SCOPED_TRACE(layer.name() + ": " + shape);
      check_layer<1>(layer, MakeInput([&] {
                       const at::Tensor x = at::randn(sizes).to(type);
                       return std::array{transposed ? x.transpose(0, 1).contiguous().transpose(0, 1) : x};
                     }),
                     {.tolerance = tolerance, .steps = 4});
    }
  }
}

TEST(ShapeGradients, SameElements) {
  const std::vector<Sizes> shapes{{2, 3, 4, 5}, {3, 4}, {0, 3, 4}, {2, 1, 6}};
  for (const Sizes& sizes : shapes) {
    torch::nn::FlattenImpl flatten;
    check(flatten, sizes);
    torch::nn::FlattenImpl leading(torch::nn::FlattenOptions().start_dim(0).end_dim(-2));
    check(leading, sizes);
    torch::nn::IdentityImpl identity;
    check(identity, sizes);
    nn::Reshape reshape({2, -1});
    if (sizes[0] > 0) check(reshape, sizes);
  }
  torch::nn::FlattenImpl vector(torch::nn::FlattenOptions().start_dim(0));
  check(vector, {5});
  check(vector, {});
  torch::nn::UnflattenImpl first(0, {2, -1}), last(-1, {3, 1, 2});
  check(first, {4, 5});
  check(last, {4, 5, 6});
  nn::Reshape fixed({3, 4});
  check(fixed, {0, 12});
  check(fixed, {2, 2, 6});
}

TEST(ShapeGradients, Dimensions) {
  nn::Permute permute({2, 0, -2});
  nn::Transpose transpose(0, -1);
  nn::Squeeze squeeze(-2);
  nn::Unsqueeze before(0), after(-1);
  for (const Sizes& sizes : std::vector<Sizes>{{2, 3, 4}, {3, 1, 5}, {0, 1, 2}, {1, 1, 1}}) {
    check(permute, sizes);
    check(transpose, sizes);
    check(squeeze, sizes);
    check(before, sizes);
    check(after, sizes);
  }
}

TEST(ShapeGradients, Mean) {
  for (const bool keepdim : {false, true}) {
    nn::Mean images({2, 3}, keepdim), time({1}, keepdim), last({-1}, keepdim), all({1, 0}, keepdim);
    check(images, {2, 3, 4, 5});
    check(time, {2, 3, 4});
    check(time, {0, 3, 4});
    check(last, {7, 9});
    check(last, {6});
    check(all, {2, 3});
  }
}

TEST(ShapeGradients, OneOfSeveral) {
  nn::Select<1> layer;
  check_layer<3>(layer,
                 [] {
                   return std::array{at::randn({2}), at::randn({3, 4}), at::randn({5})};
                 },
                 {.tolerance = exact});
}

TEST(ShapeGradients, InAChain) {
  nn::Sequential net{nn::Linear(6, 12),      nn::Tanh(),          nn::Unflatten(1, Sizes{3, 4}),
                     nn::Permute({0, 2, 1}), nn::Flatten(),       nn::ReLU(),
                     nn::Reshape({3, 2, 2}), nn::Transpose(1, 3), nn::Dropout(0.3),
                     nn::Identity(),         nn::Mean({1}),       nn::Unsqueeze(1),
                     nn::Squeeze(1),         nn::Flatten(),       nn::Linear(6, 3)};
  CrossEntropy criterion;
  std::int64_t batch = 4;
  const auto make = [&] {
    batch = batch == 4 ? 5 : 4;
    return std::pair(std::array{at::randn({batch, 6})}, std::array{at::randint(3, {batch}, at::kLong)});
  };
  const auto make_equal = [] {
    return std::pair(std::array{at::randn({4, 6})}, std::array{at::randint(3, {4}, at::kLong)});
  };
  for (const bool training : {true, false}) {
    net.train(training);
    check_step(net, criterion, make, {.steps = 4});
    check_step(net, criterion, make_equal, {.steps = 4, .accumulate = true});
  }
}

/// A step that changes from one probability to another.
TEST(DropoutGradients, ProbabilityChanges) {
  nn::Sequential net{nn::Linear(6, 5), nn::Tanh(), nn::Dropout(0.5), nn::Linear(5, 3)};
  CrossEntropy criterion;
  int step = 0;
  check_step(
      net, criterion,
      [&] {
        net.get<2>().options.p(std::array{0.5, 0.0, 0.2, 1.0, 0.2, 0.2}[static_cast<std::size_t>(step++)]);
        return std::pair(std::array{at::randn({4, 6})}, std::array{at::randint(3, {4}, at::kLong)});
      },
      {.steps = 6});
}

template <class L>
void check_dropout(const std::vector<Sizes>& shapes) {
  for (const double p : {0.0, 0.1, 0.5, 0.9, 1.0}) {
    for (const bool training : {true, false}) {
      L layer(p);
      layer.train(training);
      for (const Sizes& sizes : shapes) check(layer, sizes);
    }
  }
}

TEST(DropoutGradients, SameElementsFallOut) {
  check_dropout<torch::nn::DropoutImpl>({{3, 4, 5}, {2000}, {}, {0, 3}});
  check_dropout<torch::nn::Dropout2dImpl>(
      {{2, 3, 4, 5}, {3, 4, 5}, {2, 3, 2, 2, 2}, {0, 3, 2, 2}, {6, 5}, {4}});
  check_dropout<torch::nn::Dropout3dImpl>({{2, 3, 2, 2, 5}, {3, 4, 5, 2}});
  check_dropout<torch::nn::AlphaDropoutImpl>({{3, 4, 5}, {2000}});
  check_dropout<torch::nn::FeatureAlphaDropoutImpl>({{2, 3, 4, 5}, {6, 5}});
}

TEST(EmbeddingGradients, AnyShape) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const bool by_frequency : {false, true}) {
      for (const int padding : {-100, 0, -2}) {
        auto options = torch::nn::EmbeddingOptions(7, 4).scale_grad_by_freq(by_frequency);
        if (padding != -100) options.padding_idx(padding);
        torch::nn::EmbeddingImpl layer(options);
        layer.to(type);
        for (const Sizes& sizes : std::vector<Sizes>{{5}, {3, 9}, {2, 3, 4}, {}, {0, 3}}) {
          for (const at::ScalarType index : {at::kLong, at::kInt}) {
            const MakeInput make = [&] { return std::array{at::randint(7, sizes, index)}; };
            check_layer<1>(layer, make, {.tolerance = exact});
            check_layer<1>(layer, make, {.accumulate = true});
          }
        }
        check_layer<1>(layer, MakeInput([] {
                         return std::array{at::randint(7, {3, 4}, at::kLong).t()};
                       }),
                       {.tolerance = exact});
        layer.weight.requires_grad_(false);
        check_layer<1>(layer, MakeInput([] {
                         return std::array{at::randint(7, {3, 4}, at::kLong)};
                       }),
                       {.tolerance = exact});
      }
    }
  }
}

TEST(EmbeddingGradients, Large) {
  torch::nn::EmbeddingImpl layer(50, 600);
  check_layer<1>(layer, MakeInput([] {
                   return std::array{at::randint(50, {10, 50}, at::kLong)};
                 }),
                 {.tolerance = exact});
}

TEST(EmbeddingGradients, NormOfRows) {
  torch::nn::EmbeddingImpl layer(torch::nn::EmbeddingOptions(7, 4).max_norm(1.1).norm_type(1));
  check_layer<1>(layer, MakeInput([] { return std::array{at::randint(7, {3, 4}, at::kLong)}; }));
  EXPECT_LE(layer.weight.detach().index_select(0, at::arange(7)).abs().sum(1).max().item<double>(), 100);
  const at::Tensor found = layer.forward(at::arange(7)).abs().sum(1);
  EXPECT_LE(found.max().item<double>(), 1.1 + 1e-5);
}

TEST(EmbeddingGradients, Sparse) {
  auto options = torch::nn::EmbeddingOptions(7, 4);
  torch::nn::EmbeddingImpl dense(options);
  nn::Sequential net{nn::Embedding(options.sparse(true)), nn::Flatten(), nn::Linear(12, 3)};
  CrossEntropy criterion;
  nn::ComposedStep step(net, criterion);
  for (int k = 0; k < 3; ++k) {
    const at::Tensor x = at::randint(7, {5, 3}, at::kLong), y = at::randint(3, {5}, at::kLong);
    const auto weight = net.get<0>().weight;
    (torch::nn::functional::cross_entropy(net.forward(x), y) +
     torch::nn::functional::cross_entropy(net.forward(x), y))
        .backward();
    const at::Tensor expected = weight.grad().to_dense();
    for (const at::Tensor& p : net.parameters()) p.mutable_grad().reset();
    for (int twice = 0; twice < 2; ++twice) {
      step.forward({&x}, {&y});
      static_cast<void>(step.loss());
      step.backward();
    }
    ASSERT_TRUE(weight.grad().is_sparse());
    gradients_test::expect_same(weight.grad().to_dense(), expected, 0, "the sparse gradient");
    for (const at::Tensor& p : net.parameters()) p.mutable_grad().reset();
  }
}

TEST(EmbeddingGradients, Bags) {
  using torch::nn::EmbeddingBagOptions;
  std::vector<EmbeddingBagOptions> cases{
      EmbeddingBagOptions(7, 4).mode(torch::kSum), EmbeddingBagOptions(7, 4).mode(torch::kMean),
      EmbeddingBagOptions(7, 4).mode(torch::kMax),
      EmbeddingBagOptions(7, 4).mode(torch::kSum).padding_idx(-2).scale_grad_by_freq(true),
      EmbeddingBagOptions(7, 4).mode(torch::kMean).include_last_offset(true)};
  for (const EmbeddingBagOptions& options : cases) {
    for (const bool trained : {true, false}) {
      torch::nn::EmbeddingBagImpl layer(options);
      layer.weight.requires_grad_(trained);
      if (!options.include_last_offset()) {
        std::int64_t rows = 2;
        const MakeInput matrix = [&] { return std::array{at::randint(7, {rows, 3}, at::kLong)}; };
        for (rows = 0; rows < 4; ++rows) check_layer<1>(layer, matrix, {.tolerance = exact});
        check_layer<1>(layer, matrix, {.accumulate = true});
      }
      check_layer<2>(layer,
                     [&] {
                       return std::array{at::randint(7, {9}, at::kLong), at::tensor({0, 2, 2, 9}, at::kLong)};
                     },
                     {.tolerance = exact});
    }
  }
  nn::Sequential net{nn::EmbeddingBag(7, 4), nn::Linear(4, 3)};
  CrossEntropy criterion;
  std::int64_t length = 3;
  check_step(net, criterion,
             [&] {
               length = length == 3 ? 4 : 3;
               return std::pair(std::array{at::randint(7, {5, length}, at::kLong)},
                                std::array{at::randint(3, {5}, at::kLong)});
             },
             {.steps = 4});
}

TEST(EmbeddingGradients, InAChain) {
  nn::Sequential net{nn::Embedding(11, 6), nn::Mean({1}), nn::LeakyReLU(), nn::Linear(6, 3)};
  CrossEntropy criterion;
  check_step(net, criterion,
             [] {
               return std::pair(std::array{at::randint(11, {4, 5}, at::kLong)},
                                std::array{at::randint(3, {4}, at::kLong)});
             },
             {.steps = 4, .accumulate = true});
}

/// The rule's own error, without autograd's forward before it.
template <class L>
void expect_rule_error(L& layer, const at::Tensor& x, const std::string& part) {
  typename nn::Rule<L>::Kept kept;
  nn::Workspace workspace;
  nn::Buffer in;
  workspace.begin(false);
  workspace.hold(in, x);
  try {
    nn::Rule<L>::forward(layer, kept, nn::ForwardPass<>{{&in}, workspace});
    FAIL() << "no error, expected: " << part;
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(ShapeGradients, Errors) {
  nn::Reshape reshape({2, 3});
  expect_rule_error(reshape, at::randn({}), "Reshape: the input has no dimensions");
  expect_rule_error(reshape, at::randn({2, 5}), "invalid for input of size 5");
  torch::nn::FlattenImpl flatten(torch::nn::FlattenOptions().start_dim(2).end_dim(1));
  expect_rule_error(flatten, at::randn({2, 3, 4}), "Flatten: start_dim is 2 and end_dim 1");
  expect_rule_error(flatten, at::randn({2}), "Dimension out of range");
  torch::nn::UnflattenImpl unflatten(1, {2, 2});
  expect_rule_error(unflatten, at::randn({2, 3}), "invalid for input of size 3");
  nn::Permute permute({0, 1});
  expect_rule_error(permute, at::randn({2, 3, 4}), "permute");
  EXPECT_THROW(nn::Mean({}), std::invalid_argument);
  nn::Mean twice({1, -1});
  expect_rule_error(twice, at::randn({2, 3}), "appears multiple times");
  nn::Mean mean({2});
  expect_rule_error(mean, at::randn({2, 3}), "Dimension out of range");
  torch::nn::EmbeddingImpl embedding(4, 3);
  expect_rule_error(embedding, at::tensor({0, 4}, at::kLong), "index out of range");
  expect_rule_error(embedding, at::randn({2}),
                    "Embedding: the input is of type Float, expected indices of int64 or int32");
  torch::nn::EmbeddingBagImpl bag(4, 3);
  expect_rule_error(bag, at::zeros({2}, at::kLong),
                    "EmbeddingBag: the input has 1 dimensions, expected 2 without offsets");
  torch::nn::DropoutImpl dropout(0.5);
  dropout.options.p(1.5);
  expect_rule_error(dropout, at::randn({2}), "dropout: p is 1.5, expected a probability");
  torch::nn::FeatureAlphaDropoutImpl channels(0.5);
  expect_rule_error(channels, at::randn({2}), "the input has 1 dimensions, expected 2 or more");
}

/// Gradients that a view layer passes on are not its own.
TEST(ShapeGradients, WhatOthersNeedStays) {
  nn::Sequential net{nn::ReLU(), nn::Flatten()};
  check(net, {2, 3, 4});
}

}  // namespace
