// EarlyStopping: ends fit when a logged value stops getting better.
#pragma once

#include <fulmen/callbacks/monitor.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/ops/scalar_tensor.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <stdexcept>
#endif

namespace fulmen {

/// Why an EarlyStopping has ended fit. The numbers are Lightning's.
enum class EarlyStoppingReason : std::uint8_t {
  not_stopped,
  stopping_threshold,
  divergence_threshold,
  patience_exhausted,
  non_finite_metric
};

/// `EarlyStopping{.monitor = "val/loss"}` ends fit once the value has not improved for `patience` checks. It
/// looks at the end of each training epoch; after each validation run if there are several in an epoch, or
/// not one in every epoch. It rests in a fast_dev_run and during the sanity check. Source:
/// lightning.pytorch.callbacks.EarlyStopping.
struct EarlyStopping {
  std::string monitor{};      ///< name of a logged value; must be given
  double min_delta = 0;       ///< less than this is no improvement
  std::int64_t patience = 3;  ///< checks without improvement that end fit
  bool verbose = false;       ///< a line on stderr for each improvement and at the end
  Mode mode = Mode::min;
  bool strict = true;        ///< a value that was not logged is an error; else the check is left out
  bool check_finite = true;  ///< end fit if the value is infinite or NaN
  std::optional<double> stopping_threshold{};    ///< end fit once the value is better than this
  std::optional<double> divergence_threshold{};  ///< end fit once the value is worse than this
  std::optional<bool>
      check_on_train_epoch_end{};  ///< true: at the epoch's end; false: after validation; unset: see above

  // What has happened so far; not to be given.
  std::int64_t wait_count = 0;     ///< checks since the last improvement
  std::int64_t stopped_epoch = 0;  ///< index of the epoch in which fit was ended; 0: it was not
  double best_score =
      mode == Mode::min ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
  EarlyStoppingReason stopping_reason = EarlyStoppingReason::not_stopped;
  std::optional<std::string> stopping_reason_message{};

  /// @throws std::invalid_argument if there is no monitor, or patience or min_delta are negative
  void setup() const;
  /// @throws std::runtime_error if the monitored value was never logged (and `strict`)
  void on_train_epoch_end(Context& ctx);
  void on_validation_end(Context& ctx);

  /// Lightning's keys.
  std::string state_key() const;
  State state_dict() const;
  void load_state_dict(const State& state);

 private:
  bool checks_epochs(const Context& ctx) const;
  void check(Context& ctx);
  bool better(double value, double than) const { return detail::is_better(mode, value, than); }
  /// Takes a new value in. @return what is to be said of it, and whether fit ends
  std::string judge(double value, bool& stop);
};

#if FULMEN_BODIES

FULMEN_INLINE void EarlyStopping::setup() const {
  if (monitor.empty())
    fail<std::invalid_argument>("EarlyStopping::monitor is empty, expected the name of a logged value");
  if (patience < 0)
    fail<std::invalid_argument>("EarlyStopping::patience is {}, expected at least 0", patience);
  if (!(min_delta >= 0))
    fail<std::invalid_argument>("EarlyStopping::min_delta is {}, expected at least 0", min_delta);
}

FULMEN_INLINE bool EarlyStopping::checks_epochs(const Context& ctx) const {
  const Options& o = ctx.options();
  return check_on_train_epoch_end.value_or(o.val_check_interval.is_default() &&
                                           o.check_val_every_n_epoch == 1);
}

FULMEN_INLINE void EarlyStopping::on_train_epoch_end(Context& ctx) {
  if (checks_epochs(ctx)) check(ctx);
}

FULMEN_INLINE void EarlyStopping::on_validation_end(Context& ctx) {
  if (!checks_epochs(ctx) && ctx.stage() == Stage::fit && !ctx.sanity_checking()) check(ctx);
}

FULMEN_INLINE void EarlyStopping::check(Context& ctx) {
  if (ctx.options().fast_dev_run > 0) return;
  const std::optional<double> value = ctx.metrics().find(monitor);
  if (!value) {
    const std::string message = detail::not_logged("EarlyStopping", monitor, ctx.metrics());
    if (strict) fail("{}", message);
    if (verbose) fmt::print(stderr, "{}\n", message);
    return;
  }
  bool stop = false;
  const std::string message = judge(*value, stop);
  if (stop) {
    ctx.request_stop();
    stopped_epoch = ctx.epoch();
    stopping_reason_message = message;
  }
  if (verbose && !message.empty()) fmt::print(stderr, "{}\n", message);
}

FULMEN_INLINE std::string EarlyStopping::judge(double value, bool& stop) {
  stop = true;
  const char* sign = mode == Mode::min ? "<" : ">";
  if (check_finite && !std::isfinite(value)) {
    stopping_reason = EarlyStoppingReason::non_finite_metric;
    return fmt::format("EarlyStopping: {} is {}, after a best of {:.3f}: fit ends", monitor, value,
                       best_score);
  }
  if (stopping_threshold && better(value, *stopping_threshold)) {
    stopping_reason = EarlyStoppingReason::stopping_threshold;
    return fmt::format("EarlyStopping: {} is {} {} stopping_threshold {}: fit ends", monitor, value, sign,
                       *stopping_threshold);
  }
  if (divergence_threshold && better(-value, -*divergence_threshold)) {
    stopping_reason = EarlyStoppingReason::divergence_threshold;
    return fmt::format("EarlyStopping: {} is {}, worse than divergence_threshold {}: fit ends", monitor,
                       value, *divergence_threshold);
  }
  if (better(mode == Mode::min ? value + min_delta : value - min_delta, best_score)) {
    stop = false;
    const double before = best_score;
    best_score = value;
    wait_count = 0;
    if (!std::isfinite(before)) return fmt::format("EarlyStopping: {} is {:.3f}", monitor, value);
    return fmt::format("EarlyStopping: {} is {:.3f}, better than the best so far by {:.3f}", monitor, value,
                       std::abs(before - value));
  }
  if (++wait_count < patience) {
    stop = false;
    return "";
  }
  stopping_reason = EarlyStoppingReason::patience_exhausted;
  return fmt::format("EarlyStopping: {} has not improved in {} checks, its best is {:.3f}: fit ends", monitor,
                     wait_count, best_score);
}

FULMEN_INLINE std::string EarlyStopping::state_key() const {
  return fmt::format("EarlyStopping{{'monitor': '{}', 'mode': '{}'}}", monitor, mode == Mode::min ? "min" : "max");
}

FULMEN_INLINE State EarlyStopping::state_dict() const {
  State state("EarlyStopping");
  // A tensor, as Lightning has it.
  state.set("wait_count", wait_count).set("stopped_epoch", stopped_epoch);
  state.set("best_score", at::scalar_tensor(best_score, at::kDouble)).set("patience", patience);
  state.set("stopping_reason", static_cast<std::int64_t>(stopping_reason));
  state.set("stopping_reason_message", stopping_reason_message);
  return state;
}

FULMEN_INLINE void EarlyStopping::load_state_dict(const State& state) {
  const auto reason = state.get_or<std::int64_t>("stopping_reason", 0);
  if (reason < 0 || reason > static_cast<std::int64_t>(EarlyStoppingReason::non_finite_metric)) {
    fail("state of EarlyStopping: stopping_reason is {}, expected 0 to 4", reason);
  }
  const auto best = state.get<at::Tensor>("best_score").item<double>();
  const auto stopped = state.get<std::int64_t>("stopped_epoch"), checks = state.get<std::int64_t>("patience");
  wait_count = state.get<std::int64_t>("wait_count");
  stopped_epoch = stopped;
  patience = checks;
  best_score = best;
  stopping_reason = static_cast<EarlyStoppingReason>(reason);
  stopping_reason_message = state.get_or<std::optional<std::string>>("stopping_reason_message", std::nullopt);
}

#endif

}  // namespace fulmen
