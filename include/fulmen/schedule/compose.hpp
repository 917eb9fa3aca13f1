// Schedulers made of schedulers: all at once (chained, |), one after the other (sequential, until), one each
// parameter group (per_group), and warm-up.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>
#include <fulmen/none.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/schedule/decay.hpp>
#include <fulmen/schedule/scheduler.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <functional>
#endif

namespace fulmen {

/// Several schedulers that all advance, each from the rate that the one before it has left: chained(a, b), or a | b.
/// Source: torch.optim.lr_scheduler.ChainedScheduler.
template <class... S>
struct ChainedScheduler {
  std::tuple<S...> schedulers;
};
template <class... S>
ChainedScheduler(std::tuple<S...>) -> ChainedScheduler<S...>;

/// Several schedulers one after the other, each from its time 0 on: sequential(a, 5, b), or until(5, a) | b.
/// Milestones count from the beginning of training. Source: torch.optim.lr_scheduler.SequentialLR.
///
/// Rates are PyTorch's where the parts are no compositions themselves. There PyTorch counts an epoch twice (first part)
/// or raises NotImplementedError (later); here such a part begins as it would alone, from the initial rate.
template <class... S>
struct SequentialLR {
  std::tuple<S...> schedulers;
  std::vector<std::int64_t> milestones;  ///< one less than schedulers, ascending
};
template <class... S>
SequentialLR(std::tuple<S...>, std::vector<std::int64_t>) -> SequentialLR<S...>;

/// One scheduler for each parameter group of the optimizer, in order: per_group(a, b).
template <class... S>
struct PerGroup {
  std::tuple<S...> schedulers;
};
template <class... S>
PerGroup(std::tuple<S...>) -> PerGroup<S...>;

/// A sequence whose last part is still to come: see until. No scheduler yet.
template <class... S>
struct Until {
  std::tuple<S...> schedulers;
  std::vector<std::int64_t> milestones;  ///< as many as schedulers
};

namespace detail {

template <class... S>
inline constexpr bool is_composite_scheduler<ChainedScheduler<S...>> = true;
template <class... S>
inline constexpr bool is_composite_scheduler<SequentialLR<S...>> = true;
template <class... S>
inline constexpr bool is_composite_scheduler<PerGroup<S...>> = true;

/// Says why not, once.
template <class... S>
consteval bool composable() {
  constexpr bool policies = (AnySchedulerPolicy<S> && ...);
  static_assert(
      policies,
      "fulmen: a scheduler is composed of scheduler policies, such as fulmen::StepLR{.step_size = 30}");
  // Said once: what is no policy at all follows no logged value either.
  constexpr bool by_time = !policies || (SchedulerPolicy<S> && ...);
  static_assert(by_time,
                "fulmen: a scheduler that follows a logged value, such as ReduceLROnPlateau, cannot be part "
                "of another");
  return policies && by_time;
}

template <class... S>
std::tuple<S...> parts_of(ChainedScheduler<S...> chain) {
  return std::move(chain.schedulers);
}
template <class S>
std::tuple<S> parts_of(S scheduler) {
  return {std::move(scheduler)};
}

template <class... S>
auto chain_of(std::tuple<S...> parts) {
  return ChainedScheduler<S...>{std::move(parts)};
}

/// Whether the parts are a scheduler, an integer, a scheduler, ..., a scheduler.
template <class... Parts>
consteval bool alternate() {
  bool milestone = true, fits = true;
  ((milestone = !milestone, fits = fits && (milestone == std::integral<Parts>)), ...);
  return fits && !milestone;
}

template <std::size_t... Schedulers, std::size_t... Milestones, class... Parts>
auto sequence_of(std::index_sequence<Schedulers...>, std::index_sequence<Milestones...>,
                 std::tuple<Parts...> parts) {
  using All = std::tuple<Parts...>;
  [[maybe_unused]] constexpr bool fits = composable<std::tuple_element_t<2 * Schedulers, All>...>();
  return SequentialLR<std::tuple_element_t<2 * Schedulers, All>...>{
      {std::move(std::get<2 * Schedulers>(parts))...},
      {static_cast<std::int64_t>(std::get<2 * Milestones + 1>(parts))...}};
}

}  // namespace detail

/// Schedulers that all advance: `chained(LinearLR{}, ExponentialLR{.gamma = 0.9})`.
template <class First, class... Rest>
auto chained(First first, Rest... rest) {
  [[maybe_unused]] constexpr bool fits = detail::composable<First, Rest...>();
  return ChainedScheduler<First, Rest...>{{std::move(first), std::move(rest)...}};
}

/// Schedulers one after the other, with the milestones between them:
/// `sequential(LinearLR{}, 5, CosineAnnealingLR{.T_max = 95})`.
template <class... Parts>
auto sequential(Parts... parts) {
  constexpr bool alternate = detail::alternate<Parts...>();
  static_assert(alternate,
                "fulmen: sequential(a, 5, b, 10, c) takes schedulers and, between each two, the time (an "
                "integer) when the next one begins");
  if constexpr (alternate) {
    constexpr std::size_t count = (sizeof...(Parts) + 1) / 2;
    return detail::sequence_of(std::make_index_sequence<count>{}, std::make_index_sequence<count - 1>{},
                               std::tuple<Parts...>(std::move(parts)...));
  } else {
    return none;
  }
}

/// One scheduler for each parameter group: `per_group(StepLR{.step_size = 30}, ConstantLR{})`.
/// @throws std::invalid_argument when bound to an optimizer with another number of groups
template <class... S>
auto per_group(S... schedulers) {
  [[maybe_unused]] constexpr bool fits = detail::composable<S...>();
  return PerGroup<S...>{{std::move(schedulers)...}};
}

/// The beginning of a sequence:
/// `until(5, LinearLR{}) | until(50, StepLR{.step_size = 10}) | ExponentialLR{.gamma = 0.9}`.
template <class S>
auto until(std::int64_t milestone, S scheduler) {
  [[maybe_unused]] constexpr bool fits = detail::composable<S>();
  return Until<S>{{std::move(scheduler)}, {milestone}};
}

/// Chained: `LinearLR{} | ExponentialLR{.gamma = 0.9}`.
template <AnySchedulerPolicy A, AnySchedulerPolicy B>
  requires(!RateFunction<A> || !RateFunction<B>)
auto operator|(A first, B second) {
  [[maybe_unused]] constexpr bool fits = detail::composable<A, B>();
  return detail::chain_of(
      std::tuple_cat(detail::parts_of(std::move(first)), std::tuple<B>(std::move(second))));
}
template <class... A, class... B>
auto operator|(Until<A...> first, Until<B...> second) {
  first.milestones.insert(first.milestones.end(), second.milestones.begin(), second.milestones.end());
  return Until<A..., B...>{std::tuple_cat(std::move(first.schedulers), std::move(second.schedulers)),
                           std::move(first.milestones)};
}
template <class... A, AnySchedulerPolicy B>
auto operator|(Until<A...> first, B last) {
  [[maybe_unused]] constexpr bool fits = detail::composable<B>();
  return SequentialLR<A..., B>{std::tuple_cat(std::move(first.schedulers), std::tuple<B>(std::move(last))),
                               std::move(first.milestones)};
}

/// Begins at start_factor times the initial rate, rises to it in equal steps over the first `steps` epochs (or steps:
/// per_step), then follows the scheduler from its time 0: `per_step(warmup(500, CosineAnnealingLR{.T_max = 9500}))`.
template <class S>
auto warmup(std::int64_t steps, S scheduler, double start_factor = LinearLR{}.start_factor) {
  return until(steps, LinearLR{.start_factor = start_factor, .total_iters = steps}) | std::move(scheduler);
}

namespace detail {

/// The states of a composition and of its parts.
State composite_state(const char* owner, const std::vector<State>& parts, std::span<const ParamGroup> groups);
State sequential_state(std::int64_t time, const std::vector<std::int64_t>& milestones,
                       const std::vector<State>& parts, std::span<const ParamGroup> groups);
/// @throws std::runtime_error if there are not `count`
std::vector<State> scheduler_states_in(const State& state, std::size_t count);
/// @throws std::invalid_argument unless they are ascending and one less than schedulers
void check_milestones(const std::vector<std::int64_t>& milestones, std::size_t schedulers);

/// The nodes of a composition's parts, and what they have in common.
template <class... S>
class SchedulerNodes {
 public:
  explicit SchedulerNodes(std::tuple<S...> schedulers)
      : nodes_(std::apply(
            [](auto&... scheduler) {
              return std::tuple<SchedulerNode<S>...>(SchedulerNode<S>(std::move(scheduler))...);
            },
            schedulers)) {}

  static constexpr std::size_t size = sizeof...(S);

  /// Calls f(i, node) for each.
  template <class F>
  void each(F f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) { (f(I, std::get<I>(nodes_)), ...); }
    (std::index_sequence_for<S...>{});
  }
  void rewind() {
    each([](std::size_t, auto& node) { node.rewind(); });
  }

  /// `groups_of(i)`: the groups of the i-th part.
  template <class F>
  std::vector<State> states(F groups_of) const {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return std::vector<State>{std::get<I>(nodes_).state_dict(groups_of(I))...};
    }
    (std::index_sequence_for<S...>{});
  }
  void load(const State& state) {
    const std::vector<State> states = scheduler_states_in(state, size);
    each([&](std::size_t i, auto& node) { node.load_state_dict(states[i]); });
  }

 private:
  std::tuple<SchedulerNode<S>...> nodes_;
};

/// A composition begins again from the initial rates.
inline void set_initial_rates(std::span<ParamGroup> groups) {
  for (ParamGroup& group : groups) group.lr = group.initial_lr;
}

template <class... S>
class SchedulerNode<ChainedScheduler<S...>> {
 public:
  explicit SchedulerNode(ChainedScheduler<S...> policy) : nodes_(std::move(policy.schedulers)) {}

  void bind(std::span<ParamGroup> groups, bool fresh) {
    nodes_.each([&](std::size_t i, auto& node) { node.bind(groups, fresh && i == 0); });
  }
  void start(std::span<ParamGroup> groups) {
    nodes_.each([&](std::size_t, auto& node) { node.start(groups); });
  }
  void restart(std::span<ParamGroup> groups) {
    set_initial_rates(groups);
    start(groups);
  }
  void step(std::span<ParamGroup> groups) {
    nodes_.each([&](std::size_t, auto& node) { node.step(groups); });
  }
  void rewind() { nodes_.rewind(); }

  State state_dict(std::span<const ParamGroup> groups) const {
    return composite_state("ChainedScheduler", nodes_.states([&](std::size_t) { return groups; }), groups);
  }
  void load_state_dict(const State& state) { nodes_.load(state); }

 private:
  SchedulerNodes<S...> nodes_;
};

template <class... S>
class SchedulerNode<SequentialLR<S...>> {
 public:
  explicit SchedulerNode(SequentialLR<S...> policy)
      : nodes_(std::move(policy.schedulers)), milestones_(std::move(policy.milestones)) {
    check_milestones(milestones_, sizeof...(S));
  }

  void bind(std::span<ParamGroup> groups, bool fresh) {
    // All are bound before the first starts: OneCycleLR, wherever it stands, changes the initial rates.
    nodes_.each([&](std::size_t i, auto& node) { node.bind(groups, fresh && i == 0); });
    start(groups);
  }
  void start(std::span<ParamGroup> groups) {
    set_initial_rates(groups);
    rewind();
    time_ = 0;
    nodes_.each([&, turn = turn()](std::size_t i, auto& node) {
      if (i == turn) node.start(groups);
    });
  }
  void restart(std::span<ParamGroup> groups) { start(groups); }
  void step(std::span<ParamGroup> groups) {
    ++time_;
    nodes_.each([&, turn = turn()](std::size_t i, auto& node) {
      if (i != turn) return;
      if (i > 0 && milestones_[i - 1] == time_) {
        node.restart(groups);
      } else {
        node.step(groups);
      }
    });
  }
  void rewind() {
    time_ = -1;
    nodes_.rewind();
  }

  State state_dict(std::span<const ParamGroup> groups) const {
    return sequential_state(time_, milestones_, nodes_.states([&](std::size_t) { return groups; }), groups);
  }
  void load_state_dict(const State& state) {
    nodes_.load(state);
    time_ = last_epoch_in(state);
  }

 private:
  std::size_t turn() const {
    const auto next = std::upper_bound(milestones_.begin(), milestones_.end(), time_);
    return static_cast<std::size_t>(next - milestones_.begin());
  }

  SchedulerNodes<S...> nodes_;
  std::vector<std::int64_t> milestones_;
  std::int64_t time_ = 0;
};

template <class... S>
class SchedulerNode<PerGroup<S...>> {
 public:
  explicit SchedulerNode(PerGroup<S...> policy) : nodes_(std::move(policy.schedulers)) {}

  void bind(std::span<ParamGroup> groups, bool fresh) {
    if (groups.size() != sizeof...(S)) {
      fail<std::invalid_argument>(
          "per_group has {} schedulers, expected one for each of the optimizer's {} parameter groups",
          sizeof...(S), groups.size());
    }
    nodes_.each([&](std::size_t i, auto& node) { node.bind(groups.subspan(i, 1), fresh); });
  }
  void start(std::span<ParamGroup> groups) {
    nodes_.each([&](std::size_t i, auto& node) { node.start(groups.subspan(i, 1)); });
  }
  void restart(std::span<ParamGroup> groups) {
    nodes_.each([&](std::size_t i, auto& node) { node.restart(groups.subspan(i, 1)); });
  }
  void step(std::span<ParamGroup> groups) {
    nodes_.each([&](std::size_t i, auto& node) { node.step(groups.subspan(i, 1)); });
  }
  void rewind() { nodes_.rewind(); }

  State state_dict(std::span<const ParamGroup> groups) const {
    return composite_state("per_group", nodes_.states([&](std::size_t i) { return groups.subspan(i, 1); }),
                           groups);
  }
  void load_state_dict(const State& state) { nodes_.load(state); }

 private:
  SchedulerNodes<S...> nodes_;
};

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE State composite_state(const char* owner, const std::vector<State>& parts,
                                    std::span<const ParamGroup> groups) {
  State state(owner);
  state.set("_schedulers", parts).set("_last_lr", rates_of(groups));
  return state;
}

FULMEN_INLINE State sequential_state(std::int64_t time, const std::vector<std::int64_t>& milestones,
                                     const std::vector<State>& parts, std::span<const ParamGroup> groups) {
  State state("SequentialLR");
  state.set("last_epoch", time).set("_milestones", milestones);
  state.set("_schedulers", parts).set("_last_lr", rates_of(groups));
  return state;
}

FULMEN_INLINE std::vector<State> scheduler_states_in(const State& state, std::size_t count) {
  auto states = state.get<std::vector<State>>("_schedulers");
  if (states.size() != count) fail("state of a scheduler has {} parts, expected {}", states.size(), count);
  return states;
}

FULMEN_INLINE void check_milestones(const std::vector<std::int64_t>& milestones, std::size_t schedulers) {
  if (milestones.size() + 1 != schedulers) {
    fail<std::invalid_argument>(
        "SequentialLR::milestones has {} times for {} schedulers, expected one less than schedulers",
        milestones.size(), schedulers);
  }
  const auto fall = std::adjacent_find(milestones.begin(), milestones.end(), std::greater<>{});
  if (fall != milestones.end()) {
    fail<std::invalid_argument>("SequentialLR::milestones has {} after {}, expected them ascending", fall[1],
                                fall[0]);
  }
}

}  // namespace detail
#endif

}  // namespace fulmen
