// parameters_of: an optimizer policy for a part of the module, as several optimizers need it.
#pragma once

#include <fulmen/optim/optimizer.hpp>

#include <string>
#include <utility>

namespace fulmen {

/// A policy that binds to the parameters of one submodule only; see parameters_of.
template <OptimizerPolicy Policy>
struct ParametersOf {
  std::string submodule;
  Policy policy;

  /// @throws std::invalid_argument if no parameter is in such a submodule; the message lists the names there are.
  auto bind(NamedParameters parameters) const {
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
    return policy.bind(std::move(chosen));
  }
};

/// An optimizer for one submodule: `std::tuple{parameters_of("generator", Adam{}), parameters_of("critic", Adam{})}`.
/// @param submodule its registered name; with dots for one inside another
template <OptimizerPolicy Policy>
ParametersOf<Policy> parameters_of(std::string submodule, Policy policy) {
  return {std::move(submodule), std::move(policy)};
}

}  // namespace fulmen
