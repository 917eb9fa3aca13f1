// Compiles and runs the code shown in docs/profilers.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>
#include <fulmen/profile/simple.hpp>
#include <fulmen/profile/torch.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "../testing.hpp"

using namespace fulmen;
using Batch = std::tuple<torch::Tensor, torch::Tensor>;

struct Net : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(4, 3))};
  torch::Tensor forward(const torch::Tensor& x) { return layer(x); }

  torch::Tensor training_step(auto& ctx, const Batch& batch) {
    auto [x, y] = batch;
    {
      const auto measured = fulmen::profile<"augmentation">(ctx);
      x = x + 0.1 * torch::randn_like(x);
    }
    return torch::cross_entropy_loss(forward(x), y);
  }
};

struct Counter {
  std::map<std::string, int, std::less<>> calls{};

  void start(std::string_view) {}
  void stop(std::string_view action) { ++calls[std::string(action)]; }
  void teardown() {
    for (const auto& [action, count] : calls) std::printf("%6d %s\n", count, action.c_str());
  }
};

void simple(TensorLoader<2>& train, TensorLoader<2>& val, const Options& options) {
  Trainer trainer{Net{},      CrossEntropy{}, AdamW{.lr = 1e-3}, none,
                  Identity{}, callbacks(),    options,           DefaultRuntime{}.with_profiler(SimpleProfiler{})};
  trainer.fit(train, val);

  for (const ActionTime& action : trainer.context().profiler().actions()) {
    std::printf("%s: %lld times, %.3f s\n", action.name.c_str(), static_cast<long long>(action.num_calls),
                action.total_time);
  }
}

void operators(TensorLoader<2>& train, TensorLoader<2>& val, const Options& options) {
  auto runtime = DefaultRuntime{}.with_profiler(
      TorchProfiler{.schedule = {.wait = 5, .warmup = 2, .active = 3}, .record_shapes = true});
  Trainer trainer{Net{},      CrossEntropy{}, AdamW{.lr = 1e-3}, none,
                  Identity{}, callbacks(),    options,           std::move(runtime)};
  trainer.fit(train, val);
  if (!exists(trainer.context().run_dir() / "fit.0.pt.trace.json")) std::abort();
}

void own(TensorLoader<2>& train, const Options& options) {
  Trainer trainer{Net{},      CrossEntropy{}, AdamW{.lr = 1e-3}, none,
                  Identity{}, callbacks(),    options,           barebones.with_profiler(Counter{})};
  trainer.fit(train);
  if (trainer.context().profiler().calls["augmentation"] != 20) std::abort();
}

int main() {
  const TemporaryFolder folder;
  const Options options{.max_epochs = 2,
                        .enable_progress_bar = false,
                        .enable_model_summary = false,
                        .enable_checkpointing = false,
                        .default_root_dir = folder.path};
  TensorLoader loader{{torch::randn({40, 4}), torch::randint(3, {40})}, {.batch_size = 4}};
  simple(loader, loader, options);
  operators(loader, loader, options);
  own(loader, options);
}
