// flat: an optimizer whose parameters lie side by side in memory, so that one update and one clip take all of
// them.
#pragma once

#include <fulmen/optim/optimizer.hpp>
#include <fulmen/optim/param_groups.hpp>

#include <tuple>
#include <utility>

namespace fulmen {

/// A policy with its parameters in flat memory; see flat.
template <OptimizerPolicy Policy>
struct Flat {
  static_assert(
      requires(decltype(std::declval<const Policy&>().bind(NamedParameters{}))& bound) { bound.lay_flat(); },
      "fulmen: flat() takes optimizers whose update of an element needs that element alone (SGD, Adam, "
      "AdamW, NAdam, "
      "RAdam, Adamax, Adadelta, Adagrad, RMSprop, Rprop, ASGD, Lion, your own elementwise() ones, or "
      "param_groups() of "
      "these); this one is not such");

  Policy policy;

  /// Errors are those of the policy.
  auto bind(NamedParameters parameters) const {
    auto bound = policy.bind(std::move(parameters));
    if constexpr (requires { bound.lay_flat(); })
      bound.lay_flat();  // else the reason is a compile error already
    return bound;
  }
};

/// An optimizer that moves its parameters into one tensor, of which the module's become views:
/// `flat(AdamW{.lr = 1e-3})`. Their state lies in the same order, as do the gradients that layers compute
/// without autograd: update and clipping then take all in one go. Weights, state dicts and errors are those
/// of the policy without it, and so is the treatment of parameters that are without a gradient in a step,
/// frozen or freed later.
///
/// - The parameters that are trained when the optimizer is bound move: each type and device has its own
/// tensor. What is not
///   contiguous or shares memory with another parameter stays where it is and is updated by itself, as are
///   parameters that are freed or given other memory (set_data, Module::to) later.
/// - A tensor that was made of a parameter's memory before (detach(), data()) keeps the old memory. Hold the
/// parameter.
/// - A gradient is a part of the flat one, and overwritten in the next step, from the first step() or
/// clipping on: who keeps
///   it clones it. Gradients that autograd allocates are copied there if they are small, else used where they
///   are.
template <OptimizerPolicy Policy>
Flat<Policy> flat(Policy policy) {
  return {std::move(policy)};
}
/// Each group of parameters in a tensor of its own.
template <OptimizerPolicy Policy, class... Matches>
ParamGroups<Flat<Policy>, Matches...> flat(ParamGroups<Policy, Matches...> all) {
  return std::apply(
      [&](auto&... group) {
        return ParamGroups<Flat<Policy>, Matches...>{
            {std::move(all.policy)},
            {Group<Matches, Flat<Policy>>{
                std::move(group.match), {std::move(group.policy)}, std::move(group.name)}...},
            std::move(all.name)};
      },
      all.groups);
}

}  // namespace fulmen
