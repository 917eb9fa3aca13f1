// A chain of layers called on their concrete types, with the names that Python's nn.Sequential gives them.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/fixed_string.hpp>
#include <fulmen/nn/rule.hpp>

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <stdexcept>
#endif

namespace fulmen::nn {

/// A layer with a name of its own; made by named<"fc1">(layer).
template <FixedString Name, class Layer>
struct Named {
  Layer layer;
};

/// Gives a layer of a Sequential its name, as the keys of an OrderedDict do in Python:
/// `Sequential{named<"fc1">(torch::nn::Linear(4, 8)), named<"relu">(torch::nn::ReLU())}`.
template <FixedString Name, class Layer>
Named<Name, std::decay_t<Layer>> named(Layer&& layer) {
  static_assert(!Name.view().empty() && Name.view().find('.') == std::string_view::npos,
                "fulmen: a layer's name must not be empty and must not contain a dot");
  return {std::forward<Layer>(layer)};
}

/// The compile error for a layer that does not take what the layer before it returns, neither as it is nor,
/// of a tuple, its elements as arguments. It is a type without definition, so that compilers print index,
/// layer and value on one line.
template <std::size_t Index, class Layer, class Value>
struct this_layer_of_a_sequential_cannot_be_called_with_what_the_layer_before_it_returns;

namespace detail {

template <class T>
concept Module = std::derived_from<T, torch::nn::Module>;

/// What is kept of an argument: the type of a module (kept in a shared_ptr), or of a callable (kept as it
/// is).
template <class T>
struct LayerOf {
  static_assert(Module<T> || std::is_class_v<T> || std::is_function_v<std::remove_pointer_t<T>>,
                "fulmen: a layer of a Sequential must be a module (a module holder, a std::shared_ptr, or a "
                "module itself) or "
                "a callable");
  static_assert(Module<T> || std::is_copy_constructible_v<T>,
                "fulmen: a callable in a Sequential must be copyable, since a Sequential is");
  using type = T;
};
template <class M>
struct LayerOf<std::shared_ptr<M>> {
  using type = M;
};
template <class T>
  requires std::is_base_of_v<torch::detail::ModuleHolderIndicator, T>
struct LayerOf<T> {
  using type = typename T::ContainedType;
};
template <FixedString Name, class T>
struct LayerOf<Named<Name, T>> {
  using type = Named<Name, typename LayerOf<T>::type>;
};

template <class L>
struct Unnamed {
  using type = L;
  static constexpr std::string_view name{};
};
template <FixedString Name, class L>
struct Unnamed<Named<Name, L>> {
  using type = L;
  static constexpr std::string_view name = Name.view();
};

template <class L>
struct Kept {
  using type = L;
};
template <Module M>
struct Kept<M> {
  using type = std::shared_ptr<M>;
};

/// What is registered in a module must be shared; the pointer is null only if one was given.
template <class L, class Argument>
typename Kept<L>::type keep(Argument&& argument) {
  using A = std::remove_cvref_t<Argument>;
  if constexpr (!Module<L>) {
    return std::forward<Argument>(argument);
  } else if constexpr (std::is_base_of_v<torch::detail::ModuleHolderIndicator, A>) {
    return argument.is_empty() ? nullptr : argument.ptr();
  } else if constexpr (Module<A>) {
    return std::make_shared<L>(std::forward<Argument>(argument));
  } else {
    return std::forward<Argument>(argument);
  }
}
template <class L, FixedString Name, class T>
typename Kept<L>::type keep(Named<Name, T>&& argument) {
  return keep<L>(std::move(argument.layer));
}
template <class L, FixedString Name, class T>
typename Kept<L>::type keep(const Named<Name, T>& argument) {
  return keep<L>(argument.layer);
}

template <class L>
L& target(typename Kept<L>::type& kept) {
  if constexpr (Module<L>)
    return *kept;
  else
    return kept;
}

/// The call that a layer is: forward of the type it has here, or of a callable the call itself.
template <Module M, class... In>
  requires requires(M& module, In&&... in) { module.forward(std::forward<In>(in)...); }
[[gnu::always_inline]] inline decltype(auto) call(M& module, In&&... in) {
  return module.forward(std::forward<In>(in)...);
}
template <class F, class... In>
  requires(!Module<F> && std::invocable<F&, In...>)
[[gnu::always_inline]] inline decltype(auto) call(F& callable, In&&... in) {
  return callable(std::forward<In>(in)...);
}

template <class F, class... In>
  requires(!Module<F> && !std::invocable<F&, In...> && requires(F& layer, In&&... in) { layer.forward(std::forward<In>(in)...); })
[[gnu::always_inline]] inline decltype(auto) call(F& layer, In&&... in) {
  return layer.forward(std::forward<In>(in)...);
}

template <class L, class... In>
concept Takes = requires(L& layer, In&&... in) {
  call(layer, std::forward<In>(in)...);
};
template <class L, class Tuple>
inline constexpr bool takes_elements = false;
template <class L, class... T>
inline constexpr bool takes_elements<L, std::tuple<T...>> = Takes<L, T...>;
template <class L, class A, class B>
inline constexpr bool takes_elements<L, std::pair<A, B>> = Takes<L, A, B>;

/// One layer at its place. Sequential derives from all of its own, so that a place is found without walking a
/// tuple.
template <std::size_t Index, class L>
struct Place {
  using Layer = L;
  [[no_unique_address]] typename Kept<L>::type kept;
};
template <std::size_t Index, class L>
constexpr Place<Index, L>& place_at(Place<Index, L>& place) {
  return place;
}

template <class Indices, class... L>
struct Places;
template <std::size_t... I, class... L>
struct Places<std::index_sequence<I...>, L...> : Place<I, L>... {};

/// What has come out of the last layer. Wrapped, so that a fold of `|` over the places is the chain.
template <class T>
struct Passed {
  T value;
};

template <class T, std::size_t Index, class L>
[[gnu::always_inline]] inline auto operator|(Passed<T> passed, Place<Index, L>& place) {
  // Moved to here, it lives no longer than until the layer has been called: the fold is one expression, whose
  // temporaries stay until its end.
  T value = std::move(passed.value);
  if constexpr (Takes<L, T>) {
    return Passed<std::remove_cvref_t<decltype(call(target<L>(place.kept), std::move(value)))>>{
        call(target<L>(place.kept), std::move(value))};
  } else if constexpr (takes_elements<L, T>) {
    const auto apply = [&] {
      return std::apply([&](auto&... element) { return call(target<L>(place.kept), std::move(element)...); },
                        value);
    };
    return Passed<decltype(apply())>{apply()};
  } else {
    this_layer_of_a_sequential_cannot_be_called_with_what_the_layer_before_it_returns<Index, L, T>{};
    return Passed<at::Tensor>{};  // as good as any, so that no other message follows
  }
}

/// The names that Python gives: one's own, or the index.
template <std::size_t N>
constexpr std::size_t find_layer(const std::array<std::string_view, N>& names, std::string_view name) {
  std::size_t number = 0;
  bool is_number = !name.empty();
  for (const char c : name) {
    is_number = is_number && c >= '0' && c <= '9';
    if (is_number) number = number * 10 + static_cast<std::size_t>(c - '0');
  }
  for (std::size_t i = 0; i < N; ++i) {
    if (names[i].empty() ? is_number && number == i && (name.size() == 1 || name[0] != '0')
                         : names[i] == name)
      return i;
  }
  return N;
}

/// Each name, where it is one's own, finds its own place first.
template <std::size_t N>
constexpr bool names_differ(const std::array<std::string_view, N>& names) {
  for (std::size_t i = 0; i < N; ++i) {
    if (names[i].empty()) continue;
    for (std::size_t j = 0; j < i; ++j) {
      if (names[j] == names[i]) return false;
    }
    std::array<std::string_view, N> numbers = names;
    numbers[i] = {".", 1};
    if (find_layer(numbers, names[i]) != N) return false;
  }
  return true;
}

std::string layer_name(std::string_view own, std::size_t index);

void register_layer(torch::nn::Module& parent, std::string name, std::shared_ptr<torch::nn::Module> layer);

/// A layer that stands at several places is copied once.
using Copies = std::vector<std::pair<const torch::nn::Module*, std::shared_ptr<torch::nn::Module>>>;
std::shared_ptr<torch::nn::Module> copy_once(const torch::nn::Module& module,
                                             const std::optional<at::Device>& device, Copies& copies);

}  // namespace detail

/// Layers one after the other; a module itself. Each layer's own forward is called on its own type, as if the
/// calls were written by hand: nothing is boxed, and the compiler sees through.
///
/// A layer is a module (a holder such as torch::nn::Linear, a std::shared_ptr, or a module by value, which is
/// moved into one), or any callable, such as `[](const at::Tensor& x) { return x.flatten(1); }` or
/// `&torch::relu`, or a struct with forward (and backward: nn/rule.hpp). Children are registered as "0", "1", ... or under the names of named<"…">(layer), so that
/// state_dict() of Python's nn.Sequential of the same layers fits (checkpoint/module_state.hpp). A callable
/// has its index and registers nothing, as a module without parameters in Python.
///
///     fulmen::nn::Sequential net{torch::nn::Linear(4, 8), torch::nn::ReLU(), torch::nn::Linear(8, 2)};
///     at::Tensor y = net.forward(x);
///
/// Copies share their layers, as those of module holders do; clone() copies the layers too.
/// Source: torch.nn.Sequential. @throws std::invalid_argument if a layer is a null pointer.
template <class... Layers>
class Sequential : public torch::nn::Module {
  static constexpr std::size_t count = sizeof...(Layers);
  static_assert(count > 0, "fulmen: a Sequential needs at least one layer");
  static constexpr std::array<std::string_view, count> names{detail::Unnamed<Layers>::name...};
  static_assert(detail::names_differ(names), "fulmen: two layers of a Sequential have one name");

 public:
  /// One argument a layer, in order.
  template <class... Arguments>
    requires(sizeof...(Arguments) == sizeof...(Layers) &&
             (... && std::same_as<typename detail::LayerOf<std::decay_t<Arguments>>::type, Layers>))
  explicit(false) Sequential(Arguments&&... layers)
      : torch::nn::Module("fulmen::nn::Sequential"),
        places_{{detail::keep<typename detail::Unnamed<Layers>::type>(std::forward<Arguments>(layers))}...} {
    each([&]<std::size_t I, class L>(detail::Place<I, L>& place) {
      if constexpr (detail::Module<L>)
        detail::register_layer(*this, detail::layer_name(names[I], I), place.kept);
    });
  }

  /// Passes the inputs through all layers: the first is called with all of them, each other with what the one
  /// before it returned, or with its elements where that is a std::tuple or std::pair and only they are
  /// taken.
  template <class... In>
    requires detail::Takes<typename detail::Unnamed<std::tuple_element_t<0, std::tuple<Layers...>>>::type,
                           In...>
  auto forward(In&&... in) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      auto first = [&]() -> decltype(auto) { return detail::call(get<0>(), std::forward<In>(in)...); };
      return (detail::Passed<std::remove_cvref_t<decltype(first())>>{first()} | ... |
              detail::place_at<I + 1>(places_))
          .value;
    }(std::make_index_sequence<count - 1>{});
  }
  template <class... In>
  auto operator()(In&&... in) -> decltype(forward(std::forward<In>(in)...)) {
    return forward(std::forward<In>(in)...);
  }

  static constexpr std::size_t size() { return count; }

  /// A layer by index: a reference to the module or to the callable.
  template <std::size_t Index>
  auto& get() {
    static_assert(Index < count, "fulmen: a Sequential has no layer of this index");
    auto& place = detail::place_at<(Index < count ? Index : 0)>(places_);
    return detail::target<typename std::remove_reference_t<decltype(place)>::Layer>(place.kept);
  }
  /// A layer by name: `net.get<"fc1">()`; one without a name of its own has that of its index.
  template <FixedString Name>
  auto& get() {
    constexpr std::size_t index = detail::find_layer(names, Name.view());
    static_assert(index < count, "fulmen: a Sequential has no layer of this name");
    return get<(index < count ? index : 0)>();
  }

  /// A Sequential of copies of the layers, on the device if one is given; its type is this one's. A layer
  /// that stands at two places does so in the copy. @throws c10::Error naming a layer that cannot be copied
  /// (it must be a torch::nn::Cloneable).
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<at::Device>& device = std::nullopt) const override {
    auto copy = std::make_shared<Sequential>(*this);
    copy->copy_layers(*this, device);
    return copy;
  }

 private:
  template <class L, std::size_t N>
  friend struct Rule;

  /// What a torch::nn::Cloneable that holds this does with the one in its copy.
  void clone_(torch::nn::Module& other, const std::optional<at::Device>& device) override {
    const auto* same = other.as<Sequential>();
    if (same == nullptr) {
      fail<std::invalid_argument>("Sequential: cannot become a copy of {}, expected one of the same layers",
                                  other.name());
    }
    static_cast<torch::nn::Module&>(*this) = *same;  // its mode, above all
    copy_layers(*same, device);
  }

  void copy_layers(const Sequential& from, const std::optional<at::Device>& device) {
    detail::Copies copies;
    each([&]<std::size_t I, class L>(detail::Place<I, L>& place) {
      if constexpr (detail::Module<L>) {
        const torch::nn::Module& layer = *static_cast<const detail::Place<I, L>&>(from.places_).kept;
        place.kept = std::static_pointer_cast<L>(detail::copy_once(layer, device, copies));
        replace_module<torch::nn::Module>(detail::layer_name(names[I], I), place.kept);
      }
    });
  }

  template <class F>
  void each(F&& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) { (f(detail::place_at<I>(places_)), ...); }(
        std::make_index_sequence<count>{});
  }

  detail::Places<std::make_index_sequence<count>, typename detail::Unnamed<Layers>::type...> places_;
};

template <class... Arguments>
Sequential(Arguments...) -> Sequential<typename detail::LayerOf<Arguments>::type...>;

/// The same in a std::shared_ptr, to be registered in a module of one's own:
/// `register_module("head", fulmen::nn::make_sequential(...))`.
template <class... Arguments>
auto make_sequential(Arguments&&... layers) {
  return std::make_shared<Sequential<typename detail::LayerOf<std::decay_t<Arguments>>::type...>>(
      std::forward<Arguments>(layers)...);
}

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE std::string layer_name(std::string_view own, std::size_t index) {
  return own.empty() ? std::to_string(index) : std::string(own);
}

FULMEN_INLINE void register_layer(torch::nn::Module& parent, std::string name,
                                  std::shared_ptr<torch::nn::Module> layer) {
  if (!layer) fail<std::invalid_argument>("Sequential: layer {} is a null pointer, expected a module", name);
  parent.register_module(std::move(name), std::move(layer));
}

FULMEN_INLINE std::shared_ptr<torch::nn::Module> copy_once(const torch::nn::Module& module,
                                                           const std::optional<at::Device>& device,
                                                           Copies& copies) {
  for (const auto& [from, copy] : copies) {
    if (from == &module) return copy;
  }
  return copies.emplace_back(&module, module.clone(device)).second;
}

}  // namespace detail
#endif

}  // namespace fulmen::nn

#include <fulmen/nn/chain.hpp>
