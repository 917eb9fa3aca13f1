// The rule of a weighted sum of criteria: those of its parts, and their gradients added up.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/criteria/sum.hpp>
#include <fulmen/nn/criterion_rule.hpp>
#include <fulmen/nn/reduction.hpp>

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#if FULMEN_BODIES
#include <ATen/ops/mul.h>
#endif

namespace fulmen::nn {

namespace detail {

/// Adds weight * value to the loss; the first one makes it.
void add_part(Workspace& workspace, Buffer& loss, const at::Tensor& value, double weight, bool first);
/// The gradient of a part's value.
const at::Tensor& weighted_seed(Workspace& workspace, Buffer& kept, const at::Tensor& seed, double weight);
/// Adds a part's gradient of one output to those of the parts before.
void add_part_gradient(Workspace& workspace, Buffer*& sum, Buffer* gradient);

/// What a part of a sum is given of M outputs and T targets.
template <class Part>
struct PartOf;
template <FixedString Name, class C>
struct PartOf<CriterionPart<Name, C, fulmen::detail::Everything>> {
  template <std::size_t M, std::size_t T>
  using Rule = CriterionRule<C, M, T>;
  template <std::size_t M, std::size_t T>
  static const LossPass<M, T>& pass(const LossPass<M, T>& all) {
    return all;
  }
  template <std::size_t M>
  static std::array<Buffer*, M> gradients(const std::array<Buffer*, M>& of_part) {
    return of_part;
  }
};
/// With several outputs that are no tuples of tuples: there, an index would not be that of a tensor.
template <FixedString Name, class C, std::size_t OutputIndex, std::size_t TargetIndex>
struct PartOf<CriterionPart<Name, C, fulmen::detail::Chosen<OutputIndex, TargetIndex>>> {
  template <std::size_t M, std::size_t T>
  using Rule = CriterionRule<C, 1, 1>;
  template <std::size_t M, std::size_t T>
  static LossPass<1, 1> pass(const LossPass<M, T>& all) {
    static_assert(OutputIndex < M && TargetIndex < T,
                  "fulmen: a part of a sum of criteria chooses an output or a target that is not there");
    return {{all.outputs[OutputIndex]}, {all.targets[TargetIndex]}, all.workspace, all.seed};
  }
  template <std::size_t M>
  static std::array<Buffer*, M> gradients(const std::array<Buffer*, 1>& of_part) {
    std::array<Buffer*, M> out{};
    out[OutputIndex] = of_part[0];
    return out;
  }
};

/// What a criterion's backward gives, as an array.
template <std::size_t M>
std::array<Buffer*, M> gradients_array(const std::array<Buffer*, M>& gradients) {
  return gradients;
}
template <std::size_t M>
std::array<Buffer*, M> gradients_array(Buffer* gradient) {
  return {gradient};
}

/// What is kept of one part.
template <std::size_t Index, class Kept>
struct PartKept {
  Kept kept{};
  Buffer seed;
};
template <std::size_t Index, class Kept>
constexpr PartKept<Index, Kept>& part_at(PartKept<Index, Kept>& part) {
  return part;
}
template <class Indices, class... Kept>
struct PartsKept;
template <std::size_t... I, class... Kept>
struct PartsKept<std::index_sequence<I...>, Kept...> : PartKept<I, Kept>... {};

}  // namespace detail

template <class... Parts, std::size_t M, std::size_t T>
struct CriterionRule<CriterionSum<Parts...>, M, T> {
 private:
  static constexpr std::size_t count = sizeof...(Parts);
  template <class Part>
  using RuleOf = typename detail::PartOf<Part>::template Rule<M, T>;

 public:
  struct Kept {
    Buffer loss;
    detail::PartsKept<std::make_index_sequence<count>, typename RuleOf<Parts>::Kept...> parts;
    /// What the parts came to, before they are weighted: for a log. To be copied before the step ends.
    std::array<const at::Tensor*, count> values{};
  };

  static Buffer& forward(CriterionSum<Parts...>& sum, Kept& kept, const LossPass<M, T>& pass) {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (forward_part<I>(std::get<I>(sum.parts), kept, pass), ...);
    }
    (std::make_index_sequence<count>{});
    return kept.loss;
  }

  /// From the last part to the first one, as autograd goes.
  static std::array<Buffer*, M> backward(CriterionSum<Parts...>& sum, Kept& kept,
                                         const LossPass<M, T>& pass) {
    std::array<Buffer*, M> out{};
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (backward_part<count - 1 - I>(std::get<count - 1 - I>(sum.parts), kept, pass, out), ...);
    }
    (std::make_index_sequence<count>{});
    return out;
  }

 private:
  template <std::size_t I, class Part>
  static void forward_part(Part& part, Kept& kept, const LossPass<M, T>& pass) {
    auto& mine = detail::part_at<I>(kept.parts);
    Buffer& value = RuleOf<Part>::forward(part.criterion, mine.kept, detail::PartOf<Part>::pass(pass));
    pass.workspace.keep_apart(value);
    kept.values[I] = &*value;
    detail::add_part(pass.workspace, kept.loss, *value, part.weight, I == 0);
  }
  template <std::size_t I, class Part>
  static void backward_part(Part& part, Kept& kept, const LossPass<M, T>& pass, std::array<Buffer*, M>& out) {
    auto& mine = detail::part_at<I>(kept.parts);
    auto own = detail::PartOf<Part>::pass(pass);
    const at::Tensor seed = detail::weighted_seed(pass.workspace, mine.seed, *pass.seed, part.weight);
    own.seed = &seed;
    constexpr std::size_t outputs = std::tuple_size_v<decltype(own.outputs)>;
    const std::array<Buffer*, M> gradients = detail::PartOf<Part>::template gradients<M>(
        detail::gradients_array<outputs>(RuleOf<Part>::backward(part.criterion, mine.kept, own)));
    pass.workspace.release(mine.seed);
    for (std::size_t i = 0; i < M; ++i) detail::add_part_gradient(pass.workspace, out[i], gradients[i]);
  }
};

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE void add_part(Workspace& workspace, Buffer& loss, const at::Tensor& value, double weight,
                            bool first) {
  if (!first) {
    static_cast<void>(loss->add_(value, weight));
  } else {
    at::Tensor& sum = workspace.take(loss, value.sizes(), value);
    if (weight == 1)
      sum.copy_(value);
    else
      at::mul_out(sum, value, weight);
  }
}

FULMEN_INLINE const at::Tensor& weighted_seed(Workspace& workspace, Buffer& kept, const at::Tensor& seed,
                                              double weight) {
  if (weight == 1) return seed;
  at::Tensor& out = workspace.take(kept, {}, seed);
  if (seed.is_cpu() && seed.scalar_type() == at::kFloat) {
    *out.mutable_data_ptr<float>() = *seed.const_data_ptr<float>() * static_cast<float>(weight);
  } else if (seed.is_cpu() && seed.scalar_type() == at::kDouble) {
    *out.mutable_data_ptr<double>() = *seed.const_data_ptr<double>() * weight;
  } else {
    at::mul_out(out, seed, weight);
  }
  return out;
}

FULMEN_INLINE void add_part_gradient(Workspace& workspace, Buffer*& sum, Buffer* gradient) {
  if (gradient == nullptr) return;
  if (sum == nullptr) {
    sum = gradient;
    return;
  }
  static_cast<void>((*sum)->add_(**gradient));
  workspace.release(*gradient);
}

}  // namespace detail
#endif

}  // namespace fulmen::nn
