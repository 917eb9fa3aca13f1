// Tests parameter groups and clipping.
#include "../testing.hpp"
#include "fixtures.hpp"

#include <fulmen/optim/clip.hpp>
#include <fulmen/optim/param_groups.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace {

using namespace fulmen;
using fixtures::Problem;

TEST(ParamGroups, TakeTheirOwnOptionsAndPyTorchsLayout) {
  const auto is_bias = [](std::string_view name) { return name.starts_with("b"); };
  const auto policy = param_groups(AdamW{.lr = 0.01}, group(is_bias, AdamW{.lr = 0.1, .weight_decay = 0}));
  static_assert(OptimizerPolicy<std::remove_const_t<decltype(policy)>>);
  Problem together(at::kDouble), apart(at::kDouble);
  auto optimizer = policy.bind(together.parameters());
  auto weights = AdamW{.lr = 0.01}.bind({{"w1", apart.t.at("w1")}, {"w2", apart.t.at("w2")}});
  auto biases =
      AdamW{.lr = 0.1, .weight_decay = 0}.bind({{"b1", apart.t.at("b1")}, {"b2", apart.t.at("b2")}});
  ASSERT_EQ(optimizer.groups().size(), 2u);
  for (int step = 0; step < 20; ++step) {
    if (step == 10) {
      auto other = policy.bind(together.parameters());
      other.load_state_dict(State(optimizer.state_dict()));
      optimizer = std::move(other);
    }
    if (step == 5) optimizer.groups()[1].lr = biases.groups()[0].lr = 0.05;
    optimizer.zero_grad(), weights.zero_grad(), biases.zero_grad();
    together.loss().backward(), apart.loss().backward();
    optimizer.step(), weights.step(), biases.step();
  }
  for (const char* name : {"w1", "b1", "w2", "b2"})
    EXPECT_TRUE(together.t.at(name).equal(apart.t.at(name))) << name;
  const auto groups = State(optimizer.state_dict()).get<std::vector<State>>("param_groups");
  EXPECT_EQ(groups[0].get<std::vector<std::int64_t>>("params"), (std::vector<std::int64_t>{0, 1}));
  EXPECT_EQ(groups[1].get<std::vector<std::int64_t>>("params"), (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(groups[1].get<double>("lr"), 0.05);
  EXPECT_EQ(
      error_of([&] {
        param_groups(SGD{}, group([](std::string_view) { return false; }, SGD{})).bind(apart.parameters());
      }),
      "param_groups: group 1 matches no parameter");
}

TEST(ParamGroups, HandDownWhatSchedulersWrite) {
  const auto is_bias = [](std::string_view name) { return name.starts_with("b"); };
  const auto check = [&](const auto& policy, const auto& key) {
    Problem together(at::kDouble), apart(at::kDouble);
    auto optimizer = param_groups(policy, group(is_bias, policy)).bind(together.parameters());
    auto weights = policy.bind({{"w1", apart.t.at("w1")}, {"w2", apart.t.at("w2")}});
    auto biases = policy.bind({{"b1", apart.t.at("b1")}, {"b2", apart.t.at("b2")}});
    for (int step = 0; step < 6; ++step) {
      if (step == 3) optimizer.groups()[1].momentum = biases.groups()[0].momentum = 0.5;
      together.make_gradients(step), apart.make_gradients(step);
      optimizer.step(), weights.step(), biases.step();
    }
    for (const char* name : fixtures::parameter_names)
      EXPECT_TRUE(together.t.at(name).equal(apart.t.at(name))) << name;
    optimizer.groups()[1].momentum = 0.25,
    optimizer.groups()[1].initial_lr = 0.125;  // not used in a step yet
    const auto groups = State(optimizer.state_dict()).template get<std::vector<State>>("param_groups");
    EXPECT_EQ(key(groups[0]), *weights.groups()[0].momentum);
    EXPECT_EQ(key(groups[1]), 0.25);
    EXPECT_EQ(groups[1].template get<double>("initial_lr"), 0.125);
  };
  check(SGD{.lr = 0.1, .momentum = 0.9}, [](const State& group) { return group.get<double>("momentum"); });
  check(AdamW{.lr = 0.1}, [](const State& group) { return group.get<std::vector<double>>("betas")[0]; });
}

TEST(ParamGroups, AreAsBeforeIfAStateDictDoesNotFit) {
  const auto is_bias = [](std::string_view name) { return name.starts_with("b"); };
  const auto policy =
      param_groups(SGD{.lr = 0.1, .momentum = 0.9}, group(is_bias, SGD{.lr = 0.2, .momentum = 0.9}));
  Problem problem(at::kDouble), twin(at::kDouble), third(at::kDouble);
  auto optimizer = policy.bind(problem.parameters()), other = policy.bind(twin.parameters());
  auto swapped = param_groups(SGD{.lr = 0.5, .momentum = 0.1}, group(is_bias, SGD{.momentum = 0.1}))
                     .bind({{"w1", third.t.at("w1")},
                            {"b1", third.t.at("b2")},
                            {"w2", third.t.at("w2")},
                            {"b2", third.t.at("b1")}});
  third.make_gradients(0);
  swapped.step();
  for (int step = 0; step < 5; ++step) {
    if (step == 2) {
      // The first group fits, the second does not.
      EXPECT_EQ(error_of([&] { optimizer.load_state_dict(State(swapped.state_dict())); }),
                "optimizer state of parameter 'b1': momentum_buffer has shape [3], expected [5]");
      EXPECT_EQ(optimizer.groups()[0].lr, 0.1);
    }
    problem.make_gradients(step), twin.make_gradients(step);
    optimizer.step(), other.step();
  }
  for (const char* name : fixtures::parameter_names)
    EXPECT_TRUE(problem.t.at(name).equal(twin.t.at(name))) << name;
}

TEST(Clip, ByNormAndByValue) {
  const at::Tensor a = at::zeros({2}).requires_grad_(true), b = at::zeros({1}).requires_grad_(true),
                   without = at::zeros({3}).requires_grad_(true);
  const auto set = [&] {
    a.mutable_grad() = at::tensor({3.0f, 0.0f});
    b.mutable_grad() = at::tensor({-4.0f});
  };
  const std::vector<ParamGroup> groups{{0.1, 0.1, {a, b, without}}};
  set();
  EXPECT_NEAR(clip_grad_norm(groups, 1.0).item<float>(), 5.0, 1e-6);
  EXPECT_NEAR(a.grad()[0].item<float>(), 0.6, 1e-5);
  EXPECT_NEAR(b.grad()[0].item<float>(), -0.8, 1e-5);
  set();
  clip_grad_norm(groups, 10.0);
  EXPECT_EQ(a.grad()[0].item<float>(), 3.0f) << "a small norm is left alone";
  clip_grad_value(groups, 3.5);
  EXPECT_EQ(b.grad()[0].item<float>(), -3.5f);
  EXPECT_EQ(a.grad()[0].item<float>(), 3.0f);
}

}  // namespace
