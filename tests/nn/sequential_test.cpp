// Tests nn/sequential.hpp: outputs and names against Python's nn.Sequential (fixtures/nn), access, copies,
// and as a Trainer's module.
#include "../testing.hpp"

#include <fulmen/callbacks/metric_monitor.hpp>
#include <fulmen/callbacks/model_summary.hpp>
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/criteria/criteria.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/metrics/accuracy.hpp>
#include <fulmen/nn/sequential.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/trainer.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <memory>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace {

using namespace fulmen;
using nn::named;
using nn::Sequential;
using torch::nn::BatchNorm1d;
using torch::nn::Linear;
using torch::nn::ReLU;

constexpr auto flatten = [](const at::Tensor& x) { return x.flatten(1); };

/// One of Python's networks: its weights fit strictly, and what comes out is the same.
template <class Net>
void compare(const char* name, Net net) {
  SCOPED_TRACE(name);
  const State saved =
      State(fulmen::checkpoint::read(FULMEN_TEST_DATA_DIR "/nn/sequential.pt")).get<State>(name);
  const State weights = saved.get<State>("state");
  EXPECT_EQ(module_state(net).keys(), weights.keys());
  load_module_state(net, weights);
  net.eval();
  const at::Tensor found = net.forward(saved.get<at::Tensor>("input")),
                   expected = saved.get<at::Tensor>("output");
  EXPECT_TRUE(at::allclose(found, expected, 1e-6, 1e-6)) << found << expected;
}

TEST(Sequential, TakesPythonsWeightsAndGivesItsOutputs) {
  compare("plain", Sequential{Linear(4, 8), ReLU(), Linear(8, 2)});
  compare("convolutions",
          Sequential{torch::nn::Conv2d(1, 2, 3), torch::nn::BatchNorm2d(2), ReLU(), flatten, Linear(32, 3)});
  compare("named", Sequential{named<"fc1">(Linear(4, 5)), named<"norm">(BatchNorm1d(5)),
                              named<"act">(&torch::tanh), named<"fc2">(Linear(5, 1))});
  compare("nested", Sequential{Sequential{Linear(4, 6), ReLU()},
                               Sequential{named<"fc">(Linear(6, 6)), named<"act">(ReLU())}, Linear(6, 2)});
  const Linear layer(4, 4);
  compare("shared", Sequential{layer, torch::nn::Tanh(), layer});
}

struct Twice : torch::nn::Module {
  at::Tensor factor{register_parameter("factor", at::full({1}, 2.0f))};
  at::Tensor forward(const at::Tensor& x) { return x * factor; }
};

TEST(Sequential, TakesHoldersPointersModulesAndCallables) {
  const auto shared = std::make_shared<Twice>();
  Sequential net{shared, Twice{}, [](const at::Tensor& x) { return x + 1; }, &torch::relu};
  static_assert(std::is_same_v<decltype(net.get<0>()), Twice&>);
  EXPECT_EQ(&net.get<0>(), shared.get()) << "a pointer is shared";
  EXPECT_TRUE(net.forward(at::tensor({1.0f, -3.0f})).equal(at::tensor({5.0f, 0.0f})));
  EXPECT_TRUE(net(at::tensor({1.0f})).equal(at::tensor({5.0f})));
  EXPECT_EQ(net.named_children().keys(), (std::vector<std::string>{"0", "1"}));
  EXPECT_EQ(net.size(), 4u);
}

TEST(Sequential, GivesItsLayersByIndexAndName) {
  Sequential net{named<"first">(Linear(4, 8)), ReLU(), named<"last">(Linear(8, 2))};
  static_assert(std::is_same_v<decltype(net.get<"first">()), torch::nn::LinearImpl&>);
  EXPECT_EQ(net.get<"first">().options.out_features(), 8);
  EXPECT_EQ(&net.get<"last">(), &net.get<2>());
  EXPECT_EQ(&net.get<"1">(), &net.get<1>());
  EXPECT_EQ(net.named_children().keys(), (std::vector<std::string>{"first", "1", "last"}));
}

TEST(Sequential, PassesTuplesOnAsTheyAreOrInParts) {
  Sequential net{
      [](const at::Tensor& a, const at::Tensor& b) { return std::pair(a + b, a - b); },
      [](const std::pair<at::Tensor, at::Tensor>& both) { return std::tuple(both.first, both.second, 2); },
      [](const at::Tensor& sum, const at::Tensor& difference, int n) { return sum * difference * n; }};
  EXPECT_EQ(net.forward(at::tensor({5.0f}), at::tensor({3.0f})).item<float>(), 32.0f);
  Sequential lstm{torch::nn::LSTM(torch::nn::LSTMOptions(3, 5).batch_first(true)),
                  [](const at::Tensor& all, const auto&) { return all.select(1, -1); }, Linear(5, 1)};
  EXPECT_EQ(lstm.forward(at::rand({2, 7, 3})).sizes(), (at::IntArrayRef{2, 1}))
      << "forward's defaults are C++'s own";
}

TEST(Sequential, KeepsNothingThatHasBeenPassedOn) {
  // Activations of an evaluation would fill the memory: a tensor's storage must go when the next layer has
  // returned.
  std::vector<at::Tensor> weak;
  int living = -1;
  auto step = [&](const at::Tensor& x) {
    living = 0;
    for (const at::Tensor& t : weak) living += static_cast<int>(t.use_count() > 1);
    at::Tensor y = x + 1;
    weak.push_back(y);
    return y;
  };
  Sequential net{step, step, step, step};
  net.forward(at::zeros({1}));
  EXPECT_EQ(living, 1) << "only the input of the last layer is used by somebody else than this test";
}

TEST(Sequential, NamesALayerThatIsNull) {
  EXPECT_EQ(error_of([] {
              Sequential{ReLU(), Linear(nullptr)};
            }),
            "Sequential: layer 1 is a null pointer, expected a module");
  EXPECT_EQ(error_of([] { Sequential{named<"out">(std::shared_ptr<Twice>())}; }),
            "Sequential: layer out is a null pointer, expected a module");
}

TEST(Sequential, CopiesShareTheirLayersAndClonesDoNot) {
  const Linear tied(4, 4);
  auto net = nn::make_sequential(tied, named<"norm">(BatchNorm1d(4)), ReLU(), tied, Sequential{Linear(4, 2)});
  const at::Tensor x = at::rand({3, 4});
  net->forward(x);  // statistics that are not the first ones
  net->eval();
  const at::Tensor before = net->forward(x);

  const auto copy = std::dynamic_pointer_cast<std::remove_reference_t<decltype(*net)>>(net->clone());
  ASSERT_NE(copy, nullptr);
  EXPECT_EQ(module_state(*copy).keys(), module_state(*net).keys());
  EXPECT_TRUE(copy->forward(x).equal(before));
  EXPECT_EQ(&copy->get<0>(), &copy->get<3>()) << "a layer at two places stays one";
  EXPECT_EQ(copy->parameters().size(), net->parameters().size());
  EXPECT_FALSE(copy->is_training());
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor& p : copy->parameters()) p.zero_();
  }
  EXPECT_TRUE(copy->forward(x).equal(at::zeros({3, 2}))) << "forward uses what is registered";
  EXPECT_TRUE(net->forward(x).equal(before));

  auto other = *net;
  EXPECT_EQ(&other.get<0>(), &net->get<0>());
}

/// A Sequential in a module that LibTorch copies.
auto make_net() { return nn::make_sequential(Linear(2, 2), ReLU()); }
struct HolderImpl : torch::nn::Cloneable<HolderImpl> {
  decltype(make_net()) net;
  HolderImpl() { reset(); }
  void reset() override { net = register_module("net", make_net()); }
};

TEST(Sequential, IsCopiedAsAPartOfAModule) {
  HolderImpl holder;
  const auto copy = std::dynamic_pointer_cast<HolderImpl>(holder.clone());
  ASSERT_NE(copy, nullptr);
  const at::Tensor x = at::rand({3, 2});
  EXPECT_TRUE(copy->net->forward(x).equal(holder.net->forward(x)));
  EXPECT_NE(&copy->net->get<0>(), &holder.net->get<0>());
  EXPECT_TRUE(copy->named_parameters()["net.0.weight"].is_same(copy->net->get<0>().weight));
}

TEST(Sequential, TellsItsLayersOfModeAndType) {
  Sequential net{Sequential{Linear(2, 2), torch::nn::Dropout(0.5)}, Linear(2, 1)};
  net.eval();
  EXPECT_FALSE((net.get<0>().get<1>().is_training()));
  net.train();
  EXPECT_TRUE((net.get<0>().get<1>().is_training()));
  net.to(at::kDouble);
  EXPECT_EQ(net.forward(at::rand({3, 2}, at::kDouble)).scalar_type(), at::kDouble);
}

TEST(Sequential, PrintsItself) {
  std::ostringstream out;
  out << Sequential{named<"fc">(Linear(2, 3)), flatten, Sequential{ReLU()}};
  EXPECT_EQ(out.str(),
            "fulmen::nn::Sequential(\n  (fc): torch::nn::Linear(in_features=2, out_features=3, bias=true)\n"
            "  (2): fulmen::nn::Sequential(\n    (0): torch::nn::ReLU()\n  )\n)");
}

TEST(Sequential, IsATrainersModule) {
  torch::manual_seed(3);
  const at::Tensor x = at::rand({400, 1, 2}) * 2 - 1, y = (x.prod(2).squeeze(1) > 0).to(at::kLong);
  TensorLoader train{{x, y}, {.batch_size = 20, .shuffle = true}};
  TemporaryFolder folder;
  Trainer trainer{Sequential{flatten, named<"in">(Linear(2, 32)), ReLU(), named<"out">(Linear(32, 2))},
                  CrossEntropy{},
                  Adam{.lr = 0.02},
                  none,
                  Identity{},
                  callbacks(MetricMonitor{Accuracy{}}),
                  {.max_epochs = 20},
                  barebones};
  trainer.fit(train);
  EXPECT_GT(trainer.test(train).at("test/accuracy"), 0.95);
  EXPECT_EQ(trainer.predict(train).front().sizes(), (at::IntArrayRef{20, 2}));
  trainer.save(folder.path / "net.ckpt");
  const at::Tensor weight = trainer.module().get<"in">().weight.clone();
  trainer.fit(train);
  trainer.module().get<"in">().weight.data().zero_();
  trainer.load(folder.path / "net.ckpt");
  EXPECT_TRUE(trainer.module().get<"in">().weight.equal(weight));
}

}  // namespace
