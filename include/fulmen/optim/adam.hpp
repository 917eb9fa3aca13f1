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
    if (!lists_.gather()) [[unlikely]] regroup();
    if (lists_.grads().empty()) return;
    if (shared_) [[likely]] advance(steps_.front());
    else for (const at::Tensor& step : steps_) advance(step);
    const double lr = lists_.groups()[0].lr;
    if constexpr (Policy::decoupled_weight_decay) {
      at::_fused_adamw_(lists_.active_params(), lists_.grads(), exp_avgs_, exp_avg_sqs_, max_exp_avg_sqs_, steps_, lr,
                        policy_.betas[0], policy_.betas[1], policy_.weight_decay, policy_.eps, policy_.amsgrad,
                        policy_.maximize);
    } else {
      at::_fused_adam_(lists_.active_params(), lists_.grads(), exp_avgs_, exp_avg_sqs_, max_exp_avg_sqs_, steps_, lr,
                       policy_.betas[0], policy_.betas[1], policy_.weight_decay, policy_.eps, policy_.amsgrad,
                       policy_.maximize);
    }
  }

  /// In the layout of Python's torch.optim: {"state": {index: {...}}, "param_groups": [{...}]}.
  State state_dict() const {
    State all;
    for (std::size_t i = 0; i < states_.size(); ++i) {
      const ParameterState& s = states_[i];
      if (!s.exp_avg.defined()) continue;
      State one;
      // A copy: parameters may share one counter here, in a file each has its own.
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
    lists_.forget();
  }

 private:
  using Tensors = std::vector<at::Tensor>;
  struct ParameterState {
    at::Tensor step, exp_avg, exp_avg_sq, max_exp_avg_sq;  // undefined until the parameter's first gradient
  };

  static void advance(const at::Tensor& step) {
    if (step.is_cpu()) ++*step.mutable_data_ptr<float>();
    else step.add_(1);
  }

  /// Makes the kernel's lists for the parameters that are active now. As in PyTorch each counts its steps from its first
  /// gradient on. Almost always all have the same count: then one counter serves all, and for small tensors that is most
  /// of the time of a step.
  void regroup() {
    shared_ = true;
    for (const std::size_t i : lists_.active()) {
      ParameterState& s = states_[i];
      if (!s.exp_avg.defined()) s = fresh(lists_.params()[i]);
      const at::Tensor& first = states_[lists_.active().front()].step;
      shared_ = shared_ && s.step.device() == first.device() && (s.step.is_same(first) || s.step.equal(first));
    }
    exp_avgs_.clear(), exp_avg_sqs_.clear(), max_exp_avg_sqs_.clear(), steps_.clear();
    for (const std::size_t i : lists_.active()) {
      ParameterState& s = states_[i];
      // Cloned: a parameter that is not active any more must keep the counter it had.
      s.step = shared_ && !steps_.empty() ? steps_.front() : s.step.clone();
      steps_.push_back(s.step);
      exp_avgs_.push_back(s.exp_avg);
      exp_avg_sqs_.push_back(s.exp_avg_sq);
      if (policy_.amsgrad) max_exp_avg_sqs_.push_back(s.max_exp_avg_sq);
    }
  }

  ParameterState fresh(const at::Tensor& p) const {
    // The step counter lives beside the parameter: the fused kernels read it on the device.
    return {at::scalar_tensor(0, at::TensorOptions(at::kFloat).device(p.device())), at::zeros_like(p), at::zeros_like(p),
            policy_.amsgrad ? at::zeros_like(p) : at::Tensor()};
  }

  Policy policy_;
  GradientLists lists_;
  std::vector<ParameterState> states_;  // by parameter
  bool shared_ = true;                  // whether the active parameters share one step counter
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
