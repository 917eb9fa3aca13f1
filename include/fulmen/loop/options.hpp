// The Trainer's run-time options: an aggregate for designated initialisers, with Lightning's names and meanings.
#pragma once

#include <fulmen/error.hpp>

#include <chrono>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#if FULMEN_BODIES
#include <algorithm>
#include <cmath>
#endif

namespace fulmen {

/// How many batches of a loader are used: a count (`10`), a fraction of the loader (`0.25`), or all (default).
class Limit {
 public:
  constexpr Limit() = default;
  constexpr Limit(std::integral auto count) : count_(count), is_count_(true) {}
  constexpr Limit(std::floating_point auto fraction) : fraction_(fraction) {}

  /// The number of batches out of `size`; an unknown size stays unknown unless the limit is a count.
  /// @throws std::invalid_argument for a fraction other than 1 of a loader without a size, or one that leaves no batch.
  std::optional<std::int64_t> of(std::optional<std::int64_t> size, const char* option) const;
  /// Whether the loader is not to be used at all.
  constexpr bool is_zero() const { return is_count_ ? count_ == 0 : fraction_ == 0; }
  constexpr bool valid() const { return is_count_ ? count_ >= 0 : fraction_ >= 0.0 && fraction_ <= 1.0; }
  constexpr bool is_count() const { return is_count_; }
  /// Whether it is the fraction 1: all of the loader.
  constexpr bool is_default() const { return !is_count_ && fraction_ == 1.0; }
  double value() const { return is_count_ ? static_cast<double>(count_) : fraction_; }

 private:
  std::int64_t count_ = 0;
  double fraction_ = 1.0;
  bool is_count_ = false;
};

enum class GradientClip : std::uint8_t { norm, value };

struct Options {
  std::int64_t max_epochs = 1000;  ///< -1: no limit
  std::int64_t max_steps = -1;     ///< optimizer steps; -1: no limit
  std::int64_t min_epochs = 0;     ///< request_stop() waits for these
  std::int64_t min_steps = 0;
  std::chrono::duration<double> max_time{0};  ///< stop after the batch that is running then, as request_stop() does; 0: no limit
  Limit limit_train_batches{};
  Limit limit_val_batches{};
  Limit limit_test_batches{};
  Limit limit_predict_batches{};
  std::int64_t fast_dev_run = 0;          ///< N > 0: N batches of each loader, one epoch, no files, no sanity check
  std::int64_t num_sanity_val_steps = 2;  ///< -1: the whole validation loader
  std::int64_t check_val_every_n_epoch = 1;  ///< 0: val_check_interval counts batches across epochs
  Limit val_check_interval{};  ///< validate every so many batches: a count, or a fraction of the epoch; default: at its end
  Limit overfit_batches = 0;   ///< train and validate on these batches of their loaders only; no shuffling, where a loader
                               ///< has shuffles() and shuffle(bool), as a TensorLoader has; others have to be in order
  std::int64_t reload_dataloaders_every_n_epochs = 0;  ///< ask the data module anew for its loaders; 0: once
  std::int64_t accumulate_grad_batches = 1;
  double gradient_clip_val = 0;  ///< 0: no clipping
  GradientClip gradient_clip_algorithm = GradientClip::norm;
  std::int64_t log_every_n_steps = 50;
  bool inference_mode = true;   ///< evaluation under c10::InferenceMode; false: no_grad only
  bool benchmark = false;       ///< let cuDNN choose its kernels by trying them
  bool deterministic = false;   ///< LibTorch's deterministic algorithms, an error where an operator has none
  bool detect_anomaly = false;  ///< autograd's anomaly mode: slow, names the operator that made a NaN
  bool enable_progress_bar = true;
  bool enable_model_summary = true;
  bool enable_checkpointing = true;
  bool exit_on_interrupt = true;  ///< after Ctrl-C (or SIGTERM, SIGUSR1) has ended the stage in order, exit the process with the
                                  ///< code that the signal gives: 130 (143, 138)
  std::filesystem::path default_root_dir = "runs";
  std::string name = "default";  ///< the run's folder is default_root_dir/name/version_N
};

/// @throws std::invalid_argument naming the option, its value and what was expected.
void validate(const Options& o);

#if FULMEN_BODIES
FULMEN_INLINE std::optional<std::int64_t> Limit::of(std::optional<std::int64_t> size, const char* option) const {
  if (is_count_) return size ? std::min(*size, count_) : count_;
  if (size) {
    const auto count = static_cast<std::int64_t>(static_cast<double>(*size) * fraction_);
    if (count == 0 && *size > 0 && fraction_ > 0) {
      fail<std::invalid_argument>("Options::{} is the fraction {} of {} batches, which is less than one batch", option,
                                  fraction_, *size);
    }
    return count;
  }
  if (fraction_ == 1.0) return std::nullopt;
  fail<std::invalid_argument>("Options::{} is the fraction {} of a loader that has no size(): give a count of batches instead",
                              option, fraction_);
}

FULMEN_INLINE void validate(const Options& o) {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least) fail<std::invalid_argument>("Options::{} is {}, expected at least {}", name, value, least);
  };
  at_least("max_epochs", o.max_epochs, -1);
  at_least("max_steps", o.max_steps, -1);
  at_least("min_epochs", o.min_epochs, 0);
  at_least("min_steps", o.min_steps, 0);
  at_least("fast_dev_run", o.fast_dev_run, 0);
  at_least("num_sanity_val_steps", o.num_sanity_val_steps, -1);
  at_least("check_val_every_n_epoch", o.check_val_every_n_epoch, 0);
  at_least("reload_dataloaders_every_n_epochs", o.reload_dataloaders_every_n_epochs, 0);
  at_least("accumulate_grad_batches", o.accumulate_grad_batches, 1);
  at_least("log_every_n_steps", o.log_every_n_steps, 1);
  if (!(o.gradient_clip_val >= 0) || std::isinf(o.gradient_clip_val)) {
    fail<std::invalid_argument>("Options::gradient_clip_val is {}, expected a finite number of at least 0 (0: off)",
                                o.gradient_clip_val);
  }
  const auto limit = [](const char* name, const Limit& value) {
    if (!value.valid()) {
      fail<std::invalid_argument>("Options::{} is {}, expected a count of at least 0 or a fraction from 0.0 to 1.0",
                                  name, value.value());
    }
  };
  limit("limit_train_batches", o.limit_train_batches);
  limit("limit_val_batches", o.limit_val_batches);
  limit("limit_test_batches", o.limit_test_batches);
  limit("limit_predict_batches", o.limit_predict_batches);
  limit("overfit_batches", o.overfit_batches);
  limit("val_check_interval", o.val_check_interval);
  if (o.val_check_interval.is_zero()) {
    fail<std::invalid_argument>("Options::val_check_interval is 0, expected a count of at least 1 or a fraction above 0");
  }
  if (o.check_val_every_n_epoch == 0 && !o.val_check_interval.is_count()) {
    fail<std::invalid_argument>("Options::check_val_every_n_epoch is 0, so val_check_interval must be a count of batches; it "
                                "is the fraction {}", o.val_check_interval.value());
  }
  if (!(o.max_time.count() >= 0)) {
    fail<std::invalid_argument>("Options::max_time is {} s, expected at least 0 (0: no limit)", o.max_time.count());
  }
  if (o.name.empty() || o.name.find('/') != std::string::npos) {
    fail<std::invalid_argument>("Options::name is '{}', expected a folder name without '/'", o.name);
  }
}
#endif

}  // namespace fulmen
