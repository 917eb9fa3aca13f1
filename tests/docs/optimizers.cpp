// Compiles and runs the code shown in docs/optimizers.md.
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>
#include <fulmen/optim/torch_optimizer.hpp>

#include <cstdio>
#include <string_view>

namespace {

struct Adversaries : torch::nn::Module {
  torch::nn::Linear generator{register_module("generator", torch::nn::Linear(2, 1))};
  torch::nn::Linear critic{register_module("critic", torch::nn::Linear(2, 1))};
};

struct Signum {
  double lr = 1e-3;
  double momentum = 0.9;

  static constexpr auto options = std::tuple{fulmen::option("momentum", &Signum::momentum)};
  static constexpr std::array state_names = {"momentum_buffer"};
  struct Scalars {};  // numbers of a step, such as bias corrections
  Scalars advance(std::array<double, 0>&) const { return {}; }

  template <class E>
  FULMEN_SIMD void update(const E& e, const Scalars&) const {
    const auto m = e.lerp(e.state(0), e.grad(), 1 - momentum);
    e.set_state(0, m);
    e.set_param(e.param() - e.sign(m) * e.scalar(lr));
  }
  auto bind(fulmen::NamedParameters parameters) const { return fulmen::elementwise(*this, std::move(parameters)); }
};

struct Normalized {
  double lr = 0.1;

  struct Bound {
    std::vector<fulmen::ParamGroup> all;

    std::vector<fulmen::ParamGroup>& groups() { return all; }
    void zero_grad() {
      for (const torch::Tensor& p : all[0].params) p.mutable_grad().reset();
    }
    void step() {
      const torch::NoGradGuard no_grad;
      for (const torch::Tensor& p : all[0].params) {
        if (p.grad().defined()) p.sub_(all[0].lr * p.grad() / (p.grad().norm() + 1e-12));
      }
    }
    fulmen::State state_dict() const { return fulmen::State().set("lr", all[0].lr); }
    void load_state_dict(const fulmen::State& state) { all[0].lr = state.get<double>("lr"); }
  };
  Bound bind(fulmen::NamedParameters parameters) const {
    std::vector<torch::Tensor> tensors;
    for (const fulmen::NamedParameter& p : parameters) tensors.push_back(p.tensor);
    return {{{.lr = lr, .initial_lr = lr, .params = tensors}}};
  }
};
static_assert(fulmen::OptimizerPolicy<Normalized>);

struct Line : torch::nn::Module {
  torch::nn::Linear line{register_module("line", torch::nn::Linear(1, 1))};
  torch::Tensor forward(const torch::Tensor& x) { return line(x); }
};

/// Whether an optimizer learns the line y = 2 x + 1.
bool learns(const char* name, const auto& policy) {
  fulmen::seed_everything(1);
  const torch::Tensor x = torch::rand({64, 1}) * 2 - 1, y = 2 * x + 1;
  fulmen::TensorLoader train{{x, y}, {.batch_size = 16, .shuffle = true}};
  Line line;
  fulmen::Trainer trainer{std::move(line),    fulmen::MSE{},       policy,           fulmen::none,
                          fulmen::Identity{}, fulmen::callbacks(), {.max_epochs = 200}, fulmen::barebones};
  trainer.fit(train);
  const double loss = torch::mse_loss(trainer.module().forward(x), y).template item<double>();
  std::printf("%-12s %.2g\n", name, loss);
  return loss < 0.01;
}

std::size_t groups_of(const auto& policy, torch::nn::Module& module) {
  fulmen::NamedParameters parameters;
  for (const auto& p : module.named_parameters()) parameters.push_back({p.key(), p.value()});
  return policy.bind(std::move(parameters)).groups().size();
}

}  // namespace

int main() {
  const fulmen::AdamW adamw{.lr = 1e-3, .betas = {0.9, 0.98}, .weight_decay = 0.05};
  const fulmen::SGD sgd{.lr = 0.1, .momentum = 0.9, .nesterov = true};

  const auto is_bias = [](std::string_view name) { return name.ends_with("bias"); };
  const auto grouped = fulmen::param_groups(fulmen::AdamW{}, fulmen::group(is_bias, fulmen::AdamW{.weight_decay = 0}));

  const std::tuple both{fulmen::parameters_of("generator", fulmen::Adam{}), fulmen::parameters_of("critic", fulmen::Adam{})};

  const auto is_matrix = [](std::string_view, const torch::Tensor& p) { return p.dim() == 2; };
  const auto split = fulmen::split_parameters(is_matrix, fulmen::Muon{.lr = 0.02}, fulmen::AdamW{.lr = 1e-3});

  const fulmen::TorchOptimizer<torch::optim::RMSprop, torch::optim::RMSpropOptions> adapted{{0.01}};

  const auto in_one_piece = fulmen::flat(fulmen::AdamW{.lr = 1e-3});

  Adversaries module;
  bool ok = groups_of(grouped, module) == 2 && groups_of(std::get<0>(both), module) == 1 && groups_of(split, module) == 2;
  ok = learns("AdamW", fulmen::AdamW{.lr = 0.05}) && ok;
  ok = learns("param_groups", fulmen::param_groups(fulmen::SGD{.lr = 0.1}, fulmen::group(is_bias, fulmen::SGD{.lr = 0.2}))) && ok;
  ok = groups_of(in_one_piece, module) == 1 && ok;
  ok = learns("flat", fulmen::flat(fulmen::AdamW{.lr = 0.05})) && ok;
  ok = learns("flat Signum", fulmen::flat(Signum{.lr = 0.005})) && ok;
  ok = learns("Signum", Signum{.lr = 0.005}) && ok;
  ok = learns("Normalized", Normalized{.lr = 0.005}) && ok;
  return ok && adamw.lr < sgd.lr && adapted.options.lr() == 0.01 ? 0 : 1;
}
