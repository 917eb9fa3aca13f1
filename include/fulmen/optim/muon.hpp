// Muon: momentum, made orthogonal, for the matrices of hidden layers.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/optim/policy_state.hpp>

#include <array>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <map>
#endif

namespace fulmen {

/// How Muon's rate depends on a matrix' shape [A, B]: lr times sqrt(max(1, A / B)), 0.2 sqrt(max(A, B)),
/// sqrt(A / B).
enum class AdjustLr { original, match_rms_adamw, spectral_unclamped };
constexpr std::array<const char*, 3> option_names(AdjustLr) {
  return {"original", "match_rms_adamw", "spectral_unclamped"};
}

namespace detail {
class BoundMuon;
}

/// Muon (Jordan et al., 2024). Options and defaults are those of Python's torch.optim.Muon. It takes matrices
/// only; embeddings, heads and biases are for another optimizer:
///
///   split_parameters([](std::string_view name, const at::Tensor& p) { return p.dim() == 2 && name !=
///   "head.weight"; },
///                    Muon{.lr = 0.02}, AdamW{})
///
/// As in Python the momentum is made orthogonal in bfloat16. What that gives depends on the processor's
/// matrix products, in the third digit.
struct Muon {
  double lr = 1e-3;
  double weight_decay = 0.1;
  double momentum = 0.95;
  bool nesterov = true;
  std::array<double, 3> ns_coefficients = {3.4445, -4.7750, 2.0315};  ///< of the Newton-Schulz iteration
  double eps = 1e-7;
  std::int64_t ns_steps = 5;  ///< below 100
  AdjustLr adjust_lr_fn = AdjustLr::original;

  static constexpr auto options = std::tuple{option("weight_decay", &Muon::weight_decay),
                                             option("momentum", &Muon::momentum),
                                             option("nesterov", &Muon::nesterov),
                                             option("ns_coefficients", &Muon::ns_coefficients),
                                             option("eps", &Muon::eps),
                                             option("ns_steps", &Muon::ns_steps),
                                             option("adjust_lr_fn", &Muon::adjust_lr_fn)};

  /// @throws std::invalid_argument naming the option that is out of range, or the parameter that is no
  /// matrix.
  detail::BoundMuon bind(NamedParameters parameters) const;
};

namespace detail {

class BoundMuon {
 public:
  BoundMuon(const Muon& policy, NamedParameters parameters);
  // All defaults; declared, so that not every source compiles them.
  BoundMuon(const BoundMuon&);
  BoundMuon(BoundMuon&&) noexcept;
  BoundMuon& operator=(const BoundMuon&);
  BoundMuon& operator=(BoundMuon&&) noexcept;
  ~BoundMuon();

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
  struct Member {
    std::size_t active;  // place among the active parameters
    bool upright;        // more rows than columns: it is turned
  };
  /// Matrices of one shape, turned to lie: their products are one call. Small ones only; large ones would
  /// need memory.
  struct Batch {
    std::int64_t rows, columns;
    std::vector<Member> members;
  };

  void regroup();

  /// The nearest matrices with orthogonal rows, roughly: singular values between 0.5 and 1.5. @param x [rows,
  /// columns] or [matrices, rows, columns], overwritten
  at::Tensor orthogonal(at::Tensor x) const;

  double adjustment(const at::Tensor& p) const;

  static constexpr std::int64_t largest_batch = 1 << 20;  // elements

  Muon policy_;
  GradientLists lists_;
  std::vector<at::Tensor> momentum_;         // by parameter
  std::vector<at::Tensor> active_momentum_;  // of the active parameters
  std::vector<Batch> batches_;
};

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE BoundMuon::BoundMuon(const Muon& policy, NamedParameters parameters)
    : policy_(policy), lists_(std::move(parameters), policy.lr), momentum_(lists_.params().size()) {
  lists_.groups()[0].momentum = policy_.momentum;
  for (std::size_t i = 0; i < lists_.params().size(); ++i) {
    const at::Tensor& p = lists_.params()[i];
    if (p.dim() != 2 || !p.is_floating_point()) {
      fail<std::invalid_argument>(
          "Muon: parameter '{}' has {} dimensions, of {}, expected a matrix of floating-point numbers; "
          "others need another "
          "optimizer: see split_parameters",
          lists_.name(i), p.dim(), c10::toString(p.scalar_type()));
    }
  }
}

FULMEN_INLINE BoundMuon::BoundMuon(const BoundMuon&) = default;
FULMEN_INLINE BoundMuon::BoundMuon(BoundMuon&&) noexcept = default;
FULMEN_INLINE BoundMuon& BoundMuon::operator=(const BoundMuon&) = default;
FULMEN_INLINE BoundMuon& BoundMuon::operator=(BoundMuon&&) noexcept = default;
FULMEN_INLINE BoundMuon::~BoundMuon() = default;

FULMEN_INLINE void BoundMuon::step() {
  const at::NoGradGuard no_grad;
  if (!lists_.gather()) [[unlikely]]
    regroup();
  const auto& grads = lists_.grads();
  if (grads.empty()) return;
  const double lr = lists_.groups()[0].lr, momentum = lists_.groups()[0].momentum.value_or(policy_.momentum);
  at::_foreach_lerp_(active_momentum_, grads, 1 - momentum);
  at::_foreach_mul_(lists_.active_params(), 1 - lr * policy_.weight_decay);
  for (const Batch& batch : batches_) {
    const bool one = batch.members.size() == 1;
    const auto count = static_cast<std::int64_t>(batch.members.size());
    at::Tensor x = at::empty({count, batch.rows, batch.columns},
                             at::TensorOptions(at::kBFloat16).device(grads[0].device()));
    const auto slot = [&](std::size_t at) {
      const at::Tensor matrix = x.select(0, static_cast<std::int64_t>(at));
      return batch.members[at].upright ? matrix.t() : matrix;
    };
    for (std::size_t at = 0; at < batch.members.size(); ++at) {
      const std::size_t k = batch.members[at].active;
      const at::Tensor& buffer = active_momentum_[k];
      slot(at).copy_(policy_.nesterov ? grads[k].lerp(buffer, momentum) : buffer);
    }
    x = one ? orthogonal(x[0]).unsqueeze(0) : orthogonal(x);
    for (std::size_t at = 0; at < batch.members.size(); ++at) {
      const at::Tensor& p = lists_.active_params()[batch.members[at].active];
      p.add_(slot(at), -lr * adjustment(p));
    }
  }
}

FULMEN_INLINE State BoundMuon::state_dict() const {
  State all, state;
  for (std::size_t i = 0; i < momentum_.size(); ++i) {
    if (momentum_[i].defined()) all.set(i, State().set("momentum_buffer", momentum_[i]));
  }
  state.set("state", all).set("param_groups", std::vector<State>{group_state(policy_, lists_.groups()[0])});
  return state;
}

FULMEN_INLINE void BoundMuon::load_state_dict(const State& state) {
  const at::NoGradGuard no_grad;
  const auto groups = state.get<std::vector<State>>("param_groups");
  const State all = state.get<State>("state");
  check_group(lists_.groups()[0], groups);
  const Muon policy = policy_in(groups, policy_);
  std::vector<at::Tensor> loaded(momentum_.size());
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    if (!all.contains(i)) continue;
    loaded[i] = like(all.get<State>(i).get<at::Tensor>("momentum_buffer"), lists_.params()[i], lists_.name(i),
                     "momentum_buffer");
  }
  load_group(lists_.groups()[0], groups);
  policy_ = policy;
  lists_.groups()[0].momentum = policy_.momentum;
  momentum_ = std::move(loaded);
  lists_.forget();
}

FULMEN_INLINE void BoundMuon::regroup() {
  batches_.clear(), active_momentum_.clear();
  std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> open;  // by shape: the batch that has room
  for (std::size_t k = 0; k < lists_.active().size(); ++k) {
    const at::Tensor& p = lists_.active_params()[k];
    at::Tensor& buffer = momentum_[lists_.active()[k]];
    if (!buffer.defined()) buffer = at::zeros_like(p);
    active_momentum_.push_back(buffer);
    const auto [rows, columns] = std::minmax({p.size(0), p.size(1)});
    std::size_t& batch = open.try_emplace({rows, columns}, batches_.size()).first->second;
    const bool full =
        batch < batches_.size() &&
        static_cast<std::int64_t>(batches_[batch].members.size() + 1) * p.numel() > largest_batch;
    if (full) batch = batches_.size();
    if (batch == batches_.size()) batches_.push_back({rows, columns, {}});
    batches_[batch].members.push_back({k, p.size(0) > p.size(1)});
  }
}

FULMEN_INLINE at::Tensor BoundMuon::orthogonal(at::Tensor x) const {
  const auto [a, b, c] = policy_.ns_coefficients;
  const std::array<std::int64_t, 2> matrix{-2, -1};
  x.div_(at::linalg_vector_norm(x, 2, matrix, /*keepdim=*/true).clamp_(policy_.eps));
  const auto multiply_add = [](at::Tensor& out, const at::Tensor& m, const at::Tensor& left,
                               const at::Tensor& right, double beta, double alpha) {
    if (m.dim() == 2)
      at::addmm_out(out, m, left, right, beta, alpha);
    else
      at::baddbmm_out(out, m, left, right, beta, alpha);
  };
  at::Tensor gram = at::matmul(x, x.mT()), polynomial = at::empty_like(gram), next = at::empty_like(x);
  for (std::int64_t i = 0; i < policy_.ns_steps; ++i) {
    if (i > 0) at::matmul_out(gram, x, x.mT());
    multiply_add(polynomial, gram, gram, gram, b, c);
    multiply_add(next, x, polynomial, x, a, 1);
    std::swap(x, next);
  }
  return x;
}

FULMEN_INLINE double BoundMuon::adjustment(const at::Tensor& p) const {
  const double rows = static_cast<double>(p.size(0)), columns = static_cast<double>(p.size(1));
  switch (policy_.adjust_lr_fn) {
    case AdjustLr::original:
      return std::sqrt(std::max(1.0, rows / columns));
    case AdjustLr::match_rms_adamw:
      return 0.2 * std::sqrt(std::max(rows, columns));
    case AdjustLr::spectral_unclamped:
      break;
  }
  return std::sqrt(rows / columns);
}

}  // namespace detail

FULMEN_INLINE detail::BoundMuon Muon::bind(NamedParameters parameters) const {
  detail::at_least_0("Muon", "lr", lr), detail::at_least_0("Muon", "momentum", momentum);
  detail::at_least_0("Muon", "weight_decay", weight_decay);
  if (ns_steps < 0 || ns_steps >= 100)
    fail<std::invalid_argument>("Muon::ns_steps is {}, expected 0 to 99", ns_steps);
  return {*this, std::move(parameters)};
}
#endif

}  // namespace fulmen
