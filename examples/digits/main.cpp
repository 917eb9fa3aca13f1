// Trains a small convolutional network on handwritten digits, tests it, and draws some predictions in the terminal.
// Its layers are of known types, so its backward pass is composed at compile time (docs/composed.md); --autograd trains without that.
#include <fulmen/fulmen.hpp>
#include <fulmen/terminal/image.hpp>
#include <fulmen/terminal/terminal.hpp>

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>

#include <CLI/CLI.hpp>

#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <numbers>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

/// Three 3×3 convolutions with batch normalisation, pooled twice, and a linear layer: N×1×H×W images to N×10 logits.
auto make_net(std::int64_t height, std::int64_t width) {
  using namespace fulmen::nn;
  const auto conv = [](std::int64_t in, std::int64_t out) { return Conv2d(Conv2dOptions(in, out, 3).padding(1)); };
  return Sequential{named<"conv1">(conv(1, 32)),  named<"bn1">(BatchNorm2d(32)), ReLU(),
                    named<"conv2">(conv(32, 32)), named<"bn2">(BatchNorm2d(32)), ReLU(), MaxPool2d(2),
                    named<"conv3">(conv(32, 64)), named<"bn3">(BatchNorm2d(64)), ReLU(), MaxPool2d(2),
                    Flatten(),                    Dropout(0.3),                  named<"fc">(Linear(64 * (height / 4) * (width / 4), 10))};
}

/// Images N×1×H×W from 0 to 1, and labels.
struct Set {
  at::Tensor images, labels;

  Set slice(std::int64_t from, std::int64_t to) const { return {images.slice(0, from, to), labels.slice(0, from, to)}; }
};

Set read(const std::filesystem::path& images_file, const std::filesystem::path& labels_file) {
  const at::Tensor images = fulmen::read_idx(images_file), labels = fulmen::read_idx(labels_file);
  if (images.dim() != 3 || labels.dim() != 1 || images.size(0) != labels.size(0)) {
    fulmen::fail("'{}' has {} dimensions and {} samples, '{}' has {} and {}: expected images N×H×W and labels N",
                 images_file.string(), images.dim(), images.size(0), labels_file.string(), labels.dim(), labels.size(0));
  }
  const at::Tensor scaled = images.to(at::kFloat);
  return {scaled.div(scaled.max()).unsqueeze(1), labels.to(at::kLong)};
}

struct Data {
  Set train, val, test;
};

/// The digits of the repository: a fixed shuffle, then 1,200 to train, 297 to validate and 300 to test.
Data read_digits(const std::filesystem::path& dir) {
  const Set all = read(dir / "digits-images-idx3-ubyte", dir / "digits-labels-idx1-ubyte");
  const std::int64_t n = all.labels.size(0);
  // 1009 has no divisor in common with 1,797, so this visits each image once.
  const at::Tensor order = at::arange(n, at::kLong).mul(1009).remainder(n);
  const Set shuffled{all.images.index_select(0, order), all.labels.index_select(0, order)};
  return {shuffled.slice(0, 1200), shuffled.slice(1200, 1497), shuffled.slice(1497, n)};
}

/// MNIST or Fashion-MNIST, gzipped or not; the last twelfth of the training images validates.
Data read_mnist(const std::filesystem::path& dir) {
  const auto part = [&](const std::string& name) {
    const auto images = fulmen::find_idx(dir, name + "-images-idx3-ubyte");
    return read(images, fulmen::find_idx(dir, name + "-labels-idx1-ubyte"));
  };
  const Set train = part("train"), test = part("t10k");
  const std::int64_t n = train.labels.size(0), kept = n - n / 12;
  return {train.slice(0, kept), train.slice(kept, n), test};
}

/// Draws images side by side, each with its predicted label below, and the true one where they differ.
void draw(const at::Tensor& images, const at::Tensor& predicted, const at::Tensor& labels) {
  const auto caps = fulmen::terminal::detect(stdout);
  std::vector<std::vector<std::string>> blocks;
  for (std::int64_t i = 0; i < images.size(0); ++i) {
    const at::Tensor image = images[i][0].contiguous();
    blocks.push_back(fulmen::terminal::render_gray(
        std::span(image.const_data_ptr<float>(), static_cast<std::size_t>(image.numel())),
        static_cast<int>(image.size(0)), static_cast<int>(image.size(1)), caps));
    const auto guess = predicted[i].item<std::int64_t>(), truth = labels[i].item<std::int64_t>();
    blocks.back().push_back(guess == truth ? fmt::format("→ {}", guess) : fmt::format("→ {} ({})", guess, truth));
  }
  for (const std::string& line : fulmen::terminal::side_by_side(blocks, 3, caps.width)) std::puts(line.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  std::filesystem::path data_dir, load;
  fulmen::Options options{.max_epochs = 15, .name = "digits"};
  std::int64_t batch_size = 64;
  std::uint64_t seed = 0;
  double lr = 5e-3;
  int threads = 0;

  CLI::App app{"Trains a small CNN on handwritten digits and draws what it predicts."};
  app.set_help_flag("-h,--help", "print this help");
  app.add_option("--data", data_dir, "folder with MNIST or Fashion-MNIST in IDX form, gzipped or not; "
                                     "default: the 1,797 digits that come with fulmen")
      ->check(CLI::ExistingDirectory);
  app.add_option("--epochs", options.max_epochs, "epochs")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--batch-size", batch_size, "images a step")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--lr", lr, "first learning rate of AdamW; it falls to 0 along a cosine")
      ->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--seed", seed, "the same seed gives the same numbers")->capture_default_str();
  app.add_option("--threads", threads, "threads for LibTorch; default: 1 for the small digits, else one a core")
      ->check(CLI::PositiveNumber);
  app.add_option("--runs", options.default_root_dir, "where the run's folder is made")->capture_default_str();
  app.add_option("--load", load, "a checkpoint to go on from, or \"last\": the newest there is")
      ->check(CLI::ExistingFile | CLI::IsMember({"last"}));
  bool plan = false, autograd = false;
  app.add_flag("--autograd", autograd, "get gradients by autograd's graph, not by the composed backward pass");
  app.add_flag("--plan", plan, "print which steps and hooks run, and who answers them; then stop");
  CLI11_PARSE(app, argc, argv);

  fulmen::seed_everything(seed);
  const Data data = data_dir.empty() ? read_digits(FULMEN_DIGITS_DATA) : read_mnist(data_dir);
  const at::Tensor& images = data.train.images;
  if (threads == 0 && data_dir.empty()) threads = 1;  // 8×8 images: two threads would wait for each other
  if (threads > 0) at::set_num_threads(threads);
  const auto cosine = [lr, n = options.max_epochs](std::int64_t epoch) {
    return lr * 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(epoch) / static_cast<double>(n)));
  };

  const auto run = [&](auto runtime) {
    fulmen::Trainer trainer{make_net(images.size(2), images.size(3)),
                            fulmen::CrossEntropy{},
                            fulmen::AdamW{.lr = lr},
                            fulmen::Schedule{cosine},
                            fulmen::Identity{},
                            fulmen::callbacks(fulmen::MetricMonitor{fulmen::Accuracy{}}),
                            options,
                            std::move(runtime)};
    if (plan) {
      std::fputs(fulmen::to_string(trainer.plan()).c_str(), stdout);
      return;
    }

    fulmen::TensorLoader train{{images, data.train.labels}, {.batch_size = batch_size, .shuffle = true}};
    fulmen::TensorLoader val{{data.val.images, data.val.labels}, {.batch_size = 256}};
    fulmen::TensorLoader test{{data.test.images, data.test.labels}, {.batch_size = 256}};

    trainer.fit(train, val, {.ckpt_path = load});
    trainer.test(test);

    const Set some = data.test.slice(0, 8);
    for (const at::Tensor& logits : trainer.predict(some.images)) draw(some.images, logits.argmax(1), some.labels);
  };
  if (autograd) run(fulmen::DefaultRuntime{}.with_gradients(fulmen::Autograd{}));
  else run(fulmen::DefaultRuntime{});
} catch (const std::exception& error) {
  std::fprintf(stderr, "digits: %s\n", error.what());
  return 1;
}
