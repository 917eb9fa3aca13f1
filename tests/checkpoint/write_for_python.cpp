// Writes checkpoints and safetensors files into a folder for tests/fixtures/checkpoint/check.py, which reads them in
// Python:
//   write_for_python <folder>
#include <fulmen/callbacks/early_stopping.hpp>
#include <fulmen/callbacks/model_checkpoint.hpp>
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/hyperparameters_state.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/pickle.hpp>
#include <fulmen/checkpoint/safetensors.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/criteria/classification.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/schedule/decay.hpp>
#include <fulmen/trainer.hpp>

#include <torch/torch.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace user {

struct Schedule {
  double gamma = 0.25;
  std::vector<int> milestones{3, 5};
};

// What Lit in make.py is made of.
struct Hparams {
  std::vector<int> widths{2, 4, 1};
  double lr = 0.5;
  bool bias = false;
  std::string name = "\u26a1";
  std::optional<double> clip{};
  Schedule schedule{};
  fulmen::Reduction kind = fulmen::Reduction::sum;
};

}  // namespace user

BOOST_HANA_ADAPT_STRUCT(user::Schedule, gamma, milestones);
BOOST_HANA_ADAPT_STRUCT(user::Hparams, widths, lr, bias, name, clip, schedule, kind);

namespace {

// The twin of Net in make.py.
struct Net : torch::nn::Module {
  torch::nn::Sequential features;
  torch::nn::Linear head{torch::nn::LinearOptions(3, 2).bias(false)};
  at::Tensor scale, shift;

  Net() : features(torch::nn::Conv2d(1, 3, 3), torch::nn::BatchNorm2d(3), torch::nn::ReLU()) {
    register_module("features", features);
    register_module("head", head);
    scale = register_parameter("scale", at::tensor({1.5f}));
    shift = register_buffer("shift", at::tensor({0.25f}));
  }

  at::Tensor forward(const at::Tensor& x) {
    return head(features->forward(x).mean(at::IntArrayRef{2, 3})) * scale + shift;
  }
};

// Python's layout of an AdamW's state_dict().
fulmen::State adamw_state(const torch::optim::AdamW& optimizer) {
  fulmen::State states;
  std::vector<int> ids;
  const auto& group = optimizer.param_groups()[0];
  for (const at::Tensor& parameter : group.params()) {
    const auto& state = static_cast<const torch::optim::AdamWParamState&>(
        *optimizer.state().at(parameter.unsafeGetTensorImpl()));
    const int id = static_cast<int>(ids.size());
    states.set(id, fulmen::State()
                       .set("step", at::full({}, static_cast<double>(state.step()), at::kFloat))
                       .set("exp_avg", state.exp_avg())
                       .set("exp_avg_sq", state.exp_avg_sq()));
    ids.push_back(id);
  }
  const auto& options = static_cast<const torch::optim::AdamWOptions&>(group.options());
  const auto [beta1, beta2] = options.betas();
  const c10::IValue none;
  fulmen::State group_state;
  group_state.set("lr", options.lr()).set("betas", c10::IValue(c10::ivalue::Tuple::create({beta1, beta2})));
  group_state.set("eps", options.eps()).set("weight_decay", options.weight_decay()).set("amsgrad", false);
  group_state.set("maximize", false)
      .set("foreach", none)
      .set("capturable", false)
      .set("differentiable", false);
  group_state.set("fused", none).set("decoupled_weight_decay", true).set("params", ids);
  return fulmen::State().set("state", states).set("param_groups", std::vector<fulmen::State>{group_state});
}

fulmen::State values() {
  const at::Tensor base = at::arange(12).to(at::kFloat);
  fulmen::State state;
  state.set("none", c10::IValue())
      .set("yes", true)
      .set("no", false)
      .set("float", -0.5)
      .set("text", "Thor \u26a1 \U0001f40d");
  state.set("ints", std::vector<std::int64_t>{0, 255, 256, 65535, 65536, -1, std::int64_t{1} << 31, INT64_MAX,
                                              INT64_MIN});
  state.set("bytes", std::string("\x00\xff\x80z", 4)).set("bytes again", std::string("\x00\xff\x80z", 4));
  state.set("complex", c10::IValue(c10::complex<double>(1.5, -2)))
      .set("device", c10::IValue(c10::Device("cuda:1")));
  state.set("cpu", c10::IValue(c10::Device("cpu")));
  state.set("tuple",
            c10::IValue(c10::ivalue::Tuple::create({c10::IValue(1), c10::IValue("a"), c10::IValue(2.5)})));
  state.set("empty", std::vector<fulmen::State>{fulmen::State()}).set(7, "seven");
  state.set("base", base).set("row", base.view({3, 4})[1]).set("transposed", base.view({3, 4}).t());
  state.set("base again", base).set("column", at::arange(20).view({4, 5}).select(1, 2));
  state.set("bits", base.view(at::kInt).slice(0, 1, 3)).set("parameter", at::ones(2).requires_grad_());
  state.set("conj", at::view_as_complex(at::tensor({1.f, 2.f})).conj())
      .set("scalar", at::scalar_tensor(-7, at::kLong));
  state.set("nothing", at::zeros({0, 3}))
      .set("undefined", at::Tensor())
      .set("expanded", at::tensor({5.f}).expand(3));
  state.set("channels_last",
            at::arange(120).to(at::kFloat).view({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast));
  fulmen::State dtypes;
  for (const auto dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                           at::kChar, at::kByte, at::kBool, at::kComplexFloat, at::kComplexDouble,
                           at::kUInt16, at::kUInt32, at::kUInt64, at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    dtypes.set(fulmen::checkpoint::detail::dtype_name(dtype), at::tensor({0.f, 1.f, 1.f}).to(dtype));
  }
  state.set("dtypes", dtypes);
  fulmen::State many;
  for (int i = 0; i < 1000; ++i) many.set("key" + std::to_string(i), std::vector<int>{i});
  return state.set("many", many);
}

void write_all(const std::filesystem::path& folder) {
  fulmen::checkpoint::write(folder / "values.pt", values());

  torch::manual_seed(0);
  Net net;
  const at::Tensor x = at::randn({4, 1, 8, 8});
  torch::optim::AdamW optimizer(net.parameters(), torch::optim::AdamWOptions(1e-2));
  const auto step = [&] {
    net.train();
    optimizer.zero_grad();
    net.forward(x).square().mean().backward();
    optimizer.step();
    net.eval();
  };
  for (int i = 0; i < 3; ++i) step();
  fulmen::State file;
  file.set("model", fulmen::module_state(net)).set("optimizer", adamw_state(optimizer));
  file.set("input", x).set("answer", net.forward(x));
  fulmen::checkpoint::write(folder / "model.pt", file);
  // One step more, for Python to repeat.
  step();
  fulmen::checkpoint::write(folder / "next.pt", fulmen::module_state(net));
}

struct Linear : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(4, 3))};
  at::Tensor forward(const at::Tensor& x) { return fc(x); }
};

/// What a Trainer saves, beside the answers of its module.
void write_trainer(const std::filesystem::path& folder) {
  const at::Tensor x = at::randn({8, 4}), y = at::randint(3, {8});
  fulmen::TensorLoader loader{{x, y}, {.batch_size = 4}};
  fulmen::Trainer trainer{Linear{},
                          fulmen::CrossEntropy{},
                          fulmen::AdamW{.lr = 1e-2},
                          fulmen::StepLR{.step_size = 1},
                          fulmen::Identity{},
                          fulmen::callbacks(fulmen::EarlyStopping{.monitor = "train/loss"}),
                          {.max_epochs = 3},
                          fulmen::barebones};
  trainer.fit(loader);
  trainer.save(folder / "trainer.ckpt");
  const at::NoGradGuard no_grad;
  fulmen::checkpoint::write(folder / "answers.pt",
                            fulmen::State().set("input", x).set("answer", trainer.module().forward(x)));
}

// Three names for one weight, one of them for a part of it; and what is not contiguous.
struct Tied : torch::nn::Module {
  torch::nn::Linear encoder{register_module("encoder", torch::nn::Linear(torch::nn::LinearOptions(3, 4).bias(false)))};
  Tied() {
    register_module("decoder", std::make_shared<torch::nn::Module>())->register_parameter("weight", encoder->weight);
    register_buffer("part", encoder->weight.detach().slice(0, 1, 3));
    register_buffer("turned", at::arange(6).to(at::kFloat).view({2, 3}).t());
  }
};

void write_safetensors(const std::filesystem::path& folder) {
  fulmen::State dtypes;
  for (const auto dtype :
       {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar, at::kByte,
        at::kBool, at::kComplexFloat, at::kUInt16, at::kUInt32, at::kUInt64, at::kFloat8_e4m3fn, at::kFloat8_e5m2,
        at::kFloat8_e4m3fnuz, at::kFloat8_e5m2fnuz, at::kFloat8_e8m0fnu}) {
    dtypes.set(fulmen::checkpoint::detail::dtype_name(dtype), at::tensor({1.f, 2.f, 0.5f}).to(dtype));
  }
  dtypes.set("scalar", at::scalar_tensor(7.f)).set("empty", at::zeros({0, 3})).set("na\"me\n\u00e9", at::arange(6).view({2, 3}));
  fulmen::checkpoint::write_safetensors(folder / "dtypes.safetensors", dtypes,
                                        {{"who", "Thor \u26a1 \"\\\n\x01"}, {"format", "pt"}});
  const Tied tied;
  fulmen::checkpoint::write_safetensors(folder / "tied.safetensors", tied);
  fulmen::checkpoint::write(folder / "tied.pt", fulmen::module_state(tied));
}

// A checkpoint with hyper-parameters, as Lightning has them.
void write_hyperparameters(const std::filesystem::path& folder) {
  torch::nn::Linear first(torch::nn::LinearOptions(2, 4).bias(false)), second(torch::nn::LinearOptions(4, 1).bias(false));
  fulmen::State file;
  file.set("pytorch-lightning_version", "2.6.6");
  file.set("state_dict",
           fulmen::State().set("layers.0.weight", first->weight).set("layers.1.weight", second->weight));
  file.set("hparams_name", "kwargs").set("hyper_parameters", fulmen::hyperparameters_state(user::Hparams{}));
  fulmen::checkpoint::write(folder / "hparams.ckpt", file);
}

}  // namespace

/// The run of fixtures/lightning_run/make.py up to the end of its second epoch, with a checkpoint from the middle of the third.
void write_run(const std::filesystem::path& folder) {
  using namespace fulmen;
  struct Linear : torch::nn::Module {
    torch::nn::Linear linear{nullptr};
    Linear() {
      linear = register_module("linear", torch::nn::Linear(4, 3));
      const torch::NoGradGuard no_grad;
      linear->weight.copy_(torch::linspace(-0.5, 0.5, 12).view({3, 4}));
      linear->bias.zero_();
    }
    torch::Tensor forward(const torch::Tensor& x) { return linear(x); }
  };
  const TensorLoader data{{torch::linspace(-2, 2, 80).view({20, 4}).sin(), torch::arange(20) % 3}, {.batch_size = 4}};
  Trainer trainer{Linear{}, CrossEntropy{}, AdamW{.lr = 0.05}, StepLR{.step_size = 1, .gamma = 0.5}, Identity{},
                  callbacks(ModelCheckpoint{.dirpath = folder, .filename = "run-mid", .save_last = false, .every_n_train_steps = 14},
                            ModelCheckpoint{.dirpath = folder, .filename = "run-{epoch}", .save_last = false, .save_top_k = -1, .every_n_epochs = 1}),
                  Options{.max_epochs = 3, .num_sanity_val_steps = 0}, barebones};
  trainer.fit(TensorLoader{data}, TensorLoader{data});
}

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: write_for_python <folder>\n");
    return 2;
  }
  try {
    write_all(arguments[1]);
    write_trainer(arguments[1]);
    write_safetensors(arguments[1]);
    write_hyperparameters(arguments[1]);
    write_run(arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
