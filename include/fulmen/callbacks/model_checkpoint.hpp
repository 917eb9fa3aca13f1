// ModelCheckpoint: saves the last state of a run, and the best by a logged value.
#pragma once

#include <fulmen/checkpoint/checkpoint.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <cmath>
#include <optional>
#include <system_error>
#endif

namespace fulmen {

/// Which direction of a monitored value is the better one.
enum class Mode : std::uint8_t { min, max };

/// Writes `<run>/checkpoints/last.ckpt` at the end of each training epoch and when Ctrl-C ends the run; with a monitor,
/// also `best.ckpt` whenever that value is better than it was. `trainer.load(path)` takes a run back to either.
struct ModelCheckpoint {
  static constexpr bool saves_checkpoints = true;

  std::string monitor{};            ///< name of a logged value; empty: no best.ckpt
  Mode mode = Mode::min;            ///< of the monitored value
  std::filesystem::path dirpath{};  ///< empty: checkpoints/ in the run's folder

  /// @throws std::runtime_error if the monitored value was never logged, or the file cannot be written.
  template <class Ctx>
  void on_train_epoch_end(Ctx& ctx) {
    if (!enabled(ctx)) return;
    detail::save_checkpoint(ctx, path(ctx, "last.ckpt"));
    if (is_best(ctx)) detail::save_checkpoint(ctx, path(ctx, "best.ckpt"));
  }

  template <class Ctx>
  void on_exception(Ctx& ctx) {
    // After an error the state may be what caused it: the last good checkpoint stays.
    if (enabled(ctx) && ctx.interrupted() && ctx.stage() == Stage::fit) {
      detail::save_checkpoint(ctx, path(ctx, "last.ckpt"));
    }
  }

  State state_dict() const;
  void load_state_dict(const State& state);

  double best_ = std::numeric_limits<double>::quiet_NaN();  // public only because aggregates have no private members

 private:
  static bool enabled(const Context& ctx) { return ctx.options().enable_checkpointing && ctx.writes_files(); }

  /// Whether the monitored value is the best so far, which then becomes best_.
  bool is_best(Context& ctx);

  std::filesystem::path path(Context& ctx, const char* name) const;
};

#if FULMEN_BODIES

FULMEN_INLINE State ModelCheckpoint::state_dict() const {
  State state("ModelCheckpoint");
  state.set("best_model_score", best_);
  return state;
}

FULMEN_INLINE void ModelCheckpoint::load_state_dict(const State& state) { best_ = state.get<double>("best_model_score"); }

FULMEN_INLINE bool ModelCheckpoint::is_best(Context& ctx) {
  if (monitor.empty()) return false;
  const std::optional<double> value = ctx.metrics().find(monitor);
  if (!value) {
    fail("ModelCheckpoint: '{}' was not logged; there is: {}", monitor, ctx.metrics().callback_metrics().names());
  }
  const bool best = std::isnan(best_) || (mode == Mode::min ? *value < best_ : *value > best_);
  if (best) best_ = *value;
  return best;
}

FULMEN_INLINE std::filesystem::path ModelCheckpoint::path(Context& ctx, const char* name) const {
  const std::filesystem::path dir = dirpath.empty() ? ctx.run_dir() / "checkpoints" : dirpath;
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) fail("ModelCheckpoint: cannot make the folder '{}': {}", dir.string(), error.message());
  return dir / name;
}

#endif

}  // namespace fulmen
