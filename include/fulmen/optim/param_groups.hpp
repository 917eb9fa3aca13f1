// param_groups: one optimizer whose parameters fall into groups with options of their own.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/optim/optimizer.hpp>

#include <concepts>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace fulmen {

/// The parameters that `match` accepts by name, and the policy they take: see param_groups.
template <class Match, OptimizerPolicy Policy>
struct Group {
  Match match;
  Policy policy;
  std::string name{};  ///< what the group is called in logs and state dicts; empty: nothing
};

/// A group of the parameters whose names `match` accepts: `group([](std::string_view name) { return
/// name.ends_with("bias"); }, AdamW{.weight_decay = 0})`.
template <std::predicate<std::string_view> Match, OptimizerPolicy Policy>
Group<Match, Policy> group(Match match, Policy policy) {
  return {std::move(match), std::move(policy)};
}
/// The same with a name, PyTorch's key "name" of a parameter group: LearningRateMonitor logs lr-AdamW/<name>.
template <std::predicate<std::string_view> Match, OptimizerPolicy Policy>
Group<Match, Policy> group(std::string name, Match match, Policy policy) {
  return {std::move(match), std::move(policy), std::move(name)};
}

namespace detail {

/// One state dict of those of the groups, and back. @throws std::runtime_error if the number of groups
/// differs.
State joined_groups(const std::vector<State>& states, const std::vector<ParamGroup>& groups,
                    const std::vector<std::string>& names);
std::vector<State> split_groups(const State& state, const std::vector<ParamGroup>& groups);

/// Several bound optimizers of one kind that act as one: a group each, in the order of PyTorch's
/// param_groups.
template <class Bound>
class BoundGroups {
 public:
  /// @param names of the groups; an empty one: it has none
  BoundGroups(std::vector<Bound> parts, std::vector<std::string> names)
      : parts_(std::move(parts)), names_(std::move(names)) {
    for (const Bound& part : parts_) groups_.push_back(part.groups()[0]);
  }

  std::vector<ParamGroup>& groups() { return groups_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  const std::vector<std::string>& names() const { return names_; }
  void zero_grad() {
    for (Bound& part : parts_) part.zero_grad();
  }
  void step() {
    hand_down();
    for (Bound& part : parts_) part.step();
  }

  /// As PyTorch's: one "state" with the parameters numbered through all groups, one entry of "param_groups"
  /// each, with the name of a group that has one.
  State state_dict() const {
    hand_down();
    std::vector<State> states;
    for (const Bound& part : parts_) states.push_back(part.state_dict());
    return joined_groups(states, groups_, names_);
  }

  /// @throws std::runtime_error if the number of groups or parameters differs, or as the optimizer's own;
  /// nothing is changed then.
  void load_state_dict(const State& state) {
    const std::vector<State> states = split_groups(state, groups_);
    hand_down();
    std::vector<State> before;
    try {
      for (std::size_t i = 0; i < parts_.size(); ++i) {
        const State saved(parts_[i].state_dict());
        parts_[i].load_state_dict(states[i]);
        before.push_back(saved);
      }
    } catch (...) {
      for (std::size_t i = 0; i < before.size(); ++i) parts_[i].load_state_dict(before[i]);
      throw;
    }
    for (std::size_t i = 0; i < parts_.size(); ++i) groups_[i] = parts_[i].groups()[0];
  }

 private:
  /// To the parts what users and schedulers have written into the groups.
  void hand_down() const {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      ParamGroup& group = parts_[i].groups()[0];
      group.lr = groups_[i].lr, group.initial_lr = groups_[i].initial_lr,
      group.momentum = groups_[i].momentum;
    }
  }

  mutable std::vector<Bound>
      parts_;  // mutable: their groups follow ours, also when we are only asked for our state
  std::vector<ParamGroup> groups_;
  std::vector<std::string> names_;
};

}  // namespace detail

/// A policy for most parameters, and others of the same kind for groups of them; see param_groups.
template <OptimizerPolicy Policy, class... Matches>
struct ParamGroups {
  Policy policy;
  std::tuple<Group<Matches, Policy>...> groups;
  std::string name{};  ///< of the group of those that are in no other

  /// @throws std::invalid_argument if a group matches no parameter.
  auto bind(NamedParameters parameters) const {
    using Bound = decltype(policy.bind(std::move(parameters)));
    std::vector<NamedParameters> chosen(sizeof...(Matches) + 1);
    for (NamedParameter& p : parameters) chosen[index_of(p.name)].push_back(std::move(p));
    for (std::size_t i = 1; i < chosen.size(); ++i) {
      if (chosen[i].empty()) fail<std::invalid_argument>("param_groups: group {} matches no parameter", i);
    }
    std::vector<Bound> parts;
    parts.push_back(policy.bind(std::move(chosen[0])));
    std::vector<std::string> names{name};
    std::size_t next = 1;
    std::apply(
        [&](const auto&... group) {
          ((parts.push_back(group.policy.bind(std::move(chosen[next++]))), names.push_back(group.name)), ...);
        },
        groups);
    return detail::BoundGroups<Bound>(std::move(parts), std::move(names));
  }

 private:
  /// The first group that matches; 0: none does.
  std::size_t index_of(std::string_view parameter) const {
    std::size_t index = 0, found = 0;
    std::apply(
        [&](const auto&... group) {
          ((++index, found = found == 0 && group.match(parameter) ? index : found), ...);
        },
        groups);
    return found;
  }
};

/// An optimizer with parameter groups: `param_groups(AdamW{}, group(is_bias, AdamW{.weight_decay = 0}),
/// ...)`. A parameter takes the policy of the first group that matches its name, else the first argument.
/// Schedulers drive each group from its own initial rate.
template <OptimizerPolicy Policy, class... Matches>
ParamGroups<Policy, Matches...> param_groups(Policy policy, Group<Matches, Policy>... groups) {
  return {std::move(policy), {std::move(groups)...}};
}
/// The same with a name for the parameters in none of the groups; see group.
template <OptimizerPolicy Policy, class... Matches>
ParamGroups<Policy, Matches...> param_groups(std::string name, Policy policy, Group<Matches, Policy>... groups) {
  return {std::move(policy), {std::move(groups)...}, std::move(name)};
}

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE State joined_groups(const std::vector<State>& states, const std::vector<ParamGroup>& groups,
                                  const std::vector<std::string>& names) {
  State all, state;
  std::vector<State> entries;
  std::size_t offset = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const std::size_t count = groups[i].params.size();
    const State own = states[i].get<State>("state");
    for (std::size_t k = 0; k < count; ++k) {
      if (own.contains(k)) all.set(offset + k, own.get<State>(k));
    }
    State entry = states[i].get<std::vector<State>>("param_groups")[0];
    std::vector<std::int64_t> numbers = indices(count);
    for (std::int64_t& number : numbers) number += static_cast<std::int64_t>(offset);
    entry.set("params", numbers);
    if (!names[i].empty()) entry.set("name", names[i]);
    entries.push_back(entry);
    offset += count;
  }
  state.set("state", all).set("param_groups", entries);
  return state;
}

FULMEN_INLINE std::vector<State> split_groups(const State& state, const std::vector<ParamGroup>& groups) {
  const auto entries = state.get<std::vector<State>>("param_groups");
  if (entries.size() != groups.size()) {
    fail("optimizer state has {} parameter groups, expected {}", entries.size(), groups.size());
  }
  const State all = state.get<State>("state");
  std::vector<State> states;
  std::size_t offset = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    State own;
    for (std::size_t k = 0; k < groups[i].params.size(); ++k) {
      if (all.contains(offset + k)) own.set(k, all.get<State>(offset + k));
    }
    states.push_back(State().set("state", own).set("param_groups", std::vector<State>{entries[i]}));
    offset += groups[i].params.size();
  }
  return states;
}

}  // namespace detail
#endif

}  // namespace fulmen
