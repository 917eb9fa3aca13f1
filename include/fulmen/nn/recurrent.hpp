// Recurrent layers, and what makes one tensor of their results.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/rule.hpp>

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/rnn.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fulmen::nn {

/// LibTorch's own, called with a sequence; they give the outputs of all steps, and the last states. They have
/// no rule of their own: ATen's kernels do all steps at once, and autograd serves the layer alone.
///
///     Sequential{LSTM(LSTMOptions(8, 32).batch_first(true)), LastStep(true), Linear(32, 4)}
using torch::nn::GRU;
using torch::nn::GRUOptions;
using torch::nn::LSTM;
using torch::nn::LSTMOptions;
using torch::nn::RNN;
using torch::nn::RNNOptions;

/// Of a recurrent layer's results the outputs of all steps (T×B×H, or B×T×H): the first of its inputs.
struct AllSteps : torch::nn::Cloneable<AllSteps> {
  void reset() override {}
  template <class... States>
  at::Tensor forward(const at::Tensor& steps, const States&...) {
    return steps;
  }
};

/// Of a recurrent layer's results, or of any sequence, the outputs of the last step: B×H of T×B×H, or of
/// B×T×H if batch_first; H of T×H. (Of a layer in both directions these are the end of one and the begin of
/// the other.)
class LastStep : public torch::nn::Cloneable<LastStep> {
 public:
  explicit LastStep(bool batch_first = false)
      : torch::nn::Cloneable<LastStep>("fulmen::nn::LastStep"), batch_first_(batch_first) {}
  void reset() override {}
  template <class... States>
  at::Tensor forward(const at::Tensor& steps, const States&...) {
    return last(steps);
  }
  /// The same, a view. @throws c10::Error if there is no step
  at::Tensor last(const at::Tensor& steps) const {
    return steps.select(batch_first_ && steps.dim() > 2 ? 1 : 0, -1);
  }

 private:
  bool batch_first_;
};

/// N: the steps, and the states as they come, each a tensor; these get no gradient.
template <std::size_t N>
struct Rule<AllSteps, N> {
  struct Kept {
    Buffer output, gradient;
  };
  static constexpr bool saves_input = false, saves_output = false, owns_output = false;
  static constexpr std::size_t outputs = 1;

  static std::array<Buffer*, 1> forward(AllSteps&, Kept& kept, const ForwardPass<N>& pass) {
    pass.workspace.alias(kept.output, *pass.inputs[0]);
    return {&kept.output};
  }
  static std::array<Buffer*, N> backward(AllSteps&, Kept& kept, const BackwardPass<N, 1>& pass) {
    pass.workspace.alias(kept.gradient, *pass.gradients[0]);
    return {&kept.gradient};
  }
};

template <std::size_t N>
struct Rule<LastStep, N> {
  struct Kept {
    Buffer output, gradient, last;
    std::vector<std::int64_t> sizes;
  };
  static constexpr bool saves_input = false, saves_output = false, owns_output = false;
  static constexpr std::size_t outputs = 1;

  static std::array<Buffer*, 1> forward(LastStep& layer, Kept& kept, const ForwardPass<N>& pass) {
    kept.sizes.assign(pass.x().sizes().begin(), pass.x().sizes().end());
    pass.workspace.view(kept.output, *pass.inputs[0], [&](const at::Tensor& t) { return layer.last(t); });
    return {&kept.output};
  }
  static std::array<Buffer*, N> backward(LastStep& layer, Kept& kept, const BackwardPass<N, 1>& pass) {
    if (!pass.wants_input) return {};
    pass.workspace.take(kept.gradient, kept.sizes, pass.grad()).zero_();
    pass.workspace.view(kept.last, kept.gradient, [&](const at::Tensor& t) { return layer.last(t); })
        .copy_(pass.grad());
    pass.workspace.release(kept.last);
    return {&kept.gradient};
  }
};

}  // namespace fulmen::nn
