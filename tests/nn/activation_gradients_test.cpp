// Tests nn/activation.hpp: values and gradients of every activation against autograd.
#include "gradients.hpp"

#include <fulmen/nn/activation.hpp>
#include <fulmen/nn/classification.hpp>
#include <fulmen/nn/linear.hpp>

#include <functional>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using gradients_test::check_layer;
using gradients_test::check_step;
using Sizes = std::vector<std::int64_t>;
using MakeInput = std::function<std::array<at::Tensor, 1>()>;

/// Numbers on both sides of all the places where activations change, and these places themselves.
at::Tensor numbers(const Sizes& sizes, at::ScalarType type) {
  at::Tensor x = at::randn(sizes, at::kDouble) * 3;
  const at::Tensor places = at::tensor({-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0, 30.0, -30.0}, at::kDouble);
  const at::Tensor which = at::rand(sizes) < 0.2;
  return at::where(which, places.index({at::randint(10, sizes, at::kLong)}), x).to(type);
}

constexpr double exact = 1e-300;

/// Random shapes and types, transposed inputs, training and evaluation.
/// @param least the fewest dimensions; @param even for GLU; @param tolerance where the input is contiguous,
/// else by type: there, autograd's output is not contiguous, either, and the kernels go through it another
/// way
template <class L>
void check_activation(L& layer, std::int64_t least = 0, bool even = false, double tolerance = exact) {
  std::mt19937 random(7);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  for (int round = 0; round < 10; ++round) {
    const at::ScalarType type = round == 9 ? at::kBFloat16 : round % 2 == 0 ? at::kFloat : at::kDouble;
    layer.to(type);
    layer.train(round % 4 < 2);
    Sizes sizes(static_cast<std::size_t>(least + below(4 - std::min<std::int64_t>(least, 3))));
    for (std::int64_t& size : sizes) size = even ? 2 * (1 + below(5)) : 1 + below(11);
    if (round == 1 && !sizes.empty()) sizes[0] = 0;
    if (round == 3) sizes = even ? Sizes{6, 70, 8} : Sizes{3, 70, 9};
    const bool transposed = round >= 6 && sizes.size() >= 2;
    std::string shape;
    for (const std::int64_t size : sizes) shape += std::to_string(size) + " ";
    SCOPED_TRACE(layer.name() + ": " + shape + c10::toString(type) + (transposed ? " transposed" : ""));
    const MakeInput make = [&] {
      return std::array{transposed ? numbers(sizes, type).transpose(0, 1).contiguous().transpose(0, 1)
                                   : numbers(sizes, type)};
    };
    const double tol = transposed ? 0 : tolerance;
    check_layer<1>(layer, make, {.tolerance = tol, .steps = 4});
    check_layer<1>(layer, make, {.tolerance = tol, .wants_input = false});
  }
  layer.to(at::kFloat);
}

template <class L, class... Options>
void check(const Options&... options) {
  L layer(options...);
  check_activation(layer);
}

using namespace torch::nn;

TEST(ActivationGradients, Clipped) {
  check<ReLUImpl>();
  check<ReLU6Impl>();
  check<HardtanhImpl>();
  check<HardtanhImpl>(HardtanhOptions().min_val(-0.5).max_val(3));
  check<LeakyReLUImpl>();
  check<LeakyReLUImpl>(LeakyReLUOptions().negative_slope(0));
  check<LeakyReLUImpl>(LeakyReLUOptions().negative_slope(-0.5));
  check<ThresholdImpl>(ThresholdOptions(0.5, 20));
  check<ThresholdImpl>(ThresholdOptions(-1, -3));
  check<HardshrinkImpl>();
  check<HardshrinkImpl>(HardshrinkOptions(1));
  check<SoftshrinkImpl>();
  check<SoftshrinkImpl>(SoftshrinkOptions(0));
  check<nn::Hardswish>();
  check<nn::Hardsigmoid>();
}

TEST(ActivationGradients, Smooth) {
  check<ELUImpl>();
  check<ELUImpl>(ELUOptions().alpha(-0.7));
  check<SELUImpl>();
  check<CELUImpl>(CELUOptions().alpha(0.3));
  check<GELUImpl>();
  check<GELUImpl>(GELUOptions().approximate("tanh"));
  check<SiLUImpl>();
  check<MishImpl>();
  check<SigmoidImpl>();
  check<TanhImpl>();
  check<SoftplusImpl>();
  check<SoftplusImpl>(SoftplusOptions().beta(2).threshold(1));
  check<LogSigmoidImpl>();
  check<TanhshrinkImpl>();
  SoftsignImpl softsign;  // its gradient is not autograd's formula
  check_activation(softsign, 0, false, 0);
}

TEST(ActivationGradients, RandomSlope) {
  check<RReLUImpl>();
  check<RReLUImpl>(RReLUOptions().lower(0.2).upper(0.2));
}

TEST(ActivationGradients, Gated) {
  for (const std::int64_t dim : {-1, 0}) {
    GLUImpl layer((GLUOptions(dim)));
    check_activation(layer, 1, true);
  }
}

TEST(ActivationGradients, Softmax) {
  for (const std::int64_t dim : {-1, 0}) {
    SoftmaxImpl softmax(dim);
    check_activation(softmax);
    SoftminImpl softmin(dim);
    check_activation(softmin);
    LogSoftmaxImpl log_softmax(dim);
    check_activation(log_softmax);
  }
  Softmax2dImpl images;
  check_activation(images, 3);
  check_layer<1>(images, MakeInput([] { return std::array{at::randn({2, 3, 4, 5})}; }));
}

TEST(ActivationGradients, TrainedSlope) {
  PReLUImpl one;
  for (const bool trained : {true, false}) {
    one.weight.requires_grad_(trained);
    check_activation(one);
  }
  for (const Sizes& sizes : {Sizes{4, 3}, Sizes{2, 3, 5}, Sizes{0, 3}, Sizes{2, 3, 2, 2}}) {
    for (const bool accumulate : {false, true}) {
      PReLUImpl channels(PReLUOptions().num_parameters(3).init(-0.2));
      check_layer<1>(channels, MakeInput([&] { return std::array{numbers(sizes, at::kFloat)}; }),
                     {.accumulate = accumulate});
    }
  }
}

TEST(ActivationGradients, OverwritesOnlyWhatNobodyNeeds) {
  nn::Sequential net{nn::Linear(5, 6), nn::Tanh(), nn::LeakyReLU(), nn::Tanhshrink(),
                     nn::Hardtanh(),   nn::SiLU(), nn::Softsign(),  nn::Linear(6, 4),
                     nn::Sigmoid(),    nn::GELU(), nn::PReLU(),     nn::LogSoftmax(1)};
  CrossEntropy criterion;
  check_step(net, criterion,
             [] {
               return std::pair(std::array{at::randn({3, 5})}, std::array{at::randint(4, {3}, at::kLong)});
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
    FAIL() << "no error";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(ActivationGradients, Errors) {
  GLUImpl glu;
  expect_rule_error(glu, at::randn({2, 3}), "GLU: dimension 1 of the input is 3, expected an even number");
  expect_rule_error(glu, at::randn({}), "GLU: the input has 0 dimensions");
  Softmax2dImpl images;
  expect_rule_error(images, at::randn({2, 3}), "Softmax2d: the input has 2 dimensions, expected 3 or 4");
  RReLUImpl rrelu(RReLUOptions().lower(0.5).upper(0.2));
  expect_rule_error(rrelu, at::randn({2, 3}),
                    "RReLU: lower is 0.5 and upper is 0.2, expected lower <= upper");
  CELUImpl celu(CELUOptions().alpha(1));
  celu.options.alpha(0);
  expect_rule_error(celu, at::randn({2, 3}), "CELU: alpha is 0, expected another number");
  GELUImpl gelu(GELUOptions().approximate("cosh"));
  expect_rule_error(gelu, at::randn({2, 3}), "approximate");
  SoftmaxImpl softmax(2);
  expect_rule_error(softmax, at::randn({2, 3}), "Dimension out of range");
  PReLUImpl prelu(PReLUOptions().num_parameters(4));
  expect_rule_error(prelu, at::randn({2, 3}), "parameter");
}

}  // namespace
