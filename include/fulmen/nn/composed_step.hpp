// A training step's loss and gradients from the rules of its layers and its criterion: no graph, and memory
// kept from step to step.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/criterion_rule.hpp>
#include <fulmen/nn/rule.hpp>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/variable.h>
#endif

namespace fulmen::nn {

namespace detail {

/// All that decides what a step needs of its memory: compared at the begin of each.
class StepKey {
 public:
  /// Of this module from now on, with its children and parameters.
  void bind(const torch::nn::Module& module);
  /// @return whether all is as it was the last time
  bool same(std::span<const at::Tensor* const> tensors);
  /// Whether somebody wants to be called by autograd when a parameter gets its gradient.
  bool has_hooks() const;

 private:
  const torch::nn::Module* root_ = nullptr;
  std::vector<std::shared_ptr<torch::nn::Module>> children_;
  std::vector<at::Tensor> parameters_;
  std::vector<std::int64_t> now_, last_;
};

/// A scalar of this value and of the type and device of another tensor, made anew only when one of these
/// changes.
const at::Tensor& seed_like(at::Tensor& kept, double& kept_value, double value, const at::Tensor& like);

}  // namespace detail

/// Loss and gradients of a model M that is called with N tensors, under a criterion C with T targets.
///
///     ComposedStep<Net, CrossEntropy, 1, 1> step(net, criterion);
///     step.forward({&images}, {&labels});
///     const at::Tensor& loss = step.loss();
///     step.backward();     // .grad of all parameters that are trained
template <class M, class C, std::size_t N = 1, std::size_t T = 1>
class ComposedStep {
  using ModelRule = Rule<M, N>;

 public:
  static constexpr std::size_t outputs = detail::output_count<ModelRule>();
  using LossRule = CriterionRule<C, outputs, T>;

  /// Both must outlive this.
  ComposedStep(M& model, C& criterion) : model_(model), criterion_(criterion) { key_.bind(model); }

  /// Runs the model.
  void forward(const std::array<const at::Tensor*, N>& inputs,
               const std::array<const at::Tensor*, T>& targets) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::array<const at::Tensor*, N + T> all;
    for (std::size_t i = 0; i < N; ++i) all[i] = inputs[i];
    for (std::size_t i = 0; i < T; ++i) all[N + i] = targets[i];
    const bool same = key_.same(all);
    workspace_.begin(same);
    if (!same) {
      if constexpr (requires { ModelRule::prepare(model_, kept_); }) ModelRule::prepare(model_, kept_);
      trained_ = detail::is_trained(model_);
    }
    ForwardPass<N> pass{{}, workspace_, false, trained_, false};
    for (std::size_t i = 0; i < N; ++i) {
      workspace_.borrow(inputs_[i], *inputs[i]);
      pass.inputs[i] = &inputs_[i];
    }
    results_ = detail::rule_forward<ModelRule>(model_, kept_, pass);
    for (Buffer* result : results_) workspace_.keep_apart(*result);
    targets_ = targets;
    loss_ = nullptr;
  }

  /// Runs the criterion. @return a tensor that no later step changes, as is output(); both are let go of by
  /// backward(), so that a copy is to be made of what is to stay
  const at::Tensor& loss() {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    Buffer& loss = LossRule::forward(criterion_, criterion_kept_, loss_pass());
    workspace_.keep_apart(loss);
    loss_ = &loss;
    return *loss;
  }

  /// What the model gave in forward.
  const at::Tensor& output(std::size_t i = 0) const { return **results_[i]; }

  /// Adds the gradients of scale * loss to the .grad of the parameters that are trained. The inputs and
  /// targets of forward must be there still.
  void backward(double scale = 1) {
    if (loss_ == nullptr) loss();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (trained_) {
      LossPass<outputs, T> loss_pass = this->loss_pass();
      loss_pass.seed = &detail::seed_like(seed_, seed_value_, scale, **loss_);
      const auto gradients = loss_backward(loss_pass);
      BackwardPass<N, outputs> pass{{}, results_, gradients, workspace_, false, true};
      for (std::size_t i = 0; i < N; ++i) pass.inputs[i] = &inputs_[i];
      if (gradients[0] != nullptr || outputs > 1)
        static_cast<void>(detail::rule_backward<ModelRule>(model_, kept_, pass));
      for (Buffer* gradient : gradients) {
        if (gradient != nullptr) workspace_.release(*gradient);
      }
    }
    for (Buffer* result : results_) workspace_.release(*result);
    workspace_.release(*loss_);
    for (Buffer& input : inputs_) workspace_.release(input);
    workspace_.end();
  }

  /// Bytes that are kept from step to step: of activations and their gradients.
  std::int64_t activation_bytes() const { return workspace_.bytes(); }
  /// The criterion's Kept: a sum's has the values of its parts.
  auto& criterion_kept() { return criterion_kept_; }
  bool has_hooks() const { return key_.has_hooks(); }

 private:
  LossPass<outputs, T> loss_pass() { return {results_, targets_, workspace_}; }
  std::array<Buffer*, outputs> loss_backward(const LossPass<outputs, T>& pass) {
    using Result = decltype(LossRule::backward(criterion_, criterion_kept_, pass));
    if constexpr (std::is_same_v<Result, Buffer*>)
      return {LossRule::backward(criterion_, criterion_kept_, pass)};
    else
      return LossRule::backward(criterion_, criterion_kept_, pass);
  }

  M& model_;
  C& criterion_;
  Workspace workspace_;
  typename ModelRule::Kept kept_;
  typename LossRule::Kept criterion_kept_;
  detail::StepKey key_;
  std::array<Buffer, N> inputs_;
  std::array<Buffer*, outputs> results_{};
  std::array<const at::Tensor*, T> targets_{};
  Buffer* loss_ = nullptr;
  at::Tensor seed_;
  double seed_value_ = 0;
  bool trained_ = false;
};

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE void StepKey::bind(const torch::nn::Module& module) {
  root_ = &module;
  children_ = module.modules(/*include_self=*/false);
  parameters_ = module.parameters();
  last_.clear();
}

FULMEN_INLINE bool StepKey::same(std::span<const at::Tensor* const> tensors) {
  now_.clear();
  for (const at::Tensor* t : tensors) {
    now_.push_back(t->dim());
    now_.insert(now_.end(), t->sizes().begin(), t->sizes().end());
    now_.push_back(static_cast<std::int64_t>(t->scalar_type()) << 32 |
                   static_cast<std::int64_t>(t->device().type()) << 16 | (t->device().index() & 0xff) << 1 |
                   t->is_contiguous());
  }
  std::int64_t bits = 0, count = 0;
  const auto add = [&](bool bit) {
    bits = bits << 1 | bit;
    if (++count % 63 == 0) now_.push_back(bits), bits = 0;
  };
  add(root_->torch::nn::Module::is_training());
  for (const auto& child : children_) add(child->torch::nn::Module::is_training());
  for (const at::Tensor& parameter : parameters_) add(parameter.requires_grad());
  now_.push_back(bits);
  const bool same = now_ == last_;
  if (!same) std::swap(now_, last_);
  return same;
}

FULMEN_INLINE bool StepKey::has_hooks() const {
  for (const at::Tensor& parameter : parameters_) {
    if (!parameter.requires_grad()) continue;
    if (!torch::autograd::impl::hooks(parameter).empty() ||
        torch::autograd::impl::post_acc_grad_hooks(parameter))
      return true;
  }
  return false;
}

FULMEN_INLINE const at::Tensor& seed_like(at::Tensor& kept, double& kept_value, double value,
                                          const at::Tensor& like) {
  if (!kept.defined() || kept_value != value || kept.dtype() != like.dtype() ||
      kept.device() != like.device()) [[unlikely]] {
    kept = at::full({}, value, like.options());
    kept_value = value;
  }
  return kept;
}

}  // namespace detail
#endif

}  // namespace fulmen::nn
