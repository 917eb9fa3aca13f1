// Tests the callbacks that watch and log: what they do is what Lightning did.
#include "testing.hpp"

#include "../testing.hpp"

#include <fulmen/callbacks/device_stats_monitor.hpp>
#include <fulmen/callbacks/early_stopping.hpp>
#include <fulmen/callbacks/fail_on_interrupt.hpp>
#include <fulmen/callbacks/learning_rate_monitor.hpp>
#include <fulmen/callbacks/on_exception_checkpoint.hpp>
#include <fulmen/callbacks/prediction_writer.hpp>
#include <fulmen/callbacks/throughput_monitor.hpp>
#include <fulmen/callbacks/time_profiler.hpp>
#include <fulmen/callbacks/timer.hpp>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

namespace {

using namespace callbacks_test;

// ------------------------------------------------------------------------------------------------
// EarlyStopping

/// Logs given values in place of a loss, one a validation run.
struct Recorded : Model {
  std::vector<double> values;
  std::size_t run = 0;
  void validation_step(const std::tuple<at::Tensor, at::Tensor>&) {}
  void on_validation_epoch_end(Context& ctx) { ctx.log("value", values[std::min(run++, values.size() - 1)]); }
};

EarlyStopping early_stopping(const Json& given) {
  EarlyStopping out{.monitor = given.value("monitor", "value"),
                    .min_delta = given.value("min_delta", 0.0),
                    .patience = given.value("patience", 3),
                    .mode = given.value("mode", "min") == "min" ? Mode::min : Mode::max,
                    .strict = given.value("strict", true),
                    .check_finite = given.value("check_finite", true)};
  if (given.contains("stopping_threshold"))
    out.stopping_threshold = given["stopping_threshold"].get<double>();
  if (given.contains("divergence_threshold"))
    out.divergence_threshold = given["divergence_threshold"].get<double>();
  if (given.contains("check_on_train_epoch_end"))
    out.check_on_train_epoch_end = given["check_on_train_epoch_end"].get<bool>();
  return out;
}

TEST(EarlyStopping, StopsWhenLightningDoes) {
  for (const Json& run : fixture()["early_stopping"]) {
    SCOPED_TRACE(run["options"].dump() + " " + run["values"].dump() + " " + run["trainer"].dump());
    auto module = std::make_shared<Recorded>();
    for (const Json& value : run["values"]) module->values.push_back(number(value));
    const auto epochs = static_cast<std::int64_t>(module->values.size());
    Trainer trainer{module,
                    MSE{},
                    SGD{.lr = 0.1},
                    none,
                    Identity{},
                    callbacks(early_stopping(run["options"])),
                    options(run["trainer"], epochs),
                    barebones};
    auto train = loader(), val = loader();
    trainer.fit(train, val);
    const EarlyStopping& found = std::get<EarlyStopping>(trainer.context().callbacks());
    EXPECT_EQ(trainer.context().epoch(), run["epochs"]);
    EXPECT_EQ(trainer.context().global_step(), run["steps"]);
    EXPECT_EQ(found.wait_count, run["wait_count"]);
    EXPECT_EQ(found.stopped_epoch, run["stopped_epoch"]);
    EXPECT_EQ(found.best_score, number(run["best_score"]));
    EXPECT_EQ(static_cast<int>(found.stopping_reason), run["reason"]);
    EXPECT_EQ(found.stopping_reason_message.has_value(), run["said"]);
    auto keys = found.state_dict().keys();
    std::sort(keys.begin(), keys.end());
    EXPECT_EQ(Json(keys), run["keys"]);
  }
}

TEST(EarlyStopping, KeepsItsState) {
  EarlyStopping callback{.monitor = "a", .patience = 7};
  callback.wait_count = 2, callback.stopped_epoch = 5, callback.best_score = 0.25;
  callback.stopping_reason = EarlyStoppingReason::patience_exhausted;
  callback.stopping_reason_message = "so";
  EarlyStopping other{.monitor = "a"};
  other.load_state_dict(callback.state_dict());
  EXPECT_EQ(other.wait_count, 2);
  EXPECT_EQ(other.stopped_epoch, 5);
  EXPECT_EQ(other.best_score, 0.25);
  EXPECT_EQ(other.patience, 7);
  EXPECT_EQ(other.stopping_reason, EarlyStoppingReason::patience_exhausted);
  EXPECT_EQ(other.stopping_reason_message, "so");
}

TEST(EarlyStopping, SaysWhatIsWrong) {
  auto train = loader();
  const auto error = [&](EarlyStopping callback) {
    Trainer trainer{Model{},        MSE{},    SGD{.lr = 0.1}, none, Identity{}, callbacks(callback),
                    options({}, 2), barebones};
    return error_of([&] { trainer.fit(train); });
  };
  EXPECT_EQ(error({.monitor = "val/loss"}), "EarlyStopping: 'val/loss' was not logged; there is: train/loss");
  EXPECT_EQ(error({}), "EarlyStopping::monitor is empty, expected the name of a logged value");
  EXPECT_EQ(error({.monitor = "a", .patience = -1}), "EarlyStopping::patience is -1, expected at least 0");
}

// ------------------------------------------------------------------------------------------------
// LearningRateMonitor

struct ByHand : Model {
  static constexpr bool automatic_optimization = false;
  void training_step(auto& ctx, const std::tuple<at::Tensor, at::Tensor>& batch) {
    std::apply(
        [&](auto&... optimizer) {
          (
              [&] {
                optimizer.zero_grad();
                ctx.backward(at::mse_loss(forward(std::get<0>(batch)), std::get<1>(batch)));
                optimizer.step();
              }(),
              ...);
        },
        ctx.optimizers());
  }
};

TEST(LearningRateMonitor, LogsWhatLightningLogs) {
  for (const Json& run : fixture()["rates"]) {
    const std::string name = run["optimizer"],
                      what = name + " " + run["options"].dump() + " " + run["trainer"].dump();
    const Json& given = run["options"];
    LearningRateMonitor monitor{.log_momentum = given.value("log_momentum", false),
                                .log_weight_decay = given.value("log_weight_decay", false)};
    if (given.contains("logging_interval"))
      monitor.logging_interval = given["logging_interval"] == "step" ? Interval::step : Interval::epoch;
    Json rows = Json::array();
    auto train = loader();
    const auto fit = [&](auto module, auto optimizer, auto scheduler) {
      Trainer trainer{module,
                      MSE{},
                      optimizer,
                      scheduler,
                      Identity{},
                      callbacks(monitor),
                      options(run["trainer"], 2),
                      recorded(rows)};
      trainer.fit(train);
      EXPECT_EQ(Json(std::get<LearningRateMonitor>(trainer.context().callbacks()).lrs).size(),
                run["lrs"].size())
          << what;
      for (const auto& [key, values] : std::get<LearningRateMonitor>(trainer.context().callbacks()).lrs) {
        expect_near(tensor(values), run["lrs"][key], what);
        EXPECT_NEAR(trainer.context().metrics().find(key).value(), values.back(), 0)
            << "callbacks can monitor it";
      }
    };
    const auto backbone = parameters_of("backbone", Adam{.lr = 0.1});
    if (name == "two")
      fit(ByHand{}, std::tuple{backbone, parameters_of("head", Adam{.lr = 0.01})}, none);
    else if (name == "two_kinds")
      fit(ByHand{}, std::tuple{backbone, parameters_of("head", SGD{.lr = 0.01})}, none);
    else
      with_optimizer_named(name, [&](auto optimizer, auto scheduler) { fit(Model{}, optimizer, scheduler); });
    expect_rows(rows, run["rows"], what);
  }
}

// ------------------------------------------------------------------------------------------------ Timer

TEST(Timer, ReadsDurations) {
  EXPECT_EQ(TimeLimit("00:00:00:01").seconds(), 1);
  EXPECT_EQ(TimeLimit("01:02:03:04").seconds(), 86400 + 2 * 3600 + 3 * 60 + 4);
  EXPECT_EQ(TimeLimit("120:00:00:00").seconds(), 120 * 86400);
  EXPECT_EQ(TimeLimit(std::chrono::minutes(2)).seconds(), 120);
  EXPECT_FALSE(TimeLimit().seconds());
  for (const char* text : {"", "1", "00:00:01", "00:00:0:01", "00:00:00:1", "a0:00:00:00", "00:00:00:00:00",
                           "-1:00:00:00", "00:00:00:01 "}) {
    EXPECT_EQ(error_of([&] { TimeLimit{text}; }),
              std::string("Timer::duration is '") + text + "', expected DD:HH:MM:SS");
  }
}

struct Slow : Model {
  at::Tensor training_step(const std::tuple<at::Tensor, at::Tensor>& batch) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return at::mse_loss(forward(std::get<0>(batch)), std::get<1>(batch));
  }
};

TEST(Timer, EndsFit) {
  auto train = loader(), val = loader();
  const auto run = [&](Timer timer, std::int64_t epochs, auto&& look) {
    Trainer trainer{Slow{},   MSE{}, SGD{.lr = 0.1}, none, Identity{}, callbacks(timer), options({}, epochs),
                    barebones};
    trainer.fit(train, val);
    look(trainer, std::get<Timer>(trainer.context().callbacks()));
  };
  using std::chrono::milliseconds;
  run({.duration = milliseconds(35), .verbose = false}, 1000, [](auto& trainer, const Timer& timer) {
    EXPECT_GE(trainer.context().global_step(), 1);
    EXPECT_LE(trainer.context().global_step(), 4) << "batches take 10 ms at least";
    EXPECT_GE(timer.time_elapsed(), 0.035);
    EXPECT_LE(timer.time_remaining().value(), 0);
    EXPECT_GT(timer.time_elapsed(Phase::validation), 0);
    EXPECT_LE(timer.start_time(Phase::train).value(), timer.start_time(Phase::validation).value());
    EXPECT_LE(timer.end_time(Phase::validation).value(), timer.end_time(Phase::train).value());
    EXPECT_FALSE(timer.start_time(Phase::test).has_value());
  });
  run({.duration = milliseconds(35), .interval = Interval::epoch, .verbose = false}, 1000,
      [](auto& trainer, const Timer&) {
        EXPECT_EQ(trainer.context().global_step() % 3, 0) << "epochs are done to their end";
        EXPECT_LE(trainer.context().global_step(), 6);
      });
  run({}, 1, [](auto& trainer, const Timer& timer) {
    EXPECT_EQ(trainer.context().global_step(), 3);
    EXPECT_FALSE(timer.time_remaining().has_value());
  });
  run({.duration = "00:00:00:00", .verbose = false}, 3, [](auto& trainer, const Timer&) {
    EXPECT_EQ(trainer.context().global_step(), fixture()["timer"]["steps_without_time"]);
  });
  Timer late{.duration = milliseconds(1500), .verbose = false};
  late.load_state_dict(State().set("time_elapsed", State().set("train", 2.0)));
  EXPECT_EQ(late.time_elapsed(), 2);
  run(late, 3, [](auto& trainer, const Timer& timer) {
    EXPECT_EQ(trainer.context().global_step(), 0) << "the time before the checkpoint counts";
    EXPECT_GE(timer.time_elapsed(), 2);
    auto keys = timer.state_dict().get<State>("time_elapsed").keys();
    std::sort(keys.begin(), keys.end());
    EXPECT_EQ(Json(keys), fixture()["timer"]["keys"]);
  });
}

// ------------------------------------------------------------------------------------------------ exceptions

struct Breaks : Model {
  at::Tensor training_step(auto& ctx, const std::tuple<at::Tensor, at::Tensor>& batch) {
    if (ctx.global_step() == break_at) {
      if (by_signal)
        std::raise(SIGINT);
      else
        throw std::runtime_error("broken");
    }
    return at::mse_loss(forward(std::get<0>(batch)), std::get<1>(batch));
  }
  std::int64_t break_at = -1;
  bool by_signal = false;
};

Options interruptible(std::int64_t epochs) {
  Options o = options({}, epochs);
  o.exit_on_interrupt = false;
  return o;
}

TEST(OnExceptionCheckpoint, SavesAndResumes) {
  const TemporaryFolder folder;
  auto train = loader();
  const auto make = [&](std::int64_t break_at, bool by_signal, std::int64_t epochs) {
    auto module = std::make_shared<Breaks>();
    module->break_at = break_at, module->by_signal = by_signal;
    return Trainer{module,
                   MSE{},
                   SGD{.lr = 0.1},
                   none,
                   Identity{},
                   callbacks(OnExceptionCheckpoint{.dirpath = folder.path / "made", .filename = "last"}),
                   interruptible(epochs),
                   barebones};
  };
  const auto file = folder.path / "made" / "last.ckpt";
  {
    auto trainer = make(4, false, 3);
    EXPECT_EQ(error_of([&] { trainer.fit(train); }), "broken");
    EXPECT_TRUE(std::filesystem::exists(file));
    trainer.test(train);
    EXPECT_TRUE(std::filesystem::exists(file)) << "only a fit that is done removes it";
  }
  {
    auto trainer = make(-1, false, 3);
    trainer.load(file);
    EXPECT_EQ(trainer.context().global_step(), 4);
    trainer.fit(train);
    EXPECT_FALSE(std::filesystem::exists(file));
  }
  {
    auto trainer = make(1, true, 3);
    trainer.fit(train);
    EXPECT_TRUE(trainer.interrupted());
    EXPECT_TRUE(std::filesystem::exists(file)) << "Ctrl-C is an exception, too";
  }
  Trainer wrong{Model{},        MSE{},      SGD{.lr = 0.1},
                none,           Identity{}, callbacks(OnExceptionCheckpoint{}),
                options({}, 1), barebones};
  EXPECT_EQ(error_of([&] { wrong.fit(train); }),
            "OnExceptionCheckpoint::dirpath is empty, expected a folder");
}

TEST(FailOnInterrupt, MakesCtrlCAnError) {
  const TemporaryFolder folder;
  auto train = loader();
  auto module = std::make_shared<Breaks>();
  module->break_at = 1, module->by_signal = true;
  Trainer trainer{module,         MSE{},
                  SGD{.lr = 0.1}, none,
                  Identity{},     callbacks(FailOnInterrupt{}, OnExceptionCheckpoint{.dirpath = folder.path}),
                  options({}, 3), barebones};
  EXPECT_EQ(error_of([&] { trainer.fit(train); }), "fit was interrupted by Ctrl-C (SIGINT)");
  EXPECT_TRUE(std::filesystem::exists(folder.path / "on_exception.ckpt")) << "the others are told as well";
  module->break_at = -1;
  EXPECT_EQ(error_of([&] { trainer.fit(train); }), "no error");
  EXPECT_EQ(trainer.context().epoch(), 3);
}

// ------------------------------------------------------------------------------------------------ the others

TEST(LambdaCallback, AnswersTheHooksItHas) {
  std::vector<std::string> calls;
  auto train = loader();
  auto callback = lambda_callback(
      on<hooks::on_train_start>(
          [&](Context& ctx) { calls.push_back("start " + std::to_string(ctx.epoch())); }),
      on<hooks::on_train_batch_end>([&](auto& ctx, const auto& outputs, auto&, std::int64_t batch_idx) {
        static_assert(requires { ctx.module().head; });
        calls.push_back(std::to_string(batch_idx) + (outputs.loss.defined() ? " loss" : ""));
      }),
      on<hooks::teardown>([&] { calls.push_back("teardown"); }));
  using Callback = decltype(callback);
  static_assert(answers<hooks::on_train_start, Callback> && answers<hooks::teardown, Callback>);
  static_assert(!answers<hooks::on_train_end, Callback>, "what is not given is not there");
  Trainer trainer{Model{},        MSE{},    SGD{.lr = 0.1}, none, Identity{}, callbacks(callback),
                  options({}, 1), barebones};
  trainer.fit(train);
  EXPECT_EQ(calls, (std::vector<std::string>{"start 0", "0 loss", "1 loss", "2 loss", "teardown"}));
}

TEST(Throughput, EqualsLightnings) {
  for (const Json& run : fixture()["throughput"]) {
    const Json& given = run["options"];
    Throughput meter({.window_size = given["window_size"],
                      .available_flops = given.value("available_flops", 0.0),
                      .separator = given.value("separator", "/")});
    for (const Json& row : run["rows"]) {
      const Json& u = row["update"];
      meter.update(u["time"], u["batches"], u["samples"],
                   u.contains("lengths") ? std::optional<std::int64_t>(u["lengths"]) : std::nullopt,
                   u.contains("flops") ? std::optional<double>(u["flops"]) : std::nullopt);
      Json found = Json::object();
      for (const Metric& metric : meter.compute()) found[metric.name] = metric.value;
      expect_rows({{0, found}}, {{0, row["metrics"]}}, given.dump());
    }
  }
  EXPECT_EQ(error_of([] { Throughput({.window_size = 1}); }),
            "ThroughputOptions::window_size is 1, expected at least 2");
  Throughput meter;
  EXPECT_EQ(error_of([&] { meter.update(1, 2, 1); }), "Throughput: 1 samples in 2 batches");
}

TEST(ThroughputMonitor, LogsWhereLightningDoes) {
  Json rows = Json::array();
  auto train = loader(), val = loader();
  const auto length = [](const std::tuple<at::Tensor, at::Tensor>& batch) {
    return std::get<0>(batch).numel();
  };
  Trainer trainer{Model{},
                  MSE{},
                  SGD{.lr = 0.1},
                  none,
                  Identity{},
                  callbacks(ThroughputMonitor{{.window_size = 2}, None{}, length}),
                  options({{"accumulate_grad_batches", 2}, {"log_every_n_steps", 2}}, 2),
                  recorded(rows)};
  trainer.fit(train, val);
  expect_rows(rows, fixture()["throughput_names"], "throughput");
  EXPECT_GT(rows[0][1]["train/device/samples_per_sec"], 0);
}

TEST(DeviceStatsMonitor, LogsWhereLightningDoes) {
  Json rows = Json::array(), names = Json::array();
  auto train = loader(), val = loader();
  Trainer trainer{Model{},
                  MSE{},
                  SGD{.lr = 0.1},
                  none,
                  Identity{},
                  callbacks(DeviceStatsMonitor{}),
                  options({{"log_every_n_steps", 2}}, 2),
                  recorded(rows)};
  trainer.fit(train, val);
  for (const Json& row : rows) {
    std::vector<std::string> keys;
    for (const auto& [name, value] : row[1].items()) {
      keys.push_back(name);
      EXPECT_GE(value.get<double>(), 0) << name;
      EXPECT_LE(value.get<double>(), 100) << name;
      EXPECT_TRUE(value > 0 || !name.ends_with("vm_percent")) << name;
    }
    names.push_back({row[0], keys});
  }
  EXPECT_EQ(names, fixture()["device_stats"]);
  rows.clear();
  Trainer without{Model{},        MSE{},         SGD{.lr = 0.1},
                  none,           Identity{},    callbacks(DeviceStatsMonitor{.cpu_stats = false}),
                  options({}, 1), recorded(rows)};
  without.fit(train);
  EXPECT_TRUE(rows.empty());
}

TEST(CpuStats, SeesABusyProcessor) {
  CpuStats stats;
  EXPECT_EQ(stats.read().at("cpu_percent"), 0);
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
  while (std::chrono::steady_clock::now() < until) {
  }
  EXPECT_GT(stats.read().at("cpu_percent"), 0);
}

TEST(TimeProfiler, MeasuresEpochsAndTheirParts) {
  Json rows = Json::array();
  auto train = loader(), val = loader();
  Trainer trainer{Slow{},         MSE{},         SGD{.lr = 0.1},
                  none,           Identity{},    callbacks(TimeProfiler{.all_keys = true}),
                  options({}, 2), recorded(rows)};
  testing::internal::CaptureStdout();
  trainer.fit(train, val);
  const std::string table = testing::internal::GetCapturedStdout();
  ASSERT_EQ(rows.size(), 2u);
  const Json& row = rows[1][1];
  const auto time = [&](const char* name) { return row[std::string("TimeProfiler/") + name].get<double>(); };
  EXPECT_EQ(row.size(), 10u) << row;
  EXPECT_GE(time("train batch"), 0.01) << "a batch sleeps for 10 ms";
  EXPECT_GE(time("train epoch"), 3 * time("train batch"));
  EXPECT_NEAR(time("total train downtime"), time("train epoch") - 3 * time("train batch"), 1e-12);
  EXPECT_NEAR(time("avg train downtime"), time("total train downtime") / 3, 1e-12);
  EXPECT_NEAR(time("total val downtime"), time("validation epoch") - 3 * time("validation batch"), 1e-12);
  EXPECT_GT(time("backward"), 0);
  EXPECT_LT(time("backward") + time("optimizer step"), time("train batch") - 0.01)
      << "they are parts of it, without the sleep";
  EXPECT_NE(table.find("optimizer step"), std::string::npos) << table;
  rows.clear();
  Trainer some{Model{},        MSE{},
               SGD{.lr = 0.1}, none,
               Identity{},     callbacks(TimeProfiler{.keys = {"backward"}, .print_table = false}),
               options({}, 1), recorded(rows)};
  some.fit(train);
  EXPECT_EQ(rows[0][1].size(), 4u) << rows;
  std::get<TimeProfiler>(some.context().callbacks()).keys = {"forward"};
  EXPECT_EQ(error_of([&] { some.fit(train); }),
            "TimeProfiler::keys has 'forward', expected backward, optimizer step, total train downtime or "
            "total val downtime");
}

TEST(PredictionWriter, GetsWhatPredictGives) {
  auto data = loader();
  std::vector<std::int64_t> batches;
  std::vector<at::Tensor> all;
  const auto by_batch = [&](auto&, const at::Tensor& prediction, const auto&, std::int64_t batch_idx,
                            std::int64_t) {
    EXPECT_EQ(prediction.size(0), 4);
    batches.push_back(batch_idx);
  };
  const auto at_end = [&](auto&, const std::vector<at::Tensor>& predictions) { all = predictions; };
  Trainer trainer{
      Model{},        MSE{},
      none,           none,
      Identity{},     callbacks(write_predictions<WriteInterval::batch_and_epoch>(by_batch, at_end)),
      options({}, 1), barebones};
  const auto returned = trainer.predict(data);
  EXPECT_EQ(batches, (std::vector<std::int64_t>{0, 1, 2}));
  ASSERT_EQ(all.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(all[i].equal(returned[i]));
  all.clear();
  Trainer other{Model{},        MSE{},      none,
                none,           Identity{}, callbacks(write_predictions<WriteInterval::epoch>(at_end)),
                options({}, 1), barebones};
  other.predict(data);
  EXPECT_EQ(all.size(), 3u);
}

}  // namespace
