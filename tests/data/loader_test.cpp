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

// The rows that are copied by hand are those that ATen takes, whatever the type, shape and place in memory.
TEST(TensorLoader, GathersWhatIndexSelectDoes) {
  const auto kinds = {at::kByte,  at::kBool, at::kHalf,   at::kInt,
                      at::kFloat, at::kLong, at::kDouble, at::kComplexDouble};
  const int before = at::get_num_threads();
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    for (const at::ScalarType type : kinds) {
      const at::Tensor wide = (at::rand({300, 2, 5}) * 100).to(type);
      const at::Tensor narrow = wide.select(1, 0).select(1, 0).contiguous();
      const at::Tensor large = (at::rand({300, 3, 40, 7}) * 100).to(type);
      const at::Tensor strided = wide.transpose(1, 2);
      const at::Tensor last_channel = large.contiguous(at::MemoryFormat::ChannelsLast);
      const at::Tensor empty = at::empty({300, 0}, type);
      const at::Tensor tail = at::cat({wide, wide}).narrow(0, 300, 300);
      TensorLoader loader{{wide, narrow, large, strided, last_channel, empty, tail},
                          {.batch_size = 256, .shuffle = true}};
      TensorLoader numbers{{at::arange(300)}, {.batch_size = 256, .shuffle = true}};
      seed_everything(5);
      std::vector<at::Tensor> order;
      for (const at::Tensor& index : numbers) order.push_back(index);
      seed_everything(5);
      std::size_t i = 0;
      for (const auto& batch : loader) {
        const auto expect = [&](const at::Tensor& got, const at::Tensor& from) {
          const at::Tensor expected = from.index_select(0, order[i]);
          EXPECT_TRUE(got.equal(expected)) << type;
          EXPECT_EQ(got.strides(), expected.strides());
          EXPECT_EQ(got.scalar_type(), type);
        };
        const auto& [a, b, c, d, e, f, g] = batch;
        expect(a, wide), expect(b, narrow), expect(c, large), expect(d, strided), expect(e, last_channel);
        expect(f, empty), expect(g, tail);
        ++i;
      }
      EXPECT_EQ(i, 2u);
    }
  }
  at::set_num_threads(before);
}

// The order for a seed is part of what makes a run repeatable: what Python's randperm gives for a seed that its randint
// drew from the default generator.
TEST(TensorLoader, OrderOfASeedStays) {
  seed_everything(42);
  TensorLoader loader{{at::arange(8)}, {.batch_size = 8, .shuffle = true}};
  std::vector<at::Tensor> epochs;
  for (int epoch = 0; epoch < 2; ++epoch) {
    for (const at::Tensor& batch : loader) epochs.push_back(batch);
  }
  EXPECT_TRUE(epochs[0].equal(torch::tensor({0, 2, 6, 4, 3, 7, 1, 5}))) << epochs[0];
  EXPECT_TRUE(epochs[1].equal(torch::tensor({5, 2, 6, 0, 4, 7, 1, 3}))) << epochs[1];
}

TEST(TensorLoader, LeavesTensorsWithGradientsToATen) {
  const at::Tensor x = at::rand({4, 2}).requires_grad_(true);
  TensorLoader loader{{x}, {.batch_size = 4, .shuffle = true}};
  for (const at::Tensor& batch : loader) batch.sum().backward();
  EXPECT_TRUE(x.grad().equal(at::ones({4, 2})));
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
