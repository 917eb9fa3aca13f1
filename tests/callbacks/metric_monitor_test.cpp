// Tests MetricMonitor: what is logged and the tables are those of Thunder's (fixtures/metric_monitor).
#include "../testing.hpp"

#include <fulmen/callbacks/metric_monitor.hpp>
#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

namespace {

using namespace fulmen;
using Json = nlohmann::json;
namespace fs = std::filesystem;

const Json& fixture() {
  static const Json all =
      Json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/metric_monitor/metric_monitor.json"));
  return all;
}

at::Tensor cases(const char* key) {
  return torch::tensor(fixture()[key].get<std::vector<double>>(), at::kDouble).view({7, 2, 3});
}

TensorLoader<2> loader(std::int64_t batch_size) {
  return {{cases("predictions"), cases("targets")}, {.batch_size = batch_size}};
}

using Batch = std::tuple<at::Tensor, at::Tensor>;

template <class Prediction, class Targets>
struct Outputs {
  Prediction prediction;
  Targets targets;
};

/// Gives back the predictions and targets in the batch.
struct Model : torch::nn::Module {
  auto validation_step(auto&, const Batch& batch) {
    return Outputs<at::Tensor, at::Tensor>{std::get<0>(batch), std::get<1>(batch)};
  }
  auto test_step(auto& ctx, const Batch& batch) { return validation_step(ctx, batch); }
};

/// The same with two heads.
struct Heads : torch::nn::Module {
  auto validation_step(auto&, const Batch& batch) {
    const auto& [x, y] = batch;
    return Outputs<std::pair<at::Tensor, at::Tensor>, std::vector<at::Tensor>>{{x, 1 - x}, {y, y}};
  }
  auto test_step(auto& ctx, const Batch& batch) { return validation_step(ctx, batch); }
};

// The functions of make.py.
at::Tensor mae(const at::Tensor& y, const at::Tensor& x) { return (y - x).abs().mean(); }
double worst(const at::Tensor& y, const at::Tensor& x) { return (y - x).abs().max().item<double>(); }
double dice(const at::Tensor& y, const at::Tensor& x) {
  return 2 * y.bitwise_and(x).sum().item<double>() / (y.sum() + x.sum()).item<double>();
}
at::Tensor rmse(const at::Tensor& y, const at::Tensor& x) { return (y - x).square().mean().sqrt(); }
auto threshold(const at::Tensor& y, const at::Tensor& x) { return std::pair(y > 0.5, x > 0.5); }
auto totals(const at::Tensor& y, const at::Tensor& x) { return std::tuple(y.sum().item<double>(), x.mean()); }
double spread(CaseValues values) {
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return *most - *least;
}
double both_mae(const std::vector<at::Tensor>& y, const std::pair<at::Tensor, at::Tensor>& x) {
  return ((y[0] - x.first).abs().mean() + (y[1] - x.second).abs().mean()).item<double>() / 2;
}
at::Tensor both_rmse(const at::Tensor& y1, const at::Tensor& y2, const at::Tensor& x1, const at::Tensor& x2) {
  return rmse(torch::stack({y1, y2}), torch::stack({x1, x2}));
}

Options options(const fs::path& folder) {
  return {.max_epochs = 1,
          .enable_progress_bar = false,
          .enable_model_summary = false,
          .enable_checkpointing = false,
          .default_root_dir = folder};
}

std::string text_of(const fs::path& path) {
  std::ostringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

void expect_logged(const Metrics& found, const Json& expected) {
  EXPECT_EQ(found.size(), expected.size()) << found.names();
  for (const auto& [name, value] : expected.items()) {
    ASSERT_TRUE(found.find(name)) << name << " is not in " << found.names();
    EXPECT_NEAR(*found.find(name), value.get<double>(), 1e-14) << name;
  }
}

template <class M, class Monitor>
void compare(const Json& run, M module, Monitor monitor) {
  const TemporaryFolder folder;
  Trainer trainer{std::move(module), none, none, none, Identity{}, callbacks(std::move(monitor)), options(folder.path)};
  const auto sizes = run["batch_sizes"].get<std::vector<std::int64_t>>();
  const auto both = [&](auto loaders) {
    expect_logged(trainer.validate(loaders), run["logged"]["val"]);
    expect_logged(trainer.test(loaders), run["logged"]["test"]);
  };
  if (sizes.size() == 1)
    both(loader(sizes[0]));
  else
    both(std::tuple{loader(sizes.at(0)), loader(sizes.at(1))});
  const fs::path dir = trainer.context().run_dir();
  std::size_t tables = 0;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    const std::string name = fs::relative(entry.path(), dir).string();
    if (name.find("dataloader_") == std::string::npos) continue;
    ++tables;
    ASSERT_TRUE(run["tables"].contains(name)) << name;
    std::string expected = run["tables"][name];
    if (run["metrics"] == "aggregates" && run["loaders"] == "single") {  // see fixtures/metric_monitor/README.md
      for (std::size_t at; (at = expected.find("_0,")) != std::string::npos;) expected.erase(at, 2);
    }
    EXPECT_EQ(text_of(entry.path()), expected) << name;
  }
  EXPECT_EQ(tables, run["tables"].size());
}

TEST(MetricMonitor, LogsWhatThundersDoes) {
  std::map<std::string, int> seen;
  for (const Json& run : fixture()["runs"]) {
    const std::string metrics = run["metrics"];
    SCOPED_TRACE(metrics + " " + run["loaders"].get<std::string>());
    ++seen[metrics];
    if (metrics == "plain") {
      compare(run, Model{},
              MetricMonitor{single_metrics(named("mae", mae)), group_metrics(named("rmse", rmse))});
    } else if (metrics == "aggregates") {
      compare(run, Model{},
              MetricMonitor{single_metrics(named("mae", mae), named("worst", worst)),
                            aggregate_fn("std", "median", "min", "max", named("spread", spread)),
                            log_individual_metrics});
    } else if (metrics == "preprocessed") {
      compare(run, Model{},
              MetricMonitor{single_metrics(threshold, named("dice", dice)), single_metrics(named("mae", mae)),
                            group_metrics(totals, named("rmse_of_totals", rmse)),
                            group_metrics(named("rmse", rmse)), aggregate_fn("std"), log_individual_metrics});
    } else if (metrics == "same_name") {
      compare(run, Model{},
              MetricMonitor{single_metrics(named("rmse", rmse), named("mae", mae)),
                            group_metrics(named("rmse", rmse))});
    } else if (metrics == "heads") {
      compare(run, Heads{},
              MetricMonitor{single_metrics(named("mae", both_mae)), group_metrics(named("rmse", both_rmse))});
    } else {
      ADD_FAILURE() << "no metrics for this run";
    }
  }
  EXPECT_EQ(seen.size(), 5u);
}

TEST(MetricMonitor, TakesAWholeBatch) {
  const auto mae_of_each = [](const at::Tensor& y, const at::Tensor& x) { return (y - x).abs().mean({1, 2}); };
  const Json& run = fixture()["runs"][0];
  ASSERT_EQ(run["metrics"], "plain");
  compare(run, Model{},
          MetricMonitor{group_metrics(named("rmse", rmse)), single_metrics(named("mae", per_batch(mae_of_each)))});
}

/// Counts cases whose mean is above a half; without state_dict().
struct AboveHalf {
  static constexpr std::string_view name = "above_half";
  double count = 0;
  void update(const at::Tensor& prediction, const at::Tensor&) {
    count += prediction.mean({1, 2}).gt(0.5).sum().item<double>();
  }
  double compute() const { return count; }
  void reset() { count = 0; }
};

struct Kept {
  std::map<std::string, CaseTable>* tables;
  void log_metrics(Context&, const Metrics&, std::int64_t) {}
  void log_table(Context&, const std::string& name, const CaseTable& table) { (*tables)[name] = table; }
};

TEST(MetricMonitor, WritesTablesForChosenRunsAndGivesThemToLoggers) {
  const TemporaryFolder folder;
  std::map<std::string, CaseTable> tables;
  Trainer trainer{Model{},
                  none,
                  none,
                  none,
                  Identity{},
                  callbacks(MetricMonitor{AboveHalf{}, single_metrics(named("a,\"b\"", worst)),
                                          LogIndividualMetrics{.val = false}}),
                  options(folder.path),
                  Runtime<std::tuple<Kept>>{.device = at::kCPU, .loggers = Kept{&tables}, .defaults = {}}};
  auto data = loader(4);
  EXPECT_EQ(trainer.validate(data).at("val/above_half"), cases("predictions").mean({1, 2}).gt(0.5).sum().item<double>());
  EXPECT_TRUE(tables.empty());
  trainer.test(data);
  ASSERT_EQ(tables.size(), 1u);
  const CaseTable& table = tables.at("test/dataloader_0");
  EXPECT_EQ(table.rows, (std::vector<std::string>{"0_0", "0_1", "0_2", "0_3", "1_0", "1_1", "1_2"}));
  EXPECT_EQ(table.values.at(0).at(5), worst(cases("targets")[5], cases("predictions")[5]));
  const fs::path dir = trainer.context().run_dir();
  EXPECT_FALSE(fs::exists(dir / "val"));
  EXPECT_TRUE(text_of(dir / "test" / "dataloader_0.csv").starts_with(",\"a,\"\"b\"\"\"\n0_0,"));
}

/// Ends the first validation after its second batch.
struct StopsMidway : Model {
  bool stops = true;
  void on_validation_batch_end(Context& ctx) {
    if (stops && ctx.batch_idx() == 1) throw std::runtime_error("killed");
  }
};

/// A context outside a Trainer, in a validation.
struct Free : Context {
  Free() : Context(Options{}) { fulmen::detail::LoopAccess::phase(*this) = Phase::validation; }
  double at(const char* name) {
    metrics().end_epoch(phase());
    return metrics().find(name).value();
  }
};

TEST(MetricMonitor, GoesOnFromItsState) {
  const auto monitor = [] {
    return MetricMonitor{single_metrics(named("mae", mae)), group_metrics(totals, named("rmse", rmse)), AboveHalf{}};
  };
  const auto feed = [](auto& to, std::int64_t first, std::int64_t last) {
    Free ctx;
    for (std::int64_t i = first; i < last; ++i) {
      to.on_validation_batch_end(ctx, Outputs<at::Tensor, at::Tensor>{cases("predictions").narrow(0, i, 1),
                                                                      cases("targets").narrow(0, i, 1)});
    }
  };
  Free expected;
  auto whole = monitor();
  feed(whole, 0, 7);
  whole.on_validation_epoch_end(expected);
  const TemporaryFolder folder;
  for (const std::int64_t taken : {0, 1, 4, 7}) {
    auto before = monitor(), after = monitor();
    feed(before, 0, taken);
    checkpoint::write(folder.path / "state", before.state_dict());
    after.load_state_dict(State(checkpoint::read(folder.path / "state"), "MetricMonitor"));
    feed(after, taken, 7);
    Free found;
    after.on_validation_epoch_end(found);
    for (const char* name : {"val/mae", "val/rmse"}) EXPECT_EQ(found.at(name), expected.at(name)) << name << taken;
  }
  MetricMonitor other{group_metrics(named("rmse", rmse))};
  EXPECT_EQ(error_of([&] {
              auto one = monitor();
              feed(one, 0, 1);
              other.load_state_dict(one.state_dict());
            }),
            "state of MetricMonitor has 1 single metrics and 1 sets of group metrics, expected 0 and 1");
}

TEST(MetricMonitor, KeepsMetricsWithState) {
  const at::Tensor scores = cases("predictions").select(1, 0), classes = torch::arange(7).remainder(3);
  const auto feed = [&](auto& to, std::int64_t first, std::int64_t last) {
    Free ctx;
    to.on_test_batch_end(ctx, Outputs<at::Tensor, at::Tensor>{scores.narrow(0, first, last - first),
                                                              classes.narrow(0, first, last - first)});
  };
  for (const std::int64_t taken : {0, 3}) {
    MetricMonitor before{Accuracy{}}, after{Accuracy{}};
    if (taken > 0) feed(before, 0, taken);
    after.load_state_dict(before.state_dict());
    feed(after, taken, 7);
    Free ctx;
    after.on_test_epoch_end(ctx);
    EXPECT_EQ(ctx.at("test/accuracy"), scores.argmax(1).eq(classes).sum().item<double>() / 7);
  }
  EXPECT_EQ(MetricMonitor{Accuracy{}}.state_key(), "MetricMonitor");
}

TEST(MetricMonitor, ForgetsARunThatWasKilled) {
  const TemporaryFolder folder;
  auto module = std::make_shared<StopsMidway>();
  Trainer trainer{module, none, none, none, Identity{}, callbacks(MetricMonitor{single_metrics(named("mae", mae))}),
                  options(folder.path), barebones};
  auto data = loader(3);
  EXPECT_EQ(error_of([&] { trainer.validate(data); }), "killed");
  module->stops = false;
  EXPECT_EQ(trainer.validate(data).at("val/mae"), fixture()["runs"][0]["logged"]["val"]["val/mae"].get<double>());
}

TEST(MetricMonitor, SaysWhatIsWrong) {
  EXPECT_EQ(error_of([] { (void)aggregate_fn("mode"); }),
            "aggregate_fn: 'mode' is unknown, expected max, median, min, std, or a function by named(\"mode\", fn)");
  EXPECT_EQ(error_of([] { MetricMonitor{single_metrics(named("a", mae), named("a", worst))}; }),
            "MetricMonitor: several metrics are called 'a'");
  EXPECT_EQ(error_of([] { MetricMonitor{single_metrics(named("accuracy", mae)), Accuracy{}}; }),
            "MetricMonitor: several metrics are called 'accuracy'");
  EXPECT_EQ(error_of([] { MetricMonitor{single_metrics(named("", mae))}; }), "MetricMonitor: a metric's name is empty");
  const auto error = [](auto monitor, auto data) {
    const TemporaryFolder folder;
    Trainer trainer{Model{}, none, none, none, Identity{}, callbacks(monitor), options(folder.path), barebones};
    return error_of([&] { trainer.validate(data); });
  };
  using Batches = std::vector<Batch>;
  const at::Tensor three = torch::ones({3, 2}), two = torch::ones({2, 2}), wide = torch::ones({3, 4});
  EXPECT_EQ(error(MetricMonitor{single_metrics(named("mae", mae))}, Batches{{three, two}}),
            "MetricMonitor: the targets has 2 cases, expected 3 as the prediction");
  EXPECT_EQ(error(MetricMonitor{single_metrics(named("mae", mae))}, Batches{{torch::tensor(1.0), two}}),
            "MetricMonitor: the prediction of a batch has no dimensions, expected a tensor whose first dimension are "
            "the cases");
  const std::string shapes = "MetricMonitor: cases of a group metric have the shapes [2] and [4], expected one shape for "
                             "all: let a preprocessing make it";
  EXPECT_EQ(error(MetricMonitor{group_metrics(named("rmse", rmse))}, Batches{{three, three}, {wide, wide}}), shapes);
  EXPECT_EQ(error(MetricMonitor{single_metrics(named("all", per_batch(mae)))}, Batches{{three, three}}),
            "MetricMonitor: per_batch metric 'all' gave a tensor of shape [], expected a tensor with 3 values");
  EXPECT_EQ(error(MetricMonitor{group_metrics(named("four", both_rmse))}, Batches{{three, three}}),
            "MetricMonitor: the group metric 'four' cannot be called with 2 tensors");
}

}  // namespace
