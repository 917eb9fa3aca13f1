// What an optimizer policy is, and what the Trainer gets when it binds one to the module's parameters.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/none.hpp>

#include <ATen/core/Tensor.h>

#include <array>
#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/ops/empty_like.h>

#include <sstream>
#endif

namespace fulmen {

struct NamedParameter {
  std::string name;
  at::Tensor tensor;
};
using NamedParameters = std::vector<NamedParameter>;

/// Parameters that share their options. A scheduler reads `initial_lr` and writes `lr`; some write `momentum` too.
struct ParamGroup {
  double lr = 0;
  double initial_lr = 0;
  std::vector<at::Tensor> params;
  std::optional<double> momentum{};  ///< momentum, or betas[0]; nothing where the optimizer has neither
};

/// A bound optimizer: parameters plus state. `step()` uses the gradients that are defined and leaves out the others.
template <class B>
concept BoundOptimizer = requires(B& b, const B& c, const State& state) {
  b.step();
  b.zero_grad();
  { b.groups()[0] } -> std::convertible_to<ParamGroup&>;
  { c.state_dict() } -> std::convertible_to<State>;
  b.load_state_dict(state);
};

/// An optimizer policy: a plain value that becomes a BoundOptimizer when the Trainer gives it parameters.
template <class P>
concept OptimizerPolicy = std::copy_constructible<P> && requires(const P& policy, NamedParameters parameters) {
  { policy.bind(std::move(parameters)) } -> BoundOptimizer;
};

namespace detail {

/// A policy, several in a tuple, or none: always as a tuple.
template <class P>
struct PolicyTuple {
  using type = std::tuple<P>;
  static type make(P policy) { return type(std::move(policy)); }
};
template <>
struct PolicyTuple<None> {
  using type = std::tuple<>;
  static type make(None) { return {}; }
};
template <class... P>
struct PolicyTuple<std::tuple<P...>> {
  using type = std::tuple<P...>;
  static type make(type policies) { return policies; }
};

/// What policies say of options that are out of range: std::invalid_argument.
void at_least_0(const char* policy, const char* option, double value);
void from_0_below_1(const char* policy, const char* option, const std::array<double, 2>& values);

std::vector<std::int64_t> indices(std::size_t count);

/// A loaded state tensor in the form its parameter needs. @throws std::runtime_error naming the parameter if
/// shapes differ.
at::Tensor like(const at::Tensor& loaded, const at::Tensor& parameter, const std::string& name,
                const char* what);

/// @throws std::runtime_error if what was loaded is not for as many groups and parameters.
void check_group(const ParamGroup& group, const std::vector<State>& loaded);
void load_group(ParamGroup& group, const std::vector<State>& loaded);

template <class P>
struct AllOptimizerPolicies : std::bool_constant<OptimizerPolicy<P>> {};
template <>
struct AllOptimizerPolicies<None> : std::true_type {};
template <class... P>
struct AllOptimizerPolicies<std::tuple<P...>> : std::bool_constant<(OptimizerPolicy<P> && ...)> {};

}  // namespace detail

/// The parameters and gradients of one bound optimizer, gathered for kernels that take lists.
///
/// A parameter is active in a step in which it has a gradient. Which ones are seldom changes (a layer is frozen or freed, a
/// branch is not taken), so what depends on it is kept from step to step and made anew only when it changed.
class GradientLists {
 public:
  explicit GradientLists(NamedParameters parameters, double lr);
  // All defaults; declared, so that not every source compiles them.
  GradientLists(const GradientLists&);
  GradientLists(GradientLists&&) noexcept;
  GradientLists& operator=(const GradientLists&);
  GradientLists& operator=(GradientLists&&) noexcept;
  ~GradientLists();

  std::vector<ParamGroup>& groups() { return group_; }
  const std::vector<ParamGroup>& groups() const { return group_; }
  const std::vector<at::Tensor>& params() const { return group_[0].params; }
  const std::string& name(std::size_t i) const { return names_[i]; }

  void zero_grad();

  /// Looks which parameters are active. @return whether these are the same as the last time
  bool same_active();

  /// The same, and gathers their gradients.
  /// @throws std::runtime_error for a sparse gradient.
  bool gather();
  const std::vector<at::Tensor>& grads() const { return grads_; }
  /// Indices of the active parameters, and the parameters themselves.
  const std::vector<std::size_t>& active() const { return active_; }
  const std::vector<at::Tensor>& active_params() const { return active_params_; }
  /// Makes the next look say that something has changed.
  void forget() { active_.clear(); }

 private:
  std::vector<ParamGroup> group_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> grads_, active_params_;
  std::vector<std::size_t> active_;
};

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE void at_least_0(const char* policy, const char* option, double value) {
  if (!(value >= 0)) fail<std::invalid_argument>("{}::{} is {}, expected at least 0", policy, option, value);
}

FULMEN_INLINE void from_0_below_1(const char* policy, const char* option,
                                  const std::array<double, 2>& values) {
  for (const double value : values) {
    if (!(value >= 0 && value < 1)) {
      fail<std::invalid_argument>("{}::{} has {}, expected at least 0 and below 1", policy, option, value);
    }
  }
}

FULMEN_INLINE std::vector<std::int64_t> indices(std::size_t count) {
  std::vector<std::int64_t> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::int64_t>(i);
  return out;
}

FULMEN_INLINE at::Tensor like(const at::Tensor& loaded, const at::Tensor& parameter, const std::string& name,
                              const char* what) {
  if (!loaded.sizes().equals(parameter.sizes())) {
    std::ostringstream found, expected;
    found << loaded.sizes();
    expected << parameter.sizes();
    fail("optimizer state of parameter '{}': {} has shape {}, expected {}", name, what, found.str(), expected.str());
  }
  // The kernels walk parameter and state with the same strides.
  return at::empty_like(parameter).copy_(loaded);
}

FULMEN_INLINE void check_group(const ParamGroup& group, const std::vector<State>& loaded) {
  if (loaded.size() != 1) fail("optimizer state has {} parameter groups, expected 1", loaded.size());
  const std::size_t count = loaded[0].get<std::vector<std::int64_t>>("params").size();
  if (count != group.params.size()) {
    fail("optimizer state has {} parameters, expected {}", count, group.params.size());
  }
  loaded[0].get<double>("lr");
}

FULMEN_INLINE void load_group(ParamGroup& group, const std::vector<State>& loaded) {
  check_group(group, loaded);
  group.lr = loaded[0].get<double>("lr");
  group.initial_lr = loaded[0].get_or<double>("initial_lr", group.lr);
}

}  // namespace detail

FULMEN_INLINE GradientLists::GradientLists(NamedParameters parameters, double lr) {
  group_.resize(1);
  group_[0].lr = group_[0].initial_lr = lr;
  for (NamedParameter& p : parameters) {
    names_.push_back(std::move(p.name));
    group_[0].params.push_back(std::move(p.tensor));
  }
}

FULMEN_INLINE GradientLists::GradientLists(const GradientLists&) = default;
FULMEN_INLINE GradientLists::GradientLists(GradientLists&&) noexcept = default;
FULMEN_INLINE GradientLists& GradientLists::operator=(const GradientLists&) = default;
FULMEN_INLINE GradientLists& GradientLists::operator=(GradientLists&&) noexcept = default;
FULMEN_INLINE GradientLists::~GradientLists() = default;

FULMEN_INLINE void GradientLists::zero_grad() {
  for (const at::Tensor& p : params()) p.mutable_grad().reset();
}

FULMEN_INLINE bool GradientLists::same_active() {
  bool same = true;
  std::size_t k = 0;
  for (std::size_t i = 0; i < params().size(); ++i) {
    if (!params()[i].unsafeGetTensorImpl()->grad().defined()) continue;
    if (same && k < active_.size() && active_[k] == i) [[likely]] {
      ++k;
      continue;
    }
    if (same) active_.resize(k);
    same = false;
    active_.push_back(i), ++k;
  }
  if (k != active_.size()) active_.resize(k), same = false;
  return same;
}

FULMEN_INLINE bool GradientLists::gather() {
  const bool same = same_active();
  grads_.clear();
  for (const std::size_t i : active_) {
    const at::Tensor& grad = params()[i].unsafeGetTensorImpl()->grad();
    if (grad.is_sparse()) [[unlikely]] {
      forget();  // this step is not taken: the next one must look anew
      fail("parameter '{}' has a sparse gradient, expected a dense one", names_[i]);
    }
    grads_.push_back(grad);
  }
  if (!same) {
    active_params_.clear();
    for (const std::size_t i : active_) active_params_.push_back(params()[i]);
  }
  return same;
}
#endif

}  // namespace fulmen
