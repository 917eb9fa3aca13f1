// Tests LBFGS, Adafactor, Muon, SparseAdam and what joins or adapts optimizers, against PyTorch
// (fixtures/optim_matrix).
#include "../testing.hpp"

#include <fulmen/fulmen.hpp>
#include <fulmen/optim/adafactor.hpp>
#include <fulmen/optim/lbfgs.hpp>
#include <fulmen/optim/muon.hpp>
#include <fulmen/optim/parameters_of.hpp>
#include <fulmen/optim/sparse_adam.hpp>
#include <fulmen/optim/split_parameters.hpp>
#include <fulmen/optim/torch_optimizer.hpp>

#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using json = nlohmann::ordered_json;  // the order of parameters counts

const json& fixtures() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/optim_matrix/runs.json"));
  return all;
}

/// The problem of fixtures/optim_matrix/README.md.
struct Problem {
  std::map<std::string, at::Tensor> t;
  NamedParameters parameters;

  explicit Problem(const json& run)
      : sign(run["optimizer"] == "LBFGS" && run["options"].value("maximize", false) ? -1 : 1) {
    const at::ScalarType dtype = run["dtype"] == "float64" ? at::kDouble : at::kFloat;
    std::int64_t index = 0;
    for (const json& spec : fixtures()["tensors"]) {
      const auto shape = spec["shape"].get<std::vector<std::int64_t>>();
      const at::Tensor flat =
          at::arange(c10::multiply_integers(shape), at::kDouble) * 0.7 + (1.0 + 3.0 * double(index++));
      t[spec["name"]] = (flat.sin() * spec["scale"].get<double>()).view(shape).to(dtype);
    }
    for (const char* name : {"w1", "b1", "w2", "b2", "k", "table"}) t[name].requires_grad_(true);
    for (const auto& item : run["parameters"].items()) parameters.push_back({item.key(), t[item.key()]});
  }
  at::Tensor loss(std::int64_t step) const { return sign * value(step); }

 private:
  double sign;
  at::Tensor value(std::int64_t step) const {
    if (parameters[0].name == "table") {
      const at::Tensor rows = at::tensor({step % 7, (3 * step + 1) % 7, step % 7}, at::kLong);
      const at::Tensor found = at::embedding(t.at("table"), rows, -1, false, /*sparse=*/true);
      return (found - t.at("table_target").index_select(0, rows)).square().sum();
    }
    const at::Tensor hidden = at::tanh(at::linear(t.at("x"), t.at("w1"), t.at("b1")));
    return at::mse_loss(at::linear(hidden, t.at("w2"), t.at("b2")), t.at("target")) +
           at::mse_loss(t.at("k"), t.at("k_target"));
  }
};

template <class Optimizer>
void train(const Problem& problem, Optimizer& optimizer, int begin, int end) {
  for (int step = begin; step < end; ++step) {
    const auto closure = [&] {
      optimizer.zero_grad();
      const at::Tensor loss = problem.loss(step);
      loss.backward();
      return loss;
    };
    if constexpr (requires { optimizer.step(closure); }) {
      optimizer.step(closure);
    } else {
      closure();
      optimizer.step();
    }
  }
}

template <class T>
void take(const json& o, const char* name, T& value) {
  if (o.contains(name)) value = o[name].get<T>();
}
LBFGS policy_of(const json& o, LBFGS p) {
  take(o, "lr", p.lr), take(o, "max_iter", p.max_iter), take(o, "tolerance_grad", p.tolerance_grad);
  take(o, "tolerance_change", p.tolerance_change), take(o, "history_size", p.history_size),
      take(o, "maximize", p.maximize);
  if (o.contains("max_eval")) p.max_eval = o["max_eval"].get<std::int64_t>();
  if (o.contains("line_search_fn")) p.line_search_fn = LineSearch::strong_wolfe;
  return p;
}
Adafactor policy_of(const json& o, Adafactor p) {
  take(o, "lr", p.lr), take(o, "beta2_decay", p.beta2_decay), take(o, "d", p.d),
      take(o, "weight_decay", p.weight_decay);
  take(o, "maximize", p.maximize);
  if (o.contains("eps")) {
    if (!o["eps"][0].is_null()) p.eps.first = o["eps"][0].get<double>();
    p.eps.second = o["eps"][1].get<double>();
  }
  return p;
}
Muon policy_of(const json& o, Muon p) {
  take(o, "lr", p.lr), take(o, "weight_decay", p.weight_decay), take(o, "momentum", p.momentum),
      take(o, "nesterov", p.nesterov);
  take(o, "ns_coefficients", p.ns_coefficients), take(o, "eps", p.eps), take(o, "ns_steps", p.ns_steps);
  for (const AdjustLr how : {AdjustLr::match_rms_adamw, AdjustLr::spectral_unclamped}) {
    if (o.value("adjust_lr_fn", "") == fulmen::detail::to_python(how).toStringRef()) p.adjust_lr_fn = how;
  }
  return p;
}
SparseAdam policy_of(const json& o, SparseAdam p) {
  take(o, "lr", p.lr), take(o, "betas", p.betas), take(o, "eps", p.eps), take(o, "maximize", p.maximize);
  return p;
}

/// Calls f(policy) with the policy of a run. @return false for a class that is not known
template <class F>
bool with_policy(const json& run, const F& f) {
  const std::string kind = run["optimizer"];
  const json& o = run["options"];
  if (kind == "LBFGS")
    f(policy_of(o, LBFGS{}));
  else if (kind == "Adafactor")
    f(policy_of(o, Adafactor{}));
  else if (kind == "Muon")
    f(policy_of(o, Muon{}));
  else if (kind == "SparseAdam")
    f(policy_of(o, SparseAdam{}));
  else
    return false;
  return true;
}

/// Largest difference, relative to the largest element expected.
double distance(const at::Tensor& found, const json& expected) {
  const auto values =
      expected.is_array() ? expected.get<std::vector<double>>() : std::vector{expected.get<double>()};
  const at::Tensor want = at::tensor(values, at::kDouble), got = found.detach().to(at::kDouble).flatten();
  EXPECT_EQ(got.numel(), want.numel());
  if (got.numel() != want.numel()) return INFINITY;
  const double scale = want.abs().max().item<double>();
  return (got - want).abs().max().item<double>() / (scale > 0 ? scale : 1);
}
double distance(const c10::IValue& found, const json& expected) {
  if (found.isTensor()) return distance(found.toTensor(), expected);
  if (!found.isList()) return distance(at::scalar_tensor(found.toScalar(), at::kDouble), expected);
  const auto list = found.toListRef();
  EXPECT_EQ(list.size(), expected.size());
  double largest = list.size() == expected.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(list.size(), expected.size()); ++i) {
    largest = std::max(largest, distance(list[i], expected[i]));
  }
  return largest;
}

/// 1e-12 and 1e-6, more where PyTorch's own result moves by more when the first weights' last bits change;
/// and where products in bfloat16 are part of it, which differ from processor to processor.
double tolerance(const json& run) {
  if (run["optimizer"] == "Muon" && run["options"].value("ns_steps", 5) > 0) return 0.05;
  const bool wide = run["dtype"] == "float64";
  return std::max(wide ? 1e-12 : 2e-6, 10 * run["sensitivity"].get<double>());
}

template <class Optimizer>
void expect_result(const json& run, const Problem& problem, const Optimizer& optimizer) {
  for (const auto& [name, value] : run["parameters"].items()) {
    SCOPED_TRACE(name);
    EXPECT_LT(distance(problem.t.at(name), value), tolerance(run));
  }
  const State state = State(optimizer.state_dict()).template get<State>("state");
  for (const auto& [index, values] : run["state"].items()) {
    const State one = state.get<State>(std::stoll(index));
    for (const auto& [key, value] : values.items()) {
      SCOPED_TRACE(key);
      EXPECT_LT(distance(one.get<c10::IValue>(key), value), tolerance(run));
    }
  }
}

// Many threads for small matrices take long to meet.
const int one_thread = (at::set_num_threads(1), 1);

TEST(MatrixOptimizers, AreWherePyTorchsAre) {
  int runs = 0;
  for (const json& run : fixtures()["runs"]) {
    SCOPED_TRACE(run["name"].get<std::string>() + " " + run["dtype"].get<std::string>());
    ASSERT_TRUE(with_policy(run, [&](const auto& policy) {
      Problem problem(run);
      auto optimizer = policy.bind(problem.parameters);
      train(problem, optimizer, 0, run["steps"]);
      expect_result(run, problem, optimizer);
    }));
    ++runs;
  }
  EXPECT_EQ(runs, 44);
}

/// Other memory orders take other ways through the optimizers.
TEST(MatrixOptimizers, AreWherePyTorchsAreWithTurnedParameters) {
  for (const json& run : fixtures()["runs"]) {
    SCOPED_TRACE(run["name"].get<std::string>() + " " + run["dtype"].get<std::string>());
    with_policy(run, [&](const auto& policy) {
      Problem problem(run);
      for (NamedParameter& p : problem.parameters) {
        if (p.tensor.dim() < 2) continue;
        p.tensor = problem.t[p.name] =
            p.tensor.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_(true);
      }
      auto optimizer = policy.bind(problem.parameters);
      train(problem, optimizer, 0, run["steps"]);
      expect_result(run, problem, optimizer);
    });
  }
}

TEST(MatrixOptimizers, GoOnFromPythonsState) {
  const State halfway = State(checkpoint::read(FULMEN_TEST_DATA_DIR "/optim_matrix/halfway.pt"));
  std::size_t runs = 0;
  for (const json& run : fixtures()["runs"]) {
    const std::string name = run["name"];
    if (run["dtype"] != "float64" || !halfway.contains(name)) continue;
    SCOPED_TRACE(name);
    with_policy(run, [&](const auto& policy) {
      const State half = halfway.get<State>(name);
      Problem problem(run);
      // Options other than the run's: those in the state must take their place.
      auto optimizer = std::remove_cvref_t<decltype(policy)>{}.bind(problem.parameters);
      optimizer.load_state_dict(half.get<State>("optimizer"));
      const at::NoGradGuard no_grad;
      for (const NamedParameter& p : problem.parameters)
        p.tensor.copy_(half.get<State>("parameters").get<at::Tensor>(p.name));
      const at::AutoGradMode grad(true);
      train(problem, optimizer, run["steps"].get<int>() / 2, run["steps"]);
      expect_result(run, problem, optimizer);
    });
    ++runs;
  }
  EXPECT_EQ(runs, halfway.size());
}

/// The files are what fixtures/optim_matrix/check.py gives to Python, where FULMEN_OPTIM_STATES says that it
/// wants them.
TEST(MatrixOptimizers, GoOnFromTheirOwnStateInAFile) {
  const TemporaryFolder temporary;
  const char* wanted = std::getenv("FULMEN_OPTIM_STATES");
  const std::filesystem::path folder = wanted ? std::filesystem::path(wanted) : temporary.path;
  for (const json& run : fixtures()["runs"]) {
    if (run["dtype"] != "float64") continue;
    SCOPED_TRACE(run["name"].get<std::string>());
    with_policy(run, [&](const auto& policy) {
      const int steps = run["steps"];
      const std::string file = folder / (run["name"].get<std::string>() + ".pt");
      {
        Problem problem(run);
        auto optimizer = policy.bind(problem.parameters);
        train(problem, optimizer, 0, steps / 2);
        State parameters;
        for (const NamedParameter& p : problem.parameters) parameters.set(p.name, p.tensor.detach());
        checkpoint::write(
            file, State().set("parameters", parameters).set("optimizer", State(optimizer.state_dict())));
      }
      const State half(checkpoint::read(file));
      Problem problem(run);
      auto optimizer = std::remove_cvref_t<decltype(policy)>{}.bind(problem.parameters);
      optimizer.load_state_dict(half.get<State>("optimizer"));
      {
        const at::NoGradGuard no_grad;
        for (const NamedParameter& p : problem.parameters)
          p.tensor.copy_(half.get<State>("parameters").get<at::Tensor>(p.name));
      }
      train(problem, optimizer, steps / 2, steps);
      expect_result(run, problem, optimizer);
    });
  }
}

TEST(MatrixOptimizers, SayWhichOptionIsOutOfRange) {
  EXPECT_EQ(error_of([] { LBFGS{.lr = -1}.bind({}); }), "LBFGS::lr is -1, expected at least 0");
  EXPECT_EQ(error_of([] { LBFGS{.history_size = 0}.bind({}); }),
            "LBFGS::history_size is 0, expected at least 1");
  EXPECT_EQ(error_of([] { Adafactor{.beta2_decay = 1}.bind({}); }),
            "Adafactor::beta2_decay is 1, expected at most 0");
  EXPECT_EQ(error_of([] { Adafactor{.d = 0.5}.bind({}); }), "Adafactor::d is 0.5, expected at least 1");
  EXPECT_EQ(error_of([] {
              Adafactor{.eps = {-1.0, 0.1}}.bind({});
            }),
            "Adafactor::eps[0] is -1, expected at least 0");
  EXPECT_EQ(error_of([] { Muon{.momentum = -1}.bind({}); }), "Muon::momentum is -1, expected at least 0");
  EXPECT_EQ(error_of([] { Muon{.ns_steps = 100}.bind({}); }), "Muon::ns_steps is 100, expected 0 to 99");
  EXPECT_EQ(error_of([] { SparseAdam{.lr = 0}.bind({}); }), "SparseAdam::lr is 0, expected above 0");
  EXPECT_EQ(error_of([] {
              SparseAdam{.betas = {0.9, 1}}.bind({});
            }),
            "SparseAdam::betas has 1, expected at least 0 and below 1");
}

TEST(MatrixOptimizers, SayWhatParametersAndGradientsTheyTake) {
  const at::Tensor matrix = at::ones({2, 2}).requires_grad_(true),
                   vector = at::ones({2}).requires_grad_(true);
  EXPECT_EQ(error_of([&] {
              Muon{}.bind({{"w", matrix}, {"b", vector}});
            }),
            "Muon: parameter 'b' has 1 dimensions, of Float, expected a matrix of floating-point numbers; "
            "others need another "
            "optimizer: see split_parameters");
  EXPECT_EQ(
      error_of([&] {
        LBFGS{}.bind({{"w", matrix}, {"b", at::ones({2}, at::kDouble)}});
      }),
      "LBFGS: parameter 'b' is Double on cpu, expected floating-point numbers like the others: Float on cpu");
  EXPECT_EQ(error_of([&] {
              SparseAdam{}.bind({{"w", matrix.detach().to_sparse()}});
            }),
            "SparseAdam: parameter 'w' is not a dense tensor of floating-point numbers");
  matrix.mutable_grad() = at::ones({2, 2});
  EXPECT_EQ(error_of([&] {
              SparseAdam{}.bind({{"w", matrix}}).step();
            }),
            "SparseAdam: parameter 'w' has a dense gradient, expected a sparse one, as Embedding with "
            "sparse(true) gives it; "
            "use Adam for it");
  matrix.mutable_grad() = at::ones({2, 2}).to_sparse();
  EXPECT_EQ(error_of([&] {
              Muon{}.bind({{"w", matrix}}).step();
            }),
            "parameter 'w' has a sparse gradient, expected a dense one");
  EXPECT_EQ(error_of([&] {
              Adafactor{}.bind({{"w", matrix}}).step();
            }),
            "parameter 'w' has a sparse gradient, expected a dense one");
  EXPECT_EQ(error_of([&] {
              LBFGS{}.bind({{"w", matrix}}).step([] { return at::Tensor(); });
            }),
            "LBFGS: the closure gave no loss, expected a tensor with one element");
}

TEST(MatrixOptimizers, SayWhatDoesNotFitInAStateDict) {
  const State halfway = State(checkpoint::read(FULMEN_TEST_DATA_DIR "/optim_matrix/halfway.pt"));
  const at::Tensor wrong = at::ones({2, 2}, at::kDouble), vector = at::ones({2}, at::kDouble);
  const auto load = [&](auto policy, const char* name, std::vector<at::Tensor> parameters) {
    return error_of([&] {
      NamedParameters named;
      for (const at::Tensor& p : parameters) named.push_back({"p", p});
      policy.bind(named).load_state_dict(halfway.get<State>(name).get<State>("optimizer"));
    });
  };
  EXPECT_EQ(load(Muon{}, "muon_no_iteration_options", {wrong}),
            "optimizer state has 2 parameters, expected 1");
  EXPECT_EQ(load(Muon{}, "muon_no_iteration_options", {wrong, wrong}),
            "optimizer state of parameter 'p': momentum_buffer has shape [5, 4], expected [2, 2]");
  EXPECT_EQ(load(Adafactor{}, "adafactor_eps", {wrong, vector, wrong, vector, wrong}),
            "optimizer state of parameter 'p': row_var has shape [5, 1], expected [2, 1]");
  EXPECT_EQ(load(SparseAdam{}, "sparse_adam_options", {wrong}),
            "optimizer state of parameter 'p': exp_avg has shape [7, 3], expected [2, 2]");
  EXPECT_EQ(load(LBFGS{}, "lbfgs", {wrong, vector, wrong, vector, wrong}),
            "optimizer state: d has 67 elements, expected 16");
}

/// A parameter without a gradient stays where it is, and gets its state when it has one.
TEST(MatrixOptimizers, LeaveParametersWithoutGradient) {
  const auto check = [](const auto& policy) {
    const at::Tensor a = at::ones({3, 2}).requires_grad_(true), b = at::ones({2, 3}).requires_grad_(true);
    auto optimizer = policy.bind({{"a", a}, {"b", b}});
    const auto states = [&] { return State(optimizer.state_dict()).template get<State>("state").size(); };
    a.mutable_grad() = at::ones({3, 2});
    optimizer.step();
    EXPECT_FALSE(a.equal(at::ones({3, 2})));
    EXPECT_TRUE(b.equal(at::ones({2, 3})));
    EXPECT_EQ(states(), 1u);
    const at::Tensor before = a.detach().clone();
    a.mutable_grad().reset();
    b.mutable_grad() = at::ones({2, 3});
    optimizer.step();
    EXPECT_TRUE(a.equal(before));
    EXPECT_FALSE(b.equal(at::ones({2, 3})));
    EXPECT_EQ(states(), 2u);
    optimizer.zero_grad();
    EXPECT_FALSE(b.grad().defined());
  };
  check(Muon{});
  check(Adafactor{});
}

TEST(Adafactor, LargeParametersTakeTheSameSteps) {
  // Above and below what is_small draws: the same rows many times over have the same factors and update.
  const at::Tensor g = at::arange(1, 33, at::kDouble).view({4, 8}).sin();
  const at::Tensor small = at::full({4, 8}, 0.3, at::kDouble),
                   large = at::full({4 * 600, 8}, 0.3, at::kDouble);
  auto one = Adafactor{.weight_decay = 0.1}.bind({{"p", small}}),
       other = Adafactor{.weight_decay = 0.1}.bind({{"p", large}});
  for (int step = 1; step <= 5; ++step) {
    small.mutable_grad() = g * step, large.mutable_grad() = (g * step).repeat({600, 1});
    one.step(), other.step();
  }
  EXPECT_TRUE(at::allclose(small.repeat({600, 1}), large, 1e-12, 0));
  EXPECT_GT((small - 0.3).abs().max().item<double>(), 1e-4);
}

TEST(SparseAdam, ManyRowsOnSeveralThreads) {
  const at::Tensor rows = at::randperm(6000).slice(0, 0, 3000);
  const at::Tensor gradient =
      at::_sparse_coo_tensor_unsafe(rows.unsqueeze(0), at::randn({3000, 16}), {6000, 16});
  // Turned memory takes the other way.
  const at::Tensor a = at::randn({6000, 16}), b = a.t().contiguous().t();
  auto one = SparseAdam{}.bind({{"p", a}}), other = SparseAdam{}.bind({{"p", b}});
  at::set_num_threads(4);
  for (int step = 0; step < 3; ++step) {
    a.mutable_grad() = gradient, b.mutable_grad() = gradient;
    one.step(), other.step();
  }
  at::set_num_threads(1);
  EXPECT_TRUE(at::allclose(a, b, 1e-6, 1e-7));
}

/// Rosenbrock's function from (-1.2, 1).
template <class Policy>
at::Tensor rosenbrock(const Policy& policy, int steps) {
  const at::Tensor x = at::tensor({-1.2, 1.0}, at::kDouble).requires_grad_(true);
  auto optimizer = policy.bind({{"x", x}});
  for (int i = 0; i < steps; ++i) {
    optimizer.step([&] {
      optimizer.zero_grad();
      const at::Tensor loss = (1 - x[0]).square() + 100 * (x[1] - x[0].square()).square();
      loss.backward();
      return loss;
    });
  }
  return x.detach();
}

TEST(LBFGS, FindsTheMinimumOfRosenbrocksFunction) {
  // What PyTorch 2.15 finds, which is near (1, 1).
  const at::Tensor searching = at::tensor({0.9999814210791366, 0.9999619651810989}, at::kDouble);
  const at::Tensor fixed = at::tensor({0.9999224436789841, 0.9998440530889527}, at::kDouble);
  EXPECT_TRUE(
      at::allclose(rosenbrock(LBFGS{.line_search_fn = LineSearch::strong_wolfe}, 4), searching, 0, 1e-8));
  EXPECT_TRUE(at::allclose(rosenbrock(LBFGS{.lr = 0.05, .max_iter = 500}, 4), fixed, 0, 1e-6));
}

struct Logistic : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(3, 1))};
  int calls = 0;
  at::Tensor forward(const at::Tensor& x) {
    ++calls;
    return fc(x).squeeze(1);
  }
};
Options quiet(std::int64_t epochs) { return {.max_epochs = epochs, .num_sanity_val_steps = 0}; }
struct LogisticLoss {
  at::Tensor operator()(const at::Tensor& y, const at::Tensor& target) const {
    return at::binary_cross_entropy_with_logits(y, target);
  }
};

TEST(LBFGS, TrainsInTheTrainer) {
  for (const std::optional<LineSearch> search :
       {std::optional<LineSearch>(), std::optional(LineSearch::strong_wolfe)}) {
    seed_everything(1);
    const at::Tensor x = torch::randn({200, 3});
    const at::Tensor y =
        (x.matmul(torch::tensor({1.0f, -2.0f, 0.5f})) + torch::randn({200}) > 0).to(at::kFloat);
    TensorLoader loader{{x, y}, {.batch_size = 200}};
    Trainer trainer{Logistic{}, LogisticLoss{}, LBFGS{.tolerance_grad = 1e-5, .line_search_fn = search},
                    none,       Identity{},     callbacks(),
                    quiet(5),   barebones};
    trainer.fit(loader);
    EXPECT_EQ(trainer.context().global_step(), 5);
    EXPECT_GT(trainer.module().calls, 10);
    const at::Tensor loss = LogisticLoss{}(trainer.module().forward(x), y);
    trainer.module().zero_grad();
    loss.backward();
    // A convex problem: the gradient says whether it is solved.
    EXPECT_LT(trainer.module().fc->weight.grad().abs().max().item<float>(), 1e-4);
    EXPECT_LT(loss.item<float>(), 0.45);
  }
}

bool is_matrix(std::string_view, const at::Tensor& p) { return p.dim() == 2; }

TEST(SplitParameters, StepsAsItsPartsWould) {
  const json& run = fixtures()["runs"][0];
  const auto policy = split_parameters(is_matrix, Muon{.lr = 0.01}, AdamW{.lr = 0.02});
  Problem together(run), apart(run);
  auto optimizer = policy.bind(together.parameters);
  auto muon = Muon{.lr = 0.01}.bind({{"w1", apart.t["w1"]}, {"w2", apart.t["w2"]}});
  auto adamw = AdamW{.lr = 0.02}.bind({{"b1", apart.t["b1"]}, {"b2", apart.t["b2"]}, {"k", apart.t["k"]}});
  ASSERT_EQ(optimizer.groups().size(), 2u);
  EXPECT_EQ(optimizer.groups()[0].params.size(), 2u);
  EXPECT_EQ(optimizer.groups()[0].momentum, 0.95);
  for (int step = 0; step < 20; ++step) {
    if (step == 5) optimizer.groups()[1].lr = adamw.groups()[0].lr = 0.005;
    if (step == 6) optimizer.groups()[0].momentum = muon.groups()[0].momentum = 0.5;
    if (step == 10) {
      auto other = policy.bind(together.parameters);
      other.load_state_dict(State(optimizer.state_dict()));
      EXPECT_EQ(other.groups()[0].momentum, 0.5);
      optimizer = std::move(other);
    }
    optimizer.zero_grad(), muon.zero_grad(), adamw.zero_grad();
    together.loss(step).backward(), apart.loss(step).backward();
    optimizer.step(), muon.step(), adamw.step();
  }
  for (const NamedParameter& p : together.parameters) EXPECT_TRUE(p.tensor.equal(apart.t[p.name])) << p.name;
  EXPECT_EQ(error_of([&] {
              split_parameters([](std::string_view) { return true; }, SGD{}, SGD{}).bind(apart.parameters);
            }),
            "split_parameters: the predicate chooses 5 of 5 parameters, expected some and not all");
}

TEST(SplitParameters, TrainsInTheTrainer) {
  seed_everything(1);
  struct Net : torch::nn::Module {
    torch::nn::Linear hidden{register_module("hidden", torch::nn::Linear(4, 16))};
    torch::nn::Linear out{register_module("out", torch::nn::Linear(16, 1))};
    at::Tensor forward(const at::Tensor& x) { return out(torch::tanh(hidden(x))); }
  };
  const at::Tensor x = torch::randn({64, 4}), y = x.square().sum(1, true);
  TensorLoader loader{{x, y}, {.batch_size = 16}};
  const auto is_hidden = [](std::string_view name, const at::Tensor& p) {
    return p.dim() == 2 && name.starts_with("hidden");
  };
  Trainer trainer{Net{},     MSE{},      split_parameters(is_hidden, Muon{.lr = 0.02}, AdamW{.lr = 0.01}),
                  none,      Identity{}, callbacks(),
                  quiet(30), barebones};
  const double before = at::mse_loss(trainer.module().forward(x), y).item<double>();
  trainer.fit(loader);
  EXPECT_EQ(trainer.context().global_step(), 120);
  EXPECT_LT(at::mse_loss(trainer.module().forward(x), y).item<double>(), 0.3 * before);
}

TEST(ParametersWhere, BindsToWhatThePredicateChooses) {
  const json& run = fixtures()["runs"][0];
  Problem problem(run);
  const auto by_both = parameters_where(is_matrix, Muon{});
  const auto by_name = parameters_where([](std::string_view name) { return name.starts_with("b"); }, SGD{});
  static_assert(OptimizerPolicy<std::remove_const_t<decltype(by_both)>> &&
                OptimizerPolicy<std::remove_const_t<decltype(by_name)>>);
  EXPECT_EQ(by_both.bind(problem.parameters).groups()[0].params.size(), 2u);
  const auto bound = by_name.bind(problem.parameters);
  ASSERT_EQ(bound.groups()[0].params.size(), 2u);
  EXPECT_TRUE(bound.groups()[0].params[1].is_same(problem.t["b2"]));
  EXPECT_EQ(error_of([&] {
              parameters_where([](std::string_view) { return false; }, SGD{}).bind(problem.parameters);
            }),
            "parameters_where: the predicate chooses none of 5 parameters");
}

/// torch::optim's class gives the same inside the adapter as outside, and from its state dict on.
template <class Optimizer, class Options>
void check_adapter(const Options& options) {
  const json& run = fixtures()["runs"][0];
  Problem ours(run), theirs(run);
  const TorchOptimizer<Optimizer, Options> policy{options};
  static_assert(OptimizerPolicy<TorchOptimizer<Optimizer, Options>>);
  auto bound = policy.bind(ours.parameters);
  bound.load_state_dict(State(bound.state_dict()));
  std::vector<at::Tensor> parameters;
  for (const NamedParameter& p : theirs.parameters) parameters.push_back(p.tensor);
  Optimizer plain(parameters, options);
  for (int step = 0; step < 20; ++step) {
    if (step == 10) {
      auto other = TorchOptimizer<Optimizer, Options>{Options(0.5)}.bind(ours.parameters);
      other.load_state_dict(State(bound.state_dict()));
      bound = std::move(other);
      EXPECT_EQ(bound.groups()[0].lr, options.get_lr());
    }
    if (step == 15) {
      bound.groups()[0].lr = 0.005;
      plain.param_groups()[0].options().set_lr(0.005);
      Options& their_options = static_cast<Options&>(plain.param_groups()[0].options());
      if constexpr (requires { their_options.betas(); }) {
        bound.groups()[0].momentum = 0.7;
        their_options.betas({0.7, std::get<1>(their_options.betas())});
      } else if constexpr (requires { their_options.momentum(); }) {
        bound.groups()[0].momentum = 0.7;
        their_options.momentum(0.7);
      } else {
        EXPECT_EQ(bound.groups()[0].momentum, std::nullopt);
      }
    }
    train(ours, bound, step, step + 1);
    plain.step([&] {
      plain.zero_grad();
      const at::Tensor loss = theirs.loss(step);
      loss.backward();
      return loss;
    });
  }
  for (const NamedParameter& p : ours.parameters) EXPECT_TRUE(p.tensor.equal(theirs.t[p.name])) << p.name;
}

TEST(TorchOptimizer, TakesAllClassesOfTorchOptim) {
  namespace optim = torch::optim;
  check_adapter<optim::SGD>(optim::SGDOptions(0.01).momentum(0.9));
  check_adapter<optim::Adam>(optim::AdamOptions(0.01).amsgrad(true));
  check_adapter<optim::AdamW>(optim::AdamWOptions(0.01));
  check_adapter<optim::Adagrad>(optim::AdagradOptions(0.01).lr_decay(0.01));
  check_adapter<optim::RMSprop>(optim::RMSpropOptions(0.01).momentum(0.5).centered(true));
  check_adapter<optim::LBFGS>(optim::LBFGSOptions(0.01).max_iter(2));
}

}  // namespace
