// The plan: which hooks run in which stage, in order, and who answers each. Constexpr data and a printed table.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/hooks.hpp>

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <tuple>

namespace fulmen {

namespace detail {

/// A type's name as the compiler spells it, without namespace fulmen.
template <class T>
constexpr std::string_view type_name() {
  constexpr std::string_view function = __PRETTY_FUNCTION__;
  constexpr std::string_view key = "T = ";
  constexpr std::size_t begin = function.find(key) + key.size();
  constexpr std::size_t end = function.find_first_of(";]", begin);
  constexpr std::string_view full = function.substr(begin, end - begin);
  constexpr std::string_view own = "fulmen::";
  return full.substr(0, own.size()) == own ? full.substr(own.size()) : full;
}

}  // namespace detail

/// One step or hook of the list. `who[i]` says whether participant i answers it.
template <std::size_t Participants>
struct PlanRow {
  std::string_view name, doc;
  HookKind kind;
  Stages stages;
  std::array<bool, Participants> who;

  constexpr bool answered() const {
    for (const bool answer : who) {
      if (answer) return true;
    }
    return false;
  }
};

/// How fit gets the gradients of a batch: see loop/gradients.hpp.
struct GradientPlan {
  bool composed = false;     ///< else by autograd
  std::string_view why{};    ///< why they are not composed
  std::size_t rules = 0;     ///< layers with rules
  std::size_t by_autograd = 0;         ///< layers without: autograd serves each by itself
  bool criterion_by_autograd = false;  ///< likewise the criterion
};

/// All steps and hooks in the order in which they run, and all participants in the order in which they are asked.
template <std::size_t Participants>
struct Plan {
  std::array<std::string_view, Participants> participants;
  std::array<PlanRow<Participants>, hooks::count> rows;
  GradientPlan gradients{};

  /// Whether anybody answers the hook. An unknown name is an error, at compile time where this is evaluated there.
  constexpr bool runs(std::string_view hook) const {
    for (const auto& row : rows) {
      if (row.name == hook) return row.answered();
    }
    throw "no such hook";
  }
};

namespace detail {

template <class Hook, class... P>
consteval PlanRow<sizeof...(P)> plan_row() {
  return {Hook::name, Hook::doc, Hook::kind, Hook::stages, {answers<Hook, P>...}};
}

template <class... P>
consteval Plan<sizeof...(P)> make_plan(GradientPlan gradients = {}) {
  return [&]<class... Hook>(std::type_identity<std::tuple<Hook...>>) {
    return Plan<sizeof...(P)>{{type_name<P>()...}, {plan_row<Hook, P...>()...}, gradients};
  }(std::type_identity<hooks::List>{});
}

/// A PlanRow, of whatever number of participants.
struct PrintedRow {
  std::string_view name;
  Stages stages;
  std::span<const bool> who;
};
/// The table behind to_string(plan): a stage a paragraph, a step or hook a line.
std::string print_plan(std::span<const std::string_view> participants, std::span<const PrintedRow> rows, const GradientPlan& gradients);

}  // namespace detail

/// The plan as a table: each stage, its steps and answered hooks in order, who answers. What is not listed is compiled away.
template <std::size_t N>
std::string to_string(const Plan<N>& plan) {
  std::array<detail::PrintedRow, hooks::count> rows;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const PlanRow<N>& row = plan.rows[i];
    rows[i] = {row.name, row.stages, row.who};
  }
  return detail::print_plan(plan.participants, rows, plan.gradients);
}

#if FULMEN_BODIES
FULMEN_INLINE std::string detail::print_plan(std::span<const std::string_view> participants, std::span<const PrintedRow> rows,
                                             const GradientPlan& gradients) {
  const auto who_answers = [&](const PrintedRow& row) {
    std::string who;
    for (std::size_t p = 0; p < participants.size(); ++p) {
      if (row.who[p]) who += (who.empty() ? "" : ", ") + std::string(participants[p]);
    }
    // A stage always has its own step; inference_step is only one way of having it.
    if (who.empty() && row.name.ends_with("ing_step")) who = "default";
    if (who.empty() && (row.name == "validation_step" || row.name == "test_step" || row.name == "predict_step")) who = "default";
    return who;
  };
  const auto how = [&]() -> std::string {
    if (!gradients.composed) return gradients.why.empty() ? "autograd" : "autograd: " + std::string(gradients.why);
    const std::size_t layers = gradients.rules + gradients.by_autograd;
    std::string text = "composed of " + std::to_string(layers) + (layers == 1 ? " layer" : " layers");
    if (gradients.by_autograd > 0) text += ", " + std::to_string(gradients.by_autograd) + " of them by autograd";
    if (gradients.criterion_by_autograd) text += "; the criterion by autograd";
    return text;
  };
  std::string out;
  for (const Stage stage : {Stage::fit, Stage::validate, Stage::test, Stage::predict}) {
    out += to_string(stage);
    out += '\n';
    for (const PrintedRow& row : rows) {
      if (!contains(row.stages, stage)) continue;
      const std::string who = who_answers(row);
      if (who.empty()) continue;
      out += "  ";
      out += row.name;
      out.append(row.name.size() < 28 ? 28 - row.name.size() : 1, ' ');
      out += who;
      out += '\n';
    }
    if (stage == Stage::fit) out += "  gradients                   " + how() + "\n";
  }
  return out;
}
#endif

}  // namespace fulmen
