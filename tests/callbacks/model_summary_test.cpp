// Tests ModelSummary: rows and totals are those of Lightning's (fixtures/model_summary).
#include "../testing.hpp"

#include <fulmen/callbacks/model_summary.hpp>
#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <fstream>
#include <string>

namespace {

using namespace fulmen;
using Json = nlohmann::json;

// The modules of make.py.
struct BlockImpl : torch::nn::Module {
  torch::nn::Sequential body{register_module(
      "body", torch::nn::Sequential(torch::nn::Conv2d(torch::nn::Conv2dOptions(4, 4, 3).bias(false)),
                                    torch::nn::BatchNorm2d(4), torch::nn::ReLU()))};
};
TORCH_MODULE(Block);

struct Net : torch::nn::Module {
  torch::nn::Conv2d stem{register_module("stem", torch::nn::Conv2d(3, 4, 3))};
  torch::nn::ModuleList blocks{register_module("blocks", torch::nn::ModuleList(Block(), Block()))};
  torch::nn::Linear head{register_module("head", torch::nn::Linear(400, 300))};
  torch::nn::Linear again{register_module("again", head)};
  Net() {
    for (auto& p : stem->parameters()) p.requires_grad_(false);
    blocks[0]->as<Block>()->body[1]->eval();
  }
};

struct WithOwn : torch::nn::Module {
  at::Tensor scale{register_parameter("scale", torch::ones({7, 3}))};
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 2))};
  at::Tensor forward(const at::Tensor& x) { return fc(x) * scale.mean(); }
};

TEST(ModelSummary, SaysWhatLightningsSays) {
  const Json all = Json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/model_summary/model_summary.json"));
  ASSERT_EQ(all["runs"].size(), 12u);
  const Net net;
  const WithOwn with_own;
  for (const Json& run : all["runs"]) {
    const int depth = run["max_depth"];
    SCOPED_TRACE(run["module"].get<std::string>() + " " + std::to_string(depth));
    const ModuleSummary found =
        run["module"] == "Net" ? summarize(net, depth) : summarize(with_own, depth);
    Json layers = Json::array();
    for (const LayerSummary& layer : found.layers)
      layers.push_back({layer.name, layer.type, layer.num_parameters, layer.training});
    EXPECT_EQ(layers, run["layers"]);
    EXPECT_EQ(found.total_parameters, run["total"]);
    EXPECT_EQ(found.trainable_parameters, run["trainable"]);
    EXPECT_NEAR(static_cast<double>(found.size) * 1e-6, run["megabytes"].get<double>(), 1e-12);
    EXPECT_EQ(found.modules_in_train_mode, run["modes"]["train"]);
    EXPECT_EQ(found.modules_in_eval_mode, run["modes"]["eval"]);
    const bool others = run["names"].size() > run["layers"].size();
    EXPECT_EQ(found.other_parameters > 0, others);
    // The table has each name and each count as Lightning writes it.
    const std::string text = found.render();
    for (const char* key : {"names", "params"}) {
      for (const Json& cell : run[key])
        EXPECT_NE(text.find(" " + cell.get<std::string>() + " "), std::string::npos) << cell << "\n" << text;
    }
  }
}

std::string printed_by(ModelSummary summary) {
  std::FILE* file = std::tmpfile();
  summary.out = file;
  Trainer trainer{WithOwn{},
                  MSE{},
                  SGD{.lr = 0.1},
                  none,
                  Identity{},
                  callbacks(summary),
                  {.max_epochs = 1, .enable_progress_bar = false, .enable_checkpointing = false},
                  Runtime<std::tuple<>, std::tuple<ModelSummary>>{}};
  TensorLoader data{{torch::ones({2, 2}), torch::ones({2, 2})}};
  trainer.fit(data);
  std::string text(static_cast<std::size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  EXPECT_EQ(std::fread(text.data(), 1, text.size(), file), text.size());
  std::fclose(file);
  return text;
}

TEST(ModelSummary, OfTheUsersReplacesTheDefault) {
  ::testing::internal::CaptureStdout();
  const std::string text = printed_by({.max_depth = 1});
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "") << "the default one has not printed";
  EXPECT_NE(text.find("other params"), std::string::npos) << text;
  EXPECT_NE(text.find("Total params: 27 (108 B)"), std::string::npos) << text;
  EXPECT_EQ(printed_by({.max_depth = 0}), "");
}

TEST(ModelSummary, SaysWhatIsWrong) {
  EXPECT_EQ(error_of([] { summarize(WithOwn{}, -2); }),
            "ModelSummary::max_depth is -2, expected -1 for all layers, 0 for none, or more");
}

}  // namespace
