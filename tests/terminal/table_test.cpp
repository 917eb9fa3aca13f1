// Tables: golden pictures, and that none exceeds its terminal.
#include "fulmen/terminal/table.hpp"

#include <gtest/gtest.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace fulmen::terminal;

Table metrics() {
  Table table{{{"Test metric", Align::center}, {"DataLoader 0", Align::right}}};
  table.add_row({"test/acc", "0.9783"}).add_row({"test/loss", "nan"});
  return table;
}

TEST(Table, Unicode) {
  EXPECT_EQ(metrics().render({.tty = true, .unicode = true}),
            "┏━━━━━━━━━━━━━┳━━━━━━━━━━━━━━┓\n"
            "┃ Test metric ┃ DataLoader 0 ┃\n"
            "┡━━━━━━━━━━━━━╇━━━━━━━━━━━━━━┩\n"
            "│  test/acc   │       0.9783 │\n"
            "│  test/loss  │          nan │\n"
            "└─────────────┴──────────────┘\n");
}

TEST(Table, AsciiTitleFooterRule) {
  Table table = metrics();
  table.title("Results").add_rule().add_row({"all", "1"}).footer("157 batches").footer("0:00:03");
  EXPECT_EQ(table.render({}),
            "           Results\n"
            "+-------------+--------------+\n"
            "| Test metric | DataLoader 0 |\n"
            "+=============+==============+\n"
            "|  test/acc   |       0.9783 |\n"
            "|  test/loss  |          nan |\n"
            "+-------------+--------------+\n"
            "|     all     |            1 |\n"
            "+-------------+--------------+\n"
            "157 batches\n"
            "0:00:03\n");
}

TEST(Table, HeaderOnly) {
  const Table table{{{"a"}, {"b"}}};
  EXPECT_EQ(table.render({.unicode = true}),
            "┏━━━┳━━━┓\n"
            "┃ a ┃ b ┃\n"
            "┗━━━┻━━━┛\n");
}

TEST(Table, WidestColumnGivesWay) {
  Table table{{{"Name"}, {"Type"}, {"Params", Align::right}}};
  table.add_row({"encoder", "Sequential<Linear, ReLU, Linear>", "11.7 M"});
  EXPECT_EQ(table.render({.tty = true, .unicode = true, .width = 40}),
            "┏━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━┳━━━━━━━━┓\n"
            "┃ Name    ┃ Type              ┃ Params ┃\n"
            "┡━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━╇━━━━━━━━┩\n"
            "│ encoder │ Sequential<Linea… │ 11.7 M │\n"
            "└─────────┴───────────────────┴────────┘\n");
  EXPECT_EQ(table.render({.tty = true, .width = 21}),
            "+-------+-------+---+\n"
            "| Name  | Type  | ~ |\n"
            "+=======+=======+===+\n"
            "| en... | Se... | ~ |\n"
            "+-------+-------+---+\n");
}

TEST(Table, NeverExceedsATerminal) {
  Table table{{{"Name"}, {"Größe"}, {"損失"}, {"A rather long header"}, {"Params", Align::right}}};
  table.title("A title that is longer than the narrowest of these terminals");
  table.footer("A footer that is longer than the narrowest of these terminals, by far");
  table.add_row({"encoder.layers.0.attention", "Sequential", "🚀🚀🚀", "x", "11.7 M"});
  for (const bool unicode : {false, true}) {
    for (const bool color : {false, true}) {
      for (int width = 5; width < 120; ++width) {
        std::istringstream lines{
            table.render({.tty = true, .color = color, .unicode = unicode, .width = width})};
        for (std::string line; std::getline(lines, line);) ASSERT_LE(display_width(line), width) << line;
      }
    }
  }
}

TEST(Table, AFileHasNoEdge) {
  Table table{{{"Name"}}};
  table.add_row({std::string(200, 'x')});
  EXPECT_NE(table.render({.width = 40}).find(std::string(200, 'x')), std::string::npos);
}

TEST(Table, Styles) {
  Table table{{{"k", Align::left, Style::cyan}, {"v"}}};
  table.add_row({"a", "\033[31mbad\033[0m"});
  EXPECT_EQ(table.render({}).find('\033'), std::string::npos);
  const std::string colored = table.render({.color = true});
  EXPECT_NE(colored.find("\033[36ma\033[0m"), std::string::npos);
  EXPECT_NE(colored.find("\033[31mbad\033[0m"), std::string::npos);
}

TEST(Table, CellsStayInTheirLine) {
  Table table{{{"k"}}};
  table.add_row({"two\nlines\033[2J"});
  EXPECT_NE(table.render({}).find("| two lines |"), std::string::npos);
}

TEST(Table, Errors) {
  EXPECT_THROW(Table{std::vector<Column>{}}, std::invalid_argument);
  Table table{{{"a"}, {"b"}}};
  EXPECT_THROW(table.add_row({"only one"}), std::invalid_argument);
  EXPECT_EQ(table.size(), 0U);
}

}  // namespace
