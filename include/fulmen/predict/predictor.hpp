// What a predictor is: the step between a batch's inputs and the module, for inference on more than one forward pass.
#pragma once

#include <concepts>
#include <utility>

namespace fulmen {

/// Runs the module on the inputs as they are.
///
/// A predictor is called as `predictor(inputs, infer)`: `inputs` is the input tensor (a std::tuple where forward takes
/// several), `infer` runs activation(forward(inputs)). It may call `infer` once, never or many times (patches, flips) and
/// gives back the prediction.
struct Identity {
  template <class Inputs, class Infer>
  constexpr decltype(auto) operator()(Inputs&& inputs, Infer&& infer) const {
    return std::forward<Infer>(infer)(std::forward<Inputs>(inputs));
  }
};

namespace detail {
/// Stands for `infer` where only its shape matters.
struct AnyInfer {
  template <class Inputs>
  Inputs operator()(Inputs inputs) const {
    return inputs;
  }
};
}  // namespace detail

template <class P, class Inputs>
concept Predictor = requires(P& predictor, Inputs inputs) { predictor(inputs, detail::AnyInfer{}); };

}  // namespace fulmen
