// ProgressBar: a live line for each epoch, with rate, remaining time and the values logged with prog_bar.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/terminal/bar.hpp>

#include <cstdio>
#include <optional>
#include <string_view>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/terminal/table.hpp>

#include <fmt/format.h>

#include <cstdint>
#include <string>
#endif

namespace fulmen {

/// One line an epoch on a terminal, redrawn in place; a plain line an epoch elsewhere; nothing where
/// Options::enable_progress_bar is off. Validation shows a line of its own while it runs. After validate and test, a
/// table of what they came to.
class ProgressBar {
 public:
  explicit ProgressBar(double refresh_hz = 10.0, std::FILE* out = stdout) : refresh_hz_(refresh_hz), out_(out) {}

  void on_train_epoch_start(Context& ctx);
  void on_train_batch_end(Context& ctx) { advance(ctx); }
  void on_train_epoch_end(Context& ctx) { end(ctx, true); }

  void on_validation_epoch_start(Context& ctx) { begin(ctx, ctx.sanity_checking() ? "Sanity check" : "Validation"); }
  void on_validation_batch_end(Context& ctx) { advance(ctx); }
  void on_validation_epoch_end(Context& ctx) { end(ctx, false); }
  void on_validation_end(Context& ctx) {
    if (ctx.stage() == Stage::validate) print_results(ctx, "Validate metric");
  }

  void on_test_epoch_start(Context& ctx) { begin(ctx, "Testing"); }
  void on_test_batch_end(Context& ctx) { advance(ctx); }
  void on_test_epoch_end(Context& ctx) { end(ctx, true); }
  void on_test_end(Context& ctx) { print_results(ctx, "Test metric"); }

  void on_predict_epoch_start(Context& ctx) { begin(ctx, "Predicting"); }
  void on_predict_batch_end(Context& ctx) { advance(ctx); }
  void on_predict_epoch_end(Context& ctx) { end(ctx, true); }

  void on_exception(Context&) { bar_.reset(); }
  void teardown(Context&) { bar_.reset(); }

 private:
  void begin(Context& ctx, std::string_view label);
  void advance(Context& ctx) {
    if (bar_ && bar_->advance(ctx.batch_idx() + 1)) [[unlikely]] draw(ctx);
  }
  [[gnu::cold]] void draw(Context& ctx);
  void end(Context& ctx, bool keep);

  /// Fetched only when a line is drawn: reading a value may wait for the device.
  const std::vector<terminal::Field>& fields(Context& ctx);

  void print_results(Context& ctx, const char* title);

  double refresh_hz_;
  std::FILE* out_;
  std::optional<terminal::Bar> bar_;
  Metrics metrics_;                      // what fields_ refers to
  std::vector<terminal::Field> fields_;
};

#if FULMEN_BODIES

FULMEN_INLINE void ProgressBar::on_train_epoch_start(Context& ctx) {
  if (const std::int64_t max_epochs = ctx.options().max_epochs; max_epochs > 0 && ctx.options().fast_dev_run == 0) {
    const std::string last = std::to_string(max_epochs - 1);
    begin(ctx, fmt::format("Epoch {:>{}}/{}", ctx.epoch(), last.size(), last));
  } else {
    begin(ctx, fmt::format("Epoch {}", ctx.epoch()));
  }
}

FULMEN_INLINE void ProgressBar::begin(Context& ctx, std::string_view label) {
  if (!ctx.options().enable_progress_bar) return;
  if (!bar_) bar_.emplace(out_, terminal::detect(out_), refresh_hz_);
  bar_->start(label, ctx.num_batches());
}

FULMEN_INLINE void ProgressBar::draw(Context& ctx) { bar_->draw(fields(ctx)); }

FULMEN_INLINE void ProgressBar::end(Context& ctx, bool keep) {
  if (bar_) bar_->finish(fields(ctx), keep);
}

FULMEN_INLINE const std::vector<terminal::Field>& ProgressBar::fields(Context& ctx) {
  metrics_ = ctx.metrics().progress_bar_metrics(ctx.phase());
  fields_.clear();
  for (const Metric& metric : metrics_) fields_.push_back({metric.name, metric.value});
  return fields_;
}

FULMEN_INLINE void ProgressBar::print_results(Context& ctx, const char* title) {
  if (!ctx.options().enable_progress_bar) return;
  const Metrics results = ctx.metrics().results(ctx.phase());
  if (results.empty()) return;
  terminal::Table table({{title, terminal::Align::left, terminal::Style::cyan}, {"Value", terminal::Align::right}});
  for (const Metric& metric : results) table.add_row({metric.name, fmt::format("{:.6g}", metric.value)});
  std::fputs(table.render(terminal::detect(out_)).c_str(), out_);
  std::fflush(out_);
}

#endif

}  // namespace fulmen
