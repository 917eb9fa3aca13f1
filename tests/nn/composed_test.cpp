// Tests loop/gradients.hpp: a Trainer whose step is composed does what it does by autograd.
#include "../testing.hpp"

#include <fulmen/callbacks/lambda_callback.hpp>
#include <fulmen/criteria/criteria.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/freeze.hpp>
#include <fulmen/nn/nn.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/optim/lbfgs.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/trainer.hpp>

#include <ATen/autocast_mode.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/torch.h>

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace fulmen;

// LogSoftmax and NLL run on the same kernels as autograd does, so that all is the same to the bit.

struct Data {
  at::Tensor x = at::randn({53, 6}), y = at::randint(3, {53}, at::kLong);
};

/// With all that a step may depend on: noise, running statistics, a layer of one's own, one that autograd
/// serves.
struct Scale {
  double by;
  int* backwards;
  at::Tensor forward(const at::Tensor& x) const { return x * by; }
  at::Tensor backward(const at::Tensor&, const at::Tensor&, const at::Tensor& grad) const {
    if (backwards != nullptr) ++*backwards;
    return grad * by;
  }
};
constexpr auto squash = [](const at::Tensor& x) { return at::tanh(x) + x; };

auto make_net(int* backwards = nullptr) {
  torch::manual_seed(7);
  return nn::Sequential{nn::Linear(6, 8),   nn::ReLU(),       Scale{0.5, backwards},
                        nn::BatchNorm1d(8), nn::Dropout(0.3), nn::Linear(8, 8),
                        nn::ReLU(),         squash,           nn::Linear(8, 3),
                        nn::LogSoftmax(1)};
}

struct Outcome {
  std::vector<at::Tensor> state;
  std::vector<std::string> events;
};

template <class Net>
void keep_state(Net& net, Outcome& outcome) {
  for (const at::Tensor& p : net.parameters()) outcome.state.push_back(p.detach().clone());
  for (const at::Tensor& b : net.buffers()) outcome.state.push_back(b.clone());
}

void expect_equal(const Outcome& a, const Outcome& b, double tolerance = 0) {
  ASSERT_EQ(a.state.size(), b.state.size());
  for (std::size_t i = 0; i < a.state.size(); ++i) {
    if (tolerance == 0)
      EXPECT_TRUE(a.state[i].equal(b.state[i]))
          << "tensor " << i << " differs by " << (a.state[i] - b.state[i]).abs().max();
    else
      EXPECT_TRUE(at::allclose(a.state[i], b.state[i], tolerance, tolerance)) << "tensor " << i;
  }
  if (tolerance == 0)
    EXPECT_EQ(a.events, b.events);
  else
    EXPECT_EQ(a.events.size(), b.events.size());
}

/// Notes each event of a step, with what can be seen there.
struct Recorder {
  std::vector<std::string>* events;
  torch::nn::Module* net;

  void note(const std::string& what) {
    std::string line = what;
    for (const at::Tensor& p : net->parameters()) line += !p.grad().defined() ? " -" : " g";
    events->push_back(line);
  }
  void on_before_backward(Context&, const at::Tensor& loss) {
    note("before_backward " + std::to_string(loss.item<float>()));
  }
  void on_after_backward(Context&) { note("after_backward"); }
  template <class Optimizer>
  void on_before_zero_grad(Context&, Optimizer&) {
    note("before_zero_grad");
  }
  template <class Optimizer>
  void on_before_optimizer_step(Context&, Optimizer&) {
    note("before_optimizer_step");
  }
  template <class Outputs, class Batch>
  void on_train_batch_end(Context& ctx, Outputs& outputs, Batch&, std::int64_t batch_idx) {
    note("batch_end " + std::to_string(batch_idx) + " " +
         std::to_string(outputs.loss.template item<float>()) + " " +
         std::to_string(outputs.prediction.sum().template item<float>()) + " " +
         std::to_string(ctx.global_step()));
  }
};

template <class Policy, class Net, class Optimizer = Adam, class Change = None>
Outcome train(Policy policy, std::shared_ptr<Net> net, Options options = {}, Optimizer optimizer = {},
              Change change = {}) {
  torch::manual_seed(11);
  const Data data;
  Outcome outcome;
  options.max_epochs = options.max_epochs == 1000 ? 4 : options.max_epochs;
  TensorLoader loader{{data.x, data.y}, {.batch_size = 8, .shuffle = true}};
  const auto run = [&](auto callbacks) {
    Trainer trainer{net,        NLL{},     optimizer, none,
                    Identity{}, callbacks, options,   Runtime<>{.device = at::kCPU}.with_gradients(policy)};
    trainer.fit(loader);
  };
  if constexpr (is_none<Change>)
    run(callbacks(Recorder{&outcome.events, net.get()}));
  else
    run(callbacks(Recorder{&outcome.events, net.get()}, change));
  keep_state(*net, outcome);
  return outcome;
}

template <class MakeNet, class Optimizer = Adam, class Change = None>
void compare(MakeNet&& make, Options options = {}, Optimizer optimizer = {}, Change change = {},
             double tolerance = 0) {
  auto composed = make(), graph = make();
  using Net = decltype(composed);
  const Outcome a = train(Composed{}, std::make_shared<Net>(composed), options, optimizer, change);
  const Outcome b = train(Autograd{}, std::make_shared<Net>(graph), options, optimizer, change);
  expect_equal(a, b, tolerance);
  EXPECT_GT(a.events.size(), 20u);
}

TEST(ComposedGradients, SameAsAutograd) {
  compare([] { return make_net(); });
}
TEST(ComposedGradients, Accumulation) {
  compare([] { return make_net(); }, {.accumulate_grad_batches = 3}, SGD{.lr = 0.1, .momentum = 0.9}, {},
          1e-6);
}
TEST(ComposedGradients, Clipping) {
  compare([] { return make_net(); }, {.gradient_clip_val = 0.1});
  compare([] { return make_net(); },
          {.gradient_clip_val = 0.01, .gradient_clip_algorithm = GradientClip::value});
}
TEST(ComposedGradients, AnOptimizerThatAsksSeveralTimes) {
  compare(
      [] {
        torch::manual_seed(7);
        return nn::Sequential{nn::Linear(6, 8), nn::Tanh(), nn::Linear(8, 3), nn::LogSoftmax(1)};
      },
      {.max_epochs = 2}, LBFGS{.lr = 0.1, .max_iter = 4}, {}, 1e-5);
}

TEST(ComposedGradients, FrozenLayersAreNotComputed) {
  for (const bool by_graph : {false, true}) {
    int backwards = 0;
    auto net = make_net(&backwards);
    freeze(net.get<0>());
    freeze(net.get<3>());
    auto shared = std::make_shared<decltype(net)>(net);
    if (by_graph)
      train(Autograd{}, shared);
    else
      train(Composed{}, shared);
    EXPECT_EQ(backwards, 0);
  }
  compare([] {
    auto net = make_net();
    freeze(net.get<0>());
    freeze(net.get<3>());
    return net;
  });
}

/// Freezes and frees a layer, and changes modes, while training goes on.
struct Toggle {
  template <class Ctx, class Batch>
  void on_train_batch_start(Ctx& ctx, Batch&, std::int64_t batch_idx) {
    auto& net = ctx.module();
    if (batch_idx == 2) freeze(net.template get<0>());
    if (batch_idx == 3) freeze(net.template get<5>());
    if (batch_idx == 4) unfreeze(net.template get<0>()), net.template get<4>().eval();
    if (batch_idx == 5)
      unfreeze(net.template get<5>()), net.template get<4>().train(), net.template get<3>().eval();
    if (batch_idx == 6) net.template get<3>().train();
  }
};
TEST(ComposedGradients, WhatIsTrainedMayChange) {
  compare([] { return make_net(); }, {}, SGD{.lr = 0.1}, Toggle{});
}

TEST(ComposedGradients, SharedWeights) {
  compare(
      [] {
        torch::manual_seed(7);
        nn::Linear twice(6, 6);
        return nn::Sequential{twice, nn::ReLU(), twice, nn::Linear(6, 3), nn::LogSoftmax(1)};
      },
      {}, SGD{.lr = 0.1}, {}, 1e-6);  // sums of two gradients, rounded otherwise
}

TEST(ComposedGradients, SumsOfCriteria) {
  struct Log {
    std::vector<double>* values;
    void on_train_epoch_end(Context& ctx) {
      for (const char* name : {"train/loss", "train/cross_entropy", "train/smooth"})
        values->push_back(*ctx.metrics().find(name));
    }
  };
  const Data data;
  std::vector<double> values[2];
  std::vector<at::Tensor> weights[2];
  const auto run = [&](auto policy, int which) {
    auto net = make_net();
    auto sum = CrossEntropy{} + 0.3 * part<"smooth">(CrossEntropy{.label_smoothing = 0.1});
    torch::manual_seed(0);
    Trainer trainer{net,
                    sum,
                    SGD{.lr = 0.1},
                    none,
                    Identity{},
                    callbacks(Log{&values[which]}),
                    {.max_epochs = 2},
                    Runtime<>{.device = at::kCPU}.with_gradients(policy)};
    static_assert(decltype(trainer)::plan().gradients.composed == std::is_same_v<decltype(policy), Composed>);
    trainer.fit(TensorLoader{{data.x, data.y}, {.batch_size = 8}});
    weights[which] = net.parameters();
  };
  run(Composed{}, 0);
  run(Autograd{}, 1);
  ASSERT_EQ(values[0].size(), 6u);
  for (std::size_t i = 0; i < values[0].size(); ++i) EXPECT_NEAR(values[0][i], values[1][i], 1e-6);
  for (std::size_t i = 0; i < weights[0].size(); ++i)
    EXPECT_TRUE(at::allclose(weights[0][i], weights[1][i], 1e-5, 1e-6));
}

TEST(ComposedGradients, CrossEntropyOfFewClasses) {
  const Data data;
  std::vector<at::Tensor> weights[2];
  const auto run = [&](auto policy, int which) {
    auto net = make_net();
    torch::manual_seed(0);
    Trainer trainer{net,
                    CrossEntropy{},
                    SGD{.lr = 0.1, .momentum = 0.9},
                    none,
                    Identity{},
                    callbacks(),
                    {.max_epochs = 3},
                    Runtime<>{.device = at::kCPU}.with_gradients(policy)};
    trainer.fit(TensorLoader{{data.x, data.y}, {.batch_size = 8}});
    weights[which] = net.parameters();
  };
  run(Composed{}, 0);
  run(Autograd{}, 1);
  for (std::size_t i = 0; i < weights[0].size(); ++i)
    EXPECT_TRUE(at::allclose(weights[0][i], weights[1][i], 1e-4, 1e-5));
}

TEST(ComposedGradients, ACriterionOfOnesOwn) {
  const Data data;
  std::vector<at::Tensor> weights[2];
  const auto run = [&](auto policy, int which) {
    auto net = make_net();
    torch::manual_seed(0);
    const auto criterion = [](const at::Tensor& out, const at::Tensor& target) {
      return (out.log_softmax(1).exp() - at::one_hot(target, 3)).square().mean();
    };
    Trainer trainer{net,
                    criterion,
                    SGD{.lr = 0.1},
                    none,
                    Identity{},
                    callbacks(),
                    {.max_epochs = 2},
                    Runtime<>{.device = at::kCPU}.with_gradients(policy)};
    if constexpr (std::is_same_v<decltype(policy), Composed>) {
      EXPECT_NE(to_string(trainer.plan())
                    .find("composed of 10 layers, 1 of them by autograd; the criterion by autograd"),
                std::string::npos)
          << to_string(trainer.plan());
    }
    trainer.fit(TensorLoader{{data.x, data.y}, {.batch_size = 8}});
    weights[which] = net.parameters();
  };
  run(Composed{}, 0);
  run(Autograd{}, 1);
  for (std::size_t i = 0; i < weights[0].size(); ++i)
    EXPECT_TRUE(at::allclose(weights[0][i], weights[1][i], 1e-5, 1e-6));
}

/// Autocast is on while it lives.
struct Bf16 {
  Bf16() {
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, true);
  }
  ~Bf16() {
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
  }
};
TEST(ComposedGradients, UnderAutocast) {
  const Bf16 bf16;
  compare([] { return make_net(); });
}

TEST(ComposedGradients, HooksOnParametersAreCalled) {
  int calls = 0;
  auto net = make_net();
  net.get<0>().weight.register_hook([&](const at::Tensor&) { ++calls; });
  const auto shared = std::make_shared<decltype(net)>(net);
  train(Composed{}, shared, {.max_epochs = 1});
  EXPECT_EQ(calls, 7);
}

TEST(ComposedGradients, AnomalyDetectionAsksForAGraph) {
  auto net = make_net();
  EXPECT_NO_THROW(
      train(Composed{}, std::make_shared<decltype(net)>(net), {.max_epochs = 1, .detect_anomaly = true}));
}

/// Who keeps predictions, losses and gradients has them as they were.
struct Keep {
  std::vector<std::pair<at::Tensor, at::Tensor>>* kept;
  template <class Ctx, class Outputs, class Batch>
  void on_train_batch_end(Ctx& ctx, Outputs& outputs, Batch&, std::int64_t) {
    for (const at::Tensor& t : {outputs.loss, outputs.prediction, ctx.module().parameters()[0].grad()})
      kept->emplace_back(t, t.clone());
  }
};
TEST(ComposedGradients, WhatIsHandedOutIsNotOverwritten) {
  std::vector<std::pair<at::Tensor, at::Tensor>> kept;
  auto net = make_net();
  train(Composed{}, std::make_shared<decltype(net)>(net), {}, Adam{}, Keep{&kept});
  ASSERT_EQ(kept.size(), 28u * 3);
  for (const auto& [held, copy] : kept) EXPECT_TRUE(held.equal(copy));
}

TEST(ComposedGradients, AStepThatFailsLeavesTheNextOneWhole) {
  auto net = nn::Sequential{nn::Linear(6, 8), nn::ReLU(), nn::Linear(8, 3)};
  CrossEntropy criterion;
  nn::ComposedStep<decltype(net), CrossEntropy> step(net, criterion);
  const at::Tensor x = at::randn({4, 6}), y = at::tensor({0, 1, 2, 0}, at::kLong), wrong = at::randn({4, 5}),
                   out_of_range = at::tensor({0, 1, 3, 0}, at::kLong);
  const auto run = [&](const at::Tensor& in, const at::Tensor& target) {
    for (const at::Tensor& p : net.parameters()) p.mutable_grad().reset();
    step.forward({&in}, {&target});
    const at::Tensor loss = step.loss();
    step.backward();
    return loss;
  };
  const double loss = run(x, y).item<double>();
  const at::Tensor grad = net.get<0>().weight.grad().clone();
  EXPECT_THROW(run(wrong, y), c10::Error);
  EXPECT_EQ(run(x, y).item<double>(), loss);
  EXPECT_THROW(run(x, out_of_range), std::exception);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(run(x, y).item<double>(), loss);
    EXPECT_TRUE(net.get<0>().weight.grad().equal(grad));
  }
}

/// A module with hooks of its own says what it is composed of.
struct WithHooks : torch::nn::Module {
  using Layers = decltype(nn::Sequential{nn::Linear(6, 8), nn::ReLU(), nn::Linear(8, 3)});
  std::shared_ptr<Layers> layers =
      register_module("layers", nn::make_sequential(nn::Linear(6, 8), nn::ReLU(), nn::Linear(8, 3)));
  int epochs = 0;

  at::Tensor forward(const at::Tensor& x) { return layers->forward(x); }
  Layers& composition() { return *layers; }
  void on_train_epoch_end() { ++epochs; }
};
struct WithAStep : WithHooks {
  at::Tensor training_step(Context&, std::tuple<at::Tensor, at::Tensor>& batch) {
    return at::cross_entropy_loss(forward(std::get<0>(batch)), std::get<1>(batch));
  }
};

TEST(ComposedGradients, Composition) {
  auto net = std::make_shared<WithHooks>();
  const Data data;
  Trainer trainer{net, CrossEntropy{}, Adam{}, none, Identity{}, callbacks(), {.max_epochs = 2}, barebones};
  static_assert(decltype(trainer)::plan().gradients.composed &&
                decltype(trainer)::plan().gradients.rules == 3);
  trainer.fit(TensorLoader{{data.x, data.y}, {.batch_size = 8}});
  EXPECT_EQ(net->epochs, 2);
  EXPECT_GT(trainer.context().activation_bytes(), 0);
}

TEST(ComposedGradients, ThePlanSaysWhyNot) {
  const auto why = [](auto net, auto criterion, auto runtime) {
    return to_string(Trainer<decltype(net), decltype(criterion), Adam, None, Identity, std::tuple<>,
                             decltype(runtime)>::plan());
  };
  const auto line = [](const std::string& plan) {
    const std::size_t at = plan.find("gradients ") + 28;
    return plan.substr(at, plan.find('\n', at) - at);
  };
  EXPECT_EQ(line(why(WithHooks{}, CrossEntropy{}, barebones)), "composed of 3 layers");
  EXPECT_EQ(line(why(WithHooks{}, CrossEntropy{}, Runtime<>{}.with_gradients(Autograd{}))),
            "autograd: the runtime's gradient policy is not Composed");
  EXPECT_EQ(line(why(WithAStep{}, CrossEntropy{}, barebones)),
            "autograd: the module has a training_step of its own");
  EXPECT_EQ(line(why(torch::nn::LinearImpl(2, 2), CrossEntropy{}, barebones)),
            "autograd: the module is not composed of fulmen::nn layers");
}

/// Bytes that LibTorch has allocated, and the most there were.
struct Counter : c10::MemoryReportingInfoBase {
  std::int64_t now = 0, most = 0;
  void reportMemoryUsage(void*, std::int64_t bytes, std::size_t, std::size_t, c10::Device) override {
    now += bytes;
    most = std::max(most, now);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

template <class Policy, class Net, class Criterion, class Loader>
std::int64_t peak(Policy policy, Net& net, const Criterion& criterion, Loader& loader, std::int64_t epochs) {
  for (const at::Tensor& p : net->parameters()) p.mutable_grad().reset();
  const auto counter = std::make_shared<Counter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
  Trainer trainer{
      net,        criterion,   SGD{.lr = 0.01},        none,
      Identity{}, callbacks(), {.max_epochs = epochs}, Runtime<>{.device = at::kCPU}.with_gradients(policy)};
  trainer.fit(loader);
  return counter->most;
}

TEST(ComposedGradients, NeedAsMuchMemoryAsAutograd) {
  const auto compare_peaks = [](auto net, at::Tensor x, std::int64_t classes) {
    const at::Tensor y = at::randint(classes, {x.size(0)}, at::kLong);
    TensorLoader loader{{x, y}, {.batch_size = 16}};
    const std::int64_t by_graph = peak(Autograd{}, net, CrossEntropy{}, loader, 3),
                       composed = peak(Composed{}, net, CrossEntropy{}, loader, 3);
    EXPECT_GT(composed, 0);
    // The gradients of the parameters are kept; autograd's are made in the course of the backward pass.
    EXPECT_LE(composed, by_graph + by_graph / 50)
        << static_cast<double>(composed) / static_cast<double>(by_graph);
    std::printf("peak: composed %lld, autograd %lld bytes\n", static_cast<long long>(composed),
                static_cast<long long>(by_graph));
  };
  compare_peaks(nn::make_sequential(nn::Linear(64, 256), nn::ReLU(), nn::Linear(256, 256), nn::ReLU(),
                                    nn::Linear(256, 10)),
                at::randn({56, 64}), 10);
  compare_peaks(nn::make_sequential(nn::Linear(64, 8), nn::ReLU(), nn::Linear(8, 512), nn::ReLU(),
                                    nn::Linear(512, 8), nn::ReLU(), nn::Linear(8, 4)),
                at::randn({56, 64}), 4);
  compare_peaks(
      nn::make_sequential(nn::Conv2d(nn::Conv2dOptions(1, 8, 3)), nn::BatchNorm2d(8), nn::ReLU(),
                          nn::MaxPool2d(2), nn::Conv2d(nn::Conv2dOptions(8, 16, 3)), nn::ReLU(),
                          nn::MaxPool2d(2), nn::Flatten(), nn::Dropout(0.2), nn::Linear(16 * 5 * 5, 10)),
      at::randn({40, 1, 28, 28}), 10);
}

}  // namespace
