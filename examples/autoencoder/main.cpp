// An autoencoder with steps of its own: 8×8 digits to a code of eight numbers and back.
//
// Its own training_step, validation_step and inference_step take the place of the default ones, so it needs
// no criterion. Its error is compared with that of the best linear code of the same size, the principal
// components.
//
//   cmake --preset demo && cmake --build build/demo --target autoencoder && build/demo/examples/autoencoder
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>
#include <fulmen/terminal/image.hpp>

#include <CLI/CLI.hpp>

#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <numbers>
#include <string>
#include <tuple>
#include <vector>

namespace {

namespace nn = torch::nn;

/// What inference_step gives back: MetricMonitor looks for these two names.
struct Reconstruction {
  torch::Tensor prediction, targets;
};

/// The mean squared error of a pixel, as a metric of one's own.
class PixelError {
 public:
  static constexpr std::string_view name = "mse";

  void update(const torch::Tensor& prediction, const torch::Tensor& target) {
    sum_ += torch::mse_loss(prediction, target, at::Reduction::Sum).item<double>();
    count_ += target.numel();
  }
  double compute() const { return sum_ / static_cast<double>(count_); }
  void reset() { sum_ = 0, count_ = 0; }

 private:
  double sum_ = 0;
  std::int64_t count_ = 0;
};

/// Batches are images alone, N×64 from 0 to 1: they are input and target.
struct Autoencoder : nn::Module {
  nn::Sequential encoder, decoder;

  explicit Autoencoder(std::int64_t code)
      : encoder(nn::Linear(64, 256), nn::SiLU(), nn::Linear(256, 128), nn::SiLU(), nn::Linear(128, code)),
        decoder(nn::Linear(code, 128), nn::SiLU(), nn::Linear(128, 256), nn::SiLU(), nn::Linear(256, 64)) {
    register_module("encoder", encoder);
    register_module("decoder", decoder);
  }

  /// Learns to undo noise as well: with so few images, that keeps it from learning them by heart.
  torch::Tensor training_step(fulmen::Context& ctx, const torch::Tensor& images) {
    const torch::Tensor code = encoder->forward(images + torch::randn_like(images) * 0.1);
    const torch::Tensor loss = torch::mse_loss(decoder->forward(code), images);
    ctx.log("train/loss", loss, {.prog_bar = true});
    return loss;
  }

  Reconstruction validation_step(fulmen::Context& ctx, const torch::Tensor& images) {
    Reconstruction result = inference_step(ctx, images);
    ctx.log("val/largest_error", (result.prediction - images).abs().max(), {.reduce = fulmen::Reduce::max});
    return result;
  }

  /// What test and predict run. The loop leaves its batches where the loader has them.
  Reconstruction inference_step(fulmen::Context& ctx, const torch::Tensor& batch) {
    const torch::Tensor images = batch.to(ctx.device());
    return {decoder->forward(encoder->forward(images)).clamp(0, 1), images};
  }
};

/// The digits of the repository, N×64 from 0 to 1, in an order that mixes the classes and is always the same.
torch::Tensor read_digits(const std::filesystem::path& dir) {
  const torch::Tensor pixels = fulmen::read_idx(dir / "digits-images-idx3-ubyte");
  const torch::Tensor images = pixels.flatten(1).to(torch::kFloat) / pixels.max();
  // 1009 has no divisor in common with 1,797, so this visits each image once.
  const torch::Tensor order = torch::arange(images.size(0)).mul(1009).remainder(images.size(0));
  return images.index_select(0, order);
}

/// The error with the first principal components of the training images as code.
double pca_error(const torch::Tensor& train, const torch::Tensor& test, std::int64_t code) {
  const torch::Tensor mean = train.mean(0);
  const auto [u, s, v] = torch::linalg_svd(train - mean, /*full_matrices=*/false);
  const torch::Tensor components = v.slice(0, 0, code);
  const torch::Tensor restored = (test - mean).matmul(components.t()).matmul(components) + mean;
  return torch::mse_loss(restored, test).item<double>();
}

/// Draws images side by side, each reconstruction below its original.
void draw(const torch::Tensor& originals, const torch::Tensor& reconstructions) {
  const auto caps = fulmen::terminal::detect(stdout);
  std::vector<std::vector<std::string>> blocks;
  for (std::int64_t i = 0; i < originals.size(0); ++i) {
    std::vector<std::string>& block = blocks.emplace_back();
    for (const torch::Tensor& image : {originals[i], reconstructions[i]}) {
      const torch::Tensor pixels = image.cpu().contiguous();
      if (!block.empty()) block.emplace_back();
      const auto lines = fulmen::terminal::render_gray({pixels.const_data_ptr<float>(), 64}, 8, 8, caps);
      block.insert(block.end(), lines.begin(), lines.end());
    }
  }
  for (const std::string& line : fulmen::terminal::side_by_side(blocks, 2, caps.width))
    std::puts(line.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  fulmen::Options options{.max_epochs = 50, .name = "autoencoder"};
  std::int64_t code = 8;
  std::uint64_t seed = 0;

  CLI::App app{"Trains an autoencoder on 8×8 digits, compares it with PCA, and draws what it restores."};
  app.set_help_flag("-h,--help", "print this help");
  app.add_option("--code", code, "numbers in the code of an image")
      ->capture_default_str()->check(CLI::Range(1, 64));
  app.add_option("--epochs", options.max_epochs, "epochs")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--seed", seed, "the same seed gives the same numbers")->capture_default_str();
  app.add_option("--runs", options.default_root_dir, "where the run's folder is made")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  at::set_num_threads(1);  // so small a network is no work for two
  fulmen::seed_everything(seed);
  const torch::Tensor images = read_digits(FULMEN_DIGITS_DATA);
  const torch::Tensor training = images.slice(0, 0, 1200), testing = images.slice(0, 1497);
  fulmen::TensorLoader train{{training}, {.batch_size = 64, .shuffle = true}};
  fulmen::TensorLoader val{{images.slice(0, 1200, 1497)}, {.batch_size = 300}};
  const auto cosine = [n = static_cast<double>(options.max_epochs)](std::int64_t epoch) {
    return 3e-3 * 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(epoch) / n));
  };

  fulmen::Trainer trainer{Autoencoder{code},
                          fulmen::none,  // the criterion is in training_step
                          fulmen::AdamW{},
                          fulmen::Schedule{cosine},
                          fulmen::Identity{},
                          fulmen::callbacks(fulmen::MetricMonitor{PixelError{}}),
                          options};
  trainer.fit(train, val);
  const double error = trainer.test(testing).front().value, pca = pca_error(training, testing, code);

  const torch::Tensor some = testing.slice(0, 0, 8);
  draw(some, trainer.predict(some).front().prediction);
  std::printf("\nmean squared error of a pixel: %.4f; with %lld principal components: %.4f\n", error,
              static_cast<long long>(code), pca);
} catch (const std::exception& error) {
  std::fprintf(stderr, "autoencoder: %s\n", error.what());
  return 1;
}
