// What a layer's forward and backward are where no graph is recorded: Rule<Layer>, and how a layer of one's
// own gets one.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/nn/workspace.hpp>
#include <fulmen/optim/flat_memory.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/nn/module.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#if FULMEN_BODIES
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>
#endif

namespace fulmen::nn {

/// What a rule's forward is given besides its layer and what it keeps. N inputs.
template <std::size_t N = 1>
struct ForwardPass {
  std::array<Buffer*, N> inputs;
  Workspace& workspace;
  bool may_overwrite = false;  ///< whether nobody else needs the inputs' memory
  bool has_backward = true;    ///< whether a backward pass follows: a frozen layer may have none
  bool wants_input = true;     ///< whether that has to give the gradients of the inputs

  const at::Tensor& x(std::size_t i = 0) const { return **inputs[i]; }
};

/// What a rule's backward is given. The gradient of an output is a null pointer where nothing depends on that
/// output.
template <std::size_t N = 1, std::size_t M = 1>
struct BackwardPass {
  std::array<Buffer*, N> inputs;     ///< null pointers unless the rule says saves_input
  std::array<Buffer*, M> outputs;    ///< null pointers unless the rule says saves_output
  std::array<Buffer*, M> gradients;  ///< of the outputs
  Workspace& workspace;
  bool wants_input;    ///< whether the gradients of the inputs are needed
  bool may_overwrite;  ///< whether nobody else needs the gradients' memory

  const at::Tensor& x(std::size_t i = 0) const { return **inputs[i]; }
  const at::Tensor& y(std::size_t i = 0) const { return **outputs[i]; }
  const at::Tensor& grad(std::size_t i = 0) const { return **gradients[i]; }
};

/// The rule of a layer of type L that is called with N tensors. A specialization has
///
///     struct Kept;                                what is kept from forward to backward, and from step to
///     step: Buffers static constexpr bool saves_input, saves_output;   what backward needs of them static
///     Buffer& forward(L&, Kept&, const ForwardPass<N>&); static Buffer* backward(L&, Kept&, const
///     BackwardPass<N>&);    the gradient of the input; any pointer if !wants_input
///
/// and may have
///
///     static constexpr bool in_place = true;      forward may write into its input, if
///     ForwardPass::may_overwrite static constexpr bool owns_output = false;  the output may be memory of the
///     input, and the gradient of the input memory of the
///                                                 output's gradient: a view
///     static constexpr bool foreign_memory = true;   they may be anybody's
///     static constexpr std::size_t outputs = M;   forward returns std::array<Buffer*, M>, backward
///     std::array<Buffer*, N> static void prepare(L&, Kept&);             called when it may have changed
///     which parameters are trained
///
/// Both run below autograd. Gradients of parameters go to add_gradient() or gradient_of(). The primary
/// template is the rule of layers of one's own: see OwnBackward and ByAutograd.
template <class L, std::size_t N = 1>
struct Rule;

namespace detail {

template <class T>
concept IsModule = std::derived_from<T, torch::nn::Module>;

template <class L>
struct CallLayer {
  template <class... In>
    requires(!IsModule<L> && std::invocable<L&, In...>)
  static decltype(auto) call(L& layer, In&&... in) { return layer(std::forward<In>(in)...); }
  template <class... In>
    requires requires(L& layer, In&&... in) { layer.forward(std::forward<In>(in)...); }
  static decltype(auto) call(L& layer, In&&... in) { return layer.forward(std::forward<In>(in)...); }
};

/// f(element 0, element 1, ...) of what `get(i)` gives.
template <std::size_t N, class Get, class F>
decltype(auto) apply_n(Get&& get, F&& f) {
  return [&]<std::size_t... I>(std::index_sequence<I...>)->decltype(auto) { return f(get(I)...); }
  (std::make_index_sequence<N>{});
}

template <class L, class Indices>
inline constexpr bool has_backward_of = false;
/// backward(inputs..., output, gradient) -> the gradient of the input, or a std::array or std::tuple of them
template <class L, std::size_t... I>
inline constexpr bool has_backward_of<L, std::index_sequence<I...>> = requires(L& layer,
                                                                               const at::Tensor& t) {
  layer.backward((static_cast<void>(I), t)..., t, t);
};

/// Whether any parameter of it is trained; a callable has none.
bool any_trained(const torch::nn::Module& module);
template <class L>
bool is_trained(const L& layer) {
  if constexpr (IsModule<L>)
    return any_trained(layer);
  else
    return false;
}

}  // namespace detail

/// A layer that has backward(inputs..., output, gradient) besides forward(inputs...).
template <class L, std::size_t N = 1>
concept HasBackward = detail::has_backward_of<L, std::make_index_sequence<N>>;

/// Whether there is a rule for it other than to have autograd serve it.
template <class L, std::size_t N = 1>
concept HasRule = !requires {
  requires Rule<L, N>::by_autograd;
};

/// Where the gradient of a parameter is to go: its .grad. Kept from step to step, so that no memory is
/// allocated.
///
///     const Gradient g = gradient_of(layer.weight, kept.weight_grad);
///     if (g.fresh) at::mm_out(g.tensor, a, b); else g.tensor.addmm_(a, b);
struct Gradient {
  at::Tensor& tensor;  ///< what .grad is now, of the parameter's shape
  bool fresh;          ///< it has no value yet, and must be given one; else add to it
};
/// @param kept a member of the layer's Kept
Gradient gradient_of(const at::Tensor& parameter, at::Tensor& kept);

/// Adds to a parameter's .grad a tensor that nobody else holds; nothing if the parameter is not trained.
void add_gradient(const at::Tensor& parameter, at::Tensor gradient);

/// The rule of a layer with forward(inputs...) and backward(inputs..., output, gradient).
template <class L, std::size_t N>
struct OwnBackward {
  struct Kept {
    Buffer output;
    std::array<Buffer, N> gradients;
  };
  static constexpr bool saves_input = true, saves_output = true, owns_output = false, foreign_memory = true;
  static constexpr std::size_t outputs = 1;

  static std::array<Buffer*, 1> forward(L& layer, Kept& kept, const ForwardPass<N>& pass) {
    at::Tensor y = detail::apply_n<N>(
        [&](std::size_t i) -> const at::Tensor& { return pass.x(i); },
        [&](const auto&... x) { return at::Tensor(detail::CallLayer<L>::call(layer, x...)); });
    pass.workspace.hold(kept.output, std::move(y));
    return {&kept.output};
  }
  static std::array<Buffer*, N> backward(L& layer, Kept& kept, const BackwardPass<N, 1>& pass) {
    auto found =
        detail::apply_n<N>([&](std::size_t i) -> const at::Tensor& { return pass.x(i); },
                           [&](const auto&... x) { return layer.backward(x..., pass.y(), pass.grad()); });
    std::array<Buffer*, N> out;
    for (std::size_t i = 0; i < N; ++i) out[i] = &kept.gradients[i];
    if constexpr (std::is_convertible_v<decltype(found), at::Tensor>) {
      static_assert(
          N == 1,
          "fulmen: backward of a layer with several inputs must return a gradient for each, in a std::array");
      pass.workspace.hold(kept.gradients[0], std::move(found));
    } else {
      [&]<std::size_t... I>(std::index_sequence<I...>) {
        (pass.workspace.hold(kept.gradients[I], std::get<I>(std::move(found))), ...);
      }
      (std::make_index_sequence<N>{});
    }
    return out;
  }
};

namespace detail {

/// Records a graph for one layer in the midst of a step that records none.
struct LocalGraph {
  c10::impl::ForceDispatchKeyGuard keys;
  at::AutoGradMode grad_mode;
  explicit LocalGraph(bool records = true);
};

/// The inputs as leaves of such a graph; those that cannot have gradients (integers) as they are.
at::Tensor leaf(const at::Tensor& input, bool wants_gradient);
/// Has autograd go back from the outputs to parameters and leaves.
void run_backward(const at::Tensor* const* outputs, const at::Tensor* const* gradients, std::size_t count);

template <class T>
struct OutputCount {
  static constexpr std::size_t value = 1;
};
template <class... T>
struct OutputCount<std::tuple<T...>> {
  static constexpr std::size_t value = (OutputCount<T>::value + ... + 0);
};
template <class A, class B>
struct OutputCount<std::pair<A, B>> : OutputCount<std::tuple<A, B>> {};
template <class T, std::size_t M>
struct OutputCount<std::array<T, M>> {
  static constexpr std::size_t value = M * OutputCount<T>::value;
};

template <class L, class Indices>
struct ReturnedOf;
template <class L, std::size_t... I>
struct ReturnedOf<L, std::index_sequence<I...>> {
  using type = std::remove_cvref_t<decltype(CallLayer<L>::call(
      std::declval<L&>(), (static_cast<void>(I), std::declval<const at::Tensor&>())...))>;
};
template <class L, class Indices>
using ReturnedBy = typename ReturnedOf<L, Indices>::type;

/// Puts a tensor, or the tensors of nested tuples, one after the other.
template <std::size_t M, class T>
void flatten_into(std::array<at::Tensor, M>& out, std::size_t& at, const T& value) {
  if constexpr (std::is_convertible_v<const T&, at::Tensor>) {
    out[at++] = value;
  } else {
    std::apply([&](const auto&... part) { (flatten_into(out, at, part), ...); }, value);
  }
}

}  // namespace detail

/// The rule of a layer that has forward(inputs...) only: autograd serves that layer alone.
template <class L, std::size_t N>
struct ByAutograd {
  static constexpr bool by_autograd = true;
  using Returned = detail::ReturnedBy<L, std::make_index_sequence<N>>;
  static constexpr std::size_t outputs = detail::OutputCount<Returned>::value;
  static constexpr bool saves_input = false, saves_output = false;
  // The graph may hold the output, and what is held may be the input.
  static constexpr bool owns_output = false, foreign_memory = true;

  struct Kept {
    std::array<at::Tensor, N> leaves;
    std::array<at::Tensor, outputs> recorded;
    std::array<Buffer, outputs> results;
    std::array<Buffer, N> gradients;
  };

  static std::array<Buffer*, outputs> forward(L& layer, Kept& kept, const ForwardPass<N>& pass) {
    std::array<Buffer*, outputs> out;
    {
      const detail::LocalGraph graph(pass.has_backward);
      for (std::size_t i = 0; i < N; ++i) kept.leaves[i] = detail::leaf(pass.x(i), pass.wants_input);
      std::size_t at = 0;
      detail::flatten_into(
          kept.recorded, at,
          detail::apply_n<N>(
              [&](std::size_t i) -> const at::Tensor& { return kept.leaves[i]; },
              [&](const auto&... x) { return Returned(detail::CallLayer<L>::call(layer, x...)); }));
    }
    for (std::size_t i = 0; i < outputs; ++i) {
      pass.workspace.hold(kept.results[i], kept.recorded[i].detach());
      out[i] = &kept.results[i];
    }
    if (!pass.has_backward) kept.leaves = {}, kept.recorded = {};
    return out;
  }

  static std::array<Buffer*, N> backward(L&, Kept& kept, const BackwardPass<N, outputs>& pass) {
    std::array<const at::Tensor*, outputs> results, gradients;
    for (std::size_t i = 0; i < outputs; ++i) {
      results[i] = &kept.recorded[i];
      gradients[i] = pass.gradients[i] == nullptr ? nullptr : &pass.grad(i);
    }
    {
      const detail::LocalGraph graph;
      detail::run_backward(results.data(), gradients.data(), outputs);
    }
    std::array<Buffer*, N> out{};
    for (std::size_t i = 0; i < N; ++i) {
      at::Tensor& grad = kept.leaves[i].mutable_grad();
      if (grad.defined()) {
        pass.workspace.hold(kept.gradients[i], std::move(grad));
        out[i] = &kept.gradients[i];
      }
      kept.leaves[i].reset();
    }
    for (at::Tensor& t : kept.recorded) t.reset();
    return out;
  }
};

/// A module that names its layers: composition() returns a reference to the Sequential (or any layer with a
/// rule) that its forward calls.
template <class L>
concept HasComposition = requires(L& layer) {
  requires detail::IsModule<std::remove_reference_t<decltype(layer.composition())>>;
}
|| requires(L& layer) { requires detail::IsModule<std::remove_reference_t<decltype(*layer.composition())>>; };

/// Whether a type is a composition of layers, for which a training step is composed: Sequential and the other
/// combinators, and a module with composition(). (Not a class derived from one of them: its forward may be
/// another.)
template <class L>
inline constexpr bool is_composite = HasComposition<L>;

namespace detail {

/// How many layers have rules, and how many are left to autograd.
struct RuleCount {
  std::size_t rules = 0, by_autograd = 0;
};
template <class R>
consteval RuleCount count_rules() {
  if constexpr (requires { R::rule_count; })
    return R::rule_count;
  else if constexpr (requires { R::by_autograd; })
    return {0, 1};
  else
    return {1, 0};
}

template <class L, std::size_t N>
struct ByComposition {
  static auto& composition(L& layer) {
    if constexpr (requires { *layer.composition(); })
      return *layer.composition();
    else
      return layer.composition();
  }
  using Inner = Rule<std::remove_reference_t<decltype(composition(std::declval<L&>()))>, N>;
  struct type : Inner {
    template <class Pass>
    static decltype(auto) forward(L& layer, typename Inner::Kept& kept, const Pass& pass) {
      return Inner::forward(composition(layer), kept, pass);
    }
    template <class Pass>
    static decltype(auto) backward(L& layer, typename Inner::Kept& kept, const Pass& pass) {
      return Inner::backward(composition(layer), kept, pass);
    }
    static void prepare(L& layer, typename Inner::Kept& kept) {
      if constexpr (requires { Inner::prepare(composition(layer), kept); })
        Inner::prepare(composition(layer), kept);
    }
  };
};

/// Stands for a layer with a backward that cannot be called, so that no other message follows.
template <class L, std::size_t N>
struct NoRule : ByAutograd<L, N> {
  static constexpr bool fits = std::is_void_v<L>;  // no
  static_assert(fits,
                "fulmen: a layer's backward must take its inputs, its output and the gradient of that: "
                "backward(inputs..., output, "
                "gradient); without a backward, autograd serves the layer");
};
template <class L, std::size_t N>
    struct ChosenRule : std::conditional < HasBackward<L, N>,
    OwnBackward<L, N>, std::conditional_t < requires {
  &L::backward;
}, NoRule<L, N>, ByAutograd < L, N >>> {};
template <HasComposition L, std::size_t N>
struct ChosenRule<L, N> : ByComposition<L, N> {};

}  // namespace detail

template <class L, std::size_t N>
struct Rule : detail::ChosenRule<L, N>::type {};

namespace detail {

template <class R>
consteval bool saves_input() {
  return R::saves_input;
}
template <class R>
consteval bool runs_in_place() {
  if constexpr (requires { R::in_place; })
    return R::in_place;
  else
    return false;
}
template <class R>
consteval bool owns_output() {
  if constexpr (requires { R::owns_output; })
    return R::owns_output;
  else
    return true;
}
template <class R>
consteval bool uses_foreign_memory() {
  if constexpr (requires { R::foreign_memory; })
    return R::foreign_memory;
  else
    return false;
}
template <class R>
consteval std::size_t output_count() {
  if constexpr (requires { R::outputs; })
    return R::outputs;
  else
    return 1;
}

/// A rule's forward and backward with arrays on both sides.
template <class R, class L, std::size_t N>
std::array<Buffer*, output_count<R>()> rule_forward(L& layer, typename R::Kept& kept,
                                                    const ForwardPass<N>& pass) {
  using Result = decltype(R::forward(layer, kept, pass));
  if constexpr (std::is_same_v<Result, Buffer&>)
    return {&R::forward(layer, kept, pass)};
  else
    return R::forward(layer, kept, pass);
}
template <class R, class L, std::size_t N, std::size_t M>
std::array<Buffer*, N> rule_backward(L& layer, typename R::Kept& kept, const BackwardPass<N, M>& pass) {
  using Result = decltype(R::backward(layer, kept, pass));
  if constexpr (std::is_same_v<Result, Buffer*>)
    return {R::backward(layer, kept, pass)};
  else
    return R::backward(layer, kept, pass);
}
template <class R, class L>
void rule_prepare(L& layer, typename R::Kept& kept) {
  if constexpr (requires { R::prepare(layer, kept); }) R::prepare(layer, kept);
}

}  // namespace detail

#if FULMEN_BODIES
FULMEN_INLINE Gradient gradient_of(const at::Tensor& parameter, at::Tensor& kept) {
  at::Tensor& grad = parameter.mutable_grad();
  if (grad.defined()) return {grad, false};
  // What somebody still holds, of a step before, stays as it is.
  if (!kept.defined() || kept.use_count() != 1 || !kept.sizes().equals(parameter.sizes()) ||
      kept.dtype() != parameter.dtype() || kept.device() != parameter.device()) [[unlikely]] {
    kept = fulmen::detail::gradient_place(parameter);  // of an optimizer that lies flat()
    if (!kept.defined()) kept = at::empty_like(parameter, at::TensorOptions(), at::MemoryFormat::Contiguous);
  }
  grad = kept;
  return {grad, true};
}

FULMEN_INLINE void add_gradient(const at::Tensor& parameter, at::Tensor gradient) {
  if (!parameter.requires_grad()) return;
  at::Tensor& grad = parameter.mutable_grad();
  if (grad.defined())
    grad.add_(gradient);
  else if (gradient.is_sparse() || gradient.strides() == parameter.strides())
    grad = std::move(gradient);
  else
    grad = at::empty_like(parameter).copy_(gradient);  // in the parameter's layout, as AccumulateGrad has it
}

namespace detail {

FULMEN_INLINE bool any_trained(const torch::nn::Module& module) {
  for (const at::Tensor& parameter : module.parameters()) {
    if (parameter.requires_grad()) return true;
  }
  return false;
}

inline c10::impl::LocalDispatchKeySet keys_with_autograd() {
  c10::impl::LocalDispatchKeySet set = c10::impl::tls_local_dispatch_key_set();
  set.excluded_ = set.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView;
  set.included_ = set.included_ | c10::default_included_set;
  return set;
}
FULMEN_INLINE LocalGraph::LocalGraph(bool records) : keys(keys_with_autograd()), grad_mode(records) {}

FULMEN_INLINE at::Tensor leaf(const at::Tensor& input, bool wants_gradient) {
  at::Tensor out = input.detach();
  if (wants_gradient && at::isFloatingType(out.scalar_type())) out.requires_grad_(true);
  return out;
}

FULMEN_INLINE void run_backward(const at::Tensor* const* outputs, const at::Tensor* const* gradients,
                                std::size_t count) {
  std::vector<at::Tensor> roots, seeds;
  for (std::size_t i = 0; i < count; ++i) {
    if (gradients[i] == nullptr || !outputs[i]->requires_grad()) continue;
    roots.push_back(*outputs[i]);
    seeds.push_back(*gradients[i]);
  }
  if (!roots.empty()) torch::autograd::backward(roots, seeds);
}

}  // namespace detail
#endif

}  // namespace fulmen::nn
