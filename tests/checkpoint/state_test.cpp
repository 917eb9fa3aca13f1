// fulmen::State, and the state of a module in the names and order of Python's.
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/state.hpp>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "testing.hpp"

namespace fulmen {
namespace {

using ::fulmen::testing::error_of;
using Names = std::vector<std::string>;

TEST(State, GivesWhatWasSet) {
  const std::string name = "run";
  const at::Tensor tensor = at::arange(3);
  State state("run");
  state.set("int", 3).set("size", std::size_t{5}).set("double", 0.5).set("float", 0.25f).set("bool", true);
  state.set("text", "abc").set("string", name).set("view", std::string_view("xyz")).set("tensor", tensor);
  state.set("inner", State().set("x", 1))
      .set("ints", std::vector<int>{1, 2})
      .set("none", std::optional<int>());
  state.set("some", std::optional<int>(4))
      .set("bools", std::vector<bool>{true, false})
      .set("value", c10::IValue(7));
  state.set("states", std::vector<State>{State().set("y", 2)})
      .set("tensors", std::vector<at::Tensor>{tensor})
      .set(3, "three");
  EXPECT_EQ(state.get<int>("int"), 3);
  EXPECT_EQ(state.get<double>("int"), 3.0);
  EXPECT_EQ(state.get<std::size_t>("size"), 5u);
  EXPECT_EQ(state.get<double>("double"), 0.5);
  EXPECT_EQ(state.get<float>("float"), 0.25f);
  EXPECT_TRUE(state.get<bool>("bool"));
  EXPECT_EQ(state.get<std::string>("text"), "abc");
  EXPECT_EQ(state.get<std::string>("string"), "run");
  EXPECT_EQ(state.get<std::string>("view"), "xyz");
  EXPECT_TRUE(state.get<at::Tensor>("tensor").is_same(tensor));
  EXPECT_EQ(state.get<State>("inner").get<int>("x"), 1);
  EXPECT_EQ(state.get<std::vector<int>>("ints"), (std::vector<int>{1, 2}));
  EXPECT_EQ(state.get<std::optional<int>>("none"), std::nullopt);
  EXPECT_EQ(state.get<std::optional<int>>("some"), 4);
  EXPECT_EQ(state.get<std::vector<bool>>("bools"), (std::vector<bool>{true, false}));
  EXPECT_EQ(state.get<c10::IValue>("value").toInt(), 7);
  EXPECT_EQ(state.get<std::vector<State>>("states").at(0).get<int>("y"), 2);
  EXPECT_EQ(state.get<std::vector<at::Tensor>>("tensors").size(), 1u);
  EXPECT_EQ(state.get<std::string>(3), "three");
  EXPECT_EQ(state.get_or<int>("absent", 9), 9);
  EXPECT_EQ(state.get_or<int>("int", 9), 3);
  EXPECT_TRUE(state.contains("int"));
  EXPECT_TRUE(state.contains(3));
  EXPECT_FALSE(state.contains("3"));
  EXPECT_TRUE(state.erase("int"));
  EXPECT_FALSE(state.erase("int"));
  EXPECT_EQ(state.set("text", 1).get<int>("text"), 1);
}

TEST(State, NamesWhatIsWrong) {
  const auto error = [](auto action) { return error_of<std::runtime_error>(action); };
  State state("AdamW");
  state.set("lr", "fast").set("step", 3).set("betas", std::vector<double>{0.9}).set("w", at::ones(1));
  state.set("group", State().set("ids", std::vector<std::string>{"a"}));
  EXPECT_EQ(error([&] { state.get<double>("lr"); }),
            "state of AdamW: key 'lr' is a string, expected a number");
  EXPECT_EQ(error([&] { state.get<int>("lr"); }),
            "state of AdamW: key 'lr' is a string, expected an integer");
  EXPECT_EQ(error([&] { state.get<bool>("step"); }),
            "state of AdamW: key 'step' is an integer, expected a bool");
  EXPECT_EQ(error([&] { state.get<std::string>("w"); }),
            "state of AdamW: key 'w' is a tensor, expected a string");
  EXPECT_EQ(error([&] { state.get<at::Tensor>("betas"); }),
            "state of AdamW: key 'betas' is a list, expected a tensor");
  EXPECT_EQ(error([&] { state.get<State>("step"); }),
            "state of AdamW: key 'step' is an integer, expected a dict");
  EXPECT_EQ(error([&] { state.get<std::vector<int>>("betas"); }),
            "state of AdamW: key 'betas[0]' is a number, expected an integer");
  EXPECT_EQ(error([&] { state.get<std::vector<int>>("step"); }),
            "state of AdamW: key 'step' is an integer, expected a list");
  EXPECT_EQ(error([&] { state.get<State>("group").get<std::vector<int>>("ids"); }),
            "state of AdamW.group: key 'ids[0]' is a string, expected an integer");
  EXPECT_EQ(error([&] { state.get<int>("epoch"); }),
            "state of AdamW: key 'epoch' is missing; it has 'lr', 'step', 'betas', 'w', 'group'");
  EXPECT_EQ(error([&] { State().get<int>(0); }), "state: key '0' is missing; it has no keys");
  EXPECT_EQ(error([&] { state.set("big", 300).get<std::uint8_t>("big"); }),
            "state of AdamW: key 'big' is 300, expected an integer from 0 to 255");
  EXPECT_EQ(error([&] { state.set("huge", std::numeric_limits<std::uint64_t>::max()); }),
            "state of AdamW: key 'huge' is 18446744073709551615, expected an integer of 64 bits with a sign");
  EXPECT_EQ(error([&] { State(c10::IValue(3), "file.pt"); }),
            "state of file.pt: it is an integer, expected a dict");
  State many;
  for (int i = 0; i < 10; ++i) many.set(i, i);
  EXPECT_EQ(error([&] { many.get<int>("x"); }),
            "state: key 'x' is missing; it has '0', '1', '2', '3', '4', '5', '6', '7' and 2 more");
}

struct Block : torch::nn::Module {
  torch::nn::Linear linear{2, 2};
  torch::nn::BatchNorm1d norm{2};
  Block() {
    register_module("linear", linear);
    register_buffer("own_buffer", at::zeros(1));
    register_module("norm", norm);
    register_parameter("own", at::zeros(1));
    register_parameter("undefined", at::Tensor(), /*requires_grad=*/false);
  }
};

struct Net : torch::nn::Module {
  std::shared_ptr<Block> first = std::make_shared<Block>();
  torch::nn::Linear last{2, 1};
  Net() {
    register_module("first", first);
    register_module("last", last);
    register_module("again", last);
  }
};

TEST(ModuleState, HasPythonsNamesAndOrder) {
  EXPECT_EQ(
      module_state(Net()).keys(),
      (Names{"first.own", "first.own_buffer", "first.linear.weight", "first.linear.bias", "first.norm.weight",
             "first.norm.bias", "first.norm.running_mean", "first.norm.running_var",
             "first.norm.num_batches_tracked", "last.weight", "last.bias", "again.weight", "again.bias"}));
}

// Python's optimizers number the parameters in state_dict()'s order, and LibTorch's parameters() has the
// same.
TEST(ModuleState, HasTheOrderOfParameters) {
  const Block block;
  Names names;
  for (const std::string& key : module_state(block).keys()) {
    if (block.named_parameters().contains(key)) names.push_back(key);
  }
  EXPECT_EQ(names, block.named_parameters().keys());
}

TEST(ModuleState, IsLoadedInPlace) {
  Net from;
  Net into;
  const at::Tensor weight = into.last->weight;
  load_module_state(into, module_state(from));
  EXPECT_TRUE(into.last->weight.is_same(weight));
  EXPECT_TRUE(weight.requires_grad());
  EXPECT_TRUE(weight.is_leaf());
  EXPECT_TRUE(weight.equal(from.last->weight));
  EXPECT_FALSE(module_state(from).get<at::Tensor>("last.weight").requires_grad());
  // Another floating-point type is converted.
  const State whole = module_state(from);
  State halves;
  for (const std::string& key : whole.keys()) {
    const at::Tensor zeros = at::zeros_like(whole.get<at::Tensor>(key));
    halves.set(key, zeros.is_floating_point() ? zeros.to(at::kHalf) : zeros);
  }
  load_module_state(into, halves);
  EXPECT_EQ(weight.scalar_type(), at::kFloat);
  EXPECT_EQ(weight.abs().sum().item<float>(), 0.f);
}

TEST(ModuleState, TellsAllThatIsWrongAndChangesNothing) {
  Net net;
  const State before = module_state(net);
  State state("net.pt");
  for (const std::string& key : before.keys()) state.set(key, before.get<at::Tensor>(key) + 1);
  state.erase("first.own");
  state.erase("last.bias");
  state.erase("again.bias");  // the same tensor: either would do
  state.set("head.weight", at::ones(1)).set("epoch", 3);
  state.set("last.weight", at::ones({4, 2})).set("first.norm.bias", "none");
  const at::Tensor untouched = net.first->linear->weight.clone();
  EXPECT_EQ(error_of<std::runtime_error>([&] { load_module_state(net, state); }),
            "cannot load the state of net.pt into " + net.name() +
                ":\n  missing (3):"
                "\n    first.own   [1]"
                "\n    last.bias   [1]"
                "\n    again.bias  [1]"
                "\n  unexpected (2):"
                "\n    head.weight  [1]"
                "\n    epoch        an integer"
                "\n  of another shape or kind (2):"
                "\n    first.norm.bias  found a string, expected [2]"
                "\n    last.weight      found [4, 2], expected [1, 2]");
  EXPECT_TRUE(net.first->linear->weight.equal(untouched));
  // Not strict: keys may differ, shapes may not.
  EXPECT_NE(error_of<std::runtime_error>([&] {
              load_module_state(net, state, /*strict=*/false);
            }).find("of another shape or kind (2):"),
            std::string::npos);
  EXPECT_TRUE(net.first->linear->weight.equal(untouched));
  state.set("last.weight", at::ones({1, 2})).set("first.norm.bias", at::ones(2));
  const KeyMismatch mismatch = load_module_state(net, state, /*strict=*/false);
  EXPECT_EQ(mismatch.missing, (Names{"first.own", "last.bias", "again.bias"}));
  EXPECT_EQ(mismatch.unexpected, (Names{"head.weight", "epoch"}));
  EXPECT_TRUE(net.first->linear->weight.equal(untouched + 1));
}

}  // namespace
}  // namespace fulmen
