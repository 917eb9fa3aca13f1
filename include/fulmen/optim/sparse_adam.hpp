// SparseAdam: Adam for the rows that a sparse gradient has.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/optim/policy_state.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/optim/simd.hpp>

#include <ATen/core/List.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/index.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <optional>
#endif

namespace fulmen {

namespace detail {
class BoundSparseAdam;
}

/// Adam that changes, of each parameter and its moments, only the rows that are in its sparse gradient: for
/// embeddings with `EmbeddingOptions::sparse(true)`. Options and defaults are those of Python's
/// torch.optim.SparseAdam.
struct SparseAdam {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.999};
  double eps = 1e-8;
  bool maximize = false;

  static constexpr auto options =
      std::tuple{option("betas", &SparseAdam::betas), option("eps", &SparseAdam::eps),
                 option("maximize", &SparseAdam::maximize)};

  /// Parameters: dense. step() @throws std::runtime_error naming the parameter whose gradient is dense, too.
  /// @throws std::invalid_argument naming the option that is out of range, or the parameter that is not
  /// dense.
  detail::BoundSparseAdam bind(NamedParameters parameters) const;
};

namespace detail {

class BoundSparseAdam {
 public:
  BoundSparseAdam(const SparseAdam& policy, NamedParameters parameters);
  // All defaults; declared, so that not every source compiles them.
  BoundSparseAdam(const BoundSparseAdam&);
  BoundSparseAdam(BoundSparseAdam&&) noexcept;
  BoundSparseAdam& operator=(const BoundSparseAdam&);
  BoundSparseAdam& operator=(BoundSparseAdam&&) noexcept;
  ~BoundSparseAdam();

  std::vector<ParamGroup>& groups() { return groups_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  void zero_grad();

  void step();

  /// In the layout of Python's torch.optim.
  State state_dict() const;

  /// @throws std::runtime_error naming the key if something is missing, of another type or of another shape;
  /// nothing is changed then.
  void load_state_dict(const State& state);

 private:
  struct ParameterState {
    std::int64_t step = 0;
    at::Tensor exp_avg, exp_avg_sq;
  };

  ParamGroup& group() { return groups_[0]; }
  const std::vector<at::Tensor>& params() const { return groups_[0].params; }

  static bool fits_loops(const at::Tensor& p, const ParameterState& s, const at::Tensor& indices,
                         const at::Tensor& values);

  /// Whole rows, each in one pass over its elements.
  template <class T>
  void step_in_loops(const at::Tensor& p, const ParameterState& s, const at::Tensor& indices,
                     const at::Tensor& values, double rate) const;

  /// Any device, type and number of sparse dimensions.
  void step_by_kernels(const at::Tensor& p, const ParameterState& s, const at::Tensor& indices,
                       const at::Tensor& values, double rate) const;

  SparseAdam policy_;
  std::vector<ParamGroup> groups_;
  std::vector<std::string> names_;
  std::vector<ParameterState> states_;  // by parameter
};

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE BoundSparseAdam::BoundSparseAdam(const SparseAdam& policy, NamedParameters parameters)
    : policy_(policy), groups_(1) {
  group().lr = group().initial_lr = policy_.lr;
  group().momentum = policy_.betas[0];
  for (NamedParameter& p : parameters) {
    if (p.tensor.layout() != at::kStrided || !p.tensor.is_floating_point()) {
      fail<std::invalid_argument>(
          "SparseAdam: parameter '{}' is not a dense tensor of floating-point numbers", p.name);
    }
    names_.push_back(std::move(p.name));
    group().params.push_back(std::move(p.tensor));
  }
  states_.resize(params().size());
}

FULMEN_INLINE BoundSparseAdam::BoundSparseAdam(const BoundSparseAdam&) = default;
FULMEN_INLINE BoundSparseAdam::BoundSparseAdam(BoundSparseAdam&&) noexcept = default;
FULMEN_INLINE BoundSparseAdam& BoundSparseAdam::operator=(const BoundSparseAdam&) = default;
FULMEN_INLINE BoundSparseAdam& BoundSparseAdam::operator=(BoundSparseAdam&&) noexcept = default;
FULMEN_INLINE BoundSparseAdam::~BoundSparseAdam() = default;

FULMEN_INLINE void BoundSparseAdam::zero_grad() {
  for (const at::Tensor& p : params()) p.mutable_grad().reset();
}

FULMEN_INLINE void BoundSparseAdam::step() {
  const at::NoGradGuard no_grad;
  // First, so that a mistake leaves everything as it was.
  for (std::size_t i = 0; i < params().size(); ++i) {
    const at::Tensor& g = params()[i].grad();
    if (g.defined() && !g.is_sparse()) {
      fail(
          "SparseAdam: parameter '{}' has a dense gradient, expected a sparse one, as Embedding with "
          "sparse(true) gives it; "
          "use Adam for it",
          names_[i]);
    }
  }
  if (group().momentum) policy_.betas[0] = *group().momentum;
  for (std::size_t i = 0; i < params().size(); ++i) {
    const at::Tensor& p = params()[i];
    if (!p.grad().defined()) continue;
    ParameterState& s = states_[i];
    if (s.step == 0) s.exp_avg = at::zeros_like(p), s.exp_avg_sq = at::zeros_like(p);
    ++s.step;
    // Each row once: the update is not linear.
    const at::Tensor grad = p.grad().coalesce();
    const at::Tensor indices = grad._indices(), values = grad._values();
    if (values.numel() == 0) continue;
    const double step = static_cast<double>(s.step);
    const double rate =
        group().lr * std::sqrt(1 - std::pow(policy_.betas[1], step)) / (1 - std::pow(policy_.betas[0], step));
    if (fits_loops(p, s, indices, values)) {
      if (p.scalar_type() == at::kFloat)
        step_in_loops<float>(p, s, indices, values, rate);
      else
        step_in_loops<double>(p, s, indices, values, rate);
    } else {
      step_by_kernels(p, s, indices, values, rate);
    }
  }
}

FULMEN_INLINE State BoundSparseAdam::state_dict() const {
  State all, state;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    const ParameterState& s = states_[i];
    if (s.step == 0) continue;
    all.set(i, State().set("step", s.step).set("exp_avg", s.exp_avg).set("exp_avg_sq", s.exp_avg_sq));
  }
  state.set("state", all).set("param_groups", std::vector<State>{group_state(policy_, groups_[0])});
  return state;
}

FULMEN_INLINE void BoundSparseAdam::load_state_dict(const State& state) {
  const at::NoGradGuard no_grad;
  const auto groups = state.get<std::vector<State>>("param_groups");
  const State all = state.get<State>("state");
  check_group(group(), groups);
  const SparseAdam policy = policy_in(groups, policy_);
  std::vector<ParameterState> loaded(states_.size());
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    if (!all.contains(i)) continue;
    const State one = all.get<State>(i);
    const auto take = [&](const char* name) {
      return like(one.get<at::Tensor>(name), params()[i], names_[i], name);
    };
    loaded[i] = {static_cast<std::int64_t>(number_in(one, "step")), take("exp_avg"), take("exp_avg_sq")};
  }
  load_group(group(), groups);
  policy_ = policy;
  group().momentum = policy_.betas[0];
  states_ = std::move(loaded);
}

FULMEN_INLINE bool BoundSparseAdam::fits_loops(const at::Tensor& p, const ParameterState& s,
                                               const at::Tensor& indices, const at::Tensor& values) {
  return p.is_cpu() && (p.scalar_type() == at::kFloat || p.scalar_type() == at::kDouble) &&
         p.is_contiguous() && s.exp_avg.is_contiguous() && s.exp_avg_sq.is_contiguous() &&
         indices.size(0) == 1 && values.is_cpu() && values.is_contiguous() &&
         values.scalar_type() == p.scalar_type();
}

template <class T>
void BoundSparseAdam::step_in_loops(const at::Tensor& p, const ParameterState& s, const at::Tensor& indices,
                                    const at::Tensor& values, double rate) const {
  const std::int64_t rows = values.size(0), width = values.numel() / rows;
  const at::Tensor numbers = indices.contiguous();
  const std::int64_t* const index = numbers.const_data_ptr<std::int64_t>();
  const T* const grad = values.const_data_ptr<T>();
  T* const param = p.mutable_data_ptr<T>();
  T* const exp_avg = s.exp_avg.mutable_data_ptr<T>();
  T* const exp_avg_sq = s.exp_avg_sq.mutable_data_ptr<T>();
  const T sign = policy_.maximize ? T(-1) : T(1), new1 = static_cast<T>(1 - policy_.betas[0]);
  const T new2 = static_cast<T>(1 - policy_.betas[1]), eps = static_cast<T>(policy_.eps),
          by = static_cast<T>(-rate);
  const auto some_rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* const g = grad + r * width;
      const std::int64_t at = index[r] * width;
      T *const x = param + at, *const m = exp_avg + at, *const v = exp_avg_sq + at;
      for (std::int64_t k = 0; k < width; ++k) {
        m[k] += (sign * g[k] - m[k]) * new1;
        v[k] += (g[k] * g[k] - v[k]) * new2;
        x[k] += by * (m[k] / (std::sqrt(v[k]) + eps));
      }
    }
  };
  // Fewer are done before another thread is awake.
  if (values.numel() < 32768)
    some_rows(0, rows);
  else
    simd::parallel_for(rows, some_rows);
  p.unsafeGetTensorImpl()->bump_version();
}

FULMEN_INLINE void BoundSparseAdam::step_by_kernels(const at::Tensor& p, const ParameterState& s,
                                                    const at::Tensor& indices, const at::Tensor& values,
                                                    double rate) const {
  c10::List<std::optional<at::Tensor>> places;
  for (const at::Tensor& one : indices.unbind(0)) places.push_back(one);
  const at::Tensor grad = policy_.maximize ? values.neg() : values;
  const auto advance = [&](const at::Tensor& state, const at::Tensor& towards, double weight) {
    const at::Tensor old = at::index(state, places);
    at::Tensor now = towards.sub(old).mul_(weight).add_(old);
    state.index_put_(places, now);
    return now;
  };
  const at::Tensor m = advance(s.exp_avg, grad, 1 - policy_.betas[0]);
  const at::Tensor v = advance(s.exp_avg_sq, grad.square(), 1 - policy_.betas[1]);
  p.index_put_(places, at::index(p, places).add_(m.div(v.sqrt().add_(policy_.eps)), -rate));
}

}  // namespace detail

FULMEN_INLINE detail::BoundSparseAdam SparseAdam::bind(NamedParameters parameters) const {
  if (!(lr > 0)) fail<std::invalid_argument>("SparseAdam::lr is {}, expected above 0", lr);
  if (!(eps > 0)) fail<std::invalid_argument>("SparseAdam::eps is {}, expected above 0", eps);
  detail::from_0_below_1("SparseAdam", "betas", betas);
  return {*this, std::move(parameters)};
}
#endif

}  // namespace fulmen
