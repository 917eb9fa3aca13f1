// Tests the names of parameter groups: what LearningRateMonitor logs and state dicts have (fixtures/lr_names).
#include "../testing.hpp"

#include <fulmen/callbacks/learning_rate_monitor.hpp>
#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using Json = nlohmann::json;

struct Net : torch::nn::Module {
  torch::nn::Linear body{register_module("body", torch::nn::Linear(2, 2))};
  torch::nn::Linear head{register_module("head", torch::nn::Linear(2, 1))};
  at::Tensor training_step(auto&, const at::Tensor& x) { return head(body(x)).sum(); }
};

struct Names {
  std::set<std::string>* logged;
  void log_metrics(Context&, const Metrics& metrics, std::int64_t) {
    for (const Metric& metric : metrics) logged->insert(metric.name);
  }
};

template <class Optimizer>
void compare(const Json& run, Optimizer optimizer) {
  std::set<std::string> logged;
  Trainer trainer{Net{},
                  none,
                  optimizer,
                  none,
                  Identity{},
                  callbacks(LearningRateMonitor{.log_momentum = true, .log_weight_decay = true}),
                  {.max_epochs = 1, .log_every_n_steps = 1},
                  Runtime<std::tuple<Names>>{.device = at::kCPU, .loggers = Names{&logged}, .defaults = {}}};
  const std::vector<at::Tensor> batches(2, torch::ones({1, 2}));
  const std::string message = error_of([&] { trainer.fit(batches); });
  if (run.contains("error")) {
    EXPECT_EQ(run["error"], "MisconfigurationException");
    EXPECT_EQ(message, "LearningRateMonitor: lr-AdamW has several parameter groups called '" +
                           run["names"][1].get<std::string>() + "'");
    return;
  }
  EXPECT_EQ(message, "no error");
  EXPECT_EQ(logged, run["logged"].get<std::set<std::string>>());
  std::set<std::string> lrs;
  for (const auto& [name, values] : std::get<LearningRateMonitor>(trainer.context().callbacks()).lrs) lrs.insert(name);
  EXPECT_EQ(lrs, run["lrs"].get<std::set<std::string>>());
  Json saved = Json::array();
  const State state = trainer.context().optimizer().state_dict();
  for (const State& group : state.get<std::vector<State>>("param_groups"))
    saved.push_back(group.contains("name") ? Json(group.get<std::string>("name")) : Json(nullptr));
  EXPECT_EQ(saved, run["saved"]);
  trainer.context().optimizer().load_state_dict(state);
  const State again = trainer.context().optimizer().state_dict();
  EXPECT_EQ(again.get<std::vector<State>>("param_groups")[0].contains("name"), !run["saved"][0].is_null());
}

TEST(LearningRateMonitor, CallsGroupsAsLightningDoes) {
  const Json all = Json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/lr_names/lr_names.json"));
  ASSERT_EQ(all["runs"].size(), 7u);
  const auto in_head = [](std::string_view name) { return name.starts_with("head."); };
  const AdamW adamw{.lr = 0.25};
  for (const Json& run : all["runs"]) {
    SCOPED_TRACE(run["names"].dump());
    const auto name = [&](std::size_t i) { return run["names"][i].is_null() ? "" : run["names"][i].get<std::string>(); };
    if (run["names"].size() == 1)
      compare(run, param_groups(name(0), adamw));
    else
      compare(run, param_groups(name(0), adamw, group(name(1), in_head, adamw)));
  }
}

}  // namespace
