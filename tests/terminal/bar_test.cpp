// The progress line: what it shows at which width, and what a terminal or a log file ends up with.
#include "fulmen/terminal/bar.hpp"

#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace fulmen::terminal;

constexpr Capabilities kFull{.tty = true, .color = true, .unicode = true, .width = 80};

Capabilities at_width(Capabilities caps, int width) {
  caps.width = width;
  return caps;
}

/// A stream that writes into a string.
class Sink {
 public:
  Sink() : stream_(::open_memstream(&data_, &size_)) {}
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;
  ~Sink() {
    std::fclose(stream_);
    std::free(data_);
  }
  std::FILE* stream() { return stream_; }
  std::string text() {
    std::fflush(stream_);
    return {data_, size_};
  }

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0;
  std::FILE* stream_;
};

/// What a terminal shows after `output`: its lines, the widest column written to, and whether the cursor is
/// visible. Knows the sequences that a Bar may use and fails on any other.
struct Screen {
  std::vector<std::string> lines{std::string{}};  // one char a column: a character beyond ASCII is '*'
  std::size_t row = 0;
  std::size_t column = 0;
  std::size_t widest = 0;
  bool cursor = true;

  explicit Screen(std::string_view output) {
    while (!output.empty()) {
      const fulmen::terminal::detail::Glyph glyph = fulmen::terminal::detail::next_glyph(output);
      const std::string_view piece = output.substr(0, glyph.size);
      output.remove_prefix(glyph.size);
      if (piece == "\r") {
        column = 0;
      } else if (piece == "\n") {
        column = 0;
        if (++row == lines.size()) lines.emplace_back();
      } else if (piece == "\033[K") {
        lines[row].resize(std::min(column, lines[row].size()));
      } else if (piece == "\033[J") {
        lines.resize(row + 1);
        lines[row].resize(std::min(column, lines[row].size()));
      } else if (piece == "\033[?25l" || piece == "\033[?25h") {
        cursor = piece.back() == 'h';
      } else if (glyph.escape && piece.back() == 'A') {
        row -= std::min(row, static_cast<std::size_t>(std::atoi(std::string{piece.substr(2)}.c_str())));
      } else if (glyph.escape) {
        EXPECT_EQ(piece.back(), 'm') << "unknown escape sequence";
      } else {
        for (int i = 0; i < glyph.width; ++i) {
          lines[row].resize(std::max(lines[row].size(), column + 1), ' ');
          lines[row][column++] = piece.size() == 1 ? piece[0] : '*';
        }
        widest = std::max(widest, column);
      }
    }
  }
};

void wait_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

const std::vector<Field> kFields{{"loss", 0.0312}, {"acc", 0.9783}, {"val/loss", 1.2e-5}, {"val/acc", NAN}};

// --------------------------------------------------------------------------------------------------- the
// line

TEST(Line, Ascii) {
  const Progress progress{.label = "Epoch 3/9", .done = 469, .total = 938, .elapsed = 23, .rate = 20.5};
  const std::vector<Field> fields{{"loss", 0.0312}, {"acc", 97.83}};
  EXPECT_EQ(
      render_line(progress, fields, {.width = 100}),
      "Epoch 3/9 ##############-------------- 469/938  0:00:23 < 0:00:22  20.5 it/s  loss 0.0312  acc 97.83");
  EXPECT_EQ(render_line(progress, fields, {.width = 79}),
            "Epoch 3/9 ########-------- 469/938  -0:00:22  20.5 it/s  loss 0.0312  acc 97.83");
  EXPECT_EQ(render_line(progress, fields, {.width = 50}),
            "Epoch 3/9 ####----- 469/938  -0:00:22  loss 0.0312");
  EXPECT_EQ(render_line(progress, fields, {.width = 40}), "Epoch 3/9 ####----- 469/938  loss 0.0312");
  EXPECT_EQ(render_line(progress, fields, {.width = 30}), "Epoch 3/9 469/938  loss 0.0312");
  EXPECT_EQ(render_line(progress, fields, {.width = 20}), "Epoch 3/9 469/938");
  EXPECT_EQ(render_line(progress, fields, {.width = 12}), "Epoch 3/9");
  EXPECT_EQ(render_line(progress, fields, {.width = 8}), "Epoch...");
  EXPECT_EQ(render_line(progress, fields, {.width = 0}), "");
}

TEST(Line, Unicode) {
  Progress progress{.label = "Epoch 3/9", .done = 1, .total = 16, .elapsed = 1, .rate = 1};
  const Capabilities caps{.unicode = true};
  EXPECT_EQ(render_line(progress, {}, at_width(caps, 24)), "Epoch 3/9 ╸───────  1/16");
  progress.done = 8;
  EXPECT_EQ(render_line(progress, {}, at_width(caps, 24)), "Epoch 3/9 ━━━━────  8/16");
  progress.done = 16;
  EXPECT_EQ(render_line(progress, {}, at_width(caps, 24)), "Epoch 3/9 ━━━━━━━━ 16/16");
}

TEST(Line, Color) {
  Progress progress{.label = "E", .done = 4, .total = 8, .elapsed = 1, .rate = 1};
  const std::string line = render_line(progress, {}, at_width(kFull, 14));
  EXPECT_EQ(line, "\033[1mE\033[0m \033[36m━━━━\033[0m\033[90m╺━━━\033[0m 4/8");
  progress.done = 8;
  EXPECT_NE(render_line(progress, {}, kFull).find("\033[32m━"), std::string::npos);
  const std::vector<Field> bad{{"loss", NAN}};
  EXPECT_NE(render_line(progress, bad, kFull).find("\033[1m\033[31mnan\033[0m"), std::string::npos);
}

TEST(Line, FinishedKeepsTheValues) {
  const Progress progress{
      .label = "Epoch 3/9", .done = 938, .total = 938, .elapsed = 46, .rate = 20.5, .finished = true};
  EXPECT_EQ(render_line(progress, kFields, {.width = 80}),
            "Epoch 3/9  0:00:46  loss 0.0312  acc 0.9783  val/loss 1.2e-05  val/acc nan");
  EXPECT_EQ(render_line(progress, kFields, {.width = 90}),
            "Epoch 3/9  0:00:46  20.5 it/s  loss 0.0312  acc 0.9783  val/loss 1.2e-05  val/acc nan");
  EXPECT_EQ(render_line(progress, kFields, {.width = 104}),
            "Epoch 3/9 ########## 938/938  0:00:46  20.5 it/s  loss 0.0312  acc 0.9783  val/loss 1.2e-05  "
            "val/acc nan");
  const Progress interrupted{
      .label = "Epoch 3/9", .done = 7, .total = 938, .elapsed = 46, .rate = 20.5, .finished = true};
  EXPECT_NE(render_line(interrupted, kFields, {.width = 90}).find("  7/938"), std::string::npos);
}

TEST(Line, UnknownTotal) {
  const Progress progress{.label = "Stream", .done = 1234, .elapsed = 61, .rate = 20.5};
  EXPECT_EQ(render_line(progress, {}, {.unicode = true, .width = 80}), "Stream 1234/--  0:01:01  20.5 it/s");
}

TEST(Line, OddNumbers) {
  for (const std::int64_t total : {std::int64_t{0}, std::int64_t{1}, std::int64_t{5}}) {
    const Progress over{.label = "x", .done = 7, .total = total, .elapsed = NAN, .rate = NAN};
    const std::string line = render_line(over, {}, {.width = 60});
    EXPECT_NE(line.find("####"), std::string::npos);
    EXPECT_EQ(line.find("----"), std::string::npos) << line;
    EXPECT_NE(line.find("- it/s"), std::string::npos) << line;
  }
  const Progress start{.label = "x", .done = 0, .total = 5};
  EXPECT_NE(render_line(start, {}, {.width = 60}).find("-:--:--"), std::string::npos);
}

TEST(Line, LabelsAndNamesCannotLeaveTheLine) {
  const std::vector<Field> fields{{"a\nb", 1.0}};
  const std::string line =
      render_line({.label = "x\r\n\033[2Jy", .done = 1, .total = 2}, fields, {.unicode = true, .width = 80});
  EXPECT_EQ(line.find_first_of("\r\n\033"), std::string::npos);
}

TEST(Line, NeverExceedsTheWidth) {
  for (const bool finished : {false, true}) {
    for (const bool unicode : {false, true}) {
      for (const bool color : {false, true}) {
        for (const std::optional<std::int64_t> total :
             {std::optional<std::int64_t>{}, std::optional<std::int64_t>{938}}) {
          for (const std::string_view label :
               {"", "Epoch 3/9", "エポック 3/9 🚀", "a label that is longer than forty columns"}) {
            for (int width = 0; width <= 160; ++width) {
              const Progress progress{.label = label,
                                      .parent = width % 2 == 0 ? "Epoch" : "",
                                      .done = 77,
                                      .total = total,
                                      .elapsed = 5,
                                      .rate = 20.5,
                                      .finished = finished};
              const Capabilities caps{.tty = true, .color = color, .unicode = unicode, .width = width};
              ASSERT_LE(display_width(render_line(progress, kFields, caps)), width);
            }
          }
        }
      }
    }
  }
}

TEST(Line, Plain) {
  const Progress progress{.label = "Epoch 3/9", .done = 469, .total = 938, .elapsed = 23, .rate = 20.5};
  EXPECT_EQ(
      render_plain(progress, kFields, {.width = 20}),
      "Epoch 3/9 469/938  50%  0:00:23 < 0:00:22  20.5 it/s  loss 0.0312  acc 0.9783  val/loss 1.2e-05  "
      "val/acc nan");
}

// ---------------------------------------------------------------------------------------------------- the
// bar

TEST(Bar, OneLineStaysForEachPhase) {
  for (const int width : {40, 80, 160}) {
    Sink sink;
    {
      Bar bar{sink.stream(), at_width(kFull, width)};
      for (int epoch = 0; epoch < 3; ++epoch) {
        bar.start("Epoch " + std::to_string(epoch), 10);
        for (int step = 1; step <= 10; ++step) {
          static_cast<void>(bar.advance(step));
          bar.draw(kFields);
        }
        bar.start("Validation", 5);
        static_cast<void>(bar.advance(5));
        bar.draw({});
        bar.finish({}, false);
        bar.finish(kFields);
      }
    }
    const Screen screen{sink.text()};
    ASSERT_EQ(screen.lines.size(), 4U) << width;
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(screen.lines[i].substr(0, 7), "Epoch " + std::to_string(i));
      EXPECT_NE(screen.lines[i].find("loss 0.0312"), std::string::npos) << screen.lines[i];
    }
    EXPECT_EQ(screen.lines[3], "");
    EXPECT_LT(screen.widest, static_cast<std::size_t>(width));  // the last column stays empty
    EXPECT_TRUE(screen.cursor);
  }
}

TEST(Bar, LiveLine) {
  Sink sink;
  Bar bar{sink.stream(), kFull};
  bar.start("Epoch 0/9", 938);
  EXPECT_NE(sink.text().find("Epoch 0/9"), std::string::npos);  // shown at once
  EXPECT_FALSE(Screen{sink.text()}.cursor);
  static_cast<void>(bar.advance(7));
  bar.draw({{"loss", 0.5}});
  Screen screen{sink.text()};
  ASSERT_EQ(screen.lines.size(), 1U);
  EXPECT_NE(screen.lines[0].find("  7/938"), std::string::npos);
  EXPECT_NE(screen.lines[0].find("loss 0.5"), std::string::npos);

  bar.print_above("a message");
  screen = Screen{sink.text()};
  ASSERT_EQ(screen.lines.size(), 2U);
  EXPECT_EQ(screen.lines[0], "a message");
  EXPECT_NE(screen.lines[1].find("  7/938"), std::string::npos);

  bar.clear();
  screen = Screen{sink.text()};
  EXPECT_EQ(screen.lines[1], "");
  EXPECT_TRUE(screen.cursor);
  bar.print_above("another");  // nothing live: just the text
  bar.draw({});
  screen = Screen{sink.text()};
  ASSERT_EQ(screen.lines.size(), 3U);
  EXPECT_EQ(screen.lines[1], "another");
  EXPECT_NE(screen.lines[2].find("  7/938"), std::string::npos);
}

TEST(Bar, NestedPhaseTakesTheLineAndGivesItBack) {
  Sink sink;
  Bar bar{sink.stream(), kFull};
  bar.start("Epoch 0/9", 10);
  static_cast<void>(bar.advance(4));
  bar.draw({{"loss", 0.5}});
  const std::string before = Screen{sink.text()}.lines[0];
  bar.start("Validation", 3);
  EXPECT_EQ(Screen{sink.text()}.lines[0], before);  // over at once, it need not flicker
  static_cast<void>(bar.advance(2));
  bar.draw({});
  Screen screen{sink.text()};
  ASSERT_EQ(screen.lines.size(), 1U);
  EXPECT_EQ(screen.lines[0].substr(0, 22), "Epoch 0/9 * Validation");
  EXPECT_NE(screen.lines[0].find("2/3"), std::string::npos);
  bar.finish({}, false);
  EXPECT_EQ(Screen{sink.text()}.lines[0], before);
  EXPECT_TRUE(bar.running());

  bar.start("Validation", 3);
  bar.finish({{"val/loss", 0.25}}, true);  // kept: a line of its own above
  screen = Screen{sink.text()};
  ASSERT_EQ(screen.lines.size(), 2U);
  EXPECT_NE(screen.lines[0].find("val/loss 0.25"), std::string::npos);
  EXPECT_EQ(screen.lines[1], before);
  static_cast<void>(bar.advance(10));
  bar.finish();
  EXPECT_FALSE(bar.running());
  screen = Screen{sink.text()};
  ASSERT_EQ(screen.lines.size(), 3U);
  EXPECT_NE(screen.lines[1].find("10/10"), std::string::npos);
  EXPECT_TRUE(screen.cursor);
}

TEST(Bar, NothingStaysOfAPhaseThatIsNotKept) {
  Sink sink;
  Bar bar{sink.stream(), kFull};
  bar.start("Sanity check", 2);
  static_cast<void>(bar.advance(1));
  bar.draw({});
  bar.finish({}, false);
  const Screen screen{sink.text()};
  ASSERT_EQ(screen.lines.size(), 1U);
  EXPECT_EQ(screen.lines[0], "");
  EXPECT_TRUE(screen.cursor);
}

TEST(Bar, AnUnfinishedLineIsEndedByTheDestructor) {
  Sink sink;
  {
    Bar bar{sink.stream(), kFull};
    bar.start("Epoch 0/9", 938);
    Bar moved = std::move(bar);
    static_cast<void>(moved.advance(7));
    moved.draw({});
    Bar other{sink.stream(), kFull};
    other = std::move(moved);
  }
  const Screen screen{sink.text() + "what went wrong"};
  ASSERT_EQ(screen.lines.size(), 2U);  // once, by the last owner
  EXPECT_NE(screen.lines[0].find("  7/938"), std::string::npos);
  EXPECT_EQ(screen.lines[1], "what went wrong");
  EXPECT_TRUE(screen.cursor);
}

TEST(Bar, DueAboutAsOftenAsAsked) {
  Sink sink;
  Bar bar{sink.stream(), kFull, 100.0};
  bar.start("Epoch", std::nullopt);
  const auto begin = std::chrono::steady_clock::now();
  int due = 0;
  std::int64_t steps = 0;
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(200)) {
    if (bar.advance(++steps)) {
      ++due;
      bar.draw({});
    }
  }
  EXPECT_GE(due, 3);  // 20 on an idle machine
  EXPECT_LE(due, 21);
  EXPECT_GT(steps, 10'000);
}

TEST(Bar, FollowsStepsThatBecomeSlow) {
  Sink sink;
  Bar bar{sink.stream(), kFull, 1000.0};
  bar.start("Epoch", std::nullopt);
  std::int64_t steps = 0;
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(20)) {
    if (bar.advance(++steps)) bar.draw({});
    for (volatile int i = 0; i < 5'000;) i = i + 1;
  }
  bool due = false;  // now 100 times slower
  for (int i = 0; i < 500 && !due; ++i) {
    wait_ms(1);
    due = bar.advance(++steps);
  }
  EXPECT_TRUE(due);
}

TEST(Bar, WithoutAPhase) {
  Sink sink;
  Bar bar{sink.stream(), kFull};
  EXPECT_FALSE(bar.advance(1));
  bar.draw({});
  bar.finish();
  bar.clear();
  EXPECT_EQ(sink.text(), "");
}

TEST(Bar, FileGetsPlainLines) {
  Sink sink;
  {
    Bar bar{sink.stream(), {.width = 20}, 1000.0};
    bar.start("Epoch 0/1", 5);
    for (int step = 1; step <= 5; ++step) {
      wait_ms(2);
      EXPECT_FALSE(bar.advance(step));
      bar.draw(kFields);
    }
    bar.start("Validation", 5);
    bar.finish({}, false);
    EXPECT_EQ(sink.text(), "");
    bar.print_above("a message");
    bar.finish(kFields);
    bar.clear();
  }
  const std::string text = sink.text();
  EXPECT_EQ(text.substr(0, 33), "a message\nEpoch 0/1 5/5  0:00:00 ");
  EXPECT_EQ(text.find_first_of("\r\033"), std::string::npos);
  EXPECT_NE(text.find("loss 0.0312  acc 0.9783  val/loss 1.2e-05  val/acc nan\n"), std::string::npos);
}

TEST(Bar, LongPhaseInAFileShowsLife) {
  Sink sink;
  Bar bar{sink.stream(), {}, 10.0, 0.02};
  bar.start("Epoch 0/1", 1000);
  int due = 0;
  for (int step = 1; step <= 60; ++step) {
    wait_ms(1);
    if (!bar.advance(step)) continue;
    ++due;
    bar.draw({{"loss", 0.5}});
  }
  const Screen screen{sink.text()};
  EXPECT_GE(due, 1);
  EXPECT_EQ(screen.lines.size(), static_cast<std::size_t>(due) + 1);
  EXPECT_EQ(screen.lines[0].substr(0, 10), "Epoch 0/1 ");
  EXPECT_NE(screen.lines[0].find("/1000   "), std::string::npos);
}

TEST(Bar, ResumedStepsDoNotCountIntoTheRate) {
  Sink sink;
  Bar bar{sink.stream(), {}};
  bar.start("Epoch 3/9", 1'000'000, 999'999);
  wait_ms(20);
  static_cast<void>(bar.advance(1'000'000));
  bar.finish();
  EXPECT_EQ(sink.text().find("k it/s"), std::string::npos) << sink.text();
}

TEST(Bar, TimeInANestedPhaseDoesNotCountIntoTheRate) {
  Sink sink;
  Bar bar{sink.stream(), {}};
  bar.start("Epoch", 1000);
  static_cast<void>(bar.advance(500));
  bar.start("Validation", 1);
  wait_ms(300);
  bar.finish({}, false);
  static_cast<void>(bar.advance(1000));
  bar.finish();
  EXPECT_NE(sink.text().find("it/s"), std::string::npos);
  EXPECT_TRUE(sink.text().find("k it/s") != std::string::npos ||
              sink.text().find("M it/s") != std::string::npos)
      << sink.text();
}

TEST(Bar, Errors) {
  Sink sink;
  EXPECT_THROW((Bar{nullptr, kFull}), std::invalid_argument);
  EXPECT_THROW((Bar{sink.stream(), kFull, 0.0}), std::invalid_argument);
  EXPECT_THROW((Bar{sink.stream(), kFull, NAN}), std::invalid_argument);
  EXPECT_THROW((Bar{sink.stream(), kFull, 10.0, -1.0}), std::invalid_argument);
  Bar bar{sink.stream(), kFull};
  EXPECT_THROW(bar.start("x", -1), std::invalid_argument);
  EXPECT_THROW(bar.start("x", 5, -1), std::invalid_argument);
  EXPECT_FALSE(bar.running());
}

// --------------------------------------------------------------------------------------- on a real terminal

class Terminal : public ::testing::Test {
 protected:
  void SetUp() override {
    int terminal = -1;
    ASSERT_EQ(::openpty(&master_, &terminal, nullptr, nullptr, nullptr), 0);
    tty_ = ::fdopen(terminal, "w");
    ASSERT_NE(tty_, nullptr);
    set_width(100);
  }
  void TearDown() override {
    std::fclose(tty_);
    ::close(master_);
  }
  void set_width(unsigned short columns) {
    winsize size{};
    size.ws_col = columns;
    size.ws_row = 30;
    ASSERT_EQ(::ioctl(master_, TIOCSWINSZ, &size), 0);
  }
  std::string read() {
    std::string text(65536, '\0');
    const ssize_t size = ::read(master_, text.data(), text.size());
    text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return text;
  }
  /// What the terminal gets from a child that draws a line and then ends by `end`.
  template <class End>
  std::string after(End end, int& status) {
    const pid_t child = ::fork();
    if (child == 0) {
      if (std::freopen("/dev/null", "w", stderr) == nullptr) ::_exit(1);
      Bar bar{tty_, kFull};
      bar.start("Epoch 0/9", 938);
      end();
      ::_exit(0);
    }
    ::waitpid(child, &status, 0);
    return read();
  }

  int master_ = -1;
  std::FILE* tty_ = nullptr;
};

TEST_F(Terminal, FollowsItsWidth) {
  Bar bar{tty_, kFull};
  bar.start("Epoch 0/9", 938);
  EXPECT_GT(Screen{read()}.widest, 80U);
  static_cast<void>(bar.advance(1));
  set_width(50);
  bar.draw(kFields);
  const std::string text = read();
  EXPECT_NE(text.find("\r\033[1A\033[J"), std::string::npos);  // the old line has wrapped
  EXPECT_LT(Screen{text}.widest, 50U);
  set_width(160);
  bar.draw(kFields);
  const Screen wide{read()};
  EXPECT_GT(wide.widest, 100U);
  EXPECT_LT(wide.widest, 160U);
}

TEST_F(Terminal, EndsWithACursor) {
  int status = 0;
  for (const int signal : {SIGINT, SIGTERM, SIGABRT}) {
    const std::string text = after([&] { ::raise(signal); }, status);
    EXPECT_TRUE(Screen{text}.cursor) << signal;
    EXPECT_NE(text.find("\033[?25l"), std::string::npos);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal) << signal;
  }
  EXPECT_TRUE(Screen{after([] { std::terminate(); }, status)}.cursor);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
  EXPECT_TRUE(Screen{after([] { std::exit(3); }, status)}.cursor);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

TEST_F(Terminal, LeavesSignalHandlersAlone) {
  const auto disposition = [](int signal) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    return action.sa_handler;
  };
  const auto before = ::signal(SIGTERM, SIG_IGN);
  {
    Bar bar{tty_, kFull};
    bar.start("Epoch 0/9", 938);
    EXPECT_EQ(disposition(SIGTERM), SIG_IGN);
    EXPECT_NE(disposition(SIGINT), SIG_DFL);
    bar.finish();
    EXPECT_EQ(disposition(SIGINT), SIG_DFL);
  }
  ::signal(SIGTERM, before);
}

}  // namespace
