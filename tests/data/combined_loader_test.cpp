// Tests data/combined_loader.hpp against what Lightning's CombinedLoader yields
// (fixtures/lightning/combined.json).
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <forward_list>
#include <fstream>
#include <fulmen/criteria/criteria.hpp>
#include <fulmen/data/combined_loader.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/trainer.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace fulmen;
using nlohmann::json;
using Numbers = std::vector<std::int64_t>;

json plain(std::int64_t value) { return value; }
json plain(const std::optional<std::int64_t>& value) { return value ? json(*value) : json(nullptr); }
template <class... T>
json plain(const std::tuple<T...>& batch) {
  json out = json::array();
  std::apply([&](const auto&... value) { (out.push_back(plain(value)), ...); }, batch);
  return out;
}

template <class Mode>
void compare(const json& expected, Mode mode, const std::vector<Numbers>& lists) {
  const auto check = [&](auto loader) {
    static_assert(Loader<decltype(loader)>);
    EXPECT_EQ(loader.size(), expected["size"].get<std::int64_t>());
    for (const json& epoch : expected["epochs"]) {
      json found = json::array();
      for (auto&& batch : loader) found.push_back(plain(batch));
      EXPECT_EQ(found, epoch);
    }
  };
  if (lists.size() == 2)
    check(combined(mode, lists[0], lists[1]));
  else
    check(combined(mode, lists.at(0), lists.at(1), lists.at(2)));
}

TEST(CombinedLoader, YieldsWhatLightningsDoes) {
  const json cases = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/lightning/combined.json"));
  ASSERT_EQ(cases.size(), 5u);
  for (const auto& [name, one] : cases.items()) {
    const auto lists = one["lists"].get<std::vector<Numbers>>();
    SCOPED_TRACE(name);
    {
      SCOPED_TRACE("min_size");
      compare(one["min_size"], CombineMode::min_size, lists);
    }
    {
      SCOPED_TRACE("max_size_cycle");
      compare(one["max_size_cycle"], CombineMode::max_size_cycle, lists);
    }
    {
      SCOPED_TRACE("max_size");
      compare(one["max_size"], CombineMode::max_size, lists);
    }
    {
      SCOPED_TRACE("sequential");
      compare(one["sequential"], CombineMode::sequential, lists);
    }
  }
}

TEST(CombinedLoader, BatchTypes) {
  Numbers a{1};
  std::vector<double> b{2.0};
  const auto batch = [](auto loader) { return *loader.begin(); };
  static_assert(std::is_same_v<decltype(batch(combined(CombineMode::min_size, a, b))),
                               std::tuple<std::int64_t, double>>);
  static_assert(std::is_same_v<decltype(batch(combined(CombineMode::max_size, a, b))),
                               std::tuple<std::optional<std::int64_t>, std::optional<double>>>);
  static_assert(std::is_same_v<decltype(batch(combined(CombineMode::sequential, a, a))), std::int64_t>);
}

TEST(CombinedLoader, RefersToLvaluesAndKeepsRvalues) {
  Numbers a{1, 2};
  auto loader = combined(CombineMode::min_size, a, Numbers{5, 6, 7});
  EXPECT_EQ(loader.size(), 2);
  a.push_back(3);
  EXPECT_EQ(loader.size(), 3);
  EXPECT_EQ(combined(CombineMode::sequential, std::make_unique<Numbers>(a), a).size(), 6)
      << "a pointer to a loader";
}

TEST(CombinedLoader, HasNoSizeWhereALoaderHasNone) {
  Numbers a{1, 2};
  std::forward_list<std::int64_t> unsized{5, 6, 7};
  auto loader = combined(CombineMode::max_size_cycle, a, unsized);
  static_assert(!fulmen::detail::has_size<decltype(loader)> && Loader<decltype(loader)>);
  std::int64_t count = 0;
  for (auto&& batch : loader) {
    EXPECT_EQ(std::get<1>(batch), 5 + count);
    ++count;
  }
  EXPECT_EQ(count, 3);
}

TEST(CombinedLoader, ACycledLoaderShufflesAnew) {
  torch::manual_seed(3);
  TensorLoader shorter{{torch::arange(20)}, {.batch_size = 20, .shuffle = true}};
  Numbers longer{0, 1, 2};
  std::set<std::string> orders;
  for (auto&& [batch, number] : combined(CombineMode::max_size_cycle, shorter, longer)) {
    EXPECT_EQ(batch.sum().template item<std::int64_t>(), 190);
    std::string order;
    for (std::int64_t i = 0; i < 20; ++i)
      order += std::to_string(batch[i].template item<std::int64_t>()) + " ";
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), 3u);
}

TEST(CombinedLoader, StopsThoseThatShuffleAndNoOthers) {
  TensorLoader shuffled{{torch::arange(20)}, {.batch_size = 20, .shuffle = true}},
      ordered{{torch::arange(20)}};
  Numbers numbers{1};
  auto loader = combined(CombineMode::max_size, shuffled, ordered, numbers);
  EXPECT_TRUE(loader.shuffles());
  {
    const fulmen::detail::Unshuffled unshuffled(loader, true);
    EXPECT_FALSE(loader.shuffles() || shuffled.shuffles());
  }
  EXPECT_TRUE(shuffled.shuffles());
  EXPECT_FALSE(ordered.shuffles());
}

/// Trains on two loaders of different kinds of samples, of which the second may be missing.
struct TwoTasks : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 1))};
  std::int64_t with_second = 0, batches = 0;

  at::Tensor training_step(auto&,
                           const std::tuple<std::optional<at::Tensor>, std::optional<at::Tensor>>& batch) {
    const auto& [a, b] = batch;
    ++batches;
    with_second += b.has_value();
    at::Tensor loss = a ? fc(*a).pow(2).mean() : at::zeros({});
    if (b) loss = loss + fc(*b).pow(2).mean();
    return loss;
  }
};

TEST(CombinedLoader, TrainsInATrainer) {
  TensorLoader a{{torch::ones({6, 2})}, {.batch_size = 2}}, b{{torch::ones({2, 2})}, {.batch_size = 1}};
  Trainer trainer{std::make_shared<TwoTasks>(),
                  none,
                  SGD{.lr = 0.01},
                  none,
                  Identity{},
                  callbacks(),
                  {.max_epochs = 2},
                  barebones};
  trainer.fit(combined(CombineMode::max_size, a, b));
  EXPECT_EQ(trainer.module().batches, 6);
  EXPECT_EQ(trainer.module().with_second, 4);
  EXPECT_EQ(trainer.context().global_step(), 6);
}

/// The default step, on batches of two loaders one after the other.
struct Net : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 1))};
  at::Tensor forward(const at::Tensor& x) { return fc(x); }
};

struct Data {
  TensorLoader<2> first{{torch::ones({4, 2}), torch::ones({4, 1})}, {.batch_size = 2}};
  TensorLoader<2> second{{torch::zeros({3, 2}), torch::ones({3, 1})}, {.batch_size = 2}};
  auto train_dataloader() { return combined(CombineMode::sequential, first, second); }
};

TEST(CombinedLoader, ComesFromADataModule) {
  Data data;
  Trainer trainer{Net{}, MSE{}, SGD{.lr = 0.01}, none, Identity{}, callbacks(), {.max_epochs = 2}, barebones};
  trainer.fit(data);
  EXPECT_EQ(trainer.context().global_step(), 8);
}

}  // namespace
