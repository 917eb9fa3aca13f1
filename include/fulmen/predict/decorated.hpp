// The predictor that wraps functions around inference.
#pragma once

#include <fulmen/predict/predictor.hpp>

#include <concepts>
#include <tuple>
#include <utility>

namespace fulmen {

namespace detail {

/// infer as a value that a decorator may keep.
template <class Infer>
struct KeptInfer {
  Kept<Infer> infer;
  template <class Inputs>
    requires std::invocable < std::remove_reference_t<Infer>
  &, Inputs > constexpr decltype(auto) operator()(Inputs&& inputs) const {
    return infer.value(std::forward<Inputs>(inputs));
  }
};

/// Carries infer through a fold over decorators, from the last to the first.
template <class Infer>
struct Decorating {
  Infer infer;
};
template <class D, class Infer>
constexpr auto operator>>=(const D& decorator, Decorating<Infer> inside) {
  using Decorated = decltype(decorator(std::move(inside.infer)));
  return Decorating<Decorated>{decorator(std::move(inside.infer))};
}

template <class... D, class Infer>
constexpr auto decorated(const std::tuple<D...>& decorators, Infer&& infer) {
  return std::apply(
             [&](const D&... d) {
               return (d >>= ... >>= Decorating<KeptInfer<Infer>>{{{std::forward<Infer>(infer)}}});
             },
             decorators)
      .infer;
}

/// One function after another.
template <class First, class Second>
struct Chain {
  First first;
  Second second;
  template <class X>
    requires std::invocable<const First&, X> &&
        std::invocable<const Second&, std::invoke_result_t<const First&, X>>
  constexpr decltype(auto) operator()(X&& x) const { return second(first(std::forward<X>(x))); }
};

}  // namespace detail

/// Decorators of infer: `Decorated{f, g, h}` runs f(g(h(infer)))(inputs). A decorator takes a function and gives back
/// another; before(f) and after(f) make one of a function of the inputs or of the prediction.
///
/// Source: thunder.predict.Decorated.
template <class... D>
struct Decorated {
  std::tuple<D...> decorators;

  constexpr Decorated(D... of) : decorators(std::move(of)...) {}

  template <class Inputs, class Infer>
    requires std::invocable<
        decltype(detail::decorated(std::declval<const std::tuple<D...>&>(), std::declval<Infer>()))&, Inputs>
  constexpr decltype(auto) operator()(Inputs&& inputs, Infer&& infer) const {
    auto decorated = detail::decorated(decorators, std::forward<Infer>(infer));
    return decorated(std::forward<Inputs>(inputs));
  }
};

/// For Decorated: infer(f(inputs)).
template <class F>
constexpr auto before(F f) {
  return [f = std::move(f)](auto infer) { return detail::Chain<F, decltype(infer)>{f, std::move(infer)}; };
}
/// For Decorated: f(infer(inputs)).
template <class F>
constexpr auto after(F f) {
  return [f = std::move(f)](auto infer) { return detail::Chain<decltype(infer), F>{std::move(infer), f}; };
}

}  // namespace fulmen
