// The rule of a Sequential: its layers' forwards one after the other, then their backwards in reverse.
#pragma once

#include <fulmen/nn/rule.hpp>
#include <fulmen/nn/sequential.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fulmen::nn {

namespace detail {

/// What a chain looks at when it decides how long the tensors between its layers live.
struct LinkTraits {
  bool saves_input = false, saves_output = false, in_place = false, owns_output = false,
       foreign_memory = false;
  std::size_t inputs = 1, outputs = 1;
};

template <class L>
struct LayerTag {};

/// Collects the traits of layers. Passed on from one to the next, since how many tensors come into a layer is
/// said by the one before it. What is instantiated depends on the layer's type and this number, not on its
/// place.
template <std::size_t N>
struct TraitsWalk {
  LinkTraits* at;

  template <class L>
  constexpr auto operator|(LayerTag<L>) const {
    using R = Rule<L, N>;
    *at = {R::saves_input,   R::saves_output,          runs_in_place<R>(),
           owns_output<R>(), uses_foreign_memory<R>(), N,
           output_count<R>()};
    return TraitsWalk<output_count<R>()>{at + 1};
  }
};

template <std::size_t N, class... L>
consteval std::array<LinkTraits, sizeof...(L)> traits_of_chain() {
  std::array<LinkTraits, sizeof...(L)> out;
  static_cast<void>((TraitsWalk<N>{out.data()} | ... | LayerTag<L>{}));
  return out;
}

/// What the layer at a place keeps. Links derives from all of them, so that a place is found without walking
/// a tuple.
template <std::size_t Index, class Kept>
struct Link {
  Kept kept{};
};
template <class Indices, class... Kept>
struct Links;
template <std::size_t... I, class... Kept>
struct Links<std::index_sequence<I...>, Kept...> : Link<I, Kept>... {};

/// Which of several layers have a backward pass, and which have to give the gradient of their inputs.
template <std::size_t Count>
struct Needs {
  std::array<bool, Count> trained{};
  std::array<bool, Count> backward{}, input{};

  /// Of layers one after the other. @param wants_input whether the first has to give its inputs' gradient
  void follow(bool wants_input) {
    for (std::size_t i = 0; i < Count; ++i) {
      input[i] = wants_input;
      backward[i] = wants_input = wants_input || trained[i];
    }
  }
};

/// The tensors between the layers of a chain: those that go into layer i, and the gradient of these.
template <std::size_t Max>
using Flow = std::array<Buffer*, Max>;

template <std::size_t Max>
void release_flow(Workspace& workspace, const Flow<Max>& flow, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    if (flow[i] != nullptr) workspace.release(*flow[i]);
  }
}

/// A walk over the layers of a chain, in either direction. What is done with one layer does not depend on its
/// place as a type, so that it is compiled once for all layers of one kind: a long chain compiles about as
/// fast as a short one.
template <std::size_t Max>
struct ChainWalk {
  Workspace& workspace;
  const LinkTraits* traits;
  const bool *backward, *input;
  Flow<Max>* flow;  ///< count + 1 of them
  std::size_t count, at;
  bool may_overwrite;     ///< what goes into the chain; backward: the gradients of the outputs of the layer
                          ///< whose turn it is
  Flow<Max> gradients{};  ///< backward: of what comes out of the layer whose turn it is
  bool goes_on = true;

  template <std::size_t N, class L, class Kept>
  void forward(L& layer, Kept& kept) {
    const std::size_t i = at++;
    const bool first = i == 0;
    ForwardPass<N> pass{{},
                        workspace,
                        first ? may_overwrite : traits[i - 1].owns_output && !traits[i - 1].saves_output,
                        backward[i],
                        input[i]};
    std::copy_n(flow[i].begin(), N, pass.inputs.begin());
    const auto result = rule_forward<Rule<L, N>>(layer, kept, pass);
    std::copy(result.begin(), result.end(), flow[i + 1].begin());
    const bool needed =
        (traits[i].saves_input && backward[i]) || (!first && traits[i - 1].saves_output && backward[i - 1]);
    if (!first && !needed) release_flow(workspace, flow[i], N);
  }

  template <std::size_t N, class L, class Kept>
  void backward_of(L& layer, Kept& kept) {
    using R = Rule<L, N>;
    constexpr std::size_t m = output_count<R>();
    const std::size_t i = --at;
    if (!goes_on) return;
    const bool last = i + 1 == count;
    const Flow<Max> of_outputs = gradients;
    goes_on = backward[i] &&
              std::any_of(of_outputs.begin(), of_outputs.begin() + m, [](Buffer* b) { return b != nullptr; });
    if (goes_on) {
      BackwardPass<N, m> pass{{}, {}, {}, workspace, input[i], may_overwrite && m == 1};
      if constexpr (R::saves_input) std::copy_n(flow[i].begin(), N, pass.inputs.begin());
      if constexpr (R::saves_output) std::copy_n(flow[i + 1].begin(), m, pass.outputs.begin());
      std::copy_n(gradients.begin(), m, pass.gradients.begin());
      const auto result = rule_backward<R>(layer, kept, pass);
      std::copy(result.begin(), result.end(), gradients.begin());
      // The gradient of a view is a view of the gradient: nobody's own unless that is.
      may_overwrite = N == 1 && !traits[i].foreign_memory && (traits[i].owns_output || may_overwrite);
    } else {
      gradients.fill(nullptr);
    }
    if (last) return;
    release_flow(workspace, flow[i + 1], m);
    if (goes_on) release_flow(workspace, of_outputs, m);
  }
};

}  // namespace detail

template <class... Layers>
inline constexpr bool is_composite<Sequential<Layers...>> = true;

/// Sequential: what a layer does not save is freed when the next one has run, and overwritten by it where it
/// can be.
template <std::size_t N, class... Layers>
struct Rule<Sequential<Layers...>, N> {
 private:
  static constexpr std::size_t count = sizeof...(Layers);
  static constexpr auto traits = detail::traits_of_chain<N, typename detail::Unnamed<Layers>::type...>();
  static constexpr std::size_t widest = [] {
    std::size_t most = N;
    for (const detail::LinkTraits& t : traits) most = std::max(most, t.outputs);
    return most;
  }();
  using Flow = detail::Flow<widest>;

  using Indices = std::make_index_sequence<count>;
  template <class Layer, std::size_t Inputs>
  using KeptOf = typename Rule<typename detail::Unnamed<Layer>::type, Inputs>::Kept;
  template <class>
  struct LinksOf;
  template <std::size_t... I>
  struct LinksOf<std::index_sequence<I...>> {
    using type = detail::Links<Indices, KeptOf<Layers, traits[I].inputs>...>;
  };

 public:
  static constexpr std::size_t outputs = traits.back().outputs;
  static constexpr bool saves_input = traits.front().saves_input, saves_output = traits.back().saves_output,
                        in_place = traits.front().in_place, owns_output = traits.back().owns_output,
                        foreign_memory = std::any_of(traits.begin(), traits.end(),
                                                     [](const auto&t) { return t.foreign_memory; });
  static constexpr detail::RuleCount rule_count = []<std::size_t... I>(std::index_sequence<I...>) {
    detail::RuleCount sum;
    const auto add = [&](detail::RuleCount one) {
      sum.rules += one.rules, sum.by_autograd += one.by_autograd;
    };
    (add(detail::count_rules<Rule<typename detail::Unnamed<Layers>::type, traits[I].inputs>>()), ...);
    return sum;
  }
  (Indices{});

  struct Kept {
    typename LinksOf<Indices>::type links;
    detail::Needs<count> needs;
    std::array<Flow, count + 1> flow{};
  };

  static void prepare(Sequential<Layers...>& chain, Kept& kept) {
    std::size_t i = 0;
    each(chain, kept, Indices{},
         [&]<std::size_t n, class L, class K>(std::integral_constant<std::size_t, n>, L& layer,
                                              K& layer_kept) {
           kept.needs.trained[i++] = detail::is_trained(layer);
           detail::rule_prepare<Rule<L, n>>(layer, layer_kept);
         });
  }

  static std::array<Buffer*, outputs> forward(Sequential<Layers...>& chain, Kept& kept,
                                              const ForwardPass<N>& pass) {
    auto& [trained, backward, input] = kept.needs;
    if (pass.has_backward)
      kept.needs.follow(pass.wants_input);
    else
      backward.fill(false);
    std::copy_n(pass.inputs.begin(), N, kept.flow[0].begin());
    Walk walk{pass.workspace,    traits.data(), backward.data(), input.data(), kept.flow.data(), count, 0,
              pass.may_overwrite};
    each(
        chain, kept, Indices{},
        [&]<std::size_t n, class L, class K>(std::integral_constant<std::size_t, n>, L& layer,
                                             K& layer_kept) { walk.template forward<n>(layer, layer_kept); });
    std::array<Buffer*, outputs> out;
    std::copy_n(kept.flow[count].begin(), outputs, out.begin());
    return out;
  }

  static std::array<Buffer*, N> backward(Sequential<Layers...>& chain, Kept& kept,
                                         const BackwardPass<N, outputs>& pass) {
    const auto& [trained, backward, input] = kept.needs;
    Walk walk{pass.workspace,   traits.data(), backward.data(), input.data(),
              kept.flow.data(), count,         count,           pass.may_overwrite};
    std::copy_n(pass.gradients.begin(), outputs, walk.gradients.begin());
    each_reversed(chain, kept, Indices{},
                  [&]<std::size_t n, class L, class K>(std::integral_constant<std::size_t, n>, L& layer,
                                                       K& layer_kept) {
                    walk.template backward_of<n>(layer, layer_kept);
                  });
    std::array<Buffer*, N> out;
    std::copy_n(walk.gradients.begin(), N, out.begin());
    return out;
  }

 private:
  using Walk = detail::ChainWalk<widest>;

  /// f(how many tensors come into it, layer, what it keeps) for each layer. What f is instantiated for are
  /// the types of layers, not places.
  template <std::size_t... I, class F>
  static void each(Sequential<Layers...>& chain, Kept& kept, std::index_sequence<I...>, F&& f) {
    (f(std::integral_constant<std::size_t, traits[I].inputs>{}, layer<I, Layers>(chain),
       link<I, Layers>(kept)),
     ...);
  }
  template <std::size_t... I, class F>
  static void each_reversed(Sequential<Layers...>& chain, Kept& kept, std::index_sequence<I...>, F&& f) {
    int done = 0;
    const auto last_first = [&](auto inputs, auto& l, auto& k) -> int& { return f(inputs, l, k), done; };
    // Of an assignment, the right-hand side comes first.
    (last_first(std::integral_constant<std::size_t, traits[I].inputs>{}, layer<I, Layers>(chain),
                link<I, Layers>(kept)) = ... = 0);
  }

  template <std::size_t I, class Layer>
  static auto& layer(Sequential<Layers...>& chain) {
    using L = typename detail::Unnamed<Layer>::type;
    return detail::target<L>(static_cast<detail::Place<I, L>&>(chain.places_).kept);
  }
  template <std::size_t I, class Layer>
  static auto& link(Kept& kept) {
    return static_cast<detail::Link<I, KeptOf<Layer, traits[I].inputs>>&>(kept.links).kept;
  }
};

}  // namespace fulmen::nn

// Whoever has a Sequential has all rules: else the same net would be composed in one source of a program and
// not in another.
#include <fulmen/nn/nn.hpp>
