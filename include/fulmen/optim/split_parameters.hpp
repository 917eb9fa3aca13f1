// split_parameters: one optimizer made of two of different kinds, each for its part of the parameters.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/error.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/optim/parameters_of.hpp>

#include <tuple>
#include <utility>
#include <vector>

namespace fulmen {

namespace detail {

template <BoundOptimizer... Parts>
class BoundSplit {
 public:
  explicit BoundSplit(Parts... parts) : parts_(std::move(parts)...) { take_groups(); }

  std::vector<ParamGroup>& groups() { return groups_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  void zero_grad() {
    std::apply([](Parts&... part) { (part.zero_grad(), ...); }, parts_);
  }
  void step() {
    hand_out_rates();
    std::apply([](Parts&... part) { (part.step(), ...); }, parts_);
  }

  /// {"optimizers": [...]}: of each part the state dict that Python's class of the same name has.
  State state_dict() const {
    hand_out_rates();
    std::vector<State> states;
    std::apply([&](const Parts&... part) { (states.push_back(part.state_dict()), ...); }, parts_);
    return State().set("optimizers", states);
  }

  /// @throws std::runtime_error if the number of parts differs, or as the parts do.
  void load_state_dict(const State& state) {
    const auto states = state.get<std::vector<State>>("optimizers");
    if (states.size() != sizeof...(Parts)) {
      fail("optimizer state has {} optimizers, expected {}", states.size(), sizeof...(Parts));
    }
    std::size_t next = 0;
    std::apply([&](Parts&... part) { (part.load_state_dict(states[next++]), ...); }, parts_);
    take_groups();
  }

 private:
  void take_groups() {
    groups_.clear();
    std::apply(
        [&](Parts&... part) {
          (groups_.insert(groups_.end(), part.groups().begin(), part.groups().end()), ...);
        },
        parts_);
  }
  /// To the parts, what schedulers have written to our groups.
  void hand_out_rates() const {
    auto ours = groups_.begin();
    const auto each = [&](auto& part) {
      for (ParamGroup& theirs : part.groups()) {
        theirs.lr = ours->lr, theirs.initial_lr = ours->initial_lr, theirs.momentum = ours->momentum;
        ++ours;
      }
    };
    std::apply([&](Parts&... part) { (each(part), ...); }, parts_);
  }

  mutable std::tuple<Parts...> parts_;  // state_dict() hands out rates, too
  std::vector<ParamGroup> groups_;
};

}  // namespace detail

/// See split_parameters.
template <ParameterPredicate Predicate, OptimizerPolicy Chosen, OptimizerPolicy Rest>
struct SplitParameters {
  Predicate predicate;
  Chosen chosen;
  Rest rest;

  /// @throws std::invalid_argument if a part would have no parameter.
  auto bind(NamedParameters parameters) const {
    NamedParameters yes, no;
    for (NamedParameter& p : parameters) (detail::chooses(predicate, p) ? yes : no).push_back(std::move(p));
    if (yes.empty() || no.empty()) {
      fail<std::invalid_argument>(
          "split_parameters: the predicate chooses {} of {} parameters, expected some and not all",
          yes.size(), parameters.size());
    }
    return detail::BoundSplit(chosen.bind(std::move(yes)), rest.bind(std::move(no)));
  }
};

/// One optimizer of two kinds, as automatic optimisation takes it: parameters for which `predicate(name)` or
/// `predicate(name, tensor)` holds go to the first policy, the others to the second, which may itself be
/// split:
///
///   split_parameters([](std::string_view, const at::Tensor& p) { return p.dim() == 2; }, Muon{}, AdamW{})
///
/// groups() has the groups of the first, then those of the second; a scheduler drives each from its own
/// initial rate.
template <ParameterPredicate Predicate, OptimizerPolicy Chosen, OptimizerPolicy Rest>
SplitParameters<Predicate, Chosen, Rest> split_parameters(Predicate predicate, Chosen chosen, Rest rest) {
  return {std::move(predicate), std::move(chosen), std::move(rest)};
}

}  // namespace fulmen
