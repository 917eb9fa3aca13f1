// A generative adversarial network, optimised by hand: two networks, two optimizers, one training_step.
//
// It learns to draw points from eight Gaussians on a ring. There it can be counted what a GAN likes to get
// wrong: how many of the eight it has found, and which share of its points is near one of them.
//
//   cmake --preset demo && cmake --build build/demo --target gan && build/demo/examples/gan
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

#include <CLI/CLI.hpp>

#include <cmath>
#include <cstdio>
#include <exception>
#include <numbers>
#include <string>
#include <tuple>
#include <vector>

namespace {

namespace nn = torch::nn;

constexpr std::int64_t kModes = 8, kNoise = 4, kBatch = 256, kBatches = 100;
constexpr double kRadius = 3, kSigma = 0.3;  // of the ring, of each Gaussian

/// The middles of the Gaussians, kModes×2.
torch::Tensor middles() {
  const torch::Tensor angle = torch::arange(kModes) * (2 * std::numbers::pi / kModes);
  return torch::stack({angle.cos(), angle.sin()}, 1) * kRadius;
}

/// n×2 points of the distribution to learn.
torch::Tensor sample(std::int64_t n) {
  return middles().index_select(0, torch::randint(kModes, {n}, torch::kLong)) + torch::randn({n, 2}) * kSigma;
}

/// Two hidden layers, for either network.
struct Mlp : nn::Module {
  nn::Linear in, hidden, out;

  Mlp(std::int64_t inputs, std::int64_t outputs)
      : in(register_module("in", nn::Linear(inputs, 64))),
        hidden(register_module("hidden", nn::Linear(64, 64))),
        out(register_module("out", nn::Linear(64, outputs))) {}

  torch::Tensor forward(const torch::Tensor& x) {
    return out(torch::leaky_relu(hidden(torch::leaky_relu(in(x), 0.2)), 0.2));
  }
};

struct Gan : nn::Module {
  // The loop makes no optimizer step of its own: training_step says when which network learns from what.
  static constexpr bool automatic_optimization = false;

  std::shared_ptr<Mlp> generator{register_module("generator", std::make_shared<Mlp>(kNoise, 2))};
  std::shared_ptr<Mlp> discriminator{register_module("discriminator", std::make_shared<Mlp>(2, 1))};

  torch::Tensor forward(const torch::Tensor& noise) { return generator->forward(noise); }

  /// The losses compare real points with made ones, pair by pair: a relativistic GAN (Jolicoeur-Martineau,
  /// 2018), which does not get stuck with a few of the Gaussians as one does that judges each point
  /// alone (Sun et al., 2020).
  void training_step(auto& ctx, const torch::Tensor& real) {
    auto& [g, d] = ctx.optimizers();
    const torch::Tensor fake = forward(torch::randn({real.size(0), kNoise}, real.options()));
    // How much more real the real points look to the discriminator.
    const auto margin = [&](const torch::Tensor& made) {
      return discriminator->forward(real) - discriminator->forward(made);
    };

    const torch::Tensor d_loss = torch::softplus(-margin(fake.detach())).mean();
    d.zero_grad();
    ctx.backward(d_loss);
    d.step();

    // This leaves gradients in the discriminator as well; its zero_grad drops them before they are used.
    const torch::Tensor g_loss = torch::softplus(margin(fake)).mean();
    g.zero_grad();
    ctx.backward(g_loss);
    g.step();

    ctx.log("discriminator/loss", d_loss, {.prog_bar = true});
    ctx.log("generator/loss", g_loss, {.prog_bar = true});
  }

  /// A test batch is noise.
  void test_step(fulmen::Context& ctx, const torch::Tensor& noise) {
    const auto [distance, nearest] = torch::cdist(forward(noise), middles().to(noise.device())).min(1);
    const torch::Tensor good = distance < 3 * kSigma;
    // A mode is found if it gets a quarter or more of its share.
    const torch::Tensor count = torch::bincount(nearest.masked_select(good), {}, kModes);
    ctx.log("modes", (count >= noise.size(0) / kModes / 4).sum());
    ctx.log("good", good.to(torch::kFloat).mean());
  }
};

/// Draws points as characters, the darker the more of them, in a square a little larger than the ring.
void draw(const torch::Tensor& points) {
  constexpr int width = 52, height = 26;
  constexpr double half = kRadius + 3 * kSigma;
  std::vector<std::string> lines(height, std::string(width, ' '));
  const torch::Tensor unit = (points.cpu() + half) / (2 * half);
  const torch::Tensor cells = (unit * torch::tensor({width, height})).floor().to(torch::kLong);
  for (std::int64_t i = 0; i < cells.size(0); ++i) {
    const auto x = cells[i][0].item<std::int64_t>(), y = height - 1 - cells[i][1].item<std::int64_t>();
    if (x < 0 || y < 0 || x >= width || y >= height) continue;
    char& cell = lines[static_cast<std::size_t>(y)][static_cast<std::size_t>(x)];
    cell = cell == ' ' ? '.' : cell == '.' ? 'o' : '@';
  }
  for (const std::string& line : lines) std::printf("  |%s|\n", line.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  fulmen::Options options{.max_epochs = 20, .name = "gan"};
  std::uint64_t seed = 0;

  CLI::App app{"Trains a GAN on eight Gaussians on a ring and draws the points that it makes."};
  app.set_help_flag("-h,--help", "print this help");
  app.add_option("--epochs", options.max_epochs, "epochs of 100 batches")
      ->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--seed", seed, "the same seed gives the same numbers")->capture_default_str();
  app.add_option("--runs", options.default_root_dir, "where the run's folder is made")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  at::set_num_threads(1);  // so small a network is no work for two
  fulmen::seed_everything(seed);
  fulmen::TensorLoader train{{sample(kBatches * kBatch)}, {.batch_size = kBatch, .shuffle = true}};

  const fulmen::Adam adam{.lr = 2e-3, .betas = {0.5, 0.99}};
  fulmen::Trainer trainer{Gan{},
                          fulmen::none,  // the criterion is in training_step
                          std::tuple{fulmen::parameters_of("generator", adam),  //
                                     fulmen::parameters_of("discriminator", adam)},
                          fulmen::none,
                          fulmen::Identity{},
                          fulmen::callbacks(),
                          options};
  trainer.fit(train);

  const torch::Tensor noise = torch::randn({4000, kNoise});
  trainer.test(noise);
  draw(trainer.predict(noise.slice(0, 0, 1000)).front());
  fulmen::MetricStore& metrics = trainer.context().metrics();
  std::printf("\n%.0f of %lld Gaussians found, %.0f %% of the points within 3 standard deviations of one\n",
              *metrics.find("modes"), static_cast<long long>(kModes), 100 * *metrics.find("good"));
} catch (const std::exception& error) {
  std::fprintf(stderr, "gan: %s\n", error.what());
  return 1;
}
