// Small grayscale images as lines of text: two pixel rows a line in half blocks, or an ASCII ramp.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "fulmen/compiled.hpp"
#include "fulmen/terminal/terminal.hpp"

#if FULMEN_BODIES
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "fulmen/error.hpp"
#endif

namespace fulmen::terminal {

/// Lines that show `pixels` (row-major, [height, width], 0 black to 1 white, clamped), one column a pixel and
/// two pixel rows a line: (height + 1) / 2 lines of `width` columns. With colour and Unicode each line is
/// half blocks, else characters from " .:-=+*#%@", each the mean of its two pixels. NaN is shown in red, or
/// as '?'. Throws std::invalid_argument where a size is negative or height * width is not the number of
/// pixels.
std::vector<std::string> render_gray(std::span<const float> pixels, int height, int width,
                                     const Capabilities& caps);

/// Blocks of lines beside each other, their tops aligned, `gap` spaces between them; each block is padded to
/// its own widest line. Where `max_width` is positive, blocks that would exceed so many columns begin a new
/// row, after an empty line. A caption is one more line of a block.
std::vector<std::string> side_by_side(std::span<const std::vector<std::string>> blocks, int gap = 2,
                                      int max_width = 0);

#if FULMEN_BODIES

namespace detail {

/// SGR parameters of a grey (0 black to 1 white) behind "38;" or "48;". A NaN is red: it must not pass for
/// black.
inline std::string gray_code(float value, const Capabilities& caps) {
  if (std::isnan(value)) return caps.true_color ? "2;255;0;0" : "5;196";
  const float clamped = std::clamp(value, 0.0F, 1.0F);
  if (caps.true_color) {
    const int level = static_cast<int>(std::lround(clamped * 255.0F));
    return fmt::format("2;{0};{0};{0}", level);
  }
  // Of the 256 colours, 232 to 255 are greys without the two ends, which are 16 and 231 in the colour cube.
  const int level = static_cast<int>(std::lround(clamped * 25.0F));
  return fmt::format("5;{}", level == 0 ? 16 : level == 25 ? 231 : 231 + level);
}

inline char gray_character(float value) {
  constexpr std::string_view kRamp = " .:-=+*#%@";
  if (std::isnan(value)) return '?';
  const float clamped = std::clamp(value, 0.0F, 1.0F);
  return kRamp[static_cast<std::size_t>(std::lround(clamped * static_cast<float>(kRamp.size() - 1)))];
}

}  // namespace detail

FULMEN_INLINE std::vector<std::string> render_gray(std::span<const float> pixels, int height, int width,
                                                   const Capabilities& caps) {
  if (height < 0 || width < 0 ||
      static_cast<std::size_t>(height) * static_cast<std::size_t>(width) != pixels.size()) {
    fail<std::invalid_argument>("render_gray: {} pixels are not {} x {} (height x width)", pixels.size(),
                                height, width);
  }
  const auto rows = static_cast<std::size_t>(height);
  const auto columns = static_cast<std::size_t>(width);
  std::vector<std::string> lines;
  lines.reserve((rows + 1) / 2);
  for (std::size_t row = 0; row < rows; row += 2) {
    const std::span<const float> upper = pixels.subspan(row * columns, columns);
    const bool has_lower = row + 1 < rows;
    const std::span<const float> lower = has_lower ? pixels.subspan((row + 1) * columns, columns) : upper;
    std::string line;
    std::string last;
    for (std::size_t column = 0; column < columns; ++column) {
      if (!caps.color || !caps.unicode) {
        line += detail::gray_character(0.5F * (upper[column] + lower[column]));
        continue;
      }
      std::string code = "\033[38;" + detail::gray_code(upper[column], caps);
      if (has_lower) code += ";48;" + detail::gray_code(lower[column], caps);
      code += 'm';
      if (code != last) line += code;  // images have runs of one grey: a third of the bytes
      last = std::move(code);
      line += "▀";
    }
    if (!last.empty()) line += escape(Style::reset, caps);
    lines.push_back(std::move(line));
  }
  return lines;
}

FULMEN_INLINE std::vector<std::string> side_by_side(std::span<const std::vector<std::string>> blocks, int gap,
                                                    int max_width) {
  gap = std::max(gap, 0);
  std::vector<std::string> lines;
  std::size_t top = 0;  // the first line of the present row
  int right = 0;        // columns taken in it
  for (const std::vector<std::string>& block : blocks) {
    int width = 0;
    for (const std::string& line : block) width = std::max(width, display_width(line));
    if (max_width > 0 && right > 0 && right + gap + width > max_width) {
      lines.emplace_back();
      top = lines.size();
      right = 0;
    }
    const int left = right > 0 ? right + gap : 0;
    lines.resize(std::max(lines.size(), top + block.size()));
    for (std::size_t i = 0; i < block.size(); ++i) lines[top + i] = pad(lines[top + i], left) + block[i];
    right = left + width;
  }
  return lines;
}

#endif

}  // namespace fulmen::terminal
