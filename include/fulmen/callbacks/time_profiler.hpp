// TimeProfiler: how long batches, epochs and their parts take, logged for each epoch and as a table at the
// end.
#pragma once

#include <fulmen/callbacks/clock.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/terminal/table.hpp>
#include <fulmen/terminal/terminal.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <utility>
#endif

namespace fulmen {

// clang-format off
/// `TimeProfiler{.keys = {"backward"}}` logs, for each epoch, the seconds that its parts take, as `TimeProfiler/<name>`:
///
///   train batch, validation batch          one batch on the average, all of its hooks included
///   train epoch, validation epoch          the epoch; validation inside it is not counted as training
///   avg train downtime, avg val downtime   what an epoch takes beside its batches, by batch: the loader, mostly
///   backward, optimizer step               where `keys` names them (or `all_keys`): one call on the average; the step
///                                          with all from clipping to the end of the batch
///   total train downtime, total val downtime   likewise: by epoch
///
/// It is the host's time: on a GPU, calls return before their work is done. Source: thunder.callbacks.TimeProfiler.
// clang-format on
struct TimeProfiler {
  std::vector<std::string> keys{};
  bool all_keys = false;    ///< as if `keys` named them all
  bool print_table = true;  ///< on stdout when fit ends: means over its epochs

  /// @throws std::invalid_argument naming a key that there is not
  void setup() const;
  void on_fit_start() { epochs_ = {}; }
  void on_train_start(Context& ctx) {
    if (ctx.resumed_at() > 0) on_train_epoch_start();
  }
  void on_train_epoch_start() {
    current_ = {};
    begin(train_epoch);
  }
  void on_train_batch_start() { begin(train_batch); }
  void on_before_backward() { begin(backward); }
  void on_after_backward() { end(backward); }
  void on_before_optimizer_step() { begin(optimizer_step); }
  void on_train_batch_end() {
    end(optimizer_step);
    end(train_batch);
  }
  void on_validation_epoch_start() { begin(validation_epoch); }
  void on_validation_batch_start() { begin(validation_batch); }
  void on_validation_batch_end() { end(validation_batch); }
  void on_validation_epoch_end() { end(validation_epoch); }
  void on_train_epoch_end(Context& ctx);
  void on_fit_end(Context& ctx) const;

  /// Seconds by name: of the epoch that has ended last.
  Metrics times() const;

  // Public only because aggregates have no private members.
  enum Part : std::size_t {
    train_batch,
    validation_batch,
    train_epoch,
    validation_epoch,
    backward,
    optimizer_step,
    parts
  };
  struct Sum {
    double seconds = 0, begin = 0;
    std::int64_t count = 0;
    bool open = false;
  };
  std::array<Sum, parts> current_{};
  struct Column {
    std::string name;
    double sum = 0;
    std::int64_t count = 0;
  };
  std::vector<Column> epochs_{};

 private:
  void begin(Part part) {
    current_[part].begin = detail::steady_seconds();
    current_[part].open = true;
  }
  void end(Part part) {
    Sum& sum = current_[part];
    if (!sum.open) return;
    sum.seconds += detail::steady_seconds() - sum.begin;
    ++sum.count;
    sum.open = false;
  }
  bool wants(std::string_view key) const;
};

#if FULMEN_BODIES

namespace detail {
inline constexpr std::array<std::string_view, 4> optional_times{"backward", "optimizer step",
                                                                "total train downtime", "total val downtime"};
}

FULMEN_INLINE void TimeProfiler::setup() const {
  for (const std::string& key : keys) {
    if (std::find(detail::optional_times.begin(), detail::optional_times.end(), key) ==
        detail::optional_times.end()) {
      fail<std::invalid_argument>(
          "TimeProfiler::keys has '{}', expected backward, optimizer step, total train downtime or "
          "total val downtime",
          key);
    }
  }
}

FULMEN_INLINE bool TimeProfiler::wants(std::string_view key) const {
  return all_keys || std::find(keys.begin(), keys.end(), key) != keys.end();
}

FULMEN_INLINE Metrics TimeProfiler::times() const {
  Metrics out;
  const auto mean = [&](const char* name, Part part) {
    const Sum& sum = current_[part];
    if (sum.count > 0) out.emplace_back(name, sum.seconds / static_cast<double>(sum.count));
  };
  const auto downtime = [&](double seconds, Part batches, const char* average, const char* total) {
    const Sum& sum = current_[batches];
    if (sum.count == 0) return;
    out.emplace_back(average, (seconds - sum.seconds) / static_cast<double>(sum.count));
    if (wants(total)) out.emplace_back(total, seconds - sum.seconds);
  };
  const double validation = current_[validation_epoch].seconds,
               training = current_[train_epoch].seconds - validation;
  mean("train batch", train_batch);
  mean("validation batch", validation_batch);
  out.emplace_back("train epoch", training);
  mean("validation epoch", validation_epoch);
  downtime(training, train_batch, "avg train downtime", "total train downtime");
  downtime(validation, validation_batch, "avg val downtime", "total val downtime");
  if (wants("backward")) mean("backward", backward);
  if (wants("optimizer step")) mean("optimizer step", optimizer_step);
  return out;
}

FULMEN_INLINE void TimeProfiler::on_train_epoch_end(Context& ctx) {
  end(train_epoch);
  for (const Metric& time : times()) {
    ctx.log(runtime_name("TimeProfiler/" + time.name), time.value, {.on_step = false, .on_epoch = true});
    auto column =
        std::find_if(epochs_.begin(), epochs_.end(), [&](const Column& c) { return c.name == time.name; });
    if (column == epochs_.end()) column = epochs_.insert(epochs_.end(), Column{time.name});
    column->sum += time.value;
    ++column->count;
  }
}

FULMEN_INLINE void TimeProfiler::on_fit_end(Context&) const {
  if (!print_table || epochs_.empty()) return;
  terminal::Table table{{{"Part"}, {"Seconds", terminal::Align::right}}};
  table.title("TimeProfiler");
  for (const Column& column : epochs_)
    table.add_row({column.name, fmt::format("{:.6f}", column.sum / static_cast<double>(column.count))});
  std::fputs(table.render(terminal::detect(stdout)).c_str(), stdout);
}

#endif

}  // namespace fulmen
