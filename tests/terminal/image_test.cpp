// Grayscale images as text.
#include "fulmen/terminal/image.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace fulmen::terminal;
using Lines = std::vector<std::string>;

TEST(Image, Ramp) {
  std::vector<float> pixels;
  for (int row = 0; row < 2; ++row) {
    for (int i = 0; i < 10; ++i) pixels.push_back(static_cast<float>(i) / 9.0F);
  }
  EXPECT_EQ(render_gray(pixels, 2, 10, {}), (Lines{" .:-=+*#%@"}));
  EXPECT_EQ(render_gray(pixels, 2, 10, {.color = true}), (Lines{" .:-=+*#%@"}));    // no half blocks
  EXPECT_EQ(render_gray(pixels, 2, 10, {.unicode = true}), (Lines{" .:-=+*#%@"}));  // no greys
}

TEST(Image, RampIsTheMeanOfTwoRows) {
  const std::vector<float> pixels{1, 0, 0, 0};  // 4 x 1
  EXPECT_EQ(render_gray(pixels, 4, 1, {}), (Lines{"+", " "}));
}

TEST(Image, OutOfRangeAndNotANumber) {
  const std::vector<float> pixels{-3.0F, 7.0F, std::numeric_limits<float>::infinity(), std::nanf("")};
  EXPECT_EQ(render_gray(pixels, 1, 4, {}), (Lines{" @@?"}));
  const Capabilities caps{.color = true, .unicode = true};
  EXPECT_EQ(render_gray(pixels, 1, 4, caps), (Lines{"\033[38;5;16m▀\033[38;5;231m▀▀\033[38;5;196m▀\033[0m"}));
}

TEST(Image, HalfBlocks) {
  const std::vector<float> pixels{0, 0, 1, 1, 0.5F, 0.2F};  // 3 x 2: the last line has no lower half
  EXPECT_EQ(render_gray(pixels, 3, 2, {.color = true, .unicode = true}),
            (Lines{"\033[38;5;16;48;5;231m▀▀\033[0m", "\033[38;5;244m▀\033[38;5;236m▀\033[0m"}));
  EXPECT_EQ(render_gray(pixels, 3, 2, {.color = true, .unicode = true, .true_color = true}),
            (Lines{"\033[38;2;0;0;0;48;2;255;255;255m▀▀\033[0m",
                   "\033[38;2;128;128;128m▀\033[38;2;51;51;51m▀\033[0m"}));
}

TEST(Image, EmptyAndWrongSizes) {
  EXPECT_TRUE(render_gray({}, 0, 0, {}).empty());
  const std::vector<float> pixels(6);
  EXPECT_THROW(render_gray(pixels, 2, 2, {}), std::invalid_argument);
  EXPECT_THROW(render_gray(pixels, -2, -3, {}), std::invalid_argument);
}

TEST(Image, SideBySide) {
  const std::vector<Lines> blocks{{"ab", "c"}, {"\033[1mX\033[0m"}, {"1", "2", "3"}};
  EXPECT_EQ(side_by_side(blocks), (Lines{"ab  \033[1mX\033[0m  1", "c      2", "       3"}));
  EXPECT_EQ(side_by_side(blocks, 0), (Lines{"ab\033[1mX\033[0m1", "c  2", "   3"}));
  EXPECT_TRUE(side_by_side({}).empty());
}

TEST(Image, SideBySideBeginsANewRow) {
  const std::vector<Lines> blocks{{"aaa", "aaa"}, {"bbb"}, {"ccc"}};
  EXPECT_EQ(side_by_side(blocks, 1, 7), (Lines{"aaa bbb", "aaa", "", "ccc"}));
  EXPECT_EQ(side_by_side(blocks, 1, 2),
            (Lines{"aaa", "aaa", "", "bbb", "", "ccc"}));  // one block always fits
}

}  // namespace
