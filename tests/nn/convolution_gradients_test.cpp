// Tests nn/convolution.hpp and nn/pooling.hpp: gradients against autograd.
#include "gradients.hpp"

#include <fulmen/nn/activation.hpp>
#include <fulmen/nn/classification.hpp>
#include <fulmen/nn/convolution.hpp>
#include <fulmen/nn/linear.hpp>
#include <fulmen/nn/pooling.hpp>

#include <random>
#include <type_traits>
#include <utility>

namespace {

using namespace fulmen;
using gradients_test::check_layer;
using gradients_test::check_step;
using Sizes = std::vector<std::int64_t>;

/// The same bits.
constexpr double exact = 1e-300;

std::mt19937 generator(7);

std::int64_t pick(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
}
template <std::size_t D>
torch::ExpandingArray<D> picks(std::int64_t low, std::int64_t high) {
  std::array<std::int64_t, D> out;
  for (std::int64_t& v : out) v = pick(low, high);
  return out;
}

/// Inputs of this shape: as they come, transposed, and with channels last.
at::Tensor input(const Sizes& sizes, at::ScalarType type, int layout) {
  const at::Tensor x = at::randn(sizes, type);
  if (layout == 1)
    return at::randn(Sizes(sizes.rbegin(), sizes.rend()), type).permute([&] {
      Sizes order;
      for (std::size_t i = sizes.size(); i-- > 0;) order.push_back(static_cast<std::int64_t>(i));
      return order;
    }());
  if (layout == 2 && sizes.size() == 4) return x.contiguous(at::MemoryFormat::ChannelsLast);
  if (layout == 2 && sizes.size() == 5) return x.contiguous(at::MemoryFormat::ChannelsLast3d);
  return x;
}

template <std::size_t D>
Sizes sizes(std::int64_t channels, std::int64_t low, std::int64_t high) {
  Sizes out;
  if (pick(0, 4) > 0) out.push_back(pick(1, 3));
  out.push_back(channels);
  for (std::size_t i = 0; i < D; ++i) out.push_back(pick(low, high));
  return out;
}

template <std::size_t D, class Layer>
void check_any(Layer& layer, const Sizes& shape, const std::string& what, double tolerance = exact) {
  const auto type = pick(0, 1) == 0 ? at::kFloat : at::kDouble;
  // Without a batch, ATen's kernels of three dimensions do not know channels last.
  const int layout = static_cast<int>(pick(0, shape.size() == D + 2 ? 2 : 1));
  std::string name =
      what + (type == at::kFloat ? " float" : " double") + " layout " + std::to_string(layout) + " of";
  for (const std::int64_t n : shape) name += " " + std::to_string(n);
  SCOPED_TRACE(name);
  layer.to(type);
  for (const at::Tensor& p : layer.parameters()) p.requires_grad_(pick(0, 3) > 0);
  check_layer<1>(layer, [&] { return std::array{input(shape, type, layout)}; },
                 {.tolerance = tolerance, .wants_input = pick(0, 3) > 0, .accumulate = pick(0, 1) == 0});
}

template <std::size_t D, class Impl>
void check_convolutions() {
  for (int round = 0; round < 24; ++round) {
    const std::int64_t groups = pick(1, 2), in = groups * pick(1, 3), out = groups * pick(1, 3);
    torch::nn::ConvOptions<D> options(in, out, picks<D>(1, 3));
    options.groups(groups).bias(pick(0, 2) > 0).dilation(picks<D>(1, 2));
    const int mode = static_cast<int>(pick(0, 5));
    if (mode < 3)
      options.stride(picks<D>(1, 2)).padding(picks<D>(0, 2));
    else if (mode == 3)
      options.padding(torch::kSame);
    else if (mode == 4)
      options.padding(torch::kValid).stride(picks<D>(1, 2));
    else if (pick(0, 2) > 0)
      options.padding(picks<D>(0, 2));
    else
      options.padding(torch::kSame);
    const int filled = mode == 5 ? static_cast<int>(pick(0, 2)) : -1;
    if (filled == 0) options.padding_mode(torch::kReflect);
    if (filled == 1) options.padding_mode(torch::kReplicate);
    if (filled == 2) options.padding_mode(torch::kCircular);
    Impl layer(options);
    check_any<D>(layer, sizes<D>(in, 5, 7), "mode " + std::to_string(mode) + " " + std::to_string(filled));
  }
}
template <std::size_t D, class Impl>
void check_transposed() {
  for (int round = 0; round < 12; ++round) {
    const std::int64_t groups = pick(1, 2), in = groups * pick(1, 3), out = groups * pick(1, 3);
    torch::nn::ConvTransposeOptions<D> options(in, out, picks<D>(1, 3));
    options.groups(groups)
        .bias(pick(0, 2) > 0)
        .stride(2)
        .dilation(picks<D>(1, 2))
        .padding(picks<D>(0, 1))
        .output_padding(picks<D>(0, 1));
    Impl layer(options);
    check_any<D>(layer, sizes<D>(in, 3, 5), "transposed");
  }
}

TEST(ConvolutionGradients, AnyOptions) {
  check_convolutions<1, torch::nn::Conv1dImpl>();
  check_convolutions<2, torch::nn::Conv2dImpl>();
  check_convolutions<3, torch::nn::Conv3dImpl>();
}

TEST(ConvolutionGradients, Transposed) {
  check_transposed<1, torch::nn::ConvTranspose1dImpl>();
  check_transposed<2, torch::nn::ConvTranspose2dImpl>();
  check_transposed<3, torch::nn::ConvTranspose3dImpl>();
}

TEST(ConvolutionGradients, EmptyBatch) {
  torch::nn::Conv2dImpl layer(torch::nn::Conv2dOptions(3, 2, 3));
  check_layer<1>(layer, [] { return std::array{at::randn({0, 3, 5, 6})}; });
}

TEST(ConvolutionGradients, Bfloat16) {
  torch::nn::Conv2dImpl layer(torch::nn::Conv2dOptions(3, 4, 3).padding(1));
  layer.to(at::kBFloat16);
  const auto make = [] { return std::array{at::randn({2, 3, 5, 6}, at::kBFloat16)}; };
  check_layer<1>(layer, make, {.tolerance = exact});
  torch::nn::MaxPool2dImpl max(2);
  check_layer<1>(max, make, {.tolerance = exact});
  torch::nn::AdaptiveAvgPool2dImpl mean(1);
  check_layer<1>(mean, make, {.tolerance = exact});
}

TEST(ConvolutionGradients, BadShapesAreErrors) {
  torch::nn::Conv2dImpl layer(torch::nn::Conv2dOptions(3, 4, 3));
  const at::AutoDispatchBelowADInplaceOrView below;
  for (const Sizes& shape : std::vector<Sizes>{{4, 3}, {2, 4, 5, 5}, {1, 2, 3, 4, 5}, {1, 3, 2, 2}}) {
    nn::Rule<torch::nn::Conv2dImpl>::Kept kept;
    nn::Workspace workspace;
    nn::Buffer in;
    workspace.begin(false);
    workspace.hold(in, at::randn(shape));
    EXPECT_ANY_THROW(nn::Rule<torch::nn::Conv2dImpl>::forward(layer, kept, {{&in}, workspace}));
  }
}

template <std::size_t D, class Impl>
void check_pooling(const Impl& of, Sizes shape, const char* what) {
  Impl layer(of);
  check_any<D>(layer, shape, what);
  if (shape.size() > 0 && pick(0, 7) == 0) {
    shape.front() = 0;
    bool empty_is_right = true;
    try {
      static_cast<void>(layer.forward(at::randn(shape)));
    } catch (const c10::Error&) {
      empty_is_right = false;
    }
    if (empty_is_right) check_any<D>(layer, shape, what);
  }
}
template <std::size_t D, class Max, class Average>
void check_windows() {
  for (int round = 0; round < 30; ++round) {
    torch::nn::MaxPoolOptions<D> options(picks<D>(2, 3));
    if (pick(0, 1) == 0) options.stride(picks<D>(1, 3));
    options.padding(picks<D>(0, 1)).ceil_mode(pick(0, 1) == 0).dilation(picks<D>(1, 2));
    check_pooling<D>(Max(options), sizes<D>(pick(1, 3), 5, 8), "max");
    torch::nn::AvgPoolOptions<D> average(options.kernel_size());
    average.stride(options.stride())
        .padding(options.padding())
        .ceil_mode(options.ceil_mode())
        .count_include_pad(pick(0, 1) == 0);
    if (pick(0, 3) == 0) average.divisor_override(3);
    check_pooling<D>(Average(average), sizes<D>(pick(1, 3), 5, 8), "average");
  }
}
template <std::size_t D, class Max, class Average>
void check_adaptive() {
  for (int round = 0; round < 20; ++round) {
    const auto size = round % 4 == 0 ? torch::ExpandingArray<D>(1) : picks<D>(1, 4);
    using Size = std::remove_cvref_t<decltype(std::declval<Max>().options.output_size())>;
    Size of(at::IntArrayRef(size).vec());
    if constexpr (D > 1) {
      if (round % 4 == 1) (*of)[1] = std::nullopt;
    }
    check_pooling<D>(Max(of), sizes<D>(pick(1, 3), 2, 7), "adaptive max");
    check_pooling<D>(Average(of), sizes<D>(pick(1, 3), 2, 7), "adaptive average");
  }
}

TEST(PoolingGradients, Windows) {
  check_windows<1, torch::nn::MaxPool1dImpl, torch::nn::AvgPool1dImpl>();
  check_windows<2, torch::nn::MaxPool2dImpl, torch::nn::AvgPool2dImpl>();
  check_windows<3, torch::nn::MaxPool3dImpl, torch::nn::AvgPool3dImpl>();
}

TEST(PoolingGradients, Adaptive) {
  check_adaptive<1, torch::nn::AdaptiveMaxPool1dImpl, torch::nn::AdaptiveAvgPool1dImpl>();
  check_adaptive<2, torch::nn::AdaptiveMaxPool2dImpl, torch::nn::AdaptiveAvgPool2dImpl>();
  check_adaptive<3, torch::nn::AdaptiveMaxPool3dImpl, torch::nn::AdaptiveAvgPool3dImpl>();
}

TEST(PoolingGradients, WithoutARule) {
  torch::nn::LPPool2dImpl layer(torch::nn::LPPool2dOptions(2, 2));
  static_assert(!nn::HasRule<torch::nn::LPPool2dImpl> && nn::HasRule<torch::nn::MaxPool2dImpl>);
  check_layer<1>(layer, [] { return std::array{at::rand({2, 3, 6, 6})}; });
}

TEST(PoolingGradients, BadShapesAreErrors) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const auto fails = [](const torch::nn::MaxPool2dOptions& options, const Sizes& shape) {
    torch::nn::MaxPool2dImpl layer(options);
    nn::Rule<torch::nn::MaxPool2dImpl>::Kept kept;
    nn::Workspace workspace;
    nn::Buffer in;
    workspace.begin(false);
    workspace.hold(in, at::randn(shape));
    EXPECT_ANY_THROW(nn::Rule<torch::nn::MaxPool2dImpl>::forward(layer, kept, {{&in}, workspace}));
  };
  fails(torch::nn::MaxPool2dOptions(2), {4, 4});
  fails(torch::nn::MaxPool2dOptions(2), {1, 2, 3, 4, 4});
  fails(torch::nn::MaxPool2dOptions(5), {1, 2, 4, 4});
  fails(torch::nn::MaxPool2dOptions(2).padding(2), {1, 2, 4, 4});
  fails(torch::nn::MaxPool2dOptions(2).stride(0), {1, 2, 4, 4});
}

TEST(ConvolutionGradients, HaveTheLayoutOfTheirParameters) {
  constexpr auto flatten = [](const at::Tensor& x) { return x.flatten(1); };
  nn::Sequential net{nn::Conv2d(4, 3, 3), nn::AdaptiveAvgPool2d(1), flatten};
  CrossEntropy criterion;
  nn::ComposedStep<decltype(net), CrossEntropy> step(net, criterion);
  const at::Tensor x = at::randn({2, 4, 6, 6}).contiguous(at::MemoryFormat::ChannelsLast),
                   y = at::zeros({2}, at::kLong);
  step.forward({&x}, {&y});
  step.loss();
  step.backward();
  for (const at::Tensor& p : net.parameters()) EXPECT_EQ(p.grad().strides(), p.strides());
}

/// A whole net, in the memory that a plan shares out.
TEST(ComposedStep, ConvolutionalNet) {
  constexpr auto flatten = [](const at::Tensor& x) { return x.flatten(1); };
  nn::Sequential net{nn::Conv2d(nn::Conv2dOptions(1, 4, 3).padding(1)),
                     nn::ReLU(),
                     nn::MaxPool2d(2),
                     nn::Conv2d(4, 6, 3),
                     nn::ReLU(),
                     nn::AvgPool2d(2),
                     nn::AdaptiveAvgPool2d(1),
                     flatten,
                     nn::Linear(6, 3)};
  CrossEntropy criterion;
  for (const bool frozen : {false, true}) {
    for (const at::Tensor& p : net.get<0>().parameters()) p.requires_grad_(!frozen);
    std::int64_t batch = 4;
    check_step(net, criterion,
               [&] {
                 batch = batch == 4 ? 3 : 4;
                 return std::pair(std::array{at::randn({batch, 1, 12, 12})},
                                  std::array{at::randint(3, {batch}, at::kLong)});
               },
               {.steps = 6, .accumulate = true});
    check_step(net, criterion,
               [&] {
                 return std::pair(std::array{at::randn({batch, 1, 12, 12})},
                                  std::array{at::randint(3, {batch}, at::kLong)});
               },
               {.steps = 4});
  }
}

}  // namespace
