// TrainResult and EvalResult: what a step may return that says what to log, as in Lightning 0.8 and 0.9.
#pragma once

#include <fulmen/loop/context.hpp>

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/error.hpp>

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <filesystem>
#endif

namespace fulmen {

namespace detail {

/// The values of one step, until the loop hands them to ctx.log.
class ResultValues {
 public:
  /// Values logged so far under other names, {{"old", "new"}, ...}: for a step that takes the result of
  /// another.
  /// @throws std::invalid_argument naming an old name that was not logged
  void rename_keys(std::initializer_list<std::pair<std::string_view, std::string_view>> names);
  void rename_keys(const std::map<std::string, std::string>& names);

  void apply(Context& ctx);

 protected:
  void add(LogName literal, std::string own, at::Tensor tensor, double number, const LogOptions& options);
  /// A value to monitor: averaged over the epoch, for callbacks alone.
  static void monitor(Context& ctx, LogName name, const at::Tensor& value);

 private:
  struct Value {
    LogName literal;
    std::string own;  // the name, where it is no literal
    at::Tensor tensor;
    double number;
    LogOptions options;

    std::string_view name() const { return own.empty() ? literal.text() : std::string_view(own); }
  };

  void rename(std::string_view from, std::string_view to);

  std::vector<Value> values_;
};

/// The log of a result, where values are by default logged on_step, on_epoch.
template <bool OnStep, bool OnEpoch>
class ResultLog : public ResultValues {
 public:
  /// As ctx.log, but with the defaults of this result. A name made at run time is kept here.
  void log(LogName name, double value, LogOptions options = {}) { add(name, {}, {}, value, with_defaults(options)); }
  void log(LogName name, const at::Tensor& value, LogOptions options = {}) {
    add(name, {}, value.detach(), 0, with_defaults(options));
  }
  template <RuntimeText Name>
  void log(Name&& name, double value, LogOptions options = {}) {
    add("", std::string(std::string_view(name)), {}, value, with_defaults(options));
  }
  template <RuntimeText Name>
  void log(Name&& name, const at::Tensor& value, LogOptions options = {}) {
    add("", std::string(std::string_view(name)), value.detach(), 0, with_defaults(options));
  }
  void log_dict(std::initializer_list<LogEntry> entries, LogOptions options = {}) {
    for (const LogEntry& entry : entries) {
      if (entry.tensor.defined())
        log(entry.name, entry.tensor, options);
      else
        log(entry.name, entry.number, options);
    }
  }

 private:
  static LogOptions with_defaults(LogOptions options) {
    if (!options.on_step) options.on_step = OnStep;
    if (!options.on_epoch) options.on_epoch = OnEpoch;
    return options;
  }
};

}  // namespace detail

/// What a training_step may return: `TrainResult result(loss); result.log("train_loss", loss); return
/// result;`. log() has on_step=true and on_epoch=false where the options do not say otherwise.
class TrainResult : public detail::ResultLog<true, false> {
 public:
  TrainResult() = default;
  /// @param minimize the loss, attached to the graph
  explicit TrainResult(at::Tensor minimize) : loss(std::move(minimize)) {}

  at::Tensor loss;  ///< what is minimised; undefined: no step for this batch
  at::Tensor
      checkpoint_on;  ///< the metric "checkpoint_on", the epoch's mean of it; the loss if this is undefined
  at::Tensor early_stop_on;  ///< the metric "early_stop_on", likewise, if it is defined

  /// Called by the loop.
  void apply(Context& ctx);
};

/// What a validation_step or test_step may return. log() has on_step=false and on_epoch=true where the
/// options do not say otherwise.
class EvalResult : public detail::ResultLog<false, true> {
  struct Written {
    std::string file, name;
    at::Tensor value;
  };

 public:
  at::Tensor checkpoint_on;  ///< the metric "checkpoint_on", the epoch's mean of it, if it is defined
  at::Tensor early_stop_on;  ///< the metric "early_stop_on", likewise

  /// Keeps predictions of this batch. At the end of the pass those of all batches are concatenated along
  /// their first dimension (numbers: stacked) and written to the file as a dict of tensors that Python's
  /// torch.load reads.
  /// @param file relative to the run's folder, or absolute; a later pass replaces it. The sanity check writes
  /// nothing,
  ///             fast_dev_run nothing at a relative path.
  void write(std::string name, const at::Tensor& value, std::string file = "predictions.pt");
  void write_dict(std::initializer_list<std::pair<std::string, at::Tensor>> values,
                  const std::string& file = "predictions.pt");

  /// Called by the loop.
  void apply(Context& ctx);

  /// What the loop keeps of all batches of a pass.
  class Predictions {
   public:
    void add(EvalResult& result);
    /// @throws std::runtime_error naming the file if it cannot be written
    void write(Context& ctx) const;

   private:
    std::map<std::string, std::map<std::string, std::vector<at::Tensor>>> files_;
  };

 private:
  std::vector<Written> written_;
};

#if FULMEN_BODIES
FULMEN_INLINE void detail::ResultValues::rename_keys(
    std::initializer_list<std::pair<std::string_view, std::string_view>> names) {
  for (const auto& [from, to] : names) rename(from, to);
}

FULMEN_INLINE void detail::ResultValues::rename_keys(const std::map<std::string, std::string>& names) {
  for (const auto& [from, to] : names) rename(from, to);
}

FULMEN_INLINE void detail::ResultValues::apply(Context& ctx) {
  for (const Value& value : values_) {
    const LogName name = value.own.empty() ? value.literal : runtime_name(value.own);
    if (value.tensor.defined())
      ctx.log(name, value.tensor, value.options);
    else
      ctx.log(name, value.number, value.options);
  }
}

FULMEN_INLINE void detail::ResultValues::add(LogName literal, std::string own, at::Tensor tensor, double number,
                                             const LogOptions& options) {
  values_.push_back({literal, std::move(own), std::move(tensor), number, options});
}

FULMEN_INLINE void detail::ResultValues::monitor(Context& ctx, LogName name, const at::Tensor& value) {
  if (value.defined()) ctx.log(name, value, {.logger = false, .on_step = false, .on_epoch = true});
}

FULMEN_INLINE void detail::ResultValues::rename(std::string_view from, std::string_view to) {
  const auto found =
      std::find_if(values_.begin(), values_.end(), [&](const Value& v) { return v.name() == from; });
  if (found == values_.end())
    fail<std::invalid_argument>("rename_keys: \"{}\" was not logged in this result", from);
  found->own = to;
}

FULMEN_INLINE void TrainResult::apply(Context& ctx) {
  ResultLog::apply(ctx);
  monitor(ctx, "checkpoint_on", checkpoint_on.defined() ? checkpoint_on : loss);
  monitor(ctx, "early_stop_on", early_stop_on);
}

FULMEN_INLINE void EvalResult::write(std::string name, const at::Tensor& value, std::string file) {
  if (!value.defined())
    fail<std::invalid_argument>("write(\"{}\"): expected a tensor, got an undefined one", name);
  written_.push_back({std::move(file), std::move(name), value.detach().cpu()});
}

FULMEN_INLINE void EvalResult::write_dict(std::initializer_list<std::pair<std::string, at::Tensor>> values,
                                            const std::string& file) {
  for (const auto& [name, value] : values) write(name, value, file);
}

FULMEN_INLINE void EvalResult::apply(Context& ctx) {
  ResultLog::apply(ctx);
  monitor(ctx, "checkpoint_on", checkpoint_on);
  monitor(ctx, "early_stop_on", early_stop_on);
}

FULMEN_INLINE void EvalResult::Predictions::add(EvalResult& result) {
  for (Written& one : result.written_) files_[one.file][one.name].push_back(std::move(one.value));
  result.written_.clear();
}

FULMEN_INLINE void EvalResult::Predictions::write(Context& ctx) const {
  for (const auto& [file, names] : files_) {
    std::filesystem::path path = file;
    if (path.is_relative()) {
      if (!ctx.writes_files()) continue;
      path = ctx.run_dir() / path;
    }
    State all("predictions");
    for (const auto& [name, values] : names) {
      all.set(name, values.front().dim() == 0 ? at::stack(values) : at::cat(values));
    }
    checkpoint::write(path, all);
  }
}
#endif

}  // namespace fulmen
