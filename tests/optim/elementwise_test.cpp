// Tests the elementwise optimizers: against PyTorch's weights and state (fixtures/optim) on both of their
// ways through the parameters, with every layout of parameters and gradients, and with state dicts that fit
// and that do not.
#include "../testing.hpp"
#include "fixtures.hpp"

#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/optim/param_groups.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using fixtures::json;
using fixtures::Problem;

// Tensors of some elements: threads that wait for each other would take most of the time.
const bool one_thread [[maybe_unused]] = (at::set_num_threads(1), true);

const std::vector<std::string> kinds = {"SGD",      "Adam",    "AdamW",   "NAdam", "RAdam", "Adamax",
                                        "Adadelta", "Adagrad", "RMSprop", "Rprop", "ASGD",  "Lion"};

/// A parameter that sends all to ATen's kernels for lists: bfloat16 is not taken in one pass. It never has a
/// gradient.
NamedParameters by_lists(NamedParameters parameters) {
  parameters.push_back({"unused", at::zeros({1}, at::kBFloat16).requires_grad_(true)});
  return parameters;
}

/// Largest difference, relative to the largest element expected.
double distance(const at::Tensor& found, const json& expected) {
  const auto values =
      expected.is_array() ? expected.get<std::vector<double>>() : std::vector{expected.get<double>()};
  // The numbers in the file are exact in the type they come from.
  const at::Tensor want = at::tensor(values, at::kDouble).to(found.scalar_type()).to(at::kDouble);
  const at::Tensor got = found.detach().to(at::kDouble).flatten();
  EXPECT_EQ(got.numel(), want.numel());
  const double scale = want.abs().max().item<double>();
  return (got - want).abs().max().item<double>() / (scale > 0 ? scale : 1);
}

template <class Optimizer>
void expect_pythons(const json& run, const Problem& problem, const Optimizer& optimizer, double tolerance) {
  const State states = State(optimizer.state_dict()).template get<State>("state");
  for (int i = 0; i < 4; ++i) {
    const char* name = fixtures::parameter_names[static_cast<std::size_t>(i)];
    SCOPED_TRACE(name);
    EXPECT_LE(distance(problem.t.at(name), run["parameters"][name]), tolerance);
    const json& expected = run["state"].value(name, json::object());
    ASSERT_EQ(states.contains(i), !expected.empty());
    if (expected.empty()) continue;
    EXPECT_EQ(states.get<State>(i).size(), expected.size());
    for (const auto& [key, value] : expected.items()) {
      SCOPED_TRACE(key);
      EXPECT_LE(distance(states.get<State>(i).get<at::Tensor>(key), value), tolerance);
    }
  }
}

template <class Policy>
void check_run(const json& run, const Policy& policy, bool lists) {
  const std::string type = run["dtype"];
  SCOPED_TRACE(run["name"].get<std::string>() + " " + type + (lists ? " by lists" : " in one pass"));
  Problem problem(type == "float64"   ? at::kDouble
                  : type == "float32" ? at::kFloat
                                      : at::kBFloat16,
                  run["late"]);
  const NamedParameters parameters = lists ? by_lists(problem.parameters()) : problem.parameters();
  auto optimizer = policy.bind(parameters);
  for (int step = 0; step < fixtures::file()["steps"].get<int>(); ++step) {
    // Once in between the state goes through a state dict into a new optimizer: nothing may be lost on the
    // way.
    if (step == fixtures::file()["saved"].get<int>()) {
      auto other = policy.bind(parameters);
      other.load_state_dict(State(optimizer.state_dict()));
      optimizer = std::move(other);
    }
    problem.make_gradients(step);
    optimizer.step();
  }
  // bfloat16: 1/256 is the distance of two neighbours. Of ASGD and Lion there is no implementation of
  // Python's that rounds as ours does.
  const bool alike = run["optimizer"] != "ASGD" && run["optimizer"] != "Lion";
  expect_pythons(run, problem, optimizer,
                 type == "float64"   ? 1e-12
                 : type == "float32" ? 1e-6
                 : alike             ? 1. / 128
                                     : 1. / 8);
}

TEST(Elementwise, AreWherePyTorchsAreAfter100Steps) {
  std::set<std::string> seen;
  for (const json& run : fixtures::file()["runs"]) {
    fixtures::with_policy(run["optimizer"], [&](const auto& defaults) {
      const auto policy = fixtures::policy_of(run["options"], defaults);
      if (run["dtype"] != "bfloat16") check_run(run, policy, false);
      check_run(run, policy, true);
    });
    seen.insert(run["optimizer"].get<std::string>());
  }
  EXPECT_EQ(seen.size(), kinds.size());
}

TEST(Elementwise, GoOnFromPythonsStateDicts) {
  const State all(checkpoint::read(FULMEN_TEST_DATA_DIR "/optim/states.pt"));
  EXPECT_EQ(all.size(), kinds.size());
  for (const json& run : fixtures::file()["runs"]) {
    const std::string name = run["name"];
    if (run["dtype"] != "float64" || !all.contains(name)) continue;
    SCOPED_TRACE(name);
    for (const bool lists : {false, true}) {
      Problem problem(at::kDouble, run["late"]);
      const State saved = all.get<State>(name);
      {
        const at::NoGradGuard no_grad;
        for (const char* p : fixtures::parameter_names) {
          problem.t.at(p).copy_(saved.get<State>("parameters").get<at::Tensor>(p));
        }
      }
      fixtures::with_policy(run["optimizer"], [&](auto policy) {
        // The options are those of the state dict, not of the policy.
        policy.lr = 0.5;
        State state = saved.get<State>("optimizer");
        if (lists) {  // one parameter more
          State group = state.get<std::vector<State>>("param_groups")[0];
          State changed;
          for (const std::string& key : group.keys()) changed.set(key, group.get<c10::IValue>(key));
          changed.set("params", std::vector<std::int64_t>{0, 1, 2, 3, 4});
          state = State()
                      .set("state", state.get<State>("state"))
                      .set("param_groups", std::vector<State>{changed});
        }
        auto optimizer = policy.bind(lists ? by_lists(problem.parameters()) : problem.parameters());
        optimizer.load_state_dict(state);
        EXPECT_EQ(optimizer.groups()[0].lr, run["options"].value("lr", optimizer.groups()[0].lr));
        for (int step = fixtures::file()["saved"]; step < fixtures::file()["steps"].get<int>(); ++step) {
          problem.make_gradients(step);
          optimizer.step();
        }
        expect_pythons(run, problem, optimizer, 1e-12);
      });
    }
  }
}

/// Some steps with gradients that depend on the step alone. @return the parameters' values after them
template <class Policy>
std::vector<at::Tensor> walk(const Policy& policy, const std::vector<at::Tensor>& parameters, bool lists,
                             bool transposed_gradients = false, int steps = 12) {
  NamedParameters named;
  for (const at::Tensor& p : parameters) named.push_back({"p" + std::to_string(named.size()), p});
  auto optimizer = policy.bind(lists ? by_lists(named) : named);
  for (int step = 0; step < steps; ++step) {
    for (const at::Tensor& p : parameters) {
      at::Tensor g =
          (at::arange(p.numel(), at::kDouble) * 0.7 + 0.9 * step).sin().view(p.sizes()).to(p.scalar_type());
      if (transposed_gradients && p.dim() == 2) g = g.t().contiguous().t();
      p.mutable_grad() = g;
    }
    optimizer.step();
  }
  std::vector<at::Tensor> values;
  for (const at::Tensor& p : parameters) values.push_back(p.detach().clone(at::MemoryFormat::Contiguous));
  return values;
}

at::Tensor weights(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return (at::arange(c10::multiply_integers(sizes), at::kDouble) * 0.3 + 1)
      .cos()
      .view(sizes)
      .to(dtype)
      .contiguous();
}

TEST(Elementwise, TakeAnyLayout) {
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    fixtures::with_policy(kind, [](const auto& policy) {
      for (const bool lists : {false, true}) {
        SCOPED_TRACE(lists ? "by lists" : "in one pass");
        const auto leaf = [](const at::Tensor& p) { return p.detach().requires_grad_(true); };
        const at::Tensor expected = walk(policy, {leaf(weights({7, 5}))}, lists)[0];
        // The parameter transposed in memory, its gradient not, and the other way round.
        const at::Tensor transposed = weights({7, 5}).t().contiguous().t();
        EXPECT_TRUE(walk(policy, {leaf(transposed)}, lists)[0].equal(expected));
        EXPECT_TRUE(walk(policy, {leaf(weights({7, 5}))}, lists, true)[0].equal(expected));
        EXPECT_TRUE(
            walk(policy, {leaf(weights({7, 5}).t().contiguous().t())}, lists, true)[0].equal(expected));
        // A view with gaps: what is in between stays.
        const at::Tensor base = at::full({7, 10}, 9.f);
        base.slice(1, 0, 10, 2).copy_(weights({7, 5}));
        EXPECT_TRUE(walk(policy, {leaf(base.slice(1, 0, 10, 2))}, lists)[0].equal(expected));
        EXPECT_TRUE(base.slice(1, 0, 10, 2).equal(expected));
        EXPECT_TRUE(base.slice(1, 1, 10, 2).eq(9).all().item<bool>());
        // Of two types; without elements; without dimensions.
        const auto mixed = walk(policy,
                                {leaf(weights({7, 5})), leaf(weights({7, 5}, at::kDouble)),
                                 leaf(weights({0, 3})), leaf(weights({}, at::kDouble)), leaf(weights({1}))},
                                lists);
        EXPECT_TRUE(mixed[0].equal(expected));
        EXPECT_TRUE(at::allclose(mixed[1], expected.to(at::kDouble), 1e-4, 1e-5));
        EXPECT_TRUE(at::allclose(mixed[3].to(at::kFloat), mixed[4][0], 1e-4, 1e-5));
        EXPECT_FALSE(mixed[4].equal(weights({1})));
      }
    });
  }
}

TEST(Elementwise, GiveTheSameBitsOnAnyNumberOfThreads) {
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    fixtures::with_policy(kind, [](const auto& policy) {
      const auto run = [&](int threads) {
        at::set_num_threads(threads);
        std::vector<at::Tensor> parameters;
        for (const std::int64_t size : {40003, 5, 0, 30001, 1, 13333}) {
          parameters.push_back(weights({size}).requires_grad_(true));
          parameters.push_back(weights({size}, at::kDouble).requires_grad_(true));
        }
        return walk(policy, parameters, false, false, 3);
      };
      const auto one = run(1), two = run(2);
      for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(one[i].equal(two[i])) << i;
    });
  }
  at::set_num_threads(1);
}

TEST(Elementwise, MomentumMayComeLater) {
  // As a scheduler that writes the group's momentum: the buffer starts with the first step that has one.
  for (const bool lists : {false, true}) {
    Problem late(at::kDouble), fresh(at::kDouble);
    auto optimizer = SGD{.lr = 0.1}.bind(lists ? by_lists(late.parameters()) : late.parameters());
    auto plain = SGD{.lr = 0.1}.bind(fresh.parameters());
    auto heavy = SGD{.lr = 0.1, .momentum = 0.9, .dampening = 0}.bind(fresh.parameters());
    for (int step = 0; step < 10; ++step) {
      if (step == 4) optimizer.groups()[0].momentum = 0.9;
      late.make_gradients(step), fresh.make_gradients(step);
      optimizer.step();
      if (step < 4)
        plain.step();
      else
        heavy.step();
    }
    for (const char* name : fixtures::parameter_names)
      EXPECT_LT((late.t.at(name) - fresh.t.at(name)).abs().max().item<double>(), 1e-15);
    EXPECT_EQ(
        State(optimizer.state_dict()).get<std::vector<State>>("param_groups")[0].get<double>("momentum"),
        0.9);
  }
}

TEST(Elementwise, RpropBeginsWithTheRateOfTheFirstStep) {
  const at::Tensor p = at::zeros({2}, at::kDouble).requires_grad_(true);
  auto optimizer = Rprop{.lr = 0.5}.bind({{"p", p}});
  optimizer.groups()[0].lr = 0.25;
  p.mutable_grad() = at::tensor({1.0, -2.0});
  optimizer.step();
  EXPECT_TRUE(p.equal(at::tensor({-0.25, 0.25}, at::kDouble)));
}

TEST(Elementwise, AnInfiniteParameterStaysSo) {
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    fixtures::with_policy(kind, [&](const auto& defaults) {
      auto policy = defaults;
      if constexpr (requires { policy.weight_decay; }) policy.weight_decay = 0;
      const at::Tensor p =
          at::full({9}, -std::numeric_limits<double>::infinity(), at::kDouble).requires_grad_(true);
      auto optimizer = policy.bind({{"p", p}});
      p.mutable_grad() = at::ones_like(p);
      for (int step = 0; step < 3; ++step) optimizer.step();
      EXPECT_TRUE(p.isinf().all().item<bool>());
    });
  }
}

TEST(Elementwise, TellAutogradThatParametersHaveChanged) {
  const at::Tensor p = at::ones({3}).requires_grad_(true);
  auto optimizer = SGD{.lr = 0.1}.bind({{"p", p}});
  const at::Tensor loss = (p * p).sum();
  p.mutable_grad() = at::ones({3});
  optimizer.step();
  EXPECT_NE(error_of([&] { loss.backward(); }).find("modified by an inplace operation"), std::string::npos);
}

TEST(Elementwise, SayWhichGradientTheyCannotTake) {
  for (const bool lists : {false, true}) {
    const at::Tensor a = at::ones({3}).requires_grad_(true), b = at::ones({3}).requires_grad_(true);
    auto optimizer =
        Adam{}.bind(lists ? by_lists({{"a", a}, {"b", b}}) : NamedParameters{{"a", a}, {"b", b}});
    a.mutable_grad() = at::ones({3});
    b.mutable_grad() = at::ones({3}).to_sparse();
    EXPECT_EQ(error_of([&] { optimizer.step(); }),
              "parameter 'b' has a sparse gradient, expected a dense one");
    EXPECT_TRUE(a.equal(at::ones({3}))) << "no parameter has changed";
    b.mutable_grad() = at::ones({3});
    optimizer.step();
    EXPECT_EQ(State(optimizer.state_dict())
                  .get<State>("state")
                  .get<State>(0)
                  .get<at::Tensor>("step")
                  .item<double>(),
              1);
    a.set_data(at::ones({3}, at::kDouble)), a.mutable_grad() = at::ones({3}, at::kDouble);
    EXPECT_EQ(
        error_of([&] { optimizer.step(); }),
        "parameter 'a' was given another type, device, shape or layout after the optimizer was bound to it");
  }
}

TEST(Elementwise, SayWhichOptionIsOutOfRange) {
  const auto message = [](const auto& policy) { return error_of([&] { policy.bind({}); }); };
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  // What all of them have.
  for (const std::string& kind : kinds) {
    fixtures::with_policy(kind, [&](auto policy) {
      const auto try_option = [&](auto& option, const auto& value, const std::string& expected) {
        const auto right = std::exchange(option, value);
        EXPECT_EQ(message(policy), kind + "::" + expected);
        option = right;
      };
      if (kind == "Lion") {
        try_option(policy.lr, 0.0, "lr is 0, expected above 0");
        return;
      }
      try_option(policy.lr, -1.0, "lr is -1, expected at least 0");
      try_option(policy.lr, nan, "lr is nan, expected at least 0");
      if constexpr (requires { policy.eps; }) try_option(policy.eps, -1.0, "eps is -1, expected at least 0");
      if constexpr (requires { policy.weight_decay; }) {
        try_option(policy.weight_decay, -1.0, "weight_decay is -1, expected at least 0");
      }
      if constexpr (requires { policy.betas; }) {
        try_option(policy.betas, std::array{0.9, 1.0}, "betas has 1, expected at least 0 and below 1");
        try_option(policy.betas, std::array{-0.5, 0.9}, "betas has -0.5, expected at least 0 and below 1");
      }
      EXPECT_EQ(message(policy), "no error");
    });
  }
  EXPECT_EQ(message(SGD{.momentum = -1}), "SGD::momentum is -1, expected at least 0");
  EXPECT_EQ(message(SGD{.nesterov = true}),
            "SGD::nesterov needs momentum above 0 (it is 0) and dampening 0 (it is 0)");
  EXPECT_EQ(message(SGD{.momentum = 0.5, .dampening = 0.1, .nesterov = true}),
            "SGD::nesterov needs momentum above 0 (it is 0.5) and dampening 0 (it is 0.1)");
  EXPECT_EQ(message(NAdam{.momentum_decay = -1}), "NAdam::momentum_decay is -1, expected at least 0");
  EXPECT_EQ(message(Adadelta{.rho = 1.5}), "Adadelta::rho is 1.5, expected from 0 to 1");
  EXPECT_EQ(message(Adagrad{.lr_decay = -1}), "Adagrad::lr_decay is -1, expected at least 0");
  EXPECT_EQ(message(Adagrad{.initial_accumulator_value = -1}),
            "Adagrad::initial_accumulator_value is -1, expected at least 0");
  EXPECT_EQ(message(RMSprop{.alpha = -1}), "RMSprop::alpha is -1, expected at least 0");
  EXPECT_EQ(message(RMSprop{.momentum = -1}), "RMSprop::momentum is -1, expected at least 0");
  EXPECT_EQ(message(Rprop{.etas = {0, 1.2}}),
            "Rprop::etas are 0 and 1.2, expected one between 0 and 1 and one above 1");
  EXPECT_EQ(message(Rprop{.etas = {0.5, 1}}),
            "Rprop::etas are 0.5 and 1, expected one between 0 and 1 and one above 1");
  EXPECT_EQ(message(ASGD{.lambd = -1}), "ASGD::lambd is -1, expected at least 0");
  EXPECT_EQ(message(ASGD{.alpha = -1}), "ASGD::alpha is -1, expected at least 0");
  EXPECT_EQ(message(Lion{.betas = {0.9, 1.5}}), "Lion::betas has 1.5, expected from 0 to 1");
  EXPECT_THROW(Lion{.lr = nan}.bind({}), std::invalid_argument);
}

/// A copy of a state with another value under a key.
State with(const State& state, const std::string& key, const auto& value) {
  State out;
  for (const std::string& k : state.keys()) {
    const bool is_index = k.find_first_not_of("0123456789") == std::string::npos;
    if (is_index)
      out.set(std::stoll(k), state.get<c10::IValue>(std::stoll(k)));
    else
      out.set(k, state.get<c10::IValue>(k));
  }
  if (key.find_first_not_of("0123456789") == std::string::npos)
    out.set(std::stoll(key), value);
  else
    out.set(key, value);
  return out;
}

TEST(Elementwise, SayWhatDoesNotFitInAStateDictAndChangeNothing) {
  Problem problem(at::kDouble);
  auto optimizer = Adam{.lr = 0.25}.bind(problem.parameters());
  problem.make_gradients(0);
  optimizer.step();
  const State good(optimizer.state_dict());
  const State group = good.get<std::vector<State>>("param_groups")[0], states = good.get<State>("state");
  const auto with_group = [&](const State& g) { return with(good, "param_groups", std::vector<State>{g}); };
  const auto with_state = [&](const State& s) { return with(good, "state", with(states, "2", s)); };
  const State w2 = states.get<State>(2);
  State without;
  without.set("step", w2.get<at::Tensor>("step")).set("exp_avg", w2.get<at::Tensor>("exp_avg"));
  const std::vector<std::pair<State, std::string>> cases = {
      {with(good, "param_groups", std::vector<State>{group, group}),
       "optimizer state has 2 parameter groups, expected 1"},
      {with_group(with(group, "params", std::vector<std::int64_t>{0, 1})),
       "optimizer state has 2 parameters, expected 4"},
      {with_group(with(group, "lr", "much")), "key 'lr' is a string, expected a number"},
      {with_group(with(group, "initial_lr", "much")), "key 'initial_lr' is a string, expected a number"},
      {with_group(with(group, "eps", true)), "key 'eps' is a bool, expected a number"},
      {with_group(with(group, "betas", 0.9)), "key 'betas' is a number, expected a list"},
      {with_group(with(group, "betas", std::vector<double>{0.5, 0.5, 0.5})),
       "optimizer state: betas has 3 numbers, expected 2"},
      {with_state(with(w2, "exp_avg", at::zeros({2}))),
       "optimizer state of parameter 'w2': exp_avg has shape [2], expected [3, 5]"},
      {with_state(with(w2, "step", "one")),
       "optimizer state: step is a string, expected a number or a tensor with one element"},
      {with_state(without), "key 'exp_avg_sq' is missing; it has 'step', 'exp_avg'"},
      {with_group(with(group, "amsgrad", true)), "key 'max_exp_avg_sq' is missing"},
  };
  for (const auto& [state, expected] : cases) {
    const std::string message =
        error_of([&, &bad = state] { optimizer.load_state_dict(with(bad, "none", 0)); });
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
  // As if nothing had been tried.
  Problem twin(at::kDouble);
  auto other = Adam{.lr = 0.25}.bind(twin.parameters());
  for (int step = 0; step < 5; ++step) {
    twin.make_gradients(step);
    other.step();
    if (step == 0) continue;
    problem.make_gradients(step);
    optimizer.step();
  }
  EXPECT_EQ(optimizer.groups()[0].lr, 0.25);
  for (const char* name : fixtures::parameter_names) EXPECT_TRUE(problem.t.at(name).equal(twin.t.at(name)));
}

/// An optimizer of a user's own whose elements do not depend on each other: this is all of it.
struct SignSGD {
  double lr = 1e-3;

  static constexpr std::tuple<> options{};
  static constexpr std::array<const char*, 0> state_names{};
  struct Scalars {};
  Scalars advance(std::array<double, 0>&) const { return {}; }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars&) const {
    e.set_param(e.param() - e.sign(e.grad()) * e.scalar(lr));
  }
  auto bind(NamedParameters parameters) const { return elementwise(*this, std::move(parameters)); }
};
static_assert(OptimizerPolicy<SignSGD>);

TEST(Elementwise, MayBeAUsersOwn) {
  const at::Tensor p = at::zeros({11}).requires_grad_(true);
  auto optimizer = SignSGD{.lr = 0.5}.bind({{"p", p}});
  p.mutable_grad() = at::arange(11).to(at::kFloat) - 5;
  optimizer.step();
  EXPECT_TRUE(p.equal(at::sign(p.grad()) * -0.5));
  const State state(optimizer.state_dict());
  EXPECT_TRUE(state.get<State>("state").empty());
  auto other = SignSGD{}.bind({{"p", p}});
  other.load_state_dict(state);
  EXPECT_EQ(other.groups()[0].lr, 0.5);
  EXPECT_EQ(error_of([] {
              SignSGD{}.bind({{"p", at::zeros({1}, at::kHalf)}});
            }),
            "this optimizer has no foreach(), so it takes float32 and float64 parameters on the CPU only");
}

/// What rules calculate with, as an optimizer: its state takes the results.
struct Arithmetic {
  double lr = 0;

  static constexpr std::tuple<> options{};
  static constexpr std::array state_names = {"max", "min", "abs", "sign", "sqrt", "lerp", "fill"};
  struct Scalars {};
  Scalars advance(std::array<double, 0>&) const { return {}; }
  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars&) const {
    const auto p = e.param(), g = e.grad();
    e.set_state(0, e.max(p, g)), e.set_state(1, e.min(p, g));
    e.set_state(2, e.abs(g)), e.set_state(3, e.sign(g)), e.set_state(4, e.sqrt(g));
    e.set_state(5, e.lerp(p, g, 1)), e.set_state(6, e.fill(2) * g);
  }
};

TEST(Elementwise, CalculateAsPyTorchDoes) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(),
                   infinity = std::numeric_limits<double>::infinity();
  // All pairs, as vectors and as what is left over.
  const at::Tensor values =
      at::tensor({nan, infinity, -infinity, 0.0, -0.0, 1.0, -2.5, 1e20, 3.0}, at::kDouble);
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor p = values.repeat_interleave(9).to(dtype).requires_grad_(true),
                     g = values.repeat(9).to(dtype);
    p.mutable_grad() = g;
    auto optimizer = elementwise(Arithmetic{}, {{"p", p}});
    optimizer.step();
    const State found = State(optimizer.state_dict()).get<State>("state").get<State>(0);
    const auto expect = [&](const char* name, const at::Tensor& expected) {
      EXPECT_TRUE(at::allclose(found.get<at::Tensor>(name), expected, 0, 0, true)) << name;
    };
    expect("max", at::maximum(p, g)), expect("min", at::minimum(p, g));
    expect("abs", g.abs()), expect("sign", g.sign()), expect("sqrt", g.sqrt());
    expect("lerp", at::lerp(p, g, 1)), expect("fill", 2 * g);
  }
}

}  // namespace
