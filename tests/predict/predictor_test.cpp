// Tests predict/: the concept, streams, nesting, decorators, augmentation, normalisation, and all in a Trainer.
#include "../testing.hpp"

#include <fulmen/fulmen.hpp>
#include <fulmen/predict/augmentation.hpp>
#include <fulmen/predict/decorated.hpp>
#include <fulmen/predict/normalize.hpp>
#include <fulmen/predict/pad.hpp>
#include <fulmen/predict/patches.hpp>
#include <fulmen/predict/predictor.hpp>
#include <fulmen/predict/stream.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <iterator>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace {

using namespace fulmen;

const auto same = [](const at::Tensor& x) { return x; };
using Events = std::vector<std::string>;

static_assert(Predictor<Identity, at::Tensor> && Predictor<Identity, std::tuple<at::Tensor, at::Tensor>>);
static_assert(Predictor<Patches<2>, at::Tensor> && Predictor<Patches<3>, std::tuple<at::Tensor, at::Tensor>>);
static_assert(Predictor<Infinite, std::vector<at::Tensor>> && !Predictor<Infinite, at::Tensor>);
static_assert(Predictor<Batched, std::vector<at::Tensor>> && !Predictor<Batched, at::Tensor>);
static_assert(AnyPredictor<Batched> && AnyPredictor<Unbatched> && AnyPredictor<Normalize> &&
              !AnyPredictor<int>);
static_assert(Nested<Normalize, Patches<2>>::cuts_inputs && !Nested<Normalize, Normalize>::cuts_inputs);
using Stream = decltype(run(Infinite{}, std::declval<std::vector<at::Tensor>&>(), same));
static_assert(std::input_iterator<decltype(std::declval<Stream&>().begin())>);

/// Numbers from 0 on, without end.
struct Endless {
  Events* events = nullptr;
  struct Iterator {
    Events* events;
    int i = 0;
    at::Tensor operator*() const {
      if (events) events->push_back("made " + std::to_string(i));
      return at::full({2}, i);
    }
    Iterator& operator++() {
      ++i;
      return *this;
    }
    bool operator!=(const Iterator&) const { return true; }
  };
  Iterator begin() const { return {events}; }
  Iterator end() const { return {events}; }
};

TEST(Infinite, IsLazyAndNeedNotEnd) {
  Events events;
  int used = 0;
  const auto infer = [&](const at::Tensor& x) {
    events.push_back("inferred " + std::to_string(x[0].item<int>()));
    return x * 10;
  };
  for (auto&& y : run(Infinite{}, Endless{&events}, infer)) {
    events.push_back("used " + std::to_string(y[0].item<int>()));
    if (++used == 2) break;
  }
  EXPECT_EQ(events, (Events{"made 0", "inferred 0", "used 0", "made 1", "inferred 1", "used 10"}));
}

TEST(Infinite, RunsAnInnerPredictorOnEachItem) {
  const std::vector<at::Tensor> images{at::rand({1, 1, 9, 9}), at::rand({1, 1, 12, 7})};
  std::size_t i = 0;
  // All three are temporaries: the stream keeps them.
  auto stream = run(Infinite{} | PadToMultiple<2>{.multiple = 8} | Patches<2>{.size = 8}, images,
                    [](const at::Tensor& x) { return x * 2; });
  for (auto&& y : stream) EXPECT_TRUE(y.equal(images[i++] * 2));
  EXPECT_EQ(i, 2U);
}

TEST(Batched, GathersItemsAndGivesThemBackOneByOne) {
  Events events;
  const auto infer = [&](const at::Tensor& x) {
    events.push_back("inferred " + std::to_string(x.size(0)));
    return x * 10;
  };
  std::vector<double> found;
  for (auto&& y : run(Batched{.batch_size = 3}, Endless{&events}, infer)) {
    EXPECT_EQ(y.sizes(), (std::vector<std::int64_t>{2}));
    found.push_back(y[1].item<double>());
    events.push_back("used");
    if (found.size() == 4) break;
  }
  EXPECT_EQ(found, (std::vector<double>{0, 10, 20, 30}));
  EXPECT_EQ(events, (Events{"made 0", "made 1", "made 2", "inferred 3", "used", "used", "used", "made 3",
                            "made 4", "made 5", "inferred 3", "used"}));
  std::vector<std::int64_t> sizes;
  std::vector<std::tuple<at::Tensor, at::Tensor>> pairs;
  for (int i = 0; i < 5; ++i) pairs.emplace_back(at::full({2, 2}, i), at::full({}, i));
  std::size_t n = 0;
  for (auto&& [a, b] : run(Batched{.batch_size = 2}, pairs, [&](const std::tuple<at::Tensor, at::Tensor>& x) {
         sizes.push_back(std::get<0>(x).size(0));
         return std::tuple(std::get<1>(x) + 1, std::get<0>(x));
       })) {
    EXPECT_EQ(a.item<int>(), static_cast<int>(n) + 1);
    EXPECT_TRUE(b.equal(std::get<0>(pairs[n++])));
  }
  EXPECT_EQ(n, 5U);
  EXPECT_EQ(sizes, (std::vector<std::int64_t>{2, 2, 1}));
  for ([[maybe_unused]] auto&& y : run(Batched{.batch_size = 2}, std::vector<at::Tensor>{}, same))
    FAIL() << "nothing in, nothing out";
}

TEST(Batched, HoldsOneBatchAtATime) {
  using Weak = c10::weak_intrusive_ptr<at::TensorImpl>;
  std::vector<Weak> batches;
  // As an item is made, no batch before may be left.
  const auto made = [&](std::ptrdiff_t i) {
    for (const Weak& batch : batches) EXPECT_TRUE(batch.expired()) << "at item " << i;
    return at::full({2}, static_cast<double>(i));
  };
  int n = 0;
  const auto infer = [&](const at::Tensor& x) {
    batches.emplace_back(x.getIntrusivePtr());
    return x + 1;
  };
  for (auto&& y :
       run(Batched{.batch_size = 2}, fulmen::detail::mapped(fulmen::detail::Indices{6}, made), infer)) {
    EXPECT_EQ(y[0].item<int>(), ++n);
  }
  EXPECT_EQ(batches.size(), 3U);
}

TEST(Batched, SaysWhatIsWrong) {
  const auto walk = [](const Batched& p, const std::vector<at::Tensor>& items, auto infer) {
    return error_of([&] {
      for ([[maybe_unused]] auto&& y : run(p, items, infer)) {
      }
    });
  };
  const std::vector<at::Tensor> items{at::rand({2}), at::rand({3})};
  EXPECT_EQ(walk({.batch_size = 0}, items, same), "Batched: batch_size is 0, expected at least 1");
  EXPECT_EQ(walk({.batch_size = 2}, items, same),
            "Batched: an item has shape [3], expected [2] as the first of its batch");
  EXPECT_EQ(walk({.batch_size = 1}, items, same), "no error");
  EXPECT_EQ(error_of([&] {
              run(Unbatched{}, items[0], [](const at::Tensor& x) { return x.expand({2, 2}); });
            }),
            "Unbatched: infer gave a prediction of shape [2, 2], expected 1 along its first dimension");
}

TEST(Unbatched, AddsTheBatchDimensionAndTakesItOff) {
  const std::tuple inputs{at::rand({3, 4}), at::rand({5})};
  const at::Tensor y = run(Unbatched{}, inputs, [](const std::tuple<at::Tensor, at::Tensor>& in) {
    EXPECT_EQ(std::get<0>(in).sizes(), (std::vector<std::int64_t>{1, 3, 4}));
    EXPECT_EQ(std::get<1>(in).sizes(), (std::vector<std::int64_t>{1, 5}));
    return std::get<1>(in);
  });
  EXPECT_TRUE(y.equal(std::get<1>(inputs)));
  EXPECT_EQ(std::get<0>(inputs).dim(), 2);
}

// A predictor of one's own by forward and backward: each row on its own; backward learns from the parts how many there
// were.
struct Rows {
  struct Range {
    at::Tensor all;
    struct Iterator {
      const at::Tensor* all;
      std::int64_t i;
      at::Tensor operator*() const { return all->narrow(0, i, 1); }
      Iterator& operator++() {
        ++i;
        return *this;
      }
      bool operator==(const Iterator& other) const { return i == other.i; }
    };
    Iterator begin() const { return {&all, 0}; }
    Iterator end() const { return {&all, all.size(0)}; }
  };
  Range forward(const at::Tensor& x) const { return {x}; }
  at::Tensor backward(const Range& parts, auto&& predictions) const {
    std::vector<at::Tensor> rows;
    for (auto&& y : predictions) rows.push_back(y);
    return at::cat(rows) + parts.all.size(0);
  }
};

TEST(Predictors, AreNestedFromTheLeft) {
  const at::Tensor x = at::arange(6, at::kFloat).view({3, 2});
  int calls = 0;
  const auto infer = [&](const at::Tensor& row) {
    ++calls;
    return row * 2;
  };
  EXPECT_TRUE(run(Rows{}, x, infer).equal(x * 2 + 3));
  EXPECT_EQ(calls, 3);
  const auto add = [](double n) { return Decorated{before([n](const at::Tensor& t) { return t + n; })}; };
  const auto times = [](double n) { return Decorated{before([n](const at::Tensor& t) { return t * n; })}; };
  EXPECT_TRUE(run(add(1) | times(3), x, same).equal((x + 1) * 3));
  EXPECT_TRUE(run(times(3) | add(1), x, same).equal(x * 3 + 1));
  const auto three = times(3) | add(1) | Identity{};
  EXPECT_TRUE(run(three, x, same).equal(x * 3 + 1)) << "const, and used twice";
  EXPECT_TRUE(run(three, x, same).equal(x * 3 + 1));
  EXPECT_TRUE(run(add(1) | Rows{}, x, infer).equal((x + 1) * 2 + 3));
}

// State of its own, and so a call that is not const.
struct Counting {
  int calls = 0;
  template <class Infer>
  at::Tensor operator()(const at::Tensor& x, Infer&& infer) {
    ++calls;
    return infer(x);
  }
};

TEST(Predictors, MayHaveState) {
  auto p = TestTimeAugmentation{flips<1>()} | Counting{};
  run(p, at::rand({1, 4}), same);
  EXPECT_EQ(p.inner.calls, 2);
}

TEST(Identity, GivesWhatInferGivesWithoutACopy) {
  at::Tensor x = at::rand({2});
  auto&& y = run(Identity{}, x, [](at::Tensor& t) -> at::Tensor& { return t; });
  EXPECT_EQ(&y, &x);
}

TEST(Decorated, WrapsInferAsThundersDoes) {
  // Thunder's own test: ones of (2, 10), each row plus 1, summed and squared.
  const auto plus_one = [](auto infer) { return [infer](const at::Tensor& x) { return infer(x + 1); }; };
  const auto predict = [](const at::Tensor& x) { return x.sum().square(); };
  const at::Tensor x = at::ones({2, 10});
  std::vector<double> found;
  for (auto&& y : run(Infinite{} | Decorated{plus_one}, std::vector<at::Tensor>{x[0], x[1]}, predict))
    found.push_back(y.item<double>());
  EXPECT_EQ(found, (std::vector<double>{400, 400}));
  // f(g(infer)): f's inputs come first, its prediction last.
  Events events;
  const auto says = [&](std::string name) {
    return [&events, name](auto infer) {
      return [&events, name, infer](const at::Tensor& t) {
        events.push_back(name + " in");
        auto y = infer(t);
        events.push_back(name + " out");
        return y;
      };
    };
  };
  run(Decorated{says("f"), says("g")}, x, same);
  EXPECT_EQ(events, (Events{"f in", "g in", "g out", "f out"}));
  const at::Tensor y = run(Decorated{before([](const at::Tensor& t) { return t + 1; }),
                                     after([](const at::Tensor& t) { return t * 3; })},
                           x, same);
  EXPECT_TRUE(y.equal((x + 1) * 3));
}

TEST(TestTimeAugmentation, IsIdentityForWhatCommutesWithTheTransforms) {
  torch::manual_seed(2);
  const at::Tensor x = at::randn({2, 3, 5, 7});
  const auto pointwise = [](const at::Tensor& t) { return t.square() - t; };
  EXPECT_TRUE(run(TestTimeAugmentation{flips<2>()}, x, pointwise).equal(pointwise(x)));
  EXPECT_TRUE(run(TestTimeAugmentation{square_symmetries()}, x, pointwise).equal(pointwise(x)));
  EXPECT_TRUE(run(TestTimeAugmentation{flips<3>()}, at::randn({1, 1, 3, 4, 5}).to(at::kHalf), [](auto t) {
                return t;
              }).scalar_type() == at::kHalf);
  EXPECT_TRUE(run(TestTimeAugmentation{std::tuple{Flip{}, Rot90{.k = 3}, Flip{{-2}}}}, x, pointwise)
                  .equal(pointwise(x)));
  const at::Tensor inf = at::full({1, 1, 2, 2}, -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(run(TestTimeAugmentation{flips<2>()}, inf, same).equal(inf));
}

TEST(TestTimeAugmentation, ShowsEachViewOnceAndUndoesIt) {
  const at::Tensor x = at::arange(4, at::kFloat).view({1, 1, 2, 2});
  std::vector<at::Tensor> views;
  const at::Tensor ramp = at::tensor({0.F, 1.F, 2.F, 3.F}).view({1, 1, 2, 2});
  const at::Tensor y = run(TestTimeAugmentation{square_symmetries()}, x, [&](const at::Tensor& t) {
    views.push_back(t);
    return ramp;  // whatever it sees: undoing all eight symmetries makes it flat
  });
  ASSERT_EQ(views.size(), 8U);
  EXPECT_TRUE(views[0].equal(x));
  for (std::size_t i = 0; i < 8; ++i) {
    for (std::size_t k = 0; k < i; ++k) EXPECT_FALSE(views[i].equal(views[k])) << i << " and " << k;
  }
  EXPECT_TRUE(y.allclose(at::full_like(x, 1.5)));
  std::vector<at::Tensor> flipped;
  run(TestTimeAugmentation{flips<2>()}, x, [&](const at::Tensor& t) {
    flipped.push_back(t);
    return t;
  });
  ASSERT_EQ(flipped.size(), 4U);
  EXPECT_TRUE(flipped[0].equal(x) && flipped[1].equal(x.flip(-1)) && flipped[2].equal(x.flip(-2)) &&
              flipped[3].equal(x.flip({-1, -2})));
}

TEST(TestTimeAugmentation, TakesTransformsAndMergesOfOnesOwn) {
  const at::Tensor x = at::rand({2, 1, 4, 4});
  const Transform scaled{[](const at::Tensor& t) { return t * 2; },
                         [](const at::Tensor& t) { return t / 2; }};
  EXPECT_TRUE(run(TestTimeAugmentation{std::tuple{scaled, Flip{{-1}}}}, x, same).allclose(x));
  int alive = 0;
  const auto largest = [&](auto&& predictions) {
    at::Tensor all;
    for (auto&& y : predictions) {
      ++alive;
      all = all.defined() ? at::maximum(all, y) : y;
    }
    return all;
  };
  const at::Tensor y =
      run(TestTimeAugmentation{flips<2>(), largest}, x, [&, i = 0](const at::Tensor& t) mutable {
        EXPECT_EQ(alive, i) << "the merge has seen the prediction before the next is made";
        return t + i++;
      });
  EXPECT_TRUE(y.equal(x + 3));
  // Classes have no place to be brought back to.
  const auto classes = [](const at::Tensor& t) { return t.flatten(1).slice(1, 0, 2); };
  EXPECT_EQ(error_of([&] { run(TestTimeAugmentation{flips<2>()}, x, classes); }),
            "TestTimeAugmentation: infer gave a prediction of shape [2, 2], expected 4 dimensions as the "
            "inputs have, or "
            "invert = false");
  const at::Tensor mean = run(TestTimeAugmentation{flips<2>(), MeanMerge{}, false}, x, classes);
  EXPECT_TRUE(mean.allclose(
      (classes(x) + classes(x.flip(-1)) + classes(x.flip(-2)) + classes(x.flip({-2, -1}))) / 4));
  EXPECT_EQ(error_of([&] { run(TestTimeAugmentation{std::vector<Flip>{}}, x, same); }),
            "TestTimeAugmentation: there are no transforms, expected at least one");
  EXPECT_EQ(error_of([&] {
              run(TestTimeAugmentation{flips<2>()}, x, [](const at::Tensor& t) { return t.to(at::kLong); });
            }),
            "MeanMerge: predictions are of type Long, expected floating-point ones: averages of others mean "
            "nothing");
  EXPECT_EQ(error_of([&] {
              run(TestTimeAugmentation{std::vector{Flip{}, Rot90{}.k ? Flip{{-1}} : Flip{}}}, x,
                  [n = 0](const at::Tensor& t) mutable { return n++ ? t.slice(3, 1) : t; });
            }),
            "MeanMerge: a prediction has shape [2, 1, 4, 3], expected [2, 1, 4, 4] as the first");
}

TEST(Normalize, NormalisesAndBringsBack) {
  const at::Tensor x = at::rand({3, 2, 4, 5}, at::kDouble) * 7 + 2;
  at::Tensor seen;
  const auto see = [&](const at::Tensor& t) {
    seen = t;
    return t;
  };
  EXPECT_TRUE(run(Normalize{.mean = {1, 2}, .std = {4, 8}, .denormalize = true}, x, see).allclose(x, 1e-14));
  EXPECT_TRUE(seen.select(1, 1).equal((x.select(1, 1) - 2) / 8));
  EXPECT_TRUE(run(Normalize{.mean = {1}, .std = {4}}, x, see).equal((x - 1) / 4));
  // Each sample's own.
  EXPECT_TRUE(run(Normalize{.denormalize = true}, x, see).allclose(x, 1e-14));
  EXPECT_TRUE(seen[1].allclose((x[1] - x[1].mean()) / x[1].std(/*unbiased=*/false), 1e-14));
  run(Normalize{.per_channel = true}, x, see);
  EXPECT_TRUE(seen[1][0].allclose((x[1][0] - x[1][0].mean()) / x[1][0].std(false), 1e-13));
  EXPECT_TRUE(run(Normalize{}, at::full({1, 1, 2, 2}, 5), see).equal(at::zeros({1, 1, 2, 2})));
}

TEST(Normalize, SaysWhatIsWrong) {
  const at::Tensor x = at::rand({3, 2, 4, 5});
  const auto with = [&](Normalize p) {
    return error_of([&] { run(p, x, [](const at::Tensor& t) { return t.slice(1, 0, 1); }); });
  };
  EXPECT_EQ(with({.mean = {1}}),
            "Normalize: mean has 1 values and std 0, expected both or neither, and no std of 0");
  EXPECT_EQ(with({.mean = {1}, .std = {0}}),
            "Normalize: mean has 1 values and std 1, expected both or neither, and no std of 0");
  EXPECT_EQ(with({.mean = {1, 2, 3}, .std = {1}}),
            "Normalize: mean has 3 values, expected 1, or 2 as there are channels");
  EXPECT_EQ(with({.per_channel = true, .denormalize = true}),
            "Normalize: infer gave a prediction of shape [3, 1, 4, 5], expected dimensions and channels as "
            "the input's, so that it "
            "can be denormalised by statistics of shape [3, 2, 1, 1]");
  EXPECT_EQ(
      error_of([&] { run(Normalize{}, at::rand({3}), same); }),
      "Normalize: the input has shape [3], expected N and more to take the mean of, or fixed mean and std");
}

// Sees 4 x 4 patches only, and doubles them.
struct Small : torch::nn::Module {
  std::vector<std::int64_t> sizes;
  at::Tensor factor{register_parameter("factor", at::full({1}, 2.0))};
  at::Tensor forward(const at::Tensor& x) {
    EXPECT_EQ(x.size(2), 4);
    EXPECT_EQ(x.size(3), 4);
    sizes.push_back(x.size(0));
    return x * factor;
  }
};
// The same of two images.
struct SmallOfTwo : torch::nn::Module {
  at::Tensor forward(const at::Tensor& a, const at::Tensor& b) {
    EXPECT_EQ(a.size(2), 4);
    return a + b;
  }
};

TEST(Trainer, PredictsAndValidatesThroughPatches) {
  const at::Tensor images = at::rand({5, 1, 9, 10});
  TensorLoader pairs{{images, images * 3}, {.batch_size = 2}};
  Trainer trainer{Small{},
                  MSE{},
                  none,
                  none,
                  PadToMultiple<2>{.multiple = 4} | Patches<2>{.size = 4, .batch_size = 7},
                  callbacks(),
                  {},
                  barebones};
  // Alone, and with the targets still in the batch.
  TensorLoader alone{{images}, {.batch_size = 2}};
  EXPECT_TRUE(at::cat(trainer.predict(alone)).equal(images * 2));
  EXPECT_TRUE(at::cat(trainer.predict(pairs)).equal(images * 2));
  // 12 x 12 in steps of 3, the last moved back: 4 x 4 patches of 2 images, 7 at a time.
  const auto& sizes = trainer.module().sizes;
  EXPECT_EQ(std::vector<std::int64_t>(sizes.begin(), sizes.begin() + 5),
            (std::vector<std::int64_t>{7, 7, 7, 7, 4}));
  const auto results = trainer.validate(pairs);
  ASSERT_EQ(results.size(), 1U);
  EXPECT_NEAR(results[0].value, images.square().mean().item<double>(), 1e-6);

  TensorLoader triples{{images, images, images * 2}, {.batch_size = 3}};
  Trainer of_two{SmallOfTwo{}, MSE{}, none, none, Patches<2>{.size = 4}, callbacks(), {}, barebones};
  EXPECT_EQ(of_two.validate(triples)[0].value, 0);
  TensorLoader twos{{images, images * 2}, {.batch_size = 3}};
  EXPECT_TRUE(at::cat(of_two.predict(twos)).equal(images + images * 2));
}

}  // namespace
