// The stages of a Trainer and the phases inside them, in Lightning's words.
#pragma once

#include <cstdint>
#include <string_view>

namespace fulmen {

/// What the user called. Values are bits, so that a hook can say at a glance in which stages it runs.
enum class Stage : std::uint8_t { idle = 0, fit = 1, validate = 2, test = 4, predict = 8 };

/// What is running now: inside `fit`, training and validation take turns.
enum class Phase : std::uint8_t { idle, sanity_check, train, validation, test, predict };

constexpr std::string_view to_string(Stage stage) {
  switch (stage) {
    case Stage::fit: return "fit";
    case Stage::validate: return "validate";
    case Stage::test: return "test";
    case Stage::predict: return "predict";
    case Stage::idle: break;
  }
  return "idle";
}

constexpr std::string_view to_string(Phase phase) {
  switch (phase) {
    case Phase::sanity_check: return "sanity_check";
    case Phase::train: return "train";
    case Phase::validation: return "validation";
    case Phase::test: return "test";
    case Phase::predict: return "predict";
    case Phase::idle: break;
  }
  return "idle";
}

/// A set of stages.
using Stages = std::uint8_t;
inline constexpr Stages in_fit = 1, in_validate = 2, in_test = 4, in_predict = 8, in_all = 15;

constexpr bool contains(Stages set, Stage stage) { return (set & static_cast<Stages>(stage)) != 0; }

}  // namespace fulmen
