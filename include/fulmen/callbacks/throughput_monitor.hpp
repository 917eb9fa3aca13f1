// ThroughputMonitor: logs batches, samples and items per second over the last batches.
#pragma once

#include <fulmen/callbacks/clock.hpp>
#include <fulmen/callbacks/log_due.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/trainer_context.hpp>
#include <fulmen/none.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/DeviceAccelerator.h>

#include <stdexcept>
#endif

namespace fulmen {

struct ThroughputOptions {
  std::size_t window_size = 100;  ///< batches; rates are there once so many have been seen
  double available_flops = 0;     ///< what the device can do in a second; 0: device/mfu is not logged
  std::string separator = "/";
};

/// Rates over a window of batches, from totals that grow. Source:
/// lightning.fabric.utilities.throughput.Throughput, for one process.
class Throughput {
 public:
  /// @throws std::invalid_argument if the window is of less than 2 batches
  explicit Throughput(ThroughputOptions options = {});

  /// Totals after one more batch. @param time seconds; @param flops of this batch alone
  /// @throws std::invalid_argument if a total does not grow, or there are fewer samples than batches or items
  /// than samples
  void update(double time, std::int64_t batches, std::int64_t samples,
              std::optional<std::int64_t> lengths = {}, std::optional<double> flops = {});

  /// time, batches, samples, lengths: the totals; device/batches_per_sec, device/samples_per_sec,
  /// device/items_per_sec, device/flops_per_sec, device/mfu: as far as they are known. @throws
  /// std::logic_error before the first update
  Metrics compute() const;
  void reset();

 private:
  struct Totals {
    double time;
    std::int64_t batches, samples, lengths;
  };
  ThroughputOptions options_;
  bool has_lengths_ = false;
  std::deque<Totals> window_;
  std::deque<double> flops_;
};

namespace detail {

/// Seconds of a monotonic clock, after the device has done what it was given.
double seconds_when_done(at::Device device);

/// The totals of one phase.
struct PhaseThroughput {
  Throughput throughput;
  double start = 0, elapsed = 0;
  std::int64_t batches = 0, samples = 0, lengths = 0;

  void begin() {
    throughput.reset();
    batches = samples = lengths = 0;
    elapsed = 0;
  }
};

}  // namespace detail

/// `ThroughputMonitor{{.window_size = 50}}` logs train/device/batches_per_sec, train/device/samples_per_sec,
/// train/time, ... at batches at which the loop logs, and the same for validate, test and predict. Time for
/// validation inside fit does not count as training. A module with a member `flops_per_batch` gets
/// device/flops_per_sec as well.
///
/// @tparam BatchSize batch_size_fn(batch): the samples in a batch; unless given, what the loop finds
/// @tparam Length    length_fn(batch): the items (tokens, say) in a batch, for device/items_per_sec
/// Source: lightning.pytorch.callbacks.ThroughputMonitor.
template <class BatchSize = None, class Length = None>
class ThroughputMonitor {
 public:
  explicit ThroughputMonitor(ThroughputOptions options = {}, BatchSize batch_size_fn = {},
                             Length length_fn = {})
      : batch_size_(std::move(batch_size_fn)), length_(std::move(length_fn)) {
    for (auto& phase : phases_) phase.throughput = Throughput(options);
    separator_ = std::move(options.separator);
  }

  void on_train_start(auto& ctx) { start<Phase::train>(ctx); }
  void on_train_batch_start(auto& ctx) {
    due_.batch_starts(ctx);
    steps_before_ = ctx.global_step();
  }
  template <class Ctx>
  void on_train_batch_end(Ctx& ctx, const auto&, const auto& batch) {
    update<Phase::train>(ctx, batch);
    // While gradients are summed, the step that belongs to the batch has not been taken.
    const bool stepped =
        !detail::automatic_optimization<typename Ctx::Module>() || ctx.global_step() > steps_before_;
    if (stepped && due_.now(ctx)) log<Phase::train>(ctx, "train", due_.step());
  }
  void on_validation_start(auto& ctx) {
    if (!ctx.sanity_checking()) start<Phase::validation>(ctx);
  }
  void on_validation_batch_end(auto& ctx, const auto&, const auto& batch) {
    if (!ctx.sanity_checking()) evaluated<Phase::validation>(ctx, batch, "validate");
  }
  void on_validation_end(auto& ctx) {
    if (ctx.sanity_checking() || ctx.stage() != Stage::fit) return;
    // Training goes on as if there had been no time between its last batch and now.
    auto& train = of(Phase::train);
    const auto& validation = of(Phase::validation);
    train.start = validation.start + validation.elapsed - train.elapsed;
  }
  void on_test_start(auto& ctx) { start<Phase::test>(ctx); }
  void on_test_batch_end(auto& ctx, const auto&, const auto& batch) {
    evaluated<Phase::test>(ctx, batch, "test");
  }
  void on_predict_start(auto& ctx) { start<Phase::predict>(ctx); }
  void on_predict_batch_end(auto& ctx, const auto&, const auto& batch) {
    evaluated<Phase::predict>(ctx, batch, "predict");
  }

 private:
  static constexpr std::array watched{Phase::train, Phase::validation, Phase::test, Phase::predict};

  detail::PhaseThroughput& of(Phase phase) {
    std::size_t i = 0;
    while (watched[i] != phase) ++i;
    return phases_[i];
  }

  template <Phase P, class Ctx>
  void start(Ctx& ctx) {
    static_assert(Ctx::has_loggers,
                  "fulmen: ThroughputMonitor needs a logger, and this Trainer's Runtime has none");
    of(P).begin();
    of(P).start = detail::seconds_when_done(ctx.device());
  }

  template <Phase P>
  void update(auto& ctx, const auto& batch) {
    auto& phase = of(P);
    phase.elapsed = detail::seconds_when_done(ctx.device()) - phase.start;
    ++phase.batches;
    if constexpr (std::is_same_v<BatchSize, None>)
      phase.samples += ctx.batch_size();
    else
      phase.samples += static_cast<std::int64_t>(batch_size_(batch));
    std::optional<std::int64_t> lengths;
    if constexpr (!std::is_same_v<Length, None>)
      lengths = phase.lengths += static_cast<std::int64_t>(length_(batch));
    std::optional<double> flops;
    if constexpr (requires { static_cast<double>(ctx.module().flops_per_batch); }) {
      flops = static_cast<double>(ctx.module().flops_per_batch);
    }
    phase.throughput.update(phase.elapsed, phase.batches, phase.samples, lengths, flops);
  }

  template <Phase P>
  void evaluated(auto& ctx, const auto& batch, const char* name) {
    update<P>(ctx, batch);
    const auto& phase = of(P);
    if (phase.batches % ctx.options().log_every_n_steps == 0 || ctx.should_stop())
      log<P>(ctx, name, phase.batches);
  }

  template <Phase P>
  void log(auto& ctx, const char* name, std::int64_t step) {
    Metrics metrics = of(P).throughput.compute();
    for (Metric& metric : metrics) metric.name = name + separator_ + metric.name;
    ctx.log_metrics(std::move(metrics), step);
  }

  [[no_unique_address]] BatchSize batch_size_;
  [[no_unique_address]] Length length_;
  std::string separator_;
  detail::LogDue due_;
  std::int64_t steps_before_ = 0;
  std::array<detail::PhaseThroughput, watched.size()> phases_;
};

#if FULMEN_BODIES

FULMEN_INLINE Throughput::Throughput(ThroughputOptions options) : options_(std::move(options)) {
  if (options_.window_size < 2) {
    fail<std::invalid_argument>("ThroughputOptions::window_size is {}, expected at least 2",
                                options_.window_size);
  }
}

FULMEN_INLINE void Throughput::update(double time, std::int64_t batches, std::int64_t samples,
                                      std::optional<std::int64_t> lengths, std::optional<double> flops) {
  if (samples < batches)
    fail<std::invalid_argument>("Throughput: {} samples in {} batches", samples, batches);
  if (lengths && *lengths < samples)
    fail<std::invalid_argument>("Throughput: {} items in {} samples", *lengths, samples);
  if (!window_.empty()) {
    const Totals& last = window_.back();
    const bool grows = time > last.time && batches > last.batches && samples > last.samples;
    if (!grows || (lengths && *lengths <= last.lengths)) {
      fail<std::invalid_argument>(
          "Throughput: the totals of time, batches, samples and items must grow with each batch");
    }
    if (lengths.has_value() != has_lengths_)
      fail<std::invalid_argument>("Throughput: items are given for some batches only");
  }
  has_lengths_ = lengths.has_value();
  window_.push_back({time, batches, samples, lengths.value_or(0)});
  if (window_.size() > options_.window_size) window_.pop_front();
  if (!flops) return;
  flops_.push_back(*flops);
  if (flops_.size() > options_.window_size) flops_.pop_front();
}

FULMEN_INLINE Metrics Throughput::compute() const {
  if (window_.empty()) fail<std::logic_error>("Throughput: compute() before the first update()");
  const Totals &first = window_.front(), &last = window_.back();
  Metrics out;
  out.emplace_back("time", last.time);
  out.emplace_back("batches", static_cast<double>(last.batches));
  out.emplace_back("samples", static_cast<double>(last.samples));
  if (has_lengths_) out.emplace_back("lengths", static_cast<double>(last.lengths));
  if (window_.size() < options_.window_size) return out;
  const double time = last.time - first.time;
  const auto rate = [&](const char* name, double amount) {
    out.emplace_back("device" + options_.separator + name, amount / time);
  };
  rate("batches_per_sec", static_cast<double>(last.batches - first.batches));
  rate("samples_per_sec", static_cast<double>(last.samples - first.samples));
  if (has_lengths_) rate("items_per_sec", static_cast<double>(last.lengths - first.lengths));
  if (flops_.size() < options_.window_size) return out;
  double flops = 0;
  for (std::size_t i = 1; i < flops_.size(); ++i) flops += flops_[i];
  rate("flops_per_sec", flops);
  if (options_.available_flops > 0) rate("mfu", flops / options_.available_flops);
  return out;
}

FULMEN_INLINE void Throughput::reset() {
  window_.clear();
  flops_.clear();
}

FULMEN_INLINE double detail::seconds_when_done(at::Device device) {
  if (!device.is_cpu()) at::accelerator::synchronizeDevice(device.index());
  return steady_seconds();
}

#endif

}  // namespace fulmen
