// What a predictor is: the step between inputs and the module, for inference on more than one forward pass.
#pragma once

#include <fulmen/predict/range.hpp>

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fulmen {

/// Runs the module on the inputs as they are.
///
/// A predictor turns inputs into a prediction by means of `infer`, which runs activation(forward(inputs)): once, never
/// or many times (patches, flips). It does so in one of two ways:
///
/// - `predictor(inputs, infer)` gives back the prediction;
/// - `predictor.forward(inputs)` gives back a range of model inputs, best a lazy one, and `predictor.backward(parts,
///   predictions)` or `predictor.backward(predictions)` makes one prediction of the range of what infer made of them.
///   `parts` is the range that forward gave back: what backward must know (shapes, positions) stands there, and so the
///   predictor itself need not change. With `backward(predictions)` the result may itself be lazy: a stream.
///
/// Either way it is run by `run(predictor, inputs, infer)`. `inputs` is the input tensor, a std::tuple where the
/// module's forward takes several, or for predictors of streams a range. A predictor that cuts its inputs up says
/// `static constexpr bool cuts_inputs = true`: the Trainer then leaves them where they are and moves each part to the
/// device.
///
/// Source: thunder.predict (BasePredictor's forward, backward, run).
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

template <class P, class Inputs, class Infer>
concept CalledPredictor = requires(P&& predictor, Inputs&& inputs, Infer&& infer) {
  std::forward<P>(predictor)(std::forward<Inputs>(inputs), std::forward<Infer>(infer));
};

template <class P, class Inputs>
concept ForwardPredictor = requires(P& predictor, Inputs&& inputs) {
  predictor.forward(std::forward<Inputs>(inputs));
};

template <class P>
concept CutsInputs = requires {
  requires P::cuts_inputs;
};

}  // namespace detail

/// The prediction for `inputs`: what `predictor` makes of them by means of `infer`.
///
/// What is given as an lvalue must outlive a lazy result; what is given as an rvalue is kept in it.
template <class P, class Inputs, class Infer>
  requires detail::CalledPredictor<P, Inputs, Infer>
[[gnu::always_inline]] constexpr decltype(auto) run(P&& predictor, Inputs&& inputs, Infer&& infer) {
  return std::forward<P>(predictor)(std::forward<Inputs>(inputs), std::forward<Infer>(infer));
}
template <class P, class Inputs, class Infer>
  requires(!detail::CalledPredictor<P, Inputs, Infer> && detail::ForwardPredictor<P, Inputs>)
constexpr auto run(P&& predictor, Inputs&& inputs, Infer&& infer) {
  using Parts = decltype(predictor.forward(std::forward<Inputs>(inputs)));
  constexpr bool gives_range = detail::Walkable<std::remove_reference_t<Parts>>;
  static_assert(gives_range, "fulmen: a predictor's forward(inputs) must give back a range of model inputs");
  if constexpr (gives_range) {
    using Held = std::conditional_t<std::is_lvalue_reference_v<Parts>, Parts, std::remove_cvref_t<Parts>>;
    using KeptParts = std::remove_reference_t<Parts>&;
    constexpr bool takes_parts = requires(KeptParts parts, detail::Mapped<KeptParts, Infer&> predictions) {
      predictor.backward(parts, std::move(predictions));
    };
    constexpr bool takes_predictions = requires(detail::Mapped<Held, Infer> predictions) {
      predictor.backward(std::move(predictions));
    };
    static_assert(takes_parts || takes_predictions,
                  "fulmen: a predictor with forward(inputs) needs backward(parts, predictions) or "
                  "backward(predictions)");
    if constexpr (takes_parts) {
      auto&& parts = predictor.forward(std::forward<Inputs>(inputs));
      return predictor.backward(parts, detail::Mapped<KeptParts, Infer&>(parts, infer));
    } else if constexpr (takes_predictions) {
      return predictor.backward(detail::Mapped<Held, Infer>(predictor.forward(std::forward<Inputs>(inputs)),
                                                            std::forward<Infer>(infer)));
    }
  }
}

/// Whether `run(predictor, inputs, infer)` is possible with such inputs.
template <class P, class Inputs>
concept Predictor = requires(P& predictor, Inputs inputs) {
  run(predictor, inputs, detail::AnyInfer{});
};

/// A predictor of batches, of one tensor or of several: what a Trainer takes. The first that is possible decides; the
/// other is not looked at.
template <class P>
concept BatchPredictor = Predictor<P, at::Tensor> || Predictor<P, std::tuple<at::Tensor>>;

/// One of batches or of streams.
template <class P>
concept AnyPredictor = BatchPredictor<P> || Predictor<P, std::initializer_list<at::Tensor>>;

namespace detail {

/// Refers to what was an lvalue, owns what was not; either way to be changed through const, as through a reference.
template <class T>
struct Kept {
  mutable T value;
};
template <class T>
struct Kept<T&> {
  T& value;
};

/// `run(predictor, …, infer)` as the infer of an outer predictor.
template <class P, class Infer>
struct Inner {
  Kept<P> predictor;
  Kept<Infer> infer;

  template <class Inputs>
  constexpr decltype(auto) operator()(Inputs&& inputs) const {
    constexpr bool fits = requires { run(predictor.value, std::forward<Inputs>(inputs), infer.value); };
    static_assert(
        fits, "fulmen: in outer | inner, the inner predictor cannot be run with what the outer one gives it");
    if constexpr (fits)
      return run(predictor.value, std::forward<Inputs>(inputs), infer.value);
    else
      return std::remove_cvref_t<Inputs>(inputs);
  }
};

}  // namespace detail

/// Two predictors, one inside the other: each part that `outer` makes of the inputs goes through `inner`. `outer |
/// inner` makes it; `a | b | c` has a outermost.
template <class Outer, class Inner>
struct Nested {
  Outer outer;
  Inner inner;

  static constexpr bool cuts_inputs = detail::CutsInputs<Outer> || detail::CutsInputs<Inner>;

  template <class Inputs, class Infer>
    requires Predictor<Outer, Inputs>
  constexpr decltype(auto) operator()(Inputs&& inputs, Infer&& infer) & {
    return run(outer, std::forward<Inputs>(inputs),
               detail::Inner<Inner&, Infer>{{inner}, {std::forward<Infer>(infer)}});
  }
  template <class Inputs, class Infer>
    requires Predictor<const Outer, Inputs>
  constexpr decltype(auto) operator()(Inputs&& inputs, Infer&& infer) const& {
    return run(outer, std::forward<Inputs>(inputs),
               detail::Inner<const Inner&, Infer>{{inner}, {std::forward<Infer>(infer)}});
  }
  /// A temporary one goes into a lazy result.
  template <class Inputs, class Infer>
    requires Predictor<Outer, Inputs>
  constexpr decltype(auto) operator()(Inputs&& inputs, Infer&& infer) && {
    return run(std::move(outer), std::forward<Inputs>(inputs),
               detail::Inner<Inner, Infer>{{std::move(inner)}, {std::forward<Infer>(infer)}});
  }
};

/// `PadToMultiple<2>{.multiple = 16} | Patches<2>{.size = 96}`: pads first, then cuts, then puts together, then crops.
template <class Outer, class Inner>
  requires AnyPredictor<Outer> && AnyPredictor<Inner>
constexpr Nested<Outer, Inner> operator|(Outer outer, Inner inner) {
  return {std::move(outer), std::move(inner)};
}

}  // namespace fulmen
