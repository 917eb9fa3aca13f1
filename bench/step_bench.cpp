// A training step on one thread: the plain LibTorch loop, the loop an expert writes by hand, and fulmen's Trainer.
#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <benchmark/benchmark.h>

#include <filesystem>

namespace {

struct Mlp : torch::nn::Module {
  torch::nn::Linear fc1, fc2;
  Mlp(std::int64_t in, std::int64_t hidden, std::int64_t out) : fc1(in, hidden), fc2(hidden, out) {
    register_module("fc1", fc1);
    register_module("fc2", fc2);
  }
  at::Tensor forward(const at::Tensor& x) { return fc2(at::relu(fc1(x))); }
};

/// Shape of the model and how many steps a measurement runs.
struct Size {
  std::int64_t in, hidden, out, batch, steps;
};
const Size kSizes[] = {{4, 8, 2, 8, 2000}, {784, 64, 10, 64, 500}};

/// The same batch again and again: what is measured is the step, not the loader.
struct Repeat {
  std::vector<std::tuple<at::Tensor, at::Tensor>> one;
  std::int64_t count;

  struct Iterator {
    const Repeat* self;
    std::int64_t i;
    const std::tuple<at::Tensor, at::Tensor>& operator*() const { return self->one[0]; }
    Iterator& operator++() {
      ++i;
      return *this;
    }
    bool operator!=(const Iterator& other) const { return i != other.i; }
  };
  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, count}; }
  std::int64_t size() const { return count; }
};

struct Problem {
  Size size;
  std::shared_ptr<Mlp> module;
  at::Tensor x, y;

  explicit Problem(const benchmark::State& state) : size(kSizes[state.range(0)]) {
    at::set_num_threads(1);
    fulmen::seed_everything(0);
    module = std::make_shared<Mlp>(size.in, size.hidden, size.out);
    x = torch::randn({size.batch, size.in});
    y = torch::randint(size.out, {size.batch});
  }
  Repeat loader() const { return {{{x, y}}, size.steps}; }
  void report(benchmark::State& state) const { state.SetItemsProcessed(state.iterations() * size.steps); }
};

void plain_libtorch(benchmark::State& state) {
  const Problem p(state);
  torch::optim::Adam optimizer(p.module->parameters(), 1e-3);
  for (auto _ : state) {
    for (std::int64_t i = 0; i < p.size.steps; ++i) {
      optimizer.zero_grad();
      torch::nn::functional::cross_entropy(p.module->forward(p.x), p.y).backward();
      optimizer.step();
    }
  }
  p.report(state);
}

void by_an_expert(benchmark::State& state) {
  const Problem p(state);
  const std::vector<at::Tensor> params = p.module->parameters();
  std::vector<at::Tensor> grads(params.size()), m, v;
  for (const at::Tensor& t : params) m.push_back(at::zeros_like(t)), v.push_back(at::zeros_like(t));
  const std::vector<at::Tensor> steps(params.size(), at::zeros({}));
  float* step = steps[0].mutable_data_ptr<float>();
  for (auto _ : state) {
    for (std::int64_t i = 0; i < p.size.steps; ++i) {
      at::cross_entropy_loss(p.module->forward(p.x), p.y).backward();
      for (std::size_t k = 0; k < params.size(); ++k) grads[k] = std::move(params[k].mutable_grad());
      const at::NoGradGuard no_grad;
      ++*step;
      at::_fused_adam_(params, grads, m, v, {}, steps, 1e-3, 0.9, 0.999, 0, 1e-8, false, false);
    }
  }
  p.report(state);
}

template <class Runtime>
void by_fulmen(benchmark::State& state) {
  const Problem p(state);
  const auto folder = std::filesystem::temp_directory_path() / "fulmen-bench";
  const Repeat loader = p.loader();
  for (auto _ : state) {
    fulmen::Trainer trainer{p.module,
                            fulmen::CrossEntropy{},
                            fulmen::Adam{},
                            fulmen::none,
                            fulmen::Identity{},
                            fulmen::callbacks(),
                            {.max_epochs = 1, .enable_model_summary = false, .default_root_dir = folder},
                            Runtime{}};
    trainer.fit(loader);
  }
  p.report(state);
  std::filesystem::remove_all(folder);
}

void by_fulmen_barebones(benchmark::State& state) { by_fulmen<fulmen::Runtime<>>(state); }
/// With progress line, CSV log and a checkpoint at the end, as by default.
void by_fulmen_default(benchmark::State& state) { by_fulmen<fulmen::DefaultRuntime>(state); }

// The minimum of the repetitions is what to look at; the bench target interleaves them, so that a machine that slows down
// slows all of them.
#define STEP_BENCHMARK(NAME)                                                                                  \
  BENCHMARK(NAME)->Arg(0)->Arg(1)->ArgName("mlp")->Unit(benchmark::kMillisecond)->Repetitions(5)               \
      ->ComputeStatistics("min", [](const std::vector<double>& v) { return *std::min_element(v.begin(), v.end()); }) \
      ->DisplayAggregatesOnly(true)
STEP_BENCHMARK(plain_libtorch);
STEP_BENCHMARK(by_an_expert);
STEP_BENCHMARK(by_fulmen_barebones);
STEP_BENCHMARK(by_fulmen_default);

}  // namespace
