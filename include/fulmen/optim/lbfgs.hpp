// L-BFGS, which evaluates the loss several times a step.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/optim/policy_state.hpp>

#include <ATen/core/grad_mode.h>
#include <c10/util/FunctionRef.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/add.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <functional>
#endif

namespace fulmen {

enum class LineSearch { strong_wolfe };
constexpr std::array<const char*, 1> option_names(LineSearch) { return {"strong_wolfe"}; }

namespace detail {
class BoundLBFGS;
}

/// L-BFGS (Liu and Nocedal, 1989). Options and defaults are those of Python's torch.optim.LBFGS.
///
/// It needs the whole loss at each evaluation, so batches should be large or the same. `Trainer` gives it
/// what it needs; by hand: `optimizer.step(closure)`, where the closure zeroes gradients, runs backward and
/// returns the loss.
struct LBFGS {
  double lr = 1;
  std::int64_t max_iter = 20;              ///< iterations a step
  std::optional<std::int64_t> max_eval{};  ///< evaluations a step; nothing: max_iter * 5 / 4
  double tolerance_grad = 1e-7;            ///< ends the step when no element of the gradient is larger
  double tolerance_change = 1e-9;          ///< ends the step when loss or parameters change less
  std::int64_t history_size = 100;
  std::optional<LineSearch> line_search_fn{};  ///< nothing: steps of lr, unchecked
  bool maximize = false;

  static constexpr auto options = std::tuple{option("max_iter", &LBFGS::max_iter),
                                             option("max_eval", &LBFGS::max_eval),
                                             option("tolerance_grad", &LBFGS::tolerance_grad),
                                             option("tolerance_change", &LBFGS::tolerance_change),
                                             option("history_size", &LBFGS::history_size),
                                             option("line_search_fn", &LBFGS::line_search_fn),
                                             option("maximize", &LBFGS::maximize)};

  /// Parameters: floating-point, of one type, on one device.
  /// @throws std::invalid_argument naming the option that is out of range, or the parameter that is of
  /// another kind.
  detail::BoundLBFGS bind(NamedParameters parameters) const;
};

namespace detail {

struct LinePoint;

/// The parameters are seen as one vector. Its buffers are kept; what must be known on the host comes in one
/// transfer for each evaluation and two for each iteration, however long the history is.
class BoundLBFGS {
 public:
  BoundLBFGS(const LBFGS& policy, NamedParameters parameters);
  // All defaults; declared, so that not every source compiles them.
  BoundLBFGS(const BoundLBFGS&);
  BoundLBFGS(BoundLBFGS&&) noexcept;
  BoundLBFGS& operator=(const BoundLBFGS&);
  BoundLBFGS& operator=(BoundLBFGS&&) noexcept;
  ~BoundLBFGS();

  std::vector<ParamGroup>& groups() { return groups_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  void zero_grad();

  template <class NoClosure = void>
  void step() {
    static_assert(!std::is_void_v<NoClosure>,
                  "fulmen: LBFGS evaluates the loss several times a step; call step(closure)");
  }

  /// Up to max_iter iterations. @param closure makes the gradients and gives the loss, a tensor with one
  /// element
  /// @return the loss at the beginning
  template <class Closure>
  at::Tensor step(Closure&& closure) {
    return step_with([&]() -> at::Tensor {
      const at::AutoGradMode grad(true);
      return closure();
    });
  }

  /// As Python's: all state is under the first parameter.
  State state_dict() const;

  /// @throws std::runtime_error naming the key if something is missing, of another type or of another size;
  /// nothing is changed then.
  void load_state_dict(const State& state);

 private:
  /// step(), of a closure that has gradients enabled.
  at::Tensor step_with(c10::function_ref<at::Tensor()> loss);

  ParamGroup& group() { return groups_[0]; }
  const std::vector<at::Tensor>& params() const { return groups_[0].params; }

  at::Tensor flat() const;
  /// Pieces of a flat vector in the shapes of the parameters.
  std::vector<at::Tensor> views(const at::Tensor& vector) const;
  at::Tensor vector_in(const at::Tensor& loaded, const char* what) const;
  std::vector<at::Tensor> vectors_in(const State& state, const char* what) const;
  at::Tensor scalar_in(const at::Tensor& loaded) const;

  /// Numbers of the device, in one transfer.
  static std::vector<double> host(std::initializer_list<at::Tensor> scalars);

  /// A buffer for a gradient that nobody holds.
  const at::Tensor& spare();
  at::Tensor gather();
  /// What is known where the parameters are now. @param along whether the slope is wanted
  LinePoint look(const at::Tensor& loss, double t, bool along);

  void keep_origin();
  void move_to(double t);

  /// to = combine(to, with), of single numbers. On the CPU without the calls, which take longer than short
  /// vectors' products.
  template <class Combine>
  static void update(at::Tensor& to, const at::Tensor& with, const Combine& combine);
  /// x += sign * factor * y, with the factor left on its device.
  static void add_scaled(at::Tensor& x, const at::Tensor& y, const at::Tensor& factor, double sign);

  /// Sets the direction: the approximate inverse Hessian times the negative gradient.
  void aim(const at::Tensor& grad);
  static at::Tensor take_first(std::vector<at::Tensor>& from);
  /// Before anything is known of the curvature: a step whose elements add up to lr at most.
  double first_rate(const at::Tensor& grad);

  LBFGS policy_;
  std::vector<ParamGroup> groups_;
  std::int64_t size_ = 0;  // elements of all parameters
  std::int64_t func_evals_ = 0, n_iter_ = 0;
  double t_ = 0, previous_loss_ = 0;
  // Flat: the direction, where a line search began, and both in pieces of the parameters' shapes.
  at::Tensor direction_, origin_;
  std::vector<at::Tensor> direction_views_, origin_views_;
  at::Tensor previous_grad_, h_diag_;  // h_diag_ undefined: 1
  std::vector<at::Tensor> old_dirs_, old_stps_, ro_, al_;
  at::Tensor y_, s_;  // the next entries of old_dirs_ and old_stps_
  std::vector<at::Tensor> gradients_, pieces_;
};

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

/// Where a function of one variable has its minimum between two points with values and slopes: that of the
/// cubic through them, held within [low, high]; their middle where the cubic has none. Nocedal and Wright,
/// Numerical Optimization, (3.59).
inline double cubic_minimum(double x1, double f1, double g1, double x2, double f2, double g2, double low,
                            double high) {
  const double d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2);
  const double square = d1 * d1 - g1 * g2;
  if (!(square >= 0)) return (low + high) / 2;
  const double d2 = std::sqrt(square);
  const double x = x1 <= x2 ? x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2))
                            : x1 - (x1 - x2) * ((g1 + d2 - d1) / (g1 - g2 + 2 * d2));
  return std::min(std::max(x, low), high);
}

/// A point on the search line: x + t * direction.
struct LinePoint {
  double t = 0;
  double loss = 0;
  double slope = 0;     ///< of the loss along the direction
  double max_grad = 0;  ///< largest magnitude in the gradient
  at::Tensor grad;      ///< flat
};

/// A point of the line that satisfies the strong Wolfe conditions, or the best one found in `max_evaluations`
/// (one is always made). The method of torch.optim.LBFGS: bracket, then zoom (Nocedal and Wright,
/// algorithms 3.5 and 3.6, with cubic interpolation). @param evaluate gives the LinePoint of a t. @return the
/// point and how many evaluations were made
template <class Evaluate>
std::pair<LinePoint, std::int64_t> strong_wolfe(const Evaluate& evaluate, const LinePoint& start, double t,
                                                double max_step, std::int64_t max_evaluations) {
  constexpr double c1 = 1e-4, c2 = 0.9, smallest_bracket = 1e-9;
  const auto too_high = [&](const LinePoint& p) { return p.loss > start.loss + c1 * p.t * start.slope; };
  const auto is_flat = [&](const LinePoint& p) { return std::abs(p.slope) <= -c2 * start.slope; };
  LinePoint previous = start, now = evaluate(t);
  std::int64_t made = 0;  // besides the first
  while (made < max_evaluations) {
    const bool rises = too_high(now) || (made > 1 && now.loss >= previous.loss);
    if (!rises && is_flat(now)) return {now, made + 1};
    if (rises || now.slope >= 0) break;
    const double next = cubic_minimum(previous.t, previous.loss, previous.slope, now.t, now.loss, now.slope,
                                      now.t + 0.01 * (now.t - previous.t), now.t * 10);
    previous = std::exchange(now, evaluate(next));
    ++made;
  }
  std::array bracket{made >= max_evaluations ? start : previous, now};
  const auto lower = [&] { return bracket[0].loss <= bracket[1].loss ? std::size_t{0} : std::size_t{1}; };
  std::size_t low = lower();
  bool slow = false;
  while (made < max_evaluations) {
    const auto [left, right] = std::minmax({bracket[0].t, bracket[1].t});
    if ((right - left) * max_step < smallest_bracket) break;
    const auto& [a, b] = bracket;
    t = cubic_minimum(a.t, a.loss, a.slope, b.t, b.loss, b.slope, left, right);
    // Twice in a row near an end, or on it: a tenth of the way inside.
    const double margin = 0.1 * (right - left);
    if (std::min(right - t, t - left) < margin) {
      const bool move = slow || t >= right || t <= left;
      if (move) t = std::abs(t - right) < std::abs(t - left) ? right - margin : left + margin;
      slow = !move;
    } else {
      slow = false;
    }
    now = evaluate(t);
    ++made;
    if (too_high(now) || now.loss >= bracket[low].loss) {
      bracket[1 - low] = now;
      low = lower();
      continue;
    }
    const bool done = is_flat(now);
    if (!done && now.slope * (bracket[1 - low].t - bracket[low].t) >= 0) bracket[1 - low] = bracket[low];
    bracket[low] = now;
    if (done) break;
  }
  return {bracket[low], made + 1};
}

FULMEN_INLINE BoundLBFGS::BoundLBFGS(const LBFGS& policy, NamedParameters parameters)
    : policy_(policy), groups_(1) {
  group().lr = group().initial_lr = policy_.lr;
  if (!policy_.max_eval) policy_.max_eval = policy_.max_iter * 5 / 4;
  for (NamedParameter& p : parameters) {
    const at::Tensor& first = group().params.empty() ? p.tensor : params()[0];
    if (!p.tensor.is_floating_point() || p.tensor.scalar_type() != first.scalar_type() ||
        p.tensor.device() != first.device()) {
      fail<std::invalid_argument>(
          "LBFGS: parameter '{}' is {} on {}, expected floating-point numbers like the others: {} on {}",
          p.name, c10::toString(p.tensor.scalar_type()), p.tensor.device().str(),
          c10::toString(first.scalar_type()), first.device().str());
    }
    size_ += p.tensor.numel();
    group().params.push_back(std::move(p.tensor));
  }
  if (params().empty()) return;
  direction_ = flat(), origin_ = flat();
  direction_views_ = views(direction_), origin_views_ = views(origin_);
}

FULMEN_INLINE BoundLBFGS::BoundLBFGS(const BoundLBFGS&) = default;
FULMEN_INLINE BoundLBFGS::BoundLBFGS(BoundLBFGS&&) noexcept = default;
FULMEN_INLINE BoundLBFGS& BoundLBFGS::operator=(const BoundLBFGS&) = default;
FULMEN_INLINE BoundLBFGS& BoundLBFGS::operator=(BoundLBFGS&&) noexcept = default;
FULMEN_INLINE BoundLBFGS::~BoundLBFGS() = default;

FULMEN_INLINE void BoundLBFGS::zero_grad() {
  for (const at::Tensor& p : params()) p.mutable_grad().reset();
}

FULMEN_INLINE at::Tensor BoundLBFGS::step_with(c10::function_ref<at::Tensor()> loss) {
  const at::NoGradGuard no_grad;
  const at::Tensor first_loss = loss();
  if (params().empty()) return first_loss;
  ++func_evals_;
  LinePoint now = look(first_loss, 0, /*along=*/false);
  if (now.max_grad <= policy_.tolerance_grad) return first_loss;
  std::int64_t evaluations = 1;
  for (std::int64_t i = 1; i <= policy_.max_iter; ++i) {
    ++n_iter_;
    aim(now.grad);
    previous_grad_ = now.grad;
    previous_loss_ = now.loss;
    t_ = n_iter_ == 1 ? first_rate(now.grad) : group().lr;
    const auto [least, most] = at::aminmax(direction_);
    const auto known = host({at::dot(now.grad, direction_), least, most});
    const double largest = std::max(-known[1], known[2]);
    now.t = 0, now.slope = known[0];
    if (now.slope > -policy_.tolerance_change) break;
    std::int64_t made = 0;
    if (policy_.line_search_fn == LineSearch::strong_wolfe) {
      keep_origin();
      double at = 0;
      const auto evaluate = [&](double t) {
        move_to(at = t);
        return look(loss(), t, /*along=*/true);
      };
      std::tie(now, made) = strong_wolfe(evaluate, now, t_, largest, *policy_.max_eval - evaluations);
      if (at != now.t) move_to(now.t);
      t_ = now.t;
    } else {
      for (std::size_t k = 0; k < params().size(); ++k) params()[k].add_(direction_views_[k], t_);
      // After the last iteration nobody needs it; the next step begins with an evaluation.
      if (i < policy_.max_iter) now = look(loss(), t_, /*along=*/false), made = 1;
    }
    evaluations += made, func_evals_ += made;
    if (evaluations >= *policy_.max_eval || now.max_grad <= policy_.tolerance_grad) break;
    if (std::abs(t_) * largest <= policy_.tolerance_change) break;
    if (std::abs(now.loss - previous_loss_) < policy_.tolerance_change) break;
  }
  return first_loss;
}

FULMEN_INLINE State BoundLBFGS::state_dict() const {
  State all, state;
  if (func_evals_ > 0) {
    State one;
    one.set("func_evals", func_evals_).set("n_iter", n_iter_);
    if (previous_grad_.defined()) {
      one.set("d", direction_)
          .set("t", t_)
          .set("old_dirs", old_dirs_)
          .set("old_stps", old_stps_)
          .set("ro", ro_);
      one.set("H_diag", h_diag_.defined() ? c10::IValue(h_diag_) : c10::IValue(std::int64_t{1}));
      one.set("prev_flat_grad", previous_grad_).set("prev_loss", previous_loss_);
      if (n_iter_ > 1) {
        std::vector<c10::IValue> al(al_.begin(), al_.end());
        al.resize(static_cast<std::size_t>(policy_.history_size));
        one.set("al", al);
      }
    }
    all.set(0, one);
  }
  state.set("state", all).set("param_groups", std::vector<State>{group_state(policy_, groups_[0])});
  return state;
}

FULMEN_INLINE void BoundLBFGS::load_state_dict(const State& state) {
  const at::NoGradGuard no_grad;
  const auto groups = state.get<std::vector<State>>("param_groups");
  const State all = state.get<State>("state");
  check_group(group(), groups);
  BoundLBFGS loaded(policy_in(groups, policy_), {});
  if (all.contains(0)) {
    const State one = all.get<State>(0);
    loaded.func_evals_ = static_cast<std::int64_t>(number_in(one, "func_evals"));
    loaded.n_iter_ = static_cast<std::int64_t>(number_in(one, "n_iter"));
    if (one.contains("d")) {
      loaded.direction_ = vector_in(one.get<at::Tensor>("d"), "d");
      loaded.previous_grad_ = vector_in(one.get<at::Tensor>("prev_flat_grad"), "prev_flat_grad");
      loaded.old_dirs_ = vectors_in(one, "old_dirs"), loaded.old_stps_ = vectors_in(one, "old_stps");
      for (const at::Tensor& ro : one.get<std::vector<at::Tensor>>("ro")) loaded.ro_.push_back(scalar_in(ro));
      if (loaded.old_dirs_.size() != loaded.ro_.size() || loaded.old_stps_.size() != loaded.ro_.size()) {
        fail(
            "optimizer state: old_dirs, old_stps and ro have {}, {} and {} entries, expected the same "
            "number",
            loaded.old_dirs_.size(), loaded.old_stps_.size(), loaded.ro_.size());
      }
      const c10::IValue h_diag = one.get<c10::IValue>("H_diag");
      if (h_diag.isTensor()) loaded.h_diag_ = scalar_in(h_diag.toTensor());
      loaded.t_ = number_in(one, "t"), loaded.previous_loss_ = number_in(one, "prev_loss");
    }
  }
  load_group(group(), groups);
  policy_ = loaded.policy_;
  func_evals_ = loaded.func_evals_, n_iter_ = loaded.n_iter_, t_ = loaded.t_,
  previous_loss_ = loaded.previous_loss_;
  old_dirs_ = std::move(loaded.old_dirs_), old_stps_ = std::move(loaded.old_stps_),
  ro_ = std::move(loaded.ro_);
  h_diag_ = loaded.h_diag_, previous_grad_ = loaded.previous_grad_;
  al_.clear();
  if (loaded.direction_.defined()) direction_.copy_(loaded.direction_);
}

FULMEN_INLINE at::Tensor BoundLBFGS::flat() const {
  return at::empty({size_}, at::TensorOptions(params()[0].scalar_type()).device(params()[0].device()));
}

FULMEN_INLINE std::vector<at::Tensor> BoundLBFGS::views(const at::Tensor& vector) const {
  std::vector<at::Tensor> out;
  std::int64_t begin = 0;
  for (const at::Tensor& p : params()) {
    out.push_back(vector.narrow(0, begin, p.numel()).view(p.sizes()));
    begin += p.numel();
  }
  return out;
}

FULMEN_INLINE at::Tensor BoundLBFGS::vector_in(const at::Tensor& loaded, const char* what) const {
  if (loaded.dim() != 1 || loaded.numel() != size_) {
    fail("optimizer state: {} has {} elements, expected {}", what, loaded.numel(), size_);
  }
  return flat().copy_(loaded);
}

FULMEN_INLINE std::vector<at::Tensor> BoundLBFGS::vectors_in(const State& state, const char* what) const {
  std::vector<at::Tensor> out;
  for (const at::Tensor& loaded : state.get<std::vector<at::Tensor>>(what))
    out.push_back(vector_in(loaded, what));
  return out;
}

FULMEN_INLINE at::Tensor BoundLBFGS::scalar_in(const at::Tensor& loaded) const {
  return loaded.to(direction_.options());
}

FULMEN_INLINE std::vector<double> BoundLBFGS::host(std::initializer_list<at::Tensor> scalars) {
  std::vector<double> out;
  std::vector<at::Tensor> elsewhere;
  for (const at::Tensor& s : scalars) {
    if (s.is_cpu())
      out.push_back(s.item<double>());
    else
      elsewhere.push_back(s.detach().to(at::kDouble).reshape({}));
  }
  if (elsewhere.empty()) return out;
  // The loss may be on the CPU though nothing else is; it comes first.
  const at::Tensor rest = at::stack(elsewhere).cpu();
  out.insert(out.end(), rest.const_data_ptr<double>(), rest.const_data_ptr<double>() + rest.numel());
  return out;
}

FULMEN_INLINE const at::Tensor& BoundLBFGS::spare() {
  for (const at::Tensor& t : gradients_) {
    if (t.use_count() == 1) return t;
  }
  return gradients_.emplace_back(flat());
}

FULMEN_INLINE at::Tensor BoundLBFGS::gather() {
  pieces_.clear();
  for (const at::Tensor& p : params()) {
    const at::Tensor& g = p.grad();
    if (!g.defined())
      pieces_.push_back(at::zeros({p.numel()}, direction_.options()));
    else
      pieces_.push_back((g.is_sparse() ? g.to_dense() : g).reshape({-1}));
  }
  at::Tensor out = spare();
  at::cat_out(out, pieces_);
  pieces_.clear();
  if (policy_.maximize) out.neg_();
  return out;
}

FULMEN_INLINE LinePoint BoundLBFGS::look(const at::Tensor& loss, double t, bool along) {
  if (!loss.defined())
    fail<std::invalid_argument>("LBFGS: the closure gave no loss, expected a tensor with one element");
  LinePoint point;
  point.t = t;
  point.grad = gather();
  const auto [least, most] = at::aminmax(point.grad);
  const auto known =
      along ? host({loss, least, most, at::dot(point.grad, direction_)}) : host({loss, least, most});
  point.loss = policy_.maximize ? -known[0] : known[0];
  point.max_grad = std::max(-known[1], known[2]);
  if (along) point.slope = known[3];
  return point;
}

FULMEN_INLINE void BoundLBFGS::keep_origin() {
  pieces_.clear();
  for (const at::Tensor& p : params()) pieces_.push_back(p.detach().reshape({-1}));
  at::cat_out(origin_, pieces_);
  pieces_.clear();
}

FULMEN_INLINE void BoundLBFGS::move_to(double t) {
  for (std::size_t k = 0; k < params().size(); ++k) {
    at::Tensor p = params()[k];
    at::add_out(p, origin_views_[k], direction_views_[k], t);
  }
}

template <class Combine>
void BoundLBFGS::update(at::Tensor& to, const at::Tensor& with, const Combine& combine) {
  if (!to.is_cpu())
    to = combine(to, with);
  else if (to.scalar_type() == at::kDouble)
    *to.mutable_data_ptr<double>() = combine(*to.data_ptr<double>(), *with.data_ptr<double>());
  else if (to.scalar_type() == at::kFloat)
    *to.mutable_data_ptr<float>() = combine(*to.data_ptr<float>(), *with.data_ptr<float>());
  else
    to = combine(to, with);
}

FULMEN_INLINE void BoundLBFGS::add_scaled(at::Tensor& x, const at::Tensor& y, const at::Tensor& factor,
                                          double sign) {
  if (factor.is_cpu())
    x.add_(y, sign * factor.item<double>());
  else
    x.addcmul_(y, factor, sign);
}

FULMEN_INLINE void BoundLBFGS::aim(const at::Tensor& grad) {
  if (n_iter_ == 1) {
    old_dirs_.clear(), old_stps_.clear(), ro_.clear();
    h_diag_.reset();
    at::neg_out(direction_, grad);
    return;
  }
  if (!y_.defined()) y_ = flat(), s_ = flat();
  at::sub_out(y_, grad, previous_grad_);
  at::mul_out(s_, direction_, at::scalar_tensor(t_, at::kDouble));
  const at::Tensor ys = at::dot(y_, s_);
  if (host({ys})[0] > 1e-10) {
    h_diag_ = ys / at::dot(y_, y_);
    // The oldest entry's memory serves the next one.
    at::Tensor oldest_y, oldest_s;
    if (static_cast<std::int64_t>(ro_.size()) == policy_.history_size) {
      oldest_y = take_first(old_dirs_), oldest_s = take_first(old_stps_), take_first(ro_);
    }
    old_dirs_.push_back(std::exchange(y_, std::move(oldest_y)));
    old_stps_.push_back(std::exchange(s_, std::move(oldest_s)));
    ro_.push_back(at::reciprocal(ys));
  }
  at::neg_out(direction_, grad);
  const std::size_t count = ro_.size();
  if (al_.size() < count) al_.resize(count);
  for (std::size_t i = count; i-- > 0;) {
    update(al_[i] = at::dot(old_stps_[i], direction_), ro_[i], std::multiplies<>());
    add_scaled(direction_, old_dirs_[i], al_[i], -1);
  }
  if (h_diag_.defined()) direction_.mul_(h_diag_);
  for (std::size_t i = 0; i < count; ++i) {
    at::Tensor be = at::dot(old_dirs_[i], direction_);
    update(be, ro_[i], std::multiplies<>());
    update(be, al_[i], std::minus<>());
    add_scaled(direction_, old_stps_[i], be, -1);
  }
}

FULMEN_INLINE at::Tensor BoundLBFGS::take_first(std::vector<at::Tensor>& from) {
  at::Tensor first = std::move(from.front());
  from.erase(from.begin());
  return first;
}

FULMEN_INLINE double BoundLBFGS::first_rate(const at::Tensor& grad) {
  const at::Tensor rate = at::abs(grad).sum().reciprocal_();
  return host({rate})[0] < 1 ? host({rate.mul_(group().lr)})[0] : group().lr;
}

}  // namespace detail

FULMEN_INLINE detail::BoundLBFGS LBFGS::bind(NamedParameters parameters) const {
  detail::at_least_0("LBFGS", "lr", lr);
  if (history_size < 1)
    fail<std::invalid_argument>("LBFGS::history_size is {}, expected at least 1", history_size);
  return {*this, std::move(parameters)};
}
#endif

}  // namespace fulmen
