// SimpleProfiler: a table of how often each action ran and how long it took.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/profile/profiler.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/profile/report.hpp>
#include <fulmen/terminal/table.hpp>

#include <algorithm>
#include <utility>
#endif

namespace fulmen {

/// How often an action ran in a stage, and for how long.
struct ActionTime {
  std::string name;
  std::int64_t num_calls = 0;
  double total_time = 0;  ///< seconds, with all actions inside it
};

/// Measures every action on the host's clock and writes a table at the end of each stage, also when an
/// exception ends it:
///
///   Trainer trainer{..., DefaultRuntime{}.with_profiler(SimpleProfiler{})};
///
/// An action costs two looks at the clock and an addition. On a GPU, calls return before their work is done.
/// Lightning's SimpleProfiler, but for this: each stage begins anew, where Lightning adds to what an earlier
/// one measured.
struct SimpleProfiler {
  std::filesystem::path dirpath{};  ///< where the file goes; empty: into the run's folder
  std::string filename{};           ///< `<dirpath>/<stage>-<filename>.txt` gets the table; empty: stdout does
  bool extended =
      true;  ///< columns for number of calls and percentage; without them, sorted by mean duration

  /// @throws std::runtime_error naming the file that cannot be written
  void setup(Context& ctx);
  void teardown();

  void start(const Action& action) {
    if (action.id() >= records_.size()) [[unlikely]]
      records_.resize(action.id() + 1);
    Record& record = records_[action.id()];
    record.action = &action;
    if (record.depth++ == 0) record.begin = Clock::now();
  }
  void stop(const Action& action) {
    const Clock::time_point now = Clock::now();
    Record& record = records_[action.id()];
    if (record.depth == 0) return;  // it started before the stage
    ++record.calls;
    if (--record.depth == 0) record.time += now - record.begin;
  }

  /// What ran in the stage that runs, or in the last one: the longest first.
  std::vector<ActionTime> actions() const;
  /// Seconds from the beginning of that stage to now, or to its end.
  double duration() const;

  // Public only because aggregates have no private members.
  using Clock = std::chrono::steady_clock;
  struct Record {
    const Action* action = nullptr;
    std::int64_t calls = 0, depth = 0;  // an action inside itself is timed once
    Clock::duration time{};
    Clock::time_point begin{};
  };
  std::vector<Record> records_{};
  Clock::time_point begin_{}, end_{};
  Stage stage_ = Stage::idle;
  std::filesystem::path path_{};
};

#if FULMEN_BODIES

FULMEN_INLINE void SimpleProfiler::setup(Context& ctx) {
  path_ = detail::report_path(ctx, dirpath, filename);
  records_.assign(records_.size(), {});
  stage_ = ctx.stage();
  begin_ = Clock::now();
}

FULMEN_INLINE double SimpleProfiler::duration() const {
  return std::chrono::duration<double>((stage_ == Stage::idle ? end_ : Clock::now()) - begin_).count();
}

FULMEN_INLINE std::vector<ActionTime> SimpleProfiler::actions() const {
  std::vector<ActionTime> out;
  for (const Record& record : records_) {
    if (record.calls == 0) continue;
    out.push_back({record.action->name(), record.calls, std::chrono::duration<double>(record.time).count()});
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const ActionTime& a, const ActionTime& b) { return a.total_time > b.total_time; });
  return out;
}

FULMEN_INLINE void SimpleProfiler::teardown() {
  const Stage stage = std::exchange(stage_, Stage::idle);
  if (stage == Stage::idle) return;
  end_ = Clock::now();
  std::vector<ActionTime> found = actions();
  const double all = duration();
  const auto number = [](double value) { return detail::format("{:.5}", value); };
  const auto mean = [](const ActionTime& a) { return a.total_time / static_cast<double>(a.num_calls); };
  using terminal::Align;
  if (extended) {
    terminal::Table table{{{"Action"},
                           {"Mean duration (s)", Align::right},
                           {"Num calls", Align::right},
                           {"Total time (s)", Align::right},
                           {"Percentage %", Align::right}}};
    std::int64_t calls = 0;
    for (const ActionTime& a : found) calls += a.num_calls;
    table.title(detail::report_title(stage))
        .add_row({"Total", "-", std::to_string(calls), number(all), "100 %"})
        .add_rule();
    for (const ActionTime& a : found) {
      table.add_row({a.name, number(mean(a)), std::to_string(a.num_calls), number(a.total_time),
                     number(100 * a.total_time / all)});
    }
    detail::write_report(table, path_);
  } else {
    std::stable_sort(found.begin(), found.end(),
                     [&](const ActionTime& a, const ActionTime& b) { return mean(a) > mean(b); });
    terminal::Table table{
        {{"Action"}, {"Mean duration (s)", Align::right}, {"Total time (s)", Align::right}}};
    table.title(detail::report_title(stage));
    for (const ActionTime& a : found) table.add_row({a.name, number(mean(a)), number(a.total_time)});
    detail::write_report(table, path_);
  }
}

#endif

}  // namespace fulmen
