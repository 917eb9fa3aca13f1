// A use of every part of the library, whose object must hold no vtable and no type_info of the library's own
// classes. It is compiled, not run.
#include <fulmen/fulmen.hpp>
#include <memory>
#include <tuple>

namespace {

struct Net : torch::nn::Module {
  torch::nn::Linear linear = register_module("linear", torch::nn::Linear(4, 2));
  at::Tensor forward(const at::Tensor& x) { return linear->forward(x); }
  at::Tensor activation(const at::Tensor& x) { return x.softmax(1); }
  at::Tensor inference_step(const auto& batch) { return forward(std::get<0>(batch)); }
};

struct ByHand : Net {
  static constexpr bool automatic_optimization = false;

  void training_step(auto& ctx, const auto& batch) {
    auto& [first, second] = ctx.optimizers();
    const at::Tensor loss = forward(std::get<0>(batch)).sum();
    first.zero_grad();
    second.zero_grad();
    ctx.backward(loss);
    first.step();
    second.step();
    ctx.log("loss", loss, {.prog_bar = true, .on_step = true, .on_epoch = true});
    ctx.log(fulmen::runtime_name("rate"), second.groups()[0].lr);
  }
  void on_train_epoch_end(fulmen::Context& ctx) { ctx.request_stop(); }
};

struct Twice {
  auto operator()(const auto& inputs, auto infer) const { return infer(infer(inputs)); }
};

void use(auto&& trainer, auto& loader) {
  trainer.fit(loader, loader);
  trainer.validate(loader);
  trainer.test(loader);
  (void)trainer.predict(loader);
  trainer.save("a.ckpt");
  trainer.load("a.ckpt");
  (void)to_string(trainer.plan());
}

}  // namespace

void everything() {
  using namespace fulmen;
  seed_everything(1);
  TensorLoader loader{{read_idx("images"), read_idx(find_idx(".", "labels"))},
                      {.batch_size = 2, .shuffle = true}};
  use(Trainer{Net{}, CrossEntropy{}, Adam{}, Switch{{{5, 1e-4}}}, Identity{}, callbacks(), {.max_epochs = 1}},
      loader);
  use(Trainer{std::make_shared<Net>(), MSE{}, SGD{.momentum = 0.9}, per_step(Multiply{{{5, 0.1}}}), Twice{},
              callbacks(ModelCheckpoint{.monitor = "val/loss"}, ModelSummary{}, ProgressBar{})},
      loader);
  use(Trainer{ByHand{},
              none,
              std::tuple{AdamW{}, SGD{}},
              Schedule{[](std::int64_t) { return 1e-3; }},
              Identity{},
              callbacks(),
              {},
              barebones},
      loader);
}

struct WithDefaultSteps : torch::nn::Module {
  at::Tensor forward(const at::Tensor& x) { return x; }
};

void default_steps() {
  using namespace fulmen;
  const at::Tensor data = at::ones({4, 2});
  TensorLoader loader{{data, data}};
  use(Trainer{WithDefaultSteps{}, L1{}, SGD{}, none, Identity{}, callbacks(MetricMonitor{Accuracy{}})},
      loader);
  use(Trainer{WithDefaultSteps{}, BCEWithLogits{}, SGD{}, none, Twice{}, callbacks()}, loader);
}
