// The problems of fixtures/optim, and the policies of its runs: for the tests, and for write_for_python.cpp.
#pragma once

#include <fulmen/optim/adadelta.hpp>
#include <fulmen/optim/adagrad.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/optim/adamax.hpp>
#include <fulmen/optim/asgd.hpp>
#include <fulmen/optim/lion.hpp>
#include <fulmen/optim/nadam.hpp>
#include <fulmen/optim/radam.hpp>
#include <fulmen/optim/rmsprop.hpp>
#include <fulmen/optim/rprop.hpp>
#include <fulmen/optim/sgd.hpp>

#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include <fstream>
#include <map>
#include <stdexcept>
#include <string>

namespace fixtures {

using nlohmann::json;

inline const json& file() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/optim/optimizers.json"));
  return all;
}

inline const std::array<const char*, 4> parameter_names = {"w1", "b1", "w2", "b2"};

inline at::Tensor wave(double offset, const json& shape, at::ScalarType dtype, double scale) {
  const auto sizes = shape.get<std::vector<std::int64_t>>();
  const at::Tensor at = at::arange(c10::multiply_integers(sizes), at::kDouble) * 0.7 + offset;
  return (at.sin() * scale).view(sizes).to(dtype);
}

/// The problems of fixtures/optim/README.md.
struct Problem {
  std::map<std::string, at::Tensor> t;
  json late;

  explicit Problem(at::ScalarType dtype, json late_parameter = {}) : late(std::move(late_parameter)) {
    double index = 0;
    for (const json& spec : file()["tensors"])
      t[spec["name"]] = wave(1 + 3 * index++, spec["shape"], dtype, spec["scale"]);
    for (const char* name : parameter_names) t[name].requires_grad_(true);
  }
  fulmen::NamedParameters parameters() const {
    fulmen::NamedParameters all;
    for (const char* name : parameter_names) all.push_back({name, t.at(name)});
    return all;
  }
  at::Tensor loss() const {
    const at::Tensor hidden = at::tanh(at::linear(t.at("x"), t.at("w1"), t.at("b1")));
    return at::mse_loss(at::linear(hidden, t.at("w2"), t.at("b2")), t.at("target"));
  }
  void make_gradients(int step) {
    for (const char* name : parameter_names) t.at(name).mutable_grad().reset();
    if (t.at("x").scalar_type() == at::kDouble) {
      loss().backward();
    } else {
      double index = 0;
      for (const json& spec : file()["tensors"]) {
        const double offset = 2 + 3 * index++ + 0.9 * step;
        const at::Tensor& p = t.at(spec["name"]);
        if (p.requires_grad()) p.mutable_grad() = wave(offset, spec["shape"], p.scalar_type(), 0.5);
      }
    }
    if (!late.is_null() && step < late["steps"].get<int>()) t.at(late["parameter"]).mutable_grad().reset();
  }
};

/// A policy with the options of a run.
template <class Policy>
Policy policy_of(const json& options, Policy p) {
#define TAKE(name) \
  if constexpr (requires { p.name; }) p.name = options.value(#name, p.name)
  TAKE(lr);
  TAKE(betas);
  TAKE(eps);
  TAKE(weight_decay);
  TAKE(amsgrad);
  TAKE(maximize);
  TAKE(decoupled_weight_decay);
  TAKE(momentum);
  TAKE(dampening);
  TAKE(nesterov);
  TAKE(momentum_decay);
  TAKE(rho);
  TAKE(lr_decay);
  TAKE(initial_accumulator_value);
  TAKE(alpha);
  TAKE(centered);
  TAKE(etas);
  TAKE(step_sizes);
  TAKE(lambd);
  TAKE(t0);
#undef TAKE
  return p;
}

/// Calls f with the policy of that name, with its defaults.
template <class F>
void with_policy(const std::string& kind, F&& f) {
  if (kind == "SGD")
    f(fulmen::SGD{});
  else if (kind == "Adam")
    f(fulmen::Adam{});
  else if (kind == "AdamW")
    f(fulmen::AdamW{});
  else if (kind == "NAdam")
    f(fulmen::NAdam{});
  else if (kind == "RAdam")
    f(fulmen::RAdam{});
  else if (kind == "Adamax")
    f(fulmen::Adamax{});
  else if (kind == "Adadelta")
    f(fulmen::Adadelta{});
  else if (kind == "Adagrad")
    f(fulmen::Adagrad{});
  else if (kind == "RMSprop")
    f(fulmen::RMSprop{});
  else if (kind == "Rprop")
    f(fulmen::Rprop{});
  else if (kind == "ASGD")
    f(fulmen::ASGD{});
  else if (kind == "Lion")
    f(fulmen::Lion{});
  else
    throw std::invalid_argument("no policy for " + kind);
}

}  // namespace fixtures
