// Compiles and runs the code shown in docs/loaders.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>
#include <fulmen/data/prefetch.hpp>

#include <iterator>
#include <string>
#include <tuple>
#include <vector>

struct Net : torch::nn::Module {
  torch::nn::Linear line{register_module("line", torch::nn::Linear(28 * 28, 10))};
  torch::Tensor forward(const torch::Tensor& x) { return line(x.flatten(1)); }
};

// Batches of images with noise on them, each walk with noise of its own.
struct Noisy {
  fulmen::TensorLoader<2> loader;

  struct Iterator {
    fulmen::TensorLoader<2>::Iterator at;
    torch::Generator generator;

    std::tuple<torch::Tensor, torch::Tensor> operator*() {
      auto [bytes, label] = *at;
      const torch::Tensor image = bytes.to(torch::kFloat).div_(255);
      return {image + 0.1 * torch::randn(image.sizes(), generator), label};
    }
    Iterator& operator++() {
      ++at;
      return *this;
    }
    bool operator==(const fulmen::TensorLoader<2>::Iterator& end) const { return at == end; }
  };
  Iterator begin() {
    const auto seed = torch::randint(1 << 30, {}, torch::kLong)
                          .item<std::int64_t>();  // of the default generator: here only
    return {loader.begin(), at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(seed))};
  }
  auto end() const { return loader.end(); }
  std::int64_t size() const { return loader.size(); }
};

using Trained = std::vector<torch::Tensor>;

template <class Train>
Trained trained(Train& train) {
  fulmen::Trainer trainer{Net{},
                          fulmen::CrossEntropy{},
                          fulmen::SGD{.lr = 0.1},
                          fulmen::none,
                          fulmen::Identity{},
                          fulmen::callbacks(),
                          {.max_epochs = 2},
                          fulmen::barebones};
  trainer.fit(train);
  return trainer.module().parameters();
}

int main() {
  const torch::Tensor images = torch::randint(256, {500, 1, 28, 28}, torch::kByte);
  const torch::Tensor labels = torch::randint(10, {500}, torch::kLong);

  fulmen::seed_everything(1);
  fulmen::TensorLoader train{{images.to(torch::kFloat), labels},
                             {.batch_size = 64, .shuffle = true, .drop_last = true}};
  trained(train);

  fulmen::seed_everything(2);
  Noisy noisy{{{images, labels}, {.batch_size = 64, .shuffle = true}}};
  const Trained plain = trained(noisy);

  fulmen::seed_everything(2);
  auto ahead = fulmen::prefetch(noisy, {.batches = 2});
  const Trained prefetched = trained(ahead);

  for (std::size_t i = 0; i < plain.size(); ++i) {
    if (!plain[i].equal(prefetched[i])) return 1;
  }
  return 0;
}
