// Tests what becomes of logged values (loggers, the three dictionaries, returned values) against what
// Lightning made of the same ones (fixtures/lightning/orders.json, key "logging").
//
// Where fulmen differs on purpose:
// - the column "epoch" is no value: a logger asks ctx.epoch(). A value that a user calls "epoch" is a value
// like others.
// - with several loaders all values of an evaluation come at its end; Lightning shows those of the first
// loader to
//   callbacks while the second one runs (two_val_loaders).
// - validate and test return one list; names tell the loaders apart. Lightning returns a dictionary a loader.
// - a metric object that was only updated has a value for the epoch (Lightning: none, "object" of the
// fixture).
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <fstream>
#include <fulmen/fulmen.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using nlohmann::json;
using Values = std::map<std::string, double>;

const json& fixture() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/lightning/orders.json"));
  return all;
}

/// Rounded as the fixture is, where values had gone through float.
Values plain(const Metrics& metrics) {
  Values out;
  for (const fulmen::Metric& metric : metrics) {
    const bool fresh = out.emplace(metric.name, metric.value).second;
    EXPECT_TRUE(fresh) << metric.name << " is there twice";
  }
  return out;
}

struct Row {
  std::int64_t step, epoch;
  Values values;
};
struct Look {
  std::string at;
  std::int64_t epoch, global_step;
  Values callback, progress_bar, logged;
};
struct Notes {
  std::vector<Row> rows;
  std::vector<Look> seen;
};

struct RecordingLogger {
  Notes* notes;
  void log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step) {
    notes->rows.push_back({step, ctx.epoch(), plain(metrics)});
  }
};

struct Watch {
  Notes* notes;
  void look(auto& ctx, const char* at) {
    if (ctx.sanity_checking()) return;
    MetricStore& m = ctx.metrics();
    notes->seen.push_back({at, ctx.epoch(), ctx.global_step(), plain(m.callback_metrics()),
                           plain(m.progress_bar_metrics()), plain(m.logged_metrics())});
  }
  void on_train_batch_end(Context& ctx) { look(ctx, "on_train_batch_end"); }
  void on_validation_batch_end(Context& ctx) { look(ctx, "on_validation_batch_end"); }
  void on_validation_epoch_end(Context& ctx) { look(ctx, "on_validation_epoch_end"); }
  void on_validation_end(Context& ctx) { look(ctx, "on_validation_end"); }
  void on_train_epoch_end(Context& ctx) { look(ctx, "on_train_epoch_end"); }
  void on_train_end(Context& ctx) { look(ctx, "on_train_end"); }
  void on_test_end(Context& ctx) { look(ctx, "on_test_end"); }
};

/// Logs the same numbers in every way: in training 10 epoch + batch_idx + 1, in validation 100 more.
struct LoggingSteps : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
  bool special = false;

  at::Tensor training_step(Context& ctx, const at::Tensor& batch, std::int64_t batch_idx) {
    const double v = 10.0 * static_cast<double>(ctx.epoch()) + static_cast<double>(batch_idx) + 1;
    ctx.log("default", v);
    ctx.log("by_step", v, {.on_step = true, .on_epoch = false});
    ctx.log("by_epoch", v, {.on_step = false, .on_epoch = true});
    ctx.log("both", v, {.on_step = true, .on_epoch = true});
    ctx.log("bar", v, {.prog_bar = true});
    ctx.log("bar_both", v, {.prog_bar = true, .on_step = true, .on_epoch = true});
    ctx.log("bar_only", v, {.prog_bar = true, .logger = false, .on_step = true, .on_epoch = true});
    ctx.log("no_logger", v, {.logger = false, .on_epoch = true});
    ctx.log("sum", v, {.on_step = true, .on_epoch = true, .reduce = Reduce::sum});
    ctx.log("min", v, {.on_step = true, .on_epoch = true, .reduce = Reduce::min});
    ctx.log("max", v, {.on_step = true, .on_epoch = true, .reduce = Reduce::max});
    ctx.log("mean", v, {.on_step = true, .on_epoch = true, .reduce = Reduce::mean});
    ctx.log("weighted", v, {.on_step = false, .on_epoch = true, .batch_size = batch_idx + 1});
    ctx.log("integer", batch_idx + 1, {.on_step = true, .on_epoch = true});
    ctx.log_dict({{"dict_a", v}, {"dict_b", 2 * v}});
    // A metric called with each value, of which the fixture logs the value and the mean.
    ctx.log("object_both", v, {.on_step = true, .on_epoch = true, .batch_size = 1});
    if (batch_idx == 1) ctx.log("second_only", v, {.on_step = true, .on_epoch = true});
    if (special) {
      ctx.log("step", 100 * v);
      ctx.log("epoch", 200 * v);
    }
    return layer(batch).square().mean();
  }
  void validation_step(Context& ctx, const at::Tensor&, std::int64_t batch_idx) {
    const double v = 100.0 + 10.0 * static_cast<double>(ctx.epoch()) + static_cast<double>(batch_idx) + 1;
    ctx.log("val_default", v);
    ctx.log("val_both", v, {.prog_bar = true, .on_step = true, .on_epoch = true});
    ctx.log("val_step", v, {.on_step = true, .on_epoch = false});
    if (ctx.dataloader_idx() == 0) ctx.log("val_shared", v, {.add_dataloader_idx = false});
    ctx.log("default", v + 1000);
  }
  void test_step(Context& ctx, const at::Tensor&, std::int64_t batch_idx, std::int64_t dataloader_idx) {
    const double v = 200.0 + 10.0 * static_cast<double>(dataloader_idx) + static_cast<double>(batch_idx) + 1;
    ctx.log("test_default", v);
    ctx.log("test_both", v, {.on_step = true, .on_epoch = true});
  }
  void on_train_epoch_start(Context& ctx) {
    ctx.log("at_epoch_start", 1.0 + static_cast<double>(ctx.epoch()));
  }
  void on_train_epoch_end(Context& ctx) { ctx.log("at_epoch_end", 5.0 + static_cast<double>(ctx.epoch())); }
  void on_validation_epoch_end(Context& ctx) {
    ctx.log("at_val_epoch_end", 7.0 + static_cast<double>(ctx.epoch()));
  }
  void on_train_batch_start(Context& ctx, const at::Tensor&, std::int64_t batch_idx) {
    ctx.log("at_batch_start", 1.0 + static_cast<double>(batch_idx));
  }
};

std::vector<at::Tensor> batches(std::initializer_list<std::int64_t> sizes) {
  std::vector<at::Tensor> out;
  for (const std::int64_t size : sizes) out.push_back(at::ones({size, 2}));
  return out;
}

void expect_same(const Values& found, const json& expected, const std::string& where) {
  Values want = expected.get<Values>();
  for (const auto& [name, value] : want) {
    if (!found.contains(name))
      ADD_FAILURE() << where << ": " << name << " is missing";
    else
      EXPECT_NEAR(found.at(name), value, 1e-6 * std::max(1.0, std::abs(value))) << where << ": " << name;
  }
  for (const auto& [name, value] : found) {
    if (!want.contains(name)) ADD_FAILURE() << where << ": " << name << " = " << value << " is too much";
  }
}

/// @param skip calls of the callback that are not compared
void compare(const char* run, const Notes& notes, const std::string& skip = {}) {
  SCOPED_TRACE(run);
  const json& expected = fixture()["logging"].at(run);
  const bool special = std::string(run) == "special_names";
  ASSERT_EQ(notes.rows.size(), expected["logger"].size());
  for (std::size_t i = 0; i < notes.rows.size(); ++i) {
    const Row& row = notes.rows[i];
    json values = expected["logger"][i][1];
    const std::string where = "call " + std::to_string(i) + " of the logger";
    EXPECT_EQ(row.step, expected["logger"][i][0].get<std::int64_t>()) << where;
    if (values.contains("epoch") && !row.values.contains("epoch")) {
      EXPECT_EQ(static_cast<double>(row.epoch), values["epoch"].get<double>()) << where;
      values.erase("epoch");
    }
    EXPECT_TRUE(special || !row.values.contains("epoch"));
    expect_same(row.values, values, where);
  }
  ASSERT_EQ(notes.seen.size(), expected["seen"].size());
  for (std::size_t i = 0; i < notes.seen.size(); ++i) {
    const Look& look = notes.seen[i];
    const json& want = expected["seen"][i];
    const std::string where = std::to_string(i) + ", " + look.at;
    EXPECT_EQ(look.at, want["at"].get<std::string>());
    EXPECT_EQ(look.epoch, want["epoch"].get<std::int64_t>()) << where;
    EXPECT_EQ(look.global_step, want["global_step"].get<std::int64_t>()) << where;
    if (look.at == skip) continue;
    expect_same(look.callback, want["callback_metrics"], where + ", callback_metrics");
    expect_same(look.progress_bar, want["progress_bar_metrics"], where + ", progress_bar_metrics");
    expect_same(look.logged, want["logged_metrics"], where + ", logged_metrics");
  }
}

/// What was returned, against the dictionaries of all loaders together.
void compare_returned(const char* run, const Metrics& found) {
  json all = json::object();
  for (const json& each : fixture()["logging"].at(run)["returned"]) all.update(each);
  expect_same(plain(found), all, std::string(run) + ", returned");
}

auto trainer_of(Notes& notes, Options options, bool special = false) {
  options.num_sanity_val_steps = 1;
  auto module = std::make_shared<LoggingSteps>();
  module->special = special;
  Runtime<std::tuple<RecordingLogger>> runtime{.loggers = {RecordingLogger{&notes}}};
  return Trainer{module, none, SGD{.lr = 0}, none, Identity{}, callbacks(Watch{&notes}), std::move(options),
                 runtime};
}

TEST(Logging, EveryStep) {
  Notes notes;
  auto trainer = trainer_of(notes, {.max_epochs = 2, .log_every_n_steps = 1});
  trainer.fit(batches({2, 2, 1}), batches({2, 1}));
  compare("every_step", notes);
}

TEST(Logging, EveryTwoSteps) {
  Notes notes;
  auto trainer = trainer_of(notes, {.max_epochs = 2, .log_every_n_steps = 2});
  trainer.fit(batches({2, 2, 1}), batches({2, 1}));
  compare("every_2_steps", notes);
}

TEST(Logging, Accumulation) {
  Notes notes;
  auto trainer = trainer_of(notes, {.max_epochs = 1, .accumulate_grad_batches = 2, .log_every_n_steps = 1});
  trainer.fit(batches({2, 2, 1}), batches({2, 1}));
  compare("accumulate", notes);
}

TEST(Logging, TwoValidationLoaders) {
  Notes notes;
  auto trainer = trainer_of(notes, {.max_epochs = 1, .log_every_n_steps = 1});
  trainer.fit(batches({2}), std::tuple(batches({2, 1}), batches({2, 1})));
  compare("two_val_loaders", notes, "on_validation_batch_end");
}

TEST(Logging, ValuesCalledStepAndEpoch) {
  Notes notes;
  auto trainer = trainer_of(notes, {.max_epochs = 1, .log_every_n_steps = 1}, /*special=*/true);
  trainer.fit(batches({2, 2, 1}), batches({2, 1}));
  compare("special_names", notes);
}

TEST(Logging, Validate) {
  Notes notes;
  auto trainer = trainer_of(notes, {});
  const Metrics returned = trainer.validate(batches({2, 1}));
  compare("validate", notes);
  compare_returned("validate", returned);
}

TEST(Logging, TestWithTwoLoaders) {
  Notes notes;
  auto trainer = trainer_of(notes, {});
  const Metrics returned = trainer.test(std::tuple(batches({2, 1}), batches({2, 1})));
  compare("test", notes);
  compare_returned("test", returned);
}

/// Logs in one hook where nothing may be logged.
struct LogsWhereItMustNot {
  std::string hook;
  void log_in(Context& ctx, const char* name) const {
    if (hook == name) ctx.log("x", 1.0);
  }
  void setup(Context& ctx) { log_in(ctx, "setup"); }
  void on_fit_start(Context& ctx) { log_in(ctx, "on_fit_start"); }
  void on_fit_end(Context& ctx) { log_in(ctx, "on_fit_end"); }
  void teardown(Context& ctx) { log_in(ctx, "teardown"); }
  void on_predict_start(Context& ctx) { log_in(ctx, "on_predict_start"); }
  void on_train_start(Context& ctx) { log_in(ctx, "on_train_start"); }
};

struct Net : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 1))};
  at::Tensor training_step(auto&, const at::Tensor& batch) { return fc(batch).mean(); }
  at::Tensor predict_step(auto&, const at::Tensor& batch) { return fc(batch); }
};

TEST(Logging, OutsideOfEpochsIsAnError) {
  for (const char* hook :
       {"setup", "on_fit_start", "on_fit_end", "teardown", "on_predict_start", "on_train_start"}) {
    const bool allowed = !fixture()["log_rules"].value(hook, json()).is_null();
    Trainer trainer{std::make_shared<Net>(),
                    none,
                    SGD{.lr = 0},
                    none,
                    Identity{},
                    callbacks(LogsWhereItMustNot{hook}),
                    {.max_epochs = 1},
                    barebones};
    std::string error;
    try {
      trainer.fit(batches({2}));
      trainer.predict(batches({2}));
    } catch (const std::logic_error& e) {
      error = e.what();
    }
    EXPECT_EQ(error.empty(), allowed) << hook << ": " << error;
    if (!allowed) {
      EXPECT_NE(error.find("log(\"x\")"), std::string::npos) << error;
    }
  }
}

struct LogsEarly {
  void on_train_start(Context& ctx) { ctx.log("early", 3.0); }
};

TEST(Logging, ValuesOfOnTrainStartAreTheFirstEpochs) {
  Notes notes;
  Trainer trainer{std::make_shared<Net>(),
                  none,
                  SGD{.lr = 0},
                  none,
                  Identity{},
                  callbacks(LogsEarly{}),
                  {.max_epochs = 2},
                  Runtime<std::tuple<RecordingLogger>>{.loggers = {RecordingLogger{&notes}}}};
  trainer.fit(batches({2}));
  ASSERT_EQ(notes.rows.size(), 1u);
  EXPECT_EQ(notes.rows[0].epoch, 0);
  EXPECT_EQ(notes.rows[0].values, (Values{{"early", 3}}));
}

/// Counts what it is fed and how often it was reset.
struct Sum {
  double value = 0;
  int* resets;
  double compute() const { return value; }
  void reset() { value = 0, ++*resets; }
};

struct WithMetric : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 1))};
  int train_resets = 0, val_resets = 0;
  Sum train_sum{0, &train_resets}, val_sum{0, &val_resets};
  Accuracy accuracy;
  double seen_in_hook = -1;

  at::Tensor training_step(Context& ctx, const at::Tensor& batch) {
    train_sum.value += 1;
    ctx.log("train_sum", train_sum);
    return fc(batch).mean();
  }
  void validation_step(Context& ctx, const at::Tensor& batch, std::int64_t batch_idx) {
    val_sum.value += static_cast<double>(batch.size(0));
    ctx.log("val_sum", val_sum, {.prog_bar = true});
    accuracy.update(at::zeros({batch.size(0)}, at::kLong), at::full({batch.size(0)}, batch_idx, at::kLong));
    ctx.log("val_accuracy", accuracy);
  }
  void on_validation_epoch_end(Context&) { seen_in_hook = val_sum.compute(); }
};

TEST(Logging, MetricObjectsAreComputedAndResetAtTheEpochsEnd) {
  Notes notes;
  Trainer trainer{std::make_shared<WithMetric>(),
                  none,
                  SGD{.lr = 0},
                  none,
                  Identity{},
                  callbacks(),
                  {.max_epochs = 2, .num_sanity_val_steps = 1, .log_every_n_steps = 1},
                  Runtime<std::tuple<RecordingLogger>>{.loggers = {RecordingLogger{&notes}}}};
  static_assert(MetricWithState<Accuracy>);
  trainer.fit(batches({2, 2, 2}), batches({3, 1}));
  ASSERT_EQ(notes.rows.size(), 4u);
  for (const std::size_t epoch : {0u, 1u}) {
    EXPECT_EQ(notes.rows[2 * epoch].values, (Values{{"val_sum", 4}, {"val_accuracy", 0.75}}));
    EXPECT_EQ(notes.rows[2 * epoch + 1].values, (Values{{"train_sum", 3}}));
  }
  EXPECT_EQ(trainer.module().train_resets, 2);
  EXPECT_EQ(trainer.module().val_resets, 3) << "with the sanity check";
  EXPECT_EQ(trainer.module().seen_in_hook, 4) << "reset after the hooks at the epoch's end";
  EXPECT_DOUBLE_EQ(trainer.context().metrics().find("val_accuracy").value(), 0.75);
}

TEST(Logging, AMetricObjectHasNoValueForAStep) {
  MetricStore store;
  int resets = 0;
  Sum sum{1, &resets};
  EXPECT_THROW(store.log_object("x", sum, {.on_step = true}, {Phase::train, true, 1}), std::invalid_argument);
}

}  // namespace
