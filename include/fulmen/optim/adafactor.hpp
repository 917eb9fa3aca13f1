// Adafactor: Adam's second moments of a matrix kept as a column and a row.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/optim/policy_state.hpp>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/optim/simd.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#endif

namespace fulmen {

namespace detail {
class BoundAdafactor;
}

/// Adafactor (Shazeer and Stern, 2018). Options and defaults are those of Python's torch.optim.Adafactor,
/// which differs from the paper: lr is a number, and means take the place of sums.
struct Adafactor {
  double lr = 1e-2;  ///< the largest relative step size; from step 1 / lr^2 on it is 1 / sqrt(step)
  double beta2_decay = -0.8;
  /// The first holds variances off 0; nothing: the machine epsilon of the parameter's type. The second: the
  /// smallest root mean square that a parameter counts with.
  std::pair<std::optional<double>, double> eps{std::nullopt, 1e-3};
  double d = 1;  ///< the largest root mean square of an update
  double weight_decay = 0;
  bool maximize = false;

  static constexpr auto options =
      std::tuple{option("beta2_decay", &Adafactor::beta2_decay), option("eps", &Adafactor::eps),
                 option("d", &Adafactor::d), option("weight_decay", &Adafactor::weight_decay),
                 option("maximize", &Adafactor::maximize)};

  /// @throws std::invalid_argument naming the option that is out of range.
  detail::BoundAdafactor bind(NamedParameters parameters) const;
};

namespace detail {

struct AdafactorStep;

class BoundAdafactor {
 public:
  BoundAdafactor(const Adafactor& policy, NamedParameters parameters);
  // All defaults; declared, so that not every source compiles them.
  BoundAdafactor(const BoundAdafactor&);
  BoundAdafactor(BoundAdafactor&&) noexcept;
  BoundAdafactor& operator=(const BoundAdafactor&);
  BoundAdafactor& operator=(BoundAdafactor&&) noexcept;
  ~BoundAdafactor();

  std::vector<ParamGroup>& groups() { return lists_.groups(); }
  const std::vector<ParamGroup>& groups() const { return lists_.groups(); }
  void zero_grad() { lists_.zero_grad(); }

  void step();

  /// In the layout of Python's torch.optim.
  State state_dict() const;

  /// @throws std::runtime_error naming the key if something is missing, of another type or of another shape;
  /// nothing is changed then.
  void load_state_dict(const State& state);

 private:
  struct ParameterState {
    double step = 0;
    at::Tensor row_var, col_var;  // [..., rows, 1] and [..., 1, columns]
    at::Tensor variance;          // of what is no matrix
  };

  static void create(ParameterState& s, const at::Tensor& p);

  static double epsilon(at::ScalarType type);

  /// Above this ATen's kernels win: they have threads.
  static bool is_small(const at::Tensor& p, const at::Tensor& g);

  template <class T>
  void step_in_loops(const at::Tensor& p, const at::Tensor& g, ParameterState& s, const AdafactorStep& step);

  static void step_by_kernels(const at::Tensor& p, const at::Tensor& g, ParameterState& s,
                              const AdafactorStep& step);

  Adafactor policy_;
  GradientLists lists_;
  std::vector<ParameterState> states_;  // by parameter
  std::vector<double> scratch_;
};

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

/// What a step does with one parameter, apart from its tensors.
struct AdafactorStep {
  double weight;  ///< of what is new in a variance
  double rate;    ///< min(lr, 1 / sqrt(step))
  double kept;    ///< by weight decay
  double eps1, eps2, clip;
  double direction;  ///< -1: down

  /// The factor of an update, from the norms of the parameter before decay and of the update.
  double factor(double parameter_norm, double update_norm, double elements) const {
    const double root = std::sqrt(elements);
    return direction * std::max(eps2, parameter_norm / root) * rate /
           std::max(1.0, update_norm / (root * clip));
  }
};

// Loops that compilers do not turn into vectors by themselves.

/// The sum of squares; each is added to `sums`, too, where that is given.
template <class T>
FULMEN_SIMD_ENTRY T add_squares(const T* x, std::int64_t n, T* sums = nullptr) {
  using V = simd::Vector<T>;
  constexpr auto width = static_cast<std::int64_t>(sizeof(V) / sizeof(T));
  V total{};
  std::int64_t i = 0;
  for (; i + width <= n; i += width) {
    V v, sum;
    std::memcpy(&v, x + i, sizeof(V));
    total += v *= v;
    if (sums == nullptr) continue;
    std::memcpy(&sum, sums + i, sizeof(V));
    sum += v;
    std::memcpy(sums + i, &sum, sizeof(V));
  }
  T rest = 0;
  for (; i < n; ++i) {
    rest += x[i] * x[i];
    if (sums != nullptr) sums[i] += x[i] * x[i];
  }
  for (std::int64_t k = 0; k < width; ++k) rest += total[k];
  return rest;
}

/// x = x * kept + factor * update.
template <class T>
FULMEN_SIMD_ENTRY void decay_and_add(T* x, const T* update, T kept, T factor, std::int64_t n) {
  using V = simd::Vector<T>;
  constexpr auto width = static_cast<std::int64_t>(sizeof(V) / sizeof(T));
  std::int64_t i = 0;
  for (; i + width <= n; i += width) {
    V v, u;
    std::memcpy(&v, x + i, sizeof(V));
    std::memcpy(&u, update + i, sizeof(V));
    v = v * kept + u * factor;
    std::memcpy(x + i, &v, sizeof(V));
  }
  for (; i < n; ++i) x[i] = x[i] * kept + factor * update[i];
}

/// out = grad / sqrt(max(variance * factor, least)).
template <class T>
FULMEN_SIMD_ENTRY void divide_by_roots(T* out, const T* grad, const T* variance, T factor, T least,
                                       std::int64_t n) {
  using V = simd::Vector<T>;
  constexpr auto width = static_cast<std::int64_t>(sizeof(V) / sizeof(T));
  std::int64_t i = 0;
  for (; i + width <= n; i += width) {
    V g, v;
    std::memcpy(&g, grad + i, sizeof(V));
    std::memcpy(&v, variance + i, sizeof(V));
    v = g / simd::sqrt(simd::max(v * factor, V{} + least));
    std::memcpy(out + i, &v, sizeof(V));
  }
  for (; i < n; ++i) out[i] = grad[i] / std::sqrt(std::max(variance[i] * factor, least));
}

/// A step of one small parameter, in a few passes over what the cache holds, where ATen would need twenty
/// calls.
/// @param scratch of at least the parameter's elements
template <class T>
struct SmallAdafactor {
  T* param;
  const T* grad;
  T* scratch;
  std::int64_t elements;
  const AdafactorStep& step;

  static T towards(T from, T to, T weight) { return from + weight * (to - from); }
  T least() const { return static_cast<T>(step.eps1 * step.eps1); }

  void vector(T* variance) const {
    const T weight = static_cast<T>(step.weight);
    for (std::int64_t i = 0; i < elements; ++i) {
      variance[i] = towards(variance[i], grad[i] * grad[i], weight);
    }
    divide_by_roots<T>(scratch, grad, variance, 1, least(), elements);
    apply();
  }

  /// `elements` / (rows * columns) matrices, one after the other.
  void matrices(T* row_var, T* col_var, std::int64_t rows, std::int64_t columns) const {
    const T weight = static_cast<T>(step.weight);
    for (std::int64_t begin = 0; begin < elements;
         begin += rows * columns, row_var += rows, col_var += columns) {
      const T* g = grad + begin;
      T* u = scratch + begin;
      // The first row of scratch has the sums of squares by column before it has an update.
      std::fill(u, u + columns, T(0));
      T mean = 0;
      for (std::int64_t r = 0; r < rows; ++r) {
        const T sum = add_squares(g + r * columns, columns, u);
        row_var[r] = towards(row_var[r], sum / static_cast<T>(columns), weight);
        mean += row_var[r];
      }
      for (std::int64_t c = 0; c < columns; ++c)
        col_var[c] = towards(col_var[c], u[c] / static_cast<T>(rows), weight);
      mean = std::max(mean / static_cast<T>(rows), static_cast<T>(step.eps1));
      for (std::int64_t r = 0; r < rows; ++r) {
        divide_by_roots<T>(u + r * columns, g + r * columns, col_var, row_var[r] / mean, least(), columns);
      }
    }
    apply();
  }

  void apply() const {
    const auto norm = [&](const T* x) { return std::sqrt(static_cast<double>(add_squares(x, elements))); };
    const double factor = step.factor(norm(param), norm(scratch), static_cast<double>(elements));
    decay_and_add(param, scratch, static_cast<T>(step.kept), static_cast<T>(factor), elements);
  }
};

FULMEN_INLINE BoundAdafactor::BoundAdafactor(const Adafactor& policy, NamedParameters parameters)
    : policy_(policy), lists_(std::move(parameters), policy.lr), states_(lists_.params().size()) {}

FULMEN_INLINE BoundAdafactor::BoundAdafactor(const BoundAdafactor&) = default;
FULMEN_INLINE BoundAdafactor::BoundAdafactor(BoundAdafactor&&) noexcept = default;
FULMEN_INLINE BoundAdafactor& BoundAdafactor::operator=(const BoundAdafactor&) = default;
FULMEN_INLINE BoundAdafactor& BoundAdafactor::operator=(BoundAdafactor&&) noexcept = default;
FULMEN_INLINE BoundAdafactor::~BoundAdafactor() = default;

FULMEN_INLINE void BoundAdafactor::step() {
  const at::NoGradGuard no_grad;
  lists_.gather();
  for (std::size_t k = 0; k < lists_.grads().size(); ++k) {
    const at::Tensor& p = lists_.active_params()[k];
    ParameterState& s = states_[lists_.active()[k]];
    if (s.step == 0) create(s, p);
    ++s.step;
    const double lr = lists_.groups()[0].lr;
    const AdafactorStep step{.weight = std::pow(s.step, policy_.beta2_decay),
                             .rate = std::min(lr, 1 / std::sqrt(s.step)),
                             .kept = 1 - lr * policy_.weight_decay,
                             .eps1 = policy_.eps.first.value_or(epsilon(p.scalar_type())),
                             .eps2 = policy_.eps.second,
                             .clip = policy_.d,
                             .direction = policy_.maximize ? 1.0 : -1.0};
    const at::Tensor& g = lists_.grads()[k];
    if (!is_small(p, g))
      step_by_kernels(p, g, s, step);
    else if (p.scalar_type() == at::kFloat)
      step_in_loops<float>(p, g, s, step);
    else
      step_in_loops<double>(p, g, s, step);
  }
}

FULMEN_INLINE State BoundAdafactor::state_dict() const {
  State all, state;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    const ParameterState& s = states_[i];
    if (s.step == 0) continue;
    State one;
    one.set("step", at::scalar_tensor(s.step, at::kFloat));
    if (s.variance.defined())
      one.set("variance", s.variance);
    else
      one.set("row_var", s.row_var).set("col_var", s.col_var);
    all.set(i, one);
  }
  State group = group_state(policy_, lists_.groups()[0]);
  group.set("foreach", c10::IValue());
  state.set("state", all).set("param_groups", std::vector<State>{group});
  return state;
}

FULMEN_INLINE void BoundAdafactor::load_state_dict(const State& state) {
  const at::NoGradGuard no_grad;
  const auto groups = state.get<std::vector<State>>("param_groups");
  const State all = state.get<State>("state");
  check_group(lists_.groups()[0], groups);
  const Adafactor policy = policy_in(groups, policy_);
  std::vector<ParameterState> loaded(states_.size());
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    if (!all.contains(i)) continue;
    const State one = all.get<State>(i);
    ParameterState& s = loaded[i];
    s.step = number_in(one, "step");
    create(s, lists_.params()[i]);
    const auto take = [&](at::Tensor& to, const char* name) {
      if (to.defined()) to = like(one.get<at::Tensor>(name), to, lists_.name(i), name);
    };
    take(s.row_var, "row_var"), take(s.col_var, "col_var"), take(s.variance, "variance");
  }
  load_group(lists_.groups()[0], groups);
  policy_ = policy;
  states_ = std::move(loaded);
}

FULMEN_INLINE void BoundAdafactor::create(ParameterState& s, const at::Tensor& p) {
  if (p.dim() < 2) return void(s.variance = at::zeros(p.sizes(), p.options().requires_grad(false)));
  std::vector<std::int64_t> rows = p.sizes().vec(), columns = rows;
  rows[rows.size() - 1] = columns[columns.size() - 2] = 1;
  s.row_var = at::zeros(rows, p.options().requires_grad(false));
  s.col_var = at::zeros(columns, p.options().requires_grad(false));
}

FULMEN_INLINE double BoundAdafactor::epsilon(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return std::numeric_limits<double>::epsilon();
    case at::kHalf:
      return 1.0 / (1 << 10);
    case at::kBFloat16:
      return 1.0 / (1 << 7);
    default:
      return std::numeric_limits<float>::epsilon();
  }
}

FULMEN_INLINE bool BoundAdafactor::is_small(const at::Tensor& p, const at::Tensor& g) {
  return p.numel() <= 16384 && p.numel() > 0 && p.is_cpu() && simd::supported() &&
         (p.scalar_type() == at::kFloat || p.scalar_type() == at::kDouble) && g.is_cpu() &&
         g.scalar_type() == p.scalar_type() && p.is_contiguous() && g.is_contiguous();
}

template <class T>
void BoundAdafactor::step_in_loops(const at::Tensor& p, const at::Tensor& g, ParameterState& s,
                                   const AdafactorStep& step) {
  const auto elements = static_cast<std::size_t>(p.numel());
  scratch_.resize(std::max(scratch_.size(), elements));
  SmallAdafactor<T> small{p.mutable_data_ptr<T>(), g.const_data_ptr<T>(),
                          reinterpret_cast<T*>(scratch_.data()), p.numel(), step};
  if (p.dim() < 2)
    small.vector(s.variance.mutable_data_ptr<T>());
  else
    small.matrices(s.row_var.mutable_data_ptr<T>(), s.col_var.mutable_data_ptr<T>(), p.size(-2), p.size(-1));
  // Autograd's guard against a backward pass through a parameter that has changed meanwhile.
  p.unsafeGetTensorImpl()->bump_version();
}

FULMEN_INLINE void BoundAdafactor::step_by_kernels(const at::Tensor& p, const at::Tensor& g,
                                                   ParameterState& s, const AdafactorStep& step) {
  at::Tensor update;
  if (s.variance.defined()) {
    s.variance.lerp_(at::mul(g, g), step.weight);
    update = s.variance.clone();
  } else {
    const auto mean_square = [&](std::int64_t dim) {
      return at::linalg_vector_norm(g, 2, at::IntArrayRef{dim}, /*keepdim=*/true).square_().div_(g.size(dim));
    };
    s.row_var.lerp_(mean_square(-1), step.weight);
    s.col_var.lerp_(mean_square(-2), step.weight);
    update = at::mul(s.row_var, s.col_var).div_(s.row_var.mean(-2, /*keepdim=*/true).clamp_(step.eps1));
  }
  update.clamp_(step.eps1 * step.eps1).rsqrt_().mul_(g);
  const at::Tensor before = at::linalg_vector_norm(p), norm = at::linalg_vector_norm(update);
  if (step.kept != 1) p.mul_(step.kept);
  const double elements = static_cast<double>(p.numel()), root = std::sqrt(elements);
  if (p.is_cpu())
    return void(p.add_(update, step.factor(before.item<double>(), norm.item<double>(), elements)));
  // As AdafactorStep::factor, without waiting for the device.
  const at::Tensor limit = norm.to(at::kDouble).div_(root * step.clip).clamp_min_(1.0);
  const at::Tensor factor =
      before.to(at::kDouble).div_(root).clamp_min_(step.eps2).mul_(step.rate).div_(limit);
  p.addcmul_(update, factor.to(update.scalar_type()), step.direction);
}

}  // namespace detail

FULMEN_INLINE detail::BoundAdafactor Adafactor::bind(NamedParameters parameters) const {
  detail::at_least_0("Adafactor", "lr", lr), detail::at_least_0("Adafactor", "weight_decay", weight_decay);
  detail::at_least_0("Adafactor", "eps[0]", eps.first.value_or(0)),
      detail::at_least_0("Adafactor", "eps[1]", eps.second);
  if (!(beta2_decay <= 0))
    fail<std::invalid_argument>("Adafactor::beta2_decay is {}, expected at most 0", beta2_decay);
  if (!(d >= 1)) fail<std::invalid_argument>("Adafactor::d is {}, expected at least 1", d);
  return {*this, std::move(parameters)};
}
#endif

}  // namespace fulmen
