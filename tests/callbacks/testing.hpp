// What the tests of callbacks share: what Lightning did (fixtures/callbacks), and the module and data that it
// did it with.
#pragma once

#include <fulmen/callbacks/lambda_callback.hpp>
#include <fulmen/fulmen.hpp>
#include <fulmen/schedule/decay.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <string>
#include <tuple>
#include <vector>

namespace callbacks_test {

using namespace fulmen;
using Json = nlohmann::json;

inline const Json& fixture() {
  static const Json all = Json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/callbacks/callbacks.json"));
  return all;
}

inline at::Tensor tensor(const Json& values) {
  return torch::tensor(values.get<std::vector<double>>(), at::kDouble);
}

/// A number, or "inf", "-inf", "nan", which JSON does not have.
inline double number(const Json& value) {
  return value.is_string() ? std::stod(value.get<std::string>()) : value.get<double>();
}

struct Model : torch::nn::Module {
  torch::nn::Linear backbone{
      register_module("backbone", torch::nn::Linear(torch::nn::LinearOptions(3, 4).bias(false)))};
  torch::nn::Linear head{
      register_module("head", torch::nn::Linear(torch::nn::LinearOptions(4, 2).bias(false)))};
  Model() {
    to(at::kDouble);
    const at::NoGradGuard no_grad;
    backbone->weight.copy_(tensor(fixture()["data"]["backbone"]).view({4, 3}));
    head->weight.copy_(tensor(fixture()["data"]["head"]).view({2, 4}));
  }
  at::Tensor forward(const at::Tensor& x) { return head(backbone(x).tanh()); }
};

inline TensorLoader<2> loader() {
  const Json& data = fixture()["data"];
  return {{tensor(data["x"]).view({-1, 3}), tensor(data["y"]).view({-1, 2})},
          {.batch_size = data["batch_size"].get<std::int64_t>()}};
}

/// The fixtures' options of a Trainer, over those they all have.
inline Options options(const Json& given, std::int64_t max_epochs) {
  Options o{.max_epochs = max_epochs,
            .num_sanity_val_steps = 0,
            .log_every_n_steps = 1,
            .enable_progress_bar = false,
            .enable_model_summary = false,
            .enable_checkpointing = false};
  for (const auto& [name, value] : given.items()) {
    if (name == "max_epochs")
      o.max_epochs = value;
    else if (name == "min_epochs")
      o.min_epochs = value;
    else if (name == "check_val_every_n_epoch")
      o.check_val_every_n_epoch = value;
    else if (name == "val_check_interval")
      o.val_check_interval = value.get<std::int64_t>();
    else if (name == "fast_dev_run")
      o.fast_dev_run = value;
    else if (name == "log_every_n_steps")
      o.log_every_n_steps = value;
    else if (name == "accumulate_grad_batches")
      o.accumulate_grad_batches = value;
    else
      throw std::invalid_argument("no option " + name);
  }
  return o;
}

inline auto in_head = [](std::string_view name) { return name.starts_with("head."); };

/// Calls `use(optimizer, scheduler)` with what the fixtures' OPTIMIZERS[name] is here.
template <class Use>
void with_optimizer_named(const std::string& name, Use&& use) {
  if (name == "sgd")
    use(SGD{.lr = 0.1}, none);
  else if (name == "adamw_groups")
    use(param_groups(AdamW{.lr = 0.1}, group(in_head, AdamW{.lr = 0.01})), none);
  else if (name == "adamw_epoch")
    use(AdamW{.lr = 0.1}, ExponentialLR{.gamma = 0.5});
  else if (name == "sgd_step")
    use(SGD{.lr = 0.1, .momentum = 0.75, .weight_decay = 0.125}, per_step(ExponentialLR{.gamma = 0.5}));
  else if (name == "groups_step")
    use(param_groups(AdamW{.lr = 0.1, .weight_decay = 0.25},
                     group(in_head, AdamW{.lr = 0.01, .weight_decay = 0.25})),
        per_step(ExponentialLR{.gamma = 0.5}));
  else
    throw std::invalid_argument("no optimizer " + name);
}

/// Keeps what is logged, but for losses: as the fixtures' rows.
struct Recorder {
  Json* rows;
  void log_metrics(Context&, const Metrics& metrics, std::int64_t step) {
    Json row = Json::object();
    for (const Metric& metric : metrics) {
      if (!metric.name.ends_with("loss")) row[metric.name] = metric.value;
    }
    if (!row.empty()) rows->push_back({step, row});
  }
};
inline Runtime<std::tuple<Recorder>> recorded(Json& rows) {
  return {.device = at::kCPU, .loggers = Recorder{&rows}, .defaults = {}};
}

/// Rows with the same steps, names and, but for the last bits, values.
inline void expect_rows(const Json& found, const Json& expected, const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what << "\n" << found << "\n" << expected;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(found[i][0], expected[i][0]) << what << " row " << i;
    ASSERT_EQ(found[i][1].size(), expected[i][1].size()) << what << " row " << i << ": " << found[i];
    for (const auto& [name, value] : expected[i][1].items()) {
      ASSERT_TRUE(found[i][1].contains(name))
          << what << " row " << i << ": " << name << " is not in " << found[i];
      // Times differ from run to run: there the fixture has null.
      if (value.is_null()) continue;
      EXPECT_NEAR(found[i][1][name].get<double>(), value.get<double>(), 1e-12)
          << what << " row " << i << " " << name;
    }
  }
}

inline void expect_near(const at::Tensor& found, const Json& expected, const std::string& what) {
  const at::Tensor other = tensor(expected);
  ASSERT_EQ(found.numel(), other.numel()) << what;
  EXPECT_LT((found.detach().flatten() - other).abs().max().item<double>(), 1e-12) << what;
}

/// Parameters and buffers that the fixture names.
inline void expect_weights(const torch::nn::Module& module, const Json& expected, const std::string& what) {
  const State state = module_state(module);
  for (const auto& [name, values] : expected.items())
    expect_near(state.get<at::Tensor>(name), values, what + " " + name);
}

}  // namespace callbacks_test
