// How a criterion is called: criterion(output, targets...), with the output's members where it takes those.
#pragma once

#include <fulmen/data/batch.hpp>

#include <ATen/core/Tensor.h>

#include <tuple>
#include <utility>

namespace fulmen::detail {

template <class Criterion, class... Arguments>
inline constexpr bool criterion_called_with = requires(Criterion& criterion, Arguments&... arguments) {
  { criterion(arguments...) } -> TensorLike;
};

template <class Criterion, class Members, class... Targets>
inline constexpr bool criterion_takes_members = false;
template <class Criterion, class... Members, class... Targets>
inline constexpr bool criterion_takes_members<Criterion, std::tuple<Members...>, Targets...> =
    criterion_called_with<Criterion, Members..., Targets...>;

/// Whether call_criterion compiles: with the output as it is, or else, of a forward that returns several
/// things, with each.
template <class Criterion, class Output, class... Targets>
inline constexpr bool criterion_takes =
    criterion_called_with<Criterion, const Output, Targets...> ||
    (!TensorLike<Output> &&
     criterion_takes_members<Criterion, decltype(members(std::declval<const Output&>())), Targets...>);

/// criterion(output, targets...), or criterion(members of output..., targets...) where only that can be
/// called.
template <class Criterion, class Output, class... Targets>
at::Tensor call_criterion(Criterion& criterion, const Output& output, Targets&... targets) {
  if constexpr (criterion_called_with<Criterion, const Output, Targets...>) {
    return criterion(output, targets...);
  } else {
    return std::apply([&](auto&... member) { return criterion(member..., targets...); }, members(output));
  }
}

}  // namespace fulmen::detail
