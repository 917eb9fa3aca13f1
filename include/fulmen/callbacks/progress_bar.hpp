// ProgressBar: a live line for each epoch, with rate, remaining time and the values logged with prog_bar.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/terminal/bar.hpp>

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/terminal/table.hpp>

#include <fmt/format.h>

#include <stdexcept>
#endif

namespace fulmen {

/// One line an epoch on a terminal, redrawn in place; a plain line an epoch elsewhere; nothing where
/// Options::enable_progress_bar is off. Validation shows a line of its own while it runs. After validate and test, a
/// table of what they came to. Shown are values logged with prog_bar; a loader without a size shows 100/--. One that the
/// user brings takes the place of the default: `callbacks(ProgressBar{.refresh_rate = 20})`.
/// Options as of lightning.pytorch.callbacks.TQDMProgressBar, but for `leave`, which is false there.
struct ProgressBar {
  std::int64_t refresh_rate = 1;  ///< batches between two drawings at least; 0: no bar
  bool leave = true;              ///< the line of each epoch stays; else only the last one's, where lines can be erased
  double refresh_hz = 10.0;       ///< drawings a second at most
  bool plain = false;             ///< lines of text on a terminal, too
  double plain_period = 30.0;     ///< seconds after which a long phase adds such a line
  std::FILE* out = stdout;

  /// No bar from the next epoch on, and a bar again.
  void disable() { enabled_ = false; }
  void enable() { enabled_ = true; }
  bool is_enabled() const { return enabled_ && refresh_rate > 0; }

  void on_train_start(Context& ctx) {
    if (ctx.resumed_at() > 0) on_train_epoch_start(ctx);
  }
  /// @throws std::invalid_argument if refresh_rate is negative, or a rate or period not positive
  void on_train_epoch_start(Context& ctx);
  void on_train_batch_end(Context& ctx) { advance(ctx); }
  void on_train_epoch_end(Context& ctx) {
    if (leaves_epochs()) end(ctx, true);
  }
  void on_train_end(Context& ctx) { end(ctx, true); }

  void on_validation_epoch_start(Context& ctx) { begin(ctx, ctx.sanity_checking() ? "Sanity check" : "Validation"); }
  void on_validation_batch_start(Context& ctx) { look_at_loader(ctx, ctx.stage() == Stage::validate); }
  void on_validation_batch_end(Context& ctx) { advance(ctx); }
  void on_validation_epoch_end(Context& ctx) { end(ctx, ctx.stage() == Stage::validate); }
  void on_validation_end(Context& ctx) {
    if (ctx.stage() == Stage::validate) print_results(ctx, "Validate metric");
  }

  void on_test_epoch_start(Context& ctx) { begin(ctx, "Testing"); }
  void on_test_batch_start(Context& ctx) { look_at_loader(ctx, true); }
  void on_test_batch_end(Context& ctx) { advance(ctx); }
  void on_test_epoch_end(Context& ctx) { end(ctx, true); }
  void on_test_end(Context& ctx) { print_results(ctx, "Test metric"); }

  void on_predict_epoch_start(Context& ctx) { begin(ctx, "Predicting"); }
  void on_predict_batch_start(Context& ctx) { look_at_loader(ctx, true); }
  void on_predict_batch_end(Context& ctx) { advance(ctx); }
  void on_predict_epoch_end(Context& ctx) { end(ctx, true); }

  void on_exception(Context&) { bar_.reset(); }
  void teardown(Context&) { bar_.reset(); }

  // Public only because aggregates have no private members.
  bool enabled_ = true;
  std::int64_t drawn_ = 0;                  // batches done at the last drawing
  std::string label_{};                     // of the running evaluation
  std::optional<std::int64_t> total_{};     // batches, as the line says
  std::optional<terminal::Bar> bar_{};
  Metrics metrics_{};                       // what fields_ refers to
  std::vector<terminal::Field> fields_{};

 private:
  bool shown(const Context& ctx) const { return ctx.options().enable_progress_bar && is_enabled(); }
  bool leaves_epochs() const { return leave || !bar_ || !bar_->capabilities().tty; }
  void begin(Context& ctx, std::string_view label);
  void advance(Context& ctx) {
    if (bar_ && bar_->advance(ctx.batch_idx() + 1)) [[unlikely]] draw(ctx);
  }
  [[gnu::cold]] void draw(Context& ctx);
  void end(Context& ctx, bool keep);

  /// A line for each of several loaders, whose sizes are known only when it is their turn.
  void look_at_loader(Context& ctx, bool keep) {
    if (bar_ && ctx.batch_idx() == 0 && (ctx.dataloader_idx() > 0 || ctx.num_batches() != total_)) next_loader(ctx, keep);
  }
  [[gnu::cold]] void next_loader(Context& ctx, bool keep);

  /// Fetched only when a line is drawn: reading a value may wait for the device.
  const std::vector<terminal::Field>& fields(Context& ctx);

  void print_results(Context& ctx, const char* title);
};

#if FULMEN_BODIES

FULMEN_INLINE void ProgressBar::on_train_epoch_start(Context& ctx) {
  if (bar_ && bar_->running()) bar_->finish({}, false);  // the line of an epoch that does not stay
  if (const std::int64_t max_epochs = ctx.options().max_epochs; max_epochs > 0 && ctx.options().fast_dev_run == 0) {
    const std::string last = std::to_string(max_epochs - 1);
    begin(ctx, fmt::format("Epoch {:>{}}/{}", ctx.epoch(), last.size(), last));
  } else {
    begin(ctx, fmt::format("Epoch {}", ctx.epoch()));
  }
}

FULMEN_INLINE void ProgressBar::begin(Context& ctx, std::string_view label) {
  if (refresh_rate < 0)
    fail<std::invalid_argument>("ProgressBar::refresh_rate is {}, expected at least 0", refresh_rate);
  if (!shown(ctx)) return;
  if (!bar_) {
    terminal::Capabilities caps = terminal::detect(out);
    caps.tty = caps.tty && !plain;
    bar_.emplace(out, caps, refresh_hz, plain_period);
  }
  label_ = label, total_ = ctx.num_batches(), drawn_ = ctx.resumed_at();
  bar_->start(label, total_, drawn_);
}

FULMEN_INLINE void ProgressBar::next_loader(Context& ctx, bool keep) {
  if (!bar_->running()) return;
  std::string label = label_;
  if (ctx.dataloader_idx() > 0) {
    bar_->finish(fields(ctx), keep);
    label += fmt::format(" DataLoader {}", ctx.dataloader_idx());
  } else {
    bar_->finish({}, false);
  }
  total_ = ctx.num_batches(), drawn_ = 0;
  bar_->start(label, total_);
}

FULMEN_INLINE void ProgressBar::draw(Context& ctx) {
  const std::int64_t done = ctx.batch_idx() + 1;
  // A validation in mid-epoch may have counted further.
  if (done >= drawn_ && done - drawn_ < refresh_rate && done != total_) return;
  drawn_ = done;
  bar_->draw(fields(ctx));
}

FULMEN_INLINE void ProgressBar::end(Context& ctx, bool keep) {
  if (bar_ && bar_->running()) bar_->finish(fields(ctx), keep);
}

FULMEN_INLINE const std::vector<terminal::Field>& ProgressBar::fields(Context& ctx) {
  metrics_ = ctx.metrics().progress_bar_metrics(ctx.phase());
  fields_.clear();
  for (const Metric& metric : metrics_) fields_.push_back({metric.name, metric.value});
  return fields_;
}

FULMEN_INLINE void ProgressBar::print_results(Context& ctx, const char* title) {
  if (!shown(ctx)) return;
  const Metrics results = ctx.metrics().results(ctx.phase());
  if (results.empty()) return;
  terminal::Table table({{title, terminal::Align::left, terminal::Style::cyan}, {"Value", terminal::Align::right}});
  for (const Metric& metric : results) table.add_row({metric.name, fmt::format("{:.6g}", metric.value)});
  std::fputs(table.render(terminal::detect(out)).c_str(), out);
  std::fflush(out);
}

#endif

}  // namespace fulmen
