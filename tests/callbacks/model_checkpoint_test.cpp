// Tests ModelCheckpoint: the files it leaves and what it says of them are what Lightning's has left and said.
#include "../testing.hpp"

#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

namespace {

using namespace fulmen;
namespace fs = std::filesystem;
using Json = nlohmann::json;

const Json& fixture() {
  static const Json all =
      Json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/model_checkpoint/model_checkpoint.json"));
  return all;
}

double number(const Json& value) {
  return value.is_string() ? std::stod(value.get<std::string>()) : value.get<double>();
}
/// A number as the fixture has it: JSON has no infinities.
Json number(double value) {
  if (std::isfinite(value)) return value;
  return value > 0 ? "inf" : "-inf";
}

/// Logs the fixture's values.
struct Module : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
  std::vector<double> values;
  std::int64_t fails_at = -1, interrupted_at = -1;
  std::size_t run = 0, batch = 0;

  at::Tensor training_step(Context& ctx, const std::tuple<at::Tensor, at::Tensor>& given) {
    if (ctx.global_step() == fails_at) throw std::runtime_error("broken");
    if (ctx.global_step() == interrupted_at) std::raise(SIGINT);
    const Json& by_step = fixture()["by_step"];
    ctx.log("value", by_step[batch++ % by_step.size()].get<double>(), {.on_step = true, .on_epoch = false});
    return at::mse_loss(layer(std::get<0>(given)), std::get<1>(given));
  }
  void validation_step(const std::tuple<at::Tensor, at::Tensor>&) {}
  void on_validation_epoch_end(Context& ctx) {
    const double value = values[std::min(run++, values.size() - 1)];
    ctx.log("val/loss", value);
    ctx.log("val/loss2", 2 * value);
  }
};

/// Notes what there is after each hook of a ModelCheckpoint, where that has changed.
struct Noting {
  static constexpr bool saves_checkpoints = true;
  ModelCheckpoint inner;
  fs::path root;
  Json* notes;

  void setup(Context& ctx) { inner.setup(ctx); }
  void on_train_start(Context& ctx) {
    inner.on_train_start();
    note(ctx, "on_train_start");
  }
  void on_train_epoch_start() { inner.on_train_epoch_start(); }
  template <class Ctx>
  void on_train_batch_end(Ctx& ctx) {
    inner.on_train_batch_end(ctx);
    note(ctx, "on_train_batch_end");
  }
  template <class Ctx>
  void on_validation_end(Ctx& ctx) {
    inner.on_validation_end(ctx);
    if (!ctx.sanity_checking()) note(ctx, "on_validation_end");
  }
  template <class Ctx>
  void on_train_epoch_end(Ctx& ctx) {
    inner.on_train_epoch_end(ctx);
    note(ctx, "on_train_epoch_end");
  }
  template <class Ctx>
  void on_train_end(Ctx& ctx) {
    inner.on_train_end(ctx);
    note(ctx, "on_train_end");
  }
  template <class Ctx>
  void on_exception(Ctx& ctx) {
    inner.on_exception(ctx);
    note(ctx, "on_exception");
  }
  std::string state_key() const { return inner.state_key(); }
  State state_dict() const { return inner.state_dict(); }
  void load_state_dict(const State& state) { inner.load_state_dict(state); }

  std::string relative(const fs::path& path) const { return path.lexically_relative(root).string(); }
  void note(Context& ctx, const char* hook) const {
    Json files = Json::object(), models = Json::array();
    for (const auto& entry : fs::recursive_directory_iterator(root)) {
      if (entry.is_directory()) continue;
      const State state(checkpoint::read(entry.path()));
      files[relative(entry.path())] = {state.get<std::int64_t>("global_step"), entry.is_symlink(),
                                       state.contains("optimizer_states")};
    }
    const auto maybe = [](const std::optional<double>& value) { return value ? number(*value) : Json(); };
    for (const auto& [path, value] : inner.best_k_models) models.push_back({relative(path), number(value)});
    const Json found{{"files", files},
                     {"best_model_path", relative(inner.best_model_path)},
                     {"best_model_score", maybe(inner.best_model_score)},
                     {"best_k_models", models},
                     {"kth_best_model_path", relative(inner.kth_best_model_path)},
                     {"kth_value", number(inner.kth_value)},
                     {"last_model_path", relative(inner.last_model_path)},
                     {"current_score", maybe(inner.current_score)}};
    if (notes->empty() || notes->back()["found"] != found)
      notes->push_back({{"hook", hook}, {"step", ctx.global_step()}, {"found", found}});
  }
};

ModelCheckpoint made_of(const Json& given, const fs::path& folder) {
  ModelCheckpoint out{.dirpath = folder,
                      .save_last = false,
                      .mode = given.value("mode", "min") == "max" ? Mode::max : Mode::min};
  for (const auto& [name, value] : given.items()) {
    if (name == "monitor")
      out.monitor = value;
    else if (name == "filename")
      out.filename = value;
    else if (name == "save_last")
      out.save_last = value == "link" ? SaveLast(SaveLast::link) : SaveLast(value.get<bool>());
    else if (name == "save_top_k")
      out.save_top_k = value;
    else if (name == "save_on_exception")
      out.save_on_exception = value;
    else if (name == "save_weights_only")
      out.save_weights_only = value;
    else if (name == "auto_insert_metric_name")
      out.auto_insert_metric_name = value;
    else if (name == "every_n_train_steps")
      out.every_n_train_steps = value.get<std::int64_t>();
    else if (name == "train_time_interval")
      out.train_time_interval = std::chrono::duration<double>(value.get<double>());
    else if (name == "every_n_epochs")
      out.every_n_epochs = value.get<std::int64_t>();
    else if (name == "save_on_train_epoch_end")
      out.save_on_train_epoch_end = value.get<bool>();
    else if (name == "enable_version_counter")
      out.enable_version_counter = value;
    else if (name == "CHECKPOINT_JOIN_CHAR")
      out.CHECKPOINT_JOIN_CHAR = value;
    else if (name == "CHECKPOINT_EQUALS_CHAR")
      out.CHECKPOINT_EQUALS_CHAR = value;
    else if (name == "CHECKPOINT_NAME_LAST")
      out.CHECKPOINT_NAME_LAST = value;
    else if (name == "FILE_EXTENSION")
      out.FILE_EXTENSION = value;
    else if (name == "STARTING_VERSION")
      out.STARTING_VERSION = value;
    else if (name != "mode")
      throw std::invalid_argument("no option " + name);
  }
  return out;
}

Options options(const Json& given, std::int64_t max_epochs) {
  Options o{.max_epochs = max_epochs,
            .num_sanity_val_steps = 0,
            .enable_progress_bar = false,
            .enable_model_summary = false,
            .exit_on_interrupt = false};
  for (const auto& [name, value] : given.items()) {
    if (name == "max_epochs")
      o.max_epochs = value;
    else if (name == "max_steps")
      o.max_steps = value;
    else if (name == "check_val_every_n_epoch")
      o.check_val_every_n_epoch = value;
    else if (name == "val_check_interval")
      o.val_check_interval = value.get<std::int64_t>();
    else if (name == "num_sanity_val_steps")
      o.num_sanity_val_steps = value;
    else if (name == "accumulate_grad_batches")
      o.accumulate_grad_batches = value;
    else if (name == "fast_dev_run")
      o.fast_dev_run = value;
    else if (name != "fails_at")
      throw std::invalid_argument("no option " + name);
  }
  return o;
}

TensorLoader<2> loader() { return {{torch::ones({12, 2}), torch::ones({12, 1})}, {.batch_size = 4}}; }

std::shared_ptr<Module> module_for(const Json& values) {
  auto module = std::make_shared<Module>();
  for (const Json& value : values) module->values.push_back(number(value));
  return module;
}

auto trainer_with(const std::shared_ptr<Module>& module, auto callback, const Options& given) {
  return Trainer{module, none,     SGD{.lr = 0.125}, none, Identity{}, callbacks(std::move(callback)),
                 given,  barebones};
}

/// What a run leaves, as the fixture's notes.
Json notes_of(const Json& run, const ModelCheckpoint& callback, const fs::path& folder,
              std::int64_t* steps = nullptr) {
  Json notes = Json::array();
  auto module = module_for(run["values"]);
  module->fails_at = run["trainer"].value("fails_at", -1);
  auto trainer =
      trainer_with(module, Noting{callback, folder, &notes},
                   options(run["trainer"], std::max<std::int64_t>(1, std::int64_t(run["values"].size()))));
  auto train = loader(), val = loader();
  const std::string error = error_of([&] {
    if (run["values"].empty())
      trainer.fit(train);
    else
      trainer.fit(train, val);
  });
  EXPECT_EQ(error, run["trainer"].contains("fails_at") ? "broken" : "no error");
  if (steps != nullptr) *steps = trainer.context().global_step();
  return notes;
}

/// Without epochs (those at the end of training are counted otherwise here).
Json without_epochs(Json notes) {
  for (Json& note : notes) note.erase("epoch");
  return notes;
}

/// Without last.ckpt, and what else has not changed then.
Json without_last(const Json& notes) {
  Json out = Json::array();
  for (Json note : notes) {
    Json& found = note["found"];
    found["last_model_path"] = "";
    Json files = Json::object();
    for (const auto& [name, about] : found["files"].items()) {
      if (!name.starts_with("last")) files[name] = about;
    }
    found["files"] = files;
    note.erase("epoch");
    if (out.empty() || out.back()["found"] != found) out.push_back(note);
  }
  return out;
}

TEST(ModelCheckpoint, LeavesTheFilesThatLightningLeaves) {
  // Here last.ckpt is the state of the run, there that of the newest of the other files; and a fast_dev_run
  // saves nothing.
  const std::set<std::string> last_differs{"none, last", "min, last", "min, link", "steps, all, last",
                                           "fast"};
  for (const Json& run : fixture()["runs"]) {
    SCOPED_TRACE(run["name"].get<std::string>());
    const TemporaryFolder folder;
    const Json found = notes_of(run, made_of(run["options"], folder.path), folder.path);
    if (last_differs.contains(run["name"])) {
      EXPECT_EQ(without_last(found), without_last(run["notes"]));
    } else {
      EXPECT_EQ(found, without_epochs(run["notes"]));
    }
  }
}

TEST(ModelCheckpoint, LastIsTheStateOfTheRunAndChangesNothingElse) {
  bool link = false;
  for (const Json& run : fixture()["runs"]) {
    if (run["options"].contains("save_last") || run["name"] == "fast") continue;
    SCOPED_TRACE(run["name"].get<std::string>());
    const TemporaryFolder folder;
    ModelCheckpoint callback = made_of(run["options"], folder.path);
    callback.save_last = (link = !link) ? SaveLast(SaveLast::link) : SaveLast(true);
    std::int64_t steps = 0;
    const Json found = notes_of(run, callback, folder.path, &steps);
    EXPECT_EQ(without_last(found), without_last(run["notes"]));
    if (run["trainer"].contains("fails_at")) continue;
    const State state(checkpoint::read(folder.path / ("last" + callback.FILE_EXTENSION)));
    EXPECT_EQ(state.get<std::int64_t>("global_step"), steps);
  }
}

TEST(ModelCheckpoint, LastIsNewInEveryEpochAndNotWrittenTwice) {
  const TemporaryFolder folder;
  const Json run{{"values", {0.5, 0.75, 0.25}}, {"trainer", Json::object()}};
  const Json notes = notes_of(run, {.dirpath = folder.path, .monitor = "val/loss"}, folder.path);
  ASSERT_EQ(notes.size(), 4u);
  for (std::size_t epoch = 1; epoch <= 3; ++epoch)
    EXPECT_EQ(notes[epoch]["found"]["files"]["last.ckpt"][0], 3 * epoch);
  const TemporaryFolder other;
  const Json rare{{"values", {0.5, 0.75, 0.25}}, {"trainer", {{"check_val_every_n_epoch", 3}}}};
  const Json rarely = notes_of(rare, {.dirpath = other.path, .monitor = "val/loss"}, other.path);
  ASSERT_EQ(rarely.size(), 4u);
  EXPECT_EQ(rarely[2]["found"]["files"], (Json{{"last.ckpt", {6, false, true}}})) << "no validation, no best";
  EXPECT_EQ(notes[2]["found"]["files"].size(), 2u) << "the second epoch's state is in last.ckpt alone";
  EXPECT_TRUE(fs::equivalent(folder.path / "last.ckpt", folder.path / "epoch=2-step=9.ckpt"));
  EXPECT_EQ(fs::hard_link_count(folder.path / "last.ckpt"), 2u);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), {}), 2) << "nothing else is left";
  // What it says of last.ckpt is true of the file that became last.ckpt, too.
  const State state(checkpoint::read(folder.path / "last.ckpt"));
  const ModelCheckpoint callback{.dirpath = folder.path, .monitor = "val/loss"};
  EXPECT_EQ(
      state.get<State>("callbacks").get<State>(callback.state_key()).get<std::string>("last_model_path"),
      (folder.path / "last.ckpt").string());
}

TEST(ModelCheckpoint, GoesOnAsLightningDoes) {
  for (const auto& [where, expected] : fixture()["resumed"].items()) {
    SCOPED_TRACE(where);
    const TemporaryFolder folder;
    const auto callback = [&](const char* name) {
      return ModelCheckpoint{
          .dirpath = folder.path / name, .filename = "best", .monitor = "val/loss", .save_top_k = 2};
    };
    auto train = loader(), val = loader();
    trainer_with(module_for({0.5, 0.25}), callback("first"), options({}, 2)).fit(train, val);
    Json notes = Json::array();
    auto module = module_for({0.5, 0.25, 0.375, 0.125});
    module->run = 2;
    auto trainer = trainer_with(
        module, Noting{callback(where == "here" ? "first" : "second"), folder.path, &notes}, options({}, 4));
    ::testing::internal::CaptureStderr();
    trainer.load(folder.path / "first" / "last.ckpt");
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(said.find("best_model_path alone") != said.npos, where == "elsewhere") << said;
    trainer.fit(train, val);
    EXPECT_EQ(notes, without_epochs(expected));
  }
}

TEST(ModelCheckpoint, HasLightningsKeys) {
  for (const Json& one : fixture()["state_keys"])
    EXPECT_EQ(made_of(one["options"], "x").state_key(), one["key"]);
  EXPECT_EQ(Json(ModelCheckpoint{}.state_dict().keys()), fixture()["keys"]);
}

TEST(ModelCheckpoint, ReadsAStateOfLightnings) {
  const auto score = [](double value) { return at::scalar_tensor(value, at::kFloat); };
  const std::string folder = fs::weakly_canonical("x").string(), a = folder + "/a.ckpt",
                    b = folder + "/b.ckpt";
  State state;
  state.set("monitor", "val/loss").set("best_model_score", score(0.5)).set("best_model_path", a);
  state.set("current_score", score(0.75)).set("dirpath", folder);
  state.set("best_k_models", State().set(a, score(0.5)).set(b, score(0.75)));
  state.set("kth_best_model_path", b).set("kth_value", score(0.75)).set("last_model_path", "");
  ModelCheckpoint callback{.dirpath = "x/", .monitor = "val/loss", .save_top_k = 2};
  callback.load_state_dict(state);
  EXPECT_EQ(callback.best_checkpoint(), a);
  EXPECT_EQ(callback.best_model_score, 0.5);
  EXPECT_EQ(callback.best_k_models, (decltype(callback.best_k_models){{a, 0.5}, {b, 0.75}}));
  EXPECT_EQ(callback.kth_best_model_path, b);
  EXPECT_EQ(callback.kth_value, 0.75);
  EXPECT_EQ(callback.last_model_path, "");
}

TEST(ModelCheckpoint, CtrlCLeavesTheStateAsItIs) {
  for (const bool last : {true, false}) {
    const TemporaryFolder folder;
    auto module = module_for({0.5});
    module->interrupted_at = 3;  // in the second epoch's first batch
    auto train = loader(), val = loader();
    auto trainer = trainer_with(
        module,
        ModelCheckpoint{.dirpath = folder.path, .save_last = last, .save_top_k = 0, .every_n_epochs = 0},
        options({}, 5));
    trainer.fit(train, val);
    EXPECT_TRUE(trainer.interrupted());
    ASSERT_EQ(fs::exists(folder.path / "last.ckpt"), last);
    if (last) {
      EXPECT_EQ(State(checkpoint::read(folder.path / "last.ckpt")).get<std::int64_t>("global_step"), 4);
    }
  }
}

TEST(ModelCheckpoint, FindsTheLastAndTheBest) {
  const TemporaryFolder folder;
  auto train = loader(), val = loader();
  Options o = options({}, 2);
  o.default_root_dir = folder.path;
  const auto runs = folder.path / "default";
  const auto find = [&](const ModelCheckpoint& callback) {
    auto trainer = trainer_with(module_for({0.5}), callback, o);
    const fs::path found = callback.last_checkpoint(trainer.context());
    EXPECT_FALSE(trainer.context().has_run_dir()) << "looking makes no folder";
    return found;
  };
  EXPECT_EQ(find({}), "");
  for (int run = 0; run < 2; ++run) {
    auto trainer = trainer_with(module_for({0.5, 0.25}), ModelCheckpoint{.monitor = "val/loss"}, o);
    trainer.fit(train, val);
    const auto& callback = std::get<ModelCheckpoint>(trainer.context().callbacks());
    const fs::path dir = runs / ("version_" + std::to_string(run)) / "checkpoints";
    EXPECT_EQ(callback.best_checkpoint(), dir / "epoch=1-step=6.ckpt");
    EXPECT_EQ(callback.last_checkpoint(trainer.context()), dir / "last.ckpt");
  }
  EXPECT_EQ(find({}), runs / "version_1" / "checkpoints" / "last.ckpt");
  const auto past = fs::file_time_type::clock::now() - std::chrono::hours(1);
  fs::last_write_time(runs / "version_1" / "checkpoints" / "last.ckpt", past);
  EXPECT_EQ(find({}), runs / "version_0" / "checkpoints" / "last.ckpt") << "the newest, not the highest";
  const fs::path own = folder.path / "own";
  EXPECT_EQ(find({.dirpath = own}), "");
  for (const char* name : {"last.ckpt", "last-v1.ckpt", "epoch=1-step=6.ckpt", "last.txt", ".last.ckpt"}) {
    fs::create_directories(own);
    std::ofstream(own / name) << "x";
    fs::last_write_time(own / name, past + std::chrono::minutes(name[0] == 'l' && name[4] == '-' ? 1 : 0));
  }
  EXPECT_EQ(find({.dirpath = own}), own / "last-v1.ckpt");
}

TEST(ModelCheckpoint, AFailedSaveLeavesWhatThereWas) {
  const TemporaryFolder folder;
  auto train = loader(), val = loader();
  fs::create_directories(folder.path / "epoch=1.ckpt");
  auto trainer = trainer_with(module_for({0.5, 0.25}),
                              ModelCheckpoint{.dirpath = folder.path,
                                              .filename = "{epoch}",
                                              .monitor = "val/loss",
                                              .enable_version_counter = false},
                              options({}, 2));
  EXPECT_EQ(error_of([&] { trainer.fit(train, val); }),
            "cannot write checkpoint '" + (folder.path / "epoch=1.ckpt").string() + "': it is a folder");
  const auto& callback = std::get<ModelCheckpoint>(trainer.context().callbacks());
  EXPECT_EQ(callback.best_model_path, folder.path / "epoch=0.ckpt");
  EXPECT_EQ(callback.best_model_score, 0.5);
  for (const char* name : {"epoch=0.ckpt", "last.ckpt"})
    EXPECT_EQ(State(checkpoint::read(folder.path / name)).get<std::int64_t>("global_step"), 3) << name;
  std::ofstream(folder.path / "file") << "x";
  EXPECT_EQ(error_of([&] {
              trainer_with(module_for({0.5}), ModelCheckpoint{.dirpath = folder.path / "file" / "in"},
                           options({}, 1))
                  .fit(train, val);
            }),
            "ModelCheckpoint: cannot make the folder '" + (folder.path / "file" / "in").string() +
                "': Not a directory");
}

TEST(ModelCheckpoint, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  auto train = loader(), val = loader();
  const auto error = [&](ModelCheckpoint callback, const Json& given = Json::object(), bool validate = true) {
    callback.dirpath = folder.path;
    auto trainer = trainer_with(module_for({0.5}), callback, options(given, 2));
    return error_of([&] {
      if (validate)
        trainer.fit(train, val);
      else
        trainer.fit(train);
    });
  };
  EXPECT_EQ(error({.save_top_k = -2}), "ModelCheckpoint::save_top_k is -2, expected at least -1");
  EXPECT_EQ(error({.every_n_train_steps = -1}),
            "ModelCheckpoint::every_n_train_steps is -1, expected at least 0");
  EXPECT_EQ(error({.every_n_epochs = -3}), "ModelCheckpoint::every_n_epochs is -3, expected at least 0");
  EXPECT_EQ(error({.save_top_k = 2}),
            "ModelCheckpoint::save_top_k is 2 and monitor is empty, expected the name of a logged value to "
            "choose by");
  EXPECT_EQ(error({.every_n_train_steps = 2, .train_time_interval = std::chrono::minutes(1)}),
            "ModelCheckpoint: every_n_train_steps is 2, every_n_epochs is 0 and train_time_interval is 60 s, "
            "expected one "
            "of them at most");
  EXPECT_EQ(error({.every_n_train_steps = 2, .every_n_epochs = 1}),
            "ModelCheckpoint: every_n_train_steps is 2, every_n_epochs is 1 and train_time_interval is not "
            "set, expected "
            "one of them at most");
  const std::string expected =
      ", expected names of values in braces, with a format of numbers after a colon, if any: {epoch:02d}";
  for (const auto& [name, part] :
       std::vector<std::pair<std::string, std::string>>{{"a{epoch", "{epoch"},
                                                        {"a}b", "}b"},
                                                        {"{}", "{}"},
                                                        {"{:02d}", "{:02d}"},
                                                        {"{{epoch}}", "{{epoch}"},
                                                        {"{epoch:02q}", "{epoch:02q}"}}) {
    EXPECT_EQ(error({.filename = name}),
              "ModelCheckpoint: '" + part + "' in the file name '" + name + "'" + expected);
  }
  EXPECT_EQ(error({.monitor = "nothing"}),
            "ModelCheckpoint: 'nothing' was not logged; there is: value, val/loss, val/loss2");
  EXPECT_EQ(error({.monitor = "nothing"}, {}, /*validate=*/false),
            "ModelCheckpoint: 'nothing' was not logged; there is: value");
  // Validation, which comes in the second epoch, may still bring it.
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(error({.monitor = "val/loss", .save_on_train_epoch_end = true}, {{"check_val_every_n_epoch", 2}}),
            "no error");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "ModelCheckpoint: 'val/loss' was not logged; there is: value\n");
}

TEST(ModelCheckpoint, SaysWhatItDoes) {
  const TemporaryFolder folder;
  auto train = loader(), val = loader();
  ::testing::internal::CaptureStderr();
  trainer_with(module_for({0.5, 0.75}),
               ModelCheckpoint{.dirpath = folder.path, .monitor = "val/loss", .verbose = true},
               options({}, 2))
      .fit(train, val);
  EXPECT_EQ(
      ::testing::internal::GetCapturedStderr(),
      "ModelCheckpoint: epoch 0, global step 3: 'val/loss' is 0.50000 (best 0.50000), saving '" +
          (folder.path / "epoch=0-step=3.ckpt").string() +
          "' as top 1\nModelCheckpoint: epoch 1, global step 6: 'val/loss' is 0.75000, not in the top 1\n");
}

TEST(ReplaceByLink, PutsOneLinkInPlaceOfAnother) {
  const TemporaryFolder folder;
  const fs::path a = folder.path / "a", b = folder.path / "b", link = folder.path / "link";
  std::ofstream(a) << "a";
  std::ofstream(b) << "bb";
  for (const bool symbolic : {false, true, false}) {
    for (const fs::path& file : {a, a, b}) {
      ASSERT_TRUE(checkpoint::replace_by_link(link, file, symbolic));
      EXPECT_EQ(fs::is_symlink(link), symbolic);
      EXPECT_TRUE(fs::equivalent(link, file));
    }
  }
  EXPECT_FALSE(checkpoint::replace_by_link(link, folder.path / "nothing", false));
  EXPECT_TRUE(fs::equivalent(link, b)) << "what was there is there";
  fs::create_directories(folder.path / "in" / "it");
  EXPECT_FALSE(checkpoint::replace_by_link(folder.path / "in", a, false)) << "a folder stays";
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), {}), 4) << "nothing else is left";
}

}  // namespace
