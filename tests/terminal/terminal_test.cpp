// Capabilities, widths of text, styles and numbers.
#include "fulmen/terminal/terminal.hpp"

#include <gtest/gtest.h>
#include <pty.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace fulmen::terminal;

/// Sets an environment variable for the life of the object; nullptr unsets it.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;
  ~ScopedVariable() { set(before_ ? before_->c_str() : nullptr); }

 private:
  void set(const char* value) {
    if (value != nullptr) {
      ::setenv(name_, value, 1);
    } else {
      ::unsetenv(name_);
    }
  }
  const char* name_;
  std::optional<std::string> before_;
};

class Detect : public ::testing::Test {
 protected:
  void SetUp() override {
    int terminal = -1;
    ASSERT_EQ(::openpty(&master_, &terminal, nullptr, nullptr, nullptr), 0);
    tty_ = ::fdopen(terminal, "w");
    ASSERT_NE(tty_, nullptr);
    set_width(97);
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

  int master_ = -1;
  std::FILE* tty_ = nullptr;
  ScopedVariable term_{"TERM", "xterm-256color"};
  ScopedVariable no_color_{"NO_COLOR", nullptr};
  ScopedVariable force_color_{"FORCE_COLOR", nullptr};
  ScopedVariable cli_color_force_{"CLICOLOR_FORCE", nullptr};
  ScopedVariable cli_color_{"CLICOLOR", nullptr};
  ScopedVariable color_term_{"COLORTERM", nullptr};
  ScopedVariable columns_{"COLUMNS", nullptr};
  ScopedVariable lc_all_{"LC_ALL", nullptr};
  ScopedVariable lc_ctype_{"LC_CTYPE", nullptr};
  ScopedVariable lang_{"LANG", "en_US.UTF-8"};
};

TEST_F(Detect, Terminal) {
  const Capabilities caps = detect(tty_);
  EXPECT_TRUE(caps.tty);
  EXPECT_TRUE(caps.color);
  EXPECT_TRUE(caps.unicode);
  EXPECT_FALSE(caps.true_color);
  EXPECT_EQ(caps.width, 97);
  set_width(41);
  EXPECT_EQ(columns(tty_), 41);
}

TEST_F(Detect, File) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  const Capabilities caps = detect(file);
  EXPECT_FALSE(caps.tty);
  EXPECT_FALSE(caps.color);
  EXPECT_EQ(caps.width, 80);
  const ScopedVariable columns_is{"COLUMNS", "123"};
  EXPECT_EQ(detect(file).width, 123);
  for (const char* nonsense : {"", "wide", "-3", "0", "12x", "99999999999999999999"}) {
    const ScopedVariable columns_is_not{"COLUMNS", nonsense};
    EXPECT_EQ(detect(file).width, 80) << nonsense;
  }
  std::fclose(file);
  EXPECT_FALSE(detect(nullptr).tty);
}

TEST_F(Detect, WidthZeroIsUnknown) {
  set_width(0);
  EXPECT_EQ(detect(tty_).width, 80);
  const ScopedVariable columns_is{"COLUMNS", "66"};
  EXPECT_EQ(detect(tty_).width, 66);
}

TEST_F(Detect, DumbTerminal) {
  const ScopedVariable dumb{"TERM", "dumb"};
  EXPECT_FALSE(detect(tty_).tty);
  EXPECT_FALSE(detect(tty_).color);
  EXPECT_EQ(detect(tty_).width, 97);
  const ScopedVariable unset{"TERM", nullptr};
  EXPECT_FALSE(detect(tty_).tty);
}

TEST_F(Detect, Color) {
  {
    const ScopedVariable no_color{"NO_COLOR", "1"};
    EXPECT_TRUE(detect(tty_).tty);
    EXPECT_FALSE(detect(tty_).color);
    const ScopedVariable force{"FORCE_COLOR", "1"};
    const ScopedVariable depth{"COLORTERM", "truecolor"};
    EXPECT_FALSE(detect(tty_).color);
    EXPECT_FALSE(detect(tty_).true_color);
  }
  {
    const ScopedVariable empty{"NO_COLOR", ""};
    EXPECT_TRUE(detect(tty_).color);
  }
  {
    const ScopedVariable off{"FORCE_COLOR", "0"};
    EXPECT_FALSE(detect(tty_).color);
  }
  {
    const ScopedVariable off{"CLICOLOR", "0"};
    EXPECT_FALSE(detect(tty_).color);
  }
  const ScopedVariable depth{"COLORTERM", "truecolor"};
  EXPECT_TRUE(detect(tty_).true_color);
  std::FILE* file = std::tmpfile();
  for (const char* name : {"FORCE_COLOR", "CLICOLOR_FORCE"}) {
    const ScopedVariable force{name, "1"};
    EXPECT_TRUE(detect(file).color) << name;
    EXPECT_FALSE(detect(file).tty) << name;
  }
  std::fclose(file);
}

TEST_F(Detect, Unicode) {
  const ScopedVariable utf8{"LANG", "de_DE.utf8"};
  EXPECT_TRUE(detect(tty_).unicode);
  const ScopedVariable ctype{"LC_CTYPE", "C"};
  EXPECT_FALSE(detect(tty_).unicode);
  const ScopedVariable all{"LC_ALL", "C.UTF-8"};
  EXPECT_TRUE(detect(tty_).unicode);
  const ScopedVariable latin{"LC_ALL", "de_DE.ISO-8859-1"};
  EXPECT_FALSE(detect(tty_).unicode);
}

TEST(DisplayWidth, Text) {
  EXPECT_EQ(display_width(""), 0);
  EXPECT_EQ(display_width("loss 0.1"), 8);
  EXPECT_EQ(display_width("━╸╺▀█•…"), 7);
  EXPECT_EQ(display_width("Größe"), 5);
  EXPECT_EQ(display_width("e\u0301"), 1);  // combining acute accent
  EXPECT_EQ(display_width("\u200B"), 0);   // zero-width space
  EXPECT_EQ(display_width("損失"), 4);
  EXPECT_EQ(display_width("한글"), 4);
  EXPECT_EQ(display_width("⚡"), 2);
  EXPECT_EQ(display_width("🚀"), 2);
  EXPECT_EQ(display_width("a\tb\n"), 2);      // control characters take none
  EXPECT_EQ(display_width("\xFF\xC3"), 2);    // two bytes that are not UTF-8
  EXPECT_EQ(display_width("\xE2\x94 x"), 4);  // cut short: the two bytes, one by one
  EXPECT_EQ(display_width("\033[1;38;5;99mx\033[0m"), 1);
  EXPECT_EQ(display_width("\033]8;;https://x.y\033\\link\033]8;;\033\\"), 4);
  EXPECT_EQ(display_width("\033"), 0);
  EXPECT_EQ(display_width("\033[1"), 0);
}

TEST(DisplayWidth, Truncate) {
  const Capabilities utf8{.unicode = true};
  const Capabilities ascii{};
  EXPECT_EQ(truncate("accuracy", 8, utf8), "accuracy");
  EXPECT_EQ(truncate("accuracy", 7, utf8), "accura…");
  EXPECT_EQ(truncate("accuracy", 7, ascii), "accu...");
  EXPECT_EQ(truncate("accuracy", 3, ascii), "ac~");
  EXPECT_EQ(truncate("accuracy", 1, utf8), "…");
  EXPECT_EQ(truncate("accuracy", 0, utf8), "");
  EXPECT_EQ(truncate("accuracy", -5, utf8), "");
  EXPECT_EQ(truncate("損失関数", 4, utf8), "損…");  // a wide character that would be cut in half goes
  EXPECT_EQ(truncate("\033[1maccuracy\033[0m", 4, utf8), "\033[1macc…\033[0m");
  for (int width = 0; width < 12; ++width) {
    EXPECT_LE(display_width(truncate("損失 f(x) 🚀⚡", width, utf8)), width);
    EXPECT_LE(display_width(truncate("損失 f(x) 🚀⚡", width, ascii)), width);
  }
}

TEST(DisplayWidth, PadAndFit) {
  EXPECT_EQ(pad("ab", 5), "ab   ");
  EXPECT_EQ(pad("ab", 5, Align::right), "   ab");
  EXPECT_EQ(pad("ab", 5, Align::center), " ab  ");
  EXPECT_EQ(pad("損", 4), "損  ");
  EXPECT_EQ(pad("abcdef", 3), "abcdef");
  const Capabilities utf8{.unicode = true};
  EXPECT_EQ(fit("abcdef", 4, utf8), "abc…");
  EXPECT_EQ(fit("損失関", 4, utf8, Align::right), " 損…");
}

TEST(DisplayWidth, SingleLine) {
  EXPECT_EQ(single_line("a\r\n\tb"), "a b");
  EXPECT_EQ(single_line("\033[2J\033[1mx\033[0m"), "x");
  EXPECT_EQ(single_line("\033[2J\033[1mx\033[0m", true), "\033[1mx\033[0m");
  EXPECT_EQ(single_line("a\u0085b"), "a b");
}

TEST(Styles, EmptyWithoutColor) {
  const Capabilities color{.color = true};
  EXPECT_EQ(escape(Style::bold, Capabilities{}), "");
  EXPECT_EQ(styled("x", {Style::bold, Style::red}, Capabilities{}), "x");
  EXPECT_EQ(styled("x", {Style::bold, Style::red}, color), "\033[1m\033[31mx\033[0m");
  EXPECT_EQ(bold("", color), "");
  EXPECT_EQ(dim("x", color), "\033[2mx\033[0m");
}

TEST(Numbers, Count) {
  const std::vector<std::pair<std::int64_t, std::string>> cases{
      {0, "0"},
      {7, "7"},
      {999, "999"},
      {1'000, "1.0 K"},
      {1'234, "1.2 K"},
      {99'999, "100 K"},
      {269'722, "269 K"},
      {999'999, "999 K"},
      {1'000'000, "1.0 M"},
      {11'689'512, "11.7 M"},
      {2'000'000'000, "2.0 B"},
      {400'000'000'000'000, "400 T"},
      {5'000'000'000'000'000, "5,000 T"},
      {-1'234, "-1.2 K"},
      {std::numeric_limits<std::int64_t>::min(), "-9,223,372 T"}};
  for (const auto& [count, text] : cases) EXPECT_EQ(format_count(count), text);
}

TEST(Numbers, Bytes) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1'000), "1.0 kB");
  EXPECT_EQ(format_bytes(1'080'000), "1.1 MB");
  EXPECT_EQ(format_bytes(99'960'000), "100 MB");
  EXPECT_EQ(format_bytes(999'700), "1.0 MB");
  EXPECT_EQ(format_bytes(139'000'000'000), "139 GB");
  EXPECT_EQ(format_bytes(std::numeric_limits<std::uint64_t>::max()), "18.4 EB");
}

TEST(Numbers, Duration) {
  EXPECT_EQ(format_duration(0.0), "0:00:00");
  EXPECT_EQ(format_duration(5.99), "0:00:05");
  EXPECT_EQ(format_duration(3723), "1:02:03");
  EXPECT_EQ(format_duration(123 * 3600), "123:00:00");
  for (const double unknown : {-1.0, std::nan(""), HUGE_VAL, 1e300})
    EXPECT_EQ(format_duration(unknown), "-:--:--");
}

TEST(Numbers, Rate) {
  EXPECT_EQ(format_rate(20.5), "20.5 it/s");
  EXPECT_EQ(format_rate(1.0), "1.0 it/s");
  EXPECT_EQ(format_rate(99.96), "100 it/s");
  EXPECT_EQ(format_rate(640.4), "640 it/s");
  EXPECT_EQ(format_rate(999.7), "1.0k it/s");
  EXPECT_EQ(format_rate(1'234), "1.2k it/s");
  EXPECT_EQ(format_rate(81'234), "81.2k it/s");
  EXPECT_EQ(format_rate(2.5e6, "img"), "2.5M img/s");
  EXPECT_EQ(format_rate(1 / 3.4), "3.4 s/it");
  EXPECT_EQ(format_rate(1.0 / 240), "240 s/it");
  for (const double unknown : {0.0, -1.0, std::nan(""), HUGE_VAL, 1e-300})
    EXPECT_EQ(format_rate(unknown), "- it/s");
}

TEST(Numbers, Value) {
  const std::vector<std::pair<double, std::string>> cases{
      {0.0312, "0.0312"},     {97.83, "97.83"},   {1.2e-5, "1.2e-05"}, {0.123456, "0.1235"},
      {-0.5, "-0.5"},         {0.0, "0"},         {-0.0, "0"},         {3.0, "3"},
      {1234567.0, "1234567"}, {12345.6, "12346"}, {1e10, "1e+10"},     {std::nan(""), "nan"},
      {-std::nan(""), "nan"}, {HUGE_VAL, "inf"},  {-HUGE_VAL, "-inf"}, {999.96, "1000"},
      {1e-300, "1e-300"}};
  for (const auto& [value, text] : cases) EXPECT_EQ(format_value(value), text);
}

}  // namespace
