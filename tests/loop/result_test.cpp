// Tests loop/result.hpp: what TrainResult and EvalResult log, monitor and write.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <unistd.h>

#include <filesystem>
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/criteria/criteria.hpp>
#include <fulmen/loop/result.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/trainer.hpp>
#include <map>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using Values = std::map<std::string, double>;

Values plain(const Metrics& metrics) {
  Values out;
  for (const fulmen::Metric& metric : metrics) out.emplace(metric.name, metric.value);
  return out;
}

struct RecordingLogger {
  std::vector<Values>* rows;
  void log_metrics(Context&, const Metrics& metrics, std::int64_t) { rows->push_back(plain(metrics)); }
};

/// A folder that is gone after the test.
struct Folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("fulmen_result_" + std::to_string(::getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
};

struct Net : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 1))};
  std::string file = "predictions.pt";
  Net() {
    const torch::NoGradGuard no_grad;
    fc->weight.fill_(1), fc->bias.zero_();
  }

  TrainResult training_step(Context& ctx, const at::Tensor& batch) {
    TrainResult result(fc(batch).mean());
    result.log("loss", result.loss);
    result.log("both", static_cast<double>(ctx.batch_idx()), {.on_epoch = true});
    result.log_dict({{"a", 1.0}, {"b", at::scalar_tensor(2.0)}}, {.on_step = false, .on_epoch = true});
    return result;
  }
  EvalResult validation_step(Context& ctx, const at::Tensor& batch) {
    EvalResult result;
    const at::Tensor y = fc(batch);
    result.checkpoint_on = y.mean();
    result.early_stop_on = 10 * y.mean();
    result.log("val_loss", y.mean());
    result.log(std::string("a name made at run time"), ctx.batch_idx());
    result.write("y", y, file);
    result.write_dict({{"index", at::scalar_tensor(ctx.batch_idx(), at::kLong)}}, file);
    return result;
  }
  EvalResult test_step(Context& ctx, const at::Tensor& batch) {
    EvalResult result = validation_step(ctx, batch);
    result.rename_keys({{"val_loss", "test_loss"}});
    return result;
  }
};

std::vector<at::Tensor> batches(std::initializer_list<std::int64_t> sizes) {
  std::vector<at::Tensor> out;
  for (const std::int64_t size : sizes) out.push_back(at::ones({size, 2}));
  return out;
}

auto options(const Folder& folder) {
  return Options{
      .max_epochs = 1, .num_sanity_val_steps = 0, .log_every_n_steps = 1, .default_root_dir = folder.path};
}

TEST(Result, TrainResultIsMinimisedAndLogged) {
  const Folder folder;
  std::vector<Values> rows;
  Trainer trainer{std::make_shared<Net>(),
                  none,
                  SGD{.lr = 0.5},
                  none,
                  Identity{},
                  callbacks(),
                  options(folder),
                  Runtime<std::tuple<RecordingLogger>>{.loggers = {RecordingLogger{&rows}}}};
  trainer.fit(batches({4, 4}));
  // The loss is w·1 + b: each step takes 0.5 from both weights and the bias.
  EXPECT_NEAR(trainer.module().fc->bias.item<double>(), -1.0, 1e-6);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0], (Values{{"loss", 2}, {"both_step", 0}})) << "on_step, not on_epoch";
  EXPECT_EQ(rows[1], (Values{{"loss", 0.5}, {"both_step", 1}}));
  EXPECT_EQ(rows[2], (Values{{"both_epoch", 0.5}, {"a", 1}, {"b", 2}}));
  EXPECT_DOUBLE_EQ(trainer.context().metrics().find("checkpoint_on").value(), 1.25) << "the mean loss";
  EXPECT_FALSE(trainer.context().metrics().find("early_stop_on").has_value());
}

TEST(Result, EvalResultIsLoggedAndMonitored) {
  const Folder folder;
  std::vector<Values> rows;
  Trainer trainer{std::make_shared<Net>(),
                  none,
                  SGD{.lr = 0},
                  none,
                  Identity{},
                  callbacks(),
                  options(folder),
                  Runtime<std::tuple<RecordingLogger>>{.loggers = {RecordingLogger{&rows}}}};
  const Values returned = plain(trainer.validate(batches({3, 1})));
  EXPECT_EQ(
      returned,
      (Values{
          {"val_loss", 2}, {"a name made at run time", 0.25}, {"checkpoint_on", 2}, {"early_stop_on", 20}}));
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0], (Values{{"val_loss", 2}, {"a name made at run time", 0.25}})) << "on_epoch, not on_step";
  EXPECT_EQ(plain(trainer.context().metrics().callback_metrics()).at("early_stop_on"), 20);
}

TEST(Result, WritesPredictionsAtTheEndOfThePass) {
  const Folder folder;
  Trainer trainer{std::make_shared<Net>(), none,     SGD{.lr = 0}, none, Identity{}, callbacks(),
                  options(folder),         barebones};
  trainer.validate(batches({3, 1}));
  State written(checkpoint::read(trainer.context().run_dir() / "predictions.pt"), "predictions");
  EXPECT_EQ(written.keys(), (std::vector<std::string>{"index", "y"}));
  EXPECT_TRUE(at::equal(written.get<at::Tensor>("y"), at::full({4, 1}, 2.0)));
  EXPECT_TRUE(at::equal(written.get<at::Tensor>("index"), at::arange(2)));

  trainer.module().file = (folder.path / "elsewhere.pt").string();
  trainer.test(std::tuple(batches({3, 1}), batches({2})));
  written = State(checkpoint::read(folder.path / "elsewhere.pt"), "predictions");
  EXPECT_EQ(written.get<at::Tensor>("y").size(0), 6) << "of all loaders";
}

TEST(Result, TheSanityCheckWritesNothing) {
  const Folder folder;
  auto module = std::make_shared<Net>();
  module->file = (folder.path / "sanity.pt").string();
  Options o = options(folder);
  o.num_sanity_val_steps = 2;
  o.max_epochs = 0;
  Trainer trainer{module, none, SGD{.lr = 0}, none, Identity{}, callbacks(), o, barebones};
  trainer.fit(batches({1}), batches({1, 1}));
  EXPECT_FALSE(std::filesystem::exists(folder.path / "sanity.pt"));
}

TEST(Result, RenamesWhatWasLogged) {
  const Folder folder;
  Trainer trainer{std::make_shared<Net>(), none,     SGD{.lr = 0}, none, Identity{}, callbacks(),
                  options(folder),         barebones};
  const Values returned = plain(trainer.test(batches({3, 1})));
  EXPECT_TRUE(returned.contains("test_loss"));
  EXPECT_FALSE(returned.contains("val_loss"));
  EvalResult result;
  result.log("x", 1.0);
  result.rename_keys(std::map<std::string, std::string>{{"x", "y"}});
  try {
    result.rename_keys({{"x", "z"}});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "rename_keys: \"x\" was not logged in this result");
  }
}

TEST(Result, UndefinedLossSkipsTheBackward) {
  struct Skips : torch::nn::Module {
    torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 1))};
    TrainResult training_step(Context&, const at::Tensor&) { return {}; }
  };
  Trainer trainer{std::make_shared<Skips>(), none,     SGD{.lr = 0.5}, none, Identity{}, callbacks(),
                  {.max_epochs = 1},         barebones};
  const at::Tensor before = trainer.module().fc->weight.detach().clone();
  trainer.fit(batches({1, 1}));
  EXPECT_TRUE(at::equal(trainer.module().fc->weight, before));
}

}  // namespace
