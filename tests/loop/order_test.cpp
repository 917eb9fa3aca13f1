// Tests the order of all hooks, and where the run stands in each, against what Lightning did (fixtures/lightning/orders.json).
#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

namespace {

using namespace fulmen;
using nlohmann::json;

const json& fixture() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/lightning/orders.json"));
  return all;
}

/// One call of a participant, and where the run stood.
struct Call {
  std::string who, what;
  std::int64_t epoch, global_step, batch_idx;
  bool training, sanity;
};
using Calls = std::vector<Call>;

struct Note {
  Calls* calls;

  void operator()(const char* who, const char* what, auto& ctx) const {
    // Lightning's callbacks have no prepare_data and configure_model.
    if (!fixture()["signatures"].contains(std::string(who) + "." + what)) return;
    calls->push_back({who, what, ctx.epoch(), ctx.global_step(), ctx.batch_idx(), ctx.module().is_training(), ctx.sanity_checking()});
  }
};

#define RECORD_hook(WHO, NAME) \
  void NAME(auto& ctx, auto&...) { note(WHO, #NAME, ctx); }
#define RECORD_step(WHO, NAME)
#define RECORD_action(WHO, NAME)

#define RECORD_CALLBACK(NAME, KIND, ...) RECORD_##KIND("callback", NAME)
struct Recorder {
  Note note;
  FULMEN_HOOKS(RECORD_CALLBACK)
};

#define RECORD_MODULE(NAME, KIND, ...) RECORD_##KIND("module", NAME)
/// All hooks, steps and actions of a module.
struct Module : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 1))};
  Note note;

  explicit Module(Note n) : note(n) {}
  FULMEN_HOOKS(RECORD_MODULE)

  at::Tensor loss(const at::Tensor& batch) { return fc(batch).pow(2).mean(); }
  at::Tensor training_step(auto& ctx, const at::Tensor& batch) {
    note("module", "training_step", ctx);
    return loss(batch);
  }
  void validation_step(auto& ctx, const at::Tensor& batch) {
    note("module", "validation_step", ctx);
    ctx.log("val_loss", loss(batch));
  }
  void test_step(auto& ctx, const at::Tensor&) { note("module", "test_step", ctx); }
  at::Tensor predict_step(auto& ctx, const at::Tensor& batch) {
    note("module", "predict_step", ctx);
    return batch;
  }
  void optimizer_step(auto& ctx, auto& optimizer, auto& closure) {
    note("module", "optimizer_step", ctx);
    optimizer.step(closure);
  }
  void optimizer_zero_grad(auto& ctx, auto& optimizer) {
    note("module", "optimizer_zero_grad", ctx);
    optimizer.zero_grad();
  }
  void backward(auto& ctx, const at::Tensor& l) {
    note("module", "backward", ctx);
    l.backward();
  }
  void configure_gradient_clipping(auto& ctx, auto&) { note("module", "configure_gradient_clipping", ctx); }
  void lr_scheduler_step(auto& ctx, auto& scheduler, auto& metric) {
    note("module", "lr_scheduler_step", ctx);
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(metric)>, double>) scheduler.step(metric);
    else scheduler.step();
  }
  void on_validation_model_zero_grad(auto& ctx) { note("module", "on_validation_model_zero_grad", ctx); }
  void on_validation_model_eval(auto& ctx) {
    note("module", "on_validation_model_eval", ctx);
    eval();
  }
  void on_validation_model_train(auto& ctx) {
    note("module", "on_validation_model_train", ctx);
    train();
  }
  void on_test_model_eval(auto& ctx) {
    note("module", "on_test_model_eval", ctx);
    eval();
  }
  void on_test_model_train(auto& ctx) {
    note("module", "on_test_model_train", ctx);
    train();
  }
  void on_predict_model_eval(auto& ctx) {
    note("module", "on_predict_model_eval", ctx);
    eval();
  }
};

/// The data of a run, with all of a data module's hooks. Each batch is taken through the transfer actions.
struct Data {
  Note note;
  std::int64_t train_batches = 3, val_batches = 2;

  using Loader = std::vector<at::Tensor>;
  static Loader batches(std::int64_t count) { return Loader(static_cast<std::size_t>(count), at::ones({4, 2})); }
  // A data module's loaders are asked for without a context.
  void note_loader(const char* what) const {
    note.calls->push_back({"data", what, -1, -1, -1, true, false});
  }

  Loader train_dataloader() { return note_loader("train_dataloader"), batches(train_batches); }
  Loader val_dataloader() { return note_loader("val_dataloader"), batches(val_batches); }
  Loader test_dataloader() { return note_loader("test_dataloader"), batches(2); }
  Loader predict_dataloader() { return note_loader("predict_dataloader"), batches(2); }
  void prepare_data(auto& ctx) { note("data", "prepare_data", ctx); }
  void setup(auto& ctx) { note("data", "setup", ctx); }
  void teardown(auto& ctx) { note("data", "teardown", ctx); }
  void on_exception(auto& ctx) { note("data", "on_exception", ctx); }
  at::Tensor on_before_batch_transfer(auto& ctx, const at::Tensor& batch) {
    note("data", "on_before_batch_transfer", ctx);
    return batch;
  }
  void transfer_batch_to_device(auto& ctx, at::Tensor& batch, at::Device device) {
    note("data", "transfer_batch_to_device", ctx);
    batch = batch.to(device);
  }
  void on_after_batch_transfer(auto& ctx) { note("data", "on_after_batch_transfer", ctx); }
};
struct TrainData {
  Data all;
  Data::Loader train_dataloader() { return all.train_dataloader(); }
  void prepare_data(auto& ctx) { all.prepare_data(ctx); }
  void setup(auto& ctx) { all.setup(ctx); }
  void teardown(auto& ctx) { all.teardown(ctx); }
  at::Tensor on_before_batch_transfer(auto& ctx, const at::Tensor& batch) { return all.on_before_batch_transfer(ctx, batch); }
  void transfer_batch_to_device(auto& ctx, at::Tensor& batch, at::Device device) { all.transfer_batch_to_device(ctx, batch, device); }
  void on_after_batch_transfer(auto& ctx) { all.on_after_batch_transfer(ctx); }
};

const Multiply halve{{{1, 0.5}, {2, 0.5}, {3, 0.5}, {4, 0.5}}};

/// Compares what was noted with a run of the fixture: same calls, in the same order, at the same place of the run.
/// @param places whether epoch and step are compared, too
void compare(const char* run, const Calls& found, const std::set<std::string>& without = {}, bool places = true) {
  SCOPED_TRACE(run);
  std::vector<json> expected;
  for (json row : fixture()["orders"].at(run)["rows"]) {
    if (row[0] == "callback_1") row[0] = "callback";  // of several; the others have the same calls
    const std::string who = row[0], what = row[1];
    static const std::set<std::string> elsewhere{"configure_callbacks", "configure_optimizers", "toggle_optimizer",
                                                 "untoggle_optimizer", "state_dict", "load_state_dict"};
    if ((who == "callback" || who == "module" || who == "data") && !elsewhere.contains(what) && !without.contains(what)) {
      expected.push_back(row);
    }
  }
  for (std::size_t i = 0; i < std::max(expected.size(), found.size()); ++i) {
    const std::string want = i < expected.size() ? expected[i][0].get<std::string>() + "." + expected[i][1].get<std::string>() : "nothing";
    const std::string got = i < found.size() ? found[i].who + "." + found[i].what : "nothing";
    ASSERT_EQ(got, want) << "at call " << i << ", after " << (i > 0 ? found[i - 1].what : "the start");
    if (found[i].epoch < 0 || !places) continue;
    const json& row = expected[i];
    EXPECT_EQ(found[i].epoch, row[3].get<std::int64_t>()) << "epoch in " << got << ", call " << i;
    EXPECT_EQ(found[i].global_step, row[4].get<std::int64_t>()) << "global_step in " << got << ", call " << i;
    const std::string mode = row[5];
    EXPECT_EQ(found[i].training, mode.starts_with("train")) << got << ", call " << i;
    EXPECT_EQ(found[i].sanity, mode.find("sanity") != std::string::npos) << got << ", call " << i;
    if (!row[6].is_null()) {
      EXPECT_EQ(found[i].batch_idx, row[6].get<std::int64_t>()) << "batch_idx in " << got << ", call " << i;
    }
  }
}

Options options(std::int64_t epochs, std::int64_t sanity = 0) { return {.max_epochs = epochs, .num_sanity_val_steps = sanity}; }

struct Fit {
  Calls calls;
  Data data{{&calls}};
  std::int64_t epoch = 0, global_step = 0;
  std::string error;

  template <class M = Module, class S = Multiply, class... D>
  void operator()(Options o, S scheduler = halve, M* = nullptr) {
    run<M>(std::move(o), std::move(scheduler), data);
  }
  template <class M, class S, class D>
  void run(Options o, S scheduler, D& from) {
    Trainer trainer{std::make_shared<M>(Note{&calls}), none, SGD{.lr = 0.1}, std::move(scheduler), Identity{}, callbacks(Recorder{{&calls}}),
                    std::move(o), barebones};
    try {
      trainer.fit(from);
    } catch (const std::exception& exception) {
      error = exception.what();
    }
    epoch = trainer.context().epoch();
    global_step = trainer.context().global_step();
  }
};

TEST(Order, FitWithValidation) {
  Fit fit;
  fit(options(2, 2));
  compare("fit_with_validation", fit.calls);
}

TEST(Order, FitWithoutValidation) {
  Fit fit;
  TrainData data{fit.data};
  fit.run<Module>(options(1), halve, data);
  compare("fit_without_validation", fit.calls);
}

TEST(Order, Accumulation) {
  Fit fit;
  TrainData data{fit.data};
  Options o = options(2);
  o.accumulate_grad_batches = 2;
  fit.run<Module>(o, per_step(halve), data);
  compare("fit_accumulate", fit.calls);
  EXPECT_EQ(fit.global_step, 4);
}

struct ManualModule : torch::nn::Module {
  static constexpr bool automatic_optimization = false;
  torch::nn::Linear a{register_module("a", torch::nn::Linear(2, 1))}, b{register_module("b", torch::nn::Linear(2, 1))};
  Note note;
  explicit ManualModule(Note n) : note(n) {}
  FULMEN_HOOKS(RECORD_MODULE)
  void training_step(auto& ctx, const at::Tensor& batch) {
    note("module", "training_step", ctx);
    auto& [first, second] = ctx.optimizers();
    const auto one = [&](auto& optimizer, auto& other, auto& layer) {
      ctx.toggle_optimizer(optimizer);
      EXPECT_FALSE(other.groups()[0].params[0].requires_grad());
      EXPECT_TRUE(optimizer.groups()[0].params[0].requires_grad());
      optimizer.zero_grad();
      ctx.backward(layer(batch).pow(2).mean());
      optimizer.step();
      ctx.untoggle_optimizer();
      EXPECT_TRUE(other.groups()[0].params[0].requires_grad());
    };
    one(first, second, a);
    one(second, first, b);
  }
  void backward(auto& ctx, const at::Tensor& l) {
    note("module", "backward", ctx);
    l.backward();
  }
};

TEST(Order, ManualOptimisationWithTwoOptimizers) {
  Calls calls;
  TrainData data{{{&calls}, 2}};
  Trainer trainer{std::make_shared<ManualModule>(Note{&calls}), none,
                  std::tuple{parameters_of("a", SGD{.lr = 0.1}), parameters_of("b", SGD{.lr = 0.1})}, none, Identity{},
                  callbacks(Recorder{{&calls}}), options(1), barebones};
  trainer.fit(data);
  compare("fit_manual", calls);
  EXPECT_EQ(trainer.context().global_step(), 4);
}

TEST(Order, SchedulerThatMonitors) {
  Fit fit;
  fit.data.train_batches = 1;
  fit.data.val_batches = 1;
  fit(options(2), monitoring("val_loss", ReduceLROnPlateau{}));
  compare("fit_plateau", fit.calls);
}

TEST(Order, Clipping) {
  Fit fit;
  TrainData data{fit.data};
  data.all.train_batches = 2;
  Options o = options(1);
  o.gradient_clip_val = 1;
  fit.run<Module>(o, halve, data);
  compare("fit_clip", fit.calls);
}

TEST(Order, ValidationInsideAnEpoch) {
  Fit fit;
  fit.data.train_batches = 5;
  fit.data.val_batches = 1;
  Options o = options(1);
  o.val_check_interval = 2;
  fit(o);
  compare("fit_val_check_interval", fit.calls);
}

TEST(Order, ValidationEverySecondEpoch) {
  Fit fit;
  fit.data.train_batches = 1;
  fit.data.val_batches = 1;
  Options o = options(3);
  o.check_val_every_n_epoch = 2;
  fit(o);
  compare("fit_check_val_every_2", fit.calls);
}

TEST(Order, LoadersMadeAnewEachEpoch) {
  Fit fit;
  fit.data.train_batches = 1;
  fit.data.val_batches = 1;
  Options o = options(2, 2);
  o.reload_dataloaders_every_n_epochs = 1;
  fit(o);
  compare("fit_reload", fit.calls);
}

struct Throws : Module {
  using Module::Module;
  at::Tensor training_step(auto& ctx, const at::Tensor& batch) {
    at::Tensor l = Module::training_step(ctx, batch);
    if (ctx.batch_idx() == 1) throw std::runtime_error("boom");
    return l;
  }
};
TEST(Order, Exception) {
  Fit fit;
  fit.run<Throws>(options(1), halve, fit.data);
  compare("fit_exception", fit.calls);
  EXPECT_EQ(fit.error, "boom");
}

struct Stops : Module {
  using Module::Module;
  at::Tensor training_step(auto& ctx, const at::Tensor& batch) {
    if (ctx.batch_idx() == 1) ctx.request_stop();
    return Module::training_step(ctx, batch);
  }
};
TEST(Order, RequestToStop) {
  Fit fit;
  fit.run<Stops>(options(3), halve, fit.data);
  compare("fit_should_stop", fit.calls);
  EXPECT_EQ(fit.epoch, 1);
}

TEST(Order, MaxStepsInsideAnEpoch) {
  Fit fit;
  fit.data.val_batches = 1;
  Options o = options(-1);
  o.max_steps = 2;
  fit(o);
  compare("fit_max_steps", fit.calls);
}

struct ReturnsNothing : Module {
  using Module::Module;
  std::optional<at::Tensor> training_step(auto& ctx, const at::Tensor& batch) {
    at::Tensor l = Module::training_step(ctx, batch);
    if (ctx.batch_idx() == 1) return std::nullopt;
    return l;
  }
};
TEST(Order, TrainingStepThatReturnsNothing) {
  Fit fit;
  TrainData data{fit.data};
  fit.run<ReturnsNothing>(options(1), halve, data);
  compare("fit_none", fit.calls);
}

struct Skips : Module {
  using Module::Module;
  int on_train_batch_start(auto& ctx, const at::Tensor&, std::int64_t batch_idx) {
    note("module", "on_train_batch_start", ctx);
    return batch_idx == 1 ? -1 : 0;
  }
};
TEST(Order, TheModuleMaySkipTheRestOfTheEpoch) {
  Fit fit;
  TrainData data{fit.data};
  fit.run<Skips>(options(1), halve, data);
  compare("fit_skip", fit.calls);
  EXPECT_EQ(fit.global_step, 1);
}

TEST(Order, NothingToDo) {
  Fit fit;
  fit(options(0, 2));
  compare("fit_max_epochs_0", fit.calls);
  Fit none_left;
  Options o = options(1, 2);
  o.limit_train_batches = 0;
  none_left(o);
  compare("fit_no_batches", none_left.calls);
}

TEST(Order, FastDevRun) {
  Fit fit;
  Options o = options(5);
  o.fast_dev_run = 1;
  fit(o);
  compare("fit_fast_dev_run", fit.calls);
}

TEST(Order, ResumeFromTheCheckpointOfAnEpoch) {
  const auto file = std::filesystem::temp_directory_path() / "fulmen-order.ckpt";
  Calls calls;
  const auto fit_to = [&](std::int64_t epochs, bool resume) {
    Data data{{&calls}};
    Trainer trainer{std::make_shared<Module>(Note{&calls}), none, SGD{.lr = 0.1}, halve, Identity{}, callbacks(Recorder{{&calls}}),
                    options(epochs, 2), barebones};
    if (resume) {
      trainer.load(file);
      EXPECT_EQ(trainer.context().epoch(), 1);
    }
    trainer.fit(data);
    if (!resume) trainer.save(file);
    EXPECT_EQ(trainer.context().global_step(), 3 * epochs);
  };
  fit_to(1, false);
  calls.clear();
  fit_to(2, true);
  // Here a checkpoint is loaded before fit begins, in Lightning inside of it; so epoch and step are right from the start.
  std::erase_if(calls, [](const Call& call) { return call.what == "on_load_checkpoint"; });
  compare("fit_resume_epoch", calls, {"on_load_checkpoint", "on_save_checkpoint"}, /*places=*/false);
  std::filesystem::remove(file);
}

TEST(Order, ValidateTestAndPredict) {
  const auto run = [](const char* name, auto&& stage) {
    Calls calls;
    Data data{{&calls}};
    Trainer trainer{std::make_shared<Module>(Note{&calls}), none, SGD{.lr = 0.1}, halve, Identity{}, callbacks(Recorder{{&calls}}), options(1),
                    barebones};
    stage(trainer, data);
    compare(name, calls);
  };
  run("validate", [](auto& trainer, auto& data) { trainer.validate(data); });
  run("test", [](auto& trainer, auto& data) { trainer.test(data); });
  run("predict", [](auto& trainer, auto& data) { EXPECT_EQ(trainer.predict(data).size(), 2u); });
}

}  // namespace
