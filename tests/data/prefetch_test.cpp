// Tests data/prefetch.hpp: what comes out of a background thread is what the loader makes, errors and state
// included.
#include "../testing.hpp"

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/data/prefetch.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/seed.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

namespace {

using namespace fulmen;

/// The numbers from 0 (or from where its state says) to `count`; says who asks for what.
struct Numbers {
  std::int64_t count = 10;
  std::int64_t fails_at = -1;  // in *
  std::int64_t stuck_at = -1;  // in ++
  std::int64_t next = 0;       // its state: what * gives next
  std::int64_t made = 0;
  std::thread::id begun_by{}, made_by{};
  bool grad_mode = true;
  int threads = 0;

  struct Iterator {
    Numbers* of;
    std::int64_t operator*() const {
      if (of->next == of->fails_at) throw std::runtime_error("no number " + std::to_string(of->next));
      of->made_by = std::this_thread::get_id();
      of->grad_mode = at::GradMode::is_enabled();
      of->threads = at::get_num_threads();
      ++of->made;
      return of->next;
    }
    Iterator& operator++() {
      if (of->next == of->stuck_at) throw std::runtime_error("nothing after " + std::to_string(of->next));
      ++of->next;
      return *this;
    }
    bool operator==(std::default_sentinel_t) const { return of->next >= of->count; }
  };
  Iterator begin() {
    begun_by = std::this_thread::get_id();
    if (next >= count) next = 0;
    return {this};
  }
  std::default_sentinel_t end() const { return {}; }
  std::int64_t size() const { return count; }
};

/// Numbers whose place can be saved.
struct Stateful : Numbers {
  State state_dict() const { return State("numbers").set("next", next); }
  void load_state_dict(const State& state) { next = state.get<std::int64_t>("next"); }
};

std::vector<std::int64_t> all_of(auto& loader) {
  std::vector<std::int64_t> all;
  for (const std::int64_t i : loader) all.push_back(i);
  return all;
}

std::vector<std::int64_t> up_to(std::int64_t n) {
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < n; ++i) all.push_back(i);
  return all;
}

TEST(Prefetch, GivesTheSameBatchesAsTheLoader) {
  const at::Tensor x = at::rand({1000, 3}), y = at::arange(1000);
  TensorLoader loader{{x, y}, {.batch_size = 7, .shuffle = true}};
  for (const std::int64_t batches : {1, 2, 5, 1000}) {
    auto ahead = prefetch(loader, {.batches = batches});
    EXPECT_EQ(ahead.size(), loader.size());
    seed_everything(3);
    std::vector<std::tuple<at::Tensor, at::Tensor>> expected;
    std::vector<float> drawn, drawn_ahead;
    for (int epoch = 0; epoch < 3; ++epoch) {
      for (auto batch : loader) {
        expected.push_back(batch);
        drawn.push_back(at::rand({}).item<float>());  // what a step might draw
      }
    }
    seed_everything(3);
    std::size_t i = 0;
    for (int epoch = 0; epoch < 3; ++epoch) {
      for (const auto& [a, b] : ahead) {
        ASSERT_LT(i, expected.size());
        EXPECT_TRUE(a.equal(std::get<0>(expected[i])) && b.equal(std::get<1>(expected[i])));
        ++i;
        drawn_ahead.push_back(at::rand({}).item<float>());
      }
    }
    EXPECT_EQ(i, expected.size());
    EXPECT_EQ(drawn, drawn_ahead) << "the step's random numbers are the same, too";
  }
}

TEST(Prefetch, BeginsHereAndMakesBatchesElsewhere) {
  Numbers numbers;
  auto ahead = prefetch(numbers);
  const int threads = at::get_num_threads();
  {
    const at::NoGradGuard no_grad;
    EXPECT_EQ(all_of(ahead), up_to(10));
  }
  EXPECT_EQ(numbers.begun_by, std::this_thread::get_id());
  EXPECT_NE(numbers.made_by, std::this_thread::get_id());
  EXPECT_FALSE(numbers.grad_mode) << "as it is where begin() was called";
  EXPECT_EQ(numbers.threads, 1);
  EXPECT_EQ(at::get_num_threads(), threads) << "is left alone here";
  int later = 0;
  std::thread([&] { later = at::get_num_threads(); }).join();
  EXPECT_EQ(later, threads) << "and in threads that start later";
  auto two = prefetch(numbers, {.threads = 2});
  all_of(two);
  EXPECT_EQ(numbers.threads, 2);
}

TEST(Prefetch, MakesSoManyBatchesAndNoMore) {
  struct Counted {
    std::atomic<std::int64_t> made = 0;
    struct Iterator {
      Counted* of;
      std::int64_t operator*() const { return of->made++; }
      Iterator& operator++() { return *this; }
      bool operator==(std::default_sentinel_t) const { return false; }
    };
    Iterator begin() { return {this}; }
    std::default_sentinel_t end() const { return {}; }
  } endless;
  auto ahead = prefetch(endless, {.batches = 3});
  auto it = ahead.begin();
  const auto settles_at = [&](std::int64_t expected) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (endless.made < expected && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return endless.made == expected;
  };
  EXPECT_TRUE(settles_at(3)) << endless.made;
  EXPECT_EQ(*it, 0);
  EXPECT_EQ(*it, 0) << "asked twice";
  ++it, ++it;  // 1 of 3 is left: they are filled up again
  EXPECT_TRUE(settles_at(5)) << endless.made;
  EXPECT_EQ(*it, 2);
}

TEST(Prefetch, EndsWhenTheWalkIsLeft) {
  Numbers numbers{.count = 1'000'000'000};
  auto ahead = prefetch(numbers);
  for (int epoch = 0; epoch < 50; ++epoch) {
    for (const std::int64_t i : ahead) {
      if (i >= 0) break;
    }
    ASSERT_LE(numbers.made, 4 * (epoch + 1)) << "one in use, two ready, one in the making";
  }
  const std::int64_t made = numbers.made;
  { const auto unused = ahead.begin(); }
  auto first = ahead.begin();
  auto second = ahead.begin();
  EXPECT_TRUE(first == ahead.end()) << "ended by the second";
  EXPECT_FALSE(second == ahead.end());
  first = std::move(second);
  EXPECT_GE(*first, 0);
  EXPECT_LE(numbers.made, made + 12);
}

TEST(Prefetch, AWalkMayOutliveTheWrapper) {
  Numbers numbers;
  auto ahead = std::make_unique<PrefetchLoader<Numbers&>>(numbers, PrefetchOptions{});
  auto it = ahead->begin();
  ahead.reset();
  std::vector<std::int64_t> all;
  for (; it != std::default_sentinel; ++it) all.push_back(*it);
  EXPECT_EQ(all, up_to(10));
}

TEST(Prefetch, AnEmptyLoaderHasNoBatches) {
  Numbers none{.count = 0};
  auto ahead = prefetch(none);
  EXPECT_TRUE(all_of(ahead).empty());
}

TEST(Prefetch, ErrorsComeWhereTheirBatchWouldHave) {
  Numbers numbers{.fails_at = 4};
  auto ahead = prefetch(numbers, {.batches = 8});
  std::vector<std::int64_t> seen;
  EXPECT_EQ(error_of([&] {
              for (const std::int64_t i : ahead) seen.push_back(i);
            }),
            "no number 4");
  EXPECT_EQ(seen, up_to(4));
  numbers.fails_at = -1;
  EXPECT_EQ(all_of(ahead), (std::vector<std::int64_t>{4, 5, 6, 7, 8, 9})) << "it can be walked again";

  Numbers stuck{.stuck_at = 2};
  auto ahead_of_stuck = prefetch(stuck);
  seen.clear();
  EXPECT_EQ(error_of([&] {
              for (const std::int64_t i : ahead_of_stuck) seen.push_back(i);
            }),
            "nothing after 2");
  EXPECT_EQ(seen, up_to(3));

  struct Fails {
    std::int64_t* begin() { throw std::runtime_error("cannot begin"); }
    std::int64_t* end() { return nullptr; }
  } fails;
  auto never = prefetch(fails);
  EXPECT_EQ(error_of([&] { all_of(never); }), "cannot begin");
}

TEST(Prefetch, SaysWhatIsWrong) {
  Numbers numbers;
  EXPECT_EQ(error_of([&] { prefetch(numbers, {.batches = 0}); }),
            "prefetch: batches is 0, expected at least 1");
  EXPECT_EQ(error_of([&] { prefetch(numbers, {.threads = -1}); }),
            "prefetch: threads is -1, expected at least 1");
  auto null = prefetch(std::unique_ptr<Numbers>());
  EXPECT_EQ(error_of([&] { null.begin(); }),
            "prefetch: the loader is a null pointer, expected a range of batches");
}

// What the loader's state is after each operation of a walk, with and without prefetching.
TEST(Prefetch, StateIsThatOfWhatWasUsed) {
  const auto states = [](auto& loader) {
    std::vector<std::int64_t> out;
    const auto look = [&] { out.push_back(loader.state_dict().template get<std::int64_t>("next")); };
    look();
    auto it = loader.begin();
    for (look(); it != loader.end(); look()) {
      *it, look();
      ++it;
    }
    look();
    return out;
  };
  Stateful plain, wrapped;
  auto ahead = prefetch(wrapped, {.batches = 4});
  const auto expected = states(plain);
  EXPECT_EQ(expected.size(), 23u);
  EXPECT_EQ(states(ahead), expected);
}

TEST(Prefetch, NothingIsLostWhenAWalkIsLeftEarly) {
  Stateful numbers;
  auto ahead = prefetch(numbers, {.batches = 5});
  for (const std::int64_t i : ahead) {
    if (i == 3) break;  // 3 was used, but the loader was not told to go on
  }
  EXPECT_EQ(ahead.state_dict().get<std::int64_t>("next"), 3);
  EXPECT_EQ(all_of(ahead), (std::vector<std::int64_t>{3, 4, 5, 6, 7, 8, 9}));

  auto it = ahead.begin();
  ++it, ++it;
  const State state = ahead.state_dict();
  EXPECT_EQ(state.get<std::int64_t>("next"), 2);
  EXPECT_EQ(*it, 2);
  ++it;
  ahead.load_state_dict(state);  // ends the walk
  EXPECT_EQ(all_of(ahead), (std::vector<std::int64_t>{2, 3, 4, 5, 6, 7, 8, 9}));
}

struct Squares : torch::data::Dataset<Squares> {
  torch::data::Example<> get(std::size_t i) override {
    const at::Tensor x = at::scalar_tensor(static_cast<std::int64_t>(i), at::kLong);
    return {x, x.square()};
  }
  torch::optional<std::size_t> size() const override { return 10; }
};

TEST(Prefetch, WrapsWhateverIsALoader) {
  auto owned = prefetch(Numbers{.count = 5});
  EXPECT_EQ(owned.size(), 5);
  auto moved = std::move(owned);
  EXPECT_EQ(all_of(moved), up_to(5));

  std::vector<std::int64_t> vector = up_to(4);
  auto of_vector = prefetch(vector);
  EXPECT_EQ(all_of(of_vector), vector);
  const std::vector<std::int64_t> constant = vector;
  auto of_constant = prefetch(constant);
  EXPECT_EQ(all_of(of_constant), vector);

  const auto torch_loader = torch::data::make_data_loader<torch::data::samplers::SequentialSampler>(
      Squares().map(torch::data::transforms::Stack<>()), torch::data::DataLoaderOptions(4).workers(2));
  auto of_pointer = prefetch(torch_loader);
  std::vector<at::Tensor> parts;
  for (auto& batch : of_pointer) parts.push_back(batch.target);
  EXPECT_TRUE(at::cat(parts).equal(at::arange(10).square()));

  auto both =
      combined(CombineMode::max_size_cycle, prefetch(Numbers{.count = 3}), prefetch(Numbers{.count = 2}));
  std::vector<std::int64_t> pairs;
  for (const auto& [a, b] : both) pairs.push_back(10 * a + b);
  EXPECT_EQ(pairs, (std::vector<std::int64_t>{0, 11, 20}));
  auto together = prefetch(combined(CombineMode::min_size, Numbers{.count = 3}, Numbers{.count = 2}));
  EXPECT_EQ(together.size(), 2);
  pairs.clear();
  for (const auto& [a, b] : together) pairs.push_back(10 * a + b);
  EXPECT_EQ(pairs, (std::vector<std::int64_t>{0, 11}));
}

TEST(Prefetch, CanBeKeptFromShuffling) {
  TensorLoader loader{{at::arange(6)}, {.batch_size = 6, .shuffle = true}};
  auto ahead = prefetch(loader);
  {
    const fulmen::detail::Unshuffled unshuffled(ahead, true);
    EXPECT_FALSE(ahead.shuffles());
    for (const at::Tensor& batch : ahead) EXPECT_TRUE(batch.equal(at::arange(6)));
  }
  EXPECT_TRUE(loader.shuffles());
}

}  // namespace
