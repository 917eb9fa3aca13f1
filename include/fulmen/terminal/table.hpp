// Tables of text: a header, aligned columns, box drawing or ASCII, cut to the terminal's width.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "fulmen/compiled.hpp"
#include "fulmen/terminal/terminal.hpp"

#if FULMEN_BODIES
#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "fulmen/error.hpp"
#endif

namespace fulmen::terminal {

/// A column of a Table.
struct Column {
  std::string header{};
  Align align = Align::left;
  Style style = Style::reset;  ///< of the cells; a cell may bring styles of its own instead
};

/// A table, built row by row and rendered for one output:
///
///     Table table{{{"Test metric", Align::left, Style::cyan}, {"DataLoader 0", Align::right}}};
///     table.title("Results").add_row({"test/acc", "0.9783"});
///     std::fputs(table.render(detect(stdout)).c_str(), stdout);
///
/// On a terminal it never exceeds the width: the widest columns give way first, their cells end in an
/// ellipsis, and columns for which no room is left go from the right. A file has no edge: there nothing is
/// cut.
class Table {
 public:
  /// Throws std::invalid_argument where there is no column.
  explicit Table(std::vector<Column> columns);

  /// A line above the table, centred.
  Table& title(std::string_view text);

  /// One row. Control characters become spaces; colours are kept where the output has them.
  /// Throws std::invalid_argument where the number of cells is not the number of columns.
  Table& add_row(std::vector<std::string> cells);

  /// A rule between the rows before and those behind it.
  Table& add_rule();

  /// A line below the table; each call adds one.
  Table& footer(std::string_view text);

  [[nodiscard]] std::size_t size() const { return rows_.size(); }

  /// The table as lines, each with its line break. Without colour, styles inside cells are removed.
  [[nodiscard]] std::string render(const Capabilities& caps) const;

 private:
  static constexpr int kMore = 4;  // columns of " … " and its border, which stand for the columns left out

  /// Whether there is a column that stands for those left out; below 9 columns there is only room for one of
  /// the table.
  [[nodiscard]] bool shows_more(const std::vector<int>& widths, const Capabilities& caps) const;

  /// Width of each column that is shown, without the space on its two sides.
  [[nodiscard]] std::vector<int> column_widths(const Capabilities& caps) const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
  std::vector<std::size_t> rules_;  // a rule stands above the row of this index
  std::vector<std::string> footers_;
  std::string title_;
};

#if FULMEN_BODIES

namespace detail {

struct TableRule {
  std::string_view left, line, cross, right;
};
struct TableBox {
  TableRule top, head, middle, bottom, empty;  // `empty` closes a table that has a header and no row
  std::string_view head_bar, bar;
};
inline constexpr TableBox kUnicodeBox{{"┏", "━", "┳", "┓"},
                                      {"┡", "━", "╇", "┩"},
                                      {"├", "─", "┼", "┤"},
                                      {"└", "─", "┴", "┘"},
                                      {"┗", "━", "┻", "┛"},
                                      "┃",
                                      "│"};
inline constexpr TableBox kAsciiBox{{"+", "-", "+", "+"},
                                    {"+", "=", "+", "+"},
                                    {"+", "-", "+", "+"},
                                    {"+", "-", "+", "+"},
                                    {"+", "-", "+", "+"},
                                    "|",
                                    "|"};

}  // namespace detail

FULMEN_INLINE Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {
  if (columns_.empty()) fail<std::invalid_argument>("Table: a table needs at least one column, got none");
  for (Column& column : columns_) column.header = single_line(column.header, true);
}

FULMEN_INLINE Table& Table::title(std::string_view text) {
  title_ = single_line(text, true);
  return *this;
}

FULMEN_INLINE Table& Table::add_row(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) {
    fail<std::invalid_argument>("Table: a row of {} cells for {} columns", cells.size(), columns_.size());
  }
  for (std::string& cell : cells) cell = single_line(cell, true);
  rows_.push_back(std::move(cells));
  return *this;
}

FULMEN_INLINE Table& Table::add_rule() {
  if (!rows_.empty() && (rules_.empty() || rules_.back() != rows_.size())) rules_.push_back(rows_.size());
  return *this;
}

FULMEN_INLINE Table& Table::footer(std::string_view text) {
  footers_.push_back(single_line(text, true));
  return *this;
}

FULMEN_INLINE std::string Table::render(const Capabilities& caps) const {
  const std::vector<int> widths = column_widths(caps);
  const detail::TableBox& box = caps.unicode ? detail::kUnicodeBox : detail::kAsciiBox;
  const bool cut = shows_more(widths, caps);
  const int total = std::accumulate(widths.begin(), widths.end(), 0) + 3 * static_cast<int>(widths.size()) +
                    1 + (cut ? kMore : 0);
  std::string text;

  const auto rule = [&](const detail::TableRule& r) {
    text += r.left;
    for (std::size_t i = 0; i < widths.size(); ++i) {
      if (i > 0) text += r.cross;
      for (int n = 0; n < widths[i] + 2; ++n) text += r.line;
    }
    if (cut) {
      text += r.cross;
      for (int n = 0; n < kMore - 1; ++n) text += r.line;
    }
    text += r.right;
    text += '\n';
  };
  const auto row = [&](std::string_view bar, auto&& cell) {
    text += bar;
    for (std::size_t i = 0; i < widths.size(); ++i) {
      if (i > 0) text += bar;
      text += ' ';
      text += cell(i);
      text += ' ';
    }
    if (cut) {
      text += bar;
      text += caps.unicode ? " … " : " ~ ";
    }
    text += bar;
    text += '\n';
  };
  const auto bare = [&](std::string_view cell) {
    return caps.color ? std::string{cell} : single_line(cell);
  };
  const auto limit = [&](std::string_view line) {
    return caps.tty ? truncate(bare(line), caps.width, caps) : bare(line);
  };

  if (!title_.empty()) {
    const std::string line = limit(title_);
    text.append(static_cast<std::size_t>(std::max(total - display_width(line), 0) / 2), ' ');
    text += styled(line, {Style::bold, Style::italic}, caps);
    text += '\n';
  }
  rule(box.top);
  row(box.head_bar, [&](std::size_t i) {
    return styled(fit(bare(columns_[i].header), widths[i], caps, columns_[i].align), Style::bold, caps);
  });
  rule(rows_.empty() ? box.empty : box.head);
  std::size_t next_rule = 0;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    if (next_rule < rules_.size() && rules_[next_rule] == r) {
      rule(box.middle);
      ++next_rule;
    }
    row(box.bar, [&](std::size_t i) {
      const std::string cell = fit(bare(rows_[r][i]), widths[i], caps, columns_[i].align);
      return columns_[i].style == Style::reset ? cell : styled(cell, columns_[i].style, caps);
    });
  }
  if (!rows_.empty()) rule(box.bottom);
  for (const std::string& line : footers_) {
    text += limit(line);
    text += '\n';
  }
  return text;
}

FULMEN_INLINE bool Table::shows_more(const std::vector<int>& widths, const Capabilities& caps) const {
  return widths.size() < columns_.size() && caps.width >= 5 + kMore;
}

FULMEN_INLINE std::vector<int> Table::column_widths(const Capabilities& caps) const {
  std::vector<int> widths;
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    int width = std::max(display_width(columns_[i].header), 1);
    for (const std::vector<std::string>& row : rows_) width = std::max(width, display_width(row[i]));
    widths.push_back(width);
  }
  if (!caps.tty) return widths;

  constexpr int kLeast = 4;  // "acc…" can still be told from "los…"
  const auto over = [&] {
    const int borders = 3 * static_cast<int>(widths.size()) + 1 + (shows_more(widths, caps) ? kMore : 0);
    return std::accumulate(widths.begin(), widths.end(), borders) - caps.width;
  };
  const auto least = [&](int width) { return std::min(width, kLeast); };
  while (widths.size() > 1) {
    const std::vector<int> full = widths;
    for (int& width : widths) width = least(width);
    const bool fits = over() <= 0;
    widths = full;
    if (fits) break;
    widths.pop_back();
  }
  while (over() > 0) {
    const auto widest = std::max_element(widths.begin(), widths.end());
    if (*widest <= 1) break;
    --*widest;
  }
  return widths;
}

#endif

}  // namespace fulmen::terminal
