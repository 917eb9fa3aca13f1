// parameters_of and parameters_where: an optimizer policy for a part of the module, as several optimizers
// need it.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <concepts>
#include <string>
#include <string_view>
#include <utility>

namespace fulmen {

/// What chooses parameters: by name, or by name and tensor.
template <class P>
concept ParameterPredicate = std::predicate<const P&, std::string_view> ||
    std::predicate<const P&, std::string_view, const at::Tensor&>;

namespace detail {
template <ParameterPredicate Predicate>
bool chooses(const Predicate& predicate, const NamedParameter& p) {
  if constexpr (std::predicate<const Predicate&, std::string_view>)
    return predicate(std::string_view(p.name));
  else
    return predicate(std::string_view(p.name), p.tensor);
}

NamedParameters in_submodule(NamedParameters parameters, const std::string& submodule);

}  // namespace detail

/// A policy that binds to the parameters of one submodule only; see parameters_of.
template <OptimizerPolicy Policy>
struct ParametersOf {
  std::string submodule;
  Policy policy;

  /// @throws std::invalid_argument if no parameter is in such a submodule; the message lists the names there
  /// are.
  auto bind(NamedParameters parameters) const {
    return policy.bind(detail::in_submodule(std::move(parameters), submodule));
  }
};

/// An optimizer for one submodule: `std::tuple{parameters_of("generator", Adam{}), parameters_of("critic",
/// Adam{})}`.
/// @param submodule its registered name; with dots for one inside another
template <OptimizerPolicy Policy>
ParametersOf<Policy> parameters_of(std::string submodule, Policy policy) {
  return {std::move(submodule), std::move(policy)};
}

/// A policy that binds to the parameters that a predicate chooses; see parameters_where.
template <ParameterPredicate Predicate, OptimizerPolicy Policy>
struct ParametersWhere {
  Predicate predicate;
  Policy policy;

  /// @throws std::invalid_argument if it chooses none.
  auto bind(NamedParameters parameters) const {
    NamedParameters chosen;
    for (NamedParameter& p : parameters) {
      if (detail::chooses(predicate, p)) chosen.push_back(std::move(p));
    }
    if (chosen.empty()) {
      fail<std::invalid_argument>("parameters_where: the predicate chooses none of {} parameters",
                                  parameters.size());
    }
    return policy.bind(std::move(chosen));
  }
};

/// An optimizer for the parameters for which `predicate(name)` or `predicate(name, tensor)` holds, where a
/// module has several optimizers: `std::tuple{parameters_where(is_matrix, Muon{}),
/// parameters_where(std::not_fn(is_matrix), AdamW{})}`. They need a module that optimises by hand;
/// split_parameters does not.
template <ParameterPredicate Predicate, OptimizerPolicy Policy>
ParametersWhere<Predicate, Policy> parameters_where(Predicate predicate, Policy policy) {
  return {std::move(predicate), std::move(policy)};
}

#if FULMEN_BODIES
FULMEN_INLINE NamedParameters detail::in_submodule(NamedParameters parameters, const std::string& submodule) {
  NamedParameters chosen;
  std::string known;
  for (NamedParameter& p : parameters) {
    (known += known.empty() ? "" : ", ") += p.name;
    if (p.name.starts_with(submodule + ".")) chosen.push_back(std::move(p));
  }
  if (chosen.empty()) {
    fail<std::invalid_argument>("parameters_of(\"{}\"): no parameter is in that submodule; there is: {}",
                                submodule, known.empty() ? "none" : known);
  }
  return chosen;
}
#endif

}  // namespace fulmen
