// Tests ProgressBar: its options, and that a user's takes the place of the default one.
#include "../testing.hpp"

#include <fulmen/callbacks/progress_bar.hpp>
#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <forward_list>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

namespace {

using namespace fulmen;

struct Net : torch::nn::Module {
  torch::nn::Linear fc{register_module("fc", torch::nn::Linear(2, 1))};
  at::Tensor forward(const at::Tensor& x) { return fc(x); }
};

using Batch = std::tuple<at::Tensor, at::Tensor>;
std::vector<Batch> batches(std::size_t count) {
  return std::vector<Batch>(count, Batch{torch::ones({2, 2}), torch::zeros({2, 1})});
}

Options options(std::int64_t max_epochs) {
  return {.max_epochs = max_epochs, .enable_model_summary = false, .enable_checkpointing = false};
}

/// What a bar writes into a file.
template <class Use>
std::string written(ProgressBar bar, Use use, Options opts = options(3)) {
  char* data = nullptr;
  std::size_t size = 0;
  bar.out = ::open_memstream(&data, &size);
  std::FILE* const file = bar.out;
  {
    Trainer trainer{Net{}, MSE{}, SGD{.lr = 0.1}, none, Identity{}, callbacks(std::move(bar)), opts,
                    Runtime<std::tuple<>, std::tuple<ProgressBar>>{.device = at::kCPU}};
    use(trainer);
  }
  std::fclose(file);
  std::string text(data, size);
  std::free(data);
  return text;
}

/// What it writes on a terminal.
template <class Use>
std::string shown(ProgressBar bar, Use use) {
  int master = -1, slave = -1;
  if (::openpty(&master, &slave, nullptr, nullptr, nullptr) != 0) return "no terminal";
  ::setenv("TERM", "xterm", 1);
  bar.out = ::fdopen(slave, "w");
  std::FILE* const file = bar.out;
  {
    Trainer trainer{Net{}, MSE{}, SGD{.lr = 0.1}, none, Identity{}, callbacks(std::move(bar)), options(3), Runtime<>{.device = at::kCPU}};
    use(trainer);
  }
  std::fclose(file);
  std::string text;
  char part[4096];
  for (ssize_t size; (size = ::read(master, part, sizeof part)) > 0;) text.append(part, static_cast<std::size_t>(size));
  ::close(master);
  return text;
}

/// The lines that stay on a terminal: of each, what was written last.
std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::string line;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    if (text[i] == '\r') line.clear();
    else if (text[i] == '\n') out.push_back(std::exchange(line, {}));
    else if (text[i] == '\033') i = text.find_first_of("ABCDHJKhlm", i);
    else line += text[i];
  }
  return out;
}

int count_of(const std::string& text, const std::string& part) {
  int count = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

const auto fit = [](auto& trainer) {
  auto data = batches(4);
  trainer.fit(data);
};

TEST(ProgressBar, OfTheUsersReplacesTheDefault) {
  ::testing::internal::CaptureStdout();
  const std::string text = written({}, fit);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "") << "the default one has not printed";
  EXPECT_EQ(count_of(text, "\n"), 3) << text;
  for (const char* line : {"Epoch 0/2 4/4", "Epoch 1/2 4/4", "Epoch 2/2 4/4"}) EXPECT_EQ(count_of(text, line), 1) << text;
  EXPECT_EQ(count_of(text, "train/loss"), 3) << text;
}

TEST(ProgressBar, CanBeSwitchedOff) {
  EXPECT_EQ(written({.refresh_rate = 0}, fit), "");
  ProgressBar off;
  off.disable();
  EXPECT_FALSE(off.is_enabled());
  EXPECT_EQ(written(std::move(off), fit), "");
  Options without = options(1);
  without.enable_progress_bar = false;
  EXPECT_EQ(written({}, fit, without), "");
  ProgressBar on;
  on.disable(), on.enable();
  EXPECT_NE(written(std::move(on), fit), "");
  EXPECT_EQ(error_of([] { written({.refresh_rate = -1}, fit); }), "ProgressBar::refresh_rate is -1, expected at least 0");
}

TEST(ProgressBar, LeavesTheLineOfEachEpochOrOfTheLast) {
  const auto all = lines_of(shown({}, fit));
  ASSERT_EQ(all.size(), 3u);
  EXPECT_TRUE(all[0].starts_with("Epoch 0/2") && all[2].starts_with("Epoch 2/2")) << all[0] << "\n" << all[2];
  const auto last = lines_of(shown({.leave = false}, fit));
  ASSERT_EQ(last.size(), 1u);
  EXPECT_TRUE(last[0].starts_with("Epoch 2/2")) << last[0];
  EXPECT_NE(last[0].find("train/loss"), std::string::npos) << last[0];
  // A file cannot take lines back.
  EXPECT_EQ(count_of(written({.leave = false}, fit), "\n"), 3);
}

TEST(ProgressBar, WritesPlainLinesOnATerminalToo) {
  const std::string text = shown({.plain = true}, fit);
  EXPECT_EQ(count_of(text, "\n"), 3) << text;
  EXPECT_EQ(text.find("\033[?25l"), std::string::npos) << "the cursor stays";
  EXPECT_NE(shown({}, fit).find("\033[?25l"), std::string::npos);
}

/// Draws whenever the clock is asked: once a millisecond at the most.
int drawings(std::int64_t refresh_rate) {
  std::string text = written({.refresh_rate = refresh_rate, .plain_period = 1e-9}, [](auto& trainer) {
    auto data = batches(40);
    auto slowly = [] { ::usleep(1500); };
    struct Slow {
      std::vector<Batch>& data;
      std::function<void()> wait;
      struct Iterator {
        std::vector<Batch>::iterator at;
        const std::function<void()>* wait;
        Batch operator*() const {
          (*wait)();
          return *at;
        }
        Iterator& operator++() {
          ++at;
          return *this;
        }
        bool operator!=(const Iterator& other) const { return at != other.at; }
      };
      Iterator begin() { return {data.begin(), &wait}; }
      Iterator end() { return {data.end(), &wait}; }
      std::int64_t size() const { return 40; }
    } slow{data, slowly};
    trainer.fit(slow);
  }, options(1));
  return count_of(text, "\n");
}

TEST(ProgressBar, DrawsAfterSoManyBatches) {
  const int often = drawings(1), seldom = drawings(10);
  EXPECT_GT(often, 20);
  EXPECT_GE(seldom, 3);
  EXPECT_LE(seldom, 5) << "after 10, 20, 30, 40 batches, and the line that stays";
}

TEST(ProgressBar, CountsLoadersOfUnknownSize) {
  const std::string text = written({}, [](auto& trainer) {
    const auto all = batches(5);
    std::forward_list<Batch> data(all.begin(), all.end());
    trainer.fit(data);
  }, options(1));
  EXPECT_EQ(count_of(text, "Epoch 0/0 5/--"), 1) << text;
}

TEST(ProgressBar, HasALineForEachOfSeveralLoaders) {
  const std::string text = written({}, [](auto& trainer) { trainer.test(std::tuple{batches(3), batches(2)}); });
  EXPECT_EQ(count_of(text, "Testing 3/3"), 1) << text;
  EXPECT_EQ(count_of(text, "Testing DataLoader 1 2/2"), 1) << text;
  EXPECT_EQ(count_of(text, "Test metric"), 1) << text;
  // Inside fit validation leaves nothing, alone it does.
  const std::string inside = written({}, [](auto& trainer) {
    auto train = batches(2);
    trainer.fit(train, std::tuple{batches(3), batches(2)});
  }, options(1));
  EXPECT_EQ(count_of(inside, "\n"), 1) << inside;
  const std::string alone = written({}, [](auto& trainer) { trainer.validate(batches(3)); });
  EXPECT_EQ(count_of(alone, "Validation 3/3"), 1) << alone;
}

}  // namespace
