// Tests what each field of Options changes in a run, and that a value out of range is an error that names it.
#include "testing.hpp"

#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
namespace fs = std::filesystem;

/// Two weights whose gradient is the batch itself, so that every update can be worked out by hand.
struct Net : torch::nn::Module {
  at::Tensor w{register_parameter("w", torch::zeros({1, 2}))};
  std::vector<double> trained, validated;  // the first number of each batch
  bool inference_mode = false, gradients = true, anomaly = false, nan = false, deterministic = false,
       cudnn = false;

  at::Tensor training_step(fulmen::Context& ctx, const at::Tensor& batch) {
    trained.push_back(batch[0][0].item<double>());
    anomaly = torch::autograd::AnomalyMode::is_enabled();
    deterministic = at::globalContext().deterministicAlgorithms();
    cudnn = at::globalContext().benchmarkCuDNN();
    at::Tensor loss = (w * batch).sum();
    ctx.log("loss", loss);
    // The root's slope at 0 is infinite, and that times 0 is no number.
    return nan ? (w * 0).sqrt().sum() : loss;
  }
  void validation_step(fulmen::Context& ctx, const at::Tensor& batch) {
    validated.push_back(batch[0][0].item<double>());
    inference_mode = c10::InferenceMode::is_enabled();
    gradients = at::GradMode::is_enabled();
    ctx.log("val_loss", (w * batch).sum());
  }
  void test_step(const at::Tensor&) {}
  at::Tensor predict_step(const at::Tensor& batch) { return batch; }
};

/// Writes down a run: a letter a batch, and | at the end of an epoch. Training batches: T with an optimizer
/// step, t without; validation v, in the sanity check s; test e; predict p. Asks to stop after so many
/// training batches.
struct Trace {
  std::string* text;
  std::int64_t stop_after = 0;
  std::vector<std::int64_t> accumulate{};  // by epoch
  std::int64_t steps = 0, batches = 0;

  void on_train_epoch_start(fulmen::Context& ctx) {
    if (!accumulate.empty())
      ctx.set_accumulate_grad_batches(accumulate.at(static_cast<std::size_t>(ctx.epoch())));
  }
  void on_train_batch_end(fulmen::Context& ctx) {
    *text += ctx.global_step() > steps ? 'T' : 't';
    steps = ctx.global_step();
    if (++batches == stop_after) ctx.request_stop();
  }
  void on_validation_batch_end(fulmen::Context& ctx) { *text += ctx.sanity_checking() ? 's' : 'v'; }
  void on_test_batch_end() { *text += 'e'; }
  void on_predict_batch_end() { *text += 'p'; }
  void on_train_epoch_end() { *text += '|'; }
};

/// Batches whose first numbers are 1, 2, …
TensorLoader<1> batches(std::int64_t count, bool shuffle = false) {
  const at::Tensor first = torch::arange(1, count + 1, torch::kFloat);
  return {{torch::stack({first, torch::zeros({count})}, 1)}, {.shuffle = shuffle}};
}

Options quiet() { return {.max_epochs = 1, .num_sanity_val_steps = 0}; }

auto make_trainer(Trace trace, const Options& options, double lr = 0.0) {
  return Trainer<Net, None, SGD, None, Identity, std::tuple<Trace>, Runtime<>>{
      Net{}, none, SGD{.lr = lr}, none, Identity{}, callbacks(std::move(trace)), options, barebones};
}

struct Case {
  const char* name;
  std::function<void(Options&)> set;
  const char* trace;  // of fit with 4 training and 2 validation batches; or the error
  std::int64_t stop_after = 0;
  std::vector<std::int64_t> accumulate{};
};

// clang-format off
const std::vector<Case> cases = {
    {"defaults", [](Options&) {}, "TTTTvv|"},
    {"max_epochs 2", [](Options& o) { o.max_epochs = 2; }, "TTTTvv|TTTTvv|"},
    {"max_epochs 0", [](Options& o) { o.max_epochs = 0; }, ""},
    {"max_steps 6", [](Options& o) { o.max_epochs = -1; o.max_steps = 6; }, "TTTTvv|TT|"},
    {"max_steps at an epoch's end", [](Options& o) { o.max_epochs = 9; o.max_steps = 4; }, "TTTTvv|"},
    {"max_steps 0", [](Options& o) { o.max_steps = 0; }, ""},
    {"max_steps counts optimizer steps", [](Options& o) { o.max_epochs = 9; o.max_steps = 3; o.accumulate_grad_batches = 2; }, "tTtTvv|tT|"},
    {"a request to stop", [](Options& o) { o.max_epochs = 9; }, "Tvv|", 1},
    {"min_epochs 2", [](Options& o) { o.max_epochs = 9; o.min_epochs = 2; }, "TTTTvv|TTTTvv|", 1},
    {"min_steps 3", [](Options& o) { o.max_epochs = 9; o.min_steps = 3; }, "TTTvv|", 1},
    {"min_steps 6", [](Options& o) { o.max_epochs = 9; o.min_steps = 6; }, "TTTTvv|TTvv|", 1},
    {"max_time passed", [](Options& o) { o.max_epochs = 9; o.max_time = std::chrono::nanoseconds(1); }, "Tvv|"},
    {"max_time waits for min_steps", [](Options& o) { o.max_epochs = 9; o.max_time = std::chrono::nanoseconds(1); o.min_steps = 2; }, "TTvv|"},
    {"max_time not passed", [](Options& o) { o.max_time = std::chrono::hours(1); }, "TTTTvv|"},
    {"limit_train_batches 2", [](Options& o) { o.limit_train_batches = 2; }, "TTvv|"},
    {"limit_train_batches 0.5", [](Options& o) { o.limit_train_batches = 0.5; }, "TTvv|"},
    {"limit_train_batches 9", [](Options& o) { o.limit_train_batches = 9; }, "TTTTvv|"},
    {"limit_train_batches 0", [](Options& o) { o.limit_train_batches = 0; }, ""},
    {"limit_train_batches 0.2", [](Options& o) { o.limit_train_batches = 0.2; },
     "Options::limit_train_batches is the fraction 0.2 of 4 batches, which is less than one batch"},
    {"limit_val_batches 1", [](Options& o) { o.limit_val_batches = 1; }, "TTTTv|"},
    {"limit_val_batches 0.5", [](Options& o) { o.limit_val_batches = 0.5; }, "TTTTv|"},
    {"limit_val_batches 0", [](Options& o) { o.limit_val_batches = 0; o.num_sanity_val_steps = 2; }, "TTTT|"},
    {"overfit_batches 1", [](Options& o) { o.overfit_batches = 1; }, "Tv|"},
    {"overfit_batches 0.5", [](Options& o) { o.overfit_batches = 0.5; }, "TTv|"},
    {"fast_dev_run 1", [](Options& o) { o.max_epochs = 9; o.fast_dev_run = 1; o.num_sanity_val_steps = 2; }, "Tv|"},
    {"fast_dev_run 3", [](Options& o) { o.max_epochs = 9; o.fast_dev_run = 3; }, "TTTvv|"},
    {"fast_dev_run validates all the same", [](Options& o) { o.fast_dev_run = 1; o.check_val_every_n_epoch = 5; }, "Tv|"},
    {"fast_dev_run needs no interval", [](Options& o) { o.fast_dev_run = 1; o.val_check_interval = 3; }, "Tv|"},
    {"num_sanity_val_steps 1", [](Options& o) { o.num_sanity_val_steps = 1; }, "sTTTTvv|"},
    {"num_sanity_val_steps 2", [](Options& o) { o.num_sanity_val_steps = 2; }, "ssTTTTvv|"},
    {"num_sanity_val_steps -1", [](Options& o) { o.num_sanity_val_steps = -1; }, "ssTTTTvv|"},
    {"num_sanity_val_steps -1, limited", [](Options& o) { o.num_sanity_val_steps = -1; o.limit_val_batches = 1; }, "sTTTTv|"},
    {"check_val_every_n_epoch 2", [](Options& o) { o.max_epochs = 3; o.check_val_every_n_epoch = 2; }, "TTTT|TTTTvv|TTTT|"},
    {"check_val_every_n_epoch 0", [](Options& o) { o.max_epochs = 2; o.check_val_every_n_epoch = 0; o.val_check_interval = 3; }, "TTTvvT|TTvvTT|"},
    {"check_val_every_n_epoch 0, an epoch and more", [](Options& o) { o.max_epochs = 2; o.check_val_every_n_epoch = 0; o.val_check_interval = 5; }, "TTTT|TvvTTT|"},
    {"check_val_every_n_epoch 0 without a count", [](Options& o) { o.check_val_every_n_epoch = 0; },
     "Options::check_val_every_n_epoch is 0, so val_check_interval must be a count of batches; it is the fraction 1"},
    {"val_check_interval 2", [](Options& o) { o.val_check_interval = 2; }, "TTvvTTvv|"},
    {"val_check_interval 3 begins anew each epoch", [](Options& o) { o.max_epochs = 2; o.val_check_interval = 3; }, "TTTvvT|TTTvvT|"},
    {"val_check_interval 0.5", [](Options& o) { o.val_check_interval = 0.5; }, "TTvvTTvv|"},
    {"val_check_interval 0.1", [](Options& o) { o.val_check_interval = 0.1; }, "TvvTvvTvvTvv|"},
    {"val_check_interval 1", [](Options& o) { o.val_check_interval = 1; }, "TvvTvvTvvTvv|"},
    {"val_check_interval and check_val_every_n_epoch", [](Options& o) { o.max_epochs = 2; o.val_check_interval = 2; o.check_val_every_n_epoch = 2; }, "TTTT|TTvvTTvv|"},
    {"val_check_interval above the epoch", [](Options& o) { o.val_check_interval = 5; },
     "Options::val_check_interval is 5, expected at most the 4 batches of an epoch; to count batches across epochs, set check_val_every_n_epoch to 0"},
    {"val_check_interval without validation", [](Options& o) { o.val_check_interval = 5; o.limit_val_batches = 0; }, "TTTT|"},
    {"accumulate_grad_batches 2", [](Options& o) { o.accumulate_grad_batches = 2; }, "tTtTvv|"},
    {"accumulate_grad_batches 3 steps at the epoch's end", [](Options& o) { o.accumulate_grad_batches = 3; }, "ttTTvv|"},
    {"accumulate_grad_batches by epoch", [](Options& o) { o.max_epochs = 3; }, "TTTTvv|tTtTvv|tttTvv|", 0, {1, 2, 4}},
    {"overfit_batches out of range", [](Options& o) { o.overfit_batches = 1.5; },
     "Options::overfit_batches is 1.5, expected a count of at least 0 or a fraction from 0.0 to 1.0"},
    {"limit_test_batches out of range", [](Options& o) { o.limit_test_batches = -1; },
     "Options::limit_test_batches is -1, expected a count of at least 0 or a fraction from 0.0 to 1.0"},
    {"max_epochs out of range", [](Options& o) { o.max_epochs = -2; }, "Options::max_epochs is -2, expected at least -1"},
    {"max_steps out of range", [](Options& o) { o.max_steps = -2; }, "Options::max_steps is -2, expected at least -1"},
    {"min_epochs out of range", [](Options& o) { o.min_epochs = -1; }, "Options::min_epochs is -1, expected at least 0"},
    {"min_steps out of range", [](Options& o) { o.min_steps = -1; }, "Options::min_steps is -1, expected at least 0"},
    {"max_time out of range", [](Options& o) { o.max_time = std::chrono::seconds(-1); }, "Options::max_time is -1 s, expected at least 0 (0: no limit)"},
    {"fast_dev_run out of range", [](Options& o) { o.fast_dev_run = -1; }, "Options::fast_dev_run is -1, expected at least 0"},
    {"num_sanity_val_steps out of range", [](Options& o) { o.num_sanity_val_steps = -2; }, "Options::num_sanity_val_steps is -2, expected at least -1"},
    {"check_val_every_n_epoch out of range", [](Options& o) { o.check_val_every_n_epoch = -1; }, "Options::check_val_every_n_epoch is -1, expected at least 0"},
    {"val_check_interval out of range", [](Options& o) { o.val_check_interval = 0; }, "Options::val_check_interval is 0, expected a count of at least 1 or a fraction above 0"},
    {"accumulate_grad_batches out of range", [](Options& o) { o.accumulate_grad_batches = 0; }, "Options::accumulate_grad_batches is 0, expected at least 1"},
    {"log_every_n_steps out of range", [](Options& o) { o.log_every_n_steps = 0; }, "Options::log_every_n_steps is 0, expected at least 1"},
    {"gradient_clip_val out of range", [](Options& o) { o.gradient_clip_val = -1; }, "Options::gradient_clip_val is -1, expected a finite number of at least 0 (0: off)"},
    {"reload_dataloaders_every_n_epochs out of range", [](Options& o) { o.reload_dataloaders_every_n_epochs = -1; }, "Options::reload_dataloaders_every_n_epochs is -1, expected at least 0"},
    {"name out of range", [](Options& o) { o.name = "a/b"; }, "Options::name is 'a/b', expected a folder name without '/'"},
};
// clang-format on

TEST(Options, SayWhatFitDoes) {
  for (const Case& c : cases) {
    std::string text;
    Options options = quiet();
    c.set(options);
    auto train = batches(4), val = batches(2);
    const std::string error = error_of([&] {
      auto trainer = make_trainer({&text, c.stop_after, c.accumulate}, options);
      trainer.fit(train, val);
    });
    EXPECT_EQ(error == "no error" ? text : error, c.trace) << c.name;
  }
}

/// The batches of a loader, without its size.
struct Stream {
  TensorLoader<1>* loader;
  auto begin() { return loader->begin(); }
  auto end() { return loader->end(); }
};

TEST(Options, OfALoaderWithoutASize) {
  const auto run = [](const std::function<void(Options&)>& set) {
    std::string text;
    Options options = quiet();
    set(options);
    auto four = batches(4), two = batches(2);
    Stream train{&four}, val{&two};
    const std::string error = error_of([&] {
      auto trainer = make_trainer({&text}, options);
      trainer.fit(train, val);
    });
    return error == "no error" ? text : error;
  };
  EXPECT_EQ(run([](Options&) {}), "TTTTvv|");
  EXPECT_EQ(run([](Options& o) { o.accumulate_grad_batches = 3; }), "ttTTvv|")
      << "the last batch is known as such";
  EXPECT_EQ(run([](Options& o) { o.limit_train_batches = 3, o.limit_val_batches = 1; }), "TTTv|");
  EXPECT_EQ(run([](Options& o) { o.val_check_interval = 3; }), "TTTvvT|");
  EXPECT_EQ(run([](Options& o) { o.num_sanity_val_steps = 1; }), "sTTTTvv|");
  EXPECT_EQ(run([](Options& o) { o.limit_train_batches = 0.5; }),
            "Options::limit_train_batches is the fraction 0.5 of a loader that has no size(): give a count "
            "of batches instead");
  EXPECT_EQ(run([](Options& o) { o.val_check_interval = 0.5; }),
            "Options::val_check_interval is the fraction 0.5 of a loader that has no size(): give a count of "
            "batches instead");
}

TEST(Options, LimitTestAndPredictBatches) {
  const auto run = [](Limit limit, std::int64_t fast_dev_run = 0) {
    std::string text;
    Options options = quiet();
    options.limit_test_batches = options.limit_predict_batches = limit;
    options.fast_dev_run = fast_dev_run;
    auto trainer = make_trainer({&text}, options);
    auto loader = batches(4);
    trainer.test(loader);
    const auto predictions = trainer.predict(loader).size();
    EXPECT_EQ(predictions, static_cast<std::size_t>(std::count(text.begin(), text.end(), 'p')));
    return text;
  };
  EXPECT_EQ(run({}), "eeeepppp");
  EXPECT_EQ(run(3), "eeeppp");
  EXPECT_EQ(run(0.5), "eepp");
  EXPECT_EQ(run(0), "");
  EXPECT_EQ(run({}, 1), "ep");
}

TEST(Options, OverfitBatchesAreTheSameInEachEpoch) {
  std::string text;
  Options options = quiet();
  options.max_epochs = 3;
  options.overfit_batches = 2;
  auto train = batches(40, /*shuffle=*/true), val = batches(30, /*shuffle=*/true);
  auto trainer = make_trainer({&text}, options);
  trainer.fit(train, val);
  EXPECT_EQ(trainer.module().trained, (std::vector<double>{1, 2, 1, 2, 1, 2}));
  EXPECT_EQ(trainer.module().validated, (std::vector<double>{1, 2, 1, 2, 1, 2}));
  EXPECT_TRUE(train.shuffles() && val.shuffles()) << "afterwards they shuffle as before";
  seed_everything(1);
  options.overfit_batches = 0;
  auto shuffled = make_trainer({&text}, options);
  shuffled.fit(train);
  EXPECT_FALSE(std::is_sorted(shuffled.module().trained.begin(), shuffled.module().trained.begin() + 40));
}

TEST(Options, GradientsAreClippedAsComputedByHand) {
  const auto weights_after = [](double value, GradientClip algorithm, std::int64_t accumulate = 1) {
    std::string text;
    Options options = quiet();
    options.gradient_clip_val = value;
    options.gradient_clip_algorithm = algorithm;
    options.accumulate_grad_batches = accumulate;
    auto trainer = make_trainer({&text}, options, /*lr=*/1.0);
    // The gradient of the two batches' mean is (3, 4) as well.
    TensorLoader<1> loader{
        {accumulate == 1 ? torch::tensor({{3.F, 4.F}}) : torch::tensor({{2.F, 8.F}, {4.F, 0.F}})}};
    trainer.fit(loader);
    const at::Tensor w = trainer.module().w.detach().neg();
    return std::pair(w[0][0].item<double>(), w[0][1].item<double>());
  };
  const auto expect = [](std::pair<double, double> got, double first, double second) {
    EXPECT_NEAR(got.first, first, 1e-6);
    EXPECT_NEAR(got.second, second, 1e-6);
  };
  expect(weights_after(0, GradientClip::norm), 3, 4);
  expect(weights_after(1, GradientClip::norm), 3.0 / 5, 4.0 / 5);
  expect(weights_after(10, GradientClip::norm), 3, 4);
  expect(weights_after(3.5, GradientClip::value), 3, 3.5);
  expect(weights_after(2, GradientClip::value), 2, 2);
  expect(weights_after(1, GradientClip::norm, 2), 3.0 / 5, 4.0 / 5);  // clipped once all of it is there
  expect(weights_after(3.5, GradientClip::value, 2), 3, 3.5);
}

TEST(Options, InferenceMode) {
  for (const bool on : {true, false}) {
    std::string text;
    Options options = quiet();
    options.inference_mode = on;
    auto trainer = make_trainer({&text}, options);
    auto loader = batches(1);
    trainer.validate(loader);
    EXPECT_EQ(trainer.module().inference_mode, on);
    EXPECT_FALSE(trainer.module().gradients);
  }
}

TEST(Options, DetectAnomaly) {
  for (const bool on : {true, false}) {
    std::string text;
    Options options = quiet();
    options.detect_anomaly = on;
    auto trainer = make_trainer({&text}, options);
    trainer.module().nan = true;
    auto loader = batches(2);
    const std::string error = error_of([&] { trainer.fit(loader); });
    EXPECT_EQ(error.find("returned nan values") != std::string::npos, on) << error;
    EXPECT_EQ(trainer.module().anomaly, on);
    EXPECT_FALSE(torch::autograd::AnomalyMode::is_enabled()) << "it ends with fit";
  }
}

TEST(Options, DeterministicAndBenchmark) {
  for (const bool on : {false, true}) {
    std::string text;
    Options options = quiet();
    options.deterministic = options.benchmark = on;
    auto trainer = make_trainer({&text}, options);
    auto loader = batches(1);
    trainer.fit(loader);
    EXPECT_EQ(trainer.module().deterministic, on);
    EXPECT_EQ(trainer.module().cudnn, on);
    // Several writes to one place: an operator whose result then depends on their order.
    const std::string error = error_of([] { torch::zeros({4}).put_(torch::tensor({0}), torch::ones({1})); });
    EXPECT_EQ(error.find("does not have a deterministic implementation") != std::string::npos, on) << error;
  }
  at::globalContext().setDeterministicAlgorithms(false, false);
  at::globalContext().setBenchmarkCuDNN(false);
}

struct Steps {
  std::vector<std::int64_t>* steps;
  void log_metrics(fulmen::Context&, const Metrics& metrics, std::int64_t step) {
    if (metrics[0].name == "loss") steps->push_back(step);
  }
};

TEST(Options, LogEveryNSteps) {
  const auto logged = [](std::int64_t every, std::int64_t accumulate, std::int64_t fast_dev_run = 0) {
    std::vector<std::int64_t> steps;
    Options options = quiet();
    options.max_epochs = 2;
    options.log_every_n_steps = every;
    options.accumulate_grad_batches = accumulate;
    options.fast_dev_run = fast_dev_run;
    Trainer trainer{Net{},      none,
                    SGD{},      none,
                    Identity{}, callbacks(),
                    options,    Runtime<std::tuple<Steps>>{.device = at::kCPU, .loggers = {Steps{&steps}}}};
    auto loader = batches(5);
    trainer.fit(loader);
    return steps;
  };
  using Logged = std::vector<std::int64_t>;
  EXPECT_EQ(logged(1, 1), (Logged{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(logged(2, 1), (Logged{1, 3, 5, 7, 9}));
  EXPECT_EQ(logged(3, 1), (Logged{2, 5, 8})) << "counted across epochs";
  EXPECT_EQ(logged(2, 2), (Logged{1, 3, 5})) << "optimizer steps, not batches";
  EXPECT_EQ(logged(50, 1), Logged{});
  EXPECT_EQ(logged(1, 1, 2), Logged{}) << "fast_dev_run logs nothing";
}

/// What the Trainer leaves in its folder and prints, with the default callbacks and logger.
struct Left {
  std::string printed;
  bool checkpoint, metrics;
};
Left run_with_defaults(Options options, const fs::path& run_dir) {
  auto train = batches(2);
  ::testing::internal::CaptureStdout();
  Trainer trainer{Net{}, none, SGD{}, none, Identity{}, callbacks(), std::move(options)};
  trainer.fit(train);
  Left left{::testing::internal::GetCapturedStdout(), fs::exists(run_dir / "checkpoints/last.ckpt"),
            fs::exists(run_dir / "metrics.csv")};
  return left;
}

TEST(Options, EnableAndWhereFilesGo) {
  const TemporaryFolder folder;
  Options options = quiet();
  options.log_every_n_steps = 1;
  options.default_root_dir = folder.path / "root";
  options.name = "mine";
  const Left all = run_with_defaults(options, folder.path / "root/mine/version_0");
  EXPECT_NE(all.printed.find("Total params"), std::string::npos) << all.printed;
  EXPECT_NE(all.printed.find("Epoch"), std::string::npos) << all.printed;
  EXPECT_TRUE(all.checkpoint && all.metrics);

  options.enable_model_summary = false;
  const Left without_summary = run_with_defaults(options, folder.path / "root/mine/version_1");
  EXPECT_EQ(without_summary.printed.find("Total params"), std::string::npos);
  EXPECT_NE(without_summary.printed.find("Epoch"), std::string::npos);
  EXPECT_TRUE(without_summary.checkpoint);

  options.enable_progress_bar = false;
  const Left without_bar = run_with_defaults(options, folder.path / "root/mine/version_2");
  EXPECT_EQ(without_bar.printed, "");

  options.enable_checkpointing = false;
  const Left without_checkpoint = run_with_defaults(options, folder.path / "root/mine/version_3");
  EXPECT_FALSE(without_checkpoint.checkpoint);
  EXPECT_TRUE(without_checkpoint.metrics);

  options.default_root_dir = folder.path / "other";
  options.enable_checkpointing = true;
  options.fast_dev_run = 1;
  run_with_defaults(options, {});
  EXPECT_FALSE(fs::exists(folder.path / "other")) << "fast_dev_run writes no files";
}

struct PressesCtrlC {
  void on_train_batch_end() { std::raise(SIGINT); }
};

TEST(OptionsDeathTest, ExitOnInterrupt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto interrupted = [](bool exit_on_interrupt) {
    Options options = quiet();
    options.exit_on_interrupt = exit_on_interrupt;
    Trainer trainer{Net{}, none, SGD{}, none, Identity{}, callbacks(PressesCtrlC{}), options, barebones};
    auto loader = batches(3);
    trainer.fit(loader);
    return trainer.interrupted() && trainer.context().global_step() == 1;
  };
  EXPECT_EXIT(interrupted(true), ::testing::ExitedWithCode(130), "Ctrl-C");
  EXPECT_TRUE(interrupted(false));
}

struct Data {
  std::vector<std::string>* made;
  TensorLoader<1> train_dataloader() {
    made->push_back("train");
    return batches(2);
  }
  TensorLoader<1> val_dataloader() {
    made->push_back("val");
    return batches(1);
  }
};

TEST(Options, ReloadDataloadersEveryNEpochs) {
  const auto made = [](std::int64_t every) {
    std::vector<std::string> calls;
    std::string text;
    Options options = quiet();
    options.max_epochs = 4;
    options.reload_dataloaders_every_n_epochs = every;
    Data data{&calls};
    auto trainer = make_trainer({&text}, options);
    trainer.fit(data);
    EXPECT_EQ(text, "TTv|TTv|TTv|TTv|");
    return std::pair(std::count(calls.begin(), calls.end(), "train"),
                     std::count(calls.begin(), calls.end(), "val"));
  };
  EXPECT_EQ(made(0), std::pair(1L, 1L));
  EXPECT_EQ(made(1), std::pair(4L, 4L));
  EXPECT_EQ(made(2), std::pair(2L, 2L));
  EXPECT_EQ(made(3), std::pair(2L, 2L));
}

}  // namespace
