// Tests the callbacks that change weights and rates: averages and finetuning come to what they come to in
// Lightning.
#include "testing.hpp"

#include "../testing.hpp"

#include <fulmen/callbacks/backbone_finetuning.hpp>
#include <fulmen/callbacks/weight_averaging.hpp>

#include <filesystem>

namespace {

using namespace callbacks_test;

struct AfterEpochs {
  bool after_epoch(std::int64_t index) const { return index >= 1; }
};
struct Quarter {
  double operator()(std::int64_t) const { return 0.25; }
};

/// Calls `use(callback)` with what the fixtures' AVERAGES[name] is here.
template <class Use>
void with_average_named(const std::string& name, Use&& use) {
  if (name == "equal")
    use(WeightAveraging{});
  else if (name == "after_epochs")
    use(WeightAveraging{EqualAverage{}, AfterEpochs{}});
  else if (name == "ema")
    use(EMAWeightAveraging{.decay = 0.75});
  else if (name == "ema_every_3")
    use(EMAWeightAveraging{.decay = 0.5, .update_every_n_steps = 3});
  else if (name == "ema_from_step")
    use(EMAWeightAveraging{.decay = 0.5, .update_starting_at_step = 5});
  else if (name == "ema_from_epoch")
    use(EMAWeightAveraging{.decay = 0.5, .update_every_n_steps = 0, .update_starting_at_epoch = 2});
  else if (name == "ema_never")
    use(EMAWeightAveraging{.update_starting_at_step = 1000});
  else if (name == "swa")
    use(StochasticWeightAveraging{.swa_lrs = 0.05});
  else if (name == "swa_linear")
    use(StochasticWeightAveraging{
        .swa_lrs = 0.5, .swa_epoch_start = 2, .annealing_epochs = 3, .annealing_strategy = Anneal::linear});
  else if (name == "swa_cos")
    use(StochasticWeightAveraging{.swa_lrs = 0.01, .swa_epoch_start = 0.5, .annealing_epochs = 2});
  else if (name == "swa_at_once")
    use(StochasticWeightAveraging{.swa_lrs = 0.02, .swa_epoch_start = 1, .annealing_epochs = 0});
  else if (name == "swa_avg_fn")
    use(StochasticWeightAveragingBy<Quarter>{.swa_lrs = 0.05, .swa_epoch_start = 2});
  else
    throw std::invalid_argument("no average " + name);
}

struct Watch {
  Json* rates;
  Json* losses;
  void on_train_batch_start(auto& ctx) {
    Json now = Json::array();
    for (const ParamGroup& group : ctx.optimizer().groups()) now.push_back(group.lr);
    rates->push_back(now);
  }
  void on_validation_end(Context& ctx) { losses->push_back(ctx.metrics().find("val/loss").value()); }
};

TEST(Averages, AreLightnings) {
  for (const Json& run : fixture()["averages"]) {
    const std::string name = run["name"], optimizer_name = run["optimizer"];
    const std::string what = name + " " + optimizer_name + " " + run["trainer"].dump();
    auto train = loader(), val = loader();
    Json rates = Json::array(), losses = Json::array();
    const auto fit = [&](auto callback, auto optimizer, auto scheduler) {
      // The average comes first, so that Watch sees what it has done.
      Trainer trainer{Model{},
                      MSE{},
                      optimizer,
                      scheduler,
                      Identity{},
                      callbacks(callback, Watch{&rates, &losses}),
                      options(run["trainer"], 5),
                      barebones};
      trainer.fit(train, val);
      expect_weights(trainer.module(), run["weights"], what);
    };
    // Not each with each: a Trainer takes its time to compile.
    with_average_named(name, [&]<class Callback>(Callback callback) {
      if constexpr (std::is_same_v<Callback, StochasticWeightAveraging>) {
        with_optimizer_named(optimizer_name,
                             [&](auto optimizer, auto scheduler) { fit(callback, optimizer, scheduler); });
      } else if (optimizer_name == "sgd") {
        fit(callback, SGD{.lr = 0.1}, none);
      } else if constexpr (std::is_same_v<Callback, WeightAveraging<>>) {
        ASSERT_EQ(optimizer_name, "adamw_epoch");
        fit(callback, AdamW{.lr = 0.1}, ExponentialLR{.gamma = 0.5});
      } else {
        FAIL() << what;
      }
    });
    ASSERT_EQ(rates.size(), run["rates"].size()) << what;
    for (std::size_t i = 0; i < rates.size(); ++i)
      expect_near(tensor(rates[i]), run["rates"][i], what + " rate at " + std::to_string(i));
    expect_near(tensor(losses), run["losses"], what + " validation");
  }
}

TEST(Averages, AreInCheckpointsAsLightningHasThem) {
  const Json& expected = fixture()["averaging_checkpoint"];
  const TemporaryFolder folder;
  const auto path = folder.path / "half.ckpt";
  auto train = loader(), val = loader();
  const auto saves = lambda_callback(on<hooks::on_train_epoch_end>([&](auto& ctx) {
    if (ctx.epoch() == 1) fulmen::detail::save_checkpoint(ctx, path);
  }));
  const auto same = [](const State& state, const Json& all, const char* what) {
    ASSERT_EQ(state.size(), all.size()) << what;
    for (const auto& [name, values] : all.items())
      expect_near(state.get<at::Tensor>(name), values, what + (" " + name));
  };
  Trainer first{Model{},        MSE{},      SGD{.lr = 0.1},
                none,           Identity{}, callbacks(EMAWeightAveraging{.decay = 0.75}, saves),
                options({}, 4), barebones};
  first.fit(train, val);
  const State saved(checkpoint::read(path));
  same(saved.get<State>("state_dict"), expected["state_dict"], "state_dict");
  same(saved.get<State>("current_model_state"), expected["current_model_state"], "current_model_state");
  EXPECT_EQ(saved.get<State>("averaging_state").get<at::Tensor>("n_averaged").item<std::int64_t>(),
            expected["n_averaged"]);

  Trainer second{Model{},        MSE{},      SGD{.lr = 0.1},
                 none,           Identity{}, callbacks(EMAWeightAveraging{.decay = 0.75}),
                 options({}, 4), barebones};
  second.load(path);
  same(module_state(second.module()), expected["current_model_state"], "what training goes on with");
  second.fit(train, val);
  expect_weights(second.module(), expected["weights"], "after resuming");
  expect_weights(first.module(), expected["weights"], "without a break");

  // A checkpoint of a run without an average starts one with its weights.
  Trainer plain{Model{}, MSE{}, SGD{.lr = 0.1}, none, Identity{}, callbacks(), options({}, 1), barebones};
  plain.fit(train);
  plain.save(path);
  Trainer third{Model{},        MSE{},      SGD{.lr = 0.1},
                none,           Identity{}, callbacks(EMAWeightAveraging{.update_every_n_steps = 0}),
                options({}, 2), barebones};
  third.load(path);
  third.fit(train);
  EXPECT_TRUE(third.module().head->weight.equal(plain.module().head->weight))
      << "an average that nothing came into";
}

TEST(Averages, GiveTheWeightsBackAfterABrokenValidation) {
  struct Breaks : Model {
    bool breaks = true;
    at::Tensor before;
    at::Tensor training_step(const std::tuple<at::Tensor, at::Tensor>& batch) {
      return at::mse_loss(forward(std::get<0>(batch)), std::get<1>(batch));
    }
    void on_validation_start() { before = head->weight.clone(); }
    void validation_step(const std::tuple<at::Tensor, at::Tensor>&) {
      EXPECT_FALSE(head->weight.equal(before)) << "it runs with the average";
      if (breaks) throw std::runtime_error("broken");
    }
  };
  auto train = loader(), val = loader();
  Trainer trainer{Breaks{},       MSE{},    SGD{.lr = 0.1}, none, Identity{}, callbacks(WeightAveraging{}),
                  options({}, 1), barebones};
  EXPECT_EQ(error_of([&] { trainer.fit(train, val); }), "broken");
  EXPECT_TRUE(trainer.module().head->weight.equal(trainer.module().before));
}

TEST(StochasticWeightAveraging, ResumesWhereItWas) {
  const TemporaryFolder folder;
  auto train = loader();
  const auto averages = [] {
    return StochasticWeightAveraging{
        .swa_lrs = 0.5, .swa_epoch_start = 2, .annealing_epochs = 3, .annealing_strategy = Anneal::linear};
  };
  const auto make = [&](std::int64_t epochs) {
    return Trainer{
        Model{},  MSE{}, SGD{.lr = 0.1}, none, Identity{}, callbacks(averages()), options({}, epochs),
        barebones};
  };
  auto whole = make(5);
  whole.fit(train);
  // Saved in the epoch's end, before the end of training brings the average into the module.
  const auto saves = lambda_callback(on<hooks::on_train_epoch_end>(
      [&](auto& ctx) { fulmen::detail::save_checkpoint(ctx, folder.path / "part.ckpt"); }));
  Trainer part{Model{},        MSE{},    SGD{.lr = 0.1}, none, Identity{}, callbacks(averages(), saves),
               options({}, 3), barebones};
  part.fit(train);
  auto rest = make(5);
  rest.load(folder.path / "part.ckpt");
  rest.fit(train);
  EXPECT_TRUE(rest.module().head->weight.equal(whole.module().head->weight));
  EXPECT_TRUE(rest.module().backbone->weight.equal(whole.module().backbone->weight));
}

TEST(StochasticWeightAveraging, SaysWhatIsWrong) {
  auto train = loader();
  const auto error = [&](StochasticWeightAveraging callback, std::int64_t epochs = 4) {
    Trainer trainer{
        Model{},  MSE{}, SGD{.lr = 0.1}, none, Identity{}, callbacks(callback), options({}, epochs),
        barebones};
    return error_of([&] { trainer.fit(train); });
  };
  EXPECT_EQ(error({.swa_lrs = 0.0}), "StochasticWeightAveraging::swa_lrs is 0, expected more than 0");
  EXPECT_EQ(error({.swa_lrs = {0.1, 0.2}}),
            "StochasticWeightAveraging::swa_lrs has 2 values, expected one, or one for each of the "
            "optimizer's 1 parameter groups");
  EXPECT_EQ(error({.swa_lrs = 0.1, .swa_epoch_start = 0}),
            "StochasticWeightAveraging::swa_epoch_start is 0, expected an epoch of at least 1 or a part of "
            "0.0 to 1.0");
  EXPECT_EQ(error({.swa_lrs = 0.1, .swa_epoch_start = 1.5}),
            "StochasticWeightAveraging::swa_epoch_start is 1.5, expected an epoch of at least 1 or a part of "
            "0.0 to 1.0");
  EXPECT_EQ(error({.swa_lrs = 0.1}, -1),
            "StochasticWeightAveraging::swa_epoch_start is a part of max_epochs, which is -1: give an epoch "
            "instead");
}

struct Normed : torch::nn::Module {
  torch::nn::Sequential backbone{register_module(
      "backbone", torch::nn::Sequential(torch::nn::Linear(torch::nn::LinearOptions(3, 4).bias(false)),
                                        torch::nn::BatchNorm1d(4)))};
  torch::nn::Linear head{
      register_module("head", torch::nn::Linear(torch::nn::LinearOptions(4, 2).bias(false)))};
  Normed() {
    const Model like;
    to(at::kDouble);
    const at::NoGradGuard no_grad;
    backbone->parameters()[0].copy_(like.backbone->weight);
    head->weight.copy_(like.head->weight);
  }
  at::Tensor forward(const at::Tensor& x) { return head(backbone->forward(x).tanh()); }
};

TEST(StochasticWeightAveraging, MakesBatchNormsStatisticsAnew) {
  auto train = loader();
  Trainer trainer{Normed{},       MSE{},      SGD{.lr = 0.1},
                  none,           Identity{}, callbacks(StochasticWeightAveraging{.swa_lrs = 0.05}),
                  options({}, 2), barebones};
  testing::internal::CaptureStderr();
  trainer.fit(train);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  const auto statistics = [&] {
    std::vector<at::Tensor> all;
    for (const at::Tensor& buffer : trainer.module().buffers()) all.push_back(buffer.clone());
    return all;
  };
  const std::vector<at::Tensor> after_fit = statistics();
  update_bn(train, trainer.module());
  const std::vector<at::Tensor> again = statistics();
  ASSERT_EQ(after_fit.size(), 3u);
  for (std::size_t i = 0; i < again.size(); ++i) EXPECT_TRUE(after_fit[i].equal(again[i])) << after_fit[i] << again[i];
  EXPECT_TRUE(trainer.module().is_training());
}

/// Its forward takes two inputs, so that nobody else can go through its batches.
struct TwoInputs : Normed {
  at::Tensor forward(const at::Tensor& x, double scale) { return Normed::forward(x) * scale; }
  at::Tensor training_step(auto&, const auto& batch) { return torch::mse_loss(forward(std::get<0>(batch), 1.0), std::get<1>(batch)); }
};

TEST(StochasticWeightAveraging, RemindsOfBatchNormWhereItCannot) {
  auto train = loader();
  Trainer trainer{TwoInputs{},    none,       SGD{.lr = 0.1},
                  none,           Identity{}, callbacks(StochasticWeightAveraging{.swa_lrs = 0.05}),
                  options({}, 2), barebones};
  testing::internal::CaptureStderr();
  trainer.fit(train);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("update_bn"), std::string::npos);
}

TEST(BackboneFinetuning, GoesAsInLightning) {
  for (const Json& run : fixture()["finetuning"]) {
    const Json& given = run["case"];
    const std::string what = given.dump();
    Json epochs = Json::array();
    auto looks = on<hooks::on_train_batch_start>([&](auto& ctx) {
      if (ctx.batch_idx() != 0) return;
      const auto& groups = ctx.optimizer().groups();
      const bool trained = groups[1].params[0].requires_grad();
      epochs.push_back({{"head", groups[0].lr},
                        {"backbone", trained ? Json(groups[1].lr) : Json()},
                        {"trained", trained}});
    });
    auto train = loader(), val = loader();
    const auto fit = [&](auto module, auto callback, auto scheduler) {
      callback.unfreeze_backbone_at_epoch = given["unfreeze_backbone_at_epoch"];
      if (given.contains("backbone_initial_lr"))
        callback.backbone_initial_lr = given["backbone_initial_lr"].get<double>();
      callback.backbone_initial_ratio_lr = given.value("backbone_initial_ratio_lr", 0.1);
      callback.should_align = given.value("should_align", true);
      callback.train_bn = given.value("train_bn", true);
      Trainer trainer{module,         MSE{},      with_backbone("backbone", Adam{.lr = 0.1}),
                      scheduler,      Identity{}, callbacks(callback, lambda_callback(looks)),
                      options({}, 6), barebones};
      trainer.fit(train, val);
      expect_weights(trainer.module(), run["weights"], what);
    };
    if (given.contains("norm"))
      fit(Normed{}, BackboneFinetuning{}, none);
    else if (given.contains("scheduler"))
      fit(Model{}, BackboneFinetuning{}, ExponentialLR{.gamma = 0.5});
    else if (given.contains("lambda"))
      fit(Model{}, BackboneFinetuning{.lambda_func = [](std::int64_t) { return 1.5; }}, none);
    else
      fit(Model{}, BackboneFinetuning{}, none);
    ASSERT_EQ(epochs.size(), run["epochs"].size()) << what;
    for (std::size_t i = 0; i < epochs.size(); ++i) {
      const Json &found = epochs[i], &expected = run["epochs"][i];
      EXPECT_EQ(found["trained"], expected["trained"]) << what << " epoch " << i;
      EXPECT_NEAR(found["head"].get<double>(), expected["head"].get<double>(), 1e-15)
          << what << " epoch " << i;
      ASSERT_EQ(found["backbone"].is_null(), expected["backbone"].is_null()) << what << " epoch " << i;
      if (found["backbone"].is_null()) continue;
      EXPECT_NEAR(found["backbone"].get<double>(), expected["backbone"].get<double>(), 1e-15)
          << what << " epoch " << i;
    }
  }
}

TEST(BackboneFinetuning, IsNotMovedByAScheduler) {
  auto train = loader();
  std::vector<double> rates;
  Trainer trainer{Model{},
                  MSE{},
                  with_backbone("backbone", SGD{.lr = 0.1}),
                  per_step(ExponentialLR{.gamma = 0.5}),
                  Identity{},
                  callbacks(BackboneFinetuning{.unfreeze_backbone_at_epoch = 0, .backbone_initial_lr = 0.01},
                            lambda_callback(on<hooks::on_train_batch_start>(
                                [&](auto& ctx) { rates.push_back(ctx.optimizer().groups()[1].lr); }))),
                  options({}, 1),
                  barebones};
  trainer.fit(train);
  EXPECT_EQ(rates, (std::vector<double>{0.01, 0.01, 0.01}));
}

TEST(BackboneFinetuning, ResumesFrozenAndFreed) {
  const TemporaryFolder folder;
  auto train = loader();
  const auto make = [](std::int64_t epochs) {
    return Trainer{Model{},
                   MSE{},
                   with_backbone("backbone", Adam{.lr = 0.1}),
                   none,
                   Identity{},
                   callbacks(BackboneFinetuning{.unfreeze_backbone_at_epoch = 2}),
                   options({}, epochs),
                   barebones};
  };
  auto whole = make(5);
  whole.fit(train);
  for (const std::int64_t half : {1, 3}) {
    auto first = make(half);
    first.fit(train);
    first.save(folder.path / "half.ckpt");
    auto second = make(5);
    second.load(folder.path / "half.ckpt");
    second.fit(train);
    EXPECT_TRUE(second.module().backbone->weight.equal(whole.module().backbone->weight)) << half;
  }
}

TEST(BackboneFinetuning, SaysWhatIsWrong) {
  auto train = loader();
  const auto error = [&](auto optimizer, BackboneFinetuning callback) {
    Trainer trainer{Model{},        MSE{},    optimizer, none, Identity{}, callbacks(callback),
                    options({}, 1), barebones};
    return error_of([&] { trainer.fit(train); });
  };
  EXPECT_EQ(
      error(SGD{}, {}),
      "BackboneFinetuning: parameter group 1 of the optimizer has parameters of 'backbone' and others; give "
      "them a group of their own: with_backbone(\"backbone\", optimizer)");
  EXPECT_EQ(error(SGD{}, {.backbone = "body"}),
            "BackboneFinetuning::backbone is 'body', expected the name of a submodule with parameters");
  EXPECT_EQ(error(parameters_of("head", SGD{}), {}),
            "BackboneFinetuning: the optimizer has no parameter of 'backbone', expected parameters of "
            "'backbone' and others");
  EXPECT_EQ(error(parameters_of("backbone", SGD{}), {}),
            "BackboneFinetuning: the optimizer has parameters of 'backbone' only, expected parameters of "
            "'backbone' and others");
}

}  // namespace
