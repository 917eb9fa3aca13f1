// Tests optim/ and schedule/ against PyTorch: weights and state after 100 steps (fixtures/optim), and the state's round trip.
#include "../testing.hpp"

#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/optim/clip.hpp>
#include <fulmen/optim/param_groups.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/schedule/scheduler.hpp>

#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

namespace {

using namespace fulmen;
using nlohmann::json;

const json& fixtures() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/optim/optimizers.json"));
  return all;
}

/// The problem of fixtures/optim/README.md.
struct Problem {
  std::map<std::string, at::Tensor> t;

  explicit Problem(at::ScalarType dtype) {
    std::int64_t index = 0;
    for (const json& spec : fixtures()["tensors"]) {
      const auto shape = spec["shape"].get<std::vector<std::int64_t>>();
      const at::Tensor flat = at::arange(c10::multiply_integers(shape), at::kDouble) * 0.7 + (1.0 + 3.0 * double(index++));
      t[spec["name"]] = (flat.sin() * spec["scale"].get<double>()).view(shape).to(dtype);
    }
    for (const char* name : {"w1", "b1", "w2", "b2"}) t[name].requires_grad_(true);
  }
  NamedParameters parameters() const {
    return {{"w1", t.at("w1")}, {"b1", t.at("b1")}, {"w2", t.at("w2")}, {"b2", t.at("b2")}};
  }
  at::Tensor loss() const {
    const at::Tensor hidden = at::tanh(at::linear(t.at("x"), t.at("w1"), t.at("b1")));
    return at::mse_loss(at::linear(hidden, t.at("w2"), t.at("b2")), t.at("target"));
  }
};

SGD policy_of(const json& o, SGD p) {
  p.lr = o.value("lr", p.lr), p.momentum = o.value("momentum", p.momentum), p.dampening = o.value("dampening", p.dampening);
  p.weight_decay = o.value("weight_decay", p.weight_decay), p.nesterov = o.value("nesterov", p.nesterov);
  p.maximize = o.value("maximize", p.maximize);
  return p;
}
template <class A>
A policy_of(const json& o, A p) {
  p.lr = o.value("lr", p.lr), p.betas = o.value("betas", p.betas), p.eps = o.value("eps", p.eps);
  p.weight_decay = o.value("weight_decay", p.weight_decay), p.amsgrad = o.value("amsgrad", p.amsgrad);
  p.maximize = o.value("maximize", p.maximize);
  return p;
}

/// Largest difference, relative to the largest element expected.
double distance(const at::Tensor& found, const json& expected) {
  const auto values = expected.is_array() ? expected.get<std::vector<double>>() : std::vector{expected.get<double>()};
  const at::Tensor want = at::tensor(values, at::kDouble), got = found.detach().to(at::kDouble).flatten();
  EXPECT_EQ(got.numel(), want.numel());
  const double scale = want.abs().max().item<double>();
  return (got - want).abs().max().item<double>() / (scale > 0 ? scale : 1);
}

template <class Policy>
void check_run(const json& run, const Policy& defaults) {
  SCOPED_TRACE(run["name"].get<std::string>() + " " + run["dtype"].get<std::string>());
  const bool wide = run["dtype"] == "float64";
  Problem problem(wide ? at::kDouble : at::kFloat);
  auto optimizer = policy_of(run["options"], defaults).bind(problem.parameters());
  for (int step = 0; step < fixtures()["steps"].get<int>(); ++step) {
    // Once in between the state goes through a state dict into a new optimizer: nothing may be lost on the way.
    if (step == 50) {
      auto other = policy_of(run["options"], defaults).bind(problem.parameters());
      other.load_state_dict(State(optimizer.state_dict()));
      optimizer = std::move(other);
    }
    optimizer.zero_grad();
    problem.loss().backward();
    if (!run["late"].is_null() && step < run["late"]["steps"].get<int>()) {
      problem.t.at(run["late"]["parameter"]).mutable_grad().reset();
    }
    optimizer.step();
  }
  // PyTorch's own plain and fused kernels differ by up to 1.1e-13 and 5.4e-5 here.
  const double tolerance = wide ? 1e-12 : 1e-4;
  const char* names[] = {"w1", "b1", "w2", "b2"};
  const State state = State(optimizer.state_dict()).get<State>("state");
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(names[i]);
    EXPECT_LT(distance(problem.t.at(names[i]), run["parameters"][names[i]]), tolerance);
    const json& expected = run["state"].value(names[i], json::object());
    EXPECT_EQ(state.contains(i), !expected.empty());
    for (const auto& [key, value] : expected.items()) {
      SCOPED_TRACE(key);
      EXPECT_LT(distance(state.get<State>(i).get<at::Tensor>(key), value), tolerance);
    }
  }
  EXPECT_LT(std::abs(problem.loss().item<double>() / run["losses"]["100"].get<double>() - 1), tolerance);
}

TEST(Optimizers, AreWherePyTorchsAreAfter100Steps) {
  int runs = 0;
  for (const json& run : fixtures()["runs"]) {
    const std::string kind = run["optimizer"];
    if (kind == "SGD") check_run(run, SGD{});
    else if (kind == "Adam") check_run(run, Adam{});
    else if (kind == "AdamW") check_run(run, AdamW{});
    else FAIL() << "no policy for " << kind;
    ++runs;
  }
  EXPECT_EQ(runs, 30);
}

TEST(Optimizers, SayWhichOptionIsOutOfRange) {
  EXPECT_EQ(error_of([] { Adam{.lr = -1}.bind({}); }), "Adam::lr is -1, expected at least 0");
  EXPECT_EQ(error_of([] { AdamW{.betas = {0.9, 1.0}}.bind({}); }), "AdamW::betas has 1, expected at least 0 and below 1");
  EXPECT_EQ(error_of([] { SGD{.nesterov = true}.bind({}); }),
            "SGD::nesterov needs momentum above 0 (it is 0) and dampening 0 (it is 0)");
}

TEST(Optimizers, SayWhatDoesNotFitInAStateDict) {
  Problem problem(at::kDouble);
  auto optimizer = Adam{}.bind(problem.parameters());
  problem.loss().backward();
  optimizer.step();
  const State state(optimizer.state_dict());
  auto smaller = Adam{}.bind({{"w1", problem.t.at("w1")}});
  EXPECT_EQ(error_of([&] { smaller.load_state_dict(state); }), "optimizer state has 4 parameters, expected 1");
  auto other = Adam{}.bind({{"w2", problem.t.at("w2")}, {"a", problem.t.at("w2")}, {"b", problem.t.at("w2")}, {"c", problem.t.at("w2")}});
  EXPECT_EQ(error_of([&] { other.load_state_dict(state); }),
            "optimizer state of parameter 'w2': exp_avg has shape [5, 4], expected [3, 5]");
}

TEST(ParamGroups, TakeTheirOwnOptionsAndPyTorchsLayout) {
  const auto is_bias = [](std::string_view name) { return name.starts_with("b"); };
  const auto policy = param_groups(AdamW{.lr = 0.01}, group(is_bias, AdamW{.lr = 0.1, .weight_decay = 0}));
  static_assert(OptimizerPolicy<std::remove_const_t<decltype(policy)>>);
  Problem together(at::kDouble), apart(at::kDouble);
  auto optimizer = policy.bind(together.parameters());
  auto weights = AdamW{.lr = 0.01}.bind({{"w1", apart.t.at("w1")}, {"w2", apart.t.at("w2")}});
  auto biases = AdamW{.lr = 0.1, .weight_decay = 0}.bind({{"b1", apart.t.at("b1")}, {"b2", apart.t.at("b2")}});
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
  for (const char* name : {"w1", "b1", "w2", "b2"}) EXPECT_TRUE(together.t.at(name).equal(apart.t.at(name))) << name;
  const auto groups = State(optimizer.state_dict()).get<std::vector<State>>("param_groups");
  EXPECT_EQ(groups[0].get<std::vector<std::int64_t>>("params"), (std::vector<std::int64_t>{0, 1}));
  EXPECT_EQ(groups[1].get<std::vector<std::int64_t>>("params"), (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(groups[1].get<double>("lr"), 0.05);
  EXPECT_EQ(error_of([&] { param_groups(SGD{}, group([](std::string_view) { return false; }, SGD{})).bind(apart.parameters()); }),
            "param_groups: group 1 matches no parameter");
}

TEST(Schedulers, ReduceLROnPlateau) {
  ReduceLROnPlateau scheduler{.factor = 0.5, .patience = 1, .cooldown = 1, .min_lr = 0.2};
  std::vector<ParamGroup> groups{{1.0, 1.0, {}}};
  std::vector<double> found;
  for (const double metric : {3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0}) {
    scheduler.step(metric, groups);
    found.push_back(groups[0].lr);
  }
  // PyTorch 2.15 with the same arguments.
  EXPECT_EQ(found, (std::vector<double>{1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25}));
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

/// The rates of the first n epochs.
template <class S>
std::vector<double> rates(S scheduler, int n, double lr) {
  std::vector<ParamGroup> groups{{lr, lr, {}}};
  fulmen::detail::BoundScheduler<S, Interval::epoch> bound({scheduler, 1, {}}, groups);
  std::vector<double> out;
  for (int i = 0; i < n; ++i) {
    out.push_back(groups[0].lr);
    bound.step();
  }
  return out;
}

TEST(Schedulers, ThundersPolicies) {
  EXPECT_EQ(rates(Switch{{{2, 0.5}, {4, 0.1}}}, 6, 1.0), (std::vector<double>{1, 1, 0.5, 0.5, 0.1, 0.1}));
  EXPECT_EQ(rates(Switch{{{0, 0.5}}}, 2, 1.0), (std::vector<double>{0.5, 0.5}));
  EXPECT_EQ(rates(Multiply{{{1, 0.5}, {3, 0.5}}}, 5, 1.0), (std::vector<double>{1, 0.5, 0.5, 0.25, 0.25}));
  EXPECT_EQ(rates(Schedule{[](std::int64_t epoch) { return 1.0 / (1 + epoch); }}, 3, 9.0),
            (std::vector<double>{1, 0.5, 1.0 / 3}));
}

}  // namespace
