// Layers side by side, around each other and repeated, what joins their results, and the rules of their
// gradients.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/chain.hpp>
#include <fulmen/nn/rule.hpp>
#include <fulmen/nn/sequential.hpp>

#include <c10/util/SmallVector.h>
#include <torch/nn/cloneable.h>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/ExpandUtils.h>
#include <ATen/ops/add.h>
#include <ATen/ops/add_cpu_dispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cat_cpu_dispatch.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/mul_cpu_dispatch.h>
#include <ATen/ops/zeros.h>

#include <stdexcept>
#endif

namespace fulmen::nn {

namespace detail {

/// Registers the children of another module under the same names, in place of those that have these.
void adopt_children(torch::nn::Module& parent, const torch::nn::Module& from);
/// Of a combinator that is to become a copy of a module of another type.
[[noreturn]] void fail_to_copy(const std::string& name, const std::string& other);

at::Tensor sum_of(std::span<const at::Tensor> parts);
at::Tensor product_of(std::span<const at::Tensor> factors);
at::Tensor joined(at::ArrayRef<at::Tensor> parts, std::int64_t dim);

template <class T>
inline constexpr bool is_tuple = false;
template <class... T>
inline constexpr bool is_tuple<std::tuple<T...>> = true;
template <class A, class B>
inline constexpr bool is_tuple<std::pair<A, B>> = true;

/// A tuple without tuples in it.
template <class T>
auto flat(T value) {
  if constexpr (is_tuple<T>)
    return std::apply([](auto&... part) { return std::tuple_cat(flat(std::move(part))...); }, value);
  else
    return std::tuple<T>(std::move(value));
}

template <class Layer>
using LayerType = typename Unnamed<Layer>::type;

/// What Residual, Branch, Parallel, Sum and Concat are made of: layers that are registered under their
/// indices or names.
template <class Derived, class... Layers>
class Combinator : public torch::nn::Module {
 public:
  /// The layers by index, or by name: `branches.get<1>()`, `branches.get<"skip">()`.
  template <std::size_t Index>
  auto& get() {
    return layers_->template get<Index>();
  }
  template <FixedString Name>
  auto& get() {
    return layers_->template get<Name>();
  }
  static constexpr std::size_t size() { return sizeof...(Layers); }

  /// The layers in their order, as a Sequential has them.
  Sequential<Layers...>& layers() { return *layers_; }

  template <class Self = Derived, class... In>
  auto operator()(In&&... in) -> decltype(std::declval<Self&>().forward(std::forward<In>(in)...)) {
    return static_cast<Self&>(*this).forward(std::forward<In>(in)...);
  }

  /// Copies the layers too, onto the device if one is given; copies by value share them, as those of module
  /// holders do.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<at::Device>& device = std::nullopt) const override {
    auto copy = std::make_shared<Derived>(static_cast<const Derived&>(*this));
    copy->copy_layers(*this, device);
    return copy;
  }

 protected:
  template <class... Arguments>
  explicit Combinator(const char* name, Arguments&&... layers)
      : torch::nn::Module(name),
        layers_(std::make_shared<Sequential<Layers...>>(std::forward<Arguments>(layers)...)) {
    adopt_children(*this, *layers_);
  }

  /// f(layer 0, layer 1, ...)
  template <class F>
  decltype(auto) with_layers(F&& f) {
    return [&]<std::size_t... I>(std::index_sequence<I...>)->decltype(auto) {
      return f(layers_->template get<I>()...);
    }
    (std::index_sequence_for<Layers...>{});
  }

 private:
  void clone_(torch::nn::Module& other, const std::optional<at::Device>& device) override {
    const auto* same = other.as<Derived>();
    if (same == nullptr) fail_to_copy(name(), other.name());
    static_cast<Derived&>(*this) = *same;
    copy_layers(*same, device);
  }
  void copy_layers(const Combinator& from, const std::optional<at::Device>& device) {
    layers_ = std::static_pointer_cast<Sequential<Layers...>>(from.layers_->clone(device));
    adopt_children(*this, *layers_);
  }

  std::shared_ptr<Sequential<Layers...>> layers_;
};

template <class Arguments, class... Layers>
inline constexpr bool makes_layers = false;
template <class... A, class... Layers>
  requires(sizeof...(A) == sizeof...(Layers))
inline constexpr bool makes_layers<std::tuple<A...>, Layers...> =
    (... && std::same_as<typename LayerOf<std::decay_t<A>>::type, Layers>);

/// All branches look at the same inputs, so none may move from them.
template <class L, class... In>
concept TakesAll = Takes<L, const In&...>;

template <class... Layers>
using FirstLayer = LayerType<std::tuple_element_t<0, std::tuple<Layers...>>>;

}  // namespace detail

/// x + f(x), where f is the layers one after the other, which may have parameters of any kind.
/// The layers are registered as those of a Sequential.
///
///     Residual{LayerNorm(LayerNormOptions({64})), Linear(64, 64), ReLU()}
///
/// Source: the residual block of He et al. 2015, https://arxiv.org/abs/1512.03385.
template <class... Layers>
class Residual : public detail::Combinator<Residual<Layers...>, Layers...> {
 public:
  template <class... Arguments>
    requires detail::makes_layers<std::tuple<Arguments...>, Layers...>
  explicit(false) Residual(Arguments&&... layers)
      : Residual::Combinator("fulmen::nn::Residual", std::forward<Arguments>(layers)...) {}

  at::Tensor forward(const at::Tensor&x) requires detail::Takes < detail::FirstLayer<Layers...>,
  const at::Tensor& > {
    auto y = this->layers().forward(x);
    static_assert(std::is_convertible_v<decltype(y), at::Tensor>,
                  "fulmen: the layers of a Residual must give one tensor");
    return detail::sum_of(std::array<at::Tensor, 2>{x, std::move(y)});
  }
};
template <class... Arguments>
Residual(Arguments...) -> Residual<typename detail::LayerOf<Arguments>::type...>;
// Of a Residual alone: around it, not a copy.
template <class... Layers>
Residual(Residual<Layers...>) -> Residual<Residual<Layers...>>;

/// Each layer on the same inputs; gives a std::tuple of what they return, the elements of those that return
/// one in their place.
template <class... Layers>
class Branch : public detail::Combinator<Branch<Layers...>, Layers...> {
 public:
  template <class... Arguments>
    requires detail::makes_layers<std::tuple<Arguments...>, Layers...>
  explicit(false) Branch(Arguments&&... layers)
      : Branch::Combinator("fulmen::nn::Branch", std::forward<Arguments>(layers)...) {}

  template <class... In>
    requires(...&& detail::TakesAll<detail::LayerType<Layers>, In...>)
  auto forward(const In&... in) {
    return this->with_layers([&](auto&... layer) {
      return detail::flat(std::tuple<std::remove_cvref_t<decltype(detail::call(layer, in...))>...>{
          detail::call(layer, in...)...});
    });
  }
};
template <class... Arguments>
Branch(Arguments...) -> Branch<typename detail::LayerOf<Arguments>::type...>;

/// The first layer on the first input, the second on the second, ...; gives a std::tuple as Branch does.
/// As many inputs as layers.
template <class... Layers>
class Parallel : public detail::Combinator<Parallel<Layers...>, Layers...> {
 public:
  template <class... Arguments>
    requires detail::makes_layers<std::tuple<Arguments...>, Layers...>
  explicit(false) Parallel(Arguments&&... layers)
      : Parallel::Combinator("fulmen::nn::Parallel", std::forward<Arguments>(layers)...) {}

  template <class... In>
    requires(sizeof...(In) == sizeof...(Layers))
  &&(...&& detail::Takes<detail::LayerType<Layers>, const In&>)auto forward(const In&... in) {
    return this->with_layers([&](auto&... layer) {
      return detail::flat(
          std::tuple<std::remove_cvref_t<decltype(detail::call(layer, in))>...>{detail::call(layer, in)...});
    });
  }
};
template <class... Arguments>
Parallel(Arguments...) -> Parallel<typename detail::LayerOf<Arguments>::type...>;

/// a(x) + b(x) + ...: each layer on the same inputs, and the sum of the tensors they return, which is
/// broadcast.
template <class... Layers>
class Sum : public detail::Combinator<Sum<Layers...>, Layers...> {
  static_assert(sizeof...(Layers) > 1, "fulmen: a Sum needs at least two layers");

 public:
  template <class... Arguments>
    requires detail::makes_layers<std::tuple<Arguments...>, Layers...>
  explicit(false) Sum(Arguments&&... layers)
      : Sum::Combinator("fulmen::nn::Sum", std::forward<Arguments>(layers)...) {}

  template <class... In>
    requires(...&& detail::TakesAll<detail::LayerType<Layers>, In...>)
  at::Tensor forward(const In&... in) {
    return this->with_layers([&](auto&... layer) {
      return detail::sum_of(
          std::array<at::Tensor, sizeof...(Layers)>{at::Tensor(detail::call(layer, in...))...});
    });
  }
};
template <class... Arguments>
Sum(Arguments...) -> Sum<typename detail::LayerOf<Arguments>::type...>;

/// Each layer on the same inputs, and the tensors they return joined along a dimension: `Concat{1, Linear(4,
/// 2), Linear(4, 3)}`. A dimension below zero counts from the last.
template <class... Layers>
class Concat : public detail::Combinator<Concat<Layers...>, Layers...> {
 public:
  template <class... Arguments>
    requires detail::makes_layers<std::tuple<Arguments...>, Layers...>
  explicit Concat(std::int64_t dim, Arguments&&... layers)
      : Concat::Combinator("fulmen::nn::Concat", std::forward<Arguments>(layers)...), dim_(dim) {}

  template <class... In>
    requires(...&& detail::TakesAll<detail::LayerType<Layers>, In...>)
  at::Tensor forward(const In&... in) {
    return this->with_layers([&](auto&... layer) {
      return detail::joined(
          std::array<at::Tensor, sizeof...(Layers)>{at::Tensor(detail::call(layer, in...))...}, dim_);
    });
  }
  std::int64_t dim() const { return dim_; }

 private:
  std::int64_t dim_;
};
template <class... Arguments>
Concat(std::int64_t, Arguments...) -> Concat<typename detail::LayerOf<Arguments>::type...>;

/// The sum of its inputs, two or more; they are broadcast.
struct Add : torch::nn::Cloneable<Add> {
  void reset() override {}
  template <std::same_as<at::Tensor>... T>
    requires(sizeof...(T) > 1)
  at::Tensor forward(const T&... parts) {
    return detail::sum_of(std::array<at::Tensor, sizeof...(T)>{parts...});
  }
};

/// The product of its inputs, two or more, element by element; they are broadcast.
struct Multiply : torch::nn::Cloneable<Multiply> {
  void reset() override {}
  template <std::same_as<at::Tensor>... T>
    requires(sizeof...(T) > 1)
  at::Tensor forward(const T&... factors) {
    return detail::product_of(std::array<at::Tensor, sizeof...(T)>{factors...});
  }
};

/// Its inputs joined along a dimension; one below zero counts from the last. Source: torch.cat.
struct Cat : torch::nn::Cloneable<Cat> {
  explicit Cat(std::int64_t along) : dim(along) {}
  void reset() override {}
  template <std::same_as<at::Tensor>... T>
    requires(sizeof...(T) > 0)
  at::Tensor forward(const T&... parts) {
    return detail::joined(std::array<at::Tensor, sizeof...(T)>{parts...}, dim);
  }
  std::int64_t dim;
};

/// Count layers of one type, one after the other; made by repeat<Count>(...). They are called in a loop, so
/// that the time it takes to compile does not depend on their number. A layer must take what it returns.
template <std::size_t Count, detail::Module Layer>
class Repeat : public torch::nn::Module {
  static_assert(Count > 0, "fulmen: a layer must be repeated at least once");

 public:
  /// @throws std::invalid_argument if a layer is a null pointer
  explicit Repeat(std::array<std::shared_ptr<Layer>, Count> layers)
      : torch::nn::Module("fulmen::nn::Repeat"), layers_(std::move(layers)) {
    for (std::size_t i = 0; i < Count; ++i)
      detail::register_layer(*this, detail::layer_name({}, i), layers_[i]);
  }

  template <class... In>
    requires detail::Takes<Layer, In...>
  auto forward(In&&... in) {
    using Value = std::remove_cvref_t<decltype(detail::call(*layers_[0], std::forward<In>(in)...))>;
    static_assert(detail::Takes<Layer, Value> || detail::takes_elements<Layer, Value>,
                  "fulmen: a layer that is repeated must take what it returns");
    Value value = detail::call(*layers_[0], std::forward<In>(in)...);
    for (std::size_t i = 1; i < Count; ++i) {
      if constexpr (detail::Takes<Layer, Value>)
        value = detail::call(*layers_[i], std::move(value));
      else
        value = std::apply([&](const auto&... part) { return detail::call(*layers_[i], part...); }, value);
    }
    return value;
  }
  template <class... In>
  auto operator()(In&&... in) -> decltype(forward(std::forward<In>(in)...)) {
    return forward(std::forward<In>(in)...);
  }

  static constexpr std::size_t size() { return Count; }
  /// @throws std::out_of_range if there is no such layer
  Layer& at(std::size_t index) { return *layers_.at(index); }

  /// Copies the layers too, onto the device if one is given.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<at::Device>& device = std::nullopt) const override {
    auto copy = std::make_shared<Repeat>(*this);
    copy->copy_layers(*this, device);
    return copy;
  }

 private:
  void clone_(torch::nn::Module& other, const std::optional<at::Device>& device) override {
    const auto* same = other.as<Repeat>();
    if (same == nullptr) detail::fail_to_copy(name(), other.name());
    *this = *same;
    copy_layers(*same, device);
  }
  void copy_layers(const Repeat& from, const std::optional<at::Device>& device) {
    detail::Copies copies;
    for (std::size_t i = 0; i < Count; ++i) {
      layers_[i] = std::static_pointer_cast<Layer>(detail::copy_once(*from.layers_[i], device, copies));
      replace_module<torch::nn::Module>(detail::layer_name({}, i), layers_[i]);
    }
  }

  std::array<std::shared_ptr<Layer>, Count> layers_;
};

namespace detail {
template <class T>
inline constexpr bool is_shared_module = false;
template <Module M>
inline constexpr bool is_shared_module<std::shared_ptr<M>> = true;
/// Something that a layer is kept of, and not a function that makes one.
template <class T>
concept GivesLayer =
    Module<T> || std::is_base_of_v<torch::detail::ModuleHolderIndicator, T> || is_shared_module<T>;
}  // namespace detail

/// Count layers of one type, one after the other, registered as "0", "1", ...
///
///     repeat<6>([] { return Residual{Linear(64, 64), ReLU()}; })        // each made anew; may take the
///     index repeat<6>(Linear(64, 64))                                          // a layer and copies of it,
///     which begin with its values
///
/// @throws std::invalid_argument if the layer is a null pointer
template <std::size_t Count, class LayerOrMaker>
auto repeat(LayerOrMaker&& from) {
  using From = std::decay_t<LayerOrMaker>;
  if constexpr (detail::GivesLayer<From>) {
    using Layer = typename detail::LayerOf<From>::type;
    std::array<std::shared_ptr<Layer>, Count> layers{detail::keep<Layer>(std::forward<LayerOrMaker>(from))};
    for (std::size_t i = 1; i < Count && layers[0]; ++i)
      layers[i] = std::static_pointer_cast<Layer>(layers[0]->clone());
    return Repeat<Count, Layer>(std::move(layers));
  } else {
    const auto make = [&]([[maybe_unused]] std::size_t i) {
      if constexpr (std::invocable<From&, std::size_t>) {
        return from(i);
      } else {
        static_assert(
            std::invocable<From&>,
            "fulmen: repeat takes a layer, or a function that makes one, given its index or nothing");
        return from();
      }
    };
    using Made = decltype(make(0));
    static_assert(detail::GivesLayer<Made>,
                  "fulmen: what a function given to repeat returns must be a module");
    using Layer = typename detail::LayerOf<Made>::type;
    std::array<std::shared_ptr<Layer>, Count> layers;
    for (std::size_t i = 0; i < Count; ++i) layers[i] = detail::keep<Layer>(make(i));
    return Repeat<Count, Layer>(std::move(layers));
  }
}

namespace detail {

/// The shape and type that a gradient has to have.
struct Shape {
  c10::SmallVector<std::int64_t, 5> sizes;
  at::ScalarType type{};

  void note(const at::Tensor& t) {
    sizes.assign(t.sizes().begin(), t.sizes().end());
    type = t.scalar_type();
  }
  bool fits(const at::Tensor& t) const { return t.sizes().equals(sizes) && t.scalar_type() == type; }
};

/// A gradient as it is, or for a tensor that was broadcast or converted, its sum. @param own where a sum is
/// kept
Buffer* fitted(Workspace& workspace, Buffer& own, Buffer* gradient, const Shape& shape);

/// Whether a gradient that a rule has given may be written into: it has memory of its own, not of the
/// gradients that came in.
bool apart(const Buffer& found, std::span<Buffer* const> given);

/// A sum of buffers, which is written into one of them where nobody else needs that.
struct Total {
  Buffer* buffer = nullptr;
  bool ours = false;      ///< it may be written into
  bool borrowed = false;  ///< somebody else releases it

  /// @param part is released if the sum is elsewhere @param spare for the sum if both are needed by others
  void add(Workspace& workspace, Buffer& part, bool part_is_ours, Buffer& spare);
  /// Puts it into memory of its own.
  void copy(Workspace& workspace, Buffer& own);
};

Buffer& add_all(Workspace& workspace, std::span<Buffer* const> parts, bool overwrite, Buffer& output);
/// @param partial the products of the first 2, 3, ... factors are kept there, but for that of all
Buffer& multiply_all(Workspace& workspace, std::span<Buffer* const> factors, std::span<Buffer> partial,
                     Buffer& output);
void multiply_backward(Workspace& workspace, std::span<Buffer* const> factors, std::span<Buffer> partial,
                       std::span<Buffer> gradients, Buffer& given, bool overwrite);

/// Tensors joined along a dimension, and a gradient parted again.
struct Join {
  Buffer output;
  std::vector<Shape> shapes;

  Buffer& join(Workspace& workspace, std::span<Buffer* const> parts, std::int64_t dim);
  void part(Workspace& workspace, const Buffer& gradient, std::span<Buffer> slices, std::int64_t dim) const;
};

template <std::size_t Count>
std::array<Buffer*, Count> pointers(std::array<Buffer, Count>& buffers) {
  std::array<Buffer*, Count> out;
  for (std::size_t i = 0; i < Count; ++i) out[i] = &buffers[i];
  return out;
}

/// One of several layers side by side. It holds what it saves itself, since what the others need is released
/// at other times.
template <class L, std::size_t N>
struct Fork {
  using R = Rule<L, N>;
  static constexpr std::size_t outputs = output_count<R>();

  typename R::Kept kept{};
  std::array<Buffer, R::saves_input ? N : 0> inputs{};
  std::array<Buffer, R::saves_output ? outputs : 0> given_out{};
  std::array<Buffer*, outputs> saved{}, results{};
  bool trained = false, has_backward = false;

  void prepare(L& layer) {
    trained = is_trained(layer);
    rule_prepare<R>(layer, kept);
  }

  void forward(L& layer, std::span<Buffer* const> in, Workspace& workspace, bool may_overwrite,
               bool backward_follows, bool wants_input) {
    has_backward = backward_follows && (wants_input || trained);
    ForwardPass<N> pass{{}, workspace, may_overwrite, has_backward, wants_input};
    std::copy(in.begin(), in.end(), pass.inputs.begin());
    if (has_backward) {
      for (std::size_t i = 0; i < inputs.size(); ++i) workspace.alias(*(pass.inputs[i] = &inputs[i]), *in[i]);
    }
    saved = results = rule_forward<R>(layer, kept, pass);
    if (has_backward) {
      for (std::size_t i = 0; i < given_out.size(); ++i)
        workspace.alias(*(results[i] = &given_out[i]), *saved[i]);
    }
  }

  /// Whether the results may be overwritten.
  bool gives_results_away() const { return owns_output<R>() && !(R::saves_output && has_backward); }

  /// Whether a gradient that backward has given may be written into.
  static bool owns(const Buffer& found, std::span<Buffer* const> given) {
    return !uses_foreign_memory<R>() && apart(found, given);
  }

  /// The gradients of the inputs: null pointers where there are none.
  std::array<Buffer*, N> backward(L& layer, std::span<Buffer* const> gradients, Workspace& workspace,
                                  bool wants_input, bool may_overwrite) {
    std::array<Buffer*, N> found{};
    if (!has_backward) return found;
    if (std::any_of(gradients.begin(), gradients.end(), [](Buffer* b) { return b != nullptr; })) {
      BackwardPass<N, outputs> pass{{}, {}, {}, workspace, wants_input, may_overwrite};
      if constexpr (R::saves_input) pass.inputs = pointers(inputs);
      if constexpr (R::saves_output) pass.outputs = saved;
      std::copy(gradients.begin(), gradients.end(), pass.gradients.begin());
      found = rule_backward<R>(layer, kept, pass);
      if (!wants_input) found.fill(nullptr);
    }
    for (Buffer& buffer : inputs) workspace.release(buffer);
    if constexpr (R::saves_output) release_flow(workspace, saved, outputs);
    return found;
  }
};

template <std::size_t Index, class F>
F& fork_at(Link<Index, F>& link) {
  return link.kept;
}

/// Several layers side by side: all on the same N inputs, or (EachItsOwn) the i-th on the i-th of them.
template <bool EachItsOwn, std::size_t N, class... L>
struct Forks {
  static constexpr std::size_t count = sizeof...(L), inputs = EachItsOwn ? 1 : N;
  static_assert(!EachItsOwn || N == count,
                "fulmen: a Parallel must be called with as many inputs as it has layers");
  using Indices = std::make_index_sequence<count>;

  static constexpr std::array<std::size_t, count> widths{output_count<Rule<L, inputs>>()...};
  static constexpr std::size_t outputs = (output_count<Rule<L, inputs>>() + ...);
  static constexpr bool one_output_each = (... && (output_count<Rule<L, inputs>>() == 1));
  // What is saved is also held by the fork itself, so no layer behind may overwrite it.
  static constexpr bool owns_output =
      (... && (nn::detail::owns_output<Rule<L, inputs>>() && !Rule<L, inputs>::saves_output));
  static constexpr bool foreign_memory = (... || uses_foreign_memory<Rule<L, inputs>>());
  static constexpr RuleCount rule_count{(count_rules<Rule<L, inputs>>().rules + ...),
                                        (count_rules<Rule<L, inputs>>().by_autograd + ...)};
  static constexpr std::size_t first_output(std::size_t index) {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < index; ++i) sum += widths[i];
    return sum;
  }

  Links<Indices, Fork<L, inputs>...> links;
  std::array<Buffer, N> sums;

  template <class Chain>
  void prepare(Chain& layers) {
    each([&]<std::size_t I>(std::integral_constant<std::size_t, I>) {
      fork_at<I>(links).prepare(layers.template get<I>());
    });
  }

  /// @param done called with each fork's index and itself, after its forward
  template <class Chain, class Done>
  void forward(Chain& layers, const ForwardPass<N>& pass, Done&& done) {
    each([&]<std::size_t I>(std::integral_constant<std::size_t, I>) {
      auto& fork = fork_at<I>(links);
      fork.forward(layers.template get<I>(), std::span(pass.inputs).subspan(EachItsOwn ? I : 0, inputs),
                   pass.workspace, EachItsOwn && pass.may_overwrite, pass.has_backward, pass.wants_input);
      done(I, fork);
    });
  }

  /// In reverse, so that sums are added up in autograd's order.
  /// @param gradients_of gives a fork's gradients, for its index @param may_overwrite whether nobody else,
  /// nor another fork, needs them
  template <class Chain, class GradientsOf>
  std::array<Buffer*, N> backward(Chain& layers, Workspace& workspace, bool wants_input, bool may_overwrite,
                                  GradientsOf&& gradients_of) {
    std::array<Total, N> totals{};
    each([&]<std::size_t J>(std::integral_constant<std::size_t, J>) {
      constexpr std::size_t I = count - 1 - J;
      const std::span<Buffer* const> given = gradients_of(I);
      const auto found =
          fork_at<I>(links).backward(layers.template get<I>(), given, workspace, wants_input, may_overwrite);
      for (std::size_t i = 0; i < inputs; ++i) {
        if (found[i] == nullptr) continue;
        if (EachItsOwn)
          totals[I].buffer = found[i];
        else
          totals[i].add(workspace, *found[i], fork_at<I>(links).owns(*found[i], given), sums[i]);
      }
    });
    std::array<Buffer*, N> out;
    for (std::size_t i = 0; i < N; ++i) {
      Total& total = totals[i];
      // The view that one of them has given, and no other gave anything.
      if (!EachItsOwn && total.buffer != nullptr && !total.ours && !may_overwrite)
        total.copy(workspace, sums[i]);
      out[i] = total.buffer;
    }
    return out;
  }

 private:
  template <class F>
  static void each(F&& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) { (f(std::integral_constant<std::size_t, I>{}), ...); }
    (Indices{});
  }
};

/// The rule of Branch and Parallel.
template <class C, class Forks, std::size_t N>
struct SplitRule {
  static constexpr bool saves_input = false, saves_output = false, owns_output = Forks::owns_output,
                        foreign_memory = Forks::foreign_memory;
  static constexpr std::size_t outputs = Forks::outputs;
  static constexpr RuleCount rule_count = Forks::rule_count;
  struct Kept {
    Forks forks;
  };

  static void prepare(C& layer, Kept& kept) { kept.forks.prepare(layer.layers()); }
  static std::array<Buffer*, outputs> forward(C& layer, Kept& kept, const ForwardPass<N>& pass) {
    std::array<Buffer*, outputs> out;
    kept.forks.forward(layer.layers(), pass, [&](std::size_t i, const auto& fork) {
      std::copy(fork.results.begin(), fork.results.end(),
                out.begin() + static_cast<std::ptrdiff_t>(Forks::first_output(i)));
    });
    return out;
  }
  static std::array<Buffer*, N> backward(C& layer, Kept& kept, const BackwardPass<N, outputs>& pass) {
    return kept.forks.backward(
        layer.layers(), pass.workspace, pass.wants_input, pass.may_overwrite, [&](std::size_t i) {
          return std::span<Buffer* const>(pass.gradients).subspan(Forks::first_output(i), Forks::widths[i]);
        });
  }
};

}  // namespace detail

template <class... Layers>
inline constexpr bool is_composite<Residual<Layers...>> = true;
template <class... Layers>
inline constexpr bool is_composite<Branch<Layers...>> = true;
template <class... Layers>
inline constexpr bool is_composite<Parallel<Layers...>> = true;
template <class... Layers>
inline constexpr bool is_composite<Sum<Layers...>> = true;
template <class... Layers>
inline constexpr bool is_composite<Concat<Layers...>> = true;
template <std::size_t Count, class Layer>
inline constexpr bool is_composite<Repeat<Count, Layer>> = true;

template <class... Layers, std::size_t N>
struct Rule<Branch<Layers...>, N>
    : detail::SplitRule<Branch<Layers...>, detail::Forks<false, N, detail::LayerType<Layers>...>, N> {};

template <class... Layers, std::size_t N>
struct Rule<Parallel<Layers...>, N>
    : detail::SplitRule<Parallel<Layers...>, detail::Forks<true, N, detail::LayerType<Layers>...>, N> {};

/// Residual: the sum goes where f's result is, if nobody needs that.
template <class... Layers>
struct Rule<Residual<Layers...>, 1> {
 private:
  using Inner = detail::Fork<Sequential<Layers...>, 1>;

 public:
  static_assert(Inner::outputs == 1, "fulmen: the layers of a Residual must give one tensor");
  static constexpr bool saves_input = false, saves_output = false;
  static constexpr detail::RuleCount rule_count = detail::count_rules<typename Inner::R>();
  struct Kept {
    Inner inner;
    Buffer sum, gradient, input_part, inner_part;
    detail::Shape input, result;
  };

  static void prepare(Residual<Layers...>& layer, Kept& kept) { kept.inner.prepare(layer.layers()); }
  static Buffer& forward(Residual<Layers...>& layer, Kept& kept, const ForwardPass<>& pass) {
    kept.inner.forward(layer.layers(), pass.inputs, pass.workspace, false, pass.has_backward,
                       pass.wants_input);
    kept.input.note(pass.x());
    kept.result.note(**kept.inner.results[0]);
    detail::Total total{pass.inputs[0], false, true};
    total.add(pass.workspace, *kept.inner.results[0], kept.inner.gives_results_away(), kept.sum);
    return *total.buffer;
  }
  static Buffer* backward(Residual<Layers...>& layer, Kept& kept, const BackwardPass<>& pass) {
    Workspace& workspace = pass.workspace;
    Buffer* const given = pass.gradients[0];
    const std::array<Buffer*, 1> inner_given{detail::fitted(workspace, kept.inner_part, given, kept.result)};
    const auto found = kept.inner.backward(layer.layers(), inner_given, workspace, pass.wants_input, false);
    workspace.release(kept.inner_part);
    if (!pass.wants_input) return nullptr;
    Buffer* const direct = detail::fitted(workspace, kept.input_part, given, kept.input);
    detail::Total total{direct, false, true};
    if (found[0] == nullptr)
      total.copy(workspace, kept.gradient);
    else
      total.add(workspace, *found[0],
                Inner::owns(*found[0], inner_given) && detail::apart(*found[0], pass.gradients),
                kept.gradient);
    workspace.release(kept.input_part);
    return total.buffer;
  }
};

/// Sum: the results are added up as they come.
template <class... Layers, std::size_t N>
struct Rule<Sum<Layers...>, N> {
 private:
  using Forks = detail::Forks<false, N, detail::LayerType<Layers>...>;

 public:
  static_assert(Forks::one_output_each, "fulmen: each layer of a Sum must give one tensor");
  static constexpr bool saves_input = false, saves_output = false, foreign_memory = Forks::foreign_memory;
  static constexpr detail::RuleCount rule_count = Forks::rule_count;
  struct Kept {
    Forks forks;
    Buffer sum;
    std::array<Buffer, sizeof...(Layers)> parts;
    std::array<detail::Shape, sizeof...(Layers)> shapes;
    std::array<Buffer*, 1> given;
  };

  static void prepare(Sum<Layers...>& layer, Kept& kept) { kept.forks.prepare(layer.layers()); }
  static Buffer& forward(Sum<Layers...>& layer, Kept& kept, const ForwardPass<N>& pass) {
    detail::Total total;
    kept.forks.forward(layer.layers(), pass, [&](std::size_t i, const auto& fork) {
      kept.shapes[i].note(**fork.results[0]);
      total.add(pass.workspace, *fork.results[0], fork.gives_results_away(), kept.sum);
    });
    return *total.buffer;
  }
  static std::array<Buffer*, N> backward(Sum<Layers...>& layer, Kept& kept, const BackwardPass<N, 1>& pass) {
    const auto out =
        kept.forks.backward(layer.layers(), pass.workspace, pass.wants_input, false, [&](std::size_t i) {
          kept.given = {detail::fitted(pass.workspace, kept.parts[i], pass.gradients[0], kept.shapes[i])};
          return std::span<Buffer* const>(kept.given);
        });
    for (Buffer& part : kept.parts) pass.workspace.release(part);
    return out;
  }
};

/// Concat: each layer is given its part of the gradient as a view.
template <class... Layers, std::size_t N>
struct Rule<Concat<Layers...>, N> {
 private:
  using Forks = detail::Forks<false, N, detail::LayerType<Layers>...>;

 public:
  static_assert(Forks::one_output_each, "fulmen: each layer of a Concat must give one tensor");
  static constexpr bool saves_input = false, saves_output = false, foreign_memory = Forks::foreign_memory;
  static constexpr detail::RuleCount rule_count = Forks::rule_count;
  struct Kept {
    Forks forks;
    detail::Join join;
    std::array<Buffer, sizeof...(Layers)> slices;
    std::array<Buffer*, sizeof...(Layers)> parts;
  };

  static void prepare(Concat<Layers...>& layer, Kept& kept) { kept.forks.prepare(layer.layers()); }
  static Buffer& forward(Concat<Layers...>& layer, Kept& kept, const ForwardPass<N>& pass) {
    kept.forks.forward(layer.layers(), pass,
                       [&](std::size_t i, const auto& fork) { kept.parts[i] = fork.results[0]; });
    kept.join.join(pass.workspace, kept.parts, layer.dim());
    for (Buffer* part : kept.parts) pass.workspace.release(*part);
    return kept.join.output;
  }
  static std::array<Buffer*, N> backward(Concat<Layers...>& layer, Kept& kept,
                                         const BackwardPass<N, 1>& pass) {
    kept.join.part(pass.workspace, *pass.gradients[0], kept.slices, layer.dim());
    kept.parts = detail::pointers(kept.slices);
    const auto out = kept.forks.backward(
        layer.layers(), pass.workspace, pass.wants_input, pass.may_overwrite,
        [&](std::size_t i) { return std::span<Buffer* const>(kept.parts).subspan(i, 1); });
    for (Buffer& slice : kept.slices) pass.workspace.release(slice);
    return out;
  }
};

template <std::size_t N>
struct Rule<Add, N> {
  static_assert(N > 1, "fulmen: Add needs at least two inputs");
  struct Kept {
    Buffer output;
    std::array<Buffer, N> gradients;
    std::array<detail::Shape, N> shapes;
  };
  static constexpr bool saves_input = false, saves_output = false, in_place = true;
  static constexpr std::size_t outputs = 1;

  static std::array<Buffer*, 1> forward(Add&, Kept& kept, const ForwardPass<N>& pass) {
    for (std::size_t i = 0; i < N; ++i) kept.shapes[i].note(pass.x(i));
    return {&detail::add_all(pass.workspace, pass.inputs, pass.may_overwrite, kept.output)};
  }
  static std::array<Buffer*, N> backward(Add&, Kept& kept, const BackwardPass<N, 1>& pass) {
    for (std::size_t i = 0; i < N; ++i) {
      if (detail::fitted(pass.workspace, kept.gradients[i], pass.gradients[0], kept.shapes[i]) ==
          pass.gradients[0])
        pass.workspace.alias(kept.gradients[i], *pass.gradients[0]);
    }
    return detail::pointers(kept.gradients);
  }
};

template <std::size_t N>
struct Rule<Multiply, N> {
  static_assert(N > 1, "fulmen: Multiply needs at least two inputs");
  struct Kept {
    Buffer output;
    std::array<Buffer, N - 2> partial;
    std::array<Buffer, N> gradients;
  };
  static constexpr bool saves_input = true, saves_output = false;
  static constexpr std::size_t outputs = 1;

  static std::array<Buffer*, 1> forward(Multiply&, Kept& kept, const ForwardPass<N>& pass) {
    Buffer& output = detail::multiply_all(pass.workspace, pass.inputs, kept.partial, kept.output);
    if (!pass.has_backward) release(pass.workspace, kept);
    return {&output};
  }
  static std::array<Buffer*, N> backward(Multiply&, Kept& kept, const BackwardPass<N, 1>& pass) {
    if (pass.wants_input)
      detail::multiply_backward(pass.workspace, pass.inputs, kept.partial, kept.gradients, *pass.gradients[0],
                                pass.may_overwrite);
    release(pass.workspace, kept);
    return detail::pointers(kept.gradients);
  }

 private:
  static void release(Workspace& workspace, Kept& kept) {
    for (Buffer& product : kept.partial) workspace.release(product);
  }
};

template <std::size_t N>
struct Rule<Cat, N> {
  struct Kept {
    detail::Join join;
    std::array<Buffer, N> slices;
  };
  static constexpr bool saves_input = false, saves_output = false, owns_output = N > 1;
  static constexpr std::size_t outputs = 1;

  static std::array<Buffer*, 1> forward(Cat& layer, Kept& kept, const ForwardPass<N>& pass) {
    return {&kept.join.join(pass.workspace, pass.inputs, layer.dim)};
  }
  static std::array<Buffer*, N> backward(Cat& layer, Kept& kept, const BackwardPass<N, 1>& pass) {
    kept.join.part(pass.workspace, *pass.gradients[0], kept.slices, layer.dim);
    return detail::pointers(kept.slices);
  }
};

/// Repeat: a chain's walk, in a loop.
template <std::size_t Count, class Layer, std::size_t N>
struct Rule<Repeat<Count, Layer>, N> {
 private:
  using R = Rule<Layer, N>;
  using Walk = detail::ChainWalk<N>;
  static constexpr auto traits = [] {
    std::array<detail::LinkTraits, Count> out;
    out.fill({R::saves_input, R::saves_output, detail::runs_in_place<R>(), detail::owns_output<R>(),
              detail::uses_foreign_memory<R>(), N, N});
    return out;
  }();

 public:
  static_assert(detail::output_count<R>() == N, "fulmen: a layer that is repeated must take what it returns");
  static constexpr bool saves_input = R::saves_input, saves_output = R::saves_output,
                        in_place = traits[0].in_place, owns_output = traits[0].owns_output,
                        foreign_memory = traits[0].foreign_memory;
  static constexpr std::size_t outputs = N;
  static constexpr detail::RuleCount rule_count{Count * detail::count_rules<R>().rules,
                                                Count* detail::count_rules<R>().by_autograd};

  struct Kept {
    std::array<typename R::Kept, Count> layers{};
    detail::Needs<Count> needs;
    std::array<detail::Flow<N>, Count + 1> flow{};
  };

  static void prepare(Repeat<Count, Layer>& layer, Kept& kept) {
    for (std::size_t i = 0; i < Count; ++i) {
      kept.needs.trained[i] = detail::is_trained(layer.at(i));
      detail::rule_prepare<R>(layer.at(i), kept.layers[i]);
    }
  }

  static std::array<Buffer*, N> forward(Repeat<Count, Layer>& layer, Kept& kept, const ForwardPass<N>& pass) {
    if (pass.has_backward)
      kept.needs.follow(pass.wants_input);
    else
      kept.needs.backward.fill(false);
    kept.flow[0] = pass.inputs;
    Walk walk = walk_of(kept, pass.workspace, 0, pass.may_overwrite);
    for (std::size_t i = 0; i < Count; ++i) walk.template forward<N>(layer.at(i), kept.layers[i]);
    return kept.flow[Count];
  }

  static std::array<Buffer*, N> backward(Repeat<Count, Layer>& layer, Kept& kept,
                                         const BackwardPass<N, N>& pass) {
    Walk walk = walk_of(kept, pass.workspace, Count, pass.may_overwrite);
    walk.gradients = pass.gradients;
    for (std::size_t i = Count; i-- > 0;) walk.template backward_of<N>(layer.at(i), kept.layers[i]);
    return walk.gradients;
  }

 private:
  static Walk walk_of(Kept& kept, Workspace& workspace, std::size_t at, bool may_overwrite) {
    return {workspace,
            traits.data(),
            kept.needs.backward.data(),
            kept.needs.input.data(),
            kept.flow.data(),
            Count,
            at,
            may_overwrite};
  }
};

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE void adopt_children(torch::nn::Module& parent, const torch::nn::Module& from) {
  const auto present = parent.named_children();
  for (const auto& child : from.named_children()) {
    if (present.contains(child.key()))
      parent.replace_module<torch::nn::Module>(child.key(), child.value());
    else
      parent.register_module(child.key(), child.value());
  }
}

FULMEN_INLINE void fail_to_copy(const std::string& name, const std::string& other) {
  fail<std::invalid_argument>("{}: cannot become a copy of {}, expected one of the same layers", name, other);
}

FULMEN_INLINE at::Tensor sum_of(std::span<const at::Tensor> parts) {
  at::Tensor sum = parts[0];
  for (const at::Tensor& part : parts.subspan(1)) sum = at::add(sum, part);
  return sum;
}
FULMEN_INLINE at::Tensor product_of(std::span<const at::Tensor> factors) {
  at::Tensor product = factors[0];
  for (const at::Tensor& factor : factors.subspan(1)) product = at::mul(product, factor);
  return product;
}
FULMEN_INLINE at::Tensor joined(at::ArrayRef<at::Tensor> parts, std::int64_t dim) {
  return at::cat(parts, dim);
}

inline bool alike(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes().equals(b.sizes()) && a.dtype() == b.dtype();
}
inline bool all_alike(std::span<Buffer* const> buffers) {
  for (Buffer* buffer : buffers.subspan(1)) {
    if (!alike(**buffers[0], **buffer)) return false;
  }
  return true;
}
inline void add_to(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (out.is_cpu()) [[likely]]
    at::cpu::add_out(out, a, b);
  else
    at::add_out(out, a, b);
}
inline void multiply_to(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (out.is_cpu()) [[likely]]
    at::cpu::mul_out(out, a, b);
  else
    at::mul_out(out, a, b);
}
inline at::Tensor reduced(const at::Tensor& gradient, at::IntArrayRef sizes, at::ScalarType type) {
  return at::sum_to(gradient, sizes, /*always_return_non_view=*/true).to(type);
}

FULMEN_INLINE Buffer* fitted(Workspace& workspace, Buffer& own, Buffer* gradient, const Shape& shape) {
  if (gradient == nullptr || shape.fits(**gradient)) [[likely]]
    return gradient;
  workspace.hold(own, reduced(**gradient, shape.sizes, shape.type));
  return &own;
}

inline std::pair<const std::byte*, const std::byte*> span_of(const at::Tensor& t) {
  const auto* const begin = static_cast<const std::byte*>(t.const_data_ptr());
  std::int64_t last = 0;
  for (std::int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return {begin, begin + (last + 1) * static_cast<std::int64_t>(t.element_size())};
}
FULMEN_INLINE bool apart(const Buffer& found, std::span<Buffer* const> given) {
  if (found->numel() == 0) return true;
  // All of a step may be in one storage, so that its identity says nothing.
  const auto [begin, end] = span_of(*found);
  for (const Buffer* gradient : given) {
    if (gradient == nullptr || (*gradient)->numel() == 0) continue;
    const auto [from, to] = span_of(**gradient);
    if (begin < to && from < end) return false;
  }
  return found->is_non_overlapping_and_dense();
}

FULMEN_INLINE void Total::add(Workspace& workspace, Buffer& part, bool part_is_ours, Buffer& spare) {
  if (buffer == nullptr) {
    buffer = &part;
    ours = part_is_ours;
    return;
  }
  const at::Tensor a = **buffer, b = *part;
  at::Tensor out;
  Buffer* to = &spare;
  if (!alike(a, b))
    workspace.hold(spare, at::add(a, b));
  else if (ours)
    out = a, to = buffer;
  else if (part_is_ours)
    out = b, to = &part;
  else
    out = workspace.take(spare, a.sizes(), a);
  if (out.defined()) add_to(out, a, b);
  if (to != buffer && !borrowed && buffer != &spare) workspace.release(*buffer);
  if (to != &part) workspace.release(part);
  *this = {to, true, false};
}

FULMEN_INLINE void Total::copy(Workspace& workspace, Buffer& own) {
  workspace.take(own, (*buffer)->sizes(), **buffer).copy_(**buffer);
  if (!borrowed) workspace.release(*buffer);
  *this = {&own, true, false};
}

FULMEN_INLINE Buffer& add_all(Workspace& workspace, std::span<Buffer* const> parts, bool overwrite,
                              Buffer& output) {
  const at::Tensor& first = **parts[0];
  if (!all_alike(parts)) {
    at::Tensor sum = first;
    for (Buffer* part : parts.subspan(1)) sum = at::add(sum, **part);
    workspace.hold(output, std::move(sum));
    return output;
  }
  at::Tensor& sum =
      overwrite ? workspace.alias(output, *parts[0]) : workspace.take(output, first.sizes(), first);
  add_to(sum, first, **parts[1]);
  for (Buffer* part : parts.subspan(2)) add_to(sum, sum, **part);
  return output;
}

FULMEN_INLINE Buffer& multiply_all(Workspace& workspace, std::span<Buffer* const> factors,
                                   std::span<Buffer> partial, Buffer& output) {
  const bool alike = all_alike(factors);
  const Buffer* product = factors[0];
  for (std::size_t i = 1; i < factors.size(); ++i) {
    Buffer& next = i + 1 < factors.size() ? partial[i - 1] : output;
    if (alike)
      multiply_to(workspace.take(next, (*product)->sizes(), **product), **product, **factors[i]);
    else
      workspace.hold(next, at::mul(**product, **factors[i]));
    product = &next;
  }
  return output;
}

FULMEN_INLINE void multiply_backward(Workspace& workspace, std::span<Buffer* const> factors,
                                     std::span<Buffer> partial, std::span<Buffer> gradients, Buffer& given,
                                     bool overwrite) {
  const bool alike = all_alike(factors) && detail::alike(*given, **factors[0]);
  Buffer* g = &given;
  for (std::size_t i = factors.size(); i-- > 1;) {
    const Buffer& before = i > 1 ? partial[i - 2] : *factors[0];
    if (alike) {
      multiply_to(workspace.take(gradients[i], before->sizes(), *before), **g, *before);
      at::Tensor rest;
      if (g != &given)
        rest = **g;
      else if (overwrite)
        rest = workspace.alias(gradients[0], given);
      else
        rest = workspace.take(gradients[0], given->sizes(), *given);
      multiply_to(rest, **g, **factors[i]);
    } else {
      workspace.hold(gradients[i],
                     reduced(at::mul(**g, *before), (*factors[i])->sizes(), (*factors[i])->scalar_type()));
      workspace.hold(gradients[0],
                     reduced(at::mul(**g, **factors[i]), before->sizes(), before->scalar_type()));
    }
    g = &gradients[0];
  }
}

FULMEN_INLINE Buffer& Join::join(Workspace& workspace, std::span<Buffer* const> parts, std::int64_t dim) {
  shapes.resize(parts.size());
  c10::SmallVector<at::Tensor, 4> tensors;
  const at::Tensor& first = **parts[0];
  c10::SmallVector<std::int64_t, 5> sizes(first.sizes().begin(), first.sizes().end());
  const std::int64_t along = dim < 0 ? dim + first.dim() : dim;
  bool plain = along >= 0 && along < first.dim();
  std::int64_t length = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const at::Tensor& part = **parts[i];
    shapes[i].note(part);
    tensors.push_back(part);
    plain = plain && part.dim() == first.dim() && part.dtype() == first.dtype();
    for (std::int64_t d = 0; plain && d < first.dim(); ++d)
      plain = d == along || part.size(d) == first.size(d);
    if (plain) length += part.size(along);
  }
  if (!plain || !first.is_cpu()) {  // of several types, or an error
    workspace.hold(output, at::cat(tensors, dim));
    return output;
  }
  sizes[static_cast<std::size_t>(along)] = length;
  at::cpu::cat_out(workspace.take(output, sizes, first), at::ArrayRef<at::Tensor>(tensors), along);
  return output;
}

FULMEN_INLINE void Join::part(Workspace& workspace, const Buffer& gradient, std::span<Buffer> slices,
                              std::int64_t dim) const {
  const std::int64_t along = dim < 0 ? dim + gradient->dim() : dim;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const Shape& shape = shapes[i];
    if (static_cast<std::int64_t>(shape.sizes.size()) !=
        gradient->dim()) {  // at::cat skips what has the shape {0}
      workspace.hold(slices[i], at::zeros(shape.sizes, gradient->options().dtype(shape.type)));
      continue;
    }
    const std::int64_t length = shape.sizes[static_cast<std::size_t>(along)];
    workspace.view(slices[i], gradient,
                   [&](const at::Tensor& t) { return t.narrow(along, begin, length).to(shape.type); });
    begin += length;
  }
}

}  // namespace detail
#endif

}  // namespace fulmen::nn
