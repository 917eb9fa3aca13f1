// What every step and hook is given: where the run stands, the log, and the request to stop. A plain class.
#pragma once

#include <fulmen/loop/log.hpp>
#include <fulmen/loop/options.hpp>
#include <fulmen/loop/stage.hpp>

#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <utility>

#if FULMEN_BODIES
#include <string>
#include <system_error>
#endif

namespace fulmen {

namespace detail {
struct LoopAccess;

/// Where training is inside an epoch: what a checkpoint saved there needs, to go on as if nothing had happened.
struct EpochProgress {
  bool running = false;           ///< since on_train_epoch_start was called
  std::int64_t done = 0;          ///< batches trained on
  bool last = false;              ///< whether the last of them is the epoch's last
  std::int64_t told = 0;          ///< those of them that are in total_batches_ and logged_steps_
  std::int64_t without_step = 0;  ///< batches not told of yet that no optimizer step followed
  // After how many batches the last one's values went to the loggers, and after how many validation was over (or not due).
  // The loop looks at neither after most batches.
  std::int64_t logged_at = 0, validated_at = 0;
  at::Tensor validation_generator{};  ///< the default generator's state when the validation that runs now began
};
}  // namespace detail

/// The part of the context that does not depend on the Trainer's type, so that code in a .cpp file can name it.
/// Hooks that want the module, the optimizers or the callbacks take `auto& ctx` and get the TrainerContext behind it.
class Context {
 public:
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const Options& options() const { return options_; }
  Stage stage() const { return stage_; }
  Phase phase() const { return phase_; }
  bool sanity_checking() const { return phase_ == Phase::sanity_check; }

  /// Index of the running epoch, from 0; between stages, the number of epochs done.
  std::int64_t epoch() const { return epoch_; }
  /// Epochs finished: differs from epoch() in the hooks at an epoch's end, where the epoch is over but still the running one.
  std::int64_t epochs_completed() const { return epoch_ + (epoch_over_ ? 1 : 0); }
  /// Optimizer steps done since the Trainer was made.
  std::int64_t global_step() const { return global_step_; }
  /// Index of the running batch in its loader, from 0.
  std::int64_t batch_idx() const { return batch_idx_; }
  /// Index of the running loader among several of one stage, from 0.
  std::int64_t dataloader_idx() const { return dataloader_idx_; }
  /// In on_train_start of a run that goes on in the middle of an epoch: how many of its batches were done before (that epoch's
  /// on_train_epoch_start is not called again). Else 0.
  std::int64_t resumed_at() const { return resumed_at_; }
  /// Batches whose gradients make one optimizer step.
  std::int64_t accumulate_grad_batches() const { return accumulate_; }
  /// Changes that from the next batch on: for schedules by epoch, in on_train_epoch_start.
  void set_accumulate_grad_batches(std::int64_t batches);
  /// Batches that the running phase will see, if its loader has a size.
  std::optional<std::int64_t> num_batches() const { return num_batches_; }
  /// Samples in the running batch.
  std::int64_t batch_size() const { return batch_size_; }
  at::Device device() const { return device_; }
  /// Bytes of activations and their gradients that are kept from step to step, where the step is composed (nn/composed_step.hpp):
  /// those of the largest moment of the last step. 0 before the first, and by autograd, which gives its memory back.
  std::int64_t activation_bytes() const { return activation_bytes_; }

  /// Logs a number or a one-element tensor under a literal name. Costs a look-up; a tensor is not waited for.
  /// With several loaders in an evaluation stage, each has its own value: name/dataloader_idx_N.
  void log(LogName name, double value, const LogOptions& options = {}) { metrics_.log(name, value, options, log_place()); }
  void log(LogName name, const at::Tensor& value, const LogOptions& options = {}) {
    metrics_.log(name, value, options, log_place());
  }
  /// Logs a metric object (metrics/accuracy.hpp), fed elsewhere: its compute() is the epoch's value, and it is reset() after
  /// the epoch's last hook. The object must live until then; it has no value for a step.
  template <detail::HasEpochValue M>
  void log(LogName name, M& metric, const LogOptions& options = {}) {
    metrics_.log_object(name, metric, options, log_place());
  }
  /// Several values with one set of options: `ctx.log_dict({{"a", x}, {"b", y}}, {.prog_bar = true})`.
  void log_dict(std::initializer_list<LogEntry> entries, const LogOptions& options = {}) {
    for (const LogEntry& entry : entries) {
      if (entry.tensor.defined()) log(entry.name, entry.tensor, options);
      else log(entry.name, entry.number, options);
    }
  }
  /// Not this: a name made at run time is asked for by runtime_name.
  template <detail::RuntimeText Name, class Value>
  void log(Name&&, const Value&, const LogOptions& = {}) {
    static_assert(!detail::RuntimeText<Name>,
                  "fulmen: log(name, value) takes a literal name; for a name made at run time write "
                  "log(fulmen::runtime_name(name), value), which hashes it at each call");
  }
  /// All logged values. Reading one may wait for the device.
  MetricStore& metrics() { return metrics_; }

  /// Ends fit after the running batch, once min_epochs and min_steps are reached.
  void request_stop() { should_stop_ = true; }
  bool should_stop() const { return should_stop_; }
  /// Whether Ctrl-C, SIGTERM or SIGUSR1 ended the run.
  bool interrupted() const { return interrupted_ != 0; }
  /// Which signal did; 0: none.
  int interrupted_by() const { return interrupted_; }

  /// The folder of this run (`runs/<name>/version_N`), made on first use; empty where nothing is to be written.
  /// @throws std::runtime_error naming the folder if it cannot be made.
  const std::filesystem::path& run_dir() {
    if (run_dir_.empty() && writes_files()) make_run_dir();
    return run_dir_;
  }
  /// The checkpoint that the running stage began with, or the last one did; empty: none.
  const std::filesystem::path& ckpt_path() const { return ckpt_path_; }
  /// Whether this run has made its folder.
  bool has_run_dir() const { return !run_dir_.empty(); }
  bool writes_files() const { return options_.fast_dev_run == 0; }

 protected:
  explicit Context(Options options);
  ~Context();

 private:
  friend struct detail::LoopAccess;

  void set_options(Options options);

  LogPlace log_place() const {
    return {phase_, by_step_, by_step_ || in_batch_ ? batch_size_ : 1, several_loaders_ && in_batch_ ? dataloader_idx_ : -1};
  }

  void make_run_dir();

  Options options_;
  MetricStore metrics_;
  Stage stage_ = Stage::idle;
  Phase phase_ = Phase::idle;
  bool by_step_ = false;   // inside a training batch
  bool in_batch_ = false;  // inside an evaluation batch
  bool should_stop_ = false;
  bool out_of_time_ = false;  // it was max_time that asked to stop
  bool training_ = false;  // since on_train_start was called, and until on_train_end is
  bool epoch_over_ = false;
  bool resumes_ = false;  // a checkpoint was loaded, and fit has not begun since
  int interrupted_ = 0;
  std::int64_t epoch_ = 0, global_step_ = 0, batch_idx_ = 0, batch_size_ = 1, dataloader_idx_ = 0, accumulate_ = 1, resumed_at_ = 0;
  std::int64_t logged_steps_ = 0, total_batches_ = 0, activation_bytes_ = 0;
  detail::EpochProgress progress_;
  bool several_loaders_ = false;
  std::optional<std::int64_t> num_batches_;
  at::Device device_ = at::kCPU;
  std::filesystem::path run_dir_, ckpt_path_;
};

#if FULMEN_BODIES
FULMEN_INLINE Context::Context(Options options) { set_options(std::move(options)); }
FULMEN_INLINE Context::~Context() = default;

FULMEN_INLINE void Context::set_accumulate_grad_batches(std::int64_t batches) {
  if (batches < 1) fail<std::invalid_argument>("accumulate_grad_batches is {}, expected at least 1", batches);
  accumulate_ = batches;
}

FULMEN_INLINE void Context::set_options(Options options) {
  validate(options);
  if (!options.overfit_batches.is_zero()) {
    options.limit_train_batches = options.limit_val_batches = options.overfit_batches;
  }
  if (options.fast_dev_run > 0) {
    // A look at everything once: validation must not wait for an epoch or a batch that never comes.
    options.check_val_every_n_epoch = 1;
    options.val_check_interval = {};
  }
  accumulate_ = options.accumulate_grad_batches;
  options_ = std::move(options);
}

FULMEN_INLINE void Context::make_run_dir() {
  const std::filesystem::path parent = options_.default_root_dir / options_.name;
  std::error_code error;
  std::filesystem::create_directories(parent, error);
  for (int version = 0; !error; ++version) {
    std::filesystem::path dir = parent / ("version_" + std::to_string(version));
    // create_directory answers false for one that exists, so two runs that start at once get two folders.
    if (std::filesystem::create_directory(dir, error)) {
      run_dir_ = std::move(dir);
      return;
    }
    if (error && std::filesystem::is_directory(dir)) error.clear();
  }
  fail("cannot make a run folder in '{}': {}; set Options::default_root_dir to a folder that can be written",
       parent.string(), error.message());
}
#endif

}  // namespace fulmen
