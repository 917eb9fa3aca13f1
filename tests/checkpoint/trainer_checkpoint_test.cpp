// What a Trainer's checkpoints are good for: runs that the real Lightning began come to Lightning's end, stages begin with a file,
// hyper-parameters are kept; and the signals that end a run with one.
#include "../testing.hpp"

#include <fulmen/callbacks/model_checkpoint.hpp>
#include <fulmen/checkpoint/load_weights.hpp>
#include <fulmen/criteria/classification.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/schedule/decay.hpp>
#include <fulmen/trainer.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <csignal>
#include <fstream>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace trainer_checkpoint_test {
struct Hparams {
  std::int64_t width = 3;
  double lr = 0.5;
};
/// Says itself what it is made of.
struct Configured : torch::nn::Module {
  Hparams hparams;
  torch::nn::Linear linear{nullptr};
  explicit Configured(Hparams h) : hparams(h) { linear = register_module("linear", torch::nn::Linear(4, h.width)); }
  torch::Tensor forward(torch::Tensor x) { return linear(x); }
};
}  // namespace trainer_checkpoint_test
BOOST_HANA_ADAPT_STRUCT(trainer_checkpoint_test::Hparams, width, lr);

namespace {

using namespace fulmen;

/// As in fixtures/lightning_run/make.py.
struct Net : torch::nn::Module {
  torch::nn::Linear linear{nullptr};
  Net() { linear = register_module("linear", torch::nn::Linear(4, 3)); }
  torch::Tensor forward(torch::Tensor x) { return linear(x); }
};

std::string fixture(const char* name) { return std::string(FULMEN_TEST_DATA_DIR) + "/lightning_run/" + name; }

void goes_on_from(const char* checkpoint, std::int64_t epoch, std::int64_t step) {
  const auto expected = nlohmann::json::parse(std::ifstream(fixture("expected.json")));
  const torch::Tensor inputs = torch::linspace(-2, 2, 80).view({20, 4}).sin(), targets = torch::arange(20) % 3;
  const TensorLoader data{{inputs, targets}, {.batch_size = 4}};
  auto module = std::make_shared<Net>();
  Trainer trainer{module, CrossEntropy{}, AdamW{.lr = 0.05}, StepLR{.step_size = 1, .gamma = 0.5}, Identity{}, callbacks(), Options{.max_epochs = 3}, barebones};
  trainer.load(fixture(checkpoint));
  EXPECT_EQ(trainer.context().epoch(), epoch);
  EXPECT_EQ(trainer.context().global_step(), step);
  trainer.fit(TensorLoader{data}, TensorLoader{data});
  EXPECT_EQ(trainer.context().global_step(), 15);
  EXPECT_EQ(trainer.context().epoch(), 3);
  const auto tensor = [&](const char* name) { return torch::tensor(expected.at(name).get<std::vector<double>>(), torch::kFloat); };
  EXPECT_TRUE(torch::allclose(module->linear->weight.flatten(), tensor("weight"), 1e-6, 1e-7)) << module->linear->weight;
  EXPECT_TRUE(torch::allclose(module->linear->bias, tensor("bias"), 1e-6, 1e-7)) << module->linear->bias;
  EXPECT_EQ(trainer.context().optimizer().groups()[0].lr, expected.at("lr").get<double>());
}

TEST(LightningRun, GoesOnFromTheMiddleOfAnEpoch) { goes_on_from("mid.ckpt", 2, 14); }
TEST(LightningRun, GoesOnFromTheEndOfAnEpoch) { goes_on_from("end.ckpt", 2, 10); }

struct HyperparameterLogger {
  std::vector<State>* seen;
  void log_metrics(Context&, const Metrics&, std::int64_t) {}
  void log_hyperparams(const State& params) { seen->push_back(params); }
};

TEST(Hyperparameters, OfTheModuleAreInItsCheckpointAndWithTheLoggers) {
  const TemporaryFolder folder;
  std::vector<State> seen;
  Trainer trainer{trainer_checkpoint_test::Configured({.width = 5}), CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(), Options{.max_epochs = 1},
                  Runtime{.loggers = std::tuple{HyperparameterLogger{&seen}}, .defaults = std::tuple<>{}}};
  TensorLoader data{{torch::randn({6, 4}), torch::arange(6) % 5}, {.batch_size = 3}};
  trainer.fit(data);
  trainer.set_options({.max_epochs = 2});
  trainer.fit(data);
  ASSERT_EQ(seen.size(), 1u) << "once a run";
  EXPECT_EQ(seen[0].get<std::int64_t>("width"), 5);
  EXPECT_EQ(seen[0].get<double>("lr"), 0.5);
  trainer.save(folder.path / "run.ckpt");
  const auto again = load_from_checkpoint<trainer_checkpoint_test::Configured>(folder.path / "run.ckpt");
  EXPECT_EQ(again->hparams.width, 5);
  EXPECT_TRUE(again->linear->weight.equal(trainer.module().linear->weight));
}

TEST(Hyperparameters, GivenToTheTrainer) {
  const TemporaryFolder folder;
  Trainer trainer{Net(), CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(), Options{.max_epochs = 1}, barebones};
  trainer.save_hyperparameters(trainer_checkpoint_test::Hparams{.width = 3, .lr = 0.25});
  trainer.save(folder.path / "run.ckpt");
  const State file(checkpoint::read(folder.path / "run.ckpt"));
  EXPECT_EQ(file.get<std::string>("hparams_name"), "kwargs");
  EXPECT_EQ(file.get<State>("hyper_parameters").get<double>("lr"), 0.25);
}

struct Stage : ::testing::Test {
  TemporaryFolder folder;
  TensorLoader<2> data{{torch::randn({6, 4}), torch::arange(6) % 3}, {.batch_size = 3}};
  auto trainer() {
    return Trainer{std::make_shared<Net>(), CrossEntropy{}, AdamW{.lr = 0.1}, none, Identity{}, callbacks(ModelCheckpoint{}),
                   Options{.max_epochs = 1, .default_root_dir = folder.path}, barebones};
  }
};

TEST_F(Stage, TestTakesTheWeightsOfACheckpointAndNothingElse) {
  auto first = trainer();
  first.fit(data);
  const torch::Tensor weight = first.module().linear->weight.clone();
  auto second = trainer();
  second.test(data, {.ckpt_path = "last"});
  EXPECT_TRUE(second.module().linear->weight.equal(weight));
  EXPECT_EQ(second.context().global_step(), 0);
  EXPECT_FALSE(second.context().bound());
  EXPECT_EQ(second.predict(data, {.ckpt_path = first.context().run_dir() / "checkpoints" / "last.ckpt"}).size(), 2u);
  first.module().linear->weight.data().zero_();
  first.validate(data, {.ckpt_path = "best"});
  EXPECT_TRUE(first.module().linear->weight.equal(weight));
}

TEST_F(Stage, WhatCannotBeFoundIsSaid) {
  auto fresh = trainer();
  EXPECT_EQ(error_of([&] { fresh.test(data, {.ckpt_path = "last"}); }),
            "test: ckpt_path is \"last\", but no ModelCheckpoint of this Trainer has saved any: expected the path of a checkpoint");
  EXPECT_EQ(error_of([&] { fresh.fit(data, {.ckpt_path = "best"}); }),
            "fit: ckpt_path is \"best\", but no ModelCheckpoint of this Trainer has saved a best one: expected the path of a checkpoint");
  const std::string missing = folder.path / "none.ckpt";
  EXPECT_NE(error_of([&] { fresh.fit(data, {.ckpt_path = missing}); }).find("'" + missing + "'"), std::string::npos);
  EXPECT_EQ(fresh.context().global_step(), 0) << "nothing was trained";
}

TEST_F(Stage, TrainingDoesNotGoOnFromWeightsAlone) {
  auto weights_only = Trainer{std::make_shared<Net>(), CrossEntropy{}, AdamW{.lr = 0.1}, none, Identity{},
                              callbacks(ModelCheckpoint{.save_weights_only = true}), Options{.max_epochs = 1, .default_root_dir = folder.path}, barebones};
  weights_only.fit(data);
  auto other = trainer();
  const std::string path = std::get<ModelCheckpoint>(weights_only.context().callbacks()).last_model_path;
  EXPECT_EQ(error_of([&] { other.fit(data, {.ckpt_path = path}); }),
            "cannot load checkpoint '" + path + "': it holds weights only (ModelCheckpoint::save_weights_only), expected the optimizers' states "
            "too: training cannot go on from it");
}

TEST_F(Stage, ALoaderThatIsTooShortToGoOnWithIsSaid) {
  struct Stop {
    void on_train_batch_end(Context& ctx) {
      if (ctx.batch_idx() == 1) std::raise(SIGTERM);
    }
  };
  const TensorLoader<2> many{{torch::randn({6, 4}), torch::arange(6) % 3}, {.batch_size = 2}};
  Trainer run{std::make_shared<Net>(), CrossEntropy{}, AdamW{.lr = 0.1}, none, Identity{}, callbacks(Stop{}, ModelCheckpoint{}),
              Options{.max_epochs = 1, .exit_on_interrupt = false, .default_root_dir = folder.path}, barebones};
  run.fit(TensorLoader{many});
  EXPECT_EQ(run.context().interrupted_by(), SIGTERM);
  auto other = trainer();
  TensorLoader<2> few{{torch::randn({1, 4}), torch::arange(1)}, {.batch_size = 1}};
  struct Unsized {
    TensorLoader<2>* loader;
    auto begin() { return loader->begin(); }
    auto end() { return loader->end(); }
  };
  EXPECT_EQ(error_of([&] { other.fit(Unsized{&few}, {.ckpt_path = "last"}); }),
            "the epoch goes on behind its batch 2, but the loader has only 1: expected the loader it began with");
}

/// Raises a signal in its first batch.
struct Raise {
  int signal;
  void on_train_batch_start(Context& ctx) {
    if (ctx.global_step() == 0) std::raise(signal);
  }
};

TEST(Signals, AHandlerOfOnesOwnIsLeftAlone) {
  static int seen = 0;
  seen = 0;
  struct sigaction mine{}, before{};
  mine.sa_handler = [](int) { ++seen; };
  ASSERT_EQ(::sigaction(SIGTERM, &mine, &before), 0);
  TensorLoader<2> data{{torch::randn({6, 4}), torch::arange(6) % 3}, {.batch_size = 3}};
  Trainer trainer{Net(), CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(Raise{SIGTERM}), Options{.max_epochs = 1}, barebones};
  trainer.fit(data);
  EXPECT_EQ(seen, 1);
  EXPECT_FALSE(trainer.interrupted());
  EXPECT_EQ(trainer.context().global_step(), 2) << "the run goes on";
  ::sigaction(SIGTERM, &before, nullptr);
}

TEST(Signals, EachEndsTheProcessWithItsCode) {
  // A process of its own: LibTorch's threads do not come along with a fork.
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto run = [](int signal) {
    TensorLoader<2> data{{torch::randn({6, 4}), torch::arange(6) % 3}, {.batch_size = 3}};
    Trainer trainer{Net(), CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(Raise{signal}), Options{.max_epochs = 1}, barebones};
    trainer.fit(data);
  };
  EXPECT_EXIT(run(SIGINT), ::testing::ExitedWithCode(130), "Ctrl-C: ending in order");
  EXPECT_EXIT(run(SIGTERM), ::testing::ExitedWithCode(143), "SIGTERM: ending in order");
  EXPECT_EXIT(run(SIGUSR1), ::testing::ExitedWithCode(138), "SIGUSR1: ending in order");
}

TEST(Signals, WhatWasThereBeforeIsBackAfterTheStage) {
  TensorLoader<2> data{{torch::randn({6, 4}), torch::arange(6) % 3}, {.batch_size = 3}};
  Trainer trainer{Net(), CrossEntropy{}, AdamW{}, none, Identity{}, callbacks(), Options{.max_epochs = 1}, barebones};
  trainer.fit(data);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    struct sigaction now{};
    ::sigaction(signal, nullptr, &now);
    EXPECT_EQ(now.sa_handler, SIG_DFL) << signal;
  }
}

}  // namespace
