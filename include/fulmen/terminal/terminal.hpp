// What a stream can show, text measured in columns, styles, and numbers for people to read.
#pragma once

#include <fulmen/compiled.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <string_view>

#if FULMEN_BODIES
#include <sys/ioctl.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iterator>
#endif

namespace fulmen::terminal {

/// What an output stream can show. The default is a plain log file.
struct Capabilities {
  bool tty = false;         ///< a terminal on which a line can be erased and drawn again (so: not TERM=dumb)
  bool color = false;       ///< ANSI styles and the 256 colours
  bool unicode = false;     ///< UTF-8, with box-drawing characters
  int width = 80;           ///< columns
  bool true_color = false;  ///< 24-bit colours (only ever set together with `color`)
};

// ---------------------------------------------------------------------------------------------- capabilities

/// Columns of the terminal behind `out` now; where it is none, COLUMNS, and where that is unset, `fallback`.
int columns(std::FILE* out, int fallback = 80);

/// Asks the stream and the environment: NO_COLOR wins over FORCE_COLOR and CLICOLOR_FORCE, which win over
/// what the terminal is; UTF-8 is what LC_ALL, else LC_CTYPE, else LANG says.
Capabilities detect(std::FILE* out);

// ------------------------------------------------------------------------------------------------------ text

namespace detail {

/// One step through a text: a character, a byte that is not UTF-8, or a whole escape sequence.
struct Glyph {
  std::size_t size;  ///< bytes
  int width;         ///< columns
  bool escape;
};

/// The glyph at the front of `text`, which must not be empty.
Glyph next_glyph(std::string_view text);

}  // namespace detail

/// Columns that a UTF-8 text takes on a terminal. Escape sequences, control characters and combining marks
/// take none, East Asian wide characters and emoji two, a byte that is not UTF-8 one.
int display_width(std::string_view text);

/// The text cut to at most `width` columns, with an ellipsis where something is missing. Escape sequences
/// behind the cut are kept, since one of them may be the one that resets the style.
std::string truncate(std::string_view text, int width, const Capabilities& caps);

enum class Align : unsigned char { left, right, center };

/// The text with spaces around it up to `width` columns; a longer text is left as it is.
std::string pad(std::string_view text, int width, Align align = Align::left);

/// Exactly `width` columns: cut with an ellipsis, or padded.
inline std::string fit(std::string_view text, int width, const Capabilities& caps,
                       Align align = Align::left) {
  return pad(truncate(text, width, caps), width, align);
}

/// The text with a space for each run of control characters, so that it cannot leave its line. Colours
/// survive where `keep_styles` is set and go otherwise; all other escape sequences go.
std::string single_line(std::string_view text, bool keep_styles = false);

// ---------------------------------------------------------------------------------------------------- styles

/// The sixteen colours are the user's own theme, so that the output can be read on dark and on light
/// backgrounds.
enum class Style : unsigned char { reset, bold, dim, italic, red, green, yellow, blue, magenta, cyan, gray };

/// The escape sequence that begins the style; empty where the output has no colour.
constexpr std::string_view escape(Style style, const Capabilities& caps) {
  if (!caps.color) return {};
  switch (style) {
    case Style::reset: return "\033[0m";
    case Style::bold: return "\033[1m";
    case Style::dim: return "\033[2m";
    case Style::italic: return "\033[3m";
    case Style::red: return "\033[31m";
    case Style::green: return "\033[32m";
    case Style::yellow: return "\033[33m";
    case Style::blue: return "\033[34m";
    case Style::magenta: return "\033[35m";
    case Style::cyan: return "\033[36m";
    case Style::gray: return "\033[90m";
  }
  return {};
}

/// The text in the given styles, reset behind it; the bare text where the output has no colour or `text` is
/// empty.
std::string styled(std::string_view text, std::initializer_list<Style> styles, const Capabilities& caps);

inline std::string styled(std::string_view text, Style style, const Capabilities& caps) {
  return styled(text, {style}, caps);
}

inline std::string bold(std::string_view text, const Capabilities& caps) {
  return styled(text, Style::bold, caps);
}
inline std::string dim(std::string_view text, const Capabilities& caps) {
  return styled(text, Style::dim, caps);
}
inline std::string red(std::string_view text, const Capabilities& caps) {
  return styled(text, Style::red, caps);
}
inline std::string green(std::string_view text, const Capabilities& caps) {
  return styled(text, Style::green, caps);
}
inline std::string yellow(std::string_view text, const Capabilities& caps) {
  return styled(text, Style::yellow, caps);
}
inline std::string cyan(std::string_view text, const Capabilities& caps) {
  return styled(text, Style::cyan, caps);
}

// --------------------------------------------------------------------------------------------------- numbers

/// A count as Lightning prints a number of parameters: "999", "1.2 K", "269 K", "11.7 M", "1.3 B", "5,000 T".
/// From a hundred on it is cut, not rounded, as Lightning does.
std::string format_count(std::int64_t count);

/// A size in decimal units: "512 B", "1.1 MB", "139 GB".
std::string format_bytes(std::uint64_t bytes);

/// A time span in seconds, rounded down: "0:00:05", "1:02:03", "123:00:00"; "-:--:--" where it is not known
/// (not a number, negative, or longer than a century).
std::string format_duration(double seconds);

/// A rate from units per second: "20.5 it/s", "1.2k it/s", and below one per second its inverse, "3.4 s/it";
/// "- it/s" where it is not known.
std::string format_rate(double per_second, std::string_view unit = "it");

/// A metric's value in four significant digits: "0.0312", "97.83", "1.2e-05", "nan", "-inf". Whole numbers
/// and the digits before the point are kept up to ten millions, since a step count in scientific notation
/// helps nobody.
std::string format_value(double value);

#if FULMEN_BODIES

// ---------------------------------------------------------------------------------------------- capabilities

namespace detail {

/// The variable's value, empty where it is unset: the two mean the same for every variable asked for here.
inline std::string_view environment(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nobody calls setenv beside a bar
  return value == nullptr ? std::string_view{} : std::string_view{value};
}

/// A positive whole number, or `fallback` where the text is anything else.
inline int positive_or(std::string_view text, int fallback) {
  int value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9' || value > 99'999) return fallback;
    value = value * 10 + (c - '0');
  }
  return value > 0 ? value : fallback;
}

inline bool names_utf8(std::string_view locale) {
  std::string lower;
  for (const char c : locale) {
    if (c != '-') lower.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
  }
  return lower.find("utf8") != std::string::npos;
}

}  // namespace detail

FULMEN_INLINE int columns(std::FILE* out, int fallback) {
  winsize size{};
  const int fd = out == nullptr ? -1 : ::fileno(out);
  if (fd >= 0 && ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return detail::positive_or(detail::environment("COLUMNS"), fallback);
}

FULMEN_INLINE Capabilities detect(std::FILE* out) {
  const auto set = [](const char* name) {
    const std::string_view value = detail::environment(name);
    return !value.empty() && value != "0";
  };
  const std::string_view term = detail::environment("TERM");
  const int fd = out == nullptr ? -1 : ::fileno(out);

  Capabilities caps;
  caps.tty = fd >= 0 && ::isatty(fd) == 1 && !term.empty() && term != "dumb";
  caps.color =
      caps.tty && detail::environment("FORCE_COLOR") != "0" && detail::environment("CLICOLOR") != "0";
  if (set("FORCE_COLOR") || set("CLICOLOR_FORCE")) caps.color = true;
  if (!detail::environment("NO_COLOR").empty()) caps.color = false;  // no-color.org: any value, even "0"

  const std::string_view depth = detail::environment("COLORTERM");
  caps.true_color = caps.color && (depth == "truecolor" || depth == "24bit");

  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string_view locale = detail::environment(name);
    if (locale.empty()) continue;
    caps.unicode = detail::names_utf8(locale);
    break;
  }
  caps.width = columns(out);
  return caps;
}

// ------------------------------------------------------------------------------------------------------ text

namespace detail {

struct Range {
  char32_t first;
  char32_t last;
};

// Combining marks and other characters that take no column. Scripts whose marks are left out count as too
// wide, never as too narrow, so that a line still fits.
inline constexpr Range kZeroWidth[] = {
    {0x0300, 0x036F}, {0x0483, 0x0489}, {0x0591, 0x05BD}, {0x0610, 0x061A},   {0x064B, 0x065F},
    {0x06D6, 0x06DC}, {0x0E34, 0x0E3A}, {0x0E47, 0x0E4E}, {0x1160, 0x11FF},   {0x1AB0, 0x1AFF},
    {0x1DC0, 0x1DFF}, {0x200B, 0x200F}, {0x202A, 0x202E}, {0x2060, 0x2064},   {0x20D0, 0x20FF},
    {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}, {0xFEFF, 0xFEFF}, {0xE0100, 0xE01EF},
};

// East Asian Width W and F (Unicode 14), neighbouring blocks of emoji merged.
inline constexpr Range kWide[] = {
    {0x1100, 0x115F},   {0x231A, 0x231B},   {0x2329, 0x232A},   {0x23E9, 0x23EC},   {0x23F0, 0x23F0},
    {0x23F3, 0x23F3},   {0x25FD, 0x25FE},   {0x2614, 0x2615},   {0x2648, 0x2653},   {0x267F, 0x267F},
    {0x2693, 0x2693},   {0x26A1, 0x26A1},   {0x26AA, 0x26AB},   {0x26BD, 0x26BE},   {0x26C4, 0x26C5},
    {0x26CE, 0x26CE},   {0x26D4, 0x26D4},   {0x26EA, 0x26EA},   {0x26F2, 0x26F3},   {0x26F5, 0x26F5},
    {0x26FA, 0x26FA},   {0x26FD, 0x26FD},   {0x2705, 0x2705},   {0x270A, 0x270B},   {0x2728, 0x2728},
    {0x274C, 0x274C},   {0x274E, 0x274E},   {0x2753, 0x2755},   {0x2757, 0x2757},   {0x2795, 0x2797},
    {0x27B0, 0x27B0},   {0x27BF, 0x27BF},   {0x2B1B, 0x2B1C},   {0x2B50, 0x2B50},   {0x2B55, 0x2B55},
    {0x2E80, 0x303E},   {0x3041, 0x3247},   {0x3250, 0x4DBF},   {0x4E00, 0xA4C6},   {0xA960, 0xA97C},
    {0xAC00, 0xD7A3},   {0xF900, 0xFAD9},   {0xFE10, 0xFE19},   {0xFE30, 0xFE6B},   {0xFF01, 0xFF60},
    {0xFFE0, 0xFFE6},   {0x16FE0, 0x16FE3}, {0x16FF0, 0x1B2FB}, {0x1F004, 0x1F004}, {0x1F0CF, 0x1F0CF},
    {0x1F18E, 0x1F18E}, {0x1F191, 0x1F19A}, {0x1F200, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F7E0, 0x1F7F0},
    {0x1F90C, 0x1F9FF}, {0x1FA70, 0x1FAFF}, {0x20000, 0x3FFFD},
};

template <std::size_t N>
constexpr bool contains(const Range (&ranges)[N], char32_t c) {
  const Range* const found =
      std::lower_bound(ranges, ranges + N, c, [](const Range& range, char32_t x) { return range.last < x; });
  return found != ranges + N && found->first <= c;
}

constexpr int code_point_width(char32_t c) {
  if (c < 0x20 || (c >= 0x7F && c < 0xA0)) return 0;
  if (c < 0x300) return 1;
  if (contains(kZeroWidth, c)) return 0;
  return contains(kWide, c) ? 2 : 1;
}

/// Bytes of the escape sequence at the front of `text` (which starts with ESC): CSI, OSC, or ESC and one
/// more.
inline std::size_t escape_size(std::string_view text) {
  if (text.size() < 2) return text.size();
  std::size_t i = 2;
  if (text[1] == '[') {
    while (i < text.size() && (text[i] < '@' || text[i] > '~')) ++i;
    return std::min(i + 1, text.size());
  }
  if (text[1] == ']') {  // ends with BEL or with ESC and a backslash
    while (i < text.size() && text[i] != '\a' && text[i] != '\033') ++i;
    const std::size_t end = i < text.size() && text[i] == '\033' ? i + 2 : i + 1;
    return std::min(end, text.size());
  }
  return 2;
}

}  // namespace detail

FULMEN_INLINE detail::Glyph detail::next_glyph(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead == 0x1B) return {escape_size(text), 0, true};
  if (lead < 0x80) return {1, code_point_width(lead), false};
  const std::size_t size = lead >= 0xF0 && lead < 0xF5 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead >= 0xF5 || size > text.size()) return {1, 1, false};
  char32_t code = static_cast<char32_t>(lead & (0xFFU >> (size + 1)));
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return {1, 1, false};  // shown as one replacement character
    code = (code << 6U) | static_cast<char32_t>(byte(i) & 0x3FU);
  }
  return {size, code_point_width(code), false};
}

FULMEN_INLINE int display_width(std::string_view text) {
  int width = 0;
  while (!text.empty()) {
    const detail::Glyph glyph = detail::next_glyph(text);
    width += glyph.width;
    text.remove_prefix(glyph.size);
  }
  return width;
}

FULMEN_INLINE std::string truncate(std::string_view text, int width, const Capabilities& caps) {
  if (display_width(text) <= width) return std::string{text};
  width = std::max(width, 0);
  std::string_view mark = caps.unicode ? "…" : "...";
  if (display_width(mark) >= width) mark = width == 0 ? "" : caps.unicode ? "…" : "~";
  const int room = width - display_width(mark);

  std::string result;
  int used = 0;
  bool cut = false;
  while (!text.empty()) {
    const detail::Glyph glyph = detail::next_glyph(text);
    if (!cut && used + glyph.width > room) {
      cut = true;
      result += mark;
    }
    if (!cut || glyph.escape) result += text.substr(0, glyph.size);
    used += glyph.width;
    text.remove_prefix(glyph.size);
  }
  return result;
}

FULMEN_INLINE std::string pad(std::string_view text, int width, Align align) {
  const int space = std::max(width - display_width(text), 0);
  const int before = align == Align::left ? 0 : align == Align::right ? space : space / 2;
  std::string result(static_cast<std::size_t>(before), ' ');
  result += text;
  result.append(static_cast<std::size_t>(space - before), ' ');
  return result;
}

FULMEN_INLINE std::string single_line(std::string_view text, bool keep_styles) {
  std::string result;
  bool gap = false;
  while (!text.empty()) {
    const detail::Glyph glyph = detail::next_glyph(text);
    const std::string_view piece = text.substr(0, glyph.size);
    text.remove_prefix(glyph.size);
    if (glyph.escape) {
      if (keep_styles && piece.size() > 2 && piece[1] == '[' && piece.back() == 'm') result += piece;
      continue;
    }
    const auto byte = static_cast<unsigned char>(piece.front());
    const bool control = (piece.size() == 1 && (byte < 0x20 || byte == 0x7F)) ||
                         (piece.size() == 2 && byte == 0xC2 && static_cast<unsigned char>(piece[1]) < 0xA0);
    if (!control) {
      result += piece;
    } else if (!gap) {
      result += ' ';
    }
    gap = control;
  }
  return result;
}

// ---------------------------------------------------------------------------------------------------- styles

FULMEN_INLINE std::string styled(std::string_view text, std::initializer_list<Style> styles,
                                 const Capabilities& caps) {
  if (text.empty()) return {};
  std::string result;
  for (const Style style : styles) result += escape(style, caps);
  result += text;
  result += escape(Style::reset, caps);
  return result;
}

// --------------------------------------------------------------------------------------------------- numbers

namespace detail {

/// One decimal below a hundred, none above, so that three digits are shown; "100", not "100.0", where
/// rounding gets there.
inline std::string three_digits(double value) { return fmt::format("{:.{}f}", value, value < 99.95 ? 1 : 0); }

}  // namespace detail

FULMEN_INLINE std::string format_count(std::int64_t count) {
  const std::string sign = count < 0 ? "-" : "";
  const std::uint64_t size =
      count < 0 ? 0 - static_cast<std::uint64_t>(count) : static_cast<std::uint64_t>(count);
  if (size < 1000) return sign + fmt::format("{}", size);
  constexpr std::string_view kUnits[] = {"K", "M", "B", "T"};
  std::uint64_t scale = 1000;
  std::size_t unit = 0;
  while (unit + 1 < std::size(kUnits) && size / scale >= 1000) {
    scale *= 1000;
    ++unit;
  }
  const std::uint64_t whole = size / scale;
  if (whole < 100) {
    return sign + detail::three_digits(static_cast<double>(size) / static_cast<double>(scale)) + " " +
           std::string{kUnits[unit]};
  }
  std::string digits = fmt::format("{}", whole);
  for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, 1, ',');
  return sign + digits + " " + std::string{kUnits[unit]};
}

FULMEN_INLINE std::string format_bytes(std::uint64_t bytes) {
  if (bytes < 1000) return fmt::format("{} B", bytes);
  constexpr std::string_view kUnits[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(bytes) / 1000.0;
  std::size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(kUnits)) {
    value /= 1000.0;
    ++unit;
  }
  return fmt::format("{} {}", detail::three_digits(value), kUnits[unit]);
}

FULMEN_INLINE std::string format_duration(double seconds) {
  if (!(seconds >= 0.0) || seconds > 3.2e9) return "-:--:--";
  const auto whole = static_cast<std::int64_t>(seconds);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

FULMEN_INLINE std::string format_rate(double per_second, std::string_view unit) {
  if (!std::isfinite(per_second) || per_second <= 0.0) return fmt::format("- {}/s", unit);
  if (per_second < 0.9995) {
    const double seconds = 1.0 / per_second;
    return seconds > 1e6 ? fmt::format("- {}/s", unit)
                         : fmt::format("{} s/{}", detail::three_digits(seconds), unit);
  }
  constexpr std::string_view kPrefixes[] = {"", "k", "M", "G", "T"};
  std::size_t prefix = 0;
  while (per_second >= 999.5 && prefix + 1 < std::size(kPrefixes)) {
    per_second /= 1000.0;
    ++prefix;
  }
  return fmt::format("{}{} {}/s", detail::three_digits(per_second), kPrefixes[prefix], unit);
}

FULMEN_INLINE std::string format_value(double value) {
  if (std::isnan(value)) return "nan";  // never "-nan": the sign of a NaN says nothing
  if (value == 0.0) return "0";
  const double size = std::abs(value);
  if (size < 1e7 && (size >= 1e4 || value == std::trunc(value))) return fmt::format("{:.0f}", value);
  return fmt::format("{:.4g}", value);
}

#endif

}  // namespace fulmen::terminal
