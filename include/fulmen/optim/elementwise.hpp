// Optimizers whose update of an element needs that element alone: on the CPU all parameters in one pass over
// memory, elsewhere ATen's foreach or fused kernels.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/flat_memory.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/optim/policy_state.hpp>
#include <fulmen/optim/simd.hpp>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/scalar_tensor.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_neg.h>
#endif

namespace fulmen {

/// What a rule's update() sees: `width` elements at once (V, a vector) or the last few one by one (V = T).
template <class T, class V, std::size_t Slots, std::size_t Present>
class Elements {
 public:
  FULMEN_SIMD Elements(T* param, const T* grad, const std::array<T*, Slots>& state, std::ptrdiff_t offset)
      : param_(param), grad_(grad), state_(state), offset_(offset) {}

  /// Whether state tensor number k is there, for `if constexpr`: false where has_state(k) says so.
  static consteval bool has(std::size_t k) { return Present >> k & 1; }

  FULMEN_SIMD V param() const { return load(param_); }
  FULMEN_SIMD V grad() const { return load(grad_); }
  /// The gradient as most optimizers take it: negated to maximize, and with weight_decay times the parameter
  /// (an L2 penalty). Without decay the parameter has no part in it, so that one that is infinite stays so.
  FULMEN_SIMD V grad(bool maximize, double weight_decay) const {
    const V g = grad() * scalar(maximize ? -1 : 1);
    return weight_decay != 0 ? g + param() * scalar(weight_decay) : g;
  }
  /// State tensor number k of Rule::state_names.
  FULMEN_SIMD V state(std::size_t k) const { return load(state_[k]); }
  FULMEN_SIMD void set_param(const V& value) const { store(param_, value); }
  FULMEN_SIMD void set_state(std::size_t k, const V& value) const { store(state_[k], value); }

  /// A scalar in the type of the elements, to be used with vectors of them.
  FULMEN_SIMD static T scalar(double value) { return static_cast<T>(value); }
  /// A vector of that scalar, for conditional expressions, which need vectors on both sides.
  FULMEN_SIMD static V fill(double value) { return V{} + scalar(value); }
  /// torch.lerp: from + weight (to - from), computed from the nearer end; a weight of 1 gives `to` exactly.
  FULMEN_SIMD static V lerp(const V& from, const V& to, double weight) {
    return weight < 0.5 ? from + (to - from) * scalar(weight) : to - (to - from) * (1 - scalar(weight));
  }
  FULMEN_SIMD static V sqrt(const V& x) { return simd::sqrt(x); }
  FULMEN_SIMD static V max(const V& a, const V& b) { return simd::max(a, b); }
  FULMEN_SIMD static V min(const V& a, const V& b) { return simd::min(a, b); }
  FULMEN_SIMD static V abs(const V& x) { return simd::abs(x); }
  FULMEN_SIMD static V sign(const V& x) { return simd::sign<T>(x); }

 private:
  FULMEN_SIMD V load(const T* from) const {
    V value;
    std::memcpy(&value, from + offset_, sizeof(V));
    return value;
  }
  FULMEN_SIMD void store(T* to, const V& value) const { std::memcpy(to + offset_, &value, sizeof(V)); }

  T* param_;
  const T* grad_;
  std::array<T*, Slots> state_;  // a copy: the compiler can then see that no store changes it
  std::ptrdiff_t offset_;
};

/// The same parameters as lists, for kernels that take lists.
template <std::size_t Slots>
struct TensorLists {
  std::vector<at::Tensor> params, grads;
  std::array<std::vector<at::Tensor>, Slots> state;
};

namespace detail {

/// The parts of a rule that need not be written.
template <class Rule>
consteval auto counter_names() {
  if constexpr (requires { Rule::counter_names; })
    return Rule::counter_names;
  else
    return std::array<const char*, 0>{};
}
template <class Rule>
consteval std::size_t optional_states() {
  if constexpr (requires { Rule::optional_states; }) {
    return Rule::optional_states;
  } else {
    static_assert(
        !requires(const Rule& rule) { rule.has_state(0); },
        "fulmen: an elementwise optimizer with has_state(k) says how many of its last states it is about, as "
        "static constexpr std::size_t optional_states");
    return 0;
  }
}
template <class Rule>
bool has_state(const Rule& rule, std::size_t k) {
  if constexpr (requires { rule.has_state(k); })
    return rule.has_state(k);
  else
    return true;
}
template <class Rule>
double initial_state(const Rule& rule, std::size_t k) {
  if constexpr (requires { rule.initial_state(k); })
    return rule.initial_state(k);
  else
    return 0;
}

/// The same of lists.
std::vector<at::Tensor> foreach_gradients(const std::vector<at::Tensor>& params,
                                          const std::vector<at::Tensor>& grads, bool maximize,
                                          double weight_decay);
/// For rules' foreach(): the gradients as Elements::grad(maximize, weight_decay) gives them.
template <std::size_t Slots>
std::vector<at::Tensor> foreach_gradients(const TensorLists<Slots>& lists, bool maximize,
                                          double weight_decay) {
  return foreach_gradients(lists.params, lists.grads, maximize, weight_decay);
}

/// An elementwise optimizer bound to its parameters. `Rule` is the policy: see elementwise(). With fulmen's
/// own rules it is compiled in the library: what is called from outside stands below, not being inline there.
template <class Rule>
class BoundElementwise {
  static constexpr std::size_t slots = Rule::state_names.size();
  static constexpr auto counter_names = detail::counter_names<Rule>();
  static constexpr std::size_t n_counters = counter_names.size();
  // A counter without a name is not saved: it says only whether the parameter has had a step.
  static constexpr bool nameless = n_counters > 0 &&
                                   [] { return n_counters > 0 && *counter_names.front() == 0; }();
  using Counters = std::array<double, n_counters>;
  static constexpr std::size_t optional_states = detail::optional_states<Rule>();
  static constexpr bool has_foreach = requires { &Rule::foreach; };

 public:
  BoundElementwise(const Rule& rule, NamedParameters parameters);
  // All defaults; declared, to be compiled with the rest.
  BoundElementwise(const BoundElementwise&);
  BoundElementwise(BoundElementwise&&) noexcept;
  BoundElementwise& operator=(const BoundElementwise&);
  BoundElementwise& operator=(BoundElementwise&&) noexcept;
  ~BoundElementwise();

  std::vector<ParamGroup>& groups() { return lists_.groups(); }
  const std::vector<ParamGroup>& groups() const { return lists_.groups(); }
  void zero_grad() { lists_.zero_grad(); }

  void step();

  /// Moves parameters and state into flat memory, where the update takes neighbours in one go: see flat().
  void lay_flat();

  /// In the layout of Python's torch.optim: {"state": {index: {...}}, "param_groups": [{...}]}.
  State state_dict() const;

  /// As in Python the options that were saved count from now on, not those of the policy.
  /// @throws std::runtime_error naming the key if something is missing, of another type or of another shape;
  /// nothing is changed then.
  void load_state_dict(const State& state);

 private:
  struct ParameterState {
    Counters counters{};
    std::array<at::Tensor, slots> tensors;
    bool seen = false;  // had a gradient before
    std::size_t segment = none;  // while it is active: that has its counters
  };
  static constexpr std::size_t none = static_cast<std::size_t>(-1);
  /// An active parameter, or several that lie side by side in flat memory, as the loops see it.
  struct Slice {
    void* param = nullptr;
    const void* grad = nullptr;
    std::array<void*, slots> state{};
    std::int64_t begin = 0, end = 0;    // its place among all elements of its segment
    std::size_t index = 0, last = 0;    // of the parameter, or of the first and the last
    bool flat = false;                  // in flat memory: all pointers stay
    at::Tensor flat_grad{};             // then, and where updates are by lists: the gradient
    std::vector<std::int64_t> strides;  // of its state; empty: contiguous
  };
  /// Active parameters of one type and device with the same counters: they share the scalars of a step.
  struct Segment {
    Counters counters;
    at::ScalarType dtype;
    at::Device device;
    std::size_t begin, end;  // slices
    TensorLists<slots> lists;
  };

  ParamGroup& group() { return lists_.groups()[0]; }

  static bool fits_one_pass(const at::Tensor& p) {
    return p.is_cpu() && (p.scalar_type() == at::kFloat || p.scalar_type() == at::kDouble);
  }
  static bool has_tensor(const State& one, const char* name) {
    return one.contains(name) && !one.get<c10::IValue>(name).isNone();
  }

  /// A parameter's counters; while it is active its segment has them.
  const Counters& counters_of(std::size_t i) const {
    return states_[i].segment == none ? states_[i].counters : segments_[states_[i].segment].counters;
  }
  /// Takes all counters from the segments, which are no longer those of the active parameters.
  void end_segments() {
    for (std::size_t i = 0; i < states_.size(); ++i) {
      states_[i].counters = counters_of(i);
      states_[i].segment = none;
    }
    segments_.clear(), slices_.clear();
  }

  /// The state tensors of a parameter that becomes active.
  void make_state(std::size_t i) {
    const at::Tensor& p = lists_.params()[i];
    ParameterState& s = states_[i];
    s.seen = true;
    const bool placed = flat_ && flat_->has_place(i) && flat_->fits(i, p);
    for (std::size_t k = 0; k < slots; ++k) {
      at::Tensor& state = s.tensors[k];
      if (!state.defined() && !has_state(rule_, k)) continue;
      if (state.defined() && (state.scalar_type() != p.scalar_type() || state.device() != p.device() ||
                              state.numel() != p.numel())) {
        fail_for_changed(i);
      }
      if (!placed) {
        if (!state.defined()) state = at::full_like(p, initial_state(rule_, k));
        continue;
      }
      at::Tensor& memory = flat_state_[flat_->memory_of(i)][k];
      if (!memory.defined()) memory = flat_->memory(flat_->memory_of(i)).alike();
      const at::Tensor place = FlatMemory::part(memory, flat_->place_of(i), p.sizes());
      if (!state.defined())
        place.fill_(initial_state(rule_, k));
      else if (state.const_data_ptr() != place.const_data_ptr())
        place.copy_(state);  // as it was loaded
      state = place;
    }
  }

  void regroup() {
    const at::NoGradGuard no_grad;
    end_segments();
    present_ = unknown;
    for (const std::size_t i : lists_.active()) make_state(i);
    std::vector<std::size_t> rest = lists_.active(), others;
    while (!rest.empty()) {
      const at::Tensor& first = lists_.params()[rest[0]];
      Segment segment{states_[rest[0]].counters, first.scalar_type(), first.device(), slices_.size(), 0, {}};
      std::int64_t elements = 0;
      others.clear();
      for (const std::size_t i : rest) {
        const at::Tensor& p = lists_.params()[i];
        if (states_[i].counters != segment.counters || p.scalar_type() != segment.dtype ||
            p.device() != segment.device) {
          others.push_back(i);
          continue;
        }
        states_[i].segment = segments_.size();
        if (flat_ && slices_.size() > segment.begin && flat_->adjacent(slices_.back().last, i)) {
          Slice& run = slices_.back();
          run.last = i;
          run.end = elements = run.begin + flat_->place_of(i).end - flat_->place_of(run.index).begin;
          continue;
        }
        Slice slice;
        slice.index = slice.last = i, slice.begin = elements, slice.end = elements += p.numel();
        slice.flat = flat_ && flat_->in_place(i);
        slices_.push_back(std::move(slice));
      }
      segment.end = slices_.size();
      for (std::size_t s = segment.begin; s < segment.end; ++s) {
        if (slices_[s].flat)
          point_into_flat(slices_[s], segment);
        else
          point_at_parameter(slices_[s], segment);
      }
      segments_.push_back(std::move(segment));
      std::swap(rest, others);
    }
    present_ = present();
  }

  void point_at_parameter(Slice& slice, Segment& segment) {
    const at::Tensor& p = lists_.params()[slice.index];
    const ParameterState& s = states_[slice.index];
    for (std::size_t k = 0; k < slots; ++k) {
      if (in_one_pass_ && s.tensors[k].defined()) slice.state[k] = s.tensors[k].mutable_data_ptr();
      if (!in_one_pass_) segment.lists.state[k].push_back(s.tensors[k]);
    }
    if (!in_one_pass_) segment.lists.params.push_back(p);
    if (const at::Tensor dense = p.is_non_overlapping_and_dense() ? p : at::empty_like(p);
        !dense.is_contiguous()) {
      slice.strides = dense.strides().vec();
    }
  }

  void point_into_flat(Slice& slice, Segment& segment) {
    const std::size_t m = flat_->memory_of(slice.index);
    FlatMemory& memory = flat_->memory(m);
    const auto part = [&, begin = flat_->place_of(slice.index).begin](const at::Tensor& all) {
      return all.defined() ? all.narrow(0, begin, slice.end - slice.begin) : at::Tensor();
    };
    const at::Tensor params = part(memory.parameters()), grads = part(memory.gradient());
    for (std::size_t k = 0; k < slots; ++k) {
      const at::Tensor state = part(flat_state_[m][k]);
      if (!in_one_pass_)
        segment.lists.state[k].push_back(state);
      else if (state.defined())
        slice.state[k] = state.mutable_data_ptr();
    }
    if (in_one_pass_) {
      slice.param = params.mutable_data_ptr(), slice.grad = grads.const_data_ptr();
    } else {
      segment.lists.params.push_back(params);
      slice.flat_grad = grads;
    }
  }

  /// What a step depends on besides gradients and counters: a scheduler may have changed it.
  void take_group() {
    rule_.lr = group().lr;
    if (group().momentum) set_momentum(rule_, *group().momentum);
  }
  std::size_t present() const {
    std::size_t mask = 0;
    for (std::size_t k = 0; k < slots; ++k) mask |= std::size_t{has_state(rule_, k)} << k;
    return mask;
  }

  void step_in_one_pass() {
    for (const Segment& segment : segments_) {
      for (std::size_t s = segment.begin; s < segment.end; ++s) {
        if (slices_[s].flat) continue;
        const auto [param, grad] = dense(slices_[s], segment);
        slices_[s].param = param->mutable_data_ptr();
        slices_[s].grad = grad->const_data_ptr();
        // Autograd's guard against a backward pass through a parameter that has changed meanwhile.
        param->unsafeGetTensorImpl()->bump_version();
      }
    }
    for (Segment& segment : segments_) {
      const auto scalars = rule_.advance(segment.counters);
      if (segment.dtype == at::kFloat)
        run<float>(segment, scalars);
      else
        run<double>(segment, scalars);
    }
    finish();
  }

  [[noreturn, gnu::cold]] void fail_for_changed(std::size_t i) const {
    fail("parameter '{}' was given another type, device, shape or layout after the optimizer was bound to it",
         lists_.name(i));
  }

  /// A parameter and its gradient as the kernels can walk them: in the layout of the parameter's state.
  std::pair<const at::Tensor*, const at::Tensor*> dense(const Slice& slice, const Segment& segment) {
    const at::Tensor* p = &lists_.params()[slice.index];
    const at::Tensor* g = &p->grad();
    if (!p->is_non_overlapping_and_dense()) [[unlikely]]
      p = &copied(*p);
    if (p->scalar_type() != segment.dtype || p->device() != segment.device ||
        p->numel() != slice.end - slice.begin ||
        !(slice.strides.empty() ? p->is_contiguous() : p->strides() == slice.strides)) [[unlikely]] {
      fail_for_changed(slice.index);
    }
    if (g->layout() != at::kStrided || g->scalar_type() != segment.dtype || g->device() != segment.device ||
        g->is_neg() || g->numel() != p->numel() ||
        (!(g->is_contiguous() && p->is_contiguous()) && g->strides() != p->strides())) [[unlikely]] {
      g = &converted(*g, *p, slice.index);
    }
    return {p, g};
  }

  /// A dense copy of a parameter with gaps in memory; finish() takes its values back.
  const at::Tensor& copied(const at::Tensor& p) {
    const at::NoGradGuard no_grad;
    return copies_.emplace_back(p, at::empty_like(p).copy_(p)).second;
  }
  /// A gradient in its parameter's type and layout.
  const at::Tensor& converted(const at::Tensor& grad, const at::Tensor& p, std::size_t i) {
    const at::NoGradGuard no_grad;
    if (grad.layout() != at::kStrided)
      fail("parameter '{}' has a sparse gradient, expected a dense one", lists_.name(i));
    if (!grad.sizes().equals(p.sizes()))
      fail("parameter '{}' has a gradient of another shape", lists_.name(i));
    return converted_.emplace_back(at::empty_like(p).copy_(grad));
  }
  void finish() {
    if (!copies_.empty()) [[unlikely]] {
      const at::NoGradGuard no_grad;
      for (const auto& [parameter, copy] : copies_) parameter.copy_(copy);
    }
    copies_.clear(), converted_.clear();
  }

  template <class T, class Scalars>
  void run(const Segment& segment, const Scalars& scalars) {
    // Smaller pieces are done before another thread is awake.
    constexpr std::int64_t piece = 16384;
    const std::int64_t size = slices_[segment.end - 1].end;
    if (size < 4 * piece || at::get_num_threads() == 1) {
      for (std::size_t s = segment.begin; s < segment.end; ++s) {
        update<T>(slices_[s], 0, slices_[s].end - slices_[s].begin, scalars);
      }
      return;
    }
    simd::parallel_for((size + piece - 1) / piece, [&](std::int64_t first, std::int64_t last) {
      const std::int64_t begin = first * piece, end = std::min(last * piece, size);
      const auto slices = std::pair(slices_.begin() + segment.begin, slices_.begin() + segment.end);
      auto slice = std::upper_bound(slices.first, slices.second, begin,
                                    [](std::int64_t at, const Slice& s) { return at < s.end; });
      // Cut where a vector ends: then it does not depend on the number of threads which elements are left
      // over at the end, and so are rounded otherwise if the compiler joins products and sums there alone.
      const auto cut = [](const Slice& s, std::int64_t at) {
        constexpr std::int64_t width = simd::bytes / sizeof(T);
        return std::clamp<std::int64_t>((at - s.begin + width - 1) / width * width, 0, s.end - s.begin);
      };
      for (; slice != slices.second && slice->begin < end; ++slice) {
        update<T>(*slice, cut(*slice, begin), cut(*slice, end), scalars);
      }
    });
  }

  template <class T, class Scalars>
  void update(const Slice& slice, std::int64_t begin, std::int64_t end, const Scalars& scalars) const {
    // A loop of its own for each choice of the state tensors that the options ask for.
    [&]<std::size_t... Choice>(std::index_sequence<Choice...>) {
      constexpr std::size_t required = slots - optional_states;
      const std::size_t choice = present_ >> required;
      ((choice == Choice ? loop<T, Choice << required | ((1u << required) - 1)>(slice, begin, end, scalars)
                         : void()),
       ...);
    }
    (std::make_index_sequence<1u << optional_states>{});
  }

  template <class T, std::size_t Present, class Scalars>
  FULMEN_SIMD_ENTRY void loop(const Slice& slice, std::int64_t begin, std::int64_t end,
                              const Scalars& step) const {
    using V = simd::Vector<T>;
    constexpr std::int64_t width = sizeof(V) / sizeof(T);
    // Copies, of which the compiler sees that no store to a tensor changes them.
    const Rule rule = rule_;
    const Scalars scalars = step;
    T* const param = static_cast<T*>(slice.param);
    const T* const grad = static_cast<const T*>(slice.grad);
    std::array<T*, slots> state;
    for (std::size_t k = 0; k < slots; ++k) state[k] = static_cast<T*>(slice.state[k]);
    std::int64_t i = begin;
    for (; i + width <= end; i += width)
      rule.update(Elements<T, V, slots, Present>(param, grad, state, i), scalars);
    for (; i < end; ++i) rule.update(Elements<T, T, slots, Present>(param, grad, state, i), scalars);
    simd::leave();
  }

  void step_by_lists() {
    const at::NoGradGuard no_grad;
    for (Segment& segment : segments_) {
      segment.lists.grads.clear();
      for (std::size_t s = segment.begin; s < segment.end; ++s) {
        if (slices_[s].flat) {
          segment.lists.grads.push_back(slices_[s].flat_grad);
          continue;
        }
        const auto [param, grad] = dense(slices_[s], segment);
        segment.lists.grads.push_back(*grad);
        if (!copies_.empty()) [[unlikely]]
          segment.lists.params[s - segment.begin] = *param;
      }
    }
    for (Segment& segment : segments_) {
      rule_.foreach (std::as_const(segment.lists), rule_.advance(segment.counters));
      segment.lists.grads.clear();
    }
    finish();
  }

  Rule rule_;
  GradientLists lists_;
  std::vector<ParameterState> states_;  // by parameter
  static constexpr std::size_t unknown = static_cast<std::size_t>(-1);
  std::size_t present_ = 0;             // a bit for each state tensor that the options ask for
  bool in_one_pass_ = true;
  std::optional<FlatLayout> flat_;
  std::vector<std::array<at::Tensor, slots>> flat_state_;  // by flat memory
  std::vector<Slice> slices_;        // of the active parameters, by segment
  std::vector<Segment> segments_;
  // Of one step:
  std::vector<at::Tensor> converted_;                      // gradients that came in another type or layout
  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;  // parameters with gaps in memory, and dense copies
};

template <class Rule>
BoundElementwise<Rule>::BoundElementwise(const Rule& rule, NamedParameters parameters)
    : rule_(rule), lists_(std::move(parameters), rule.lr), states_(lists_.params().size()) {
  group().momentum = momentum_of(rule_);
  in_one_pass_ = simd::supported();
  for (const at::Tensor& p : lists_.params()) in_one_pass_ = in_one_pass_ && fits_one_pass(p);
  if (!has_foreach && !in_one_pass_) {
    fail<std::invalid_argument>(
        "this optimizer has no foreach(), so it takes float32 and float64 parameters on the CPU only");
  }
}

template <class Rule>
BoundElementwise<Rule>::BoundElementwise(const BoundElementwise&) = default;
template <class Rule>
BoundElementwise<Rule>::BoundElementwise(BoundElementwise&&) noexcept = default;
template <class Rule>
BoundElementwise<Rule>& BoundElementwise<Rule>::operator=(const BoundElementwise&) = default;
template <class Rule>
BoundElementwise<Rule>& BoundElementwise<Rule>::operator=(BoundElementwise&&) noexcept = default;
template <class Rule>
BoundElementwise<Rule>::~BoundElementwise() = default;

template <class Rule>
FULMEN_INLINE void BoundElementwise<Rule>::step() {
  take_group();
  bool same = present() == present_;
  if (flat_) same = flat_->gather(lists_.params()) && same;
  if (!same || !flat_ || !flat_->all_in_place()) same = lists_.same_active() && same;
  if (!same) [[unlikely]]
    regroup();
  copies_.clear(), converted_.clear();  // of a step that threw
  if constexpr (has_foreach) {
    if (!in_one_pass_) return step_by_lists();
  }
  step_in_one_pass();
}

template <class Rule>
FULMEN_INLINE void BoundElementwise<Rule>::lay_flat() {
  end_segments();
  present_ = unknown;
  flat_.emplace(lists_.params());
  // What there is of state moves when it is needed next.
  flat_state_.assign(flat_->memories(), {});
}

template <class Rule>
State BoundElementwise<Rule>::state_dict() const {
  State all;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    if (!states_[i].seen) continue;
    const Counters& counters = counters_of(i);
    State one;
    for (std::size_t k = nameless ? 1 : 0; k < n_counters; ++k) {
      one.set(counter_names[k], at::scalar_tensor(counters[k], at::kFloat));
    }
    for (std::size_t k = 0; k < slots; ++k) {
      if (states_[i].tensors[k].defined()) one.set(Rule::state_names[k], states_[i].tensors[k]);
    }
    if (one.size() > 0) all.set(i, one);
  }
  State group = group_state(rule_, lists_.groups()[0]);
  // What Python's classes have besides, with the values that mean "decide yourself".
  group.set("foreach", c10::IValue()).set("fused", c10::IValue());
  group.set("capturable", false).set("differentiable", false);
  State state;
  state.set("state", all);
  state.set("param_groups", std::vector<State>{group});
  return state;
}

template <class Rule>
void BoundElementwise<Rule>::load_state_dict(const State& state) {
  const at::NoGradGuard no_grad;
  const std::vector<State> groups = state.get<std::vector<State>>("param_groups");
  const State all = state.get<State>("state");
  ParamGroup loaded_group = group();
  load_group(loaded_group, groups);
  const Rule rule = policy_in(groups, rule_);
  std::vector<ParameterState> loaded(states_.size());
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    if (!all.contains(i)) continue;
    const State one = all.get<State>(i);
    ParameterState& s = loaded[i];
    for (std::size_t k = 0; k < slots; ++k) {
      // Python's SGD may keep a None for a parameter that had no step yet.
      if ((nameless || !has_state(rule, k)) && !has_tensor(one, Rule::state_names[k])) continue;
      s.tensors[k] = like(one.get<at::Tensor>(Rule::state_names[k]), lists_.params()[i], lists_.name(i),
                          Rule::state_names[k]);
      s.seen = true;
    }
    for (std::size_t k = 0; k < n_counters; ++k) {
      s.counters[k] = nameless && k == 0 ? double(s.seen) : number_in(one, counter_names[k]);
    }
    s.seen = s.seen || !nameless;
  }
  rule_ = rule;
  loaded_group.momentum = momentum_of(rule_);
  group() = std::move(loaded_group);
  states_ = std::move(loaded);
  segments_.clear(), slices_.clear();
  present_ = unknown;
}

}  // namespace detail

/// Binds a rule, which is an optimizer policy of this kind (RMSprop is a short example), to parameters. A
/// rule has
///
///   double lr                                                  and its other options as data members;
///   `momentum` or
///                                                              `betas` can then be changed by schedulers
///   static constexpr auto options                              std::tuple of option(name, member), lr left
///   out static constexpr std::array<const char*, N> state_names    the state tensors of a parameter Scalars
///   advance(counters) const                            counts a step; the numbers that update() needs in it
///   void update(const auto& elements, const Scalars&) const    marked FULMEN_SIMD; the arithmetic: see
///   Elements
///
/// and may have: `counter_names` (numbers kept for each parameter, 0 before its first step, saved as Python
/// does with `step`), `optional_states` with has_state(k) (whether the options ask for state tensor k, one of
/// so many last ones), initial_state(k) (what it is filled with, else 0), and `void foreach(const
/// TensorLists<N>&, const Scalars&) const` for other devices and types than float32 and float64 on the CPU.
template <class Rule>
detail::BoundElementwise<Rule> elementwise(const Rule& rule, NamedParameters parameters) {
  return {rule, std::move(parameters)};
}

#if FULMEN_BODIES
FULMEN_INLINE std::vector<at::Tensor> detail::foreach_gradients(const std::vector<at::Tensor>& params,
                                                                const std::vector<at::Tensor>& grads,
                                                                bool maximize, double weight_decay) {
  std::vector<at::Tensor> out = maximize ? at::_foreach_neg(grads) : grads;
  if (weight_decay == 0) return out;
  if (!maximize) return at::_foreach_add(out, params, weight_decay);
  at::_foreach_add_(out, params, weight_decay);
  return out;
}
#endif

}  // namespace fulmen
