// Tests JSONLinesLogger and MLFlowLogger, and several loggers in one Trainer that ends well, by an exception
// or a signal.
#include <fulmen/fulmen.hpp>
#include <fulmen/loggers/json_lines.hpp>
#include <fulmen/loggers/mlflow.hpp>
#include <fulmen/loggers/tensorboard.hpp>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "../testing.hpp"
#include "events.hpp"

namespace {

using namespace fulmen;
using nlohmann::json;

struct Logging : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
  std::vector<std::pair<std::string, double>> values{{"train/loss", 0.5}};
  enum class End { normal, exception, exit, sigint, sigkill } end = End::normal;
  std::int64_t last = -1;

  at::Tensor training_step(Context& ctx, const at::Tensor& batch, std::int64_t batch_idx) {
    if (batch_idx == last) {
      switch (end) {
        case End::normal:
          break;
        case End::exception:
          throw std::runtime_error("the data ended");
        case End::exit:
          std::exit(3);
        case End::sigint:
          std::raise(SIGINT);
          break;
        case End::sigkill:
          std::this_thread::sleep_for(std::chrono::seconds(2));  // longer than a flush interval
          std::raise(SIGKILL);
      }
    }
    for (const auto& [name, value] : values)
      ctx.log(runtime_name(name), value + static_cast<double>(batch_idx));
    return layer(batch).square().mean();
  }
};

/// Ends so at the batch with this index.
Logging ending(Logging::End end, std::int64_t batch_idx) {
  Logging module;
  module.end = end;
  module.last = batch_idx;
  return module;
}

Options options_in(const std::filesystem::path& root) {
  return {.max_epochs = 1,
          .log_every_n_steps = 1,
          .exit_on_interrupt = false,
          .default_root_dir = root,
          .name = "run"};
}

template <class... L>
auto trainer_with(const std::filesystem::path& root, Logging module, L... loggers) {
  return Trainer{std::move(module), fulmen::none,
                 SGD{.lr = 0.0},    fulmen::none,
                 Identity{},        callbacks(),
                 options_in(root),  Runtime<std::tuple<L...>>{.loggers = {std::move(loggers)...}}};
}

std::vector<at::Tensor> batches(std::int64_t count) {
  return std::vector<at::Tensor>(static_cast<std::size_t>(count), at::ones({3, 2}));
}

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::istringstream text(contents_of(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

/// The one folder in a folder, but for that called `without`.
std::filesystem::path only_in(const std::filesystem::path& folder, const std::string& without = "") {
  std::filesystem::path found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename() == without || !entry.is_directory()) continue;
    EXPECT_TRUE(found.empty()) << found << " and " << entry.path();
    found = entry.path();
  }
  return found;
}

std::filesystem::path mlflow_run(const std::filesystem::path& store) { return only_in(only_in(store, "0")); }

auto all_loggers(const std::filesystem::path& root, Logging module) {
  return trainer_with(root, std::move(module), CSVLogger{}, TensorBoardLogger{}, JSONLinesLogger{},
                      MLFlowLogger{{.save_dir = root / "mlruns"}});
}

/// What each logger has of train/loss, which is 0.5 + the step: all must have it `count` times.
void expect_all_logged(const std::filesystem::path& root, std::int64_t count, int status) {
  const std::filesystem::path run = root / "run" / "version_0";
  std::vector<double> expected, tensorboard, lines, mlflow;
  for (std::int64_t i = 0; i < count; ++i) expected.push_back(0.5 + static_cast<double>(i));
  for (const ScalarEvent& event : scalars_of(event_file(run))) {
    if (event.tag == "train/loss") tensorboard.push_back(event.value);
  }
  for (const std::string& line : lines_of(run / "metrics.jsonl"))
    lines.push_back(json::parse(line).at("train/loss"));
  for (const std::string& line : lines_of(mlflow_run(root / "mlruns") / "metrics/train/loss")) {
    mlflow.push_back(std::stod(line.substr(line.find(' '))));
  }
  EXPECT_EQ(tensorboard, expected);
  EXPECT_EQ(lines, expected);
  EXPECT_EQ(mlflow, expected);
  EXPECT_NE(
      contents_of(mlflow_run(root / "mlruns") / "meta.yaml").find("status: " + std::to_string(status) + "\n"),
      std::string::npos);
}

TEST(LoggersDeathTest, ExitLosesNoLine) {
  const TemporaryFolder folder;
  EXPECT_EXIT(all_loggers(folder.path, ending(Logging::End::exit, 5)).fit(batches(10)),
              testing::ExitedWithCode(3), "");
  expect_all_logged(folder.path, 5, 1);
}

TEST(LoggersDeathTest, AKilledProcessLeavesFilesThatCanBeRead) {
  const TemporaryFolder folder;
  EXPECT_EXIT(all_loggers(folder.path, ending(Logging::End::sigkill, 5)).fit(batches(10)),
              testing::KilledBySignal(SIGKILL), "");
  expect_all_logged(folder.path, 5, 1);
}

TEST(Loggers, SeveralAtOnce) {
  const TemporaryFolder folder;
  all_loggers(folder.path, {}).fit(batches(4));
  expect_all_logged(folder.path, 4, 3);
  EXPECT_EQ(lines_of(folder.path / "run/version_0/metrics.csv").size(), 5u);
}

TEST(Loggers, AnExceptionLosesNoLine) {
  const TemporaryFolder folder;
  auto trainer = all_loggers(folder.path, ending(Logging::End::exception, 3));
  EXPECT_EQ(error_of([&] { trainer.fit(batches(4)); }), "the data ended");
  expect_all_logged(folder.path, 3, 4);
}

TEST(Loggers, ARunInAnExceptionHandlerHasNotFailed) {
  const TemporaryFolder folder;
  try {
    throw std::runtime_error("of before");
  } catch (const std::exception&) {
    all_loggers(folder.path, {}).fit(batches(4));
  }
  expect_all_logged(folder.path, 4, 3);
}

TEST(Loggers, CtrlCLosesNoLine) {
  const TemporaryFolder folder;
  auto trainer = all_loggers(folder.path, ending(Logging::End::sigint, 3));
  trainer.fit(batches(10));
  EXPECT_TRUE(trainer.context().interrupted());
  expect_all_logged(folder.path, 4, 5);
}

TEST(JSONLines, NumbersReadBackToTheSameBits) {
  const TemporaryFolder folder;
  const std::vector<double> numbers{0.1,
                                    -0.0,
                                    0.0,
                                    1.0 / 3,
                                    1e22,
                                    123456789012345678.0,
                                    5e-324,
                                    std::numeric_limits<double>::max(),
                                    -1e-300,
                                    1e15 + 0.5,
                                    9007199254740993.0,
                                    std::nextafter(1.0, 2.0),
                                    1e16};
  auto trainer = trainer_with(folder.path, Logging{}, JSONLinesLogger{});
  auto& logger = std::get<0>(trainer.context().loggers());
  Metrics metrics;
  for (std::size_t i = 0; i < numbers.size(); ++i) metrics.emplace_back(std::to_string(i), numbers[i]);
  logger.log_metrics(trainer.context(), metrics, 0);
  logger.finalize(trainer.context());
  const json line = json::parse(lines_of(trainer.context().run_dir() / "metrics.jsonl").at(0));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint64_t>(line.at(std::to_string(i)).get<double>()),
              std::bit_cast<std::uint64_t>(numbers[i]))
        << numbers[i];
  }
}

TEST(JSONLines, NamesAndWhatIsNoNumber) {
  const TemporaryFolder folder;
  constexpr double inf = std::numeric_limits<double>::infinity();
  auto trainer = trainer_with(folder.path, Logging{}, JSONLinesLogger{{.filename = "log.json"}});
  const std::string odd = "a \"quoted\" \\ name,\n\x01 ü";
  const Metrics metrics{{odd, 1}, {"nan", std::nan("")}, {"inf", inf}, {"-inf", -inf}};
  const auto before = std::chrono::system_clock::now();
  std::get<0>(trainer.context().loggers()).log_metrics(trainer.context(), metrics, 7);
  std::get<0>(trainer.context().loggers()).log_metrics(trainer.context(), {{"epoch", 8}, {"time", 9}}, 10);
  std::get<0>(trainer.context().loggers()).finalize(trainer.context());
  const std::vector<std::string> lines = lines_of(trainer.context().run_dir() / "log.json");
  ASSERT_EQ(lines.size(), 2u);
  json line = json::parse(lines[0]);
  const double now = std::chrono::duration<double>(before.time_since_epoch()).count();
  EXPECT_NEAR(line.at("time").get<double>(), now, 60);
  line.erase("time");
  EXPECT_EQ(
      line,
      (json{{"epoch", 0}, {"step", 7}, {odd, 1.0}, {"nan", nullptr}, {"inf", nullptr}, {"-inf", nullptr}}));
  EXPECT_EQ(lines[1], R"({"step":10,"epoch":8.0,"time":9.0})");
}

TEST(MLFlow, WritesWhatItsFileStoreReads) {
  const TemporaryFolder folder;
  const auto store = folder.path / "ml runs";
  Logging module;
  module.values = {{"train/loss", 0.5}, {"../odd//na@me/", 1e-300}};
  auto trainer = trainer_with(
      folder.path, module,
      MLFlowLogger{
          {.experiment_name = "it's", .run_name = "first: #1", .save_dir = store, .tags = {{"by", "me"}}}});
  auto& logger = std::get<0>(trainer.context().loggers());
  logger.log_hyperparams(State().set("optimizer", State().set("lr", 1e-3)).set("deep", true));
  trainer.fit(batches(2));
  const std::filesystem::path run = store / logger.experiment_id() / logger.run_id();
  EXPECT_EQ(mlflow_run(store), run);
  EXPECT_EQ(logger.run_id().size(), 32u);
  EXPECT_EQ(contents_of(run / "params/optimizer/lr"), "0.001");
  EXPECT_EQ(contents_of(run / "params/deep"), "True");
  EXPECT_EQ(contents_of(run / "tags/by"), "me");
  EXPECT_EQ(contents_of(run / "tags/mlflow.runName"), "first: #1");
  const auto without_time = [&](const std::string& name) {
    std::string all;
    for (const std::string& line : lines_of(run / "metrics" / name))
      all += line.substr(line.find(' ') + 1) + ";";
    return all;
  };
  EXPECT_EQ(without_time("train/loss"), "0.5 0;1.5 1;");
  EXPECT_EQ(without_time("odd/name"), "1e-300 0;1.0 1;");
  EXPECT_EQ(without_time("epoch"), "0.0 0;0.0 1;");
  const std::string meta = contents_of(run / "meta.yaml");
  EXPECT_NE(meta.find("artifact_uri: file://" + (folder.path / "ml%20runs").string()), std::string::npos)
      << meta;
  EXPECT_NE(meta.find("\nrun_name: 'first: #1'\n"), std::string::npos) << meta;
  EXPECT_NE(contents_of(run.parent_path() / "meta.yaml").find("\nname: 'it''s'\n"), std::string::npos);

  // Parameters do not change; a second run is in the same experiment.
  logger.log_hyperparams(State().set("deep", true));
  EXPECT_EQ(error_of([&] { logger.log_hyperparams(State().set("deep", false)); }),
            "MLflow parameter 'deep' is 'True' already, and cannot become 'False'");
  auto again =
      trainer_with(folder.path, Logging{}, MLFlowLogger{{.experiment_name = "it's", .save_dir = store}});
  again.fit(batches(1));
  const auto& second = std::get<0>(again.context().loggers());
  EXPECT_EQ(second.experiment_id(), logger.experiment_id());
  EXPECT_NE(second.run_id(), logger.run_id());
  EXPECT_EQ(contents_of(store / second.experiment_id() / second.run_id() / "tags/mlflow.runName"),
            "version_0")
      << "of the folder of the run";
}

TEST(MLFlow, FindsExperimentsOfOtherWriters) {
  for (const char* name : {"name: mine", "name: 'mine'", "name: \"mine\""}) {
    const TemporaryFolder folder;
    std::filesystem::create_directories(folder.path / "mlruns/123456");
    std::ofstream(folder.path / "mlruns/123456/meta.yaml") << "experiment_id: '123456'\n" << name << "\n";
    auto trainer =
        trainer_with(folder.path, Logging{},
                     MLFlowLogger{{.experiment_name = "mine", .save_dir = folder.path / "mlruns"}});
    trainer.fit(batches(1));
    EXPECT_EQ(std::get<0>(trainer.context().loggers()).experiment_id(), "123456") << name;
  }
}

TEST(MLFlow, ErrorsNameTheValue) {
  EXPECT_EQ(error_of([] { MLFlowLogger({.experiment_name = "a\nb"}); }),
            "MLFlowLogger: experiment_name is 'a\nb', expected at most 64 printable characters");
  EXPECT_EQ(error_of([] { MLFlowLogger({.save_dir = ""}); }),
            "MLFlowLogger: save_dir is empty, expected a folder");
  MLFlowLogger logger;
  EXPECT_EQ(error_of([&] { logger.log_hyperparams(State().set("@/..", 1)); }),
            "MLflow: '@/..' has no letter or digit to make a name of");
}

}  // namespace
