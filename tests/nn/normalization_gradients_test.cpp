// Tests nn/normalization.hpp: gradients and running statistics against autograd.
#include "gradients.hpp"

#include <fulmen/nn/activation.hpp>
#include <fulmen/nn/classification.hpp>
#include <fulmen/nn/linear.hpp>
#include <fulmen/nn/normalization.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>

namespace {

using namespace fulmen;
using gradients_test::check_layer;
using gradients_test::check_step;
using Sizes = std::vector<std::int64_t>;

/// The same bits.
constexpr double exact = 1e-300;

std::mt19937 generator(11);

std::int64_t pick(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
}

/// As it comes, with the first two dimensions swapped, or with channels last.
at::Tensor input(Sizes sizes, at::ScalarType type, int layout) {
  if (layout == 1 && sizes.size() > 1) {
    std::swap(sizes[0], sizes[1]);
    return at::randn(sizes, type).transpose(0, 1);
  }
  const at::Tensor x = at::randn(sizes, type);
  if (layout == 2 && sizes.size() == 4) return x.contiguous(at::MemoryFormat::ChannelsLast);
  if (layout == 2 && sizes.size() == 5) return x.contiguous(at::MemoryFormat::ChannelsLast3d);
  return x;
}

template <class Layer>
void check_any(Layer& layer, const Sizes& shape, std::string what, double tolerance_of_permuted = exact) {
  const auto type = pick(0, 1) == 0 ? at::kFloat : at::kDouble;
  const int layout = static_cast<int>(pick(0, 2));
  what += (type == at::kFloat ? " float" : " double") + (" layout " + std::to_string(layout)) + " of";
  for (const std::int64_t n : shape) what += " " + std::to_string(n);
  SCOPED_TRACE(what);
  layer.to(type);
  for (const at::Tensor& p : layer.parameters()) {
    const at::NoGradGuard no_grad;
    p.uniform_(0.5, 1.5);
    p.requires_grad_(pick(0, 3) > 0);
  }
  layer.train(pick(0, 2) > 0);
  check_layer<1>(layer, [&] { return std::array{input(shape, type, layout)}; },
                 {.tolerance = layout == 0 ? exact : tolerance_of_permuted,
                  .wants_input = pick(0, 3) > 0,
                  .accumulate = pick(0, 1) == 0});
}

template <std::size_t D>
Sizes sizes(std::int64_t n, std::int64_t channels) {
  Sizes out{n, channels};
  for (std::size_t i = 0; i < D; ++i) out.push_back(pick(1, 5));
  out.back() = std::max<std::int64_t>(2, out.back());
  return out;
}

template <std::size_t D, class Batch, class Instance>
void check_channels() {
  for (int round = 0; round < 30; ++round) {
    const std::int64_t channels = pick(1, 4);
    torch::nn::BatchNormOptions options(channels);
    options.affine(pick(0, 2) > 0).track_running_stats(pick(0, 2) > 0);
    if (pick(0, 3) == 0) options.momentum(std::nullopt);
    Batch batch(options);
    Sizes shape = sizes<D>(round % 10 == 0 ? 0 : pick(1, 4), channels);
    if (D == 1 && pick(0, 1) == 0) shape.pop_back(), shape[0] = shape[0] == 0 ? 0 : shape[0] + 1;
    check_any(batch, shape, options.affine() ? "batch, affine" : "batch");

    torch::nn::InstanceNormOptions instance(channels);
    instance.affine(pick(0, 1) == 0).track_running_stats(pick(0, 1) == 0);
    Instance layer(instance);
    Sizes of_instances = sizes<D>(pick(1, 4), channels);
    if (pick(0, 4) == 0) of_instances.erase(of_instances.begin());
    check_any(layer, of_instances, instance.affine() ? "instance, affine" : "instance");
  }
}

TEST(NormalizationGradients, Channels) {
  check_channels<1, torch::nn::BatchNorm1dImpl, torch::nn::InstanceNorm1dImpl>();
  check_channels<2, torch::nn::BatchNorm2dImpl, torch::nn::InstanceNorm2dImpl>();
  check_channels<3, torch::nn::BatchNorm3dImpl, torch::nn::InstanceNorm3dImpl>();
}

TEST(NormalizationGradients, LayersAndGroups) {
  for (int round = 0; round < 60; ++round) {
    Sizes shape;
    for (std::int64_t i = pick(1, 4); i-- > 0;) shape.push_back(pick(1, 5));
    if (shape.size() > 1 && round % 10 == 0) shape[0] = 0;
    const auto last = pick(1, std::max<std::int64_t>(1, static_cast<std::int64_t>(shape.size()) - 1));
    const Sizes normalized(shape.end() - last, shape.end());
    torch::nn::LayerNormImpl layer(
        torch::nn::LayerNormOptions(normalized).elementwise_affine(pick(0, 2) > 0));
    check_any(layer, shape, "layer");
    const std::optional<double> eps = pick(0, 1) == 0 ? std::optional(1e-5) : std::nullopt;
    nn::RMSNorm rms(normalized, eps, pick(0, 2) > 0);
    check_any(rms, shape, "rms", 1e-4);

    const std::int64_t groups = pick(1, 3), channels = groups * pick(1, 3);
    torch::nn::GroupNormImpl group(torch::nn::GroupNormOptions(groups, channels).affine(pick(0, 2) > 0));
    Sizes of_groups{round % 10 == 0 ? 0 : pick(1, 4), channels};
    for (std::int64_t i = pick(0, 3); i-- > 0;) of_groups.push_back(pick(1, 5));
    check_any(group, of_groups, "group");
  }
}

TEST(NormalizationGradients, Bfloat16) {
  const auto make = [] { return std::array{at::randn({4, 6, 5}, at::kBFloat16)}; };
  torch::nn::LayerNormImpl layer(torch::nn::LayerNormOptions({6, 5}));
  torch::nn::GroupNormImpl group(2, 6);
  nn::RMSNorm rms(5);
  torch::nn::BatchNorm1dImpl batch(6);
  for (const bool mixed : {false, true}) {
    if (!mixed)
      layer.to(at::kBFloat16), group.to(at::kBFloat16), rms.to(at::kBFloat16), batch.to(at::kBFloat16);
    else
      batch.to(at::kFloat), group.to(at::kFloat), layer.to(at::kFloat), rms.to(at::kFloat);
    check_layer<1>(layer, make, {.tolerance = exact});
    check_layer<1>(group, make, {.tolerance = exact});
    if (!mixed) check_layer<1>(rms, make);
    check_layer<1>(batch, make, {.tolerance = exact});
  }
}

TEST(NormalizationGradients, RmsNormIsPythons) {
  nn::RMSNorm layer({3});
  EXPECT_EQ(layer.named_parameters().keys(), std::vector<std::string>{"weight"});
  const at::Tensor x = at::tensor({3.0, 0.0, 4.0});
  // The mean of the squares is 25/3.
  EXPECT_TRUE(at::allclose(layer.forward(x), x * std::sqrt(3.0 / 25), 1e-6));
  EXPECT_THROW(nn::RMSNorm(Sizes{}), std::invalid_argument);
}

TEST(NormalizationGradients, BadShapesAreErrors) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const auto fails = [](auto layer, const Sizes& shape) {
    using R = nn::Rule<decltype(layer)>;
    typename R::Kept kept;
    nn::Workspace workspace;
    nn::Buffer in;
    workspace.begin(false);
    workspace.hold(in, at::randn(shape));
    EXPECT_ANY_THROW(R::forward(layer, kept, {{&in}, workspace}));
  };
  fails(torch::nn::BatchNorm2dImpl(3), {2, 3, 4});
  fails(torch::nn::BatchNorm2dImpl(3), {2, 4, 4, 4});
  fails(torch::nn::BatchNorm2dImpl(3), {1, 3, 1, 1});
  fails(torch::nn::GroupNormImpl(2, 4), {2, 6, 3});
  fails(torch::nn::GroupNormImpl(2, 4), {4});
  fails(torch::nn::LayerNormImpl(torch::nn::LayerNormOptions({4})), {2, 3});
  fails(nn::RMSNorm(4), {2, 3});
  fails(nn::RMSNorm(Sizes{3, 4}), {4});
}

/// A whole net, in the memory that a plan shares out.
TEST(ComposedStep, NormalizedNet) {
  // Without the bias before the batch's mean is taken off: its gradient is nothing but rounding.
  nn::Sequential net{nn::Linear(nn::LinearOptions(6, 8).bias(false)),
                     nn::BatchNorm1d(8),
                     nn::ReLU(),
                     nn::LayerNorm(nn::LayerNormOptions({8})),
                     nn::Linear(8, 8),
                     nn::RMSNorm(8),
                     nn::ReLU(),
                     nn::GroupNorm(2, 8),
                     nn::Linear(8, 3)};
  CrossEntropy criterion;
  for (const bool training : {true, false}) {
    net.train(training);
    std::int64_t batch = 4;
    check_step(
        net, criterion,
        [&] {
          batch = batch == 4 ? 7 : 4;
          return std::pair(std::array{at::randn({batch, 6})}, std::array{at::randint(3, {batch}, at::kLong)});
        },
        {.tolerance = 2e-5, .steps = 4, .accumulate = true});
    check_step(
        net, criterion,
        [&] {
          return std::pair(std::array{at::randn({batch, 6})}, std::array{at::randint(3, {batch}, at::kLong)});
        },
        {.tolerance = 2e-5, .steps = 4});
  }
}

}  // namespace
