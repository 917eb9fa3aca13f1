// Stochastic gradient descent on ATen's fused kernel.
#pragma once

#include <fulmen/optim/optimizer.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>

namespace fulmen {

namespace detail {
class BoundSGD;
}

/// SGD with momentum. Options, defaults and the meaning of `dampening` in the first step: torch.optim.SGD.
struct SGD {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  bool maximize = false;

  /// @throws std::invalid_argument naming the option that is out of range.
  inline detail::BoundSGD bind(NamedParameters parameters) const;
};

namespace detail {

class BoundSGD {
 public:
  BoundSGD(const SGD& policy, NamedParameters parameters)
      : policy_(policy), lists_(std::move(parameters), policy.lr), buffers_(lists_.params().size()) {}

  std::vector<ParamGroup>& groups() { return lists_.groups(); }
  const std::vector<ParamGroup>& groups() const { return lists_.groups(); }
  void zero_grad() { lists_.zero_grad(); }

  void step() {
    const at::NoGradGuard no_grad;
    const bool same = lists_.gather();
    if (lists_.grads().empty()) return;
    if (policy_.momentum == 0) {
      run(lists_.active_params(), lists_.grads(), {}, false);
    } else if (same) [[likely]] {
      run(lists_.active_params(), lists_.grads(), active_buffers_, false);
    } else {
      step_with_newcomers();
    }
  }

  /// In the layout of Python's torch.optim.SGD.
  State state_dict() const {
    State all;
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
      if (!buffers_[i].defined()) continue;
      State one;
      one.set("momentum_buffer", buffers_[i]);
      all.set(i, one);
    }
    const ParamGroup& g = lists_.groups()[0];
    State group;
    group.set("lr", g.lr);
    group.set("momentum", policy_.momentum);
    group.set("dampening", policy_.dampening);
    group.set("weight_decay", policy_.weight_decay);
    group.set("nesterov", policy_.nesterov);
    group.set("maximize", policy_.maximize);
    group.set("foreach", c10::IValue());
    group.set("differentiable", false);
    group.set("fused", true);
    group.set("initial_lr", g.initial_lr);
    group.set("params", indices(buffers_.size()));
    State state;
    state.set("state", all);
    state.set("param_groups", std::vector<State>{group});
    return state;
  }

  /// @throws std::runtime_error naming the key if something is missing, of another type or of another shape.
  void load_state_dict(const State& state) {
    const at::NoGradGuard no_grad;
    const State all = state.get<State>("state");
    std::vector<at::Tensor> loaded(buffers_.size());
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      if (!all.contains(i) || !all.get<State>(i).contains("momentum_buffer")) continue;
      loaded[i] = like(all.get<State>(i).get<at::Tensor>("momentum_buffer"), lists_.params()[i], lists_.name(i),
                       "momentum_buffer");
    }
    load_group(lists_.groups()[0], state.get<std::vector<State>>("param_groups"));
    buffers_ = std::move(loaded);
    lists_.forget();
  }

 private:
  using Tensors = std::vector<at::Tensor>;

  /// A parameter's first step copies the gradient into its buffer, undampened; so newcomers take a call of their own.
  void step_with_newcomers() {
    Tensors params[2], grads[2], buffers[2];
    active_buffers_.clear();
    for (std::size_t k = 0; k < lists_.active().size(); ++k) {
      at::Tensor& buffer = buffers_[lists_.active()[k]];
      const bool first = !buffer.defined();
      if (first) buffer = at::empty_like(lists_.active_params()[k]);
      params[first].push_back(lists_.active_params()[k]);
      grads[first].push_back(lists_.grads()[k]);
      buffers[first].push_back(buffer);
      active_buffers_.push_back(buffer);
    }
    for (const bool first : {false, true}) {
      if (!params[first].empty()) run(params[first], grads[first], buffers[first], first);
    }
  }

  void run(const Tensors& params, const Tensors& grads, const Tensors& buffers, bool first) {
    at::_fused_sgd_(params, grads, buffers, policy_.weight_decay, policy_.momentum, lists_.groups()[0].lr,
                    policy_.dampening, policy_.nesterov, policy_.maximize, first);
  }

  SGD policy_;
  GradientLists lists_;
  Tensors buffers_;         // by parameter; undefined until its first step
  Tensors active_buffers_;  // of the parameters that are active now
};

}  // namespace detail

inline detail::BoundSGD SGD::bind(NamedParameters parameters) const {
  const auto at_least_0 = [](const char* name, double value) {
    if (!(value >= 0)) fail<std::invalid_argument>("SGD::{} is {}, expected at least 0", name, value);
  };
  at_least_0("lr", lr);
  at_least_0("momentum", momentum);
  at_least_0("weight_decay", weight_decay);
  if (nesterov && (momentum <= 0 || dampening != 0)) {
    fail<std::invalid_argument>("SGD::nesterov needs momentum above 0 (it is {}) and dampening 0 (it is {})", momentum,
                                dampening);
  }
  return {*this, std::move(parameters)};
}

}  // namespace fulmen
