// Tests data/combined_loader.hpp against what Lightning's CombinedLoader yields
// (fixtures/lightning/combined.json).
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <forward_list>
#include <fstream>
#include <fulmen/criteria/criteria.hpp>
#include <fulmen/data/combined_loader.hpp>
#include <fulmen/data/prefetch.hpp>
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

// ------------------------------------------------------------------------------------------------
// Going on from a state

/// What a run draws and sees: after each batch a number of the "model's".
std::string seen(const at::Tensor& t) {
  std::string out;
  for (std::int64_t i = 0; i < t.numel(); ++i) out += std::to_string(t[i].item<std::int64_t>()) + " ";
  return out;
}
template <class T>
std::string seen(const std::optional<T>& t) {
  return t ? seen(*t) : "-";
}
template <class... T>
std::string seen(const std::tuple<T...>& batch) {
  return std::apply([](const auto&... t) { return ((seen(t) + "| ") + ...); }, batch);
}
void draw(std::vector<std::string>& log) { log.push_back(std::to_string(torch::rand({}).item<float>())); }

struct Loaders {
  TensorLoader<1> first{{torch::arange(7)}, {.batch_size = 2, .shuffle = true}},
      second{{torch::arange(100, 103)}, {.batch_size = 2, .shuffle = true}},
      third{{torch::arange(200, 205)}, {.batch_size = 2, .shuffle = true}};
};

/// Two epochs. The state and that of the generator are kept behind each batch, before and after `++`, as the loop may ask for
/// them; `log` has what was seen until then.
struct Saved {
  State state;
  at::Tensor generator;
  std::size_t log;
  int epoch;
};
template <class Loader>
std::vector<Saved> run(Loader& loader, std::vector<std::string>& log) {
  std::vector<Saved> saved;
  for (int epoch = 0; epoch < 2; ++epoch) {
    auto it = loader.begin();
    const auto end = loader.end();
    while (it != end) {
      log.push_back(seen(*it));
      draw(log);
      saved.push_back({loader.state_dict(), fulmen::detail::generator_state(), log.size(), epoch});
      ++it;
      saved.push_back({loader.state_dict(), fulmen::detail::generator_state(), log.size(), epoch});
    }
    draw(log);
  }
  return saved;
}

/// The rest of the two epochs after a state.
template <class Loader>
std::vector<std::string> rest(Loader& loader, const Saved& from, bool next_epoch) {
  std::vector<std::string> log;
  torch::manual_seed(999);  // what the new process has drawn before it loads
  (void)torch::rand({3});
  loader.load_state_dict(from.state);
  fulmen::detail::set_generator_state(from.generator);
  int epoch = from.epoch;
  if (next_epoch) draw(log), ++epoch;  // all batches of the epoch were behind it
  for (; epoch < 2; ++epoch) {
    auto it = loader.begin();
    for (; it != loader.end(); ++it) {
      log.push_back(seen(*it));
      draw(log);
    }
    draw(log);
  }
  return log;
}

template <class Make>
void expect_resumes(Make make, std::size_t batches) {
  torch::manual_seed(5);
  std::vector<std::string> log;
  std::vector<Saved> saved;
  {
    Loaders parts;
    auto loader = make(parts);
    static_assert(fulmen::detail::LoaderWithState<decltype(loader)>);
    saved = run(loader, log);
  }
  ASSERT_EQ(saved.size(), 4 * batches);
  for (std::size_t i = 0; i < saved.size(); ++i) {
    SCOPED_TRACE(i);
    Loaders parts;
    auto loader = make(parts);
    const bool last = (i / 2 + 1) % batches == 0;
    EXPECT_EQ(rest(loader, saved[i], last),
              std::vector<std::string>(log.begin() + static_cast<std::ptrdiff_t>(saved[i].log), log.end()));
  }
}

TEST(CombinedLoader, GoesOnFromItsState) {
  {
    SCOPED_TRACE("min_size");
    expect_resumes([](Loaders& l) { return combined(CombineMode::min_size, l.first, l.second); }, 2);
  }
  {
    SCOPED_TRACE("max_size_cycle");
    expect_resumes([](Loaders& l) { return combined(CombineMode::max_size_cycle, l.first, l.second); }, 4);
  }
  {
    SCOPED_TRACE("max_size_cycle, the other way round");
    expect_resumes([](Loaders& l) { return combined(CombineMode::max_size_cycle, l.second, l.first); }, 4);
  }
  {
    SCOPED_TRACE("max_size");
    expect_resumes([](Loaders& l) { return combined(CombineMode::max_size, l.first, l.second); }, 4);
  }
  {
    SCOPED_TRACE("sequential");
    expect_resumes([](Loaders& l) { return combined(CombineMode::sequential, l.first, l.second); }, 6);
  }
}

TEST(CombinedLoader, GoesOnWithLoadersThatHaveState) {
  {
    SCOPED_TRACE("a combined loader in another");
    expect_resumes(
        [](Loaders& l) {
          return combined(CombineMode::max_size, combined(CombineMode::sequential, l.first, l.second), l.third);
        },
        6);
    expect_resumes(
        [](Loaders& l) {
          return combined(CombineMode::max_size_cycle, l.third, combined(CombineMode::max_size, l.second, l.first));
        },
        4);
    expect_resumes(
        [](Loaders& l) {
          return combined(CombineMode::min_size, combined(CombineMode::max_size_cycle, l.second, l.first), l.third);
        },
        3);
  }
  {
    SCOPED_TRACE("prefetched parts");
    expect_resumes(
        [](Loaders& l) { return combined(CombineMode::max_size_cycle, prefetch(l.first), prefetch(l.second)); }, 4);
  }
}

/// A prefetching loader counts what was used, not what was made ahead.
TEST(CombinedLoader, GoesOnBehindAPrefetchingLoader) {
  torch::manual_seed(5);
  std::vector<std::string> all;
  std::vector<State> states;
  {
    Loaders l;
    auto loader = prefetch(combined(CombineMode::max_size, l.first, l.second), {.batches = 3});
    for (auto&& batch : loader) {
      all.push_back(seen(batch));
      states.push_back(loader.state_dict());
    }
  }
  ASSERT_EQ(all.size(), 4u);
  for (std::size_t i = 0; i + 1 < states.size(); ++i) {
    Loaders l;
    auto loader = prefetch(combined(CombineMode::max_size, l.first, l.second), {.batches = 3});
    torch::manual_seed(77);
    loader.load_state_dict(states[i]);
    std::vector<std::string> found;
    for (auto&& batch : loader) found.push_back(seen(batch));
    EXPECT_EQ(found, std::vector<std::string>(all.begin() + static_cast<std::ptrdiff_t>(i) + 1, all.end())) << i;
  }
}

TEST(CombinedLoader, SaysWhatIsWrongWithAState) {
  Numbers a{1, 2}, b{3};
  auto two = combined(CombineMode::min_size, a, b);
  auto one = combined(CombineMode::min_size, a);
  EXPECT_EQ(std::get<0>(*two.begin()), 1);
  one.load_state_dict(two.state_dict());
  std::string message;
  try {
    one.begin();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  EXPECT_EQ(message, "the state of a combined loader is of 2 loaders, expected 1");
  auto fresh = combined(CombineMode::min_size, a, b);
  fresh.load_state_dict(combined(CombineMode::min_size, a, b).state_dict());
  EXPECT_TRUE(fresh.begin() != fresh.end());
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
