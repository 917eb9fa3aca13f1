// What a criterion's value and gradient are where no graph is recorded: CriterionRule<Criterion>.
#pragma once

#include <fulmen/criteria/call.hpp>
#include <fulmen/nn/rule.hpp>

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <tuple>
#include <utility>

namespace fulmen::nn {

/// What a criterion's rule is given: M outputs of the model, T targets.
template <std::size_t M = 1, std::size_t T = 1>
struct LossPass {
  std::array<Buffer*, M> outputs;
  std::array<const at::Tensor*, T> targets;
  Workspace& workspace;
  /// In backward: the gradient of the loss, a scalar of its type (1, or 1/n where n batches make a step).
  const at::Tensor* seed = nullptr;

  const at::Tensor& output(std::size_t i = 0) const { return **outputs[i]; }
  const at::Tensor& target(std::size_t i = 0) const { return *targets[i]; }
};

/// The rule of a criterion that is called with M outputs and T targets. A specialization has
///
///     struct Kept;
///     static Buffer& forward(const C&, Kept&, const LossPass<M, T>&);     the loss, a scalar
///     static Buffer* backward(const C&, Kept&, const LossPass<M, T>&);    the gradient of the output; of
///     several: a std::array
///
/// Both run below autograd; the outputs are those of forward, and are not to be overwritten. The primary
/// template has autograd serve the criterion alone.
template <class C, std::size_t M = 1, std::size_t T = 1>
struct CriterionRule {
  static constexpr bool by_autograd = true;

  struct Kept {
    Buffer loss;
    at::Tensor recorded;
    std::array<at::Tensor, M> leaves;
    std::array<Buffer, M> gradients;
  };

  static Buffer& forward(C& criterion, Kept& kept, const LossPass<M, T>& pass) {
    const detail::LocalGraph graph;
    for (std::size_t i = 0; i < M; ++i) kept.leaves[i] = detail::leaf(pass.output(i), true);
    kept.recorded = detail::apply_n<T>(
        [&](std::size_t i) -> const at::Tensor& { return pass.target(i); },
        [&](const auto&... target) {
          if constexpr (M == 1) {
            return at::Tensor(fulmen::detail::call_criterion(criterion, kept.leaves[0], target...));
          } else {
            const auto outputs = std::tuple_cat(kept.leaves);
            return at::Tensor(fulmen::detail::call_criterion(criterion, outputs, target...));
          }
        });
    pass.workspace.hold(kept.loss, kept.recorded.detach());
    return kept.loss;
  }

  static std::array<Buffer*, M> backward(C&, Kept& kept, const LossPass<M, T>& pass) {
    {
      const detail::LocalGraph graph;
      const at::Tensor* const root = &kept.recorded;
      detail::run_backward(&root, &pass.seed, 1);
    }
    std::array<Buffer*, M> out{};
    for (std::size_t i = 0; i < M; ++i) {
      if (kept.leaves[i].grad().defined()) {
        pass.workspace.hold(kept.gradients[i], std::move(kept.leaves[i].mutable_grad()));
        out[i] = &kept.gradients[i];
      }
      kept.leaves[i].reset();
    }
    kept.recorded.reset();
    return out;
  }
};

}  // namespace fulmen::nn
