// The options of an optimizer policy: which they are, and the form that Python's state dicts have them in.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <ATen/core/ivalue.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen {

/// An option that is kept in an optimizer's state dict: its name there, and the policy's member.
template <class Policy, class T>
struct Option {
  const char* name;
  T Policy::*member;
};
template <class Policy, class T>
constexpr Option<Policy, T> option(const char* name, T Policy::*member) {
  return {name, member};
}

namespace detail {

/// Whether a policy has momentum or betas for schedulers to change: then it is its group's that counts.
template <class Policy>
std::optional<double> momentum_of(const Policy& policy) {
  if constexpr (requires { policy.betas; })
    return policy.betas[0];
  else if constexpr (requires { policy.momentum; })
    return policy.momentum;
  else
    return std::nullopt;
}
template <class Policy>
void set_momentum(Policy& policy, double value) {
  if constexpr (requires { policy.betas; })
    policy.betas[0] = value;
  else if constexpr (requires { policy.momentum; })
    policy.momentum = value;
}

/// A pair or an array as a tuple, nothing as None, an enumerator as its name: option_names(enumerator)
/// lists the names, found by argument-dependent look-up.
template <class T>
c10::IValue to_python(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return std::string(option_names(value)[static_cast<std::size_t>(value)]);
  } else if constexpr (is_optional<T>) {
    return value ? to_python(*value) : c10::IValue();
  } else if constexpr (requires { std::tuple_size<T>::value; }) {
    const auto tuple = [](const auto&... part) {
      return c10::IValue(c10::ivalue::Tuple::create(std::vector<c10::IValue>{to_python(part)...}));
    };
    return std::apply(tuple, value);
  } else {
    return value;
  }
}

/// A number, or a tensor with one element, as Python keeps counts and rates. @throws std::runtime_error
/// naming the key.
double number_in(const State& state, const char* name);

/// The index of the enumerator. @throws std::runtime_error naming the option if none has that name.
std::size_t enumerator_in(const c10::IValue& value, const char* name, std::span<const char* const> names);
/// The parts of a tuple or a list. @throws std::runtime_error naming the option if these are not as many.
std::vector<c10::IValue> parts_in(const c10::IValue& value, const char* name, std::size_t count);

/// The other way. @throws std::runtime_error naming the option if the value is of another kind.
template <class T>
void from_python(const c10::IValue& value, const char* name, T& option) {
  if constexpr (std::is_enum_v<T>) {
    option = static_cast<T>(enumerator_in(value, name, option_names(option)));
  } else if constexpr (is_optional<T>) {
    if (value.isNone())
      option.reset();
    else
      from_python(value, name, option.emplace());
  } else if constexpr (requires { std::tuple_size<T>::value; }) {
    const std::vector<c10::IValue> parts = parts_in(value, name, std::tuple_size_v<T>);
    std::size_t next = 0;
    std::apply([&](auto&... part) { (from_python(parts[next++], name, part), ...); }, option);
  } else {
    State one;
    one.set(name, value);
    option = one.get<T>(name);
  }
}

/// The entry of "param_groups" for a policy's options.
template <class Policy>
State group_state(Policy policy, const ParamGroup& group) {
  if (group.momentum) set_momentum(policy, *group.momentum);
  State state;
  state.set("lr", group.lr);
  std::apply([&](const auto&... o) { (state.set(o.name, to_python(policy.*o.member)), ...); },
             Policy::options);
  state.set("initial_lr", group.initial_lr).set("params", indices(group.params.size()));
  return state;
}

/// One option from a parameter group's entry; without it the option stays. @throws std::runtime_error naming it.
template <class T>
void load_option(const State& group, const char* name, T& option) {
  if (!group.contains(name)) return;
  if constexpr (std::is_enum_v<T> || is_optional<T>) {
    from_python(group.get<c10::IValue>(name), name, option);
  } else if constexpr (requires { option.fill(0.0); }) {
    const auto values = group.get<std::vector<double>>(name);
    if (values.size() != option.size()) {
      fail("optimizer state: {} has {} numbers, expected {}", name, values.size(), option.size());
    }
    std::copy(values.begin(), values.end(), option.begin());
  } else if constexpr (requires { std::tuple_size<T>::value; }) {
    from_python(group.get<c10::IValue>(name), name, option);
  } else {
    option = group.get<T>(name);
  }
}

/// A policy with the options that a state dict has; what it does not have stays. @throws std::runtime_error
/// naming the option.
template <class Policy>
Policy policy_in(const std::vector<State>& groups, Policy policy) {
  std::apply([&](const auto&... o) { (load_option(groups[0], o.name, policy.*o.member), ...); }, Policy::options);
  return policy;
}

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE double number_in(const State& state, const char* name) {
  const c10::IValue value = state.get<c10::IValue>(name);
  if (value.isTensor() && value.toTensor().numel() == 1) return value.toTensor().item<double>();
  if (!value.isDouble() && !value.isInt()) {
    fail("optimizer state: {} is {}, expected a number or a tensor with one element", name, kind_of(value));
  }
  return value.toScalar().toDouble();
}

FULMEN_INLINE std::size_t enumerator_in(const c10::IValue& value, const char* name,
                                        std::span<const char* const> names) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    const bool same = value.isString() && value.toStringRef() == names[i];
    // None means the default, which comes first.
    if (same || (value.isNone() && i == 0)) return i;
  }
  fail("optimizer state: {} is {}, which is not known", name,
       value.isString() ? value.toStringRef() : kind_of(value));
}

FULMEN_INLINE std::vector<c10::IValue> parts_in(const c10::IValue& value, const char* name,
                                                std::size_t count) {
  std::vector<c10::IValue> parts = value.isTuple()  ? value.toTupleRef().elements().vec()
                                   : value.isList() ? value.toListRef().vec()
                                                    : std::vector<c10::IValue>{};
  if (parts.size() != count) {
    fail("optimizer state: {} is {}, expected a tuple of {}", name, kind_of(value), count);
  }
  return parts;
}

}  // namespace detail
#endif

}  // namespace fulmen
