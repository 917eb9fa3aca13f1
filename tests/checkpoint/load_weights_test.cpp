// Weights from files into modules, modules from checkpoints, and hyper-parameters in checkpoints.
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/hyperparameters_state.hpp>
#include <fulmen/checkpoint/load_weights.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/safetensors.hpp>
#include <fulmen/checkpoint/state.hpp>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "testing.hpp"

// In a namespace of its own: BOOST_HANA_ADAPT_STRUCT is for the global one.
namespace user {

enum class Kind : std::uint8_t { plain, residual, dense };

struct Schedule {
  double gamma = 0.1;
  std::vector<std::int64_t> milestones{};
};

struct Hparams {
  std::vector<std::int64_t> widths{2, 2};
  float lr = 1e-3f;
  bool bias = true;
  std::string name = "net";
  std::optional<double> clip{};
  Schedule schedule{};
  Kind kind = Kind::plain;
};

struct Everything {
  std::int8_t small = -1;
  std::uint64_t large = 1;
  double real = 0.1;
  std::array<int, 2> pair{1, 2};
  std::vector<bool> flags{true, false};
  std::vector<Kind> kinds{Kind::dense};
  std::optional<Kind> maybe = Kind::residual;
  std::vector<Schedule> schedules{{0.5, {1}}, {0.25, {}}};
  std::vector<std::vector<double>> table{{1, 2}, {}};
  std::optional<std::string> none{};
};

// The twin of Lit in tests/fixtures/checkpoint/make.py.
struct Net : torch::nn::Module {
  Hparams hparams;
  torch::nn::ModuleList layers;

  explicit Net(Hparams h) : hparams(std::move(h)) {
    for (std::size_t i = 1; i < hparams.widths.size(); ++i) {
      layers->push_back(torch::nn::Linear(
          torch::nn::LinearOptions(hparams.widths[i - 1], hparams.widths[i]).bias(hparams.bias)));
    }
    register_module("layers", layers);
  }
  Net(std::int64_t in, std::int64_t out) : Net(Hparams{.widths = {in, out}}) {}
};

}  // namespace user

BOOST_HANA_ADAPT_STRUCT(user::Schedule, gamma, milestones);
BOOST_HANA_ADAPT_STRUCT(user::Hparams, widths, lr, bias, name, clip, schedule, kind);
BOOST_HANA_ADAPT_STRUCT(user::Everything, small, large, real, pair, flags, kinds, maybe, schedules, table,
                        none);

namespace fulmen {
namespace {

using ::fulmen::testing::error_of;
using ::fulmen::testing::fixture;
using ::fulmen::testing::put;
using ::fulmen::testing::same;
using ::fulmen::testing::TemporaryFolder;

using Names = std::vector<std::string>;

struct Small : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(4, 3))};
  at::Tensor steps = register_buffer("steps", at::zeros({}, at::kLong));
};

class LoadWeightsTest : public ::testing::Test {
 protected:
  LoadWeightsTest() {
    for (const std::string& name : weights.keys()) {
      const auto tensor = weights.get<at::Tensor>(name);
      weights.set(name, tensor.is_floating_point() ? at::randn_like(tensor) : tensor + 7);
    }
  }

  std::filesystem::path written(const State& state) const {
    checkpoint::write(folder / "w.pt", state);
    return folder / "w.pt";
  }

  static State renamed(const State& state, const std::string& prefix) {
    State all;
    for (const std::string& name : state.keys()) all.set(prefix + name, state.get<at::Tensor>(name));
    return all;
  }

  bool loaded() const { return same(module_state(net), weights); }
  std::string error(const std::filesystem::path& path, const LoadWeights& options = {}) {
    const State before(checkpoint::read(written_before()));
    std::string text = error_of<std::runtime_error>([&] { load_weights(net, path, options); });
    if (!text.empty()) {
      EXPECT_TRUE(same(module_state(net), before)) << "something was changed";
    }
    return text;
  }

  TemporaryFolder folder;
  Small net;
  State weights = module_state(Small());

 private:
  std::filesystem::path written_before() const {
    checkpoint::write(folder / "before.pt", module_state(net));
    return folder / "before.pt";
  }
};

TEST_F(LoadWeightsTest, ReadsWhateverHoldsThem) {
  const auto load = [&](const std::filesystem::path& path, const LoadWeights& options = {}) {
    const at::NoGradGuard no_grad;
    net.fc->weight.zero_();
    load_weights(net, path, options);
    return loaded();
  };
  EXPECT_TRUE(load(written(weights)));
  EXPECT_TRUE(load(written(State().set("epoch", 3).set("state_dict", weights))));
  EXPECT_TRUE(load(written(State().set("model", weights).set("ema", State())), {.key = "model"}));
  // Not by their names: a file of another format under the same one.
  checkpoint::write_safetensors(folder / "w.pt", weights);
  EXPECT_TRUE(load(folder / "w.pt"));
  EXPECT_TRUE(
      same(read_weights(folder / "w.pt").get<at::Tensor>("fc.bias"), weights.get<at::Tensor>("fc.bias")));

  const std::string path = "'" + (folder / "w.pt").string() + "'";
  EXPECT_EQ(error(folder / "w.pt", {.key = "model"}),
            "cannot load weights from " + path + ": it is a safetensors file, which has no key 'model'");
  EXPECT_EQ(error(written(State().set("epoch", 3).set("model", weights).set("ema", State()))),
            "cannot load weights from " + path +
                ": it has no 'state_dict' and no tensors; expected one of its dicts as .key: 'model', 'ema'");
  EXPECT_EQ(error(written(State().set("epoch", 3))),
            "cannot load weights from " + path +
                ": it has no 'state_dict' and no tensors; nor dicts that might be one");
  EXPECT_EQ(error(written(State().set("epoch", 3)), {.key = "model"}),
            "state of " + path + ": key 'model' is missing; it has 'epoch'");
  checkpoint::write(folder / "w.pt", at::ones(2));
  EXPECT_EQ(error(folder / "w.pt"),
            "cannot load weights from " + path + ": it holds a tensor, expected a dict");
  EXPECT_NE(error(folder / "none.pt").find("none.pt"), std::string::npos);
}

TEST_F(LoadWeightsTest, TakesPrefixesOffAndMapsNames) {
  State both = renamed(weights, "model.");
  both.set("teacher.fc.weight", at::ones({9}));
  load_weights(net, written(both), {.prefix = "model."});
  EXPECT_TRUE(loaded());
  EXPECT_EQ(error(written(both), {.prefix = "module."}),
            "cannot load weights from '" + (folder / "w.pt").string() +
                "': none of its 4 names begins with 'module.'; the first is 'model.steps'");

  State other;
  other.set("x.linear.weight", weights.get<at::Tensor>("fc.weight") + 1);
  other.set("x.linear.bias", weights.get<at::Tensor>("fc.bias") + 1);
  other.set("x.steps", at::ones({}, at::kLong)).set("x.optimizer", at::ones(3));
  const auto map = [](const std::string& name) -> std::optional<std::string> {
    if (name == "optimizer") return std::nullopt;
    return name.starts_with("linear.") ? "fc." + name.substr(7) : name;
  };
  load_weights(net, written(other), {.prefix = "x."}, map);
  EXPECT_TRUE(net.fc->bias.equal(weights.get<at::Tensor>("fc.bias") + 1));
  EXPECT_EQ(error_of<std::runtime_error>([&] {
              load_weights(net, written(other), {}, [](const std::string&) { return std::string("a"); });
            }),
            "cannot load weights from '" + (folder / "w.pt").string() +
                "': map makes 'x.linear.bias' and another name 'a', expected different ones");
}

TEST_F(LoadWeightsTest, ListsAllThatIsWrong) {
  const std::string head =
      "cannot load the state of '" + (folder / "w.pt").string() + "' into " + net.name() + ":";
  State damaged = renamed(weights, "");
  damaged.set("fc.weight", at::ones({4, 3})).set("fc.bias", at::ones(3, at::kInt));
  damaged.set("steps", "many").set("more", at::ones({2, 2}));
  EXPECT_EQ(error(written(damaged)), head +
                                         "\n  unexpected (1):"
                                         "\n    more  [2, 2]"
                                         "\n  of another shape or kind (3):"
                                         "\n    steps      found a string, expected []"
                                         "\n    fc.weight  found [4, 3], expected [3, 4]"
                                         "\n    fc.bias    found Int, expected Float");
  // Not strict: of another kind is still an error, and of another shape unless it is to be ignored.
  EXPECT_NE(error(written(damaged), {.strict = false, .ignore_mismatched_shapes = true}), "");
  damaged.set("fc.bias", weights.get<at::Tensor>("fc.bias")).erase("steps");
  EXPECT_EQ(error(written(damaged), {.strict = false}),
            head + "\n  of another shape or kind (1):\n    fc.weight  found [4, 3], expected [3, 4]");
  const at::Tensor weight = net.fc->weight.clone();
  const KeyMismatch mismatch =
      load_weights(net, written(damaged), {.strict = false, .ignore_mismatched_shapes = true});
  EXPECT_EQ(mismatch.missing, (Names{"steps"}));
  EXPECT_EQ(mismatch.unexpected, (Names{"more"}));
  EXPECT_EQ(mismatch.mismatched, (Names{"fc.weight"}));
  EXPECT_TRUE(net.fc->weight.equal(weight));
  EXPECT_TRUE(net.fc->bias.equal(weights.get<at::Tensor>("fc.bias")));
}

TEST_F(LoadWeightsTest, SaysWhichPrefixIsTooMuch) {
  const std::string text = error(written(renamed(weights, "model.net.")));
  EXPECT_NE(text.find("\n  missing (3):\n    steps      []\n    fc.weight  [3, 4]\n    fc.bias    [3]"
                      "\n  unexpected (3):\n    model.net.steps      []"),
            std::string::npos)
      << text;
  EXPECT_TRUE(
      text.ends_with("\n  the missing names are there behind \"model.net.\": load_weights() with {.prefix = "
                     "\"model.net.\"} takes it off"))
      << text;
  State inner;
  inner.set("weight", at::ones({3, 4})).set("bias", at::ones(3));
  EXPECT_TRUE(error(written(inner))
                  .ends_with("\n  the unexpected names are the module's without \"fc.\": load into that "
                             "submodule, or put it before them by "
                             "load_weights()'s map"))
      << error(written(inner));
  EXPECT_EQ(error(written(State().set("other.weight", at::ones(1)))).find("behind"), std::string::npos);
  load_weights(*net.fc, written(inner));
  EXPECT_TRUE(net.fc->weight.equal(at::ones({3, 4})));
  // Long lists are shortened.
  State many = renamed(weights, "");
  for (int i = 0; i < 40; ++i) many.set("extra" + std::to_string(i), at::ones(1));
  const std::string longer = error(written(many));
  EXPECT_NE(longer.find("unexpected (40):"), std::string::npos);
  EXPECT_TRUE(longer.ends_with("\n    extra9  [1]\n    and 30 more")) << longer;
}

TEST_F(LoadWeightsTest, ConvertsWithoutLoss) {
  State halves = renamed(weights, "");
  halves.set("fc.weight", weights.get<at::Tensor>("fc.weight").to(at::kHalf))
      .set("steps", at::ones({}, at::kInt));
  load_weights(net, written(halves));
  EXPECT_EQ(net.fc->weight.scalar_type(), at::kFloat);
  EXPECT_TRUE(net.fc->weight.equal(halves.get<at::Tensor>("fc.weight").to(at::kFloat)));
  EXPECT_EQ(net.steps.item<std::int64_t>(), 1);
  for (const auto dtype : {at::kFloat, at::kBool, at::kUInt64}) {
    halves.set("steps", at::ones({}, dtype));
    EXPECT_NE(
        error(written(halves)).find("steps  found " + std::string(c10::toString(dtype)) + ", expected Long"),
        std::string::npos);
  }
}

TEST_F(LoadWeightsTest, MovesTheModuleFirst) {
  const State doubles = [&] {
    State all = renamed(weights, "");
    for (const char* name : {"fc.weight", "fc.bias"})
      all.set(name, at::randn_like(weights.get<at::Tensor>(name), at::kDouble));
    return all;
  }();
  const at::Tensor weight = net.fc->weight;
  load_weights(net, written(doubles), {.device = at::Device("cpu"), .dtype = at::kDouble});
  EXPECT_TRUE(net.fc->weight.is_same(weight));
  EXPECT_TRUE(same(weight, doubles.get<at::Tensor>("fc.weight")));  // not rounded to float on the way
  EXPECT_EQ(net.steps.scalar_type(), at::kLong);
  EXPECT_EQ(
      error_of<std::invalid_argument>([&] { load_weights(net, written(doubles), {.dtype = at::kInt}); }),
      "load_weights: dtype is Int, expected a floating-point one");
  // What fails has not moved it.
  EXPECT_NE(error(written(State().set("a", at::ones(1))), {.dtype = at::kHalf}), "");
  EXPECT_EQ(net.fc->weight.scalar_type(), at::kDouble);
}

TEST_F(LoadWeightsTest, MakesAModuleOfLightningsCheckpoint) {
  const auto lit = load_from_checkpoint<user::Net>(fixture("lightning.ckpt"));
  EXPECT_EQ(lit->hparams.widths, (std::vector<std::int64_t>{2, 4, 1}));
  EXPECT_EQ(lit->hparams.lr, 0.5f);
  EXPECT_FALSE(lit->hparams.bias);
  EXPECT_EQ(lit->hparams.name, "\u26a1");
  EXPECT_FALSE(lit->hparams.clip.has_value());
  EXPECT_EQ(lit->hparams.schedule.gamma, 0.25);
  EXPECT_EQ(lit->hparams.schedule.milestones, (std::vector<std::int64_t>{3, 5}));
  EXPECT_EQ(lit->hparams.kind, user::Kind::dense);
  const State file(checkpoint::read(fixture("lightning.ckpt")));
  EXPECT_TRUE(same(module_state(*lit), file.get<State>("state_dict")));
  // What is given comes first; and a module that can be made of nothing is.
  EXPECT_NE(error_of<std::runtime_error>([&] {
              load_from_checkpoint<user::Net>(fixture("lightning.ckpt"), 2, 4);
            }).find("layers.1.weight  [1, 4]"),
            std::string::npos);
  const auto partly = load_from_checkpoint<user::Net>(fixture("lightning.ckpt"), {.strict = false}, 2, 4);
  EXPECT_TRUE(
      same(*partly->named_parameters().find("layers.0.weight"), lit->named_parameters()["layers.0.weight"]));
  EXPECT_TRUE(same(module_state(*load_from_checkpoint<Small>(written(weights))), weights));
  EXPECT_TRUE(same(module_state(*load_from_checkpoint<Small>(written(weights), LoadWeights{.strict = false})),
                   weights));
  EXPECT_EQ(error_of<std::runtime_error>([&] { load_from_checkpoint<user::Net>(written(weights)); }),
            "cannot make the module of '" + (folder / "w.pt").string() +
                "': it has no hyper_parameters, expected them, or the arguments of user::Net's constructor");
}

TEST(Hyperparameters, ThereAndBack) {
  const user::Everything all;
  const State state = hyperparameters_state(all);
  EXPECT_EQ(state.keys(), (Names{"small", "large", "real", "pair", "flags", "kinds", "maybe", "schedules",
                                 "table", "none"}));
  EXPECT_EQ(state.get<std::vector<int>>("kinds"), std::vector<int>{2});
  EXPECT_TRUE(state.get<c10::IValue>("none").isNone());
  const user::Everything changed{.small = -128,
                                 .large = std::numeric_limits<std::int64_t>::max(),
                                 .real = 1e300,
                                 .pair = {3, 4},
                                 .flags = {false},
                                 .kinds = {},
                                 .maybe = std::nullopt,
                                 .schedules = {{7, {8, 9}}},
                                 .table = {{}, {5}},
                                 .none = "some"};
  TemporaryFolder folder;
  checkpoint::write(folder / "h.pt", hyperparameters_state(changed));
  const auto back = hyperparameters_from<user::Everything>(State(checkpoint::read(folder / "h.pt")));
  EXPECT_EQ(back.small, changed.small);
  EXPECT_EQ(back.large, changed.large);
  EXPECT_EQ(back.real, changed.real);
  EXPECT_EQ(back.pair, changed.pair);
  EXPECT_EQ(back.flags, changed.flags);
  EXPECT_EQ(back.kinds, changed.kinds);
  EXPECT_EQ(back.maybe, changed.maybe);
  ASSERT_EQ(back.schedules.size(), 1u);
  EXPECT_EQ(back.schedules[0].gamma, 7);
  EXPECT_EQ(back.schedules[0].milestones, (std::vector<std::int64_t>{8, 9}));
  EXPECT_EQ(back.table, changed.table);
  EXPECT_EQ(back.none, changed.none);
}

TEST(Hyperparameters, ErrorsNameTheKey) {
  const auto error = [](const State& state) {
    return error_of<std::runtime_error>([&] { hyperparameters_from<user::Everything>(state); });
  };
  EXPECT_EQ(error(State()), "");  // all as the struct has them
  EXPECT_EQ(hyperparameters_from<user::Everything>(State().set("small", 5)).small, 5);
  EXPECT_EQ(hyperparameters_from<user::Everything>(State().set("small", 5)).real, 0.1);
  EXPECT_EQ(error(State().set("rael", 1)),
            "state of hyper-parameters: key 'rael' is unknown, expected one of 'small', 'large', 'real', "
            "'pair', 'flags', "
            "'kinds', 'maybe', 'schedules', 'table', 'none'");
  EXPECT_EQ(error(State().set("real", "x")),
            "state of hyper-parameters: key 'real' is a string, expected a number");
  EXPECT_EQ(error(State().set("small", 128)),
            "state of hyper-parameters: key 'small' is 128, expected an integer from -128 to 127");
  EXPECT_EQ(error(State().set("pair", std::vector<int>{1})),
            "state of hyper-parameters: key 'pair' is a list of 1, expected 2");
  EXPECT_EQ(error(State().set("kinds", std::vector<int>{256})),
            "state of hyper-parameters: key 'kinds[0]' is 256, expected an integer from 0 to 255");
  const std::vector<State> schedules{State(), State().set("gama", 1)};
  EXPECT_EQ(
      error(State().set("schedules", schedules)),
      "state of hyper-parameters.schedules[1]: key 'gama' is unknown, expected one of 'gamma', 'milestones'");
  user::Everything all;
  all.large = std::numeric_limits<std::uint64_t>::max();
  EXPECT_NE(error_of<std::runtime_error>([&] {
              hyperparameters_state(all);
            }).find("'large' is 18446744073709551615"),
            std::string::npos);
}

}  // namespace
}  // namespace fulmen
