// Tests the profilers: actions and their numbers of calls are Lightning's, recordings those of PyTorch's
// schedule.
#include "../testing.hpp"

#include <fulmen/fulmen.hpp>
#include <fulmen/profile/report.hpp>
#include <fulmen/profile/simple.hpp>
#include <fulmen/profile/torch.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using Json = nlohmann::json;

const Json& fixture() {
  static const Json all = Json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/profile/profile.json"));
  return all;
}

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

using Batch = std::tuple<at::Tensor>;
using Batches = std::vector<Batch>;
Batches batches(std::int64_t count) {
  return Batches(static_cast<std::size_t>(count), Batch(at::zeros({2, 3})));
}

struct First {
  void on_train_batch_start() {}
  void on_train_batch_end() {}
  void on_validation_epoch_end() {}
  void on_test_batch_end() {}
};
struct Second {
  void on_before_optimizer_step() {}
  void on_train_epoch_end() {}
  void on_sanity_check_end() {}
  void on_fit_end() {}
  void on_predict_batch_end() {}
};
struct Model : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(3, 2))};
  at::Tensor training_step(const Batch& batch) { return layer(std::get<0>(batch)).square().mean(); }
  at::Tensor validation_step(const Batch& batch) { return layer(std::get<0>(batch)); }
  at::Tensor test_step(const Batch& batch) { return layer(std::get<0>(batch)); }
  at::Tensor predict_step(const Batch& batch) { return layer(std::get<0>(batch)); }
  void on_after_batch_transfer() {}
  void on_train_epoch_start() {}
  void on_after_backward() {}
};

/// Ours in Lightning's words; nothing for what it does not measure.
std::string in_lightning(std::string name) {
  static const std::map<std::string, std::string> names{
      {"run_training_epoch", "run_training_epoch"},
      {"run_training_batch", "run_training_batch"},
      {"train_dataloader_next", "[_TrainingEpochLoop].train_dataloader_next"},
      {"val_dataloader_next", "[_EvaluationLoop].val_next"},
      {"test_dataloader_next", "[_EvaluationLoop].test_next"},
      {"predict_dataloader_next", "[_PredictionLoop].predict_next"},
      {"transfer_batch_to_device", "[LightningModule]Model.transfer_batch_to_device"},
      {"[Module]Model.training_step", "[Strategy]SingleDeviceStrategy.training_step"},
      {"[Module]Model.validation_step", "[Strategy]SingleDeviceStrategy.validation_step"},
      {"[Module]Model.test_step", "[Strategy]SingleDeviceStrategy.test_step"},
      {"[Module]Model.predict_step", "[Strategy]SingleDeviceStrategy.predict_step"},
      {"[Module]Model.on_after_batch_transfer", "[LightningModule]Model.on_after_batch_transfer"},
      {"[Module]Model.on_train_epoch_start", "[LightningModule]Model.on_train_epoch_start"},
      {"[Module]Model.on_after_backward", "[LightningModule]Model.on_after_backward"},
      {"backward", "[Strategy]SingleDeviceStrategy.backward"},
      {"optimizer_step", "[LightningModule]Model.optimizer_step"},
      {"optimizer_zero_grad", "[LightningModule]Model.optimizer_zero_grad"},
      {"configure_gradient_clipping", "[LightningModule]Model.configure_gradient_clipping"},
      {"lr_scheduler_step", "[LightningModule]Model.lr_scheduler_step"},
      {"on_validation_model_zero_grad", "[LightningModule]Model.on_validation_model_zero_grad"},
      {"on_validation_model_eval", "[LightningModule]Model.on_validation_model_eval"},
      {"on_test_model_eval", "[LightningModule]Model.on_test_model_eval"},
      {"on_predict_model_eval", "[LightningModule]Model.on_predict_model_eval"},
      {"[Callback]First.on_train_batch_start", "[Callback]First.on_train_batch_start"},
      {"[Callback]First.on_train_batch_end", "[Callback]First.on_train_batch_end"},
      {"[Callback]First.on_validation_epoch_end", "[Callback]First.on_validation_epoch_end"},
      {"[Callback]First.on_test_batch_end", "[Callback]First.on_test_batch_end"},
      {"[Callback]Second.on_before_optimizer_step", "[Callback]Second.on_before_optimizer_step"},
      {"[Callback]Second.on_train_epoch_end", "[Callback]Second.on_train_epoch_end"},
      {"[Callback]Second.on_sanity_check_end", "[Callback]Second.on_sanity_check_end"},
      {"[Callback]Second.on_fit_end", "[Callback]Second.on_fit_end"},
      {"[Callback]Second.on_predict_batch_end", "[Callback]Second.on_predict_batch_end"}};
  // Compilers spell the namespace of this file each in their way.
  if (const auto end = name.rfind("::"); end != std::string::npos) {
    name = name.substr(0, name.find(']') + 1) + name.substr(end + 2);
  }
  const auto found = names.find(name);
  return found == names.end() ? "" : found->second;
}

Options quiet(Options o) {
  o.enable_progress_bar = o.enable_model_summary = o.enable_checkpointing = false;
  return o;
}

Options options(const Json& given) {
  Options o = quiet({.max_epochs = given.value("max_epochs", 1)});
  o.accumulate_grad_batches = given.value("accumulate_grad_batches", 1);
  o.num_sanity_val_steps = given.value("num_sanity_val_steps", 2);
  o.check_val_every_n_epoch = given.value("check_val_every_n_epoch", 1);
  o.gradient_clip_val = given.value("gradient_clip_val", 0.0);
  if (given.contains("val_check_interval"))
    o.val_check_interval = given["val_check_interval"].get<std::int64_t>();
  if (given.contains("limit_train_batches"))
    o.limit_train_batches = given["limit_train_batches"].get<std::int64_t>();
  return o;
}

/// A Trainer of the model on CPU with a profiler.
template <class Profiler>
auto trainer_with(Profiler profiler, Options o = quiet({.max_epochs = 1})) {
  return Trainer<Model, None, SGD, ExponentialLR, Identity, std::tuple<First, Second>,
                 Runtime<std::tuple<>, std::tuple<>, Profiler>>{
      Model{},    none, SGD{.lr = 0.1}, ExponentialLR{.gamma = 0.5},
      Identity{}, {},   std::move(o),   Runtime<>{.device = at::kCPU}.with_profiler(std::move(profiler))};
}

template <class T>
void run_stage(T& trainer, const std::string& stage, const Json& batch_counts) {
  const auto given = [&](const char* name) { return batches(batch_counts[name]); };
  Batches train = given("train"), val = given("val"), test = given("test"), predict = given("predict");
  if (stage == "fit") trainer.fit(train, val);
  if (stage == "validate") trainer.validate(val);
  if (stage == "test") trainer.test(test);
  if (stage == "predict") (void)trainer.predict(predict);
}

// ------------------------------------------------------------------------------------------------
// SimpleProfiler

TEST(SimpleProfiler, CountsWhatLightningCounts) {
  std::set<std::string> compared;
  for (const Json& run : fixture()["runs"]) {
    SCOPED_TRACE(run["stage"].dump() + run["options"].dump());
    const TemporaryFolder folder;
    auto trainer =
        trainer_with(SimpleProfiler{.dirpath = folder.path, .filename = "profile"}, options(run["options"]));
    run_stage(trainer, run["stage"], run["batches"]);
    for (const ActionTime& action : trainer.context().profiler().actions()) {
      const std::string theirs = in_lightning(action.name);
      if (theirs.empty()) continue;
      ASSERT_TRUE(run["calls"].contains(theirs)) << theirs;
      EXPECT_EQ(action.num_calls, run["calls"][theirs]) << action.name;
      compared.insert(theirs);
    }
    for (const Json& file : run["files"]) EXPECT_TRUE(exists(folder.path / file.get<std::string>())) << file;
  }
  EXPECT_EQ(compared.size(), 32U);
}

/// The table in a file: cells of each line.
std::vector<std::vector<std::string>> rows_of(const std::string& text) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] != '|') continue;
    std::istringstream cells(line.substr(1));
    auto& row = rows.emplace_back();
    for (std::string cell; std::getline(cells, cell, '|');) {
      cell.erase(0, cell.find_first_not_of(' '));
      cell.erase(cell.find_last_not_of(' ') + 1);
      row.push_back(cell);
    }
  }
  return rows;
}

TEST(SimpleProfiler, TableAddsUp) {
  const TemporaryFolder folder;
  auto trainer =
      trainer_with(SimpleProfiler{.dirpath = folder.path / "made" / "here", .filename = "profile"});
  run_stage(trainer, "fit", fixture()["runs"][0]["batches"]);
  const std::string text = text_of(folder.path / "made" / "here" / "fit-profile.txt");
  EXPECT_NE(text.find("FIT Profiler Report"), std::string::npos);
  const auto rows = rows_of(text);
  ASSERT_GT(rows.size(), 10U);
  EXPECT_EQ(Json(rows[0]), fixture()["runs"][0]["columns"]);
  ASSERT_EQ(rows[1][0], "Total");
  EXPECT_EQ(rows[1][4], "100 %");
  const double all = std::stod(rows[1][3]);
  std::int64_t calls = 0;
  std::map<std::string, double> times;
  for (std::size_t i = 2; i < rows.size(); ++i) {
    const std::int64_t count = std::stoll(rows[i][2]);
    const double time = times[rows[i][0]] = std::stod(rows[i][3]);
    calls += count;
    EXPECT_NEAR(std::stod(rows[i][1]) * static_cast<double>(count), time, 1e-3 * time) << rows[i][0];
    EXPECT_NEAR(std::stod(rows[i][4]), 100 * time / all, 1e-3 * 100 * time / all) << rows[i][0];
    if (i > 2) {
      EXPECT_LE(time, std::stod(rows[i - 1][3])) << rows[i][0];
    }
  }
  EXPECT_EQ(std::to_string(calls), rows[1][2]);
  EXPECT_NEAR(trainer.context().profiler().duration(), all, 1e-3 * all);
  // What is inside another is not longer.
  EXPECT_GT(times["backward"], 0);
  EXPECT_LT(times["backward"], times["optimizer_step"]);
  EXPECT_LE(times["optimizer_step"], times["run_training_batch"]);
  EXPECT_LE(times["run_training_batch"], times["run_training_epoch"]);
  EXPECT_LE(times["run_training_epoch"], all);
}

TEST(SimpleProfiler, EachStageBeginsAnew) {
  const TemporaryFolder folder;
  auto trainer = trainer_with(SimpleProfiler{.dirpath = folder.path, .filename = "p", .extended = false});
  run_stage(trainer, "fit", fixture()["runs"][0]["batches"]);
  run_stage(trainer, "test", fixture()["runs"][0]["batches"]);
  const auto rows = rows_of(text_of(folder.path / "test-p.txt"));
  ASSERT_GT(rows.size(), 2U);
  EXPECT_EQ(rows[0], (std::vector<std::string>{"Action", "Mean duration (s)", "Total time (s)"}));
  for (std::size_t i = 1; i < rows.size(); ++i) {
    EXPECT_NE(rows[i][0].substr(0, 4), "run_") << rows[i][0];
    if (i > 1) {
      EXPECT_LE(std::stod(rows[i][1]), std::stod(rows[i - 1][1]));
    }
  }
  const auto once = text_of(folder.path / "fit-p.txt");
  trainer.set_options(quiet({.max_epochs = 2}));
  run_stage(trainer, "fit", fixture()["runs"][0]["batches"]);
  const auto twice = text_of(folder.path / "fit-p.txt");
  EXPECT_EQ(twice.substr(0, once.size()), once);
  EXPECT_NE(twice.find("FIT Profiler Report", once.size()), std::string::npos);
}

struct Failing : Model {
  std::int64_t left = 3;
  at::Tensor training_step(const Batch& batch) {
    if (left-- == 0) throw std::runtime_error("the third step failed");
    return Model::training_step(batch);
  }
};

TEST(SimpleProfiler, ReportsWhatAnExceptionEnds) {
  Trainer trainer{
      Failing{},  none,        SGD{.lr = 0.1},           none,
      Identity{}, callbacks(), quiet({.max_epochs = 1}), barebones.with_profiler(SimpleProfiler{})};
  Batches train = batches(7);
  testing::internal::CaptureStdout();
  EXPECT_EQ(error_of([&] { trainer.fit(train); }), "the third step failed");
  const std::string printed = testing::internal::GetCapturedStdout();
  EXPECT_NE(printed.find("FIT Profiler Report"), std::string::npos);
  std::map<std::string, std::int64_t> calls;
  for (const ActionTime& action : trainer.context().profiler().actions())
    calls[action.name] = action.num_calls;
  EXPECT_EQ(calls["run_training_batch"], 4);
  EXPECT_EQ(calls["backward"], 3);
}

TEST(SimpleProfiler, NamesTheFileItCannotWrite) {
  const TemporaryFolder folder;
  const auto file = folder.path / "file";
  std::ofstream(file) << "x";
  const auto error = [&](SimpleProfiler profiler) {
    auto trainer = trainer_with(std::move(profiler));
    return error_of([&] { run_stage(trainer, "validate", fixture()["runs"][0]["batches"]); });
  };
  EXPECT_EQ(error({.dirpath = file / "inside", .filename = "p"}),
            "cannot make the profiler's folder '" + (file / "inside").string() + "': Not a directory");
  EXPECT_EQ(error({.dirpath = folder.path, .filename = "no/p"}),
            "cannot write the profile '" + (folder.path / "validate-no/p.txt").string() +
                "': No such file or directory");
  // What the disk says when the table comes.
  EXPECT_EQ(error_of([&] {
              terminal::Table table{{{"a"}}};
              fulmen::detail::write_report(table, "/dev/full");
            }),
            "cannot write the profile '/dev/full': No space left on device");
}

// ------------------------------------------------------------------------------------------------ one's own

struct Note {
  std::vector<std::string>* notes;
  std::vector<std::string> open{};
  void start(std::string_view action) { open.emplace_back(action); }
  void stop(std::string_view action) {
    ASSERT_FALSE(open.empty());
    EXPECT_EQ(open.back(), action);
    std::string path;
    for (const std::string& part : open) path += '/' + part;
    notes->push_back(path);
    open.pop_back();
  }
  void setup(Context& ctx) { notes->push_back("setup " + std::string(to_string(ctx.stage()))); }
  void step(Context& ctx) { notes->push_back("step " + std::string(to_string(ctx.phase()))); }
  void teardown() { notes->push_back("teardown " + std::to_string(open.size())); }
};

struct Own : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(3, 2))};
  // The operator that Python's Linear is; that of C++ takes addmm.
  at::Tensor forward(const at::Tensor& x) { return at::linear(x, layer->weight, layer->bias); }
};
struct OwnAction : Own {
  at::Tensor training_step(auto& ctx, const auto& batch) {
    const auto measured = fulmen::profile<"square">(ctx);
    return forward(std::get<0>(batch)).square().mean();
  }
};
using Pairs = std::vector<std::pair<at::Tensor, at::Tensor>>;

TEST(Profiler, OwnIsToldOfAll) {
  std::vector<std::string> notes;
  Pairs train{{at::zeros({2, 3}), at::zeros({2, 2})}};
  Trainer trainer{Own{},
                  MSE{},
                  SGD{.lr = 0.1},
                  none,
                  Identity{},
                  callbacks(),
                  quiet({.max_epochs = 1, .num_sanity_val_steps = 1}),
                  barebones.with_profiler(Note{&notes})};
  trainer.fit(train, train);
  const std::string sanity = "/val_dataloader_", epoch = "/run_training_epoch",
                    batch = epoch + "/run_training_batch/optimizer_step";
  const std::vector<std::string> expected{
      "setup fit",
      "/on_validation_model_eval",
      "/val_dataloader_advance",
      "/val_dataloader_advance",
      "/val_dataloader_next",
      "/validation_step/transfer_batch_to_device",
      "/validation_step/forward",
      "/validation_step/criterion",
      "/validation_step",
      "step sanity_check",
      "/on_validation_model_train",
      epoch + "/train_dataloader_advance",
      epoch + "/train_dataloader_advance",
      epoch + "/train_dataloader_next",
      epoch + "/transfer_batch_to_device",
      batch + "/training_step/forward",
      batch + "/training_step/criterion",
      batch + "/training_step",
      batch + "/optimizer_zero_grad",
      batch + "/backward",
      batch + "/configure_gradient_clipping",
      batch,
      epoch + "/run_training_batch",
      "step train",
      epoch + "/on_validation_model_zero_grad",
      epoch + "/on_validation_model_eval",
      epoch + "/val_dataloader_advance",
      epoch + "/val_dataloader_advance",
      epoch + "/val_dataloader_next",
      epoch + "/validation_step/transfer_batch_to_device",
      epoch + "/validation_step/forward",
      epoch + "/validation_step/criterion",
      epoch + "/validation_step",
      "step validation",
      epoch + "/on_validation_model_train",
      epoch,
      "teardown 0",
  };
  EXPECT_EQ(notes, expected);
}

TEST(Profiler, MeasuresActionsOfOnesOwn) {
  Pairs train{{at::zeros({2, 3}), at::zeros({2, 2})}, {at::zeros({2, 3}), at::zeros({2, 2})}};
  testing::internal::CaptureStdout();
  Trainer trainer{
      OwnAction{}, none,        SGD{.lr = 0.1},           none,
      Identity{},  callbacks(), quiet({.max_epochs = 3}), barebones.with_profiler(SimpleProfiler{})};
  trainer.fit(train);
  testing::internal::GetCapturedStdout();
  std::int64_t calls = 0;
  for (const ActionTime& action : trainer.context().profiler().actions())
    calls += action.name == "square" ? action.num_calls : 0;
  EXPECT_EQ(calls, 6);
}

struct ByHand : Own {
  static constexpr bool automatic_optimization = false;
  void training_step(auto& ctx, const auto& batch) {
    ctx.optimizer().zero_grad();
    ctx.backward(forward(std::get<0>(batch)).square().mean());
    ctx.optimizer().step();
  }
};

TEST(Profiler, MeasuresStepsByHand) {
  Pairs train{{at::zeros({2, 3}), at::zeros({2, 2})}, {at::zeros({2, 3}), at::zeros({2, 2})}};
  std::vector<std::string> notes;
  Trainer trainer{ByHand{},   none,        SGD{.lr = 0.1},           none,
                  Identity{}, callbacks(), quiet({.max_epochs = 1}), barebones.with_profiler(Note{&notes})};
  trainer.fit(train);
  const auto ends = [&](const std::string& name) {
    return std::count_if(notes.begin(), notes.end(),
                         [&](const std::string& note) { return note.ends_with(name); });
  };
  EXPECT_EQ(ends("ByHand.training_step/backward"), 2);
  EXPECT_EQ(ends("ByHand.training_step/optimizer_step"), 2);
  EXPECT_EQ(ends("/run_training_batch"), 2);
}

TEST(Profiler, AnActionInsideItselfIsTimedOnce) {
  SimpleProfiler profiler;
  const Action action("again");
  profiler.start(action);
  profiler.start(action);
  profiler.stop(action);
  profiler.stop(action);
  profiler.stop(action);  // one too many is none
  const double seconds = profiler.actions().at(0).total_time;
  EXPECT_EQ(profiler.actions().at(0).num_calls, 2);
  profiler.start(action);
  profiler.stop(action);
  EXPECT_GT(profiler.actions().at(0).total_time, seconds);
}

TEST(Profiler, NoneIsNothing) {
  using Bare = Trainer<Own, MSE, SGD, None, Identity, std::tuple<>, Runtime<>>;
  static_assert(!Bare::Context::has_profiler);
  static_assert(std::is_empty_v<decltype(fulmen::profile<"x">(std::declval<Bare::Context&>()))>);
  static_assert(std::is_same_v<decltype(fulmen::detail::measured_loader<"x">(std::declval<Bare::Context&>(),
                                                                             std::declval<Pairs&>())),
                               Pairs&>);
  static_assert(sizeof(Runtime<>) == sizeof(std::optional<at::Device>) + 2 || sizeof(Runtime<>) <= 8);
  using Measured = Trainer<Own, MSE, SGD, None, Identity, std::tuple<>,
                           Runtime<std::tuple<>, std::tuple<>, SimpleProfiler>>;
  static_assert(Measured::Context::has_profiler);
}

// ------------------------------------------------------------------------------------------------
// TorchProfiler

/// Batches of 1, 2, 3, … rows, so that a trace with shapes tells them apart.
Pairs growing(std::int64_t count) {
  Pairs out;
  for (std::int64_t i = 1; i <= count; ++i) out.emplace_back(at::zeros({i, 3}), at::zeros({i, 2}));
  return out;
}

struct Trace {
  std::string name;
  Json events = Json::array();  // whole ones: with a beginning and a duration

  explicit Trace(const std::filesystem::path& path) : name(path.filename().string()) {
    const Json all = Json::parse(std::ifstream(path));
    for (const Json& event : all.at("traceEvents")) {
      if (event.value("ph", "") == "X" && event.contains("cat")) events.push_back(event);
    }
  }
  std::vector<Json> named(const std::string& wanted) const {
    std::vector<Json> out;
    for (const Json& event : events) {
      if (event["name"] == wanted) out.push_back(event);
    }
    std::sort(out.begin(), out.end(),
              [](const Json& a, const Json& b) { return a["ts"].get<double>() < b["ts"].get<double>(); });
    return out;
  }
  /// Which batches the operators saw.
  std::vector<std::int64_t> steps() const {
    std::vector<std::int64_t> out;
    for (const Json& event : named("aten::linear"))
      out.push_back(event["args"]["Input Dims"][0][0].get<std::int64_t>() - 1);
    return out;
  }
};

std::vector<Trace> traces_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().string().ends_with(".pt.trace.json")) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return {paths.begin(), paths.end()};
}

auto recording(TorchProfiler profiler, Options o = quiet({.max_epochs = 1})) {
  return Trainer<Own, MSE, SGD, None, Identity, std::tuple<>,
                 Runtime<std::tuple<>, std::tuple<>, TorchProfiler>>{
      Own{},      MSE{}, SGD{.lr = 0.1}, none,
      Identity{}, {},    std::move(o),   barebones.with_profiler(std::move(profiler))};
}

bool inside(const Json& inner, const Json& outer) {
  const auto begin = [](const Json& e) { return e["ts"].get<double>(); };
  const auto end = [](const Json& e) { return e["ts"].get<double>() + e["dur"].get<double>(); };
  return inner["tid"] == outer["tid"] && begin(outer) <= begin(inner) + 1e-3 &&
         end(inner) <= end(outer) + 1e-3;
}

TEST(TorchProfiler, RecordsTheStepsOfPyTorchsSchedule) {
  Pairs train = growing(fixture()["steps"]);
  for (const Json& given : fixture()["schedules"]) {
    SCOPED_TRACE(given.dump());
    const TemporaryFolder folder;
    const Json& o = given["options"];
    auto trainer = recording({.dirpath = folder.path,
                              .filename = "p",
                              .schedule = {.wait = o["wait"],
                                           .warmup = o["warmup"],
                                           .active = o["active"],
                                           .repeat = o["repeat"],
                                           .skip_first = o.value("skip_first", 0)},
                              .record_shapes = true});
    trainer.fit(train);
    const auto traces = traces_in(folder.path);
    ASSERT_EQ(traces.size(), given["traces"].size());
    for (std::size_t i = 0; i < traces.size(); ++i) {
      EXPECT_EQ(traces[i].name, "fit-p." + std::to_string(i) + ".pt.trace.json");
      EXPECT_EQ(Json(traces[i].steps()), given["traces"][i]);
    }
    EXPECT_FALSE(torch::profiler::impl::profilerEnabled());
  }
}

TEST(TorchProfiler, ActionsAreRangesAroundOperators) {
  const TemporaryFolder folder;
  auto trainer = recording({.dirpath = folder.path, .filename = "p", .schedule = {.active = 2}});
  Pairs train = growing(7);
  trainer.fit(train);
  const auto traces = traces_in(folder.path);
  ASSERT_EQ(traces.size(), 1U);
  const Trace& trace = traces[0];
  // By name: what is around, from the outside.
  const std::vector<std::pair<std::string, std::vector<std::string>>> nested{
      {"aten::addmm",
       {"run_training_epoch", "run_training_batch", "optimizer_step", "training_step", "forward"}},
      {"aten::mse_loss",
       {"run_training_epoch", "run_training_batch", "optimizer_step", "training_step", "criterion"}},
      {"MseLossBackward0", {"run_training_epoch", "run_training_batch", "optimizer_step", "backward"}},
      {"train_dataloader_next", {"run_training_epoch"}}};
  for (const auto& [name, outer] : nested) {
    const auto inner = trace.named(name);
    ASSERT_EQ(inner.size(), 2U) << name;
    for (std::size_t step = 0; step < 2; ++step) {
      Json around = inner[step];
      for (auto range = outer.rbegin(); range != outer.rend(); ++range) {
        const auto all = trace.named(*range);
        ASSERT_EQ(all.size(), *range == "run_training_epoch" ? 1U : 2U) << *range;
        const Json& next = all[std::min(step, all.size() - 1)];
        EXPECT_EQ(next["cat"], "user_annotation");
        EXPECT_TRUE(inside(around, next)) << around << " in " << next;
        around = next;
      }
    }
  }
}

TEST(TorchProfiler, CountsEvaluationButNotTheSanityCheck) {
  const TemporaryFolder folder;
  auto trainer = recording(
      {.dirpath = folder.path, .schedule = {.wait = 0, .warmup = 0, .active = 5}, .record_shapes = true},
      quiet({.max_epochs = 2, .num_sanity_val_steps = 2}));
  Pairs train = growing(3), val = growing(2);
  trainer.fit(train, val);
  trainer.test(val);
  const auto traces = traces_in(folder.path);
  ASSERT_EQ(traces.size(), 2U);
  EXPECT_EQ(traces[0].name, "fit.0.pt.trace.json");
  EXPECT_EQ(traces[0].steps(), (std::vector<std::int64_t>{0, 1, 2, 0, 1}));
  EXPECT_EQ(traces[0].named("validation_step").size(), 2U);
  EXPECT_EQ(traces[1].name, "test.1.pt.trace.json");  // a recording that the end of the stage cuts short
  EXPECT_EQ(traces[1].steps(), (std::vector<std::int64_t>{0, 1}));
}

TEST(TorchProfiler, TableCountsWhatPyTorchCounts) {
  const TemporaryFolder folder;
  auto trainer = recording({.dirpath = folder.path,
                            .filename = "p",
                            .export_to_chrome = false,
                            .row_limit = -1,
                            .schedule = {.wait = 1, .warmup = 1, .active = 2},
                            .record_shapes = true,
                            .with_flops = true});
  Pairs train(6, {at::zeros({4, 3}), at::zeros({4, 2})});
  trainer.fit(train);
  EXPECT_TRUE(traces_in(folder.path).empty());
  const std::string text = text_of(folder.path / "fit-p.txt");
  EXPECT_NE(text.find("Steps recorded: 2 of 6"), std::string::npos) << text;
  const auto rows = rows_of(text);
  ASSERT_GT(rows.size(), 10U);
  EXPECT_EQ(rows[0], (std::vector<std::string>{"Name", "Self CPU %", "Self CPU", "CPU total", "CPU time avg",
                                               "# of Calls", "Total FLOPs"}));
  std::map<std::string, std::vector<std::string>> found;
  double percent = 0;
  for (std::size_t i = 1; i < rows.size(); ++i) {
    found[rows[i][0]] = rows[i];
    percent += std::stod(rows[i][1]);
    if (i > 1) {
      EXPECT_LE(std::stod(rows[i][1]), std::stod(rows[i - 1][1]));
    }
  }
  EXPECT_NEAR(percent, 100, 0.01 * static_cast<double>(rows.size()));
  std::size_t compared = 0;
  for (const auto& [name, expected] : fixture()["operators"].items()) {
    // Those of forward and backward; the others serve optimizer and zero_grad as well, which differ.
    if (name.find("linear") == std::string::npos && name.find("mm") == std::string::npos &&
        name.find("mse") == std::string::npos && name.find("Mse") == std::string::npos &&
        name.find("AccumulateGrad") == std::string::npos) {
      continue;
    }
    ASSERT_TRUE(found.contains(name)) << name << text;
    EXPECT_EQ(found[name][5], expected["count"].dump()) << name;
    EXPECT_EQ(found[name][6], expected["flops"] == 0 ? "--" : expected["flops"].dump()) << name;
    ++compared;
  }
  EXPECT_GE(compared, 9U);
}

TEST(TorchProfiler, SortsAndCutsItsTable) {
  const auto table = [](TorchProfiler profiler) {
    profiler.export_to_chrome = false;
    auto trainer = recording(std::move(profiler));
    Pairs train = growing(6);
    testing::internal::CaptureStdout();
    trainer.fit(train);
    const std::string printed = testing::internal::GetCapturedStdout();
    std::string ascii;
    for (std::size_t i = 0; i < printed.size(); ++i) {
      // Where the terminal's locale is UTF-8: the bars of rows.
      if (printed.compare(i, 3, "│") == 0)
        ascii += '|', i += 2;
      else
        ascii += printed[i];
    }
    return ascii;
  };
  const auto by_count = rows_of(table({.row_limit = 4, .sort_by_key = OperatorSort::count}));
  std::int64_t before = 1 << 30, rows = 0;
  for (const auto& row : by_count) {
    if (row[0] == "Name") continue;
    EXPECT_LE(std::stoll(row[5]), before);
    before = std::stoll(row[5]);
    ++rows;
  }
  EXPECT_EQ(rows, 4);
  const auto by_total = rows_of(table({.row_limit = 1, .sort_by_key = OperatorSort::cpu_time_total}));
  EXPECT_EQ(by_total.back()[0], "run_training_epoch");
  EXPECT_NE(table({.schedule = {.wait = 100}})
                .find("No whole step was recorded: there were 6, see TorchProfiler::schedule"),
            std::string::npos);
}

TEST(TorchProfiler, KeepsWhatAnExceptionCutsShort) {
  const TemporaryFolder folder;
  Trainer trainer{Failing{},
                  none,
                  SGD{.lr = 0.1},
                  none,
                  Identity{},
                  callbacks(),
                  quiet({.max_epochs = 1}),
                  barebones.with_profiler(TorchProfiler{.dirpath = folder.path, .filename = "p"})};
  Batches train = batches(7);
  EXPECT_EQ(error_of([&] { trainer.fit(train); }), "the third step failed");
  const auto traces = traces_in(folder.path);
  ASSERT_EQ(traces.size(), 1U);
  EXPECT_EQ(traces[0].named("run_training_batch").size(), 2U);
  EXPECT_EQ(traces[0].named("backward").size(), 1U);
  EXPECT_NE(text_of(folder.path / "fit-p.txt").find("Steps recorded: 1 of 3"), std::string::npos);
  EXPECT_FALSE(torch::profiler::impl::profilerEnabled());
}

TEST(TorchProfiler, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const auto file = folder.path / "file";
  std::ofstream(file) << "x";
  const auto error = [](TorchProfiler profiler) {
    auto trainer = recording(std::move(profiler));
    Pairs train = growing(6);
    return error_of([&] { trainer.fit(train); });
  };
  EXPECT_EQ(error({.schedule = {.active = 0}}), "TorchProfiler::schedule.active is 0, expected at least 1");
  EXPECT_EQ(error({.schedule = {.wait = -1}}), "TorchProfiler::schedule.wait is -1, expected at least 0");
  EXPECT_EQ(error({.row_limit = -2}), "TorchProfiler::row_limit is -2, expected at least -1");
  EXPECT_EQ(error({.dirpath = file / "inside"}),
            "cannot make the profiler's folder '" + (file / "inside").string() + "': Not a directory");
  EXPECT_EQ(error({.dirpath = folder.path, .filename = "/no/p"}),
            "cannot write the profile '" + (folder.path / "fit-/no/p.txt").string() +
                "': No such file or directory");
  // The folder goes while the stage runs: the trace's error is the stage's.
  struct Removing : Own {
    std::filesystem::path folder;
    void on_train_batch_end() { std::filesystem::remove_all(folder); }
  };
  auto module = std::make_shared<Removing>();
  module->folder = folder.path / "gone";
  Trainer trainer{module,
                  MSE{},
                  SGD{.lr = 0.1},
                  none,
                  Identity{},
                  callbacks(),
                  quiet({.max_epochs = 1}),
                  barebones.with_profiler(TorchProfiler{.dirpath = module->folder})};
  Pairs train = growing(6);
  testing::internal::CaptureStdout();
  EXPECT_EQ(error_of([&] { trainer.fit(train); }), "cannot write the profile '" +
                                                       (module->folder / "fit.0.pt.trace.json").string() +
                                                       "': No such file or directory");
  testing::internal::GetCapturedStdout();
  EXPECT_FALSE(torch::profiler::impl::profilerEnabled());
  namespace p = torch::autograd::profiler;
  const p::ProfilerConfig config(p::ProfilerState::KINETO);
  p::prepareProfiler(config, {p::ActivityType::CPU});
  p::enableProfiler(config, {p::ActivityType::CPU});
  EXPECT_EQ(error({}), "TorchProfiler: a profiler of LibTorch runs on this thread already");
  p::disableProfiler();
}

TEST(TorchProfiler, WritesIntoTheRunsFolder) {
  const TemporaryFolder folder;
  Options o = quiet({.max_epochs = 1});
  o.default_root_dir = folder.path;
  auto trainer = recording({.filename = "p"}, o);
  Pairs train = growing(6);
  trainer.fit(train);
  EXPECT_EQ(traces_in(trainer.context().run_dir()).size(), 1U);
  EXPECT_TRUE(exists(trainer.context().run_dir() / "fit-p.txt"));
}

}  // namespace
