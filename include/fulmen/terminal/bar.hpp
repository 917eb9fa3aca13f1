// A live progress line: cheap to advance at each step, drawn ten times a second, one line kept a phase.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fulmen/compiled.hpp"
#include "fulmen/terminal/terminal.hpp"

#if FULMEN_BODIES
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "fulmen/error.hpp"
#endif

namespace fulmen::terminal {

/// A named value at the end of a progress line: a loss, a metric, a learning rate.
struct Field {
  std::string_view name;
  double value;
};

/// What a progress line shows, besides its fields.
struct Progress {
  std::string_view label{};             ///< "Epoch 3/9"
  std::string_view parent{};            ///< the label of the phase around this one; empty: none
  std::int64_t done = 0;                ///< steps
  std::optional<std::int64_t> total{};  ///< steps, where it is known
  double elapsed = 0.0;                 ///< seconds
  double rate = 0.0;                    ///< steps per second; zero or less: not known yet
  bool finished = false;                ///< the line that stays: no time remaining, values before decoration
};

namespace detail {

inline constexpr int kMostBar = 40;

}  // namespace detail

/// The progress line as text without line break, of at most `caps.width` columns. Where there is too little
/// room, the bar shrinks and then the least important parts go: while the phase runs, the label, the counter,
/// the first field and the bar stay longest; on the finished line, the label, the first field, the time and
/// the other fields.
std::string render_line(const Progress& progress, std::span<const Field> fields, const Capabilities& caps);

/// The same for a log file: no bar, no limit on the width, every field.
std::string render_plain(const Progress& progress, std::span<const Field> fields, const Capabilities& caps);

/// Puts the cursor back where a live line hides it, and ends that line. Async-signal-safe: a program with
/// signal handlers of its own may call it from them.
void restore_cursor() noexcept;

/// A live progress line. One Bar serves a whole run:
///
///     Bar bar{stderr, detect(stderr)};
///     bar.start("Epoch 0/9", batches);
///     for (...) {
///       ...
///       if (bar.advance(++done)) bar.draw(values());  // values are fetched only when a line is drawn
///     }
///     bar.start("Validation", val_batches);           // inside: takes the line until it is finished
///     ...
///     bar.finish({}, false);                          // leaves nothing behind; the epoch's line comes back
///     bar.finish(values());                           // "Epoch 0/9" stays in the scrollback
///
/// On a terminal the line is drawn in place, each time by a single write, within the terminal's present
/// width, and the cursor is hidden while it is live. Elsewhere (a file, a pipe, TERM=dumb) nothing is drawn:
/// a finished phase is one plain line, and a long one adds a line every `plain_period`. Not for several
/// threads at once.
class Bar {
 public:
  /// Draws on `out`, at most `refresh_hz` times a second; where that cannot be erased, a line every
  /// `plain_period` seconds. Throws std::invalid_argument where `out` is null or one of the two is not a
  /// positive number.
  Bar(std::FILE* out, Capabilities caps, double refresh_hz = 10.0, double plain_period = 30.0);

  Bar(const Bar&) = delete;
  Bar& operator=(const Bar&) = delete;
  Bar(Bar&& other) noexcept;
  Bar& operator=(Bar&& other) noexcept;

  /// A line that is still live stays as it is, so that what ended the phase is reported below it.
  ~Bar();

  /// Begins a phase of `total` steps (nullopt: nobody knows), of which `initial` are done before, as after a
  /// resume. While another phase runs, the new one is nested: it takes the line, and the time until its end
  /// does not count into the outer one's rate. Throws std::invalid_argument where a number is negative.
  void start(std::string_view label, std::optional<std::int64_t> total, std::int64_t initial = 0);

  /// Says that `done` steps of the phase are done. True when the line is due: call draw() then. Most calls
  /// cost a decrement and a store; the clock is read every k-th call, with k following the rate.
  [[nodiscard]] bool advance(std::int64_t done) {
    done_ = done;
    if (--countdown_ > 0) [[likely]]
      return false;
    return look_at_clock();
  }

  /// Draws the line now, due or not. Where lines cannot be erased: prints one if `plain_period` has passed
  /// since the last. Does nothing while no phase runs.
  void draw(std::span<const Field> fields);
  void draw(std::initializer_list<Field> fields) {
    draw(std::span<const Field>{fields.begin(), fields.size()});
  }

  /// Ends the phase. Its final line stays where `keep` is set, else it leaves nothing; the line of the phase
  /// around it comes back. Does nothing while no phase runs.
  void finish(std::span<const Field> fields, bool keep = true);
  void finish(std::initializer_list<Field> fields = {}, bool keep = true) {
    finish(std::span<const Field>{fields.begin(), fields.size()}, keep);
  }

  /// Erases the live line, so that something else can be written; the next draw() brings it back.
  void clear();

  /// Writes `text` and a line break above the live line.
  void print_above(std::string_view text);

  /// Whether a phase runs.
  [[nodiscard]] bool running() const { return !phases_.empty(); }
  [[nodiscard]] const Capabilities& capabilities() const { return caps_; }

 private:
  using Clock = std::chrono::steady_clock;

  /// True for one owner only: a Bar that was moved from has nothing on the screen.
  struct Flag {
    bool on = false;
    Flag() = default;
    Flag(Flag&& other) noexcept : on(std::exchange(other.on, false)) {}
    Flag& operator=(Flag&&) = delete;
  };

  struct Phase {
    std::string label{};
    std::string line{};  // as it was last drawn
    std::optional<std::int64_t> total{};
    std::int64_t initial = 0;
    std::int64_t done = 0;
    Clock::time_point started{};
    Clock::time_point paused_at{};
    double paused = 0.0;  // seconds in nested phases
    bool drawn = false;
    // The rate: steps and seconds since the start, both fading with kMemory: it follows, but does not jump.
    Clock::time_point sampled{};
    std::int64_t sample_done = 0;
    double recent_steps = 0.0;
    double recent_seconds = 0.0;
  };

  static constexpr int kIdle = std::numeric_limits<int>::max();
  static constexpr int kLeastValue = 8;  // columns: "0.9783"
  static constexpr int kMaxStride = 1 << 16;
  // The clock is read about this often. Seldom enough that reading it (25 ns) costs a ten-thousandth of the
  // time; often enough that a phase whose steps become a thousand times slower is still drawn after half a
  // second.
  static constexpr double kLookEvery = 0.5e-3;  // seconds
  static constexpr double kMemory = 15.0;       // seconds
  static constexpr double kSampleEvery = 0.05;  // seconds

  static double seconds(Clock::duration span) { return std::chrono::duration<double>(span).count(); }

  void restart_countdown(std::int64_t done, Clock::time_point now);
  [[gnu::cold]] bool look_at_clock();
  void sample(Phase& phase, Clock::time_point now);

  /// The running phase as it is to be shown. `finished`: with the mean rate instead of the recent one.
  [[nodiscard]] Progress progress(Clock::time_point now, bool finished) const;

  /// The line, with each value padded to the widest that its field has had: those behind it stay in place.
  std::string render(const Progress& progress, std::span<const Field> fields, int columns);

  /// Asked at each draw, so that a terminal may change its size without our handling a signal.
  [[nodiscard]] int columns_now() const;

  /// To the start of the live line. A terminal that became narrower has wrapped it: up, and all of it erased.
  [[nodiscard]] std::string rewind(int columns) const;

  /// Erases the live line, if there is one.
  std::string erase(int columns);

  std::string hide_cursor();
  void show_cursor(bool print = true);

  /// One write for each update: a terminal that draws half a line flickers.
  void write(std::string_view text) const;

  // What advance() touches comes first, in one cache line.
  std::int64_t done_ = 0;
  int countdown_ = kIdle;
  int stride_ = 1;  // calls between two looks at the clock
  Clock::time_point last_look_{};
  Clock::time_point last_draw_{};
  double period_ = 0.1;  // seconds
  std::FILE* out_ = nullptr;
  Capabilities caps_{};
  Flag on_screen_{};
  Flag cursor_hidden_{};
  int last_bar_ = detail::kMostBar;
  std::string live_{};  // the text on the screen while on_screen_
  std::vector<Phase> phases_{};
  std::vector<std::pair<std::string, int>> value_widths_{};
};

#if FULMEN_BODIES

namespace detail {

inline constexpr int kLeastBar = 8;

/// A part of the line. Those of low rank get their room first.
struct Part {
  std::string text{};  // styled
  int width = 0;
  int rank = 0;   // 0 matters most
  int gap = 1;    // columns before it
  int blank = 0;  // of its columns, those at its end that hold nothing and cost nothing where the line ends
  bool is_field = false;
  bool shown = false;
};

/// `width` columns of bar, `fraction` (0 to 1) of them complete, to half a column where Unicode allows it.
inline std::string bar_cells(double fraction, int width, Style style, const Capabilities& caps) {
  const int halves = std::clamp(static_cast<int>(fraction * 2.0 * width), 0, 2 * width);
  const int full = halves / 2;
  const bool half = halves % 2 == 1;
  std::string done;
  std::string rest;
  if (!caps.unicode) {
    done.assign(static_cast<std::size_t>(full), '#');
    rest.assign(static_cast<std::size_t>(width - full), '-');
  } else {
    for (int i = 0; i < full; ++i) done += "━";
    if (half) done += "╸";
    // Without colour a thin line tells the rest from the bar; with it, half a column of gap at the join.
    for (int i = full + (half ? 1 : 0); i < width; ++i) {
      rest += !caps.color ? "─" : i == full && full > 0 && !half ? "╺" : "━";
    }
  }
  return styled(done, style, caps) + styled(rest, Style::gray, caps);
}

inline double fraction(const Progress& progress) {
  const std::int64_t total = progress.total.value_or(0);
  if (total <= 0) return progress.total ? 1.0 : 0.0;
  return std::clamp(static_cast<double>(progress.done) / static_cast<double>(total), 0.0, 1.0);
}

/// Seconds to the end at the present rate; NaN where that cannot be said.
inline double remaining(const Progress& progress) {
  if (progress.total && progress.done >= *progress.total) return 0.0;
  if (!progress.total || !(progress.rate > 0.0)) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(*progress.total - progress.done) / progress.rate;
}

/// "100/938", with the left number as wide as the right one, so that nothing behind it moves; "100/--".
inline std::string counter(const Progress& progress) {
  if (!progress.total) return fmt::format("{}/--", progress.done);
  const std::string total = fmt::format("{}", *progress.total);
  return fmt::format("{:>{}}/{}", progress.done, total.size(), total);
}

inline std::string field_text(const Field& field, int value_width, const Capabilities& caps) {
  const std::string value = format_value(field.value);
  const std::string name = single_line(field.name);
  // Padded outside of the style, so that blanks at the end of a line can be cut off.
  return styled(name, Style::dim, caps) + (name.empty() ? "" : " ") +
         pad(std::isfinite(field.value) ? value : styled(value, {Style::bold, Style::red}, caps), value_width);
}

/// What a Bar remembers from line to line, so that they resemble each other.
struct Layout {
  std::span<const int> value_widths{};  // for each field the columns to which its value is padded
  int most_bar = kMostBar;              // columns
};

struct Line {
  std::string text{};
  int bar = 0;             // columns of its bar
  std::size_t fields = 0;  // how many of them are shown
};

inline Line lay_out(const Progress& progress, std::span<const Field> fields, const Capabilities& caps,
                    const Layout& layout) {
  const bool finished = progress.finished;
  const bool complete = progress.total && progress.done >= *progress.total;
  const std::string label = single_line(progress.label);
  const std::string parent = single_line(progress.parent);

  // In the order of the line. The ranks are the order of importance.
  std::vector<Part> parts;
  const auto add = [&](std::string text, int rank, int gap, int blank = 0) {
    const int width = display_width(text);
    if (width > 0) parts.push_back({std::move(text), width, rank, gap, blank});
    return parts.empty() ? std::size_t{0} : parts.size() - 1;
  };
  constexpr int kLast = 1'000'000;
  add(parent.empty() ? "" : styled(parent + (caps.unicode ? " ›" : " >"), Style::dim, caps), kLast, 0);
  const std::size_t label_at = add(styled(label, Style::bold, caps), 0, 1);
  std::optional<std::size_t> bar_at;
  if (progress.total) {
    bar_at = parts.size();
    parts.push_back({{}, kLeastBar, finished ? 1'000 : 3, 1});
  }
  add(counter(progress), !finished ? 1 : complete ? 1'001 : 2, 1);
  const std::string elapsed = format_duration(progress.elapsed);
  const std::string left = format_duration(remaining(progress));
  const bool shows_left = !finished && progress.total;
  const std::size_t elapsed_at = add(styled(elapsed, Style::dim, caps), finished ? 2 : shows_left ? 7 : 4, 2);
  if (shows_left) add(styled((caps.unicode ? "• " : "< ") + left, Style::dim, caps), 4, 1);
  add(styled(pad(format_rate(progress.rate), 9, Align::right), Style::dim, caps), finished ? 999 : 5, 2);
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const int place = static_cast<int>(std::min<std::size_t>(i, 900));
    const int rank = finished ? (i == 0 ? 1 : 2 + place) : i == 0 ? 2 : i == 1 ? 6 : 6 + place;
    const int width = i < layout.value_widths.size() ? layout.value_widths[i] : 0;
    const int blank = std::max(width - display_width(format_value(fields[i].value)), 0);
    parts[add(field_text(fields[i], width, caps), rank, 2, blank)].is_field = true;
  }
  if (parts.empty() || caps.width <= 0) return {};

  std::vector<Part*> order;
  for (Part& part : parts) order.push_back(&part);
  std::stable_sort(order.begin(), order.end(),
                   [](const Part* a, const Part* b) { return a->rank < b->rank; });
  int used = 0;
  const Part* last = &parts[0];  // of those shown
  for (Part* part : order) {
    const int needed = part->width + (part == &parts[0] ? 0 : part->gap);
    if (used + needed - std::max<const Part*>(part, last)->blank > caps.width) {
      // What is smaller and less important may still fit. Not on the lines that stay: they would differ for
      // no reason that a reader can see.
      if (finished) break;
      continue;
    }
    part->shown = true;
    used += needed;
    last = std::max<const Part*>(part, last);
  }
  if (!label.empty() && !parts[label_at].shown) {
    return {styled(truncate(label, caps.width, caps), Style::bold, caps)};
  }
  Line result;
  if (bar_at && parts[*bar_at].shown) {
    result.bar = std::clamp(kLeastBar + caps.width - used, kLeastBar, layout.most_bar);
    const Style style = complete ? Style::green : finished ? Style::yellow : Style::cyan;
    parts[*bar_at].text = bar_cells(fraction(progress), result.bar, style, caps);
  }
  if (shows_left && !parts[elapsed_at].shown) {
    parts[elapsed_at + 1].text = styled((left[0] == '-' ? "" : "-") + left, Style::dim, caps);
    parts[elapsed_at + 1].gap = 2;  // alone, it says by its sign what it is
  }
  std::string& line = result.text;
  for (const Part& part : parts) {
    if (!part.shown) continue;
    if (!line.empty()) line.append(static_cast<std::size_t>(part.gap), ' ');
    line += part.text;
    if (part.is_field) ++result.fields;
  }
  if (const std::size_t end = line.find_last_not_of(' '); end != std::string::npos) line.erase(end + 1);
  return result;
}

}  // namespace detail

FULMEN_INLINE std::string render_line(const Progress& progress, std::span<const Field> fields,
                                      const Capabilities& caps) {
  return detail::lay_out(progress, fields, caps, {}).text;
}

FULMEN_INLINE std::string render_plain(const Progress& progress, std::span<const Field> fields,
                                       const Capabilities& caps) {
  const std::string parent = single_line(progress.parent);
  std::string line = styled(single_line(progress.label), Style::bold, caps);
  if (!parent.empty()) line = parent + (caps.unicode ? " › " : " > ") + line;
  if (!line.empty()) line += ' ';
  line += detail::counter(progress);
  if (progress.total && !progress.finished)
    line += fmt::format(" {:3.0f}%", std::floor(100.0 * detail::fraction(progress)));
  line += "  " + format_duration(progress.elapsed);
  if (progress.total && !progress.finished) {
    line += (caps.unicode ? " • " : " < ") + format_duration(detail::remaining(progress));
  }
  line += "  " + format_rate(progress.rate);
  for (const Field& field : fields) line += "  " + detail::field_text(field, 0, caps);
  return line;
}

namespace detail {

// A process that ends while a line is live would leave the user's shell without a cursor. Destructors do not
// run when a signal or an exception nobody catches ends it, so while the cursor is hidden those signals that
// still have their default action (never those that someone handles) put it back first, then act as before.

inline std::atomic<int> hidden_on{-1};  // the descriptor on which the cursor is hidden
inline std::atomic<int> hidden_by{0};   // the process that hid it: a forked child does not draw

inline constexpr std::array<int, 6> kFatalSignals{SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGABRT, SIGSEGV};

}  // namespace detail

FULMEN_INLINE void restore_cursor() noexcept {
  const int fd = detail::hidden_on.exchange(-1);
  if (fd < 0 || detail::hidden_by.load() != static_cast<int>(::getpid())) return;
  constexpr std::string_view kShow = "\033[0m\033[?25h\n";
  if (::write(fd, kShow.data(), kShow.size()) < 0) return;  // nobody is left to be told
}

namespace detail {

extern "C" inline void fulmen_terminal_on_fatal_signal(int signal) {
  restore_cursor();
  ::raise(signal);  // delivered on return, with the default action that SA_RESETHAND has put back
}

/// Records that the cursor is hidden on `fd`, or with -1 that it is shown again.
inline void note_hidden_cursor(int fd) {
  const int before = hidden_on.exchange(fd);
  if ((before < 0) == (fd < 0)) return;
  if (fd >= 0) {
    hidden_by.store(static_cast<int>(::getpid()));
    [[maybe_unused]] static const bool registered = std::atexit([] { restore_cursor(); }) == 0;
  }
  for (const int signal : kFatalSignals) {
    struct sigaction current {};
    if (::sigaction(signal, nullptr, &current) != 0 || (current.sa_flags & SA_SIGINFO) != 0) continue;
    const bool ours = current.sa_handler == &fulmen_terminal_on_fatal_signal;
    struct sigaction next {};
    if (fd >= 0 && current.sa_handler == SIG_DFL) {
      next.sa_handler = &fulmen_terminal_on_fatal_signal;
      next.sa_flags = static_cast<int>(SA_RESETHAND);
    } else if (fd < 0 && ours) {
      next.sa_handler = SIG_DFL;
    } else {
      continue;
    }
    ::sigemptyset(&next.sa_mask);
    ::sigaction(signal, &next, nullptr);
  }
}

}  // namespace detail

FULMEN_INLINE Bar::Bar(std::FILE* out, Capabilities caps, double refresh_hz, double plain_period)
    : out_(out), caps_(caps) {
  if (out == nullptr) fail<std::invalid_argument>("Bar: the stream is null");
  if (!(refresh_hz > 0.0) || !(plain_period > 0.0)) {
    fail<std::invalid_argument>("Bar: refresh_hz and plain_period must be positive, got {} and {}",
                                refresh_hz, plain_period);
  }
  period_ = caps.tty ? 1.0 / refresh_hz : plain_period;
}

FULMEN_INLINE Bar::Bar(Bar&& other) noexcept = default;

FULMEN_INLINE Bar& Bar::operator=(Bar&& other) noexcept {
  if (this != &other) {
    std::destroy_at(this);  // ends a line that is live here
    std::construct_at(this, std::move(other));
  }
  return *this;
}

FULMEN_INLINE Bar::~Bar() {
  if (on_screen_.on) write("\n");
  show_cursor();
}

FULMEN_INLINE void Bar::start(std::string_view label, std::optional<std::int64_t> total,
                              std::int64_t initial) {
  if (total.value_or(0) < 0 || initial < 0) {
    fail<std::invalid_argument>("Bar: phase '{}' cannot have {} of {} steps done", label, initial,
                                total.value_or(0));
  }
  const Clock::time_point now = Clock::now();
  if (!phases_.empty()) {
    phases_.back().done = done_;
    phases_.back().paused_at = now;
  }
  Phase phase;
  phase.label = label;
  phase.total = total;
  phase.initial = phase.done = phase.sample_done = initial;
  phase.started = phase.sampled = now;
  phases_.push_back(std::move(phase));
  restart_countdown(initial, now);
  if (phases_.size() > 1) {
    last_draw_ = caps_.tty ? now : last_draw_;  // one that is over at once need not flicker
  } else if (caps_.tty) {
    draw({});  // what comes first may take long: a compilation, a cold cache
  } else {
    last_draw_ = now;
  }
}

FULMEN_INLINE void Bar::draw(std::span<const Field> fields) {
  if (phases_.empty()) return;
  const Clock::time_point now = Clock::now();
  if (!caps_.tty) {
    if (seconds(now - last_draw_) < period_) return;
    last_draw_ = now;
    write(render_plain(progress(now, false), fields, caps_) + "\n");
    return;
  }
  Phase& phase = phases_.back();
  sample(phase, now);
  const int columns = columns_now();
  phase.line = render(progress(now, false), fields, columns);
  phase.drawn = true;
  last_draw_ = now;
  std::string text = hide_cursor();
  text += rewind(columns);
  text += phase.line;
  text += "\033[K";
  write(text);
  on_screen_.on = true;
  live_ = phase.line;
}

FULMEN_INLINE void Bar::finish(std::span<const Field> fields, bool keep) {
  if (phases_.empty()) return;
  const Clock::time_point now = Clock::now();
  phases_.back().done = done_;
  const Progress final = progress(now, true);
  std::string text;
  if (!caps_.tty) {
    if (keep) {
      text = render_plain(final, fields, caps_) + "\n";
      last_draw_ = now;
    }
  } else {
    const int columns = columns_now();
    if (keep || phases_.back().drawn) text = erase(columns);
    if (keep) text += render(final, fields, columns) + "\n";
    if (phases_.size() == 1) {
      if (cursor_hidden_.on) text += "\033[?25h";
    } else if (const Phase& outer = phases_[phases_.size() - 2]; !text.empty() && outer.drawn) {
      text += outer.line;
      live_ = outer.line;
      on_screen_.on = true;
    }
  }
  write(text);
  if (phases_.size() == 1) show_cursor(false);
  phases_.pop_back();
  if (phases_.empty()) {
    countdown_ = kIdle;
    return;
  }
  Phase& outer = phases_.back();
  const auto pause = now - outer.paused_at;
  outer.paused += seconds(pause);
  outer.sampled += pause;
  restart_countdown(outer.done, now);
}

FULMEN_INLINE void Bar::clear() {
  if (!on_screen_.on) return;
  write(erase(columns_now()));
  show_cursor();
}

FULMEN_INLINE void Bar::print_above(std::string_view text) {
  const bool live = on_screen_.on;
  std::string out = erase(columns_now());
  out += text;
  out += '\n';
  if (live) out += live_;
  write(out);
  on_screen_.on = live;
}

FULMEN_INLINE void Bar::restart_countdown(std::int64_t done, Clock::time_point now) {
  done_ = done;
  stride_ = countdown_ = 1;
  last_look_ = now;
}

[[gnu::noinline]] FULMEN_INLINE bool Bar::look_at_clock() {
  if (phases_.empty()) {
    countdown_ = kIdle;
    return false;
  }
  const Clock::time_point now = Clock::now();
  const double spent = seconds(now - last_look_);
  last_look_ = now;
  // Growing by doubling: one step that was fast by chance must not put the next look far away.
  const double ideal = kLookEvery * stride_ / std::max(spent, 1e-9);
  stride_ =
      static_cast<int>(std::clamp(ideal, 1.0, std::min(2.0 * stride_, static_cast<double>(kMaxStride))));
  countdown_ = stride_;
  Phase& phase = phases_.back();
  phase.done = done_;
  if (seconds(now - phase.sampled) >= kSampleEvery) sample(phase, now);
  return seconds(now - last_draw_) >= period_;
}

FULMEN_INLINE void Bar::sample(Phase& phase, Clock::time_point now) {
  const double span = seconds(now - phase.sampled);
  if (span <= 0.0 || done_ == phase.sample_done) return;  // no step: the next sample takes this time in
  // Steps of a minute must not forget everything but the last: at least a few of them stay in view.
  const double fade = std::max(std::exp(-span / kMemory), 0.7);
  phase.recent_steps = fade * phase.recent_steps + static_cast<double>(done_ - phase.sample_done);
  phase.recent_seconds = fade * phase.recent_seconds + span;
  phase.sampled = now;
  phase.sample_done = done_;
}

FULMEN_INLINE Progress Bar::progress(Clock::time_point now, bool finished) const {
  const Phase& phase = phases_.back();
  Progress result;
  result.label = phase.label;
  if (phases_.size() > 1) result.parent = phases_[phases_.size() - 2].label;
  result.done = done_;
  result.total = phase.total;
  result.elapsed = seconds(now - phase.started);
  result.finished = finished;
  if (!finished && phase.recent_seconds > 0.0) {
    result.rate = phase.recent_steps / phase.recent_seconds;
  } else if (const double active = result.elapsed - phase.paused; active > 0.0) {
    result.rate = static_cast<double>(done_ - phase.initial) / active;
  }
  return result;
}

FULMEN_INLINE std::string Bar::render(const Progress& progress, std::span<const Field> fields, int columns) {
  std::vector<int> widths;
  for (const Field& field : fields) {
    auto found = std::find_if(value_widths_.begin(), value_widths_.end(),
                              [&](const auto& entry) { return entry.first == field.name; });
    if (found == value_widths_.end()) {
      if (value_widths_.size() > 256) value_widths_.clear();  // names made up at run time
      found = value_widths_.emplace(value_widths_.end(), std::string{field.name}, kLeastValue);
    }
    found->second = std::max(found->second, display_width(format_value(field.value)));
    widths.push_back(found->second);
  }
  Capabilities caps = caps_;
  // The last column stays empty: terminals differ in where a line that fills it leaves the cursor.
  caps.width = std::max(columns - 1, 1);
  // Before there are values the bar is not longer than it was with them: it would shrink at once.
  const bool bare = fields.empty() && phases_.size() == 1 && !progress.finished;
  const detail::Layout layout{widths, bare ? last_bar_ : detail::kMostBar};
  detail::Line line = detail::lay_out(progress, fields, caps, layout);
  if (progress.finished && line.fields < fields.size()) {  // better ragged than without a metric
    detail::Line tight = detail::lay_out(progress, fields, caps, {});
    if (tight.fields > line.fields) line = std::move(tight);
  }
  if (!bare && phases_.size() == 1 && !progress.finished && line.bar > 0) last_bar_ = line.bar;
  return std::move(line.text);
}

FULMEN_INLINE int Bar::columns_now() const {
  winsize size{};
  return ::ioctl(::fileno(out_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : caps_.width;
}

FULMEN_INLINE std::string Bar::rewind(int columns) const {
  const int width = on_screen_.on ? display_width(live_) : 0;
  return width <= columns ? "\r" : fmt::format("\r\033[{}A\033[J", (width - 1) / columns);
}

FULMEN_INLINE std::string Bar::erase(int columns) {
  if (!on_screen_.on) return {};
  std::string text = rewind(columns) + "\033[K";
  on_screen_.on = false;
  return text;
}

FULMEN_INLINE std::string Bar::hide_cursor() {
  if (cursor_hidden_.on) return {};
  cursor_hidden_.on = true;
  detail::note_hidden_cursor(::fileno(out_));
  return "\033[?25l";
}

FULMEN_INLINE void Bar::show_cursor(bool print) {
  if (!cursor_hidden_.on) return;
  cursor_hidden_.on = false;
  if (print) write("\033[?25h");
  detail::note_hidden_cursor(-1);
}

FULMEN_INLINE void Bar::write(std::string_view text) const {
  if (text.empty()) return;
  std::fwrite(text.data(), 1, text.size(), out_);
  std::fflush(out_);
}

#endif

}  // namespace fulmen::terminal
