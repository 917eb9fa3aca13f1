// Tests optim/averaged_model.hpp against PyTorch's AveragedModel and update_bn (fixtures/schedule/averages.json).
#include "../testing.hpp"

#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/optim/averaged_model.hpp>

#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace fulmen;
using nlohmann::json;

const json& fixtures() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/schedule/averages.json"));
  return all;
}

/// The model of fixtures/schedule/README.md.
struct Net : torch::nn::Module {
  torch::nn::Linear first{register_module("first", torch::nn::Linear(2, 3))};
  torch::nn::BatchNorm1d norm{
      register_module("norm", torch::nn::BatchNorm1d(torch::nn::BatchNormOptions(3).momentum(0.3)))};
  torch::nn::Linear second{register_module("second", torch::nn::Linear(3, 1))};

  Net() {
    to(torch::kDouble);
    // Python's double() leaves integers alone, LibTorch's to() does not.
    norm->num_batches_tracked.set_data(norm->num_batches_tracked.to(torch::kLong));
  }
  torch::Tensor forward(const torch::Tensor& x) { return second(norm(first(x))); }
};

void fill(Net& net, int version) {
  const torch::NoGradGuard no_grad;
  const State state = module_state(net);
  double k = 0;
  for (const std::string& name : state.keys()) {
    const at::Tensor tensor = state.get<at::Tensor>(name);
    if (tensor.is_floating_point()) {
      tensor.copy_(
          (torch::arange(tensor.numel(), torch::kDouble) / 2 + (1 + k + version)).sin().view(tensor.sizes()));
    } else {
      tensor.fill_(10 * version);
    }
    ++k;
  }
}

/// That each tensor of the state is what the fixture has under its name.
void compare(const State& state, const json& expected, double tolerance = 1e-13) {
  EXPECT_EQ(state.size(), expected.size());
  for (const auto& [name, value] : expected.items()) {
    SCOPED_TRACE(name);
    const at::Tensor found = state.get<at::Tensor>(name).flatten().to(torch::kDouble);
    const auto values = value.get<std::vector<double>>();
    ASSERT_EQ(found.numel(), static_cast<std::int64_t>(values.size()));
    EXPECT_LT((found - torch::tensor(values, torch::kDouble)).abs().max().item<double>(), tolerance);
  }
}

template <class A>
void check(const std::string& name, const A& average, AveragedModelOptions options = {},
           double tolerance = 1e-13) {
  SCOPED_TRACE(name);
  Net net;
  fill(net, 0);
  AveragedModel averaged(net, average, options);
  for (int version = 0; version < 6; ++version) {
    // In between the state goes into a new one.
    if (version == 3) {
      AveragedModel other(net, average, options);
      other.load_state_dict(averaged.state_dict());
      averaged = std::move(other);
    }
    fill(net, version);
    averaged.update_parameters(net);
  }
  EXPECT_EQ(averaged.n_averaged(), 6);
  for (const json& run : fixtures()["runs"]) {
    if (run["name"] == name) return compare(averaged.state_dict(), run["state"], tolerance);
  }
  FAIL() << "no such run";
}

TEST(AveragedModel, AveragesAsPyTorchs) {
  check("swa", EqualAverage{});
  check("swa_buffers", EqualAverage{}, {.use_buffers = true});
  // There PyTorch's weight is a tensor, of float32 whatever the parameters are.
  check(
      "swa_multi", [](std::int64_t n) { return 1.0 / static_cast<double>(n + 1); }, {}, 1e-7);
  check("ema", ExponentialAverage{.decay = 0.9});
  check("ema_buffers", ExponentialAverage{.decay = 0.9}, {.use_buffers = true});
  check("ema_warmup", ExponentialAverage{.decay = 0.99, .warmup = true});
}

TEST(AveragedModel, SwapsWithTheModelAndBack) {
  auto net = std::make_shared<Net>();
  // A second name of the same layer: its tensors are averaged, and exchanged, once.
  net->register_module("again", net->first.ptr());
  fill(*net, 0);
  AveragedModel averaged(*net);
  averaged.update_parameters(*net);
  fill(*net, 1);
  averaged.update_parameters(*net);
  const at::Tensor weight = net->first->weight, trained = weight.detach().clone();
  const at::Tensor mean = averaged.state_dict().get<at::Tensor>("module.first.weight").clone();
  EXPECT_FALSE(mean.equal(trained));
  averaged.swap(*net);
  EXPECT_TRUE(weight.equal(mean));
  EXPECT_TRUE(weight.requires_grad());
  averaged.swap(*net);
  EXPECT_TRUE(weight.equal(trained));
  EXPECT_TRUE(averaged.state_dict().get<at::Tensor>("module.again.weight").equal(mean));
  averaged.copy_to(*net);
  EXPECT_TRUE(weight.equal(mean));
}

TEST(AveragedModel, SaysWhatDoesNotFit) {
  Net net;
  AveragedModel averaged(net);
  EXPECT_EQ(error_of([&] { averaged.update_parameters(*net.first); }),
            "AveragedModel: the model has 2 parameters and buffers, expected 9");
  torch::nn::Linear linear(2, 3), wide(2, 4);
  AveragedModel small(*linear);
  EXPECT_EQ(error_of([&] { small.update_parameters(*wide); }),
            "AveragedModel: 'weight' has shape [4, 2], expected [3, 2]");
  EXPECT_EQ(error_of([&] {
              small.update_parameters(*torch::nn::LayerNorm(torch::nn::LayerNormOptions({2, 3})));
            }),
            "AveragedModel: 'weight' has shape [2, 3], expected [3, 2]");
  EXPECT_EQ(error_of([&] { small.load_state_dict(AveragedModel(*wide).state_dict()); }),
            "AveragedModel: 'weight' has shape [4, 2], expected [3, 2]");
  EXPECT_EQ(error_of([&] { AveragedModel(*linear, ExponentialAverage{.decay = 1.5}); }),
            "ExponentialAverage::decay is 1.5, expected 0 to 1");
}

TEST(UpdateBn, ComputesTheStatisticsAsPyTorchs) {
  Net net;
  fill(net, 1);
  net.second->eval();
  std::vector<std::pair<at::Tensor, at::Tensor>> loader;
  for (int b = 0; b < 5; ++b) {
    loader.emplace_back((torch::arange(40, torch::kDouble) * 0.3 + b).sin().view({20, 2}),
                        torch::zeros({20}));
  }
  update_bn(loader, net);
  State found;
  for (const std::string& name : module_state(net).keys()) {
    if (name.starts_with("norm.")) found.set(name, module_state(net).get<at::Tensor>(name));
  }
  compare(found, fixtures()["update_bn"]);
  EXPECT_EQ(net.norm->options.momentum(), 0.3);
  EXPECT_TRUE(net.is_training() && net.norm->is_training());
  EXPECT_FALSE(net.second->is_training()) << "each layer keeps its mode";

  // Nothing to do: the loader is not read.
  struct Untouched {
    const at::Tensor* begin() const { throw std::logic_error("read"); }
    const at::Tensor* end() const { return nullptr; }
  };
  struct Plain : torch::nn::Module {
    at::Tensor forward(const at::Tensor& x) { return x; }
  } plain;
  EXPECT_NO_THROW(update_bn(Untouched{}, plain));
}

}  // namespace
