// The build itself: LibTorch, Boost.Hana and {fmt} compile, link and run together.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <boost/hana.hpp>

namespace {

struct Batch {
  BOOST_HANA_DEFINE_STRUCT(Batch, (torch::Tensor, image), (torch::Tensor, label));
};

TEST(Smoke, LibTorchTrains) {
  torch::manual_seed(0);
  torch::nn::Linear net(4, 2);
  torch::optim::SGD sgd(net->parameters(), 0.1);
  const Batch batch{torch::randn({8, 4}), torch::randint(2, {8})};
  const auto loss = [&] { return torch::nn::functional::cross_entropy(net(batch.image), batch.label); };
  const double before = loss().item<double>();
  for (int step = 0; step < 20; ++step) {
    sgd.zero_grad();
    loss().backward();
    sgd.step();
  }
  EXPECT_LT(loss().item<double>(), before);
}

TEST(Smoke, HanaReflects) {
  EXPECT_EQ(boost::hana::length(boost::hana::accessors<Batch>()), boost::hana::size_c<2>);
}

TEST(Smoke, ErrorsCrossTheLibraryBoundary) {
  // Fails where the program and LibTorch disagree on the ABI of std::string.
  EXPECT_THROW((void)torch::ones({2, 3}).matmul(torch::ones({2, 3})), c10::Error);
  EXPECT_EQ(fmt::format("{}", torch::ones({2}).toString()), "CPUFloatType");
}

}  // namespace
