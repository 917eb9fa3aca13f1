// Tests the Trainer as a user meets it: what it is made of, its stages, its files and its errors.
#include "testing.hpp"

#include <fulmen/fulmen.hpp>
#include <fulmen/optim/torch_optimizer.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>
#include <string>

namespace {

using namespace fulmen;
namespace fs = std::filesystem;
using Calls = std::vector<std::string>;

std::string text_of(const fs::path& file) {
  std::ostringstream out;
  out << std::ifstream(file).rdbuf();
  return out.str();
}

struct Net : torch::nn::Module {
  torch::nn::Linear fc{nullptr};
  torch::nn::Dropout dropout{nullptr};
  Net() {
    fc = register_module("fc", torch::nn::Linear(4, 3));
    dropout = register_module("dropout", torch::nn::Dropout(0.5));
  }
  at::Tensor forward(const at::Tensor& x) { return fc(dropout(x)); }
};
TORCH_MODULE_IMPL(NetHolder, Net);

struct Data {
  at::Tensor x, y;
  Data() {
    seed_everything(3);
    x = torch::randn({20, 4});
    y = torch::randint(3, {20});
  }
  TensorLoader<2> loader(bool shuffle = false) const { return {{x, y}, {.batch_size = 5, .shuffle = shuffle}}; }
};

Options quiet(std::int64_t epochs = 1) {
  return {.max_epochs = epochs, .num_sanity_val_steps = 0, .enable_progress_bar = false, .enable_model_summary = false};
}

bool same_parameters(torch::nn::Module& a, torch::nn::Module& b) {
  const auto pa = a.parameters(), pb = b.parameters();
  for (std::size_t i = 0; i < pa.size(); ++i) {
    if (!pa[i].equal(pb[i])) return false;
  }
  return pa.size() == pb.size();
}

TEST(Trainer, TakesAModuleByValueBySharedPointerAndByHolder) {
  const Data data;
  auto loader = data.loader();
  Trainer by_value{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), quiet(), barebones};
  auto shared = std::make_shared<Net>();
  Trainer by_pointer{shared, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), quiet(), barebones};
  NetHolder holder;
  Trainer by_holder{holder, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), quiet(), barebones};
  static_assert(std::is_same_v<decltype(by_value), decltype(by_pointer)>);
  static_assert(std::is_same_v<decltype(by_value), decltype(by_holder)>);
  const at::Tensor before = shared->fc->weight.detach().clone();
  by_value.fit(loader);
  by_pointer.fit(loader);
  by_holder.fit(loader);
  EXPECT_EQ(&by_pointer.module(), shared.get());
  EXPECT_EQ(&by_holder.module(), holder.get());
  EXPECT_FALSE(shared->fc->weight.equal(before)) << "the caller's module is the one that is trained";
  EXPECT_EQ(error_of([] { Trainer{std::shared_ptr<Net>(), CrossEntropy{}, SGD{}}; }),
            "Trainer: the module is a null pointer, expected a module");
}

TEST(Trainer, EqualsTheLoopWrittenByHandBitForBit) {
  const Data data;
  auto ours = std::make_shared<Net>();
  auto theirs = std::make_shared<Net>();
  {
    const at::NoGradGuard no_grad;
    theirs->fc->weight.copy_(ours->fc->weight);
    theirs->fc->bias.copy_(ours->fc->bias);
  }
  Trainer trainer{ours, CrossEntropy{}, Adam{.lr = 0.1}, Multiply{{{1, 0.5}}}, Identity{}, callbacks(), quiet(3), barebones};
  auto loader = data.loader(/*shuffle=*/true);
  seed_everything(5);
  trainer.fit(loader);
  seed_everything(5);
  auto again = data.loader(/*shuffle=*/true);
  auto optimizer = Adam{.lr = 0.1}.bind(fulmen::detail::named_parameters(*theirs));
  for (int epoch = 0; epoch < 3; ++epoch) {
    if (epoch == 1) optimizer.groups()[0].lr *= 0.5;
    for (auto [x, y] : again) {
      optimizer.zero_grad();
      at::cross_entropy_loss(theirs->forward(x), y).backward();
      optimizer.step();
    }
  }
  EXPECT_TRUE(same_parameters(*ours, *theirs));
  EXPECT_EQ(trainer.context().epoch(), 3);
  EXPECT_EQ(trainer.context().global_step(), 12);
}

struct WatchesModes {
  bool* good;
  void on_validation_batch_start(auto& ctx) { look(ctx); }
  void on_test_batch_start(auto& ctx) { look(ctx); }
  void look(auto& ctx) {
    *good = *good && !ctx.module().is_training() && !ctx.module().dropout->is_training() && c10::InferenceMode::is_enabled();
  }
};

TEST(Trainer, ValidatesAndTestsInEvalModeWithoutGradientsAndPutsModesBack) {
  const Data data;
  auto loader = data.loader();
  bool good = true;
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(WatchesModes{&good}), quiet(), barebones};
  trainer.module().fc->eval();  // a frozen layer, as a user may have it
  trainer.fit(loader, loader);
  const Metrics results = trainer.test(loader);
  EXPECT_TRUE(good);
  EXPECT_TRUE(trainer.module().is_training());
  EXPECT_FALSE(trainer.module().fc->is_training());
  EXPECT_TRUE(trainer.module().dropout->is_training());
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].name, "test/loss");
  EXPECT_EQ(results.at("test/loss"), results[0].value);
  EXPECT_EQ(error_of([&] { results.at("loss"); }), "there is no value 'loss'; there is: test/loss");
  trainer.module().eval();
  const at::NoGradGuard no_grad;
  EXPECT_NEAR(results[0].value, at::cross_entropy_loss(trainer.module().forward(data.x), data.y).item<double>(), 1e-6);
}

TEST(Trainer, PredictsWithAndWithoutTargets) {
  struct Sigmoid : Net {
    at::Tensor activation(const at::Tensor& x) { return x.sigmoid(); }
  };
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Sigmoid{}, CrossEntropy{}, none, none, Identity{}, callbacks(), quiet(), barebones};
  const std::vector<at::Tensor> with = trainer.predict(loader);
  TensorLoader alone{{data.x}, {.batch_size = 5}};
  const std::vector<at::Tensor> without = trainer.predict(alone);
  const std::vector<at::Tensor> whole = trainer.predict(data.x);
  ASSERT_EQ(with.size(), 4u);
  ASSERT_EQ(whole.size(), 1u);
  trainer.module().eval();
  const at::NoGradGuard no_grad;
  const at::Tensor expected = trainer.module().forward(data.x).sigmoid();
  EXPECT_TRUE(at::cat(with).allclose(expected));
  EXPECT_TRUE(at::cat(without).allclose(expected));
  EXPECT_TRUE(whole[0].allclose(expected));
}

struct OwnSteps : torch::nn::Module {
  torch::nn::Linear fc{nullptr};
  Calls calls;
  OwnSteps() { fc = register_module("fc", torch::nn::Linear(4, 3)); }
  using Batch = std::tuple<at::Tensor, at::Tensor>;
  struct Outputs {
    at::Tensor loss;
    int extra;
  };
  Outputs training_step(auto& ctx, const Batch& batch, std::int64_t batch_idx) {
    const auto& [x, y] = batch;
    at::Tensor loss = at::cross_entropy_loss(fc(x), y);
    ctx.log("loss", loss, {.prog_bar = true, .on_step = true, .on_epoch = true});
    calls.push_back("training_step " + std::to_string(batch_idx));
    return {loss, 7};
  }
  void validation_step(fulmen::Context& ctx, const Batch& batch) {
    ctx.log("val_mean", std::get<0>(batch).mean());
    calls.push_back("validation_step");
  }
  double test_step(const Batch& batch) {
    calls.push_back("test_step");
    return std::get<0>(batch).sum().item<double>();
  }
  void predict_step(const Batch&) { calls.push_back("predict_step"); }
};

TEST(Trainer, UsesAModulesOwnStepsWithTheArgumentsTheyTake) {
  struct Watch {
    double* sum;
    void on_train_batch_end(Context&, const OwnSteps::Outputs& outputs) { EXPECT_EQ(outputs.extra, 7); }
    void on_test_batch_end(Context&, double outputs) { *sum += outputs; }
  };
  const Data data;
  auto loader = data.loader();
  double sum = 0;
  Trainer trainer{OwnSteps{}, none, SGD{}, none, Identity{}, callbacks(Watch{&sum}), quiet(), barebones};
  trainer.fit(loader, loader);
  EXPECT_EQ(trainer.module().calls, (Calls{"training_step 0", "training_step 1", "training_step 2", "training_step 3",
                                           "validation_step", "validation_step", "validation_step", "validation_step"}));
  trainer.test(loader);
  EXPECT_NEAR(sum, data.x.sum().item<double>(), 1e-4);
  static_assert(std::is_void_v<decltype(trainer.predict(loader))>);
  trainer.predict(loader);
  EXPECT_EQ(trainer.module().calls.back(), "predict_step");
  EXPECT_TRUE(trainer.context().metrics().find("loss_epoch").has_value());
  EXPECT_NEAR(trainer.context().metrics().find("val_mean").value(), data.x.mean().item<double>(), 1e-6);
}

TEST(Trainer, InferenceStepServesValidationTestAndPredict) {
  struct Shared : Net {
    int calls = 0;
    struct Outputs {
      at::Tensor prediction, targets;
    };
    Outputs inference_step(const std::tuple<at::Tensor, at::Tensor>& batch) {
      ++calls;
      return {forward(std::get<0>(batch)), std::get<1>(batch)};
    }
  };
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Shared{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(MetricMonitor{Accuracy{}}), quiet(), barebones};
  const Metrics results = trainer.validate(loader);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].name, "val/accuracy");
  trainer.test(loader);
  EXPECT_EQ(trainer.predict(loader).size(), 4u);
  EXPECT_EQ(trainer.module().calls, 12);
}

struct Manual : torch::nn::Module {
  static constexpr bool automatic_optimization = false;
  torch::nn::Linear a{nullptr};
  Manual() { a = register_module("a", torch::nn::Linear(4, 1)); }
  void training_step(auto& ctx, const at::Tensor& batch) {
    auto& [first, second] = ctx.optimizers();
    for (int i = 0; i < 2; ++i) {
      first.zero_grad();
      ctx.backward(a(batch).pow(2).mean());
      i == 0 ? first.step() : second.step();
    }
  }
};

TEST(Trainer, OptimisesByHandWithSeveralOptimizers) {
  TensorLoader loader{{at::ones({8, 4})}, {.batch_size = 4}};
  Trainer trainer{Manual{}, none, std::tuple{SGD{.lr = 0.01}, Adam{.lr = 0.01}}, none, Identity{}, callbacks(), quiet(20),
                  barebones};
  const double before = trainer.module().a(at::ones({1, 4})).abs().item<double>();
  trainer.fit(loader);
  EXPECT_LT(trainer.module().a(at::ones({1, 4})).abs().item<double>(), before);
}

TEST(Trainer, AnOptimizerMayHaveASubmoduleForItself) {
  struct Parts : torch::nn::Module {
    torch::nn::Linear a{register_module("a", torch::nn::Linear(4, 4))}, ab{register_module("ab", torch::nn::Linear(4, 3))};
    at::Tensor forward(const at::Tensor& x) { return ab(a(x)); }
  };
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Parts{}, CrossEntropy{}, parameters_of("a", SGD{.lr = 1}), none, Identity{}, callbacks(), quiet(), barebones};
  const at::Tensor a = trainer.module().a->weight.detach().clone(), ab = trainer.module().ab->weight.detach().clone();
  trainer.fit(loader);
  EXPECT_FALSE(trainer.module().a->weight.equal(a));
  EXPECT_TRUE(trainer.module().ab->weight.equal(ab)) << "a name that only begins like it is another";
  Trainer wrong{Parts{}, CrossEntropy{}, parameters_of("c", SGD{}), none, Identity{}, callbacks(), quiet(), barebones};
  EXPECT_EQ(error_of([&] { wrong.fit(loader); }),
            "parameters_of(\"c\"): no parameter is in that submodule; there is: a.weight, a.bias, ab.weight, ab.bias");
}

TEST(Trainer, FrozenLayersRestAndGoOnWhereTheyWere) {
  struct Parts : torch::nn::Module {
    torch::nn::Linear a{register_module("a", torch::nn::Linear(4, 4))}, b{register_module("b", torch::nn::Linear(4, 3))};
    at::Tensor forward(const at::Tensor& x) { return b(a(x)); }
  };
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Parts{}, CrossEntropy{}, Adam{.lr = 0.1}, none, Identity{}, callbacks(), quiet(-1), barebones};
  Parts& module = trainer.module();
  const auto fit_one_epoch = [&](std::int64_t steps) {
    Options options = trainer.options();
    options.max_steps = steps;
    trainer.set_options(options);
    trainer.fit(loader);
  };
  const auto steps_of = [&](int i) {
    return State(trainer.context().optimizer().state_dict()).get<State>("state").get<State>(i).get<at::Tensor>("step").item<float>();
  };
  freeze(*module.a);
  const at::Tensor frozen = module.a->weight.detach().clone();
  fit_one_epoch(4);
  EXPECT_TRUE(module.a->weight.equal(frozen));
  unfreeze(*module.a);
  fit_one_epoch(8);
  EXPECT_FALSE(module.a->weight.equal(frozen));
  EXPECT_EQ(steps_of(0), 4) << "a parameter counts its own steps";
  EXPECT_EQ(steps_of(2), 8);
  freeze(*module.a);
  const at::Tensor again = module.a->weight.detach().clone();
  fit_one_epoch(12);
  EXPECT_TRUE(module.a->weight.equal(again)) << "no momentum moves a frozen parameter";
  EXPECT_EQ(steps_of(0), 4);
  EXPECT_EQ(steps_of(2), 12);
}

TEST(Trainer, LBFGSRunsItsClosureSeveralTimesAStep) {
  struct Line : torch::nn::Module {
    torch::nn::Linear fc{register_module("fc", torch::nn::Linear(1, 1))};
    int calls = 0;
    at::Tensor forward(const at::Tensor& x) {
      ++calls;
      return fc(x);
    }
  };
  seed_everything(2);
  const at::Tensor x = torch::linspace(-1, 1, 20).unsqueeze(1);
  TensorLoader loader{{x, 3 * x + 2}, {.batch_size = 20}};
  using LBFGS = TorchOptimizer<torch::optim::LBFGS, torch::optim::LBFGSOptions>;
  Trainer trainer{Line{}, MSE{}, LBFGS{torch::optim::LBFGSOptions(1)}, none, Identity{}, callbacks(), quiet(3), barebones};
  trainer.fit(loader);
  EXPECT_EQ(trainer.context().global_step(), 3);
  EXPECT_GT(trainer.module().calls, 6);
  EXPECT_NEAR(trainer.module().fc->weight.item<float>(), 3, 1e-3);
  EXPECT_NEAR(trainer.module().fc->bias.item<float>(), 2, 1e-3);
}

/// Predicts the running sum of a sequence, trained on pieces of it: the hidden state goes on, the graph does not.
struct Truncated : torch::nn::Module {
  static constexpr bool automatic_optimization = false;
  torch::nn::GRU gru{register_module("gru", torch::nn::GRU(torch::nn::GRUOptions(1, 16).batch_first(true)))};
  torch::nn::Linear out{register_module("out", torch::nn::Linear(16, 1))};

  void training_step(auto& ctx, const at::Tensor& batch) {
    at::Tensor hidden;
    const at::Tensor sums = batch.cumsum(1);
    for (std::int64_t from = 0; from < batch.size(1); from += 5) {
      auto [features, state] = gru(batch.slice(1, from, from + 5), hidden);
      const at::Tensor loss = at::mse_loss(out(features), sums.slice(1, from, from + 5));
      ctx.optimizer().zero_grad();
      ctx.backward(loss);  // would fail at the second piece if the graph went on through `hidden`
      ctx.optimizer().step();
      hidden = state.detach();
      ctx.log("loss", loss, {.on_epoch = true});
    }
  }
};

TEST(Trainer, BackPropagationThroughTimeMayBeTruncated) {
  seed_everything(4);
  TensorLoader loader{{torch::randn({64, 20, 1}) * 0.2}, {.batch_size = 16, .shuffle = true}};
  Trainer trainer{Truncated{}, none, Adam{.lr = 0.01}, none, Identity{}, callbacks(), quiet(1), barebones};
  trainer.fit(loader);
  const double before = trainer.context().metrics().find("loss_epoch").value();
  trainer.set_options(quiet(15));
  trainer.fit(loader);
  EXPECT_EQ(trainer.context().global_step(), 15 * 4 * 4) << "a step a piece";
  EXPECT_LT(trainer.context().metrics().find("loss_epoch").value(), before / 3);
}

/// The trio of the older interface: each step, its _step_end, and the _epoch_end that takes all outputs.
struct Trio : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(4, 3))};
  Calls calls;
  using Batch = std::tuple<at::Tensor, at::Tensor>;
  struct Halves {
    at::Tensor first, second;
  };

  Halves training_step(const Batch& batch) {
    const at::Tensor losses = at::cross_entropy_loss(fc(std::get<0>(batch)), std::get<1>(batch), {}, at::Reduction::None);
    return {losses.slice(0, 0, 2).sum(), losses.slice(0, 2).sum()};
  }
  at::Tensor training_step_end(const Halves& halves) { return (halves.first + halves.second) / 5; }
  void training_epoch_end(auto& ctx, const std::vector<at::Tensor>& outputs) {
    calls.push_back("training " + std::to_string(outputs.size()));
    ctx.log("mean", at::stack(outputs).mean());
  }
  double validation_step(fulmen::Context&, const Batch& batch) { return std::get<0>(batch).sum().item<double>(); }
  std::string validation_step_end(fulmen::Context&, double sum) { return sum > 0 ? "+" : "-"; }
  void validation_epoch_end(const std::vector<std::string>& outputs) {
    calls.push_back("validation " + std::to_string(outputs.size()));
  }
  int test_step(const Batch&) { return 2; }
  int test_step_end(fulmen::Context&, int two) { return two + 1; }
  void test_epoch_end(fulmen::Context& ctx, const std::vector<int>& outputs) {
    ctx.log("sum", std::accumulate(outputs.begin(), outputs.end(), 0));
  }
};

TEST(Trainer, StepEndsAndEpochEndsOfTheOlderInterface) {
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Trio{}, none, SGD{.lr = 0.1}, none, Identity{}, callbacks(), quiet(), barebones};
  trainer.fit(loader, loader);
  EXPECT_EQ(trainer.module().calls, (Calls{"validation 4", "training 4"}));
  EXPECT_TRUE(trainer.context().metrics().find("mean").has_value());
  EXPECT_EQ(trainer.test(loader).at("sum"), 12);
}

struct Remembers {
  Calls* calls;
  std::int64_t epochs = 0;
  void on_train_epoch_end(Context&) { ++epochs; }
  void on_save_checkpoint(Context&, State& checkpoint) { checkpoint.set("mine", "kept"); }
  void on_load_checkpoint(Context&, const State& checkpoint) { calls->push_back(checkpoint.get<std::string>("mine")); }
  State state_dict() const { return State("Remembers").set("epochs", epochs); }
  void load_state_dict(const State& state) { epochs = state.get<std::int64_t>("epochs"); }
};

TEST(Trainer, CallbacksAddToACheckpointAndHaveTheirStateInIt) {
  const TemporaryFolder folder;
  const Data data;
  auto loader = data.loader();
  Calls calls;
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(Remembers{&calls}), quiet(3), barebones};
  trainer.fit(loader);
  trainer.save(folder.path / "state.ckpt");
  Trainer other{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(Remembers{&calls}), quiet(3), barebones};
  other.load(folder.path / "state.ckpt");
  EXPECT_EQ(std::get<0>(other.context().callbacks()).epochs, 3);
  EXPECT_EQ(calls, Calls{"kept"});
}

/// What was logged: the step of each call.
struct LoggedSteps {
  std::vector<std::int64_t>* steps;
  void log_metrics(Context&, const Metrics&, std::int64_t step) { steps->push_back(step); }
};

TEST(Trainer, AResumedRunLogsAtTheStepsOfOneThatGoesThrough) {
  const TemporaryFolder folder;
  const Data data;
  auto loader = data.loader();  // 4 batches
  const auto file = folder.path / "state.ckpt";
  std::vector<std::int64_t> through, resumed;
  const auto train = [&](std::int64_t epochs, std::vector<std::int64_t>& steps, bool load) {
    Options options = quiet(epochs);
    options.log_every_n_steps = 3;  // across the epochs: steps 2, 5, 8, 11, 14
    Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), options,
                    Runtime<std::tuple<LoggedSteps>>{.loggers = {LoggedSteps{&steps}}}};
    if (load) trainer.load(file);
    trainer.fit(loader);
    trainer.save(file);
  };
  train(4, through, false);
  train(1, resumed, false);
  train(4, resumed, true);
  EXPECT_EQ(through, resumed);
  EXPECT_GE(std::count(through.begin(), through.end(), 14), 1) << "expected at least the rows of steps";
}

TEST(Trainer, EachOfSeveralCallbacksOfATypeHasItsOwnState) {
  const TemporaryFolder folder;
  const Data data;
  auto loader = data.loader();
  const auto file = folder.path / "state.ckpt";
  Calls calls;
  const auto make = [&](std::int64_t first, std::int64_t second) {
    return callbacks(Remembers{&calls, first}, EarlyStopping{.monitor = "train/loss", .patience = 9}, Remembers{&calls, second},
                     EarlyStopping{.monitor = "train/loss", .patience = 8, .mode = Mode::max});
  };
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, make(10, 20), quiet(3), barebones};
  trainer.fit(loader);
  trainer.save(file);
  Trainer other{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, make(0, 0), quiet(3), barebones};
  other.load(file);
  auto& [first, minimum, second, maximum] = other.context().callbacks();
  EXPECT_EQ(first.epochs, 13);
  EXPECT_EQ(second.epochs, 23);
  EXPECT_EQ(minimum.patience, 9);
  EXPECT_EQ(maximum.patience, 8);
  const State saved = State(checkpoint::read(file)).get<State>("callbacks");
  EXPECT_TRUE(saved.contains("EarlyStopping{'monitor': 'train/loss', 'mode': 'max'}")) << "Lightning's key";
}

TEST(Trainer, SchedulersFollowTheirIntervalAndFrequency) {
  const Data data;
  auto loader = data.loader();  // 4 batches
  const Schedule clock{[](std::int64_t t) { return static_cast<double>(t); }};
  const auto rate_after = [&](auto scheduler) {
    Trainer trainer{Net{}, CrossEntropy{}, SGD{}, scheduler, Identity{}, callbacks(), quiet(5), barebones};
    trainer.fit(loader);
    return trainer.context().optimizer().groups()[0].lr;
  };
  EXPECT_EQ(rate_after(clock), 5);
  EXPECT_EQ(rate_after(per_epoch(clock, 2)), 2);
  EXPECT_EQ(rate_after(per_step(clock)), 20);
  EXPECT_EQ(rate_after(per_step(clock, 3)), 5) << "at the third batch of each epoch";
}

TEST(Trainer, ASchedulerMayBringItsOptimizerAndListsArePadded) {
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Net{}, CrossEntropy{}, none, with_optimizer(SGD{.lr = 1}, Multiply{{{1, 0.5}}}), Identity{}, callbacks(), quiet(2),
                  barebones};
  trainer.fit(loader);
  EXPECT_EQ(trainer.context().optimizer().groups()[0].lr, 0.5);
  Trainer two{Manual{}, none, std::tuple{SGD{.lr = 1}, SGD{.lr = 2}}, Multiply{{{0, 0.5}}}, Identity{}, callbacks(), quiet(1), barebones};
  TensorLoader batches{{at::ones({4, 4})}, {.batch_size = 4}};
  two.fit(batches);
  auto& [first, second] = two.context().optimizers();
  EXPECT_EQ(first.groups()[0].lr, 0.5);
  EXPECT_EQ(second.groups()[0].lr, 2) << "no scheduler for the second";
}

TEST(Trainer, AccumulationMayFollowTheEpoch) {
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(GradientAccumulationScheduler{{{1, 2}, {2, 4}}}), quiet(3),
                  barebones};
  trainer.fit(loader);
  EXPECT_EQ(trainer.context().global_step(), 4 + 2 + 1);
}

struct TwoTargets : torch::nn::Module {
  static constexpr int n_targets = 2;
  torch::nn::Linear fc{nullptr};
  TwoTargets() { fc = register_module("fc", torch::nn::Linear(4, 1)); }
  at::Tensor forward(const at::Tensor& x) { return fc(x); }
};

TEST(Trainer, NTargetsSaysHowABatchIsSplit) {
  const auto criterion = [](const at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
    return (out - a).pow(2).mean() + (out - b).pow(2).mean();
  };
  seed_everything(0);
  TensorLoader loader{{at::ones({8, 4}), at::ones({8, 1}), at::ones({8, 1})}, {.batch_size = 4}};
  Trainer trainer{TwoTargets{}, criterion, SGD{.lr = 0.05}, none, Identity{}, callbacks(), quiet(30), barebones};
  const double before = trainer.validate(loader)[0].value;
  trainer.fit(loader);
  EXPECT_LT(trainer.validate(loader)[0].value, before / 2);
}

struct WatchesTargets {
  void on_validation_batch_end(Context&, const auto& outputs) {
    static_assert(std::tuple_size_v<std::remove_cvref_t<decltype(outputs.targets)>> == 2);
  }
};
struct CountingData {
  const Data* data;
  std::int64_t epochs = 0;
  TensorLoader<2> train_dataloader() {
    ++epochs;
    return data->loader();
  }
  State state_dict() const { return State("CountingData").set("epochs", epochs); }
  void load_state_dict(const State& state) { epochs = state.get<std::int64_t>("epochs"); }
};

TEST(Trainer, ADataModulesStateIsInTheCheckpoint) {
  const TemporaryFolder folder;
  const Data data;
  Options options = quiet(3);
  options.reload_dataloaders_every_n_epochs = 1;
  CountingData first{&data};
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), options, barebones};
  trainer.fit(first);
  EXPECT_EQ(first.epochs, 3);
  trainer.save(folder.path / "state.ckpt");
  Trainer other{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), options, barebones};
  other.load(folder.path / "state.ckpt");
  options.max_epochs = 5;
  other.set_options(options);
  CountingData second{&data};
  other.fit(second);
  EXPECT_EQ(second.epochs, 5);
}

struct TwoTargetsToValidate : Net {
  static constexpr int n_val_targets = 2;
};

TEST(Trainer, NValTargetsSaysHowAnInferenceBatchIsSplit) {
  const Data data;
  auto train = data.loader();
  TensorLoader val{{data.x, data.y, data.y}, {.batch_size = 5}};
  const auto criterion = [](const at::Tensor& out, const at::Tensor& y, const auto&...) { return at::cross_entropy_loss(out, y); };
  Trainer trainer{TwoTargetsToValidate{}, criterion, SGD{}, none, Identity{}, callbacks(WatchesTargets{}), quiet(), barebones};
  trainer.fit(train, val);
  EXPECT_TRUE(trainer.context().metrics().find("val/loss").has_value());
}

TEST(Trainer, ReadsTorchDataLoaders) {
  const Data data;
  struct Set : torch::data::Dataset<Set> {
    at::Tensor x, y;
    Set(at::Tensor a, at::Tensor b) : x(a), y(b) {}
    torch::data::Example<> get(std::size_t i) override { return {x[i], y[i]}; }
    torch::optional<std::size_t> size() const override { return x.size(0); }
  };
  auto theirs = torch::data::make_data_loader<torch::data::samplers::SequentialSampler>(
      Set(data.x, data.y).map(torch::data::transforms::Stack<>()), torch::data::DataLoaderOptions().batch_size(5));
  auto ours = data.loader();
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), quiet(), barebones};
  EXPECT_NEAR(trainer.test(theirs)[0].value, trainer.test(ours)[0].value, 1e-6);
  trainer.fit(theirs, theirs);
  EXPECT_EQ(trainer.context().global_step(), 4);
  EXPECT_EQ(trainer.predict(*theirs).size(), 4u);
}

struct StopAtOnce {
  void on_train_batch_end(Context& ctx) { ctx.request_stop(); }
};

TEST(Trainer, LimitsAndMinima) {
  const Data data;
  auto loader = data.loader();
  const auto steps = [&](Options options, auto... more) {
    options.num_sanity_val_steps = 0;
    Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(more...), options, barebones};
    trainer.fit(loader);
    return std::pair{trainer.context().epoch(), trainer.context().global_step()};
  };
  using P = std::pair<std::int64_t, std::int64_t>;
  EXPECT_EQ(steps({.max_epochs = 3}), (P{3, 12}));
  EXPECT_EQ(steps({.max_epochs = 3, .limit_train_batches = 2}), (P{3, 6}));
  EXPECT_EQ(steps({.max_epochs = 3, .limit_train_batches = 0.5}), (P{3, 6}));
  EXPECT_EQ(steps({.max_epochs = -1, .max_steps = 6}), (P{2, 6}));
  EXPECT_EQ(steps({.max_epochs = 0}), (P{0, 0}));
  EXPECT_EQ(steps({.max_epochs = 3, .limit_train_batches = 0}), (P{0, 0}));
  EXPECT_EQ(steps({.max_epochs = 5, .fast_dev_run = 2}), (P{1, 2}));
  EXPECT_EQ(steps({.max_epochs = 2, .accumulate_grad_batches = 3}), (P{2, 4})) << "the last batch of an epoch steps";
  EXPECT_EQ(steps({.max_epochs = 9}, StopAtOnce{}), (P{1, 1}));
  EXPECT_EQ(steps({.max_epochs = 9, .min_epochs = 2}, StopAtOnce{}), (P{2, 8})) << "goes on until two epochs are done";
  EXPECT_EQ(steps({.max_epochs = 9, .min_steps = 6}, StopAtOnce{}), (P{2, 6}));
}

TEST(Trainer, AccumulatedGradientsAreThoseOfTheWholeBatch) {
  const Data data;
  struct Plain : torch::nn::Module {
    torch::nn::Linear fc{nullptr};
    Plain() { fc = register_module("fc", torch::nn::Linear(4, 3)); }
    at::Tensor forward(const at::Tensor& x) { return fc(x); }
  };
  const auto train = [&](std::int64_t batch, std::int64_t accumulate) {
    seed_everything(1);
    Options options = quiet();
    options.accumulate_grad_batches = accumulate;
    Trainer trainer{Plain{}, CrossEntropy{}, SGD{.lr = 0.1}, none, Identity{}, callbacks(), options, barebones};
    TensorLoader loader{{data.x, data.y}, {.batch_size = batch}};
    trainer.fit(loader);
    return trainer.module().fc->weight.detach().clone();
  };
  EXPECT_TRUE(train(10, 1).allclose(train(5, 2), 1e-5, 1e-7));
}

TEST(Trainer, SameSeedSameBits) {
  const Data data;
  const auto train = [&](bool validate) {
    seed_everything(11);
    Options options = quiet(2);
    options.num_sanity_val_steps = validate ? 2 : 0;
    Trainer trainer{Net{}, CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(), options, barebones};
    auto loader = data.loader(true), val = data.loader();
    if (validate) trainer.fit(loader, val);
    else trainer.fit(loader);
    return trainer.module().fc->weight.detach().clone();
  };
  EXPECT_TRUE(train(false).equal(train(false)));
  EXPECT_TRUE(train(false).equal(train(true))) << "sanity check and validation leave the generator alone";
}

TEST(Trainer, SavesAndLoadsEverything) {
  const TemporaryFolder folder;
  const Data data;
  const auto make = [&] {
    return std::make_unique<Trainer<Net, CrossEntropy, AdamW, Multiply, Identity, std::tuple<>, Runtime<>>>(
        Net{}, CrossEntropy{}, AdamW{.lr = 0.05}, Multiply{{{1, 0.5}, {3, 0.5}}}, Identity{}, std::tuple<>{}, quiet(2),
        Runtime<>{});
  };
  auto loader = data.loader(true);
  const auto file = folder.path / "state.ckpt";
  auto first = make();
  first->fit(loader);
  first->save(file);
  const auto go_on = [&](auto& trainer) {
    for (int epoch = 0; epoch < 2; ++epoch) {
      for (auto [x, y] : loader) {
        auto& ctx = trainer.context();
        ctx.optimizer().zero_grad();
        at::cross_entropy_loss(trainer.module().forward(x), y).backward();
        ctx.optimizer().step();
      }
      trainer.context().template advance_schedulers<Interval::epoch, false>(0);
    }
  };
  go_on(*first);
  at::randn({7});
  auto second = make();
  second->load(file);
  EXPECT_EQ(second->context().epoch(), 2);
  EXPECT_EQ(second->context().global_step(), 8);
  go_on(*second);
  EXPECT_TRUE(same_parameters(first->module(), second->module())) << "weights, moments, rates and generator";
  EXPECT_EQ(first->context().optimizer().groups()[0].lr, second->context().optimizer().groups()[0].lr);
}

TEST(Trainer, ALoadThatFailsChangesNothing) {
  const TemporaryFolder folder;
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Net{}, CrossEntropy{}, Adam{}, none, Identity{}, callbacks(), quiet(), barebones};
  trainer.fit(loader);
  const auto file = folder.path / "state.ckpt";
  trainer.save(file);
  struct Wider : torch::nn::Module {
    torch::nn::Linear fc{nullptr}, more{nullptr};
    Wider() {
      fc = register_module("fc", torch::nn::Linear(5, 3));
      more = register_module("more", torch::nn::Linear(2, 2));
    }
    at::Tensor forward(const at::Tensor& x) { return fc(x); }
  };
  Trainer other{Wider{}, CrossEntropy{}, Adam{}, none, Identity{}, callbacks(), quiet(), barebones};
  const at::Tensor before = other.module().fc->weight.detach().clone();
  const std::string message = error_of([&] { other.load(file); });
  for (const char* part : {"state.ckpt", "fc.weight", "[3, 4]", "[3, 5]", "more.weight"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
  EXPECT_TRUE(other.module().fc->weight.equal(before));

  // The weights fit, the optimizer's state does not: the weights must go back as well.
  Trainer sgd{Net{}, CrossEntropy{}, std::tuple{SGD{}, SGD{}}, none, Identity{}, callbacks(), quiet(), barebones};
  const at::Tensor weights = sgd.module().fc->weight.detach().clone();
  EXPECT_NE(error_of([&] { sgd.load(file); }).find("it has 1 optimizer states, expected 2"), std::string::npos);
  EXPECT_TRUE(sgd.module().fc->weight.equal(weights));
  EXPECT_EQ(sgd.context().global_step(), 0);

  EXPECT_NE(error_of([&] { trainer.load(folder.path / "none.ckpt"); }).find("none.ckpt"), std::string::npos);
  std::string bytes = text_of(file);
  std::ofstream(folder.path / "cut.ckpt", std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size() / 2));
  EXPECT_NE(error_of([&] { trainer.load(folder.path / "cut.ckpt"); }).find("cut.ckpt"), std::string::npos);
}

TEST(Trainer, WritesMetricsAndTheLastAndBestCheckpoint) {
  const TemporaryFolder folder;
  const Data data;
  auto loader = data.loader();
  Options options = quiet(2);
  options.default_root_dir = folder.path;
  options.name = "run";
  options.log_every_n_steps = 3;
  const auto run = [&] {
    Trainer trainer{Net{}, CrossEntropy{}, SGD{.lr = 0.5}, none, Identity{}, callbacks(ModelCheckpoint{.monitor = "val/loss"}), options};
    trainer.fit(loader, loader);
    trainer.load(std::get<ModelCheckpoint>(trainer.context().callbacks()).best_model_path);
    return trainer.context().run_dir();
  };
  EXPECT_EQ(run(), folder.path / "run" / "version_0");
  EXPECT_EQ(run(), folder.path / "run" / "version_1");
  const fs::path dir = folder.path / "run" / "version_0";
  std::istringstream csv(text_of(dir / "metrics.csv"));
  std::vector<std::string> lines;
  for (std::string line; std::getline(csv, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 5u) << text_of(dir / "metrics.csv");
  EXPECT_EQ(lines[0], "epoch,step,train/loss,val/loss");
  EXPECT_TRUE(lines[1].starts_with("0,2,")) << "after three steps, under the index of the third";
  EXPECT_TRUE(lines[2].starts_with("0,3,,")) << "validation";
  EXPECT_TRUE(fs::exists(dir / "checkpoints" / "last.ckpt"));
}

TEST(Trainer, FastDevRunWritesNothing) {
  const TemporaryFolder folder;
  const Data data;
  auto loader = data.loader();
  Options options = quiet();
  options.default_root_dir = folder.path / "runs";
  options.fast_dev_run = 1;
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), options};
  trainer.fit(loader, loader);
  EXPECT_FALSE(fs::exists(folder.path / "runs"));
}

TEST(Trainer, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const Data data;
  auto loader = data.loader();
  std::vector<std::tuple<at::Tensor, at::Tensor>> empty;
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), quiet(), barebones};
  EXPECT_EQ(error_of([&] { trainer.fit(empty); }), "fit: the training loader is empty, expected at least one batch");
  EXPECT_EQ(error_of([&] { trainer.fit(loader, empty); }), "validation: the loader is empty, expected at least one batch");
  EXPECT_EQ(error_of([&] { trainer.test(empty); }), "test: the loader is empty, expected at least one batch");
  EXPECT_EQ(error_of([&] { trainer.predict(empty); }), "predict: the loader is empty, expected at least one batch");
  const auto with = [&](Options options) {
    return error_of([&] { Trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), options}; });
  };
  EXPECT_EQ(with({.max_epochs = -2}), "Options::max_epochs is -2, expected at least -1");
  EXPECT_EQ(with({.limit_val_batches = 1.5}),
            "Options::limit_val_batches is 1.5, expected a count of at least 0 or a fraction from 0.0 to 1.0");
  EXPECT_EQ(with({.gradient_clip_val = std::nan("")}),
            "Options::gradient_clip_val is nan, expected a finite number of at least 0 (0: off)");
  EXPECT_EQ(with({.name = "a/b"}), "Options::name is 'a/b', expected a folder name without '/'");
  Options few = quiet();
  few.limit_train_batches = 0.1;
  Trainer fraction{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), few, barebones};
  EXPECT_EQ(error_of([&] { fraction.fit(loader); }),
            "Options::limit_train_batches is the fraction 0.1 of 4 batches, which is less than one batch");
  // A run folder that cannot be made: its parent is a file.
  std::ofstream(folder.path / "file") << "x";
  Options options = quiet();
  options.default_root_dir = folder.path / "file";
  Trainer unwritable{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), options};
  const std::string message = error_of([&] { unwritable.fit(loader); });
  EXPECT_NE(message.find("cannot make a run folder in '" + (folder.path / "file").string()), std::string::npos) << message;
}

struct ThrowsAtThirdBatch {
  std::string* seen;
  void on_train_batch_start(Context&, const auto&, std::int64_t batch_idx) {
    if (batch_idx == 2) throw std::runtime_error("third batch");
  }
  void on_exception(Context&, const std::exception& exception) { *seen = exception.what(); }
};

TEST(Trainer, AnExceptionIsToldAndPassedOn) {
  const Data data;
  auto loader = data.loader();
  std::string seen;
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(ThrowsAtThirdBatch{&seen}), quiet(), barebones};
  EXPECT_EQ(error_of([&] { trainer.fit(loader); }), "third batch");
  EXPECT_EQ(seen, "third batch");
  EXPECT_EQ(trainer.context().stage(), Stage::idle);
  EXPECT_EQ(trainer.context().phase(), Phase::idle);
  EXPECT_EQ(trainer.context().global_step(), 2);
}

TEST(Trainer, CtrlCEndsTheRunInOrder) {
  const TemporaryFolder folder;
  struct PressCtrlC {
    Calls* calls;
    void on_train_batch_end(Context& ctx) {
      if (ctx.global_step() == 6) std::raise(SIGINT);
    }
    void on_exception(Context&, const std::exception& exception) { calls->push_back(exception.what()); }
    void on_train_end(Context&) { calls->push_back("on_train_end"); }
    void teardown(Context& ctx) { calls->push_back(ctx.interrupted() ? "teardown" : "teardown, but not interrupted"); }
  };
  const Data data;
  auto loader = data.loader();
  Calls calls;
  Options options = quiet(100);
  options.default_root_dir = folder.path;
  options.exit_on_interrupt = false;
  Trainer trainer{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(PressCtrlC{&calls}), options};
  trainer.fit(loader, loader);
  EXPECT_TRUE(trainer.interrupted());
  EXPECT_EQ(calls, (Calls{"interrupted by Ctrl-C (SIGINT)", "teardown"}));
  EXPECT_EQ(trainer.context().global_step(), 6);
  EXPECT_EQ(trainer.context().epoch(), 1);
  Trainer other{Net{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), quiet()};
  other.load(folder.path / "default" / "version_0" / "checkpoints" / "last.ckpt");
  EXPECT_EQ(other.context().global_step(), 6);
  EXPECT_TRUE(same_parameters(trainer.module(), other.module()));
  trainer.test(loader);
  EXPECT_FALSE(trainer.interrupted()) << "the next stage starts afresh";
}

struct Lazy : torch::nn::Module {
  torch::nn::Linear fc{nullptr};
  Calls calls;
  void setup(Context& ctx) {
    calls.push_back("setup " + std::string(to_string(ctx.stage())));
    if (!fc) fc = register_module("fc", torch::nn::Linear(4, 3));
  }
  void on_fit_start(auto& ctx) { calls.push_back("on_fit_start, " + std::to_string(ctx.optimizer().groups()[0].params.size())); }
  void teardown() { calls.push_back("teardown"); }
  at::Tensor forward(const at::Tensor& x) { return fc(x); }
};

TEST(Trainer, TheModuleMayBringHooksAndBeBoundAfterSetup) {
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Lazy{}, CrossEntropy{}, SGD{}, none, Identity{}, callbacks(), quiet(), barebones};
  EXPECT_EQ(error_of([&] { trainer.context().optimizers(); }),
            "optimizers are bound when fit begins, after setup: too early to ask");
  trainer.fit(loader);
  EXPECT_EQ(trainer.module().calls, (Calls{"setup fit", "on_fit_start, 2", "teardown"}));
}

// Each sample twice, the mean of both: the simplest predictor that is not the identity.
struct Twice {
  auto operator()(const at::Tensor& x, const auto& infer) const { return (infer(x) + infer(x.neg())) / 2; }
};

TEST(Trainer, PredictorsStandBetweenInputsAndModule) {
  const Data data;
  auto loader = data.loader();
  Trainer trainer{Net{}, CrossEntropy{}, none, none, Twice{}, callbacks(MetricMonitor{Accuracy{}}), quiet(), barebones};
  const at::Tensor found = at::cat(trainer.predict(loader));
  EXPECT_TRUE(found.allclose(trainer.module().fc->bias.detach().expand_as(found), 1e-5, 1e-6));
  EXPECT_EQ(trainer.test(loader).size(), 2u);
}

TEST(Trainer, DefaultsGiveWayToTheUsersOwn) {
  using Own = Trainer<Net, CrossEntropy, SGD, None, Identity, std::tuple<ModelCheckpoint>, DefaultRuntime>;
  static_assert(std::tuple_size_v<Own::Context::Callbacks> == 3, "ModelCheckpoint is there once");
  static_assert(std::is_same_v<std::tuple_element_t<2, Own::Context::Callbacks>, ModelCheckpoint>, "and last");
  static_assert(Own::plan().runs("on_train_epoch_end"));
  using Bare = Trainer<Net, CrossEntropy, SGD, None, Identity, std::tuple<>, Runtime<>>;
  static_assert(!Bare::plan().runs("on_train_epoch_end"));
}

}  // namespace
