// Adam and AdamW on ATen's fused kernel.
#pragma once

#include <fulmen/optim/optimizer.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros_like.h>

#include <array>
#include <cmath>

namespace fulmen {

namespace detail {

/// Adam bound to parameters. `Policy` is Adam or AdamW: they differ in how weight decay enters.
template <class Policy>
class BoundAdam {
 public:
  BoundAdam(const Policy& policy, NamedParameters parameters)
      : policy_(policy), lists_(std::move(parameters), policy.lr), states_(lists_.params().size()) {}

  std::vector<ParamGroup>& groups() { return lists_.groups(); }
  const std::vector<ParamGroup>& groups() const { return lists_.groups(); }
  void zero_grad() { lists_.zero_grad(); }

  void step() {
    const at::NoGradGuard no_grad;
    const bool complete = lists_.gather();
    if (lists_.grads().empty()) return;
    if (complete && uniform_) [[likely]] {
      if (exp_avgs_.empty()) start_uniform();
      advance(steps_.front());
      run(lists_.params(), exp_avgs_, exp_avg_sqs_, max_exp_avg_sqs_, steps_);
    } else {
      step_some();
    }
  }

  /// In the layout of Python's torch.optim: {"state": {index: {...}}, "param_groups": [{...}]}.
  State state_dict() const {
    State all;
    for (std::size_t i = 0; i < states_.size(); ++i) {
      const ParameterState s = state_of(i);
      if (!s.exp_avg.defined()) continue;
      State one;
      // A copy: all parameters may share one counter here, in a file each has its own.
      one.set("step", s.step.clone());
      one.set("exp_avg", s.exp_avg);
      one.set("exp_avg_sq", s.exp_avg_sq);
      if (policy_.amsgrad) one.set("max_exp_avg_sq", s.max_exp_avg_sq);
      all.set(i, one);
    }
    const ParamGroup& g = lists_.groups()[0];
    State group;
    group.set("lr", g.lr);
    group.set("betas", c10::IValue(c10::ivalue::Tuple::create({policy_.betas[0], policy_.betas[1]})));
    group.set("eps", policy_.eps);
    group.set("weight_decay", policy_.weight_decay);
    group.set("amsgrad", policy_.amsgrad);
    group.set("maximize", policy_.maximize);
    group.set("foreach", c10::IValue());
    group.set("capturable", false);
    group.set("differentiable", false);
    group.set("fused", true);
    group.set("decoupled_weight_decay", Policy::decoupled_weight_decay);
    group.set("initial_lr", g.initial_lr);
    group.set("params", indices(states_.size()));
    State state;
    state.set("state", all);
    state.set("param_groups", std::vector<State>{group});
    return state;
  }

  /// @throws std::runtime_error naming the key if something is missing, of another type or of another shape.
  void load_state_dict(const State& state) {
    const at::NoGradGuard no_grad;
    const std::vector<State> groups = state.get<std::vector<State>>("param_groups");
    const State all = state.get<State>("state");
    std::vector<ParameterState> loaded(states_.size());
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      if (!all.contains(i)) continue;
      const State one = all.get<State>(i);
      const at::Tensor& p = lists_.params()[i];
      ParameterState& s = loaded[i];
      s.step = one.get<at::Tensor>("step").to(p.device(), at::kFloat).clone();
      s.exp_avg = like(one.get<at::Tensor>("exp_avg"), p, lists_.name(i), "exp_avg");
      s.exp_avg_sq = like(one.get<at::Tensor>("exp_avg_sq"), p, lists_.name(i), "exp_avg_sq");
      if (policy_.amsgrad) {
        s.max_exp_avg_sq = like(one.get<at::Tensor>("max_exp_avg_sq"), p, lists_.name(i), "max_exp_avg_sq");
      }
    }
    load_group(lists_.groups()[0], groups);
    states_ = std::move(loaded);
    uniform_ = true;
    exp_avgs_.clear(), exp_avg_sqs_.clear(), max_exp_avg_sqs_.clear(), steps_.clear();
    adopt();
  }

 private:
  using Tensors = std::vector<at::Tensor>;
  struct ParameterState {
    at::Tensor step, exp_avg, exp_avg_sq, max_exp_avg_sq;
  };

  static void advance(const at::Tensor& step) {
    if (step.is_cpu()) ++*step.mutable_data_ptr<float>();
    else step.add_(1);
  }

  ParameterState fresh(const at::Tensor& p) const {
    // The step counter lives beside the parameter: the fused kernels read it on the device.
    return {at::scalar_tensor(0, at::TensorOptions(at::kFloat).device(p.device())), at::zeros_like(p), at::zeros_like(p),
            policy_.amsgrad ? at::zeros_like(p) : at::Tensor()};
  }

  void start_uniform() {
    for (const at::Tensor& p : lists_.params()) {
      ParameterState s = fresh(p);
      if (!steps_.empty() && steps_.front().device() == p.device()) s.step = steps_.front();
      push(s);
    }
    // Parameters on several devices cannot share one counter; that is the general case, then.
    for (const at::Tensor& step : steps_) uniform_ = uniform_ && step.is_same(steps_.front());
    if (!uniform_) {
      uniform_ = true;
      split();
      uniform_ = false;
    }
  }

  /// After loading: one shared counter if every parameter has state and all have stepped as often.
  void adopt() {
    bool same = !states_.empty();
    for (const ParameterState& s : states_) {
      same = same && s.step.defined() && s.step.device() == states_.front().step.device() && s.step.equal(states_.front().step);
    }
    bool none = true;
    for (const ParameterState& s : states_) none = none && !s.step.defined();
    if (none) return;
    uniform_ = same;
    if (!same) return;
    for (ParameterState& s : states_) {
      s.step = states_.front().step;
      push(s);
    }
    states_.assign(states_.size(), {});
  }

  void push(const ParameterState& s) {
    steps_.push_back(s.step);
    exp_avgs_.push_back(s.exp_avg);
    exp_avg_sqs_.push_back(s.exp_avg_sq);
    if (policy_.amsgrad) max_exp_avg_sqs_.push_back(s.max_exp_avg_sq);
  }

  ParameterState state_of(std::size_t i) const {
    if (!uniform_ || exp_avgs_.empty()) return states_[i];
    return {steps_[i], exp_avgs_[i], exp_avg_sqs_[i], policy_.amsgrad ? max_exp_avg_sqs_[i] : at::Tensor()};
  }

  /// From the shared lists to a state for each parameter.
  void split() {
    if (uniform_ && !exp_avgs_.empty()) {
      for (std::size_t i = 0; i < states_.size(); ++i) {
        states_[i] = state_of(i);
        states_[i].step = states_[i].step.clone();
      }
    }
    uniform_ = false;
  }

  void step_some() {
    split();
    Tensors params;
    exp_avgs_.clear(), exp_avg_sqs_.clear(), max_exp_avg_sqs_.clear(), steps_.clear();
    for (const std::size_t i : lists_.with_grad()) {
      ParameterState& s = states_[i];
      if (!s.exp_avg.defined()) s = fresh(lists_.params()[i]);
      advance(s.step);
      params.push_back(lists_.params()[i]);
      push(s);
    }
    run(params, exp_avgs_, exp_avg_sqs_, max_exp_avg_sqs_, steps_);
  }

  void run(const Tensors& params, const Tensors& exp_avgs, const Tensors& exp_avg_sqs, const Tensors& max_exp_avg_sqs,
           const Tensors& steps) {
    const double lr = lists_.groups()[0].lr;
    if constexpr (Policy::decoupled_weight_decay) {
      at::_fused_adamw_(params, lists_.grads(), exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr, policy_.betas[0],
                        policy_.betas[1], policy_.weight_decay, policy_.eps, policy_.amsgrad, policy_.maximize);
    } else {
      at::_fused_adam_(params, lists_.grads(), exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr, policy_.betas[0],
                       policy_.betas[1], policy_.weight_decay, policy_.eps, policy_.amsgrad, policy_.maximize);
    }
  }

  Policy policy_;
  GradientLists lists_;
  bool uniform_ = true;
  std::vector<ParameterState> states_;  // used once not uniform
  Tensors exp_avgs_, exp_avg_sqs_, max_exp_avg_sqs_, steps_;
};

inline void validate_adam(const char* name, double lr, const std::array<double, 2>& betas, double eps, double decay) {
  if (!(lr >= 0)) fail<std::invalid_argument>("{}::lr is {}, expected at least 0", name, lr);
  for (const double beta : betas) {
    if (!(beta >= 0 && beta < 1)) {
      fail<std::invalid_argument>("{}::betas has {}, expected at least 0 and below 1", name, beta);
    }
  }
  if (!(eps >= 0)) fail<std::invalid_argument>("{}::eps is {}, expected at least 0", name, eps);
  if (!(decay >= 0)) fail<std::invalid_argument>("{}::weight_decay is {}, expected at least 0", name, decay);
}

}  // namespace detail

/// Adam (Kingma and Ba, 2015). Options and defaults are those of Python's torch.optim.Adam.
struct Adam {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0;
  bool amsgrad = false;
  bool maximize = false;

  static constexpr bool decoupled_weight_decay = false;
  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundAdam<Adam> bind(NamedParameters parameters) const {
    detail::validate_adam("Adam", lr, betas, eps, weight_decay);
    return {*this, std::move(parameters)};
  }
};

/// Adam with decoupled weight decay (Loshchilov and Hutter, 2019). Options and defaults: torch.optim.AdamW.
struct AdamW {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 1e-2;
  bool amsgrad = false;
  bool maximize = false;

  static constexpr bool decoupled_weight_decay = true;
  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundAdam<AdamW> bind(NamedParameters parameters) const {
    detail::validate_adam("AdamW", lr, betas, eps, weight_decay);
    return {*this, std::move(parameters)};
  }
};

}  // namespace fulmen
