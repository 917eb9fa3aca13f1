// Tests flat(): weights, state dicts and clipping are those of the same optimizer without it, whatever
// happens to parameters and gradients, and the parameters do lie side by side.
#include "../testing.hpp"
#include "fixtures.hpp"

#include <fulmen/callbacks/weight_averaging.hpp>
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/checkpoint.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/criteria/classification.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/optim/averaged_model.hpp>
#include <fulmen/optim/clip.hpp>
#include <fulmen/optim/flat.hpp>
#include <fulmen/seed.hpp>
#include <fulmen/trainer.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace fulmen;
using fixtures::json;
using fixtures::Problem;
using fulmen::detail::FlatMemory;
using fulmen::detail::gradient_place;

const bool one_thread [[maybe_unused]] = (at::set_num_threads(1), true);

const std::vector<std::string> kinds = {"SGD",      "Adam",    "AdamW",   "NAdam", "RAdam", "Adamax",
                                        "Adadelta", "Adagrad", "RMSprop", "Rprop", "ASGD",  "Lion"};

// ---- Parameters of two optimizers, one of which is flat

/// How gradients come: in tensors of their own, as from autograd; where the flat memory wants them; or now
/// so, now so.
enum class Come { anywhere, in_place, mixed };

struct Twins {
  std::vector<at::Tensor> plain, flat;
  std::mt19937 random{7};

  /// Of some shapes, types and layouts; all of one type where they are to be in one pass.
  explicit Twins(bool several_types, bool bfloat16 = false) {
    at::manual_seed(3);
    const std::vector<std::vector<std::int64_t>> shapes{{3, 5},    {7},  {},  {16},      {0, 2},
                                                        {4, 2, 3}, {33}, {1}, {130, 130}};
    for (const auto& shape : shapes) {
      add(at::randn(shape, bfloat16 ? at::kBFloat16 : at::kFloat));
      if (several_types) add(at::randn(shape, at::kDouble));
    }
    add(at::randn({6, 4}, bfloat16 ? at::kBFloat16 : at::kFloat).t());  // not contiguous
  }
  void add(const at::Tensor& values) {
    plain.push_back(values.clone().requires_grad_(true));
    flat.push_back(values.clone().requires_grad_(true));
  }
  static NamedParameters named(const std::vector<at::Tensor>& tensors) {
    NamedParameters all;
    for (const at::Tensor& t : tensors) all.push_back({"p" + std::to_string(all.size()), t});
    return all;
  }
  /// The same gradients for both. @param without probability that a parameter has none
  void make_gradients(Come come, double without = 0) {
    std::bernoulli_distribution none(without), coin(0.5);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      plain[i].mutable_grad().reset(), flat[i].mutable_grad().reset();
      if (none(random)) continue;
      const at::Tensor g = at::randn(plain[i].sizes(), plain[i].options().requires_grad(false));
      plain[i].mutable_grad() = g.clone();
      at::Tensor place = come == Come::in_place || (come == Come::mixed && coin(random))
                             ? gradient_place(flat[i])
                             : at::Tensor();
      flat[i].mutable_grad() = place.defined() ? place.copy_(g) : g;
    }
  }
  void expect_equal(const char* when) {
    for (std::size_t i = 0; i < plain.size(); ++i)
      ASSERT_TRUE(plain[i].equal(flat[i])) << when << ": parameter " << i;
  }
};

/// Whether two states hold the same, bit for bit.
void expect_same(const c10::IValue& a, const c10::IValue& b, const std::string& path) {
  SCOPED_TRACE(path);
  if (a.isTensor()) {
    ASSERT_TRUE(b.isTensor());
    EXPECT_EQ(a.toTensor().sizes(), b.toTensor().sizes());
    EXPECT_TRUE(a.toTensor().equal(b.toTensor()));
  } else if (a.isGenericDict()) {
    ASSERT_TRUE(b.isGenericDict());
    ASSERT_EQ(a.toGenericDict().size(), b.toGenericDict().size());
    for (const auto& entry : a.toGenericDict()) {
      const auto found = b.toGenericDict().find(entry.key());
      ASSERT_NE(found, b.toGenericDict().end());
      const c10::IValue& key = entry.key();
      expect_same(entry.value(), found->value(),
                  path + "." + (key.isString() ? key.toStringRef() : std::to_string(key.toInt())));
    }
  } else if (a.isList()) {
    ASSERT_TRUE(b.isList());
    ASSERT_EQ(a.toListRef().size(), b.toListRef().size());
    for (std::size_t i = 0; i < a.toListRef().size(); ++i)
      expect_same(a.toListRef()[i], b.toListRef()[i], path + "[]");
  } else {
    EXPECT_EQ(a, b);
  }
}
void expect_same(const State& a, const State& b) { expect_same(c10::IValue(a), c10::IValue(b), "state"); }

TEST(Flat, HasTheBitsOfTheSameOptimizerAfter100Steps) {
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    fixtures::with_policy(kind, [](const auto& policy) {
      for (const Come come : {Come::anywhere, Come::in_place, Come::mixed}) {
        for (const int variant :
             {0, 1, 2}) {  // all at once, with parameters that now and then have no gradient, two types
          SCOPED_TRACE(static_cast<int>(come) * 10 + variant);
          Twins twins(variant == 2);
          auto plain = policy.bind(Twins::named(twins.plain));
          auto laid = flat(policy).bind(Twins::named(twins.flat));
          for (int step = 0; step < 100; ++step) {
            if (step == 60) plain.groups()[0].lr *= 0.5, laid.groups()[0].lr *= 0.5;
            twins.make_gradients(come, variant == 1 ? 0.1 : 0);
            plain.step(), laid.step();
          }
          twins.expect_equal("after 100 steps");
          expect_same(plain.state_dict(), laid.state_dict());
        }
      }
    });
  }
}

TEST(Flat, ByListsToo) {
  for (const std::string& kind : kinds) {
    SCOPED_TRACE(kind);
    fixtures::with_policy(kind, [](const auto& policy) {
      for (const Come come : {Come::anywhere, Come::in_place, Come::mixed}) {
        Twins twins(false, true);
        auto plain = policy.bind(Twins::named(twins.plain));
        auto laid = flat(policy).bind(Twins::named(twins.flat));
        for (int step = 0; step < 20; ++step) {
          twins.make_gradients(come, step % 4 == 0 ? 0.2 : 0);
          plain.step(), laid.step();
        }
        using Policy = std::remove_cvref_t<decltype(policy)>;
        if constexpr (std::is_same_v<Policy, ASGD> || std::is_same_v<Policy, Lion>) {
          // ATen's sums in bfloat16 are rounded otherwise in the last few elements of a tensor than in the
          // others.
          for (std::size_t i = 0; i < twins.plain.size(); ++i) {
            EXPECT_TRUE(at::allclose(twins.plain[i], twins.flat[i], 1. / 32, 1. / 32));
          }
        } else {
          twins.expect_equal("after 20 steps");
          expect_same(plain.state_dict(), laid.state_dict());
        }
      }
    });
  }
}

TEST(Flat, IsWherePythonIs) {
  for (const json& run : fixtures::file()["runs"]) {
    if (run["dtype"] != "float64") continue;
    SCOPED_TRACE(run["name"].get<std::string>());
    fixtures::with_policy(run["optimizer"], [&](const auto& defaults) {
      Problem problem(at::kDouble, run["late"]);
      auto optimizer = flat(fixtures::policy_of(run["options"], defaults)).bind(problem.parameters());
      for (int step = 0; step < fixtures::file()["steps"].get<int>(); ++step) {
        problem.make_gradients(step);
        optimizer.step();
      }
      for (const char* name : fixtures::parameter_names) {
        const at::Tensor want = at::tensor(run["parameters"][name].get<std::vector<double>>(), at::kDouble);
        const at::Tensor difference = problem.t.at(name).detach().flatten() - want;
        EXPECT_LE(difference.abs().max().item<double>(), 1e-12 * want.abs().max().item<double>());
      }
    });
  }
}

TEST(Flat, GoesOnFromPythonsStateDicts) {
  const State all(checkpoint::read(FULMEN_TEST_DATA_DIR "/optim/states.pt"));
  int loaded = 0;
  for (const json& run : fixtures::file()["runs"]) {
    const std::string name = run["name"];
    if (run["dtype"] != "float64" || !all.contains(name)) continue;
    SCOPED_TRACE(name);
    ++loaded;
    fixtures::with_policy(run["optimizer"], [&](auto policy) {
      Problem problem(at::kDouble, run["late"]);
      const State saved = all.get<State>(name);
      auto optimizer = flat(policy).bind(problem.parameters());
      // It has state of its own already, and not the one that is loaded.
      problem.make_gradients(0);
      optimizer.step();
      {
        const at::NoGradGuard no_grad;
        for (const char* p : fixtures::parameter_names)
          problem.t.at(p).copy_(saved.get<State>("parameters").get<at::Tensor>(p));
      }
      optimizer.load_state_dict(saved.get<State>("optimizer"));
      for (int step = fixtures::file()["saved"]; step < fixtures::file()["steps"].get<int>(); ++step) {
        problem.make_gradients(step);
        optimizer.step();
      }
      for (const char* p : fixtures::parameter_names) {
        const at::Tensor want = at::tensor(run["parameters"][p].get<std::vector<double>>(), at::kDouble);
        const at::Tensor difference = problem.t.at(p).detach().flatten() - want;
        EXPECT_LE(difference.abs().max().item<double>(), 1e-12 * want.abs().max().item<double>());
      }
    });
  }
  EXPECT_EQ(loaded, 12);
}

TEST(Flat, StateDictsGoFromOneToTheOther) {
  const TemporaryFolder folder;
  Twins twins(true);
  auto plain = AdamW{.amsgrad = true}.bind(Twins::named(twins.plain));
  auto laid = flat(AdamW{.amsgrad = true}).bind(Twins::named(twins.flat));
  for (int step = 0; step < 30; ++step) {
    if (step % 10 == 5) {  // they exchange their states, through a file
      checkpoint::write(folder.path / "plain.pt", plain.state_dict());
      checkpoint::write(folder.path / "other.pt", laid.state_dict());
      EXPECT_EQ(std::filesystem::file_size(folder.path / "plain.pt"),
                std::filesystem::file_size(folder.path / "other.pt"));
      plain.load_state_dict(State(checkpoint::read(folder.path / "other.pt")));
      laid.load_state_dict(State(checkpoint::read(folder.path / "plain.pt")));
    }
    twins.make_gradients(Come::mixed, 0.1);  // so that counters differ
    plain.step(), laid.step();
  }
  twins.expect_equal("after 30 steps");
  expect_same(plain.state_dict(), laid.state_dict());

  State broken = laid.state_dict().get<State>("state");
  broken.set(3, State().set("step", at::scalar_tensor(1.0)).set("exp_avg", at::zeros({2})));
  const State before(laid.state_dict());
  const auto groups = before.get<std::vector<State>>("param_groups");
  const std::string error =
      error_of([&] { laid.load_state_dict(State().set("state", broken).set("param_groups", groups)); });
  EXPECT_NE(error.find("p3"), std::string::npos) << error;
  expect_same(before, laid.state_dict());
}

// ---- Where things lie

TEST(Flat, ParametersStateAndGradientsLieSideBySide) {
  for (const auto type : {at::kFloat, at::kDouble}) {
    std::vector<at::Tensor> p{at::randn({3, 5}, type).requires_grad_(true),
                              at::randn({16}, type).requires_grad_(true),
                              at::randn({2}, type).requires_grad_(true)};
    auto optimizer = flat(Adam{}).bind(Twins::named(p));
    std::vector<at::Tensor> places;
    for (const at::Tensor& t : p) {
      EXPECT_TRUE(t.is_leaf() && t.requires_grad() && t.is_contiguous());
      EXPECT_EQ(t.storage().data(), p[0].storage().data());
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.data_ptr()) % 64, 0u);
      places.push_back(gradient_place(t));
      EXPECT_EQ(places.back().sizes(), t.sizes());
      t.mutable_grad() = places.back().fill_(1);
    }
    const std::int64_t step = 64 / p[0].element_size();
    EXPECT_EQ(p[1].storage_offset(), 16);
    EXPECT_EQ(p[2].storage_offset(), 32);
    EXPECT_EQ(FlatMemory::of(p[0])->parameters().numel(), 32 + step);
    // One norm over all of them, and what is between them is 0.
    fulmen::detail::GradientRuns runs;
    for (const at::Tensor& t : p) runs.add(t);
    const std::vector<at::Tensor> lists = runs.tensors();
    ASSERT_EQ(lists.size(), 1u);
    EXPECT_EQ(lists[0].numel(), 34);
    EXPECT_EQ(lists[0].sum().item<double>(), 33);
    for (int i = 0; i < 3; ++i) optimizer.step();
    const State first = optimizer.state_dict().get<State>("state").get<State>(0);
    const State last = optimizer.state_dict().get<State>("state").get<State>(2);
    for (const char* name : {"exp_avg", "exp_avg_sq"}) {
      EXPECT_TRUE(first.get<at::Tensor>(name).is_alias_of(last.get<at::Tensor>(name)));
      EXPECT_TRUE(
          at::allclose(last.get<at::Tensor>(name), first.get<at::Tensor>(name).flatten()[0].expand({2})));
    }
    const at::Tensor all = FlatMemory::of(p[0])->parameters();
    EXPECT_EQ(all[15].item<double>(), 0);
    EXPECT_EQ(all.slice(0, 34).abs().sum().item<double>(), 0);
  }
}

TEST(Flat, LeavesAloneWhatCannotMove) {
  const at::Tensor base = at::randn({12});
  std::vector<at::Tensor> p{
      at::randn({4}).requires_grad_(true),        at::randn({4}),
      base.slice(0, 0, 8).requires_grad_(true),   base.slice(0, 4).detach().requires_grad_(true),
      at::randn({3, 2}).t().requires_grad_(true), at::randn({0}).requires_grad_(true)};
  std::vector<const void*> before;
  for (const at::Tensor& t : p) before.push_back(t.data_ptr());
  auto optimizer = flat(SGD{.lr = 1}).bind(Twins::named(p));
  EXPECT_NE(FlatMemory::of(p[0]), nullptr);
  for (std::size_t i = 1; i < p.size(); ++i) {
    EXPECT_EQ(p[i].data_ptr(), before[i]) << i;
    EXPECT_EQ(FlatMemory::of(p[i]), nullptr) << i;
    EXPECT_FALSE(gradient_place(p[i]).defined()) << i;
  }
  p[1].requires_grad_(true);  // freed later
  std::vector<at::Tensor> values;
  for (const at::Tensor& t : p) values.push_back(t.detach().clone()), t.mutable_grad() = at::ones_like(t);
  p[3].mutable_grad().reset();
  optimizer.step();
  for (const std::size_t i : {0, 1, 2, 4}) EXPECT_TRUE(p[i].equal(values[i] - 1)) << i;
  EXPECT_TRUE(p[3].slice(0, 4).equal(values[3].slice(0, 4)));
  EXPECT_TRUE(p[3].slice(0, 0, 4).equal(values[3].slice(0, 0, 4) - 1));
}

TEST(Flat, ParametersThatAreGivenOtherMemoryAreUpdatedThere) {
  Twins twins(false);
  auto plain = AdamW{}.bind(Twins::named(twins.plain));
  auto laid = flat(AdamW{}).bind(Twins::named(twins.flat));
  for (int step = 0; step < 12; ++step) {
    if (step == 4) twins.flat[3].set_data(twins.flat[3].detach().clone());
    if (step == 8)
      laid = flat(AdamW{}).bind(Twins::named(twins.flat)), laid.load_state_dict(plain.state_dict());
    twins.make_gradients(Come::in_place);
    plain.step(), laid.step();
    twins.expect_equal("with one moved");
  }
  twins.flat[3].set_data(twins.flat[3].detach().to(at::kDouble));
  twins.flat[3].mutable_grad() = at::zeros({16}, at::kDouble);
  EXPECT_EQ(
      error_of([&] { laid.step(); }),
      "parameter 'p3' was given another type, device, shape or layout after the optimizer was bound to it");
}

TEST(Flat, TiedAfterwardsTheyDoNotShareAPlace) {
  std::vector<at::Tensor> p{at::randn({4}).requires_grad_(true), at::randn({4}).requires_grad_(true)};
  auto optimizer = flat(SGD{.lr = 1}).bind(Twins::named(p));
  p[1].set_data(p[0]);
  EXPECT_TRUE(gradient_place(p[0]).defined());
  EXPECT_FALSE(gradient_place(p[1]).defined());
}

TEST(Flat, OutlivesItsOptimizer) {
  at::Tensor p = at::ones({3}).requires_grad_(true), q = at::ones({2}).requires_grad_(true);
  { auto optimizer = flat(SGD{}).bind({{"p", p}, {"q", q}}); }
  q.reset();
  p.mutable_grad() = gradient_place(p).fill_(2);
  EXPECT_EQ(p.sum().item<double>() + p.grad().sum().item<double>(), 9);
}

TEST(Flat, AutogradSeesThatParametersChange) {
  const at::Tensor w = at::ones({3}).requires_grad_(true);
  auto optimizer = flat(SGD{}).bind({{"w", w}});
  const at::Tensor y = (w * w).sum();
  w.mutable_grad() = gradient_place(w).fill_(1);
  optimizer.step();
  EXPECT_ANY_THROW(y.backward());
}

TEST(Flat, AutogradAddsToGradientsInTheirPlace) {
  const at::Tensor w = at::ones({3}).requires_grad_(true);
  auto optimizer = flat(SGD{.lr = 1}).bind({{"w", w}});
  w.mutable_grad() = gradient_place(w).fill_(1);
  (2 * w).sum().backward();
  EXPECT_TRUE(w.grad().is_alias_of(gradient_place(w)));
  optimizer.step();
  EXPECT_TRUE(w.equal(at::full({3}, -2.f)));
  optimizer.zero_grad();
  EXPECT_FALSE(w.grad().defined());
}

// ---- Clipping

TEST(Flat, ClipsAsWithoutIt) {
  for (const bool types : {false, true}) {
    for (const Come come : {Come::anywhere, Come::in_place, Come::mixed}) {
      for (const double max : {0.01, 3.0, 1e6}) {
        Twins twins(types);
        auto plain = SGD{}.bind(Twins::named(twins.plain));
        auto laid = flat(SGD{}).bind(Twins::named(twins.flat));
        for (int step = 0; step < 4; ++step) {
          twins.make_gradients(come, step == 3 ? 0.3 : 0);
          const bool by_norm = step % 2 == 1;
          if (by_norm) {
            const double expected = clip_grad_norm(plain.groups(), max).item<double>();
            EXPECT_NEAR(clip_grad_norm(laid.groups(), max).item<double>(), expected, 1e-6 * expected);
          } else {
            clip_grad_value(plain.groups(), max), clip_grad_value(laid.groups(), max);
          }
          for (std::size_t i = 0; i < twins.plain.size(); ++i) {
            const at::Tensor &a = twins.plain[i].grad(), &b = twins.flat[i].grad();
            ASSERT_EQ(a.defined(), b.defined());
            if (!a.defined()) continue;
            EXPECT_TRUE(by_norm ? at::allclose(a, b, 1e-6, 0) : a.equal(b)) << i;
          }
        }
      }
    }
  }
}

TEST(Flat, ClippingTellsAndKeepsWhatIsNotFinite) {
  const at::Tensor w = at::ones({3}).requires_grad_(true), v = at::ones({2}).requires_grad_(true);
  auto optimizer = flat(SGD{}).bind({{"w", w}, {"v", v}});
  EXPECT_FALSE(clip_grad_norm(optimizer.groups(), 1).defined());
  w.mutable_grad() = gradient_place(w).fill_(std::nan(""));
  v.mutable_grad() = gradient_place(v).fill_(1);
  EXPECT_TRUE(clip_grad_norm(optimizer.groups(), 1).isnan().item<bool>());
  EXPECT_TRUE(v.grad().isnan().all().item<bool>());
}

// ---- Modules and the Trainer

struct NetImpl : torch::nn::Cloneable<NetImpl> {
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  NetImpl() { reset(); }
  void reset() override {
    first = register_module("first", torch::nn::Linear(4, 8));
    norm = register_module("norm", torch::nn::BatchNorm1d(8));
    second = register_module("second", torch::nn::Linear(8, 3));
  }
  at::Tensor forward(const at::Tensor& x) { return second(at::relu(norm(first(x)))); }
};

NamedParameters parameters_in(const torch::nn::Module& module) {
  NamedParameters all;
  for (const auto& p : module.named_parameters()) all.push_back({p.key(), p.value()});
  return all;
}

TEST(Flat, ModulesAreSavedClonedAndAveragedAsEver) {
  const TemporaryFolder folder;
  torch::manual_seed(1);
  NetImpl net, plain;
  load_module_state(plain, module_state(net));
  auto optimizer = flat(AdamW{}).bind(parameters_in(net));
  checkpoint::write(folder.path / "plain.pt", module_state(plain));
  checkpoint::write(folder.path / "other.pt", module_state(net));
  EXPECT_EQ(std::filesystem::file_size(folder.path / "plain.pt"),
            std::filesystem::file_size(folder.path / "other.pt"));
  expect_same(module_state(plain), State(checkpoint::read(folder.path / "other.pt")));

  const auto copy = std::dynamic_pointer_cast<NetImpl>(net.clone());
  EXPECT_FALSE(copy->first->weight.is_alias_of(net.first->weight));
  EXPECT_EQ(FlatMemory::of(copy->first->weight), nullptr);
  EXPECT_TRUE(copy->second->bias.equal(net.second->bias));

  AveragedModel average(net);
  {
    const at::NoGradGuard no_grad;
    net.first->weight.add_(1);
  }
  average.update_parameters(net);
  average.swap(net);
  load_module_state(net, module_state(plain));
  EXPECT_TRUE(net.first->weight.equal(plain.first->weight));
  EXPECT_NE(FlatMemory::of(net.first->weight), nullptr);
  net.to(at::kCPU);
  EXPECT_NE(gradient_place(net.first->weight).defined(), false);
}

const auto is_bias = [](std::string_view name) { return name.ends_with("bias"); };

TEST(Flat, GroupsAreFlatEach) {
  torch::manual_seed(1);
  NetImpl a, b;
  load_module_state(b, module_state(a));
  const auto policy =
      param_groups("rest", AdamW{.lr = 0.1}, group("biases", is_bias, AdamW{.lr = 0.2, .weight_decay = 0}));
  auto plain = policy.bind(parameters_in(a));
  auto laid = flat(policy).bind(parameters_in(b));
  EXPECT_EQ(laid.names(), (std::vector<std::string>{"rest", "biases"}));
  EXPECT_NE(FlatMemory::of(b.first->weight), FlatMemory::of(b.first->bias));
  EXPECT_EQ(FlatMemory::of(b.second->bias), FlatMemory::of(b.first->bias));
  for (int step = 0; step < 20; ++step) {
    const at::Tensor x = at::randn({6, 4});
    for (auto* net : {&a, &b}) net->zero_grad(), net->forward(x).square().sum().backward();
    plain.step(), laid.step();
  }
  expect_same(module_state(a), module_state(b));
  expect_same(plain.state_dict(), laid.state_dict());
}

/// Trains; all is determined by the seed. @param path of a checkpoint, written after two epochs or resumed
/// from
template <class Policy>
std::shared_ptr<NetImpl> trained(const Policy& policy, std::int64_t epochs, auto with,
                                 const std::filesystem::path& write = {},
                                 const std::filesystem::path& resume = {}) {
  seed_everything(5);
  auto net = std::make_shared<NetImpl>();
  const at::Tensor x = at::randn({40, 4}), y = at::randint(3, {40}, at::kLong);
  TensorLoader loader{{x, y}, {.batch_size = 8, .shuffle = true}};
  Trainer trainer{net,
                  CrossEntropy{},
                  policy,
                  none,
                  Identity{},
                  with,
                  {.max_epochs = epochs, .accumulate_grad_batches = 2},
                  barebones};
  trainer.fit(loader, {.ckpt_path = resume});
  if (!write.empty()) trainer.save(write);
  return net;
}

TEST(Flat, TrainerGivesTheSameWeightsAndCheckpoints) {
  const TemporaryFolder folder;
  const auto policy = Adam{.lr = 0.05};
  const auto averaging = callbacks(EMAWeightAveraging{.decay = 0.9});
  expect_same(module_state(*trained(policy, 4, averaging)),
              module_state(*trained(flat(policy), 4, averaging)));
  const auto nothing = callbacks();
  const State whole = module_state(*trained(policy, 4, nothing));
  expect_same(whole, module_state(*trained(flat(policy), 4, nothing)));
  trained(policy, 2, nothing, folder.path / "plain.ckpt");
  trained(flat(policy), 2, nothing, folder.path / "other.ckpt");
  EXPECT_EQ(std::filesystem::file_size(folder.path / "plain.ckpt"),
            std::filesystem::file_size(folder.path / "other.ckpt"));
  for (const char* name : {"plain.ckpt", "other.ckpt"}) {
    SCOPED_TRACE(name);
    expect_same(whole, module_state(*trained(policy, 4, nothing, {}, folder.path / name)));
    expect_same(whole, module_state(*trained(flat(policy), 4, nothing, {}, folder.path / name)));
  }
}

}  // namespace
