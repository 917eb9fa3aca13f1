// An epoch of one loader, of fulmen or of torch::data, over images in memory: measured whenever a line comes
// in. bench/loader.py starts one for each peer and asks them in turn.
#include <fulmen/fulmen.hpp>
#include <fulmen/data/prefetch.hpp>

#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace {

constexpr std::int64_t images = 60'000;

/// MNIST's shapes: images and labels. uint8 images become floats in [0, 1] on their way.
struct Data {
  at::Tensor image, label;
  bool bytes;

  explicit Data(std::string_view kind)
      : image(at::rand({images, 1, 28, 28})),
        label(at::randint(10, {images}, at::kLong)),
        bytes(kind == "uint8") {
    if (bytes) image = image.mul(255).to(at::kByte);
  }
  at::Tensor normalized(const at::Tensor& x) const { return bytes ? x.to(at::kFloat).div_(255) : x; }
};

/// A loader whose images are made floats in `*`, where prefetch() has that done, too.
struct Normalized {
  fulmen::TensorLoader<2> loader;
  const Data* data;

  struct Iterator {
    fulmen::TensorLoader<2>::Iterator at;
    const Data* data;
    std::tuple<at::Tensor, at::Tensor> operator*() const {
      auto [image, label] = *at;
      return {data->normalized(image), label};
    }
    Iterator& operator++() {
      ++at;
      return *this;
    }
    bool operator==(const Iterator& other) const { return at == other.at; }
  };
  Iterator begin() { return {loader.begin(), data}; }
  Iterator end() { return {loader.end(), data}; }
};

using Example = torch::data::Example<>;

/// As in the tutorials: a sample at a time, stacked by torch::data.
struct Samples : torch::data::Dataset<Samples> {
  Data data;
  explicit Samples(Data d) : data(std::move(d)) {}
  Example get(std::size_t i) override {
    const auto at = static_cast<std::int64_t>(i);
    return {data.normalized(data.image[at]), data.label[at]};
  }
  torch::optional<std::size_t> size() const override { return images; }
};

/// As an expert writes it: a batch at a time.
struct Batches : torch::data::datasets::BatchDataset<Batches, Example> {
  Data data;
  explicit Batches(Data d) : data(std::move(d)) {}
  Example get_batch(at::ArrayRef<std::size_t> indices) override {
    std::vector<std::int64_t> numbers(indices.begin(), indices.end());
    const at::Tensor index =
        at::from_blob(numbers.data(), {static_cast<std::int64_t>(numbers.size())}, at::kLong);
    return {data.normalized(data.image.index_select(0, index)), data.label.index_select(0, index)};
  }
  torch::optional<std::size_t> size() const override { return images; }
};

/// Answers each line "<epochs>" with the seconds that an epoch took. `epoch` says how many batches it had.
template <class Epoch>
int serve(std::int64_t batches, const Epoch& epoch) {
  const auto checked = [&] {
    if (const std::int64_t seen = epoch(); seen != batches) {
      std::fprintf(stderr, "loader_bench: %ld batches, expected %ld\n", static_cast<long>(seen),
                   static_cast<long>(batches));
      std::exit(2);
    }
  };
  checked();
  std::puts("ready"), std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    const int epochs = std::atoi(line.c_str());
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < epochs; ++i) checked();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    std::printf("%.9f\n", spent.count() / epochs), std::fflush(stdout);
  }
  return 0;
}

template <class L>
std::int64_t count(L& loader) {
  std::int64_t batches = 0;
  for (auto&& batch : loader) {
    (void)batch;
    ++batches;
  }
  return batches;
}

template <class Dataset>
int torch_peer(Dataset dataset, std::int64_t batch, std::size_t workers) {
  const auto loader = torch::data::make_data_loader<torch::data::samplers::RandomSampler>(
      std::move(dataset), torch::data::DataLoaderOptions(static_cast<std::size_t>(batch)).workers(workers));
  return serve((images + batch - 1) / batch, [&] { return count(*loader); });
}

/// Keeps a core busy.
void work(std::int64_t us) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(us);
  while (std::chrono::steady_clock::now() < end) continue;
}

/// A loader that works some time for each of 100 batches.
struct Working {
  std::int64_t us;
  struct Iterator {
    std::int64_t us, i;
    std::int64_t operator*() const {
      work(us);
      return i;
    }
    Iterator& operator++() {
      ++i;
      return *this;
    }
    bool operator==(const Iterator& other) const { return i == other.i; }
  };
  Iterator begin() const { return {us, 0}; }
  Iterator end() const { return {us, 100}; }
};

template <class L>
int step_peer(L&& loader, std::int64_t step) {
  return serve(100, [&] {
    std::int64_t batches = 0;
    for (auto&& batch : loader) {
      (void)batch;
      work(step);
      ++batches;
    }
    return batches;
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr,
                 "loader_bench PEER float|uint8 BATCH_SIZE THREADS, PEER: fulmen, 'fulmen prefetch', "
                 "'torch::data[ 2]', "
                 "'torch::data batches[ 2]' (2 workers)\n"
                 "loader_bench 'step'|'step prefetch' LOADER_US STEP_US THREADS  100 batches\n");
    return 2;
  }
  const std::string_view peer = argv[1];
  at::set_num_threads(std::atoi(argv[4]));
  torch::manual_seed(0);
  if (peer.starts_with("step")) {
    Working loader{std::atoll(argv[2])};
    return peer == "step" ? step_peer(loader, std::atoll(argv[3]))
                          : step_peer(fulmen::prefetch(loader), std::atoll(argv[3]));
  }
  const Data data(argv[2]);
  const std::int64_t batch = std::atoll(argv[3]), batches = (images + batch - 1) / batch;
  Normalized loader{{{data.image, data.label}, {.batch_size = batch, .shuffle = true}}, &data};
  if (peer == "fulmen") return serve(batches, [&] { return count(loader); });
  if (peer == "fulmen prefetch") {
    auto ahead = fulmen::prefetch(loader);
    return serve(batches, [&] { return count(ahead); });
  }
  if (peer == "torch::data")
    return torch_peer(Samples(data).map(torch::data::transforms::Stack<>()), batch, 0);
  if (peer == "torch::data 2")
    return torch_peer(Samples(data).map(torch::data::transforms::Stack<>()), batch, 2);
  if (peer == "torch::data batches") return torch_peer(Batches(data), batch, 0);
  if (peer == "torch::data batches 2") return torch_peer(Batches(data), batch, 2);
  std::fprintf(stderr, "loader_bench: no peer '%s'\n", argv[1]);
  return 2;
}
