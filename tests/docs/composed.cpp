// The code of docs/composed.md, compiled and run.
#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>

using namespace fulmen::nn;

struct Classifier : torch::nn::Module {
  using Layers = decltype(Sequential{Linear(4, 64), ReLU(), Linear(64, 2)});
  std::shared_ptr<Layers> layers =
      register_module("layers", make_sequential(Linear(4, 64), ReLU(), Linear(64, 2)));

  at::Tensor forward(const at::Tensor& x) { return layers->forward(x); }
  Layers& composition() { return *layers; }
  void on_train_epoch_end(fulmen::Context& ctx) {
    std::printf("epoch %lld\n", static_cast<long long>(ctx.epoch()));
  }
};

struct Swish {
  at::Tensor forward(const at::Tensor& x) const { return x * x.sigmoid(); }
  /// From input, output and the gradient of the output, the gradient of the input.
  at::Tensor backward(const at::Tensor& x, const at::Tensor& y, const at::Tensor& grad) const {
    const at::Tensor s = x.sigmoid();
    return grad * (s + y * (1 - s));
  }
};

struct Scale : torch::nn::Module {
  at::Tensor weight = register_parameter("weight", at::ones({1}));
  at::Tensor forward(const at::Tensor& x) { return x * weight; }
  at::Tensor backward(const at::Tensor& x, const at::Tensor&, const at::Tensor& grad) {
    fulmen::nn::add_gradient(weight, (grad * x).sum().reshape({1}));
    return grad * weight;
  }
};

int main() {
  fulmen::seed_everything(1);
  const at::Tensor images = at::randn({64, 4}), labels = (images.sum(1) > 0).to(at::kLong);
  fulmen::TensorLoader train{{images, labels}, {.batch_size = 16}};
  const fulmen::Options options{
      .max_epochs = 2,
      .enable_progress_bar = false,
      .enable_model_summary = false,
      .enable_checkpointing = false,
      .default_root_dir = std::filesystem::temp_directory_path() / "fulmen-docs-composed"};

  using namespace fulmen::nn;
  Sequential net{named<"fc1">(Linear(4, 64)), ReLU(), Dropout(0.1), named<"fc2">(Linear(64, 2))};

  fulmen::Trainer trainer{net,          fulmen::CrossEntropy{}, fulmen::AdamW{.lr = 1e-2},
                          fulmen::none, fulmen::Identity{},     fulmen::callbacks(),
                          options};
  trainer.fit(train);
  const std::string plan = fulmen::to_string(trainer.plan());
  if (plan.find("  gradients                   composed of 4 layers\n") == std::string::npos)
    return EXIT_FAILURE;

  fulmen::Trainer by_graph{net,
                           fulmen::CrossEntropy{},
                           fulmen::AdamW{.lr = 1e-2},
                           fulmen::none,
                           fulmen::Identity{},
                           fulmen::callbacks(),
                           options,
                           fulmen::DefaultRuntime{}.with_gradients(fulmen::Autograd{})};
  by_graph.fit(train);

  fulmen::Trainer with_hooks{Classifier{}, fulmen::CrossEntropy{}, fulmen::AdamW{.lr = 1e-2},
                             fulmen::none, fulmen::Identity{},     fulmen::callbacks(),
                             options};
  with_hooks.fit(train);

  fulmen::CrossEntropy criterion;
  fulmen::nn::ComposedStep<decltype(net), fulmen::CrossEntropy> step(net, criterion);
  step.forward({&images}, {&labels});
  const at::Tensor loss = step.loss();
  step.backward();

  Sequential mixed{Linear(4, 8), Swish{}, Scale(), [](const at::Tensor& x) { return x.clamp(-3, 3); },
                   Linear(8, 2)};
  ComposedStep<decltype(mixed), fulmen::CrossEntropy> mixed_step(mixed, criterion);
  mixed_step.forward({&images}, {&labels});
  mixed_step.loss();
  mixed_step.backward();
  const at::Tensor found = mixed.get<2>().weight.grad().clone();
  mixed.zero_grad();
  criterion(mixed.forward(images), labels).backward();
  const bool same = at::allclose(found, mixed.get<2>().weight.grad(), 1e-5, 1e-6);
  std::filesystem::remove_all(options.default_root_dir);
  return loss.isfinite().item<bool>() && same ? EXIT_SUCCESS : EXIT_FAILURE;
}
