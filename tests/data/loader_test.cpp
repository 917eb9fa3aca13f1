// Tests data/batch.hpp, data/loader.hpp and data/tensor_loader.hpp: what a batch may be, and where batches come from.
#include "../testing.hpp"

#include <fulmen/data/batch.hpp>
#include <fulmen/data/loader.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/seed.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <list>
#include <set>
#include <string>

namespace user {
struct Batch {
  at::Tensor image, label;
  std::optional<at::Tensor> mask;
};
struct Plain {
  int x = 0;
};
}  // namespace user
BOOST_HANA_ADAPT_STRUCT(user::Batch, image, label, mask);

namespace {

using namespace fulmen;

TEST(Batch, MembersOfEveryKind) {
  at::Tensor t = at::zeros({3, 2});
  std::pair pair{t, t};
  std::tuple tuple{t, t, 5};
  std::array<at::Tensor, 4> array{t, t, t, t};
  torch::data::Example<> example{t, t};
  user::Batch adapted{t, t, {}};
  std::vector<at::Tensor> vector{t, t};
  static_assert(std::tuple_size_v<decltype(members(t))> == 1);
  static_assert(std::tuple_size_v<decltype(members(pair))> == 2);
  static_assert(std::tuple_size_v<decltype(members(tuple))> == 3);
  static_assert(std::tuple_size_v<decltype(members(array))> == 4);
  static_assert(std::tuple_size_v<decltype(members(example))> == 2);
  static_assert(std::tuple_size_v<decltype(members(adapted))> == 3);
  static_assert(std::tuple_size_v<decltype(members(vector))> == 1, "its length is not known to the compiler");
  EXPECT_EQ(&std::get<1>(members(adapted)), &adapted.label) << "references, not copies";
}

TEST(Batch, SizeIsTheFirstTensorsFirstDimension) {
  EXPECT_EQ(batch_size(at::zeros({7, 2})), 7);
  EXPECT_EQ(batch_size(std::tuple{1.5, at::scalar_tensor(1), at::zeros({4})}), 4);
  EXPECT_EQ(batch_size(user::Plain{}), 1);
  EXPECT_EQ(batch_size(std::map<std::string, std::vector<at::Tensor>>{{"a", {}}, {"b", {at::zeros({5, 1})}}}), 5);
  EXPECT_EQ(batch_size(user::Batch{at::Tensor(), at::zeros({6}), at::zeros({9})}), 6);
}

TEST(Batch, EveryTensorIsReachedWhateverTheNesting) {
  const at::Tensor t = at::zeros({2});
  std::map<std::string, std::tuple<user::Batch, std::vector<std::optional<at::Tensor>>>> nested;
  nested["a"] = {user::Batch{t, t, t}, {t, std::nullopt, t}};
  nested["b"] = {user::Batch{t, t, {}}, {}};
  int seen = 0;
  for_each_tensor(nested, [&](const at::Tensor&) { ++seen; });
  EXPECT_EQ(seen, 7);
}

// There is no second device here but `meta`, which has shapes and no data: enough to see what is moved.
TEST(Batch, MovesTensorsAndLeavesTheCallersAlone) {
  const at::Tensor t = at::zeros({2});
  std::tuple<std::vector<at::Tensor>, int> batch{{t, t}, 3};
  EXPECT_FALSE(elsewhere(batch, at::kCPU));
  EXPECT_TRUE(elsewhere(batch, at::kMeta));
  move_to(batch, at::kMeta);
  EXPECT_TRUE(std::get<0>(batch)[1].is_meta());
  EXPECT_TRUE(t.is_cpu());
}

TEST(Loader, IsAnyRangeAPointerToOneOrATensor) {
  static_assert(LoaderArgument<std::vector<at::Tensor>&>);
  static_assert(LoaderArgument<std::list<std::pair<at::Tensor, int>>>);
  static_assert(LoaderArgument<std::unique_ptr<std::vector<at::Tensor>>&>);
  static_assert(LoaderArgument<at::Tensor&>);
  static_assert(LoaderArgument<TensorLoader<2>&>);
  static_assert(!LoaderArgument<int>);
  static_assert(!LoaderArgument<None>);
  std::shared_ptr<std::vector<at::Tensor>> null;
  EXPECT_EQ(error_of([&] { fulmen::detail::loader_of(null, "fit"); }),
            "fit: the loader is a null pointer, expected a range of batches");
}

TEST(TensorLoader, InOrderGivesViewsOfAllSamplesOnce) {
  const at::Tensor x = at::arange(10).view({10, 1}), y = at::arange(10);
  TensorLoader loader{{x, y}, {.batch_size = 4}};
  EXPECT_EQ(loader.size(), 3);
  std::vector<std::int64_t> sizes;
  std::int64_t next = 0;
  for (const auto& [image, label] : loader) {
    sizes.push_back(label.size(0));
    EXPECT_TRUE(label.equal(at::arange(next, next + label.size(0))));
    EXPECT_TRUE(image.squeeze(1).equal(label));
    EXPECT_EQ(image.storage().data(), x.storage().data()) << "no copy";
    next += label.size(0);
  }
  EXPECT_EQ(sizes, (std::vector<std::int64_t>{4, 4, 2}));
  TensorLoader dropping{{x}, {.batch_size = 4, .drop_last = true}};
  EXPECT_EQ(dropping.size(), 2);
  for (const at::Tensor& alone : dropping) EXPECT_EQ(alone.size(0), 4);
}

TEST(TensorLoader, ShufflesAnewEachEpochAndRepeatsWithTheSeed) {
  const at::Tensor x = at::arange(50), y = at::arange(50) * 2;
  TensorLoader loader{{x, y}, {.batch_size = 8, .shuffle = true}};
  const auto epoch = [&] {
    std::vector<std::int64_t> order;
    for (const auto& [a, b] : loader) {
      EXPECT_TRUE(b.equal(a * 2)) << "tensors stay together";
      for (std::int64_t i = 0; i < a.size(0); ++i) order.push_back(a[i].item<std::int64_t>());
    }
    return order;
  };
  seed_everything(7);
  const auto first = epoch(), second = epoch();
  EXPECT_EQ(std::set(first.begin(), first.end()).size(), 50u);
  EXPECT_NE(first, second);
  seed_everything(7);
  EXPECT_EQ(epoch(), first);
}

TEST(TensorLoader, SaysWhatIsWrong) {
  const at::Tensor x = at::zeros({10, 3}), y = at::zeros({9});
  EXPECT_EQ(error_of([&] { TensorLoader{{x, y}}; }),
            "TensorLoader: tensor 1 has shape [9], expected 10 samples as tensor 0 has");
  EXPECT_EQ(error_of([&] { TensorLoader{{x, at::Tensor()}}; }),
            "TensorLoader: tensor 1 is undefined, expected one with samples along its first dimension");
  EXPECT_EQ(error_of([&] { TensorLoader{{at::scalar_tensor(1)}}; }),
            "TensorLoader: tensor 0 is a single number, expected one with samples along its first dimension");
  EXPECT_EQ(error_of([&] { TensorLoader{{x}, {.batch_size = 0}}; }), "TensorLoader: batch_size is 0, expected at least 1");
}

}  // namespace
