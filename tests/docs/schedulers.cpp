// Compiles and runs the code shown in docs/schedulers.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

#include <fulmen/optim/averaged_model.hpp>
#include <fulmen/schedule/compose.hpp>
#include <fulmen/schedule/cyclic.hpp>
#include <fulmen/schedule/decay.hpp>
#include <fulmen/schedule/plateau.hpp>
#include <fulmen/schedule/policies.hpp>
#include <fulmen/schedule/swa.hpp>

#include <cmath>
#include <cstdio>
#include <string>
#include <utility>

using namespace fulmen;

struct Net : torch::nn::Module {
  torch::nn::Linear hidden{register_module("hidden", torch::nn::Linear(4, 8))};
  torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(8))};
  torch::nn::Linear out{register_module("out", torch::nn::Linear(8, 3))};
  torch::Tensor forward(const torch::Tensor& x) { return out(norm(hidden(x)).relu()); }
};

struct Halving {
  double rate(std::int64_t t, double initial, double current) const { return t == 0 ? initial : current / 2; }
};

struct WarmMomentum {
  void update(std::int64_t t, std::span<ParamGroup> groups) const {
    for (ParamGroup& group : groups) {
      if (group.momentum) group.momentum = t < 500 ? 0.85 : 0.95;
    }
  }
};

struct AveragesWeights {
  std::optional<AveragedModel<ExponentialAverage>> average;

  void on_train_batch_end(auto& ctx) {
    if (!average) average.emplace(ctx.module(), ExponentialAverage{.decay = 0.99, .warmup = true});
    average->update_parameters(ctx.module());
  }
  void on_train_end(auto& ctx) { average->copy_to(ctx.module()); }
};

int failures = 0;

void expect(const char* what, double found, double expected) {
  if (std::abs(found - expected) <= 1e-12 * expected) return;
  std::printf("%s: the rate is %.17g, expected %.17g\n", what, found, expected);
  ++failures;
}

int main() {
  const torch::Tensor x = torch::rand({20, 4}), y = torch::randint(3, {20});
  TensorLoader train{{x, y}, {.batch_size = 5}};
  const Options options{.max_epochs = 10};

  Trainer trainer{Net{},      CrossEntropy{}, AdamW{.lr = 1e-3}, StepLR{.step_size = 3},
                  Identity{}, callbacks(),    options,           barebones};
  trainer.fit(train);
  expect("by epoch", trainer.context().optimizer().groups()[0].lr, 1e-6);

  const auto last_rate = [&](auto scheduler) {
    Trainer other{Net{},      CrossEntropy{}, SGD{.lr = 1}, std::move(scheduler),
                  Identity{}, callbacks(),    options,      barebones};
    other.fit(train);
    return other.context().optimizer().groups()[0].lr;
  };

  {
    const auto scheduler = per_step(CosineAnnealingLR{.T_max = 40});
    expect("by step", last_rate(scheduler) + 1, 1);
  }
  {
    const auto one_cycle = per_step(OneCycleLR{.max_lr = 0.1, .total_steps = 1000});
    const auto every_second_epoch = per_epoch(ExponentialLR{.gamma = 0.9}, 2);
    const auto plateau = monitoring("val/accuracy", ReduceLROnPlateau{.mode = ReduceLROnPlateau::Mode::max});
    expect("every second", last_rate(every_second_epoch), std::pow(0.9, 5));
    static_cast<void>(one_cycle), static_cast<void>(plateau);
  }
  {
    const auto all_at_once = ConstantLR{.factor = 0.1} | ExponentialLR{.gamma = 0.9};
    const auto in_turn =
        until(5, LinearLR{}) | until(50, StepLR{.step_size = 10}) | ExponentialLR{.gamma = 0.9};
    const auto the_same = sequential(LinearLR{}, 5, StepLR{.step_size = 10}, 50, ExponentialLR{.gamma = 0.9});
    const auto each_group = per_group(StepLR{.step_size = 30}, ConstantLR{.factor = 0.5});
    const auto warmed_up = per_step(warmup(500, CosineAnnealingLR{.T_max = 9500}));
    const auto nested =
        warmup(5, per_group(StepLR{.step_size = 30}, ConstantLR{} | ExponentialLR{.gamma = 0.9}));
    expect("chained", last_rate(all_at_once), std::pow(0.9, 10));
    expect("until", last_rate(in_turn), 1);
    expect("sequential", last_rate(the_same), 1);
    expect("warm-up", last_rate(warmed_up), (1 + 2 * 40 / 500.0) / 3);
    static_cast<void>(each_group), static_cast<void>(nested);
  }
  {
    const auto rate = [](std::int64_t epoch) { return 1e-3 / (1 + static_cast<double>(epoch)); };
    const auto factor =
        LambdaLR{[](std::int64_t epoch) { return std::pow(0.95, static_cast<double>(epoch)); }};
    expect("function", last_rate(rate), 1e-3 / 11);
    expect("factor", last_rate(factor), std::pow(0.95, 10));
    expect("own", last_rate(Halving{}), std::pow(0.5, 10));
    expect("momentum", last_rate(WarmMomentum{}), 1);
  }

  Net net;
  AveragedModel average(net);      // SWA: all weights count the same
  average.update_parameters(net);  // after each epoch from some epoch on
  average.swap(net);               // net has the average; a second swap brings its own weights back
  update_bn(train, net);           // BatchNorm's statistics, for the averaged weights

  Trainer averaging{Net{},          CrossEntropy{},
                    SGD{.lr = 0.1}, until(6, StepLR{.step_size = 2}) | SWALR{.swa_lr = 0.05},
                    Identity{},     callbacks(AveragesWeights{}),
                    options,        barebones};
  averaging.fit(train);
  const auto& kept = *std::get<AveragesWeights>(averaging.context().callbacks()).average;
  if (kept.n_averaged() != 40 || average.n_averaged() != 1) ++failures;
  return failures == 0 ? 0 : 1;
}
